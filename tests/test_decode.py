"""Parallel decoding: properties with a NumPy reference, and a dozen broken decoders."""

from functools import partial
from unittest import mock

import pytest
import torch
from minimuse.checks.lesson06 import package_step
from minimuse.checks.properties import decoding, guidance

from minimuse import decode as ours
from minimuse import guidance as guidance_of_rows
from minimuse import schedule
from minimuse.decode import Sampling, Step
from minimuse.guidance import guide

STEP_PROPERTIES = (
    decoding.hides_the_count_again,
    decoding.keeps_what_is_known,
    decoding.draws_from_the_tempered_softmax,
    decoding.keeps_the_most_confident,
)
LOOP_PROPERTIES = (
    decoding.follows_the_reference,
    decoding.never_shows_the_mask,
    decoding.revealed_tokens_stay,
    decoding.same_generator_same_output,
    decoding.same_in_any_batch,
    decoding.makes_no_idle_pass,
    decoding.model_sees_masks_only,
    decoding.takes_half_precision,
)


# --- One step ---
@pytest.mark.parametrize("prop", STEP_PROPERTIES)
def test_step(prop):
    prop(package_step)


def step(logits, ids, hidden, left, token_noise, choice_noise, temperature, bug=None):
    """decode.step written again, with one bug at a time."""
    noise_scale = 1 if bug == "no temperature" else temperature
    guess = (logits + noise_scale * token_noise).argmax(-1)
    if bug != "known tokens drawn again":
        guess = torch.where(hidden, guess, ids)
    if bug == "tempered confidence" and temperature:
        logits = logits / temperature
    log_p = logits.log_softmax(-1).gather(-1, guess[..., None])[..., 0]
    if bug != "known tokens compete":
        log_p = log_p.masked_fill(~hidden, float("inf"))
    return Step(guess, log_p, hidden_again(log_p + choice_noise, left[:, None], bug))


def hidden_again(scores, left, bug):
    """Which tokens (B, N) stay hidden, left (B, 1) in each row, with the bugs of `step`."""
    N = scores.shape[-1]
    if bug == "cutoff":
        cutoff = scores.sort(-1).values.gather(-1, left.clamp(max=N - 1))
        return scores < cutoff
    if bug == "cutoff or equal":
        cutoff = scores.sort(-1).values.gather(-1, (left - 1).clamp(min=0))
        return (scores <= cutoff) & (left > 0)
    if bug == "last of equals":
        scores = scores.flip(-1)
    descending = bug != "least confident kept"
    order = scores.argsort(dim=-1, descending=descending, stable=True)
    rank = order.argsort(-1)
    if bug == "last of equals":
        rank = rank.flip(-1)
    return rank >= N - left


def test_step_without_a_bug():
    for prop in STEP_PROPERTIES:
        prop(step)


@pytest.mark.parametrize(
    "prop, bug",
    [
        (decoding.hides_the_count_again, "cutoff"),
        (decoding.hides_the_count_again, "cutoff or equal"),
        (decoding.hides_the_count_again, "known tokens compete"),
        # It hides known tokens, whose confidence is infinite.
        (decoding.hides_the_count_again, "least confident kept"),
        (decoding.keeps_what_is_known, "known tokens drawn again"),
        (decoding.keeps_what_is_known, "known tokens compete"),
        (decoding.draws_from_the_tempered_softmax, "no temperature"),
        (decoding.draws_from_the_tempered_softmax, "tempered confidence"),
        (decoding.keeps_the_most_confident, "least confident kept"),
        (decoding.keeps_the_most_confident, "last of equals"),
    ],
)
def test_broken_step(prop, bug, refuses):
    refuses(prop, partial(step, bug=bug))


# --- The loop ---
@pytest.mark.parametrize("prop", LOOP_PROPERTIES)
def test_decode(prop):
    prop(ours.decode)


