"""Properties of the training loop (`minimuse/train.py`)."""

import math
from itertools import pairwise

import torch
from hypothesis import example, given
from hypothesis import strategies as st


def visits_every_picture_once(batch_at):
    """Consecutive steps run through a permutation of the images per epoch, one after the other.

    A step depends on its arguments alone.
    batch_at(seed, stage, step, batch, size) -> (batch,) indices.
    """

    @given(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9))
    @example(0, 4, 6)
    @example(0, 9, 2)
    def check(seed, batch, size):
        steps = math.ceil(3 * size / batch)
        batches = [batch_at(seed, "base", step, batch, size) for step in range(steps)]
        stream = torch.cat(batches)
        for epoch in range(3):
            visited = stream[epoch * size : (epoch + 1) * size].tolist()
            assert sorted(visited) == list(range(size)), f"epoch {epoch} visits {visited}"
        last = batch_at(seed, "base", steps - 1, batch, size)
        assert torch.equal(last, stream[-batch:]), "depends on earlier calls"

    check()
    orders = set()
    for seed, stage, step in ((0, "base", 0), (1, "base", 0), (0, "decoder", 0), (0, "base", 1)):
        orders.add(tuple(batch_at(seed, stage, step, 50, 50).tolist()))
    assert len(orders) == 4


def warms_up_and_falls_to_zero(rate):
    """Linear from lr/w to lr over w steps, then half a cosine, 0 one step after the last.

    rate(lr, steps, fraction of warm-up, step) -> the learning rate.
    """

    @given(st.integers(1, 200), st.sampled_from([0.0, 0.05, 0.5]))
    @example(1, 0.05)
    @example(100, 0.05)
    def check(steps, fraction):
        warmup = max(1, round(fraction * steps))
        rates = [rate(2.0, steps, fraction, step) for step in range(steps)]
        assert math.isclose(rates[0], 2.0 / warmup)
        assert math.isclose(max(rates), 2.0)
        assert math.isclose(rates[warmup - 1], 2.0)
        assert all(a < b for a, b in pairwise(rates[:warmup])), "does not rise in the warm-up"
        assert all(a >= b for a, b in pairwise(rates[warmup:])), "does not fall after the warm-up"
        assert min(rates) > 0
        if steps > warmup:
            end = 1 + math.cos(math.pi * (1 - 1 / (steps - warmup)))
            assert math.isclose(rates[-1], end, rel_tol=1e-9, abs_tol=1e-12)

    check()


def stopping_changes_nothing(run, stops):
    """Stop after k steps, resume, and end with the same weights as without a stop, bit for bit.

    run(stops) trains to the end, stopping and resuming after each of `stops` -> dict of tensors.
    """
    undisturbed = run(())
    for stop in stops:
        resumed = run(stop)
        assert resumed.keys() == undisturbed.keys()
        different = [k for k in undisturbed if not torch.equal(resumed[k], undisturbed[k])]
        assert not different, (
            f"stopped after {stop}: {len(different)} of {len(undisturbed)} tensors differ, "
            f"{different[0]} among them"
        )


def averages_checkpoints(run):
    """Every steps // averages steps, average <- decay average + (1 - decay) weights (Muse).

    The first average is the weights themselves, and the last step counts, too.
    run(steps, averages, decay) -> (list of the weights after each step, the weights at the end).
    """
    for steps, averages, decay in (
        (6, 3, 0.7),
        (7, 3, 0.7),
        (5, 300, 0.5),
        (4, 1, 0.7),
        (1, 3, 0.7),
    ):
        weights, final = run(steps, averages, decay)
        assert len(weights) == steps
        every = max(1, steps // averages)
        average = None
        for step, w in enumerate(weights, start=1):
            if step % every != 0 and step != steps:
                continue
            if average is None:
                average = w
            else:
                average = decay * average + (1 - decay) * w
        assert torch.allclose(final, average, atol=1e-6), (
            f"{steps} steps, {averages} averages: {final.tolist()}, not {average.tolist()}"
        )
