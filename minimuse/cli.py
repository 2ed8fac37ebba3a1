"""The command line: thin. Every mistake a user can make ends in one line on stderr and exit code 2."""

import argparse
import importlib
import itertools
import os
import shutil
import signal
import sys
import typing
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from minimuse import config as configs
from minimuse import edit, parallel
from minimuse.checkpoint import patiently
from minimuse.data import DATA, read_picture
from minimuse.decode import Sampling
from minimuse.demo import demo, side_by_side
from minimuse.figures import beside, decoding_gif, sheet
from minimuse.muse import Muse, build, find, load_text, read_about
from minimuse.report import tell
from minimuse.train import STAGES, fill_cache, train_all


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(
            2, f"minimuse: {message} (see: {self.prog} --help)\n"
        )  # one line, without argparse's usage block


def parser() -> argparse.ArgumentParser:
    top = Parser(
        "minimuse", description="Muse, text to image by masked transformers, small enough to read."
    )
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, run: Callable, what: str) -> Parser:
        (p := commands.add_parser(name, help=what)).set_defaults(run=run)
        return p

    p = command(
        "demo",
        lambda args: demo(args.out, args.preset, args.seed, args.resume, show),
        "train the toy Muse on shapes, from scratch, and draw",
    )
    p.add_argument("--out", type=Path, default=Path("runs/demo"))
    p.add_argument("--preset", default="demo", choices=configs.PRESETS, help="default demo")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")
    p = command("generate", run_generate, "draw pictures for a prompt")
    p.add_argument("prompt", help='"one thing AND another:0.5" composes prompts, with weights')
    p.add_argument(
        "--gif",
        type=Path,
        help="also write the tokens appearing, with their confidences, of 32 pictures at most; as a strip, if the name ends in .png",
    )
    p.add_argument(
        "--grid",
        nargs="+",
        metavar="key=a,b",
        help="one sheet of all combinations, such as: steps=4,8 guidance=0,2",
    )
    drawing_flags(p)
    for name, what in (
        ("inpaint", "draw anew what is white in a mask"),
        ("outpaint", "draw what lies around a picture"),
        ("edit", "change a picture towards a prompt, without a mask"),
    ):
        p = command(name, run_edit, what)
        p.add_argument("image", type=Path)
        if name == "inpaint":
            p.add_argument("mask", type=Path)
        p.add_argument("prompt", help="of the whole picture, as it should be")
        if name == "edit":
            p.add_argument(
                "--iterations",
                type=int,
                default=50,
                help="more go farther from the picture (default 50)",
            )
            p.add_argument(
                "--share",
                type=float,
                default=0.08,
                help="of the tokens, redrawn in each iteration (default 0.08)",
            )
        else:
            p.add_argument(
                "--keep-pixels",
                action="store_true",
                help="the original pixels outside of the hole, not their tokens' picture",
            )
            p.add_argument(
                "--tile",
                action="store_true",
                help="draw pictures of any size, through many windows",
            )
        if name == "outpaint":
            p.add_argument("--pad", required=True, help="new pixels on each side, or L,T,R,B")
        p.add_argument("--sheet", type=Path, help="also write before and after as one picture")
        drawing_flags(p)
    p = command(
        "evaluate",
        lambda args: tell(
            Muse.load(args.model, parallel.begin(args.device), args.t5), args.out, args.n, args.json
        ),
        "measure a model",
    )
    model_flags(p)
    p.add_argument(
        "--out", type=Path, required=True, help="a directory for the figures; it may be the model's"
    )
    p.add_argument("--n", type=int, default=256, help="pictures of each kind, at most")
    p.add_argument("--json", action="store_true", help="print what report.json has, not the table")
    p = command("train", run_train, "train one stage, or all")
    p.add_argument("stage", choices=[*(s.replace("_", "-") for s in STAGES), "all"])
    p.add_argument("--preset", choices=configs.PRESETS, help="default toy, or what --out holds")
    p.add_argument(
        "--data",
        help="shapes, emoji, or a folder of pictures with captions (default emoji, or what --out holds)",
    )
    p.add_argument("--out", type=Path, required=True, help="the model directory")
    p.add_argument(
        "--t5", default=None, help="text encoder: a name in data/ or a directory (default t5-toy)"
    )
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    p.add_argument("--resume", action="store_true", help="go on with what --out holds")
    p.add_argument(
        "--start", help="a model whose tokenizers to keep, and whose other parts to train further"
    )
    p.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="override the preset, such as base.width=256",
    )
    p = command(
        "cache",
        lambda args: show(fill_cache(args.out, args.device)),
        "compute token ids and text embeddings once, as files",
    )
    p.add_argument(
        "--out", type=Path, required=True, help="a model directory that has its tokenizers"
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    p = command(
        "describe", run_lessons, "parameters, arithmetic and memory of a preset, from shapes alone"
    )
    p.add_argument("preset", choices=configs.PRESETS)
    p.add_argument("--t5", type=Path, help="a directory with another text encoder's config.json")
    p.add_argument("--json", action="store_true", help="plain numbers")
    p = command("check", run_lessons, "do your functions in lessons/exercises do what they should?")
    p.add_argument("lesson", nargs="?", help="such as 04; left out: how far you are in all of them")
    p.add_argument("--package", action="store_true", help="look at the package's functions instead")
    command("notebooks", run_lessons, "write the lessons as Jupyter notebooks").add_argument(
        "folder", type=Path
    )
    return top


def model_flags(p: Parser) -> None:
    p.add_argument(
        "--model",
        default="toy",
        help="a model in data/ (toy draws emoji, toy-shapes scenes), or a directory",
    )
    p.add_argument("--t5", help="the directory of the model's text encoder, if it has moved")
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")


def drawing_flags(p: Parser) -> None:
    """What all commands that draw have in common, and a flag for each field of `Sampling`; the model's config.json has the defaults."""
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("picture.png"),
        help="with --n above 1: NAME-0.png, NAME-1.png, ...",
    )
    p.add_argument("--n", type=int, default=1)
    p.add_argument("--negative", default="", help="a prompt to steer away from")
    p.add_argument("--seed", type=int, default=0)
    model_flags(p)
    group = p.add_argument_group("sampling (see minimuse/decode.py)")
    notes = {
        "steps": "passes of the base model",
        "guidance": "t in (1 + t) conditional - t unconditional; 0 is none",
    }
    for name, kind in typing.get_type_hints(Sampling).items():
        switch = (
            dict(action=argparse.BooleanOptionalAction)
            if kind is bool
            else dict(metavar=name.upper())
        )
        group.add_argument(
            f"--{name.replace('_', '-')}", dest=f"sampling.{name}", help=notes.get(name), **switch
        )


