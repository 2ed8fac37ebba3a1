"""Parallel decoding: from masked tokens to a complete grid in one or two dozen model passes.

In every step the model predicts all hidden tokens at once, and a guess is drawn for each. A
*sampler* keeps some of the guesses (MaskGIT keeps those with the highest confidence). The others
are hidden again and predicted anew in the next step, when more tokens are visible. The same loop
serves the base model and the super-resolution model, and it fills any hole, not only an empty grid.

    for step in decode(model, ids, mask_id, context, uncond, Sampling(steps=12), generators):
        print(step.hidden.sum())    # how many tokens are still hidden

Each image has a random generator of its own, so it is the same image in a batch of any size. On a
GPU nothing in a step depends on a number that the CPU would have to wait for: how many tokens are
hidden after each step is known beforehand, and all tensors have the same shape in every step.

Papers: MaskGIT (2202.04200), section 3.2; Muse (2301.00704), sections 2.7 and 2.8; Halton order
(2503.17076); entropy-bounded unmasking (2505.24857); composed prompts (2206.01714).
Letters: B batch, N image tokens, K codes, S steps, k = 0 .. S-1 the step, P prompts of each image,
M hidden tokens of the whole batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimuse import schedule
from minimuse.beyond.random_start import random_start
from minimuse.guidance import Conditions, conditions_of, guided_logits
from minimuse.plumbing.arguments import check_choice, check_generators
from minimuse.plumbing.device import autocast
from minimuse.plumbing.ranges import check_arguments, check_settings
from minimuse.plumbing.remembered import remembers_tensors
from minimuse.transformer import Context


@dataclass(frozen=True)
class Sampling:
    """Settings of decoding. Values out of range are ValueErrors.

    With `guidance` t, logits are (1 + t) conditional - t unconditional; t = 0 is no guidance.
    """

    steps: int = 12  # S
    guidance: float = 3.0  # t
    ramp: bool = True  # guidance rises linearly to t
    # Where guidance starts and ends, in fractions of the steps (2503.07197).
    guided: tuple[float, float] = (0.0, 1.0)
    temperature: float = 1.0  # of the softmax that tokens are drawn from; 0 takes the most likely
    top_k: int = 0  # draw from the k most likely codes only; 0 draws from all
    sampler: str = "confidence"  # which guesses are kept: a key of SAMPLERS, below
    choice_temperature: float = 4.5  # of the noise on confidences; it is annealed to 0
    entropy_bound: float = 0.5  # of the entropy sampler, in nats
    law: str = "cosine"  # the schedule: see schedule.LAWS
    random_codes: float = 0.0  # fraction of an empty grid, for a model distilled into one pass
    # Images are made of the mean of all code vectors, and not of the codes that were drawn. Each
    # has its probability with guidance, at temperature 1. See beyond/mean_vectors.py.
    mean_vectors: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        start, end = self.guided
        if start > end:
            raise ValueError(f"guided is {self.guided}; give the smaller fraction first")
        check_choice("sampler", self.sampler, SAMPLERS)
        check_choice("law", self.law, schedule.LAWS)
        if self.sampler == "random" and self.choice_temperature == 0:
            raise ValueError(
                "choice_temperature is 0, and the random sampler sorts tokens by that noise: "
                "give more than 0"
            )
        if self.random_codes > 0 and self.steps > 1:
            raise ValueError(f"steps is {self.steps}; with random_codes above 0 it must be 1")


class Step(NamedTuple):
    """The state after one step of decoding."""

    ids: Tensor  # (B, N) a code at every position: the known token, or the present guess
    confidence: Tensor  # (B, N) log-probability of the guess; +inf where the token was known before
    hidden: Tensor  # (B, N) bool, hidden again after this step
    # (B, N, K) of all codes, only with `mean_vectors`; those of known tokens do not matter
    probabilities: Tensor | None = None


# --- The loop ---
def decode(
    model: Callable[..., Tensor],
    ids: Tensor,
    mask_id: int,
    context: Context,
    uncond: Context | None,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    weights: tuple[float, ...] = (1.0,),
    run_pass: Callable[..., Step] | None = None,
) -> Iterator[Step]:
    """Fill the tokens of ids (B, N) that equal mask_id; yield each step, at most `sampling.steps`.

    model(ids (B, N), context, where) -> logits (B, N, K), or with `where` (B, N) bool only those of
    the M tokens where it is True, (M, K). `context` has P B rows, prompt by prompt, for P
    `weights`. Guidance steers away from `uncond` (B rows); None is no guidance. `generators` is one
    for each image. `run_pass` is `one_pass`, below, unless it is given: the same, compiled. If
    nothing is hidden, there are no steps. Source: MaskGIT, section 3.2.
    """
    run_pass = run_pass or one_pass
    B, N = ids.shape
    check_generators(generators, B)
    conditions = conditions_of(context, uncond, weights, ids)
    hidden = ids == mask_id  # B N
    masked = hidden.sum(dim=-1).tolist()  # B numbers
    scheduled = scheduled_counts(masked, sampling)  # S lists of B numbers
    left = torch.tensor(scheduled, device=ids.device)  # S B
    order = fixed_order(sampling.sampler, ids)  # B N, or None
    for k, counts in enumerate(scheduled):
        # Also for a step that is skipped, so that the noise of an image depends on the step alone.
        token_noise, choice_noise = noise_of(generators, N, K=mask_id)  # B N K, B N
        if sampling.sampler in MAY_BE_AHEAD:
            # Only the device knows how many tokens have been revealed: this waits for it.
            masked = hidden.sum(dim=-1).tolist()
            counts = [min(pair) for pair in zip(counts, masked, strict=True)]
        if counts == masked:
            continue  # This step reveals nothing, so it needs no pass.
        masked = counts

        t = schedule.guidance_at(
            k, sampling.steps, sampling.guidance, sampling.ramp, sampling.guided
        )
        choice_noise *= schedule.noise_at(k, sampling.steps, sampling.choice_temperature)
        inputs = ids.masked_fill(hidden, mask_id)  # B N, without guesses that are hidden again
        if sampling.random_codes > 0:
            inputs = random_start(ids, mask_id, sampling.random_codes, generators)  # B N
        state = (ids, inputs, hidden, left[k])
        drawn = (token_noise, choice_noise if order is None else order)
        # Around the whole loop, autocast would stay on between two steps, in the caller's code.
        with autocast(ids.device):
            result = run_pass(model, *state, conditions.at(t), t, *drawn, sampling)
        ids, hidden = result.ids, result.hidden
        yield result


@torch.no_grad()
def one_pass(
    model: Callable[..., Tensor],
    ids: Tensor,
    inputs: Tensor,
    hidden: Tensor,
    left: Tensor,
    conditions: Conditions,
    t: float | Tensor,
    token_noise: Tensor,
    choice_noise: Tensor,
    sampling: Sampling,
) -> Step:
    """All that the device computes in one step: logits with guidance t, then `step`.

    `inputs` (B, N) is what the model sees. `left` (B,) is how many tokens stay hidden by the
    schedule. On a GPU the CPU waits for nothing in here, and no shape depends on a value, so that
    it can be compiled whole.
    """
    logits = guided_logits(model, inputs, hidden, conditions, t)  # B N K
    left = torch.minimum(left, hidden.sum(dim=-1))  # B, if more than scheduled are known already
    return step(logits, ids, hidden, left, token_noise, choice_noise, sampling)


def scheduled_counts(masked: list[int], sampling: Sampling) -> list[list[int]]:
    """How many of the `masked` tokens of each row stay hidden after each step: S lists of B."""
    rows = [schedule.masked_after(count, sampling.steps, sampling.law) for count in masked]
    return [list(counts) for counts in zip(*rows, strict=True)]


def fixed_order(sampler: str, ids: Tensor) -> Tensor | None:
    """Scores (B, N) for ids (B, N), the first position's the highest; None if the sampler has none.

    A sampler whose order does not depend on the guesses gets it in place of the choice noise.
    """
    if sampler not in ORDERS:
        return None
    B, N = ids.shape
    return -ORDERS[sampler](N).to(ids.device, torch.float32).expand(B, N)


def noise_of(generators: Sequence[torch.Generator], N: int, K: int) -> tuple[Tensor, Tensor]:
    """Gumbel noise for the tokens (B, N, K) and for the choice (B, N); one generator an image."""
    token_noise = torch.stack([gumbel((N, K), generator) for generator in generators])  # B N K
    choice_noise = torch.stack([gumbel((N,), generator) for generator in generators])  # B N
    return token_noise, choice_noise


# --- One step ---
def step(
    logits: Tensor,
    ids: Tensor,
    hidden: Tensor,
    left: Tensor,
    token_noise: Tensor,
    choice_noise: Tensor,
    sampling: Sampling,
) -> Step:
    """Draw a guess for each hidden token, keep the best by the sampler, and hide the others again.

    A pure function, which can be compared with a reference number by number. logits (B, N, K), with
    guidance; ids (B, N); hidden (B, N) bool; left (B,) how many tokens of each row stay hidden;
    token_noise (B, N, K) standard Gumbel noise; choice_noise (B, N) Gumbel noise, already scaled
    (for a sampler in ORDERS: the scores of `fixed_order`).
    Confidence is computed before temperature and top-k. Of equal scores, the first positions are
    kept. With the sampler "confidence" this is MaskGIT's step (section 3.2).
    """
    logits = logits.float()  # B N K
    drawn = draw(logits, token_noise, sampling.temperature, sampling.top_k)  # B N
    guess = torch.where(hidden, drawn, ids)  # B N
    log_p = logits.log_softmax(dim=-1).gather(-1, guess[..., None])[..., 0]  # B N

    sampler = SAMPLERS[sampling.sampler]
    score, left = sampler(logits, log_p, hidden, left, choice_noise, sampling)  # B N, B
    # Known tokens get the highest score, so they always stay. For the scores [.5, inf, .1, .9],
    # order is [1, 3, 0, 2] and rank is [2, 0, 3, 1]; if 2 are to stay hidden, they have ranks 2, 3.
    score = score.masked_fill(~hidden, float("inf"))  # B N
    order = score.argsort(dim=-1, descending=True, stable=True)  # B N, positions, best first
    rank = order.argsort(dim=-1)  # B N, the place of each position in that order
    N = ids.shape[-1]
    hidden_again = rank >= N - left[:, None]  # B N

    probabilities = logits.softmax(dim=-1) if sampling.mean_vectors else None  # B N K
    confidence = log_p.masked_fill(~hidden, float("inf"))  # B N
    return Step(guess, confidence, hidden_again, probabilities)


def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int = 0) -> Tensor:
    """Draw codes from softmax(logits / temperature): logits and Gumbel noise (..., K) -> ids (...).

    The Gumbel-max trick: argmax(logits + temperature noise) has that distribution. top_k > 0 draws
    from the k most likely codes only.
    """
    K = logits.shape[-1]
    if 0 < top_k < K:
        kth_largest = logits.topk(top_k, dim=-1).values[..., -1:]  # ... 1
        logits = logits.masked_fill(logits < kth_largest, float("-inf"))
    return (logits + temperature * noise).argmax(dim=-1)


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise -log(-log(u)): float32, since bf16 is not always finite."""
    check_arguments(generator=generator)
    u = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)
    u.clamp_(1e-20, 1 - 1e-7)
    return u.log_().neg_().log_().neg_()  # In place: the noise is as large as the logits.


