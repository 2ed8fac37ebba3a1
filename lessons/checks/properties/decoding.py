"""Properties of parallel decoding (`minimuse/decode.py`; MaskGIT, section 3.2; Muse, sections 2.7 and 2.8).

A `step` has the signature of `decode.step`, but for a temperature in place of the sampling; a
`decode` that of `decode.decode`. The model here is a table look-up in multiples of 1/4, exact in
every precision, so that ties are common and noise alone decides; the reference is NumPy in float64.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks.properties.schedule import maskgit_counts

from minimuse.decode import Sampling

NEAR = 1e-4  # confidences closer than this may be ordered either way: float32 against float64
seeds = st.integers(0, 2**31 - 1)
quarters = st.integers(-12, 12).map(lambda n: n / 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def log_softmax(x):
    return (
        x
        - x.max(-1, keepdims=True)
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
    )


# One step


@st.composite
def steps(draw):
    """Arguments of a step, as arrays: logits from few distinct rows, noise from few values, so that ties occur."""
    B, N, K = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    pool = draw(hnp.arrays(np.float32, (3, K), elements=quarters))
    logits = pool[draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, 2)))]
    ids = draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, K - 1)))
    hidden = draw(hnp.arrays(bool, (B, N)))
    left = np.array([draw(st.integers(0, int(n))) for n in hidden.sum(-1)])
    token_noise = draw(hnp.arrays(np.float32, (B, N, K), elements=quarters))
    choice_noise = draw(hnp.arrays(np.float32, (B, N), elements=quarters))
    return (
        logits,
        ids,
        hidden,
        left,
        token_noise,
        choice_noise,
        draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    )


def run_step(step, logits, ids, hidden, left, token_noise, choice_noise, temperature):
    out = step(
        *map(torch.from_numpy, (logits, ids, hidden, left, token_noise, choice_noise)), temperature
    )
    return [x.numpy() for x in out]


ALL_EQUAL = (
    np.zeros((1, 4, 2), np.float32),
    np.zeros((1, 4), np.int64),
    np.ones((1, 4), bool),
    np.array([2]),
    np.zeros((1, 4, 2), np.float32),
    np.zeros((1, 4), np.float32),
    1.0,
)
KNOWN_LOOKS_BAD = (
    np.float32([[[0, 9], [5, 0]]]),
    np.array([[0, 0]]),
    np.array([[False, True]]),
    np.array([0]),
    np.zeros((1, 2, 2), np.float32),
    np.zeros((1, 2), np.float32),
    1.0,
)


def hides_the_count_again(step):
    """Exactly left[b] of row b stay hidden, all of them hidden before, however many confidences are equal."""

    @given(steps())
    @example(ALL_EQUAL)
    @example(KNOWN_LOOKS_BAD)
    def check(case):
        _, ids, hidden, left = case[:4]
        _, _, now = run_step(step, *case)
        assert (now.sum(-1) == left).all(), f"{now.sum(-1)} hidden, not {left}"
        assert not (now & ~hidden).any(), (
            f"known tokens were hidden: before {hidden.tolist()}, after {now.tolist()}"
        )

    check()


def keeps_what_is_known(step):
    """Tokens that were not hidden keep their id, whatever the model thinks of them; their confidence is infinite."""

    @given(steps())
    @example(KNOWN_LOOKS_BAD)
    def check(case):
        _, ids, hidden = case[:3]
        guess, log_p, _ = run_step(step, *case)
        assert (guess == ids)[~hidden].all(), (
            f"ids {ids.tolist()}, hidden {hidden.tolist()}, after {guess.tolist()}"
        )
        assert np.isposinf(log_p[~hidden]).all() and np.isfinite(log_p[hidden]).all()

    check()


def draws_from_the_tempered_softmax(step):
    """The guess is argmax(logits + temperature * Gumbel noise); its log-probability is without temperature and noise."""

    @given(steps())
    def check(case):
        logits, _, hidden, _, token_noise, _, temperature = case
        guess, log_p, _ = run_step(step, *case)
        score = logits + np.float32(temperature) * token_noise  # quarters: exact
        assert (guess == score.argmax(-1))[hidden].all(), (
            f"guessed {guess.tolist()}, hidden {hidden.tolist()}"
        )
        wanted = np.take_along_axis(log_softmax(logits.astype(np.float64)), guess[..., None], -1)[
            ..., 0
        ]
        assert np.allclose(log_p[hidden], wanted[hidden], atol=1e-5), (
            f"confidence {log_p.tolist()}, not {wanted.tolist()}"
        )

    check()


def keeps_the_most_confident(step):
    """No token that is hidden again is more confident, noise included, than one that is revealed; of equal ones the first stay."""

    @given(steps())
    @example(ALL_EQUAL)
    def check(case):
        logits, _, hidden, left, _, choice_noise, _ = case
        guess, _, now = run_step(step, *case)
        p = (
            np.take_along_axis(log_softmax(logits.astype(np.float64)), guess[..., None], -1)[..., 0]
            + choice_noise
        )
        for b in range(len(logits)):
            again, kept = np.flatnonzero(now[b]), np.flatnonzero(hidden[b] & ~now[b])
            for i in again:
                for j in kept:
                    same = (
                        (logits[b, i] == logits[b, j]).all()
                        and guess[b, i] == guess[b, j]
                        and choice_noise[b, i] == choice_noise[b, j]
                    )
                    right = j < i if same else p[b, i] <= p[b, j] + NEAR
                    assert right, (
                        f"row {b}: position {i} ({p[b, i]:.3f}) was hidden again, {j} ({p[b, j]:.3f}) kept"
                    )

    check()


# The whole loop


@dataclass
class Rows:
    """A caption for the table model: one vector of logits per row."""

    rows: torch.Tensor  # (B, K)

    def join(self, other):
        return Rows(torch.cat([self.rows, other.rows]))


class Table:
    """Logits that depend on a token, its right-hand neighbour and the row: exact in any precision.

    Counts its passes.
    """

    def __init__(self, seed, codes, dtype=torch.float32, scale=1.0):
        draw = np.random.default_rng(seed).normal(size=(2, codes + 1, codes))
        self.own, self.next = np.round(4 * draw) / 4 * scale
        self.dtype, self.passes = dtype, []

    def logits(self, ids, rows):
        return self.own[ids] + self.next[np.roll(ids, -1, axis=1)] + rows[:, None]

    def __call__(self, ids, context, where=None):
        self.passes.append(ids.clone())
        logits = torch.from_numpy(self.logits(ids.numpy(), context.rows.double().numpy())).to(
            self.dtype
        )
        return logits if where is None else logits[where]


def rows(seed, B, K):
    return Rows(torch.from_numpy(np.round(4 * np.random.default_rng(seed).normal(size=(B, K))) / 4))


@dataclass
class Problem:
    """A decoding problem that prints as its numbers."""

    ids: np.ndarray  # (B, N), K = hidden
    codes: int
    sampling: Sampling
    guided: bool
    seed: int

    def run(self, decode, dtype=torch.float32, scale=1.0):
        B = len(self.ids)
        self.model = Table(self.seed, self.codes, dtype, scale)
        self.cond = rows(self.seed + 1, B, self.codes)
        self.uncond = rows(self.seed + 2, B, self.codes) if self.guided else None
        ids = torch.from_numpy(self.ids)
        return list(
            decode(
                self.model,
                ids,
                self.codes,
                self.cond,
                self.uncond,
                self.sampling,
                generator(self.seed),
            )
        )

    def schedule(self):
        """(k, left) of every step that reveals something."""
        counts = np.array(
            [maskgit_counts(int(n), self.sampling.steps) for n in (self.ids == self.codes).sum(-1)]
        ).T
        before = np.vstack([(self.ids == self.codes).sum(-1), counts[:-1]])
        return [
            (k, now)
            for k, (was, now) in enumerate(zip(before, counts, strict=True))
            if (was != now).any()
        ]


@st.composite
def problems(draw, max_steps=8):
    B, N, K = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    ids = draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, K - 1)))
    whole = draw(st.booleans())  # an empty grid, or a hole of its own in each row
    hidden = np.ones((B, N), bool) if whole else draw(hnp.arrays(bool, (B, N)))
    sampling = Sampling(
        steps=draw(st.integers(1, max_steps)),
        guidance=draw(st.sampled_from([0.0, 0.5, 3.0])),
        ramp=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        choice_temperature=draw(st.sampled_from([0.0, 4.5])),
    )
    return Problem(np.where(hidden, K, ids), K, sampling, draw(st.booleans()), draw(seeds))


HOLE = Problem(
    np.array([[4] * 5 + [0, 1, 2, 3] * 6]), 4, Sampling(steps=4), False, 3
)  # 5 of 29 tokens
EMPTY = Problem(np.full((2, 16), 4), 4, Sampling(steps=6), True, 5)
UNGUIDED = Problem(np.full((2, 64), 12), 12, Sampling(steps=6), False, 5)
ONE_STEP = Problem(
    np.full((2, 4), 3), 3, Sampling(steps=1), True, 1
)  # a plain draw, guided in full
UNEVEN = Problem(np.array([[4] * 9, [4] + [1] * 8, [2] * 9]), 4, Sampling(steps=5), True, 7)


def follows_the_reference(decode):
    """Step by step what a NumPy decoder written from the published rule does with the same noise.

    Per step: guided logits (1 + t_k) c - t_k u with t_k = t (k+1)/S; a draw per hidden token;
    confidence = log-probability + tau (1 - (k+1)/S) Gumbel; the least confident are hidden again,
    as many as MaskGIT's counts say. Noise is drawn per step: (B, N, K) for the tokens, then (B, N)
    for the choice.
    """

    @given(problems())
    @example(HOLE)
    @example(EMPTY)
    @example(UNEVEN)
    @example(ONE_STEP)
    def check(problem):
        taken = problem.run(decode)
        ids, sampling, K, noise = (
            problem.ids,
            problem.sampling,
            problem.codes,
            generator(problem.seed),
        )
        hidden = ids == K
        gumbel = lambda *shape: (
            -np.log(
                -np.log(torch.rand(shape, generator=noise).double().numpy().clip(1e-20, 1 - 1e-7))
            )
        )
        assert len(taken) == len(problem.schedule()), (
            f"{len(taken)} steps, not {len(problem.schedule())}"
        )
        for step, (k, left) in zip(taken, problem.schedule(), strict=True):
            guess, confidence, now = (x.numpy() for x in step)
            inputs = np.where(hidden, K, ids)
            logits = problem.model.logits(inputs, problem.cond.rows.numpy())
            if problem.guided:
                t = sampling.guidance * ((k + 1) / sampling.steps if sampling.ramp else 1)
                logits = (1 + t) * logits - t * problem.model.logits(
                    inputs, problem.uncond.rows.numpy()
                )
            score = logits + sampling.temperature * gumbel(*logits.shape)
            assert (guess == ids)[~hidden].all(), f"step {k}: known tokens changed"
            assert 0 <= guess.min() <= guess.max() < K, (
                f"step {k}: ids {guess.tolist()}, codes 0..{K - 1}"
            )
            drawn = np.take_along_axis(score, guess[..., None], -1)[..., 0]
            assert (drawn >= score.max(-1) - NEAR)[hidden].all(), (
                f"step {k}: guessed {guess.tolist()}, likeliest {score.argmax(-1).tolist()}"
            )
            log_p = np.take_along_axis(log_softmax(logits), guess[..., None], -1)[..., 0]
            assert np.allclose(confidence[hidden], log_p[hidden], atol=NEAR), (
                f"step {k}: confidence {confidence.tolist()}, not {log_p.tolist()}"
            )
            noisy = log_p + sampling.choice_temperature * (1 - (k + 1) / sampling.steps) * gumbel(
                *ids.shape
            )
            assert (now.sum(-1) == left).all() and not (now & ~hidden).any(), (
                f"step {k}: {now.sum(-1)} hidden, not {left}"
            )
            for b in np.flatnonzero(now.any(-1) & (hidden & ~now).any(-1)):
                again, kept = noisy[b][now[b]].max(), noisy[b][hidden[b] & ~now[b]].min()
                assert again <= kept + NEAR, (
                    f"step {k}, row {b}: hid {again:.3f} again and kept {kept:.3f}"
                )
            ids, hidden = guess, now
        assert not hidden.any(), "tokens are hidden after the last step"

    check()


def never_shows_the_mask(decode):
    """Every step's ids are codes, the mask id K among none of them; nothing is hidden at the end; given tokens are untouched."""

    @given(problems())
    @example(HOLE)
    @example(EMPTY)
    def check(problem):
        given_ = problem.ids != problem.codes
        taken = problem.run(decode)
        for step in taken:
            ids = step.ids.numpy()
            assert 0 <= ids.min() <= ids.max() < problem.codes, (
                f"ids {ids.tolist()}, codes 0..{problem.codes - 1}"
            )
            assert (ids == problem.ids)[given_].all(), (
                f"given {problem.ids.tolist()}, got {ids.tolist()}"
            )
        assert not taken or not taken[-1].hidden.any(), "tokens are hidden after the last step"
        assert taken or given_.all(), "no step was taken"

    check()


