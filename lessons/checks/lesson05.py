"""Lesson 05, the base model: what must hold of its exercises, and wrong solutions."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.compare import assert_same
from minimuse.checks.properties import attention, losses, masks

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
    q, k, v, visible=None, scale=None, fill=float("-inf"), zero_rows=True, mask_after=False
):
    """attend with switches that break it; without any, it is right."""
    if scale is None:
        scale = q.shape[-1] ** -0.5
    scores = q @ k.transpose(-1, -2) * scale
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


def attends_to_padding(q, k, v, visible=None):
    return softmax_attention(q, k, v)


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
            attention.survives_large_scores,
            attention.equals_torch,
            attention.hidden_keys_do_not_matter,
            attention.nothing_visible_is_zero,
        ),
        hint="a hidden key must get no weight at all, so hide it before the softmax. A softmax "
        "over nothing is 0/0, and its gradient stays NaN whatever you multiply it by: let such a "
        "row attend to something, and set the result to zero.",
        wrong=(
            without_scale,
            masked_after_the_softmax,
            hidden_scores_are_zero,
            nan_for_no_keys,
            mean_for_no_keys,
            nan_in_the_gradient,
            attends_to_padding,
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
