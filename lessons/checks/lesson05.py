"""Lesson 05, the base model: what must hold of its exercises, and wrong solutions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import attention, blocks, losses, masks
from torch import nn

from minimuse import maskgit, schedule, transformer

TITLE = "the base model"


# --- Properties that only this lesson needs; the others are in properties/ ---


def adds_row_and_column(grid_positions):
    """Token n of a grid has the vector of row n // w plus that of column n % w.

    Tokens are numbered as one reads a page. Grids need not be square.
    """

    @given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
    @example(2, 3, 1, 0)
    def check(h, w, D, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(-9, 10, (h, D), generator=generator).float()
        columns = torch.randint(-9, 10, (w, D), generator=generator).float()
        out = grid_positions(rows, columns)
        assert out.shape == (h * w, D), (
            f"{h} rows, {w} columns, D = {D}: the shape is {tuple(out.shape)}"
        )
        for n in range(h * w):
            row, column = rows[n // w].tolist(), columns[n % w].tolist()
            expected = [a + b for a, b in zip(row, column, strict=True)]
            case = f"rows {rows.tolist()}, columns {columns.tolist()}: token {n}"
            assert_same(out[n], expected, case)

    check()


def learns_rows_and_columns(grid_positions):
    """Positions are learned: each row's vector is used w times, each column's h times."""
    rows = torch.zeros(2, 1, requires_grad=True)
    columns = torch.zeros(3, 1, requires_grad=True)
    out = grid_positions(rows, columns)
    assert out.requires_grad, "the positions have no gradient"
    gradients = torch.autograd.grad(out.sum(), (rows, columns), allow_unused=True)
    for name, gradient, times in zip(("row", "column"), gradients, (3, 2), strict=True):
        assert gradient is not None, f"a {name}'s vector gets no gradient"
        assert_same(gradient, [[times]] * len(gradient), f"the gradient of each {name}'s vector")


def hides_anywhere(hide):
    """Within one batch every place is hidden equally often, within 5 sigma.

    A batch whose rows all have the same places fails.
    """
    batch, tokens = 4000, 8
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    _, hidden = hide(ids, 1, torch.Generator().manual_seed(0))
    hits = hidden.double().mean(dim=0)  # fraction of rows that hide each place
    fraction = float(hidden.double().mean())
    sigma = math.sqrt(fraction * (1 - fraction) / batch)
    assert (hits - fraction).abs().max() < 5 * sigma, (
        f"places are hidden in these fractions of the rows: {[round(x, 3) for x in hits.tolist()]}"
    )


def every_caption_has_its_own_coin(drop_captions):
    """A batch of one loses its caption with the probability p that was given.

    Two neighbours both lose theirs with p^2. Counted within 5 sigma.
    """
    generator = torch.Generator().manual_seed(0)
    times, p = 3000, 0.3
    names = {
        1: "a batch of one is dropped",
        2: "both captions of a batch of two are dropped",
    }
    for rows, name in names.items():
        visible = torch.ones(rows, 3, dtype=torch.bool)
        all_dropped = 0
        for _ in range(times):
            kept = drop_captions(visible, p, generator)
            all_dropped += int((~kept.any(dim=-1)).all())
        assert visible.all(), "the mask that was given was changed in place"
        expected = p**rows
        fraction = all_dropped / times
        sigma = math.sqrt(expected * (1 - expected) / times)
        assert abs(fraction - expected) < 5 * sigma, (
            f"with probability {p} of dropping, {name} in {fraction:.3f} of all batches, "
            f"not in {expected:.3f}"
        )


# --- The package's function, where its signature differs from the exercise's ---


def positions_of_the_package(rows, columns):
    module = transformer.GridPositions(1, rows.shape[1])
    vectors = {"rows": rows, "columns": columns}
    return torch.func.functional_call(module, vectors)


class GivenBias(nn.Module):
    """A bias for each pair of tokens, where the package has one for each offset."""

    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(bias.detach())

    def forward(self):
        return self.bias


def block_of_the_package(x, text, visible, weights, heads):
    """`transformer.Block` with these weights. nn.Linear has its matrices the other way round."""
    _, N, D = x.shape
    module = transformer.Block(D, heads, math.isqrt(N))
    module.self_attention.biases = nn.ModuleList([GivenBias(weights["bias"])])
    qkv = torch.cat([weights["self_q"], weights["self_k"], weights["self_v"]], dim=1)
    parameters = {
        "norm_self.weight": weights["norm_self"],
        "self_attention.qkv.weight": qkv.T,
        "self_attention.out.weight": weights["self_out"].T,
        "self_attention.biases.0.bias": weights["bias"],
        "norm_cross.weight": weights["norm_cross"],
        "cross_attention.q.weight": weights["cross_q"].T,
        "cross_attention.out.weight": weights["cross_out"].T,
        "norm_mlp.weight": weights["norm_mlp"],
        "mlp.0.weight": weights["mlp_up"].T,
        "mlp.2.weight": weights["mlp_down"].T,
    }
    k, v = (split_heads(text @ weights[name], heads) for name in ("cross_k", "cross_v"))
    return torch.func.functional_call(module, parameters, (x, k, v, visible))


# --- Planted bugs: positions ---


def column_by_column(rows, columns):
    return rearrange(rows[:, None] + columns[None], "h w D -> (w h) D")


def rows_only(rows, columns):
    return rows.repeat_interleave(len(columns), 0)


def transposed(rows, columns):
    return columns.repeat_interleave(len(rows), 0) + rows.repeat(len(columns), 1)


def multiplied(rows, columns):
    return (rows[:, None] * columns[None]).flatten(0, 1)


def not_learned(rows, columns):
    return positions_of_the_package(rows, columns).detach()


def columns_not_learned(rows, columns):
    return torch.cat([row + torch.tensor(columns.tolist()) for row in rows])


def along_the_diagonals(rows, columns):
    return rows.repeat(len(columns), 1) + columns.repeat(len(rows), 1)


# --- Planted bugs: hiding ---


def keeps_the_ids(ids, mask_id, generator):
    """A bug of published code: the mask only selects the loss, and the model sees all ids."""
    return ids, maskgit.hide(ids, mask_id, generator).hidden


def hides_by_coin(ids, mask_id, generator):
    """A coin for each token: the ratio is right on average only."""
    ratios = schedule.sample_ratios(len(ids), generator)
    hidden = torch.rand(ids.shape, generator=generator) < ratios[:, None]
    return ids.masked_fill(hidden, mask_id), hidden


def one_count_for_the_batch(ids, mask_id, generator):
    B, N = ids.shape
    counts = schedule.mask_counts(schedule.sample_ratios(1, generator), N).expand(B)
    hidden = schedule.random_masks(counts, N, generator)
    return ids.masked_fill(hidden, mask_id), hidden


def one_order_for_the_batch(ids, mask_id, generator):
    B, N = ids.shape
    counts = schedule.mask_counts(schedule.sample_ratios(B, generator), N)
    ranks = torch.rand(N, generator=generator).argsort().argsort()
    hidden = ranks[None] < counts[:, None]
    return ids.masked_fill(hidden, mask_id), hidden


def a_run(ids, mask_id, generator):
    """Neighbours, from a random place on, around the end: each place as often as any other."""
    B, N = ids.shape
    counts = schedule.mask_counts(schedule.sample_ratios(B, generator), N)
    first = torch.randint(N, (B, 1), generator=generator)
    hidden = (torch.arange(N) - first) % N < counts[:, None]
    return ids.masked_fill(hidden, mask_id), hidden


def random_ids_for_masks(ids, mask_id, generator):
    hidden = maskgit.hide(ids, mask_id, generator).hidden
    random_ids = torch.randint(mask_id, ids.shape, generator=generator)
    return torch.where(hidden, random_ids, ids), hidden


def a_code_for_the_mask(ids, mask_id, generator):
    hidden = maskgit.hide(ids, mask_id, generator).hidden
    return ids.masked_fill(hidden, 0), hidden


def in_place(ids, mask_id, generator):
    hidden = maskgit.hide(ids, mask_id, generator).hidden
    return ids.masked_fill_(hidden, mask_id), hidden


# --- Planted bugs: dropping captions ---


def inverted(visible, fraction, generator):
    """A bug of published code: kept with the probability of being dropped."""
    return visible & (torch.rand(len(visible), generator=generator) < fraction)[:, None]


def word_by_word(visible, fraction, generator):
    return visible & (torch.rand(visible.shape, generator=generator) >= fraction)


def all_or_none(visible, fraction, generator):
    return visible & (torch.rand(1, generator=generator) >= fraction)


def the_first_rows(visible, fraction, generator):
    kept = torch.arange(len(visible)) >= fraction * len(visible)
    return visible & kept[:, None]


def an_exact_count(visible, fraction, generator):
    order = torch.randperm(len(visible), generator=generator)
    kept = order >= round(fraction * len(visible))
    return visible & kept[:, None]


def right_on_average(visible, fraction, generator):
    """An exact count, rounded up or down by a coin: right for a batch of one."""
    count = int(fraction * len(visible) + float(torch.rand((), generator=generator)))
    kept = torch.randperm(len(visible), generator=generator) >= count
    return visible & kept[:, None]


def dropped_in_place(visible, fraction, generator):
    dropped = torch.rand(len(visible), generator=generator) < fraction
    return visible.masked_fill_(dropped[:, None], False)


# --- Planted bugs: attention ---


def softmax_attention(
    q,
    k,
    v,
    visible=None,
    bias=None,
    scale=None,
    fill=float("-inf"),
    zero_rows=True,
    mask_after=False,
):
    """attend with switches that break it; without any, it is right."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2) * scale
    if bias is not None:
        scores = scores + bias
    if visible is None:
        return scores.softmax(-1) @ v
    mask = visible[:, None, None, :]
    if mask_after:  # the hidden keys take their part of the softmax
        return scores.softmax(-1).masked_fill(~mask, 0) @ v
    if not zero_rows:
        return scores.masked_fill(~mask, fill).softmax(-1) @ v
    has_keys = visible.any(-1)[:, None, None, None]
    return scores.masked_fill(~(mask | ~has_keys), fill).softmax(-1) @ v * has_keys


