"""The commands and their flags: one `add_` function for each command, and its `run_` elsewhere."""

import argparse
import typing
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minimuse.cli.demo import run_demo
from minimuse.cli.describe import run_describe
from minimuse.cli.draw import run_edit, run_generate, run_inpaint, run_outpaint
from minimuse.cli.evaluate import run_evaluate
from minimuse.cli.lessons import run_check, run_notebooks
from minimuse.cli.train import run_cache, run_train
from minimuse.decode import Sampling
from minimuse.plumbing.config import PRESETS
from minimuse.runs.stages import STAGES


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"minimuse: {message} (see: {self.prog} --help)\n")


def make_parser() -> Parser:
    """The parser of the whole command line; the parsed arguments' `run` is the function to call."""
    parser = Parser(
        "minimuse", description="Muse, text to image by masked transformers, small enough to read."
    )
    parser.add_argument("--version", action="version", version=f"minimuse {version('minimuse')}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_demo(commands)
    add_generate(commands)
    add_inpaint(commands)
    add_outpaint(commands)
    add_edit(commands)
    add_evaluate(commands)
    add_train(commands)
    add_cache(commands)
    add_describe(commands)
    add_check(commands)
    add_notebooks(commands)
    return parser


def add_command(commands: Any, name: str, run: Callable, what: str) -> Parser:
    """Add a command. `commands` is what argparse's `add_subparsers` returned."""
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=run)
    return parser


# --- Commands ---
def add_demo(commands: Any) -> None:
    parser = add_command(
        commands, "demo", run_demo, "train a small Muse on drawn shapes, from scratch, and draw"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        help="the folder for the model and the figures (default runs/demo)",
    )
    parser.add_argument(
        "--preset", default="demo", choices=PRESETS, help="sizes and lengths (default demo)"
    )
    add_seed(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out (default: it must be new)",
    )


def add_generate(commands: Any) -> None:
    parser = add_command(commands, "generate", run_generate, "draw images of a prompt")
    parser.add_argument(
        "prompt", help='a caption; "one thing AND another:0.5" composes two prompts, with weights'
    )
    parser.add_argument(
        "--gif",
        type=Path,
        metavar="NAME.gif",
        help="also write the steps of decoding, with the probability of each token, of at most "
        "32 images; side by side if the name ends in .png (default: no such file)",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="key=a,b",
        help="write one sheet with all combinations of settings, such as: steps=4,8 guidance=0,2 "
        "(default: separate images)",
    )
    add_drawing_flags(parser)


def add_inpaint(commands: Any) -> None:
    parser = add_command(commands, "inpaint", run_inpaint, "draw again what is white in a mask")
    parser.add_argument("image", type=Path, help="the image to change")
    parser.add_argument(
        "mask", type=Path, help="an image of the same size, white where to draw again"
    )
    add_edit_prompt(parser)
    add_hole_flags(parser)
    add_sheet(parser)
    add_drawing_flags(parser)


def add_outpaint(commands: Any) -> None:
    parser = add_command(commands, "outpaint", run_outpaint, "draw what lies around an image")
    parser.add_argument("image", type=Path, help="the image in the middle")
    add_edit_prompt(parser)
    add_hole_flags(parser)
    parser.add_argument(
        "--pad",
        required=True,
        help="new pixels on each side: one number, or left,top,right,bottom (required)",
    )
    add_sheet(parser)
    add_drawing_flags(parser)


def add_edit(commands: Any) -> None:
    parser = add_command(
        commands, "edit", run_edit, "change an image towards a prompt, without a mask"
    )
    parser.add_argument("image", type=Path, help="the image to change")
    add_edit_prompt(parser)
    parser.add_argument(
        "--iterations",
        type=int,
        default=50,
        help="how often to draw tokens again; more change the image more (default 50)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.08,
        help="the fraction of the tokens that one iteration draws again (default 0.08)",
    )
    add_sheet(parser)
    add_drawing_flags(parser)


def add_evaluate(commands: Any) -> None:
    parser = add_command(commands, "evaluate", run_evaluate, "measure a model")
    add_model_flags(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the folder for report and figures; it may be the model's (required)",
    )
    parser.add_argument(
        "--n", type=int, default=256, help="at most so many images of each kind (default 256)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json (default: print the table)"
    )


