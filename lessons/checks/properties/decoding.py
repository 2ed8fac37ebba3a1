"""Properties of parallel decoding (MaskGIT, section 3.2; Muse, sections 2.7 and 2.8).

A `step` has the signature of `decode.step`, but takes a temperature in place of the sampling. A
`decode` has that of `decode.decode`. The model is a table of logits in multiples of 1/4, which are
exact in every precision: equal scores are common, and the noise alone decides. The reference is
written in NumPy, in float64.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimuse.checks.properties.schedule import maskgit_counts

from minimuse.decode import Sampling, Step

# Float32 may order confidences that are closer than this in another way than float64.
NEAR = 1e-4
seeds = st.integers(0, 2**31 - 1)
quarters = st.integers(-12, 12).map(lambda n: n / 4)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def generators(rows, seed=0):
    """One for each row."""
    return [generator((seed + 1) * 1000 + row) for row in range(rows)]


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def log_p_of(logits, ids):
    """Log-probabilities (B, N) of ids (B, N), from logits (B, N, K), in float64."""
    log_p = log_softmax(logits.astype(np.float64))
    return np.take_along_axis(log_p, ids[..., None], -1)[..., 0]


def gumbel_of(shape):
    return torch.from_numpy(np.random.default_rng(0).gumbel(size=shape).astype(np.float32))


def state_of(step):
    """Ids, confidence and hidden tokens of a step: what a student's step has, too."""
    return step.ids, step.confidence, step.hidden


def same_steps(first, second):
    """Whether two decodings have the same steps, bit for bit."""
    if len(first) != len(second):
        return False
    for one, two in zip(first, second, strict=True):
        for a, b in zip(state_of(one), state_of(two), strict=True):
            if not torch.equal(a, b):
                return False
    return True


# --- One step ---
@st.composite
def steps(draw):
    """Arguments of a step, as arrays.

    Logits come from few distinct rows and noise from few values, so that equal scores occur.
    """
    B = draw(st.integers(1, 3))
    N = draw(st.integers(1, 6))
    K = draw(st.integers(1, 4))
    pool = draw(hnp.arrays(np.float32, (3, K), elements=quarters))
    logits = pool[draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, 2)))]
    ids = draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, K - 1)))
    hidden = draw(hnp.arrays(bool, (B, N)))
    left = np.array([draw(st.integers(0, int(count))) for count in hidden.sum(-1)])
    token_noise = draw(hnp.arrays(np.float32, (B, N, K), elements=quarters))
    choice_noise = draw(hnp.arrays(np.float32, (B, N), elements=quarters))
    temperature = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    return logits, ids, hidden, left, token_noise, choice_noise, temperature


def run_step(step, *case):
    """Ids, confidence and hidden after a step, as arrays."""
    *arrays, temperature = case
    result = step(*map(torch.from_numpy, arrays), temperature)
    return [x.numpy() for x in state_of(result)]


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
    """Exactly left[b] tokens of row b stay hidden, also with equal scores; no other is hidden."""

    @given(steps())
    @example(ALL_EQUAL)
    @example(KNOWN_LOOKS_BAD)
    def check(case):
        _, _, hidden, left, *_ = case
        _, _, now = run_step(step, *case)
        assert (now.sum(-1) == left).all(), f"{now.sum(-1)} hidden, not {left}"
        assert not (now & ~hidden).any(), (
            f"known tokens were hidden: before {hidden.tolist()}, after {now.tolist()}"
        )

    check()


def keeps_what_is_known(step):
    """Known tokens keep their id, whatever the logits, and their confidence is infinite."""

    @given(steps())
    @example(KNOWN_LOOKS_BAD)
    def check(case):
        _, ids, hidden, *_ = case
        guess, log_p, _ = run_step(step, *case)
        assert (guess == ids)[~hidden].all(), (
            f"ids {ids.tolist()}, hidden {hidden.tolist()}, after {guess.tolist()}"
        )
        assert np.isposinf(log_p[~hidden]).all() and np.isfinite(log_p[hidden]).all(), (
            f"hidden {hidden.tolist()}: confidence {log_p.tolist()}"
        )

    check()


