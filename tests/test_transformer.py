"""Attention against plain Python, and broken attention: `pytest tests/test_transformer.py`."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from minimuse.checks.properties import attention

from minimuse.plumbing import initialization
from minimuse.transformer import (
    Block,
    Context,
    CrossAttention,
    GridPositions,
    OffsetBias,
    SelfAttention,
    TokenDecoder,
    attend,
    attend_fused,
    attend_plain,
    multi_axis,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- attend ---

ATTEND_PROPERTIES = (
    attention.is_softmax_attention,
    attention.adds_the_bias,
    attention.equals_torch,
    attention.nothing_visible_is_zero,
    attention.hidden_keys_do_not_matter,
)


@pytest.mark.parametrize("prop", ATTEND_PROPERTIES)
def test_attend(prop):
    prop(attend)


def softmax_attention(
    q,
    k,
    v,
    visible,
    bias=0,
    scale=None,
    fill=float("-inf"),
    zero_rows=True,
    mask_after=False,
):
    """attend with switches that break it; without any, it is right."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2) * scale + bias
    if visible is None:
        return scores.softmax(-1) @ v
    mask = visible[:, None, None, :]
    if mask_after:  # the hidden keys take their part of the softmax
        return scores.softmax(-1).masked_fill(~mask, 0) @ v
    if not zero_rows:
        return scores.masked_fill(~mask, fill).softmax(-1) @ v
    has_keys = visible.any(-1)[:, None, None, None]
    return scores.masked_fill(~(mask | ~has_keys), fill).softmax(-1) @ v * has_keys


def test_attention_without_a_bug():
    for prop in ATTEND_PROPERTIES:
        prop(softmax_attention)


def without_scale(q, k, v, visible):
    return softmax_attention(q, k, v, visible, scale=1.0)


def masked_after_the_softmax(q, k, v, visible):
    return softmax_attention(q, k, v, visible, mask_after=True)


def nan_for_no_keys(q, k, v, visible):
    return softmax_attention(q, k, v, visible, zero_rows=False)


def mean_for_no_keys(q, k, v, visible):
    return softmax_attention(q, k, v, visible, zero_rows=False, fill=-1e9)


def nan_in_the_gradient(q, k, v, visible):
    return softmax_attention(q, k, v, visible, zero_rows=False).nan_to_num()


def attends_to_padding(q, k, v, visible):
    return softmax_attention(q, k, v, None)


def scaled_bias(q, k, v, visible, bias):
    return softmax_attention(q, k, v, visible, bias * q.shape[-1] ** -0.5)


def hidden_scores_are_zero(q, k, v, visible):
    return softmax_attention(q, k, v, visible, fill=0.0)


@pytest.mark.parametrize(
    "prop, planted",
    [
        (attention.is_softmax_attention, without_scale),
        (attention.is_softmax_attention, masked_after_the_softmax),
        (attention.adds_the_bias, scaled_bias),
        (attention.equals_torch, without_scale),
        (attention.nothing_visible_is_zero, nan_for_no_keys),
        (attention.nothing_visible_is_zero, mean_for_no_keys),
        (attention.nothing_visible_is_zero, nan_in_the_gradient),
        (attention.hidden_keys_do_not_matter, attends_to_padding),
        (attention.hidden_keys_do_not_matter, hidden_scores_are_zero),
    ],
)
def test_broken_attention(prop, planted, refuses):
    refuses(prop, planted)


def test_attend_in_half_precision():
    q, k, v, visible = attention.qkv_of(0, 2, 2, 3, 4, 8)
    exact = attend(q, k, v, visible)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), visible)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert torch.allclose(half.double(), exact, atol=0.1)


@pytest.mark.parametrize("tokens", [16, 64])
def test_attention_in_bf16_is_that_of_fp32_but_for_rounding(tokens):
    qkv = torch.randn(3, 2, 4, tokens, 8, generator=seeded(0)).bfloat16()
    bias = 2 * torch.randn(4, tokens, tokens, generator=seeded(1))
    bias.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(*qkv, bias=bias)
    exact = attend(*qkv.float(), bias=bias)
    assert out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), exact, atol=0.05), (out - exact).abs().max()
    (slope,) = torch.autograd.grad(out.float().square().sum(), bias)
    (exact_slope,) = torch.autograd.grad(exact.square().sum(), bias)
    assert slope.dtype == torch.float32
    assert torch.allclose(slope, exact_slope, atol=0.02 * float(exact_slope.abs().max()))


