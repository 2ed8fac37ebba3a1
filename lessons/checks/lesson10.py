import functools
import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from minimuse.checks import Exercise
from minimuse.checks.properties import editing
from PIL import Image

from minimuse import edit, schedule
from minimuse.decode import Sampling

TITLE = "editing"


# The package's functions, with the signatures of the exercises: they are called with a stand-in for Muse, which tells what it is given


def stand_in(low=None, high=None, factor=1, factor_hi=2, side=1, **more):
    """As much of a Muse as `edit` looks at; its tokenizers see these ids (h, w) in every picture. A picture of one pixel fits any."""
    reader = lambda ids: SimpleNamespace(encode=lambda pixels: ids[None])
    zero, model = torch.zeros(1, 1, dtype=torch.long), SimpleNamespace(mask_id=-1)
    tokenizers = {
        "tokenizer": SimpleNamespace(factor=factor),
        "tokenizer_hi": SimpleNamespace(factor=factor_hi, side=side),
    }
    config = SimpleNamespace(sampling=Sampling(guidance=0.0), **tokenizers)
    parts = {
        "tokenizer": reader(zero if low is None else low),
        "tokenizer_hi": reader(zero if high is None else high),
    }
    return SimpleNamespace(
        **{
            "config": config,
            "device": "cpu",
            "base": model,
            "superres": model,
            "sampling": lambda: (None, None),
            **parts,
            **more,
        }
    )


