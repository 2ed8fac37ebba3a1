"""`minimuse demo`: train the toy Muse on drawn scenes, from scratch, then measure it and draw.

    minimuse demo --out runs/demo

The folder OUT then holds a model, and what `minimuse evaluate` writes: report.json, report.md,
samples.png (held-out captions) and decoding.gif. While it trains, log.jsonl and watch/ grow there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from minimuse.cli.evaluate import alignment_lines, check_outputs, evaluate
from minimuse.cli.progress import show_progress
from minimuse.muse import Muse
from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.files import write_json
from minimuse.plumbing.status import status
from minimuse.runs.directory import check_resumable
from minimuse.runs.rehearsal import check_trainable
from minimuse.runs.stages import STAGES
from minimuse.runs.workers import TrainingJob, one_after_another, side_by_side


def run_demo(args: argparse.Namespace) -> None:
    """Run the demo and print in how many images each attribute is right."""
    device = chosen_device(args.device)
    report = demo(args.out, args.preset, args.seed, args.resume, device)
    print(alignment_lines(report))
    print(f"wrote {args.out}/samples.png, {args.out}/decoding.gif and {args.out}/report.json")


def demo(
    out: Path, preset: str, seed: int, resume: bool, device: str = "cpu", n: int = 256
) -> dict[str, Any]:
    """Train all stages into the folder `out`, measure `n` held-out images, and write the report.

    On a CPU the stages share the cores; another device trains them one after another.
    Returns the report. Its "seconds" are those of this call alone, if it resumes another.
    """
    if resume:
        check_resumable(out)
    check_outputs(out)
    start = time.monotonic()
    with status("checking that the model fits into memory"):
        check_trainable(PRESETS[preset], STAGES, "shapes", device)
    job = TrainingJob(out, PRESETS[preset], "shapes", "t5-toy", seed, resume, show_progress)
    if device == "cpu":
        seconds, stages = side_by_side(job)
    else:
        seconds, stages = one_after_another(job, device)
    trained = time.monotonic()
    measures = evaluate(Muse.load(out, device), out, n, splits=("heldout",))
    end = time.monotonic()
    seconds["report"] = round(end - trained, 1)
    seconds["total"] = round(end - start, 1)
    report = {"seconds": seconds, "stages": stages} | measures
    write_json(out / "report.json", report)
    return report
