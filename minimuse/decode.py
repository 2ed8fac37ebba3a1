"""Parallel decoding: from hidden tokens to a picture in a dozen passes.

Every pass predicts all hidden tokens at once, draws one guess for each, and keeps the guesses the model
is most confident in; the rest is hidden again and guessed anew with more in sight. The loop is a
generator of steps, so that a caller may take the last or draw them all; one step is a pure function of
logits, ids and *noise*, so that it can be compared with a reference number by number. The same loop
serves the base and the super-resolution model, and fills any hole, not just an empty grid.

Papers: MaskGIT (2202.04200) section 3.2; Muse (2301.00704) sections 2.7 (guidance) and 2.8.
Letters: B batch, N image tokens, K codes, S steps, k the step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from minimuse import schedule
from minimuse.transformer import Context


@dataclass(frozen=True)
class Sampling:
    """How to draw. `guidance` t mixes (1 + t) conditional - t unconditional logits; 0 is neutral."""

    steps: int = 12  # S
    guidance: float = 3.0
    ramp: bool = True  # guidance rises linearly to its value
    temperature: float = 1.0  # of the softmax that tokens are drawn from; 0 takes the most likely
    choice_temperature: float = 4.5  # of the noise on confidences, annealed to 0
    law: str = "cosine"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; decoding needs at least 1")
        if self.guidance < 0 or self.temperature < 0 or self.choice_temperature < 0:
            raise ValueError(f"guidance {self.guidance}, temperature {self.temperature} and choice_temperature {self.choice_temperature} must not be negative")
        schedule.gamma(0.0, self.law)


class Step(NamedTuple):
    ids: torch.Tensor  # (B, N) every position filled with its token or its present guess
    confidence: torch.Tensor  # (B, N) log-probability of the guess; +inf where the token was known
    hidden: torch.Tensor  # (B, N) bool, hidden again after this step


def guide(cond: torch.Tensor, uncond: torch.Tensor, t: float) -> torch.Tensor:
    """(1 + t) cond - t uncond (Muse, section 2.7): t = 0 gives cond, bit for bit.

    Others write uncond + s (cond - uncond): that is s = 1 + t.
    """
    return cond if t == 0 else (1 + t) * cond - t * uncond


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise, always float32 on the CPU: in half precision log(log(u)) is not finite."""
    u = torch.rand(shape, generator=generator).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(u))


def confidence(
    logits: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor, left: torch.Tensor,
    token_noise: torch.Tensor, choice_noise: torch.Tensor, temperature: float,
) -> Step:  # fmt: skip
    """One MaskGIT step: draw a guess for each hidden token, hide the least confident `left` of them again.

    logits (B, N, K) guided, ids (B, N), hidden (B, N) bool, left (B,) how many stay hidden per row;
    token_noise (B, N, K) standard Gumbel; choice_noise (B, N) Gumbel already scaled by the annealed
    temperature. Confidence is the log-softmax of the logits, before the temperature, plus choice_noise;
    ties fall to the position that comes first, and the counts are exact whatever the ties.
    """
    logits = logits.float()
    # argmax(logits + temperature * Gumbel) is a draw from softmax(logits / temperature)
    guess = torch.where(hidden, (logits + temperature * token_noise).argmax(dim=-1), ids)
    log_p = logits.log_softmax(dim=-1).gather(-1, guess[..., None])[..., 0]
    log_p = log_p.masked_fill(~hidden, float("inf"))
    order = (log_p + choice_noise).argsort(dim=-1, descending=True, stable=True)  # most confident first
    rank = order.argsort(dim=-1)
    return Step(guess, log_p, rank >= ids.shape[-1] - left[:, None])


def decode(
    model: Callable[[torch.Tensor, Context], torch.Tensor], ids: torch.Tensor, mask_id: int,
    context: Context, uncond: Context | None, sampling: Sampling, generator: torch.Generator,
) -> Iterator[Step]:  # fmt: skip
    """Fill the tokens of ids (B, N) that equal mask_id, in at most `sampling.steps` passes; yields each step.

    `uncond` is the context to steer away from: an empty caption's, or a negative prompt's; None means no
    guidance. Its rows run in one batch with the conditional ones. Nothing hidden: no step at all.
    """
    hidden = ids == mask_id
    B, N = ids.shape
    after = [schedule.masked_after(int(n), sampling.steps, sampling.law) for n in hidden.sum(dim=-1)]
    both = context if uncond is None else context.join(uncond)
    for k in range(sampling.steps):
        left = torch.tensor([row[k] for row in after], device=ids.device)
        if bool((hidden.sum(dim=-1) == left).all()):
            continue  # more steps than tokens: nothing to reveal, so no pass
        inputs = ids.masked_fill(hidden, mask_id)
        t = schedule.guidance_at(k, sampling.steps, sampling.guidance, sampling.ramp)
        with torch.no_grad():
            if uncond is None or t == 0:
                logits = model(inputs, context)
            else:
                logits = guide(*model(torch.cat([inputs, inputs]), both).chunk(2), t)
        scale = schedule.noise_at(k, sampling.steps, sampling.choice_temperature)
        token_noise = gumbel((B, N, logits.shape[-1]), generator).to(ids.device)
        choice_noise = scale * gumbel((B, N), generator).to(ids.device)
        step = confidence(logits, ids, hidden, left, token_noise, choice_noise, sampling.temperature)
        ids, hidden = step.ids, step.hidden
        yield step
