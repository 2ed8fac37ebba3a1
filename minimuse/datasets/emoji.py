"""The emoji that ship with minimuse: some 1,600 concepts, such as "red apple", in five styles.

    from minimuse.datasets import load
    images = load("emoji", "heldout", side=64)
    images.names[0], images.captions[0]     # "noto/red-apple", and sixteen ways to ask for it

`data/emoji/` holds one pack of images for each style, an index of where each image lies in its
pack and of its colour, and the words for each concept; `data/recipes/build_emoji.py` made them.
`emoji_captions.py` makes captions of the words. Which pairs of concept and style are held out, and
how an image is described, follow from hashes of names: nothing is shuffled, so both are the same on
every machine and for every seed.
"""

import hashlib
import io
import json
from functools import partial
from pathlib import Path

from PIL import Image

from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.datasets.emoji_captions import emoji_captions
from minimuse.datasets.image_files import Entry
from minimuse.plumbing.device import stable_hash

SIDE = 128  # side of the images in the packs, in pixels

STYLES = ("openmoji", "twemoji", "noto", "fluent-flat", "fluent-3d")

_RESTORE = (
    "a clone of the project has it: there, run `git checkout data/emoji` and `pip install -e .`"
)


# --- Splits ---
def split_of(concept: str, style: str) -> str:
    """The split of one image, from its names alone.

    "heldout-concept": one concept in 20, in every style. "heldout-pair": one in 20 of the other
    pairs of concept and style; training has the concept in other styles. "train": the rest.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    if stable_hash(f"concept {concept}") % 20 == 0:
        return "heldout-concept"
    # One number for the concept chooses at most one of the five styles. A number for each pair
    # could hold out a concept in all of its styles.
    chosen = stable_hash(f"pair {concept}") % 20
    return "heldout-pair" if chosen == STYLES.index(style) else "train"


# --- Images ---
def find_emoji(split: str, side: int, data_dir: Path) -> list[Entry]:
    """List the images of one split. An image is decoded and resized when it is read."""
    if side > SIDE:
        raise ValueError(f"side={side}, but the emoji packs hold {SIDE} pixels; give that or less")
    folder = data_dir / "emoji"
    words, index = read_words_and_index(data_dir)
    entries = []
    for style in STYLES:
        try:
            entries += _entries_of_style(style, split, side, folder, index, words)
        # A label or a thing without a noun, such as "", is an IndexError.
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{folder}: index.json and captions.json are damaged at {style} ({error!r}): "
                f"{_RESTORE}"
            ) from None
    return entries


def read_words_and_index(data_dir: Path) -> tuple[dict, dict]:
    """The words of each concept, and the index of each style (data/recipes/build_emoji.py)."""
    folder = data_dir / "emoji"
    return _read_json(folder / "captions.json"), _read_json(folder / "index.json")


def _entries_of_style(
    style: str, split: str, side: int, folder: Path, index: dict, words: dict
) -> list[Entry]:
    if style not in index:
        raise ValueError(f"{folder / 'index.json'} lacks the style {style}: {_RESTORE}")
    pack = _pack(folder / f"{style}.pack", index[style])
    wanted = "heldout-pair" if split == "heldout" else split
    entries = []
    for concept, entry in index[style]["blobs"].items():
        if len(entry) != 3 or entry[2] not in ("", *COLOUR_WORDS):
            raise TypeError(f"{concept}: {entry}")
        offset, length, colour = entry
        if split_of(concept, style) == wanted:
            captions = emoji_captions(words[concept], style, colour)
            read = partial(_decode, pack[offset : offset + length], side)
            entries.append(Entry(f"{style}/{concept}", captions, read))
    return entries


def _decode(webp: bytes, side: int) -> Image.Image:
    image = Image.open(io.BytesIO(webp)).convert("RGB")
    if SIDE % side == 0:
        # Means of square blocks, as `halve` takes them: an image of 32 pixels is then, except for
        # rounding, the one of 64 pixels halved.
        return image.reduce(SIDE // side)
    return image.resize((side, side), Image.Resampling.LANCZOS)


def _pack(path: Path, entry: dict) -> bytes:
    """All images of one style, end to end, checked against the index."""
    data = _read_bytes(path)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is damaged ({len(data)} of {entry['bytes']} bytes): {_RESTORE}")
    return data


def _read_json(path: Path) -> dict:
    data = _read_bytes(path)
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_RESTORE}") from None


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {_RESTORE}")
    return path.read_bytes()
