"""Measure how a model of scenes draws: pooled over seeds, and for several settings.

    # Which settings are best? On the validation split, whose scenes no training sees.
    python data/recipes/shapes_drawing.py runs/toy-shapes sampling.temperature=.6,.8,1
    # How good is the result? On held-out combinations, three drawings of each caption.
    python data/recipes/shapes_drawing.py runs/toy-shapes --split heldout --n 256 --seeds 3

Every combination of the given values is tried; what is not given is the model's own. Settings of
super-resolution begin with sampling_hi. Each row of the table has the fraction of images that are
right, attribute by attribute (the last is all of them), and the outline of the things drawn.
"real" and "reconstructed" images are the ceilings.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence

import torch

from minimuse import Muse
from minimuse.data import Images
from minimuse.datasets import load, shapes
from minimuse.datasets.shapes import Scene
from minimuse.metrics.alignment import alignment
from minimuse.metrics.outline import outline
from minimuse.plumbing.config import override

SPLITS = ("validation", "heldout")
BATCH = 32


def combinations(settings: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every combination of "key=value,value" texts, each as a tuple of "key=value" texts."""
    alternatives = []
    for setting in settings:
        key, values = setting.split("=", 1)
        alternatives.append([f"{key}={value}" for value in values.split(",")])
    return itertools.product(*alternatives)


def reconstructed(muse: Muse, images: torch.Tensor) -> torch.Tensor:
    """Real images (B, 3, H, W), through their high-res tokens."""
    parts = []
    for batch in images.split(BATCH):
        ids = muse.tokenizer_hi.encode(batch)  # B h w
        parts.append(muse.pixels(ids, "high"))
    return torch.cat(parts)


def row(name: str, scenes: list[Scene], images: torch.Tensor) -> str:
    """One row of the table: all attributes with their intervals, then the outline."""
    cells = [
        f"{cell['value']:.3f} ({cell['low']:.3f}-{cell['high']:.3f})"
        for cell in alignment(scenes, images).values()
    ]
    cells.append(f"{outline(images)['value']:.3f}")
    return "| " + " | ".join([name, *cells]) + " |"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("settings", nargs="*", help="key=value,value, as in config.json")
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--n", type=int, default=192, help="captions; default 192")
    parser.add_argument("--seeds", type=int, default=1, help="drawings of each; default 1")
    return parser.parse_intermixed_args()


def main() -> None:
    args = read_arguments()
    muse = Muse.load(args.model)
    images: Images = load("shapes", args.split, muse.config.tokenizer_hi.side, args.n)
    real = images.batch(torch.arange(args.n))  # n 3 H W
    captions = [variants[0] for variants in images.captions]
    scenes = [shapes.parse(caption) for caption in captions]
    print("| | shape | colour | size | count | relation | background | all | outline |")
    print("|" + "---|" * 9)
    print(row("real", scenes, real))
    print(row("reconstructed", scenes, reconstructed(muse, real)))
    config = muse.config
    for combination in combinations(args.settings):
        muse.config = override(config, list(combination))
        drawings = []
        for seed in range(args.seeds):
            # Image i of a drawing has the seed of the drawing + i, so no two drawings share one.
            _, drawn = muse.draw(captions, batch=BATCH, seed=seed * args.n)
            drawings.append(drawn)
        name = ", ".join(combination) or "drawn"
        print(row(name, scenes * args.seeds, torch.cat(drawings)), flush=True)


if __name__ == "__main__":
    main()
