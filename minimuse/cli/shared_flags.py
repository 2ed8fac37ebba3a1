"""Flags that several commands have in common, and the parser that reports mistakes in one line."""

import argparse
import typing
from collections.abc import Callable
from pathlib import Path

from minimuse.decode import SAMPLERS, Sampling
from minimuse.plumbing.messages import one_line
from minimuse.plumbing.prompts import DEFAULT_STYLE, STYLE_NAMES
from minimuse.plumbing.ranges import argument_from_text


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage."""

    def error(self, message: str) -> typing.NoReturn:
        if message.endswith("expected one argument"):
            message += " (write a file whose name begins with - as ./-name)"
        self.exit(2, f"minimuse: {one_line(message)} (see: {self.prog} --help)\n")


def add_command(commands: typing.Any, name: str, run: Callable, what: str) -> Parser:
    """Add a command. `commands` is what argparse's `add_subparsers` returned."""
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=run)
    return parser


def in_range(name: str) -> Callable[[str], int | float]:
    """A `type` for argparse: a number in the range that plumbing/ranges.py has for this name."""

    def read(text: str) -> int | float:
        try:
            return argument_from_text(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


# What the prompt of a drawing may be, for the help of every command that draws.
PROMPT_HELP = (
    f"Models of emoji know the styles {', '.join(STYLE_NAMES)}: a prompt that names none is drawn "
    f"in {DEFAULT_STYLE} style, and capital letters do not matter. Other words for an emoji become "
    'its label: "a bike" is drawn as "bicycle". '
    '"one thing AND another:0.5" composes two prompts, with weights; '
    r"\AND and \: are the word and the colon."
)


def path(text: str) -> Path:
    """A path; "" is none, though Python takes it for the current directory."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; give a name")
    return Path(text)


def add_seed(parser: Parser) -> None:
    parser.add_argument("--seed", type=in_range("seed"), default=0, help="random seed (default 0)")


def add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, mps, or auto: the GPU, if PyTorch finds one (default auto)",
    )


def add_required_out(parser: Parser, what: str) -> None:
    parser.add_argument("--out", type=path, required=True, help=f"{what} (required)")


def add_edit_prompt(parser: Parser) -> None:
    parser.add_argument("prompt", help="a caption of the whole image, as it should become")
    parser.epilog = PROMPT_HELP


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
        type=path,
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
        type=path,
        default=Path("picture.png"),
        help="the file to write; NAME-0.png, NAME-1.png, ... if --n is above 1 "
        "(default picture.png)",
    )
    parser.add_argument(
        "--n", type=in_range("n"), default=1, help="how many images to draw (default 1)"
    )
    parser.add_argument(
        "--negative", default="", help="a prompt to steer away from (default: no caption)"
    )
    add_seed(parser)
    add_model_flags(parser)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the model first, which takes long and is meant for many images; on a CPU it "
        "needs a C++ compiler (default: draw at once)",
    )
    group = parser.add_argument_group(
        "sampling", "See minimuse/decode.py. The model's defaults are in its config.json."
    )
    for name, kind in typing.get_type_hints(Sampling).items():
        help_text = f"{SAMPLING_HELP[name]} (default: the model's)"
        options: dict[str, typing.Any] = {"dest": f"sampling.{name}", "help": help_text}
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
    "sampler": f"which tokens to keep in a step: one of {', '.join(SAMPLERS)}",
    "choice_temperature": "of the noise on confidences; it falls to 0 in the last step",
    "entropy_bound": "of the entropy sampler, in nats",
    "law": "the mask schedule, such as cosine or linear",
    "random_codes": "the fraction of random codes that a distilled model starts from",
    "mean_vectors": "make images of the mean of all code vectors, weighted by their probabilities",
}
