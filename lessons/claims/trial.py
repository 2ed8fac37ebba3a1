"""What the scripts of this folder that train models have in common.

A claim of the paper is tested by training a few variants, each from several seeds, on tokens of a
shipped model's tokenizers: many small models, each trained in minutes. Every result is written to
OUT/CLAIM.json as soon as it is there. A run that is cut short continues from its last checkpoint:
give the same command again. By default two variants train at the same time, in processes of one
thread each. Compare times only within such a pair, and not on a busy machine.

OUT/CLAIM.json has the figures of each seed. Commit it as lessons/claims/results/CLAIM.json, from
which `verdicts.py` makes the verdicts again.
"""

import json
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.stats import ttest_ind_from_stats
from torch import nn
from tqdm import tqdm

from minimuse import Muse
from minimuse.data import Images, Tokens
from minimuse.datasets import load, shapes
from minimuse.maskgit import drop_captions, masked_token_loss
from minimuse.metrics.alignment import alignment
from minimuse.plumbing.checkpoint import checkpoints_at
from minimuse.plumbing.config import Stage
from minimuse.plumbing.files import save_tensors, write_json
from minimuse.runs.cache import tokenize
from minimuse.schedule import mask_counts, random_masks, sample_ratios
from minimuse.superres import SuperRes
from minimuse.train import training_loop

SEEDS = (0, 1, 2, 3, 4)
LEVEL = 0.05  # of the test behind a verdict: how often equal means seem to differ
PACE_STEPS = 16  # steps to measure how long a step takes; the first five warm up
# A time budget is checked at these fractions of it, since the speed of a machine changes.
CORRECT_AT = (0.3, 0.6, 0.8, 0.95)


# --- Command line and data ---


