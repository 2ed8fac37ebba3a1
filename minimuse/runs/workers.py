"""Train all stages on a CPU, several at a time, each in a process of its own.

The matrices of the small presets are too small for several threads: the base model makes 5.4 steps
a second with two threads, and 6.2 with one. So stages that do not need each other train side by
side, and each gets a part of the threads.

The processes are started with `subprocess`, and not with `multiprocessing`: that would run the
caller's script again in every process, and its pool can wait for ever after two signals.
"""

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import torch

from minimuse.datasets import progress
from minimuse.plumbing.config import Config
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.stopping import EXIT_CODE, SIGNALS, finish_first, stop_signals
from minimuse.plumbing.t5_files import LazyT5
from minimuse.runs.stages import NEEDS, STAGES, pending, train_all
from minimuse.runs.worker import STOP
from minimuse.train import Record

MAX_WORKERS = 3  # base, superres and decoder: more stages never train at a time

# Stages that take longest begin first. The number is the row of the progress bar on the screen.
ROWS = {"tokenizer": 0, "tokenizer_hi": 1, "superres": 0, "base": 1, "decoder": 2}

# What a worker process runs. -P: its current directory must not shadow a module.
COMMAND = "import sys; sys.path[:] = {path!r}; from minimuse.runs.worker import serve; serve()"

# Seconds between two looks at `stop_signals`.
POLL = 0.1


class Finished(NamedTuple):
    """What a process reports about the stage that it trained."""

    stage: str
    seconds: float
    metrics: dict[str, float]  # of the last step


class TrainingJob(NamedTuple):
    """A training of all stages: what to train, into which directory."""

    out: Path
    config: Config
    data: str
    text: str  # the name of the text encoder
    seed: int
    resume: bool
    # `show(records, row)` consumes the records of a stage, in the process that trains it. For
    # `side_by_side` it must be in a module that such a process can import.
    show: Callable[..., None]


