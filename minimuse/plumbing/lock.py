"""A lock, so that two runs never train the same stage in the same directory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import checkpoints_at


@contextmanager
def one_process_at_a_time(out: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """Inside, no other process writes `what` (a stage, or "config") in the directory `out`.

    wait: seconds to wait for another process, -1 for any time; then a ValueError. First removes
    what a killed process left behind. Under torchrun the first process holds the lock for all.
    """
    rank, _ = collectives.rank_and_size()
    if rank != 0:
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{what}.lock"
    try:
        # The operating system releases the lock, however the process ends.
        with FileLock(path, timeout=wait):
            remove_leftovers(out, what)
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes the file by itself
                    path.unlink()
    except Timeout:
        raise ValueError(
            f"{what} is being trained in {out} by another process; "
            "wait for it, or give another --out"
        ) from None


def remove_leftovers(out: Path, what: str) -> None:
    """Remove temporary files of a killed process, and checkpoints of a stage that is finished."""
    for leftover in out.glob(f"{what}.*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    if (out / f"{what}.safetensors").is_file():
        for checkpoint in checkpoints_at(out / f"{what}.checkpoint.safetensors"):
            checkpoint.unlink()
