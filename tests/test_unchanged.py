"""A seed draws what it drew before the redesign: `pytest tests/test_unchanged.py`.

Each test hashes many values and compares with a hash that was computed before the code was
rewritten for readability. A change here means that a seed no longer gives the same batches, masks,
splits, captions or decoding steps: trained weights and published figures could not be made again.

Only integers and text are hashed. Floats differ in their last bits between kinds of CPU, because
vector instructions and matrix libraries round in a different order; a hash of floats would fail on
every other machine. `tests/bench/before_after.py` compares floats, on one machine.
"""

import hashlib
import json
from collections.abc import Iterable

import torch
from PIL import Image

from minimuse import schedule
from minimuse.data import ASSETS
from minimuse.datasets import load, shapes
from minimuse.datasets.emoji import STYLES, emoji_captions, split_of
from minimuse.maskgit import hide
from minimuse.train import batch_at


def hash_of_integers(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of the values as little-endian int64, one tensor after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.to(torch.int64).numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def hash_of_text(lines: Iterable[str]) -> str:
    """SHA-256 of the lines, joined by newlines, in UTF-8."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_json(name: str) -> dict:
    return json.loads((ASSETS / "emoji" / name).read_text())


def test_batches():
    """The first ten batches of two seeds and two stages. With 100 images they cross an epoch."""
    batches = []
    for seed in (0, 1):
        for stage in ("tokenizer", "base"):
            for step in range(10):
                batches.append(batch_at(seed, stage, step, batch=16, size=100))
    expected = "f569e098231255ce9bb1a065a1be8b3c8ca16e2796514a29e9d28532273fe565"
    assert hash_of_integers(batches) == expected


def test_masks():
    """Which tokens training hides: every schedule, two grids, one generator for all."""
    generator = torch.Generator().manual_seed(0)
    masks = []
    for law in schedule.LAWS:
        for tokens in (16, 256):
            ids = torch.zeros(32, tokens, dtype=torch.int64)
            _, hidden = hide(ids, 512, generator, law)
            masks.append(hidden)
    expected = "3d26312aeea322a8b4914b608940ef11a390d45ecf01ecb14166a0c6f2685834"
    assert hash_of_integers(masks) == expected


def test_reveal_counts():
    """How many tokens stay masked after each step: every schedule, several N and S."""
    counts = []
    for law in schedule.LAWS:
        for tokens in (0, 1, 7, 16, 64, 256, 1024):
            for steps in (1, 2, 3, 8, 12, 24, 36, 300):
                counts.append(torch.tensor(schedule.masked_after(tokens, steps, law)))
    expected = "74e1de8916452702f666a4f8313d16c6ee0d1c328a94215c8feb8df1b3d76f91"
    assert hash_of_integers(counts) == expected


def test_splits_of_the_emoji():
    """The split of every concept in every style, also where a style lacks the concept."""
    index = read_json("index.json")
    concepts = set()
    for style in STYLES:
        concepts |= index[style]["blobs"].keys()
    lines = []
    for concept in sorted(concepts):
        for style in STYLES:
            lines.append(f"{concept} {style} {split_of(concept, style)}")
    expected = "dadb9e32246d7011337ce18534c5c28c59ddb61d61c5be7b8c41d533d574e471"
    assert hash_of_text(lines) == expected


def test_choice_of_some_emoji():
    """Which images a count chooses, and in which order, for two seeds and each split."""
    names = []
    for split in ("train", "heldout", "heldout-concept"):
        for seed in (0, 1):
            names += load("emoji", split, 16, count=50, seed=seed).names
    expected = "b439e031b38dbaffe5e6f80c651763f9ea09ce4eecbc19bd24d449638cf9658c"
    assert hash_of_text(names) == expected


def test_splits_of_a_folder(tmp_path):
    """Which of 60 images are held out follows from their names."""
    for i in range(60):
        Image.new("RGB", (8, 8)).save(tmp_path / f"image-{i}.png")
        (tmp_path / f"image-{i}.txt").write_text("a black square")
    train = load(str(tmp_path), "train", 8).names
    heldout = load(str(tmp_path), "heldout", 8).names
    expected = "00eb5d30bc46a4c6096abff767ef1b62644d2883fae36c8a6363cb0693b84d6c"
    assert hash_of_text([*train, "heldout:", *heldout]) == expected


def test_captions_of_scenes():
    """200 seeds of each split: shapes, colours, sizes, numbers, relations and backgrounds."""
    captions = []
    for split in shapes.SPLITS:
        for seed in range(200):
            captions.append(shapes.caption(shapes.scene(seed, split)))
    expected = "264296c1b6c938c2d0dd5f3ec0bd3ad00d7a11c4a58e08032091bbccab0baab8"
    assert hash_of_text(captions) == expected


def test_scenes_of_each_split():
    """Which scene numbers a seed gives to each split, and their captions."""
    lines = []
    for split in ("train", "validation", "heldout"):
        for seed in (0, 1):
            images = load("shapes", split, 8, count=20, seed=seed)
            for name, captions in zip(images.names, images.captions, strict=True):
                lines.append(f"{name}: {' | '.join(captions)}")
    expected = "b0d6b1fd04e104a63438fb81282cc1c1a76690bc00c4d1e8de5037de33513da3"
    assert hash_of_text(lines) == expected


def test_captions_of_emoji():
    """All captions of every emoji in every style, and the first eight, which are older."""
    index = read_json("index.json")
    words = read_json("captions.json")
    first, every = [], []
    for style in STYLES:
        for concept, (_, _, colour) in index[style]["blobs"].items():
            captions = emoji_captions(words[concept], style, colour)
            first += captions[:8]
            every += captions
    expected = "862160c0d5c4c7d2d9a1c1efb982d570dd59f64522c42527a46a5252617c7c79"
    assert hash_of_text(first) == expected
    expected = "c82a176e7aad76ebb8571362b3d5dd60b3cfccefd3bddbf54d284ac19651d000"
    assert hash_of_text(every) == expected
