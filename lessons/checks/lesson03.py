import math
import warnings
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise

from minimuse import t5_frozen

TITLE = "words as frozen embeddings: T5"

seeds = st.integers(0, 2**31 - 1)
HIDDEN = torch.finfo(torch.float32).min


def few(numbers):
    return "[" + ", ".join(f"{x:.4g}" for x in numbers) + "]"


# --- The package's functions, with the signatures of the exercises ---


def pad_batch(rows, max_length):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a caption was cut
        words = SimpleNamespace(
            pieces=SimpleNamespace(encode=list)
        )  # a tokenizer whose texts are ids already
        return t5_frozen.TextTokenizer.encode(words, rows, max_length)


def masked_mean(embeddings, mask):
    total = embeddings.masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def rms_norm(x, weight, eps):
    norm = t5_frozen.rms_norm(
        SimpleNamespace(d_model=len(weight), layer_norm_epsilon=eps)
    ).requires_grad_(False)
    norm.weight.data = weight
    return norm(x)


def t5_attention(q, k, v, bias):
    flat = lambda x: rearrange(x, "B H T d -> B T (H d)")
    heads = q.shape[1]
    made = SimpleNamespace(
        config=SimpleNamespace(num_heads=heads),
        q=lambda x: flat(q),
        k=lambda x: flat(k),
        v=lambda x: flat(v),
        o=lambda x: x,
    )
    out = t5_frozen.Attention.forward(
        made, None, None, bias
    )  # the module, its four projections left out
    return rearrange(out, "B T (H d) -> B H T d", H=heads)


# --- Properties ---


def closes_cuts_and_pads(function):
    """Row by row, with lists."""

    @given(
        st.lists(st.lists(st.integers(2, 9), max_size=6), min_size=1, max_size=4), st.integers(1, 7)
    )
    @example([[]], 4)
    @example([[], [5, 6]], 4)
    @example([[5, 6, 7], [8]], 3)
    def check(rows, max_length):
        said = f"rows {rows}, max_length {max_length}"
        ids, mask = function([list(row) for row in rows], max_length)
        assert ids.dtype == torch.int64 and mask.dtype == torch.bool, (
            f"{said}: ids are {ids.dtype}, the mask is {mask.dtype}"
        )
        real = []
        for row in rows:
            real.append(row[: max_length - 1] + [1] if row else [])
        T = max(1, *map(len, real))
        wanted = [row + [0] * (T - len(row)) for row in real]
        assert ids.tolist() == wanted, f"{said}: ids {ids.tolist()}, not {wanted}"
        shown = [[t < len(row) for t in range(T)] for row in real]
        assert mask.tolist() == shown, (
            f"{said}: mask {mask.int().tolist()}, not {torch.tensor(shown).int().tolist()}"
        )

    check()


def is_the_mean_of_what_is_real(function):
    """Compared with sums in plain Python; a null caption gives exactly zero."""

    @given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
    @example(0, 1, 1, 1)
    @example(1, 3, 4, 2)
    def check(seed, B, T, E):
        draw = torch.Generator().manual_seed(seed)
        embeddings = torch.randint(-9, 10, (B, T, E), generator=draw).double()
        lengths = torch.randint(0, T + 1, (B,), generator=draw)
        mask = torch.arange(T) < lengths[:, None]
        got = function(embeddings.clone(), mask.clone())
        assert tuple(got.shape) == (B, E), f"the result is {tuple(got.shape)}, not {(B, E)}"
        for b in range(B):
            real = embeddings[b].tolist()[: int(lengths[b])]
            wanted = [
                sum(vector[e] for vector in real) / len(real) if real else 0.0 for e in range(E)
            ]
            assert torch.allclose(
                got[b].double(), torch.tensor(wanted).double(), rtol=1e-6, atol=1e-6
            ), (
                f"vectors {embeddings[b].tolist()}, the first {len(real)} real: {few(got[b].tolist())}, not {few(wanted)}"
            )

    check()