def side_by_side(job: TrainingJob) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Train all stages; return for each trained stage its seconds, and its last metrics.

    On Ctrl-C every stage finishes its step and saves.
    """
    out, show = job.out, job.show
    if show.__module__ == "__main__":
        raise ValueError(
            f"show={show.__name__} is defined in the script that runs, which a worker process "
            "does not read; put it into a module"
        )
    pending(STAGES, out, job.resume)  # raises an error before anything is written
    encoder = LazyT5(job.text)  # likewise
    threads = torch.get_num_threads()
    workers = min(MAX_WORKERS, threads)
    train = partial(train_in_worker, job=job, encoder=encoder, threads=threads // workers)
    with one_process_at_a_time(out, "model"), finish_first():
        todo = pending(STAGES, out, job.resume)  # another process may have written since
        with Team(workers) as team:
            finished = train_in_order(team, train)
    seconds_of, metrics_of = {}, {}
    for stage, seconds, metrics in finished:
        if stage in todo:
            seconds_of[stage] = seconds
            metrics_of[stage] = metrics
    return seconds_of, metrics_of


def one_after_another(
    job: TrainingJob, device: str
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """`side_by_side` for a device that is not the CPU: this process trains one stage at a time."""
    seconds_of, metrics_of = {}, {}

    def timed() -> Iterator[Record]:
        out, config, data, text, seed, resume, _ = job
        encoder = LazyT5(text, device)
        begin = time.monotonic()
        for record in train_all(
            STAGES, out, config, data, encoder, text, seed, device=device, resume=resume
        ):
            if record.step == record.steps:
                metrics = {name: float(value) for name, value in record.metrics.items()}
                metrics_of[record.stage] = metrics
                seconds_of[record.stage] = round(time.monotonic() - begin, 3)
                begin = time.monotonic()
            yield record

    job.show(timed())
    return seconds_of, metrics_of


class Team:
    """Worker processes. They are started when they are needed, and ended at the end of `with`."""

    def __init__(self, size: int):
        self.size = size
        self.processes: list[subprocess.Popen] = []
        self.idle: list[subprocess.Popen] = []
        # (process, its answer, or None if it has ended)
        self.answers: SimpleQueue[tuple[subprocess.Popen, Any]] = SimpleQueue()

    def __enter__(self) -> "Team":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is not None:
                self.stop()
        finally:
            for process in self.processes:
                process.kill()  # it is idle, or a second signal has come
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    with suppress(OSError):
                        pipe.close()

    def has_room(self) -> bool:
        """Whether a process is idle, or another may be started."""
        return bool(self.idle) or len(self.processes) < self.size

    def submit(self, function: Callable[[], Finished]) -> None:
        """Let a process that is idle, or a new one, call a function."""
        if not self.idle:
            process = start_process()
            self.processes.append(process)
            self.idle.append(process)
            Thread(target=self.read_answers, args=(process,), daemon=True).start()
        send(self.idle.pop(), pickle.dumps(function))

    def read_answers(self, process: subprocess.Popen) -> None:
        """Put the answers of a process into the queue, in a thread of its own."""
        try:
            while True:
                self.answers.put((process, pickle.load(process.stdout)))
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            self.answers.put((process, None))

    def next_result(self) -> Finished:
        """Wait for a result; raises a function's error, and KeyboardInterrupt after a signal."""
        while True:
            if stop_signals:
                raise KeyboardInterrupt
            try:
                process, answer = self.answers.get(timeout=POLL)
            except Empty:
                continue
            if answer is None:
                if process.wait() == EXIT_CODE:  # a signal has ended this process alone
                    raise KeyboardInterrupt
                raise MemoryError(
                    "a stage was killed, perhaps for memory; train one at a time, with --resume"
                )
            kind, result = answer
            if kind == "stopped":
                raise KeyboardInterrupt
            if kind == "failed":
                raise result
            self.idle.append(process)
            return result

    def stop(self) -> None:
        """Tell all processes to finish their step and save, and wait for that."""
        for process in self.processes:
            send(process, STOP)
        for process in self.processes:
            while process.poll() is None:
                time.sleep(POLL / 2)


def start_process() -> subprocess.Popen:
    """Start a worker process, which does not hear the Ctrl-C of the terminal."""
    code = COMMAND.format(path=sys.path)
    with blocked_signals():
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Only Windows has this flag, and there it does what blocked signals do elsewhere.
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Inside, signals wait, and a process that is started never gets them, unless it asks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send(process: subprocess.Popen, message: bytes) -> None:
    """Send a message to a process. If it has ended already, `read_answers` tells."""
    with suppress(OSError):
        pickle.dump(message, process.stdin)
        process.stdin.flush()


def train_in_order(team: Team, train: Callable[[str, int], Finished]) -> list[Finished]:
    """Start every stage as soon as the stages that it needs are finished."""
    waiting = list(ROWS)
    running = 0
    finished: list[Finished] = []
    while waiting or running:
        done = {stage for stage, _, _ in finished}
        for stage in list(waiting):
            if done.issuperset(NEEDS[stage]) and team.has_room():
                waiting.remove(stage)
                team.submit(partial(train, stage, ROWS[stage]))
                running += 1
        finished.append(team.next_result())
        running -= 1
    return finished


def train_in_worker(
    stage: str,
    row: int,
    job: TrainingJob,
    encoder: LazyT5,
    threads: int,
) -> Finished:
    """Train one stage in this process, unless OUT holds it already."""
    torch.set_num_threads(threads)
    begin = time.monotonic()
    progress.row = row
    metrics = {}

    def records() -> Iterator[Record]:
        out, config, data, text, seed, resume, _ = job
        for record in train_all((stage,), out, config, data, encoder, text, seed, resume=resume):
            metrics.update(record.metrics)
            yield record

    job.show(records(), row)
    seconds = round(time.monotonic() - begin, 3)
    return Finished(stage, seconds, {name: float(value) for name, value in metrics.items()})
