"""Right solutions of lesson 06, in other ways."""

import math

import torch

from minimuse.decode import Step
from minimuse.schedule import masked_after


# --- gumbel ---
def gumbel_in_float64(shape, generator):
    u = torch.rand(shape, generator=generator).double().clamp(1e-20, 1 - 1e-7)
    return (-(-u.log()).log()).float()


def gumbel_by_the_exponential(shape, generator):
    u = torch.rand(shape, generator=generator).clamp(min=1e-38, max=1 - 1e-7)
    exponential = -torch.log(u)
    return torch.log(1 / exponential)


def gumbel_with_a_nudge(shape, generator):
    u = torch.rand(shape, generator=generator)
    u = u + 1e-20 * (u == 0)
    return -torch.log(-torch.log(torch.minimum(u, torch.tensor(1 - 1e-7))))


# --- tempered_draw ---
def draw_by_the_quotient(logits, noise, temperature):
    if temperature == 0:
        return logits.argmax(-1)
    return (logits / temperature + noise).argmax(-1)


def draw_row_by_row(logits, noise, temperature):
    ids = []
    for row, g in zip(logits.tolist(), noise.tolist(), strict=True):
        scores = [x + temperature * n for x, n in zip(row, g, strict=True)]
        ids.append(max(range(len(scores)), key=scores.__getitem__))
    return torch.tensor(ids, dtype=torch.int64)


def draw_by_log_softmax(logits, noise, temperature):
    log_p = logits.double().log_softmax(-1)
    return torch.add(log_p, noise.double(), alpha=temperature).max(dim=-1)[1]


# --- hidden_again ---
def again_row_by_row(scores, hidden, left):
    result = torch.zeros_like(hidden)
    for b in range(len(scores)):
        positions = hidden[b].nonzero()[:, 0].tolist()
        positions.sort(key=lambda i, b=b: -float(scores[b, i]))
        revealed = len(positions) - int(left[b])
        result[b, positions[revealed:]] = True
    return result


def again_by_ranks(scores, hidden, left):
    scores = scores.masked_fill(~hidden, torch.inf)
    ranks = scores.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    return ranks >= scores.shape[1] - left[:, None]


def again_by_comparing_pairs(scores, hidden, left):
    """The rank of a position is how many hidden positions come before it."""
    i = torch.arange(scores.shape[1])
    better = scores[:, None, :] > scores[:, :, None]
    equal = (scores[:, None, :] == scores[:, :, None]) & (i[None, :] < i[:, None])
    before = ((better | equal) & hidden[:, None, :]).sum(-1)
    revealed = hidden.sum(-1) - left
    return hidden & (before >= revealed[:, None])


def again_by_scatter(scores, hidden, left):
    """From the worst on: the last of equals is hidden first."""
    flipped = scores.masked_fill(~hidden, torch.inf).flip(1)
    worst_first = scores.shape[1] - 1 - flipped.argsort(dim=1, stable=True)
    first = torch.arange(scores.shape[1])[None] < left[:, None]
    return torch.zeros_like(hidden).scatter(1, worst_first, first)


# --- step ---
def step_on_whole_tensors(logits, ids, hidden, left, token_noise, choice_noise, temperature):
    guess = ids.clone()
    guess[hidden] = draw_by_the_quotient(logits[hidden], token_noise[hidden], temperature)
    log_p = torch.gather(logits.log_softmax(-1), 2, guess.unsqueeze(-1)).squeeze(-1)
    again = again_by_ranks(log_p + choice_noise, hidden, left)
    return Step(guess, torch.where(hidden, log_p, torch.inf), again)


def step_row_by_row(logits, ids, hidden, left, token_noise, choice_noise, temperature):
    guess, confidence = ids.clone(), torch.full(ids.shape, torch.inf)
    for b, n in hidden.nonzero().tolist():
        scores = logits[b, n] + temperature * token_noise[b, n]
        guess[b, n] = scores.argmax()
        confidence[b, n] = logits[b, n, guess[b, n]] - logits[b, n].logsumexp(0)
    return Step(guess, confidence, again_row_by_row(confidence + choice_noise, hidden, left))


