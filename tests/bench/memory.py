"""How much memory each stage of training takes at its peak, and whether it grows.

    OMP_NUM_THREADS=1 python tests/bench/memory.py                                    # the emoji toy, 100 steps of each stage: minutes
    OMP_NUM_THREADS=1 python tests/bench/memory.py --preset demo --data shapes --steps 2000

Each stage runs in a process of its own. "Settled" is what it holds after a tenth of the steps (tokenizers have more to come); growth
is a line through what it holds from there to the end, and the last column one through what is in use of it: a leak shows in both, the
heap's coming and going, tens of MiB at a time, in the first alone. Linux only: it reads /proc, and asks glibc.
"""

import argparse
import ctypes
import os
import re
import tempfile
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import STAGES, train_all


def held(what: str) -> float:
    """MiB of this process: VmRSS now, or VmHWM at most so far."""
    return int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


class Mallinfo2(ctypes.Structure):
    """What glibc's malloc says of itself, in bytes (man mallinfo2)."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def in_use() -> float:
    """MiB that were asked of malloc and not given back: on its heap, and in mappings of their own."""
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Mallinfo2
    return ((now := ask()).uordblks + now.hblkhd) / 2**20


def work(stage: str, out: Path, config, data: str, answers) -> None:
    seen = []
    records = train_all((stage,), out, config, data, load_t5("t5-toy"), "t5-toy", resume=True)
    for record in tqdm(records, desc=stage, total=getattr(config.stages, stage).steps):
        if record.step % max(1, record.steps // 100) == 0:
            seen.append((record.step, held("VmRSS"), in_use()))
    answers.put((held("VmHWM"), seen))


if __name__ == "__main__":
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--preset", default="toy", choices=PRESETS)
    p.add_argument("--data", default="emoji")
    p.add_argument(
        "--stages",
        nargs="+",
        default=STAGES,
        choices=STAGES,
        help="those left out are trained for one step, to have them",
    )
    p.add_argument(
        "--steps", type=int, default=100, help="of each stage: at whole length it takes hours"
    )
    args = p.parse_args()
    config, server = PRESETS[args.preset], get_context("spawn")
    lengths = {
        s: replace(getattr(config.stages, s), steps=args.steps if s in args.stages else 1)
        for s in STAGES
    }
    config = replace(config, stages=type(config.stages)(**lengths))
    print(
        f"{args.preset}, {args.data}, {args.steps} steps, threads: {os.environ.get('OMP_NUM_THREADS', 'all')}\n"
    )
    print(
        "| stage | batch | peak, MiB | settled | at the end | growth in 1,000 steps | in use |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for stage in STAGES:
            (
                process := server.Process(
                    target=work,
                    args=(stage, Path(folder), config, args.data, answers := server.Queue()),
                )
            ).start()
            peak, seen = answers.get()
            process.join()
            if stage not in args.stages:
                continue
            steps, sizes, used = np.array(seen[len(seen) // 10 :]).T
            growth, leak = (1000 * np.polyfit(steps, x, 1)[0] for x in (sizes, used))
            now = (
                f"{peak:,.0f} | {sizes[0]:,.0f} | {sizes[-1]:,.0f} | {growth:+,.1f} | {leak:+,.1f}"
            )
            print(f"| {stage} | {getattr(config.stages, stage).batch} | {now} |", flush=True)
