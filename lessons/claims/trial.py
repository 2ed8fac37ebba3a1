"""What the scripts of this folder that train have in common: many small models, each in minutes, and results that survive a stop.

A claim of the paper is tried by training a few variants, each from some seeds, on tokens of a shipped model's tokenizers. Every result
is kept as it comes, in OUT/CLAIM.json, and a run that is cut short goes on from its last checkpoint: the same command again. Variants
train in two processes of a thread each (of one such pair the times can be compared, on a busy machine they cannot).
"""

import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from tqdm import tqdm

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import load, shapes
from minimuse.maskgit import drop_captions, masked_token_loss
from minimuse.metrics import alignment
from minimuse.plumbing.checkpoint import checkpoints_at
from minimuse.plumbing.config import Stage
from minimuse.plumbing.files import save_tensors, write_json
from minimuse.runs.cache import tokenize
from minimuse.schedule import mask_counts, random_masks, sample_ratios
from minimuse.train import training_loop

SEEDS = (0, 1, 2)


def arguments(description: str, **defaults) -> Namespace:
    """--out, --workers, and an option for each default."""
    p = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=Path("runs/claims"))
    p.add_argument(
        "--workers",
        type=int,
        default=2,
        help="variants that train at the same time, in processes of a thread each; 1: here",
    )
    for name, value in defaults.items():
        p.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def tokens_of(muse: Muse, data: str, split: str, count: int | None, out: Path) -> Tokens:
    """The tokens and text embeddings of a split, kept in OUT: computed once for all claims."""
    path = out / f"tokens-{data}-{split}-{count}-{muse.about['text']['fingerprint']}.safetensors"
    if not path.is_file():
        pictures = load(data, split, muse.config.tokenizer_hi.side, count)
        save_tensors(
            path, tokenize(muse.parts, muse.text, pictures, torch.arange(len(pictures)), "cpu")
        )
    return Tokens([load_file(path)])


def settings(steps: int, batch: int, lr: float = 3e-3) -> Stage:
    """As the presets train their transformers."""
    return Stage(steps=steps, batch=batch, lr=lr, muon_lr=0.025)


def masked_loss(
    model: nn.Module, tokens: Tokens, resolution: str, ratios: Callable = sample_ratios
) -> Callable:
    """What `losses.token_loss` is on one machine, written out, with a law of mask ratios of one's own: ratios(B, generator) -> (B,)."""

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        ids, (text, visible) = tokens.ids(resolution, indices), tokens.captions(indices, generator)
        visible = drop_captions(visible, 0.1, generator)
        context = model.context(
            text,
            visible,
            *([tokens.ids("low", indices)] if hasattr(model, "low_embedding") else []),
        )
        hidden = random_masks(
            mask_counts(ratios(len(ids), generator), ids.shape[1]), ids.shape[1], generator
        )
        loss, correct = masked_token_loss(
            model(ids.masked_fill(hidden, model.mask_id), context, hidden), ids, hidden
        )
        yield loss, {"accuracy": correct}

    return parts_of


class Fitted(NamedTuple):
    model: nn.Module
    steps: int
    seconds: float  # of the processor, all runs together if it was cut short


