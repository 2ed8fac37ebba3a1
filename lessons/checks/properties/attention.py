"""Properties of attention (`minimuse/transformer.py`).

Each takes a function to judge, attend(q, k, v, visible) or multi_axis(qkv, grid, window), and
raises an AssertionError with a counterexample if it is wrong.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks.compare import assert_same

seeds, sizes = st.integers(0, 2**31 - 1), st.integers(1, 5)


def qkv_of(seed, B, H, N, T, d):
    """Random q (B, H, N, d), k and v (B, H, T, d) in float64, visible (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(B, H, N, d, generator=generator, dtype=torch.float64) * 2
    k = torch.randn(B, H, T, d, generator=generator, dtype=torch.float64) * 2
    v = torch.randn(B, H, T, d, generator=generator, dtype=torch.float64) * 2
    visible = torch.rand(B, T, generator=generator) < 0.6
    return q, k, v, visible


def close(result, expected):
    """True if a tensor has the numbers of a list."""
    expected = torch.tensor(expected, dtype=torch.float64)
    return torch.allclose(result, expected, rtol=1e-9, atol=1e-9)


def slow_attention(query, keys, values, biases=None):
    """One query over lists of keys and values, in plain Python. No keys give zero."""
    if not keys:
        return [0.0] * len(query)
    if biases is None:
        biases = [0.0] * len(keys)
    weights = []
    for key, bias in zip(keys, biases, strict=True):
        score = sum(a * b for a, b in zip(query, key, strict=True))
        weights.append(math.exp(score / math.sqrt(len(query)) + bias))
    total = sum(weights)
    result = []
    for i in range(len(query)):
        weighted = sum(w * value[i] for w, value in zip(weights, values, strict=True))
        result.append(weighted / total)
    return result


def is_softmax_attention(attend):
    """sum_j softmax_j(q k_j / sqrt(d)) v_j over the visible keys, compared with plain Python."""

    @given(seeds, st.integers(1, 2), sizes, sizes, st.integers(1, 4))
    @example(0, 1, 1, 2, 1)
    def check(seed, B, N, T, d):
        q, k, v, visible = qkv_of(seed, B, 2, N, T, d)
        masked = attend(q, k, v, visible)
        full = attend(q, k, v, None)
        for b in range(B):
            seen = [t for t in range(T) if visible[b, t]]
            for h in range(2):
                keys, values = k[b, h].tolist(), v[b, h].tolist()
                seen_keys = [keys[t] for t in seen]
                seen_values = [values[t] for t in seen]
                for n in range(N):
                    query = q[b, h, n].tolist()
                    expected = slow_attention(query, seen_keys, seen_values)
                    case = f"query {query}, keys {keys}, values {values}"
                    result = masked[b, h, n]
                    visible_row = f"{case}, visible {visible[b].tolist()}"
                    assert_same(result, expected, visible_row, rtol=1e-9, atol=1e-9)
                    expected = slow_attention(query, keys, values)
                    result = full[b, h, n]
                    assert_same(result, expected, f"{case}, without a mask", rtol=1e-9, atol=1e-9)

    check()


def adds_the_bias(attend):
    """The bias (H, N, T) is added to the scores, whether words are hidden or not."""

    @given(seeds, sizes, sizes, st.booleans())
    @example(0, 1, 2, False)
    def check(seed, N, T, has_mask):
        q, k, v, visible = qkv_of(seed, 2, 2, N, T, 3)
        generator = torch.Generator().manual_seed(seed)
        bias = torch.randn(2, N, T, generator=generator, dtype=torch.float64)
        out = attend(q, k, v, visible if has_mask else None, bias)
        assert out.shape == q.shape, f"the shape is {tuple(out.shape)}, not {tuple(q.shape)}"
        for b, h, n in itertools.product(range(2), range(2), range(N)):
            seen = visible[b] if has_mask else slice(None)
            keys, values = k[b, h, seen].tolist(), v[b, h, seen].tolist()
            biases = bias[h, n, seen].tolist()
            expected = slow_attention(q[b, h, n].tolist(), keys, values, biases)
            case = (
                f"row {b}, head {h}, query {n} {q[b, h, n].tolist()}, visible keys {keys}, "
                f"their values {values}, their biases {biases}"
            )
            assert_same(out[b, h, n], expected, case, rtol=1e-9, atol=1e-9)

    check()


def survives_large_scores(attend):
    """Scores in the thousands: exp() of them overflows, but the softmax is 1 at the largest."""
    q = torch.full((1, 1, 1, 1), 100.0)
    k = torch.tensor([[[[10.0], [-10.0], [20.0]]]])
    v = torch.tensor([[[[1.0], [2.0], [3.0]]]])
    for visible, expected in ((None, 3.0), (torch.tensor([[True, True, False]]), 1.0)):
        result = float(attend(q, k, v, visible))
        assert abs(result - expected) < 1e-6, (
            f"scores 1000, -1000, 2000, values 1, 2, 3, visible {visible}: {result}, not {expected}"
        )


def equals_torch(attend):
    """Equal to PyTorch's scaled_dot_product_attention, in value and gradient.

    In each row of the batch some key is visible.
    """

    def torch_attend(q, k, v, visible):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None, :])

    def with_gradients(function, tensors, visible):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out = function(*leaves, visible)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    @given(seeds, sizes, sizes)
    def check(seed, N, T):
        q, k, v, visible = qkv_of(seed, 2, 2, N, T, 4)
        visible[:, 0] = True
        results = with_gradients(attend, (q, k, v), visible)
        expected = with_gradients(torch_attend, (q, k, v), visible)
        names = ("the result", "the gradient of q", "the gradient of k", "the gradient of v")
        for name, a, b in zip(names, results, expected, strict=True):
            assert_same(a, b, f"{N} queries, {T} keys: {name}", rtol=1e-9, atol=1e-9)

    check()


