"""Pictures with captions: procedural shapes, the emoji that ship with the project, or your own folder.

Muse learns from (picture, caption) pairs and from nothing else, so one small class holds them all:

    emoji = load("emoji", "train", side=64)  # emoji.captions[0] holds a few ways to say it; training draws one
    images = emoji.batch([0, 1, 2])          # (3, 3, 64, 64) in [-1, 1]

- "shapes": `count` scenes from `data/shapes.py`; endless, and their captions are exact.
- "emoji": some 1,600 concepts in five styles ("red apple, noto style"), read by `data/emoji_pack.py`.
- anything else is a folder: `cat.png` beside `cat.txt` (one caption a line), or one table, `captions.csv` (columns file,caption).

What is held out follows from names by a hash, not from a shuffle: no order of files, seed or library version moves a
picture into training. Left out: augmentation, cleaning of captions, and streaming: all pictures are in memory as uint8.
"""
import csv
import hashlib
import io
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from minimuse import shapes

DATA = Path(__file__).resolve().parents[1] / "data"
SPLITS = {"shapes": ("train", "validation", "heldout"), "emoji": ("train", "heldout", "heldout-concept"), "folder": ("train", "heldout")}
Found = tuple[str, tuple[str, ...], partial]  # name, captions, and what gives the picture when it is called


@dataclass(frozen=True, eq=False)  # eq: two tensors have no single truth value
class Pictures:
    pixels: torch.Tensor  # (M, 3, H, W) uint8
    captions: list[tuple[str, ...]]  # one or more variants per picture, the plainest first
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices) -> torch.Tensor:
        """(B,) -> (B, 3, H, W) float in [-1, 1]."""
        return self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1


