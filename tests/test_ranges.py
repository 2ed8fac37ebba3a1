"""Every number has a range, checked before anything is computed: `pytest tests/test_ranges.py`."""

import dataclasses
import json
import typing

import numpy as np
import pytest
import torch
from PIL import Image

from minimuse import edit
from minimuse.cli.evaluate import evaluate
from minimuse.cli.figures import sheet
from minimuse.data import ASSETS
from minimuse.datasets import load
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing.config import PRESETS, Config, Scale, Stage, from_json, override
from minimuse.plumbing.ranges import MAX_SEED, SETTINGS, later_seed, ranges_of
from minimuse.plumbing.t5_files import read_t5_config
from minimuse.runs import rehearsal
from minimuse.runs.rehearsal import check_trainable
from minimuse.runs.stages import STAGES
from minimuse.schedule import masked_after
from minimuse.superres import SuperResConfig
from minimuse.t5_frozen import T5Config
from minimuse.vq import TokenizerConfig
from minimuse.vq_loss import LossWeights

TINY = PRESETS["tiny"]
NAN, INF = float("nan"), float("inf")
# In no range of any number.
NEVER = [NAN, INF, -INF, 10**30, -(10**30), None, "x", True, [], (1, "x"), 1j]


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def dataclasses_of(kind):
    """A dataclass of settings and all that it holds."""
    yield kind
    for annotation in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(annotation):
            yield from dataclasses_of(annotation)


