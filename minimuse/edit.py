"""Editing: a model that fills holes can change an image without extra training.

    minimuse inpaint apple.png mask.png "a red apple, noto style"   # redraw where the mask is white
    minimuse outpaint apple.png "a red apple, noto style" --pad 32  # add 32 pixels on all sides
    minimuse edit apple.png "a green apple, noto style"             # no mask: resample in steps

Inpainting hides all tokens that touch the hole and draws them anew: first low-res tokens, then
high-res ones. All other tokens stay. An image that is larger than the training images is filled
window by window. Mask-free editing hides a few random low-res tokens at a time and draws them for
the new prompt.

Source: Muse (2301.00704), section 3.3.
Letters: B images, H W pixels, h w tokens, N = h w.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from PIL import Image

from minimuse import schedule
from minimuse.beyond.mean_vectors import vectors_of
from minimuse.data import from_pil, halve, to_pil
from minimuse.decode import Sampling, decode
from minimuse.muse import Muse
from minimuse.plumbing import arguments as checks
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.holes import (
    feather,
    hidden_tokens,
    hole_from_mask,
    next_window,
    pad_to_tokens,
    round_up,
)
from minimuse.plumbing.messages import warn
from minimuse.plumbing.prompts import check_prompts
from minimuse.plumbing.ranges import check_arguments
from minimuse.plumbing.vocabulary import each_word_once


# --- Inpainting and outpainting ---
@in_usual_state
def inpaint(
    muse: Muse,
    image: Image.Image,
    mask: Image.Image,
    prompt: str,
    tile: bool = False,
    **settings: Any,
) -> list[Image.Image]:
    """Redraw the image for the prompt where the mask is white. `settings`: see `fill`.

    A large image is a ValueError unless `tile` is set: see `plumbing/arguments.py`. An empty mask
    is a warning.
    """
    check_arguments(tile=tile)
    checks.check_pictures(image=image, mask=mask)
    checks.check_size(muse, image.width, image.height, tile)
    hole = hole_from_mask(mask, image.width, image.height)
    if not hole.any():
        warn("nothing in the mask is white: nothing is drawn anew")
    return fill(muse, from_pil(image), hole, prompt, **settings)


@in_usual_state
def outpaint(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    pad: tuple[int, int, int, int],
    tile: bool = False,
    **settings: Any,
) -> list[Image.Image]:
    """Add pad = (left, top, right, bottom) new pixels around the image. `settings`: see `fill`.

    Negative or no padding is a ValueError; so is a large result unless `tile` is set.
    """
    check_arguments(pad=pad, tile=tile)
    checks.check_pictures(image=image)
    if not any(pad):
        raise ValueError("pad is 0 on all sides; give pixels for left,top,right,bottom")
    left, top, right, bottom = pad
    checks.check_size(muse, left + image.width + right, top + image.height + bottom, tile)

    # Pad more than asked on the left and above, up to whole tokens, so that the image starts with a
    # whole token. The surplus is cropped at the end.
    unit = low_res_unit(muse)
    x = round_up(left, unit)
    y = round_up(top, unit)
    pixels = F.pad(from_pil(image)[None], (x, right, y, bottom), mode="replicate")[0]  # 3 H W
    hole = torch.ones(pixels.shape[1:], dtype=torch.bool)  # H W
    hole[y : y + image.height, x : x + image.width] = False

    images = fill(muse, pixels, hole, prompt, **settings)
    return [drawn.crop((x - left, y - top, *drawn.size)) for drawn in images]


@in_usual_state
@each_word_once
def fill(
    muse: Muse,
    pixels: torch.Tensor,
    hole: torch.Tensor,
    prompt: str,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    keep_pixels: bool = False,
    **settings: Any,
) -> list[Image.Image]:
    """Fill the hole (H, W) of pixels (3, H, W) in n ways. Tokens that do not touch the hole stay.

    With `keep_pixels` the pixels outside the hole stay too. `settings`: as in `Muse.generate`.
    """
    check_arguments(n=n, seed=seed, keep_pixels=keep_pixels)
    check_prompts([prompt], negative)
    sampling = muse.sampling(**settings)
    low, high = encode_around(muse, pixels, hole)  # 1 h w each
    low = repeat(low, "1 h w -> B h w", B=n).clone()
    high = repeat(high, "1 h w -> B h w", B=n).clone()
    # Hidden tokens have the vector of code 0, until they are filled.
    filled = high.masked_fill(high == muse.superres.mask_id, 0)
    vectors = muse.tokenizer_hi.quantizer.lookup(filled)  # B h_hi w_hi C
    grid = muse.config.tokenizer.grid

    # All B rows have the same hole, so the first one tells which tokens are still hidden.
    window = next_window(low[0] == muse.base.mask_id, high[0] == muse.superres.mask_id, grid)
    while window is not None:
        fill_window(muse, low, high, vectors, window, [prompt] * n, negative, sampling, seed)
        window = next_window(low[0] == muse.base.mask_id, high[0] == muse.superres.mask_id, grid)

    H, W = hole.shape
    drawn = muse.decode_vectors(vectors, "high")[..., :H, :W].cpu()  # B 3 H W
    if keep_pixels:
        drawn = feather(drawn, pixels.cpu(), hole.cpu())
    return to_pil(drawn)


def fill_window(
    muse: Muse,
    low: torch.Tensor,
    high: torch.Tensor,
    vectors: torch.Tensor,
    window: tuple[int, int],
    prompts: list[str],
    negative: str,
    sampling: tuple[Sampling, Sampling],
    seed: int,
) -> None:
    """Fill the hidden tokens of one window, in place: low (B, h, w) and high (B, h_hi, w_hi).

    `vectors` (B, h_hi, w_hi, C), which the decoder gets, are changed in place, too. `window` is the
    row and column of its first low-res token, `sampling` that of both models.
    """
    y, x = window
    grid = muse.config.tokenizer.grid
    ratio = high.shape[1] // low.shape[1]
    rows = slice(ratio * y, ratio * (y + grid))  # of the high-res grid
    columns = slice(ratio * x, ratio * (x + grid))
    # Views: assigning to them changes `low` and `high`.
    parts = {"low": low[:, y : y + grid, x : x + grid], "high": high[:, rows, columns]}
    steps = muse.steps(
        prompts,
        negative,
        *sampling,
        seed=seed,
        low=parts["low"].flatten(1),
        high=parts["high"].flatten(1),
        place=window,
    )
    hidden = (parts["high"] == muse.superres.mask_id)[..., None]  # B grid_hi grid_hi 1
    last = dict(steps)  # the last step of each resolution
    for resolution, step in last.items():
        parts[resolution][:] = step.ids.view_as(parts[resolution])
    if "high" in last:
        # What another window has filled keeps its vectors.
        new = vectors_of(last["high"], muse.tokenizer_hi)
        vectors[:, rows, columns] = torch.where(hidden, new, vectors[:, rows, columns])


# --- Mask-free editing ---
@each_word_once
def edit(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    iterations: int = 50,
    share: float = 0.08,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    **settings: Any,
) -> list[Image.Image]:
    """Change the image towards the prompt, without a mask, in n ways. Arguments: see `edits`."""
    for ids in edits(muse, image, prompt, iterations, share, n, negative, seed, **settings):
        low = ids  # of all iterations only the last is kept
    return finish(muse, image, prompt, low, negative, seed, **settings)


@in_usual_state
def edits(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    iterations: int = 50,
    share: float = 0.08,
    n: int = 1,
    negative: str = "",
    seed: int = 0,
    **settings: Any,
) -> Iterator[torch.Tensor]:
    """Mask-free editing: yield low-res ids (n, N) of the image, then those after each iteration.

    An iteration hides a random fraction `share` of the tokens and draws them for the prompt, from
    the 3 most likely codes. This is Gibbs sampling: more iterations lead farther from the image.
    Muse uses guidance 4 (section 3.3); for toy-shapes, lessons/claims/editing.py finds 1 best.
    `settings`: as in `Muse.generate`. An image larger than in training is a ValueError; so are
    impossible arguments.
    """
    check_arguments(iterations=iterations, share=share, n=n, seed=seed)
    checks.check_small(muse, image)
    check_prompts([prompt], negative)
    defaults = {"steps": 1, "top_k": 3}
    defaults = {key: value for key, value in defaults.items() if settings.get(key) is None}
    sampling, _ = muse.sampling(**settings | defaults)
    low, _ = encode(muse, from_pil(image))  # 1 h w
    low = low.flatten(1).repeat(n, 1)  # B N
    generators = muse.generators("edit", seed, n)
    prompts = muse.embed_prompts([prompt] * n, negative)
    contexts = muse.contexts(muse.base, prompts, sampling.guidance)  # for all iterations

    def draw(ids: torch.Tensor) -> torch.Tensor:
        """Draw the hidden tokens of ids (B, N) for the prompt."""
        arguments = (sampling, generators, prompts.weights, muse.run_pass)
        *_, step = decode(muse.base, ids, muse.base.mask_id, *contexts, *arguments)
        return step.ids

    @in_usual_state
    def states(low: torch.Tensor) -> Iterator[torch.Tensor]:
        yield low
        for _ in range(iterations):
            low = resample(low, muse.base.mask_id, share, generators, draw)
            yield low

    return states(low)


def resample(
    ids: torch.Tensor,
    mask_id: int,
    share: float,
    generators: Sequence[torch.Generator],
    draw: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """One iteration of mask-free editing: draw a random fraction `share` of ids (B, N) anew.

    `generators`: one for each row. draw(ids with mask ids (B, N)) -> ids (B, N) with a code at
    every position.
    """
    N = ids.shape[-1]
    count = schedule.mask_counts(torch.tensor([share], dtype=torch.float64), N)  # 1
    masks = [schedule.random_masks(count, N, generator) for generator in generators]  # B of (1, N)
    hidden = torch.cat(masks).to(ids.device)  # B N
    guess = draw(ids.masked_fill(hidden, mask_id))  # B N
    return torch.where(hidden, guess, ids)


@in_usual_state
def finish(
    muse: Muse,
    image: Image.Image,
    prompt: str,
    low: torch.Tensor,
    negative: str = "",
    seed: int = 0,
    **settings: Any,
) -> list[Image.Image]:
    """Turn low-res ids (B, N) from `edits` into images.

    Super-resolution redraws the high-res tokens under low-res tokens that have changed. The others
    stay.
    """
    check_arguments(seed=seed)
    check_prompts([prompt], negative)
    checks.check_small(muse, image)
    checks.check_complete(muse, low)
    _, sampling_hi = muse.sampling(**settings)
    before, high = encode(muse, from_pil(image))  # 1 h w each
    _, h, w = before.shape
    ratio = high.shape[1] // h
    changed = changed_below(before[0], low.view(-1, h, w), ratio)  # B h_hi w_hi
    high = high.masked_fill(changed, muse.superres.mask_id).flatten(1)  # B N_hi
    given = {"negative": negative, "sampling_hi": sampling_hi}
    # No low-res token is hidden, so all steps are of super-resolution.
    _, drawn = muse.draw([prompt] * len(low), seed=seed, low=low, high=high, **given)
    return to_pil(drawn[..., : image.height, : image.width])


def changed_below(before: torch.Tensor, after: torch.Tensor, ratio: int) -> torch.Tensor:
    """Which high-res tokens are covered by changed low-res tokens: (B, h ratio, w ratio) bool.

    before (h, w) and after (B, h, w) are low-res ids; each covers ratio x ratio high-res tokens.
    """
    changed = after != before  # B h w
    return changed.repeat_interleave(ratio, dim=1).repeat_interleave(ratio, dim=2)


# --- Images and holes as tokens ---
@in_usual_state
def encode(muse: Muse, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode pixels (3, H, W) as low-res and high-res ids, (1, h, w) each.

    Pixels are repeated at the right and at the bottom up to whole low-res tokens, and at least to
    the size of training images. Callers crop what they draw.
    """
    checks.check_images("pixels", pixels, "(3, H, W)")
    side = muse.config.tokenizer_hi.side
    pixels = pixels[None].to(muse.device, torch.float32)  # 1 3 H W
    pixels = pad_to_tokens(pixels, low_res_unit(muse), side)  # 1 3 H' W'
    low = muse.tokenizer.encode(halve(pixels))
    high = muse.tokenizer_hi.encode(pixels)
    return low, high


def encode_around(
    muse: Muse, pixels: torch.Tensor, hole: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`encode` pixels (3, H, W), with mask ids where a token touches the hole (H, W)."""
    checks.check_hole(hole, pixels)
    low, high = encode(muse, pixels)  # 1 h w each
    unit = low_res_unit(muse)
    H, W = hole.shape
    _, h, w = low.shape
    # Padding is no part of the hole.
    hole = F.pad(hole.to(muse.device), (0, w * unit - W, 0, h * unit - H))  # H' W'
    low = low.masked_fill(hidden_tokens(hole, unit), muse.base.mask_id)
    factor = muse.config.tokenizer_hi.factor
    high = high.masked_fill(hidden_tokens(hole, factor), muse.superres.mask_id)
    return low, high


def low_res_unit(muse: Muse) -> int:
    """The side of a low-res token in pixels of the high-res image: its sides are twice as long."""
    return 2 * muse.config.tokenizer.factor
