"""Attention against plain Python, and broken attention: `pytest tests/test_transformer.py`."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from minimuse.checks.properties import attention

from minimuse import initialization
from minimuse.transformer import (
    Block,
    Context,
    CrossAttention,
    GridPositions,
    OffsetBias,
    SelfAttention,
    TokenDecoder,
    attend,
    multi_axis,
)

ATTEND_PROPERTIES = (
    attention.is_softmax_attention,
    attention.equals_torch,
    attention.nothing_visible_is_zero,
    attention.hidden_keys_do_not_matter,
)


@pytest.mark.parametrize("prop", ATTEND_PROPERTIES)
def test_attend(prop):
    prop(attend)


def softmax_attention(q, k, v, visible, scale=None, fill=float("-inf"), dead=True, after=False):
    """attend with switches; without any, it is right."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is None:
        return scores.softmax(-1) @ v
    mask = visible[:, None, None, :]
    alive = visible.any(-1)[:, None, None, None]
    if after:  # the hidden keys take their part of the softmax
        return scores.softmax(-1).masked_fill(~mask, 0) @ v
    scores = scores.masked_fill(~(mask | (~alive if dead else False)), fill)
    return scores.softmax(-1) @ v * (alive if dead else 1)


def test_attention_without_a_bug():
    for prop in ATTEND_PROPERTIES:
        prop(softmax_attention)


@pytest.mark.parametrize(
    "prop, planted",
    [
        (attention.is_softmax_attention, lambda *a: softmax_attention(*a, scale=1.0)),
        (attention.is_softmax_attention, lambda *a: softmax_attention(*a, after=True)),
        (attention.equals_torch, lambda *a: softmax_attention(*a, scale=1.0)),
        (attention.nothing_visible_is_zero, lambda *a: softmax_attention(*a, dead=False)),  # NaN
        (
            attention.nothing_visible_is_zero,
            lambda *a: softmax_attention(*a, dead=False, fill=-1e9),
        ),  # the mean of everything
        (
            attention.nothing_visible_is_zero,
            lambda *a: softmax_attention(*a, dead=False).nan_to_num(),
        ),  # NaN in the gradient
        (attention.hidden_keys_do_not_matter, lambda q, k, v, m: softmax_attention(q, k, v, None)),
        (attention.hidden_keys_do_not_matter, lambda *a: softmax_attention(*a, fill=0.0)),
    ],
)
def test_broken_attention(prop, planted, refuses):
    refuses(prop, planted)


def test_attend_in_half_precision():
    q, k, v, visible = attention.qkv_of(0, 2, 2, 3, 4, 8)
    exact = attend(q, k, v, visible)
    half = attend(*(x.bfloat16() for x in (q, k, v)), visible)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    assert torch.allclose(half.double(), exact, atol=0.1)


# Multi-axis


def test_multi_axis():
    attention.is_multi_axis(multi_axis)


def axes(qkv, grid, window, swap=False, blocks=False):
    """multi_axis with switches."""
    first, second = qkv.chunk(2, dim=2)
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    tokens = "three B H (i y j x) d" if blocks else "three B H (y i x j) d"
    grouped = lambda x, groups: attend(*rearrange(x, f"{tokens} -> three {groups} d", **sizes))
    attended = lambda x, groups: rearrange(
        grouped(x, groups), f"{groups} d -> {tokens[6:]}", **sizes
    )
    local, dilated = (
        (lambda x: attended(x, "(B y x) H (i j)")),
        (lambda x: attended(x, "(B i j) H (y x)")),
    )
    return torch.cat(
        [dilated(first), local(second)] if swap else [local(first), dilated(second)], dim=1
    )


def test_multi_axis_without_a_bug():
    attention.is_multi_axis(axes)


