"""Images with captions that stay in tar files, and are read when a training step asks for them.

    images = load("shards/{000000..000331}.tar", "train", side=256)   # from minimuse.datasets
    images.captions[0], images.batch([0, 1, 2])                       # as of `data.Images`
    images.expect([3, 4, 5])                                          # read these meanwhile

The order of training is known (`epoch_order`, and `train.batch_at`), so a few threads read the
images of the next steps ahead. PIL decodes and resizes without Python's global lock. In memory are
the images that are expected, and a few numbers of each other one. Where images begin, their names
and their captions are in mapped files (`runs/tar_index.py`).
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from minimuse.data import Images, offsets
from minimuse.datasets.folder import read_pixels
from minimuse.datasets.image_files import Member, UnusableImage
from minimuse.datasets.tars import Index, find_tars, index_tar, text_at
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.messages import warn

READERS = 4  # threads
# Images are shuffled within so many tar files at a time. Only these files are read meanwhile, so
# that a disk or its cache can keep them at hand.
WINDOW = 16
# If so many images in a row are damaged, something else is wrong.
MOST_DAMAGED = 100
MOST_NAMED = 10  # so many damaged images are named, and then one in a hundred


class Tar(NamedTuple):
    """A tar file and what it holds."""

    path: Path
    index: Index


class Found(NamedTuple):
    """An image that a thread has read."""

    pixels: torch.Tensor  # (3, side, side) uint8
    row: int  # of the image, which stands in for the one asked for if that is damaged
    reasons: list[str]  # why the images before it could not be read


class Stream:
    """Images in tar files, with captions: the counterpart of `data.Images` for any number of them.

    If `skip` is set, the next image takes the place of one that is damaged, with its captions; so
    the other images keep their numbers, and the order of training is the same.
    """

    def __init__(
        self,
        tars: list[Tar],
        side: int,
        smallest: int,
        skip: bool,
        rows: torch.Tensor | None = None,
    ):
        """side, smallest, skip: see `datasets.load`. rows: which images of the files, in order."""
        self.tars = tars
        self.side = side
        self.smallest = smallest
        self.skip = skip
        self.offsets = offsets(len(tar.index["start"]) for tar in tars)
        self.first_rows = self.offsets.tolist()
        self.rows = torch.arange(self.first_rows[-1]) if rows is None else rows
        self.names = Each(len(self.rows), self.name_of)
        self.captions = Each(len(self.rows), self.captions_of)
        self.stand_ins: dict[int, int] = {}  # of damaged images
        self.expected: dict[int, Future[Found]] = {}
        # A training asks for the same order at every step, as of `train.epoch_order`.
        self.epoch_order = lru_cache(maxsize=2)(self.new_epoch_order)
        self.readers: ThreadPoolExecutor | None = None  # from the first reading on

    def __len__(self) -> int:
        return len(self.rows)

    # --- What an index says ---
    def locate(self, i: int) -> tuple[Tar, int]:
        """The tar file of image i, and the number of the image in it."""
        row = int(self.rows[i])
        number = bisect_right(self.first_rows, row) - 1
        return self.tars[number], row - self.first_rows[number]

    def name_of(self, i: int) -> str:
        tar, row = self.locate(i)
        return text_at(tar.index["names"], tar.index["name_starts"], row)

    def captions_of(self, i: int) -> tuple[str, ...]:
        """The captions of image i, or of the one that stands in for it."""
        tar, row = self.locate(self.stand_ins.get(i, i))
        first, end = tar.index["owns"][row : row + 2].tolist()
        texts = tar.index["captions"], tar.index["caption_starts"]
        return tuple(text_at(*texts, number) for number in range(first, end))

    # --- Reading ---
    def batch(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Indices (B,) -> images (B, 3, H, W), float in [-1, 1].

        Raises a ValueError that names the image if one is damaged, unless `skip` is set.
        """
        indices = torch.as_tensor(indices).tolist()
        self.expect(indices)
        pixels = torch.empty((len(indices), 3, self.side, self.side), dtype=torch.uint8)
        for row, i in enumerate(indices):
            future = self.expected.pop(i, None)
            # An index that is there twice has been taken.
            found = self.read(i) if future is None else future.result()
            self.report(i, found)
            pixels[row] = found.pixels
        return pixels.float() / 127.5 - 1

    def expect(self, indices: torch.Tensor | Sequence[int]) -> None:
        """Begin to read images that `batch` will ask for soon."""
        if self.readers is None:
            self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="reader")
        for i in torch.as_tensor(indices).tolist():
            if i not in self.expected:
                self.expected[i] = self.readers.submit(self.read, i)

    def read(self, i: int) -> Found:
        """Read image i, or if it is damaged and `skip` is set, the next one that is not."""
        reasons: list[str] = []
        for row in range(i, i + MOST_DAMAGED):
            row %= len(self)
            try:
                pixels = read_pixels(self.member(row), self.side, self.smallest)
                return Found(pixels, row, reasons)
            except UnusableImage as error:
                if not self.skip:
                    raise ValueError(
                        f"{error} (skip_unreadable=True leaves out all such images)"
                    ) from None
                reasons.append(str(error))
        raise ValueError(f"{MOST_DAMAGED} images in a row cannot be used: {reasons[0]}")

    def member(self, i: int) -> Member:
        """The bytes of the file of image i."""
        tar, row = self.locate(i)
        size = int(tar.index["size"][row])
        # Not kept open: there may be more files than a process may open.
        with open(tar.path, "rb") as file:
            file.seek(int(tar.index["start"][row]))
            contents = file.read(size)
        if len(contents) < size:
            raise ValueError(f"{tar.path} has become shorter since it was indexed; copy it again")
        return Member(contents, f"{tar.path}: {self.name_of(i)}")

    def report(self, i: int, found: Found) -> None:
        """Warn if image i is damaged; from now on it has the captions of the one that stands in."""
        if not found.reasons or i in self.stand_ins:
            return
        self.stand_ins[i] = found.row
        count = len(self.stand_ins)
        if count <= MOST_NAMED or count % 100 == 0:
            warn(f"left out, {count} so far: {found.reasons[0]}")

    def in_memory(self) -> Images:
        """These images as `data.Images`, without those that are damaged, if `skip` is set."""
        pixels, rows = [], []
        for i in range(len(self)):
            self.expect(range(i, min(i + 64, len(self))))
            found = self.expected.pop(i).result()
            self.report(i, found)
            if found.row == i:
                pixels.append(found.pixels)
                rows.append(i)
        if not rows:
            raise ValueError(
                f"none of {len(self)} images in {self.tars[0].path.parent} can be read"
            )
        captions, names = [self.captions[i] for i in rows], [self.names[i] for i in rows]
        return Images(torch.stack(pixels), captions, names)

    # --- Parts and orders ---
    def take(self, rows: torch.Tensor) -> "Stream":
        """Some of these images, in this order."""
        return Stream(self.tars, self.side, self.smallest, self.skip, self.rows[rows])

    def rows_of_split(self, split: str) -> torch.Tensor:
        """Which of all images of the files belong to "train" or to "heldout".

        The same as of a folder, see `folder.heldout_names`.
        """
        hashes = torch.cat([tar.index["hash"] for tar in self.tars])
        # A hash h is stored as h - 2^63, and 2^63 % 10 is 8: these are those with h % 10 == 0.
        heldout = hashes % 10 == 2
        heldout[hashes.argmax()] = False
        if not heldout.any():
            heldout[hashes.argmin()] = True
        return (heldout == (split == "heldout")).nonzero().flatten()

    def new_epoch_order(self, seed: int, stage: str, epoch: int, size: int) -> torch.Tensor:
        """The order of all images in an epoch: a permutation (size,). See `order_in_windows`."""
        counts = torch.searchsorted(self.rows, self.offsets).diff()
        return order_in_windows(counts, generator_at(seed, stage, "epoch", epoch))


