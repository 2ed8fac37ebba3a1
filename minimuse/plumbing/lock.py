"""A lock, so that two runs never write the same part in the same directory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import checkpoints_at, remove_checkpoint

# Seconds. A run that was killed may take a moment to end, with its worker processes.
PATIENCE = 2.0

# The locks that this process holds, as paths of their files.
held_here: set[str] = set()


@contextmanager
def one_process_at_a_time(out: Path, what: str, wait: float = PATIENCE) -> Iterator[None]:
    """Inside, no other process writes `what` in the directory `out`.

    what: a stage; "model" for all stages, or "config", or "cache".
    wait: seconds to wait for another process, -1 for any time; then a ValueError. First removes
    what a killed process left behind. Under torchrun the first process holds the lock for all.
    """
    rank, _ = collectives.rank_and_size()
    lock = None
    with collectives.fail_together():
        if rank == 0:
            lock = acquire(out, what, wait)
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # Windows removes the file by itself
                Path(lock.lock_file).unlink()
            held_here.discard(lock.lock_file)
            lock.release()


def acquire(out: Path, what: str, wait: float) -> BaseFileLock:
    """Take the lock. The operating system releases it, however the process ends."""
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / f"{what}.lock", timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        if lock.lock_file in held_here:
            raise ValueError(
                f"a training of this process still writes the {what} in {out}; go on with its "
                "iterator, or close() that first"
            ) from None
        raise ValueError(
            f"another process writes the {what} in {out}; wait for it, or give another --out"
        ) from None
    held_here.add(lock.lock_file)
    remove_leftovers(out, what)
    return lock


def remove_leftovers(out: Path, what: str) -> None:
    """Remove temporary files of a killed process, and checkpoints of a stage that is finished."""
    for leftover in out.glob(f"{what}.*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    if (out / f"{what}.safetensors").is_file():
        for checkpoint in checkpoints_at(out / f"{what}.checkpoint.safetensors"):
            remove_checkpoint(checkpoint)