def decode(model, ids, mask_id, context, uncond, sampling, generators, bug=None):
    """decode.decode written again, with one bug at a time. It runs two model passes in a step."""
    S = sampling.steps
    hidden = ids == mask_id
    if bug == "in place":
        ids[hidden] = 0
    scheduled = scheduled_counts(hidden, S, bug)
    for k in range(S):
        noises = noises_at(k, (*ids.shape, mask_id), sampling, generators, bug)
        left = counts_left(k, S, scheduled, hidden, bug)
        if torch.equal(left, hidden.sum(-1)) and bug != "idle passes":
            continue
        if bug == "given tokens hidden" and k == S // 2:
            hidden = torch.ones_like(hidden)
        guesses_shown = bug == "guesses shown" and k > 0
        inputs = ids if guesses_shown else ids.masked_fill(hidden, mask_id)
        logits = mixed_logits(k, model, inputs, context, uncond, sampling, bug)
        if bug == "half noise":
            u = torch.exp(-torch.exp(-noises[0])).to(logits.dtype).clamp(1e-20, 1 - 1e-7)
            noises = (-torch.log(-torch.log(u)), noises[1])
        step_of_bug = step if bug == "half confidence" else package_step
        now = step_of_bug(logits, ids, hidden, left, *noises, sampling.temperature)
        ids = now.ids
        hidden = now.hidden
        if bug == "the state is returned":
            ids = ids.masked_fill(hidden, mask_id)
        yield Step(ids, now.confidence, hidden)


def scheduled_counts(hidden, steps, bug):
    """How many tokens of each row stay hidden after each step (B, S)."""
    B, N = hidden.shape
    at_the_start = [N] * B if bug == "counts from N" else hidden.sum(-1).tolist()
    if bug == "counts of the first row":
        at_the_start = at_the_start[:1] * B
    return torch.tensor([schedule.masked_after(n, steps) for n in at_the_start])


def counts_left(k, steps, scheduled, hidden, bug):
    """How many tokens of each row stay hidden after step k (B,)."""
    counts = hidden.sum(-1)
    left = torch.minimum(scheduled[:, k], counts)
    is_last = k == steps - 1
    if bug == "counts from N" and not is_last:
        left = torch.minimum(left, (counts - 1).clamp(min=0))
    if bug == "one token stays" and is_last:
        left = left.clamp(min=1).minimum(counts)
    return left


def mixed_logits(k, model, inputs, context, uncond, sampling, bug):
    """Logits (B, N, K) of step k, with guidance."""
    t = sampling.guidance
    if sampling.ramp:
        t = t * ((k if bug == "late ramp" else k + 1) / sampling.steps)
    logits = model(inputs, context)
    if uncond is None or (t == 0 and bug != "two passes"):
        return logits
    other = model(inputs, uncond)
    if bug == "the other scale":
        return other + t * (logits - other)
    return (1 + t) * logits - t * other


def noises_at(k, shape, sampling, generators, bug):
    """Noise for the tokens (B, N, K), then for the choice (B, N), of step k."""
    B, N, K = shape
    if bug == "global noise":
        generators = [torch.default_generator] * B
    if bug == "one generator for the batch":
        generators = generators[:1] * B

    def gumbel(shape):
        noises = []
        for generator in generators:
            u = torch.rand(shape, generator=generator).clamp(1e-20, 1 - 1e-7)
            noises.append(-torch.log(-torch.log(u)))
        return torch.stack(noises)

    scale = sampling.choice_temperature * (1 - (k + 1) / sampling.steps)
    if bug == "annealed twice":
        scale = sampling.choice_temperature
        for j in range(k + 1):
            scale = scale * (1 - (j + 1) / sampling.steps)
    token_noise = gumbel((N, K))
    return token_noise, scale * gumbel((N,))


