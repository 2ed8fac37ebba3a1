import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import checkpoints_at


@contextmanager
def only_process(out: Path, what: str, wait: float = 0.0) -> Iterator[None]:
    """One process at a time writes `what`, a stage, in a directory; what a killed one left half done is cleared away."""
    if collectives.rank_and_size()[0]:
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
                for done in checkpoints_at(out / f"{what}.checkpoint.safetensors"):
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