def halve(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, H/2, W/2): the picture that the base model sees, by 2x2 means."""
    H, W = images.shape[-2:]
    if H % 2 or W % 2:  # pooling would drop the last row without a word
        raise ValueError(f"image is {H}x{W}; halving needs even sides")
    return F.avg_pool2d(images, 2)


def load(
    source: str, split: str, side: int, count: int | None = None, seed: int = 0, data_dir: Path = DATA, smallest: int = 8, skip: bool = False
) -> Pictures:
    """The pictures of one split, side x side; of a folder's, `smallest` is the least side (the tokenizer's factor f), `skip` drops damaged ones.

    `count` is how many shapes to draw; of emoji or a folder it takes at most that many, chosen by `seed`.
    """
    kind = source if source in SPLITS else "folder"
    if split not in SPLITS[kind]:
        raise ValueError(f"split {split!r} of {source}; there is {', '.join(SPLITS[kind])}")
    if (count is None and kind == "shapes") or (count is not None and count < 1):
        raise ValueError(f"count={count}; give 1 or more (shapes are endless, so they need a count)")
    if kind == "shapes":  # training takes the even scene numbers and validation the odd ones, so no seeds can meet
        numbers = [2 * (seed * 10**9 + i) + (split == "validation") for i in range(count)]
        scenes = [shapes.scene(n, "heldout" if split == "heldout" else "train") for n in numbers]
        return Pictures(shapes.render(scenes, side), [(shapes.caption(s),) for s in scenes], [f"shapes/{split}/{n}" for n in numbers])
    if kind == "emoji":
        from minimuse import emoji_pack  # here, for it needs this file

        found = emoji_pack.find(split, side, Path(data_dir))
    else:
        found = _folder(Path(source), split, side, smallest, skip)
    if count is not None and count < len(found):
        chosen = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count]
        found = [found[i] for i in sorted(chosen.tolist())]
    pixels = torch.empty((len(found), 3, side, side), dtype=torch.uint8)
    for i, (_, _, read) in enumerate(found):
        pixels[i] = torch.from_numpy(np.array(read())).permute(2, 0, 1)
    return Pictures(pixels, [captions for _, captions, _ in found], [name for name, _, _ in found])


def stable_hash(text: str) -> int:
    """An even spread over the integers that is the same everywhere (Python's hash() is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# --- a folder of your own ---
def _folder(root: Path, wanted: str, side: int, smallest: int, skip: bool = False) -> list[Found]:
    """Every picture centre-cropped to a square; one in ten is held out, and never all or none."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}: say shapes, emoji, or a folder of pictures")
    captions = folder_captions(root)
    for name in sorted(captions):  # of either split: a damaged picture should be known before the training, not after
        try:
            read_square(root / name, side, smallest)
        except ValueError as error:
            if not skip:
                raise ValueError(f"{error} (skip_unreadable=True leaves out all such pictures)") from None
            warnings.warn(f"left out: {error}", stacklevel=3)
            del captions[name]
    by_hash = sorted(captions, key=stable_hash)
    if len(by_hash) < 2:
        raise ValueError(f"{root} has {len(by_hash)} pictures; it needs at least two, one to hold out")
    heldout = {n for n in by_hash[:-1] if stable_hash(n) % 10 == 0} or {by_hash[0]}
    names = sorted(heldout if wanted == "heldout" else captions.keys() - heldout)
    return [(name, captions[name], partial(read_square, root / name, side, smallest)) for name in names]


def folder_captions(root: Path) -> dict[str, tuple[str, ...]]:
    """Picture -> its captions, for every picture in the folder, by its path inside it."""
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    files = [f for f in files if not any(part.startswith(".") for part in f.parts)]  # what systems hide
    pictures = {f.as_posix() for f in files if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")}
    table, captions = root / "captions.csv", {}
    for where, file, lines in _rows(table) if table.is_file() else _sidecars(root, files, pictures):
        path = Path(file)
        if path.anchor or ".." in path.parts:
            raise ValueError(f"{where}: {file!r} leads out of the folder; move the picture in")
        if path.as_posix() not in pictures:
            raise FileNotFoundError(f"{where}: no PNG, JPEG or WebP {file!r} here; add it or remove the row")
        if path.as_posix() in captions:
            raise ValueError(f"{where}: {file!r} has a row already; remove one")
        captions[path.as_posix()] = tuple(" ".join(line.split()) for line in lines if line.strip())
        if not captions[path.as_posix()]:
            raise ValueError(f"{where}: the caption of {file!r} is empty; write one")
    if table.is_file() and not captions:
        raise ValueError(f"{table} is empty; write a row for each picture")
    for name in sorted(pictures - captions.keys()):
        raise ValueError(f"{root / name} has no caption; write one into {table.name if table.is_file() else Path(name).with_suffix('.txt')}")
    return captions


def _sidecars(root: Path, files: list[Path], pictures: set[str]):
    """(place, picture, captions) of each text file."""
    owners = defaultdict(list)
    for name in pictures:
        owners[Path(name).with_suffix("")].append(name)
    for file in (f for f in files if f.suffix.lower() == ".txt"):
        beside = owners[file.with_suffix("")]
        if len(beside) != 1:
            raise ValueError(f"{root / file} has {len(beside)} pictures of its name, not one; rename it")
        yield str(root / file), beside[0], _text(root / file).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it again as UTF-8") from None


def _rows(table: Path):
    """(place, picture, its one caption) of each row."""
    rows = csv.DictReader(io.StringIO(_text(table)), strict=True)
    try:
        if not {"file", "caption"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{table} is empty or has other columns; its first line must be file,caption")
        for row in rows:
            if None in row:  # more fields than columns: half the caption would be lost
                raise ValueError(f'{table} line {rows.line_num}: a caption with a comma needs "quotes"')
            yield f"{table} line {rows.line_num}", row["file"] or "", [row["caption"] or ""]
    except csv.Error as error:
        raise ValueError(f"{table} line {rows.line_num}: {error}; repair the quotes") from None


def read_square(path: Path, side: int, smallest: int) -> Image.Image:
    """The picture's middle square, side x side."""
    image = read_picture(path)
    if min(image.size) < smallest:
        raise ValueError(f"{path} is {image.width}x{image.height}; the tokenizer needs {smallest}x{smallest}: enlarge it or remove it")
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def read_picture(path: Path) -> Image.Image:
    """A PNG, JPEG or WebP file as RGB, turned as it was taken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # refuse, do not only warn
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                return on_white(ImageOps.exif_transpose(image))  # phones store the turn, not the turned pixels
    except Exception as error:  # PIL's readers raise whatever a broken file makes them trip over
        raise ValueError(f"{path} cannot be read ({error}); save it again as a smaller 8-bit PNG, or remove it") from None


def on_white(image: Image.Image) -> Image.Image:
    """Any 8-bit picture as RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # PIL would clip these to white
        raise ValueError("more than 8 bits a channel")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
