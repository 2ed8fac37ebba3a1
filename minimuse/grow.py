"""Growing the decoder: a wider and deeper one starts as the same function, to be finetuned.

    large = Decoder(config)              # more channels, more residual blocks than `small`
    grow(small, large, torch.Generator().manual_seed(0))

Muse finetunes a larger decoder with the encoder and the codes frozen (section 2.5): image quality
improves, and the token ids stay valid. Net2Net (1511.05641) says how to keep what the small one
has learned.
"""

from collections.abc import Iterable

import torch
from einops import rearrange
from torch import nn


@torch.no_grad()
def grow(
    small: Iterable[nn.Module], large: Iterable[nn.Module], generator: torch.Generator
) -> None:
    """Make a wider and deeper decoder compute the same function as a small one, to finetune it.

    Both are the layers of a decoder, in order. Raises a ValueError if the large one has fewer
    residual blocks at a resolution, or a width that is not a multiple of the small one's.
    """
    sources = [layer for layer in small if list(layer.parameters())]
    for layer in large:
        # Any other layer has no weights, or is an added residual block, which is the identity.
        if sources and type(layer) is type(sources[0]):
            source = sources.pop(0)
            for target, weight in zip(layer.parameters(), source.parameters(), strict=True):
                target.copy_(widened(weight, target.shape, generator))
    if sources:
        raise ValueError("cannot grow a decoder to fewer residual blocks; raise decoder_blocks")


def widened(weight: torch.Tensor, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """A weight or bias of a layer whose input and output channels are copied to fill `shape`."""
    copies = [new // old for new, old in zip(shape, weight.shape, strict=True)]
    wide = weight.repeat(*copies)
    if wide.shape != shape:
        raise ValueError(
            f"cannot grow weights of {tuple(weight.shape)} to {tuple(shape)}: "
            "decoder_channels must be a multiple of channels, and decoder_blocks no fewer anywhere"
        )
    is_convolution = weight.dim() == 4
    if is_convolution and copies[1] > 1:  # copies of input channels
        wide = wide * fractions_of_copies(weight, copies, generator).to(wide.device)
    return wide


def fractions_of_copies(
    weight: torch.Tensor, copies: list[int], generator: torch.Generator
) -> torch.Tensor:
    """Which fraction of a weight (O, I, y, x) each copy of an input channel gets.

    A wide layer reads r copies of each input channel. If their weights are fractions of the old
    weight that sum to 1, the output is what it was. The fractions must differ: copies with equal
    weights get equal gradients, so they would stay equal and the added channels would be useless.
    """
    outputs = copies[0] * weight.shape[0]
    noise = 0.5 * torch.rand(copies[1], outputs, *weight.shape[1:], generator=generator)
    return rearrange(noise.softmax(dim=0), "r O I y x -> O (r I) y x")
