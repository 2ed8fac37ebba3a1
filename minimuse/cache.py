"""What is frozen, computed once: the token ids of every picture, the text embeddings of every caption.

    minimuse cache --out runs/mine       # after the tokenizers; `minimuse train base --out runs/mine` then reads OUT/cache

Small data fit into memory. Over millions of captions a T5-XXL is run once, into files of some thousand pictures each, which are then
mapped, not read: any number of processes look at the rows that they need, and at nothing else.

A shard is a dict of tensors: low (M, n) and high (M, N) ids; text (L, E) bf16, its captions one after the other, without padding;
starts (C + 1,), where each begins; variants (V,), numbers of captions; owns (M + 1,), where each picture's begin in `variants`.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from minimuse.checkpoint import save_tensors, write_json
from minimuse.data import Pictures, halve, stable_hash
from minimuse.muse import PARTS, autocast
from minimuse.t5_frozen import FrozenT5


def edges(lengths) -> torch.Tensor:
    """Where each of some pieces begins, laid end to end, and where the last one ends."""
    return torch.tensor([0, *lengths]).cumsum(0)


@torch.no_grad()
def encode(
    parts: dict[str, nn.Module],
    text: FrozenT5,
    pictures: Pictures,
    rows: torch.Tensor,
    device: str,
    batch: int = 64,
) -> dict:
    """The shard of some pictures. A caption that many share is embedded once; without "tokenizer_hi" there are no high-res ids."""
    captions = [pictures.captions[i] for i in rows.tolist()]
    words = sorted(
        dict.fromkeys(c for cs in captions for c in cs), key=len
    )  # like lengths together: little is padding
    with autocast(device):
        ids = lambda part, shrink: torch.cat(
            [
                part.encode(shrink(pictures.batch(i).to(device))).flatten(1).int().cpu()
                for i in rows.split(batch)
            ]
        )
        shard = {"low": ids(parts["tokenizer"], halve)} | (
            {"high": ids(parts["tokenizer_hi"], lambda x: x)} if "tokenizer_hi" in parts else {}
        )
        said = [
            row[seen].bfloat16()
            for i in range(0, len(words), 256)
            for row, seen in zip(*(x.cpu() for x in text(words[i : i + 256])))
        ]
    place = {c: i for i, c in enumerate(words)}
    variants = torch.tensor([place[c] for cs in captions for c in cs])
    return shard | {
        "text": torch.cat(said),
        "starts": edges(map(len, said)),
        "variants": variants,
        "owns": edges(map(len, captions)),
    }


class Tokens:
    """Shards as if they were one."""

    def __init__(self, shards: list[dict[str, torch.Tensor]]):
        self.shards, self.edges = shards, edges(len(shard["low"]) for shard in shards)

    @classmethod
    def of(
        cls,
        parts: dict[str, nn.Module],
        text: FrozenT5,
        pictures: Pictures,
        device: str = "cpu",
        batch: int = 64,
    ) -> "Tokens":
        """In memory."""
        return cls([encode(parts, text, pictures, torch.arange(len(pictures)), device, batch)])

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


def key(out: Path, about: dict) -> dict:
    """What OUT/cache depends on: pictures (a folder's files, by name, size and date), text encoder, tokenizers."""
    listing = [
        (str(p), p.stat().st_size, p.stat().st_mtime_ns)
        for p in sorted(Path(about["data"]).rglob("*"))
    ]
    known = {
        "data": about["data"],
        "files": stable_hash(str(listing)),
        "scenes": about["config"]["scenes"],
        "text": about["text"]["fingerprint"],
    }
    return known | {
        part: hashlib.sha256((out / f"{part}.safetensors").read_bytes()).hexdigest()[:12]
        for part in PARTS[:2]
    }


def write(
    out: Path,
    key: dict,
    parts: dict,
    text: FrozenT5,
    pictures: Pictures,
    device: str,
    per_shard: int = 4096,
) -> Iterator:
    """Write OUT/cache; yields how many of how many shards are done."""
    (folder := out / "cache").mkdir(parents=True, exist_ok=True)
    (index := folder / "index.json").unlink(missing_ok=True)
    pieces = torch.arange(len(pictures)).split(per_shard)
    for i, rows in enumerate(pieces):
        save_tensors(folder / f"{i:06}.safetensors", encode(parts, text, pictures, rows, device))
        if i + 1 == len(pieces):  # last: a cache without an index is unfinished
            write_json(index, {"key": key, "shards": [len(rows) for rows in pieces]})
        yield i + 1, len(pieces)


def read(out: Path, key: dict) -> Tokens:
    """OUT/cache, mapped. A shard that is missing, cut short or not of `key` is an error that names it."""
    path, shards = out / "cache" / "index.json", []
    try:
        held = json.loads(path.read_text())
        for i, count in enumerate(held["shards"]):
            shards.append(load_file(path := path.with_name(f"{i:06}.safetensors")))
            if len(shards[-1]["low"]) != count:
                raise ValueError(f"{len(shards[-1]['low'])} pictures, not {count}")
        tokens, same = Tokens(shards), held["key"] == key
    except (ValueError, KeyError, TypeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error!r}); run minimuse cache again"
        ) from None
    if not same:
        raise ValueError(
            f"{path.parent} was made from other data, tokenizers or text encoder; run minimuse cache again, or remove it"
        )
    return tokens