def one_batch(decoder):
    """Let a decoder that runs two passes in a step run them as one, and keep the rest as it is."""

    def run(model, ids, mask_id, context, uncond, sampling, generators):
        class Both:
            def __call__(self, inputs, rows, where=None):
                if uncond is None or sampling.guidance == 0:
                    return model(inputs, rows)
                if rows is context:
                    logits = model(torch.cat([inputs, inputs]), context.join(uncond))
                    cond_logits, self.uncond_logits = logits.chunk(2)
                    return cond_logits
                return self.uncond_logits

        yield from decoder(Both(), ids, mask_id, context, uncond, sampling, generators)

    return run


def test_decode_without_a_bug():
    for prop in LOOP_PROPERTIES:
        prop(one_batch(decode))


@pytest.mark.parametrize(
    "prop, bug",
    [
        (decoding.follows_the_reference, "annealed twice"),
        (decoding.follows_the_reference, "counts from N"),
        (decoding.follows_the_reference, "late ramp"),
        (decoding.follows_the_reference, "the other scale"),
        (decoding.follows_the_reference, "guesses shown"),
        (decoding.never_shows_the_mask, "the state is returned"),
        (decoding.never_shows_the_mask, "given tokens hidden"),
        (decoding.never_shows_the_mask, "one token stays"),
        (decoding.revealed_tokens_stay, "given tokens hidden"),
        (decoding.same_generator_same_output, "global noise"),
        (decoding.same_in_any_batch, "one generator for the batch"),
        (decoding.same_in_any_batch, "counts of the first row"),
        (decoding.same_generator_same_output, "in place"),
        (decoding.makes_no_idle_pass, "idle passes"),
        (decoding.model_sees_masks_only, "guesses shown"),
        (decoding.takes_half_precision, "half confidence"),
        (decoding.takes_half_precision, "half noise"),
    ],
)
def test_broken_decode(prop, bug, refuses):
    refuses(prop, one_batch(partial(decode, bug=bug)))


def test_unconditional_rows_that_nobody_uses(refuses):
    refuses(decoding.makes_no_idle_pass, partial(decode, bug="two passes"))


def run(model, ids, mask_id, context, uncond=None, weights=(1.0,), seed=0, **settings):
    """All steps of decode.decode."""
    sampling = Sampling(**settings)
    generators = decoding.generators(len(ids), seed)
    return list(ours.decode(model, ids, mask_id, context, uncond, sampling, generators, weights))


def test_every_hole_is_filled_in_all_steps():
    """The counts of one decoding of three holes: nine tokens, one, none."""
    hidden = [torch.from_numpy(decoding.UNEVEN.ids == 4)]
    hidden += [result.hidden for result in decoding.UNEVEN.run(ours.decode)]
    counts = torch.stack(hidden).sum(-1)  # steps B
    assert counts[:, 0].tolist() == [9, *schedule.masked_after(9, 5)]
    assert counts[:, 1].tolist() == [1, 1, 1, 1, 1, 0]
    assert counts[:, 2].tolist() == [0] * 6


@pytest.mark.parametrize("law", schedule.LAWS)
def test_all_equal_confidences(law):
    """A model that knows nothing: counts are exact in every step, for every schedule."""

    def constant(ids, context, where):
        return torch.zeros(*ids.shape, 7)[where]

    ids = torch.full((3, 25), 7)
    ids[1, :20] = 2
    ids[2, 3] = 5
    context = decoding.rows(0, 3, 7)
    results = run(constant, ids, 7, context, steps=6, law=law, temperature=0, choice_temperature=0)
    wanted = [schedule.masked_after(n, 6, law) for n in (25, 5, 24)]
    steps = [k for k in range(6) if k == 0 or any(row[k] != row[k - 1] for row in wanted)]
    for b in range(3):
        counts = [int(result.hidden[b].sum()) for result in results]
        assert counts == [wanted[b][k] for k in steps]


