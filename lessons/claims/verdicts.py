"""The verdicts of the claims, from the figures of each seed that are committed. Nothing is trained.

    PYTHONPATH=data/recipes python lessons/claims/verdicts.py

lessons/claims/results/CLAIM.json is what CLAIM.py has written to OUT/CLAIM.json; a script that can
draw with several models has written CLAIM-MODEL.json. The verdicts are those that the script would
print. Those about rivals (autoregression, diffusion, pixels) also name times, so they need the
times beside the figures: CLAIM-cpu-times.json. A script without verdicts is left out: frontier.py
has only tables.
"""

import importlib
import json
from argparse import ArgumentParser
from pathlib import Path

SCRIPTS = Path(__file__).parent
RESULTS = SCRIPTS / "results"
WITH_MODELS = ("corrected", "frontier", "reuse")  # scripts whose files have a model in their name


def verdicts_of(path: Path) -> list[str]:
    """The verdicts of one script, from the file of its figures."""
    script = importlib.import_module(script_of(path))
    done = json.loads(path.read_text())
    if hasattr(script, "RIVAL"):
        direct = importlib.import_module("direct")
        times = json.loads(path.with_name(f"{path.stem}-cpu-times.json").read_text())
        return direct.comparison(script.RIVAL, done, times).verdicts()
    if hasattr(script, "verdicts"):
        return script.verdicts(done)
    return []


def script_of(path: Path) -> str | None:
    """The name of the script that wrote a file of figures; None if the file is another one."""
    claim, _, _ = path.stem.partition("-")
    name = claim if claim in WITH_MODELS else path.stem
    return name if (SCRIPTS / f"{name}.py").is_file() else None


def claims_in(results: Path) -> list[Path]:
    """The files of figures."""
    return [path for path in sorted(results.glob("*.json")) if script_of(path)]


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = parser.parse_args().results
    paths = claims_in(results)
    if not paths:
        raise SystemExit(f"{results} has no figures yet")
    for path in paths:
        lines = verdicts_of(path)
        if lines:
            print("\n".join([f"{path.stem}:", *lines, ""]))


if __name__ == "__main__":
    main()