def draws_from_the_tempered_softmax(step):
    """The guess is argmax(logits + temperature * Gumbel noise).

    Its log-probability is without temperature and noise.
    """

    @given(steps())
    def check(case):
        logits, _, hidden, _, token_noise, _, temperature = case
        guess, log_p, _ = run_step(step, *case)
        score = logits + np.float32(temperature) * token_noise  # quarters: exact
        assert (guess == score.argmax(-1))[hidden].all(), (
            f"guessed {guess.tolist()}, hidden {hidden.tolist()}"
        )
        wanted = log_p_of(logits, guess)
        assert np.allclose(log_p[hidden], wanted[hidden], atol=1e-5), (
            f"confidence {log_p.tolist()}, not {wanted.tolist()}"
        )

    check()


def keeps_the_most_confident(step):
    """No token that is hidden again has a higher score than one that is revealed.

    The score is confidence plus noise. Of equal ones, the first positions are revealed.
    """

    @given(steps())
    @example(ALL_EQUAL)
    def check(case):
        logits, _, hidden, _, _, choice_noise, _ = case
        guess, _, now = run_step(step, *case)
        scores = log_p_of(logits, guess) + choice_noise
        for b in range(len(logits)):

            def exactly_equal(i, j, b=b):
                same_logits = (logits[b, i] == logits[b, j]).all()
                same_guess = guess[b, i] == guess[b, j]
                return same_logits and same_guess and choice_noise[b, i] == choice_noise[b, j]

            kept = np.flatnonzero(hidden[b] & ~now[b])
            for i in np.flatnonzero(now[b]):
                for j in kept:
                    if exactly_equal(i, j):
                        right = j < i
                    else:
                        right = scores[b, i] <= scores[b, j] + NEAR
                    assert right, (
                        f"row {b}: position {i} ({scores[b, i]:.3f}) was hidden again, "
                        f"{j} ({scores[b, j]:.3f}) kept"
                    )

    check()


# --- The whole loop ---
@dataclass
class Rows:
    """A context for the table model: one vector of logits for each row."""

    rows: torch.Tensor  # (B, K)

    def join(self, other):
        return Rows(torch.cat([self.rows, other.rows]))

    def only(self, chosen):
        return Rows(self.rows[chosen])


class Table:
    """A model whose logits depend on a token, its right-hand neighbour and the row.

    They are exact in any precision. It remembers what it was given in each pass.
    """

    def __init__(self, seed, codes, dtype=torch.float32, scale=1.0):
        draw = np.random.default_rng(seed).normal(size=(2, codes + 1, codes))
        self.own, self.next = np.round(4 * draw) / 4 * scale
        self.dtype = dtype
        self.passes = []

    def logits(self, ids, rows):
        return self.own[ids] + self.next[np.roll(ids, -1, axis=1)] + rows[:, None]

    def __call__(self, ids, context, where=None):
        self.passes.append(ids.clone())
        logits = self.logits(ids.numpy(), context.rows.double().numpy())
        logits = torch.from_numpy(logits).to(self.dtype)
        return logits if where is None else logits[where]


def rows(seed, B, K):
    return Rows(torch.from_numpy(np.round(4 * np.random.default_rng(seed).normal(size=(B, K))) / 4))


