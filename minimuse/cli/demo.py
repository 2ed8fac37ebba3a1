import time
from collections.abc import Callable
from pathlib import Path

from minimuse.cli.evaluate import evaluate, in_short
from minimuse.muse import Muse
from minimuse.plumbing import config as configs
from minimuse.plumbing.files import write_json
from minimuse.runs.workers import side_by_side


def demo(
    out: Path, preset: str, seed: int, resume: bool, show: Callable[..., None], n: int = 256
) -> dict:
    """Train, measure, draw; returns the report. `show(records, row)` consumes the records of stages that train in one process."""
    begun = time.monotonic()
    seconds, stages = side_by_side(
        out, configs.PRESETS[preset], "shapes", "t5-toy", seed, resume, show
    )
    trained = time.monotonic()
    found = {"seconds": seconds, "stages": stages} | evaluate(
        Muse.load(out), out, n, splits=("heldout",)
    )
    seconds |= {
        "report": round(time.monotonic() - trained, 1),
        "total": round(time.monotonic() - begun, 1),
    }  # of this call, if it resumed another
    write_json(out / "report.json", found)
    print(f"{in_short(found)}\nwrote {out}/samples.png, {out}/decoding.gif and {out}/report.json")
    return found
