"""What is frozen, computed once: the token ids of every picture, the text embeddings of every caption.

    minimuse cache --out runs/mine       # after the tokenizers; `minimuse train base --out runs/mine` then reads OUT/cache

Small data fit into memory. Over millions of captions a T5-XXL is run once, into files of some thousand pictures each, which are then
mapped, not read: any number of processes look at the rows that they need, and at nothing else.

A shard is a dict of tensors: low (M, n) and high (M, N) ids; text (L, E) bf16, its captions one after the other, without padding;
starts (C + 1,), where each begins; variants (V,), numbers of captions; owns (M + 1,), where each picture's begin in `variants`.
"""

from collections.abc import Iterator
from pathlib import Path
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.rnn import pad_sequence
import hashlib
import json
import torch

from minimuse.data import Images
from minimuse.data import Tokens
from minimuse.data import edges
from minimuse.data import halve
from minimuse.device import autocast
from minimuse.device import stable_hash
from minimuse.plumbing.files import save_tensors
from minimuse.plumbing.files import write_json
from minimuse.plumbing.parts import PARTS
from minimuse.t5_frozen import FrozenT5


@torch.no_grad()
def tokenize(
    parts: dict[str, nn.Module],
    text: FrozenT5,
    pictures: Images,
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


def tokens_of(
    parts: dict[str, nn.Module],
    text: FrozenT5,
    pictures: Images,
    device: str = "cpu",
    batch: int = 64,
) -> Tokens:
    """Token ids and text embeddings of all images, in memory."""
    return Tokens([tokenize(parts, text, pictures, torch.arange(len(pictures)), device, batch)])


def cache_key(out: Path, about: dict) -> dict:
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


def write_cache(
    out: Path,
    key: dict,
    parts: dict,
    text: FrozenT5,
    pictures: Images,
    device: str,
    per_shard: int = 4096,
) -> Iterator:
    """Write OUT/cache; yields how many of how many shards are done."""
    (folder := out / "cache").mkdir(parents=True, exist_ok=True)
    (index := folder / "index.json").unlink(missing_ok=True)
    pieces = torch.arange(len(pictures)).split(per_shard)
    for i, rows in enumerate(pieces):
        save_tensors(folder / f"{i:06}.safetensors", tokenize(parts, text, pictures, rows, device))
        if i + 1 == len(pieces):  # last: a cache without an index is unfinished
            write_json(index, {"key": key, "shards": [len(rows) for rows in pieces]})
        yield i + 1, len(pieces)


def read_cache(out: Path, key: dict) -> Tokens:
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
