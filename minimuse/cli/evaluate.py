"""`minimuse evaluate`: measure a model, and write figures, a table and a JSON report.

    minimuse evaluate --model toy --out runs/evaluated
    minimuse evaluate --real photos --drawn drawings --out runs/compared      # without a model

The folder OUT then holds report.json, report.md (the same as a table), samples.png (held-out
captions with real and drawn images) and decoding.gif. `minimuse.metrics.report` computes the
measures. Of two folders of images there are only the reports, see `minimuse.metrics.folders`.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minimuse.cli.figures import decoding_gif, sheet
from minimuse.cli.shared_flags import Parser, path
from minimuse.metrics.folders import compare_folders
from minimuse.metrics.report import report
from minimuse.muse import Muse
from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.files import check_writable, save_image, write_json, write_text
from minimuse.plumbing.parts import find_model
from minimuse.plumbing.places import DATA_NAMES, check_apart, data_place
from minimuse.plumbing.ranges import check_arguments
from minimuse.runs import parallel
from minimuse.runs.images import check_has_images
from minimuse.runs.rehearsal import gigabytes, memory_of

MODEL_IMAGES = 256  # of each split, if --n does not say


def add_folder_flags(parser: Parser) -> None:
    """Add the flags that compare two folders of images."""
    parser.add_argument(
        "--real",
        type=path,
        metavar="DIR",
        help="a folder of real images, to compare --drawn with (default: measure a model)",
    )
    parser.add_argument(
        "--drawn",
        type=path,
        metavar="DIR",
        help="a folder of drawn images, all squares of one size (default: measure a model)",
    )
    parser.add_argument(
        "--network",
        type=path,
        metavar="FILE.pt",
        help="of two folders, take the features of this TorchScript file, such as Inception's: "
        "bytes (B, 3, H, W) to (B, C) (default: Lite0, and the distance is not FID but FD-lite0)",
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """Measure a model, or two folders; print the table, or with --json the report."""
    if args.real is not None or args.drawn is not None or args.network is not None:
        run_folders(args)
    else:
        run_model(args)
    name = "report.json" if args.json else "report.md"
    print((args.out / name).read_text(encoding="utf-8"), end="")


def run_folders(args: argparse.Namespace) -> None:
    """Compare the images of --drawn with those of --real, and write both reports."""
    if args.real is None or args.drawn is None:
        raise ValueError("two folders are compared: give --real DIR and --drawn DIR")
    if args.data is not None:
        raise ValueError("--data is for a model; leave it out with --real and --drawn")
    check_writable(args.out / "report.json", args.out / "report.md")
    device = chosen_device(args.device)
    found = compare_folders(args.real, args.drawn, args.network, device, args.n, args.seed)
    count = found["images"]
    what = (
        f"{count['drawn']} drawn and {count['real']} real images of {count['side']} pixels, "
        f"features of {found['network']}"
    )
    write_text(args.out / "report.md", f"{what}\n\n" + markdown_table({"drawn": found["likeness"]}))
    write_json(args.out / "report.json", nan_to_none(found))


def run_model(args: argparse.Namespace) -> None:
    """Measure a model, and write reports and figures."""
    check_outputs(args.out)
    muse = Muse.load(args.model, parallel.begin(args.device), args.t5)
    home = find_model(args.model)
    if muse.about["data"] in DATA_NAMES:
        home = None  # it keeps no images
    if args.data is not None:
        muse.about = muse.about | {"data": data_place(args.data)}
    if muse.about["data"] not in DATA_NAMES:
        check_has_images(muse.about["data"])
        check_apart(args.out, muse.about["data"])
    n = MODEL_IMAGES if args.n is None else args.n
    evaluate(muse, args.out, n, home=home, seed=args.seed)


def check_outputs(out: Path) -> None:
    """Raise an OSError if a file of the report cannot be written into the folder `out`."""
    names = ("report.json", "report.md", "samples.png", "decoding.gif")
    check_writable(*(out / name for name in names))


def evaluate(
    muse: Muse,
    out: Path,
    n: int = MODEL_IMAGES,
    splits: tuple[str, ...] | None = None,
    home: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure at most `n` images of each split, and write report and figures into the folder `out`.

    By default these are all splits that fit the model's data. `home` is the model's directory, if
    it keeps the decoded images of a folder. `seed` is that of the drawings.
    Returns what report.json holds: the measures of the held-out split, and those of every other
    split under its name.
    """
    check_arguments(n=n, seed=seed)
    check_room(muse, n)
    check_outputs(out)
    measures, images = report(muse, n, seed, splits, home)
    draw_samples(muse, images["heldout"], out)
    write_text(out / "report.md", markdown_table(measures))
    other_splits = {split: values for split, values in measures.items() if split != "heldout"}
    whole = nan_to_none(measures["heldout"] | other_splits)
    write_json(out / "report.json", whole)
    return whole


def check_room(muse: Muse, n: int) -> None:
    """Raise a MemoryError if n scenes do not fit into memory. Other data have an end."""
    if muse.about["data"] != "shapes":
        return
    # Real, reconstructed and drawn images as floats, some of them twice.
    bytes_each = 6 * 4 * 3 * muse.config.tokenizer_hi.side**2
    room = memory_of("cpu")
    if n * bytes_each > room:
        raise MemoryError(
            f"n is {n}, which takes {gigabytes(n * bytes_each)}; there are {gigabytes(room)}: "
            f"give at most {int(room // bytes_each)}"
        )


def draw_samples(muse: Muse, images: dict[str, Any], out: Path) -> None:
    """Write samples.png, 16 held-out captions with their images, and decoding.gif of 4 of them."""
    captions = images["captions"][:16]
    rows = [images[name][:16] for name in ("real", "low", "high")]
    page = sheet(rows, captions, titles=("real", "base", "super-res"))
    save_image(page, out / "samples.png")
    decoding_gif(muse, captions[:4], out / "decoding.gif", plain=True)


def markdown_table(measures: dict[str, dict[str, Any]]) -> str:
    """A table with one row for each measure and one column for each split."""
    columns = [dict(table_cells(values)) for values in measures.values()]
    # In the order of the first split; others may have more measures. A dict keeps the order.
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [["measure", *measures], ["---"] * (1 + len(measures))]
    for name in names:
        rows.append([name, *(column.get(name, "") for column in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def table_cells(measures: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield every measure of nested dicts as (name, text), such as ("nll, base", "1.234").

    A leaf is a number, or a dict with a "value" and its interval from "low" to "high".
    """
    for name, value in measures.items():
        full_name = ", ".join((*path, name))
        if not isinstance(value, dict):
            yield full_name, f"{value:.3f}"
        elif "value" not in value:
            yield from table_cells(value, (*path, name))
        else:
            text = f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
            if "chance" in value:
                text += f", by chance {value['chance']:.4f}"
            yield full_name, text


def nan_to_none(value: Any) -> Any:
    """Replace NaN and infinity in nested dicts by None, since JSON cannot hold them.

    They occur, for example, as the interval of a single image.
    """
    if isinstance(value, dict):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def alignment_lines(report: dict[str, Any]) -> str:
    """One line for each kind of image: the fraction that is right in each attribute."""
    lines = []
    for kind, attributes in report["alignment"].items():
        fractions = [
            f"{attribute} {fraction['value']:.2f}"
            for attribute, fraction in attributes.items()
            if fraction["value"] is not None
        ]
        lines.append(f"{kind:18}{'  '.join(fractions)}")
    return "\n".join(lines)
