"""Lesson 10: the exercises on editing, their properties, and broken versions that must not pass."""

import functools
import math

import torch
import torch.nn.functional as F
from minimuse.checks import Exercise
from minimuse.checks.properties import editing

from minimuse import edit, schedule
from minimuse.plumbing import holes

TITLE = "editing"


def package_next_window(hidden, grid):
    """The package looks at low-res and high-res tokens; the exercise at one grid."""
    return holes.next_window(hidden, hidden, grid)


# --- Broken versions of pad_to_tokens ---
def whole_tokens(length, unit, least):
    """How many pixels to add: this one is right."""
    return max(least, math.ceil(length / unit) * unit) - length


def padded(pixels_to_add=whole_tokens, mode="replicate", centred=False):
    """A pad_to_tokens with switches that break it."""

    def pad_to_tokens(pixels, unit, least):
        H = pixels_to_add(pixels.shape[2], unit, least)
        W = pixels_to_add(pixels.shape[3], unit, least)
        if centred:
            return F.pad(pixels, (W // 2, W - W // 2, H // 2, H - H // 2), mode=mode)
        return F.pad(pixels, (0, W, 0, H), mode=mode)

    return pad_to_tokens


def rows_for_columns(pixels, unit, least):
    return padded()(pixels.transpose(2, 3), unit, least)


# --- Broken versions of hidden_tokens ---
def tokens_by(decide):
    """A hidden_tokens that decides in another way from the pixels of each token.

    decide(pixels (h, w, factor, factor) bool) -> (h, w) bool.
    """

    def hidden_tokens(hole, factor):
        h, w = (side // factor for side in hole.shape)
        return decide(hole.view(h, factor, w, factor).transpose(1, 2))

    return hidden_tokens


def any_pixel(pixels):
    """The right decision."""
    return pixels.flatten(2).any(-1)


def transposed(hole, factor):
    return tokens_by(any_pixel)(hole, factor).T


def by_the_average(hole, factor):
    """An average over 1 / 32: one pixel of 8 x 8 is less."""
    return F.avg_pool2d(hole[None].float(), factor)[0] > 1 / 32


def by_small_tokens(hole, factor):
    """Looks at no more than 4 x 4 pixels of each token."""
    return tokens_by(lambda x: x[..., :4, :4].flatten(2).any(-1))(hole, factor)


def grown(hole, factor):
    """One more token on every side."""
    hidden = tokens_by(any_pixel)(hole, factor)
    return F.max_pool2d(hidden[None].float(), 3, stride=1, padding=1)[0] > 0


# --- Broken versions of next_window ---
def window_of(score, if_none=None, order=1):
    """A next_window that takes the window with the lowest score(number of hidden tokens).

    Windows with a score of None are skipped. order=-1 takes the last of equals instead of the
    first. `if_none` is returned if all are skipped.
    """

    def next_window(hidden, grid):
        scored = []
        for count, y, x in editing.places(hidden.numpy(), grid):
            if score(count) is not None:
                scored.append((score(count), order * y, order * x))
        if not scored:
            return if_none
        _, y, x = min(scored)
        return order * y, order * x

    return next_window


def anywhere(hidden, grid):
    """Windows at every position, not half a window apart."""
    counted = []
    for y in range(hidden.shape[0] - grid + 1):
        for x in range(hidden.shape[1] - grid + 1):
            count = int(hidden[y : y + grid, x : x + grid].sum())
            if count > 0:
                counted.append((count, y, x))
    if not counted:
        return None
    return min(counted)[1:]


# --- Broken versions of feather, resample and changed_below ---
def seam(drawn, pixels, hole, width=3, bug=None):
    """A feather with switches that break it."""
    inside = hole[None, None].float()
    if bug == "too wide":
        width = width + 1
    padding_mode = "constant" if bug == "the border is an edge" else "replicate"
    around = F.pad(inside, (width - 1,) * 4, mode=padding_mode)
    around = F.avg_pool2d(around, 2 * width - 1, stride=1)

    share = (2 * around - 1).clamp(0, 1)
    if bug == "below 0":
        share = 2 * around - 1
    elif bug == "no blend":
        share = inside
    elif bug == "half at the edge of both":  # blurred to both sides
        share = around
    elif bug == "upside down":
        share = torch.where(hole, 1 - share, 0.0)
    elif bug == "never all of it":
        share = 0.9 * share
    if bug not in ("half at the edge of both", "upside down"):
        share = share * inside

    blended = share * drawn + (1 - share) * pixels
    if bug == "not bit for bit":
        return pixels + share * (drawn - pixels) + 1e-6 * (1 - inside)
    if bug == "half at the edge of both":
        return blended
    return torch.where(hole, blended, pixels)


def again(ids, mask_id, share, generators, draw, bug=None):
    """A resample with switches that break it."""
    hidden = hidden_to_resample(ids.shape[1], share, generators, bug)
    if bug == "in place":
        shown = ids.masked_fill_(hidden, mask_id)
    elif bug == "sees what is hidden":
        shown = ids
    else:
        shown = ids.masked_fill(hidden, mask_id)
    guess = draw(shown)
    if bug == "all drawn anew":
        return guess
    return torch.where(hidden, guess, ids)


def count_to_resample(N, share, bug):
    """How many tokens (1,) of each row are drawn anew, with the bugs of `again`."""
    if bug == "rounds down":
        return torch.tensor([max(1, int(share * N))])
    if bug == "may be none":
        return torch.tensor([round(share * N)])
    return schedule.mask_counts(torch.tensor([share], dtype=torch.float64), N)


def evenly_spaced(N, count, generators, step):
    """From a random place on, `count` places with the same step between them (B, N)."""
    firsts = [torch.randint(N, (1,), generator=draw) for draw in generators]
    places = (torch.stack(firsts) + step * torch.arange(count)) % N
    return torch.zeros(len(generators), N, dtype=torch.bool).scatter(1, places, True)


def hidden_to_resample(N, share, generators, bug):
    """Which tokens (B, N) are drawn anew, with the bugs of `again`."""
    B = len(generators)
    count = count_to_resample(N, share, bug)
    if bug == "a coin for each":
        return torch.cat([torch.rand(1, N, generator=draw) < share for draw in generators])
    if bug in ("a run", "every other one"):
        return evenly_spaced(N, int(count), generators, 1 if bug == "a run" else N // int(count))
    if bug == "the first ones":
        return (torch.arange(N) < count[:, None]).expand(B, N)
    if bug == "starts the chance anew":
        generators = [torch.Generator().manual_seed(row) for row in range(B)]
    if bug == "another generator":
        generators = [torch.default_generator] * B
    if bug == "one generator for the batch":
        return schedule.random_masks(count.expand(B), N, generators[0])
    hidden = torch.cat([schedule.random_masks(count, N, draw) for draw in generators])
    if bug == "one mask for the batch":
        return hidden[:1].expand(B, N)
    return hidden


def spread_by(pattern, differ=torch.ne):
    """A changed_below that compares, or spreads, in another way."""

    def changed_below(before, after, ratio):
        changed = differ(after, before)
        if pattern == "tile":  # repeats the whole grid, not each of its tokens
            return changed.repeat(1, ratio, ratio)
        if pattern == "rows":
            return changed.repeat_interleave(ratio, 1).repeat(1, 1, ratio)
        return changed.repeat_interleave(ratio, 1).repeat_interleave(ratio, 2)

    return changed_below


def first_image_only(before, after, ratio):
    return spread_by("each")(before, after[:1].expand_as(after), ratio)


def everything(before, after, ratio):
    def any_change(after, before):
        changed = (after != before).flatten(1).any(-1)
        return changed[:, None, None].expand_as(after)

    return spread_by("each", any_change)(before, after, ratio)


def planted(function, *bugs):
    """The function with each of its bugs."""
    return tuple(functools.wraps(function)(functools.partial(function, bug=bug)) for bug in bugs)


EXERCISES = [
    Exercise(
        "pad_to_tokens",
        holes.pad_to_tokens,
        (editing.pads_by_the_nearest_pixel,),
        hint="round up, then take the larger one; torch.nn.functional.pad knows how to repeat a "
        "border. In which order does it count the sides?",
        wrong=(
            # Black: something that nobody drew.
            padded(mode="constant"),
            # In the middle: no token starts where it started.
            padded(centred=True),
            # No whole tokens.
            padded(lambda length, unit, least: max(least - length, 0)),
            # Smaller than the least.
            padded(lambda length, unit, least: -length % unit),
            # One token too many.
            padded(lambda length, unit, least: max(least, (length // unit + 1) * unit) - length),
            rows_for_columns,
            # The first image of a batch.
            lambda pixels, unit, least: (
                padded()(pixels[:1], unit, least).expand(len(pixels), 3, -1, -1).clone()
            ),
        ),
    ),
    Exercise(
        "hidden_tokens",
        holes.hidden_tokens,
        (editing.one_pixel_hides_its_token,),
        hint="a single pixel decides. Which pooling lets one pixel decide?",
        wrong=(
            tokens_by(lambda x: x.float().mean((-1, -2)) > 0.5),  # most of it
            tokens_by(lambda x: x.flatten(2).all(-1)),  # all of it
            tokens_by(lambda x: x[..., 0, 0]),  # its first pixel: the mask resized to tokens
            tokens_by(lambda x: x[..., 0, :].any(-1)),  # its first row
            transposed,
            grown,
            by_the_average,
            by_small_tokens,
        ),
    ),
    Exercise(
        "window_starts",
        holes.window_starts,
        (editing.starts_half_a_window_apart,),
        hint="two things can go wrong at the end: tokens that are in no window, and a window that "
        "ends too far out. A set has no duplicates.",
        wrong=(
            # The last tokens are in no window.
            lambda length, grid: list(range(0, length - grid + 1, max(1, grid // 2))),
            # Too far out.
            lambda length, grid: list(range(0, length, max(1, grid // 2))),
            # Side by side.
            lambda length, grid: sorted({*range(0, length - grid, grid), length - grid}),
            # The last one twice.
            lambda length, grid: [
                *range(0, length - grid + 1, max(1, grid // 2)),
                length - grid,
            ],
            # Half a window, rounded up.
            lambda length, grid: sorted({*range(0, length - grid, (grid + 1) // 2), length - grid}),
            # Everywhere: four times as many windows, and no better.
            lambda length, grid: list(range(length - grid + 1)),
        ),
    ),
    Exercise(
        "next_window",
        package_next_window,
        (editing.goes_where_most_is_seen,),
        hint="list all windows with their counts, drop those with nothing hidden, take the least. "
        "`min` takes the first of equals.",
        wrong=(
            window_of(lambda n: n),  # with nothing hidden, too: it would never end
            window_of(lambda n: -n or None),  # the one with most hidden first
            window_of(lambda n: 0 if n else None),  # the first with something hidden
            window_of(lambda n: n or None, order=-1),  # the last of equals
            window_of(lambda n: n or None, if_none=(0, 0)),  # goes on when nothing is hidden
            anywhere,
        ),
        may_return_none=True,
    ),
    Exercise(
        "feather",
        holes.feather,
        (editing.blends_inside_only, editing.rises_from_the_edge),
        hint="the mean of the hole over a square around each pixel tells how far the edge is. What "
        "would it be on a straight edge itself, and which line makes that 0 and keeps 1? "
        "At the end, torch.where: 0 * x + 1 * y need not be y, bit for bit.",
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
        edit.resample,
        (editing.resamples_the_share, editing.every_position_gets_its_turn),
        hint="lesson 04 hides an exact number of tokens, uniformly. What does the model see of the "
        "hidden ones, and which tokens get a new guess?",
        wrong=planted(
            again,
            "rounds down",
            "may be none",
            "starts the chance anew",
            "a coin for each",
            "one mask for the batch",
            "one generator for the batch",
            "the first ones",
            "a run",
            "every other one",
            "another generator",
            "in place",
            "sees what is hidden",
            "all drawn anew",
        ),
    ),
    Exercise(
        "changed_below",
        edit.changed_below,
        (editing.redraws_what_lies_under_a_change,),
        hint="compare first, then make each answer ratio times as high and as wide. There are two "
        "ways to repeat: the list, or each of its elements.",
        wrong=(
            spread_by("tile"),
            spread_by("rows"),
            spread_by("each", torch.eq),  # redraws what stayed
            spread_by("each", torch.gt),  # codes have no order
            first_image_only,
            everything,
        ),
    ),
]
