"""Say where a result differs from what is expected: at which index, and by what.

A list of 39 numbers beside another list of 39 numbers hides the one that differs.
"""

import numpy as np
import torch


def assert_same(result, expected, case: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Raise an AssertionError that names the first difference, unless both are equal."""
    text = difference(result, expected, rtol, atol)
    if text:
        raise AssertionError(f"{case}: {text}")


def difference(result, expected, rtol: float = 0.0, atol: float = 0.0) -> str:
    """The first place where two numbers, nested lists, arrays or tensors differ; "" if nowhere."""
    result, expected = as_array(result), as_array(expected)
    if result.shape != expected.shape:
        return f"the shape is {result.shape}, not {expected.shape}"
    same = np.isclose(result, expected, rtol=rtol, atol=atol, equal_nan=True)
    if same.all():
        return ""
    wrong = np.argwhere(~same)
    first = tuple(wrong[0].tolist())
    text = f"{shown(result[first])}, where {shown(expected[first])} is expected"
    if not first:
        return text
    if same.size == 1:
        return f"at index {', '.join(map(str, first))}: {text}"
    text = f"at index {', '.join(map(str, first))}: {text}"
    if len(wrong) == 1:
        return f"{text}; the other {same.size - 1} of {same.size} numbers are right"
    return f"{text}; {len(wrong)} of {same.size} numbers differ"


def as_array(x) -> np.ndarray:
    if torch.is_tensor(x):
        x = x.detach().cpu()
        if x.is_floating_point():
            x = x.double()
    return np.asarray(x)


def shown(number) -> str:
    """A number as short as it can be told apart."""
    value = number.item() if hasattr(number, "item") else number
    return f"{value:.7g}" if isinstance(value, float) else str(value)
