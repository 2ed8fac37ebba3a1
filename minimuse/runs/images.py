"""The images that a model is trained on or measured with, at the size that it needs."""

from functools import lru_cache
from pathlib import Path

import torch

from minimuse.data import Images
from minimuse.datasets import load, part_of
from minimuse.datasets.folder import check_is_folder
from minimuse.datasets.stream import Stream
from minimuse.datasets.tars import find_tars, has_tars, is_tars
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.config import Config
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.places import DATA_NAMES
from minimuse.runs import kept
from minimuse.runs.tar_index import open_stream

HELDOUT = 64  # at most so many held-out images are looked at in training


@in_usual_state
def load_images(
    config: Config,
    data: str,
    split: str = "train",
    count: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    strict: bool = True,
) -> Images | Stream:
    """The images of a split, at the size that a configuration asks for.

    out: the directory of the model that keeps the decoded images of a folder, see `runs/kept.py`,
    or the indices of tar files.
    strict: refuse data that are not those of the model in `out`, and damaged images; otherwise only
    warn.
    """
    tokenizer = config.tokenizer_hi
    if out is not None and data not in DATA_NAMES:
        return part_of(open_folder(config, data, out, strict), split, count, seed)
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


def load_both(
    config: Config, data: str, out: Path, train: bool = True
) -> tuple[Images | Stream | None, Images]:
    """The images to train on, or None without `train`, and at most 64 held-out ones.

    The held-out ones are in a random order, so that the first few are as varied as all of them.
    Of a folder or of tar files, both come from one reading.
    """
    if data in DATA_NAMES:
        images = load_images(config, data) if train else None
        heldout = heldout_of(config, data)
    else:
        whole = open_folder(config, data, out)
        images = part_of(whole, "train") if train else None
        heldout = in_random_order(part_of(whole, "heldout", HELDOUT))
    return images, heldout


def open_folder(config: Config, data: str, out: Path, strict: bool = True) -> Images | Stream:
    """All images of a folder, which the model in `out` keeps, or of tar files. Collective."""
    side, factor = config.tokenizer_hi.side, config.tokenizer_hi.factor
    skip = config.skip_unreadable or not strict
    if is_tars(data):
        return open_stream(out, data, side, factor, skip, strict)
    return kept.open_images(out, Path(data), side, factor, skip, strict)


@lru_cache(maxsize=1)
def heldout_of(config: Config, data: str) -> Images:
    """Held-out images of "shapes" or "emoji", kept until the process ends: each stage asks."""
    return in_random_order(load_images(config, data, "heldout", HELDOUT))


def in_random_order(images: Images) -> Images:
    """The same images in an order that is always the same."""
    order = torch.randperm(len(images), generator=generator_at("held-out images"))
    rows = order.tolist()
    return Images(
        pixels=images.pixels[order],
        captions=[images.captions[i] for i in rows],
        names=[images.names[i] for i in rows],
    )


@lru_cache(maxsize=1)
def training_scenes(side: int, count: int) -> Images:
    """The training scenes, drawn once and kept until the process ends: each stage asks for them.

    They are shared, so do not write to them.
    """
    return load("shapes", "train", side, count)


def has_images(data: str) -> bool:
    """Whether there are images to train on: a folder or tar files may be gone."""
    if is_tars(data):
        return has_tars(data)
    return data in DATA_NAMES or Path(data).is_dir()


def check_has_images(data: str) -> None:
    """Raise a FileNotFoundError if there is no such folder, or if a tar file is missing."""
    if is_tars(data):
        find_tars(data)
    else:
        check_is_folder(Path(data))