def without_scale(*inputs):
    return softmax_attention(*inputs, scale=1.0)


def masked_after_the_softmax(*inputs):
    return softmax_attention(*inputs, mask_after=True)


def hidden_scores_are_zero(*inputs):
    return softmax_attention(*inputs, fill=0.0)


def nan_for_no_keys(*inputs):
    return softmax_attention(*inputs, zero_rows=False)


def mean_for_no_keys(*inputs):
    return softmax_attention(*inputs, zero_rows=False, fill=-1e9)


def nan_in_the_gradient(*inputs):
    return softmax_attention(*inputs, zero_rows=False).nan_to_num()


def attends_to_padding(q, k, v, visible=None, bias=None):
    return softmax_attention(q, k, v, None, bias)


def without_bias(q, k, v, visible=None, bias=None):
    return softmax_attention(q, k, v, visible)


def scaled_bias(q, k, v, visible=None, bias=None):
    """The scale is applied to the sum of the product and the bias."""
    if bias is not None:
        bias = bias * q.shape[-1] ** -0.5
    return softmax_attention(q, k, v, visible, bias)


def bias_of_the_first_head(q, k, v, visible=None, bias=None):
    if bias is not None:
        bias = bias[:1]
    return softmax_attention(q, k, v, visible, bias)


# --- Planted bugs: the block ---


