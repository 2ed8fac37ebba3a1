"""Tar files of images with captions, in WebDataset's format: find them, and index what they hold.

    shards/000000.tar    cat.png  cat.txt     an image and beside it its captions, one a line,
                         dog.jpg  dog.json    or {"caption": "a dog"}

`--data` is the folder of the files, or a pattern such as 'shards/{000000..000331}.tar'. Files
belong together if their names are the same up to the first dot after the last slash; others of the
same name, such as cat.cls, are not read. An index says where each image begins, so that images are
read in any order, without unpacking. No image is opened here.
"""

import json
import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

from minimuse.data import offsets
from minimuse.datasets.captions import Row, checked_captions, decoded
from minimuse.datasets.listing import SUFFIXES, is_hidden, normal, suffix
from minimuse.plumbing.device import stable_hash

TEXT_SUFFIXES = (".txt", ".json")
BLOCK = 512  # bytes; a tar file consists of such blocks, and its end is marked by empty ones
# Of a text that lies beside an image; larger ones are no captions, and would fill the memory.
MOST_BYTES = 2**20

# An index of M images with C captions in all, as a dict of tensors:
#     start, size     (M,)      where the file of an image begins in the tar file, and its bytes
#     hash            (M,)      of its name: `stable_hash` - 2^63, to fit int64
#     names           (L,)      all names in UTF-8, end to end, as uint8
#     name_starts     (M + 1,)  name i is names[name_starts[i] : name_starts[i + 1]]
#     captions        (L,)      all captions in the same form
#     caption_starts  (C + 1,)
#     owns            (M + 1,)  image i has the captions owns[i] to owns[i + 1]
Index = dict[str, torch.Tensor]


class PackedFile(NamedTuple):
    """A file inside a tar file."""

    name: str
    start: int  # where its bytes begin
    size: int
    contents: bytes | None  # of a text; images are not read


# --- Which tar files there are ---
def is_tars(data: str | Path) -> bool:
    """Whether --data means tar files: a name or pattern that ends in .tar, or a folder of them.

    A folder that has images or other folders beside its tar files is a folder of images.
    """
    path = Path(data)
    if not path.is_dir():
        return path.suffix.lower() == ".tar"
    if not tars_in(path):
        return False
    others = [other for other in path.iterdir() if not is_hidden(other.name)]
    return not any(suffix(other.name) in SUFFIXES or other.is_dir() for other in others)


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a folder, but hidden ones, in alphabetical order."""
    names = [n for n in os.listdir(folder) if n.lower().endswith(".tar") and n[0] != "."]
    return [folder / name for name in sorted(names)]


def find_tars(data: str | Path) -> list[Path]:
    """All tar files that --data means, in order. Raises an error if one is missing or there twice.

    The order decides on the order of training.
    """
    paths = tars_in(Path(data)) if Path(data).is_dir() else expand(str(data))
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"there is no file {missing[0]} ({len(missing)} of {len(paths)} tar files are "
            "missing); restore it, or correct the pattern of --data"
        )
    seen: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise ValueError(
                f"{path} is the same tar file as {seen[real]}; name each of them once (--data)"
            )
        seen[real] = path
    return paths


def has_tars(data: str | Path) -> bool:
    """Whether at least one of the tar files of --data is there: all may be gone."""
    paths = tars_in(Path(data)) if Path(data).is_dir() else expand(str(data))
    return any(path.is_file() for path in paths)


def expand(pattern: str) -> list[Path]:
    """The paths of a pattern such as "{train,more}/{000..331}.tar", in order."""
    pieces = re.split(r"\{([^{}]*)\}", pattern)  # text and insides of braces take turns
    choices = [[text] if i % 2 == 0 else expand_braces(text) for i, text in enumerate(pieces)]
    return [Path("".join(combination)) for combination in product(*choices)]


def expand_braces(text: str) -> list[str]:
    """The choices of "000..331", as many digits each, or of "train,more"."""
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if numbers is None:
        return text.split(",")
    first, last = numbers.groups()
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]


# --- What a tar file holds ---
def index_tar(path: Path) -> tuple[Index, list[str]]:
    """The index of a tar file, and why samples are left out of it, one message each.

    Raises a ValueError if the file is damaged or has no image.
    """
    samples = read_samples(path)
    images, captions, problems = [], [], []
    for files in samples.values():
        try:
            image, texts = image_and_captions(path, files)
        except ValueError as error:
            problems.append(str(error))
            continue
        images.append(image)
        captions.append(texts)
    if not images and not problems:
        raise ValueError(
            f"{path} has no images; it must have NAME.png, NAME.jpg or NAME.webp beside NAME.txt"
        )
    index = {
        "start": torch.tensor([image.start for image in images], dtype=torch.int64),
        "size": torch.tensor([image.size for image in images], dtype=torch.int64),
        "hash": torch.tensor([stable_hash(i.name) - 2**63 for i in images], dtype=torch.int64),
        "owns": offsets(len(texts) for texts in captions),
    }
    index["names"], index["name_starts"] = end_to_end(image.name for image in images)
    all_captions = (caption for texts in captions for caption in texts)
    index["captions"], index["caption_starts"] = end_to_end(all_captions)
    return index, problems


def read_samples(path: Path) -> dict[str, list[PackedFile]]:
    """All images and texts of a tar file, by their names up to the first dot."""
    samples: dict[str, list[PackedFile]] = defaultdict(list)
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key = key_of(info.name)
                if not info.isfile() or key is None:
                    continue
                contents = None
                if is_text(info.name):
                    contents = tar.extractfile(info).read(MOST_BYTES)
                name = normal(info.name.removeprefix("./"))
                samples[key].append(PackedFile(name, info.offset_data, info.size, contents))
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is truncated, or no tar file without compression ({error}); copy it again, "
            "or unpack and pack it again"
        ) from None
    with open(path, "rb") as file:
        file.seek(end)
        # `tarfile` takes a damaged header, or a file that was cut between two members, for the end.
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(
                f"{path} is truncated or damaged: byte {end} does not mark its end; copy it again"
            )
    return samples


def key_of(name: str) -> str | None:
    """What the names of an image and its caption have in common; None for files not to be read."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, ending = base.partition(".")
    # cat.mask.png is no image of the data set: cat.png may stand beside it.
    is_read = f".{ending.lower()}" in (*SUFFIXES, *TEXT_SUFFIXES)
    if not is_read or any(is_hidden(part) for part in (*folder.split("/"), base)):
        return None
    return normal(folder + slash + stem)


