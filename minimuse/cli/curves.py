"""`minimuse curves OUT`: plot the losses of a training, also while it runs.

    minimuse curves runs/demo

Each stage has a panel: the training loss, every value and their running mean, and the loss of
held-out images. Stages that train on tokens show nats for a hidden token. The others show the loss
of pixels, because only that is measured on held-out images, too.
"""

import argparse
from pathlib import Path
from typing import Any

from minimuse.plumbing.files import check_writable, write_whole
from minimuse.plumbing.parts import PARTS
from minimuse.runs.directory import log_path
from minimuse.runs.log import read_log

BLUE, ORANGE = "#1f6fb2", "#e8710a"
PANEL = (4.4, 3.2)  # inches
NEIGHBOURS = 4  # so many values on each side count in the running mean
LOG_SCALE_FROM = 10  # the ratio of the largest to the smallest loss

Points = tuple[list[int], list[float]]  # steps and values


def run_curves(args: argparse.Namespace) -> None:
    """Draw the curves and print the name of the file."""
    path = args.folder / "curves.png" if args.out is None else args.out
    lines_of = logged_stages(args.folder)
    check_writable(path)
    figure = draw_curves(lines_of)
    # Without a format, matplotlib would write a name without a suffix to another file.
    form = path.suffix[1:].lower() or "png"
    try:
        write_whole(path, lambda temporary: figure.savefig(temporary, format=form))
    except ValueError as error:  # matplotlib does not know the format
        raise ValueError(f"{path} cannot be written ({error})") from None
    print(path)


def logged_stages(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of OUT's log by stage, in the order of the stages.

    Raises a FileNotFoundError if there is no log, and a ValueError if nothing is in it.
    """
    path = log_path(out)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; give the --out of a training, which writes it"
        )
    log = read_log(out)
    stages = [stage for stage in PARTS if stage in log]
    if not stages:
        raise ValueError(f"{path} has no line of a stage yet; wait for the first step")
    return {stage: log[stage] for stage in stages}


def draw_curves(lines_of: dict[str, list[dict[str, Any]]]) -> Any:
    """A matplotlib Figure with one panel for each stage."""
    # Imported here, since the package is optional. No window is needed, so pyplot is not, either.
    from matplotlib.figure import Figure

    count = len(lines_of)
    columns = count if count < 4 else -(-count // 2)
    rows = -(-count // columns)
    size = (columns * PANEL[0], rows * PANEL[1])
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (stage, lines) in zip(panels, lines_of.items(), strict=False):
        draw_panel(panel, stage, lines)
    for panel in panels[count:]:
        panel.axis("off")
    return figure


def draw_panel(panel: Any, stage: str, lines: list[dict[str, Any]]) -> None:
    """Draw the curves of one stage into a matplotlib Axes."""
    from matplotlib.ticker import LogLocator, NullFormatter

    last = lines[-1]
    name = "pixel" if any("pixel" in line for line in lines) else "loss"
    steps, losses = points(lines, name)
    heldout_steps, heldout_losses = points(lines, "heldout_loss")
    panel.plot(steps, losses, color=BLUE, linewidth=0.8, alpha=0.35)
    panel.plot(steps, running_mean(losses), color=BLUE, linewidth=1.8, label="training")
    if heldout_steps:
        # The last marker lies on the edge of the panel.
        style = {
            "color": ORANGE,
            "linewidth": 1.4,
            "marker": "o",
            "markersize": 4,
            "clip_on": False,
        }
        panel.plot(heldout_steps, heldout_losses, label="held-out", **style)
    every = losses + heldout_losses
    if every and min(every) > 0 and max(every) > LOG_SCALE_FROM * min(every):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
    panel.set_xlim(0, last["steps"])
    panel.set_title(f"{stage}, {progress(last)}", fontsize=10)
    panel.set_xlabel("step")
    panel.set_ylabel("pixel loss" if name == "pixel" else "nats for a hidden token")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    if every:
        panel.legend(frameon=False)


def points(lines: list[dict[str, Any]], name: str) -> Points:
    """The steps and values of a metric, without lines that do not have it."""
    with_it = [line for line in lines if name in line]
    return [line["step"] for line in with_it], [line[name] for line in with_it]


def running_mean(values: list[float]) -> list[float]:
    """The mean of each value and its neighbours, as many on both sides where there are as many.

    Near the beginning, where losses fall fast, fewer count.
    """
    means = []
    for i in range(len(values)):
        reach = min(NEIGHBOURS, i)
        window = values[i - reach : i + reach + 1]
        means.append(sum(window) / len(window))
    return means


def progress(line: dict[str, Any]) -> str:
    """How far a stage is, such as "2,300 steps in 95 s" or "460 of 2,300 steps in 19 s"."""
    step, steps, seconds = line["step"], line["steps"], line["seconds"]
    done = f"{steps:,}" if step == steps else f"{step:,} of {steps:,}"
    if seconds < 120:
        time = f"{seconds:.0f} s"
    elif seconds < 7200:
        time = f"{seconds / 60:.0f} min"
    else:
        time = f"{seconds / 3600:.1f} h"
    return f"{done} steps in {time}"
