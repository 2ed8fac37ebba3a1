"""Training: one loop for every stage.

A stage trains one part of Muse (2301.00704, sections 2.2 to 2.5): the low-res or the high-res
tokenizer, the base model, the super-resolution model, or the finetuned decoder. The stages differ
only in their loss, so one loop trains them all:

    for record in training_loop("base", model, loss_of, settings, size, seed, checkpoint, key):
        print(record.step, record.metrics.get("loss"))  # None after a skipped step

`runs/stages.py` builds the arguments. Follow a batch: `batch_at` below chooses the indices of its
images, and `loss_of`, from `losses.py`, does the rest. It looks the batch up in `data.Images` or
`data.Tokens`, hides some of the tokens with `maskgit.hide`, runs the model and yields the loss.

The loop is a generator that yields a record after each step. Progress bars and plots are left to
the caller. Every random number of a step depends on (seed, stage, step) alone. So on a CPU a run
that is stopped and resumed ends with the same weights, bit for bit, as one that never stopped. (A
GPU adds some sums in varying order.)
"""

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minimuse.plumbing import collectives
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.checkpoint import Checkpoints, nothing_to_save
from minimuse.plumbing.config import Stage
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.optimizers import clip_gradients, make_optimizers

MAX_SKIPPED_IN_A_ROW = 5

Metrics = dict[str, torch.Tensor | float]
# A permutation (size,) of all images from (seed, stage, epoch, size), such as `epoch_order`.
Order = Callable[[int, str, int, int], torch.Tensor]


class Record(NamedTuple):
    """What the loop reports after each step."""

    stage: str
    step: int  # steps done so far
    steps: int  # steps of the whole stage
    metrics: Metrics
    save: Callable[[], None] = nothing_to_save  # write a checkpoint now, from which to resume


@in_usual_state
def training_loop(
    name: str,
    model: nn.Module,
    loss_of: Callable[[torch.Tensor, torch.Generator, int], Iterable[tuple[torch.Tensor, Metrics]]],
    settings: Stage,
    size: int,
    seed: int,
    checkpoint: Path,
    key: dict,
    watch: Callable[[Record], None] | None = None,
    order: Order | None = None,
) -> Iterator[Record]:
    """Train `model` in place and yield a record per step; at the end it holds the averaged weights.

    name: the stage; random numbers and error messages depend on it.
    loss_of: `loss_of(indices, generator, step)` yields (loss, metrics) of a batch, either once or
        in several parts that add up to those of the batch (see `losses.py`).
    size: number of training images.
    checkpoint, key: the loop saves to the file `checkpoint` and resumes from it where it exists;
        `key` describes the run, and a checkpoint with another key raises a ValueError.
    watch: called with each record, before a checkpoint of that step is written. It may look at the
        model, but must leave it and the global random numbers as they are.
    order: in place of `epoch_order`, where images are quicker to read in another order.

    The loop saves a checkpoint once a minute at most. To stop earlier and resume later, call
    `save()` of the last record, and take no more records; a loop that is only dropped or closed
    writes nothing. After a stop signal (`plumbing/stopping.py`) the loop saves and raises
    KeyboardInterrupt.
    """
    optimizers = make_optimizers(model, settings)
    average = WeightAverage(model, settings)
    skipped = SkippedSteps(name)
    checkpoints = Checkpoints(checkpoint, key, model, average.weights, optimizers)

    first_step = checkpoints.restore()
    for step in range(first_step, settings.steps):
        set_step(optimizers, settings, step)
        indices = batch_at(seed, name, step, settings.batch, size, order)
        generator = generator_at(seed, name, step)
        # `losses` is a generator: the forward pass runs when a loss is taken from it.
        losses = loss_of(indices, generator, step)
        metrics = accumulate_gradients(losses)

        finite = clip_gradients(model)
        if finite:
            for optimizer in optimizers:
                optimizer.step()
        model.zero_grad()
        skipped.count(finite, step + 1)
        metrics = skipped.report(finite, metrics)
        average.update(step + 1)

        checkpoints.steps_done = step + 1
        record = Record(name, step + 1, settings.steps, metrics, checkpoints.save)
        if watch is not None:
            watch(record)
        if step + 1 < settings.steps:
            checkpoints.save_if_needed()
        yield record
    model.load_state_dict(average.weights)


