"""How much memory each stage of training takes at its peak, and whether it grows.

    OMP_NUM_THREADS=1 python tests/bench/memory.py   # the emoji toy, 100 steps each: minutes
    OMP_NUM_THREADS=1 python tests/bench/memory.py --preset demo --data shapes --steps 2000

Each stage runs in a process of its own. "Settled" is the memory of the process after a tenth of the
steps (tokenizers grow longer). "Growth" is the slope of a line through its memory from there to the
end. The last column is the slope of what malloc has in use. A leak shows in both. The heap grows
and shrinks by tens of MiB at a time, which shows in the first alone. Linux only: it reads /proc
and asks glibc.
"""

import argparse
import ctypes
import os
import re
import tempfile
from argparse import Namespace
from dataclasses import replace
from multiprocessing import Queue, get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimuse.plumbing.config import PRESETS, Config
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import STAGES, train_all


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM at most so far."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


class Mallinfo2(ctypes.Structure):
    """The statistics of glibc's malloc, in bytes (man mallinfo2)."""

    _fields_ = [
        ("arena", ctypes.c_size_t),
        ("ordblks", ctypes.c_size_t),
        ("smblks", ctypes.c_size_t),
        ("hblks", ctypes.c_size_t),
        ("hblkhd", ctypes.c_size_t),
        ("usmblks", ctypes.c_size_t),
        ("fsmblks", ctypes.c_size_t),
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def in_use() -> float:
    """MiB that malloc has given out: on its heap, and in memory mappings of their own."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    statistics = mallinfo2()
    return (statistics.uordblks + statistics.hblkhd) / 2**20


def train_and_measure(stage: str, out: Path, config: Config, data: str, results: Queue) -> None:
    """Train a stage; put its peak, and about a hundred samples, into the queue."""
    samples = []
    records = train_all((stage,), out, config, data, load_t5("t5-toy"), "t5-toy", resume=True)
    for record in tqdm(records, desc=stage, total=getattr(config.stages, stage).steps):
        if record.step % max(1, record.steps // 100) == 0:
            samples.append((record.step, resident("VmRSS"), in_use()))
    results.put((resident("VmHWM"), samples))


def measure_in_process(stage: str, out: Path, config: Config, data: str) -> tuple[float, list]:
    """The peak of a stage, and its samples (step, resident, in use), in a process of its own."""
    context = get_context("spawn")
    results = context.Queue()
    process = context.Process(target=train_and_measure, args=(stage, out, config, data, results))
    process.start()
    measured = results.get()
    process.join()
    return measured


def row(stage: str, batch: int, peak: float, samples: list) -> str:
    settled = samples[len(samples) // 10 :]
    steps, sizes, used = np.array(settled).T
    growth = 1000 * np.polyfit(steps, sizes, 1)[0]
    leak = 1000 * np.polyfit(steps, used, 1)[0]
    return (
        f"| {stage} | {batch} | {peak:,.0f} | {sizes[0]:,.0f} | {sizes[-1]:,.0f} "
        f"| {growth:+,.1f} | {leak:+,.1f} |"
    )


def arguments() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="toy", choices=PRESETS)
    parser.add_argument("--data", default="emoji")
    parser.add_argument(
        "--stages",
        nargs="+",
        default=STAGES,
        choices=STAGES,
        help="the others are trained for one step, since later stages need them",
    )
    parser.add_argument(
        "--steps", type=int, default=100, help="of each stage: at full length it takes hours"
    )
    return parser.parse_args()


def main():
    args = arguments()
    config = PRESETS[args.preset]
    lengths = {}
    for stage in STAGES:
        steps = args.steps if stage in args.stages else 1
        lengths[stage] = replace(getattr(config.stages, stage), steps=steps)
    config = replace(config, stages=type(config.stages)(**lengths))
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"{args.preset}, {args.data}, {args.steps} steps, threads: {threads}\n")
    head = "stage | batch | peak, MiB | settled | at the end | growth in 1,000 steps | in use"
    print(f"| {head} |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            peak, samples = measure_in_process(stage, Path(folder), config, args.data)
            if stage in args.stages:
                batch = getattr(config.stages, stage).batch
                print(row(stage, batch, peak, samples), flush=True)


if __name__ == "__main__":
    main()
