"""Training: one visible loop for every stage, and the loss of each stage.

    minimuse train all --preset toy --data emoji --out runs/emoji        # or one stage at a time
    minimuse train base --preset toy --data emoji --out runs/emoji --resume

tokenizer, tokenizer-hi: VQGANs. base, superres: masked transformers over their tokens. decoder: the high-res decoder, grown and
finetuned with encoder and codebook frozen. The loop yields a record per step: progress bars, plots and lessons live with the caller.
All randomness of a step is a function of (seed, stage, step): resuming ends in the same weights, bit for bit, as never stopping.
"""

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from minimuse import cache, parallel
from minimuse.checkpoint import alone, asked, kept, restore, save, write_json
from minimuse.config import Config, Stage, from_json
from minimuse.data import Pictures, halve, load, stable_hash
from minimuse.maskgit import drop_captions, hide, masked_token_loss
from minimuse.muon import Muon
from minimuse.muse import PARTS, autocast, build, load_part, load_text, read_about, save_part
from minimuse.t5_frozen import FrozenT5
from minimuse.vq import grow, perplexity
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
SAVE_EVERY = 60.0  # seconds between checkpoints
PATIENCE = 5  # steps without finite gradients
computes = lambda about: (
    about | {"config": about["config"] | {"scale": None}, "text": about["text"]["fingerprint"]}
)  # what decides on weights


class Record(NamedTuple):
    stage: str
    step: int  # steps done
    steps: int  # in all
    metrics: dict[str, torch.Tensor | float]


def generator_at(*key) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    return torch.Generator().manual_seed(stable_hash("/".join(map(str, key))) >> 1)


def batch_at(seed: int, stage: str, step: int, batch: int, size: int) -> torch.Tensor:
    """Indices of the pictures of a step: a new permutation each epoch, with batches running on across its end."""
    return torch.stack(
        [
            epoch_order(seed, stage, p // size, size)[p % size]
            for p in range(step * batch, (step + 1) * batch)
        ]
    )


@lru_cache(maxsize=2)  # of millions of pictures, a permutation takes longer than a step
def epoch_order(seed: int, stage: str, epoch: int, size: int) -> torch.Tensor:
    return torch.randperm(size, generator=generator_at(seed, stage, "epoch", epoch))


def learning_rate(stage: Stage, step: int) -> float:
    """Share of the peak: linear warm-up, then half a cosine down to 0 after the last step."""
    warmup = max(1, round(stage.warmup * stage.steps))
    return min(
        (step + 1) / warmup,
        0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, stage.steps - warmup))),
    )