@dataclass
class Problem:
    """A decoding problem that prints as its numbers."""

    ids: np.ndarray  # (B, N), K = hidden
    codes: int  # K
    sampling: Sampling
    guided: bool
    seed: int

    def run(self, decode, dtype=torch.float32, scale=1.0, only=None):
        """All steps of a decode, of the row `only` if it is given. The model stays, with passes."""
        B = len(self.ids)
        chosen = slice(None) if only is None else slice(only, only + 1)
        self.model = Table(self.seed, self.codes, dtype, scale)
        self.cond = rows(self.seed + 1, B, self.codes)
        self.uncond = rows(self.seed + 2, B, self.codes) if self.guided else None
        results = decode(
            self.model,
            torch.from_numpy(self.ids[chosen]),
            self.codes,
            self.cond.only(chosen),
            self.uncond.only(chosen) if self.guided else None,
            self.sampling,
            generators(B, self.seed)[chosen],
        )
        return list(results)

    def noises(self):
        """The noise of each step: (B, N, K) for the tokens, (B, N) for the choice."""
        B, N = self.ids.shape
        draws = generators(B, self.seed)
        noises = []
        for _ in range(self.sampling.steps):
            token_noise = [reference_gumbel((N, self.codes), draw) for draw in draws]
            choice_noise = [reference_gumbel((N,), draw) for draw in draws]
            noises.append((np.stack(token_noise), np.stack(choice_noise)))
        return noises

    def schedule(self):
        """(k, how many stay hidden (B,)) of every step that reveals something."""
        before = (self.ids == self.codes).sum(-1)
        counts = [maskgit_counts(int(n), self.sampling.steps) for n in before]
        revealing = []
        for k in range(self.sampling.steps):
            now = np.array([row[k] for row in counts])
            if (now != before).any():
                revealing.append((k, now))
            before = now
        return revealing

    def guided_logits(self, k, ids):
        """Logits (B, N, K) of step k for ids (B, N) with masks, in float64."""
        logits = self.model.logits(ids, self.cond.rows.numpy())
        if not self.guided:
            return logits
        t = self.sampling.guidance
        if self.sampling.ramp:
            t = t * (k + 1) / self.sampling.steps
        return (1 + t) * logits - t * self.model.logits(ids, self.uncond.rows.numpy())


@st.composite
def problems(draw, max_steps=8):
    B = draw(st.integers(1, 3))
    N = draw(st.integers(1, 9))
    K = draw(st.integers(1, 5))
    ids = draw(hnp.arrays(np.int64, (B, N), elements=st.integers(0, K - 1)))
    if draw(st.booleans()):
        hidden = np.ones((B, N), bool)  # an empty grid
    else:
        hidden = draw(hnp.arrays(bool, (B, N)))  # a hole of its own in each row
    sampling = Sampling(
        steps=draw(st.integers(1, max_steps)),
        guidance=draw(st.sampled_from([0.0, 0.5, 3.0])),
        ramp=draw(st.booleans()),
        temperature=draw(st.sampled_from([0.0, 1.0])),
        choice_temperature=draw(st.sampled_from([0.0, 4.5])),
    )
    return Problem(np.where(hidden, K, ids), K, sampling, draw(st.booleans()), draw(seeds))


# 5 of 29 tokens are hidden.
HOLE = Problem(np.array([[4] * 5 + [0, 1, 2, 3] * 6]), 4, Sampling(steps=4), False, 3)
EMPTY = Problem(np.full((2, 16), 4), 4, Sampling(steps=6), True, 5)
UNGUIDED = Problem(np.full((2, 64), 12), 12, Sampling(steps=6), False, 5)
# A plain draw, with full guidance.
ONE_STEP = Problem(np.full((2, 4), 3), 3, Sampling(steps=1), True, 1)
# Three tokens in six steps: some reveal nothing.
IDLE = Problem(np.full((2, 3), 4), 4, Sampling(steps=6), False, 2)
UNEVEN = Problem(np.array([[4] * 9, [4] + [1] * 8, [2] * 9]), 4, Sampling(steps=5), True, 7)


def follows_the_reference(decode):
    """Each step is what a NumPy decoder, written from the papers, does with the same noise.

    Per step: guided logits (1 + t_k) c - t_k u with t_k = t (k+1)/S; a draw for each hidden token;
    confidence = log-probability + tau (1 - (k+1)/S) Gumbel noise; the least confident are hidden
    again, as many as MaskGIT's counts say. Each row draws noise from its own generator, in every
    step, also in one that reveals nothing: (N, K) for the tokens, then (N,) for the choice.
    """

    @given(problems())
    @example(HOLE)
    @example(EMPTY)
    @example(UNEVEN)
    @example(IDLE)
    @example(ONE_STEP)
    def check(problem):
        results = problem.run(decode)
        revealing = problem.schedule()
        assert len(results) == len(revealing), f"{len(results)} steps, not {len(revealing)}"
        noises = problem.noises()
        ids = problem.ids
        hidden = ids == problem.codes
        for result, (k, left) in zip(results, revealing, strict=True):
            guess, confidence, now = (x.numpy() for x in state_of(result))
            masked = np.where(hidden, problem.codes, ids)
            logits = problem.guided_logits(k, masked)
            token_noise, choice_noise = noises[k]

            assert (guess == ids)[~hidden].all(), f"step {k}: known tokens changed"
            check_guess(k, guess, logits + problem.sampling.temperature * token_noise, hidden)
            log_p = log_p_of(logits, guess)
            assert np.allclose(confidence[hidden], log_p[hidden], atol=NEAR), (
                f"step {k}: confidence {confidence.tolist()}, not {log_p.tolist()}"
            )
            scale = problem.sampling.choice_temperature * (1 - (k + 1) / problem.sampling.steps)
            assert (now.sum(-1) == left).all() and not (now & ~hidden).any(), (
                f"step {k}: {now.sum(-1)} hidden, not {left}"
            )
            check_choice(k, log_p + scale * choice_noise, hidden, now)
            ids = guess
            hidden = now
        assert not hidden.any(), "tokens are hidden after the last step"

    check()


