"""The emoji that ship with the project: some 1,600 concepts in five styles, read from packs that `build_emoji.py` made.

`minimuse.data.load("emoji", ...)` calls `find`. Which (concept, style) pairs are held out, and how a picture may be asked for,
follow from names: nothing is shuffled.
"""

import hashlib
import io
import json
import re
from functools import partial
from pathlib import Path

from PIL import Image

from minimuse.device import stable_hash

SIDE = 128  # pixels of a packed picture


STYLES = ("openmoji", "twemoji", "noto", "fluent-flat", "fluent-3d")


BEFORE = (
    "the",
    "one",
    "my",
    "this",
    "some",
    "a nice",
    "a funny",
    "a simple",
    "a beautiful",
    "just a",
)


OF = (
    "a picture",
    "an emoji",
    "a drawing",
    "an image",
    "a piece",
    "a kind",
    "an icon",
    "a bit",
    "a sort",
)


_RESTORE = (
    "a clone of the project has it: there, run `git checkout data/emoji` and `pip install -e .`"
)


def split_of(concept: str, style: str) -> str:
    """ "train", "heldout-concept" (5 % of concepts, in every style) or "heldout-pair" (5 % of the other pairs), from the names alone."""
    if style not in STYLES:
        raise ValueError(f"style {style!r}; there is {', '.join(STYLES)}")
    if stable_hash(f"concept {concept}") % 20 == 0:
        return "heldout-concept"
    drawn = (
        stable_hash(f"pair {concept}") % 20
    )  # one draw for the concept, not one for each pair: it hits one style at most
    return "heldout-pair" if drawn == STYLES.index(style) else "train"


def emoji_captions(label: str, tags: list[str], style: str) -> tuple[str, ...]:
    """Eight ways to ask for one picture: the label; with an article; with one tag; with two more; with another word before it; as a
    picture or a piece of it; after a tag; a tag alone. Told the first four only, a model learns them by heart, and takes "a slice of
    pizza" for something that it has never heard of (data/toy/README.md has figures)."""
    label, words = label.lower(), style.replace("-", " ")
    # In an order of each style's own, without tags that the label says ("apple" for a red apple).
    new = sorted(
        (t for t in tags if t.lower() not in label),
        key=lambda t: stable_hash(f"{style} {label} {t}"),
    )
    article = "an" if re.match(r"[aei]|o(?!ne)|u(?!ni)|hour", label) else "a"
    phrase = (
        label if re.search(r"[^su]s$", label) else f"{article} {label}"
    )  # crossed swords, but a compass and a cactus
    pick = lambda options: options[stable_hash(f"{style} {label} {options[0]}") % len(options)]
    framed, part, what = pick(BEFORE), pick(OF), pick([label, phrase])
    tag = lambda i: new[i % len(new)] if new else label
    variants = (
        [label],
        [phrase],
        [label, *new[:1]],
        [phrase, *new[1:3]],
        [f"{framed} {label}"],
        [f"{part} of {what}"],
        [f"{tag(3)} {label}"],
        [tag(4)],
    )
    return tuple(", ".join([*parts, f"{words} style"]) for parts in variants)


def find_emoji(
    wanted: str, side: int, data_dir: Path
) -> list[tuple[str, tuple[str, ...], partial]]:
    if side > SIDE:
        raise ValueError(
            f"side={side}, but the emoji packs hold {SIDE} pixels: ask for that or less"
        )
    index, words = (_shipped(data_dir / "emoji" / name) for name in ("index.json", "captions.json"))
    part, found = "heldout-pair" if wanted == "heldout" else wanted, []
    for style in STYLES:
        try:
            if style not in index:
                raise ValueError(
                    f"{data_dir / 'emoji' / 'index.json'} lacks the style {style}: {_RESTORE}"
                )
            pack = _pack(data_dir / "emoji" / f"{style}.pack", index[style])
            for concept, (offset, length) in index[style]["blobs"].items():
                if split_of(concept, style) == part:
                    captions = emoji_captions(
                        words[concept]["label"], words[concept]["tags"], style
                    )
                    found.append(
                        (
                            f"{style}/{concept}",
                            captions,
                            partial(_decode, pack[offset : offset + length], side),
                        )
                    )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{data_dir / 'emoji'}: index.json and captions.json are damaged at {style} ({error!r}): {_RESTORE}"
            ) from None
    return found


def _decode(webp: bytes, side: int) -> Image.Image:
    picture = Image.open(io.BytesIO(webp)).convert("RGB")
    if (
        SIDE % side == 0
    ):  # plain means, so that 32 px is (but for rounding) what halve() makes of 64
        return picture.reduce(SIDE // side)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _shipped(path: Path):
    """A file that comes with the project: its bytes, or what its JSON says."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {_RESTORE}")
    try:
        return json.loads(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {_RESTORE}") from None


def _pack(path: Path, entry: dict) -> bytes:
    """One style's pictures end to end, checked against the index."""
    data = _shipped(path)
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{path} is damaged ({len(data)} of {entry['bytes']} bytes): {_RESTORE}")
    return data
