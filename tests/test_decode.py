"""Parallel decoding against a NumPy reference, and a dozen broken decoders: `pytest tests/test_decode.py`."""

from dataclasses import replace
from functools import partial
from unittest import mock

import pytest
import torch
from minimuse.checks.lesson06 import package_step
from minimuse.checks.properties import decoding, guidance

from minimuse import decode as ours
from minimuse import schedule
from minimuse.decode import Sampling, Step

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
    decoding.makes_no_idle_pass,
    decoding.model_sees_masks_only,
    decoding.takes_half_precision,
)


# One step


@pytest.mark.parametrize("prop", STEP_PROPERTIES)
def test_step(prop):
    prop(package_step)


def step(logits, ids, hidden, left, token_noise, choice_noise, temperature, bug=None):
    """decode.step once more, with one bug at a time."""
    tempered = logits / temperature if temperature else logits
    guess = (
        logits + (token_noise if bug == "no temperature" else temperature * token_noise)
    ).argmax(-1)
    if bug != "known tokens drawn again":
        guess = torch.where(hidden, guess, ids)
    log_p = (
        (tempered if bug == "tempered confidence" else logits)
        .log_softmax(-1)
        .gather(-1, guess[..., None])[..., 0]
    )
    if bug != "known tokens compete":
        log_p = log_p.masked_fill(~hidden, float("inf"))
    noisy = log_p + choice_noise
    if bug == "cutoff":
        cutoff = noisy.sort(-1).values.gather(-1, (left[:, None]).clamp(max=ids.shape[-1] - 1))
        return Step(guess, log_p, noisy < cutoff)
    if bug == "cutoff or equal":
        cutoff = noisy.sort(-1).values.gather(-1, (left[:, None] - 1).clamp(min=0))
        return Step(guess, log_p, (noisy <= cutoff) & (left[:, None] > 0))
    if bug == "last of equals":
        noisy = noisy.flip(-1)
    descending = bug != "least confident kept"
    order = noisy.argsort(dim=-1, descending=descending, stable=True)
    rank = order.argsort(-1)
    rank = rank.flip(-1) if bug == "last of equals" else rank
    return Step(guess, log_p, rank >= ids.shape[-1] - left[:, None])


def test_step_without_a_bug():
    for prop in STEP_PROPERTIES:
        prop(step)


