"""The charts of lessons 11 and 14 show the numbers that they are given.

pip install -e '.[test,lessons]' && pytest tests/test_drawings_measuring.py
"""

import pytest
import torch

pytest.importorskip("matplotlib", reason="the charts need the extra lessons")


def test_points_stand_at_the_mean_of_each_size():
    from minimuse.drawings.measuring import distances_by_size

    sizes = (20, 40, 80)
    values = {"same": torch.rand(3, 5), "other": 2 + torch.rand(3, 5)}
    figure = distances_by_size(sizes, {"KID": values, "distance": values})
    assert [axis.get_title() for axis in figure.axes] == ["KID", "distance"]
    for axis in figure.axes:
        for container, expected in zip(axis.containers, values.values(), strict=True):
            x, y = container.lines[0].get_data()
            assert tuple(x) == sizes
            # Over the rounds, not over the sizes.
            assert [float(height) for height in y] == pytest.approx(
                (expected.sum(dim=1) / 5).tolist()
            )


def test_an_interval_goes_from_low_to_high():
    from minimuse.drawings.measuring import intervals

    named = {
        "first": {"value": 0.2, "low": 0.1, "high": 0.4},
        "second": {"value": -1.0, "low": -2.0, "high": 0.5},
    }
    axis = intervals(named, xlabel="nats").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == list(named)
    bars, points = axis.lines[::2], axis.lines[1::2]
    for row, (bar, point, found) in enumerate(zip(bars, points, named.values(), strict=True)):
        assert list(bar.get_xdata()) == [found["low"], found["high"]]
        assert list(point.get_xdata()) == [found["value"]]
        assert list(bar.get_ydata()) == [row, row]
