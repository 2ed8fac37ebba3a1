"""Measures against their definitions, and broken ones: `pytest tests/test_metrics.py`."""

import inspect
import math
import sys

import pytest
import torch
from minimuse.checks.properties import measures

from minimuse import schedule
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.images import ssim
from minimuse.metrics.intervals import interval, mean_of
from minimuse.metrics.likelihood import bits_per_token, hidden_nll


def mean_of_first_feature(mean_of):
    """mean_of for values (M,), as a function of points (M, 1)."""
    return lambda points: mean_of(points[:, 0])


def interval_of_mean(interval):
    """interval for any measure, as a function of points (M, 1) and of the measure "mean"."""
    return lambda points: interval(lambda half: float(half.mean()), points)


def itself(function):
    return function


# Each function, what the properties take in its place, and its properties.
PROPERTIES = {
    "frechet": (
        frechet,
        itself,
        (
            measures.frechet_is_its_formula,
            measures.nothing_lies_between_a_set_and_itself,
            measures.grows_with_the_noise,
        ),
    ),
    "kid": (kid, itself, (measures.kid_is_its_sums, measures.is_zero_on_average_for_halves)),
    "precision": (
        precision,
        itself,
        (measures.precision_counts_what_lies_inside, measures.tells_dull_from_strange),
    ),
    "bits": (
        bits_per_token,
        itself,
        (
            measures.bits_are_those_of_an_exact_model,
            measures.a_guess_costs_log2_of_k,
            measures.counts_are_spread_evenly,
        ),
    ),
    "ssim": (ssim, itself, (measures.ssim_is_its_windows, measures.falls_with_the_noise)),
    "mean_of": (
        mean_of,
        mean_of_first_feature,
        (measures.holds_the_truth_19_times_in_20,),
    ),
    "interval": (
        interval,
        interval_of_mean,
        (measures.holds_the_truth_19_times_in_20,),
    ),
}


CASES = [(name, prop) for name, (_, _, props) in PROPERTIES.items() for prop in props]


@pytest.mark.parametrize("name, prop", CASES)
def test_measure(name, prop):
    function, adapt, _ = PROPERTIES[name]
    prop(adapt(function))


def changed(function, old, new):
    """The function of a copy of its module in which a piece of the source is replaced."""
    source = inspect.getsource(sys.modules[function.__module__])
    assert old in source, f"{old!r} is not in {function.__module__}"
    space = {"__name__": "changed"}
    exec(source.replace(old, new), space)
    return space[function.__name__]


BROKEN = [
    ("frechet", "- 2 * trace_of_root", "- trace_of_root"),
    ("frechet", "(len(x) - 1) ** 0.5", "len(x) ** 0.5"),
    ("frechet", "(x - x.mean(dim=0))", "x"),
    (
        "frechet",
        "(a.mean(dim=0) - b.mean(dim=0)).square().sum()",
        "(a.mean(dim=0) - b.mean(dim=0)).square().mean()",
    ),
    ("frechet", "float(of_means + ", "float("),
    ("kid", "+ 1) ** 3", ") ** 3"),
    ("kid", "/ a.shape[1]", ""),
    ("kid", " - pairs.trace()", ""),
    ("kid", "(len(x) - 1)", "len(x)"),
    ("precision", "kthvalue(k + 1", "kthvalue(k"),
    ("precision", ".any(dim=1)", ".all(dim=1)"),
    (
        "precision",
        "torch.cdist(generated, real) <= reach",
        "torch.cdist(real, generated) <= reach[:, None]",
    ),
    ("bits", "math.log(2)", "1"),
    ("bits", "// (2 * M)", "// (2 * M) // 2 * 2"),
    (
        "bits",
        "counts = 1 + (2 * torch.randperm(M, generator=generator) + 1) * N // (2 * M)",
        "counts = schedule.mask_counts(schedule.sample_ratios(M, generator), N)",
    ),
    ("ssim", "0.03 * 2", "0.03"),
    ("ssim", "1.5**2", "1.5"),
    ("ssim", "blur(a * b) - mean_a * mean_b", "blur(a * b)"),
    ("mean_of", "len(values) ** 0.5", "len(values)"),
    ("mean_of", "1.96", "1"),
    ("interval", "len(x) // 2", "len(x) // 4"),
    (
        "interval",
        'torch.randperm(len(x), generator=generator_at("halves", i, j))[: len(x) // 2]',
        "torch.arange(len(x) // 2)",
    ),
]


@pytest.mark.parametrize("name, old, new", BROKEN)
def test_broken_measures_are_refused(name, old, new, refuses):
    function, adapt, props = PROPERTIES[name]

    def check_all(candidate):
        for prop in props:
            prop(candidate)

    refuses(check_all, adapt(changed(function, old, new)))


def test_hidden_nll_is_a_mean_for_each_image():
    """Of its own hidden tokens, whatever is hidden in the others, and whatever the batches are."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 9, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, (6, 9), generator=generator)

    class Model:
        mask_id = 5

        def __call__(self, masked_ids, context, hidden):
            assert torch.equal(masked_ids == 5, hidden)
            return table[context][hidden]

    hidden = schedule.random_masks(torch.tensor([1, 9, 3, 4, 2, 7]), 9, generator)
    result = hidden_nll(Model(), ids, lambda rows: torch.arange(6)[rows], hidden, batch=4)
    expected = []
    for i in range(6):
        costs = []
        for n in range(9):
            if hidden[i, n]:
                costs.append(-float(table[i, n].log_softmax(-1)[ids[i, n]]))
        expected.append(sum(costs) / len(costs))
    assert result.tolist() == pytest.approx(expected, rel=1e-5)


def test_intervals_grow_where_sets_shrink():
    generator = torch.Generator().manual_seed(0)

    def width(n):
        result = interval(frechet, *torch.randn(2, n, 4, generator=generator))
        return result["high"] - result["low"]

    assert width(60) > 1.5 * width(600)
    assert math.isnan(mean_of(torch.ones(1))["low"])  # one image has no interval
