"""The commands and their flags: one `add_` function for each command, and its `run_` elsewhere."""

from pathlib import Path
from typing import Any

from minimuse.cli.app import run_app
from minimuse.cli.curves import run_curves
from minimuse.cli.demo import run_demo
from minimuse.cli.describe import run_describe
from minimuse.cli.draw import parse_pad, run_edit, run_generate, run_inpaint, run_outpaint
from minimuse.cli.evaluate import add_folder_flags, run_evaluate
from minimuse.cli.lessons import run_check, run_notebooks
from minimuse.cli.pack import add_pack
from minimuse.cli.recipe import DEFAULTS as RECIPE_DEFAULTS
from minimuse.cli.shared_flags import (
    PROMPT_HELP,
    Parser,
    add_command,
    add_device,
    add_drawing_flags,
    add_edit_prompt,
    add_hole_flags,
    add_model_flags,
    add_required_out,
    add_seed,
    add_sheet,
    in_range,
    path,
)
from minimuse.cli.train import run_cache, run_train
from minimuse.cli.versions import Version
from minimuse.plumbing.config import PRESETS
from minimuse.runs.stages import STAGES

# What one can watch, for the help of every command that trains.
WATCH_HELP = (
    "Meanwhile OUT/log.jsonl gets the losses, which `minimuse curves OUT` plots, and OUT/watch "
    "shows what each stage makes of held-out images. TensorBoard gets the losses, too, if it is "
    "installed."
)


def make_parser() -> Parser:
    """The parser of the whole command line; the parsed arguments' `run` is the function to call."""
    parser = Parser(
        "minimuse", description="Muse, text to image by masked transformers, small enough to read."
    )
    parser.add_argument(
        "--version", action=Version, help="print the versions and the CPU's instructions, and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add_demo(commands)
    add_generate(commands)
    add_inpaint(commands)
    add_outpaint(commands)
    add_edit(commands)
    add_evaluate(commands)
    add_train(commands)
    add_curves(commands)
    add_pack(commands)
    add_cache(commands)
    add_describe(commands)
    add_app(commands)
    add_check(commands)
    add_notebooks(commands)
    return parser


# --- Commands ---
def add_demo(commands: Any) -> None:
    parser = add_command(
        commands, "demo", run_demo, "train a small Muse on drawn shapes, from scratch, and draw"
    )
    parser.epilog = WATCH_HELP
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/demo"),
        help="the folder for the model and the figures (default runs/demo)",
    )
    parser.add_argument(
        "--preset", default="demo", choices=PRESETS, help="sizes and lengths (default demo)"
    )
    add_seed(parser)
    add_device(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out (default: it must be new)",
    )


def add_generate(commands: Any) -> None:
    parser = add_command(commands, "generate", run_generate, "draw images of a prompt")
    parser.add_argument(
        "prompt",
        nargs="?",
        help='a caption of a thing and its style, such as "a red apple, noto style" '
        "(default: that of --like)",
    )
    parser.epilog = PROMPT_HELP
    parser.add_argument(
        "--like",
        type=path,
        metavar="PICTURE",
        help="draw what an image that `minimuse generate` wrote shows: same prompt, seed, model "
        "and settings; other flags change some of them (default: no such image)",
    )
    parser.add_argument(
        "--gif",
        type=path,
        metavar="NAME.gif",
        help="also write the steps of decoding, with the probability of each token, of at most "
        "32 images; side by side if the name ends in .png (default: no such file)",
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        metavar="key=a,b",
        help="write one sheet with all combinations of settings, such as: steps=4,8 guidance=0,2 "
        "guided=0:1,0.5:1 (default: separate images)",
    )
    add_drawing_flags(parser)
    # What is not given may come from --like.
    parser.set_defaults(**dict.fromkeys(RECIPE_DEFAULTS))


def add_inpaint(commands: Any) -> None:
    parser = add_command(commands, "inpaint", run_inpaint, "draw again what is white in a mask")
    parser.add_argument("image", type=path, help="the image to change")
    parser.add_argument(
        "mask", type=path, help="an image of the same size, white where to draw again"
    )
    add_edit_prompt(parser)
    add_hole_flags(parser)
    add_sheet(parser)
    add_drawing_flags(parser)


def add_outpaint(commands: Any) -> None:
    parser = add_command(commands, "outpaint", run_outpaint, "draw what lies around an image")
    parser.add_argument("image", type=path, help="the image in the middle")
    add_edit_prompt(parser)
    add_hole_flags(parser)
    parser.add_argument(
        "--pad",
        type=parse_pad,
        required=True,
        help="new pixels on each side: one number, or left,top,right,bottom (required)",
    )
    add_sheet(parser)
    add_drawing_flags(parser)


