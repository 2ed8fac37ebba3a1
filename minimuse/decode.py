"""Parallel decoding: from hidden tokens to a picture in about two dozen passes.

Every pass draws a guess for each hidden token, and keeps those that a *sampler* prefers (MaskGIT's: what the model is most confident
in); the rest is hidden again and guessed anew with more in sight. A step is a pure function of logits, ids and *noise*, to be compared
with a reference number by number. The loop serves both models, and fills any hole, not just an empty grid.
Papers: MaskGIT (2202.04200) section 3.2; Muse (2301.00704) sections 2.7 and 2.8; Halton order (2503.17076); entropy-bounded
unmasking (2505.24857); composed prompts (2206.01714).
Letters: B batch, N image tokens, K codes, S steps, k the step, P prompts of one picture.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from minimuse import schedule
from minimuse.transformer import Context

FEW = (
    2**10
)  # tokens, up to which a CPU is quicker with both sides of guidance in one batch: beyond, it is busy anyway, and its caches full


@dataclass(frozen=True)
class Sampling:
    """How to draw. `guidance` t mixes (1 + t) conditional - t unconditional logits; 0 is neutral."""

    steps: int = 12  # S
    guidance: float = 3.0
    ramp: bool = True  # guidance rises linearly to its value
    guided: tuple[float, float] = (
        0.0,
        1.0,
    )  # the share of the steps after which guidance sets in, and ends (2503.07197)
    temperature: float = 1.0  # of the softmax that tokens are drawn from; 0 takes the most likely
    top_k: int = 0  # draw from the k most likely codes only; 0 is all
    sampler: str = "confidence"  # which guesses are kept: confidence, halton, random or entropy
    choice_temperature: float = 4.5  # of the noise on confidences, annealed to 0
    entropy_bound: float = 0.5  # nats; of the entropy sampler
    law: str = "cosine"

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; decoding needs at least 1")
        for name in ("guidance", "temperature", "top_k", "choice_temperature", "entropy_bound"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if not 0 <= self.guided[0] <= self.guided[1] <= 1:
            raise ValueError(
                f"guided is {self.guided}; give two shares of the steps, such as 0.5,1"
            )
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"unknown sampler {self.sampler!r}; choose one of {', '.join(SAMPLERS)}"
            )
        if self.sampler == "random" and not self.choice_temperature:
            raise ValueError(
                "the random sampler orders tokens by their noise: choice_temperature must be above 0"
            )
        schedule.gamma(0.0, self.law)


class Step(NamedTuple):
    ids: torch.Tensor  # (B, N) every position filled with its token or its present guess
    confidence: torch.Tensor  # (B, N) log-probability of the guess; +inf where the token was known
    hidden: torch.Tensor  # (B, N) bool, hidden again after this step


def guide(cond: torch.Tensor, uncond: torch.Tensor, t: float) -> torch.Tensor:
    """(1 + t) cond - t uncond (Muse, section 2.7): t = 0 gives cond, bit for bit. Others write uncond + s (cond - uncond): s = 1 + t."""
    return cond if t == 0 else (1 + t) * cond - t * uncond


def compose(uncond: torch.Tensor, conds: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """uncond + sum of w_i (cond_i - uncond): each prompt pulls with its weight. One prompt of weight 1 + t is `guide`."""
    return uncond + sum(w * (cond - uncond) for w, cond in zip(weights, conds))


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Standard Gumbel noise, always float32 on the CPU: in half precision log(log(u)) is not finite."""
    return (
        torch.rand(shape, generator=generator).clamp_(1e-20, 1 - 1e-7).log_().neg_().log_().neg_()
    )  # -log(-log u), in place


def draw(
    logits: torch.Tensor, noise: torch.Tensor, temperature: float, top_k: int = 0
) -> torch.Tensor:
    """A draw from softmax(logits / temperature), of the k likeliest codes if top_k is set: logits and Gumbel noise (..., K) -> ids (...)."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(
            logits < logits.topk(top_k, dim=-1).values[..., -1:], float("-inf")
        )
    return (logits + temperature * noise).argmax(dim=-1)  # the Gumbel-max trick


# --- Samplers: (logits, log_p of the guesses, ...) -> scores (B, N), the highest of which are kept, and how many stay hidden (B,) ---
def confidence(logits, log_p, hidden, left, noise, sampling):
    """What the model is surest of, MaskGIT's choice. The noise makes early choices bold (Muse has it from there)."""
    return log_p + noise, left


def random(logits, log_p, hidden, left, noise, sampling):
    """Any: what confidence has to beat."""
    return noise, left


def halton(logits, log_p, hidden, left, noise, sampling):
    """Places spread evenly over the picture, the same every time: neighbours, which depend on each other, come in different steps."""
    return -halton_order(log_p.shape[-1]).to(log_p).expand_as(log_p), left


