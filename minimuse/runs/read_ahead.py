"""Read the images of the next steps from tar files while a step computes."""

import torch

from minimuse.data import Images
from minimuse.datasets.stream import Stream
from minimuse.losses import Losses, LossOf, micro_batches
from minimuse.plumbing.config import Stage
from minimuse.train import Order, batch_at

AHEAD = 2  # steps; their images are in memory as bytes


def reading_ahead(
    loss_of: LossOf, images: Images | Stream, settings: Stage, name: str, seed: int
) -> tuple[LossOf, Order | None]:
    """The same loss, which reads ahead if the images are a stream, and the order of its images.

    name, seed: of the stage. The order is for `training_loop`, None for the usual one.
    """
    if not isinstance(images, Stream):
        return loss_of, None
    order = images.epoch_order

    def loss_of_step(indices: torch.Tensor, generator: torch.Generator, step: int) -> Losses:
        for next_step in range(step, min(step + AHEAD + 1, settings.steps)):
            batch = batch_at(seed, name, next_step, settings.batch, len(images), order)
            # Each process reads what it computes itself.
            [rows] = micro_batches(len(batch), 0)
            images.expect(batch[rows])
        yield from loss_of(indices, generator, step)

    return loss_of_step, order