def make_optimizers(model: nn.Module, settings: Stage) -> list[torch.optim.Optimizer]:
    """AdamW, or Adafactor (Muse's; PyTorch's has no first moment); where muon_lr is set, Muon for the matrices inside transformer blocks."""
    if settings.batch % (processes := parallel.place()[1]):
        raise ValueError(
            f"a batch of {settings.batch} cannot be shared evenly by {processes} processes"
        )
    if processes > 1 and (settings.muon_lr or settings.optimizer != "adamw"):
        raise ValueError(
            "several processes need AdamW: Muon and Adafactor look at whole matrices (stages.base.muon_lr=0 stages.base.optimizer=adamw)"
        )
    matrices = [
        p
        for n, p in model.named_parameters()
        if settings.muon_lr and "blocks." in n and n.endswith("weight") and p.ndim == 2
    ]
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not m for m in matrices)]
    if settings.optimizer == "adafactor":
        first = torch.optim.Adafactor(rest, lr=settings.lr, weight_decay=settings.weight_decay)
    else:
        first = torch.optim.AdamW(
            rest,
            lr=settings.lr,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    return [first, Muon(matrices, settings.muon_lr)] if matrices else [first]


def optimize(
    name: str,
    model: nn.Module,
    parts_of: Callable,
    settings: Stage,
    size: int,
    seed: int,
    checkpoint: Path,
    key: dict,
) -> Iterator[Record]:
    """Train `model` in place; at the end it holds the averaged weights. Yields a record per step.

    parts_of(indices, generator, step) yields (loss, metrics), once or in parts that add up to the batch's. Continues from `checkpoint`, if it
    is there; `key` says what it belongs to. Saves every minute, when closed, and when `asked` to stop, which ends in KeyboardInterrupt."""
    processes, optimizers = parallel.place()[1], make_optimizers(model, settings)
    average, average_every = (
        deepcopy(model.state_dict()),
        max(1, settings.steps // settings.averages),
    )
    saved, took, skipped, in_a_row = time.monotonic(), 0.0, 0, 0
    for step in range(restore(checkpoint, model, average, optimizers, key), settings.steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * learning_rate(
                settings, step
            )
        found: dict[str, torch.Tensor] = {}
        for loss, metrics in parts_of(
            batch_at(seed, name, step, settings.batch, size), generator_at(seed, name, step), step
        ):
            (
                loss * processes
            ).backward()  # FSDP takes the mean over processes, but these are parts of a sum
            for k, v in ({"loss": loss.detach()} | metrics).items():
                found[k] = found.get(k, 0) + torch.as_tensor(v)
        finite = bool(parallel.whole(nn.utils.clip_grad_norm_(model.parameters(), 1.0)).isfinite())
        for optimizer in optimizers:
            if finite:  # one NaN among the gradients would be in all weights, and stay
                optimizer.step()
            optimizer.zero_grad()
        skipped, in_a_row = skipped + (not finite), 0 if finite else in_a_row + 1
        if in_a_row == PATIENCE:
            raise ValueError(
                f"gradients were not finite in {in_a_row} steps in a row, to step {step + 1}; lower stages.{name}.lr, in another --out"
            )
        if skipped:
            found = (found if finite else {}) | {"skipped": torch.tensor(skipped / processes)}
        if (step + 1) % average_every == 0 or step + 1 == settings.steps:
            decay = settings.average_decay if step + 1 > average_every else 0.0
            for k, now in model.state_dict().items():
                # codebooks are averages already, and counters cannot be averaged: take them as they are
                average[k].lerp_(
                    now, 1 - decay
                ) if now.is_floating_point() and "quantizer" not in k else average[k].copy_(now)
        begun = time.monotonic()
        due = (
            parallel.place()[0] == 0 and begun - saved - 20 * took > SAVE_EVERY
        )  # of a large model, saving takes a minute itself
        wish = parallel.total(torch.tensor(2.0 * bool(asked) + due))  # of all processes
        if wish and step + 1 < settings.steps:
            save(checkpoint, step + 1, model, average, optimizers, key)
            took = (saved := time.monotonic()) - begun
            if wish >= 2:
                raise KeyboardInterrupt
        try:
            yield Record(
                name, step + 1, settings.steps, {k: parallel.total(v) for k, v in found.items()}
            )
        except GeneratorExit:
            if processes == 1:  # several may have been stopped at different steps
                save(checkpoint, step + 1, model, average, optimizers, key)
            raise
    model.load_state_dict(average)


def token_loss(
    model: nn.Module, tokens: cache.Tokens, config: Config, resolution: str, device: str
) -> Callable:
    """Of the base model ("low") and of super-resolution ("high"). Everything random is drawn for the whole batch, and a part counts by its
    share of all hidden tokens: however a batch is cut, into passes or over processes, the losses add up to the same."""

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        (rank, processes), B = parallel.place(), len(indices)
        ids, below = tokens.ids(resolution, indices).to(device), ()
        if resolution == "high":  # what is learnt of each picture, under all of its low-res tokens
            below = tokens.ids("low", indices).to(device), model.places(ids, generator)
            ids = ids.gather(1, below[1])
        said = tokens.choose(indices, generator)
        kept = drop_captions(torch.ones(B, 1, dtype=torch.bool), config.caption_dropout, generator)
        corrupted = hide(ids, model.mask_id, generator)
        for rows in torch.arange(B).chunk(processes)[rank].split(config.scale.micro_batch or B):
            text, visible = cache.pad([said[i] for i in rows.tolist()])
            text, visible, hidden = (
                text.to(device),
                (visible & kept[rows]).to(device),
                corrupted.hidden[rows],
            )
            with autocast(device):
                context = model.context(text, visible, *(x[rows] for x in below))
                logits = model(corrupted.ids[rows], context, hidden)
            loss, correct = masked_token_loss(logits, ids[rows], hidden)
            share = hidden.sum() / corrupted.hidden.sum()
            yield (
                share * loss,
                {"accuracy": share * correct, "chance": share * math.log(model.mask_id)},
            )  # ln K: the loss of a guess

    return parts_of


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), at a random place that the batch shares."""
    y, x = (
        int(torch.randint(length - side + 1, (), generator=generator))
        for length in images.shape[-2:]
    )
    return images[..., y : y + side, x : x + side]


def tokenizer_loss(
    model: nn.ModuleDict,
    pictures: Pictures,
    config: Config,
    settings: Stage,
    low: bool,
    device: str,
) -> Callable:
    """Of a VQGAN: pictures as they should be, and latents close to their codes. Moves the codebook.

    The high-res one, being fully convolutional, learns from pieces as large as the low-res pictures. For a share `quantize_from` of the
    steps it is a plain autoencoder: the encoder would settle for the few among codes placed at random that it can tell apart."""
    tokenizer, picture_loss = model["part"], model["loss"]
    quantize_from = round(config.loss.quantize_from * settings.steps)

    def images_at(indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = pictures.batch(indices).to(device)
        return halve(images) if low else crop(images, config.tokenizer.side, generator)

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = images_at(indices, generator)
        if step == quantize_from:
            some = torch.randint(len(pictures), (256,), generator=generator).split(
                32
            )  # few pictures would miss whole colours
            with autocast(device), torch.no_grad():
                tokenizer.quantizer.start(
                    torch.cat([tokenizer.latents(images_at(i, generator)) for i in some]), generator
                )
        with autocast(device):
            if step < quantize_from:
                yield picture_loss(
                    tokenizer.autoencode(images), images, tokenizer.decoder[-1].weight, False
                )
                return
            fake, z, ids, commitment = tokenizer(images)
            adversarial = step >= config.loss.adversarial_from * settings.steps
            loss, metrics = picture_loss(fake, images, tokenizer.decoder[-1].weight, adversarial)
        tokenizer.quantizer.update(z, ids, generator)
        yield (
            loss + config.loss.commitment * commitment,
            metrics | {"perplexity": perplexity(ids, tokenizer.config.codes)[0]},
        )

    return parts_of


def decoder_loss(
    model: nn.ModuleDict,
    frozen: nn.Module,
    pictures: Pictures,
    config: Config,
    settings: Stage,
    device: str,
) -> Callable:
    """Of the finetuned decoder: the same picture loss, from the frozen encoder's codes of pieces as small as the tokenizer's."""
    decoder, picture_loss = model["part"], model["loss"]

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = crop(pictures.batch(indices).to(device), config.tokenizer.side, generator)
        with autocast(device):
            fake = decoder(
                rearrange(frozen.quantizer.lookup(frozen.encode(images)), "B h w D -> B D h w")
            )
            adversarial = step >= config.loss.adversarial_from * settings.steps
            yield picture_loss(fake, images, decoder[-1].weight, adversarial)

    return parts_of


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


def train(
    name: str,
    out: Path,
    about: dict,
    pictures: Pictures | None,
    text: FrozenT5,
    device: str = "cpu",
) -> Iterator[Record]:
    """Train one stage into OUT/NAME.safetensors, from the parts that it needs in OUT; resumes a checkpoint there."""
    config, seed = from_json(about["config"]), about["seed"]
    with alone(out, "config", wait=-1):  # stages that train side by side write the same file
        parallel.place()[0] or write_json(out / "config.json", about)
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
                cache.read(out, cache.key(out, about))
                if (out / "cache" / "index.json").is_file()
                else cache.Tokens.of(needed, text, pictures, device)
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
            if parallel.place()[1] > 1:
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
        yield from optimize(name, model, parts_of, settings, size, seed, path, key)
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
    for done in kept(path):
        done.unlink(missing_ok=True)  # another process may have been quicker


def pictures_of(
    config: Config, data: str, split: str = "train", count: int | None = None, seed: int = 0
) -> Pictures:
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
                *kept(out / f"{stage}.checkpoint.safetensors"),
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
    config, text = from_json(about["config"]), load_text(about["text"]["name"], device)
    describe(
        out, config, about["data"], text, about["text"]["name"], about["seed"]
    )  # is it still the same text encoder?
    parts = {
        part: load_part(out, part, config, text.width).eval().to(device) for part in STAGES[:2]
    }
    for done, shards in cache.write(
        out, cache.key(out, about), parts, text, pictures_of(config, about["data"]), device
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
        pictures_of(config, data) if {*todo} - {*TOKEN_STAGES} or (todo and not cached) else None
    )
    for stage in stages:
        with alone(out, stage):  # clears up after a killed run, if it had come to its end too
            if not (out / f"{stage}.safetensors").is_file():
                yield from train(stage, out, about, pictures, text, device)
