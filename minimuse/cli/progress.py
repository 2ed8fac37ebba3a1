"""Progress bars for training and for drawing."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from minimuse.datasets.progress import SILENCE
from minimuse.muse import Muse
from minimuse.train import Record


def show_progress(records: Iterable[Record], row: int = 0) -> None:
    """Consume the records of training and show a bar for each stage, with smoothed metrics.

    `row` is the line of the bar on the screen, for processes that share one.
    """
    bar = None
    smoothed: dict[str, float] = {}
    try:
        for record in records:
            last = record.step == record.steps
            if bar is None:
                bar = open_bar(record, row)
                smoothed = {}
            bar.update(record.step - bar.n)
            # Reading a metric waits for the device, so do it rarely.
            if record.step % 10 == 0 or last:
                update_smoothed(smoothed, record.metrics)
                bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in smoothed.items()))
            if last:
                # Close it now: the next record comes only when the next stage is prepared.
                bar.close()
                bar = None
    finally:
        if bar is not None:
            bar.close()


def open_bar(record: Record, row: int) -> tqdm:
    """A bar for the stage of this record, which may be the first one after resuming."""
    return tqdm(
        total=record.steps,
        initial=record.step - 1,
        desc=record.stage,
        mininterval=1.0,
        position=row,
    )


def update_smoothed(smoothed: dict[str, float], metrics: dict[str, torch.Tensor]) -> None:
    """Update running averages, which weigh each earlier value with 0.8."""
    for name, value in metrics.items():
        previous = smoothed.get(name, float(value))
        smoothed[name] = 0.8 * previous + 0.2 * float(value)


@contextmanager
def passes_shown(muse: Muse) -> Iterator[None]:
    """Inside, after a second, a bar on stderr counts the passes of the model that draw images.

    How many there will be is not known: some samplers end early, and edits take many.
    """
    options = {"delay": SILENCE, "leave": False, "mininterval": 0.2}
    with tqdm(desc="drawing", unit=" passes", **options) as bar:

        def count(*_: object) -> None:
            bar.update(1)

        hooks = [model.register_forward_hook(count) for model in (muse.base, muse.superres)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