def reference_gumbel(shape, noise):
    """Gumbel noise in float64, from the uniform numbers that a decoder draws."""
    u = torch.rand(shape, generator=noise).double().numpy().clip(1e-20, 1 - 1e-7)
    return -np.log(-np.log(u))


def check_guess(k, guess, score, hidden):
    """Each guess (B, N) at a hidden position has the highest score (B, N, K)."""
    K = score.shape[-1]
    assert 0 <= guess.min() <= guess.max() < K, f"step {k}: ids {guess.tolist()}, codes 0..{K - 1}"
    drawn = np.take_along_axis(score, guess[..., None], -1)[..., 0]
    assert (drawn >= score.max(-1) - NEAR)[hidden].all(), (
        f"step {k}: guessed {guess.tolist()}, likeliest {score.argmax(-1).tolist()}"
    )


def check_choice(k, score, hidden, now):
    """No position that is hidden again has a higher score (B, N) than one that is revealed."""
    for b in range(len(score)):
        hidden_again = score[b][now[b]]
        revealed = score[b][hidden[b] & ~now[b]]
        if len(hidden_again) and len(revealed):
            assert hidden_again.max() <= revealed.min() + NEAR, (
                f"step {k}, row {b}: hid {hidden_again.max():.3f} again "
                f"and kept {revealed.min():.3f}"
            )


def never_shows_the_mask(decode):
    """The ids of every step are codes, never the mask id K.

    Given tokens stay, and nothing is hidden at the end.
    """

    @given(problems())
    @example(HOLE)
    @example(EMPTY)
    def check(problem):
        known = problem.ids != problem.codes
        results = problem.run(decode)
        for result in results:
            ids = result.ids.numpy()
            assert 0 <= ids.min() <= ids.max() < problem.codes, (
                f"ids {ids.tolist()}, codes 0..{problem.codes - 1}"
            )
            assert (ids == problem.ids)[known].all(), (
                f"given {problem.ids.tolist()}, got {ids.tolist()}"
            )
        if results:
            assert not results[-1].hidden.any(), "tokens are hidden after the last step"
        else:
            assert known.all(), "no step was taken"

    check()


def revealed_tokens_stay(decode):
    """A token that a step has revealed is never hidden again and never changes.

    Source: Muse, section 2.8.
    """

    @given(problems())
    @example(EMPTY)
    def check(problem):
        results = problem.run(decode)
        for before, after in zip(results, results[1:], strict=False):
            shown = ~before.hidden
            assert torch.equal(before.ids[shown], after.ids[shown]), (
                f"hidden {before.hidden.tolist()}, "
                f"ids {before.ids.tolist()} became {after.ids.tolist()}"
            )
            assert not after.hidden[shown].any(), (
                f"hidden {before.hidden.tolist()} became {after.hidden.tolist()}"
            )

    check()


def same_in_any_batch(decode):
    """A row is filled in the same way whatever is in the rows beside it.

    Its guesses, confidences and counts are those of a batch of that row alone, step by step.
    """

    @given(problems(), st.integers(0, 2))
    @example(UNEVEN, 0)
    @example(replace(UNEVEN, ids=UNEVEN.ids[::-1].copy()), 2)
    @example(EMPTY, 1)
    def check(problem, row):
        row = min(row, len(problem.ids) - 1)
        together = problem.run(decode)
        alone = problem.run(decode, only=row)
        steps = [k for k, _ in problem.schedule()]
        steps_alone = [k for k, _ in replace(problem, ids=problem.ids[row : row + 1]).schedule()]
        for k, result in zip(steps_alone, alone, strict=True):
            ids, confidence, hidden = state_of(together[steps.index(k)])
            beside = Step(ids[row : row + 1], confidence[row : row + 1], hidden[row : row + 1])
            assert same_steps([result], [beside]), (
                f"row {row}, step {k}: {result.ids.tolist()} alone, {beside.ids.tolist()} in the "
                "batch"
            )

    check()