# --- Guidance ---
@pytest.mark.parametrize("seed", range(5))
def test_guidance_at_zero_is_no_guidance(seed):
    """Bit for bit, and a negative prompt then changes nothing."""
    ids = torch.full((2, 9), 5)
    model = decoding.Table(seed, 5)
    cond = decoding.rows(1, 2, 5)
    negative = decoding.rows(9, 2, 5)
    without = run(model, ids, 5, cond, None, seed=seed, steps=4, guidance=3.0)
    at_zero = run(model, ids, 5, cond, negative, seed=seed, steps=4, guidance=0.0)
    assert decoding.same_steps(without, at_zero)


def test_guidance():
    guidance.neutral_at_zero(guide)
    guidance.neutral_where_uncond_is_impossible(guide)
    guidance.extrapolates_by_t(guide)


@pytest.mark.parametrize(
    "prop, planted",
    [
        # Neutral but for the last bits.
        (guidance.neutral_at_zero, lambda c, u, t: u + (1 + t) * (c - u)),
        (guidance.neutral_at_zero, lambda c, u, t: u + t * (c - u)),
        (guidance.extrapolates_by_t, lambda c, u, t: u + t * (c - u)),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t) * u - t * c),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t) * c + t * u),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t * t) * c - t * t * u),
    ],
)
def test_broken_guidance(prop, planted, refuses):
    refuses(prop, planted)


# --- Noise ---
def test_noise():
    decoding.noise_is_standard_gumbel(ours.gumbel)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_noise(dtype, refuses):
    def gumbel(shape, generator):
        u = torch.rand(shape, generator=generator, dtype=dtype).clamp(1e-20)
        return -torch.log(-torch.log(u))

    refuses(decoding.noise_is_standard_gumbel, gumbel)


def test_normal_noise(refuses):
    refuses(
        decoding.noise_is_standard_gumbel,
        lambda shape, generator: torch.randn(shape, generator=generator),
    )


# --- Samplers ---
def swapped(sampler, name="confidence"):
    """decode.decode with another function for a sampler."""

    def run(*args):
        with mock.patch.dict(ours.SAMPLERS, {name: sampler}):
            yield from ours.decode(*args)

    return run


def test_samplers():
    assert tuple(ours.SAMPLERS) == ("confidence", "halton", "random", "entropy")
    decoding.every_sampler_keeps_its_promises(ours.decode)
    decoding.visits_every_place_evenly(ours.halton_order)
    decoding.reveals_as_many_as_are_safe(ours.entropy)
    decoding.draws_from_the_k_likeliest(ours.draw)


def greedy_entropy(logits, log_p, hidden, left, noise, sampling, bug):
    """decode.entropy written again, with one bug at a time."""
    p = logits.softmax(-1)
    entropies = -(p * (p + 1e-30).log()).sum(-1)
    if bug != "known compete":
        entropies = entropies.masked_fill(~hidden, float("inf"))
    rising = entropies.sort(-1).values
    sums = rising.cumsum(-1)
    if bug != "the largest counts":
        sums = sums - rising
    safe = (sums <= sampling.entropy_bound).logical_and(rising.isfinite()).sum(-1)
    left_if_safe = hidden.sum(-1) - safe
    scores = entropies if bug == "least certain first" else -entropies
    if bug == "slower than the schedule":
        return scores, left_if_safe
    return scores, torch.minimum(left, left_if_safe)


def one_too_few_left(logits, log_p, hidden, left, noise, sampling):
    return log_p, (left - 1).clamp(min=0)


def one_left_at_the_end(logits, log_p, hidden, left, noise, sampling):
    return log_p, left.clamp(min=1)


def global_noise(logits, log_p, hidden, left, noise, sampling):
    return log_p + torch.rand(log_p.shape), left


@pytest.mark.parametrize(
    "planted",
    [
        swapped(one_too_few_left),
        swapped(one_left_at_the_end),
        swapped(global_noise),
        swapped(partial(greedy_entropy, bug="slower than the schedule"), "entropy"),
    ],
)
def test_broken_samplers(planted, refuses):
    with torch.random.fork_rng():
        refuses(decoding.every_sampler_keeps_its_promises, planted)


