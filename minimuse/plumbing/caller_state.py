"""What a caller has set in PyTorch neither changes what minimuse computes, nor is changed by it.

    @in_usual_state
    def generate(...): ...

Inside the decorated function PyTorch is as it starts: numbers are float32, new tensors are on the
CPU, and autocast and inference mode are off. A generator function is in that state only while it
runs: between two of its items the caller has its own state back.

Whether gradients are on is left alone, and so are the number of threads, the random numbers, and
settings that make operations deterministic. The default dtype is one for the whole process: a
thread that computes meanwhile finds it float32, too, so it should name its own dtypes.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps")

Function = TypeVar("Function", bound=Callable[..., Any])


def in_usual_state(function: Function) -> Function:
    """Decorate a function, or a generator function, to run in PyTorch's usual state."""
    if inspect.isgeneratorfunction(function):
        return wraps(function)(lambda *args, **kwargs: step_by_step(function(*args, **kwargs)))

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with usual_state():
            return function(*args, **kwargs)

    return call


def step_by_step(generator: Iterator) -> Iterator:
    """Yield the items of a generator, which runs in PyTorch's usual state."""
    try:
        while True:
            with usual_state():
                try:
                    item = next(generator)
                except StopIteration:
                    return
            yield item
    finally:
        # When Python ends, it collects what is left alone, and parts of PyTorch are gone by then.
        if not sys.is_finalizing():
            with usual_state():
                generator.close()


@contextmanager
def usual_state() -> Iterator[None]:
    """Set what a caller may have set to what it is when PyTorch starts; at the end, restore it."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())  # as it is in inference mode
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        yield
