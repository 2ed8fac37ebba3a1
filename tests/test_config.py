"""Presets, overriding and JSON: `pytest tests/test_config.py`."""

import dataclasses
import json
from dataclasses import asdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minimuse.plumbing.config import PRESETS, Config, from_json, override

TINY = PRESETS["tiny"]


def leaves(node, path=""):
    """("base.width", 32) and so on, of all plain values."""
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    settings = PRESETS[name]
    text = json.dumps(asdict(settings))
    assert (
        from_json(json.loads(text)) == settings
        and json.dumps(asdict(from_json(json.loads(text)))) == text
    )
    assert {type(v) for _, v in leaves(from_json(json.loads(text)))} == {
        type(v) for _, v in leaves(settings)
    }


def test_what_is_left_out_has_its_default():
    data = json.loads(json.dumps(asdict(TINY)))
    del data["scale"], data["stages"]["base"]["optimizer"]
    assert from_json(data) == TINY


def test_presets():
    for settings in PRESETS.values():
        assert (
            settings.tokenizer_hi.grid
            == 2
            * settings.tokenizer.grid
            * settings.tokenizer.factor
            // settings.tokenizer_hi.factor
        )
        piece = settings.superres.piece or settings.tokenizer_hi.grid
        assert (
            settings.tokenizer_hi.grid % piece == 0
            and piece % (settings.superres.window or piece) == 0
        )
        assert (
            settings.decoder.channels == settings.tokenizer_hi.channels
            and settings.decoder.decoder_channels == settings.decoder_channels
        )


def test_override():
    given_ = [
        "base.width=64",
        "stages.base.lr=1",
        "sampling.ramp=False",
        "tokenizer.blocks=(2, 1, 1)",
        "sampling.law=linear",
        "scenes=5",
    ]
    changed = override(TINY, given_)
    assert (
        changed.base.width == 64
        and changed.stages.base.lr == 1.0
        and isinstance(changed.stages.base.lr, float)
    )
    assert (
        changed.sampling.ramp is False
        and changed.tokenizer.blocks == (2, 1, 1)
        and changed.sampling.law == "linear"
        and changed.scenes == 5
    )
    changes = {k for (k, a), (_, b) in zip(leaves(TINY), leaves(changed)) if a != b}
    assert changes == {
        "base.width",
        "stages.base.lr",
        "sampling.ramp",
        "tokenizer.blocks",
        "sampling.law",
        "scenes",
    }
    assert (
        override(TINY, []) == TINY and override(TINY, ["base.width=64", "base.width=32"]) == TINY
    ), "the last one counts"


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
        ("base.width=", "base.width=.*int"),
        ("stages.base.lr=fast", "stages.base.lr=fast.*float"),
        ("stages.base.lr=True", "float"),
        ("sampling.ramp=1", "bool"),
        ("tokenizer.blocks=2", "tuple"),
        ("tokenizer.blocks=[1, 1.5, 1]", "tuple"),
        ("base.width=33", "33.*2 heads"),
        ("stages.base.steps=0", "steps 0"),
        ("stages.base.averages=0", "averages 0"),
        ("stages.base.optimizer=sgd", "'sgd'"),
        ("scale.micro_batch=-1", "scale.micro_batch -1"),
        ("base.heads=0", "0 heads"),
        ("base={1: 2}", "base.1"),
        ("sampling.law=circle", "'circle'"),
        ("sampling.steps=0", "steps is 0"),
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
    """Each alone contradicts another: the sides of the two tokenizers, the lengths of two tuples."""
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
        data = json.loads(json.dumps(asdict(TINY)))
        change(data)
        return data

    for change, message in [
        (lambda d: d.pop("base"), "base"),
        (lambda d: d["base"].pop("width"), "'base.width'"),
        (lambda d: d["base"].update(wdith=3), "wdith"),
        (lambda d: d.update(base=3), "base=3: expected a group of settings, width"),
        (lambda d: d["base"].update(width="32"), "base.width=32: expected int"),
        (lambda d: d["stages"]["base"].update(betas=[0.9]), "stages.base.betas"),
        (lambda d: d["stages"]["base"].update(steps=0), "steps 0"),
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
