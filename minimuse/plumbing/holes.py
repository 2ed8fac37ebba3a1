"""Holes: which tokens a hole hides, which window is filled next, and how the result is blended in.

A hole is a bool tensor (H, W), True where pixels are drawn anew. `edit.py` calls these functions.

    window = next_window(low == mask_id, high == mask_id_hi, grid)     # (row, column), or None

Source: Muse (2301.00704), section 3.3; windows and blending are not in the paper.
Letters: B images, H W pixels, h w tokens.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from minimuse.data import on_white
from minimuse.plumbing.messages import warn


def hole_from_mask(mask: Image.Image, width: int, height: int) -> torch.Tensor:
    """Turn a mask image into (H, W) bool: True where it is light or transparent.

    A mask of another size than width x height is resized, with a warning.
    """
    if mask.size != (width, height):
        warn(
            f"the mask is {mask.width}x{mask.height} and the image {width}x{height}; "
            "the mask is resized"
        )
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    grey = np.array(on_white(mask).convert("L"))
    return torch.from_numpy(grey) > 127


# --- From pixels to tokens ---
def pad_to_tokens(pixels: torch.Tensor, unit: int, least: int) -> torch.Tensor:
    """Pad images (B, 3, H, W) at the right and at the bottom to whole tokens of `unit` pixels.

    Both sides become at least `least` pixels (whole tokens too). The border is repeated.
    """
    H, W = pixels.shape[2:]
    bottom = max(least, round_up(H, unit)) - H
    right = max(least, round_up(W, unit)) - W
    return F.pad(pixels, (0, right, 0, bottom), mode="replicate")


def hidden_tokens(hole: torch.Tensor, factor: int) -> torch.Tensor:
    """Which tokens of factor x factor pixels touch the hole (H, W): (H/factor, W/factor) bool."""
    return F.max_pool2d(hole[None].float(), factor)[0] > 0


def round_up(length: int, unit: int) -> int:
    """The smallest multiple of `unit` that is at least `length`."""
    return math.ceil(length / unit) * unit


# --- Windows over a large grid ---
def next_window(
    low_hidden: torch.Tensor, high_hidden: torch.Tensor, grid: int
) -> tuple[int, int] | None:
    """Choose the window to fill next: the row and column of its first low-res token.

    low_hidden (h, w) and high_hidden (h_hi, w_hi) are bool. A window is grid x grid low-res tokens
    and the high-res tokens that they cover. Of the windows with something hidden, it is the one
    with the smallest sum of both hidden fractions, so that drawing starts from what is known; of
    equals, the first one. None if nothing is hidden.
    """
    ratio = high_hidden.shape[0] // low_hidden.shape[0]
    best, best_fraction = None, math.inf
    for y in window_starts(low_hidden.shape[0], grid):
        for x in window_starts(low_hidden.shape[1], grid):
            low = low_hidden[y : y + grid, x : x + grid]
            high = high_hidden[ratio * y : ratio * (y + grid), ratio * x : ratio * (x + grid)]
            fraction = float(low.float().mean()) + float(high.float().mean())
            if 0 < fraction < best_fraction:
                best, best_fraction = (y, x), fraction
    return best


def window_starts(length: int, grid: int) -> list[int]:
    """Where windows of `grid` tokens start along `length` tokens: half a window apart.

    The last window ends where the tokens end.
    """
    last = length - grid
    stride = max(1, grid // 2)
    return [*range(0, last, stride), last]


# --- Blending ---
def feather(
    drawn: torch.Tensor, pixels: torch.Tensor, hole: torch.Tensor, width: int = 3
) -> torch.Tensor:
    """Put drawn (B, 3, H, W) into the hole (H, W) of pixels (3, H, W), without a visible seam.

    Outside the hole the result is `pixels`, bit for bit. Inside, the two are blended over `width`
    pixels from the edge of the hole.
    """
    weight = feather_weight(hole, width)  # 1 1 H W
    blend = weight * drawn + (1 - weight) * pixels  # B 3 H W
    return torch.where(hole, blend, pixels)


def feather_weight(hole: torch.Tensor, width: int) -> torch.Tensor:
    """The weight (1, 1, H, W) of drawn pixels: 0 outside the hole (H, W), rising inside it to 1.

    It is the depth of a pixel inside the hole, at most `width`, over the largest depth nearby. So a
    narrow part of a hole reaches 1, too: a line of one pixel has weight 1.
    """
    layer = hole[None, None].float()  # 1 1 H W
    depth = layer
    for _ in range(width - 1):
        layer = without_rim(layer)
        depth = depth + layer
    deepest = F.max_pool2d(depth, 2 * width - 1, stride=1, padding=width - 1)
    return depth / deepest.clamp(min=1)


def without_rim(hole: torch.Tensor) -> torch.Tensor:
    """Remove the outermost pixels of a hole (1, 1, H, W) of 0 and 1. The image border is no rim."""
    return 1 - F.max_pool2d(1 - hole, 3, stride=1, padding=1)
