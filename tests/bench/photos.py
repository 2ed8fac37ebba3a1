"""How long a folder of photographs takes, from the command to the first training step.

    python tests/bench/photos.py                             # 300 photographs of 12 MP, made now
    python tests/bench/photos.py --count 20 --python OTHER   # another version's Python, to compare

Says when the first step was done, the longest time in which nothing was printed, and how long
Ctrl-C took half-way to the first step. The commands run on a terminal of their own, since a pipe
gets no line of what goes on before the first bar. The photographs are made anew; --photos DIR keeps
them.
"""

import argparse
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (4000, 3000)

# A bar of training appears when the first step of its stage is done.
FIRST_STEP = re.compile(rb"tokenizer(_hi)?: +\d+%\|")


def make_photos(folder: Path, count: int) -> None:
    """Write photographs with captions: noise at several sizes, a few megabytes each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        path = folder / f"p{i:04}.jpg"
        if path.exists():
            continue
        rng = np.random.default_rng(i)
        coarse = rng.integers(0, 255, (30, 40, 3)).astype(np.uint8)
        fine = rng.integers(0, 255, (750, 1000, 3)).astype(np.uint8)
        layers = [
            Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
            for noise in (coarse, fine)
        ]
        Image.blend(*layers, 0.2).save(path, quality=90)
        path.with_suffix(".txt").write_text(f"photograph {i}")


def start(python: str, photos: Path, out: Path) -> tuple[subprocess.Popen, int]:
    """Begin a training of all stages; the process, and the file with what its terminal shows."""
    line = [python, "-m", "minimuse", "train", "all", "--preset", "tiny"]
    shown, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))  # without a width, bars are empty
    process = subprocess.Popen(
        [*line, "--data", str(photos), "--out", str(out)],
        stderr=terminal,
        start_new_session=True,
        cwd=out.parent,
    )
    os.close(terminal)
    return process, shown


def time_first_step(shown: int) -> tuple[float, float]:
    """Seconds until the first step is done, and the longest time without a sign before that."""
    begin = last = time.monotonic()
    silence = 0.0
    said = b""
    while not FIRST_STEP.search(said):
        try:
            part = os.read(shown, 2**16)
        except OSError:  # the terminal is closed
            part = b""
        now = time.monotonic()
        silence = max(silence, now - last)
        last = now
        if not part:
            raise RuntimeError(f"it ended: {said.decode(errors='replace')[-500:]}")
        said += part
    return last - begin, silence


def time_stop(process: subprocess.Popen, after: float) -> float:
    """Seconds from Ctrl-C, `after` so many seconds of work, to the end of the process."""
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    begin = time.monotonic()
    process.wait()
    return time.monotonic() - begin


def end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--photos", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        photos = (args.photos or Path(temporary) / "photos").absolute()
        make_photos(photos, args.count)
        megabytes = sum(path.stat().st_size for path in photos.glob("*.jpg")) / 1e6
        print(f"{args.count} photographs of 12 MP, {megabytes:.0f} MB")
        process, shown = start(args.python, photos, Path(temporary) / "first")
        seconds, silence = time_first_step(shown)
        end(process)
        print(f"first step after {seconds:.1f} s; nothing printed for {silence:.1f} s at most")
        process, _ = start(args.python, photos, Path(temporary) / "stopped")
        stopped = time_stop(process, seconds / 2)
        print(f"ended {stopped:.1f} s after Ctrl-C at {seconds / 2:.1f} s")


if __name__ == "__main__":
    main()
