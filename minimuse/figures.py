"""Pictures of pictures: sheets with captions, and the tokens of one image appearing as a GIF."""

import textwrap
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from minimuse.muse import Muse, to_pil

PAPER, INK = (255, 255, 255), (40, 40, 40)


def sheet(rows: list[torch.Tensor], captions: list[str], columns: int = 8, cell: int = 128, titles: tuple[str, ...] = ()) -> Image.Image:
    """Each caption's pictures, one of each batch in `rows` (B, 3, H, W), above one another; titles, in the margin, name the rows."""
    font, line, gap = ImageFont.load_default(11), 13, 6
    texts = [textwrap.wrap(c, cell // 6) or ["(no caption)"] for c in captions]
    lines = max(map(len, texts))
    block = len(rows) * (cell + 2) + lines * line + 2 * gap
    margin = 64 if titles else 0
    columns = min(columns, len(captions))
    page = Image.new("RGB", (margin + columns * (cell + gap) + gap, -(-len(captions) // columns) * block + gap), PAPER)
    pen = ImageDraw.Draw(page)
    pictures = [to_pil(row) for row in rows]
    for i, text in enumerate(texts):
        x, y = margin + gap + i % columns * (cell + gap), gap + i // columns * block
        for j, row in enumerate(pictures):
            page.paste(row[i].resize((cell, cell), Image.Resampling.NEAREST), (x, y + j * (cell + 2)))
            if titles and i % columns == 0:
                pen.text((gap, y + j * (cell + 2) + cell // 2), titles[j], INK, font)
        for j, words in enumerate(text):
            pen.text((x, y + len(rows) * (cell + 2) + j * line), words, INK, font)
    return page


def decoding_gif(muse: Muse, prompts: list[str], path: str | Path, cell: int = 160, **settings) -> int:
    """Write the decoding of some prompts as a GIF, low-res passes first; returns the number of frames. Shaded: hidden again."""
    frames = []
    for resolution, step in muse.steps(prompts, **settings):
        images = muse.pixels(step.ids, resolution)
        grid = int(step.ids.shape[1] ** 0.5)
        shade = step.hidden.view(-1, 1, grid, grid).float()
        shade = torch.nn.functional.interpolate(shade, size=images.shape[-2:])
        images = images * (1 - 0.75 * shade) + 0.55 * 0.75 * shade
        frames.append(sheet([images], prompts, len(prompts), cell))
    times = [220] * (len(frames) - 1) + [2500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)
    return len(frames)
