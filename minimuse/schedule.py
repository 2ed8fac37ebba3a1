"""Schedules: how many tokens are masked, and when. Pure functions, no model.

Training draws a mask ratio per image; decoding walks the same law from everything masked to nothing. Counts are exact, in float64.
Papers: MaskGIT (2202.04200) section 3.3 for the laws; Muse (2301.00704) sections 2.6 to 2.8 for ratio, guidance ramp and decoding.
Letters: B batch, N tokens of an image, S decoding steps, k = 0 .. S-1 the step.
"""

import math

import numpy as np
import torch

# gamma(r): the share of tokens still masked after a share r of the decoding, from 1 to 0. Concave laws (cosine and above) reveal few
# tokens while the model knows little. The scale of `exp` and `log` is MaskGIT's number of tokens, here fixed: functions of r alone.
SCALE = 256


LAWS = {
    "exp": lambda r: (SCALE - SCALE**r) / (SCALE - 1),
    "cubic": lambda r: 1 - r**3,
    "square": lambda r: 1 - r**2,
    "cosine": lambda r: np.cos(np.pi / 2 * r),
    "linear": lambda r: 1 - r,
    "sqrt": lambda r: 1 - np.sqrt(r),
    "log": lambda r: -np.log(np.maximum(r, 1 / SCALE)) / np.log(SCALE),
}


def gamma(ratio: float | np.ndarray, law: str = "cosine") -> np.ndarray:
    """Share of tokens still masked when a share `ratio` in [0, 1] of the decoding is done (float64)."""
    if law not in LAWS:
        raise ValueError(f"unknown schedule {law!r}; choose one of {', '.join(LAWS)}")
    return np.clip(
        LAWS[law](np.asarray(ratio, dtype=np.float64)), 0.0, 1.0
    )  # cos(pi/2) is 6e-17, not 0


def sample_ratios(batch: int, generator: torch.Generator, law: str = "cosine") -> torch.Tensor:
    """Mask ratios for training, one per image: (B,) float64 in [0, 1]. r = gamma(u), u uniform: for the cosine law this draws from the
    density of Muse, section 2.6, p(r) = (2/pi) (1 - r^2)^(-1/2), with mean 2/pi, by its inverse distribution function."""
    u = torch.rand(batch, generator=generator, dtype=torch.float64)
    return torch.from_numpy(gamma(u.numpy(), law))


def mask_counts(ratios: torch.Tensor, tokens: int) -> torch.Tensor:
    """How many of `tokens` to mask for each ratio: (B,) int64, rounded up, at least one."""
    return (ratios * tokens).ceil().long().clamp(1, tokens)


def random_masks(counts: torch.Tensor, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Masks with exactly counts[b] True in row b (a coin per token would be right on average), uniform over positions: (B, N) bool."""
    noise = torch.rand(len(counts), tokens, generator=generator)
    ranks = noise.argsort(dim=-1).argsort(dim=-1)  # a permutation of 0..N-1 in each row
    return ranks < counts[:, None]


def masked_after(masked: int, steps: int, law: str = "cosine") -> list[int]:
    """Tokens still masked after each of `steps` steps, from `masked` (N0) at the start.
    MaskGIT's rule: after step k, max(1, min(unknown - 1, floor(N0 gamma((k+1)/S)))), and 0 after the last. N0 is the number masked *at
    the start*: for inpainting the hole, not the picture. A step that changes nothing (S > N0, or N0 = 0) needs no pass."""
    if masked < 0:
        raise ValueError(f"cannot start with {masked} masked tokens")
    if steps < 1:
        raise ValueError(f"steps is {steps}; decoding needs at least 1")
    left, unknown = [], masked
    for k in range(steps - 1):
        # (k + 1) / steps first: pi/2 * (s/S) and (pi/2 * s) / S differ in the last bit, which floor() sees.
        unknown = min(
            unknown,
            max(1, min(unknown - 1, math.floor(masked * float(gamma((k + 1) / steps, law))))),
        )
        left.append(unknown)
    return left + [0]


def guidance_at(
    k: int, steps: int, guidance: float, ramp: bool = True, guided: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Guidance at step k: t (k+1)/S, so that early steps stay diverse (Muse, section 2.7), or t without `ramp`; outside of the interval
    `guided`, in shares of the steps, 0 (2503.07197: late steps need it most)."""
    if not guided[0] < (k + 1) / steps <= guided[1]:
        return 0.0
    return guidance * (k + 1) / steps if ramp else guidance


def noise_at(k: int, steps: int, choice_temperature: float) -> float:
    """Scale of the Gumbel noise on confidences at step k: tau (1 - (k+1)/S), 0 at the last step."""
    return choice_temperature * (1 - (k + 1) / steps)
