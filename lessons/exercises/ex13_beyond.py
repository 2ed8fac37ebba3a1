"""Lesson 13: masked models as diffusion, parallel passes, revisions, and a partly random start.

Write each function where it says so, then run `minimuse check 13`. Each docstring is a slow, plain
specification; your function should work on whole tensors where it can. A world is a table `joint`
with N axes of K codes, float64, that adds up to 1: joint[0, 1, 1] is the probability of the image
0 1 1.
"""

import torch


def picture_weight(counts: torch.Tensor, tokens: int) -> torch.Tensor:
    """The weight of each image's loss with which Muse's masks train the bound -> (B,) float64.

    counts: (B,) int64, from 1 to `tokens`.

    Muse hides ceil(r tokens) tokens, with r = cos(pi u / 2), u uniform. Here an image's loss is the
    mean over its own hidden tokens (not, as in the lesson, over the batch's). Multiplied by the
    weight, its expectation must be the bound: the sum over n = 1 .. tokens of the expected mean
    loss L_n with n hidden.
    """
    raise NotImplementedError


def dependence(joint: torch.Tensor) -> float:
    """What drawing all tokens in one pass costs a perfect model, in nats.

    It is the KL divergence from the world to the product of its marginals.

    Slowly: for each image, take its probability times the logarithm of (it, divided by the product
    of its tokens' own probabilities), and add all up. An image of probability 0 costs nothing.
    """
    raise NotImplementedError


def safe_to_reveal(entropies: torch.Tensor, bound: float) -> int:
    """How many hidden tokens may be revealed in one pass, those with the least entropy first.

    entropies: of the hidden tokens (M,), M >= 1, in any order.

    As many as possible such that the sum of their entropies, the largest left out, is at most
    `bound`. At least one always is.
    """
    raise NotImplementedError


def decoded(joint: torch.Tensor, passes: list[list[int]]) -> torch.Tensor:
    """The distribution of images that decoding in these passes draws, in the shape of `joint`.

    Each pass reveals its tokens with a perfect model, independently, given what is visible.
    `passes` has each of the places 0 .. N-1 once. Every image of `joint` has a probability above 0.

    Slowly: for each image, multiply, pass by pass and place by place, the probability of its token
    there, given its tokens of the *earlier* passes.
    """
    raise NotImplementedError


def revised(current: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
    """The distribution of images after one revision.

    `current` is the distribution before it. Both have the shape of `joint`. One of the N places,
    all equally likely, is hidden, and drawn anew by a perfect model of `joint`, given all other
    tokens. Every image of `joint` has a probability above 0.
    """
    raise NotImplementedError


def partly_random(
    batch: int, tokens: int, codes: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Where a one-pass generator starts: ids (batch, tokens) int64.

    In each row exactly ceil(share tokens) random places are hidden (id `codes`). Every row has
    places of its own. All others are codes from 0 to codes - 1, each equally likely, drawn
    independently.
    """
    raise NotImplementedError


def matching_gradient(
    student: torch.Tensor, teacher: torch.Tensor, auxiliary: torch.Tensor, seeking: float
) -> torch.Tensor:
    """Lesson 15: the gradient for the student's logits, (M, K), from the logits of three models.

    student, teacher, auxiliary: logits (M, K) of the same M hidden tokens, between -10 and 10. Call
    their probabilities s, p and q. The result is a mixture of two gradients, `seeking` (from 0 to
    1) of the second and the rest of the first:

    - covering: q - p;
    - seeking: s_k (e_k - mean of e under s), where e_k = log q_k - log p_k.

    The second is the derivative of sum_k s_k e_k with respect to the student's logits, if e is
    kept fixed. No gradient flows back into the models through the result.
    """
    raise NotImplementedError


def open_question():
    """Open-ended: see the lesson for three questions, and where in the package each begins."""
    raise NotImplementedError
