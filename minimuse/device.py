import hashlib
from contextlib import AbstractContextManager

import torch


def stable_hash(text: str) -> int:
    """An even spread over the integers that is the same everywhere (Python's hash() is not)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def autocast(device: str | torch.device, worth: bool = True) -> AbstractContextManager:
    """bf16 where it is `worth` it and the device is fast at it (CUDA; CPUs with AMX or AVX512-BF16, unless ATEN_CPU_CAPABILITY=avx2), else fp32."""
    kind, capability = torch.device(device).type, torch.backends.cpu.get_cpu_capability()
    fast = kind == "cuda" or (
        kind == "cpu"
        and "512" in capability
        and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    )
    return torch.autocast(kind, torch.bfloat16, enabled=worth and fast)


def generator_at(*key) -> torch.Generator:
    """A CPU generator that depends on the key alone."""
    return torch.Generator().manual_seed(stable_hash("/".join(map(str, key))) >> 1)
