import functools

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks import Exercise
from minimuse.checks.properties import decoding
from minimuse.checks.properties import schedule as laws

from minimuse import decode as ours
from minimuse import schedule
from minimuse.decode import Sampling, Step

TITLE = "parallel decoding"


# Properties that only this lesson needs


@st.composite
def draws(draw):
    N, K = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    table = hnp.arrays(np.float32, (N, K), elements=decoding.quarters)
    return draw(table), draw(table), draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))


def takes_the_highest_of_logits_and_noise(tempered_draw):
    """Whatever else is drawn, the noise given decides; temperature 0 takes the most likely.

    tempered_draw(logits, noise, temperature).
    """

    @given(draws())
    @example((np.float32([[1, 0]]), np.float32([[0, 0.75]]), 2.0))
    @example((np.float32([[1, 0]]), np.float32([[0, 3]]), 0.0))
    @example((np.float32([[0, 1], [1, 0]]), np.zeros((2, 2), np.float32), 1.0))
    def check(case):
        logits, noise, temperature = case
        got = tempered_draw(torch.from_numpy(logits), torch.from_numpy(noise), temperature)
        said = f"logits {logits.tolist()}, noise {noise.tolist()}, temperature {temperature}: {got.tolist()}"
        assert got.shape == logits.shape[:1] and got.dtype == torch.int64, (
            f"ids are {tuple(got.shape)} {got.dtype}, not {logits.shape[:1]} int64"
        )
        for row, id in enumerate(got.tolist()):
            score = [
                float(x) + temperature * float(g)
                for x, g in zip(logits[row], noise[row], strict=True)
            ]  # quarters: exact
            assert 0 <= id < len(score) and score[id] == max(score), said

    check()


def frequencies_follow_the_tempered_softmax(tempered_draw):
    """20,000 draws with true Gumbel noise, within five standard deviations of softmax(logits / temperature)."""
    logits, n = torch.tensor([2.0, 1.0, 0.0, -1.0]), 20_000
    for temperature in (0.5, 1.0, 2.0):
        noise = ours.gumbel((n, 4), decoding.generator(1))
        share = (
            torch.bincount(
                tempered_draw(logits.expand(n, 4), noise, temperature), minlength=4
            ).double()
            / n
        )
        wanted = (logits.double() / temperature).softmax(-1)
        off = (share - wanted).abs() / (wanted * (1 - wanted) / n).sqrt()
        assert off.max() < 5, (
            f"temperature {temperature}: drawn {share.tolist()}, softmax {wanted.tolist()}"
        )


@st.composite
def rankings(draw):
    """Scores of few values, so that ties are common; those of known tokens too."""
    B, N = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    scores = draw(hnp.arrays(np.float32, (B, N), elements=st.integers(-2, 2).map(float)))
    hidden = draw(hnp.arrays(bool, (B, N)))
    return scores, hidden, np.array([draw(st.integers(0, int(n))) for n in hidden.sum(-1)])


ALL_EQUAL = (np.zeros((2, 4), np.float32), np.ones((2, 4), bool), np.array([1, 3]))
ONE_KNOWN = (np.float32([[-1, 2, 1]]), np.array([[False, True, True]]), np.array([1]))
NONE_LEFT = (np.float32([[0, 1]]), np.array([[True, True]]), np.array([0]))


def hides_the_lowest_again(hidden_again):
    """Exactly left[b], hidden before, the lowest scores; of equal scores the leftmost are revealed.

    hidden_again(scores, hidden, left).
    """

    @given(rankings())
    @example(ONE_KNOWN)
    @example(ALL_EQUAL)
    @example(NONE_LEFT)
    def check(case):
        scores, hidden, left = case
        got = hidden_again(*map(torch.from_numpy, case))
        assert got.dtype == torch.bool and got.shape == hidden.shape, (
            f"{tuple(got.shape)} {got.dtype}, not {hidden.shape} bool"
        )
        for b in range(len(scores)):
            listed = sorted(np.flatnonzero(hidden[b]).tolist(), key=lambda i: (-scores[b, i], i))
            wanted = sorted(listed[len(listed) - left[b] :])
            mine = got[b].nonzero().flatten().tolist()
            assert mine == wanted, (
                f"scores {scores[b].tolist()}, hidden {hidden[b].tolist()}, {left[b]} stay: {mine}, not {wanted}"
            )

    check()