def norm(x, gain):
    return F.layer_norm(x, gain.shape, gain)


def split_heads(x, heads):
    return rearrange(x, "B N (H d) -> B H N d", H=heads)


def merge_heads(x):
    return rearrange(x, "B H N d -> B N (H d)")


def add(x, result, gain):
    return x + result


@dataclass(frozen=True)
class Parts:
    """What a block is made of. Each planted bug changes one part."""

    norm: Callable = norm
    norm_of_mlp: Callable = norm
    split: Callable = split_heads
    merge: Callable = merge_heads
    attend: Callable = softmax_attention
    gelu: Callable = F.gelu
    add: Callable = add
    order: tuple[str, ...] = ("self", "cross", "mlp")


def block_of_parts(x, text, visible, weights, heads, parts):
    """A right block, if all parts are."""

    def self_attention(x):
        normed = parts.norm(x, weights["norm_self"])
        q, k, v = (parts.split(normed @ weights[f"self_{name}"], heads) for name in "qkv")
        return parts.merge(parts.attend(q, k, v, None, weights["bias"])) @ weights["self_out"]

    def cross_attention(x):
        q = parts.split(parts.norm(x, weights["norm_cross"]) @ weights["cross_q"], heads)
        k, v = (parts.split(text @ weights[f"cross_{name}"], heads) for name in "kv")
        return parts.merge(parts.attend(q, k, v, visible)) @ weights["cross_out"]

    def mlp(x):
        up = parts.norm_of_mlp(x, weights["norm_mlp"]) @ weights["mlp_up"]
        return parts.gelu(up) @ weights["mlp_down"]

    layers = {"self": self_attention, "cross": cross_attention, "mlp": mlp}
    for name in parts.order:
        x = parts.add(x, layers[name](x), weights[f"norm_{name}"])
    return x


