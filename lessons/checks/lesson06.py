"""Lesson 06: the exercises on parallel decoding, their properties, and broken versions of them."""

import functools

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks import Exercise
from minimuse.checks.properties import decoding
from minimuse.checks.properties import schedule as schedules

from minimuse import decode as ours
from minimuse import schedule
from minimuse.decode import Sampling, Step
from minimuse.guidance import guide

TITLE = "parallel decoding"


# --- Properties that only this lesson needs ---
@st.composite
def draws(draw):
    """Logits (N, K), noise (N, K) and a temperature."""
    N = draw(st.integers(1, 4))
    K = draw(st.integers(1, 5))
    table = hnp.arrays(np.float32, (N, K), elements=decoding.quarters)
    return draw(table), draw(table), draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))


def takes_the_highest_of_logits_and_noise(tempered_draw):
    """The noise that is given decides, and nothing else is random; temperature 0 ignores the noise.

    tempered_draw(logits, noise, temperature).
    """

    @given(draws())
    @example((np.float32([[1, 0]]), np.float32([[0, 0.75]]), 2.0))
    @example((np.float32([[1, 0]]), np.float32([[0, 3]]), 0.0))
    @example((np.float32([[0, 1], [1, 0]]), np.zeros((2, 2), np.float32), 1.0))
    def check(case):
        logits, noise, temperature = case
        ids = tempered_draw(torch.from_numpy(logits), torch.from_numpy(noise), temperature)
        assert ids.shape == logits.shape[:1] and ids.dtype == torch.int64, (
            f"ids are {tuple(ids.shape)} {ids.dtype}, not {logits.shape[:1]} int64"
        )
        for row, id in enumerate(ids.tolist()):
            scores = []  # in multiples of 1/8: exact
            for x, g in zip(logits[row], noise[row], strict=True):
                scores.append(float(x) + temperature * float(g))
            assert 0 <= id < len(scores) and scores[id] == max(scores), (
                f"logits {logits.tolist()}, noise {noise.tolist()}, temperature {temperature}: "
                f"{ids.tolist()}"
            )

    check()


def frequencies_follow_the_tempered_softmax(tempered_draw):
    """Of 20,000 draws with true Gumbel noise, codes come as often as softmax(logits / temperature).

    Within five standard deviations.
    """
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    n = 20_000
    for temperature in (0.5, 1.0, 2.0):
        noise = ours.gumbel((n, 4), decoding.generator(1))
        ids = tempered_draw(logits.expand(n, 4), noise, temperature)
        frequencies = torch.bincount(ids, minlength=4).double() / n
        wanted = (logits.double() / temperature).softmax(-1)
        off = (frequencies - wanted).abs() / (wanted * (1 - wanted) / n).sqrt()
        assert off.max() < 5, (
            f"temperature {temperature}: drawn {frequencies.tolist()}, softmax {wanted.tolist()}"
        )


@st.composite
def rankings(draw):
    """Scores (B, N) of few values, so that equal ones are common; hidden (B, N); left (B,)."""
    B = draw(st.integers(1, 3))
    N = draw(st.integers(1, 7))
    scores = draw(hnp.arrays(np.float32, (B, N), elements=st.integers(-2, 2).map(float)))
    hidden = draw(hnp.arrays(bool, (B, N)))
    left = [draw(st.integers(0, int(count))) for count in hidden.sum(-1)]
    return scores, hidden, np.array(left)


ALL_EQUAL = (np.zeros((2, 4), np.float32), np.ones((2, 4), bool), np.array([1, 3]))
ONE_KNOWN = (np.float32([[-1, 2, 1]]), np.array([[False, True, True]]), np.array([1]))
NONE_LEFT = (np.float32([[0, 1]]), np.array([[True, True]]), np.array([0]))


