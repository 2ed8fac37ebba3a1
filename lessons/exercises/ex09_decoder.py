"""Lesson 09: what is needed to finetune a decoder.

Write each function where it says so, then run `minimuse check 09`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.
"""

import torch


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """The peak signal-to-noise ratio in dB of two batches of images (B, 3, H, W) in [-1, 1].

    It is averaged over the images.

    Slowly: for each image, take the mean squared error over its numbers, or 1e-10 where it is less;
    then ten times the decimal logarithm of the squared peak over it. The peak is the distance from
    the darkest to the brightest possible value.
    """
    raise NotImplementedError


def crop(images: torch.Tensor, side: int, generator: torch.Generator) -> torch.Tensor:
    """A piece of each image, (B, 3, H, W) -> (B, 3, side, side).

    The place is drawn once for the whole batch.

    Slowly: list every row and every column at which a piece that lies wholly inside may begin, and
    draw one of each. All are equally likely, the first and the last too, and row and column are
    independent of each other. H and W may differ.
    """
    raise NotImplementedError


def widen_linear(
    w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, copies: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widen phi(x w1^T + b1) w2^T to `copies` times as many hidden units, as the same function.

    w1 (J, I), b1 (J,), w2 (O, J) -> new w1 (copies J, I), b1 (copies J,), w2 (O, copies J). phi is
    any nonlinearity that acts on each unit alone.

    Every hidden unit is there `copies` times, in any order, and reads what the old one read. The
    weight with which an output read the old unit is divided among its copies. Each gets a fraction
    above 0, drawn by the generator. The fractions differ, so that no two copies of a unit get the
    same gradient.
    """
    raise NotImplementedError


def identity_block(channels: int) -> torch.nn.Module:
    """A new residual block that changes nothing yet and can learn.

    (B, channels, H, W) -> the same shape: x + f(x), where f is SiLU, a 3x3 convolution, SiLU, and
    another 3x3 convolution, so that an output can see two pixels far in each direction. At the
    start the block returns x exactly. After three steps of plain gradient descent every one of its
    parameters has moved.
    """
    raise NotImplementedError


def decoder_of_your_own():
    """Open-ended: another decoder for the shipped tokens.

    `minimuse check` does not look at it. The lesson says what to try.
    """
    raise NotImplementedError
