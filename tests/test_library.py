"""minimuse in a program of one's own: what is held, what is saved, and what the process keeps.

pytest tests/test_library.py
"""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save_file

from minimuse.data import ASSETS
from minimuse.muse import Muse
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import PARTS, save_part
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import STAGES, train_all

PROMPT = "a small red circle on a grey background"


@pytest.fixture
def muse(tiny_model):
    return Muse.load(tiny_model)


def other(part):
    """Another part of the same size."""
    changed = deepcopy(part)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(-0.5)
    return changed


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)


def drawn(muse):
    return muse.generate(PROMPT, 2, seed=3)[0].tobytes()


# --- A model holds each part, and its settings, once ---
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_assigned_is_drawn_with_and_saved(muse, tmp_path, name):
    part = other(getattr(muse, name))
    setattr(muse, name, part)
    assert muse.parts[name] is part
    muse.save(tmp_path)
    again = Muse.load(tmp_path)
    assert same_weights(getattr(again, name), part)
    assert drawn(again) == drawn(muse)


def test_parts_are_replaced_by_their_attribute_only(muse):
    with pytest.raises(TypeError):
        muse.parts["base"] = other(muse.base)


def test_settings_that_are_assigned_are_saved(muse, tmp_path):
    muse.config = replace(muse.config, sampling=replace(muse.config.sampling, steps=1))
    muse.save(tmp_path)
    assert Muse.load(tmp_path).config == muse.config
    assert Muse.load(tmp_path).config.sampling.steps == 1


def test_what_is_saved_is_what_was_loaded(muse, tiny_model, tmp_path):
    muse.save(tmp_path)
    assert Muse.load(tmp_path).about == muse.about


# --- What a model is made of ---
def test_a_model_of_wrong_things_is_refused(muse):
    config, text, parts, about = muse.config, muse.text, dict(muse.parts), muse.about
    with pytest.raises(ValueError, match="^parts lacks tokenizer, .*decoder"):
        Muse(config, text, {"base": muse.base}, about)
    with pytest.raises(ValueError, match="^config is .*not a Config"):
        Muse(about["config"], text, parts, about)
    for wrong in ({}, {"config": {}}, None, {**about, "seed": None}):
        with pytest.raises(ValueError, match="^about is not that of a model"):
            Muse(config, text, parts, wrong)


@pytest.mark.parametrize(
    "changed",
    [
        {"tokenizer": {"codes": 32}},
        {"tokenizer_hi": {"codes": 32}},
        {"tokenizer": {"side": 32}, "tokenizer_hi": {"side": 64}},
    ],
)
def test_parts_of_another_model_are_refused(muse, changed):
    tokenizers = {}
    for name, settings in changed.items():
        tokenizers[name] = replace(getattr(muse.config, name), **settings)
    config = replace(muse.config, **tokenizers)
    with pytest.raises(ValueError, match="of another model"):
        Muse(config, muse.text, muse.parts, muse.about)