def nothing_visible_is_zero(attend):
    """A row without a visible key gets exactly zero and sends a zero gradient, not NaN.

    The other rows of its batch are not affected.
    """

    @given(seeds, sizes, sizes)
    @example(0, 1, 1)
    def check(seed, N, T):
        q, k, v, visible = qkv_of(seed, 2, 1, N, T, 3)
        visible[0] = False
        visible[1] = True
        leaves = [x.float().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, visible)
        (out + 1).square().sum().backward()
        assert (out[0] == 0).all(), (
            f"a row without a visible key got {out[0].flatten().tolist()}, not 0"
        )
        for x in leaves:
            assert (x.grad[0] == 0).all(), "a row without a visible key sends a gradient"
        alone = attend(*(x[1:] for x in leaves), None)
        case = "a row beside one without a visible key is not what it is alone"
        assert_same(out[1:], alone, case, rtol=1e-5, atol=1e-6)

    check()


def hidden_keys_do_not_matter(attend):
    """Hidden keys and values can have any value, and any number of them can be added."""

    @given(seeds, sizes, sizes, st.integers(1, 4))
    def check(seed, N, T, more):
        q, k, v, visible = qkv_of(seed, 2, 2, N, T, 4)

        def change_hidden(x):
            changed = torch.where(visible[:, None, :, None], x, -5 * x + 3)
            added = 9 * torch.ones(2, 2, more, 4, dtype=x.dtype)
            return torch.cat([changed, added], dim=2)

        padding = torch.zeros(2, more, dtype=torch.bool)
        padded_visible = torch.cat([visible, padding], dim=1)
        padded = attend(q, change_hidden(k), change_hidden(v), padded_visible)
        case = f"visible {visible.tolist()}, {more} more hidden keys, other values in all hidden"
        assert_same(padded, attend(q, k, v, visible), case, rtol=1e-9, atol=1e-9)

    check()


def local_group(y, x, window):
    """The window that a token lies in."""
    return y // window, x // window


def dilated_group(y, x, window):
    """The place that a token has in its window."""
    return y % window, x % window


def is_multi_axis(multi_axis):
    """Half of the heads attend within windows, half to the same place in each (2106.07631).

    multi_axis(qkv (3, B, H, N, d), grid, window) -> (B, H, N, d). The reference walks over all
    pairs of tokens.
    """

    @given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4]))
    @example(0, 2, 2, 2)
    @example(0, 1, 3, 2)
    @example(0, 3, 1, 2)
    def check(seed, windows, window, H):
        grid = windows * window
        N = grid * grid
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(3, 2, H, N, 2, generator=generator, dtype=torch.float64)
        both = multi_axis(qkv, grid, window)
        # A function might mix up the images of a batch: each must be what it is alone.
        for b in range(2):
            alone = multi_axis(qkv[:, b : b + 1], grid, window)[0]
            assert torch.allclose(both[b], alone), f"image {b} of two is not what it is alone"
        b = seed % 2
        q, k, v = qkv[:, b].tolist()
        for h in range(H):
            group = local_group if h < H // 2 else dilated_group
            for n in range(N):
                y, x = divmod(n, grid)
                own_group = group(y, x, window)
                seen = [m for m in range(N) if group(*divmod(m, grid), window) == own_group]
                keys, values = [k[h][m] for m in seen], [v[h][m] for m in seen]
                expected = slow_attention(q[h][n], keys, values)
                assert close(both[b, h, n], expected), (
                    f"head {h} of {H}, position {(y, x)} of a {grid}x{grid} grid, window {window}"
                )

    check()