def test_written_out_attention_is_torchs_function_in_float32():
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=seeded(1))
    assert torch.allclose(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), atol=1e-6)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_both_ways_of_attending_agree(with_bias, with_mask):
    """The one for a GPU runs on a CPU, too."""
    q, k, v = torch.randn(3, 2, 4, 6, 8, generator=seeded(1))
    seen = bias = None
    if with_mask:
        seen = torch.rand(2, 1, 1, 6, generator=seeded(2)) < 0.5
        seen[..., 0] = True
    if with_bias:
        bias = torch.randn(4, 6, 6, generator=seeded(3))
    fused, plain = attend_fused(q, k, v, seen, bias), attend_plain(q, k, v, seen, bias)
    assert torch.allclose(fused, plain, atol=1e-6)


# --- Multi-axis attention ---


def test_multi_axis():
    attention.is_multi_axis(multi_axis)


def attend_in_groups(qkv, tokens, groups, sizes):
    """Move tokens into groups, attend within each, and move them back, by einops patterns."""
    grouped = rearrange(qkv, f"three {tokens} -> three {groups}", **sizes)
    return rearrange(attend(*grouped), f"{groups} -> {tokens}", **sizes)


def axes(qkv, grid, window, swap=False, blocks=False):
    """multi_axis with switches; without any, it is right."""
    sizes = dict(y=grid // window, x=grid // window, i=window, j=window)
    tokens = "B H (y i x j) d"
    if blocks:
        tokens = "B H (i y j x) d"
    groups = ["(B y x) H (i j) d", "(B i j) H (y x) d"]  # local, dilated
    if swap:
        groups.reverse()
    halves = []
    for half, group in zip(qkv.chunk(2, dim=2), groups, strict=True):
        halves.append(attend_in_groups(half, tokens, group, sizes))
    return torch.cat(halves, dim=1)


def test_multi_axis_without_a_bug():
    attention.is_multi_axis(axes)


def full_attention(qkv, grid, window):
    return attend(*qkv)


def halves_exchanged(qkv, grid, window):
    return axes(qkv, grid, window, swap=True)


def wrong_axes(qkv, grid, window):
    return axes(qkv, grid, window, blocks=True)


def windows_only(qkv, grid, window):
    local = axes(qkv, grid, window)[:, : qkv.shape[2] // 2]
    return torch.cat([local, local], dim=1)


@pytest.mark.parametrize("planted", [full_attention, halves_exchanged, wrong_axes, windows_only])
def test_broken_multi_axis(planted, refuses):
    refuses(attention.is_multi_axis, planted)


def test_one_window_is_full_attention_in_the_first_half_of_the_heads():
    qkv = torch.randn(3, 2, 4, 16, 8, generator=seeded())
    full, values = attend(*qkv), qkv[2]
    one_window = multi_axis(qkv, 4, 4)
    assert torch.allclose(one_window[:, :2], full[:, :2], atol=1e-6)
    # The dilated groups are of one token each, which attends to itself.
    assert torch.allclose(one_window[:, 2:], values[:, 2:], atol=1e-6)
    windows_of_one = multi_axis(qkv, 4, 1)
    assert torch.allclose(windows_of_one[:, 2:], full[:, 2:], atol=1e-6)
    assert torch.allclose(windows_of_one[:, :2], values[:, :2], atol=1e-6)


def test_multi_axis_adds_each_halfs_bias():
    """With a bias that hides all tokens but one, a head copies that token's value.

    It is that of its own window, or of its own dilated grid.
    """
    qkv = torch.randn(3, 1, 4, 16, 2, generator=seeded())
    local_bias, dilated_bias = torch.full((2, 2, 4, 4), -1e9)
    local_bias[:, :, 1] = 0
    dilated_bias[:, :, 2] = 0
    out, v = multi_axis(qkv, 4, 2, (local_bias, dilated_bias))[0], qkv[2, 0]
    for n in range(16):
        y, x = n // 4, n % 4
        second_of_its_window = (y // 2 * 2) * 4 + x // 2 * 2 + 1
        assert torch.allclose(out[:2, n], v[:2, second_of_its_window])
        its_place_in_the_third_window = (2 + y % 2) * 4 + x % 2
        assert torch.allclose(out[2:, n], v[2:, its_place_in_the_third_window])


# --- The modules ---


def test_self_attention_is_torchs():
    """nn.MultiheadAttention with the same weights."""
    torch.manual_seed(0)
    ours, x = SelfAttention(16, 4, grid=3), torch.randn(2, 9, 16)
    theirs = torch.nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    theirs.in_proj_weight.data.copy_(ours.qkv.weight)
    theirs.out_proj.weight.data.copy_(ours.out.weight)
    weight = ours.biases[0].weight
    weight.data.copy_(torch.randn(weight.shape))
    # One number for each offset (rows down, columns right) between two tokens.
    bias = torch.zeros(4, 9, 9)
    for a in range(9):
        for b in range(9):
            down, right = a // 3 - b // 3, a % 3 - b % 3
            bias[:, a, b] = weight[:, (down + 2) * 5 + right + 2]
    expected, _ = theirs(x, x, x, attn_mask=bias.repeat(2, 1, 1), need_weights=False)
    assert torch.allclose(ours(x), expected, atol=1e-5)


def test_cross_attention_is_torchs():
    torch.manual_seed(0)
    ours, x, context = CrossAttention(16, 2), torch.randn(2, 9, 16), torch.randn(2, 5, 16)
    visible = torch.tensor([[True, True, False, True, False], [True, True, True, True, True]])
    theirs = torch.nn.MultiheadAttention(16, 2, bias=False, batch_first=True)
    theirs.in_proj_weight.data.copy_(torch.cat([ours.q.weight, ours.kv.weight]))
    theirs.out_proj.weight.data.copy_(ours.out.weight)
    out = ours(x, *ours.keys_values(context), visible)
    expected, _ = theirs(x, context, context, key_padding_mask=~visible, need_weights=False)
    assert torch.allclose(out, expected, atol=1e-5)
    nothing = ours(x, *ours.keys_values(context), torch.zeros_like(visible))
    assert (nothing == 0).all(), "no bias anywhere: an absent caption adds exactly zero"


def test_block_without_context_is_self_attention_and_mlp():
    torch.manual_seed(0)
    block, x = Block(16, 2, grid=3), torch.randn(2, 9, 16)
    k, v = block.cross_attention.keys_values(torch.randn(2, 4, 16))
    expected = x + block.self_attention(block.norm_self(x))
    expected = expected + block.mlp(block.norm_mlp(expected))
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert torch.equal(block(x, k, v, nothing), expected)
    assert not torch.allclose(block(x, k, v, ~nothing), expected, atol=1e-3)


def test_positions_are_rows_plus_columns():
    positions = GridPositions(3, 4)
    torch.nn.init.normal_(positions.rows)
    torch.nn.init.normal_(positions.columns)
    out = positions()
    assert out.shape == (9, 4)
    for n in range(9):
        assert torch.equal(out[n], positions.rows[n // 3] + positions.columns[n % 3])


@pytest.mark.parametrize("length, padded", [(1, 16), (5, 16), (16, 16), (17, 17)])
def test_keys_are_sixteen_at_least_and_the_added_ones_are_hidden(length, padded):
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=6, grid=2, width=16, heads=2, layers=2)
    ids, text = torch.randint(7, (3, 4)), torch.randn(3, length, 16)
    visible = torch.arange(length) < torch.tensor([[length], [1], [0]])
    context = decoder.make_context(text, visible)
    assert context.visible.shape == (3, padded)
    assert context.keys[0].shape == (3, 2, padded, 8)
    assert context.visible.sum() == visible.sum()

    keys, values = [], []
    for block in decoder.blocks:
        k, v = block.cross_attention.keys_values(text)
        keys.append(k)
        values.append(v)
    without_padding = decoder(ids, Context(keys, values, visible))
    assert torch.allclose(decoder(ids, context), without_padding, atol=1e-6)
    if length < padded:
        all_visible = context._replace(visible=torch.ones_like(context.visible))
        out = decoder(ids, all_visible)
        assert not torch.allclose(out[0], without_padding[0], atol=1e-3)


def test_the_last_mlp_and_the_head_run_at_few_sizes_whatever_is_hidden():
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=6, grid=8, width=16, heads=2, layers=1)
    ids = torch.randint(7, (2, 64))
    context = decoder.make_context(torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool))
    full = decoder(ids, context)
    sizes = {}
    for part in (decoder.blocks[-1].mlp, decoder.head):
        sizes[part] = set()
        part.register_forward_pre_hook(lambda part, inputs: sizes[part].add(inputs[0].shape))
    for count in range(129):
        where = torch.randperm(128).view(2, 64) < count
        assert torch.allclose(decoder(ids, context, where), full[where], atol=1e-6)
    for seen in sizes.values():
        # 16, and none at all where nothing is hidden
        assert seen == {(rows, 16) for rows in range(0, 129, 8)}


@pytest.mark.parametrize("with_below", [False, True])
def test_join_stacks_rows(with_below):
    """Two contexts joined give what each gives alone, in that order."""
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=6, grid=2, width=16, heads=2, layers=2)
    ids = torch.randint(7, (2, 4))
    below = 0.0
    if with_below:
        below = torch.arange(128.0).view(2, 4, 16) % 7
    contexts = []
    for _ in range(2):
        text, visible = torch.randn(2, 5, 16), torch.rand(2, 5) < 0.7
        contexts.append(decoder.make_context(text, visible, below))
    both = contexts[0].join(contexts[1])
    assert isinstance(both, Context)
    assert both.visible.shape == (4, 16)
    assert all(tensor.shape[0] == 4 for tensor in [*both.keys, *both.values])
    alone = torch.cat([decoder(ids, context) for context in contexts])
    assert torch.allclose(decoder(torch.cat([ids, ids]), both), alone, atol=1e-5)
    assert not torch.allclose(alone[:2], alone[2:], atol=1e-3)


@pytest.mark.parametrize(
    "heads, neighbours", [(4, {(0, 1), (1, 0), (0, -1), (-1, 0)}), (2, {(0, 1), (1, 0)})]
)
def test_each_head_starts_at_a_neighbour_of_its_own(heads, neighbours):
    side, middle = 5, 12
    # The key that the middle token attends to most, per head.
    first = OffsetBias(heads, side)()[:, middle].argmax(-1)
    assert {(int(2 - k // side), int(2 - k % side)) for k in first} == neighbours


def test_windows_divide_the_grid():
    with pytest.raises(ValueError, match=r"\(6\).*\(4\)"):
        TokenDecoder(codes=4, grid=6, width=16, heads=2, layers=1, window=4)
    with pytest.raises(ValueError, match=r"heads \(1\)"):
        TokenDecoder(codes=4, grid=8, width=16, heads=1, layers=1, window=4)


# --- Initial weights ---


def test_codes_that_look_alike_start_alike():
    """In the embeddings and in the logits. The mask, the last embedding, is no code and stays."""
    torch.manual_seed(0)
    decoder = TokenDecoder(codes=40, grid=2, width=32, heads=2, layers=1)
    codes = torch.randn(20, 8)
    mask = decoder.embedding.weight[-1].clone()
    decoder.start(torch.cat([codes, codes + 0.01]), std=0.3)
    assert torch.equal(decoder.embedding.weight[-1], mask)
    for weight in (decoder.embedding.weight[:40], decoder.head[-1].weight):
        rows = weight.detach()
        distances = torch.cdist(rows[:20], rows[20:])
        assert torch.equal(distances.argmin(1), torch.arange(20))
        assert distances.diagonal().max() < distances.median() / 2
        assert abs(rows.std() / 0.3 - 1) < 0.1


@pytest.mark.parametrize("width, E", [(8, 12), (12, 8)])
def test_text_starts_white(width, E):
    """Whatever the mean and the long directions of the text, the projected text has neither.

    With fewer than `width` numbers, E, only as many directions can be filled.
    """
    torch.manual_seed(0)
    linear = torch.nn.Linear(E, width)
    text = torch.randn(4000, E) * torch.logspace(0, -1, E) @ torch.randn(E, E) + 20
    initialization.start_white(linear, text)
    with torch.no_grad():
        projected = linear(text)
    assert projected.mean(0).abs().max() < 1e-3
    directions = min(width, E)
    before = torch.linalg.eigvalsh(torch.cov(text.T))[-directions:]
    after = torch.linalg.eigvalsh(torch.cov(projected.T))[-directions:]
    assert before.median() < 0.2 * before.max()
    # The median, since the smallest directions are left small.
    assert after.median() > 0.7 * after.max()


def expected_std(name, layers):
    """0.02, and 0.02 / sqrt(3 layers) for the layers that write to the residual stream."""
    if name.endswith(("attention.out.weight", "mlp.2.weight")):
        return 0.02 / (3 * layers) ** 0.5
    return 0.02


def test_initial_weights():
    torch.manual_seed(0)
    layers = 3
    decoder = TokenDecoder(codes=50, grid=4, width=64, heads=2, layers=layers)
    initialization.initialize_weights(decoder, layers)
    for name, parameter in decoder.named_parameters():
        if name.startswith("positions") or ".biases." in name:
            continue  # initialised by their own modules, and tested with those
        if "norm" in name or name.startswith("head.2"):
            assert (parameter == 1).all(), name
        elif parameter.dim() == 1:
            assert (parameter == 0).all(), name
        else:
            std = expected_std(name, layers)
            assert abs(float(parameter.detach().std()) - std) < 0.15 * std, name


@pytest.mark.parametrize("words", [0, 1])
def test_without_captions_the_projection_stays_as_it_is(words):
    """As for images with empty captions: there is nothing to whiten, and no NaN."""
    linear = torch.nn.Linear(12, 8)
    before = linear.weight.clone()
    initialization.start_white(linear, torch.ones(words, 12))
    assert torch.equal(linear.weight, before)