def arguments(description: str, **defaults) -> Namespace:
    """Parse --out, --workers, and one option for each default."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="variants that train at the same time, in processes of one thread each; "
        "1: no other process",
    )
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value, help=f"default {value}")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def cached_tokens(muse: Muse, data: str, split: str, count: int | None, out: Path) -> Tokens:
    """The tokens and text embeddings of a split. All claims share the file in OUT."""
    path = out / f"tokens-{data}-{split}-{count}-{muse.about['text']['fingerprint']}.safetensors"
    if not path.is_file():
        images = load(data, split, muse.config.tokenizer_hi.side, count)
        rows = torch.arange(len(images))
        save_tensors(path, tokenize(muse.parts, muse.text, images, rows, "cpu"))
    return Tokens([load_file(path)])


def first_captions(images: Images) -> list[str]:
    """The plainest caption of each image."""
    return [variants[0] for variants in images.captions]


# --- Training ---


def stage_settings(steps: int, batch: int, lr: float = 3e-3) -> Stage:
    """The settings with which the presets train their transformers."""
    return Stage(steps=steps, batch=batch, lr=lr, muon_lr=0.025)


def masked_loss(
    model: nn.Module, tokens: Tokens, resolution: str, ratios: Callable = sample_ratios
) -> Callable:
    """The loss of a base or super-resolution model, with mask ratios from any distribution.

    It is `losses.token_loss` on one machine, written out. ratios(B, generator) -> (B,) draws the
    mask ratios. Returns what `training_loop` takes as `parts_of`.
    """

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        ids = tokens.ids(resolution, indices)  # B N
        text, visible = tokens.captions(indices, generator)  # B T E, B T
        conditions = [text, drop_captions(visible, 0.1, generator)]
        if isinstance(model, SuperRes):
            conditions.append(tokens.ids("low", indices))  # B n
        context = model.context(*conditions)
        B, N = ids.shape
        counts = mask_counts(ratios(B, generator), N)  # B
        hidden = random_masks(counts, N, generator)  # B N
        logits = model(ids.masked_fill(hidden, model.mask_id), context, hidden)
        loss, accuracy = masked_token_loss(logits, ids, hidden)
        yield loss, {"accuracy": accuracy}

    return parts_of


class Progress:
    """The steps and the processor time of a training, kept in a JSON file while it runs.

    With a time budget in seconds, the number of steps is a guess, which is corrected on the way.
    """

    def __init__(self, path: Path, steps: int, budget: float):
        self.path = path
        self.steps = steps
        self.budget = budget
        used = 0.0
        if path.is_file():
            saved = json.loads(path.read_text())
            self.steps = saved["steps"]
            used = saved["seconds"]
        self.begun = time.process_time() - used
        times = [fraction * budget for fraction in CORRECT_AT]
        self.corrections = [seconds for seconds in times if seconds > used]

    def seconds(self) -> float:
        """Processor time so far, of all runs together."""
        return round(time.process_time() - self.begun, 1)

    def correct(self, step: int) -> bool:
        """Guess the number of steps again if it is time for it. Returns whether it was."""
        if not self.corrections or self.seconds() <= self.corrections[0]:
            return False
        del self.corrections[0]
        self.steps = max(step + 1, round(step * self.budget / self.seconds()))
        return True

    def save(self) -> None:
        write_json(self.path, {"steps": self.steps, "seconds": self.seconds()})


class Fitted(NamedTuple):
    model: nn.Module
    steps: int
    seconds: float  # processor time, of all runs together if it was cut short


def fit(
    name: str, make: Callable, stage: Stage, size: int, seed: int, out: Path, seconds: float = 0.0
) -> Fitted:
    """Train the fresh model and its loss that make() returns, on `size` images.

    Continues from the checkpoint of an earlier run. With `seconds`, it takes as many steps as fit
    into this processor time, in place of stage.steps, and the learning rate follows.
    """
    progress_file = out / f"{name}.json"
    checkpoint = out / f"{name}.checkpoint.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, parts_of = make()
        steps = stage.steps
        if seconds and not progress_file.is_file():
            pace = out / f"{name}.pace"
            step_seconds = seconds_per_step(*make(), stage, size, seed, pace)
            steps = max(1, round(seconds / step_seconds))
        progress = Progress(progress_file, steps, seconds)
        key = {
            "name": name,
            "seed": seed,
            "size": size,
            "lr": stage.lr,
            "batch": stage.batch,
            "length": seconds or stage.steps,
        }
        with tqdm(desc=name, mininterval=10) as bar:
            finished = False
            while not finished:
                stage = replace(stage, steps=progress.steps)
                bar.total = stage.steps
                loop = training_loop(name, model, parts_of, stage, size, seed, checkpoint, key)
                finished = run_until_corrected(loop, progress, bar)
        for leftover in (*checkpoints_at(checkpoint), progress_file):
            leftover.unlink(missing_ok=True)
    return Fitted(model.eval().requires_grad_(False), stage.steps, progress.seconds())


def seconds_per_step(
    model: nn.Module, parts_of: Callable, stage: Stage, size: int, seed: int, checkpoint: Path
) -> float:
    """Processor time of a training step, without the first five."""
    loop = training_loop(
        "pace", model, parts_of, replace(stage, steps=PACE_STEPS), size, seed, checkpoint, {}
    )
    times = [time.process_time() for _ in loop]
    return (times[-1] - times[4]) / (len(times) - 5)


def run_until_corrected(loop: Iterator, progress: Progress, bar: tqdm) -> bool:
    """Run a training loop to its end (True), or until its number of steps is corrected (False)."""
    for record in loop:
        bar.update(record.step - bar.n)
        corrected = progress.correct(record.step)
        if corrected or record.step % 50 == 0 or record.step == 1:
            progress.save()
        if corrected:
            record.save()  # the next loop continues from this checkpoint
            return False
    return True


# --- Jobs: one for each variant and seed ---


def run_jobs(path: Path, jobs: dict[str, tuple], work: Callable, workers: int) -> dict:
    """Call work(*arguments) for every job that is not yet in the JSON file `path`.

    Each result is written as soon as it is there. Returns all results, by the name of the job.
    """
    done = json.loads(path.read_text()) if path.is_file() else {}
    remaining = {name: job for name, job in jobs.items() if name not in done}
    for name, result in finished_jobs(remaining, work, workers):
        done[name] = result
        write_json(path, {name: done[name] for name in jobs if name in done})
    return json.loads(path.read_text())


def finished_jobs(
    jobs: dict[str, tuple], work: Callable, workers: int
) -> Iterator[tuple[str, dict]]:
    """Each job's name and result, as soon as the job is finished."""
    if workers <= 1:
        for name, job in jobs.items():
            yield name, work(*job)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        names = {pool.submit(work, *job): name for name, job in jobs.items()}
        for future in as_completed(names):
            yield names[future], future.result()