def hides_the_lowest_again(hidden_again):
    """Exactly left[b] hidden positions stay hidden: those with the lowest scores.

    Of equal scores the leftmost are revealed. hidden_again(scores, hidden, left).
    """

    @given(rankings())
    @example(ONE_KNOWN)
    @example(ALL_EQUAL)
    @example(NONE_LEFT)
    def check(case):
        scores, hidden, left = case
        result = hidden_again(*map(torch.from_numpy, case))
        assert result.dtype == torch.bool and result.shape == hidden.shape, (
            f"{tuple(result.shape)} {result.dtype}, not {hidden.shape} bool"
        )
        for b in range(len(scores)):
            best_first = by_score(scores[b], np.flatnonzero(hidden[b]).tolist())
            wanted = sorted(best_first[len(best_first) - left[b] :])
            positions = result[b].nonzero().flatten().tolist()
            assert positions == wanted, (
                f"scores {scores[b].tolist()}, hidden {hidden[b].tolist()}, {left[b]} stay hidden: "
                f"positions {positions}, where {wanted} are expected"
            )

    check()


def by_score(scores, positions):
    """The positions with the highest score first; of equal scores, the leftmost first."""
    return sorted(positions, key=lambda i: (-scores[i], i))


# --- The package's properties of `decode`, for one without guidance ---
def with_guidance(decode):
    """Give guidance to a decode that has none: let its model mix the logits.

    The model then runs in the passes that a correct decode makes.
    """

    def run(model, ids, mask_id, context, uncond, sampling, generators):
        if uncond is None:
            yield from decode(model, ids, mask_id, context, sampling, generators)
            return
        steps = iter(steps_with_a_pass(ids == mask_id, sampling.steps))
        both = context.join(uncond)

        def mixed(inputs, context, where=...):
            k = next(steps, sampling.steps - 1)
            t = schedule.guidance_at(k, sampling.steps, sampling.guidance, sampling.ramp)
            if t == 0:
                return model(inputs, context)[where]
            cond_logits, uncond_logits = model(torch.cat([inputs, inputs]), both).chunk(2)
            return guide(cond_logits, uncond_logits, t)[where]

        yield from decode(mixed, ids, mask_id, context, sampling, generators)

    return run


def steps_with_a_pass(hidden, steps):
    """The steps k in which at least one row of hidden (B, N) reveals something."""
    rows = []
    for count in hidden.sum(-1).tolist():
        rows.append([count, *schedules.maskgit_counts(count, steps)])
    return [k for k in range(steps) if any(row[k] != row[k + 1] for row in rows)]


def of_the_loop(prop):
    """A property of a guided decode, for one that leaves guidance to its model."""

    @functools.wraps(prop)
    def check(decode):
        prop(with_guidance(decode))

    return check


# --- The package, with the signatures of the exercises ---
def package_step(logits, ids, hidden, left, token_noise, choice_noise, temperature):
    sampling = Sampling(temperature=temperature)
    return ours.step(logits, ids, hidden, left, token_noise, choice_noise, sampling)


def package_hidden_again(scores, hidden, left):
    one_code = torch.zeros(*scores.shape, 1)  # each log-probability is then 0
    ids = torch.zeros_like(hidden).long()
    return package_step(one_code, ids, hidden, left, one_code, scores, 1.0).hidden


def package_decode(model, ids, mask_id, context, sampling, generators):
    yield from ours.decode(model, ids, mask_id, context, None, sampling, generators)


# --- Broken versions ---
def annealed_twice(k, steps, temperature):
    for j in range(k + 1):
        temperature *= 1 - (j + 1) / steps
    return temperature


def uniform(shape, generator, dtype=torch.float32):
    return torch.rand(shape, generator=generator).to(dtype).clamp(1e-20, 1 - 1e-7)


def unclamped(shape, generator):
    """Infinite once in 16 million numbers."""
    return -torch.log(-torch.log(torch.rand(shape, generator=generator)))


def rows_and_columns_only(shape, generator):
    u = torch.rand(*shape, generator=generator).view(shape[0], -1).clamp(1e-20, 1 - 1e-7)
    return -torch.log(-torch.log(u))


def without_tails(shape, generator):
    u = torch.rand(shape, generator=generator).clamp(1e-3, 1 - 1e-3)
    return -torch.log(-torch.log(u))


def divided_by_temperature(logits, noise, temperature):
    """Right, but temperature 0 is as 1."""
    if temperature == 0:
        return (logits + noise).argmax(-1)
    return (logits / temperature + noise).argmax(-1)


def own_noise(logits, noise, temperature):
    return torch.distributions.Categorical(logits=logits / max(temperature, 1e-6)).sample()


