"""Figures: sheets of images with captions, images side by side, and decoding as a GIF or a strip.

from minimuse.cli.figures import sheet
sheet([images], captions, columns=4).save("sheet.png")
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from PIL import Image, ImageDraw, ImageFont

from minimuse.beyond.mean_vectors import vectors_of
from minimuse.muse import Muse
from minimuse.plumbing.files import save_image
from minimuse.runs.sheet import FONT_SIZE, GAP, TEXT_COLOUR, WHITE, sheet

TITLE_HEIGHT = 16  # pixels


def beside(images: list[Image.Image], titles: list[str], scale: int = 2) -> Image.Image:
    """Draw images of any size in a row, each below its title and enlarged by `scale`."""
    font = ImageFont.load_default(FONT_SIZE)
    enlarged = []
    for image in images:
        size = (scale * image.width, scale * image.height)
        enlarged.append(image.convert("RGB").resize(size, Image.Resampling.NEAREST))
    width = GAP + sum(image.width + GAP for image in enlarged)
    height = TITLE_HEIGHT + max(image.height for image in enlarged) + GAP
    page = Image.new("RGB", (width, height), WHITE)
    pen = ImageDraw.Draw(page)
    x = GAP
    for image, title in zip(enlarged, titles, strict=True):
        pen.text((x, 2), title, TEXT_COLOUR, font)
        page.paste(image, (x, TITLE_HEIGHT))
        x += image.width + GAP
    return page


def decoding_frames(
    muse: Muse, prompts: list[str], **settings: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode prompts, and yield two batches of images (B, 3, H, W) for each step.

    The first shows all guesses, shaded where they are hidden again after this step. The second
    shows the probability of each guess, from black (0) to white (1), and white where the token was
    known before. `settings` are those of `Muse.steps`.
    """
    for resolution, step in muse.steps(prompts, **settings):
        vectors = vectors_of(step, muse.tokenizers[resolution])
        images = muse.decode_vectors(vectors, resolution)
        side = images.shape[-1]
        shade = 0.75 * tokens_to_pixels(step.hidden.float(), side)
        # The confidence of a token that was known before this step is infinite.
        probability = step.confidence.exp().clamp(max=1).float()
        probability_image = 2 * tokens_to_pixels(probability, side) - 1
        yield images * (1 - shade) + 0.55 * shade, probability_image.expand(-1, 3, -1, -1)


def tokens_to_pixels(values: torch.Tensor, side: int) -> torch.Tensor:
    """Show one value per token (B, N) of a square grid as an image (B, 1, side, side)."""
    grid = int(values.shape[1] ** 0.5)
    f = side // grid
    return repeat(values, "B (h w) -> B 1 (h f) (w g)", h=grid, f=f, g=f)


def decoding_gif(
    muse: Muse, prompts: list[str], path: str | Path, cell: int = 160, **settings: Any
) -> int:
    """Write the decoding of some prompts as a GIF; returns the number of frames.

    A frame shows every guess, and its probability below. If the name does not end in .gif, the
    frames are drawn side by side, at half the size. `settings` are those of `Muse.steps`.
    """
    animated = Path(path).suffix.lower() == ".gif"
    if not animated:
        cell //= 2
    frames = [
        sheet([images, probabilities], prompts, columns=len(prompts), cell=cell)
        for images, probabilities in decoding_frames(muse, prompts, **settings)
    ]
    if animated:
        # In milliseconds; the last frame stays longest.
        durations = [220] * (len(frames) - 1) + [2500]
        options = {"append_images": frames[1:], "duration": durations, "loop": 0}
        save_image(frames[0], Path(path), save_all=True, **options)
    else:
        titles = [f"step {k + 1}" for k in range(len(frames))]
        save_image(beside(frames, titles, scale=1), Path(path))
    return len(frames)
