"""Trains stages and writes the metrics of every step, in one process or in several.

    python tests/spread.py STAGE:STEPS=OUT [STAGE:STEPS=OUT ...] [--die | --die=SECONDS]
    python tests/spread.py cache:IMAGES=OUT [--die]

The tests call `start`, which runs it as one process or, by torchrun, as several. It trains each
stage in its model directory OUT up to STEPS, writes OUT/metrics.json, and saves a checkpoint.
With --die, it saves one after every step. Each stage is killed while it writes that of step STEPS.
(One process trains each stage in a process of its own, and several are killed in the first stage.)
With --die=SECONDS, one of the processes is killed so long after that step.

cache: it writes OUT/cache, with so many images in a shard. With --die, the last process is killed
while it writes its second shard.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Thread

import torch

from minimuse import vq
from minimuse.plumbing import checkpoint, collectives, files, parts, sharded, t5_files
from minimuse.plumbing.config import from_json
from minimuse.runs import cache, parallel, stages

TIMEOUT = 600  # seconds
# With its usual decay, no code dies in so few steps.
RESTLESS = partial(vq.EMAQuantizer, decay=0.8)


def start(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    """Run this script, as one process or as several."""
    torchrun = []
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node", str(processes)]
    command = [sys.executable, *torchrun, __file__, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


def train_stage(
    stage: str, out: Path, stop: int, device: str, die_after: float | None
) -> list[dict[str, float]]:
    """Train a stage up to a step; the metrics of every step."""
    about = parts.read_about(out)
    config, text_name = from_json(about["config"]), about["text"]["name"]
    text = t5_files.load_t5(text_name)
    metrics = []
    records = stages.train_all(
        (stage,), out, config, about["data"], text, text_name, about["seed"], device, resume=True
    )
    for record in records:
        metrics.append({name: float(value) for name, value in record.metrics.items()})
        if record.step == stop and die_after is not None:
            Thread(target=die_later, args=(die_after,), daemon=True).start()
        elif record.step == stop < record.steps and die_after is None:
            record.save()
            break
    if die_after is not None:
        die()
    return metrics


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_later(seconds: float) -> None:
    time.sleep(seconds)
    die()


def die_in_save(number: int) -> None:
    """Kill this process, or the last of several, in the checkpoint of this number."""
    write_parts = sharded.write_parts
    rank, processes = collectives.rank_and_size()
    written = []

    def write_parts_or_die(folder, tensors):
        written.append(folder)
        write_parts(folder, tensors)
        if rank == processes - 1 and len(written) == number:
            (own,) = folder.glob(f"shard-{rank + 1:05}-*")
            os.truncate(own, own.stat().st_size // 2)
            die()

    files.save_file = dying(files.save_file, number)
    sharded.write_parts = write_parts_or_die


def write_cache(out: Path, per_shard: int, dies: bool) -> None:
    """Write OUT/cache; if `dies`, the last process is killed while it writes its second shard."""
    cache.IMAGES_PER_SHARD = per_shard
    rank, processes = collectives.rank_and_size()
    if dies and rank == processes - 1:
        files.save_file = dying(files.save_file, 2)
    for _ in stages.fill_cache(out, "cpu"):
        pass


def dying(save_file: Callable, number: int) -> Callable:
    """A `save_file` that leaves half of the file of this number, and kills the process."""
    written = []

    def save_or_die(tensors, path, metadata):
        written.append(path)
        save_file(tensors, path, metadata)
        if len(written) == number:
            os.truncate(path, path.stat().st_size // 2)
            die()

    return save_or_die


def avx2() -> str:
    return "AVX2"


def main() -> None:
    tasks = [re.fullmatch("(.*?):(.*?)=(.*)", text) for text in sys.argv[1:]]
    option = sys.argv[-1]
    torch.backends.cpu.get_cpu_capability = avx2  # fp32, not bf16: see `as_elsewhere`
    if option.startswith("--die"):
        checkpoint.SAVE_EVERY = -1e9  # a checkpoint after each step
    vq.EMAQuantizer = RESTLESS
    device = parallel.begin("cpu")
    rank, processes = collectives.rank_and_size()
    for task in filter(None, tasks):
        stage, stop, out = task[1], int(task[2]), Path(task[3])
        if stage == "cache":
            write_cache(out, stop, option == "--die")
            continue
        die_after = None
        if option.startswith("--die=") and rank == stop % processes:
            die_after = float(option.removeprefix("--die="))
        if option == "--die":
            if processes == 1 and os.fork() > 0:
                os.wait()
                continue
            die_in_save(stop)
        metrics = train_stage(stage, out, stop, device, die_after)
        if rank == 0:
            (out / "metrics.json").write_text(json.dumps(metrics))
    parallel.end()


if __name__ == "__main__":
    main()
