"""Training: one visible loop for every stage, and the loss of each stage.

    minimuse train all --preset toy --data emoji --out runs/emoji        # or one stage at a time
    minimuse train base --preset toy --data emoji --out runs/emoji --resume

tokenizer, tokenizer-hi: VQGANs. base, superres: masked transformers over the tokens that these give
(frozen, so computed once, like the text embeddings). decoder: the high-res decoder, grown and finetuned
with encoder and codebook frozen. The loop is a generator that yields a record per step, so that progress
bars, plots and lessons live with the caller.

All randomness of a step is a function of (seed, stage, step). Resuming therefore needs weights, optimizer and
step number, and ends in the same weights, bit for bit, as never stopping.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from minimuse.config import Config, Stage, from_json
from minimuse.data import Pictures, halve, load, stable_hash
from minimuse.maskgit import drop_captions, hide, masked_token_loss
from minimuse.muon import Muon
from minimuse.muse import PARTS, autocast, build, load_part, read_about, save_part, save_tensors, write_json
from minimuse.t5_frozen import FrozenT5
from minimuse.vq import grow, perplexity
from minimuse.vq_loss import PictureLoss

STAGES = PARTS  # each part has its stage, in this order
NEEDS = {"tokenizer": (), "tokenizer_hi": (), "base": ("tokenizer",), "superres": ("tokenizer", "tokenizer_hi"), "decoder": ("tokenizer_hi",)}
SAVE_EVERY = 60.0  # seconds between checkpoints


class Record(NamedTuple):
    stage: str
    step: int  # steps done
    steps: int  # in all
    metrics: dict[str, torch.Tensor | float]


# --- Everything random, from (seed, stage, step) ---
def generator_at(*key) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    return torch.Generator().manual_seed(stable_hash("/".join(map(str, key))) >> 1)


def batch_at(seed: int, stage: str, step: int, batch: int, size: int) -> torch.Tensor:
    """Indices of the pictures of a step: a new permutation each epoch, with batches running on across its end."""
    places = torch.arange(step * batch, (step + 1) * batch)
    epochs = {int(e): torch.randperm(size, generator=generator_at(seed, stage, "epoch", int(e))) for e in (places // size).unique()}
    return torch.stack([epochs[int(p // size)][p % size] for p in places])


def learning_rate(stage: Stage, step: int) -> float:
    """Share of the peak: linear warm-up, then half a cosine down to 0 after the last step."""
    warmup = max(1, round(stage.warmup * stage.steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, stage.steps - warmup)))


def make_optimizers(model: nn.Module, settings: Stage) -> list[torch.optim.Optimizer]:
    """AdamW; and, where muon_lr is set, Muon for the matrices inside the transformer blocks. (Muse: Adafactor.)"""
    matrices = [p for n, p in model.named_parameters() if settings.muon_lr and "blocks." in n and n.endswith("weight") and p.ndim == 2]
    rest = [p for p in model.parameters() if p.requires_grad and all(p is not m for m in matrices)]
    adamw = torch.optim.AdamW(rest, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    return [adamw, Muon(matrices, settings.muon_lr)] if matrices else [adamw]


def optimize(
    name: str, model: nn.Module, loss_of: Callable, settings: Stage, size: int, seed: int, checkpoint: Path, key: dict
) -> Iterator[Record]:
    """Train `model` in place; at the end it holds the averaged weights. Yields a record per step.

    loss_of(indices, generator, step) -> (loss, metrics). Continues from `checkpoint` where that exists; `key`
    says what the checkpoint belongs to. Closing the generator saves; so does every minute.
    """
    optimizers = make_optimizers(model, settings)
    average = deepcopy(model.state_dict())
    average_every = max(1, settings.steps // settings.averages)
    start = restore(checkpoint, model, average, optimizers, key) if checkpoint.is_file() else 0
    saved = time.monotonic()
    for step in range(start, settings.steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = optimizer.defaults["lr"] * learning_rate(settings, step)
        loss, metrics = loss_of(batch_at(seed, name, step, settings.batch, size), generator_at(seed, name, step), step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % average_every == 0 or step + 1 == settings.steps:
            decay = settings.average_decay if step + 1 > average_every else 0.0
            for k, now in model.state_dict().items():
                # codebooks are averages already, and counters cannot be averaged: take them as they are
                average[k].lerp_(now, 1 - decay) if now.is_floating_point() and "quantizer" not in k else average[k].copy_(now)
        if step + 1 < settings.steps and time.monotonic() - saved > SAVE_EVERY:
            save(checkpoint, step + 1, model, average, optimizers, key)
            saved = time.monotonic()
        try:
            yield Record(name, step + 1, settings.steps, {"loss": loss.detach(), **metrics})
        except GeneratorExit:
            save(checkpoint, step + 1, model, average, optimizers, key)
            raise
    model.load_state_dict(average)


def states(model: nn.Module, optimizers: list) -> Iterator[tuple[str, nn.Parameter, dict]]:
    """Name, parameter, and what an optimizer remembers of it."""
    names = {p: n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"]:
            yield names[p], p, optimizer.state[p]


def save(path: Path, step: int, model: nn.Module, average: dict, optimizers: list, key: dict) -> None:
    """One safetensors file: weights, average, optimizers, and in its header the step and what it belongs to."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {f"average.{k}": v for k, v in average.items()}
    for name, _, state in states(model, optimizers):
        tensors |= {f"optimizer.{name}/{k}": v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, tensors, {"step": str(step), "key": json.dumps(key)})


