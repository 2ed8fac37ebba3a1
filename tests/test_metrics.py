"""Measures against their definitions, how they behave, and broken ones: `pytest tests/test_metrics.py`."""

import inspect
import math

import pytest
import torch
from minimuse.checks.properties import measures

from minimuse import schedule
from minimuse.metrics import distances
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.images import ssim
from minimuse.metrics.intervals import interval, mean_of
from minimuse.metrics.likelihood import bits_per_token, hidden_nll

PROPERTIES = {
    "frechet": (
        frechet,
        measures.frechet_is_its_formula,
        measures.nothing_lies_between_a_set_and_itself,
        measures.grows_with_the_noise,
    ),
    "kid": (kid, measures.kid_is_its_sums, measures.is_zero_on_average_for_halves),
    "precision": (
        precision,
        measures.precision_counts_what_lies_inside,
        measures.tells_dull_from_strange,
    ),
    "bits": (
        bits_per_token,
        measures.bits_are_those_of_an_exact_model,
        measures.a_guess_costs_log2_of_k,
        measures.counts_are_spread_evenly,
    ),
    "ssim": (ssim, measures.ssim_is_its_windows, measures.falls_with_the_noise),
    "mean_of": (lambda x: mean_of(x[:, 0]), measures.holds_the_truth_19_times_in_20),
    "interval": (
        lambda x: interval(lambda half: float(half.mean()), x),
        measures.holds_the_truth_19_times_in_20,
    ),
}


@pytest.mark.parametrize(
    "name, prop", [(name, prop) for name, (_, *props) in PROPERTIES.items() for prop in props]
)
def test_measure(name, prop):
    prop(PROPERTIES[name][0])


def changed(function, old, new):
    """The function with one piece of its source replaced."""
    source = inspect.getsource(function)
    assert source.count(old) >= 1, f"{old!r} is not in {function.__name__}"
    space = dict(vars(distances))
    exec(source.replace(old, new), space)
    return space[function.__name__]


BROKEN = [
    ("frechet", frechet, "- 2 * torch", "- torch"),
    ("frechet", frechet, "(len(x) - 1) ** 0.5", "len(x) ** 0.5"),
    ("frechet", frechet, "(x - x.mean(dim=0))", "x"),
    ("frechet", frechet, "(mean_a - mean_b).square().sum()", "(mean_a - mean_b).square().mean()"),
    ("frechet", frechet, "(mean_a - mean_b).square().sum() + ", ""),
    ("kid", kid, "+ 1) ** 3", ") ** 3"),
    ("kid", kid, "/ x.shape[1]", ""),
    ("kid", kid, " - kernel(x, x).trace()", ""),
    ("kid", kid, "(len(x) - 1)", "len(x)"),
    ("precision", precision, "k + 1", "k"),
    ("precision", precision, ".any(dim=1)", ".all(dim=1)"),
    (
        "precision",
        precision,
        "torch.cdist(drawn.double(), real.double()) <= reach",
        "torch.cdist(real.double(), drawn.double()) <= reach[:, None]",
    ),
    ("bits", bits_per_token, "math.log(2)", "1"),
    ("bits", bits_per_token, "* N // M", "* N // M // 2 * 2"),
    (
        "bits",
        bits_per_token,
        "counts = 1 + torch.randperm(M, generator=generator) * N // M",
        "counts = schedule.mask_counts(schedule.sample_ratios(M, generator), N)",
    ),
    ("ssim", ssim, "0.03 * 2", "0.03"),
    ("ssim", ssim, "1.5**2", "1.5"),
    ("ssim", ssim, "blur(a * b) - mean_a * mean_b", "blur(a * b)"),
    ("mean_of", mean_of, "** 0.5", ""),
    ("mean_of", mean_of, "1.96", "1"),
    ("interval", interval, "len(x) // 2", "len(x) // 4"),
    (
        "interval",
        interval,
        'torch.randperm(len(x), generator=generator_at("halves", i, j))[: len(x) // 2]',
        "torch.arange(len(x) // 2)",
    ),
]


@pytest.mark.parametrize("name, function, old, new", BROKEN)
def test_broken_measures_are_refused(name, function, old, new, refuses):
    wrong = changed(function, old, new)
    if name == "mean_of":
        wrong = lambda x, f=wrong: f(x[:, 0])
    if name == "interval":
        wrong = lambda x, f=wrong: f(lambda half: float(half.mean()), x)
    refuses(lambda f: [prop(f) for prop in PROPERTIES[name][1:]], wrong)


def test_hidden_nll_is_a_mean_for_each_picture():
    """Of its own hidden tokens, whatever is hidden in the others, and whatever the batches are."""
    g = torch.Generator().manual_seed(0)
    table = torch.randn(6, 9, 5, generator=g, dtype=torch.float64)
    ids, rows = torch.randint(5, (6, 9), generator=g), {}

    class Model:
        mask_id = 5

        def __call__(self, corrupted, context, where):
            assert torch.equal(corrupted == 5, where)
            return table[context][where]

    hidden = schedule.random_masks(torch.tensor([1, 9, 3, 4, 2, 7]), 9, g)
    got = hidden_nll(Model(), ids, lambda rows: torch.arange(6)[rows], hidden, batch=4)
    for i in range(6):
        rows[i] = [-float(table[i, n].log_softmax(-1)[ids[i, n]]) for n in range(9) if hidden[i, n]]
    assert got.tolist() == pytest.approx([sum(v) / len(v) for v in rows.values()], rel=1e-5)


def test_intervals_grow_where_sets_shrink():
    g = torch.Generator().manual_seed(0)
    wide = lambda n: (lambda x: x["high"] - x["low"])(
        interval(frechet, *torch.randn(2, n, 4, generator=g))
    )
    assert wide(60) > 1.5 * wide(600)
    assert math.isnan(mean_of(torch.ones(1))["low"])  # one picture has no interval
