"""Properties of the training loop (`minimuse/train.py`)."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st


def visits_every_picture_once(batch_at):
    """Steps in a row run through one permutation of the pictures per epoch; a step depends on its arguments alone.

    batch_at(seed, stage, step, batch, size) -> (batch,) indices.
    """

    @given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9))
    @example(0, 4, 6)
    @example(0, 9, 2)
    def check(seed, batch, size):
        steps = -(-3 * size // batch)
        stream = torch.cat([batch_at(seed, "base", i, batch, size) for i in range(steps)])
        for epoch in range(3):
            seen = stream[epoch * size : (epoch + 1) * size]
            assert sorted(seen.tolist()) == list(range(size)), (
                f"epoch {epoch} visits {seen.tolist()}"
            )
        assert torch.equal(batch_at(seed, "base", steps - 1, batch, size), stream[-batch:]), (
            "depends on what was asked before"
        )

    check()
    order = lambda seed, stage, step: batch_at(seed, stage, step, 50, 50).tolist()
    assert (
        len(
            {
                tuple(order(*key))
                for key in ((0, "base", 0), (1, "base", 0), (0, "decoder", 0), (0, "base", 1))
            }
        )
        == 4
    )


def warms_up_and_falls_to_zero(rate):
    """Linear from lr/w to lr over w steps, then half a cosine that would be 0 one step after the last. rate(lr, steps, warmup share, step)."""

    @given(st.integers(1, 200), st.sampled_from([0.0, 0.05, 0.5]))
    @example(1, 0.05)
    @example(100, 0.05)
    def check(steps, share):
        warmup = max(1, round(share * steps))
        rates = [rate(2.0, steps, share, s) for s in range(steps)]
        assert (
            math.isclose(rates[0], 2.0 / warmup)
            and math.isclose(max(rates), 2.0)
            and math.isclose(rates[warmup - 1], 2.0)
        )
        assert all(a < b for a, b in zip(rates[:warmup], rates[1:warmup])), "no rise in the warm-up"
        assert (
            all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :])) and min(rates) > 0
        ), "no fall after it"
        if steps > warmup:
            assert math.isclose(
                rates[-1],
                1 + math.cos(math.pi * (1 - 1 / (steps - warmup))),
                rel_tol=1e-9,
                abs_tol=1e-12,
            )

    check()


def stopping_changes_nothing(run, stops):
    """Stop after k steps, resume, and end in the same weights as never stopping, bit for bit.

    run(stops) trains to the end, stopping and resuming after each of `stops` steps -> dict of tensors.
    """
    undisturbed = run(())
    for stop in stops:
        resumed = run(stop)
        assert resumed.keys() == undisturbed.keys()
        other = [k for k in undisturbed if not torch.equal(resumed[k], undisturbed[k])]
        assert not other, (
            f"stopped after {stop}: {len(other)} of {len(undisturbed)} tensors differ, {other[0]} among them"
        )


def averages_checkpoints(run):
    """Every steps // averages steps, average <- decay average + (1 - decay) weights; the first counts in full, the last step too.

    run(steps, averages, decay) -> (the weights after each step, the weights at the end), as numbers (Muse, appendix).
    """
    for steps, averages, decay in (
        (6, 3, 0.7),
        (7, 3, 0.7),
        (5, 300, 0.5),
        (4, 1, 0.7),
        (1, 3, 0.7),
    ):
        weights, final = run(steps, averages, decay)
        every, average = max(1, steps // averages), None
        for step, w in enumerate(weights, start=1):
            if step % every == 0 or step == steps:
                average = w if average is None else decay * average + (1 - decay) * w
        right = len(weights) == steps and torch.allclose(final, average, atol=1e-6)
        assert right, (
            f"{steps} steps, {averages} averages: {final.tolist()}, not {average.tolist()}"
        )