def add_edit(commands: Any) -> None:
    parser = add_command(
        commands, "edit", run_edit, "change an image towards a prompt, without a mask"
    )
    parser.add_argument("image", type=path, help="the image to change")
    add_edit_prompt(parser)
    parser.add_argument(
        "--iterations",
        type=in_range("iterations"),
        default=50,
        help="how often to draw tokens again; more change the image more (default 50)",
    )
    parser.add_argument(
        "--share",
        type=in_range("share"),
        default=0.08,
        help="the fraction of the tokens that one iteration draws again (default 0.08)",
    )
    add_sheet(parser)
    add_drawing_flags(parser)


def add_evaluate(commands: Any) -> None:
    parser = add_command(commands, "evaluate", run_evaluate, "measure a model, or two folders")
    add_model_flags(parser)
    add_required_out(parser, "the folder for report and figures; it may be the model's")
    parser.add_argument(
        "--n",
        type=in_range("n"),
        help="at most so many images of each kind (default 256; of two folders, all)",
    )
    add_seed(parser)
    add_folder_flags(parser)
    parser.add_argument(
        "--data",
        help="the model's images, if they have moved, or other data "
        "(default: where they were in training)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print report.json (default: print the table)"
    )


def add_train(commands: Any) -> None:
    parser = add_command(commands, "train", run_train, "train one stage, or all")
    parser.epilog = WATCH_HELP
    stages = [stage.replace("_", "-") for stage in STAGES]
    parser.add_argument(
        "stage",
        choices=[*stages, "all", "distill"],
        help="the part to train; or all; or distill: a base model that draws in one step, from the "
        "model in --start",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="sizes and lengths (default: those of the model in --out or --start, else toy)",
    )
    parser.add_argument(
        "--data",
        help="shapes, emoji, a folder of images with captions, or tar files of them: a folder or a "
        "pattern such as 'tars/{000..331}.tar' "
        "(default: that of the model in --out or --start, else emoji)",
    )
    add_required_out(parser, "the directory of the model")
    parser.add_argument(
        "--t5",
        help="the text encoder: a name in data/ or a directory "
        "(default: that of the model in --out or --start, else t5-toy)",
    )
    parser.add_argument(
        "--seed",
        type=in_range("seed"),
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


def add_curves(commands: Any) -> None:
    parser = add_command(
        commands, "curves", run_curves, "plot the losses of a training, also while it runs"
    )
    parser.add_argument(
        "folder", type=path, metavar="OUT", help="the --out of the training, with its log.jsonl"
    )
    parser.add_argument(
        "--out", type=path, metavar="FILE.png", help="the plot (default: OUT/curves.png)"
    )


def add_cache(commands: Any) -> None:
    parser = add_command(
        commands, "cache", run_cache, "compute token ids and text embeddings once, as files"
    )
    add_required_out(parser, "the directory of a model whose tokenizers are trained")
    parser.add_argument(
        "--data", help="the images, if they have moved (default: where they were in training)"
    )
    parser.add_argument(
        "--t5", help="the text encoder, if it has moved (default: where it was in training)"
    )
    add_device(parser)
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="such as skip_unreadable=True (default: the settings of the training)",
    )


def add_describe(commands: Any) -> None:
    parser = add_command(
        commands,
        "describe",
        run_describe,
        "tell parameters, arithmetic and memory of a preset or a model, and the words of a model",
    )
    parser.add_argument(
        "name",
        help=f"a preset ({', '.join(PRESETS)}), or a model: a directory or a name in data/; "
        "toy names both: the numbers are the preset's, the words the model's",
    )
    parser.add_argument(
        "--t5",
        type=path,
        help="a directory with the config.json of another text encoder "
        "(default: the model's; T5-XXL for the paper's presets, else t5-toy)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print plain numbers as JSON (default: a table)"
    )


def add_app(commands: Any) -> None:
    parser = add_command(
        commands, "app", run_app, "open a page that shows every pass of drawing, and edits images"
    )
    add_model_flags(parser)
    parser.add_argument(
        "--port", type=in_range("port"), default=7860, help="the port to listen at (default 7860)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default 127.0.0.1)"
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="allow a --host that other machines can reach (default: refuse it)",
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
    parser.add_argument(
        "--draw",
        nargs="?",
        type=path,
        const=Path(),
        metavar="IMAGE",
        help="then draw with toy-shapes and your functions (default name: check-04.png)",
    )


def add_notebooks(commands: Any) -> None:
    parser = add_command(
        commands, "notebooks", run_notebooks, "write the lessons as Jupyter notebooks"
    )
    parser.add_argument("folder", type=path, help="the folder to write them into")