@pytest.mark.parametrize(
    "prop, bug",
    [
        (decoding.hides_the_count_again, "cutoff"),
        (decoding.hides_the_count_again, "cutoff or equal"),
        (decoding.hides_the_count_again, "known tokens compete"),
        (decoding.hides_the_count_again, "least confident kept"),  # hides what is known and surest
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


# The loop


@pytest.mark.parametrize("prop", LOOP_PROPERTIES)
def test_decode(prop):
    prop(ours.decode)


def decode(model, ids, mask_id, context, uncond, sampling, generator, bug=None):
    """decode.decode once more, with one bug at a time."""
    given, S, N = ids != mask_id, sampling.steps, ids.shape[1]
    hidden, tau = ~given, sampling.choice_temperature
    if bug == "in place":
        ids[hidden] = 0
    start = [N] * len(ids) if bug == "counts from N" else hidden.sum(-1).tolist()
    after = torch.tensor([schedule.masked_after(n, S) for n in start])
    for k in range(S):
        left = torch.minimum(after[:, k], hidden.sum(-1))
        if bug == "counts from N" and k < S - 1:
            left = torch.minimum(left, (hidden.sum(-1) - 1).clamp(min=0))
        if bug == "one token stays" and k == S - 1:
            left = left.clamp(min=1).minimum(hidden.sum(-1))
        if (left == hidden.sum(-1)).all() and bug != "idle passes":
            continue
        if bug == "given tokens hidden" and k == S // 2:
            hidden = torch.ones_like(hidden)
        inputs = ids if bug == "guesses shown" and k else ids.masked_fill(hidden, mask_id)
        t = sampling.guidance * ((k if bug == "late ramp" else k + 1) / S if sampling.ramp else 1)
        logits = model(inputs, context)
        if uncond is not None and (t or bug == "two passes"):
            other = model(inputs, uncond)
            logits = (
                (other + t * (logits - other))
                if bug == "the other scale"
                else (1 + t) * logits - t * other
            )
        tau = (
            tau * (1 - (k + 1) / S)
            if bug == "annealed twice"
            else sampling.choice_temperature * (1 - (k + 1) / S)
        )
        draw = None if bug == "global noise" else generator
        precision = logits.dtype if bug == "half noise" else torch.float32
        gumbel = lambda *shape: (
            -torch.log(
                -torch.log(torch.rand(shape, generator=draw).to(precision).clamp(1e-20, 1 - 1e-7))
            )
        )
        now = (step if bug == "half confidence" else package_step)(
            logits,
            ids,
            hidden,
            left,
            gumbel(*logits.shape),
            tau * gumbel(*ids.shape),
            sampling.temperature,
        )
        ids = (
            now.ids.masked_fill(now.hidden, mask_id) if bug == "the state is returned" else now.ids
        )
        hidden = now.hidden
        yield Step(ids, now.confidence, hidden)


def one_batch(decoder):
    """Two passes through the model as one, so that only what is meant to differ does."""

    def run(model, ids, mask_id, context, uncond, sampling, generator):
        class Both:
            def __call__(self, inputs, rows, where=None):
                if uncond is None or sampling.guidance == 0:
                    return model(inputs, rows)
                if rows is context:
                    self.cond, self.uncond = model(
                        torch.cat([inputs, inputs]), context.join(uncond)
                    ).chunk(2)
                    return self.cond
                return self.uncond

        yield from decoder(Both(), ids, mask_id, context, uncond, sampling, generator)

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


def test_every_hole_is_filled_in_all_steps():
    """The reveal counts of one decode, of three holes: none, one token, eight."""
    ids = decoding.UNEVEN.ids
    hidden = [torch.from_numpy(ids == 4).sum(-1).tolist()] + [
        s.hidden.sum(-1).tolist() for s in decoding.UNEVEN.run(ours.decode)
    ]
    assert [row[0] for row in hidden] == [9, *schedule.masked_after(9, 5)]
    assert [row[1] for row in hidden] == [1, 1, 1, 1, 1, 0] and [row[2] for row in hidden] == [
        0
    ] * 6


@pytest.mark.parametrize("law", schedule.LAWS)
def test_all_equal_confidences(law):
    """A model that knows nothing: exact counts in every step, by every law."""
    constant = lambda ids, context, where: torch.zeros(*ids.shape, 7)[where]
    ids = torch.full((3, 25), 7)
    ids[1, :20], ids[2, 3] = 2, 5
    sampling = Sampling(steps=6, law=law, temperature=0.0, choice_temperature=0.0)
    taken = list(
        ours.decode(constant, ids, 7, decoding.rows(0, 3, 7), None, sampling, decoding.generator())
    )
    wanted = [schedule.masked_after(n, 6, law) for n in (25, 5, 24)]
    seen = [[int(s.hidden[b].sum()) for s in taken] for b in range(3)]
    steps = [k for k in range(6) if k == 0 or any(row[k] != row[k - 1] for row in wanted)]
    assert seen == [[row[k] for k in steps] for row in wanted]


def test_guidance_at_zero_is_no_guidance():
    """Bit for bit, and a negative prompt then changes nothing."""
    for seed in range(5):
        ids = torch.full((2, 9), 5)
        model, cond, draw = decoding.Table(seed, 5), decoding.rows(1, 2, 5), decoding.generator
        run = lambda uncond, t: list(
            ours.decode(model, ids, 5, cond, uncond, Sampling(steps=4, guidance=t), draw(seed))
        )
        pairs = zip(run(None, 3.0), run(decoding.rows(9, 2, 5), 0.0), strict=True)
        assert all(torch.equal(a, b) for one, two in pairs for a, b in zip(one, two, strict=True))


def test_guidance():
    guidance.neutral_at_zero(ours.guide)
    guidance.extrapolates_by_t(ours.guide)


@pytest.mark.parametrize(
    "prop, planted",
    [
        (
            guidance.neutral_at_zero,
            lambda c, u, t: u + (1 + t) * (c - u),
        ),  # neutral but for the last bits
        (guidance.neutral_at_zero, lambda c, u, t: u + t * (c - u)),
        (guidance.extrapolates_by_t, lambda c, u, t: u + t * (c - u)),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t) * u - t * c),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t) * c + t * u),
        (guidance.extrapolates_by_t, lambda c, u, t: (1 + t * t) * c - t * t * u),
    ],
)
def test_broken_guidance(prop, planted, refuses):
    refuses(prop, planted)