# --- Samplers ---
# Each takes logits (B, N, K); log_p (B, N), the log-probability of each guess; hidden (B, N); left
# (B,), how many tokens should stay hidden; the choice noise (B, N), or for a sampler in ORDERS the
# scores of `fixed_order`; and the settings. It returns scores (B, N), the highest of which are kept
# (those of known tokens do not matter), and how many tokens stay hidden (B,). A new sampler is one
# more function like these, and an entry in SAMPLERS.
def confidence(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep the guesses with the highest probability: MaskGIT's choice, also used by Muse.

    The noise makes early choices more random.
    """
    return log_p + noise, left


def random(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep random guesses: the baseline that confidence must beat."""
    return noise, left


def halton(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep positions that are spread evenly over the image, always in the same order (2503.17076).

    Neighbouring tokens depend on each other most, and in this order they come in different steps.
    """
    scores = noise  # no noise: for this sampler, they are the scores of `fixed_order`
    return scores, left


def entropy(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep the guesses of lowest entropy: as many as are safe, but at least as many as scheduled.

    Tokens of one step are drawn independently of each other. The error of that is at most the sum
    of their entropies without the largest one. This sum is at most `entropy_bound` (2505.24857,
    section 3).
    """
    log_q = logits.log_softmax(dim=-1)  # B N K
    # nansum, because 0 * log(0) is NaN here and 0 in an entropy.
    entropies = (log_q.exp() * -log_q).nansum(dim=-1)  # B N, in nats
    entropies = entropies.masked_fill(~hidden, float("inf"))
    ascending = entropies.sort(dim=-1).values  # B N
    # sum_before[i] is the sum of the i lowest entropies: of the first i + 1 without the largest.
    # It is 0 for the first token, so at least one token is always kept.
    sum_before = ascending.cumsum(dim=-1) - ascending  # B N
    is_safe = (sum_before <= sampling.entropy_bound).logical_and(ascending.isfinite())  # B N
    left_if_safe = hidden.sum(dim=-1) - is_safe.sum(dim=-1)  # B
    return -entropies, torch.minimum(left, left_if_safe)


SAMPLERS = {"confidence": confidence, "halton": halton, "random": random, "entropy": entropy}
# Those that may reveal more tokens in a step than the schedule asks.
MAY_BE_AHEAD = {"entropy"}


@remembers_tensors
def halton_order(tokens: int) -> Tensor:
    """The rank (N,) of each token of a square grid in the Halton sequence, which fills it evenly.

    Rows follow van der Corput's sequence in base 2, columns in base 3. If N is not a square, the
    order is that of the first N cells of the next larger square.
    """
    side = math.ceil(tokens**0.5)
    order = []
    visited = set()
    i = 0
    while len(order) < tokens:
        i += 1
        row = int(van_der_corput(i, 2) * side)
        column = int(van_der_corput(i, 3) * side)
        cell = row * side + column
        if cell < tokens and cell not in visited:
            visited.add(cell)
            order.append(cell)
    return torch.tensor(order).argsort()


def van_der_corput(i: int, base: int) -> float:
    """Mirror the digits of i behind the point: 321 in base 10 becomes 0.123."""
    if i == 0:
        return 0.0
    return (i % base + van_der_corput(i // base, base)) / base


# Orders of revealing that do not depend on the guesses, by the name of their sampler.
ORDERS = {"halton": halton_order}
