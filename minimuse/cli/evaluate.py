import math
from collections.abc import Iterator
from pathlib import Path

from minimuse.cli.figures import decoding_gif, sheet
from minimuse.metrics.report import report
from minimuse.muse import Muse
from minimuse.plumbing.files import write_json


def cells(found: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Everything measured as (name, text)."""
    for name, value in found.items():
        if isinstance(value, dict) and "value" not in value:
            yield from cells(value, (*path, name))
        else:
            text = (
                f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
                if isinstance(value, dict)
                else f"{value:.3f}"
            )
            yield (
                ", ".join((*path, name)),
                text
                + (
                    f", by chance {value['chance']:.4f}"
                    if isinstance(value, dict) and "chance" in value
                    else ""
                ),
            )


def known(found):
    """null for what is not a number: JSON has no word for the interval of a single picture."""
    if isinstance(found, dict):
        return {k: known(v) for k, v in found.items()}
    return found if not isinstance(found, float) or math.isfinite(found) else None


def evaluate(muse: Muse, out: Path, n: int = 256, splits: tuple[str, ...] | None = None) -> dict:
    """Measure, and draw some of the held-out pictures, into OUT. The report has the held-out pairs at its top, other splits by name."""
    out.mkdir(parents=True, exist_ok=True)
    found, pictures = report(muse, n, splits=splits)
    real, low, high, captions = (
        pictures["heldout"][name][:16] for name in ("real", "low", "high", "captions")
    )
    sheet([real, low, high], captions, titles=("real", "base", "super-res")).save(
        out / "samples.png"
    )
    decoding_gif(muse, captions[:4], out / "decoding.gif", plain=True)
    columns = [dict(cells(measured)) for measured in found.values()]
    names = dict.fromkeys(
        name for column in columns for name in column
    )  # a split may have more measures than another
    rows = [
        ["measure", *found],
        ["---"] * (1 + len(found)),
        *([name, *(column.get(name, "") for column in columns)] for name in names),
    ]
    (out / "report.md").write_text("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
    whole = known(found.pop("heldout") | found)
    write_json(out / "report.json", whole)
    return whole


def in_short(found: dict) -> str:
    """Alignment with captions of shapes, a line for each kind of picture."""
    line = lambda row: "  ".join(
        f"{attribute} {share['value']:.2f}"
        for attribute, share in row.items()
        if share["value"] is not None
    )
    return "\n".join(f"{name:18}{line(row)}" for name, row in found["alignment"].items())


def tell(muse: Muse, out: Path, n: int, as_json: bool) -> None:
    """`evaluate`, and print what it wrote."""
    evaluate(muse, out, n)
    print((out / ("report.json" if as_json else "report.md")).read_text(), end="")
