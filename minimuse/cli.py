"""The command line: thin. Every mistake a user can make ends in one line on stderr and exit code 2."""

import argparse
import importlib
import sys
import warnings
from pathlib import Path

from tqdm import tqdm

from minimuse import config as configs
from minimuse.data import DATA
from minimuse.demo import demo, evaluate, side_by_side
from minimuse.figures import decoding_gif
from minimuse.muse import Muse, load_text, read_about
from minimuse.train import STAGES, train_all

NAMES = (*(s.replace("_", "-") for s in STAGES), "all")


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        """One line, without argparse's usage block."""
        self.exit(2, f"minimuse: {message} (see: {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    top = Parser("minimuse", description="Muse, text to image by masked transformers, small enough to read.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)

    p = commands.add_parser("demo", help="train the toy Muse on shapes from scratch on this machine and draw from it")
    p.add_argument("--out", type=Path, default=Path("runs/demo"))
    p.add_argument("--preset", default="demo", help=f"one of {', '.join(configs.PRESETS)} (default demo)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--resume", action="store_true", help="go on with the run in --out")

    p = commands.add_parser("generate", help="draw pictures for a prompt")
    p.add_argument("prompt")
    p.add_argument("-o", "--output", type=Path, default=Path("picture.png"), help="with --n above 1: NAME-0.png, NAME-1.png, ...")
    p.add_argument("--n", type=int, default=1)
    p.add_argument("--steps", type=int, help="passes of the base model")
    p.add_argument("--guidance", type=float, help="t in (1 + t) conditional - t unconditional; 0 is none")
    p.add_argument("--negative", default="", help="a prompt to steer away from")
    p.add_argument("--temperature", type=float)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--model", default="toy-shapes", help="a model in data/, or a directory")
    p.add_argument("--gif", type=Path, help="also write the tokens appearing as a GIF")

    p = commands.add_parser("evaluate", help="measure a model on held-out pictures; writes report.json, samples.png and decoding.gif")
    p.add_argument("--model", default="toy-shapes", help="a model in data/, or a directory")
    p.add_argument("--out", type=Path, required=True, help="a directory for the figures; it may be the model's")
    p.add_argument("--n", type=int, default=256, help="held-out pictures, at most")

    p = commands.add_parser("train", help="train one stage, or all")
    p.add_argument("stage", choices=NAMES, metavar="STAGE", help=" | ".join(NAMES))
    p.add_argument("--preset", help=f"one of {', '.join(configs.PRESETS)} (default toy, or what --out holds)")
    p.add_argument("--data", help="shapes, emoji, or a folder of pictures with captions (default emoji, or what --out holds)")
    p.add_argument("--out", type=Path, required=True, help="the model directory")
    p.add_argument("--t5", default=None, help="text encoder: a name in data/ or a directory (default t5-toy)")
    p.add_argument("--seed", type=int, default=None)
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    p.add_argument("--resume", action="store_true", help="go on with what --out holds")
    p.add_argument("settings", nargs="*", metavar="key=value", help="override the preset, such as base.width=256")

    p = commands.add_parser("check", help="do your functions in lessons/exercises do what they should?")
    p.add_argument("lesson", nargs="?", help="such as 04; left out: how far you are in all of them")
    p.add_argument("--package", action="store_true", help="look at the package's functions instead")

    p = commands.add_parser("notebooks", help="write the lessons as Jupyter notebooks")
    p.add_argument("folder", type=Path)
    return top


def show(records, row: int = 0) -> None:
    """Progress bars: loss, accuracy and the like, smoothed a little. `row`: how far down, where processes share a screen."""
    bar, seen = None, {}
    for record in records:
        if bar is None:
            bar, seen = tqdm(total=record.steps, initial=record.step - 1, desc=record.stage, mininterval=1.0, position=row), {}
        bar.update(1)
        if record.step % 10 == 0 or record.step == record.steps:  # reading a value waits for the device
            for k, v in record.metrics.items():
                seen[k] = 0.8 * seen.get(k, float(v)) + 0.2 * float(v)
            bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in seen.items()))
        if record.step == record.steps:  # now: the next record comes after the next stage's preparation
            bar.close()
            bar = None


def writable(path: Path) -> Path:
    """Refuse an output that cannot be written before any work is done for it."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; give a file name with -o")
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"{path.parent} does not exist; make it first")
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()
    return path


def run_generate(args) -> None:
    if args.n < 1:
        raise ValueError(f"--n is {args.n}; draw at least 1 picture")
    if args.output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{args.output}: write a .png, .jpg or .webp")
    names = [args.output] if args.n == 1 else [args.output.with_stem(f"{args.output.stem}-{i}") for i in range(args.n)]
    for path in (*names, *([args.gif] if args.gif else [])):
        writable(path)
    muse = Muse.load(args.model)
    drawing = dict(steps=args.steps, guidance=args.guidance, negative=args.negative, temperature=args.temperature, seed=args.seed)
    for path, picture in zip(names, muse.generate(args.prompt, args.n, **drawing)):
        picture.save(path)
        print(path)
    if args.gif:
        sampling, sampling_hi = muse.sampling(args.steps, args.guidance, args.temperature)
        decoding_gif(muse, [args.prompt], args.gif, negative=args.negative, seed=args.seed, sampling=sampling, sampling_hi=sampling_hi)
        print(args.gif)


def run_train(args) -> None:
    there = read_about(args.out) if (args.out / "config.json").is_file() else None
    if there and not args.preset and not args.settings:
        config = configs.from_json(there["config"])
    else:
        config = configs.override(configs.preset(args.preset or "toy"), args.settings)
    data = args.data or (there["data"] if there else "emoji")
    seed = args.seed if args.seed is not None else (there["seed"] if there else 0)
    name = args.t5 or (there["text"]["name"] if there else "t5-toy")
    if args.stage == "all" and args.device == "cpu":
        side_by_side(args.out, config, data, name, seed, args.resume, show)
        return
    stages = STAGES if args.stage == "all" else (args.stage.replace("-", "_"),)
    show(train_all(stages, args.out, config, data, load_text(name, args.device), name, seed, args.device, args.resume))


def main(argv: list[str] | None = None) -> int:
    warnings.showwarning = lambda message, *_: print(f"minimuse: {message}", file=sys.stderr)
    args, rest = parser().parse_known_args(argv)
    if args.command == "train":  # argparse takes positionals in one place only; key=value may stand anywhere
        args.settings += [text for text in rest if not text.startswith("-")]
        rest = [text for text in rest if text.startswith("-")]
    if rest:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if args.command == "demo":
            demo(args.out, args.preset, args.seed, args.resume, show)
        elif args.command == "generate":
            run_generate(args)
        elif args.command == "evaluate":
            muse = Muse.load(args.model)
            args.out.mkdir(parents=True, exist_ok=True)
            evaluate(muse, args.out, args.n)
        elif args.command in ("check", "notebooks"):
            sys.path[:0] = [str(DATA.parent / folder) for folder in ("tests", "lessons")]  # what serves the lessons alone stays with them
            if args.command == "check":
                return importlib.import_module("exercises.check").check(args.lesson, args.package)
            importlib.import_module("notebooks").write(args.folder)
        else:
            run_train(args)
    except KeyboardInterrupt:
        print("minimuse: stopped; the same command with --resume goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("minimuse:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0