def given(args) -> dict:
    """The sampling that was asked for."""
    asked = {
        name: (getattr(args, f"sampling.{name}"), kind)
        for name, kind in typing.get_type_hints(Sampling).items()
    }
    return {
        name: text if kind is bool else configs.typed(configs.literal(text), kind, name)
        for name, (text, kind) in asked.items()
        if text is not None
    }


def show(records, row: int = 0) -> None:
    """Progress bars: loss, accuracy and the like, smoothed a little. `row`: how far down, where processes share a screen."""
    bar, seen = None, {}
    with ExitStack() as bars:  # closes them, whatever happens
        for record in records:
            if bar is None:
                seen, bar = (
                    {},
                    tqdm(
                        total=record.steps,
                        initial=record.step - 1,
                        desc=record.stage,
                        mininterval=1.0,
                        position=row,
                    ),
                )
                bars.enter_context(bar)
            bar.update(1)
            if (
                record.step % 10 == 0 or record.step == record.steps
            ):  # reading a value waits for the device
                for k, v in record.metrics.items():
                    seen[k] = 0.8 * seen.get(k, float(v)) + 0.2 * float(v)
                bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in seen.items()))
            if (
                record.step == record.steps
            ):  # now: the next record comes after the next stage's preparation
                bar = bar.close()  # None


