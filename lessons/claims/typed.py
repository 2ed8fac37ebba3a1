"""Of prompts that people type, how many pictures show the thing, and its colour?

    pip install -e '.[eval]'
    python lessons/claims/typed.py --model toy --out runs/claims

`typed.csv`, beside this file, has 80 prompts as people type them, with the concepts that count as
right. Every second one was looked at while the model was made ("tuned"); the others were not. Each
prompt is drawn with several seeds, as `Muse.draw` reads it: with a style, and with the label of the
emoji that it means in other words. Writes OUT/typed.json, and OUT/typed.png with the first seed.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch

from minimuse import Muse
from minimuse.cli.figures import sheet
from minimuse.metrics.typed import read_prompts, typed_report, typed_right
from minimuse.plumbing.files import save_image

PROMPTS = Path(__file__).with_suffix(".csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="toy")
    parser.add_argument("--prompts", type=Path, default=PROMPTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse = Muse.load(args.model)
    prompts = read_prompts(args.prompts)
    report = {}
    drawings = []
    for seed in range(args.seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about prompts that name no style
            _, high = muse.draw([p.prompt for p in prompts], seed=1000 * seed)
        drawings.append(high)
    for half, first in (("tuned", 0), ("not tuned", 1)):
        rows = list(range(first, len(prompts), 2)) * args.seeds
        shown = torch.cat([images[first::2] for images in drawings])
        report[half] = typed_report([prompts[i] for i in rows], shown)
        for measure, row in report[half].items():
            interval = f"({row['low']:.2f} to {row['high']:.2f})"
            print(f"{half:10}{measure:8} {row['value']:.2f} {interval} of {row['n']}")
    right = typed_right(prompts, drawings[0])
    marks = []
    for i, prompt in enumerate(prompts):
        words = [name for name in ("concept", "colour") if not right[name][i]]
        marks.append(f"{prompt.prompt} {'(not: ' + ', '.join(words) + ')' if words else ''}")
    save_image(sheet([drawings[0]], marks, columns=10, cell=96), args.out / "typed.png")
    (args.out / "typed.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