def entropy(logits, log_p, hidden, left, noise, sampling):
    """Where the model hesitates least, and as many as are safe, at least as many as the schedule asks: tokens of one step are drawn
    independently, an error of at most the sum of their entropies but the largest (2505.24857, section 3), which is kept below a bound."""
    log_q = logits.log_softmax(dim=-1)
    spread = (
        (log_q.exp() * -log_q).nansum(dim=-1).masked_fill(~hidden, float("inf"))
    )  # B N, nats; 0 * inf is 0
    ascending = spread.sort(dim=-1).values
    before = (
        ascending.cumsum(dim=-1) - ascending
    )  # 0 for the first: one is kept at least. Ascending: the last is the largest
    safe = (before <= sampling.entropy_bound).logical_and(ascending.isfinite()).sum(dim=-1)
    return -spread, torch.minimum(left, hidden.sum(dim=-1) - safe)


SAMPLERS = {"confidence": confidence, "halton": halton, "random": random, "entropy": entropy}


@lru_cache
def halton_order(tokens: int) -> torch.Tensor:
    """The rank (N,) of each token of a square grid in the Halton sequence (bases 2 and 3), which fills a square evenly."""

    def mirrored(i: int, base: int) -> float:
        """0.123 in base `base` for i = 321: van der Corput's sequence."""
        return (i % base + mirrored(i // base, base)) / base if i else 0.0

    side, cells, i = math.ceil(tokens**0.5), {}, 0  # a dict keeps the order of first visits
    while len(cells) < tokens:
        i += 1
        cell = int(mirrored(i, 2) * side) * side + int(mirrored(i, 3) * side)
        if cell < tokens:  # of a grid that is not square, as much as there is
            cells.setdefault(cell)
    return torch.tensor([*cells]).argsort()


def step(
    logits: torch.Tensor,
    ids: torch.Tensor,
    hidden: torch.Tensor,
    left: torch.Tensor,
    token_noise: torch.Tensor,
    choice_noise: torch.Tensor,
    sampling: Sampling,
) -> Step:
    """Draw a guess for each hidden token, hide `left` of them again: MaskGIT's step, if the sampler is "confidence".
    logits (B, N, K) guided, ids (B, N), hidden (B, N) bool, left (B,) how many stay hidden per row; token_noise (B, N, K) standard
    Gumbel, choice_noise (B, N) already scaled. Confidence is taken before temperature and top-k; of equal ones the first counts."""
    logits = logits.float()
    guess = torch.where(
        hidden, draw(logits, token_noise, sampling.temperature, sampling.top_k), ids
    )
    log_p = logits.log_softmax(dim=-1).gather(-1, guess[..., None])[..., 0]
    score, left = SAMPLERS[sampling.sampler](logits, log_p, hidden, left, choice_noise, sampling)
    order = score.masked_fill(~hidden, float("inf")).argsort(
        dim=-1, descending=True, stable=True
    )  # what is kept first
    rank = order.argsort(dim=-1)
    return Step(
        guess, log_p.masked_fill(~hidden, float("inf")), rank >= ids.shape[-1] - left[:, None]
    )


def decode(
    model: Callable[..., torch.Tensor],
    ids: torch.Tensor,
    mask_id: int,
    context: Context,
    uncond: Context | None,
    sampling: Sampling,
    generator: torch.Generator,
    weights: tuple[float, ...] = (1.0,),
) -> Iterator[Step]:
    """Fill the tokens of ids (B, N) that equal mask_id, in at most `sampling.steps` passes; yields each step, none if nothing is hidden.

    `uncond` is the context to steer away from (None: no guidance). Its rows run in one batch with the conditional ones, if those are few,
    and not at all in steps without guidance. Of P `weights`, `context` has P B rows, prompt by prompt."""
    hidden, (B, N), P = ids == mask_id, ids.shape, len(weights)
    after = [
        schedule.masked_after(int(n), sampling.steps, sampling.law) for n in hidden.sum(dim=-1)
    ]
    passes = (
        [(P, context)]
        if uncond is None
        else [(P + 1, context.join(uncond))]
        if ids.is_cuda or B * N <= FEW
        else [(P, context), (1, uncond)]
    )
    for k in range(sampling.steps):
        left = torch.tensor([row[k] for row in after], device=ids.device).minimum(
            hidden.sum(dim=-1)
        )
        if bool((hidden.sum(dim=-1) == left).all()):
            continue  # more steps than tokens, or all are filled: nothing to reveal, so no pass
        t = schedule.guidance_at(
            k, sampling.steps, sampling.guidance, sampling.ramp, sampling.guided
        )
        alone = uncond is None or (t == 0 and weights == (1.0,))
        inputs = ids.masked_fill(hidden, mask_id)
        with torch.no_grad():  # the head runs for hidden tokens only: M K
            asked = [
                model(inputs.repeat(n, 1), c, hidden.repeat(n, 1))
                for n, c in ([(P, context)] if alone else passes)
            ]
        *conds, last = torch.cat(asked).chunk(P + (not alone))
        if weights == (1.0,):
            mixed = last if alone else guide(conds[0], last, t)
        else:
            mixed = compose(last, conds, [(1 + t) * w for w in weights])
        logits = mixed.new_zeros(B, N, mixed.shape[-1])
        logits[hidden] = mixed
        token_noise = gumbel((B, N, logits.shape[-1]), generator).to(ids.device)
        choice_noise = schedule.noise_at(k, sampling.steps, sampling.choice_temperature) * gumbel(
            (B, N), generator
        ).to(ids.device)
        taken = step(logits, ids, hidden, left, token_noise, choice_noise, sampling)
        ids, hidden = taken.ids, taken.hidden
        yield taken