def is_text(name: str) -> bool:
    return suffix(name) in TEXT_SUFFIXES


def image_and_captions(path: Path, files: list[PackedFile]) -> tuple[PackedFile, tuple[str, ...]]:
    """The image of a sample, and its captions. A ValueError says what is wrong with the sample."""
    image = image_of(path, files)
    texts = {suffix(file.name): file for file in files if file is not image}
    text = texts.get(".txt") or texts.get(".json")
    if text is None:
        raise ValueError(
            f"{path}: {image.name!r} has no caption; put a .txt of the same name beside it, "
            'or a .json with {"caption": "..."}'
        )
    place = f"{path}: {text.name}"
    if text is texts.get(".txt"):
        lines = decoded(place, text.contents).splitlines()
    else:
        lines = captions_in_json(place, text.contents)
    return image, checked_captions(Row(place, image.name, lines))


def image_of(path: Path, files: list[PackedFile]) -> PackedFile:
    """The image of a sample; a ValueError if it has none or several, or a file that is twice."""
    names = [file.name for file in files]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} has two files called {name!r}; keep one of them")
    images = [file for file in files if file.contents is None]
    if not images:
        raise ValueError(f"{path} has {names[0]!r}, but no image of that name; add the image")
    if len(images) > 1:
        raise ValueError(
            f"{path} has {' and '.join(image.name for image in images)}, with one caption; "
            "rename one of them, and give each its own"
        )
    return images[0]


def captions_in_json(place: str, contents: bytes) -> list[str]:
    """The "caption" of a JSON file, a text or a list of texts."""
    try:
        captions = json.loads(contents)["caption"]
    except (ValueError, KeyError, TypeError, RecursionError):
        captions = None
    if isinstance(captions, str):
        captions = [captions]
    if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise ValueError(f'{place} has no caption; write {{"caption": "..."}} into it')
    return captions


# --- Many texts in one tensor ---
def end_to_end(texts: Iterable[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as one tensor of bytes, and where each begins and the last one ends."""
    encoded = [text.encode(errors="surrogatepass") for text in texts]
    whole = bytearray(b"".join(encoded))
    # An empty buffer has no place in memory, which `frombuffer` asks for.
    letters = torch.frombuffer(whole, dtype=torch.uint8) if whole else torch.zeros(0).byte()
    return letters, offsets(len(text) for text in encoded)


def text_at(letters: torch.Tensor, starts: torch.Tensor, number: int) -> str:
    """One of the texts that `end_to_end` put together."""
    start, end = starts[number : number + 2].tolist()
    return letters[start:end].numpy().tobytes().decode(errors="surrogatepass")
