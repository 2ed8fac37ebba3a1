"""Compute in float32, whatever the caller has allowed PyTorch to do with float32 products.

    with full_precision("cuda"):
        ids = quantizer.nearest(latents)      # the same numbers wherever it is used

This file imports nothing of minimuse, so that every other file may use it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock

import torch

# How to read and to write a setting of PyTorch, and the value with which float32 is exact.
Setting = tuple[Callable, Callable, object]


@contextmanager
def full_precision(device: str | torch.device) -> Iterator[None]:
    """Compute in float32, so that what is frozen gives the same numbers wherever it is used.

    Autocast is off. So is what `torch.set_float32_matmul_precision("high")` and other settings
    allow: to multiply float32 numbers in TF32 or bfloat16. At the end they are as before.
    """
    kind = torch.device(device).type
    exact_products = EXACT_PRODUCTS.get(kind, nullcontext())
    with exact_products, torch.autocast(kind, enabled=False):
        yield


class ExactProducts:
    """A context in which products of float32 numbers are exact on one kind of device.

    The settings are global. So the first thread to enter changes them, and the last to leave
    restores them.
    """

    def __init__(self, settings: list[Setting]):
        self.settings = settings
        self.lock = Lock()
        self.users = 0
        self.changed: list[tuple[Callable, object]] = []  # how to write a setting, its old value

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            self.changed = []
            for read, write, exact in self.settings:
                value = read()
                if value not in (exact, "none"):
                    write(exact)
                    self.changed.append((write, value))

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for write, value in self.changed:
                    write(value)


def float32_settings(kind: str) -> list[Setting]:
    """PyTorch's settings of float32 products on this kind of device."""
    backends = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # PyTorch 2.9 and later
        owners = {
            "cuda": (backends.cuda.matmul, backends.cudnn.conv),
            "cpu": (backends.mkldnn.matmul, backends.mkldnn.conv),
        }
        return [attribute(owner, "fp32_precision", "ieee") for owner in owners[kind]]
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest")
    if kind == "cuda":
        return [matmul, attribute(backends.cudnn, "allow_tf32", False)]
    return [matmul]


def attribute(owner: object, name: str, exact: object) -> Setting:
    """The setting that an object has as an attribute."""
    return partial(getattr, owner, name), partial(setattr, owner, name), exact


# MPS has no such settings.
EXACT_PRODUCTS = {kind: ExactProducts(float32_settings(kind)) for kind in ("cpu", "cuda")}
