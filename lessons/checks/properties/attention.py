"""Properties of attention (`minimuse/transformer.py`). attend(q, k, v, visible) and multi_axis(qkv, grid, window)."""

import math

import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

seeds, sizes = st.integers(0, 2**31 - 1), st.integers(1, 5)


def qkv_of(seed, B, H, N, T, d):
    draw = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, H, n, d, generator=draw, dtype=torch.float64) * 2 for n in (N, T, T))
    visible = torch.rand(B, T, generator=draw) < 0.6
    return q, k, v, visible


def close(got, wanted):
    return torch.allclose(got, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def slow_attention(q, keys, values):
    """One query over lists of keys and values, in plain Python; nothing to look at gives zero."""
    if not keys:
        return [0.0] * len(q)
    weights = [math.exp(sum(a * b for a, b in zip(q, k)) / math.sqrt(len(q))) for k in keys]
    return [sum(w * v[i] for w, v in zip(weights, values)) / sum(weights) for i in range(len(q))]


def is_softmax_attention(attend):
    """sum_j softmax_j(q k_j / sqrt(d)) v_j over the visible keys, compared number by number with plain Python."""

    @given(seeds, st.integers(1, 2), sizes, sizes, st.integers(1, 4))
    def check(seed, B, N, T, d):
        q, k, v, visible = qkv_of(seed, B, 2, N, T, d)
        masked, full = attend(q, k, v, visible), attend(q, k, v, None)
        for b in range(B):
            for h in range(2):
                for n in range(N):
                    seen = [t for t in range(T) if visible[b, t]]
                    query, keys, values = q[b, h, n].tolist(), k[b, h].tolist(), v[b, h].tolist()
                    wanted = slow_attention(
                        query, [keys[t] for t in seen], [values[t] for t in seen]
                    )
                    assert close(masked[b, h, n], wanted), (
                        f"visible {visible[b].tolist()}: {masked[b, h, n].tolist()}, not {wanted}"
                    )
                    assert close(full[b, h, n], slow_attention(query, keys, values)), (
                        "wrong without a mask"
                    )

    check()


def survives_large_scores(attend):
    """Scores in the thousands: exp() of them overflows, the softmax is simply 1 at the largest. With a mask and without."""
    q, k = torch.full((1, 1, 1, 1), 100.0), torch.tensor([[[[10.0], [-10.0], [20.0]]]])
    v = torch.tensor([[[[1.0], [2.0], [3.0]]]])
    for visible, wanted in ((None, 3.0), (torch.tensor([[True, True, False]]), 1.0)):
        got = float(attend(q, k, v, visible))
        assert abs(got - wanted) < 1e-6, (
            f"scores 1000, -1000, 2000, values 1, 2, 3, visible {visible}: {got}, not {wanted}"
        )


def equals_torch(attend):
    """The same as torch.nn.functional.scaled_dot_product_attention, value and gradient, where every row sees something."""

    @given(seeds, sizes, sizes)
    def check(seed, N, T):
        q, k, v, visible = qkv_of(seed, 2, 2, N, T, 4)
        visible[:, 0] = True
        results = []
        for function in (
            attend,
            lambda q, k, v, m: F.scaled_dot_product_attention(
                q, k, v, attn_mask=m[:, None, None, :]
            ),
        ):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            out = function(*leaves, visible)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*results))

    check()


def nothing_visible_is_zero(attend):
    """A row without a visible key gets exactly zero and sends exactly zero gradient, not NaN; its neighbours are as ever."""

    @given(seeds, sizes, sizes)
    @example(0, 1, 1)
    def check(seed, N, T):
        q, k, v, visible = qkv_of(seed, 2, 1, N, T, 3)
        visible[0], visible[1] = False, True
        leaves = [x.float().requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, visible)
        (out + 1).square().sum().backward()
        assert (out[0] == 0).all(), f"a row that sees nothing got {out[0].flatten().tolist()}"
        assert all((x.grad[0] == 0).all() for x in leaves), (
            "a row that sees nothing sends a gradient"
        )
        assert torch.allclose(out[1:], attend(*(x[1:] for x in leaves), None), atol=1e-6)

    check()


def hidden_keys_do_not_matter(attend):
    """Keys and values that are not visible can be anything, and any number of them can be added."""

    @given(seeds, sizes, sizes, st.integers(1, 4))
    def check(seed, N, T, more):
        q, k, v, visible = qkv_of(seed, 2, 2, N, T, 4)
        pad = lambda x: torch.cat(
            [
                torch.where(visible[:, None, :, None], x, -5 * x + 3),
                9 * torch.ones(2, 2, more, 4, dtype=x.dtype),
            ],
            dim=2,
        )
        padded = attend(
            q, pad(k), pad(v), torch.cat([visible, torch.zeros(2, more, dtype=torch.bool)], dim=1)
        )
        assert torch.allclose(padded, attend(q, k, v, visible), rtol=1e-9, atol=1e-9)

    check()


def is_multi_axis(multi_axis):
    """Heads of the first half attend within windows, those of the second to their own place in every window (2106.07631).

    multi_axis(qkv (3, B, H, N, d), grid, window) -> (B, H, N, d); the reference walks over positions.
    """

    @given(seeds, st.integers(1, 3), st.integers(1, 3), st.sampled_from([2, 4]))
    @example(0, 2, 2, 2)
    @example(0, 1, 3, 2)
    @example(0, 3, 1, 2)
    def check(seed, windows, window, H):
        grid, d = windows * window, 2
        qkv = torch.randn(
            3,
            2,
            H,
            grid * grid,
            d,
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        )
        both = multi_axis(qkv, grid, window)
        for b in range(2):  # a batch, in which pictures might be mixed up; each is what it is alone
            assert torch.allclose(both[b], multi_axis(qkv[:, b : b + 1], grid, window)[0]), (
                f"picture {b} of two is not what it is alone"
            )
        b = seed % 2
        out, (q, k, v), places = both[b], qkv[:, b].tolist(), range(grid * grid)
        for h in range(H):
            for n in range(grid * grid):
                y, x = divmod(n, grid)
                if h < H // 2:
                    seen = [
                        m
                        for m in places
                        if (m // grid // window, m % grid // window) == (y // window, x // window)
                    ]
                else:
                    seen = [
                        m
                        for m in places
                        if (m // grid % window, m % grid % window) == (y % window, x % window)
                    ]
                wanted = slow_attention(q[h][n], [k[h][m] for m in seen], [v[h][m] for m in seen])
                assert close(out[h, n], wanted), (
                    f"head {h} of {H}, position {(y, x)} of a {grid}x{grid} grid, window {window}"
                )

    check()
