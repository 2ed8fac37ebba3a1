"""Which part of Muse is finetuned, and how a hidden channel is copied."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimuse.drawings.boxes import (
    DATA,
    FROZEN,
    LEARNT,
    QUIET,
    arrow,
    bent_arrow,
    box,
    canvas,
    write,
)


def what_is_trained() -> Figure:
    """The high-res tokens: which parts define, predict and read them, and which one is trained."""
    figure, axes = canvas(9.4, 2.5)
    middle, top, bottom = 1.25, 1.9, 0.6
    tokens, decoder, image, loss = 4.3, 6.0, 7.4, 8.7
    write(axes, 0.6, top, "images", size=9)
    write(axes, 0.6, bottom, "captions", size=9)
    box(axes, 2.2, top, 1.6, 0.6, "encoder and\ncodebook", FROZEN, size=9)
    box(axes, 2.2, bottom, 1.6, 0.6, "T5 and both\ntransformers", FROZEN, size=9)
    box(axes, tokens, middle, 1.1, 0.6, "high-res\ntokens", DATA, size=9)
    box(axes, decoder, middle, 1.1, 0.6, "decoder", LEARNT, size=9)
    write(axes, image, middle, "image", size=9)
    box(axes, loss, middle, 1.0, 0.6, "loss", DATA, size=9)
    for row, what, edge in ((top, "define", 0.3), (bottom, "predict", -0.3)):
        arrow(axes, (1.0, row), (1.4, row))
        bent_arrow(axes, (3.0, row), (tokens, row), (tokens, middle + edge))
        write(axes, 3.6, row + 0.15, what, QUIET, size=8)
    arrow(axes, (tokens + 0.55, middle), (decoder - 0.55, middle))
    write(axes, (tokens + decoder) / 2, middle + 0.15, "reads", QUIET, size=8)
    arrow(axes, (decoder + 0.55, middle), (image - 0.3, middle))
    arrow(axes, (image + 0.3, middle), (loss - 0.5, middle))
    bent_arrow(axes, (0.6, top + 0.15), (0.6, 2.35), (loss, 2.35), (loss, middle + 0.3))
    write(axes, 7.4, 2.2, "original images", QUIET, size=8)
    return figure


def widening(value: float, weight: float, fractions: tuple[float, ...]) -> Figure:
    """One hidden channel and its weight, and beside it the copies that share the weight."""
    figure, axes = canvas(7.6, 1.9)
    draw_channels(axes, 0.4, "before", value, [weight])
    draw_channels(axes, 4.2, "after", value, [fraction * weight for fraction in fractions])
    return figure


def draw_channels(axes: Axes, left: float, title: str, value: float, weights: list[float]) -> None:
    """An input, hidden channels of one value, and the output that reads them."""
    middle = 0.8
    inputs, hidden, output = left, left + 1.2, left + 2.7
    write(axes, left, 1.65, title, align="left", weight="bold")
    box(axes, inputs, middle, 0.5, 0.4, "inputs", DATA, size=8)
    total = value * sum(weights)
    box(axes, output, middle, 0.8, 0.4, f"output = {total:g}", DATA, size=8)
    for i, weight in enumerate(weights):
        y = middle + 0.9 * ((len(weights) - 1) / 2 - i)
        box(axes, hidden, y, 0.75, 0.4, f"h = {value:g}", LEARNT, size=8)
        arrow(axes, (inputs + 0.25, middle), (hidden - 0.375, y))
        arrow(axes, (hidden + 0.375, y), (output - 0.4, middle))
        x_of_words = (hidden + output) / 2
        above = 0.13 if y >= middle else -0.17
        write(axes, x_of_words, (y + middle) / 2 + above, f"{weight:g}", size=9)