def restore(path: Path, model: nn.Module, average: dict, optimizers: list, key: dict) -> int:
    """Put a checkpoint back; returns the number of steps done."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        step, belongs = int(header["step"]), json.loads(header["key"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no checkpoint ({error}); remove it to start this stage again") from None
    if belongs != key:
        raise ValueError(f"{path} was started with other settings, data, text encoder or seed; give the same ones, or another --out")
    if missing := {f"{kind}.{k}" for kind in ("model", "average") for k in average} - tensors.keys():
        raise ValueError(f"{path} is no checkpoint of this stage: it lacks {min(missing)}; remove it to start this stage again")
    with torch.no_grad():
        for k, v in model.state_dict().items():
            v.copy_(tensors[f"model.{k}"])
            average[k].copy_(tensors[f"average.{k}"])
        for name, p, state in states(model, optimizers):
            for k, v in ((k.rpartition("/")[2], v) for k, v in tensors.items() if k.startswith(f"optimizer.{name}/")):
                # empty_like keeps the parameter's memory layout (channels-last), which the fused step relies on
                state[k] = torch.empty_like(p).copy_(v) if v.shape == p.shape and k != "step" else v
    return step


# --- What each stage minimises ---
class Tokens:
    """What is frozen, computed once: token ids of every picture, embeddings of every caption."""

    def __init__(self, parts: dict[str, nn.Module], text: FrozenT5, pictures: Pictures, device: str, batch: int = 64):
        rows = torch.arange(len(pictures)).split(batch)
        with autocast(device), torch.no_grad():
            encode = lambda name, shrink: torch.cat([parts[name].encode(shrink(pictures.batch(i).to(device))).flatten(1) for i in rows])
            self.low = encode("tokenizer", halve)
            self.high = encode("tokenizer_hi", lambda x: x) if "tokenizer_hi" in parts else None
            # a caption that many pictures share is embedded once; captions of a picture stand side by side
            words = sorted(dict.fromkeys(c for cs in pictures.captions for c in cs), key=len)  # like lengths together: little is padding
            chunks = [text(words[i : i + 256]) for i in range(0, len(words), 256)]
        self.text = pad_sequence([row for embeddings, _ in chunks for row in embeddings.to(torch.bfloat16)], batch_first=True)
        self.visible = pad_sequence([row for _, mask in chunks for row in mask], batch_first=True)
        place = {c: i for i, c in enumerate(words)}
        self.variants = [[place[c] for c in cs] for cs in pictures.captions]

    def captions(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """A caption of each picture (a random one, or the first): embeddings (B, T, E), mask (B, T)."""
        u = torch.rand(len(indices), generator=generator) if generator else torch.zeros(len(indices))
        chosen = [self.variants[i][int(x * len(self.variants[i]))] for i, x in zip(indices.tolist(), u)]
        visible = self.visible[chosen]
        T = max(1, int(visible.sum(-1).max()))  # padding to the longest of the batch is enough
        return self.text[chosen, :T].float(), visible[:, :T]


def token_loss(model: nn.Module, tokens: Tokens, config: Config, resolution: str, device: str) -> Callable:
    """Of the base model ("low") and of super-resolution ("high"): the masked-token loss."""

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        ids = (tokens.low if resolution == "low" else tokens.high)[indices]
        text, visible = tokens.captions(indices, generator)
        visible = drop_captions(visible, config.caption_dropout, generator)
        corrupted = hide(ids, model.mask_id, generator)
        with autocast(device):
            context = model.context(text, visible) if resolution == "low" else model.context(text, visible, tokens.low[indices])
            logits = model(corrupted.ids, context, corrupted.hidden)
        loss, correct = masked_token_loss(logits, ids, corrupted.hidden)
        return loss, {"accuracy": correct, "chance": math.log(model.mask_id)}  # ln K: the loss of a guess

    return loss_of


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), at a random place that the batch shares."""
    y, x = (int(torch.randint(length - side + 1, (), generator=generator)) for length in images.shape[-2:])
    return images[..., y : y + side, x : x + side]