def same_generator_same_output(decode):
    """The result depends on the inputs and the generators only, and the inputs do not change."""

    @given(problems())
    @example(EMPTY)
    def check(problem):
        before = problem.ids.copy()
        torch.manual_seed(0)
        first = problem.run(decode)
        torch.manual_seed(1)
        second = problem.run(decode)
        assert (problem.ids == before).all(), "the ids given were changed in place"
        assert same_steps(first, second), "the same generators gave other steps"

    check()


def makes_no_idle_pass(decode):
    """There is one model pass for each step that reveals something, and no other.

    Conditional and unconditional rows run in one batch. If nothing is hidden there is no step; if
    there are more steps than hidden tokens, each step reveals one. Without guidance at a step
    (uncond None, or t = 0) no unconditional row is run.
    """

    @given(problems(max_steps=30))
    @example(Problem(np.array([[0, 1]]), 2, Sampling(steps=4), True, 0))  # nothing hidden
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=9), True, 0))  # S > N0
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=1), False, 0))
    @example(Problem(np.array([[2, 2]]), 2, Sampling(steps=2, guidance=0.0), True, 0))
    def check(problem):
        results = problem.run(decode)
        passes = problem.model.passes
        revealing = len(problem.schedule())
        assert len(results) == len(passes) == revealing, (
            f"{len(passes)} passes, {len(results)} steps, {revealing} reveal something"
        )
        sides = 2 if problem.guided and problem.sampling.guidance else 1
        batch = sides * len(problem.ids)
        assert all(len(ids) == batch for ids in passes), (
            f"batches of {[len(ids) for ids in passes]}, not {batch}"
        )

    check()


def model_sees_masks_only(decode):
    """In every pass hidden positions hold the mask id, and the others what is known so far.

    So it is in both halves of a batch with guidance.
    """

    @given(problems())
    @example(EMPTY)
    def check(problem):
        results = problem.run(decode)
        ids = torch.from_numpy(problem.ids)
        hidden = ids == problem.codes
        # A decoder may stop its passes early or late: other properties refuse that.
        for result, seen in zip(results, problem.model.passes, strict=False):
            expected = ids.masked_fill(hidden, problem.codes)
            for half in seen.split(len(ids)):
                assert torch.equal(half, expected), f"the model saw {half.tolist()}"
            ids = result.ids
            hidden = result.hidden

    check()


# --- Samplers ---
def every_sampler_keeps_its_promises(
    decode, samplers=("confidence", "halton", "random", "entropy")
):
    """Every sampler keeps the rules of decoding.

    Given tokens stay, revealed ones too, ids are codes, all is done within S steps, a seed gives
    one image, and confidences are finite in half precision. Counts are the schedule's; those of
    entropy may only be ahead of it, and it reveals something in every row at every step.
    """

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
        results = problem.run(decode, dtype)
        revealing = problem.schedule()
        assert len(results) <= sampling.steps, f"{len(results)} steps, not {sampling.steps}"
        on_time = sampler == "entropy" or len(results) == len(revealing)
        assert on_time, f"{sampler}: {len(results)} steps, not {len(revealing)}"

        ids = problem.ids
        hidden = ids == problem.codes
        for result, (k, left) in zip(results, revealing, strict=False):
            guess, log_p, now = (x.numpy() for x in state_of(result))
            assert 0 <= guess.min() <= guess.max() < problem.codes, (
                f"ids {guess.tolist()}, codes 0..{problem.codes - 1}"
            )
            assert (guess == ids)[~hidden].all() and not (now & ~hidden).any(), (
                f"{sampler}, step {k}: known tokens changed"
            )
            assert np.isfinite(log_p[hidden]).all(), (
                f"{sampler}, {dtype}: confidences {log_p.tolist()}"
            )
            check_counts(sampler, k, hidden.sum(-1), now.sum(-1), left)
            ids = guess
            hidden = now
        assert not hidden.any(), f"{sampler}: tokens are hidden after the last step"
        assert same_steps(results, problem.run(decode, dtype)), (
            f"{sampler} is not a function of the seed"
        )

    check()


