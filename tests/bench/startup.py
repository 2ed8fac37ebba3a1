"""From nothing to an image: how long `minimuse generate` takes, and what it spends that on.

    python tests/bench/startup.py                       # an idle machine: two minutes
    python tests/bench/startup.py --before 93ebd67 --rounds 9

Unpacks another commit, and draws one image with each version in turns, each time in a new process.
Prints medians, the ratio of each round, and for this version the seconds of each part.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from before_after import BEFORE, unpack

from minimuse.cli.versions import cpu_instructions

PROMPT = "a red apple, noto style"

# Runs in a process of its own, and prints the seconds after each part. They begin when Python has
# started, so they add up to less than a whole command.
PARTS = f"""
import time
begun = time.perf_counter()
seconds = []

def done(part):
    seconds.append((part, time.perf_counter() - begun))

import torch
done("importing PyTorch")
import minimuse.cli.draw
done("importing minimuse")
from minimuse import Muse
muse = Muse.load("toy")
done("loading the model")
(image,) = muse.generate({PROMPT!r}, seed=0)
done("drawing")
image.save("picture.png")
done("saving")
for part, second in seconds:
    print(part, second, sep="=")
"""


def generate(code: Path | None, folder: Path) -> float:
    """Seconds of `minimuse generate`, with the version in `code` or the one that is installed."""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    if code is not None:
        environment["PYTHONPATH"] = str(code)
    arguments = [sys.executable, "-m", "minimuse", "generate", PROMPT, "-o", "picture.png"]
    begun = time.perf_counter()
    subprocess.run(arguments, env=environment, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - begun


def parts(folder: Path) -> dict[str, float]:
    """Seconds of each part, of this version."""
    process = subprocess.run(
        [sys.executable, "-P", "-c", PARTS],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, last = {}, 0.0
    for line in process.stdout.splitlines():
        part, _, at = line.partition("=")
        seconds[part] = float(at) - last
        last = float(at)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help=f"a commit (default {BEFORE})")
    parser.add_argument("--rounds", type=int, default=7, help="(default 7)")
    args = parser.parse_args()
    print(f"CPU: {', '.join(cpu_instructions())}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        code = folder / "code"
        unpack(args.before, code)
        versions = {"before": code, "now": None}
        seconds = {name: [] for name in versions}
        for i in range(args.rounds + 1):
            for name, path in versions.items():
                taken = generate(path, folder)
                if i > 0:  # the first round reads files from the disk
                    seconds[name].append(taken)
        pairs = zip(seconds["now"], seconds["before"], strict=True)
        ratios = sorted(now / before for now, before in pairs)
        for name, values in seconds.items():
            print(
                f"{name}: {statistics.median(values):.2f} s ({min(values):.2f}-{max(values):.2f})"
            )
        print(f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})")
        measured = [parts(folder) for _ in range(args.rounds)]
        for part in measured[0]:
            print(f"{part}: {statistics.median(times[part] for times in measured):.2f} s")


if __name__ == "__main__":
    main()
