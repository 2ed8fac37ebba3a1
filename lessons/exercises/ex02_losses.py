"""Lesson 02: the losses of a VQGAN, and how predictable its tokens are.

Write each function where it says so, then run `minimuse check 02`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.
"""

import torch


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The hinge loss of a discriminator -> ().

    It takes the logits of real images and of reconstructions, each of any shape.

    Slowly: a real logit below 1 costs its distance to 1; one above costs nothing. A fake logit
    above -1 costs its distance to -1; one below costs nothing. Average the costs of the real ones,
    and of the fake ones, and take the mean of the two averages.
    """
    raise NotImplementedError


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the decoder minimises -> (), from the discriminator's logits of its images, any shape.

    It falls as the logits rise, equally fast wherever they are, and does not depend on how many
    there are. It is 0 for logits of 0.
    """
    raise NotImplementedError


def adaptive_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """The factor for `adversarial` that makes both losses' gradients equally long -> ().

    The gradients are those at `last_layer`. The factor is a constant for autograd. Both losses are
    scalars, and both will be differentiated again afterwards: leave their graphs as they are, and
    add nothing to any `.grad`. Add 1e-4 to the length that divides. The weight is never above 1e4.
    """
    raise NotImplementedError


def unit_feature_distance(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    """The perceptual distance of two batches -> ().

    Each batch is a list of feature maps (B, C, h, w). The lists are equally long; C, h and w may
    differ along the list.

    Slowly: at each position of each image there are two vectors of C features. Divide each by its
    length (a vector of zeros stays as it is), and take the squared distance of the two. Average
    over positions and images, then over the maps of the list.
    """
    raise NotImplementedError


def left_neighbour_bits(ids: torch.Tensor, codes: int) -> float:
    """How many bits a token has on average, if its left neighbour is known.

    ids: (B, h, w) in 0 .. codes - 1, w >= 2.

    Slowly: go through all pairs (left, right) of horizontal neighbours. For each, let p be the
    fraction of pairs with this right among the pairs with this left. Average -log2(p) over the
    pairs. The result is 0 where the left neighbour determines the id, and log2(codes) where it says
    nothing about it.
    """
    raise NotImplementedError


def tokenizer_of_your_own():
    """Open-ended: an encoder between the two of the lesson.

    `minimuse check` does not look at it. The lesson says what to try with it.
    """
    raise NotImplementedError