def revealed_tokens_stay(decode):
    """A token that a step has revealed is never hidden again and never changes (Muse, section 2.8)."""

    @given(problems())
    @example(EMPTY)
    def check(problem):
        taken = problem.run(decode)
        for before, after in zip(taken, taken[1:], strict=False):
            shown = ~before.hidden
            assert (
                torch.equal(before.ids[shown], after.ids[shown]) and not after.hidden[shown].any()
            )

    check()


def same_generator_same_output(decode):
    """The result is a function of the inputs and the generator; what is given stays as it was."""

    @given(problems())
    @example(EMPTY)
    def check(problem):
        before = problem.ids.copy()
        torch.manual_seed(0)
        first = problem.run(decode)
        torch.manual_seed(1)
        second = problem.run(decode)
        assert (problem.ids == before).all(), "the ids given were changed in place"
        assert all(
            torch.equal(a, b)
            for one, two in zip(first, second, strict=True)
            for a, b in zip(one, two, strict=True)
        )

    check()


def makes_no_idle_pass(decode):
    """One pass through the model per step that reveals something, with conditional and unconditional rows in one batch.

    N0 = 0 takes no step at all; with S > N0, N0 steps reveal one token each. Without guidance at a
    step (uncond None, or t = 0) no unconditional row is run.
    """

    @given(problems(max_steps=30))
    @example(Problem(np.array([[0, 1]]), 2, Sampling(steps=4), True, 0))  # nothing hidden
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=9), True, 0))  # S > N0
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=1), False, 0))
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=2, guidance=0.0), True, 0))
    def check(problem):
        taken, passes = problem.run(decode), problem.model.passes
        due = len(problem.schedule())
        assert len(taken) == len(passes) == due, (
            f"{len(passes)} passes, {len(taken)} steps, {due} reveal something"
        )
        width = len(problem.ids) * (2 if problem.guided and problem.sampling.guidance else 1)
        assert all(len(ids) == width for ids in passes), (
            f"batches of {[len(ids) for ids in passes]}, not {width}"
        )

    check()


