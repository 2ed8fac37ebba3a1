"""Lesson 07: guidance, in logits and in probabilities.

Write each function where it says so, then run `minimuse check 07`. Each docstring is a slow, plain specification; yours may be
quicker. Nothing here needs a model.

Letters: K codes, S steps, k = 0 .. S-1 the step, t guidance as Muse counts it. `...` stands for any dimensions before the last.
"""

from collections.abc import Sequence

import torch


def guide(cond: torch.Tensor, uncond: torch.Tensor, t: float) -> torch.Tensor:
    """Guided logits: cond and uncond of one shape (..., K) -> (..., K).

    Start at cond, and go on in the direction that leads from uncond to cond, t times as far as it was from the one to the other.
    With t = 0 the result is cond bit for bit.
    """
    raise NotImplementedError


def from_other_convention(scale: float) -> float:
    """The t that draws the same pictures as a `scale` of those who count from uncond.

    They start at uncond and go `scale` times as far as cond is: 1 is no guidance for them, and 0 no caption.
    """
    raise NotImplementedError


def guidance_at(k: int, steps: int, guidance: float) -> float:
    """Guidance at step k of a linear ramp.

    It rises by the same amount with every step, the first included, from a 0 that no step has, and the last step has `guidance`.
    """
    raise NotImplementedError


def guided_probabilities(p_cond: torch.Tensor, p_uncond: torch.Tensor, t: float) -> torch.Tensor:
    """What guidance does to probabilities: (..., K) and (..., K), all above 0, each row summing to 1 -> (..., K), the same.

    Slowly, for each row: for each code, p_cond to the power 1 + t, divided by p_uncond to the power t; then divide each code's
    number by the sum of its row's. In exact arithmetic that would be all; yours has floats, t may be 300, and the result has no nan.
    """
    raise NotImplementedError


def compose(
    uncond: torch.Tensor, conds: Sequence[torch.Tensor], weights: Sequence[float]
) -> torch.Tensor:
    """Logits for several prompts at once: uncond (..., K), each of conds (..., K), a weight for each -> (..., K).

    Start at uncond. Each prompt pulls from there towards its own logits: weight 1 all the way, 2 as far again, and a negative weight
    pushes the other way. All pulls are measured from uncond, and all are added. No prompts: uncond.
    """
    raise NotImplementedError


def guidance_of_your_own(k: int, steps: int, guidance: float) -> float:
    """Open-ended: another course of the guidance over the steps. `minimuse check` does not look at it; the lesson says what to try."""
    raise NotImplementedError
