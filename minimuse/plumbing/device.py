"""Which precision a device computes in, and where random numbers come from.

    with autocast("cuda"):                       # bfloat16 where it is fast, else float32
        logits = model(ids, context)
    generator = generator_at(seed, "base", step) # the same numbers on every run

Each function that draws random numbers takes a generator: in training one on the CPU, in drawing
one for each image, on the device of the model. Only the initial weights of models come from
PyTorch's global one, which `runs/stages.py` seeds for that purpose.
"""

import hashlib
from contextlib import AbstractContextManager

import torch


def autocast(device: str | torch.device, worth: bool = True) -> AbstractContextManager:
    """Compute in bfloat16 where the device is fast at it, else in float32.

    worth=False: stay in float32, for a caller whose matrices are too small to gain from bfloat16.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=worth and is_fast_at_bf16(device))


def is_fast_at_bf16(device: str | torch.device) -> bool:
    """True if this device multiplies bfloat16 matrices faster than those of float32."""
    kind = torch.device(device).type
    return kind == "cuda" or (kind == "cpu" and cpu_is_fast_at_bf16())


def cpu_is_fast_at_bf16() -> bool:
    """True if this CPU has instructions that multiply bfloat16 matrices: AMX or AVX512-BF16.

    PyTorch has no public function that tells, hence the private ones. The environment variable
    ATEN_CPU_CAPABILITY=avx2 makes PyTorch leave all 512-bit instructions alone.
    """
    if "512" not in torch.backends.cpu.get_cpu_capability():
        return False
    return cpu_has_amx() or torch.cpu._is_avx512_bf16_supported()


def cpu_has_amx() -> bool:
    """True if this CPU has AMX, a unit for products of bfloat16 matrices."""
    return torch.cpu._is_amx_tile_supported()


def stable_hash(text: str) -> int:
    """A 64-bit hash of a text that is the same in every process; Python's hash() is not."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8])


def generator_at(*key: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose seed depends on the key alone, such as (seed, stage, step)."""
    text = "/".join(str(part) for part in key)
    # 63 bits fit a signed number, too. Changing this would change every random number.
    return torch.Generator(device).manual_seed(stable_hash(text) >> 1)
