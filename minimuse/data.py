"""Training data: images with captions (`Images`), and the tokens made of them (`Tokens`).

    emoji = load("emoji", "train", side=64)  # from minimuse.datasets
    emoji.captions[0]                        # several captions of one image; training draws one
    emoji.batch([0, 1, 2])                   # (3, 3, 64, 64) in [-1, 1]

The tokenizers and the decoder train on images. The base and the super-resolution model train on
token ids and text embeddings. The tokenizers and the text encoder are frozen then, so
`runs/cache.py` runs them once. There is no augmentation but the random crops of `losses.py`. All
images are in memory, as uint8, except those of tar files (`datasets/stream.py`). Where images come
from: `datasets/`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from minimuse.plumbing.arguments import check_dataset, check_images

ASSETS = files("minimuse.assets")  # the files that ship with the package: presets, emoji, weights


# eq=False: comparing two tensors gives no single truth value.
@dataclass(frozen=True, eq=False)
class Images:
    """Images with captions, all in memory."""

    pixels: torch.Tensor  # (M, 3, H, W) uint8
    captions: list[tuple[str, ...]]  # one or more captions for each image, the plainest first
    names: list[str]

    def __post_init__(self) -> None:
        check_dataset(self.pixels, self.captions, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, indices: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Indices (B,) -> images (B, 3, H, W), float in [-1, 1]."""
        return self.pixels[torch.as_tensor(indices)].float() / 127.5 - 1


class Tokens:
    """Token ids and text embeddings of images, in one or more shards.

    A shard holds M images as a dict of tensors. Captions have different lengths, and images share
    captions, so both are stored end to end, with offsets that say where each one begins:

        low       (M, n)      low-res token ids
        high      (M, N)      high-res token ids
        text      (L, E)      embeddings of the words of all C captions, end to end
        starts    (C + 1,)    caption c is text[starts[c] : starts[c + 1]]
        variants  (V,)        numbers c of captions: those of image 0, then those of image 1, ...
        owns      (M + 1,)    image i has the captions variants[owns[i] : owns[i + 1]]

    Images are numbered through all shards.
    """

    def __init__(self, shards: list[dict[str, torch.Tensor]]):
        self.shards = shards
        self.offsets = offsets(len(shard["low"]) for shard in shards)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def locate(self, indices: torch.Tensor) -> list[tuple[dict[str, torch.Tensor], int]]:
        """The shard of each image, and its row in that shard."""
        shard_numbers = torch.searchsorted(self.offsets, indices, right=True) - 1
        rows = indices - self.offsets[shard_numbers]
        numbers_and_rows = zip(shard_numbers.tolist(), rows.tolist(), strict=True)
        return [(self.shards[number], row) for number, row in numbers_and_rows]

    def ids(self, resolution: str, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, N) of resolution "low" or "high"; without indices, of all images."""
        if indices is None:
            indices = torch.arange(len(self))
        return torch.stack([shard[resolution][row] for shard, row in self.locate(indices)]).long()

    def captions(
        self, indices: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A caption of each image: embeddings (B, T, E), mask (B, T). See `choose_captions`."""
        return pad_texts(self.choose_captions(indices, generator))

    def choose_captions(
        self, indices: torch.Tensor, generator: torch.Generator | None = None
    ) -> list[torch.Tensor]:
        """A random caption of each image, or without a generator the first: B embeddings (T, E).

        They are views of the shards: where those are mapped files, nothing is read yet.
        """
        if generator is None:
            uniform = torch.zeros(len(indices))  # in [0, 1)
        else:
            uniform = torch.rand(len(indices), generator=generator)
        chosen = []
        for (shard, row), u in zip(self.locate(indices), uniform.tolist(), strict=True):
            first, end = shard["owns"][row : row + 2].tolist()
            caption = int(shard["variants"][first + int(u * (end - first))])
            start, end = shard["starts"][caption : caption + 2].tolist()
            chosen.append(shard["text"][start:end])
        return chosen


def offsets(lengths: Iterable[int]) -> torch.Tensor:
    """Where each of some sequences begins, laid end to end, and where the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0)


def pad_texts(texts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """B text embeddings (T, E) -> (B, T, E), zero where padded, and their mask (B, T)."""
    # Add a text of one word and drop its row, so that T is at least 1 if all captions are empty.
    one_word = texts[0].new_zeros(1, texts[0].shape[1])
    padded = pad_sequence([*texts, one_word], batch_first=True)[:-1].float()  # B T E
    lengths = torch.tensor([len(text) for text in texts])
    visible = torch.arange(padded.shape[1]) < lengths[:, None]  # B T
    return padded, visible


def halve(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, H/2, W/2): each pixel is the mean of 2x2. Makes the low-res images."""
    H, W = images.shape[-2:]
    if H % 2 or W % 2:  # pooling would drop the last row or column silently
        raise ValueError(f"image is {H}x{W}; halving needs even sides")
    return F.avg_pool2d(images, 2)


def from_pil(image: Image.Image) -> torch.Tensor:
    """Any 8-bit PIL image -> (3, H, W) in [-1, 1]; on white where it is transparent."""
    pixels = torch.from_numpy(np.array(on_white(image)))  # H W 3
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """Images (B, 3, H, W) in [-1, 1] -> a list of B PIL images."""
    check_images("images", images, values=False)
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    pixels = rearrange(pixels, "B C H W -> B H W C")
    return [Image.fromarray(array.numpy()) for array in pixels]


def on_white(image: Image.Image) -> Image.Image:
    """Any 8-bit PIL image as RGB, on white where it is transparent."""
    return on_colour(image, "white")


def on_colour(image: Image.Image, colour: str) -> Image.Image:
    """Any 8-bit PIL image as RGB, on a colour where it is transparent."""
    if image.mode.startswith(("I", "F")):  # PIL would clip these to white
        raise ValueError(f"the image has mode {image.mode}; it needs 8 bits a channel, as RGB has")
    image = image.convert("RGBA")
    behind = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(behind, image).convert("RGB")