def again(scores, hidden, left, bug=None):
    """A hidden_again with switches that break it."""
    N = scores.shape[-1]
    left = left[:, None]
    if bug != "known compete":
        scores = scores.masked_fill(~hidden, float("inf"))
    if bug == "cutoff":
        cutoff = scores.sort(-1).values.gather(-1, left.clamp(max=N - 1))
        return scores < cutoff
    if bug == "cutoff or equal":
        cutoff = scores.sort(-1).values.gather(-1, (left - 1).clamp(min=0))
        return (scores <= cutoff) & (left > 0)
    axis = 0 if bug == "wrong axis" else -1
    if bug == "last of equals":
        order = scores.argsort(dim=-1, stable=True).flip(-1)
    else:
        descending = bug != "least confident first"
        order = scores.argsort(dim=axis, descending=descending, stable=True)
    if bug == "order for rank":
        return order >= N - left
    return order.argsort(axis) >= N - left


def one_step(logits, ids, hidden, left, token_noise, choice_noise, temperature, bug=None):
    """A step with switches that break it."""
    noise_scale = 1 if bug == "no temperature" else temperature
    guess = (logits + noise_scale * token_noise).argmax(-1)
    if bug != "known drawn again":
        guess = torch.where(hidden, guess, ids)

    if bug == "tempered confidence" and temperature:
        logits = logits / temperature
    judged = logits.argmax(-1) if bug == "best, not drawn" else guess
    log_p = logits.log_softmax(-1).gather(-1, judged[..., None])[..., 0]
    if bug == "noise in the confidence":
        log_p = log_p + choice_noise
    if bug != "known compete":
        log_p = log_p.masked_fill(~hidden, float("inf"))

    scores = log_p
    if bug not in ("choice noise forgotten", "noise in the confidence"):
        scores = log_p + choice_noise
    return Step(guess, log_p, again(scores, torch.ones_like(hidden), left, bug))


def loop(model, ids, mask_id, context, sampling, generators, bug=None):
    """A decode with switches that break it."""
    S = sampling.steps
    hidden = ids == mask_id
    if bug == "in place":
        ids.fill_(0)
    scheduled = scheduled_counts(hidden, S, bug)
    shape = (*ids.shape, mask_id)
    for k in range(S):
        if bug != "noise of revealing steps":
            noises = noises_at(k, shape, sampling, generators, bug)
        left = counts_left(k, S, scheduled, hidden, bug)
        if torch.equal(left, hidden.sum(-1)) and bug != "idle passes":
            continue
        if bug == "starts again halfway" and k == S // 2:
            hidden = torch.ones_like(hidden)
        guesses_shown = bug == "guesses shown" and k > 0
        inputs = ids if guesses_shown else ids.masked_fill(hidden, mask_id)
        logits = model(inputs, context)
        if bug == "noise of revealing steps":
            noises = noises_at(k, shape, sampling, generators, bug)
        now = package_step(logits, ids, hidden, left, *noises, sampling.temperature)
        hidden = now.hidden
        ids = now.ids
        if bug == "the state is shown":
            ids = ids.masked_fill(hidden, mask_id)
        yield Step(ids, now.confidence, hidden)


def scheduled_counts(hidden, steps, bug):
    """How many tokens of each row stay hidden after each step (B, S), with the bugs of `loop`."""
    B, N = hidden.shape
    at_the_start = [N] * B if bug == "counts from N" else hidden.sum(-1).tolist()
    return torch.tensor([schedule.masked_after(n, steps) for n in at_the_start])


def counts_left(k, steps, scheduled, hidden, bug):
    """How many tokens of each row stay hidden after step k (B,), with the bugs of `loop`."""
    if bug == "last step hides one again" and k == steps - 1:
        return hidden.sum(-1).clamp(max=1)
    return torch.minimum(scheduled[:, k], hidden.sum(-1))


def noises_at(k, shape, sampling, generators, bug):
    """Noise for the tokens (B, N, K), then for the choice (B, N), with the bugs of `loop`."""
    B, N, K = shape
    anneal = annealed_twice if bug == "annealed twice" else schedule.noise_at
    scale = anneal(k, sampling.steps, sampling.choice_temperature)
    if bug == "global noise":
        generators = [torch.default_generator] * B
    if bug == "one generator for the batch":
        generators = generators[:1] * B
    token_noise = torch.stack([ours.gumbel((N, K), draw) for draw in generators])
    return token_noise, scale * torch.stack([ours.gumbel((N,), draw) for draw in generators])