def hidden_places_have_no_influence(function):
    """More padding, and other junk in it, leave every mean as it was."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    def check(seed, B, T, more):
        draw = torch.Generator().manual_seed(seed)
        embeddings = torch.randn(B, T, 2, generator=draw, dtype=torch.float64)
        mask = torch.rand(B, T, generator=draw) < 0.6
        wider = torch.cat(
            [
                embeddings.masked_fill(~mask[:, :, None], 70.0),
                50 * torch.ones(B, more, 2, dtype=torch.float64),
            ],
            dim=1,
        )
        got = function(wider, torch.cat([mask, torch.zeros(B, more, dtype=torch.bool)], dim=1))
        apart = float((got - function(embeddings, mask)).abs().max())
        assert apart < 1e-6, (
            f"mask {mask.int().tolist()}: {more} more hidden places and other junk in them move the mean by {apart:.3g}"
        )

    check()


def slow_rms_norm(vector, weight, eps):
    scale = math.sqrt(sum(x * x for x in vector) / len(vector) + eps)
    return [x / scale * w for x, w in zip(vector, weight)]


def is_rms_norm(function):
    """Each vector by itself, compared with plain Python; long ones, and ones so short that eps matters."""

    @given(
        seeds,
        st.integers(1, 3),
        st.integers(1, 6),
        st.sampled_from([1.0, 1e3, 1e-3, 1e-4, 0.0]),
        st.sampled_from([1e-6, 1e-5]),
    )
    @example(0, 2, 4, 1.0, 1e-6)
    @example(0, 2, 4, 1e-3, 1e-6)
    @example(0, 1, 2, 0.0, 1e-6)
    def check(seed, B, E, size, eps):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(-9, 10, (B, 2, E), generator=draw).float() * size
        weight = torch.randint(1, 9, (E,), generator=draw).float() / 4
        got = function(x.clone(), weight.clone(), eps)
        assert got.shape == x.shape, f"the result is {tuple(got.shape)}, not {tuple(x.shape)}"
        for vector, out in zip(x.flatten(0, 1).tolist(), got.flatten(0, 1)):
            wanted = slow_rms_norm(vector, weight.tolist(), eps)
            assert torch.allclose(
                out.double(), torch.tensor(wanted, dtype=torch.float64), rtol=3e-6, atol=1e-9
            ), (
                f"{few(vector)}, weight {weight.tolist()}, eps {eps}: {few(out.tolist())}, not {few(wanted)}"
            )

    check()


def squares_fit_in_half_precision(function):
    """float16 ends at 65504, so the square of 300 is infinite there. The norm is right all the same, to the last two bits."""

    @given(seeds, st.integers(1, 5), st.integers(1, 8))
    @example(0, 1, 1)
    def check(seed, E, size):
        draw = torch.Generator().manual_seed(seed)
        x = (torch.randint(1, 9, (2, E), generator=draw) * 400 * size).half()
        weight = (torch.randint(1, 9, (E,), generator=draw) / 4).half()
        got = function(x.clone(), weight.clone(), 1e-6)
        assert got.dtype == torch.float16, f"weight is float16, and the result {got.dtype}"
        for vector, out in zip(x.tolist(), got.double()):
            wanted = slow_rms_norm(vector, weight.tolist(), 1e-6)
            assert torch.allclose(
                out, torch.tensor(wanted, dtype=torch.float64), rtol=2e-3, atol=0
            ), (
                f"float16 {few(vector)}, weight {weight.tolist()}: {few(out.tolist())}, not {few(wanted)}"
            )

    check()


def slow_bucket(distance, num_buckets, max_distance):
    """Whole numbers only: far >= n (max / n)^(i / n) is far^n >= n^(n - i) max^i."""
    n, far = num_buckets // 4, abs(distance)
    bucket = (
        sum(far >= begin for begin in range(n))
        + sum(far**n >= n ** (n - i) * max_distance**i for i in range(n))
        - 1
    )
    return bucket + (num_buckets // 2 if distance > 0 else 0)


# Apart from T5's own, ranges in which no later bucket begins at a whole number, where the last bit of a logarithm would decide.
RANGES = [(32, 128), (16, 128), (32, 64), (8, 20)]


def buckets_are_exact(function):
    """Compared with whole-number arithmetic."""

    @given(st.sampled_from(RANGES), st.lists(st.integers(-300, 300), min_size=1, max_size=8))
    @example((32, 128), [0])
    @example((32, 128), [-1, 1])
    @example((32, 128), [-7, -8, -11, -12, -15, -16, -127, -128, -300])
    @example((32, 128), [7, 8, 11, 12, 15, 16, 22, 23, 90, 91, 127, 128, 300])
    def check(ranges, distances):
        got = function(torch.tensor(distances), *ranges)
        assert got.dtype == torch.int64, f"buckets are {got.dtype}"
        for distance, bucket in zip(distances, got.tolist()):
            wanted = slow_bucket(distance, *ranges)
            assert bucket == wanted, (
                f"{ranges[0]} buckets, max_distance {ranges[1]}: distance {distance} is in bucket {bucket}, not {wanted}"
            )

    check()


def buckets_keep_the_shape(function):
    """A table of all pairs in, a table of buckets out; on its diagonal, the distance 0."""

    @given(st.integers(1, 40))
    def check(T):
        position = torch.arange(T)
        got = function(position[None, :] - position[:, None], 32, 128)
        assert tuple(got.shape) == (T, T), (
            f"{T} x {T} distances, and buckets of shape {tuple(got.shape)}"
        )
        wanted = [[slow_bucket(key - query, 32, 128) for key in range(T)] for query in range(T)]
        assert got.tolist() == wanted, (
            f"a text of {T} tokens: buckets {got.tolist()[0][:9]} for the first query, not {wanted[0][:9]}"
        )

    check()


def slow_attention(query, keys, values, bias):
    scores = [sum(a * b for a, b in zip(query, key)) + extra for key, extra in zip(keys, bias)]
    weights = [math.exp(score - max(scores)) for score in scores]
    return [
        sum(w * value[i] for w, value in zip(weights, values)) / sum(weights)
        for i in range(len(values[0]))
    ]


def whole_numbers(seed, B, H, T, S, d, loud):
    """Scores that float32 holds exactly, so that only the softmax can round."""
    draw = torch.Generator().manual_seed(seed)
    whole = lambda *shape: torch.randint(-3, 4, shape, generator=draw).float()
    q, k, v = loud * whole(B, H, T, d), loud * whole(B, H, S, d), whole(B, H, S, d)
    return q, k, v, whole(1, H, T, S) / 2, torch.rand(B, S, generator=draw) < 0.7


def is_attention_without_scale(function):
    """Compared with plain Python, query by query: no 1/sqrt(d), the bias inside the softmax, some keys hidden."""

    @given(
        seeds,
        st.integers(1, 2),
        st.integers(1, 2),
        st.integers(1, 4),
        st.integers(1, 4),
        st.integers(1, 4),
        st.sampled_from([1, 16]),
    )
    @example(0, 1, 1, 1, 2, 4, 1)
    @example(0, 2, 2, 3, 3, 4, 1)
    @example(0, 1, 2, 3, 4, 4, 16)
    def check(seed, B, H, T, S, d, loud):
        q, k, v, bias, visible = whole_numbers(seed, B, H, T, S, d, loud)
        visible[:, 0] = True
        for masked in (False, True):
            full = bias.expand(B, H, T, S)
            if masked:
                full = full.masked_fill(~visible[:, None, None, :], HIDDEN)
            got = function(q, k, v, full if masked else bias)
            assert got.shape == q.shape, f"the result is {tuple(got.shape)}, not {tuple(q.shape)}"
            for b in range(B):
                for h in range(H):
                    for t in range(T):
                        query, keys, values, extra = (
                            q[b, h, t].tolist(),
                            k[b, h].tolist(),
                            v[b, h].tolist(),
                            full[b, h, t].tolist(),
                        )
                        wanted = slow_attention(query, keys, values, extra)
                        assert torch.allclose(
                            got[b, h, t], torch.tensor(wanted), rtol=1e-5, atol=1e-5
                        ), (
                            f"query {few(query)}, keys {keys}, values {values}, bias {few(extra)}: {few(got[b, h, t].tolist())}, not {few(wanted)}"
                        )

    check()


def nothing_to_look_at_is_finite(function):
    """A null caption hides every key. What comes out is thrown away, but NaN would not stay where it is."""

    @given(seeds, st.integers(1, 4), st.integers(1, 3))
    @example(0, 1, 1)
    def check(seed, T, d):
        q, k, v, bias, _ = whole_numbers(seed, 2, 1, T, T, d, 1)
        bias = torch.cat([bias, torch.full_like(bias, HIDDEN)])
        got = function(q, k, v, bias)
        assert got.isfinite().all(), f"{T} keys, all hidden: {got[1, 0].tolist()}"
        alone = function(q[:1], k[:1], v[:1], bias[:1])
        assert torch.allclose(got[:1], alone, rtol=1e-5, atol=1e-5), (
            "a null caption changes its neighbour in the batch"
        )

    check()


# --- Planted bugs ---


def padded(rows, max_length, eos=True, keep=True, empty=False, pad=0, width=None, hide=()):
    """The right thing, with switches that break it."""
    rows = [row + [1] * eos if row or empty else [] for row in rows]
    rows = [
        row if len(row) <= max_length else row[: max_length - 1] + [1] if keep else row[:max_length]
        for row in rows
    ]
    T = width or max(1, *map(len, rows))
    ids = torch.tensor([row + [pad] * (T - len(row)) for row in rows])
    mask = torch.tensor([[t < len(row) for t in range(T)] for row in rows])
    for token in hide:
        mask = mask & (ids != token)
    return ids, mask


def bucket(
    distance,
    num_buckets,
    max_distance,
    after=lambda d: d > 0,
    size=torch.abs,
    last=True,
    offset=0.0,
):
    half, n = num_buckets // 2, num_buckets // 4
    far = size(distance)
    octaves = torch.log(far.clamp(min=1).double() / n) / math.log(max_distance / n) * (half - n)
    log = n + (octaves + 1e-9 + offset).long()
    return after(distance) * half + torch.where(
        far < n, far, log.clamp(max=half - 1) if last else log
    )


def attended(q, k, v, bias, scale=1.0, dim=-1):
    return (scale * q @ k.transpose(-1, -2) + bias).softmax(dim) @ v


def without_maximum(q, k, v, bias):
    weights = (q @ k.transpose(-1, -2) + bias).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


EXERCISES = [
    Exercise(
        "pad_batch",
        pad_batch,
        (closes_cuts_and_pads,),
        hint="add what closes a row before you measure it, and make room for it when you cut. Which row has nothing to close?",
        wrong=(
            lambda r, m: padded(r, m, eos=False),
            lambda r, m: padded(r, m, keep=False),  # eos is cut off
            lambda r, m: padded(r, m, empty=True),  # the null caption says eos
            lambda r, m: padded(r, m, hide=[1]),  # eos is not real
            lambda r, m: padded(r, m, width=m),  # always the full width
            lambda r, m: padded(r, m + 1),  # eos is not counted
            lambda r, m: (
                padded(r, m)[0],
                torch.ones(padded(r, m)[0].shape, dtype=torch.bool),
            ),  # pads are real
            lambda r, m: tuple(
                x.flip(1) for x in padded([row[::-1] for row in r], m)
            ),  # padded on the left, eos first
        ),
    ),
    Exercise(
        "masked_mean",
        masked_mean,
        (is_the_mean_of_what_is_real, hidden_places_have_no_influence),
        hint="a sum and a count, each over the real tokens only. What is zero divided by zero?",
        wrong=(
            lambda e, m: e.mean(1),
            lambda e, m: (e * m[..., None]).mean(1),  # divided by T
            lambda e, m: e.sum(1) / m.sum(1, keepdim=True).clamp(min=1),  # junk is added
            lambda e, m: (
                (e * m[..., None]).sum(1) / m.sum(1, keepdim=True)
            ),  # NaN for a null caption
            lambda e, m: (
                (e * m[..., None]).sum(1) / m.sum(1).max().clamp(min=1)
            ),  # the longest row's count
            lambda e, m: (
                (e * m[..., None]).sum(1) / (m.sum(1, keepdim=True) + 1)
            ),  # biased, to be safe from zero
        ),
    ),
    Exercise(
        "rms_norm",
        rms_norm,
        (is_rms_norm, squares_fit_in_half_precision),
        hint="no mean is taken off, and eps is added before the root. In which precision can a square overflow?",
        wrong=(
            lambda x, w, eps: F.layer_norm(
                x, x.shape[-1:], weight=w, eps=eps
            ),  # takes the mean off
            lambda x, w, eps: (
                w * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps)
            ),  # eps after the root
            lambda x, w, eps: (
                w * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()
            ),  # the length, not the mean square
            lambda x, w, eps: w * x / (x.pow(2).mean() + eps).sqrt(),  # one scale for the batch
            lambda x, w, eps: (
                x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
            ),  # weight forgotten
            lambda x, w, eps: (
                w * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
            ),  # squares in half precision
        ),
    ),
    Exercise(
        "relative_position_bucket",
        lambda distance, num_buckets, max_distance: t5_frozen.relative_position_bucket(
            distance, True, num_buckets, max_distance
        ),
        (buckets_are_exact, buckets_keep_the_shape),
        hint="print the buckets of -20 to 20 beside the lesson's table. Which half is for a key after its query? Where does log(0) go?",
        wrong=(
            lambda d, n, m: bucket(d, n, m, after=lambda d: d < 0),  # query - key
            lambda d, n, m: bucket(d, n, m, after=lambda d: d >= 0),  # where 0 belongs
            lambda d, n, m: bucket(d, n, m, last=False),  # beyond the last bucket
            lambda d, n, m: bucket(d, n, m, offset=0.5),  # rounded, not cut
            lambda d, n, m: bucket(
                d, n, m, size=lambda d: d.clamp(min=0)
            ),  # keys before the query are all alike
            lambda d, n, m: d.abs().clamp(max=n // 2 - 1) + (d > 0) * (n // 2),  # no wide buckets
            lambda d, n, m: t5_frozen.relative_position_bucket(d, False, n, m),  # the decoder's
            lambda d, n, m: bucket(d, n, 2 * m),
        ),
    ),
    Exercise(
        "t5_attention",
        t5_attention,
        (is_attention_without_scale, nothing_to_look_at_is_finite),
        hint="nothing is divided by sqrt(d), the bias is part of the score, and the weights over the keys of one query sum to 1.",
        wrong=(
            lambda q, k, v, b: attended(
                q, k, v, b, scale=q.shape[-1] ** -0.5
            ),  # everybody else's attention
            lambda q, k, v, b: attended(
                q, k, v, torch.where(b == HIDDEN, b, 0.0)
            ),  # as in a block without the table
            lambda q, k, v, b: attended(q, k, v, b, dim=-2),  # over the queries
            lambda q, k, v, b: attended(q, k, v, b.transpose(-1, -2)),  # query - key
            lambda q, k, v, b: (
                ((q @ k.transpose(-1, -2)).softmax(-1) + b) @ v
            ),  # outside of the softmax
            without_maximum,  # overflows
            lambda q, k, v, b: attended(
                q, k, v, torch.where(b == HIDDEN, -torch.inf, b)
            ),  # NaN for a null caption
        ),
    ),
]
