"""`minimuse demo`: train the whole of Muse on procedural scenes, on this machine, and draw with it.

Writes OUT/samples.png (captions with combinations never seen in training), OUT/decoding.gif,
OUT/report.json, and the model itself, which `minimuse generate --model OUT` takes.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from minimuse import config as configs
from minimuse.figures import decoding_gif, sheet
from minimuse.metrics import shapes_report
from minimuse.muse import Muse, load_text, write_json
from minimuse.shapes import ATTRIBUTES
from minimuse.train import STAGES, Record, train_all

def demo(out: Path, preset: str, seed: int, resume: bool, show: Callable[[Iterator[Record]], None], n: int = 256) -> dict:
    """Train, measure, draw; returns the report. `show` consumes the records of a stage's training."""
    config, text = configs.preset(preset), load_text("t5-toy")
    times = out / "seconds.json"  # of what is trained already, for a run that is resumed
    seconds = json.loads(times.read_text()) if resume and times.is_file() else {}
    stages = {}
    try:
        show(watch(train_all(STAGES, out, config, "shapes", text, "t5-toy", seed, resume=resume), seconds, stages))
    finally:
        if seconds:
            write_json(times, seconds)

    started = time.monotonic()
    muse = Muse.load(out, text=text)
    report, pictures = shapes_report(muse, n)
    rows = [pictures["low"][:16], pictures["high"][:16]]
    sheet(rows, pictures["captions"][:16], titles=("base", "super-res")).save(out / "samples.png")
    decoding_gif(muse, pictures["captions"][:4], out / "decoding.gif")
    seconds["report"] = round(time.monotonic() - started, 1)
    report = {"seconds": seconds | {"total": round(sum(seconds.values()), 1)}, "stages": stages} | report
    write_json(out / "report.json", report)
    print(summary(report))
    print(f"wrote {out}/samples.png, {out}/decoding.gif and {out}/report.json")
    return report


def watch(records: Iterator[Record], seconds: dict, stages: dict) -> Iterator[Record]:
    """Pass records on, noting the time and the last metrics of each stage (what precedes a stage counts as its own)."""
    before = time.monotonic()
    for record in records:
        now = time.monotonic()
        seconds[record.stage] = round(seconds.get(record.stage, 0) + now - before, 3)
        stages[record.stage] = {k: float(v) for k, v in record.metrics.items()}
        before = now
        yield record


def summary(report: dict) -> str:
    """The alignment table: share of pictures right in each attribute for every object of the caption."""
    lines = [f"{'alignment, held-out combinations':34}" + "".join(f"{a:>11}" for a in ATTRIBUTES)]
    for name, row in report["alignment"].items():
        lines.append(f"{name:34}" + "".join(f"{row[a]['value']:11.3f}" for a in ATTRIBUTES))
    base = report["nll"]["base"]
    lines.append(f"NLL of hidden tokens, all hidden: {base['caption']['1.0']:.2f} with the caption, {base['no caption']['1.0']:.2f} without")
    return "\n".join(lines)