def check_counts(sampler, k, before, now, scheduled):
    """How many are hidden in each row (B,) after step k, against the schedule."""
    if sampler == "entropy":
        assert ((now < before) | (before == 0)).all(), (
            f"step {k}: {before} hidden before, {now} after"
        )
        assert (now <= scheduled).all(), f"step {k}: {now} hidden, the schedule has {scheduled}"
    else:
        assert (now == scheduled).all(), f"{sampler}, step {k}: {now} hidden, not {scheduled}"


def draws_from_the_k_likeliest(draw):
    """With top_k = k, the k most likely codes are drawn, and only these.

    0 and K are no limit. draw(logits, noise, temperature, top_k).
    """
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.5]).expand(4000, 5)
    noise = gumbel_of((4000, 5))
    likeliest = [1, 4, 3, 0, 2]
    for k in range(6):
        drawn = set(draw(logits, noise, 1.0, k).tolist())
        limit = 5 if k == 0 else k
        assert drawn == set(likeliest[:limit]), (
            f"top_k {k} drew {sorted(drawn)} of logits {logits[0].tolist()}"
        )


def visits_every_place_evenly(order):
    """Each position comes once, and at every time the visited ones are spread evenly.

    After a quarter and after half of the steps, the quarters of a square have equally many visited
    positions, give or take one. order(N) -> (N,) ranks, for N = side * side. It is the Halton
    sequence: rows by halves, columns by thirds.
    """
    for side in (1, 2, 4, 8, 16):
        ranks = order(side * side).reshape(side, side)
        assert sorted(ranks.flatten().tolist()) == list(range(side * side)), (
            f"side {side}: ranks {ranks.tolist()}"
        )
        if side >= 4:
            for visited in (side * side // 4, side * side // 2):
                counts = counts_in_quarters(ranks < visited)
                assert max(counts) - min(counts) <= 2 + side // 8, (
                    f"side {side}: of the first {visited} places {counts} lie in the quarters"
                )
    ranks = order(256).reshape(16, 16)
    first = [(int(mirrored(i, 2) * 16), int(mirrored(i, 3) * 16)) for i in range(1, 20)]
    for rank, (y, x) in enumerate(dict.fromkeys(first)):
        assert int(ranks[y, x]) == rank, f"place {rank} is row {y}, column {x}"


def counts_in_quarters(visited):
    """How many positions of a square (side, side) bool are True, in each of its quarters."""
    half = len(visited) // 2
    top, bottom = visited[:half], visited[half:]
    quarters_of_square = (top[:, :half], top[:, half:], bottom[:, :half], bottom[:, half:])
    return [int(quarter.sum()) for quarter in quarters_of_square]


def mirrored(i, base):
    """The digits of i, mirrored behind the point."""
    digits = reversed(np.base_repr(i, base))
    return float(sum(int(digit) * base ** -(1 + n) for n, digit in enumerate(digits)))


def reveals_as_many_as_are_safe(entropy):
    """The tokens of lowest entropy are revealed, as many as the bound allows.

    Their sum, without the largest, stays within the bound: computed in float64, one by one.
    """

    @given(
        hnp.arrays(np.float32, (2, 5, 3), elements=quarters),
        hnp.arrays(bool, (2, 5)),
        st.sampled_from([0.0, 0.7, 1.3, 9.0]),
    )
    @example(np.zeros((2, 5, 3), np.float32), np.ones((2, 5), bool), 1.3)
    @example(np.float32([[[9, 0, 0]] * 5] * 2), np.ones((2, 5), bool), 0.7)
    def check(logits, hidden, bound):
        p = np.exp(log_softmax(logits.astype(np.float64)))
        entropies = -(p * np.log(p)).sum(-1)  # B N
        counts = hidden.sum(-1)
        zeros = torch.zeros(2, 5)
        score, left = entropy(
            torch.from_numpy(logits),
            zeros,
            torch.from_numpy(hidden),
            torch.from_numpy(counts),
            zeros,
            Sampling(sampler="entropy", entropy_bound=bound),
        )
        for b in range(2):
            check_safe(entropies[b][hidden[b]], bound, int(counts[b] - left[b]))
            best_first = np.argsort(-score[b].numpy()[hidden[b]], kind="stable")
            rising = np.diff(entropies[b][hidden[b]][best_first])
            assert (rising >= -NEAR).all(), "not the most certain first"

        _, early = entropy(
            torch.from_numpy(logits),
            zeros,
            torch.from_numpy(hidden),
            torch.zeros(2, dtype=torch.int64),
            zeros,
            Sampling(sampler="entropy", entropy_bound=0.0),
        )
        assert not early.any(), "fewer are revealed than the schedule asks"

    check()