def with_guidance(decode):
    """A decode without guidance -> one with: the model mixes the logits, in the passes that a right decode makes."""

    def run(model, ids, mask_id, context, uncond, sampling, generator):
        if uncond is None:
            yield from decode(model, ids, mask_id, context, sampling, generator)
            return
        rows = [
            (int(n), *laws.maskgit_counts(int(n), sampling.steps)) for n in (ids == mask_id).sum(-1)
        ]
        due = iter([k for k in range(sampling.steps) if any(row[k] != row[k + 1] for row in rows)])
        both = context.join(uncond)

        def mixed(inputs, context, where=...):
            t = schedule.guidance_at(
                next(due, sampling.steps - 1), sampling.steps, sampling.guidance, sampling.ramp
            )
            return (
                ours.guide(*model(torch.cat([inputs, inputs]), both).chunk(2), t)
                if t
                else model(inputs, context)
            )[where]

        yield from decode(mixed, ids, mask_id, context, sampling, generator)

    return run


def of_the_loop(prop):
    """The package's property of a decode, for one that leaves guidance to its model."""

    @functools.wraps(prop)
    def check(decode):
        prop(with_guidance(decode))

    return check


# The package, with the signatures of the exercises, and once more with bugs


def package_step(logits, ids, hidden, left, token_noise, choice_noise, temperature):
    return ours.step(
        logits, ids, hidden, left, token_noise, choice_noise, Sampling(temperature=temperature)
    )


def package_hidden_again(scores, hidden, left):
    only = torch.zeros(*scores.shape, 1)  # one code: each log-probability is 0
    return package_step(
        only, torch.zeros_like(hidden).long(), hidden, left, only, scores, 1.0
    ).hidden


def package_decode(model, ids, mask_id, context, sampling, generator):
    return ours.decode(model, ids, mask_id, context, None, sampling, generator)


def annealed_twice(k, steps, temperature):
    for j in range(k + 1):
        temperature *= 1 - (j + 1) / steps
    return temperature


def uniform(shape, generator, dtype=torch.float32):
    return torch.rand(shape, generator=generator).to(dtype).clamp(1e-20, 1 - 1e-7)


def again(scores, hidden, left, bug=None):
    """hidden_again with switches that break it."""
    scores = scores if bug == "known compete" else scores.masked_fill(~hidden, float("inf"))
    if bug == "cutoff":
        return scores < scores.sort(-1).values.gather(
            -1, left[:, None].clamp(max=scores.shape[-1] - 1)
        )
    if bug == "cutoff or equal":
        return (scores <= scores.sort(-1).values.gather(-1, (left[:, None] - 1).clamp(min=0))) & (
            left[:, None] > 0
        )
    axis = 0 if bug == "wrong axis" else -1
    order = scores.argsort(dim=axis, descending=bug != "least confident first", stable=True)
    if bug == "last of equals":
        order = scores.argsort(dim=-1, stable=True).flip(-1)
    rank = order if bug == "order for rank" else order.argsort(axis)
    return rank >= scores.shape[-1] - left[:, None]


def one_step(logits, ids, hidden, left, token_noise, choice_noise, temperature, bug=None):
    """A step with switches that break it."""
    drawn = (logits + (1 if bug == "no temperature" else temperature) * token_noise).argmax(-1)
    guess = drawn if bug == "known drawn again" else torch.where(hidden, drawn, ids)
    of = (
        (logits / temperature if temperature else logits)
        if bug == "tempered confidence"
        else logits
    )
    log_p = of.log_softmax(-1).gather(
        -1, (of.argmax(-1) if bug == "best, not drawn" else guess)[..., None]
    )[..., 0]
    if bug == "noise in the confidence":
        log_p = log_p + choice_noise
    if bug != "known compete":
        log_p = log_p.masked_fill(~hidden, float("inf"))
    noisy = (
        log_p
        if bug in ("choice noise forgotten", "noise in the confidence")
        else log_p + choice_noise
    )
    return Step(guess, log_p, again(noisy, torch.ones_like(hidden), left, bug))


