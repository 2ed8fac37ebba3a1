"""Training: one visible loop for every stage, and the loss of each stage.

    minimuse train all --preset toy --data emoji --out runs/emoji        # or one stage at a time
    minimuse train base --preset toy --data emoji --out runs/emoji --resume

tokenizer, tokenizer-hi: VQGANs. base, superres: masked transformers over their tokens. decoder: the high-res decoder, grown and
finetuned with encoder and codebook frozen. The loop yields a record per step: progress bars, plots and lessons live with the caller.
All randomness of a step is a function of (seed, stage, step): resuming ends in the same weights, bit for bit, as never stopping.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from einops import rearrange
from functools import lru_cache
from pathlib import Path
from torch import nn
from typing import NamedTuple
import dataclasses
import json
import math
import re
import time
import torch

from minimuse import data
from minimuse.data import Images
from minimuse.datasets import load
from minimuse.device import generator_at
from minimuse.losses import decoder_loss
from minimuse.losses import token_loss
from minimuse.losses import tokenizer_loss
from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import checkpoints_at
from minimuse.plumbing.config import Config
from minimuse.plumbing.config import from_json
from minimuse.plumbing.files import write_json
from minimuse.plumbing.lock import only_process
from minimuse.plumbing.parts import PARTS
from minimuse.plumbing.parts import build
from minimuse.plumbing.parts import load_part
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.parts import save_part
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache
from minimuse.runs import parallel
from minimuse.t5_frozen import FrozenT5
from minimuse.train import Record
from minimuse.train import training_loop
from minimuse.vq import grow
from minimuse.vq_loss import PictureLoss


TOKEN_STAGES = ("base", "superres")


STAGES = PARTS  # each part has its stage, in this order


NEEDS = {
    "tokenizer": (),
    "tokenizer_hi": (),
    "base": ("tokenizer",),
    "superres": ("tokenizer", "tokenizer_hi"),
    "decoder": ("tokenizer_hi",),
}


computes = lambda about: (
    about | {"config": about["config"] | {"scale": None}, "text": about["text"]["fingerprint"]}
)  # what decides on weights


def describe(
    out: Path, config: Config, data: str, text: FrozenT5, text_name: str, seed: int
) -> dict:
    """What OUT/config.json says of such a model; a ValueError where OUT holds another."""
    about = {
        "config": dataclasses.asdict(config),
        "data": data,
        "seed": seed,
        "text": {"name": text_name, "fingerprint": text.fingerprint},
    }
    about = json.loads(json.dumps(about))
    if (out / "config.json").is_file() and computes(read_about(out)) != computes(about):
        raise ValueError(
            f"{out} holds a model with other settings, data, text encoder or seed; give the same ones, or another --out"
        )
    return about


def train_stage(
    name: str,
    out: Path,
    about: dict,
    pictures: Images | None,
    text: FrozenT5,
    device: str = "cpu",
) -> Iterator[Record]:
    """Train one stage into OUT/NAME.safetensors, from the parts that it needs in OUT; resumes a checkpoint there."""
    config, seed = from_json(about["config"]), about["seed"]
    with only_process(out, "config", wait=-1):  # stages that train side by side write the same file
        collectives.rank_and_size()[0] or write_json(out / "config.json", about)
    settings = getattr(config.stages, name)
    needed = {
        part: load_part(out, part, config, text.width).eval().requires_grad_(False).to(device)
        for part in NEEDS[name]
    }
    with torch.random.fork_rng(devices=[]):  # initial weights too are a function of (seed, stage)
        torch.manual_seed(generator_at(seed, name, "weights").initial_seed())
        begun = (
            out / "start" / f"{name}.safetensors"
        ).is_file()  # another model's part, to be trained further
        model = part = (
            load_part(out / "start", name, config, text.width)
            if begun
            else build(name, config, text.width)
        ).to(device)
        if name in TOKEN_STAGES:
            tokens = (
                cache.read_cache(out, cache.cache_key(out, about))
                if (out / "cache" / "index.json").is_file()
                else cache.tokens_of(needed, text, pictures, device)
            )
            codes = (
                t.quantizer.lookup(torch.arange(t.config.codes, device=device))
                for t in needed.values()
            )
            if not begun:
                texts = [
                    shard["text"] for shard in tokens.shards
                ]  # 2**17 words say how all of them lie; copies of all may not fit
                model.start(
                    torch.cat([x[:: 1 + len(x) * len(texts) // 2**17] for x in texts])
                    .float()
                    .to(device),
                    *codes,
                )
            parallel.fit(model, config.scale.compile, config.scale.recompute, device)
            parts_of = token_loss(
                model, tokens, config, "low" if name == "base" else "high", device
            )
        else:
            if collectives.rank_and_size()[1] > 1:
                raise ValueError(
                    f"{name} trains in one process; only base and superres can be spread over several"
                )
            model = nn.ModuleDict({"part": part, "loss": PictureLoss(config.loss).to(device)})
            if name == "decoder":
                if not begun:
                    grow(needed["tokenizer_hi"].decoder, part, generator_at(seed, name, "grow"))
                parts_of = decoder_loss(
                    model, needed["tokenizer_hi"], pictures, config, settings, device
                )
            else:
                parts_of = tokenizer_loss(
                    model, pictures, config, settings, name == "tokenizer", device
                )
    size = len(tokens) if name in TOKEN_STAGES else len(pictures)
    path, key = (
        out / f"{name}.checkpoint.safetensors",
        computes(about) | {"stage": name, "pictures": size},
    )
    try:
        yield from training_loop(name, model, parts_of, settings, size, seed, path, key)
    except (RuntimeError, MemoryError) as error:  # torch's are of the first kind
        if isinstance(error, RuntimeError) and not re.search(
            "out of memory|allocate memory|bad_alloc", str(error)
        ):
            raise
        half = max(1, (config.scale.micro_batch or settings.batch) // 2)
        less = f"say scale.micro_batch={half} scale.recompute=True with --resume, or " * (
            name in TOKEN_STAGES
        )
        raise MemoryError(
            f"too little memory to train {name}; {less}lower stages.{name}.batch={settings.batch} in another --out"
        ) from error
    save_part(out, name, part)
    for done in checkpoints_at(path):
        done.unlink(missing_ok=True)  # another process may have been quicker


def load_images(
    config: Config, data: str, split: str = "train", count: int | None = None, seed: int = 0
) -> Images:
    """The pictures of a split, of the size that a configuration asks for."""
    high = config.tokenizer_hi
    count = config.scenes if count is None and data == "shapes" else count
    return load(
        data, split, high.side, count, seed, smallest=high.factor, skip=config.skip_unreadable
    )


def pending(stages: tuple[str, ...], out: Path, resume: bool) -> list[str]:
    """The stages that OUT does not hold yet; an error where they cannot be trained."""
    todo = [s for s in stages if not (resume and (out / f"{s}.safetensors").is_file())]
    for stage in todo:
        there = [
            path
            for path in (
                out / f"{stage}.safetensors",
                *checkpoints_at(out / f"{stage}.checkpoint.safetensors"),
            )
            if path.is_file()
        ]
        if there and not resume:
            raise FileExistsError(
                f"{there[0]} is there already; add --resume to go on, or give another --out"
            )
        for part in NEEDS[stage]:
            if part not in todo and not (out / f"{part}.safetensors").is_file():
                raise FileNotFoundError(
                    f"{stage} needs {out / part}.safetensors; make it with: minimuse train {part.replace('_', '-')} --out {out}"
                )
    return todo


def fill_cache(out: Path, device: str) -> Iterator[Record]:
    """Compute what the base and super-resolution models of OUT are trained on, once; a record for each shard."""
    about = read_about(out)
    config, text = from_json(about["config"]), load_t5(about["text"]["name"], device)
    describe(
        out, config, about["data"], text, about["text"]["name"], about["seed"]
    )  # is it still the same text encoder?
    parts = {
        part: load_part(out, part, config, text.width).eval().to(device) for part in STAGES[:2]
    }
    for done, shards in cache.write_cache(
        out, cache.cache_key(out, about), parts, text, load_images(config, about["data"]), device
    ):
        yield Record("cache", done, shards, {})


def train_all(
    stages: tuple[str, ...],
    out: Path,
    config: Config,
    data: str,
    text: FrozenT5,
    text_name: str,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
) -> Iterator[Record]:
    """Train the stages that OUT does not hold yet, in order. Without `resume`, nothing there may be in the way."""
    about = describe(out, config, data, text, text_name, seed)
    todo, cached = pending(stages, out, resume), (out / "cache" / "index.json").is_file()
    pictures = (
        load_images(config, data) if {*todo} - {*TOKEN_STAGES} or (todo and not cached) else None
    )
    for stage in stages:
        with only_process(out, stage):  # clears up after a killed run, if it had come to its end too
            if not (out / f"{stage}.safetensors").is_file():
                yield from train_stage(stage, out, about, pictures, text, device)
