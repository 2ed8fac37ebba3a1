"""Of prompts that people type, how many pictures show the thing, and its colour?

    pip install -e '.[eval]'
    python lessons/claims/typed.py --model toy --out runs/claims

`typed.csv`, beside this file, has 80 prompts as people type them, with the concepts that count as
right. Every second one was looked at while the model was made ("tuned"); the others were not. Each
prompt is drawn with several seeds, as `Muse.draw` reads it: with a style, and with the label of the
emoji that it means in other words. --as-typed leaves the label out. Intervals are by prompts, since
drawings of one prompt are alike. Writes OUT/typed.json, and OUT/typed.png with the first seed.
"""

import argparse
import json
import warnings
from pathlib import Path

from torch import Tensor

from minimuse import Muse
from minimuse.cli.figures import sheet
from minimuse.metrics.typed import TypedPrompt, read_prompts, typed_report, typed_right
from minimuse.plumbing.files import save_image
from minimuse.plumbing.prompts import DEFAULT_STYLE

PROMPTS = Path(__file__).with_suffix(".csv")
HALVES = {"all": slice(None), "tuned": slice(0, None, 2), "not tuned": slice(1, None, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy")
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--as-typed", action="store_true", help="no labels for other words")
    parser.add_argument("--style", default=DEFAULT_STYLE, help="of --as-typed, if none is named")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(args.prompts)
    texts = [prompt.prompt for prompt in prompts]
    if args.as_typed:
        texts = [with_style(prompt, args.style) for prompt in prompts]
    drawings = draw(Muse.load(args.model), texts, args.seeds, plain=args.as_typed)
    rights = [typed_right(prompts, images) for images in drawings]
    report = {half: report_of(prompts, rights, rows) for half, rows in HALVES.items()}
    for half, measures in report.items():
        for measure, row in measures.items():
            interval = f"({row['low']:.2f} to {row['high']:.2f})"
            print(f"{half:10}{measure:8} {row['value']:.2f} {interval} of {row['n']} prompts")
    marks = marked(prompts, rights[0])
    save_image(sheet([drawings[0]], marks, columns=10, cell=96), args.out / "typed.png")
    (args.out / "typed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def draw(muse: Muse, texts: list[str], seeds: int, plain: bool) -> list[Tensor]:
    """High-res images (B, 3, H, W) of all texts, for each seed."""
    drawings = []
    for seed in range(seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about prompts that name no style
            _, high = muse.draw(texts, seed=1000 * seed, plain=plain)
        drawings.append(high)
    return drawings


def report_of(
    prompts: list[TypedPrompt], rights: list[dict[str, list[bool]]], rows: slice
) -> dict[str, dict[str, float]]:
    """`typed_report` of some rows of the table."""
    its_rights = [{name: which[rows] for name, which in right.items()} for right in rights]
    return typed_report(prompts[rows], its_rights)


def marked(prompts: list[TypedPrompt], right: dict[str, list[bool]]) -> list[str]:
    """Each prompt, and what is wrong in its drawing."""
    marks = []
    for i, prompt in enumerate(prompts):
        wrong = [name for name in ("concept", "colour") if not right[name][i]]
        marks.append(f"{prompt.prompt} (not: {', '.join(wrong)})" if wrong else prompt.prompt)
    return marks


def with_style(prompt: TypedPrompt, style: str) -> str:
    """The words of a prompt, in lower case as captions are, and a style if they name none."""
    words = prompt.prompt.lower()
    return words if prompt.style else f"{words}, {style} style"


if __name__ == "__main__":
    main()
