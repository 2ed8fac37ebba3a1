"""`minimuse demo`: train the whole of Muse on procedural scenes, on this machine, and draw with it.

Writes a model to OUT, and what `minimuse evaluate --model OUT` writes: samples.png (for held-out captions), decoding.gif, report.json.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
import os
import signal
import time
import torch

from minimuse.plumbing import config as configs
from minimuse.plumbing.stopping import stop_signals
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import NEEDS
from minimuse.runs.stages import STAGES
from minimuse.runs.stages import pending
from minimuse.runs.stages import train_all


def side_by_side(
    out: Path,
    config: configs.Config,
    data: str,
    text: str,
    seed: int,
    resume: bool,
    show: Callable[..., None],
) -> tuple[dict, dict]:
    """Train all stages on a CPU; returns the seconds and the last metrics of each. A stage begins when what it needs is there, in a process
    with its share of the threads: of two cores one each, for which matrices are too small for two (base: 5.4 steps/s, with one 6.2)."""
    todo = pending(STAGES, out, resume)  # raises what there is to raise before anything is trained
    job = partial(
        train_in_worker, out=out, config=config, data=data, text=text, seed=seed, resume=resume, show=show
    )
    waiting = dict(
        tokenizer=0, tokenizer_hi=1, superres=0, base=1, decoder=2
    )  # and the rows of their bars; what takes longest comes first
    workers, running, done = min(3, torch.get_num_threads()), set(), []
    with ProcessPoolExecutor(
        workers, get_context("spawn"), start_worker, (torch.get_num_threads() // workers,)
    ) as pool:
        try:
            while waiting or running:
                ready = [
                    stage for stage in waiting if {*NEEDS[stage]} <= {name for name, *_ in done}
                ]
                running |= {pool.submit(job, stage, waiting.pop(stage)) for stage in ready}
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                done += [stage.result() for stage in ended]
        except BaseException as error:
            for child in active_children():
                child.terminate()  # by a signal: each finishes its step, and saves
            if isinstance(error, BrokenExecutor):
                raise MemoryError(
                    "a stage was killed, perhaps for memory; train one at a time, with --resume"
                ) from error
            raise
    return {stage: seconds for stage, seconds, _ in done if stage in todo}, {
        stage: metrics for stage, _, metrics in done if stage in todo
    }


def start_worker(threads: int) -> None:
    """Of a process that trains stages: it stops when it is told to by the one that began it, or when that one is gone."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    signal.signal(signal.SIGTERM, lambda number, frame: stop_signals.add(number))
    Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def train_in_worker(
    stage: str,
    row: int,
    out: Path,
    config: configs.Config,
    data: str,
    text: str,
    seed: int,
    resume: bool,
    show: Callable[..., None],
):
    """Train one stage in this process; returns its name, seconds and last metrics."""
    if stop_signals:
        raise KeyboardInterrupt
    begun, last = time.monotonic(), {}
    records = train_all((stage,), out, config, data, load_t5(text), text, seed, resume=resume)
    show((last.update(record.metrics) or record for record in records), row)  # update gives None
    return stage, round(time.monotonic() - begun, 3), {k: float(v) for k, v in last.items()}
