import argparse
import typing
from collections.abc import Callable
from pathlib import Path

from minimuse.cli.demo import demo
from minimuse.cli.describe import show_costs
from minimuse.cli.draw import run_edit, run_generate
from minimuse.cli.evaluate import tell
from minimuse.cli.lessons import run_check, run_notebooks
from minimuse.cli.progress import show_progress
from minimuse.cli.train import run_train
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing import config as configs
from minimuse.runs import parallel
from minimuse.runs.stages import STAGES, fill_cache


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
        lambda args: demo(args.out, args.preset, args.seed, args.resume, show_progress),
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
        lambda args: show_progress(fill_cache(args.out, args.device)),
        "compute token ids and text embeddings once, as files",
    )
    p.add_argument(
        "--out", type=Path, required=True, help="a model directory that has its tokenizers"
    )
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    p = command(
        "describe",
        lambda args: show_costs(args.preset, args.t5, args.json),
        "parameters, arithmetic and memory of a preset, from shapes alone",
    )
    p.add_argument("preset", choices=configs.PRESETS)
    p.add_argument("--t5", type=Path, help="a directory with another text encoder's config.json")
    p.add_argument("--json", action="store_true", help="plain numbers")
    p = command("check", run_check, "do your functions in lessons/exercises do what they should?")
    p.add_argument("lesson", nargs="?", help="such as 04; left out: how far you are in all of them")
    p.add_argument("--package", action="store_true", help="look at the package's functions instead")
    command("notebooks", run_notebooks, "write the lessons as Jupyter notebooks").add_argument(
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
