"""Train all stages on a CPU, several at a time, each in a process of its own.

The matrices of the small presets are too small for several threads: the base model makes 5.4 steps
a second with two threads, and 6.2 with one. So stages that do not need each other train side by
side, and each gets a part of the threads.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import torch

from minimuse.datasets import progress
from minimuse.plumbing.config import Config
from minimuse.plumbing.stopping import stop_signals
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.stages import NEEDS, STAGES, pending, train_all
from minimuse.train import Record

MAX_WORKERS = 3  # base, superres and decoder: more stages never train at a time

# Stages that take longest begin first. The number is the row of the progress bar on the screen.
ROWS = {"tokenizer": 0, "tokenizer_hi": 1, "superres": 0, "base": 1, "decoder": 2}


class Finished(NamedTuple):
    """What a process reports about the stage that it trained."""

    stage: str
    seconds: float
    metrics: dict[str, float]  # of the last step


def side_by_side(
    out: Path,
    config: Config,
    data: str,
    text: str,
    seed: int,
    resume: bool,
    show: Callable[..., None],
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train all stages; return for each trained stage its seconds, and its last metrics.

    text: the name of the text encoder.
    show: `show(records, row)` consumes the records of a stage, in the process that trains it.
    """
    todo = pending(STAGES, out, resume)  # raises an error before anything is trained
    threads = torch.get_num_threads()
    workers = min(MAX_WORKERS, threads)
    train = partial(
        train_in_worker,
        out=out,
        config=config,
        data=data,
        text=text,
        seed=seed,
        resume=resume,
        show=show,
    )
    threads_of_each = (threads // workers,)
    with ProcessPoolExecutor(workers, get_context("spawn"), start_worker, threads_of_each) as pool:
        try:
            finished = train_in_order(pool, train)
        except BaseException as error:
            # A signal: each worker finishes its step and saves.
            for child in active_children():
                child.terminate()
            if isinstance(error, BrokenExecutor):
                raise MemoryError(
                    "a stage was killed, perhaps for memory; train one at a time, with --resume"
                ) from error
            raise
    seconds_of, metrics_of = {}, {}
    for stage, seconds, metrics in finished:
        if stage in todo:
            seconds_of[stage] = seconds
            metrics_of[stage] = metrics
    return seconds_of, metrics_of


def train_in_order(pool: Executor, train: Callable[[str, int], Finished]) -> list[Finished]:
    """Start every stage as soon as the stages that it needs are finished."""
    waiting = list(ROWS)
    running: set[Future] = set()
    finished: list[Finished] = []
    while waiting or running:
        done = {stage for stage, _, _ in finished}
        for stage in list(waiting):
            if done.issuperset(NEEDS[stage]):
                waiting.remove(stage)
                running.add(pool.submit(train, stage, ROWS[stage]))
        ended, running = wait(running, return_when=FIRST_COMPLETED)
        finished += [future.result() for future in ended]
    return finished


def start_worker(threads: int) -> None:
    """Prepare a process that trains stages: how many threads it has, and when it stops."""
    torch.set_num_threads(threads)
    # Ctrl-C reaches all processes of a terminal. The parent alone decides, and sends SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop_signals.add(number))
    Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """Wait for the end of the parent process, then end this one at once."""
    parent_process().join()
    os._exit(1)


def train_in_worker(
    stage: str,
    row: int,
    out: Path,
    config: Config,
    data: str,
    text: str,
    seed: int,
    resume: bool,
    show: Callable[..., None],
) -> Finished:
    """Train one stage in this process, unless OUT holds it already."""
    if stop_signals:
        raise KeyboardInterrupt
    begin = time.monotonic()
    progress.row = row
    encoder = load_t5(text)
    metrics = {}

    def records() -> Iterator[Record]:
        for record in train_all((stage,), out, config, data, encoder, text, seed, resume=resume):
            metrics.update(record.metrics)
            yield record

    show(records(), row)
    seconds = round(time.monotonic() - begin, 3)
    return Finished(stage, seconds, {name: float(value) for name, value in metrics.items()})