def add_train(commands: Any) -> None:
    parser = add_command(commands, "train", run_train, "train one stage, or all")
    stages = [stage.replace("_", "-") for stage in STAGES]
    parser.add_argument("stage", choices=[*stages, "all"], help="the part to train, or all")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="sizes and lengths (default: those of the model in --out or --start, else toy)",
    )
    parser.add_argument(
        "--data",
        help="shapes, emoji, or a folder of images with captions "
        "(default: that of the model in --out or --start, else emoji)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the directory of the model (required)"
    )
    parser.add_argument(
        "--t5",
        help="the text encoder: a name in data/ or a directory "
        "(default: that of the model in --out or --start, else t5-toy)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="random seed (default: that of the model in --out or --start, else 0)",
    )
    add_device(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what --out holds (default: it must hold no part yet)",
    )
    parser.add_argument(
        "--start",
        help="a model whose tokenizers to keep, and whose other parts to train further "
        "(default: begin with random weights)",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="override settings of the preset, such as base.width=256 (default: none)",
    )


def add_cache(commands: Any) -> None:
    parser = add_command(
        commands, "cache", run_cache, "compute token ids and text embeddings once, as files"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the directory of a model whose tokenizers are trained (required)",
    )
    add_device(parser)


def add_describe(commands: Any) -> None:
    parser = add_command(
        commands,
        "describe",
        run_describe,
        "tell parameters, arithmetic and memory of a preset, from shapes alone",
    )
    parser.add_argument("preset", choices=PRESETS, help="sizes and lengths")
    parser.add_argument(
        "--t5",
        type=Path,
        help="a directory with the config.json of another text encoder "
        "(default: T5-XXL for the paper's presets, else t5-toy)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print plain numbers as JSON (default: a table)"
    )


def add_check(commands: Any) -> None:
    parser = add_command(
        commands, "check", run_check, "check your solutions of the lessons' exercises"
    )
    parser.add_argument(
        "lesson", nargs="?", help="such as 04 (default: how far you are in all lessons)"
    )
    parser.add_argument(
        "--package",
        action="store_true",
        help="check the package's own functions (default: yours, in lessons/exercises)",
    )


def add_notebooks(commands: Any) -> None:
    parser = add_command(
        commands, "notebooks", run_notebooks, "write the lessons as Jupyter notebooks"
    )
    parser.add_argument("folder", type=Path, help="the folder to write them into")


# --- Flags of several commands ---
def add_seed(parser: Parser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="random seed (default 0)")


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default cpu)")


def add_edit_prompt(parser: Parser) -> None:
    parser.add_argument("prompt", help="a caption of the whole image, as it should become")


def add_hole_flags(parser: Parser) -> None:
    parser.add_argument(
        "--keep-pixels",
        action="store_true",
        help="keep the original pixels outside of the hole (default: decode their tokens)",
    )
    parser.add_argument(
        "--tile",
        action="store_true",
        help="allow images of any size, drawn in many windows "
        "(default: at most 4 times the model's own size)",
    )


def add_sheet(parser: Parser) -> None:
    parser.add_argument(
        "--sheet",
        type=Path,
        help="also write before and after side by side, as one image (default: no such file)",
    )


def add_model_flags(parser: Parser) -> None:
    parser.add_argument(
        "--model",
        default="toy",
        help="a directory, or a model in data/: toy draws emoji, toy-shapes scenes (default toy)",
    )
    parser.add_argument(
        "--t5",
        help="the directory of the model's text encoder, if it has moved "
        "(default: where it was in training)",
    )
    add_device(parser)


def add_drawing_flags(parser: Parser) -> None:
    """Add what all commands that draw have in common, and a flag for each field of `Sampling`."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("picture.png"),
        help="the file to write; NAME-0.png, NAME-1.png, ... if --n is above 1 "
        "(default picture.png)",
    )
    parser.add_argument("--n", type=int, default=1, help="how many images to draw (default 1)")
    parser.add_argument(
        "--negative", default="", help="a prompt to steer away from (default: no caption)"
    )
    add_seed(parser)
    add_model_flags(parser)
    group = parser.add_argument_group(
        "sampling", "See minimuse/decode.py. The model's defaults are in its config.json."
    )
    for name, kind in typing.get_type_hints(Sampling).items():
        help_text = f"{SAMPLING_HELP[name]} (default: the model's)"
        options: dict[str, Any] = {"dest": f"sampling.{name}", "help": help_text}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options["metavar"] = name.upper()
        group.add_argument(f"--{name.replace('_', '-')}", **options)


SAMPLING_HELP = {
    "steps": "decoding steps of the base model",
    "guidance": "t in (1 + t) conditional - t unconditional logits; 0 is no guidance",
    "ramp": "let guidance rise linearly to its value",
    "guided": "the fractions of the steps between which guidance is on, such as 0.5,1",
    "temperature": "of the softmax that tokens are drawn from; 0 takes the most likely",
    "top_k": "draw from the k most likely codes only; 0 is all",
    "sampler": "which tokens to keep in a step: confidence, halton, random or entropy",
    "choice_temperature": "of the noise on confidences; it falls to 0 in the last step",
    "entropy_bound": "of the entropy sampler, in nats",
    "law": "the mask schedule, such as cosine or linear",
}
