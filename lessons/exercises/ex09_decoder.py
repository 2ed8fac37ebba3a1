"""Lesson 09: what is needed to finetune a decoder.

Write each function where it says so, then run `minimuse check 09`. Each docstring is a slow, plain specification; yours may be
quicker. Nothing here needs a model.
"""

import torch


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """The peak signal-to-noise ratio in dB of two batches of pictures (B, 3, H, W) in [-1, 1], averaged over the pictures.

    Slowly: for each picture, the mean squared error over its numbers, taken as 1e-10 where it is less; then ten times the decimal
    logarithm of the squared peak over it. The peak is the distance from the darkest to the brightest value there is.
    """
    raise NotImplementedError


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A piece of each picture, (B, 3, H, W) -> (B, 3, side, side), from one place that is drawn for the whole batch.

    Slowly: list every row and every column at which a piece that lies wholly inside may begin, and draw one of each; all are equally
    likely, the first and the last too, and row and column know nothing of each other. H and W may differ.
    """
    raise NotImplementedError


def widen_linear(
    w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, copies: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widen phi(x w1^T + b1) w2^T, w1 (J, I), b1 (J,), w2 (O, J), to `copies` times as many hidden units, as the same function.

    phi is any nonlinearity that acts on each unit alone: -> new w1 (copies J, I), b1 (copies J,), w2 (O, copies J).
    Every hidden unit is there `copies` times, in any order, reading what the old one read. What was read from it with a weight is read from its copies
    with shares of this weight: above 0, drawn by the generator, and so uneven that no two copies of a unit get the same gradient.
    """
    raise NotImplementedError


def identity_block(channels: int) -> torch.nn.Module:
    """A new residual block, (B, channels, H, W) -> the same shape, that changes nothing yet and can learn.

    x + f(x), where f is SiLU, a 3x3 convolution, SiLU, and another 3x3 convolution, so that an output can see two pixels far in each direction. At the
    start the block returns x exactly, and after three steps of plain gradient descent every one of its parameters has moved.
    """
    raise NotImplementedError


def decoder_of_your_own():
    """Open-ended: another decoder for the shipped tokens. `minimuse check` does not look at it; the lesson says what to try."""
    raise NotImplementedError
