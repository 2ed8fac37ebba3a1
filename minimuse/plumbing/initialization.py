"""How the weights of the two token models start.

`initialize_weights` is the usual rule. The other two use what is known before training: which codes
of the tokenizer are similar, and how text embeddings are distributed. Neither is in the paper.

Letters: K codes, C width of a code vector, D width, L words, E text width.
"""

import torch
from torch import nn


def initialize_weights(model: nn.Module, layers: int) -> None:
    """GPT-2's initial weights: Normal(0.02) in linear layers and embeddings, biases zero.

    Each block adds at most three terms to the residual stream. The layers that write them start
    smaller, by 1 / sqrt(3 layers), so that their sum has the same size at any depth.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        std = 0.02
        if name.endswith(("attention.out", "mlp.2")):
            std = 0.02 / (3 * layers) ** 0.5
        nn.init.normal_(module.weight, std=std)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def start_like(weight: nn.Parameter, codes: torch.Tensor, std: float) -> None:
    """Start the first K rows of a weight (.., D) from the tokenizer's code vectors (K, C).

    Why: similar codes stand for similar pieces of an image, and the model would otherwise have to
    learn from scratch which ones are similar. Each row is a random projection of its code vector,
    plus some noise of its own that tells it apart from its neighbours.
    """
    codes = codes.cpu()  # random numbers come from the CPU
    projection = torch.randn(codes.shape[1], weight.shape[1])  # C D
    projected = codes @ projection  # K D
    noise = torch.randn_like(projected)
    weight[: len(codes)].copy_(std * (projected / projected.std() + 0.25 * noise))


@torch.no_grad()
def start_white(linear: nn.Linear, text: torch.Tensor) -> None:
    """Start a projection of embeddings of L words (L, E) so that its output is white.

    White means: mean zero, and about the same variance in every direction. Why: T5's embeddings
    share a large mean and vary much along a few directions, which say little about the caption.
    Without whitening these would drown the directions that tell captions apart.

    With V the principal directions (E, min(D, E)) and s the standard deviations along them, the
    weight is W = R diag(1 / s) V^T and the bias -W mean; R is a random rotation. With fewer than
    two words, as in a data set without captions, the projection stays as it is.
    """
    if len(text) < 2:
        return
    width = len(linear.weight)  # D
    mean = text.mean(dim=0)
    # From here on the CPU, because PyTorch has no eigh and no qr on Apple's GPUs.
    covariance = torch.cov((text - mean).T).cpu()  # E E
    # Principal directions (E, E) as columns, and the variance along each, in ascending order.
    variances, directions = torch.linalg.eigh(covariance)
    variances, directions = variances[-width:], directions[:, -width:]
    # Divide by the standard deviation. The added constant keeps noise in tiny directions small.
    whitening = directions * (variances + 0.05 * variances.mean()).rsqrt()  # E min(D, E)
    # A random rotation, so that each of the D outputs contains all directions.
    rotation = torch.linalg.qr(torch.randn(width, len(variances)))[0]
    weight = rotation @ whitening.T
    linear.weight.copy_(weight)
    linear.bias.copy_(-weight @ mean.cpu())