@pytest.mark.parametrize(
    "bug",
    ["known compete", "the largest counts", "least certain first", "slower than the schedule"],
)
def test_broken_entropy(bug, refuses):
    decoding.reveals_as_many_as_are_safe(partial(greedy_entropy, bug=None))
    refuses(decoding.reveals_as_many_as_are_safe, partial(greedy_entropy, bug=bug))


@pytest.mark.parametrize(
    "planted",
    [
        torch.arange,  # row by row
        lambda n: ours.halton_order(n).reshape(round(n**0.5), -1).T.flatten(),
        lambda n: ours.halton_order(n).clamp(max=n - 2),
        lambda n: n - 1 - ours.halton_order(n),
    ],
)
def test_other_orders(planted, refuses):
    refuses(decoding.visits_every_place_evenly, planted)


@pytest.mark.parametrize(
    "planted",
    [
        lambda x, g, T, k: ours.draw(x, g, T, 0),
        lambda x, g, T, k: ours.draw(x, g, T, k + 1),
        lambda x, g, T, k: ours.draw(x, g, T, max(1, k)),
        lambda x, g, T, k: ours.draw(x, g, T, max(0, k - 1)),
        lambda x, g, T, k: ours.draw(-x, g, T, k),
    ],
)
def test_broken_draws(planted, refuses):
    refuses(decoding.draws_from_the_k_likeliest, planted)


def test_settings_reach_the_step():
    """Halton's order is the order of revealing; top_k 1 is temperature 0, and no limit is none."""
    model = decoding.Table(1, 5)
    # No equal scores.
    model.own = model.own + 1e-3 * torch.randn(6, 5, generator=decoding.generator()).numpy()
    ids = torch.full((2, 16), 5)
    context = decoding.rows(1, 2, 5)
    ranks = ours.halton_order(16)
    results = run(model, ids, 5, context, steps=16, law="linear", sampler="halton")
    for k, result in enumerate(results):
        assert torch.equal(result.hidden, (ranks > k).expand(2, -1))
    best_only = run(model, ids, 5, context, steps=4, top_k=1)
    cold = run(model, ids, 5, context, steps=4, temperature=0.0)
    assert torch.equal(best_only[-1].ids, cold[-1].ids)
    drawn = ours.draw(torch.zeros(500, 4), decoding.gumbel_of((500, 4)), 1.0)
    assert set(drawn.tolist()) == {0, 1, 2, 3}


def test_certain_tokens_come_at_once():
    """A model that is certain of everything needs one step by entropy, and S by confidence."""

    def certain(ids, context, where):
        logits = 50.0 * torch.eye(16)[torch.arange(16)]
        return logits.expand(len(ids), 16, 16)[where]

    ids = torch.full((2, 16), 16)
    assert len(run(certain, ids, 16, None, steps=8, sampler="entropy")) == 1
    assert len(run(certain, ids, 16, None, steps=8, sampler="confidence")) == 8


# --- Several prompts, and which rows run ---
@pytest.mark.parametrize("ramp", [True, False])
def test_composed_prompts(ramp):
    """Two prompts with weights give what a model gives that mixes their logits itself."""
    ids = torch.full((2, 9), 5)
    model = decoding.Table(1, 5)
    one, two, null = (decoding.rows(seed, 2, 5) for seed in (1, 2, 3))
    settings = {"steps": 4, "ramp": ramp}
    results = run(model, ids, 5, one.join(two), null, weights=(1.0, -0.5), guidance=2.0, **settings)
    assert [len(seen) for seen in model.passes] == [6] * 4  # all three in one batch
    steps = iter(range(4))

    def mixed(inputs, context, where):
        k = next(steps)
        scale = 1 + 2.0 * ((k + 1) / 4 if ramp else 1)
        u, a, b = (model(inputs, rows, where) for rows in (null, one, two))
        return u + scale * 1.0 * (a - u) + scale * -0.5 * (b - u)

    wanted = run(mixed, ids, 5, one, guidance=0.0, **settings)
    for result, other in zip(results, wanted, strict=True):
        assert torch.equal(result.ids, other.ids)
        assert torch.equal(result.hidden, other.hidden)
        torch.testing.assert_close(result.confidence, other.confidence)