def model_sees_masks_only(decode):
    """In every pass hidden positions hold the mask id, and the others what is known so far, in both halves of the batch."""

    @given(problems())
    @example(EMPTY)
    def check(problem):
        taken, ids, hidden = (
            problem.run(decode),
            torch.from_numpy(problem.ids),
            torch.from_numpy(problem.ids == problem.codes),
        )
        for step, seen in zip(taken, problem.model.passes, strict=True):
            for half in seen.split(len(ids)):
                assert torch.equal(half, ids.masked_fill(hidden, problem.codes)), (
                    f"the model saw {half.tolist()}"
                )
            ids, hidden = step.ids, step.hidden

    check()


def every_sampler_keeps_its_promises(
    decode, samplers=("confidence", "halton", "random", "entropy")
):
    """Whichever chooses: given tokens are untouched, what is revealed stays, ids are codes, all is done within S steps, a
    seed gives one picture, confidences are finite in half precision. Counts are the schedule's;
    entropy may only be faster, and
    reveals something in every row at every step."""

    @given(
        problems(max_steps=12),
        st.sampled_from(samplers),
        st.integers(0, 3),
        st.sampled_from([0.0, 1.0]),
        st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    )
    @example(HOLE, samplers[0], 0, 0.0, torch.float32)
    @example(EMPTY, samplers[-1], 2, 0.0, torch.float32)
    @example(UNEVEN, samplers[-1], 0, 1.0, torch.float32)
    def check(problem, sampler, top_k, bound, dtype):
        sampling = replace(
            problem.sampling,
            sampler=sampler,
            top_k=top_k,
            choice_temperature=4.5,
            entropy_bound=bound,
        )
        problem = replace(problem, sampling=sampling)
        taken, hidden = problem.run(decode, dtype), problem.ids == problem.codes
        ids, left = problem.ids, dict(problem.schedule())
        assert len(taken) <= problem.sampling.steps and (
            sampler == "entropy" or len(taken) == len(left)
        )
        for step, (k, due) in zip(taken, left.items(), strict=True):
            guess, log_p, now = (x.numpy() for x in step)
            assert 0 <= guess.min() <= guess.max() < problem.codes, (
                f"ids {guess.tolist()}, codes 0..{problem.codes - 1}"
            )
            assert (guess == ids)[~hidden].all() and not (now & ~hidden).any(), (
                f"{sampler}, step {k}: known tokens changed"
            )
            assert np.isfinite(log_p[hidden]).all(), (
                f"{sampler}, {dtype}: confidences {log_p.tolist()}"
            )
            counts, before = now.sum(-1), hidden.sum(-1)
            if sampler == "entropy":
                assert ((counts < before) | (before == 0)).all(), (
                    f"step {k}: {before} hidden before, {counts} after"
                )
                assert (counts <= due).all(), (
                    f"step {k}: {counts} hidden, the schedule asks for {due}"
                )
            else:
                assert (counts == due).all(), f"{sampler}, step {k}: {counts} hidden, not {due}"
            ids, hidden = guess, now
        assert not hidden.any(), f"{sampler}: tokens are hidden after the last step"
        again = problem.run(decode, dtype)
        assert all(
            torch.equal(a, b)
            for one, two in zip(taken, again, strict=True)
            for a, b in zip(one, two, strict=True)
        ), f"{sampler} is not a function of the seed"

    check()


