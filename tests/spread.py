"""Trains a stage and writes the metrics of every step: what tests/test_parallel.py starts in one process or, by torchrun, in several.

    python tests/spread.py STAGE MODEL METRICS STEPS [die]

Stops after STEPS; with "die" it is killed while it writes the checkpoint of the step before.
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from minimuse import train
from minimuse.plumbing import checkpoint, collectives, parts, t5_files
from minimuse.plumbing.config import from_json
from minimuse.runs import parallel, stages

torch.backends.cpu.get_cpu_capability = lambda: (
    "AVX2"
)  # fp32, not bf16: see `fp32` in test_parallel.py
stage, out, metrics, stop = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
device, about = parallel.begin("cpu"), parts.read_about(out)
train.SAVE_EVERY, save_file, written = (
    -1e9,
    checkpoint.save_file,
    [],
)  # a checkpoint after each step


def dies(tensors, path, metadata):
    written.append(path)
    if len(written) < stop:
        return save_file(tensors, path, metadata)
    save_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)
    os.kill(os.getpid(), signal.SIGKILL)


if sys.argv[5:]:
    checkpoint.save_file = dies
config, name = from_json(about["config"]), about["text"]["name"]
text, found = t5_files.load_t5(name), []
for record in (
    records := stages.train_all(
        (stage,), out, config, about["data"], text, name, about["seed"], device, resume=True
    )
):
    found.append({k: float(v) for k, v in record.metrics.items()})
    if record.step == stop < record.steps:
        break
records.close()
if collectives.rank_and_size()[0] == 0:
    metrics.write_text(json.dumps(found))
del records
parallel.end()