def test_one_prompt_of_weight_one_is_plain_guidance():
    ids = torch.full((2, 9), 5)
    model = decoding.Table(1, 5)
    cond = decoding.rows(1, 2, 5)
    null = decoding.rows(2, 2, 5)
    settings = {"steps": 4, "guidance": 2.0}
    plain = run(model, ids, 5, cond, null, **settings)[-1].ids
    weight_one = run(model, ids, 5, cond, null, weights=(1.0,), **settings)[-1].ids
    another = run(model, ids, 5, cond, null, weights=(0.2,), **settings)[-1].ids
    assert torch.equal(plain, weight_one)
    assert not torch.equal(plain, another)


def test_weights_need_an_unconditional_context():
    ids = torch.full((2, 9), 5)
    with pytest.raises(ValueError, match=r"\(0.2,\).*unconditional"):
        run(decoding.Table(1, 5), ids, 5, decoding.rows(1, 2, 5), weights=(0.2,))


@pytest.mark.parametrize(
    "guided, batches",
    [
        ((0.5, 1.0), [2, 2, 4, 4]),
        ((0.0, 0.25), [4, 2, 2, 2]),
        ((0.0, 1.0), [4, 4, 4, 4]),
        ((0.0, 0.0), [2, 2, 2, 2]),
    ],
)
def test_no_unconditional_pass_outside_of_the_interval(guided, batches):
    model = decoding.Table(1, 5)
    ids = torch.full((2, 9), 5)
    cond = decoding.rows(1, 2, 5)
    null = decoding.rows(2, 2, 5)
    run(model, ids, 5, cond, null, steps=4, guidance=2.0, ramp=False, guided=guided)
    assert [len(seen) for seen in model.passes] == batches


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -0.5)])
def test_many_rows_take_their_guidance_one_after_the_other(monkeypatch, weights):
    """Above ONE_BATCH_TOKENS, a CPU runs conditional and unconditional rows in two passes.

    What is drawn is the same.
    """
    P, B, N = len(weights), 2, 9

    def drawn(limit):
        monkeypatch.setattr(guidance_of_rows, "ONE_BATCH_TOKENS", limit)
        model = decoding.Table(1, 5)
        cond = decoding.rows(1, P * B, 5)
        null = decoding.rows(2, B, 5)
        results = run(model, torch.full((B, N), 5), 5, cond, null, weights=weights, steps=4)
        return results, [len(seen) for seen in model.passes]

    together, batches = drawn(limit=B * N)
    assert batches == [(P + 1) * B] * 4
    apart, batches = drawn(limit=B * N - 1)
    assert batches == [P * B, B] * 4
    assert decoding.same_steps(together, apart)


# --- Settings ---
def test_impossible_sampling():
    with pytest.raises(ValueError, match="steps is 0"):
        Sampling(steps=0)
    for setting in ("guidance", "temperature", "choice_temperature", "top_k", "entropy_bound"):
        with pytest.raises(ValueError, match=f"{setting} is -0.5"):
            Sampling(**{setting: -0.5})
    for guided in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.5), (0.5,), 0.5):
        with pytest.raises(ValueError, match="guided is"):
            Sampling(guided=guided)
    with pytest.raises(ValueError, match="'best'.*halton"):
        Sampling(sampler="best")
    with pytest.raises(ValueError, match="choice_temperature is 0"):
        Sampling(sampler="random", choice_temperature=0.0)
    with pytest.raises(ValueError, match="'circle'"):
        Sampling(law="circle")
