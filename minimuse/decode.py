"""Parallel decoding: from masked tokens to a complete grid in one or two dozen model passes.

In every step the model predicts all hidden tokens at once, and a guess is drawn for each. A
*sampler* keeps some of the guesses (MaskGIT keeps those with the highest confidence). The others
are hidden again and predicted anew in the next step, when more tokens are visible. The same loop
serves the base model and the super-resolution model, and it fills any hole, not only an empty grid.

    for step in decode(model, ids, mask_id, context, uncond, Sampling(steps=12), generator):
        print(step.hidden.sum())    # how many tokens are still hidden

Papers: MaskGIT (2202.04200), section 3.2; Muse (2301.00704), sections 2.7 and 2.8; Halton order
(2503.17076); entropy-bounded unmasking (2505.24857); composed prompts (2206.01714).
Letters: B batch, N image tokens, K codes, S steps, k = 0 .. S-1 the step, P prompts of each image,
M hidden tokens of the whole batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minimuse import schedule
from minimuse.plumbing.arguments import check_choice
from minimuse.plumbing.ranges import check_arguments, check_settings
from minimuse.plumbing.remembered import remembers_tensors
from minimuse.transformer import Context

# Up to this many tokens (B N), a CPU runs conditional and unconditional rows faster in one batch.
# With more, one pass already keeps the CPU busy, and a batch twice as large no longer fits in its
# caches. A GPU always runs both in one batch. The logits are the same, up to rounding.
ONE_BATCH_TOKENS = 1024


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


class Step(NamedTuple):
    """The state after one step of decoding."""

    ids: Tensor  # (B, N) a code at every position: the known token, or the present guess
    confidence: Tensor  # (B, N) log-probability of the guess; +inf where the token was known before
    hidden: Tensor  # (B, N) bool, hidden again after this step


class Conditions(NamedTuple):
    """What the model looks at while it decodes B images: the same in every step."""

    prompts: Context  # P B rows: the first prompt of every image, then the second, ...
    weights: tuple[float, ...]  # one weight for each of the P prompts
    uncond: Context | None  # B rows that guidance steers away from; None without guidance
    joined: Context | None  # the rows of `prompts`, then of `uncond`, if both run in one batch


# --- The loop ---
def decode(
    model: Callable[..., Tensor],
    ids: Tensor,
    mask_id: int,
    context: Context,
    uncond: Context | None,
    sampling: Sampling,
    generator: torch.Generator,
    weights: tuple[float, ...] = (1.0,),
) -> Iterator[Step]:
    """Fill the tokens of ids (B, N) that equal mask_id; yield each step, at most `sampling.steps`.

    model(ids (B, N), context, hidden (B, N)) -> logits (M, K) of the M hidden tokens. `context` has
    P B rows, prompt by prompt, for P `weights`. Guidance steers away from `uncond` (B rows); None
    is no guidance. If nothing is hidden, there are no steps. Source: MaskGIT, section 3.2.
    """
    B, N = ids.shape
    in_one_batch = ids.is_cuda or B * N <= ONE_BATCH_TOKENS
    conditions = conditions_of(context, uncond, weights, in_one_batch)
    hidden = ids == mask_id  # B N
    scheduled = scheduled_counts(hidden, sampling)  # S B
    for k in range(sampling.steps):
        masked = hidden.sum(dim=-1)  # B
        # The entropy sampler may have revealed more than the schedule asks, hence the minimum.
        left = torch.minimum(scheduled[k], masked)  # B, how many tokens stay hidden
        if torch.equal(left, masked):
            continue  # This step reveals nothing, so it needs no pass.

        t = schedule.guidance_at(
            k, sampling.steps, sampling.guidance, sampling.ramp, sampling.guided
        )
        inputs = ids.masked_fill(hidden, mask_id)  # B N, without guesses hidden again
        logits_hidden = guided_logits(model, inputs, hidden, conditions, t)  # M K
        logits = logits_hidden.new_zeros(B, N, logits_hidden.shape[-1])  # B N K
        logits[hidden] = logits_hidden  # Known tokens get zeros, which `step` ignores.

        token_noise = gumbel((B, N, logits.shape[-1]), generator).to(ids.device)  # B N K
        scale = schedule.noise_at(k, sampling.steps, sampling.choice_temperature)
        choice_noise = scale * gumbel((B, N), generator).to(ids.device)  # B N

        result = step(logits, ids, hidden, left, token_noise, choice_noise, sampling)
        ids, hidden = result.ids, result.hidden
        yield result


def scheduled_counts(hidden: Tensor, sampling: Sampling) -> Tensor:
    """How many tokens of each row of hidden (B, N) stay hidden after each step: (S, B) int64."""
    counts = [
        schedule.masked_after(masked, sampling.steps, sampling.law)
        for masked in hidden.sum(dim=-1).tolist()
    ]
    return torch.tensor(counts, device=hidden.device).T


# --- Guidance ---
def conditions_of(
    context: Context, uncond: Context | None, weights: tuple[float, ...], in_one_batch: bool
) -> Conditions:
    """Collect what the model looks at, and join both contexts once if they run in one batch."""
    if uncond is None and weights != (1.0,):
        raise ValueError(f"prompts with weights {weights} need an unconditional context")
    joined = None
    if uncond is not None and in_one_batch:
        joined = context.join(uncond)
    return Conditions(context, weights, uncond, joined)


@torch.no_grad()
def guided_logits(
    model: Callable[..., Tensor], ids: Tensor, hidden: Tensor, conditions: Conditions, t: float
) -> Tensor:
    """Logits (M, K) of the M hidden tokens of ids (B, N), with guidance t.

    Without guidance (t = 0) one prompt needs no unconditional rows.
    """
    single_prompt = conditions.weights == (1.0,)  # one prompt, of weight 1
    if conditions.uncond is None or (single_prompt and t == 0):
        return model(ids, conditions.prompts, hidden)
    *conds, uncond = logits_of_each(model, ids, hidden, conditions)
    if single_prompt:
        return guide(conds[0], uncond, t)
    return compose(uncond, conds, [(1 + t) * weight for weight in conditions.weights])


def logits_of_each(
    model: Callable[..., Tensor], ids: Tensor, hidden: Tensor, conditions: Conditions
) -> list[Tensor]:
    """Logits (M, K) under each of the P prompts, and then the unconditional ones."""
    P = len(conditions.weights)
    if conditions.joined is not None:
        logits = model(ids.repeat(P + 1, 1), conditions.joined, hidden.repeat(P + 1, 1))
        return list(logits.chunk(P + 1))
    conds = model(ids.repeat(P, 1), conditions.prompts, hidden.repeat(P, 1))
    uncond = model(ids, conditions.uncond, hidden)
    return [*conds.chunk(P), uncond]


def guide(cond: Tensor, uncond: Tensor, t: float) -> Tensor:
    """Classifier-free guidance of logits: (1 + t) cond - t uncond (Muse, section 2.7).

    t = 0 gives `cond`, bit for bit. Others write uncond + s (cond - uncond), with s = 1 + t.
    """
    if t == 0:
        return cond
    return (1 + t) * cond - t * uncond


def compose(uncond: Tensor, conds: list[Tensor], weights: list[float]) -> Tensor:
    """Compose prompts: uncond + the sum of w_i (cond_i - uncond) (2206.01714).

    A negative weight steers away from its prompt. One prompt of weight 1 + t is `guide`.
    """
    pulls = [weight * (cond - uncond) for weight, cond in zip(weights, conds, strict=True)]
    return uncond + sum(pulls)


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
    token_noise (B, N, K) standard Gumbel noise; choice_noise (B, N) Gumbel noise, already scaled.
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
    # order is [1, 3, 0, 2] and rank is [2, 0, 3, 1]; if 2 are left, ranks 2 and 3 are hidden.
    score = score.masked_fill(~hidden, float("inf"))  # B N
    order = score.argsort(dim=-1, descending=True, stable=True)  # B N, positions, best first
    rank = order.argsort(dim=-1)  # B N, the place of each position in that order
    N = ids.shape[-1]
    hidden_again = rank >= N - left[:, None]  # B N

    return Step(guess, log_p.masked_fill(~hidden, float("inf")), hidden_again)


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
    """Standard Gumbel noise -log(-log(u)) on the CPU: float32, since bf16 is not always finite."""
    check_arguments(generator=generator)
    u = torch.rand(shape, generator=generator, dtype=torch.float32).clamp_(1e-20, 1 - 1e-7)
    return u.log_().neg_().log_().neg_()  # In place: the noise is as large as the logits.


# --- Samplers ---
# Each takes logits (B, N, K); log_p (B, N), the log-probability of each guess; hidden (B, N); left
# (B,), how many tokens should stay hidden; the choice noise (B, N); and the settings. It returns
# scores (B, N), the highest of which are kept (those of known tokens do not matter), and how many
# tokens stay hidden (B,). A new sampler is one more function like these, and an entry in SAMPLERS.
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
    rank = halton_order(log_p.shape[-1]).to(log_p)  # N
    return -rank.expand_as(log_p), left


def entropy(
    logits: Tensor, log_p: Tensor, hidden: Tensor, left: Tensor, noise: Tensor, sampling: Sampling
) -> tuple[Tensor, Tensor]:
    """Keep the guesses of lowest entropy: as many as are safe, but at least as many as scheduled.

    Tokens of one step are drawn independently of each other. The error of that is at most the sum
    of their entropies without the largest one, and this sum is kept below `entropy_bound`
    (2505.24857, section 3).
    """
    log_q = logits.log_softmax(dim=-1)  # B N K
    # nansum, because 0 * log(0) is NaN here and 0 in an entropy.
    entropies = (log_q.exp() * -log_q).nansum(dim=-1)  # B N, in nats
    entropies = entropies.masked_fill(~hidden, float("inf"))
    ascending = entropies.sort(dim=-1).values  # B N
    # sum_before[i] is the sum of the first i + 1 entropies without the largest, which comes last.
    # It is 0 for the first token, so at least one token is always kept.
    sum_before = ascending.cumsum(dim=-1) - ascending  # B N
    is_safe = (sum_before <= sampling.entropy_bound).logical_and(ascending.isfinite())  # B N
    left_if_safe = hidden.sum(dim=-1) - is_safe.sum(dim=-1)  # B
    return -entropies, torch.minimum(left, left_if_safe)


SAMPLERS = {"confidence": confidence, "halton": halton, "random": random, "entropy": entropy}


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
