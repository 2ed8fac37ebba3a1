"""The judge of emoji against a slow loop, and against real pictures that its heads were not trained on: `pytest tests/test_judge.py`."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from minimuse.data import ASSETS
from minimuse.datasets import load
from minimuse.metrics.judge import PATH, Judge, Verdicts, behind, features

STYLES, CONCEPTS = ("flat", "deep", "round"), tuple(f"concept-{i}" for i in range(30))


@pytest.fixture
def judge():
    """Random heads over 6 features."""
    g = torch.Generator().manual_seed(0)
    shapes = (3, 6), (3,), (4, 6), (4,), (30, 4)
    *heads, words = (torch.randn(shape, generator=g) for shape in shapes)
    return Judge(STYLES, CONCEPTS, *heads, torch.nn.functional.normalize(words, dim=1))


def asked(n, seed=1):
    """Features (n, 6) and names of pictures that were to show something."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, 6))).float(), [
        f"{rng.choice(STYLES)}/{rng.choice(CONCEPTS)}" for _ in range(n)
    ]


def slowly(judge, x, name):
    """One picture's verdict in float64, one concept at a time."""
    style, concept = name.split("/")
    number = lambda tensor: tensor.numpy().astype(np.float64)
    logit = {
        s: number(judge.style_weight)[i] @ number(x) + number(judge.style_bias)[i]
        for i, s in enumerate(judge.styles)
    }
    meaning = number(judge.words_weight) @ number(x) + number(judge.words_bias)
    cosine = lambda a: a @ meaning / np.linalg.norm(a) / np.linalg.norm(meaning)
    like = {c: cosine(number(judge.words)[i]) for i, c in enumerate(judge.concepts)}
    rank = sorted(like, key=like.get, reverse=True).index(concept)
    return max(logit, key=logit.get) == style, rank < 1, rank < 10


def test_verdicts_are_those_of_a_slow_loop(judge):
    x, names = asked(300)
    got = judge(x, names)
    found = list(zip(got.style.tolist(), got.first.tolist(), got.ten.tolist()))
    assert found == [slowly(judge, row, name) for row, name in zip(x, names)]
    assert (
        {True, False} == set(got.style.tolist()) == set(got.first.tolist()) == set(got.ten.tolist())
    )  # or the loop proves little


def test_nobody_to_judge(judge):
    verdicts = judge(torch.zeros(0, 6), [])
    assert verdicts.style.shape == verdicts.first.shape == verdicts.ten.shape == (0,)


def test_ties_and_not_a_number_are_never_right():
    scores = torch.tensor([[1.0, 3, 2, 0], [2, 2, 0, 0], [1, 1, 1, 1], [float("nan")] * 4])
    assert behind(scores, torch.tensor([1, 0, 2, 0])).tolist() == [0, 1, 3, 3]
    assert behind(scores, torch.tensor([3, 2, 0, 3])).tolist() == [3, 3, 3, 3]


def test_a_picture_of_nothing_is_not_right(judge):
    verdicts = judge(torch.full((1, 6), float("nan")), ["flat/concept-0"])
    assert not (verdicts.style.any() or verdicts.first.any() or verdicts.ten.any())


def test_a_wrong_style_and_a_wrong_concept_are_noticed(judge):
    """The same pictures under other names: the style's answer changes with the style alone, the concept's with the concept alone."""
    x, _ = asked(50, seed=2)
    logits, likeness = judge.places(x)
    style, concept = (
        [names[i] for i in scores.argmax(dim=1)]
        for names, scores in ((STYLES, logits), (CONCEPTS, likeness))
    )
    other = lambda names, own: [names[names.index(o) - 1] for o in own]
    tell = lambda styles, concepts: judge(x, [f"{s}/{c}" for s, c in zip(styles, concepts)])
    right = tell(style, concept)
    assert right.style.all() and right.first.all() and right.ten.all()
    wrong = tell(other(STYLES, style), concept)
    assert not wrong.style.any() and wrong.first.all()
    wrong = tell(style, other(CONCEPTS, concept))
    assert wrong.style.all() and not wrong.first.any()


def test_chance_is_what_guesses_score(judge):
    """Heads that do not look at the picture, drawn anew for each of 900."""
    g, names = torch.Generator().manual_seed(3), [f"{s}/{c}" for s in STYLES for c in CONCEPTS]
    right = {"style": 0, "first": 0, "ten": 0}
    for i in range(900):
        words = judge.words[torch.randperm(30, generator=g)]
        guess = replace(
            judge,
            style_bias=torch.randn(3, generator=g),
            words_bias=torch.randn(4, generator=g),
            words=words,
        )
        for key, value in vars(guess(torch.zeros(1, 6), [names[i % 90]])).items():
            right[key] += int(value)
    for key, chance in judge.chance.items():
        assert abs(right[key] / 900 - chance) < 4 * (chance * (1 - chance) / 900) ** 0.5, key
    assert replace(judge, concepts=CONCEPTS[:5], words=judge.words[:5]).chance["ten"] == 1


