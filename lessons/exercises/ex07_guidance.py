"""Lesson 07: guidance, in logits and in probabilities.

Write each function where it says so, then run `minimuse check 07`. Each docstring is a slow, plain
specification; your function may be faster. No exercise here needs a model.

Letters: K codes, S steps, k = 0 .. S-1 the step, t guidance as Muse counts it. `...` stands for any
dimensions before the last.
"""

from collections.abc import Sequence

import torch


def guide(cond: torch.Tensor, uncond: torch.Tensor, t: float) -> torch.Tensor:
    """Guided logits: cond and uncond of one shape (..., K) -> (..., K).

    Start at cond, and continue in the direction from uncond to cond, t times as far as the distance
    between the two. With t = 0 the result is cond bit for bit.
    """
    raise NotImplementedError


def from_other_convention(scale: float) -> float:
    """The t that draws the same images as a `scale` of the other convention.

    The other convention starts at uncond and goes `scale` times as far as cond is. There, 1 is no
    guidance, and 0 is no caption.
    """
    raise NotImplementedError


def guidance_at(k: int, steps: int, guidance: float) -> float:
    """Guidance at step k of a linear ramp.

    It rises by the same amount with every step. One step before the first it would be 0, so the
    first step has more than 0. The last step has `guidance`.
    """
    raise NotImplementedError


def guided_probabilities(p_cond: torch.Tensor, p_uncond: torch.Tensor, t: float) -> torch.Tensor:
    """The effect of guidance on probabilities: (..., K) and (..., K) -> (..., K).

    All are above 0, and each row sums to 1.

    Slowly, for each row: for each code, take p_cond to the power 1 + t, divided by p_uncond to the
    power t; then divide each code's number by the sum of its row's. In exact arithmetic that would
    be all. Yours has floats, t may be 300, and the result has no nan.
    """
    raise NotImplementedError


def compose(
    uncond: torch.Tensor, conds: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Logits for several prompts at once -> (..., K).

    uncond: (..., K). conds: for each prompt (..., K). weights: one for each prompt.

    Start at uncond. Each prompt pulls from there towards its own logits: with weight 1 all the way,
    with weight 2 twice as far, and with a negative weight in the other direction. All pulls are
    measured from uncond, and all are added. Without prompts the result is uncond.
    """
    raise NotImplementedError


def guidance_of_your_own(k: int, steps: int, guidance: float) -> float:
    """Open-ended: another course of the guidance over the steps.

    `minimuse check` does not look at it. The lesson says what to try.
    """
    raise NotImplementedError