def outputs(args, *also: Path | None) -> list[Path]:
    """The files that a drawing goes to; what is wrong with them is said before anything is drawn."""
    if args.n < 1:
        raise ValueError(f"--n is {args.n}; draw at least 1 picture")
    names = (
        [args.output]
        if args.n == 1 or getattr(args, "grid", None)
        else [args.output.with_stem(f"{args.output.stem}-{i}") for i in range(args.n)]
    )
    taken = [
        path.resolve()
        for path in (*names, *also, getattr(args, "image", None), getattr(args, "mask", None))
        if path
    ]
    for path in (*names, *(path for path in also if path)):
        if (
            path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".gif")
            or taken.count(path.resolve()) > 1
        ):
            raise ValueError(
                f"{path}: write a .png, .jpg or .webp (a .gif of frames), each under a name of its own, not a given picture's"
            )
        if path.is_dir() or not os.access(
            path if path.exists() else path.resolve().parent, os.W_OK
        ):
            raise OSError(
                f"{path} cannot be written; give a file name, in a directory that exists and is yours"
            )
    return names


def write(pictures: list, paths: list[Path]) -> None:
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
        print(path)


def run_lessons(args) -> int | None:
    """check, describe, notebooks: what serves the lessons stays with them."""
    sys.path[:0] = [str(DATA.parent / folder) for folder in ("tests", "lessons")]
    if args.command == "check":
        return importlib.import_module("exercises.check").check(args.lesson, args.package)
    module = importlib.import_module(args.command)
    module.write(args.folder) if args.command == "notebooks" else module.show(
        args.preset, args.t5, args.json
    )


def run_generate(args) -> None:
    names, muse = (
        outputs(args, args.gif),
        Muse.load(args.model, parallel.begin(args.device), args.t5),
    )
    draw = partial(muse.generate, args.prompt, args.n, args.negative, args.seed)
    write([grid(draw, args.grid, given(args))] if args.grid else draw(**given(args)), names)
    if args.gif:
        sampling, sampling_hi = muse.sampling(**given(args))
        decoding_gif(
            muse,
            [args.prompt] * min(args.n, 32),
            args.gif,
            negative=args.negative,
            seed=args.seed,
            sampling=sampling,
            sampling_hi=sampling_hi,
        )
        print(args.gif)


def grid(draw: Callable[..., list], axes: list[str], settings: dict):
    """A sheet with a picture (n, above one another) for each combination of ["steps=4,8", "guidance=0,2"]."""
    names = typing.get_type_hints(Sampling)
    pairs = [text.partition("=")[::2] for text in axes]
    if wrong := [key for key, values in pairs if key not in names or not values]:
        raise ValueError(f"--grid {wrong[0]}: write key=a,b with a key among {', '.join(names)}")
    cells = list(
        itertools.product(
            *(
                [
                    (key, configs.typed(configs.literal(value), names[key], key))
                    for value in values.split(",")
                ]
                for key, values in pairs
            )
        )
    )
    drawn = [
        torch.stack([edit.pixels_of(picture) for picture in draw(**settings | dict(cell))])
        for cell in tqdm(cells, desc="grid")
    ]
    titles = [", ".join(f"{key} {value}" for key, value in cell) for cell in cells]
    return sheet(list(torch.stack(drawn, dim=1)), titles, columns=pairs[-1][1].count(",") + 1)


