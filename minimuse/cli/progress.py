"""Progress bars for training."""

from collections.abc import Iterable

import torch
from tqdm import tqdm

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
            bar.update(1)
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
