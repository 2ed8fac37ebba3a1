"""Precomputed token ids and text embeddings.

The base and the super-resolution model train on tokens and text embeddings. The tokenizers and the
text encoder are frozen, so both are computed only once. Small data stay in memory (`tokens_of`).
For millions of captions, write them to files first:

    minimuse cache --out runs/mine       # after the tokenizers
    minimuse train base --out runs/mine  # reads runs/mine/cache

OUT/cache holds an index and shards of some thousand images each (`data.Tokens` explains a shard).
Several processes (`torchrun`) write shards side by side. If `minimuse cache` is stopped, or if a
shard is damaged, the same command writes what is missing, on any number of processes.
The shards are memory-mapped: a process reads only the rows that it needs, and several processes
share them.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from minimuse.data import Images, Tokens, halve, offsets
from minimuse.datasets.progress import bar
from minimuse.datasets.stream import Stream
from minimuse.plumbing import collectives
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.device import stable_hash
from minimuse.plumbing.files import write_json, write_tensors
from minimuse.plumbing.parts import PARTS
from minimuse.plumbing.places import DATA_NAMES
from minimuse.runs.manifest import digest_of_images
from minimuse.t5_frozen import FrozenT5

CAPTIONS_PER_BATCH = 256
IMAGES_PER_SHARD = 4096
FORMAT = 2  # of the shards; before, text embeddings were rounded to bfloat16

# Data that ship have no files of their own in the key. The number is the one of older caches.
NO_FILES = stable_hash("[]")


@in_usual_state
def tokens_of(
    parts: dict[str, nn.Module],
    text: FrozenT5,
    images: Images | Stream,
    device: str = "cpu",
    batch: int = 64,
) -> Tokens:
    """Token ids and text embeddings of all images, in memory."""
    return Tokens([tokenize(parts, text, images, torch.arange(len(images)), device, batch)])


@in_usual_state
@torch.no_grad()
def tokenize(
    parts: dict[str, nn.Module],
    text: FrozenT5,
    images: Images | Stream,
    rows: torch.Tensor,
    device: str,
    batch: int = 64,
) -> dict[str, torch.Tensor]:
    """The shard of the images `rows` (M,); see `data.Tokens`.

    parts: the "tokenizer", and "tokenizer_hi" for high-res ids; without it the shard has none.
    """
    tokenizers = {"low": parts["tokenizer"]}
    if "tokenizer_hi" in parts:
        tokenizers["high"] = parts["tokenizer_hi"]
    shard = token_ids(tokenizers, images, rows, device, batch)
    # After the images: in a stream, one that is damaged is only known by then.
    captions_of_images = [images.captions[i] for i in rows.tolist()]
    all_captions = [caption for captions in captions_of_images for caption in captions]
    # Embed a caption once, however many images share it. Captions of similar length stand side by
    # side, so that batches need little padding. dict.fromkeys drops repeats and keeps the order.
    unique_captions = sorted(dict.fromkeys(all_captions), key=len)
    embeddings = embed_captions(text, unique_captions)

    number_of = {caption: number for number, caption in enumerate(unique_captions)}
    shard["text"] = torch.cat(embeddings)
    shard["starts"] = offsets(len(embedding) for embedding in embeddings)
    shard["variants"] = torch.tensor([number_of[caption] for caption in all_captions])
    shard["owns"] = offsets(len(captions) for captions in captions_of_images)
    return shard


def token_ids(
    tokenizers: dict[str, nn.Module],
    images: Images | Stream,
    rows: torch.Tensor,
    device: str,
    batch: int,
) -> dict[str, torch.Tensor]:
    """Token ids (M, N), int32, of the images `rows` (M,): "low" at half size, "high" at full."""
    ids: dict[str, list[torch.Tensor]] = {name: [] for name in tokenizers}
    parts = rows.split(batch)
    for number, part in enumerate(bar(parts, "tokens", "batches")):
        if isinstance(images, Stream):
            # Threads read the next batch while the tokenizers encode this one.
            images.expect(torch.cat(parts[number : number + 2]))
        pixels = images.batch(part).to(device)  # B 3 H W
        for name, tokenizer in tokenizers.items():
            sized = halve(pixels) if name == "low" else pixels
            ids[name].append(tokenizer.encode(sized).flatten(1).int().cpu())  # B N
    return {name: torch.cat(batches) for name, batches in ids.items()}


def embed_captions(text: FrozenT5, captions: list[str]) -> list[torch.Tensor]:
    """Text embeddings (T, E) of captions, without padding: the same numbers as in drawing.

    They are stored in the precision of the encoder's weights, which loses nothing.
    """
    embeddings = []
    for start in bar(range(0, len(captions), CAPTIONS_PER_BATCH), "captions", "batches"):
        padded, visible = text(captions[start : start + CAPTIONS_PER_BATCH])  # B T E, B T
        for row, is_word in zip(padded.cpu(), visible.cpu(), strict=True):
            embeddings.append(row[is_word].to(text.dtype))
    return embeddings


def cache_key(out: Path, about: dict) -> dict:
    """What OUT/cache depends on: images, captions, text encoder and tokenizers, by their contents.

    Of a folder, the images and captions that are used count, and not where they lie.
    """
    key = {
        "format": FORMAT,
        "data": about["data"],
        "files": NO_FILES,
        "scenes": about["config"]["scenes"],
        "text": about["text"]["fingerprint"],
    }
    if about["data"] not in DATA_NAMES:
        key |= {"data": "a folder", "files": digest_of_images(out)}
    for part in PARTS[:2]:  # the tokenizers
        weights = (out / f"{part}.safetensors").read_bytes()
        key[part] = hashlib.sha256(weights).hexdigest()[:12]
    return key


def index_path(out: Path) -> Path:
    """The index of OUT/cache; it exists if the cache is complete."""
    return out / "cache" / "index.json"


def plan_path(out: Path) -> Path:
    """What the index will say. It exists while OUT/cache is unfinished."""
    return out / "cache" / "unfinished.json"


def heldout_path(out: Path) -> Path:
    """A shard of some held-out images, which are looked at during training."""
    return out / "cache" / "heldout.safetensors"


def shard_path(out: Path, number: int) -> Path:
    """A shard of OUT/cache."""
    return out / "cache" / f"{number:06}.safetensors"


@in_usual_state
def write_cache(
    out: Path,
    key: dict,
    parts: dict[str, nn.Module],
    text: FrozenT5,
    images: Images | Stream,
    device: str,
    per_shard: int,
    heldout: Images | None = None,
) -> Iterator[tuple[int, int]]:
    """Write OUT/cache; yields (shards done, shards in all) after each round.

    In a round, each process writes one shard. heldout: images for a shard of their own, beside the
    others. Shards of an earlier call are kept, whether it was stopped or finished, unless they are
    damaged. Collective: every rank must call this. If one process fails, all stop after that round.
    """
    rank, processes = collectives.rank_and_size()
    rows_of_shards = torch.arange(len(images)).split(per_shard)
    shards = len(rows_of_shards)
    missing: list[int] = []
    with collectives.fail_together():
        if rank == 0:
            plan = {"key": key, "shards": [len(rows) for rows in rows_of_shards]}
            missing = keep_sound_shards(out, plan)
            if heldout is not None and not is_sound(heldout_path(out), len(heldout)):
                rows = torch.arange(len(heldout))
                write_tensors(heldout_path(out), tokenize(parts, text, heldout, rows, device))
    # The first process decides for all: another machine may not see its newest files yet.
    missing = collectives.value_of_first(missing)
    rounds = [missing[i : i + processes] for i in range(0, len(missing), processes)]
    done = shards - len(missing)
    for numbers in rounds or [[]]:
        with collectives.fail_together():
            if rank < len(numbers):
                number = numbers[rank]
                shard = tokenize(parts, text, images, rows_of_shards[number], device)
                write_tensors(shard_path(out, number), shard)
        done += len(numbers)
        if done == shards:
            finish(out)
        yield done, shards


def keep_sound_shards(out: Path, plan: dict) -> list[int]:
    """Remove what is in OUT/cache, but the sound shards of this plan; the numbers of all others."""
    folder = index_path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    counts = plan["shards"]
    if plan in (read_plan(plan_path(out)), read_plan(index_path(out))):
        # First the plan, then the index: what is here now stays known if this is stopped.
        write_json(plan_path(out), plan)
        index_path(out).unlink(missing_ok=True)
        return [n for n, count in enumerate(counts) if not is_sound(shard_path(out, n), count)]
    index_path(out).unlink(missing_ok=True)
    plan_path(out).unlink(missing_ok=True)
    for shard in folder.glob("*.safetensors"):
        shard.unlink()
    write_json(plan_path(out), plan)
    return list(range(len(counts)))


def is_sound(path: Path, count: int) -> bool:
    """Whether a file is a shard of so many images."""
    try:
        return len(load_file(path)["low"]) == count
    except (KeyError, SafetensorError, OSError):
        return False


def finish(out: Path) -> None:
    """Make the plan the index: a cache without an index is unfinished. Collective."""
    rank, _ = collectives.rank_and_size()
    with collectives.fail_together():
        if rank == 0:
            os.replace(plan_path(out), index_path(out))


def read_plan(path: Path) -> dict | None:
    """A plan, or an index; None if there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read_heldout(out: Path) -> Tokens | None:
    """The tokens of some held-out images; None if an older version wrote OUT/cache without them.

    Raises a ValueError if the file is damaged.
    """
    path = heldout_path(out)
    if not path.is_file():
        return None
    try:
        return Tokens([load_file(path)])
    except (KeyError, SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); run minimuse cache again") from None


def read_cache(out: Path, key: dict) -> Tokens:
    """The tokens of OUT/cache, memory-mapped.

    Raises a ValueError that names the file if one is missing or damaged, or if the cache was made
    with another key.
    """
    path = index_path(out)
    try:
        index = json.loads(path.read_text())
        different = sorted(k for k in key if index["key"].get(k) != key[k])
        shards = []
        for number, count in enumerate(index["shards"]):
            path = shard_path(out, number)
            shard = load_file(path)
            if len(shard["low"]) != count:
                raise ValueError(f"{len(shard['low'])} images, not {count}")
            shards.append(shard)
        tokens = Tokens(shards)
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is missing or damaged ({error!r}); run minimuse cache again"
        ) from None
    if different:
        raise ValueError(
            f"{path.parent} was made from other data, tokenizers or text encoder "
            f"(other: {', '.join(different)}); run minimuse cache again, or remove it"
        )
    return tokens