def draws_from_the_k_likeliest(draw):
    """With top_k no draw leaves the k most likely codes, and all of them are drawn; 0 and K are no limit. draw(logits, noise, temperature, top_k)."""
    logits, noise = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.5]).expand(4000, 5), gumbel_of((4000, 5))
    likeliest = [1, 4, 3, 0, 2]
    for k in range(6):
        drawn = set(draw(logits, noise, 1.0, k).tolist())
        assert drawn == set(likeliest[: k or 5]), (
            f"top_k {k} drew {sorted(drawn)} of logits {logits[0].tolist()}"
        )


def gumbel_of(shape):
    return torch.from_numpy(np.random.default_rng(0).gumbel(size=shape).astype(np.float32))


def visits_every_place_evenly(order):
    """A permutation of all tokens, which after each quarter of the steps has as many in each quarter of a square, give or take one.

    order(N) -> (N,) ranks, for N = side * side. It is the Halton sequence: column by halves, row by
    thirds.
    """
    for side in (1, 2, 4, 8, 16):
        ranks = order(side * side).reshape(side, side)
        assert sorted(ranks.flatten().tolist()) == list(range(side * side)), (
            f"side {side}: ranks {ranks.tolist()}"
        )
        if side >= 4:
            half = side // 2
            for seen in (side * side // 4, side * side // 2):
                quarters = [
                    int((ranks[y : y + half, x : x + half] < seen).sum())
                    for y in (0, half)
                    for x in (0, half)
                ]
                assert max(quarters) - min(quarters) <= 2 + side // 8, (
                    f"side {side}: of the first {seen} places {quarters} lie in the quarters"
                )
    mirrored = lambda i, base: float(
        sum(int(d) * base ** -(1 + n) for n, d in enumerate(reversed(np.base_repr(i, base))))
    )
    first = [(int(mirrored(i, 2) * 16), int(mirrored(i, 3) * 16)) for i in range(1, 20)]
    for rank, (y, x) in enumerate(dict.fromkeys(first)):
        assert int(order(256).reshape(16, 16)[y, x]) == rank, f"place {rank} is row {y}, column {x}"


