"""Checkpoints of a training: save, read, restore.

A checkpoint is one safetensors file: the weights, their average and the state of the optimizers.
Its header holds the number of steps, the key of the training it belongs to, and a SHA-256 digest.
The checkpoint before the last one is kept. After a kill, a full disk or a damaged sector, one of
the two is intact, and training resumes from it.

A model that is spread over several processes is saved as a folder instead, to which each process
writes its part (`sharded.py`). Either form resumes on any number of processes.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from minimuse.plumbing import collectives, sharded
from minimuse.plumbing.files import digest, save_tensors
from minimuse.plumbing.identity import differences
from minimuse.plumbing.messages import warn
from minimuse.plumbing.stopping import stop_now, stop_signals

SAVE_EVERY = 60.0  # seconds between checkpoints


def nothing_to_save() -> None:
    """Stands for `Checkpoints.save` where there is no checkpoint."""


class Checkpoints:
    """Saves and restores the state of a training: weights, their average, and the optimizers.

    path: the file of the last checkpoint. key: what the training depends on, as JSON; a checkpoint
        of another key is refused.
    """

    def __init__(
        self,
        path: Path,
        key: dict,
        model: nn.Module,
        average: dict[str, torch.Tensor],
        optimizers: list[torch.optim.Optimizer],
    ):
        self.path = path
        self.key = key
        self.model = model
        self.average = average
        self.optimizers = optimizers
        self.steps_done = 0
        self.saved_at = time.monotonic()
        self.seconds_to_save = 0.0

    def restore(self) -> int:
        """Restore the last checkpoint; return the number of steps done, 0 without a checkpoint."""
        self.steps_done = restore_checkpoint(
            self.path, self.model, self.average, self.optimizers, self.key
        )
        return self.steps_done

    def save(self) -> None:
        """Write a checkpoint. Collective: every rank must call this."""
        begin = time.monotonic()
        save_checkpoint(
            self.path, self.steps_done, self.model, self.average, self.optimizers, self.key
        )
        self.saved_at = time.monotonic()
        self.seconds_to_save = self.saved_at - begin

    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint.

        Saving a large model takes a minute itself. So wait a minute, and 20 times as long as the
        last save took.
        """
        age = time.monotonic() - self.saved_at
        return age - 20 * self.seconds_to_save > SAVE_EVERY

    def save_if_needed(self) -> None:
        """Save if a checkpoint is due, or if a signal asked any process to stop.

        After a stop signal, raises KeyboardInterrupt. Collective: every rank must call this.
        """
        # All processes must decide alike. Clocks differ, so only that of the first one counts.
        rank, _ = collectives.rank_and_size()
        due = rank == 0 and self.is_due()
        votes = torch.tensor([float(bool(stop_signals)), float(due)])
        stop_votes, due_votes = collectives.sum_over_processes(votes).tolist()
        if stop_votes or due_votes:
            self.save()
        if stop_votes:
            stop_now()


# It changes when a training can no longer go on from older checkpoints. "2": other parameters decay
# and go to Muon.
FORMAT = "2"


def previous(path: Path) -> Path:
    """The path of the checkpoint before the last one."""
    return path.with_suffix(".before")


def checkpoints_at(path: Path) -> list[Path]:
    """The last checkpoint and the one before it, files or folders; those that exist."""
    files = [p for p in (path, previous(path)) if p.is_file()]
    folders = sharded.folders_at(path)
    # There are both after the training went on with one process, or with several.
    if files and folders and sharded.step_of(folders[0]) > step_of_file(files[0]):
        return folders + files
    return files + folders


def step_of_file(path: Path) -> float:
    """The number of steps in the header of a file; infinity, so that it is read, if damaged."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return float("inf")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, a file or a folder; another process may have removed it already."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_checkpoint(
    path: Path,
    step: int,
    model: nn.Module,
    average: dict[str, torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
    key: dict,
) -> None:
    """Write a checkpoint after `step` steps. Collective: every rank must call this."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, tensor in average.items():
        tensors[f"average.{name}"] = tensor
    for name, _, state in optimizer_states(model, optimizers):
        for entry, tensor in state.items():
            tensors[f"optimizer.{name}/{entry}"] = tensor
    header = {"step": str(step), "key": json.dumps(key), "format": FORMAT}
    if sharded.is_spread(tensors):
        sharded.save(path, tensors, header)
    else:
        save_tensors(path, tensors, header, before=previous(path))
    rank, _ = collectives.rank_and_size()
    if rank == 0:
        for old in checkpoints_at(path)[2:]:
            remove_checkpoint(old)


