"""One step of parallel decoding, as it happens in a small model: four views of one token grid."""

from dataclasses import replace

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from minimuse.drawings.architecture import token_colours
from minimuse.drawings.boxes import HIDDEN, QUIET, arrow, canvas, token_grid, write

from minimuse import Muse
from minimuse.decode import Step

SIDE = 1.9  # of a grid, in inches


def decoding_step(
    muse: Muse, caption: str, number: int = 5, steps: int = 8, seed: int = 0
) -> Figure:
    """Step `number` (from 1) of `steps` of the base model, without noise on the choice.

    The views: what the model sees, a guess for each hidden token, how confident it is of each, and
    what is kept.
    """
    sampling = replace(muse.config.sampling, steps=steps, choice_temperature=0.0)
    all_steps = muse.steps([caption], sampling=sampling, seed=seed)
    low_steps = [step for resolution, step in all_steps if resolution == "low"]
    before, after = low_steps[number - 2], low_steps[number - 1]
    grid = muse.config.tokenizer.grid
    guesses = token_colours(muse.pixels(after.ids, "low"), grid)
    kept = int((~after.hidden).sum()) - int((~before.hidden).sum())

    figure, axes = canvas(10.6, 3.0)
    places = (1.15, 3.9, 6.65, 9.4)
    seen = hide(guesses, before.hidden)
    views = (seen, guesses, seen, hide(guesses, after.hidden))
    for x, colours in zip(places, views, strict=True):
        token_grid(axes, x, 1.25, SIDE, colours)
    for start, end in zip(places, places[1:], strict=False):
        arrow(axes, (start + SIDE / 2 + 0.1, 1.25), (end - SIDE / 2 - 0.1, 1.25))
    write_confidences(axes, places[2], after, grid)
    titles = (
        f"1. step {number} of {steps} begins:\n{int(before.hidden.sum())} tokens are hidden",
        "2. sample an id for\neach hidden token",
        "3. the probability of\neach sampled id",
        f"4. keep the {kept} most probable,\nhide the others again",
    )
    for x, words in zip(places, titles, strict=True):
        write(axes, x, 2.62, words, size=9)
    write(axes, 5.3, 0.12, f'"{caption}"', QUIET, size=8)
    return figure


def hide(colours: np.ndarray, hidden: torch.Tensor) -> np.ndarray:
    """The colours (h, w, 3) of tokens, with grey for those of hidden (1, N)."""
    shown = colours.copy()
    shown[hidden[0].reshape(shown.shape[:2]).numpy()] = HIDDEN
    return shown


def write_confidences(axes: Axes, x: float, step: Step, grid: int) -> None:
    """The probability of each guess into its cell; those that are kept in bold."""
    cell = SIDE / grid
    for i, log_p in enumerate(step.confidence[0].tolist()):
        if log_p == float("inf"):
            continue  # known before this step
        row, column = divmod(i, grid)
        at_x = x - SIDE / 2 + (column + 0.5) * cell
        at_y = 1.25 + SIDE / 2 - (row + 0.5) * cell
        weight = "normal" if step.hidden[0, i] else "bold"
        write(
            axes,
            at_x,
            at_y,
            f"{np.exp(log_p):.2f}"[1:] if log_p < -0.005 else "1.0",
            size=8,
            weight=weight,
        )
