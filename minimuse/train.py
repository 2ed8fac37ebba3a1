import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minimuse.device import generator_at
from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import restore_checkpoint, save_checkpoint
from minimuse.plumbing.config import Stage
from minimuse.plumbing.muon import Muon
from minimuse.plumbing.stopping import stop_signals

SAVE_EVERY = 60.0  # seconds between checkpoints


PATIENCE = 5  # steps without finite gradients


class Record(NamedTuple):
    stage: str
    step: int  # steps done
    steps: int  # in all
    metrics: dict[str, torch.Tensor | float]


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
    if settings.batch % (processes := collectives.rank_and_size()[1]):
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


def training_loop(
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
    processes, optimizers = collectives.rank_and_size()[1], make_optimizers(model, settings)
    average, average_every = (
        deepcopy(model.state_dict()),
        max(1, settings.steps // settings.averages),
    )
    saved, took, skipped, in_a_row = time.monotonic(), 0.0, 0, 0
    for step in range(
        restore_checkpoint(checkpoint, model, average, optimizers, key), settings.steps
    ):
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
        finite = bool(
            collectives.gather(nn.utils.clip_grad_norm_(model.parameters(), 1.0)).isfinite()
        )
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
            collectives.rank_and_size()[0] == 0 and begun - saved - 20 * took > SAVE_EVERY
        )  # of a large model, saving takes a minute itself
        wish = collectives.sum_over_processes(
            torch.tensor(2.0 * bool(stop_signals) + due)
        )  # of all processes
        if wish and step + 1 < settings.steps:
            save_checkpoint(checkpoint, step + 1, model, average, optimizers, key)
            took = (saved := time.monotonic()) - begun
            if wish >= 2:
                raise KeyboardInterrupt
        try:
            yield Record(
                name,
                step + 1,
                settings.steps,
                {k: collectives.sum_over_processes(v) for k, v in found.items()},
            )
        except GeneratorExit:
            if processes == 1:  # several may have been stopped at different steps
                save_checkpoint(checkpoint, step + 1, model, average, optimizers, key)
            raise
    model.load_state_dict(average)