def restore_checkpoint(
    path: Path,
    model: nn.Module,
    average: dict[str, torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
    key: dict,
) -> int:
    """Load a checkpoint into model, average and optimizers; return the number of steps done.

    Returns 0 if there is no checkpoint. If the last one is damaged, loads the one before it and
    warns. Raises a ValueError if that is damaged, too, or if it belongs to other settings or to
    another version of minimuse.
    Collective: every rank must call this.
    """
    if not checkpoints_at(path):
        return 0
    newest, header, tensors = read_newest_intact(path)
    if header.get("format") != FORMAT:
        names = " and ".join(str(p) for p in checkpoints_at(path))
        raise ValueError(
            f"{names}: from another version of minimuse, which trains in another way; "
            "remove it to start this stage again, or go on with that version"
        )
    different = differences(key, json.loads(header["key"]), path.name)
    if different:
        raise ValueError(
            f"{path} was started with other settings, data, text encoder or seed: {different}; "
            "give the same ones, or another --out"
        )
    for name in sorted(average):
        for kind in ("average", "model"):
            if f"{kind}.{name}" not in tensors:
                raise ValueError(
                    f"{path} is no checkpoint of this stage: it lacks {kind}.{name}; "
                    "remove it to start this stage again"
                )
    load_values(newest, tensors, model, average, optimizers)
    return int(header["step"])


@torch.no_grad()
def load_values(
    newest: Path,
    tensors: dict[str, torch.Tensor],
    model: nn.Module,
    average: dict[str, torch.Tensor],
    optimizers: list[torch.optim.Optimizer],
) -> None:
    """Copy the tensors of a checkpoint into model, average and optimizers. Collective."""
    targets = {}
    for name, weight in model.state_dict().items():
        targets[f"model.{name}"] = weight
        targets[f"average.{name}"] = average[name]
    targets |= optimizer_targets(model, optimizers, tensors)
    if newest.is_dir():
        sharded.fill(newest, targets)
        return
    for name, target in targets.items():
        collectives.copy_into(target, tensors[name])


def read_newest_intact(path: Path) -> tuple[Path, dict[str, str], dict[str, torch.Tensor]]:
    """The last checkpoint, or the one before it if that is damaged; its header and tensors."""
    *newer, oldest = checkpoints_at(path)
    damaged = []
    for newest in newer:
        try:
            header, tensors = read_checkpoint(newest)
            break
        except ValueError:
            warn(f"{newest} is damaged; going on from the one before it")
            damaged.append(newest)
    else:  # there is only the oldest left
        newest = oldest
        header, tensors = read_checkpoint(oldest)
    # Remove damaged ones, or the next save would keep them in place of the intact one.
    for checkpoint in damaged:
        remove_checkpoint(checkpoint)
    return newest, header, tensors


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a checkpoint; a ValueError if it is damaged.

    The tensors of a folder are on the meta device; `sharded.fill` reads their values.
    """
    try:
        if path.is_dir():
            return sharded.read(path)
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        check_header(header)
        sha256 = header.pop("sha256")
        if sha256 != digest(tensors, header):
            raise ValueError("its SHA-256 is another")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or no checkpoint ({error}); "
            "remove it to start this stage again"
        ) from None
    return header, tensors


def check_header(header: dict[str, str]) -> None:
    """Raise a ValueError if a header has no step, key and digest that can be read."""
    for name in ("step", "key", "sha256"):
        if name not in header:
            raise ValueError(f"its header has no {name}")
    if not header["step"].isdecimal():
        raise ValueError(f"its step is {header['step']!r}")
    json.loads(header["key"])


def optimizer_targets(
    model: nn.Module, optimizers: list[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give the optimizers a state like that of a checkpoint, still without its values.

    Returns the new tensors by the names that they have in the checkpoint.
    """
    saved: dict[str, dict[str, torch.Tensor]] = {}  # parameter -> entry of its state -> tensor
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            parameter_name, _, entry = name.removeprefix("optimizer.").rpartition("/")
            saved.setdefault(parameter_name, {})[entry] = tensor
    targets = {}
    for name, parameter, state in optimizer_states(model, optimizers):
        for entry, tensor in saved.get(name, {}).items():
            if tensor.shape == parameter.shape and entry != "step":
                # empty_like keeps the memory layout of the parameter (channels-last), which the
                # fused step relies on, and spreads the state as the parameter is spread.
                state[entry] = torch.empty_like(parameter)
            else:
                state[entry] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device=parameter.device
                )
            targets[f"optimizer.{name}/{entry}"] = state[entry]
    return targets


def optimizer_states(
    model: nn.Module, optimizers: list[torch.optim.Optimizer]
) -> Iterator[tuple[str, nn.Parameter, dict]]:
    """The name of every optimized parameter, the parameter, and the optimizer's state of it."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield names[parameter], parameter, optimizer.state[parameter]
