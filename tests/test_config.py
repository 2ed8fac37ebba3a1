"""Presets, overrides and JSON: `pytest tests/test_config.py`."""

import dataclasses
import json
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minimuse.plumbing.config import PRESETS, Config, from_json, override

TINY = PRESETS["tiny"]


def leaves(node, path=""):
    """Yield ("base.width", 32) and so on, for all plain values."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        name = f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    settings = PRESETS[name]
    text = json.dumps(asdict(settings))
    again = from_json(json.loads(text))
    assert again == settings
    assert json.dumps(asdict(again)) == text
    assert {type(v) for _, v in leaves(again)} == {type(v) for _, v in leaves(settings)}


def test_a_key_that_is_left_out_has_its_default():
    values = json.loads(json.dumps(asdict(TINY)))
    del values["scale"], values["stages"]["base"]["optimizer"]
    assert from_json(values) == TINY


def test_presets():
    for settings in PRESETS.values():
        low, high = settings.tokenizer, settings.tokenizer_hi
        assert high.grid == 2 * low.grid * low.factor // high.factor
        piece = settings.superres.piece or high.grid
        window = settings.superres.window or piece
        assert high.grid % piece == 0 and piece % window == 0
        assert settings.decoder.channels == high.channels
        assert settings.decoder.decoder_channels == settings.decoder_channels


def test_override():
    assignments = [
        "base.width=64",
        "stages.base.lr=1",
        "sampling.ramp=False",
        "tokenizer.blocks=(2, 1, 1)",
        "sampling.law=linear",
        "scenes=5",
    ]
    changed = override(TINY, assignments)
    assert changed.base.width == 64
    assert changed.stages.base.lr == 1.0 and isinstance(changed.stages.base.lr, float)
    assert changed.sampling.ramp is False
    assert changed.tokenizer.blocks == (2, 1, 1)
    assert changed.sampling.law == "linear"
    assert changed.scenes == 5
    before, after = dict(leaves(TINY)), dict(leaves(changed))
    assert before.keys() == after.keys()
    changes = {key for key in before if before[key] != after[key]}
    assert changes == {
        "base.width",
        "stages.base.lr",
        "sampling.ramp",
        "tokenizer.blocks",
        "sampling.law",
        "scenes",
    }


def test_override_with_nothing_or_twice():
    assert override(TINY, []) == TINY
    # The last assignment of a key counts.
    assert override(TINY, ["base.width=64", "base.width=32"]) == TINY


@given(st.sampled_from(list(leaves(TINY))))
def test_every_value_can_be_overridden_with_itself(leaf):
    key, value = leaf
    assert override(TINY, [f"{key}={value}"]) == TINY


@pytest.mark.parametrize(
    "assignment, message",
    [
        ("base.width", "key=value"),
        ("base.wdith=3", "'base.wdith'.*width, layers, heads"),
        ("bse.width=3", "'bse'.*tokenizer"),
        ("=3", "''"),
        ("base=3", "group of settings"),
        ("base.width.x=3", "base.width={'x': 3}: expected int"),
        ("base.width=64.0", "base.width=64.0.*int"),
        ("base.width=wide", "base.width=wide.*int"),
        ("base.width=True", "base.width=True.*int"),
        ("base.width=9999999999", "base.width is 9999999999, not a whole number from 1 to 16384"),
        ("stages.base.lr=9999999999", "stages.base.lr is 9999999999.0, not a number above 0"),
        ("base.width=", "base.width=.*int"),
        ("stages.base.lr=fast", "stages.base.lr=fast.*float"),
        ("stages.base.lr=True", "float"),
        ("sampling.ramp=1", "bool"),
        ("tokenizer.blocks=2", "tuple"),
        ("tokenizer.blocks=[1, 1.5, 1]", "tuple"),
        ("base.width=33", "33.*2 heads"),
        ("stages.base.steps=0", "stages.base.steps is 0, not a whole number from 1"),
        ("stages.base.averages=0", "stages.base.averages is 0"),
        ("stages.base.optimizer=sgd", "'sgd'"),
        ("scale.micro_batch=-1", "scale.micro_batch is -1"),
        ("base.heads=0", "base.heads is 0"),
        ("base={1: 2}", "base.1"),
        ("sampling.law=circle", "'circle'"),
        ("sampling.steps=0", "sampling.steps is 0"),
        ("scenes=1", "scenes is 1"),
        ("tokenizer.blocks=(1, 1)", "one length"),
        ("base.width=__import__('os').getcwd()", "int"),
    ],
)
def test_wrong_overrides(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(TINY, [assignment])


@given(st.sampled_from([k for k, _ in leaves(TINY)] + ["base", "x", ""]), st.text(max_size=8))
@example("base.width", "((((")
@example("base.width", "\0")
@example("base.width", "{[]: 1}")
def test_any_text_is_a_value_or_a_value_error(key, text):
    try:
        changed = override(TINY, [f"{key}={text}"])
    except ValueError:
        return
    assert isinstance(changed, Config)


def test_settings_that_belong_together_can_be_changed_together():
    """Each alone contradicts another: sides of the two tokenizers, lengths of two tuples."""
    larger = override(TINY, ["tokenizer.side=32", "tokenizer_hi.side=64"])
    assert larger.tokenizer.side == 32 and larger.tokenizer_hi.side == 64
    shallow = override(TINY, ["tokenizer.multipliers=(1, 2)", "tokenizer.blocks=(1, 1)"])
    assert shallow.tokenizer.factor == 2


@pytest.mark.parametrize(
    "assignment",
    [
        "tokenizer.blocks=('a', 'b', 'c')",
        "stages.base.betas=(0.9,)",
        "stages.base.betas=(0.9, 'x')",
        "decoder_blocks=(1.5, 2, 2)",
    ],
)
def test_elements_of_tuples_are_checked_too(assignment):
    with pytest.raises(ValueError, match=assignment.split("=")[0]):
        override(TINY, [assignment])


def test_wrong_json():
    def broken(change):
        values = json.loads(json.dumps(asdict(TINY)))
        change(values)
        return values

    for change, message in [
        (lambda d: d.pop("base"), "base"),
        (lambda d: d["base"].pop("width"), "'base.width'"),
        (lambda d: d["base"].update(wdith=3), "wdith"),
        (lambda d: d.update(base=3), "base=3: expected a group of settings, width"),
        (lambda d: d["base"].update(width="32"), "base.width=32: expected int"),
        (lambda d: d["stages"]["base"].update(betas=[0.9]), "stages.base.betas"),
        (lambda d: d["stages"]["base"].update(steps=0), "stages.base.steps is 0"),
        (lambda d: d["tokenizer_hi"].update(side=16), "16.*16"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_json(broken(change))
    with pytest.raises(ValueError, match="expected a group of settings"):
        from_json([])


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.base.width = 3
    assert isinstance(hash(TINY), int)