def loop(model, ids, mask_id, context, sampling, generator, bug=None):
    """A decode with switches that break it."""
    hidden, S, tau = ids == mask_id, sampling.steps, sampling.choice_temperature
    ids = ids.fill_(0) if bug == "in place" else ids
    start = [ids.shape[1]] * len(ids) if bug == "counts from N" else hidden.sum(-1).tolist()
    after = torch.tensor([schedule.masked_after(n, S) for n in start])
    for k in range(S):
        left = torch.minimum(after[:, k], hidden.sum(-1))
        if bug == "last step hides one again" and k == S - 1:
            left = hidden.sum(-1).clamp(max=1)
        if bool((left == hidden.sum(-1)).all()) and bug != "idle passes":
            continue
        if bug == "starts again halfway" and k == S // 2:
            hidden = torch.ones_like(hidden)
        logits = model(
            ids if bug == "guesses shown" and k else ids.masked_fill(hidden, mask_id), context
        )
        tau = (
            tau * (1 - (k + 1) / S)
            if bug == "annealed twice"
            else schedule.noise_at(k, S, sampling.choice_temperature)
        )
        draw = None if bug == "global noise" else generator
        noises = ours.gumbel(logits.shape, draw), tau * ours.gumbel(ids.shape, draw)
        now = package_step(logits, ids, hidden, left, *noises, sampling.temperature)
        hidden = now.hidden
        ids = now.ids.masked_fill(hidden, mask_id) if bug == "the state is shown" else now.ids
        yield Step(ids, now.confidence, hidden)


def planted(function, *bugs):
    """The function with each of its bugs."""
    return tuple(lambda *args, bug=bug: function(*args, bug=bug) for bug in bugs)


EXERCISES = [
    Exercise(
        "noise_at",
        schedule.noise_at,
        (laws.noise_falls_linearly_to_zero,),
        hint="what does each step start from: the value that is given, or what the step before has made of it?",
        wrong=(
            annealed_twice,
            lambda k, S, tau: tau * (1 - k / S),  # the last step has noise
            lambda k, S, tau: tau,
            lambda k, S, tau: (
                tau * (1 - k / max(1, S - 1))
            ),  # the first step has all of it, and so has the only one
            lambda k, S, tau: tau * (k + 1) / S,  # rises
        ),
    ),
    Exercise(
        "gumbel",
        ours.gumbel,
        (decoding.noise_is_standard_gumbel,),
        hint="invert the distribution function, in float32; then ask what happens at both ends of the uniform.",
        wrong=(
            lambda shape, g: torch.log(-torch.log(uniform(shape, g))),  # upside down
            lambda shape, g: -torch.log(uniform(shape, g)),  # one logarithm: exponential
            lambda shape, g: (
                -torch.log(-torch.log(torch.rand(shape, generator=g)))
            ),  # infinite once in 16 million
            lambda shape, g: -torch.log(-torch.log(uniform(shape, g, torch.float16))).float(),
            lambda shape, g: -torch.log(-torch.log(uniform(shape, None))),  # another generator
            lambda shape, g: (
                -torch.log(-torch.log(torch.rand(shape, generator=g).clamp(1e-3, 1 - 1e-3)))
            ),  # without tails
            lambda shape, g: torch.randn(shape, generator=g),
        ),
    ),
    Exercise(
        "tempered_draw",
        ours.draw,
        (takes_the_highest_of_logits_and_noise, frequencies_follow_the_tempered_softmax),
        hint="which code wins must not change when all scores of a row are multiplied by the same positive number. Use that to avoid a division.",
        wrong=(
            lambda x, g, T: (x + g).argmax(-1),  # no temperature
            lambda x, g, T: (
                (x / T + g).argmax(-1) if T else (x + g).argmax(-1)
            ),  # temperature 0 is not special enough
            lambda x, g, T: (T * x + g).argmax(-1),  # the other way round
            lambda x, g, T: (x.softmax(-1) + T * g).argmax(-1),
            lambda x, g, T: x.argmax(-1),
            lambda x, g, T: torch.distributions.Categorical(
                logits=x / max(T, 1e-6)
            ).sample(),  # another source of noise
        ),
    ),
    Exercise(
        "hidden_again",
        package_hidden_again,
        (hides_the_lowest_again,),
        hint="a rank is a whole number and no two positions of a row share it; a threshold knows nothing of ties. And who must never rank low?",
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
        hint="three questions, in this order: what is guessed, how sure is the model of *that* guess, who is hidden again?",
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
        tuple(
            map(
                of_the_loop,
                (
                    decoding.follows_the_reference,
                    decoding.never_shows_the_mask,
                    decoding.revealed_tokens_stay,
                    decoding.same_generator_same_output,
                    decoding.makes_no_idle_pass,
                    decoding.model_sees_masks_only,
                ),
            )
        ),
        hint="keep two things between steps, ids full of guesses and who is hidden. What may the model see, what does the caller get, what is counted from what?",
        wrong=planted(
            loop,
            "annealed twice",
            "counts from N",
            "last step hides one again",
            "idle passes",
            "guesses shown",
            "global noise",
            "the state is shown",
            "in place",
            "starts again halfway",
        ),
    ),
]
