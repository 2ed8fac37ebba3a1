"""Training that can die at any moment: whole files, checkpoints, one run at a time, and stopping between two steps.

A file is written under a temporary name and put in its place when it is whole and on the disk. A checkpoint has its own SHA-256, and the
one before it is kept: after a kill, a full disk or a damaged sector one of the two is good, and training goes on from there.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minimuse.plumbing import collectives
from minimuse.plumbing.files import digest, save_tensors


def checkpoints_at(path: Path) -> list[Path]:
    """A checkpoint and the one before it, as far as they are there."""
    return [p for p in (path, path.with_suffix(".before")) if p.is_file()]


def states(model: nn.Module, optimizers: list) -> Iterator[tuple[str, nn.Parameter, dict]]:
    """Name, parameter, and what an optimizer remembers of it."""
    names = {p: n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"]:
            yield names[p], p, optimizer.state[p]


def save_checkpoint(
    path: Path, step: int, model: nn.Module, average: dict, optimizers: list, key: dict
) -> None:
    """One safetensors file: weights, average, optimizers, and in its header the step, what it belongs to and a digest."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | {
        f"average.{k}": v for k, v in average.items()
    }
    for name, _, state in states(model, optimizers):
        tensors |= {f"optimizer.{name}/{k}": v for k, v in state.items()}
    save_tensors(
        path,
        tensors,
        {"step": str(step), "key": json.dumps(key)},
        before=path.with_suffix(".before"),
    )


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a checkpoint; a ValueError if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            header, tensors = file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}
        int(header["step"]), json.loads(header["key"])
        if header.pop("sha256") != digest(tensors, header):
            raise ValueError("its SHA-256 is another")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or no checkpoint ({error}); remove it to start this stage again"
        ) from None
    return header, tensors


def restore_checkpoint(
    path: Path, model: nn.Module, average: dict, optimizers: list, key: dict
) -> int:
    """Put a checkpoint back, the one before it if it is damaged; returns the number of steps done, 0 if there is none."""
    if not (there := checkpoints_at(path)):
        return 0
    try:
        header, tensors = read_checkpoint(there[0])
    except ValueError as error:
        if len(there) == 1:
            raise
        warnings.warn(f"{error}. Going on from the one before it", stacklevel=2)
        header, tensors = read_checkpoint(there[1])
        there[0].unlink(
            missing_ok=True
        )  # or the next save would put it in the place of the good one
    if json.loads(header["key"]) != key:
        raise ValueError(
            f"{path} was started with other settings, data, text encoder or seed; give the same ones, or another --out"
        )
    if (
        missing := {f"{kind}.{k}" for kind in ("model", "average") for k in average}
        - tensors.keys()
    ):
        raise ValueError(
            f"{path} is no checkpoint of this stage: it lacks {min(missing)}; remove it to start this stage again"
        )
    with torch.no_grad():
        for k, v in model.state_dict().items():
            collectives.copy_into(v, tensors[f"model.{k}"])
            collectives.copy_into(average[k], tensors[f"average.{k}"])
        for name, p, state in states(model, optimizers):
            for k, v in (
                (k.rpartition("/")[2], v)
                for k, v in tensors.items()
                if k.startswith(f"optimizer.{name}/")
            ):
                # empty_like keeps the parameter's memory layout (channels-last), which the fused step relies on
                state[k] = (
                    collectives.copy_into(torch.empty_like(p), v)
                    if v.shape == p.shape and k != "step"
                    else v.to(p.device)
                )
    return int(header["step"])
