"""`minimuse --version`: what a report of a fault should say of the machine, in a few lines."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from minimuse.plumbing.device import cpu_is_fast_at_bf16

PACKAGES = ("numpy", "pillow", "einops", "tqdm", "sentencepiece", "safetensors", "filelock")


class Version(argparse.Action):
    """An action of argparse that prints the versions and exits."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print("\n".join(version_lines()))
        parser.exit(0)


def version_lines() -> list[str]:
    """minimuse; Python and PyTorch; the other packages; the CPU; other devices."""
    packages = ", ".join(f"{name} {version_of(name)}" for name in PACKAGES)
    return [
        f"minimuse {version_of('minimuse')}",
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, {platform.platform()}",
        packages,
        f"CPU: {', '.join(cpu_instructions())}; {torch.get_num_threads()} threads; computes in "
        f"{'bfloat16' if cpu_is_fast_at_bf16() else 'float32'}",
        f"other devices: {', '.join(devices()) or 'none'}",
    ]


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed as a package)"


def cpu_instructions() -> list[str]:
    """The architecture, the widest vectors that PyTorch uses, and instructions for bfloat16."""
    instructions = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    # Private functions, which another version of PyTorch may lack.
    for name, question in (
        ("AMX", "_is_amx_tile_supported"),
        ("AVX512-BF16", "_is_avx512_bf16_supported"),
    ):
        ask = getattr(torch.cpu, question, None)
        if ask is not None and ask():
            instructions.append(name)
    return instructions


def devices() -> list[str]:
    """The names of the devices besides the CPU, as --device takes them."""
    names = [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names
