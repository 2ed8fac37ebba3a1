"""lessons/yours.py: the overture with a student's functions.

pytest tests/test_yours.py
"""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
from minimuse.checks.overture import first_fault
from solutions import lesson05, lesson06, lesson07

LESSONS = Path(__file__).parents[1] / "lessons"


def load(name):
    spec = importlib.util.spec_from_file_location(name, LESSONS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


yours = load("yours")


def right_functions():
    """A right solution of each exercise, in the place of a student's."""
    functions = {}
    for module in (lesson05, lesson06, lesson07):
        for name, solutions in module.RIGHT.items():
            functions[name] = solutions[0]
    return functions


def test_every_place_is_a_function_of_the_overture_and_every_name_an_exercise():
    overture = yours.load_overture()
    functions = right_functions()
    for name, (place, _) in yours.ADAPTERS.items():
        assert name in functions, f"{name} is no exercise"
        assert inspect.isfunction(getattr(overture, place))


@pytest.mark.parametrize("name", sorted(yours.ADAPTERS))
def test_right_functions_pass_the_checks_of_the_overture(name):
    overture = yours.load_overture()
    assert yours.put_in(overture, {name: right_functions()[name]}) == [name]
    assert first_fault(overture) is None


def test_a_wrong_function_in_its_place_is_found():
    """So the functions are really used."""
    wrong = {
        "hide": lambda ids, mask_id, generator: (ids, torch.zeros_like(ids, dtype=torch.bool)),
        "drop_captions": lambda visible, share, generator: visible,
        "masked_token_loss": lambda logits, ids, hidden: (logits.sum(), None),
        "guide": lambda cond, uncond, t: uncond,
    }
    for name, function in wrong.items():
        overture = yours.load_overture()
        yours.put_in(overture, {name: function})
        assert first_fault(overture) is not None, f"a wrong {name} changes nothing"


def test_attention_of_the_student_is_used():
    overture = yours.load_overture()
    q, k, v = torch.randn(3, 2, 8, 16, 12)
    bias = torch.randn(8, 16, 16)
    expected = overture.attend(q, k, v, bias)
    yours.put_in(overture, right_functions())
    assert torch.allclose(overture.attend(q, k, v, bias), expected, atol=1e-5)
    yours.put_in(overture, {"attend": lambda q, k, v, visible, bias: v})
    assert overture.attend(q, k, v, bias) is v


def test_functions_that_do_not_hold_are_left_out(monkeypatch, capsys):
    """The files in the repository are stubs: none of their functions is used."""
    monkeypatch.setattr(yours, "LESSONS", ("07",))
    assert yours.accepted_functions() == {}
    assert "0 of" in capsys.readouterr().out