def reveals_as_many_as_are_safe(entropy):
    """The most certain tokens, as many as keep the sum of their entropies, but the largest, within the bound (in float64, one by one)."""

    @given(
        hnp.arrays(np.float32, (2, 5, 3), elements=quarters),
        hnp.arrays(bool, (2, 5)),
        st.sampled_from([0.0, 0.7, 1.3, 9.0]),
    )
    @example(np.zeros((2, 5, 3), np.float32), np.ones((2, 5), bool), 1.3)
    @example(np.float32([[[9, 0, 0]] * 5] * 2), np.ones((2, 5), bool), 0.7)
    def check(logits, hidden, bound):
        p = np.exp(log_softmax(logits.astype(np.float64)))
        spread = -(p * np.log(p)).sum(-1)
        counts = hidden.sum(-1)
        zeros = torch.zeros(2, 5)
        arguments = (
            torch.from_numpy(logits),
            zeros,
            torch.from_numpy(hidden),
            torch.from_numpy(counts),
            zeros,
        )
        score, left = entropy(*arguments, Sampling(sampler="entropy", entropy_bound=bound))
        for b in range(2):
            rising = np.sort(spread[b][hidden[b]])
            sums = rising.cumsum() - rising
            least, most = (
                int((sums <= bound + slack).sum()) for slack in (-NEAR, NEAR)
            )  # float32 may fall on either side
            safe = int(counts[b] - left[b])
            assert max(least, min(1, counts[b])) <= safe <= most, (
                f"entropies {rising.tolist()}, bound {bound}: {safe} revealed"
            )
            order = score[b].numpy()[hidden[b]]
            assert (
                np.diff(spread[b][hidden[b]][np.argsort(-order, kind="stable")]) >= -NEAR
            ).all(), "not the most certain first"
        _, early = entropy(
            *arguments[:3],
            torch.zeros(2, dtype=torch.int64),
            zeros,
            Sampling(sampler="entropy", entropy_bound=0.0),
        )
        assert not early.any(), "fewer are revealed than the schedule asks"

    check()


