"""Pictures with captions: procedural shapes, the emoji that ship with the project, or your own folder.

Muse learns from (picture, caption) pairs and from nothing else, so one small class holds them all:

    emoji = load("emoji", "train", side=64)  # emoji.captions[0] holds a few ways to say it; training draws one
    images = emoji.batch([0, 1, 2])          # (3, 3, 64, 64) in [-1, 1]

Each source has its file in `data/`: `shapes.py`, `emoji_pack.py`, and `folder.py`. What is held out follows from names by a hash, not
from a shuffle: nothing moves a picture into training. Left out: augmentation, and streaming (all pictures are in memory as uint8).
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

ASSETS = files("minimuse.assets")  # what ships: presets, emoji, weights


def edges(lengths) -> torch.Tensor:
    """Where each of some pieces begins, laid end to end, and where the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0)


class Tokens:
    """Shards as if they were one."""

    def __init__(self, shards: list[dict[str, torch.Tensor]]):
        self.shards, self.edges = shards, edges(len(shard["low"]) for shard in shards)

    def __len__(self) -> int:
        return int(self.edges[-1])

    def rows(self, indices: torch.Tensor) -> list[tuple[dict, int]]:
        """The shard of each picture, and its row there."""
        which = torch.searchsorted(self.edges, indices, right=True) - 1
        return [
            (self.shards[s], i)
            for s, i in zip(which.tolist(), (indices - self.edges[which]).tolist())
        ]

    def ids(self, resolution: str, indices: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, N) of resolution "low" or "high"; of all pictures, if no indices are given."""
        return torch.stack(
            [
                shard[resolution][i]
                for shard, i in self.rows(torch.arange(len(self)) if indices is None else indices)
            ]
        ).long()

    def choose(
        self, indices: torch.Tensor, generator: torch.Generator | None = None
    ) -> list[torch.Tensor]:
        """A caption of each picture (a random one, or the first): embeddings (T, E), which are not looked at yet."""
        u = (
            torch.rand(len(indices), generator=generator).tolist()
            if generator
            else [0.0] * len(indices)
        )
        chosen = []
        for (shard, i), x in zip(self.rows(indices), u):
            first, last = shard["owns"][i : i + 2].tolist()
            caption = int(shard["variants"][first + int(x * (last - first))])
            chosen.append(shard["text"][slice(*shard["starts"][caption : caption + 2].tolist())])
        return chosen

    def captions(
        self, indices: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen captions: embeddings (B, T, E), mask (B, T)."""
        return pad(self.choose(indices, generator))


def pad(chosen: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions (T, E) of different lengths -> (B, T, E), zero where padded, and mask (B, T)."""
    one = chosen[0].new_zeros(1, chosen[0].shape[1])  # where all captions are empty, T is 1 still
    text = pad_sequence([*chosen, one], batch_first=True)[:-1].float()
    return text, torch.arange(text.shape[1]) < torch.tensor([len(x) for x in chosen])[:, None]


@dataclass(frozen=True, eq=False)  # eq: two tensors have no single truth value
class Images:
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


def on_white(image: Image.Image) -> Image.Image:
    """Any 8-bit picture as RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):  # PIL would clip these to white
        raise ValueError("more than 8 bits a channel")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def from_pil(image: Image.Image) -> torch.Tensor:
    """Any PIL image -> (3, H, W) in [-1, 1]; on white where it is transparent."""
    return torch.from_numpy(np.array(on_white(image))).permute(2, 0, 1).float() / 127.5 - 1


def to_pil(images: torch.Tensor) -> list[Image.Image]:
    """images (B, 3, H, W) in [-1, 1] -> PIL."""
    bytes_ = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return [Image.fromarray(x.numpy()) for x in rearrange(bytes_, "B C H W -> B H W C")]
