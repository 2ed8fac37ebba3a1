"""Schedules: how many tokens are masked, and when. Pure functions, no model.

Training draws a mask ratio for each image from the cosine schedule, and masks that fraction of its
tokens. Decoding starts with all tokens masked and follows a schedule until none is left; the
default is cosine here, too. Fractions are float64, so that counts are the same on every device.

    masked_after(16, steps=4)     # [14, 11, 6, 0] of 16 tokens are still masked after each step

Papers: MaskGIT (2202.04200), section 3.3 for the schedules; Muse (2301.00704), section 2.6 for the
mask ratio, 2.7 for the guidance ramp, 2.8 for decoding.
Letters: B batch, N image tokens, S decoding steps, k = 0 .. S-1 the step, r a mask ratio, u the
fraction of decoding that is done, both from 0 to 1.
"""

import math

import numpy as np
import torch

from minimuse.plumbing.arguments import check_choice, check_fractions
from minimuse.plumbing.ranges import check_arguments

# MaskGIT's `exp` and `log` schedules depend on the number of tokens. It is fixed here, so that
# every schedule is a function of u alone.
SCALE = 256

# Each schedule gives the mask ratio r, the fraction of tokens still masked, when a fraction u of
# decoding is done: from 1 down to 0. Concave ones (those listed before `linear`) reveal few tokens
# early, while the model sees little.
LAWS = {
    "exp": lambda u: (SCALE - SCALE**u) / (SCALE - 1),
    "cubic": lambda u: 1 - u**3,
    "square": lambda u: 1 - u**2,
    "cosine": lambda u: np.cos(np.pi / 2 * u),
    "linear": lambda u: 1 - u,
    "sqrt": lambda u: 1 - np.sqrt(u),
    "log": lambda u: -np.log(np.maximum(u, 1 / SCALE)) / np.log(SCALE),
}


def gamma(u: float | np.ndarray, law: str = "cosine") -> np.ndarray:
    """The mask ratio r = gamma(u) when the fraction u of decoding is done.

    Both are float64 in [0, 1]. Another u or `law` is a ValueError. Source: MaskGIT, section 3.3.
    """
    check_choice("law", law, LAWS)
    u = np.asarray(u, dtype=np.float64)
    check_fractions("u", u)
    masked = LAWS[law](u)
    # Rounding can leave [0, 1] by a last bit: cos(pi / 2) is 6e-17, not 0.
    return np.clip(masked, 0.0, 1.0)


# --- Training ---
def sample_ratios(batch: int, generator: torch.Generator, law: str = "cosine") -> torch.Tensor:
    """Draw a mask ratio for each image: (B,) float64 in [0, 1].

    Draws u uniformly and returns r = gamma(u), as if images were seen at a random moment of
    decoding. For the cosine schedule this is inverse transform sampling of Muse's density
    p(r) = (2 / pi) (1 - r^2)^(-1/2), whose mean is 2 / pi (section 2.6).
    """
    check_arguments(generator=generator)
    u = torch.rand(batch, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.from_numpy(gamma(u.cpu().numpy(), law))


def mask_counts(ratios: torch.Tensor, tokens: int) -> torch.Tensor:
    """How many of N `tokens` to mask for each ratio (B,): (B,) int64, rounded up, at least 1."""
    check_fractions("ratios", ratios)
    # .07 of 100 tokens is 7.000000000000001 by rounding, and must give 7.
    return (ratios * tokens - 1e-9).ceil().long().clamp(1, tokens)


def random_masks(counts: torch.Tensor, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Random masks (B, N) bool with exactly counts[b] True in row b.

    All positions are equally likely. Masking each token with probability counts[b] / N would have
    the right count only on average.
    """
    check_arguments(generator=generator)
    B, device = len(counts), generator.device
    noise = torch.rand(B, tokens, generator=generator, device=device, dtype=torch.float32)  # B N
    ranks = noise.argsort(dim=-1).argsort(dim=-1)  # B N, in each row a permutation of 0 .. N-1
    return ranks < counts.to(device)[:, None]


# --- Decoding ---
def masked_after(masked: int, steps: int, law: str = "cosine") -> list[int]:
    """How many tokens are still masked after each of S `steps`, if `masked` (N0) are at the start.

    MaskGIT's rule: floor(N0 gamma((k+1)/S)) after step k, but at least one token fewer than before
    and at least 1; after the last step, 0. N0 counts the tokens masked *at the start*: for
    inpainting those in the hole, not all tokens of the image. If S > N0, some steps change nothing,
    and no model pass is needed for them. A negative `masked` and `steps` below 1 are ValueErrors.
    """
    check_arguments(masked=masked, steps=steps)
    counts = []
    still_masked = masked
    for k in range(steps - 1):
        # Divide (k + 1) / S first: pi/2 * ((k+1)/S) and (pi/2 * (k+1)) / S can differ in the last
        # bit, and floor() turns that into one token more or less.
        by_law = math.floor(masked * float(gamma((k + 1) / steps, law)))
        if still_masked > 0:
            # At least one token fewer than before, but keep one for the last step.
            still_masked = max(1, min(still_masked - 1, by_law))
        counts.append(still_masked)
    counts.append(0)
    return counts


def guidance_at(
    k: int, steps: int, guidance: float, ramp: bool = True, guided: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Guidance at step k: t (k+1)/S with `ramp`, and t without, where t is `guidance`.

    The ramp keeps early steps diverse (Muse, section 2.7). `guided` is an interval, in fractions of
    the steps; before and after it there is no guidance, which saves passes (2503.07197). The ramp
    counts from the first step, not from the start of that interval.
    """
    check_arguments(steps=steps)
    start, end = guided
    progress = (k + 1) / steps
    if progress <= start or progress > end:
        return 0.0
    if not ramp:
        return guidance
    return guidance * (k + 1) / steps


def noise_at(k: int, steps: int, choice_temperature: float) -> float:
    """Scale of the noise on confidences at step k: tau (1 - (k+1)/S), which ends at 0."""
    return choice_temperature * (1 - (k + 1) / steps)
