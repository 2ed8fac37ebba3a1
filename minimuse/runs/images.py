"""The images that a model is trained on or measured with, at the size that it needs."""

from functools import lru_cache
from pathlib import Path

from minimuse.data import Images
from minimuse.datasets import load, part_of
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.config import Config
from minimuse.plumbing.places import DATA_NAMES
from minimuse.runs import kept


@in_usual_state
def load_images(
    config: Config,
    data: str,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    strict: bool = True,
) -> Images:
    """The images of a split, at the size that a configuration asks for.

    out: the directory of the model that keeps the decoded images of a folder, see `runs/kept.py`.
    strict: refuse a folder that is not the one of the model in `out`, and damaged images; otherwise
    only warn.
    """
    tokenizer = config.tokenizer_hi
    if out is not None and data not in DATA_NAMES:
        skip = config.skip_unreadable or not strict
        images = kept.open_images(out, Path(data), tokenizer.side, tokenizer.factor, skip, strict)
        return part_of(images, split, count, seed)
    if count is None and data == "shapes":
        count = config.scenes
    # Training always asks for seed 0; other seeds are rare, and are not kept.
    if data == "shapes" and split == "train" and seed == 0:
        return training_scenes(tokenizer.side, count)
    return load(
        data,
        split,
        tokenizer.side,
        count,
        seed,
        smallest=tokenizer.factor,
        skip_unreadable=config.skip_unreadable,
    )


@lru_cache(maxsize=1)
def training_scenes(side: int, count: int) -> Images:
    """The training scenes, drawn once and kept until the process ends: each stage asks for them.

    They are shared, so do not write to them.
    """
    return load("shapes", "train", side, count)


def has_images(data: str) -> bool:
    """Whether there are images to train on: a folder may be gone."""
    return data in DATA_NAMES or Path(data).is_dir()
