"""The log of a training, OUT/log.jsonl: one JSON object a line, about a hundred lines a stage.

    {"stage": "base", "step": 24, "steps": 2300, "seconds": 2.9, "loss": 4.13, "accuracy": 0.21}

    for line in read_log(out)["base"]:
        print(line["step"], line["loss"])

A line has the metrics of one step. `seconds` is how long the stage has trained, including earlier
runs that were stopped. Lines are only appended. What a resumed or a repeated training writes comes
after what it replaces, and `read_log` leaves out what is replaced.
"""

import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

from minimuse.plumbing.files import append_line
from minimuse.runs.directory import log_path
from minimuse.train import Metrics, Record

LINES = 96  # of a stage, evenly spaced, and one for its first step


def is_moment(step: int, steps: int, moments: int) -> bool:
    """Whether something that happens `moments` times, evenly spaced, happens after this step.

    It happens after the last step, and after every step if there are fewer steps than moments.
    """
    return step * moments // steps > (step - 1) * moments // steps


class TrainingLog:
    """Writes the lines of one stage; and to TensorBoard, if that is installed."""

    def __init__(self, out: Path, stage: str):
        self.out = out
        self.path = log_path(out)
        self.board_path = out / "tensorboard" / stage
        self.stage = stage
        self.board: Any = None
        self.begun = time.monotonic()
        self.seconds_before = 0.0

    def begin(self, step: int) -> None:
        """Begin with this step, the first one of this run.

        The clock goes on from the last line before it. So the seconds between that line and the
        checkpoint are not counted: a hundredth of the stage at most.
        """
        lines = read_log(self.out).get(self.stage, []) if self.path.is_file() else []
        for line in lines:
            if line["step"] < step:
                self.seconds_before = line["seconds"]
        if has_tensorboard():
            # Imported here, since the package is optional.
            from torch.utils.tensorboard import SummaryWriter

            # TensorBoard then hides what an earlier run wrote from this step on.
            self.board = SummaryWriter(str(self.board_path), purge_step=step)

    def is_due(self, record: Record) -> bool:
        """Whether this step gets a line.

        The first step does: its line replaces all lines of an earlier training of this stage.
        """
        return record.step == 1 or is_moment(record.step, record.steps, LINES)

    def write(self, record: Record, metrics: Metrics) -> None:
        """Append a line. Raises an OSError if it cannot be written."""
        numbers = finite_numbers(metrics)
        seconds = self.seconds_before + time.monotonic() - self.begun
        line = {
            "stage": self.stage,
            "step": record.step,
            "steps": record.steps,
            "seconds": round(seconds, 3),
        }
        append_line(self.path, json.dumps(line | numbers))
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, record.step)
            self.board.flush()

    def close(self) -> None:
        """Close the files of TensorBoard."""
        if self.board is not None:
            self.board.close()


def has_tensorboard() -> bool:
    """Whether TensorBoard is installed. A folder of this name in the current directory is none."""
    spec = importlib.util.find_spec("tensorboard")
    return spec is not None and spec.origin is not None


def finite_numbers(metrics: Metrics) -> dict[str, float]:
    """The metrics as numbers of six digits, without NaN and infinity, which JSON does not have."""
    values = {name: float(value) for name, value in metrics.items()}
    return {name: float(f"{v:.6g}") for name, v in values.items() if math.isfinite(v)}


def read_log(out: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of each stage in OUT/log.jsonl, in the order of their steps.

    A line replaces earlier ones of its stage from its step on. Lines that are damaged, such as one
    that a killed process has not finished, are left out. Raises a FileNotFoundError if there is no
    such file.
    """
    lines_of: dict[str, list[dict[str, Any]]] = {}
    for text in log_path(out).read_bytes().splitlines():
        line = parse_line(text)
        if line is None:
            continue
        earlier = lines_of.get(line["stage"], [])
        lines_of[line["stage"]] = [old for old in earlier if old["step"] < line["step"]] + [line]
    return lines_of


def parse_line(text: bytes) -> dict[str, Any] | None:
    """A line of the log; None if it is none."""
    try:
        line = json.loads(text)
        numbers = [line["step"], line["steps"], line["seconds"]]
        is_whole = isinstance(line["stage"], str)
    except (ValueError, KeyError, TypeError):
        return None
    is_whole = is_whole and all(isinstance(number, int | float) for number in numbers)
    return line if is_whole else None
