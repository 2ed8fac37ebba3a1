"""The judge of emoji, against a slow loop and on real images: `pytest tests/test_judge.py`.

The real images are held out: the judge's heads were not trained on them.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from minimuse.data import ASSETS
from minimuse.datasets import load
from minimuse.metrics.judge import PATH, Judge, Verdicts, features, rank_of

STYLES = ("flat", "deep", "round")
CONCEPTS = tuple(f"concept-{i}" for i in range(30))


@pytest.fixture
def judge():
    """Random heads over 6 features."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "style_weight": (3, 6),
        "style_bias": (3,),
        "words_weight": (4, 6),
        "words_bias": (4,),
        "words": (30, 4),
    }
    heads = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    heads["words"] = normalize(heads["words"], dim=1)
    return Judge(STYLES, CONCEPTS, **heads)


def random_images(n, seed=1):
    """Features (n, 6), and the names of what the images should show."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 6))).float()
    return x, [f"{rng.choice(STYLES)}/{rng.choice(CONCEPTS)}" for _ in range(n)]


def doubles(tensor):
    return tensor.numpy().astype(np.float64)


def slow_verdict(judge, x, name):
    """One image's verdict in float64, one concept at a time."""
    style, concept = name.split("/")
    logits = {}
    for i, candidate in enumerate(judge.styles):
        logits[candidate] = doubles(judge.style_weight)[i] @ doubles(x)
        logits[candidate] += doubles(judge.style_bias)[i]
    meaning = doubles(judge.words_weight) @ doubles(x) + doubles(judge.words_bias)
    cosines = {}
    for i, candidate in enumerate(judge.concepts):
        words = doubles(judge.words)[i]
        cosines[candidate] = words @ meaning / np.linalg.norm(words) / np.linalg.norm(meaning)
    rank = sorted(cosines, key=cosines.get, reverse=True).index(concept)
    return max(logits, key=logits.get) == style, rank < 1, rank < 10


def test_verdicts_are_those_of_a_slow_loop(judge):
    x, names = random_images(300)
    verdicts = judge(x, names)
    answers = [verdicts.style.tolist(), verdicts.first.tolist(), verdicts.ten.tolist()]
    expected = [slow_verdict(judge, row, name) for row, name in zip(x, names, strict=True)]
    assert list(zip(*answers, strict=True)) == expected
    # Each verdict must be True for some images and False for others, or the loop proves little.
    for answer in answers:
        assert set(answer) == {True, False}


def test_nothing_to_judge(judge):
    verdicts = judge(torch.zeros(0, 6), [])
    assert verdicts.style.shape == verdicts.first.shape == verdicts.ten.shape == (0,)


def test_ties_and_not_a_number_are_never_right():
    scores = torch.tensor([[1.0, 3, 2, 0], [2, 2, 0, 0], [1, 1, 1, 1], [float("nan")] * 4])
    assert rank_of(scores, torch.tensor([1, 0, 2, 0])).tolist() == [0, 1, 3, 3]
    assert rank_of(scores, torch.tensor([3, 2, 0, 3])).tolist() == [3, 3, 3, 3]


def test_an_image_without_features_is_not_right(judge):
    verdicts = judge(torch.full((1, 6), float("nan")), ["flat/concept-0"])
    assert not (verdicts.style.any() or verdicts.first.any() or verdicts.ten.any())


def test_a_wrong_style_and_a_wrong_concept_are_noticed(judge):
    """The same images under other names.

    The style's answer changes with the style alone, the concept's with the concept alone.
    """
    x, _ = random_images(50, seed=2)
    logits, cosines = judge.scores(x)
    style_indices = logits.argmax(dim=1).tolist()
    concept_indices = cosines.argmax(dim=1).tolist()

    def verdicts_of(style_shift, concept_shift):
        names = []
        for i, j in zip(style_indices, concept_indices, strict=True):
            names.append(f"{STYLES[i - style_shift]}/{CONCEPTS[j - concept_shift]}")
        return judge(x, names)

    right = verdicts_of(0, 0)
    assert right.style.all() and right.first.all() and right.ten.all()
    wrong_style = verdicts_of(1, 0)
    assert not wrong_style.style.any() and wrong_style.first.all()
    wrong_concept = verdicts_of(0, 1)
    assert wrong_concept.style.all() and not wrong_concept.first.any()


def test_chance_is_what_guesses_score(judge):
    """Heads that do not look at the image, drawn anew for each of 900."""
    generator = torch.Generator().manual_seed(3)
    names = [f"{style}/{concept}" for style in STYLES for concept in CONCEPTS]
    right = {"style": 0, "first": 0, "ten": 0}
    for i in range(900):
        guess = replace(
            judge,
            words=judge.words[torch.randperm(30, generator=generator)],
            style_bias=torch.randn(3, generator=generator),
            words_bias=torch.randn(4, generator=generator),
        )
        verdicts = guess(torch.zeros(1, 6), [names[i % 90]])
        for key, value in vars(verdicts).items():
            right[key] += int(value)
    for key, chance in judge.chance.items():
        deviation = (chance * (1 - chance) / 900) ** 0.5
        assert abs(right[key] / 900 - chance) < 4 * deviation, key
    assert replace(judge, concepts=CONCEPTS[:5], words=judge.words[:5]).chance["ten"] == 1