# --- Measures, verdicts, tables ---


def fractions_right(
    muse: Muse, captions: list[str], seed: int, **parts: nn.Module
) -> dict[str, float]:
    """The fraction of images that are right in each attribute.

    The images are drawn with `parts` in place of the model's own parts.
    """
    variant = Muse(muse.config, muse.text, muse.parts | parts, muse.about)
    _, images = variant.draw(captions, seed=seed)
    scenes = [shapes.parse(caption) for caption in captions]
    return {name: cell["value"] for name, cell in alignment(scenes, images).items()}


def mean_and_std(values: list[float]) -> str:
    """Mean and standard deviation, as a table has it."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def verdict(better: list[float], worse: list[float]) -> str:
    """Is the first mean larger? Welch's t test, two-sided, at 5 % (Biometrika 34, 1947).

    better, worse: one figure for each seed. The variances and the numbers of seeds may differ.
    Returns "holds", "does not hold" (the first mean is smaller) or "cannot be told".

    A single seed has no spread, so it cannot be told. The same is so if neither group has a spread:
    then the seed changes nothing, and five seeds say no more than one. If one group has none, the
    test has the degrees of freedom of the other. So with zeros as `worse`, and the differences of
    pairs as `better`, this is the paired test.
    """
    groups = (better, worse)
    one_seed = min(len(group) for group in groups) < 2
    no_spread = all(min(group) == max(group) for group in groups)
    if one_seed or no_spread:
        return "cannot be told"
    statistics = []
    for group in groups:
        statistics += [np.mean(group), np.std(group, ddof=1), len(group)]
    test = ttest_ind_from_stats(*statistics, equal_var=False)
    if test.pvalue < LEVEL:  # not so if it is no number
        return "holds" if test.statistic > 0 else "does not hold"
    return "cannot be told"


def values(done: dict, variant: str, *keys) -> list[float]:
    """What each seed of a variant has under these keys, one key inside the other."""
    results = [result for name, result in done.items() if name.rpartition("/")[0] == variant]
    for key in keys:
        results = [result[str(key)] for result in results]
    return results


def grouped_bars(axis, groups: tuple[str, ...], series: dict[str, list[list[float]]]) -> None:
    """Two bars side by side for each group: means and standard deviations over the seeds.

    series: by name, for each group the values of its seeds.
    """
    for shift, (name, values_of_groups) in zip((-0.2, 0.2), series.items(), strict=True):
        points = np.array(values_of_groups)  # groups, seeds
        places = np.arange(len(groups)) + shift
        axis.bar(places, points.mean(1), 0.4, yerr=points.std(1), capsize=2, label=name)
    axis.set(xticks=range(len(groups)), xticklabels=groups)
    axis.legend(fontsize=8)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_report(out: Path, claim: str, done: dict, *paragraphs: str) -> None:
    """Print tables and verdicts, with the time that all took, and keep them in OUT/CLAIM.md."""
    minutes = sum(result["seconds"] for result in done.values()) / 60
    total = f"{len(done)} runs, {minutes:.0f} minutes of one thread all together."
    text = "\n\n".join([*paragraphs, total])
    (out / f"{claim}.md").write_text(text + "\n")
    print(text)