def test_noise():
    decoding.noise_is_standard_gumbel(ours.gumbel)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_noise(dtype, refuses):
    def gumbel(shape, generator):
        return -torch.log(
            -torch.log(torch.rand(shape, generator=generator, dtype=dtype).clamp(1e-20))
        )

    refuses(decoding.noise_is_standard_gumbel, gumbel)
    refuses(
        decoding.noise_is_standard_gumbel,
        lambda shape, generator: torch.randn(shape, generator=generator),
    )


# Samplers, prompts, and intervals of guidance


def swapped(sampler, name="confidence"):
    """decode with another function for a sampler."""

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
    """decode.entropy with one bug at a time."""
    p = logits.softmax(-1)
    spread = -(p * (p + 1e-30).log()).sum(-1)
    spread = spread if bug == "known compete" else spread.masked_fill(~hidden, float("inf"))
    rising = spread.sort(-1).values
    sums = rising.cumsum(-1) - (0 if bug == "the largest counts" else rising)
    safe = (sums <= sampling.entropy_bound).logical_and(rising.isfinite()).sum(-1)
    later = hidden.sum(-1) - safe
    return (
        spread if bug == "least certain first" else -spread
    ), later if bug == "slower than the schedule" else torch.minimum(left, later)


@pytest.mark.parametrize(
    "planted",
    [
        swapped(
            lambda logits, log_p, hidden, left, noise, sampling: (log_p, (left - 1).clamp(min=0))
        ),
        swapped(lambda logits, log_p, hidden, left, noise, sampling: (log_p, left.clamp(min=1))),
        swapped(
            lambda logits, log_p, hidden, left, noise, sampling: (
                log_p + torch.rand(log_p.shape),
                left,
            )
        ),
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
    model.own = (
        model.own + 1e-3 * torch.randn(6, 5, generator=decoding.generator()).numpy()
    )  # no ties
    run = lambda **how: list(
        ours.decode(
            model,
            torch.full((2, 16), 5),
            5,
            decoding.rows(1, 2, 5),
            None,
            Sampling(**how),
            decoding.generator(),
        )
    )
    ranks = ours.halton_order(16)
    for k, step in enumerate(run(steps=16, law="linear", sampler="halton")):
        assert torch.equal(step.hidden, (ranks > k).expand(2, -1))
    assert torch.equal(run(steps=4, top_k=1)[-1].ids, run(steps=4, temperature=0.0)[-1].ids)
    logits, noise = torch.zeros(500, 4), decoding.gumbel_of((500, 4))
    assert set(ours.draw(logits, noise, 1.0).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("ramp", [True, False])
def test_composed_prompts(ramp):
    """Two prompts with weights: what a model gives that mixes their logits itself, step by step with the same noise."""
    sampling, weights = Sampling(steps=4, guidance=2.0, ramp=ramp), (1.0, -0.5)
    ids, draw = torch.full((2, 9), 5), decoding.generator
    model, one, two, null = decoding.Table(1, 5), *(decoding.rows(s, 2, 5) for s in (1, 2, 3))
    taken = list(ours.decode(model, ids, 5, one.join(two), null, sampling, draw(0), weights))
    assert [len(seen) for seen in model.passes] == [6] * 4  # all three in one batch
    steps = iter(range(4))

    def mixed(inputs, context, where):
        scale = 1 + 2.0 * ((next(steps) + 1) / 4 if ramp else 1)
        u, a, b = (model(inputs, rows, where) for rows in (null, one, two))
        return u + scale * 1.0 * (a - u) + scale * -0.5 * (b - u)

    wanted = list(ours.decode(mixed, ids, 5, one, None, replace(sampling, guidance=0.0), draw(0)))
    for step, other in zip(taken, wanted, strict=True):
        assert torch.equal(step.ids, other.ids) and torch.equal(step.hidden, other.hidden)
        torch.testing.assert_close(step.confidence, other.confidence)


def test_one_prompt_of_weight_one_is_plain_guidance():
    ids, draw, model, one, null = (
        torch.full((2, 9), 5),
        decoding.generator,
        decoding.Table(1, 5),
        decoding.rows(1, 2, 5),
        decoding.rows(2, 2, 5),
    )
    run = lambda **how: (
        [*ours.decode(model, ids, 5, one, null, Sampling(steps=4, guidance=2.0), draw(0), **how)][
            -1
        ].ids
    )
    assert torch.equal(run(), run(weights=(1.0,))) and not torch.equal(run(), run(weights=(0.2,)))


def test_no_unconditional_pass_outside_of_the_interval():
    for guided, batches in (
        ((0.5, 1.0), [2, 2, 4, 4]),
        ((0.0, 0.25), [4, 2, 2, 2]),
        ((0.0, 1.0), [4] * 4),
        ((0.0, 0.0), [2] * 4),
    ):
        model = decoding.Table(1, 5)
        sampling = Sampling(steps=4, guidance=2.0, ramp=False, guided=guided)
        list(
            ours.decode(
                model,
                torch.full((2, 9), 5),
                5,
                decoding.rows(1, 2, 5),
                decoding.rows(2, 2, 5),
                sampling,
                decoding.generator(),
            )
        )
        assert [len(seen) for seen in model.passes] == batches, guided


def test_many_rows_take_their_guidance_one_after_the_other(monkeypatch):
    """On a CPU a large batch gains nothing from being twice as large; what is drawn is the same."""
    for weights in ((1.0,), (1.0, -0.5)):
        (P, B), found = (len(weights), 2), []
        for most, sizes in ((18, [(P + 1) * B] * 4), (17, [P * B, B] * 4)):
            monkeypatch.setattr(ours, "ONE_BATCH_TOKENS", most)
            model, one, null = (
                decoding.Table(1, 5),
                decoding.rows(1, P * B, 5),
                decoding.rows(2, B, 5),
            )
            found.append(
                list(
                    ours.decode(
                        model,
                        torch.full((B, 9), 5),
                        5,
                        one,
                        null,
                        Sampling(steps=4),
                        decoding.generator(),
                        weights,
                    )
                )
            )
            assert [len(seen) for seen in model.passes] == sizes
        for together, apart in zip(*found, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_certain_tokens_come_at_once():
    """A model that is sure of everything needs one step by entropy, and S by confidence."""
    sure = lambda ids, context, where: (
        50.0 * torch.eye(16)[torch.arange(16)].expand(len(ids), 16, 16)[where]
    )
    for sampler, steps in (("entropy", 1), ("confidence", 8)):
        sampling = Sampling(steps=8, sampler=sampler)
        assert (
            len(
                list(
                    ours.decode(
                        sure,
                        torch.full((2, 16), 16),
                        16,
                        None,
                        None,
                        sampling,
                        decoding.generator(),
                    )
                )
            )
            == steps
        )


def test_impossible_sampling():
    with pytest.raises(ValueError, match="steps is 0"):
        Sampling(steps=0)
    for setting in ("guidance", "temperature", "choice_temperature", "top_k", "entropy_bound"):
        with pytest.raises(ValueError, match=f"{setting} is -0.5"):
            Sampling(**{setting: -0.5})
    for guided in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.5)):
        with pytest.raises(ValueError, match="two fractions"):
            Sampling(guided=guided)
    with pytest.raises(ValueError, match="'best'.*halton"):
        Sampling(sampler="best")
    with pytest.raises(ValueError, match="choice_temperature must be above 0"):
        Sampling(sampler="random", choice_temperature=0.0)
    with pytest.raises(ValueError, match="'circle'"):
        Sampling(law="circle")
