"""Is this version as fast as another one? Training steps and drawings of both, taken in turns.

    OMP_NUM_THREADS=2 python tests/bench/speed.py      # ten minutes, on an idle machine
    python tests/bench/speed.py --rounds 20 --only base toy

Unpacks another commit (by default the one before the redesign) and keeps one process of each
version. In every round both do the same work, one after the other, and the order changes from
round to round, so that a machine whose speed drifts is as unfair to one as to the other. Prints
for each piece of work: milliseconds of both, and the ratio before / after (above 1: this version
is faster) with a 95 % interval over rounds.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from before_after import BEFORE, unpack

STAGES = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")
DRAWINGS = {
    "toy-shapes": "a small red circle on a grey background",
    "toy": "a red apple, noto style",
}
STEPS = {"tokenizer": 12, "tokenizer_hi": 12, "base": 4, "superres": 6, "decoder": 10}
IMAGES = 2
SCENES = 512
SLOWER = 0.97  # a ratio whose interval lies wholly below this is a loss of speed


# --- In a worker: one version ---
def stage_runner(stage: str, folder: Path) -> Callable[[], None]:
    """A function that trains some steps of a stage of toy-shapes, in memory."""
    try:
        from minimuse.plumbing.config import from_json
        from minimuse.plumbing.t5_files import load_t5
        from minimuse.runs.stages import train_all
    except ImportError:  # the names before the redesign
        from minimuse.config import from_json

        from minimuse.muse import load_text as load_t5
        from minimuse.train import train_all

    model = Path(os.environ["SPEED_MODEL"])
    out = folder / stage
    out.mkdir()
    for part in ("tokenizer", "tokenizer_hi"):
        if part != stage:
            shutil.copy(model / f"{part}.safetensors", out)
    settings = json.loads((model / "config.json").read_text())["config"]
    settings["scenes"] = SCENES
    settings["stages"][stage]["steps"] = 10**6
    settings["loss"]["perceptual"] = 0.0  # its network is an optional package
    settings["loss"]["quantize_from"] = 0.0
    settings["loss"]["adversarial_from"] = 0.0
    records = train_all((stage,), out, from_json(settings), "shapes", load_t5("t5-toy"), "t5-toy")

    def run() -> None:
        for _ in range(STEPS[stage]):
            next(records)

    return run


def drawing_runner(name: str) -> Callable[[], None]:
    from minimuse import Muse

    muse = Muse.load(name)
    return lambda: muse.generate(DRAWINGS[name], n=IMAGES, seed=1)


def work() -> None:
    """Read the name of a piece of work from each line of input, do it, and print its seconds."""
    runners = {}
    with tempfile.TemporaryDirectory() as temporary:
        for line in sys.stdin:
            name = line.strip()
            if name not in runners:
                is_stage = name in STAGES
                runners[name] = (
                    stage_runner(name, Path(temporary)) if is_stage else drawing_runner(name)
                )
                runners[name]()  # the first time is slower: memory, kernels
            begun = time.perf_counter()
            runners[name]()
            print(f"seconds {time.perf_counter() - begun}", flush=True)
        os._exit(0)  # closing the training iterators would write their checkpoints


# --- The parent ---
class Worker:
    """One version in a process of its own."""

    def __init__(self, code: Path | None, model: Path):
        environment = os.environ | {"SPEED_MODEL": str(model)}
        if code:
            environment["PYTHONPATH"] = str(code)
        arguments = [sys.executable, __file__, "--work"]
        self.process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, name: str) -> float:
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit(f"a worker died while it did {name}")


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """Mean of the ratios, and the ends of its 95 % interval (Student's t is near 2.1 here)."""
    values = torch.tensor(ratios, dtype=torch.float64)
    mean = float(values.mean())
    error = 2.13 * float(values.std()) / len(ratios) ** 0.5
    return mean, mean - error, mean + error


def compare(name: str, workers: dict[str, Worker], rounds: int) -> bool:
    """Do one piece of work in turns, print its times, and say whether this version is slower."""
    seconds = {"before": [], "after": []}
    for i in range(rounds):
        order = ("before", "after") if i % 2 == 0 else ("after", "before")
        for version in order:
            seconds[version].append(workers[version].seconds(name))
    ratios = [b / a for b, a in zip(seconds["before"], seconds["after"], strict=True)]
    mean, low, high = interval(ratios)
    old, new = (1000 * sorted(s)[len(s) // 2] for s in seconds.values())
    print(
        f"{name:14} {old:8.1f} ms, now {new:8.1f} ms, ratio {mean:.3f} ({low:.3f} to {high:.3f})",
        flush=True,
    )
    return high < SLOWER


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help=f"a commit (default {BEFORE})")
    parser.add_argument("--rounds", type=int, default=16, help="(default 16)")
    names = (*STAGES, *DRAWINGS)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work()
        return
    with tempfile.TemporaryDirectory() as temporary:
        code = Path(temporary) / "code"
        unpack(args.before, code)
        model = code / "data" / "toy-shapes"
        workers = {"before": Worker(code, model), "after": Worker(None, model)}
        slower = [name for name in args.only if compare(name, workers, args.rounds)]
        for worker in workers.values():
            worker.process.kill()
    raise SystemExit(f"slower than before: {', '.join(slower)}" if slower else 0)


if __name__ == "__main__":
    main()