@pytest.mark.parametrize(
    "planted",
    [
        lambda qkv, grid, window: attend(*qkv),  # over everything
        lambda qkv, grid, window: axes(qkv, grid, window, swap=True),
        lambda qkv, grid, window: axes(qkv, grid, window, blocks=True),  # cut along the wrong axes
        lambda qkv, grid, window: torch.cat(
            [axes(qkv, grid, window)[:, : qkv.shape[2] // 2]] * 2, dim=1
        ),  # windows only
    ],
)
def test_broken_multi_axis(planted, refuses):
    refuses(attention.is_multi_axis, planted)


def test_one_window_is_full_attention_in_the_first_half_of_the_heads():
    qkv = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(0))
    whole, out = attend(*qkv), multi_axis(qkv, 4, 4)
    assert torch.allclose(out[:, :2], whole[:, :2], atol=1e-6)
    assert torch.allclose(
        out[:, 2:], qkv[2][:, 2:], atol=1e-6
    )  # a grid of one window each: every token sees itself
    with_one = multi_axis(qkv, 4, 1)
    assert torch.allclose(with_one[:, 2:], whole[:, 2:], atol=1e-6) and torch.allclose(
        with_one[:, :2], qkv[2][:, :2], atol=1e-6
    )


def test_multi_axis_adds_each_halfs_bias():
    """A bias that hides all but one token makes every head copy that token's value, in its own window or along its own grid."""
    qkv = torch.randn(3, 1, 4, 16, 2, generator=torch.Generator().manual_seed(0))
    hide = torch.full((2, 4, 4), -1e9)
    within, across = hide.clone(), hide.clone()
    within[:, :, 1], across[:, :, 2] = 0, 0
    out, v = multi_axis(qkv, 4, 2, within, across)[0], qkv[2, 0]
    for n in range(16):
        y, x = n // 4, n % 4
        assert torch.allclose(
            out[:2, n], v[:2, (y // 2 * 2) * 4 + x // 2 * 2 + 1]
        )  # second token of its window
        assert torch.allclose(
            out[2:, n], v[2:, (2 + y % 2) * 4 + x % 2]
        )  # its place in the third window


# The modules


def test_self_attention_is_torchs():
    """nn.MultiheadAttention with the same weights."""
    torch.manual_seed(0)
    ours, x = SelfAttention(16, 4, grid=3), torch.randn(2, 9, 16)
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    theirs.in_proj_weight.data.copy_(ours.qkv.weight)
    theirs.out_proj.weight.data.copy_(ours.out.weight)
    weight = ours.biases[0].weight
    weight.data.copy_(torch.randn(weight.shape))
    bias = torch.zeros(4, 9, 9)
    for (a, b), _ in np.ndenumerate(
        np.zeros((9, 9))
    ):  # one number for each (rows down, columns right) between two tokens
        down, right = a // 3 - b // 3, a % 3 - b % 3
        bias[:, a, b] = weight[:, (down + 2) * 5 + right + 2]
    expected = theirs(x, x, x, attn_mask=bias.repeat(2, 1, 1), need_weights=False)[0]
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_cross_attention_is_torchs():
    torch.manual_seed(0)
    ours, x, context = CrossAttention(16, 2), torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    visible = torch.tensor([[True, True, False, True, False], [True] * 5])
    theirs = torch.nn.MultiheadAttention(16, 2, bias=False, batch_first=True)
    theirs.in_proj_weight.data.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
    theirs.out_proj.weight.data.copy_(ours.out.weight)
    out = ours(x, *ours.keys_values(context), visible)
    assert torch.allclose(
        out,
        theirs(x, context, context, key_padding_mask=~visible, need_weights=False)[0],
        atol=1e-5,
    )
    nothing = ours(x, *ours.keys_values(context), torch.zeros_like(visible))
    assert (nothing == 0).all(), "no bias anywhere: an absent caption adds exactly zero"


def test_block_without_context_is_self_attention_and_mlp():
    torch.manual_seed(0)
    block, x = Block(16, 2, grid=3), torch.randn(2, 9, 16)
    k, v = block.cross_attention.keys_values(torch.randn(2, 4, 16))
    alone = x + block.self_attention(block.norm_self(x))
    alone = alone + block.mlp(block.norm_mlp(alone))
    assert torch.equal(block(x, k, v, torch.zeros(2, 4, dtype=torch.bool)), alone)
    assert not torch.allclose(block(x, k, v, torch.ones(2, 4, dtype=torch.bool)), alone, atol=1e-3)


def test_positions_are_rows_plus_columns():
    positions = GridPositions(3, 4)
    torch.nn.init.normal_(positions.rows)
    torch.nn.init.normal_(positions.columns)
    out = positions()
    assert out.shape == (9, 4)
    for n in range(9):
        assert torch.equal(out[n], positions.rows[n // 3] + positions.columns[n % 3])


@pytest.mark.parametrize("length, padded", [(1, 16), (5, 16), (16, 16), (17, 17)])
def test_keys_are_sixteen_at_the_least_and_nobody_sees_those_added(length, padded):
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=6, grid=2, width=16, heads=2, layers=2)
    ids, text, visible = (
        torch.randint(7, (3, 4)),
        torch.randn(3, length, 16),
        torch.arange(length) < torch.tensor([[length], [1], [0]]),
    )
    pairs = [block.cross_attention.keys_values(text) for block in decoder.blocks]
    context = decoder.keys_values(text, visible)
    assert (
        context.visible.shape == (3, padded)
        and context.keys[0].shape == (3, 2, padded, 8)
        and context.visible.sum() == visible.sum()
    )
    bare = Context([k for k, _ in pairs], [v for _, v in pairs], visible)
    assert torch.allclose(decoder(ids, context), decoder(ids, bare), atol=1e-6)
    seen = context._replace(visible=torch.ones_like(context.visible))
    assert length == padded or not torch.allclose(
        decoder(ids, seen)[0], decoder(ids, bare)[0], atol=1e-3
    )


@pytest.mark.parametrize("tokens", [16, 64])
def test_attention_in_bf16_is_that_of_fp32_but_for_rounding(tokens):
    q, k, v = torch.randn(3, 2, 4, tokens, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    bias = (
        2 * torch.randn(4, tokens, tokens, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, bias=bias)
    exact = attend(q.float(), k.float(), v.float(), bias=bias)
    assert out.dtype == torch.bfloat16 and torch.allclose(out.float(), exact, atol=0.05), (
        (out - exact).abs().max()
    )
    slope, exact_slope = (
        torch.autograd.grad(x.float().square().sum(), bias)[0] for x in (out, exact)
    )
    assert slope.dtype == torch.float32 and torch.allclose(
        slope, exact_slope, atol=0.02 * float(exact_slope.abs().max())
    )


def test_the_head_runs_at_sixteen_sizes_at_most_whatever_is_hidden():
    torch.manual_seed(0)
    decoder, ids, sizes = (
        TokenDecoder(codes=6, grid=8, width=16, heads=2, layers=1),
        torch.randint(7, (2, 64)),
        set(),
    )
    context = decoder.keys_values(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    full = decoder(ids, context)
    decoder.head.register_forward_pre_hook(lambda head, given: sizes.add(given[0].shape))
    for count in range(129):
        where = torch.randperm(128).view(2, 64) < count
        assert torch.allclose(decoder(ids, context, where), full[where], atol=1e-6)
    assert len(sizes) <= 17, "and nothing at all, where nothing is hidden"


@pytest.mark.parametrize("below", [(), (torch.arange(128.0).view(2, 4, 16) % 7,)])
def test_join_stacks_rows(below):
    """Two contexts joined give what each gives alone, in that order."""
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=6, grid=2, width=16, heads=2, layers=2)
    ids = torch.randint(7, (2, 4))
    contexts = [
        decoder.keys_values(torch.randn(2, 5, 16), torch.rand(2, 5) < 0.7, *below) for _ in range(2)
    ]
    both = contexts[0].join(contexts[1])
    assert (
        isinstance(both, Context)
        and both.visible.shape == (4, 16)
        and all(k.shape[0] == 4 for k in [*both.keys, *both.values])
    )
    alone = torch.cat([decoder(ids, c) for c in contexts])
    assert torch.allclose(decoder(torch.cat([ids, ids]), both), alone, atol=1e-5)
    assert not torch.allclose(alone[:2], alone[2:], atol=1e-3)


@pytest.mark.parametrize(
    "heads, looks_at", [(4, {(0, 1), (1, 0), (0, -1), (-1, 0)}), (2, {(0, 1), (1, 0)})]
)
def test_each_head_starts_at_a_neighbour_of_its_own(heads, looks_at):
    side, middle = 5, 12
    first = OffsetBias(heads, side)()[:, middle].argmax(
        -1
    )  # the key that the middle token looks at most, per head
    assert {(int(2 - k // side), int(2 - k % side)) for k in first} == looks_at


def test_codes_that_look_alike_start_alike():
    """In the embeddings and in the logits; the mask, the last row of the embeddings, is no code and stays."""
    torch.manual_seed(0)
    decoder, codes = TokenDecoder(codes=40, grid=2, width=32, heads=2, layers=1), torch.randn(20, 8)
    mask = decoder.embedding.weight[-1].clone()
    decoder.start(torch.cat([codes, codes + 0.01]), std=0.3)
    assert torch.equal(decoder.embedding.weight[-1], mask)
    for rows, std in (
        (decoder.embedding.weight.detach()[:40], 0.3),
        (decoder.head[-1].weight.detach(), 0.3),
    ):
        distances = torch.cdist(rows[:20], rows[20:])
        assert (
            torch.equal(distances.argmin(1), torch.arange(20))
            and distances.diagonal().max() < distances.median() / 2
        )
        assert abs(rows.std() / std - 1) < 0.1


@pytest.mark.parametrize("width, E", [(8, 12), (12, 8)])
def test_text_starts_white(width, E):
    """Whatever the text's mean and its long directions, projected it has neither: as far as E numbers can fill the width."""
    torch.manual_seed(0)
    linear, text = (
        torch.nn.Linear(E, width),
        torch.randn(4000, E) * torch.logspace(0, -1, E) @ torch.randn(E, E) + 20,
    )
    initialization.start_white(linear, text)
    with torch.no_grad():
        x = linear(text)
    assert x.mean(0).abs().max() < 1e-3
    before, after = (
        torch.linalg.eigvalsh(torch.cov(y.T))[-min(width, E) :] for y in (text, x)
    )  # the smallest are left small
    assert before.median() < 0.2 * before.max() and after.median() > 0.7 * after.max()


def test_windows_divide_the_grid():
    with pytest.raises(ValueError, match=r"\(6\).*\(4\)"):
        TokenDecoder(codes=4, grid=6, width=16, heads=2, layers=1, window=4)
    with pytest.raises(ValueError, match=r"heads \(1\)"):
        TokenDecoder(codes=4, grid=8, width=16, heads=1, layers=1, window=4)


def test_initial_weights():
    """std .02, and .02 / sqrt(3 layers) for what writes to the residual stream, which three parts of every layer do."""
    torch.manual_seed(0)
    layers = 3
    decoder = TokenDecoder(codes=50, grid=4, width=64, heads=2, layers=layers)
    initialization.initialize_weights(decoder, layers)
    for name, p in decoder.named_parameters():
        if name.startswith("positions") or ".biases." in name:
            continue  # not random: tested with what they are part of
        if "norm" in name or name.startswith("head.2"):
            assert (p == 1).all(), name
        elif p.dim() == 1:
            assert (p == 0).all(), name
        else:
            residual = name.endswith(("attention.out.weight", "mlp.2.weight"))
            wanted = 0.02 / (3 * layers) ** 0.5 if residual else 0.02
            assert abs(float(p.detach().std()) - wanted) < 0.15 * wanted, name


def test_written_out_attention_is_torchs_function_in_float32():
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)
