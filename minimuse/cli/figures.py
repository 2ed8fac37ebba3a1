"""Pictures of pictures: sheets with captions, and the tokens of one image appearing as a GIF."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from minimuse.data import to_pil
from minimuse.muse import Muse

PAPER, INK = (255, 255, 255), (40, 40, 40)


def sheet(
    rows: list[torch.Tensor],
    captions: list[str],
    columns: int = 8,
    cell: int = 128,
    titles: tuple[str, ...] = (),
) -> Image.Image:
    """Each caption's pictures, one of each batch in `rows` (B, 3, H, W), above one another; titles, in the margin, name the rows."""
    font, line, gap = ImageFont.load_default(11), 13, 6
    texts = [textwrap.wrap(c, cell // 6) or ["(no caption)"] for c in captions]
    block = len(rows) * (cell + 2) + max(map(len, texts)) * line + 2 * gap
    margin, columns = 64 if titles else 0, min(columns, len(captions))
    page = Image.new(
        "RGB",
        (margin + columns * (cell + gap) + gap, -(-len(captions) // columns) * block + gap),
        PAPER,
    )
    pen, pictures = ImageDraw.Draw(page), [to_pil(row) for row in rows]
    for i, text in enumerate(texts):
        x, y = margin + gap + i % columns * (cell + gap), gap + i // columns * block
        for j, row in enumerate(pictures):
            page.paste(
                row[i].resize((cell, cell), Image.Resampling.NEAREST), (x, y + j * (cell + 2))
            )
            if titles and i % columns == 0:
                pen.text((gap, y + j * (cell + 2) + cell // 2), titles[j], INK, font)
        for j, words in enumerate(text):
            pen.text((x, y + len(rows) * (cell + 2) + j * line), words, INK, font)
    return page


def decoding_frames(
    muse: Muse, prompts: list[str], **settings
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Decode, and show every pass (B, 3, H, W): all guesses, shaded where they are hidden again; and how probable each was, from black."""
    for resolution, step in muse.steps(prompts, **settings):
        images = muse.pixels(step.ids, resolution)
        grid, side = int(step.ids.shape[1] ** 0.5), images.shape[-1]
        spread = lambda x: (
            x.float()
            .view(-1, 1, grid, grid)
            .repeat_interleave(side // grid, 2)
            .repeat_interleave(side // grid, 3)
        )
        shade = 0.75 * spread(step.hidden)
        probability = step.confidence.exp().clamp(max=1)  # infinite where the token was known
        yield (
            images * (1 - shade) + 0.55 * shade,
            (2 * spread(probability) - 1).expand(-1, 3, -1, -1),
        )


def decoding_gif(
    muse: Muse, prompts: list[str], path: str | Path, cell: int = 160, **settings
) -> int:
    """Write the decoding of some prompts, confidences below, as a GIF, or side by side if the path does not end so; returns how many frames."""
    moving = Path(path).suffix.lower() == ".gif"
    frames = [
        sheet([*pair], prompts, len(prompts), cell if moving else cell // 2)
        for pair in decoding_frames(muse, prompts, **settings)
    ]
    if moving:
        frames[0].save(
            path,
            save_all=True,
            append_images=frames[1:],
            duration=[220] * (len(frames) - 1) + [2500],
            loop=0,
        )
    else:
        beside(frames, [f"pass {k + 1}" for k in range(len(frames))], scale=1).save(path)
    return len(frames)


def beside(pictures: list[Image.Image], titles: list[str], scale: int = 2) -> Image.Image:
    """Pictures of any size in a row, each under its title, enlarged so that pixels can be seen."""
    font, line, gap = ImageFont.load_default(11), 16, 6
    pictures = [
        p.convert("RGB").resize((scale * p.width, scale * p.height), Image.Resampling.NEAREST)
        for p in pictures
    ]
    page, x = (
        Image.new(
            "RGB",
            (
                gap + sum(p.width + gap for p in pictures),
                line + gap + max(p.height for p in pictures),
            ),
            PAPER,
        ),
        gap,
    )
    for picture, title in zip(pictures, titles):
        ImageDraw.Draw(page).text((x, 2), title, INK, font)
        page.paste(picture, (x, line))
        x += picture.width + gap
    return page