def not_normed(x, gain):
    return x


def norm_without_gain(x, gain):
    return F.layer_norm(x, gain.shape)


def norm_without_mean(x, gain):
    return F.rms_norm(x, gain.shape, gain)


def norm_with_unbiased_std(x, gain):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-5) * gain


def norm_over_all_tokens(x, gain):
    return F.layer_norm(x, x.shape[1:]) * gain


def split_by_view(x, heads):
    """(B, N, D) as (B, H, N, d) without exchanging axes: a head mixes tokens."""
    B, N, D = x.shape
    return x.reshape(B, heads, N, D // heads)


def split_interleaved(x, heads):
    """Head h takes every H-th number, from h on."""
    return rearrange(x, "B N (d H) -> B H N d", H=heads)


def merge_by_view(x):
    B, H, N, d = x.shape
    return x.reshape(B, N, H * d)


def scale_of_the_width(q, *others):
    """1 / sqrt(D), where each head has only d numbers."""
    return softmax_attention(q, *others, scale=(q.shape[1] * q.shape[3]) ** -0.5)


def words_hidden_in_one_are_hidden_in_all(q, k, v, visible=None, bias=None):
    if visible is not None:
        visible = visible.all(0).expand_as(visible)
    return softmax_attention(q, k, v, visible, bias)


def attention_without_gradient(*inputs):
    return softmax_attention(*inputs).detach()


def gelu_without_gradient(a):
    return F.gelu(a.detach())


def forgets_x(x, result, gain):
    return result


def adds_to_the_normed(x, result, gain):
    return norm(x, gain) + result


def norms_the_sum(x, result, gain):
    """The norm after the addition, as in the first transformers."""
    return norm(x + result, gain)


def adds_in_place(x, result, gain):
    x += result
    return x


def block_with(name, **changes):
    """A block with one part changed; it has the name of the bug."""

    def block(x, text, visible, weights, heads):
        return block_of_parts(x, text, visible, weights, heads, Parts(**changes))

    block.__name__ = name
    return block


BLOCK_BUGS = {
    "no_residual": {"add": forgets_x},
    "adds_to_the_normed": {"add": adds_to_the_normed},
    "norm_after": {"add": norms_the_sum, "norm": not_normed, "norm_of_mlp": not_normed},
    "in_place": {"add": adds_in_place},
    "no_norm": {"norm": not_normed, "norm_of_mlp": not_normed},
    "no_norm_of_the_mlp": {"norm_of_mlp": not_normed},
    "norm_without_gain": {"norm": norm_without_gain},
    "norm_without_mean": {"norm": norm_without_mean, "norm_of_mlp": norm_without_mean},
    "norm_with_unbiased_std": {"norm": norm_with_unbiased_std},
    "norm_over_all_tokens": {"norm": norm_over_all_tokens},
    "split_by_view": {"split": split_by_view},
    "split_interleaved": {"split": split_interleaved},
    "merged_by_view": {"merge": merge_by_view},
    "split_and_merged_by_view": {"split": split_by_view, "merge": merge_by_view},
    "scale_of_the_width": {"attend": scale_of_the_width},
    "without_bias": {"attend": without_bias},
    "attends_to_padding": {"attend": attends_to_padding},
    "nan_for_no_keys": {"attend": nan_for_no_keys},
    "mean_for_no_keys": {"attend": mean_for_no_keys},
    "nan_in_the_gradient": {"attend": nan_in_the_gradient},
    "hidden_in_all": {"attend": words_hidden_in_one_are_hidden_in_all},
    "without_gradient": {"attend": attention_without_gradient},
    "mlp_without_gradient": {"gelu": gelu_without_gradient},
    "relu": {"gelu": F.relu},
    "no_nonlinearity": {"gelu": nn.Identity()},
    "cross_first": {"order": ("cross", "self", "mlp")},
    "mlp_first": {"order": ("mlp", "self", "cross")},
    "no_cross": {"order": ("self", "mlp")},
}


def all_read_x(x, text, visible, weights, heads):
    """Each layer reads the x that came in, and not what the layer before has left."""
    layers = (Parts(order=(name,)) for name in ("self", "cross", "mlp"))
    results = [block_of_parts(x, text, visible, weights, heads, parts) - x for parts in layers]
    return x + sum(results)


def text_is_normed(x, text, visible, weights, heads):
    text = F.layer_norm(text, text.shape[-1:])
    return block_of_parts(x, text, visible, weights, heads, Parts())


def the_first_caption_for_all(x, text, visible, weights, heads):
    text, visible = text[:1].expand_as(text), visible[:1].expand_as(visible)
    return block_of_parts(x, text, visible, weights, heads, Parts())


def square_matrices_transposed(x, text, visible, weights, heads):
    """Matrices as in nn.Linear: the shape of a square one does not tell."""
    transposed = dict(weights)
    for name in ("self_q", "self_k", "self_v", "self_out", "cross_q", "cross_out"):
        transposed[name] = weights[name].T
    return block_of_parts(x, text, visible, transposed, heads, Parts())


def keys_and_values_exchanged(x, text, visible, weights, heads):
    exchanged = weights | {"cross_k": weights["cross_v"], "cross_v": weights["cross_k"]}
    return block_of_parts(x, text, visible, exchanged, heads, Parts())


# --- Planted bugs: the loss ---


def token_losses(logits, ids, hidden):
    """The cross-entropy of each hidden token, and 1.0 where its most likely code is right."""
    target = ids[hidden]
    losses_of_tokens = F.cross_entropy(logits, target, reduction="none")
    return losses_of_tokens, (logits.argmax(-1) == target).float()


def mean_of_rows(logits, ids, hidden):
    loss, right = token_losses(logits, ids, hidden)
    by_row = torch.zeros(hidden.shape).masked_scatter(hidden, loss)
    rows = by_row.sum(-1) / hidden.sum(-1)
    return rows[hidden.any(-1)].mean(), right.mean()


def over_all_tokens(logits, ids, hidden):
    loss, right = token_losses(logits, ids, hidden)
    return loss.sum() / hidden.numel(), right.mean()


def the_first_ids(logits, ids, hidden):
    target = ids.flatten()[: len(logits)]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


def in_another_order(logits, ids, hidden):
    """Targets column by column."""
    target = ids.T[hidden.T]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


def the_sum(logits, ids, hidden):
    loss, right = token_losses(logits, ids, hidden)
    return loss.sum(), right.mean()


def in_bits(logits, ids, hidden):
    loss, right = token_losses(logits, ids, hidden)
    return loss.mean() / math.log(2), right.mean()


def gradient_of_the_true_logit_only(logits, ids, hidden):
    """The value is right, but no other logit is pushed down."""
    loss, right = maskgit.masked_token_loss(logits, ids, hidden)
    chosen = logits.gather(-1, ids[hidden][:, None]).mean()
    return chosen.detach() - chosen + loss.detach(), right


def counts_right_ones(logits, ids, hidden):
    loss, right = token_losses(logits, ids, hidden)
    return loss.mean(), right.sum()


EXERCISES = [
    Exercise(
        "grid_positions",
        positions_of_the_package,
        (adds_row_and_column, learns_rows_and_columns),
        hint="every row meets every column: which axis must be added for broadcasting, and in "
        "which order does a flattened grid stand?",
        wrong=(
            column_by_column,
            rows_only,
            transposed,
            multiplied,
            along_the_diagonals,
            not_learned,
            columns_not_learned,
        ),
    ),
    Exercise(
        "hide",
        maskgit.hide,
        (
            masks.hides_by_replacing,
            hides_anywhere,
            masks.hides_any_places,
            masks.shares_differ_within_a_batch,
        ),
        hint="draw a ratio, a count and places for each image on its own. And the ids that the "
        "model sees must not contain what it has to predict.",
        wrong=(
            keeps_the_ids,
            in_place,
            hides_by_coin,
            random_ids_for_masks,
            one_count_for_the_batch,
            one_order_for_the_batch,
            a_run,
            a_code_for_the_mask,
        ),
    ),
    Exercise(
        "drop_captions",
        maskgit.drop_captions,
        (masks.drops_the_share_of_captions, every_caption_has_its_own_coin),
        hint="one coin for each caption: not one for each word, nor one for the batch. With "
        "probability 0.1, nine in ten are kept.",
        wrong=(
            inverted,
            word_by_word,
            all_or_none,
            the_first_rows,
            an_exact_count,
            right_on_average,
            dropped_in_place,
        ),
    ),
    Exercise(
        "attend",
        transformer.attend,
        (
            attention.is_softmax_attention,
            attention.adds_the_bias,
            attention.survives_large_scores,
            attention.equals_torch,
            attention.hidden_keys_do_not_matter,
            attention.nothing_visible_is_zero,
        ),
        hint="the scores are complete, with scale and bias, before the softmax. A hidden key must "
        "get no weight at all, so hide it there, too. A softmax over nothing is 0/0, and its "
        "gradient stays NaN whatever you multiply it by: let such a row attend to something, and "
        "set the result to zero.",
        wrong=(
            without_scale,
            masked_after_the_softmax,
            hidden_scores_are_zero,
            nan_for_no_keys,
            mean_for_no_keys,
            nan_in_the_gradient,
            attends_to_padding,
            without_bias,
            scaled_bias,
            bias_of_the_first_head,
        ),
    ),
    Exercise(
        "block",
        block_of_the_package,
        (
            blocks.adds_to_x,
            blocks.adds_self_attention,
            blocks.adds_cross_attention,
            blocks.adds_the_mlp,
            blocks.applies_all_three_in_order,
            blocks.adds_zero_for_an_absent_caption,
            blocks.treats_each_image_by_itself,
            blocks.trains_every_weight,
        ),
        hint="three times the same: norm a copy of x, let the layer work on the copy, add its "
        "result to x. A head has d neighbouring numbers of each vector: split the last axis, then "
        "exchange two axes, and on the way back exchange them first. view() alone cannot.",
        wrong=(
            *(block_with(name, **changes) for name, changes in BLOCK_BUGS.items()),
            all_read_x,
            text_is_normed,
            the_first_caption_for_all,
            square_matrices_transposed,
            keys_and_values_exchanged,
        ),
    ),
    Exercise(
        "masked_token_loss",
        maskgit.masked_token_loss,
        (losses.is_one_mean_over_hidden_tokens, losses.does_not_depend_on_the_split),
        hint="which ids are hidden, in which order? Then take one mean over all of them: an image "
        "with few hidden tokens counts less than one with many.",
        wrong=(
            mean_of_rows,
            over_all_tokens,
            the_first_ids,
            in_another_order,
            the_sum,
            in_bits,
            gradient_of_the_true_logit_only,
            counts_right_ones,
        ),
    ),
]
