"""Images from what a model thinks of all codes, and not from the codes that it drew.

Near an edge, a model often gives several codes some probability each: with the edge a little more
to the left, to the right, rounder. No code vector lies between them, but their mean does:

    code   probability   code vector
      17           .50      (1, 0, 2)
      90           .50      (1, 4, 2)      mean vector: (1, 2, 2), which the decoder can draw

So the decoder gets the mean of all code vectors, weighted by their probabilities: those of the
logits with guidance, at temperature 1 and without top-k. This needs no training. Only tokens of the
last pass have mean vectors; one that was known before it keeps its code vector. With a single pass
of super-resolution all tokens have them, with four 97 of 256.
Letters: B images, N image tokens on an h w grid, K codes of C numbers.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from minimuse.decode import Step
from minimuse.vq import ImageTokenizer

# Means are rounded to multiples of this. Their last bits depend on the number of threads and of
# images in a batch, and would change a pixel here and there: an image should follow from its seed.
# Outlines are the same (.9166, and .9168 unrounded, of toy-shapes on 384 validation scenes).
ROUNDING = 1 / 16


def vectors_of(step: Step, tokenizer: ImageTokenizer) -> Tensor:
    """What the decoder gets for a step of decoding on a square grid: vectors (B, h, w, C).

    Without `Sampling.mean_vectors` they are the code vectors of the step's ids.
    """
    quantizer = tokenizer.quantizer
    vectors = quantizer.lookup(step.ids)  # B N C
    if step.probabilities is not None:
        K = step.probabilities.shape[-1]
        codebook = quantizer.lookup(torch.arange(K, device=step.ids.device))  # K C
        known = step.confidence.isposinf()  # B N, before this step
        means = step.probabilities @ codebook  # B N C
        means = (means / ROUNDING).round() * ROUNDING
        vectors = torch.where(known[..., None], vectors, means)
    return rearrange(vectors, "B (h w) C -> B h w C", h=math.isqrt(vectors.shape[1]))