class Each(Sequence):
    """A sequence whose items are looked up when they are asked for."""

    def __init__(self, length: int, item_at: Callable[[int], object]):
        self.length = length
        self.item_at = item_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> object:
        return self.item_at(range(self.length)[i])


def order_in_windows(counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random permutation of images in tar files that hold `counts` images each.

    The files are shuffled, and then the images within each WINDOW of files. So images that follow
    each other are near each other on the disk, and up to WINDOW files are shuffled as a whole.
    """
    starts = offsets(counts.tolist())
    order = []
    for window in torch.randperm(len(counts), generator=generator).split(WINDOW):
        rows = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in window.tolist()])
        order.append(rows[torch.randperm(len(rows), generator=generator)])
    return torch.cat(order)


# --- Opening ---
def open_tars(data: str | Path, side: int, smallest: int, skip: bool = False) -> Stream:
    """All images of tar files, of both splits. `runs/stream.py` keeps the indices as files."""
    tars = []
    for path in find_tars(data):
        index, problems = index_tar(path)
        say_left_out(path, problems[:1], len(problems), skip)
        tars.append(Tar(path, index))
    return checked_stream(tars, side, smallest, skip)


def say_left_out(path: Path, problems: list[str], count: int, skip: bool) -> None:
    """Warn of samples that an index leaves out, `problems` first; an error unless `skip` is set."""
    if not count:
        return
    if not skip:
        raise ValueError(f"{problems[0]} (skip_unreadable=True leaves out all such images)")
    warn(f"left out, {count} of {path}: {problems[0]}")


def checked_stream(tars: list[Tar], side: int, smallest: int, skip: bool) -> Stream:
    """A stream, after a check that no name is there twice and that there are images enough."""
    stream = Stream(tars, side, smallest, skip)
    if len(stream) < 2:
        raise ValueError(
            f"{tars[0].path.parent} has too few images in tar files ({len(stream)}); "
            "it needs at least two, one of them to hold out"
        )
    hashes, rows = torch.cat([tar.index["hash"] for tar in tars]).sort()
    same = (hashes.diff() == 0).nonzero().flatten().tolist()
    for k in same:
        i, j = sorted(rows[k : k + 2].tolist())
        if stream.names[i] == stream.names[j]:
            (first, _), (second, _) = stream.locate(i), stream.locate(j)
            raise ValueError(
                f"{second.path} and {first.path} both have an image called {stream.names[i]!r}; "
                "rename or remove one of them"
            )
    return stream