def tokenizer_loss(model: nn.ModuleDict, pictures: Pictures, config: Config, settings: Stage, low: bool, device: str) -> Callable:
    """Of a VQGAN: pictures as they should be, and latents close to their codes. Moves the codebook.

    The high-res one learns from pieces as large as the low-res pictures, a quarter of the work: it is fully convolutional.

    At first, for a share `quantize_from` of the steps, it is a plain autoencoder: codes placed among random latents would quantize
    noise, and the encoder would settle for the few it can tell apart.
    """
    tokenizer, picture_loss = model["part"], model["loss"]
    quantize_from = round(config.loss.quantize_from * settings.steps)

    def images_at(indices: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        images = pictures.batch(indices).to(device)
        return halve(images) if low else crop(images, config.tokenizer.side, generator)

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = images_at(indices, generator)
        if step == quantize_from:
            some = torch.randint(len(pictures), (256,), generator=generator).split(32)  # few pictures would miss whole colours
            with autocast(device), torch.no_grad():
                tokenizer.quantizer.start(torch.cat([tokenizer.latents(images_at(i, generator)) for i in some]), generator)
        with autocast(device):
            if step < quantize_from:
                return picture_loss(tokenizer.autoencode(images), images, tokenizer.decoder[-1].weight, False)
            fake, z, ids, commitment = tokenizer(images)
            adversarial = step >= config.loss.adversarial_from * settings.steps
            loss, metrics = picture_loss(fake, images, tokenizer.decoder[-1].weight, adversarial)
        tokenizer.quantizer.update(z, ids, generator)
        return loss + config.loss.commitment * commitment, metrics | {"perplexity": perplexity(ids, tokenizer.config.codes)[0]}

    return loss_of


def decoder_loss(model: nn.ModuleDict, frozen: nn.Module, pictures: Pictures, config: Config, settings: Stage, device: str) -> Callable:
    """Of the finetuned decoder: the same picture loss, from the frozen encoder's codes of pieces as small as the tokenizer's."""
    decoder, picture_loss = model["part"], model["loss"]

    def loss_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        images = crop(pictures.batch(indices).to(device), config.tokenizer.side, generator)
        with autocast(device):
            fake = decoder(rearrange(frozen.quantizer.lookup(frozen.encode(images)), "B h w D -> B D h w"))
            adversarial = step >= config.loss.adversarial_from * settings.steps
            return picture_loss(fake, images, decoder[-1].weight, adversarial)

    return loss_of


def describe(out: Path, config: Config, data: str, text: FrozenT5, text_name: str, seed: int) -> dict:
    """What OUT/config.json says of such a model; a ValueError where OUT holds another."""
    about = {"config": dataclasses.asdict(config), "data": data, "seed": seed, "text": {"name": text_name, "fingerprint": text.fingerprint}}
    about = json.loads(json.dumps(about))
    if (out / "config.json").is_file() and read_about(out) != about:
        raise ValueError(f"{out} holds a model with other settings, data, text encoder or seed; give the same ones, or another --out")
    return about


def train(name: str, out: Path, about: dict, pictures: Pictures, text: FrozenT5, device: str = "cpu") -> Iterator[Record]:
    """Train one stage into OUT/NAME.safetensors, from the parts that it needs in OUT; resumes a checkpoint there."""
    config, seed = from_json(about["config"]), about["seed"]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", about)
    settings = getattr(config.stages, name)
    needed = {part: load_part(out, part, config, text.width).eval().requires_grad_(False).to(device) for part in NEEDS[name]}
    with torch.random.fork_rng(devices=[]):  # initial weights too are a function of (seed, stage)
        torch.manual_seed(generator_at(seed, name, "weights").initial_seed())
        begun = (out / "start" / f"{name}.safetensors").is_file()  # another model's part, to be trained further
        model = part = (load_part(out / "start", name, config, text.width) if begun else build(name, config, text.width)).to(device)
        if name in ("base", "superres"):
            tokens = Tokens(needed, text, pictures, device)
            codes = (t.quantizer.lookup(torch.arange(t.config.codes, device=device)) for t in needed.values())
            if not begun:
                model.start(tokens.text[tokens.visible].float().to(device), *codes)
            loss_of = token_loss(model, tokens, config, "low" if name == "base" else "high", device)
        else:
            model = nn.ModuleDict({"part": part, "loss": PictureLoss(config.loss).to(device)})
            if name == "decoder":
                if not begun:
                    grow(needed["tokenizer_hi"].decoder, part, generator_at(seed, name, "grow"))
                loss_of = decoder_loss(model, needed["tokenizer_hi"], pictures, config, settings, device)
            else:
                loss_of = tokenizer_loss(model, pictures, config, settings, name == "tokenizer", device)
    checkpoint, key = out / f"{name}.checkpoint.safetensors", about | {"stage": name, "pictures": len(pictures)}
    yield from optimize(name, model, loss_of, settings, len(pictures), seed, checkpoint, key)
    save_part(out, name, part)
    checkpoint.unlink(missing_ok=True)


def pending(stages: tuple[str, ...], out: Path, resume: bool) -> list[str]:
    """The stages that OUT does not hold yet; an error where they cannot be trained."""
    todo = [s for s in stages if not (resume and (out / f"{s}.safetensors").is_file())]
    for stage in todo:
        for path in (out / f"{stage}.safetensors", out / f"{stage}.checkpoint.safetensors"):
            if path.is_file() and not resume:
                raise FileExistsError(f"{path} is there already; add --resume to go on, or give another --out")
        for part in NEEDS[stage]:
            if part not in todo and not (out / f"{part}.safetensors").is_file():
                raise FileNotFoundError(f"{stage} needs {out / part}.safetensors; make it with: minimuse train {part.replace('_', '-')} --out {out}")
    return todo


def train_all(
    stages: tuple[str, ...], out: Path, config: Config, data: str, text: FrozenT5, text_name: str,
    seed: int = 0, device: str = "cpu", resume: bool = False,
) -> Iterator[Record]:  # fmt: skip
    """Train the stages that OUT does not hold yet, in order. Without `resume`, nothing there may be in the way."""
    about = describe(out, config, data, text, text_name, seed)
    if not (todo := pending(stages, out, resume)):
        return
    high, count = config.tokenizer_hi, config.scenes if data == "shapes" else None
    pictures = load(data, "train", high.side, count, smallest=high.factor, skip=config.skip_unreadable)
    for stage in todo:
        yield from train(stage, out, about, pictures, text, device)
