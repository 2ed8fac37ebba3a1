"""Is the demo's model as good as before? Train it with two versions, several seeds, in one sitting.

    python tests/bench/demo.py --before 1541068 --out runs/demos              # about an hour
    python tests/bench/demo.py --before 1541068 --out runs/demos --part 0.33  # a third of the steps

For each seed it runs `train all --preset demo` and `evaluate` with another commit, then with the
code that is installed, so that both meet the same machine at the same time. It prints in how many
held-out images each attribute is right, with its 95 % interval, and exits with 1 if "all" of the
present version lies below the interval of the other. What is finished in --out is not repeated.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from before_after import unpack

from minimuse.metrics.intervals import wilson
from minimuse.plumbing.config import PRESETS
from minimuse.runs.stages import STAGES

ATTRIBUTES = ("shape", "colour", "size", "count", "relation", "all")


def steps_of(part: float, preset: str) -> list[str]:
    """Settings that shorten every stage of a preset to a part of its steps."""
    stages = PRESETS[preset].stages
    steps = {stage: round(part * getattr(stages, stage).steps) for stage in STAGES}
    return [f"stages.{stage}.steps={max(1, count)}" for stage, count in steps.items()]


def run(code: Path | None, *argv: str) -> None:
    """Run a command of the version in the folder `code`, or of the one that is installed."""
    subprocess.run([sys.executable, "-m", "minimuse", *argv], env=environment(code), check=True)


def environment(code: Path | None) -> dict[str, str]:
    """Variables with which Python imports the version in the folder `code`, or the installed one.

    Otherwise `python -m` would look into the current directory first, which may be a clone.
    """
    variables = os.environ | {"PYTHONSAFEPATH": "1"}
    if code is not None:
        variables["PYTHONPATH"] = str(code.resolve())
    return variables


def check_version(code: Path | None) -> None:
    """Raise a RuntimeError if it is not the code in this folder that would run."""
    line = [sys.executable, "-c", "import minimuse; print(minimuse.__file__)"]
    done = subprocess.run(
        line, env=environment(code), check=True, stdout=subprocess.PIPE, text=True
    )
    imported = Path(done.stdout.strip()).resolve()
    print("code:", imported.parent)
    if code is not None and not imported.is_relative_to(code.resolve()):
        raise RuntimeError(f"{imported} would run, and not what is in {code}")


def measured(
    code: Path | None, out: Path, seed: int, part: float, preset: str, n: int
) -> dict[str, dict]:
    """Train and measure a model, unless OUT has its report; the alignment of its images."""
    report = out / "report" / "report.json"
    if not report.is_file():
        settings = steps_of(part, preset) if part != 1 else []
        train = ["train", "all", "--preset", preset, "--data", "shapes", "--seed", str(seed)]
        resume = ["--resume"] if (out / "config.json").is_file() else []
        run(code, *train, "--out", str(out), *resume, *settings)
        run(code, "evaluate", "--model", str(out), "--out", str(report.parent), "--n", str(n))
    return json.loads(report.read_text())["alignment"]["generated"]


def pooled(results: list[dict[str, dict]], attribute: str) -> tuple[float, float, float]:
    """The fraction that is right over all seeds, and its 95 % interval."""
    n = sum(result[attribute]["n"] for result in results)
    right = sum(round(result[attribute]["value"] * result[attribute]["n"]) for result in results)
    return right / n, *wilson(right, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="the commit to compare with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", type=float, default=1.0, help="of the steps of every stage")
    parser.add_argument("--n", type=int, default=256, help="held-out images of each seed")
    parser.add_argument("--preset", default="demo", help=argparse.SUPPRESS)
    args = parser.parse_args()
    code = args.out / "code"
    if not code.is_dir():
        code.mkdir(parents=True)
        unpack(args.before, code)
    check_version(code)
    check_version(None)
    results = {"before": [], "after": []}
    for seed in range(args.seeds):
        for version, folder in (("before", code), ("after", None)):
            out = args.out / f"{version}-{seed}"
            results[version].append(measured(folder, out, seed, args.part, args.preset, args.n))
    for attribute in ATTRIBUTES:
        cells = []
        for version in results:
            value, low, high = pooled(results[version], attribute)
            seeds = " ".join(f"{result[attribute]['value']:.2f}" for result in results[version])
            cells.append(f"{version} {value:.3f} ({low:.3f} to {high:.3f}; {seeds})")
        print(f"{attribute:9} {'   '.join(cells)}")
    _, low, _ = pooled(results["before"], "all")
    after, _, _ = pooled(results["after"], "all")
    raise SystemExit(int(after < low))


if __name__ == "__main__":
    main()