def batch_at(
    seed: int, stage: str, step: int, batch: int, size: int, order: Order | None = None
) -> torch.Tensor:
    """Indices (B,) of the images of a step, out of `size` images.

    Every epoch visits all images once, in a new order: that of `epoch_order`, or another one. A
    batch may run on into the next epoch.
    """
    order_of = epoch_order if order is None else order
    indices = []
    for position in range(step * batch, (step + 1) * batch):
        epoch, place = divmod(position, size)
        indices.append(order_of(seed, stage, epoch, size)[place])
    return torch.stack(indices)


# A permutation of millions of images takes longer than a training step, so keep the last two.
@lru_cache(maxsize=2)
def epoch_order(seed: int, stage: str, epoch: int, size: int) -> torch.Tensor:
    """The order of all images in an epoch: a permutation (size,)."""
    return torch.randperm(size, generator=generator_at(seed, stage, "epoch", epoch))


@torch.enable_grad()
def accumulate_gradients(losses: Iterable[tuple[torch.Tensor, Metrics]]) -> dict[str, torch.Tensor]:
    """Compute the losses of a batch and add up their gradients; return the loss and the metrics.

    The sums are over all parts of the batch and over all processes; all must call this.
    """
    _, processes = collectives.rank_and_size()
    sums: dict[str, torch.Tensor] = {}
    for loss, metrics in losses:
        # FSDP takes the mean of the gradients over processes, but the losses of the processes add
        # up to the loss of the batch. The factor turns the mean into a sum.
        (loss * processes).backward()
        for key, value in {"loss": loss.detach(), **metrics}.items():
            sums[key] = sums.get(key, 0) + torch.as_tensor(value)
    return {key: collectives.sum_over_processes(value) for key, value in sums.items()}


def learning_rate_fraction(settings: Stage, step: int) -> float:
    """Fraction of the peak learning rate: a linear warm-up, then half a cosine.

    The cosine reaches 0 just after the last step, so the last step still learns.
    """
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return (step + 1) / warmup
    decay = max(1, settings.steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay))


def set_step(optimizers: list[torch.optim.Optimizer], settings: Stage, step: int) -> None:
    """Set the learning rate and the number of the step.

    The rate is each optimizer's own peak times `learning_rate_fraction`. Only Muon reads the
    number: with `muon_every` matrices take turns, and the step says whose turn it is.
    """
    fraction = learning_rate_fraction(settings, step)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * fraction
            group["step"] = step


class WeightAverage:
    """A moving average of the weights, which replaces them at the end of the training.

    Muse averages a checkpoint every 5,000 of its 1.5 million steps, with a decay of 0.7 (appendix).
    Here there are about `settings.averages` such moments, evenly spaced, and one at the end.
    """

    def __init__(self, model: nn.Module, settings: Stage):
        self.model = model
        self.weights = deepcopy(model.state_dict())
        self.every = max(1, settings.steps // settings.averages)
        self.decay = settings.average_decay
        self.steps = settings.steps

    def update(self, steps_done: int) -> None:
        """Take the present weights into the average, if it is time to."""
        if steps_done % self.every != 0 and steps_done != self.steps:
            return
        # The initial weights do not count: the first update replaces them.
        decay = self.decay if steps_done > self.every else 0.0
        for name, weight in self.model.state_dict().items():
            # A codebook is a moving average already, and an average of counters has no meaning.
            if "quantizer" in name or not weight.is_floating_point():
                self.weights[name].copy_(weight)
            else:
                self.weights[name].lerp_(weight, 1 - decay)


class SkippedSteps:
    """Counts the steps whose gradients were not finite.

    The loop skips such a step: one NaN among the gradients would spread to all weights and stay.
    """

    def __init__(self, stage: str):
        self.stage = stage
        self.total = 0  # since the loop began or was resumed
        self.in_a_row = 0

    def count(self, finite: bool, steps_done: int) -> None:
        """Count a step. Raises a ValueError after five skipped steps in a row."""
        if finite:
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            self.total += 1
        if self.in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise ValueError(
                f"gradients were not finite in the last {self.in_a_row} steps, up to step "
                f"{steps_done}; start again with a lower stages.{self.stage}.lr and another --out"
            )

    def report(self, finite: bool, metrics: Metrics) -> Metrics:
        """The metrics to show for a step, with the number of skipped steps if there are any.

        Those of a skipped step are left out, since a NaN would stay in a smoothed display.
        """
        shown = dict(metrics) if finite else {}
        if self.total:
            shown["skipped"] = float(self.total)
        return shown
