"""Images from what a model thinks of all codes, and not from the codes that it drew.

Near an edge, a model often gives several codes some probability each: with the edge a little more
to the left, to the right, rounder. No code of the codebook lies between them, but their mean does:

    code   probability   code vector
      17           .50      (1, 0, 2)
      90           .50      (1, 4, 2)      mean vector: (1, 2, 2), which the decoder can draw

So the decoder gets the mean of all code vectors, weighted by their probabilities. This needs no
training. It is for a last pass that reveals most of the tokens: what was known before it stays.
Letters: B images, N image tokens on an h w grid, K codes of C numbers.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from minimuse.decode import Step
from minimuse.vq import ImageTokenizer


def code_vectors(step: Step, tokenizer: ImageTokenizer) -> Tensor:
    """The code vectors (B, h, w, C) of one step of decoding on a square grid.

    They are those of its ids, or with `Sampling.mean_vectors` the mean vectors.
    """
    if step.probabilities is None:
        vectors = tokenizer.quantizer.lookup(step.ids)  # B N C
    else:
        K = step.probabilities.shape[-1]
        codebook = tokenizer.quantizer.lookup(torch.arange(K, device=step.ids.device))  # K C
        vectors = step.probabilities @ codebook  # B N C
    return rearrange(vectors, "B (h w) C -> B h w C", h=math.isqrt(vectors.shape[1]))
