import math

import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks import Exercise
from minimuse.checks.properties import attention, losses, masks

from minimuse import maskgit, schedule, transformer

TITLE = "the base model"


# Properties that are not in tests/properties


def adds_row_and_column(grid_positions):
    """Token n of a grid, read as a page, has the vector of row n // w plus that of column n % w; grids need not be square."""

    @given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31 - 1))
    @example(2, 3, 1, 0)
    def check(h, w, D, seed):
        draw = torch.Generator().manual_seed(seed)
        rows, columns = (
            torch.randint(-9, 10, (h, D), generator=draw).float(),
            torch.randint(-9, 10, (w, D), generator=draw).float(),
        )
        out = grid_positions(rows, columns)
        assert out.shape == (h * w, D), (
            f"{h} rows, {w} columns, D = {D}: the shape is {tuple(out.shape)}"
        )
        for n in range(h * w):
            wanted = [a + b for a, b in zip(rows[n // w].tolist(), columns[n % w].tolist())]
            assert out[n].tolist() == wanted, (
                f"rows {rows.tolist()}, columns {columns.tolist()}: token {n} has {out[n].tolist()}, not {wanted}"
            )

    check()


def hides_anywhere(hide):
    """Within one batch every place is hidden equally often, within 5 sigma, and rows have places of their own."""
    batch, tokens = 4000, 8
    _, hidden = hide(
        torch.zeros(batch, tokens, dtype=torch.long), 1, torch.Generator().manual_seed(0)
    )
    hits, share = hidden.double().mean(dim=0), float(hidden.double().mean())
    sigma = math.sqrt(share * (1 - share) / batch)
    assert (hits - share).abs().max() < 5 * sigma, (
        f"places are hidden with shares {[round(x, 3) for x in hits.tolist()]}"
    )


def every_caption_has_its_own_coin(drop_captions):
    """A batch of one loses its caption as often as `share` says; two neighbours both lose theirs with share^2: within 5 sigma."""
    draw, times, share = torch.Generator().manual_seed(0), 3000, 0.3
    for rows in (1, 2):
        visible = torch.ones(rows, 3, dtype=torch.bool)
        gone = torch.stack(
            [~drop_captions(visible, share, draw).any(dim=-1) for _ in range(times)]
        ).double()
        assert visible.all(), "the mask that was given was changed in place"
        both = share**rows
        seen = float(gone.prod(dim=-1).mean())
        what = (
            "a batch of one is dropped"
            if rows == 1
            else "both captions of a batch of two are dropped"
        )
        assert abs(seen - both) < 5 * math.sqrt(both * (1 - both) / times), (
            f"share {share}: {what} with share {seen:.3f}, not {both:.3f}"
        )


# The package's functions, and planted bugs


def positions_of_the_package(rows, columns):
    module = transformer.GridPositions(1, rows.shape[1])
    module.rows.data, module.columns.data = rows, columns
    return module().detach()


def keeps_the_ids(ids, mask_id, generator):
    """The published bug: the mask decides over the loss only."""
    return ids, maskgit.hide(ids, mask_id, generator).hidden


def hides_by_coin(ids, mask_id, generator):
    hidden = (
        torch.rand(ids.shape, generator=generator)
        < schedule.sample_ratios(len(ids), generator)[:, None]
    )
    return ids.masked_fill(hidden, mask_id), hidden


def one_count_for_the_batch(ids, mask_id, generator):
    counts = schedule.mask_counts(schedule.sample_ratios(1, generator), ids.shape[1]).expand(
        len(ids)
    )
    hidden = schedule.random_masks(counts, ids.shape[1], generator)
    return ids.masked_fill(hidden, mask_id), hidden


def one_order_for_the_batch(ids, mask_id, generator):
    counts = schedule.mask_counts(schedule.sample_ratios(len(ids), generator), ids.shape[1])
    hidden = (
        torch.rand(ids.shape[1], generator=generator).argsort().argsort()[None] < counts[:, None]
    )
    return ids.masked_fill(hidden, mask_id), hidden


def a_run(ids, mask_id, generator):
    """Neighbours, from a place that is drawn, around the end: each place as often as any other."""
    counts, tokens = (
        schedule.mask_counts(schedule.sample_ratios(len(ids), generator), ids.shape[1]),
        ids.shape[1],
    )
    hidden = (
        torch.arange(tokens) - torch.randint(tokens, (len(ids), 1), generator=generator)
    ) % tokens < counts[:, None]
    return ids.masked_fill(hidden, mask_id), hidden


def random_ids_for_masks(ids, mask_id, generator):
    hidden = maskgit.hide(ids, mask_id, generator).hidden
    return torch.where(hidden, torch.randint(mask_id, ids.shape, generator=generator), ids), hidden


def in_place(ids, mask_id, generator):
    hidden = maskgit.hide(ids, mask_id, generator).hidden
    return ids.masked_fill_(hidden, mask_id), hidden


def the_first_rows(visible, share, generator):
    return visible & (torch.arange(len(visible)) >= share * len(visible))[:, None]


def as_many_as_the_share_says(visible, share, generator):
    return (
        visible
        & (torch.randperm(len(visible), generator=generator) >= round(share * len(visible)))[
            :, None
        ]
    )


def as_many_on_average(visible, share, generator):
    """The share's count, rounded by a coin: right for a batch of one."""
    count = int(share * len(visible) + float(torch.rand((), generator=generator)))
    return visible & (torch.randperm(len(visible), generator=generator) >= count)[:, None]


def softmax_attention(
    q, k, v, visible=None, scale=None, fill=float("-inf"), dead=True, after=False
):
    """attend with switches that break it."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is None:
        return scores.softmax(-1) @ v
    mask, alive = visible[:, None, None, :], visible.any(-1)[:, None, None, None]
    if after:  # the hidden keys take their part of the softmax
        return scores.softmax(-1).masked_fill(~mask, 0) @ v
    scores = scores.masked_fill(~(mask | (~alive if dead else False)), fill)
    return scores.softmax(-1) @ v * (alive if dead else 1)


def costs(logits, ids, hidden):
    """Minus log p, and whether it is right, of each hidden token."""
    target = ids[hidden]
    return F.cross_entropy(logits, target, reduction="none"), (logits.argmax(-1) == target).float()


def mean_of_rows(logits, ids, hidden):
    cost, right = costs(logits, ids, hidden)
    rows = torch.zeros(hidden.shape).masked_scatter(hidden, cost).sum(-1) / hidden.sum(-1)
    return rows[hidden.any(-1)].mean(), right.mean()


def over_all_tokens(logits, ids, hidden):
    cost, right = costs(logits, ids, hidden)
    return cost.sum() / hidden.numel(), right.mean()


def the_first_ids(logits, ids, hidden):
    target = ids.flatten()[: len(logits)]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


def in_another_order(logits, ids, hidden):
    """Targets column by column."""
    target = ids.T[hidden.T]
    return F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean()


EXERCISES = [
    Exercise(
        "grid_positions",
        positions_of_the_package,
        (adds_row_and_column,),
        hint="every row meets every column: which axis has to be made for broadcasting, and which order does a flattened grid have?",
        wrong=(
            lambda r, c: rearrange(r[:, None] + c[None], "h w D -> (w h) D"),  # column by column
            lambda r, c: r.repeat_interleave(len(c), 0),  # rows only
            lambda r, c: c.repeat_interleave(len(r), 0) + r.repeat(len(c), 1),  # as if turned over
            lambda r, c: (r[:, None] * c[None]).flatten(0, 1),
            lambda r, c: r.repeat(len(c), 1) + c.repeat(len(r), 1),  # along the diagonals
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
        hint="a ratio, a count, places, each for every picture on its own; and what the model gets must not hold what it is asked.",
        wrong=(
            keeps_the_ids,
            in_place,
            hides_by_coin,
            random_ids_for_masks,
            one_count_for_the_batch,
            one_order_for_the_batch,
            a_run,
            lambda ids, m, g: (
                ids.masked_fill(h := maskgit.hide(ids, m, g).hidden, 0),
                h,
            ),  # a real code for the mask
        ),
    ),
    Exercise(
        "drop_captions",
        maskgit.drop_captions,
        (masks.drops_the_share_of_captions, every_caption_has_its_own_coin),
        hint="one coin for each caption, neither one for each word nor one for the batch. With share 0.1, nine in ten are kept.",
        wrong=(
            lambda v, s, g: (
                v & (torch.rand(len(v), generator=g) < s)[:, None]
            ),  # the published inversion
            lambda v, s, g: v & (torch.rand(v.shape, generator=g) >= s),  # word by word
            lambda v, s, g: v & (torch.rand(1, generator=g) >= s),  # all or none
            the_first_rows,
            as_many_as_the_share_says,
            as_many_on_average,
            lambda v, s, g: v.masked_fill_(
                (torch.rand(len(v), generator=g) < s)[:, None], False
            ),  # in place
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
        hint="a hidden key must get no weight at all, so it leaves before the softmax. A softmax over nothing is 0/0, and its gradient stays "
        "NaN whatever you multiply it by: let such a row look at something, and take the answer away.",
        wrong=(
            lambda *a: softmax_attention(*a, scale=1.0),
            lambda *a: softmax_attention(*a, after=True),
            lambda *a: softmax_attention(*a, fill=0.0),
            lambda *a: softmax_attention(*a, dead=False),  # NaN
            lambda *a: softmax_attention(*a, dead=False, fill=-1e9),  # the mean of everything
            lambda *a: softmax_attention(*a, dead=False).nan_to_num(),  # NaN in the gradient
            lambda q, k, v, m=None: softmax_attention(q, k, v),  # padding and all
        ),
    ),
    Exercise(
        "masked_token_loss",
        maskgit.masked_token_loss,
        (losses.is_one_mean_over_hidden_tokens, losses.does_not_depend_on_the_split),
        hint="which ids are hidden, in which order? Then one mean over all of them: a picture with few hidden tokens has few votes.",
        wrong=(
            mean_of_rows,
            over_all_tokens,
            the_first_ids,
            in_another_order,
            lambda *a: (costs(*a)[0].sum(), costs(*a)[1].mean()),  # the sum
            lambda *a: (costs(*a)[0].mean() / math.log(2), costs(*a)[1].mean()),  # bits
            lambda *a: (costs(*a)[0].mean(), costs(*a)[1].sum()),
        ),
    ),
]