def check_safe(entropies, bound, revealed):
    """How many of the tokens with these entropies are revealed, at this bound."""
    rising = np.sort(entropies)
    sums = rising.cumsum() - rising
    # Near the bound, float32 may fall on either side.
    least = max(int((sums <= bound - NEAR).sum()), min(1, len(rising)))
    most = int((sums <= bound + NEAR).sum())
    assert least <= revealed <= most, (
        f"entropies {rising.tolist()}, bound {bound}: {revealed} revealed"
    )


# --- Precision and noise ---
def takes_half_precision(decode):
    """bf16 and fp16 logits, small ones and in the thousands, give valid ids and finite confidences.

    Small logits give the same as in float32 where there is no guidance, whose products half
    precision rounds.
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
        hidden = torch.from_numpy(problem.ids == problem.codes)
        results = problem.run(decode, dtype, scale)
        for result in results:
            assert 0 <= int(result.ids.min()) <= int(result.ids.max()) < problem.codes, (
                f"ids {result.ids.tolist()}, codes 0..{problem.codes - 1}"
            )
            assert result.confidence[hidden].isfinite().all(), (
                f"confidence {result.confidence.tolist()}"
            )
            hidden = result.hidden
        is_guided = problem.guided and problem.sampling.guidance
        if scale == 1.0 and not is_guided:
            as_float = [Step(*(x.float() for x in state_of(result))) for result in results]
            exact = [Step(*(x.float() for x in state_of(result))) for result in problem.run(decode)]
            assert same_steps(as_float, exact), f"{dtype} is not float32"

    check()


def noise_is_standard_gumbel(gumbel):
    """Each number is the x at which F(x) = exp(-exp(-x)) reaches its uniform number.

    gumbel(shape, generator) -> finite float32. Both tails are checked too, where the largest gap
    between distribution functions shows nothing. In half precision, clamping at 1e-20 is clamping
    at 0. torch.rand may draw an exact 0, and does for the seed 146, among its first 40,000 numbers.
    """
    for seed in (0, 146):
        noise = gumbel((400, 100), generator(seed))
        bad = noise[~noise.isfinite()].tolist()
        assert not bad, f"{len(bad)} of 40,000 are not finite: {bad[:3]}"
    noise = gumbel((400, 100), generator())
    assert noise.shape == (400, 100) and noise.dtype == torch.float32, (
        f"noise is {tuple(noise.shape)} {noise.dtype}, not (400, 100) float32"
    )
    for shape in ((), (7,), (2, 3, 4)):
        few = gumbel(shape, generator())
        assert tuple(few.shape) == shape, f"noise of shape {shape} has {tuple(few.shape)}"
    law = torch.exp(-torch.exp(-noise.double().flatten().sort().values)).numpy()
    gap = np.abs(law - (np.arange(len(law)) + 0.5) / len(law)).max()
    assert gap < 2.7 / len(law) ** 0.5, f"the distribution is off by up to {gap:.3f}"
    assert torch.equal(noise, gumbel((400, 100), generator())), "not a function of the generator"

    u = torch.rand((400, 100), generator=generator()).double().flatten()
    noise = noise.flatten()
    wanted = -torch.log(-torch.log(u))
    inside = (u > 1e-6) & (u < 1 - 1e-6)
    off = torch.where(inside, (noise - wanted).abs(), 0)
    worst = off.argmax()
    assert off.max() < 1e-3, (
        f"the uniform {u[worst]:.6f} became {noise[worst]:.4f}, not {wanted[worst]:.4f}"
    )