def fit(
    name: str, make: Callable, how: Stage, size: int, seed: int, out: Path, seconds: float = 0.0
) -> Fitted:
    """Train what make() gives, a fresh model and its loss, on `size` pictures; goes on from the checkpoint of an earlier run.

    `seconds`: in place of how.steps, as many as take so long, by the time that the processor gave to this process. Guessed from the first
    ones, and corrected four times on the way, since machines have their moods; the learning rate follows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, parts_of = make()
        log = out / f"{name}.json"
        told = (
            json.loads(log.read_text()) if log.is_file() else {"steps": how.steps, "seconds": 0.0}
        )
        if seconds and not log.is_file():
            begun = [
                time.process_time()
                for _ in training_loop(
                    "pace", *make(), replace(how, steps=16), size, seed, out / f"{name}.pace", {}
                )
            ]
            told["steps"] = max(1, round(seconds * 11 / (begun[-1] - begun[4])))
        begun = time.process_time() - told["seconds"]
        spent = lambda: round(time.process_time() - begun, 1)
        marks = [
            share * seconds for share in (0.3, 0.6, 0.8, 0.95) if share * seconds > told["seconds"]
        ]
        key = {
            "name": name,
            "seed": seed,
            "size": size,
            "lr": how.lr,
            "batch": how.batch,
            "length": seconds or how.steps,
        }
        path = out / f"{name}.checkpoint.safetensors"
        bar = tqdm(desc=name, mininterval=10)
        while True:
            bar.total = (how := replace(how, steps=told["steps"])).steps
            run = training_loop(name, model, parts_of, how, size, seed, path, key)
            for record in run:
                bar.update(record.step - bar.n)
                due = marks and spent() > marks[0]
                if due:
                    del marks[0]
                    told["steps"] = max(record.step + 1, round(record.step * seconds / spent()))
                if due or record.step % 50 == 0 or record.step == 1:
                    write_json(log, told | {"seconds": spent()})
                if due:
                    run.close()  # saves; the next round goes on from there
                    break
            else:
                break
        bar.close()
        for leftover in (*checkpoints_at(path), log):
            leftover.unlink(missing_ok=True)
    return Fitted(model.eval().requires_grad_(False), how.steps, spent())


def work_through(path: Path, jobs: dict[str, tuple], work: Callable, workers: int) -> dict:
    """work(*arguments) for every job that `path`, a JSON file, does not have yet; each answer is written as it comes."""
    done = json.loads(path.read_text()) if path.is_file() else {}
    todo = {name: job for name, job in jobs.items() if name not in done}
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,))
        if workers > 1
        else nullcontext() as pool
    ):
        waiting = {pool.submit(work, *job): name for name, job in todo.items()} if pool else {}
        for answer in as_completed(waiting) if pool else todo:
            name, result = (
                (waiting[answer], answer.result()) if pool else (answer, work(*todo[answer]))
            )
            done[name] = result
            write_json(path, {name: done[name] for name in jobs if name in done})
    return json.loads(path.read_text())


def aligned(muse: Muse, captions: list[str], seed: int, **parts: nn.Module) -> dict[str, float]:
    """Share of pictures that are right in each attribute, drawn with `parts` in place of the model's own."""
    drawer = Muse(muse.config, muse.text, muse.parts | parts, muse.about)
    found = alignment.alignment(
        [shapes.parse(caption) for caption in captions], drawer.draw(captions, seed=seed)[1]
    )
    return {attribute: share["value"] for attribute, share in found.items()}


def told(values: list[float]) -> str:
    """Mean and standard deviation, as a table has it."""
    return (
        f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
        if len(values) > 1
        else f"{values[0]:.2f}"
    )


def verdict(better: list[float], worse: list[float]) -> str:
    """Is the first larger, by two standard errors of the difference of means? "holds", "does not hold" (it is smaller), "cannot be told"."""
    error = sum(np.var(values, ddof=1) / len(values) for values in (better, worse)) ** 0.5
    difference = np.mean(better) - np.mean(worse)
    return (
        "holds"
        if difference > 2 * error
        else "does not hold"
        if difference < -2 * error
        else "cannot be told"
    )


def values(done: dict, variant: str, *keys) -> list[float]:
    """What the seeds of a variant have under these keys, one below the other."""
    found = [result for name, result in done.items() if name.rpartition("/")[0] == variant]
    for key in keys:
        found = [result[str(key)] for result in found]
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def finish(out: Path, claim: str, done: dict, *paragraphs: str) -> None:
    """Print tables and verdicts, with how long it all took, and keep them in OUT/CLAIM.md."""
    minutes = sum(result["seconds"] for result in done.values()) / 60
    text = "\n\n".join(
        [*paragraphs, f"{len(done)} runs, {minutes:.0f} minutes of one thread all together."]
    )
    (out / f"{claim}.md").write_text(text + "\n")
    print(text)