def settings_of(node, path=""):
    """(key, dataclass, name, annotation) of every setting of a configuration."""
    hints = typing.get_type_hints(type(node))
    for name, annotation in hints.items():
        value = getattr(node, name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", node, name, annotation


ALL = list(settings_of(TINY))
NUMBERS = [s for s in ALL if s[3] not in (str, bool)]


def test_every_setting_has_a_range():
    for kind in [*dataclasses_of(Config), T5Config]:
        plain = {
            name
            for name, annotation in typing.get_type_hints(kind).items()
            if not dataclasses.is_dataclass(annotation)
        }
        assert plain == set(ranges_of(kind)), kind
    assert len(ALL) > 100 and len(NUMBERS) > 80


@pytest.mark.parametrize("key, node, name, annotation", NUMBERS, ids=[s[0] for s in NUMBERS])
def test_values_that_are_in_no_range(key, node, name, annotation):
    """Given in Python, on the command line, or in a config.json."""
    is_tuple = annotation not in (int, float)
    wrong = [*NEVER, -1]
    if annotation is int:
        wrong.append(1.5)
    for value in wrong:
        if is_tuple:
            value = (value,) * max(1, len(getattr(node, name)))
        with pytest.raises(ValueError, match=rf"^{name} is .*, not .*(number|values)"):
            dataclasses.replace(node, **{name: value})
        with pytest.raises(ValueError, match=key):
            override(TINY, [f"{key}={value}"])
        nested = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        with pytest.raises(ValueError, match=key):
            from_json(merge(dataclasses.asdict(TINY), nested))


def merge(old, new):
    """Nested dicts with the values of `new` over those of `old`."""
    if not isinstance(new, dict):
        return new
    return old | {key: merge(old.get(key), value) for key, value in new.items()}


@pytest.mark.parametrize("key, node, name, annotation", ALL, ids=[s[0] for s in ALL])
def test_values_of_another_type(key, node, name, annotation):
    for value in (None, b"x", object(), {}, {"a": 1}):
        with pytest.raises(ValueError, match=f"^{name} is"):
            dataclasses.replace(node, **{name: value})


@pytest.mark.parametrize(
    "assignment, told",
    [
        ("stages.base.betas=1,1", "stages.base.betas is .*below 1"),
        ("stages.base.betas=0.9,0.9,0.9", "betas"),
        ("stages.base.weight_decay=-1", "stages.base.weight_decay is -1"),
        ("stages.base.weight_decay=2", "from 0 to 1"),
        ("stages.base.lr=0", "above 0"),
        ("stages.base.lr=1e999", "stages.base.lr is inf"),
        ("stages.decoder.warmup=1.5", "stages.decoder.warmup is 1.5"),
        ("stages.base.average_decay=1", "below 1"),
        ("tokenizer.codes=0", "tokenizer.codes is 0, not a whole number from 2"),
        ("tokenizer.codes=1", "tokenizer.codes is 1"),
        ("tokenizer.code_width=1", "tokenizer.code_width is 1; ema needs 2"),
        ("tokenizer.channels=0", "tokenizer.channels is 0"),
        ("tokenizer.multipliers=()", "tokenizer.multipliers is"),
        ("tokenizer.multipliers=1,0,2", "tokenizer.multipliers is"),
        ("tokenizer.blocks=1,-1,1", "tokenizer.blocks is"),
        ("base.width=0", "base.width is 0"),
        ("base.width=100000000", "base.width is 100000000"),
        ("base.layers=0", "base.layers is 0"),
        ("base.heads=3", "base.width is 32, not a multiple of 3 heads"),
        ("superres.window=-4", "superres.window is -4"),
        ("superres.encoder_layers=-3", "superres.encoder_layers is -3"),
        ("caption_dropout=2", "caption_dropout is 2"),
        ("loss.quantize_from=2", "loss.quantize_from is 2"),
        ("loss.quantize_from=0.95", "loss.quantize_from is 0.95, which leaves none of the 8"),
        ("loss.adversarial=-0.1", "loss.adversarial is -0.1"),
        ("scale.micro_batch=1.0", "scale.micro_batch"),
        ("sampling.temperature=nan", "sampling.temperature"),
        ("sampling.guidance=1e9", "sampling.guidance is 1000000000.0"),
        ("sampling.steps=1000000", "sampling.steps is 1000000, not a whole number from 1 to 10000"),
        ("sampling.guided=0.9,0.1", "sampling.guided is .*smaller fraction first"),
        ("sampling_hi.guided=0.9", "sampling_hi.guided"),
        ("decoder_channels=-8", "decoder_channels is -8"),
        ("decoder_blocks=0,0,0", "decoder_blocks is .*grows from"),
        ("decoder_blocks=1,2", "decoder_blocks"),
        ("scenes=1000000000", "scenes is 1000000000"),
    ],
)
def test_settings_out_of_range(assignment, told):
    with pytest.raises(ValueError, match=told):
        override(TINY, [assignment])


def test_levels_of_fsq():
    fsq = ["tokenizer.quantizer=fsq", "tokenizer.code_width=2", "tokenizer.codes=64"]
    assert override(TINY, [*fsq, "tokenizer.levels=8,8"]).tokenizer.levels == (8, 8)
    for levels in ("8,9", "64,1", "(64,)", "8,-8", "()", "4,4,4"):
        with pytest.raises(ValueError, match="tokenizer.levels is"):
            override(TINY, [*fsq, f"tokenizer.levels={levels}"])


def test_images_too_small_for_the_losses():
    """The discriminator and the perceptual network would fail in the middle of the training."""
    small = ["tokenizer.side=8", "tokenizer_hi.side=16"]
    with pytest.raises(ValueError, match="tokenizer.side is 8; the discriminator needs 12"):
        override(TINY, small)
    assert override(TINY, [*small, "loss.adversarial=0"]).tokenizer.side == 8
    with pytest.raises(ValueError, match="tokenizer.side is 8; the perceptual distance needs 16"):
        override(TINY, [*small, "loss.adversarial=0", "loss.perceptual=0.1"])


def test_numbers_of_numpy_are_plain_and_lists_are_tuples():
    """So that JSON can hold them, and settings have a hash."""
    sampling = Sampling(steps=np.int64(4), guidance=np.float32(2), guided=[0, 1])
    assert (type(sampling.steps), type(sampling.guidance)) == (int, float)
    assert sampling == Sampling(steps=4, guidance=2.0, guided=(0, 1))
    assert hash(sampling) == hash(Sampling(steps=4, guidance=2.0, guided=(0, 1)))
    with pytest.raises(ValueError, match="steps is"):
        Sampling(steps=np.float64(4))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_in_range(name):
    assert from_json(dataclasses.asdict(PRESETS[name])) == PRESETS[name]
    assert {kind.__name__ for kind in (Stage, Scale, TokenizerConfig)} <= SETTINGS.keys()
    assert {kind.__name__ for kind in (SuperResConfig, LossWeights)} <= SETTINGS.keys()


# --- Arguments ---
PICTURE = Image.new("RGB", (32, 32))
WRONG = {
    "n": [0, -1, 10**9, 1.0, NAN, None, "2", True],
    "seed": [2**64, -(2**63) - 1, 0.5, NAN, INF, None, "1", False],
    "batch": [0, -32, 1e3, 10**9, None],
    "iterations": [-1, 10**9, 1.5, None],
    "share": [0, -0.1, 1.1, NAN, INF, None, "x"],
    "pad": [(-1, 0, 3, 0), (1, 2), 8, None, (NAN,) * 4, (0.5,) * 4, (10**9, 0, 0, 0)],
    "side": [0, -8, 10**9, 32.0, None],
    "count": [0, -1, 10**12, 2.0],
    "columns": [0, -1],
    "cell": [0, -3, 10**9],
    "steps": [0, -1, 1.5, NAN],
    "masked": [-1, 0.5, None],
    "max_length": [0, -1, None],
}
CALLS = {
    "generate": (lambda muse, **a: muse.generate("x", **a), ("n", "seed")),
    "draw": (lambda muse, **a: muse.draw(["x"], **a), ("batch", "seed")),
    "steps": (lambda muse, **a: list(muse.steps(["x"], **a)), ("seed",)),
    "inpaint": (lambda muse, **a: edit.inpaint(muse, PICTURE, PICTURE, "x", **a), ("n", "seed")),
    "outpaint": (
        lambda muse, pad=(1, 0, 0, 0), **a: edit.outpaint(muse, PICTURE, "x", pad, **a),
        ("n", "seed", "pad"),
    ),
    "edit": (
        lambda muse, **a: edit.edit(muse, PICTURE, "x", **a),
        ("n", "seed", "iterations", "share"),
    ),
    "edits": (
        lambda muse, **a: list(edit.edits(muse, PICTURE, "x", **a)),
        ("n", "seed", "iterations", "share"),
    ),
    "finish": (
        lambda muse, **a: edit.finish(muse, PICTURE, "x", torch.zeros(1, 16).long(), **a),
        ("seed",),
    ),
    "load": (
        lambda muse, side=8, **a: load("shapes", "train", side, **{"count": 2} | a),
        ("side", "count", "seed"),
    ),
    "evaluate": (lambda muse, n: evaluate(muse, None, n), ("n",)),
    "sheet": (lambda muse, **a: sheet([], [], **a), ("columns", "cell")),
    "masked_after": (
        lambda muse, masked=4, steps=4: masked_after(masked, steps),
        ("masked", "steps"),
    ),
    "encode": (lambda muse, **a: muse.text.tokenizer.encode(["x"], **a), ("max_length",)),
}


@pytest.mark.parametrize("function", CALLS)
def test_arguments_out_of_range(muse, function):
    call, names = CALLS[function]
    for name in names:
        for value in WRONG[name]:
            with pytest.raises(ValueError, match=f"^{name} is"):
                call(muse, **{name: value})


@pytest.mark.parametrize("seed", [0, -1, -(2**63), 2**63, MAX_SEED, np.int64(3)])
def test_every_seed_that_pytorch_takes(muse, seed):
    assert len(muse.generate("x", 2, seed=seed)) == 2
    assert len(muse.draw(["x"] * 3, batch=1, seed=seed)[0]) == 3
    wide = edit.outpaint(muse, PICTURE, "x", (32, 0, 32, 0), seed=seed)[0]  # several windows
    assert wide.size == (96, 32)
    assert len(load("shapes", "train", 8, 2, seed)) == len(load("emoji", "train", 8, 2, seed)) == 2


def test_seeds_begin_again_after_the_largest():
    assert later_seed(3, 4) == 7
    assert later_seed(-3, 4) == 1
    assert later_seed(MAX_SEED, 1) == 0
    assert later_seed(MAX_SEED, 5) == 4


# --- Settings that are in range and do not fit ---
@pytest.mark.parametrize(
    "settings, error, told",
    [
        (["superres.window=3"], ValueError, "window"),
        (["superres.piece=3"], ValueError, "pieces"),
        (["superres.heads=1"], ValueError, "even number of heads"),
        (["base.width=16384", "base.layers=4"], MemoryError, "base has .* million parameters"),
        (["superres.width=16384"], MemoryError, "superres has .* million"),
        (["tokenizer.channels=4096", "tokenizer.multipliers=8,8,8"], MemoryError, "tokenizer has"),
        (["stages.base.batch=60000", "base.width=512"], MemoryError, "stages.base.batch is 60000"),
        (
            ["stages.decoder.batch=65536", "decoder_channels=64"],
            MemoryError,
            "stages.decoder.batch is 65536.*at most",
        ),
        (["scenes=10000000"], MemoryError, "scenes is 10000000.*at most"),
    ],
)
def test_what_does_not_fit_is_told_before_it_is_trained(monkeypatch, settings, error, told):
    monkeypatch.setattr(rehearsal, "memory_of", lambda device: 16e9)
    config = override(TINY, settings)
    with pytest.raises(error, match=told):
        check_trainable(config, STAGES, "shapes", "cpu")


def test_the_size_that_a_message_names_fits(monkeypatch):
    monkeypatch.setattr(rehearsal, "memory_of", lambda device: 1e9)
    with pytest.raises(MemoryError, match="at most") as error:
        check_trainable(override(TINY, ["stages.base.batch=65536"]), STAGES, "shapes", "cpu")
    fits = str(error.value).split("at most ")[1].split(",")[0]
    check_trainable(override(TINY, [f"stages.base.batch={fits}"]), STAGES, "shapes", "cpu")
    more = override(TINY, [f"stages.base.batch={int(fits) + 1}"])
    with pytest.raises(MemoryError):
        check_trainable(more, STAGES, "shapes", "cpu")
    # Smaller passes, or activations that are computed again
    for setting in ("scale.micro_batch=8", "scale.recompute=True"):
        at_once = override(TINY, ["stages.base.batch=65536", setting])
        check_trainable(at_once, ("base",), "shapes", "cpu")


@pytest.mark.parametrize("name", ["tiny", "toy", "demo", "small"])
def test_presets_fit_into_8_gb(monkeypatch, name):
    """What is kept of a batch counts as half of what it takes in float32: never too much."""
    monkeypatch.setattr(rehearsal, "memory_of", lambda device: 8e9)
    check_trainable(PRESETS[name], STAGES, "emoji", "cpu")


@pytest.mark.parametrize("name", ["num_layers", "num_heads", "d_ff"])
def test_a_text_encoder_out_of_range(tmp_path, name):
    values = json.loads((ASSETS / "t5-toy" / "config.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values | {name: 2_000_000_000}))
    with pytest.raises(ValueError, match=f"config.json: {name} is 2000000000, not a whole number"):
        read_t5_config(path)