def pad_in_the_package(pixels, unit, least):
    seen = []
    high = SimpleNamespace(encode=lambda padded: seen.append(padded) or torch.zeros(1, 1, 1))
    for picture in pixels:
        edit._tokens(
            stand_in(factor=unit // 2, side=least, tokenizer_hi=high),
            picture,
            torch.zeros(picture.shape[1:], dtype=torch.bool),
        )
    return torch.cat(seen)


def hidden_in_the_package(hole, factor):
    _, high = edit._tokens(
        stand_in(factor=factor, factor_hi=factor), torch.zeros(3, *hole.shape), hole
    )
    return (high == -1)[0, : hole.shape[0] // factor, : hole.shape[1] // factor]


def next_in_the_package(hidden, grid):
    ids = torch.where(hidden, -1, 0)[None]
    found = next(edit.windows(ids, -1, ids, -1, grid), None)
    return None if found is None else tuple(axis[0].start for axis in found)


def starts_in_the_package(length, grid):
    """One row of windows, in the order in which they are filled: from the left."""
    ids, starts = torch.full((1, grid, length), -1), []
    for _, (columns, _) in edit.windows(ids, -1, ids, -1, grid):
        ids[:, :, columns] = 0
        starts.append(columns.start)
    return starts


def resample_in_the_package(ids, mask_id, share, generator, draw):
    """The first iteration of `edits`, row by row, with a model that is sure of what `draw` says."""

    def model(inputs, context, where):
        return 1e4 * F.one_hot(draw(inputs)[where], mask_id)

    model.mask_id, rows, asked = mask_id, [], SimpleNamespace(weights=(1.0,))
    more = {"base": model, "read": lambda *_: asked, "contexts": lambda *_: (None, None)}
    for row in ids:
        seed = int(torch.randint(2**31, (), generator=generator))
        _, after = edit.edits(
            stand_in(row[None], **more), Image.new("RGB", (1, 1)), "", 1, seed=seed, share=share
        )
        rows.append(after)
    return torch.cat(rows)


def changed_in_the_package(before, after, ratio):
    def steps(prompts, negative, sampling_hi, seed, low, high):
        seen.append(high)
        return ()

    h, w = before.shape
    high, seen = torch.zeros(h * ratio, w * ratio, dtype=torch.long), []
    muse = stand_in(
        before, high, steps=steps, pixels=lambda high, _: torch.zeros(len(high), 3, 1, 1)
    )
    edit.finish(muse, Image.new("RGB", (1, 1)), "", after.flatten(1))
    return (seen[0] == -1).view(len(after), h * ratio, w * ratio)


# Planted bugs


def whole_tokens(length, unit, least):
    return max(least, math.ceil(length / unit) * unit) - length


def padded(more=whole_tokens, mode="replicate", before=False):
    """pad_to_tokens with switches that break it."""

    def pad_to_tokens(pixels, unit, least):
        H, W = (more(length, unit, least) for length in pixels.shape[2:])
        return F.pad(
            pixels, (W // 2, W - W // 2, H // 2, H - H // 2) if before else (0, W, 0, H), mode=mode
        )

    return pad_to_tokens


def tokens_by(judge):
    """hidden_tokens that asks of each token's pixels (h, w, factor, factor) something else."""

    def hidden_tokens(hole, factor):
        h, w = (side // factor for side in hole.shape)
        return judge(hole.view(h, factor, w, factor).transpose(1, 2))

    return hidden_tokens


def transposed(hole, factor):
    return tokens_by(lambda x: x.flatten(2).any(-1))(hole, factor).T


def grown(hole, factor):
    """With a border of one token more."""
    some = tokens_by(lambda x: x.flatten(2).any(-1))(hole, factor)
    return F.max_pool2d(some[None].float(), 3, stride=1, padding=1)[0] > 0


def window_of(score, done=None, order=1):
    """next_window with another idea of which is best."""

    def next_window(hidden, grid):
        counted = [
            (score(count), order * y, order * x)
            for count, y, x in editing.places(hidden.numpy(), grid)
        ]
        found = [place for place in counted if place[0] is not None]
        return (order * min(found)[1], order * min(found)[2]) if found else done

    return next_window


def anywhere(hidden, grid):
    """Windows at every place, not half a window apart."""
    spots = [
        (y, x) for y in range(hidden.shape[0] - grid + 1) for x in range(hidden.shape[1] - grid + 1)
    ]
    found = [(int(n), y, x) for y, x in spots if (n := hidden[y : y + grid, x : x + grid].sum())]
    return min(found)[1:] if found else None


def seam(drawn, pixels, hole, width=3, bug=None):
    """feather with switches that break it."""
    inside, size = hole[None, None].float(), 2 * width - 1
    pad = (width - 1,) * 4
    around = F.avg_pool2d(
        F.pad(inside, pad)
        if bug == "the border is an edge"
        else F.pad(inside, pad, mode="replicate"),
        size,
        stride=1,
    )
    share = 2 * around - 1 if bug == "below 0" else (2 * around - 1).clamp(0, 1)
    if bug == "no blend":
        share = inside
    if bug == "half at the edge of both":  # blurred to both sides
        share = around
    if bug == "upside down":
        share = torch.where(hole, 1 - share, 0.0)
    if bug == "never all of it":
        share = 0.9 * share
    if bug == "too wide":
        around = F.avg_pool2d(F.pad(inside, (width,) * 4, mode="replicate"), size + 2, stride=1)
        share = (2 * around - 1).clamp(0, 1)
    if bug not in ("half at the edge of both", "upside down"):
        share = share * inside
    blended = share * drawn + (1 - share) * pixels
    if bug == "not bit for bit":
        return pixels + share * (drawn - pixels) + 1e-6 * (1 - inside)
    return blended if bug == "half at the edge of both" else torch.where(hole, blended, pixels)


def again(ids, mask_id, share, generator, draw, bug=None):
    """resample with switches that break it."""
    B, N = ids.shape
    counts = schedule.mask_counts(torch.full((B,), share, dtype=torch.float64), N)
    if bug == "rounds down":
        counts = (share * torch.full((B,), N)).long().clamp(min=1)
    if bug == "may be none":
        counts = (share * torch.full((B,), N)).round().long()
    hidden = schedule.random_masks(
        counts,
        N,
        torch.Generator().manual_seed(0) if bug == "starts the chance anew" else generator,
    )
    if bug == "a coin for each":
        hidden = torch.rand(B, N, generator=generator) < share
    if bug == "one mask for the batch":
        hidden = hidden[:1].expand(B, N)
    if bug == "the first ones":
        hidden = torch.arange(N) < counts[:, None]
    if bug == "another generator":
        hidden = schedule.random_masks(counts, N, None)
    shown = (
        ids.masked_fill_(hidden, mask_id) if bug == "in place" else ids.masked_fill(hidden, mask_id)
    )
    guess = draw(ids if bug == "sees what is hidden" else shown)
    return guess if bug == "all drawn anew" else torch.where(hidden, guess, ids)


def spread_by(pattern, differ=torch.ne):
    """changed_below that compares, or spreads, in another way."""

    def changed_below(before, after, ratio):
        changed = differ(after, before)
        if pattern == "tile":  # the grid once more, not each of its tokens
            return changed.repeat(1, ratio, ratio)
        if pattern == "rows":
            return changed.repeat_interleave(ratio, 1).repeat(1, 1, ratio)
        return changed.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)

    return changed_below


def planted(function, *bugs):
    """The function with each of its bugs."""
    return tuple(functools.wraps(function)(functools.partial(function, bug=bug)) for bug in bugs)


EXERCISES = [
    Exercise(
        "pad_to_tokens",
        pad_in_the_package,
        (editing.pads_by_the_nearest_pixel,),
        hint="round up, then take the larger one; torch.nn.functional.pad knows how to repeat a border. And in which order does it count the sides?",
        wrong=(
            padded(mode="constant"),  # black: a thing that nobody drew
            padded(before=True),  # in the middle: no token begins where it began
            padded(lambda length, unit, least: max(least - length, 0)),  # no whole tokens
            padded(lambda length, unit, least: -length % unit),  # not at least that
            padded(
                lambda length, unit, least: max(least, (length // unit + 1) * unit) - length
            ),  # one too many
            lambda x, unit, least: padded()(x.transpose(2, 3), unit, least),  # rows for columns
        ),
    ),
    Exercise(
        "hidden_tokens",
        hidden_in_the_package,
        (editing.one_pixel_hides_its_token,),
        hint="a single pixel decides. Which pooling lets one pixel decide?",
        wrong=(
            tokens_by(lambda x: x.float().mean((-1, -2)) > 0.5),  # most of it
            tokens_by(lambda x: x.flatten(2).all(-1)),  # all of it
            tokens_by(lambda x: x[..., 0, 0]),  # its first pixel: a mask that was made smaller
            tokens_by(lambda x: x[..., 0, :].any(-1)),  # its first row
            transposed,
            grown,
        ),
    ),
    Exercise(
        "window_starts",
        starts_in_the_package,
        (editing.starts_half_a_window_apart,),
        hint="two things can go wrong at the end: tokens that no window sees, and a window that sees beyond. A set forgives duplicates.",
        wrong=(
            lambda length, grid: list(
                range(0, length - grid + 1, max(1, grid // 2))
            ),  # the last tokens are in none
            lambda length, grid: list(range(0, length, max(1, grid // 2))),  # beyond the end
            lambda length, grid: sorted(
                {*range(0, length - grid, grid), length - grid}
            ),  # side by side
            lambda length, grid: [
                *range(0, length - grid + 1, max(1, grid // 2)),
                length - grid,
            ],  # the last one twice
            lambda length, grid: sorted(
                {*range(0, length - grid, (grid + 1) // 2), length - grid}
            ),  # rounded up
            lambda length, grid: list(
                range(length - grid + 1)
            ),  # everywhere: four times as many, and no better
        ),
    ),
    Exercise(
        "next_window",
        next_in_the_package,
        (editing.goes_where_most_is_seen,),
        hint="list all windows with their counts, drop those that are done, take the least. `min` takes the first of equals.",
        wrong=(
            window_of(lambda n: n),  # done ones too: it would never end
            window_of(lambda n: -n or None),  # the emptiest first
            window_of(lambda n: 0 if n else None),  # the first that is not done
            window_of(lambda n: n or None, order=-1),  # the last of equals
            window_of(lambda n: n or None, done=(0, 0)),  # goes on when all is there
            anywhere,
        ),
    ),
    Exercise(
        "feather",
        edit.feather,
        (editing.blends_inside_only, editing.rises_from_the_edge),
        hint="the mean of the hole over a square around each pixel says how far the edge is. What would it be on a straight edge itself, "
        "and which line makes that 0 and keeps 1? At the end, torch.where: 0 * x + 1 * y need not be y, bit for bit.",
        wrong=planted(
            seam,
            "the border is an edge",
            "below 0",
            "no blend",
            "half at the edge of both",
            "upside down",
            "never all of it",
            "too wide",
            "not bit for bit",
        ),
    ),
    Exercise(
        "resample",
        resample_in_the_package,
        (editing.resamples_the_share, editing.every_position_gets_its_turn),
        hint="lesson 04 hides an exact number of tokens, uniformly. What does the model see of those that are hidden, and who else gets a new guess?",
        wrong=planted(
            again,
            "rounds down",
            "may be none",
            "starts the chance anew",
            "a coin for each",
            "one mask for the batch",
            "the first ones",
            "another generator",
            "in place",
            "sees what is hidden",
            "all drawn anew",
        ),
    ),
    Exercise(
        "changed_below",
        changed_in_the_package,
        (editing.redraws_what_lies_under_a_change,),
        hint="compare first, then make each answer ratio times as high and as wide. There are two ways to repeat: the list, or each of its elements.",
        wrong=(
            spread_by("tile"),
            spread_by("rows"),
            spread_by("each", torch.eq),  # draws anew what stayed
            spread_by("each", torch.gt),  # a code is no quantity
            lambda before, after, ratio: spread_by("each")(
                before, after[:1].expand_as(after), ratio
            ),  # of the first picture
            spread_by(
                "each",
                lambda after, before: (
                    (after != before).flatten(1).any(-1)[:, None, None].expand_as(after)
                ),
            ),  # everything
        ),
    ),
]