def test_shares(judge):
    shares = judge.accuracy(
        Verdicts(
            torch.tensor([True, True, False, False]),
            torch.zeros(4, dtype=bool),
            torch.ones(4, dtype=bool),
        )
    )
    assert [shares[key]["value"] for key in ("style", "first", "ten")] == [0.5, 0, 1]
    assert all(
        s["n"] == 4
        and s["low"] - 1e-9 < s["value"] < s["high"] + 1e-9
        and s["chance"] == judge.chance[key]
        for key, s in shares.items()
    )


def test_what_it_cannot_judge(judge):
    x, names = asked(2)
    with pytest.raises(ValueError, match="2 pictures, 1 names"):
        judge(x, names[:1])
    for name in ("flat/unicorn", "cubist/concept-0", "concept-0", "flat"):
        with pytest.raises(ValueError, match=f"'{name}' is no style/concept"):
            judge(x, [names[0], name])
    with pytest.raises(ValueError, match=r"words_bias is \(5,\), not \(4,\)"):
        replace(judge, words_bias=torch.zeros(5))


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((2, 3, 31, 64), torch.float),
        ((3, 64, 64), torch.float),
        ((2, 1, 64, 64), torch.float),
        ((2, 3, 64, 64), torch.uint8),
    ],
)
def test_what_has_no_features(shape, dtype):
    with pytest.raises(ValueError, match="the judge needs floats"):
        features(None, torch.zeros(shape, dtype=dtype))


# The file that ships


def test_save_and_load(judge, tmp_path):
    judge.save(path := tmp_path / "heads.safetensors")
    again, (x, names) = Judge.load(path), asked(50)
    assert (again.styles, again.concepts) == (STYLES, CONCEPTS)
    for got, wanted in zip(again.places(x), judge.places(x)):
        torch.testing.assert_close(got, wanted, atol=0.02, rtol=0)  # fp16 has 11 bits
    assert torch.equal(again.words, judge.words.half().float())


def test_a_damaged_file_is_named(judge, tmp_path):
    judge.save(path := tmp_path / "heads.safetensors")
    whole, wrong = path.read_bytes(), tmp_path / "wrong.safetensors"
    (without := json.loads(whole[8 : (end := 8 + int.from_bytes(whole[:8], "little"))]))[
        "__metadata__"
    ].pop("styles")
    header = json.dumps(without).encode()
    nameless, misspelt = (
        len(header).to_bytes(8, "little") + header + whole[end:],
        whole.replace(b"concept-0", b'concept"0'),
    )
    for damaged in (whole[:-9], b"", b"no tensors", nameless, misspelt):
        wrong.write_bytes(damaged)
        with pytest.raises(ValueError, match="wrong.safetensors is damaged"):
            Judge.load(wrong)
    with pytest.raises(FileNotFoundError, match="gone.safetensors is missing"):
        Judge.load(tmp_path / "gone.safetensors")


def test_the_shipped_file_knows_every_emoji():
    judge, index = Judge.load(), json.loads((ASSETS / "emoji" / "index.json").read_text())
    assert judge.styles == tuple(index) and set(judge.concepts) == {
        concept for entry in index.values() for concept in entry["blobs"]
    }
    torch.testing.assert_close(
        judge.words.norm(dim=1), torch.ones(len(judge.concepts)), atol=1e-3, rtol=0
    )
    assert PATH.stat().st_size < 3e6


def test_the_figures_beside_it_beat_chance():
    figures = json.loads(PATH.with_name("figures.json").read_text())
    assert {
        (split, how): scores["style"]["n"]
        for split, parts in figures.items()
        for how, scores in parts.items()
    } == {
        ("heldout", "real"): 402,
        ("heldout", "through the tokenizer"): 402,
        ("heldout-concept", "real"): 439,
        ("heldout-concept", "through the tokenizer"): 439,
    }
    assert all(
        score["low"] > 2 * score["chance"]
        for parts in figures.values()
        for scores in parts.values()
        for score in scores.values()
    )


def test_real_pictures_that_were_held_out():
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install 'minimuse[eval]' brings it"
    )
    from minimuse.plumbing.lite0 import Lite0

    judge, pictures = Judge.load(), load("emoji", "heldout", 64, 64)
    x = features(Lite0(), pictures.batch(range(64)))
    score = {key: s["value"] for key, s in judge.accuracy(judge(x, pictures.names)).items()}
    assert (
        score["style"] > 3 * judge.chance["style"]
        and score["first"] > 100 * judge.chance["first"]
        and score["ten"] > 50 * judge.chance["ten"]
    )
    names = [pictures.names[i - 1] for i in range(64)]  # what the pictures do not show
    shuffled = {key: s["value"] for key, s in judge.accuracy(judge(x, names)).items()}
    assert shuffled["first"] < score["first"] / 4 and shuffled["ten"] < score["ten"] / 4
    torch.testing.assert_close(
        features(Lite0(), pictures.batch([5])), x[5:6], atol=1e-4, rtol=1e-4
    )  # batches do not mix pictures