def planted(function, *bugs):
    """The function with each of its bugs."""
    return tuple(lambda *args, bug=bug: function(*args, bug=bug) for bug in bugs)


EXERCISES = [
    Exercise(
        "noise_at",
        schedule.noise_at,
        (schedules.noise_falls_linearly_to_zero,),
        hint="what does each step start from: the value that is given, or what the step before has "
        "made of it?",
        wrong=(
            annealed_twice,
            lambda k, S, tau: tau * (1 - k / S),  # the last step has noise
            lambda k, S, tau: tau,
            # The first step has all of it, and so has an only step.
            lambda k, S, tau: tau * (1 - k / max(1, S - 1)),
            lambda k, S, tau: tau * (k + 1) / S,  # rises
        ),
    ),
    Exercise(
        "gumbel",
        ours.gumbel,
        (decoding.noise_is_standard_gumbel,),
        hint="invert the distribution function, in float32. Then ask what happens at both ends of "
        "the uniform distribution.",
        wrong=(
            lambda shape, g: torch.log(-torch.log(uniform(shape, g))),  # upside down
            lambda shape, g: -torch.log(uniform(shape, g)),  # one logarithm: exponential
            unclamped,
            lambda shape, g: -torch.log(-torch.log(uniform(shape, g, torch.float16))).float(),
            lambda shape, g: -torch.log(-torch.log(uniform(shape, None))),  # another generator
            without_tails,
            rows_and_columns_only,
            lambda shape, g: torch.randn(shape, generator=g),
        ),
    ),
    Exercise(
        "tempered_draw",
        ours.draw,
        (takes_the_highest_of_logits_and_noise, frequencies_follow_the_tempered_softmax),
        hint="which code wins must not change when all scores of a row are multiplied by the same "
        "positive number. Use that to avoid a division.",
        wrong=(
            lambda x, g, T: (x + g).argmax(-1),  # no temperature
            divided_by_temperature,
            lambda x, g, T: (T * x + g).argmax(-1),  # the other way round
            lambda x, g, T: (x.softmax(-1) + T * g).argmax(-1),
            lambda x, g, T: x.argmax(-1),
            own_noise,
        ),
    ),
    Exercise(
        "hidden_again",
        package_hidden_again,
        (hides_the_lowest_again,),
        hint="a rank is a whole number, and no two positions of a row have the same. A threshold "
        "cannot tell equal scores apart. And which positions must never rank low?",
        wrong=planted(
            again,
            "cutoff",
            "cutoff or equal",
            "known compete",
            "wrong axis",
            "least confident first",
            "last of equals",
            "order for rank",
        ),
    ),
    Exercise(
        "step",
        package_step,
        (
            decoding.hides_the_count_again,
            decoding.keeps_what_is_known,
            decoding.draws_from_the_tempered_softmax,
            decoding.keeps_the_most_confident,
        ),
        hint="three questions, in this order: what is guessed, how confident is the model in "
        "*that* guess, which tokens are hidden again?",
        wrong=planted(
            one_step,
            "no temperature",
            "known drawn again",
            "tempered confidence",
            "best, not drawn",
            "noise in the confidence",
            "known compete",
            "choice noise forgotten",
            "cutoff",
            "last of equals",
        ),
    ),
    Exercise(
        "decode",
        package_decode,
        (
            of_the_loop(decoding.follows_the_reference),
            of_the_loop(decoding.never_shows_the_mask),
            of_the_loop(decoding.revealed_tokens_stay),
            of_the_loop(decoding.same_generator_same_output),
            of_the_loop(decoding.makes_no_idle_pass),
            of_the_loop(decoding.model_sees_masks_only),
        ),
        hint="keep two things between steps: ids full of guesses, and which are hidden. What may "
        "the model see, what does the caller get, what is counted from what?",
        wrong=planted(
            loop,
            "annealed twice",
            "counts from N",
            "last step hides one again",
            "idle passes",
            "guesses shown",
            "global noise",
            "one generator for the batch",
            "noise of revealing steps",
            "the state is shown",
            "in place",
            "starts again halfway",
        ),
    ),
]