def test_accuracy(judge):
    verdicts = Verdicts(
        style=torch.tensor([True, True, False, False]),
        first=torch.zeros(4, dtype=bool),
        ten=torch.ones(4, dtype=bool),
    )
    accuracy = judge.accuracy(verdicts)
    assert [accuracy[key]["value"] for key in ("style", "first", "ten")] == [0.5, 0, 1]
    for key, row in accuracy.items():
        assert row["n"] == 4
        assert row["low"] - 1e-9 < row["value"] < row["high"] + 1e-9
        assert row["chance"] == judge.chance[key]


def test_what_it_cannot_judge(judge):
    x, names = random_images(2)
    with pytest.raises(ValueError, match="2 images, 1 names"):
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
    with pytest.raises(ValueError, match="Lite0 needs floats"):
        features(None, torch.zeros(shape, dtype=dtype))


# --- The file that ships ---


def test_save_and_load(judge, tmp_path):
    path = tmp_path / "heads.safetensors"
    judge.save(path)
    loaded = Judge.load(path)
    x, _ = random_images(50)
    assert (loaded.styles, loaded.concepts) == (STYLES, CONCEPTS)
    for scores, expected in zip(loaded.scores(x), judge.scores(x), strict=True):
        torch.testing.assert_close(scores, expected, atol=0.02, rtol=0)  # fp16 has 11 bits
    assert torch.equal(loaded.words, judge.words.half().float())


def without_styles(whole):
    """The bytes of a safetensors file, with the metadata "styles" taken out of its header."""
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    del header["__metadata__"]["styles"]
    shorter = json.dumps(header).encode()
    return len(shorter).to_bytes(8, "little") + shorter + whole[end:]


def test_a_damaged_file_is_named(judge, tmp_path):
    judge.save(tmp_path / "heads.safetensors")
    whole = (tmp_path / "heads.safetensors").read_bytes()
    bad_json = whole.replace(b"concept-0", b'concept"0')
    wrong = tmp_path / "wrong.safetensors"
    for damaged in (whole[:-9], b"", b"no tensors", without_styles(whole), bad_json):
        wrong.write_bytes(damaged)
        with pytest.raises(ValueError, match="wrong.safetensors is damaged"):
            Judge.load(wrong)
    with pytest.raises(FileNotFoundError, match="gone.safetensors is missing"):
        Judge.load(tmp_path / "gone.safetensors")


def test_the_shipped_file_knows_every_emoji():
    judge = Judge.load()
    index = json.loads((ASSETS / "emoji" / "index.json").read_text())
    concepts = {concept for entry in index.values() for concept in entry["blobs"]}
    assert judge.styles == tuple(index)
    assert set(judge.concepts) == concepts
    ones = torch.ones(len(judge.concepts))
    torch.testing.assert_close(judge.words.norm(dim=1), ones, atol=1e-3, rtol=0)
    assert PATH.stat().st_size < 3e6


def test_the_figures_beside_it_beat_chance():
    figures = json.loads(PATH.with_name("figures.json").read_text())
    counts = {}
    for split, parts in figures.items():
        for how, scores in parts.items():
            counts[split, how] = scores["style"]["n"]
            for score in scores.values():
                assert score["low"] > 2 * score["chance"]
    assert counts == {
        ("heldout", "real"): 402,
        ("heldout", "through the tokenizer"): 402,
        ("heldout-concept", "real"): 439,
        ("heldout-concept", "through the tokenizer"): 439,
    }


def test_real_images_that_were_held_out():
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install 'minimuse[eval]' brings it"
    )
    from minimuse.plumbing.lite0 import Lite0

    judge = Judge.load()
    images = load("emoji", "heldout", 64, 64)
    x = features(Lite0(), images.batch(range(64)))

    def accuracies(names):
        return {key: row["value"] for key, row in judge.accuracy(judge(x, names)).items()}

    score = accuracies(images.names)
    assert score["style"] > 3 * judge.chance["style"]
    assert score["first"] > 100 * judge.chance["first"]
    assert score["ten"] > 50 * judge.chance["ten"]
    shuffled = accuracies([images.names[i - 1] for i in range(64)])  # what the images do not show
    assert shuffled["first"] < score["first"] / 4
    assert shuffled["ten"] < score["ten"] / 4
    # Batches do not mix images.
    alone = features(Lite0(), images.batch([5]))
    torch.testing.assert_close(alone, x[5:6], atol=1e-4, rtol=1e-4)
