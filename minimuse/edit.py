"""Editing: a model that fills holes can change a picture, without being trained for it (Muse, 2301.00704, section 3.3).

    minimuse inpaint apple.png mask.png "a red apple, noto style"     # new where the mask is white
    minimuse outpaint apple.png "a red apple, noto style" --pad 32    # new all around
    minimuse edit apple.png "a green apple, noto style"               # no mask: resampled, bit by bit

Tokens that touch the hole are hidden and drawn anew, low-res ones first, then high-res ones given them; all others stay. A picture
larger than in training is filled through a window. Mask-free: a few random low-res tokens at a time are drawn under the new caption.
Letters: B pictures, H W pixels, h w tokens, f pixels per token.
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image

from minimuse import schedule
from minimuse.data import from_pil, on_white, to_pil
from minimuse.decode import decode
from minimuse.device import autocast
from minimuse.muse import Muse


def hole_of(mask: Image.Image, width: int, height: int) -> torch.Tensor:
    """A mask image -> (H, W) bool, True where it is light or transparent."""
    if mask.size != (width, height):
        warnings.warn(
            f"the mask is {mask.width}x{mask.height} and the picture {width}x{height}; the mask is resized",
            stacklevel=3,
        )
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(on_white(mask).convert("L"))) > 127


def affordable(muse: Muse, width: int, height: int, tile: bool) -> None:
    """Refuse a picture above four times the training side, which takes many windows, unless `tile` asks for it."""
    if max(width, height) > (most := 4 * muse.config.tokenizer_hi.side) and not tile:
        raise ValueError(
            f"the picture is {width}x{height}; at most {most}x{most} is drawn unless you ask for tiles (--tile): shrink it, or ask"
        )


def inpaint(
    muse: Muse, image: Image.Image, mask: Image.Image, prompt: str, tile: bool = False, **how
) -> list[Image.Image]:
    """Pictures like the image outside of the mask, and drawn for the prompt where it is white; `how`: see `fill`."""
    affordable(muse, *image.size, tile)
    hole = hole_of(mask, image.width, image.height)
    if not hole.any():
        warnings.warn("the mask is empty: there is nothing to draw", stacklevel=2)
    return fill(muse, from_pil(image), hole, prompt, **how)


def outpaint(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    pad: tuple[int, int, int, int],
    tile: bool = False,
    **how,
) -> list[Image.Image]:
    """Pictures with the image in the middle and pad = (left, top, right, bottom) new pixels around it; `how`: see `fill`."""
    if min(pad) < 0 or not any(pad):
        raise ValueError(
            f"pad is {','.join(map(str, pad))}; give pixels for left,top,right,bottom, one of them above 0"
        )
    left, top, right, bottom = pad
    affordable(muse, left + image.width + right, top + image.height + bottom, tile)
    unit = 2 * muse.config.tokenizer.factor
    before_x, before_y = (
        math.ceil(p / unit) * unit for p in (left, top)
    )  # the image starts with a token
    pixels = F.pad(from_pil(image)[None], (before_x, right, before_y, bottom), mode="replicate")[0]
    hole = torch.ones(pixels.shape[1:], dtype=torch.bool)
    hole[before_y : before_y + image.height, before_x : before_x + image.width] = False
    return [
        picture.crop((before_x - left, before_y - top, *picture.size))
        for picture in fill(muse, pixels, hole, prompt, **how)
    ]


def fill(
    muse: Muse,
    pixels: torch.Tensor,
    hole: torch.Tensor,
    prompt: str,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    keep_pixels: bool = False,
    **given,
) -> list[Image.Image]:
    """Fill the hole (H, W) of pixels (3, H, W) n times. Elsewhere tokens stay, and with `keep_pixels` the pixels; `given` as in `Muse.generate`."""
    low, high = (repeat(ids, "1 h w -> B h w", B=n).clone() for ids in _tokens(muse, pixels, hole))
    sampling, sampling_hi = muse.sampling(**given)
    for i, (y, x) in enumerate(
        windows(low, muse.base.mask_id, high, muse.superres.mask_id, muse.config.tokenizer.grid)
    ):
        seen = {"low": low[:, y[0], x[0]], "high": high[:, y[1], x[1]]}
        start = {name: ids.flatten(1) for name, ids in seen.items()}
        for name, step in muse.steps(
            [prompt] * n, negative, sampling, sampling_hi, seed + i, **start
        ):
            seen[name].copy_(step.ids.view_as(seen[name]))  # a view: into low or high
    drawn = muse.pixels(high, "high")[..., : hole.shape[0], : hole.shape[1]].cpu()
    return to_pil(feather(drawn, pixels, hole) if keep_pixels else drawn)


def edits(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    iterations: int = 50,
    share: float = 0.08,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    **given,
) -> Iterator[torch.Tensor]:
    """Mask-free editing (Muse, section 3.3): low-res tokens (n, N) of the image, then those after each iteration.
    An iteration hides a random `share` of the tokens and draws them for the prompt, from the 3 likeliest codes (Muse: guidance 4; for
    toy-shapes, lessons/claims/editing.py finds 1 best). Gibbs sampling: the longer it goes on, the farther it gets from the image."""
    if iterations < 0 or not 0 < share <= 1:
        raise ValueError(
            f"iterations {iterations} and share {share}: give 0 or more, and a share in (0, 1]"
        )
    pixels, side = from_pil(image), muse.config.tokenizer_hi.side
    if max(pixels.shape[1:]) > side:
        raise ValueError(
            f"the picture is {image.width}x{image.height}; {side}x{side} is the most that can be edited: shrink it"
        )
    low, generator = (
        _tokens(muse, pixels)[0].flatten(1).repeat(n, 1),
        torch.Generator().manual_seed(seed),
    )
    asked, sampling = (
        muse.read([prompt] * n, negative),
        replace(muse.config.sampling, **dict(steps=1, top_k=3) | given),
    )
    contexts = muse.contexts(
        muse.base, asked, sampling.guidance
    )  # once: they are the same in all iterations
    counts = schedule.mask_counts(torch.full((n,), share, dtype=torch.float64), low.shape[1])
    yield low
    for _ in range(iterations):
        hidden = schedule.random_masks(counts, low.shape[1], generator).to(low.device)
        with autocast(muse.device):
            *_, step = decode(
                muse.base,
                low.masked_fill(hidden, muse.base.mask_id),
                muse.base.mask_id,
                *contexts,
                sampling,
                generator,
                asked.weights,
            )
        low = step.ids
        yield low


def finish(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    low: torch.Tensor,
    negative: str = "",
    seed: int = 0,
    **given,
) -> list[Image.Image]:
    """Pictures for low-res tokens (n, N) of `edits`: super-resolution redraws what lies under tokens that changed, sampling as `given`."""
    was, high = _tokens(muse, from_pil(image))
    changed = (
        (low.view(-1, *was.shape[1:]) != was)
        .repeat_interleave(ratio := high.shape[1] // was.shape[1], 1)
        .repeat_interleave(ratio, 2)
    )
    high = high.masked_fill(changed, muse.superres.mask_id).flatten(1)
    for _, step in muse.steps(
        [prompt] * len(low),
        negative,
        sampling_hi=muse.sampling(**given)[1],
        seed=seed,
        low=low,
        high=high,
    ):
        high = step.ids
    return to_pil(muse.pixels(high, "high")[..., : image.height, : image.width])


def edit(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    iterations: int = 50,
    share: float = 0.08,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    **given,
) -> list[Image.Image]:
    """n pictures of the prompt that start from the image; arguments as for `edits`."""
    *_, low = edits(muse, image, prompt, iterations, share, n, negative, seed, **given)
    return finish(muse, image, prompt, low, negative, seed, **given)


def _tokens(
    muse: Muse, pixels: torch.Tensor, hole: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """pixels (3, H, W), hole (H, W) -> low-res (1, h, w) and high-res ids, mask ids where a token touches the hole. The borders are
    repeated up to whole low-res tokens, and to the training side at least; callers crop."""
    hole = torch.zeros(pixels.shape[1:]) if hole is None else hole
    unit, side = 2 * muse.config.tokenizer.factor, muse.config.tokenizer_hi.side
    more = [
        max(side, math.ceil(length / unit) * unit) - length
        for length in (pixels.shape[2], pixels.shape[1])
    ]
    pixels = F.pad(pixels[None].to(muse.device), (0, more[0], 0, more[1]), mode="replicate")
    hole = F.pad(hole[None, None].float().to(muse.device), (0, more[0], 0, more[1]))
    touches = lambda f: F.max_pool2d(hole, f)[:, 0] > 0
    low = muse.tokenizer.encode(F.avg_pool2d(pixels, 2)).masked_fill(
        touches(unit), muse.base.mask_id
    )
    high = muse.tokenizer_hi.encode(pixels).masked_fill(
        touches(muse.config.tokenizer_hi.factor), muse.superres.mask_id
    )
    return low, high


def windows(
    low: torch.Tensor, mask_id: int, high: torch.Tensor, mask_id_hi: int, grid: int
) -> Iterator:
    """Windows of the training size on ids (B, h, w), half a window apart: ((low rows, high rows), (low columns, high columns)). Next is
    the one that has something hidden and sees most, until there is none: whoever iterates fills it before asking on."""
    ratio = high.shape[1] // low.shape[1]
    starts = [
        sorted({*range(0, length - grid, max(1, grid // 2)), length - grid})
        for length in low.shape[1:]
    ]
    cut = lambda start: (slice(start, start + grid), slice(ratio * start, ratio * (start + grid)))
    places = [(cut(y), cut(x)) for y in starts[0] for x in starts[1]]
    while True:
        hidden = low[0] == mask_id, high[0] == mask_id_hi
        count = lambda place: sum(float(h[y, x].float().mean()) for h, y, x in zip(hidden, *place))
        if not (left := [place for place in places if count(place)]):
            return
        yield min(left, key=count)


def feather(
    drawn: torch.Tensor, pixels: torch.Tensor, hole: torch.Tensor, width: int = 3
) -> torch.Tensor:
    """drawn (B, 3, H, W) inside the hole (H, W), `pixels` outside, bit for bit; inside, the two blend over `width` pixels from the edge."""
    layers = [
        hole[None, None].float()
    ]  # what is left of the hole when its rim is taken off, again and again
    while (
        len(layers) < width
        and (less := 1 - F.max_pool2d(1 - layers[-1], 3, stride=1, padding=1)).any()
    ):
        layers.append(less)
    share = sum(layers) / len(layers)  # a scratch has no inside: it is all new
    return torch.where(hole, share * drawn + (1 - share) * pixels, pixels)
