"""Lesson 13: masked models as diffusion, parallel passes, revisions, and a start with dice.

Write each function where it says so, then run `minimuse check 13`. Each docstring is a slow, plain specification; yours
should work on whole tensors where it can. A world is a table `joint` with N axes of K codes, float64, that adds up to 1:
joint[0, 1, 1] is the probability of the picture 0 1 1.
"""

import torch


def picture_weight(counts: torch.Tensor, tokens: int) -> torch.Tensor:
    """What to multiply each picture's loss with, so that Muse's masks train the bound: counts (B,) int64, from 1 to `tokens` -> (B,) float64.

    Muse hides ceil(r tokens) tokens, with r = cos(pi u / 2), u uniform; here a picture's loss is the mean over its own hidden
    tokens (not, as in the lesson, over the batch's).
    Multiplied with the weight, its expectation must be the bound: the sum over n = 1 .. tokens of the expected mean loss L_n with n hidden.
    """
    raise NotImplementedError


def dependence(joint: torch.Tensor) -> float:
    """What drawing all tokens in one pass costs a perfect model, in nats: KL from the world to the product of its marginals.

    Slowly: for each picture, its probability times the logarithm of (it, divided by the product of its tokens' own probabilities), all added
    up. A picture that does not exist costs nothing.
    """
    raise NotImplementedError


def safe_to_reveal(entropies: torch.Tensor, bound: float) -> int:
    """Hidden tokens have these entropies (M,), M >= 1, in any order; how many, the least first, may be revealed in one pass?

    As many as possible such that the sum of their entropies, the largest left out, is at most `bound`. At least one always is.
    """
    raise NotImplementedError


def decoded(joint: torch.Tensor, passes: list[list[int]]) -> torch.Tensor:
    """The distribution of pictures, shape of `joint`, if each pass reveals its tokens with a perfect model, independently given what is visible.

    `passes` has each of the places 0 .. N-1 once. Slowly: for each picture, multiply, pass by pass and place by place, the probability of its
    token there, given its tokens of the *earlier* passes. Every picture of `joint` has a probability above 0.
    """
    raise NotImplementedError


def revised(current: torch.Tensor, joint: torch.Tensor) -> torch.Tensor:
    """The distribution of pictures after one revision: `current` is that before it, both of the shape of `joint`.

    One of the N places, each as likely as any other, is hidden, and drawn anew by a perfect model of `joint`, given all other tokens.
    Every picture of `joint` has a probability above 0.
    """
    raise NotImplementedError


def partly_random(
    batch: int, tokens: int, codes: int, share: float, generator: torch.Generator
) -> torch.Tensor:
    """Where a one-pass generator starts: ids (batch, tokens) int64; in each row exactly ceil(share tokens) random places are hidden (id `codes`).

    All others are codes from 0 to codes - 1, each equally likely, drawn independently. Every row has places of its own.
    """
    raise NotImplementedError


def open_question():
    """Open-ended: see the lesson for five questions, and where in the package each begins."""
    raise NotImplementedError
