"""Muse from a caption to an image, with the shapes of a toy and of the paper's model."""

import textwrap

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimuse.drawings.boxes import (
    DATA,
    FROZEN,
    HIDDEN,
    LEARNT,
    QUIET,
    arrow,
    bent_arrow,
    box,
    canvas,
    picture,
    token_grid,
    write,
)

from minimuse import Muse
from minimuse.decode import Sampling
from minimuse.plumbing.config import PRESETS, Config

WIDTH, HEIGHT = 12.0, 4.6
TEXT_ROW, ROW = 3.95, 2.45  # heights of the embeddings' line, and of all parts
# From left to right: the middles of the parts, and of what passes between them.
TEXT, BASE, LOW, SUPERRES, HIGH, DECODER, IMAGE = 2.75, 2.75, 4.55, 6.4, 8.25, 9.85, 11.3
MASKS = 0.85  # the grid of mask tokens, with which drawing begins
SIDE = 1.1  # of a token grid and of the image
BOX = 0.8  # the height of a part


def architecture(
    muse: Muse,
    name: str = "toy-shapes",
    caption: str = "a large blue ring left of a small red square on a grey background",
    seed: int = 0,
) -> Figure:
    """Draw the parts of Muse, what passes between them, and their shapes in two models.

    muse, name: the small model, which draws the tokens and the image of `caption`.
    """
    low, high = muse.draw([caption], seed=seed)
    low_tokens = token_colours(low, muse.config.tokenizer.grid)
    high_tokens = token_colours(high, muse.config.tokenizer_hi.grid)

    figure, axes = canvas(WIDTH, HEIGHT)
    draw_parts(axes, caption)
    draw_arrows(axes)
    token_grid(axes, MASKS, ROW, SIDE, np.full_like(low_tokens, HIDDEN))
    token_grid(axes, LOW, ROW, SIDE, low_tokens)
    token_grid(axes, HIGH, ROW, SIDE, high_tokens)
    picture(axes, IMAGE, ROW, SIDE, to_pixels(high))
    draw_shapes(axes, name, muse.config, row=1.0)
    draw_shapes(axes, "muse-3b", PRESETS["muse-3b"], row=0.4)
    return figure


def draw_parts(axes: Axes, caption: str) -> None:
    """The caption, the networks, and the names of what passes between them."""
    box(axes, MASKS, TEXT_ROW, 1.5, BOX, f'"{in_lines(caption, 4)}"', DATA, size=8)
    box(axes, TEXT, TEXT_ROW, 1.5, BOX, "text encoder\nT5, frozen", FROZEN)
    box(axes, BASE, ROW, 1.5, BOX, "base\ntransformer", LEARNT)
    box(axes, SUPERRES, ROW, 1.6, BOX, "super-resolution\ntransformer", LEARNT)
    box(axes, DECODER, ROW, 1.2, BOX, "VQGAN\ndecoder", LEARNT)
    for x, words in (
        (MASKS, "all tokens hidden"),
        (LOW, "low-res tokens"),
        (HIGH, "high-res tokens"),
        (IMAGE, "image"),
    ):
        write(axes, x, ROW + SIDE / 2 + 0.15, words, size=9)


def draw_arrows(axes: Axes) -> None:
    """What goes into what. Both transformers read the text embeddings."""
    for start, end in (
        (MASKS + SIDE / 2, BASE - 0.75),
        (BASE + 0.75, LOW - SIDE / 2),
        (LOW + SIDE / 2, SUPERRES - 0.8),
        (SUPERRES + 0.8, HIGH - SIDE / 2),
        (HIGH + SIDE / 2, DECODER - 0.6),
        (DECODER + 0.6, IMAGE - SIDE / 2),
    ):
        arrow(axes, (start, ROW), (end, ROW))
    arrow(axes, (MASKS + 0.75, TEXT_ROW), (TEXT - 0.75, TEXT_ROW))
    top = ROW + BOX / 2
    arrow(axes, (BASE, TEXT_ROW - BOX / 2), (BASE, top))
    bent_arrow(axes, (TEXT + 0.75, TEXT_ROW), (SUPERRES, TEXT_ROW), (SUPERRES, top))
    write(axes, LOW, TEXT_ROW + 0.15, "text embeddings", size=9)
    for x in (BASE, SUPERRES):
        write(axes, x, ROW - 0.62, "each pass reveals the\nmost confident tokens", size=9)


def draw_shapes(axes: Axes, name: str, config: Config, row: float) -> None:
    """One line below the diagram: the shapes of one model, each below its part."""
    low, high = config.tokenizer, config.tokenizer_hi
    base, superres = config.base, config.superres
    low_shape = f"{low.grid} x {low.grid}\nof {low.codes:,} codes"
    high_shape = f"{high.grid} x {high.grid}\nof {high.codes:,} codes"
    depth = f"{superres.encoder_layers} + {superres.layers}"
    for x, words in (
        (BASE, f"{base.layers} layers, width {base.width:,},\n{passes(config.sampling)}"),
        (LOW, low_shape),
        (SUPERRES, f"{depth} layers, width {superres.width:,},\n{passes(config.sampling_hi)}"),
        (HIGH, high_shape),
        (DECODER, f"{config.decoder_channels}\nchannels"),
        (IMAGE, f"{2 * low.side} x {2 * low.side}\npixels"),
    ):
        write(axes, x, row, words, QUIET, size=9)
    write(axes, MASKS, row, name, QUIET, size=9, weight="bold")


def passes(sampling: Sampling) -> str:
    """In how many passes all tokens are revealed, in words."""
    return "1 pass" if sampling.steps == 1 else f"{sampling.steps} passes"


def token_colours(images: torch.Tensor, grid: int) -> np.ndarray:
    """The mean colour of the patch of each token of the first image (1, 3, H, W): (h, w, 3)."""
    pixels = to_pixels(images)
    side = len(pixels) // grid
    patches = pixels.reshape(grid, side, grid, side, 3)
    return patches.mean(axis=(1, 3))


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """The first image of (1, 3, H, W) in [-1, 1] as (H, W, 3) in [0, 1]."""
    return (images[0].permute(1, 2, 0).numpy() + 1) / 2


def in_lines(text: str, lines: int) -> str:
    """The text, broken between words into so many lines of about the same length."""
    return "\n".join(textwrap.wrap(text, width=-(-len(text) // lines) + 4))
