"""Sheets of images with captions.

from minimuse.runs.sheet import sheet
sheet([images], captions, columns=4).save("sheet.png")
"""

import textwrap

import torch
from PIL import Image, ImageDraw, ImageFont

from minimuse.data import to_pil
from minimuse.plumbing.ranges import check_arguments

WHITE = (255, 255, 255)
TEXT_COLOUR = (40, 40, 40)
FONT_SIZE = 11
# All in pixels: between cells, between images of one cell, for the titles of rows, of a text line.
GAP = 6
ROW_GAP = 2
MARGIN = 64
LINE_HEIGHT = 13


def sheet(
    rows: list[torch.Tensor],
    captions: list[str],
    columns: int = 8,
    cell: int = 128,
    titles: tuple[str, ...] = (),
) -> Image.Image:
    """Draw a page with one cell for each caption: image i of every batch, one below the other.

    `rows` are batches (B, 3, H, W) in [-1, 1], `cell` is the width of an image in pixels, `titles`
    name the batches in a margin on the left.
    """
    check_arguments(columns=columns, cell=cell)
    font = ImageFont.load_default(FONT_SIZE)
    columns = min(columns, len(captions))
    margin = MARGIN if titles else 0
    # A letter is about 6 pixels wide.
    texts = [textwrap.wrap(caption, cell // 6) or ["(no caption)"] for caption in captions]
    images_height = len(rows) * (cell + ROW_GAP)
    text_height = max(len(lines) for lines in texts) * LINE_HEIGHT
    block_height = images_height + text_height + 2 * GAP
    blocks = -(-len(captions) // columns)  # rounded up
    size = (margin + columns * (cell + GAP) + GAP, blocks * block_height + GAP)
    page = Image.new("RGB", size, WHITE)
    pen = ImageDraw.Draw(page)
    batches = [to_pil(row) for row in rows]
    for i, lines in enumerate(texts):
        block, column = divmod(i, columns)
        x = margin + GAP + column * (cell + GAP)
        y = GAP + block * block_height
        for j, images in enumerate(batches):
            image_y = y + j * (cell + ROW_GAP)
            page.paste(images[i].resize((cell, cell), Image.Resampling.NEAREST), (x, image_y))
            if titles and column == 0:
                pen.text((GAP, image_y + cell // 2), titles[j], TEXT_COLOUR, font)
        for j, line in enumerate(lines):
            pen.text((x, y + images_height + j * LINE_HEIGHT), line, TEXT_COLOUR, font)
    return page
