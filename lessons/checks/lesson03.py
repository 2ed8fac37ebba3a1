"""Lesson 03, words as frozen embeddings: what must hold of its exercises, and wrong solutions."""

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
# The score of a hidden key.
HIDDEN = torch.finfo(torch.float32).min


def few(numbers):
    """A list of numbers with four digits each."""
    return "[" + ", ".join(f"{x:.4g}" for x in numbers) + "]"


# --- The package's functions, with the signatures of the exercises ---


def pad_batch(rows, max_length):
    # A tokenizer whose texts are lists of ids already.
    tokenizer = SimpleNamespace(pieces=SimpleNamespace(encode=list))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a caption was cut
        return t5_frozen.TextTokenizer.encode(tokenizer, rows, max_length)


def masked_mean(embeddings, mask):
    total = embeddings.masked_fill(~mask[:, :, None], 0.0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def rms_norm(x, weight, eps):
    config = SimpleNamespace(d_model=len(weight), layer_norm_epsilon=eps)
    norm = t5_frozen.rms_norm(config).requires_grad_(False)
    norm.weight.data = weight
    return norm(x)


def relative_position_bucket(distance, num_buckets, max_distance):
    return t5_frozen.relative_position_bucket(distance, True, num_buckets, max_distance)


def t5_attention(q, k, v, bias):
    """The package's module, with stand-ins for its four projections."""
    heads = q.shape[1]

    def flat(x):
        return rearrange(x, "B H T d -> B T (H d)")

    module = SimpleNamespace(
        config=SimpleNamespace(num_heads=heads),
        q=lambda x: flat(q),
        k=lambda x: flat(k),
        v=lambda x: flat(v),
        o=lambda x: x,
    )
    out = t5_frozen.Attention.forward(module, None, None, bias)
    return rearrange(out, "B T (H d) -> B H T d", H=heads)


# --- Properties: pad_batch ---


def slow_pad_batch(rows, max_length):
    """ids and mask as lists of lists."""
    closed = []
    for row in rows:
        closed.append(row[: max_length - 1] + [1] if row else [])
    T = max(1, *(len(row) for row in closed))
    ids, mask = [], []
    for row in closed:
        padding = T - len(row)
        ids.append(row + [0] * padding)
        mask.append([True] * len(row) + [False] * padding)
    return ids, mask


def closes_cuts_and_pads(function):
    """Compared row by row, with lists."""

    @given(
        st.lists(st.lists(st.integers(2, 9), max_size=6), min_size=1, max_size=4), st.integers(1, 7)
    )
    @example([[]], 4)
    @example([[], [5, 6]], 4)
    @example([[5, 6, 7], [8]], 3)
    def check(rows, max_length):
        case = f"rows {rows}, max_length {max_length}"
        ids, mask = function([list(row) for row in rows], max_length)
        assert ids.dtype == torch.int64 and mask.dtype == torch.bool, (
            f"{case}: ids are {ids.dtype}, the mask is {mask.dtype}"
        )
        expected_ids, expected_mask = slow_pad_batch(rows, max_length)
        assert ids.tolist() == expected_ids, f"{case}: ids {ids.tolist()}, not {expected_ids}"
        assert mask.tolist() == expected_mask, (
            f"{case}: mask {mask.int().tolist()}, not {torch.tensor(expected_mask).int().tolist()}"
        )

    check()


# --- Properties: masked_mean ---


def slow_mean(vectors, E):
    """The mean of lists of E numbers; zero if there are none."""
    if not vectors:
        return [0.0] * E
    return [sum(vector[e] for vector in vectors) / len(vectors) for e in range(E)]


def is_the_mean_of_what_is_real(function):
    """Compared with sums in plain Python; a null caption gives exactly zero."""

    @given(seeds, st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
    @example(0, 1, 1, 1)
    @example(1, 3, 4, 2)
    def check(seed, B, T, E):
        generator = torch.Generator().manual_seed(seed)
        embeddings = torch.randint(-9, 10, (B, T, E), generator=generator).double()
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
        mask = torch.arange(T) < lengths[:, None]
        result = function(embeddings.clone(), mask.clone())
        assert tuple(result.shape) == (B, E), f"the result is {tuple(result.shape)}, not {(B, E)}"
        for b in range(B):
            vectors = embeddings[b].tolist()
            real = vectors[: int(lengths[b])]
            expected = slow_mean(real, E)
            assert torch.allclose(
                result[b].double(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6
            ), (
                f"vectors {vectors}, the first {len(real)} real: "
                f"{few(result[b].tolist())}, not {few(expected)}"
            )

    check()


def hidden_places_have_no_influence(function):
    """More padding with other numbers in it leaves every mean as it was."""

    @given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
    def check(seed, B, T, more):
        generator = torch.Generator().manual_seed(seed)
        embeddings = torch.randn(B, T, 2, generator=generator, dtype=torch.float64)
        mask = torch.rand(B, T, generator=generator) < 0.6
        changed = embeddings.masked_fill(~mask[:, :, None], 70.0)
        added = 50 * torch.ones(B, more, 2, dtype=torch.float64)
        wider = torch.cat([changed, added], dim=1)
        wider_mask = torch.cat([mask, torch.zeros(B, more, dtype=torch.bool)], dim=1)
        difference = function(wider, wider_mask) - function(embeddings, mask)
        moved = float(difference.abs().max())
        assert moved < 1e-6, (
            f"mask {mask.int().tolist()}: {more} more hidden places, with other numbers in them, "
            f"move the mean by {moved:.3g}"
        )

    check()


# --- Properties: rms_norm ---


def slow_rms_norm(vector, weight, eps):
    scale = math.sqrt(sum(x * x for x in vector) / len(vector) + eps)
    return [x / scale * w for x, w in zip(vector, weight, strict=True)]


def is_rms_norm(function):
    """Each vector by itself, compared with plain Python.

    Long vectors, and ones so short that eps matters.
    """

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
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(-9, 10, (B, 2, E), generator=generator).float() * size
        weight = torch.randint(1, 9, (E,), generator=generator).float() / 4
        result = function(x.clone(), weight.clone(), eps)
        assert result.shape == x.shape, f"the result is {tuple(result.shape)}, not {tuple(x.shape)}"
        for vector, out in zip(x.flatten(0, 1).tolist(), result.flatten(0, 1), strict=True):
            expected = slow_rms_norm(vector, weight.tolist(), eps)
            assert torch.allclose(
                out.double(), torch.tensor(expected, dtype=torch.float64), rtol=3e-6, atol=1e-9
            ), (
                f"{few(vector)}, weight {weight.tolist()}, eps {eps}: "
                f"{few(out.tolist())}, not {few(expected)}"
            )

    check()


def squares_fit_in_half_precision(function):
    """The square of 300 is infinite in float16, which ends at 65504. The norm must be right.

    It is compared up to the last two bits.
    """

    @given(seeds, st.integers(1, 5), st.integers(1, 8))
    @example(0, 1, 1)
    def check(seed, E, size):
        generator = torch.Generator().manual_seed(seed)
        x = (torch.randint(1, 9, (2, E), generator=generator) * 400 * size).half()
        weight = (torch.randint(1, 9, (E,), generator=generator) / 4).half()
        result = function(x.clone(), weight.clone(), 1e-6)
        assert result.dtype == torch.float16, f"weight is float16, and the result {result.dtype}"
        for vector, out in zip(x.tolist(), result.double(), strict=True):
            expected = slow_rms_norm(vector, weight.tolist(), 1e-6)
            assert torch.allclose(
                out, torch.tensor(expected, dtype=torch.float64), rtol=2e-3, atol=0
            ), (
                f"float16 {few(vector)}, weight {weight.tolist()}: "
                f"{few(out.tolist())}, not {few(expected)}"
            )

    check()


# --- Properties: relative_position_bucket ---


def slow_bucket(distance, num_buckets, max_distance):
    """Count the boundaries that the distance has reached, in whole numbers.

    Bucket n + i starts at n (max / n)^(i / n): far is at least that if
    far^n >= n^(n - i) max^i.
    """
    n, far = num_buckets // 4, abs(distance)
    bucket = -1
    for begin in range(n):
        bucket += far >= begin
    for i in range(n):
        bucket += far**n >= n ** (n - i) * max_distance**i
    if distance > 0:
        bucket += num_buckets // 2
    return bucket


# T5's own range, and ranges in which no later bucket starts at a whole number. There the last bit
# of a logarithm would decide.
RANGES = [(32, 128), (16, 128), (32, 64), (8, 20)]


def buckets_are_exact(function):
    """Compared with whole-number arithmetic."""

    @given(st.sampled_from(RANGES), st.lists(st.integers(-300, 300), min_size=1, max_size=8))
    @example((32, 128), [0])
    @example((32, 128), [-1, 1])
    @example((32, 128), [-7, -8, -11, -12, -15, -16, -127, -128, -300])
    @example((32, 128), [7, 8, 11, 12, 15, 16, 22, 23, 90, 91, 127, 128, 300])
    def check(ranges, distances):
        result = function(torch.tensor(distances), *ranges)
        assert result.dtype == torch.int64, f"buckets are {result.dtype}"
        for distance, bucket in zip(distances, result.tolist(), strict=True):
            expected = slow_bucket(distance, *ranges)
            assert bucket == expected, (
                f"{ranges[0]} buckets, max_distance {ranges[1]}: "
                f"distance {distance} is in bucket {bucket}, not {expected}"
            )

    check()


def buckets_keep_the_shape(function):
    """A table of the distances of all pairs gives a table of buckets."""

    @given(st.integers(1, 40))
    def check(T):
        position = torch.arange(T)
        result = function(position[None, :] - position[:, None], 32, 128)
        assert tuple(result.shape) == (T, T), (
            f"{T} x {T} distances, and buckets of shape {tuple(result.shape)}"
        )
        for query, row in enumerate(result.tolist()):
            expected = [slow_bucket(key - query, 32, 128) for key in range(T)]
            assert row == expected, (
                f"a text of {T} tokens: buckets {row[:9]} for query {query}, not {expected[:9]}"
            )

    check()


# --- Properties: t5_attention ---


def slow_attention(query, keys, values, bias):
    """One query over lists of keys and values, in plain Python."""
    scores = []
    for key, extra in zip(keys, bias, strict=True):
        scores.append(sum(a * b for a, b in zip(query, key, strict=True)) + extra)
    weights = [math.exp(score - max(scores)) for score in scores]
    result = []
    for i in range(len(values[0])):
        weighted = sum(w * value[i] for w, value in zip(weights, values, strict=True))
        result.append(weighted / sum(weights))
    return result


def whole_numbers(seed, B, H, T, S, d, loud):
    """Inputs whose scores float32 holds exactly, so that only the softmax can round."""
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):
        return torch.randint(-3, 4, shape, generator=generator).float()

    q = loud * whole(B, H, T, d)
    k = loud * whole(B, H, S, d)
    v = whole(B, H, S, d)
    bias = whole(1, H, T, S) / 2
    visible = torch.rand(B, S, generator=generator) < 0.7
    return q, k, v, bias, visible


def equals_slow_attention(function, q, k, v, bias):
    """Compare query by query with plain Python. The bias is (B, H, T, S) or (1, H, T, S)."""
    B, H, T, _ = q.shape
    result = function(q, k, v, bias)
    assert result.shape == q.shape, f"the result is {tuple(result.shape)}, not {tuple(q.shape)}"
    bias = bias.expand(B, -1, -1, -1)
    for b, h, t in torch.cartesian_prod(*map(torch.arange, (B, H, T))).tolist():
        query, keys, values = q[b, h, t].tolist(), k[b, h].tolist(), v[b, h].tolist()
        extra = bias[b, h, t].tolist()
        expected = slow_attention(query, keys, values, extra)
        out = result[b, h, t]
        assert torch.allclose(out, torch.tensor(expected), rtol=1e-5, atol=1e-5), (
            f"query {few(query)}, keys {keys}, values {values}, bias {few(extra)}: "
            f"{few(out.tolist())}, not {few(expected)}"
        )


def is_attention_without_scale(function):
    """No 1 / sqrt(d), the bias inside the softmax; with all keys, and with some hidden."""

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
        equals_slow_attention(function, q, k, v, bias)
        masked_bias = bias.expand(B, H, T, S).masked_fill(~visible[:, None, None, :], HIDDEN)
        equals_slow_attention(function, q, k, v, masked_bias)

    check()


def nothing_to_look_at_is_finite(function):
    """A null caption hides every key. Its result is not used, but NaN would spread."""

    @given(seeds, st.integers(1, 4), st.integers(1, 3))
    @example(0, 1, 1)
    def check(seed, T, d):
        q, k, v, bias, _ = whole_numbers(seed, 2, 1, T, T, d, 1)
        bias = torch.cat([bias, torch.full_like(bias, HIDDEN)])
        result = function(q, k, v, bias)
        assert result.isfinite().all(), f"{T} keys, all hidden: {result[1, 0].tolist()}"
        alone = function(q[:1], k[:1], v[:1], bias[:1])
        assert torch.allclose(result[:1], alone, rtol=1e-5, atol=1e-5), (
            "a null caption changes its neighbour in the batch"
        )

    check()


# --- Planted bugs: pad_batch ---


def padded(rows, max_length, eos=(1,), null_eos=(), keep_eos=True, width=None):
    """pad_batch with switches that break it."""
    cut = []
    for row in rows:
        row = [*row, *(eos if row else null_eos)]
        if len(row) > max_length:
            row = row[:max_length]
            if keep_eos:
                row[-1] = 1
        cut.append(row)
    T = width or max(1, *(len(row) for row in cut))
    ids = torch.zeros(len(cut), T, dtype=torch.int64)
    mask = torch.zeros(len(cut), T, dtype=torch.bool)
    for i, row in enumerate(cut):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return ids, mask


def without_eos(rows, max_length):
    return padded(rows, max_length, eos=())


def eos_is_cut_off(rows, max_length):
    return padded(rows, max_length, keep_eos=False)


def null_caption_has_eos(rows, max_length):
    return padded(rows, max_length, null_eos=(1,))


def eos_is_not_real(rows, max_length):
    ids, mask = padded(rows, max_length)
    return ids, mask & (ids != 1)


def always_full_width(rows, max_length):
    return padded(rows, max_length, width=max_length)


def eos_is_not_counted(rows, max_length):
    return padded(rows, max_length + 1)


def padding_is_real(rows, max_length):
    ids, mask = padded(rows, max_length)
    return ids, torch.ones_like(mask)


def padded_on_the_left(rows, max_length):
    ids, mask = padded([row[::-1] for row in rows], max_length)
    return ids.flip(1), mask.flip(1)


# --- Planted bugs: masked_mean ---


def mean_of_all(embeddings, mask):
    return embeddings.mean(1)


def divided_by_T(embeddings, mask):
    return (embeddings * mask[..., None]).mean(1)


def padding_is_added(embeddings, mask):
    return embeddings.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def nan_for_a_null_caption(embeddings, mask):
    return (embeddings * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def count_of_the_longest(embeddings, mask):
    return (embeddings * mask[..., None]).sum(1) / mask.sum(1).max().clamp(min=1)


def count_plus_one(embeddings, mask):
    """Never divides by zero, and is biased."""
    return (embeddings * mask[..., None]).sum(1) / (mask.sum(1, keepdim=True) + 1)


# --- Planted bugs: rms_norm ---


def with_mean_removed(x, weight, eps):
    return F.layer_norm(x, x.shape[-1:], weight=weight, eps=eps)


def eps_after_the_root(x, weight, eps):
    return weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + eps)


def length_of_the_vector(x, weight, eps):
    return weight * x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()


def one_scale_for_the_batch(x, weight, eps):
    return weight * x / (x.pow(2).mean() + eps).sqrt()


def weight_forgotten(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def squares_in_half_precision(x, weight, eps):
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


# --- Planted bugs: relative_position_bucket ---


def bucket(far, after, num_buckets, max_distance, last=True, offset=0.0):
    """relative_position_bucket of a distance `far`, after or before, with switches."""
    half, n = num_buckets // 2, num_buckets // 4
    octaves = torch.log(far.clamp(min=1).double() / n) / math.log(max_distance / n)
    wide = n + (octaves * (half - n) + 1e-9 + offset).long()
    if last:
        wide = wide.clamp(max=half - 1)
    return after * half + torch.where(far < n, far, wide)


def query_minus_key(distance, num_buckets, max_distance):
    return bucket(distance.abs(), distance < 0, num_buckets, max_distance)


def zero_is_after(distance, num_buckets, max_distance):
    return bucket(distance.abs(), distance >= 0, num_buckets, max_distance)


def beyond_the_last(distance, num_buckets, max_distance):
    return bucket(distance.abs(), distance > 0, num_buckets, max_distance, last=False)


def rounded(distance, num_buckets, max_distance):
    """Rounded to the nearest where it should be rounded down."""
    return bucket(distance.abs(), distance > 0, num_buckets, max_distance, offset=0.5)


def before_is_all_alike(distance, num_buckets, max_distance):
    return bucket(distance.clamp(min=0), distance > 0, num_buckets, max_distance)


def no_wide_buckets(distance, num_buckets, max_distance):
    half = num_buckets // 2
    return distance.abs().clamp(max=half - 1) + (distance > 0) * half


def the_decoders(distance, num_buckets, max_distance):
    return t5_frozen.relative_position_bucket(distance, False, num_buckets, max_distance)


def twice_as_far(distance, num_buckets, max_distance):
    return bucket(distance.abs(), distance > 0, num_buckets, 2 * max_distance)


# --- Planted bugs: t5_attention ---


def attended(q, k, v, bias, scale=1.0, dim=-1):
    """t5_attention with switches that break it."""
    return (scale * q @ k.transpose(-1, -2) + bias).softmax(dim) @ v


def with_scale(q, k, v, bias):
    """The attention of all other transformers."""
    return attended(q, k, v, bias, scale=q.shape[-1] ** -0.5)


def without_bias(q, k, v, bias):
    """As in a block without the table."""
    return attended(q, k, v, torch.where(bias == HIDDEN, bias, 0.0))


def over_the_queries(q, k, v, bias):
    return attended(q, k, v, bias, dim=-2)


def bias_transposed(q, k, v, bias):
    """By query - key."""
    return attended(q, k, v, bias.transpose(-1, -2))


def bias_after_the_softmax(q, k, v, bias):
    return ((q @ k.transpose(-1, -2)).softmax(-1) + bias) @ v


def without_maximum(q, k, v, bias):
    """Overflows."""
    weights = (q @ k.transpose(-1, -2) + bias).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def minus_infinity(q, k, v, bias):
    """NaN for a null caption."""
    return attended(q, k, v, torch.where(bias == HIDDEN, -torch.inf, bias))


EXERCISES = [
    Exercise(
        "pad_batch",
        pad_batch,
        (closes_cuts_and_pads,),
        hint="add the eos to a row before you measure it, and make room for it when you cut. Which "
        "row gets no eos?",
        wrong=(
            without_eos,
            eos_is_cut_off,
            null_caption_has_eos,
            eos_is_not_real,
            always_full_width,
            eos_is_not_counted,
            padding_is_real,
            padded_on_the_left,
        ),
    ),
    Exercise(
        "masked_mean",
        masked_mean,
        (is_the_mean_of_what_is_real, hidden_places_have_no_influence),
        hint="a sum and a count, each over the real tokens only. What is zero divided by zero?",
        wrong=(
            mean_of_all,
            divided_by_T,
            padding_is_added,
            nan_for_a_null_caption,
            count_of_the_longest,
            count_plus_one,
        ),
    ),
    Exercise(
        "rms_norm",
        rms_norm,
        (is_rms_norm, squares_fit_in_half_precision),
        hint="no mean is subtracted, and eps is added before the root. In which precision can a "
        "square overflow?",
        wrong=(
            with_mean_removed,
            eps_after_the_root,
            length_of_the_vector,
            one_scale_for_the_batch,
            weight_forgotten,
            squares_in_half_precision,
        ),
    ),
    Exercise(
        "relative_position_bucket",
        relative_position_bucket,
        (buckets_are_exact, buckets_keep_the_shape),
        hint="print the buckets of -20 to 20 beside the lesson's table. Which half is for a key "
        "after its query? What becomes of log(0)?",
        wrong=(
            query_minus_key,
            zero_is_after,
            beyond_the_last,
            rounded,
            before_is_all_alike,
            no_wide_buckets,
            the_decoders,
            twice_as_far,
        ),
    ),
    Exercise(
        "t5_attention",
        t5_attention,
        (is_attention_without_scale, nothing_to_look_at_is_finite),
        hint="nothing is divided by sqrt(d), the bias is part of the score, and the weights over "
        "the keys of one query sum to 1.",
        wrong=(
            with_scale,
            without_bias,
            over_the_queries,
            bias_transposed,
            bias_after_the_softmax,
            without_maximum,
            minus_infinity,
        ),
    ),
]
