"""Trains a stage and writes the metrics of every step; tests/test_parallel.py starts this script.

    python tests/spread.py STAGE MODEL METRICS STEPS [die]

It runs as one process or, by torchrun, as several, and saves a checkpoint after every step. It
stops after STEPS; with "die" it is killed while it writes the checkpoint of that step. Of several
processes, the last is killed.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from minimuse.plumbing import checkpoint, collectives, files, parts, sharded, t5_files
from minimuse.plumbing.config import from_json
from minimuse.runs import parallel, stages


def train_stage(stage: str, out: Path, stop: int, device: str) -> list[dict[str, float]]:
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
        if record.step == stop < record.steps:
            break
    return metrics


def die_in_save(number: int) -> None:
    """Kill this process, or the last of several, in the checkpoint of this number."""
    save_file, write_parts = files.save_file, sharded.write_parts
    rank, processes = collectives.rank_and_size()
    written = []

    def write_parts_or_die(folder, tensors):
        written.append(folder)
        write_parts(folder, tensors)
        if rank == processes - 1 and len(written) == number:
            (own,) = folder.glob(f"shard-{rank + 1:05}-*")
            os.truncate(own, own.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def save_or_die(tensors, path, metadata):
        written.append(path)
        save_file(tensors, path, metadata)
        if len(written) == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    files.save_file = save_or_die
    sharded.write_parts = write_parts_or_die


def avx2() -> str:
    return "AVX2"


def main() -> None:
    stage, out, metrics_path, stop, *die = sys.argv[1:]
    torch.backends.cpu.get_cpu_capability = avx2  # fp32, not bf16: see `fp32` in test_parallel.py
    checkpoint.SAVE_EVERY = -1e9  # a checkpoint after each step
    device = parallel.begin("cpu")
    if die:
        die_in_save(int(stop))
    metrics = train_stage(stage, Path(out), int(stop), device)
    rank, _ = collectives.rank_and_size()
    if rank == 0:
        Path(metrics_path).write_text(json.dumps(metrics))
    parallel.end()


if __name__ == "__main__":
    main()
