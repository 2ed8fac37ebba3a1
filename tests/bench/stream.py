"""How much memory and time it takes to train from tar files, at two numbers of images.

    python tests/bench/stream.py               # 6,000 and 60,000 images, minutes of one core
    python tests/bench/stream.py --counts 600 --steps 30

Each measurement is a process of its own. Images are PNGs of 64 pixels: a thousand scenes, under as
many names as it takes. What is printed for each number of images:

    index       seconds to index all tar files, when they are opened first
    stream      images a second that the threads read, while nothing else is computed
    step        milliseconds of a step of the low-res tokenizer of the preset
    needs       images a second that such steps take
    waits       the fraction of these steps in which the training waits for images
    cache       seconds of `minimuse cache`
    memory      the largest resident size in MB until then: after PyTorch and the package are
                loaded, after the steps, after the first 4,096 images of the cache, and after all
"""

import argparse
import io
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from PIL import Image

PER_TAR = 1000
SCENES = 1000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[6_000, 60_000])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--readers", type=int, default=1, help="threads that read (default 1)")
    parser.add_argument("--work", help=argparse.SUPPRESS)  # what a process of its own does
    args = parser.parse_args()
    if args.work is not None:
        measure(args, Path(args.work))
        return
    with tempfile.TemporaryDirectory() as folder:
        for count in args.counts:
            root = Path(folder) / str(count)
            write_tars(root / "tars", count)
            options = ["--preset", args.preset, "--steps", str(args.steps)]
            options += ["--readers", str(args.readers), "--work", str(root)]
            subprocess.run([sys.executable, __file__, *options], check=True)


def write_tars(folder: Path, count: int) -> None:
    """Tar files of `count` images with captions."""
    from minimuse.datasets import shapes

    folder.mkdir(parents=True)
    scenes = []
    for number in range(min(SCENES, count)):
        scene = shapes.scene(2 * number, "train")
        buffer = io.BytesIO()
        pixels = shapes.render([scene], 64)[0].permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(buffer, "PNG")
        scenes.append((buffer.getvalue(), shapes.caption(scene).encode()))
    for first in range(0, count, PER_TAR):
        with tarfile.open(folder / f"{first // PER_TAR:06}.tar", "w") as tar:
            for number in range(first, min(first + PER_TAR, count)):
                picture, caption = scenes[number % len(scenes)]
                for ending, contents in (("png", picture), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:08}.{ending}")
                    info.size = len(contents)
                    tar.addfile(info, io.BytesIO(contents))


def measure(args: argparse.Namespace, root: Path) -> None:
    """Index, read, train and cache, and print the measurements as a line of JSON."""
    from minimuse.datasets import stream
    from minimuse.plumbing.config import PRESETS
    from minimuse.plumbing.t5_files import LazyT5
    from minimuse.runs.images import load_images
    from minimuse.runs.stages import fill_cache, train_all

    stream.READERS = args.readers
    waiting = WaitingTime(stream.Stream)
    data, out = str(root / "tars"), root / "out"
    config = PRESETS[args.preset]
    stages = config.stages
    short = {
        "tokenizer": replace(stages.tokenizer, steps=args.steps),
        "tokenizer_hi": replace(stages.tokenizer_hi, steps=8),
    }
    config = replace(config, stages=replace(stages, **short))
    result: dict[str, object] = {"memory": [peak_memory()]}

    begin = time.monotonic()
    images = load_images(config, data, out=out)
    result |= {"images": len(images), "index": round(time.monotonic() - begin, 2)}
    result["stream"] = round(images_a_second(images, 2000))

    seconds, waits = [], []
    arguments = (out, config, data, LazyT5("t5-toy", "cpu"), "t5-toy")
    begin = time.monotonic()
    waiting.seconds = 0.0
    for record in train_all(("tokenizer", "tokenizer_hi"), *arguments):
        if record.stage == "tokenizer":
            seconds.append(time.monotonic() - begin)
            waits.append(waiting.seconds)
        begin = time.monotonic()
        waiting.seconds = 0.0
    # The first steps warm up, and have nothing read ahead. One step places the codes.
    codes_at = round(config.loss.quantize_from * args.steps)
    usual = [i for i in range(5, args.steps) if i != codes_at]
    step = sum(seconds[i] for i in usual) / len(usual)
    result["step"] = round(1000 * step, 1)
    result["needs"] = round(config.stages.tokenizer.batch / step)
    result["waits"] = round(sum(waits[i] for i in usual) / sum(seconds[i] for i in usual), 4)
    result["memory"].append(peak_memory())

    begin = time.monotonic()
    for record in fill_cache(out, "cpu"):
        if record.step == 1:
            result["memory"].append(peak_memory())
    result["cache"] = round(time.monotonic() - begin, 1)
    result["memory"].append(peak_memory())
    print(json.dumps(result), flush=True)


class WaitingTime:
    """Adds up the seconds that a class spends in `batch` and in `expect`."""

    def __init__(self, kind: type):
        self.seconds = 0.0
        for name in ("batch", "expect"):
            setattr(kind, name, self.timed(getattr(kind, name)))

    def timed(self, method):
        def call(*args):
            begin, before = time.monotonic(), self.seconds
            result = method(*args)
            # What a call within this one took counts once.
            self.seconds = before + time.monotonic() - begin
            return result

        return call


def images_a_second(images, count: int) -> float:
    """How fast images are read in the order of training, a batch ahead."""
    order = images.epoch_order(0, "tokenizer", 0, len(images))[:count]
    parts = order.split(50)
    begin = time.monotonic()
    for number, part in enumerate(parts):
        for ahead in parts[number : number + 2]:
            images.expect(ahead)
        images.batch(part)
    return len(order) / (time.monotonic() - begin)


def peak_memory() -> int:
    """The largest resident size of this process until now, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