def run_edit(args) -> None:
    """inpaint, outpaint, edit."""
    names, muse, before = (
        outputs(args, args.sheet),
        Muse.load(args.model, parallel.begin(args.device), args.t5),
        [read_picture(args.image)],
    )
    how = dict(n=args.n, negative=args.negative, seed=args.seed, **given(args))
    if args.command == "edit":
        drawn = edit.edit(muse, *before, args.prompt, args.iterations, args.share, **how)
    else:
        how |= dict(keep_pixels=args.keep_pixels, tile=args.tile)
        if args.command == "inpaint":
            before.append(read_picture(args.mask))
            drawn = edit.inpaint(muse, *before, args.prompt, **how)
        else:
            pad = configs.typed(configs.literal(f"({args.pad},)"), tuple[int, ...], "--pad")
            if len(pad) not in (1, 4):
                raise ValueError(f"--pad {args.pad}: give one number, or left,top,right,bottom")
            drawn = edit.outpaint(muse, *before, args.prompt, pad * (4 // len(pad)), **how)
    write(drawn, names)
    if args.sheet:
        write(
            [beside([*before, *drawn], ["before", "mask"][: len(before)] + ["after"] * len(drawn))],
            [args.sheet],
        )


def run_train(args) -> tuple | None:
    held = (args.out / "config.json").is_file()
    home = args.out if held else args.start and find(args.start)
    there = read_about(home) if home else {"data": "emoji", "seed": 0, "text": {"name": "t5-toy"}}
    config = (
        configs.from_json(there["config"])
        if home and not args.preset
        else configs.PRESETS[args.preset or "toy"]
    )
    config = configs.override(config, args.settings)
    if args.settings:  # what does not go together is told now, not when its stage begins; text of any width will do
        with torch.device("meta"):
            [build(part, config, 64) for part in STAGES]
    seed = args.seed if args.seed is not None else there["seed"]
    data, name = args.data or there["data"], args.t5 or there["text"]["name"]
    stages = STAGES if args.stage == "all" else (args.stage.replace("-", "_"),)
    device = parallel.begin(args.device)
    learnt = {*stages} - {*STAGES[:2]}
    if (
        args.start
        and not args.resume
        and (held or any((args.out / f"{part}.safetensors").is_file() for part in learnt))
    ):
        raise FileExistsError(
            f"{args.out} holds a model or parts of one; add --resume to go on with it, or start from {args.start} in another --out"
        )
    if args.start and not held:
        has = [part for part in STAGES if (home / f"{part}.safetensors").is_file()]
        if parallel.place()[1] > 1 or not learnt:
            raise ValueError(
                "--start keeps the tokenizers and trains the rest further; begin in one process, with base, superres, decoder or all"
            )
        if lacking := {*stages, *STAGES[:2]} - {*has}:
            raise FileNotFoundError(
                f"{home} has no {' and no '.join(sorted(lacking))}, to start from"
            )
        (args.out / "start").mkdir(parents=True, exist_ok=True)
        for part in has:
            for folder in [args.out / "start"] + [args.out] * (
                part not in learnt
            ):  # `train` looks in start
                shutil.copy(home / f"{part}.safetensors", folder)
        args.resume = True
    if args.stage == "all" and device == "cpu" and parallel.place()[1] == 1:
        return side_by_side(args.out, config, data, name, seed, args.resume, show)
    text = load_text(
        name, "cpu" if (args.out / "cache" / "index.json").is_file() else device
    )  # if it is done, no GPU needs to hold it
    consume = show if parallel.place()[0] == 0 else partial(deque, maxlen=0)
    with patiently():
        consume(train_all(stages, args.out, config, data, text, name, seed, device, args.resume))
    parallel.end()


def main(argv: list[str] | None = None) -> int:
    warnings.showwarning = lambda message, *_: print(f"minimuse: {message}", file=sys.stderr)
    args, rest = parser().parse_known_args(argv)
    if (
        args.command == "train"
    ):  # argparse takes positionals in one place only; key=value may stand anywhere
        args.settings += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        code = args.run(args)
        return code if args.command == "check" else 0
    except KeyboardInterrupt:
        print(
            "minimuse: stopped"
            + "; the same command with --resume goes on" * hasattr(args, "resume"),
            file=sys.stderr,
        )
        return 130
    except (ValueError, OSError, MemoryError, ModuleNotFoundError) as error:
        print("minimuse:", " ".join(str(error).split()), file=sys.stderr)
        return 2
