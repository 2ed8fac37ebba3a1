"""Training that can die at any moment: whole files, checkpoints, one run at a time, and stopping between two steps.

A file is written under a temporary name and put in its place when it is whole and on the disk. A checkpoint has its own SHA-256, and the
one before it is kept: after a kill, a full disk or a damaged sector one of the two is good, and training goes on from there.
"""

import hashlib
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from minimuse import parallel

asked: set[int] = set()  # signals that asked this process to stop


def replace(path: Path, write: Callable[[Path], None], before: Path | None = None) -> None:
    """write(a path aside), then put it at `path`: a reader sees the old file or the new one, never half of one. The old goes to `before`."""
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.mkdir(parents=True, exist_ok=True)
        write(new := aside / path.name)
        with open(new, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name and nothing in it
        if before and path.is_file():
            os.replace(path, before)
        os.replace(new, path)
    except (SafetensorError, OSError) as error:
        raise OSError(
            f"{path} cannot be written ({error}); what was written before is whole: make room"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, data: dict) -> None:
    replace(path, lambda temporary: temporary.write_text(json.dumps(data, indent=1) + "\n"))


def save_tensors(
    path: Path,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, str] | None = None,
    before: Path | None = None,
) -> None:
    """One safetensors file; if it has one to go `before` it, with a digest. Of several processes all gather, and the first writes."""
    held, writes = {}, parallel.place()[0] == 0
    for name, tensor in tensors.items():
        tensor = parallel.whole(tensor.detach())
        held |= {name: tensor.cpu().contiguous().clone()} if writes else {}
    if broken := [k for k, v in held.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise ValueError(
            f"{path} is not written: {broken[0]} is not finite; what was there before is kept. Lower the learning rate, in another --out"
        )
    if writes:
        header = metadata | {"sha256": digest(held, metadata)} if before else metadata
        replace(path, lambda temporary: save_file(held, temporary, header), before)
    parallel.total(torch.zeros(()))  # nobody goes on before it is there


def digest(tensors: dict[str, torch.Tensor], header: dict[str, str]) -> str:
    """SHA-256 of all that a file says."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        found.update(
            f"{name} {x.dtype} {[*x.shape]}".encode() + x.reshape(-1).view(torch.uint8).numpy().data
        )
    return found.hexdigest()


def kept(path: Path) -> list[Path]:
    """A checkpoint and the one before it, as far as they are there."""
    return [p for p in (path, path.with_suffix(".before")) if p.is_file()]


def states(model: nn.Module, optimizers: list) -> Iterator[tuple[str, nn.Parameter, dict]]:
    """Name, parameter, and what an optimizer remembers of it."""
    names = {p: n for n, p in model.named_parameters()}
    for optimizer in optimizers:
        for p in optimizer.param_groups[0]["params"]:
            yield names[p], p, optimizer.state[p]


def save(
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


def read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
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


def restore(path: Path, model: nn.Module, average: dict, optimizers: list, key: dict) -> int:
    """Put a checkpoint back, the one before it if it is damaged; returns the number of steps done, 0 if there is none."""
    if not (there := kept(path)):
        return 0
    try:
        header, tensors = read(there[0])
    except ValueError as error:
        if len(there) == 1:
            raise
        warnings.warn(f"{error}. Going on from the one before it", stacklevel=2)
        header, tensors = read(there[1])
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
            parallel.put(v, tensors[f"model.{k}"])
            parallel.put(average[k], tensors[f"average.{k}"])
        for name, p, state in states(model, optimizers):
            for k, v in (
                (k.rpartition("/")[2], v)
                for k, v in tensors.items()
                if k.startswith(f"optimizer.{name}/")
            ):
                # empty_like keeps the parameter's memory layout (channels-last), which the fused step relies on
                state[k] = (
                    parallel.put(torch.empty_like(p), v)
                    if v.shape == p.shape and k != "step"
                    else v.to(p.device)
                )
    return int(header["step"])


@contextmanager
def alone(out: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """One process at a time writes `what`, a stage, in a directory; what a killed one left half done is cleared away."""
    if parallel.place()[0]:
        yield  # the first of several holds the lock
        return
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(
            path := out / f"{what}.lock", timeout=wait
        ):  # it goes with the process, however that ends
            for torn in out.glob(f"{what}.*.tmp"):
                shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
            if (out / f"{what}.safetensors").is_file():
                for done in kept(out / f"{what}.checkpoint.safetensors"):
                    done.unlink()
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes it by itself
                    path.unlink()
    except Timeout:
        raise ValueError(
            f"{what} is being trained in {out} by another process; wait for it, or give another --out"
        ) from None


@contextmanager
def patiently() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM, if not repeated, wait for the end of a step: `optimize` looks at `asked`, saves, raises KeyboardInterrupt."""

    def remember(number: int, frame) -> None:
        asked.add(number)
        signal.signal(number, was[number])
        os.write(
            2, b"\nminimuse: finishing this step, and saving; once more stops at once\n"
        )  # print could meet itself in a handler

    was = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in was.items():
        signal.signal(
            number, handler if handler == signal.SIG_IGN else remember
        )  # ignored: a job in the background
    try:
        yield
    finally:
        asked.clear()
        for number, handler in was.items():
            signal.signal(number, handler)