def step_with_cross_entropy(logits, ids, hidden, left, token_noise, choice_noise, temperature):
    drawn = torch.add(logits, token_noise, alpha=temperature).argmax(-1)
    guess = drawn * hidden + ids * ~hidden
    cost = torch.nn.functional.cross_entropy(logits.mT, guess, reduction="none")
    again = again_by_comparing_pairs(choice_noise - cost, hidden, left)
    return Step(guess, (-cost).masked_fill(~hidden, float("inf")), again)


# --- decode ---
def noise_of(generators, N, K, scale, gumbel):
    token_noise = torch.stack([gumbel((N, K), generator) for generator in generators])
    choice_noise = torch.stack([gumbel((N,), generator) for generator in generators])
    return token_noise, choice_noise * scale


def decode_with_lists(model, ids, mask_id, context, sampling, generators):
    S, hidden = sampling.steps, ids == mask_id
    counts = [masked_after(int(n), S) for n in hidden.sum(-1)]
    for k in range(S):
        scale = sampling.choice_temperature * (S - 1 - k) / S
        noise = noise_of(generators, ids.shape[1], mask_id, scale, gumbel_in_float64)
        left = torch.tensor([row[k] for row in counts])
        if (left == hidden.sum(-1)).all():
            continue
        logits = model(torch.where(hidden, mask_id, ids), context)
        state = step_on_whole_tensors(logits, ids, hidden, left, *noise, sampling.temperature)
        ids, hidden = state.ids, state.hidden
        yield state


def decode_with_a_table(model, ids, mask_id, context, sampling, generators):
    hidden = ids.eq(mask_id)
    scheduled = torch.tensor([masked_after(n, sampling.steps) for n in hidden.sum(1).tolist()])
    for k, left in enumerate(scheduled.T):
        scale = sampling.choice_temperature * (1 - (k + 1) / sampling.steps)
        noise = noise_of(generators, ids.shape[1], mask_id, scale, gumbel_by_the_exponential)
        if torch.equal(left, hidden.sum(1)):
            continue
        inputs = ids.clone()
        inputs[hidden] = mask_id
        logits = model(inputs, context)
        state = step_with_cross_entropy(logits, ids, hidden, left, *noise, sampling.temperature)
        ids, hidden, _ = state.ids, state.hidden, (yield state)


def decode_into_a_list(model, ids, mask_id, context, sampling, generators):
    """All steps first; then they are given out."""
    state = Step(ids, None, ids == mask_id)
    masked = state.hidden.sum(-1).tolist()
    rows = [masked_after(n, sampling.steps) for n in masked]
    states = []
    for k in range(sampling.steps):
        scale = sampling.choice_temperature * (1 - (k + 1) / sampling.steps)
        noise = noise_of(generators, ids.shape[1], mask_id, scale, gumbel_with_a_nudge)
        left = [row[k] for row in rows]
        if left == state.hidden.sum(-1).tolist():
            continue
        logits = model(state.ids.masked_fill(state.hidden, mask_id), context)
        state = step_row_by_row(
            logits, state.ids, state.hidden, torch.tensor(left), *noise, sampling.temperature
        )
        states.append(state)
    return iter(states)


RIGHT = {
    "noise_at": (
        lambda k, S, tau: tau * (S - 1 - k) / S,
        lambda k, S, tau: tau - (k + 1) * (tau / S),
        lambda k, S, tau: torch.linspace(tau, 0, S + 1, dtype=torch.float64)[k + 1].item(),
        lambda k, S, tau: math.fsum([tau, *[-tau / S] * (k + 1)]),
    ),
    "gumbel": (gumbel_in_float64, gumbel_by_the_exponential, gumbel_with_a_nudge),
    "tempered_draw": (draw_by_the_quotient, draw_row_by_row, draw_by_log_softmax),
    "hidden_again": (
        again_row_by_row,
        again_by_ranks,
        again_by_comparing_pairs,
        again_by_scatter,
    ),
    "step": (step_on_whole_tensors, step_row_by_row, step_with_cross_entropy),
    "decode": (decode_with_lists, decode_with_a_table, decode_into_a_list),
}
