"""The vocabulary of a model, from the captions that it is trained on.

    OUT/config.json             the vocabulary of the model
    OUT/start/vocabulary.txt    that of the model from which this training continues

No image is opened for it. `plumbing/vocabulary.py` says what a word is.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from minimuse.data import ASSETS
from minimuse.datasets import emoji, shapes
from minimuse.datasets.captions import find_pairs
from minimuse.datasets.folder import rows_of_split
from minimuse.datasets.stream import Stream
from minimuse.datasets.tars import is_tars
from minimuse.plumbing.files import write_text
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.places import DATA_NAMES
from minimuse.plumbing.vocabulary import distinct_words, vocabulary_of
from minimuse.runs.images import has_images
from minimuse.runs.manifest import manifest_path, read_manifest
from minimuse.runs.tar_index import read_tars


def start_vocabulary_path(out: Path) -> Path:
    return out / "start" / "vocabulary.txt"


def training_vocabulary(out: Path, data: str) -> str | None:
    """The words that the model in OUT reads in training, in all of its trainings.

    data: as in config.json. If its folder is gone, they are those of OUT/config.json. None if they
    are not known, or too many (see `vocabulary_of`).
    """
    if not has_images(data):
        is_begun = (out / "config.json").is_file()
        return read_about(out).get("vocabulary") if is_begun else None
    words = distinct_words(training_captions(out, data))
    if (out / "start").is_dir():
        # What the model that this one starts from has read, this one knows, too.
        path = start_vocabulary_path(out)
        if not path.is_file():
            return None
        words.update(path.read_text(encoding="utf-8").split())
    return vocabulary_of(words)


def training_captions(out: Path, data: str) -> Iterable[str]:
    """All captions of the split "train", without those of images that OUT leaves out.

    Of shapes it is one text with every word of their captions.
    """
    if data == "shapes":
        return [shapes.every_word()]
    if data == "emoji":
        entries = emoji.find_emoji("train", emoji.SIDE, Path(ASSETS))
        return [caption for entry in entries for caption in entry.captions]
    if is_tars(data):
        return training_captions_of_tars(out, data)
    pairs = find_pairs(Path(data))
    path = manifest_path(out)
    files = read_manifest(path) if path.is_file() else {}
    names = [name for name in pairs if "unreadable" not in files.get(name, {})]
    rows = rows_of_split(names, "train")
    return [caption for i in rows for caption in pairs[names[i]].captions]


def training_captions_of_tars(out: Path, data: str) -> Iterator[str]:
    """The same of tar files, one at a time: all together may not fit in memory."""
    stream = Stream(read_tars(out, data), side=1, smallest=1, skip=True)
    for captions in stream.take(stream.rows_of_split("train")).captions:
        yield from captions


def keep_start_vocabulary(start: Path, out: Path) -> None:
    """Note in OUT/start which words the model in `start` knows, if that can be told."""
    about = read_about(start)
    vocabulary = about.get("vocabulary")
    # Data that ship stay as they are. A folder may have changed since an older version trained.
    if vocabulary is None and about["data"] in DATA_NAMES:
        vocabulary = training_vocabulary(start, about["data"])
    if vocabulary is not None:
        write_text(start_vocabulary_path(out), vocabulary + "\n")