def takes_half_precision(decode):
    """bf16 and fp16 logits, small and in the thousands, give valid ids and finite confidences, and what float32 gives.

    The same where there is no guidance, whose products half precision rounds.
    """

    @given(
        problems(),
        st.sampled_from([torch.bfloat16, torch.float16]),
        st.sampled_from([1.0, 1.0, 300.0]),
    )
    @example(EMPTY, torch.bfloat16, 1.0)
    @example(UNGUIDED, torch.bfloat16, 1.0)
    @example(HOLE, torch.float16, 1.0)
    def check(problem, dtype, scale):
        hidden, taken = (
            torch.from_numpy(problem.ids == problem.codes),
            problem.run(decode, dtype, scale),
        )
        for step in taken:
            assert 0 <= int(step.ids.min()) <= int(step.ids.max()) < problem.codes
            assert step.confidence[hidden].isfinite().all(), (
                f"confidence {step.confidence.tolist()}"
            )
            hidden = step.hidden
        if scale == 1.0 and not (problem.guided and problem.sampling.guidance):
            exact = problem.run(decode)
            assert all(
                torch.equal(a.float(), b.float())
                for one, two in zip(taken, exact, strict=True)
                for a, b in zip(one, two, strict=True)
            ), f"{dtype} is not float32"

    check()


def noise_is_standard_gumbel(gumbel):
    """Each number is the x at which F(x) = exp(-exp(-x)) reaches its uniform; finite, in float32.

    gumbel(shape, generator).

    Both tails too, where a law's largest gap shows nothing. Clamping at 1e-20 is clamping at 0 in
    half precision.

    torch.rand may draw an exact 0, and does for the seed 146, among its first 40,000 numbers.
    """
    for seed in (0, 146):
        noise = gumbel((400, 100), generator(seed))
        assert noise.isfinite().all(), (
            f"{int((~noise.isfinite()).sum())} of 40,000 are not finite: {noise[~noise.isfinite()].tolist()[:3]}"
        )
    noise = gumbel((400, 100), generator())
    assert noise.shape == (400, 100) and noise.dtype == torch.float32
    law = torch.exp(-torch.exp(-noise.double().flatten().sort().values)).numpy()
    gap = np.abs(law - (np.arange(len(law)) + 0.5) / len(law)).max()
    assert gap < 2.7 / len(law) ** 0.5, f"the distribution is off by up to {gap:.3f}"
    assert torch.equal(noise, gumbel((400, 100), generator())), "not a function of the generator"
    u = torch.rand((400, 100), generator=generator()).double()
    off = torch.where((u > 1e-6) & (u < 1 - 1e-6), (noise - -torch.log(-torch.log(u))).abs(), 0)
    assert off.max() < 1e-3, (
        f"the uniform {u.flatten()[off.argmax()]:.6f} became {noise.flatten()[off.argmax()]:.4f}, not {-(-u.log()).log().flatten()[off.argmax()]:.4f}"
    )