# --- The process ---
STATE = """
import os, sys, threading, warnings
import torch
environment, filters = dict(os.environ), list(warnings.filters)
from PIL import Image
from minimuse import Muse, edit
muse = Muse.load(sys.argv[1])
image = muse.generate("a small red circle")[0]
edit.edit(muse, image, "a small red circle", 1)
muse.save(sys.argv[2])
from minimuse.datasets import load
load("shapes", "train", 16, 4)
print({k: v for k, v in os.environ.items() if environment.get(k) != v})
print([thread.name for thread in threading.enumerate()])
print([f for f in warnings.filters if f not in filters])
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


def test_loading_and_drawing_leave_the_process_as_it_was(tiny_model, tmp_path):
    """No variable, no thread (a process that has some cannot fork safely), and no compiler."""
    command = [sys.executable, "-W", "ignore", "-c", STATE, str(tiny_model), str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{}", "['MainThread']", "[]", "[]"]


LEFT_ALONE = """
import sys
from minimuse import Muse
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import STAGES, train_all
steps = Muse.load(sys.argv[1]).steps(["a small red circle"])
next(steps)
text = load_t5("t5-toy")
records = train_all(STAGES, sys.argv[2], PRESETS["tiny"], "shapes", text, "t5-toy")
next(records)
# A circle, which Python collects only when it ends.
circle = [steps, records]
circle.append(circle)
"""


def test_a_script_may_end_with_iterators_left_alone(tiny_model, tmp_path):
    """Without "Exception ignored in ..." on the screen."""
    command = [sys.executable, "-c", LEFT_ALONE, str(tiny_model), str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


# --- Damaged files of weights ---
def nan(tensors, key):
    tensors[key] = tensors[key] * float("nan")


def flatten_scale(tensors, key):
    tensors[key + "/scale"] = tensors[key + "/scale"].flatten()


def shorten_scale(tensors, key):
    tensors[key + "/scale"] = tensors[key + "/scale"][:1]


DAMAGE = {
    "no scale": lambda tensors, key: tensors.pop(key + "/scale"),
    "flat scale": flatten_scale,
    "one scale": shorten_scale,
    "NaN in a scale": lambda tensors, key: nan(tensors, key + "/scale"),
    "a scale of nothing": lambda tensors, key: tensors.update({"foo/scale": torch.ones(1)}),
    "a scale of floats": lambda tensors, key: tensors.update({key: tensors[key].float()}),
    "other integers": lambda tensors, key: tensors.update({key: tensors[key].short()}),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", ["base", "decoder"])
def test_damaged_integers(muse, tmp_path, name, kind):
    muse.save(tmp_path, torch.int8)
    path = tmp_path / f"{name}.safetensors"
    tensors = load(path.read_bytes())  # copies, since the file is written again
    key = next(key for key in tensors if key + "/scale" in tensors)
    DAMAGE[kind](tensors, key)
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=rf"{path} is damaged \(.*{'foo' if 'nothing' in kind else key}"
    ):
        Muse.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(muse, tmp_path, value):
    muse.save(tmp_path)
    for name in PARTS:
        path = tmp_path / f"{name}.safetensors"
        whole = load(path.read_bytes())
        key = sorted(whole)[-1]
        damaged = dict(whole)
        damaged[key] = whole[key].clone()
        damaged[key].view(-1)[-1] = value
        save_file(damaged, path)
        with pytest.raises(ValueError, match=rf"{path} is damaged \({key} is not finite\)"):
            Muse.load(tmp_path)
        save_file(whole, path)
    Muse.load(tmp_path)


@pytest.mark.parametrize("name", ["toy", "toy-shapes", "one-pass"])
def test_what_ships_is_whole(name):
    assert (ASSETS / name / "base.safetensors").is_file()
    Muse.load(name)


def with_rest(directory, rest):
    """A model directory that has a base model alone, and names another model for the rest."""
    shipped = ASSETS / "toy-shapes"
    directory.mkdir()
    (directory / "base.safetensors").write_bytes((shipped / "base.safetensors").read_bytes())
    about = json.loads((shipped / "config.json").read_text()) | {"rest": rest}
    (directory / "config.json").write_text(json.dumps(about))
    return directory


def test_the_rest_of_a_model_is_that_of_another(tmp_path):
    muse = Muse.load(with_rest(tmp_path / "base-alone", "toy-shapes"))
    whole = Muse.load("toy-shapes")
    for name, part in muse.parts.items():
        for key, tensor in part.state_dict().items():
            assert torch.equal(tensor, whole.parts[name].state_dict()[key]), f"{name}: {key}"
    muse.save(tmp_path / "saved")
    assert "rest" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert all((tmp_path / "saved" / f"{name}.safetensors").is_file() for name in PARTS)


@pytest.mark.parametrize("rest", ["nowhere", "../toy-shapes", "", 3])
def test_a_rest_that_does_not_ship(tmp_path, rest):
    with pytest.raises(ValueError, match="config.json.*rest is .*no such model ships"):
        Muse.load(with_rest(tmp_path / "model", rest))


# --- Directories ---
def test_a_directory_has_a_name(muse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for empty in ("", " "):
        with pytest.raises(ValueError, match="^directory is empty; give a path"):
            muse.save(empty)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^directory is 'file', a file; give a directory"):
        muse.save("file")
    muse.save("~/model")
    assert (tmp_path / "home" / "model" / "config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"file", "home"}
    assert Muse.load("~/model").about == muse.about
    with pytest.raises(FileNotFoundError, match="config.json.*; give the directory of a model"):
        Muse.load("home/model/config.json")


# --- Training ---
@pytest.fixture(scope="module")
def text():
    return load_t5("t5-toy")


def start(encoder, **changed):
    """Begin to train; returns nothing, since it must fail."""
    arguments = {
        "stages": ("tokenizer",),
        "out": Path("new"),
        "config": PRESETS["tiny"],
        "data": "shapes",
        "text": encoder,
        "text_name": "t5-toy",
    }
    next(train_all(**(arguments | changed)))


@pytest.mark.parametrize(
    "changed, words",
    [
        *[({"seed": seed}, "^seed is") for seed in (None, 1.5, "x", True, float("nan"), 2**64)],
        ({"stages": "tokenizer"}, "^stages is 'tokenizer', not a tuple of names"),
        ({"stages": None}, "^stages is None"),
        ({"stages": ("foo",)}, "^stages has 'foo'; there is tokenizer, tokenizer_hi, base"),
        ({"stages": ("tokenizer-hi",)}, "^stages has 'tokenizer-hi'; there is tokenizer"),
        ({"stages": STAGES[::-1]}, "^stages are .*in this order, each once"),
        ({"stages": ("tokenizer", "tokenizer")}, "^stages are .*in this order, each once"),
        ({"config": "tiny"}, "^config is 'tiny', not a Config"),
        ({"config": asdict(PRESETS["tiny"])}, "^config is .*not a Config"),
        ({"text": "t5-toy"}, "^text is 't5-toy', not a text encoder; load_t5"),
        ({"data": None}, "^data is None"),
        ({"out": None}, "^out is None"),
        ({"text_name": None}, "^text_name is None"),
        ({"device": "foo"}, "^device is 'foo'"),
        ({"resume": "no"}, "^resume is 'no', not True or False"),
    ],
)
def test_what_cannot_be_trained(text, tmp_path, monkeypatch, changed, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        start(text, **changed)
    assert not list(tmp_path.iterdir())


def test_a_text_encoder_that_is_not_there(text, tmp_path, monkeypatch):
    """The model would be trained, and not loaded."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="nope"):
        start(text, text_name="/nope")
    assert not list(tmp_path.iterdir())


def test_a_path_and_a_seed_of_other_types(text, tmp_path):
    """A text is a path, and numpy's whole numbers are numbers."""
    start(text, out=str(tmp_path / "new"), seed=np.int64(3))
    assert (tmp_path / "new" / "config.json").is_file()


def test_a_part_alone_is_checked_too(muse, tmp_path):
    with pytest.raises(ValueError, match="^dtype"):
        save_part(tmp_path, "base", muse.base, torch.uint8)
