"""Which precision a device computes in, and where random numbers come from.

    with autocast("cuda"):                       # bfloat16 where it is fast, else float32
        logits = model(ids, context)
    with full_precision("cuda"):                 # float32, whatever the caller has set
        ids = quantizer.nearest(latents)
    generator = generator_at(seed, "base", step) # the same numbers on every run

Each function that draws random numbers takes a generator, on the CPU. Only the initial weights of
models come from PyTorch's global one, which `runs/stages.py` seeds for that purpose.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock

import torch

# How to read and to write a setting of PyTorch, and the value with which float32 is exact.
Setting = tuple[Callable, Callable, object]


def autocast(device: str | torch.device, worth: bool = True) -> AbstractContextManager:
    """Compute in bfloat16 where the device is fast at it, else in float32.

    worth=False: stay in float32, for a caller whose matrices are too small to gain from bfloat16.
    """
    kind = torch.device(device).type
    fast = kind == "cuda" or (kind == "cpu" and cpu_is_fast_at_bf16())
    return torch.autocast(kind, torch.bfloat16, enabled=worth and fast)


def cpu_is_fast_at_bf16() -> bool:
    """True if this CPU has instructions that multiply bfloat16 matrices: AMX or AVX512-BF16.

    PyTorch has no public function that tells, hence the private ones. The environment variable
    ATEN_CPU_CAPABILITY=avx2 makes PyTorch leave all 512-bit instructions alone.
    """
    if "512" not in torch.backends.cpu.get_cpu_capability():
        return False
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


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


def stable_hash(text: str) -> int:
    """A 64-bit hash of a text that is the same in every process; Python's hash() is not."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def generator_at(*key: object) -> torch.Generator:
    """A CPU generator whose seed depends on the key alone, such as (seed, stage, step)."""
    text = "/".join(str(part) for part in key)
    # manual_seed takes signed 64-bit numbers: drop one of the hash's 64 bits.
    return torch.Generator().manual_seed(stable_hash(text) >> 1)
