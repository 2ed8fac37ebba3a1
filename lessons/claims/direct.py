"""Ways to draw the images of toy-shapes from a caption, compared fairly (claims 2, 6, 7 and 11).

Two ways are here: `MASKED`, one masked model that predicts the 16 x 16 tokens directly, and
`CASCADE`, a base model of 4 x 4 tokens and super-resolution. The scripts of the claims bring a
third one and call `compare`:

1. All are trained for the same number of seconds of one processor, on the same images, with the
   same optimizer (but for the rival of pixels.py, which says why). The numbers of parameters differ
   by at most 5 % (checked). Those that draw tokens use the learning rates of the presets, which are
   not tuned.
2. Guidance and temperatures are tuned for each way, over its whole grid, at one number of passes,
   on captions of the training split with odd numbers. The score is the mean over all attributes
   that the detector reads. It is less noisy than "right in all", and above 0 early in training.
   Then, on the same captions, each way gets its own number of passes: the fewest that come within
   0.02 of its best score.
3. The same score is measured on held-out captions, with five sampling seeds, at every number of
   passes.
4. The time is measured in this process alone, with one thread, from caption embeddings to pixels:
   medians of five rounds in which all ways take turns.

Trained models are kept in OUT, under their seed and seconds. The next script takes them from there.
"""

import itertools
import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from frontier import scenes
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from trial import (
    arguments,
    cached_tokens,
    fit,
    masked_loss,
    mean_and_std,
    run_jobs,
    stage_settings,
    table,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import shapes
from minimuse.decode import Sampling, decode
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics.alignment import alignment
from minimuse.muse import Prompts
from minimuse.plumbing.device import autocast
from minimuse.plumbing.files import save_tensors
from minimuse.plumbing.initialization import initialize_weights
from minimuse.superres import SuperRes, SuperResConfig
from minimuse.transformer import TokenDecoder
from minimuse.vq import ImageTokenizer

SIZE = BaseConfig(width=128, layers=3, heads=4)
WINDOW = 8
# For the timing.
BATCHES = (1, 32)
ROUNDS = 5

DRAWINGS = (0, 1, 2, 3, 4)  # the sampling seeds of the test
TUNING_SEED = 9  # a sampling seed that no test has


class Part(NamedTuple):
    """One model of a way."""

    make: Callable  # (muse, embeddings of words (M, E)) -> a fresh model
    loss: Callable  # (model, muse, tokens) -> what `training_loop` takes as parts_of
    batch: int
    fraction: float = 1.0  # of the training seconds
    lr: float = 3e-3


class Way(NamedTuple):
    """One way from a caption to an image."""

    name: str
    parts: tuple[Part, ...]
    # (muse, models, prompts, passes, settings, generators) -> images (B, 3, H, W)
    images: Callable
    passes: tuple[int, ...]  # those to measure
    tuned_at: int  # passes
    grid: dict[str, tuple]  # the values to choose each of the settings from


# --- The masked model and the cascade ---


class Direct(MaskGit):
    """The base model over a fine grid. The only difference is multi-axis attention."""

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int, window: int):
        super().__init__(config, codes, grid, text_width)
        self.decoder = TokenDecoder(codes, grid, config.width, config.heads, config.layers, window)
        initialize_weights(self, config.layers)


def code_vectors(tokenizer: ImageTokenizer) -> torch.Tensor:
    """The codebook (K, D)."""
    return tokenizer.quantizer.lookup(torch.arange(tokenizer.config.codes))


def make_direct(muse: Muse, words: torch.Tensor) -> Direct:
    high = muse.tokenizer_hi
    model = Direct(SIZE, high.config.codes, high.config.grid, muse.text.width, WINDOW)
    model.start(words, code_vectors(high))
    return model


def make_base(muse: Muse, words: torch.Tensor) -> MaskGit:
    low = muse.tokenizer
    size = BaseConfig(width=104, layers=3, heads=4)
    model = MaskGit(size, low.config.codes, low.config.grid, muse.text.width)
    model.start(words, code_vectors(low))
    return model


def make_superres(muse: Muse, words: torch.Tensor) -> SuperRes:
    low = muse.tokenizer
    high = muse.tokenizer_hi
    size = SuperResConfig(width=64, layers=2, heads=4, encoder_layers=1, window=WINDOW)
    model = SuperRes(
        size,
        low.config.codes,
        low.config.grid,
        high.config.codes,
        high.config.grid,
        muse.text.width,
    )
    model.start(words, code_vectors(low), code_vectors(high))
    return model


def low_loss(model: nn.Module, muse: Muse, tokens: Tokens) -> Callable:
    return masked_loss(model, tokens, "low")


def high_loss(model: nn.Module, muse: Muse, tokens: Tokens) -> Callable:
    return masked_loss(model, tokens, "high")


def decode_masked(
    muse: Muse,
    model: nn.Module,
    prompts: Prompts,
    passes: int,
    settings: dict,
    generators: list[torch.Generator],
    *low: torch.Tensor,
) -> torch.Tensor:
    """The tokens (B, N) of a masked model. low: the low-res ids, for super-resolution."""
    sampling = Sampling(
        steps=passes,
        guidance=settings["guidance"],
        temperature=settings["temperature"],
        choice_temperature=settings["choice"],
    )
    B, N = len(prompts.text), len(model.decoder.positions())
    ids = torch.full((B, N), model.mask_id, device=muse.device)
    contexts = muse.contexts(model, prompts, sampling.guidance, *low)
    for step in decode(model, ids, model.mask_id, *contexts, sampling, generators):
        ids = step.ids
    return ids


def masked_images(
    muse: Muse,
    models: list,
    prompts: Prompts,
    passes: int,
    settings: dict,
    generators: list[torch.Generator],
) -> torch.Tensor:
    ids = decode_masked(muse, models[0], prompts, passes, settings, generators)
    return muse.pixels(ids, "high")


def cascade_images(
    muse: Muse,
    models: list,
    prompts: Prompts,
    passes: int,
    settings: dict,
    generators: list[torch.Generator],
) -> torch.Tensor:
    """`passes` of the base model, and a third as many of super-resolution (Muse: 24 and 8)."""
    base, superres = models
    low = decode_masked(muse, base, prompts, passes, settings, generators)
    passes_hi = -(-passes // 3)  # rounded up
    ids = decode_masked(muse, superres, prompts, passes_hi, settings, generators, low)
    return muse.pixels(ids, "high")


GRID = {"guidance": (0.0, 1.0, 2.0, 4.0), "temperature": (0.5, 1.0), "choice": (0.5, 4.0)}
MASKED = Way(
    "masked",
    parts=(Part(make_direct, high_loss, batch=16),),
    images=masked_images,
    passes=(1, 2, 4, 8, 16, 32),
    tuned_at=16,
    grid=GRID,
)
CASCADE = Way(
    "cascade",
    parts=(
        Part(make_base, low_loss, batch=48, fraction=1 / 3),
        Part(make_superres, high_loss, batch=16, fraction=2 / 3),
    ),
    images=cascade_images,
    passes=(1, 2, 4, 8, 16),
    tuned_at=16,
    grid=GRID,
)


# --- Train, tune, measure: steps 1 to 3 ---


def train_way(
    way: Way, seed: int, muse: Muse, args: Namespace
) -> tuple[list[nn.Module], list[dict]]:
    """The models of a way, and the steps and seconds that each took. Those in OUT are loaded."""
    tokens = cached_tokens(muse, "shapes", "train", args.pictures, args.out)
    models = []
    costs = []
    for i, part in enumerate(way.parts):
        name = f"{way.name}-{i}-{seed}-{args.seconds:g}s"
        model, cost = train_part(name, part, seed, muse, tokens, args)
        models.append(model)
        costs.append(cost)
    return models, costs


def train_part(
    name: str, part: Part, seed: int, muse: Muse, tokens: Tokens, args: Namespace
) -> tuple[nn.Module, dict[str, float]]:
    def make():
        model = part.make(muse, tokens.shards[0]["text"].float())
        return model, part.loss(model, muse, tokens)

    path = args.out / f"{name}.safetensors"
    if not path.is_file():
        stage = stage_settings(1, part.batch, part.lr)
        budget = part.fraction * args.seconds
        fitted = fit(name, make, stage, len(tokens), seed, args.out, budget)
        cost = {"steps": str(fitted.steps), "seconds": str(fitted.seconds)}
        save_tensors(path, fitted.model.state_dict(), cost)
    model, _ = make()
    model.eval().requires_grad_(False)
    model.load_state_dict(load_file(path))
    with safe_open(path, "pt") as file:
        cost = {name: float(value) for name, value in file.metadata().items()}
    return model, cost


def draw(
    way: Way, muse: Muse, models: list, prompts: Prompts, passes: int, settings: dict, seed: int
) -> torch.Tensor:
    """Images (B, 3, H, W), from embeddings to pixels."""
    generators = muse.generators("", seed, len(prompts.text))
    with autocast(muse.device), torch.no_grad():
        return way.images(muse, models, prompts, passes, settings, generators)


def mean_score(fractions: dict[str, float]) -> float:
    """The mean over all attributes that the detector reads.

    It is what is tuned for. It also compares models that are seldom right in everything.
    """
    return statistics.mean(fractions.values())


class Trial:
    """The trained models of one way and seed, to tune and to test; results are kept in OUT."""

    def __init__(self, way: Way, seed: int, args: Namespace):
        self.way = way
        self.args = args
        self.prefix = f"{way.name}-{seed}-{args.seconds:g}s-{args.n}"
        self.muse = Muse.load("toy-shapes")
        self.models, self.costs = train_way(way, seed, self.muse, args)
        half = -(-args.n // 2)  # rounded up
        self.scenes = {"train": scenes("train", half), "heldout": scenes("heldout", args.n)}

    def fractions_right(
        self, split: str, passes: int, settings: dict, sampling_seed: int
    ) -> dict[str, float]:
        """The fraction of images that are right in each attribute."""
        captions = [shapes.caption(scene) for scene in self.scenes[split]]
        images = []
        for i in range(0, len(captions), 32):
            prompts = self.muse.embed_prompts(captions[i : i + 32])
            seed = sampling_seed * 10_000 + i
            images.append(draw(self.way, self.muse, self.models, prompts, passes, settings, seed))
        cells = alignment(self.scenes[split], torch.cat(images))
        return {name: cell["value"] for name, cell in cells.items() if cell["n"]}

    def run(self, kind: str, jobs: dict[str, tuple]) -> dict:
        path = self.args.out / f"{self.prefix}-{kind}.json"
        return run_jobs(path, jobs, self.fractions_right, 1)

    def tune(self) -> dict:
        """The settings of the grid with the best score."""
        choices = itertools.product(*self.way.grid.values())
        candidates = [dict(zip(self.way.grid, choice, strict=True)) for choice in choices]
        jobs = {json.dumps(s): ("train", self.way.tuned_at, s, TUNING_SEED) for s in candidates}
        tuning = self.run("tuning", jobs)
        return json.loads(max(tuning, key=lambda name: mean_score(tuning[name])))

    def fewest_passes(self, settings: dict) -> int:
        """The fewest passes that come within 0.02 of the best score."""
        jobs = {str(p): ("train", p, settings, TUNING_SEED) for p in self.way.passes}
        results = self.run("passes", jobs)
        scores = {int(passes): mean_score(result) for passes, result in results.items()}
        best = max(scores.values())
        return min(p for p in self.way.passes if scores[p] >= best - 0.02)

    def test(self, settings: dict) -> dict[int, list[dict]]:
        """By number of passes, for each sampling seed: what is right of the held-out captions."""
        jobs = {
            f"{passes}/{seed}": ("heldout", passes, settings, seed)
            for passes in self.way.passes
            for seed in DRAWINGS
        }
        results = self.run("test", jobs)
        return {p: [results[f"{p}/{seed}"] for seed in DRAWINGS] for p in self.way.passes}


def measure(way: Way, seed: int, args: Namespace) -> dict:
    """Train, tune and test one way with one seed."""
    trial = Trial(way, seed, args)
    settings = trial.tune()
    return {
        "parameters": sum(p.numel() for model in trial.models for p in model.parameters()),
        "seconds": sum(cost["seconds"] for cost in trial.costs),
        "steps": " + ".join(f"{cost['steps']:.0f}" for cost in trial.costs),
        "settings": settings,
        "passes": trial.fewest_passes(settings),
        "test": trial.test(settings),
    }


# --- Time: step 4 ---


def measure_times(
    ways: tuple[Way, ...], done: dict, batch: int, args: Namespace
) -> dict[str, dict[int, float]]:
    """Seconds per image of each way at each number of passes. All take turns."""
    muse = Muse.load("toy-shapes", args.device)
    prompts = muse.embed_prompts([shapes.caption(scene) for scene in scenes("heldout", batch)])
    models = {}
    for way in ways:
        trained, _ = train_way(way, 0, Muse.load("toy-shapes"), args)
        models[way.name] = [model.to(muse.device) for model in trained]
    times = {way.name: {passes: [] for passes in way.passes} for way in ways}
    for round_ in range(1 + ROUNDS):
        for way in ways:
            settings = done[f"{way.name}/0"]["settings"]
            for passes in way.passes:
                begun = time.perf_counter()
                images = draw(way, muse, models[way.name], prompts, passes, settings, round_)
                images.sum().item()  # waits for a GPU
                seconds = (time.perf_counter() - begun) / batch
                if round_ > 0:  # the first round warms up
                    times[way.name][passes].append(seconds)
    return {
        name: {passes: statistics.median(rounds) for passes, rounds in of_way.items()}
        for name, of_way in times.items()
    }


# --- The comparison ---


class Comparison:
    """The results of all ways, the rival first, as tables, verdicts and figures need them."""

    def __init__(self, ways: tuple[Way, ...], done: dict, times: dict):
        self.ways = ways
        self.results = {way.name: done[f"{way.name}/0"] for way in ways}
        self.times = times

    def passes(self, way: Way) -> int:
        """The way's own number of passes."""
        return self.results[way.name]["passes"]

    def scores(self, way: Way, passes: int) -> list[float]:
        """The mean score of each sampling seed."""
        return [mean_score(result) for result in self.results[way.name]["test"][str(passes)]]

    def attribute(self, way: Way, name: str) -> list[float]:
        """The fraction that is right in one attribute, at the way's own number of passes."""
        results = self.results[way.name]["test"][str(self.passes(way))]
        return [result[name] for result in results]

    def seconds(self, way: Way, passes: int, batch: int) -> float:
        """Seconds per image."""
        return self.times[str(batch)][way.name][str(passes)]

    def table(self) -> str:
        head = [
            "",
            "parameters",
            "steps",
            "seconds",
            "tuned to",
            "passes",
            "right on average",
            "in shape",
            "in count",
            "in all",
            *(f"an image, batch {batch}" for batch in BATCHES),
        ]
        return table(head, [self.row(way) for way in self.ways])

    def row(self, way: Way) -> list[str]:
        result = self.results[way.name]
        passes = self.passes(way)
        return [
            way.name,
            f"{result['parameters']:,}",
            result["steps"],
            f"{result['seconds']:.0f}",
            ", ".join(f"{name} {value:g}" for name, value in result["settings"].items()),
            str(passes),
            mean_and_std(self.scores(way, passes)),
            *(mean_and_std(self.attribute(way, name)) for name in ("shape", "count", "all")),
            *(f"{1000 * self.seconds(way, passes, batch):.0f} ms" for batch in BATCHES),
        ]

    def verdicts(self) -> list[str]:
        """Of each way against the rival: how many times as fast, and whether it is better."""
        lines = []
        for way in self.ways[1:]:
            lines.append(self.verdict(way, self.passes(way), "at its own number of passes"))
            similar = self.fewest_not_worse(way)
            if similar is not None:
                lines.append(
                    self.verdict(way, similar, "with the fewest that are not surely worse")
                )
        return lines

    def fewest_not_worse(self, way: Way) -> int | None:
        """The fewest passes at which a way is not surely worse than the rival."""
        rival = self.ways[0]
        rival_scores = self.scores(rival, self.passes(rival))
        for passes in way.passes:
            if verdict(self.scores(way, passes), rival_scores) != "does not hold":
                return passes
        return None

    def verdict(self, way: Way, passes: int, description: str) -> str:
        rival = self.ways[0]
        rival_passes = self.passes(rival)
        factors = []
        for batch in BATCHES:
            factor = self.seconds(rival, rival_passes, batch) / self.seconds(way, passes, batch)
            factors.append(f"{factor:.1f} (batch {batch})")
        better = verdict(self.scores(way, passes), self.scores(rival, rival_passes))
        return (
            f"- {way.name}, {description}, {passes}, against {rival.name}, {rival_passes}: "
            f"{' and '.join(factors)} times as fast; better: {better}"
        )

    def figure(self):
        """Score against seconds per image, one panel for each batch size."""
        figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
        for axis, batch in zip(axes, BATCHES, strict=True):
            for way in self.ways:
                self.curve(axis, way, batch)
            axis.set(xlabel=f"seconds per image, batch {batch}", xscale="log")
            left, right = axis.get_xlim()
            ticks = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]
            ticks = [tick for tick in ticks if left < tick < right]
            axis.set(xticks=ticks, xticklabels=ticks)
            axis.minorticks_off()
        axes[0].set_ylabel("right, mean of attributes")
        axes[0].legend(fontsize=8)
        return figure

    def curve(self, axis, way: Way, batch: int) -> None:
        x = [self.seconds(way, passes, batch) for passes in way.passes]
        scores = np.array([self.scores(way, passes) for passes in way.passes])  # passes, seeds
        y = scores.mean(1)
        axis.errorbar(x, y, scores.std(1), label=way.name, marker="o", markersize=3, capsize=2)
        for passes, *place in zip(way.passes, x, y, strict=True):
            axis.annotate(str(passes), place, xytext=(2, 3), textcoords="offset points", fontsize=7)


def comparison(rival: Way, done: dict, times: dict) -> Comparison:
    """A rival against parallel decoding, direct and in a cascade."""
    return Comparison((rival, MASKED, CASCADE), done, times)


def compare(description: str, claim: str, rival: Way) -> None:
    """Train, tune and time a rival, the masked model and the cascade; write the report.

    description: of the script, which the command line says with --help.
    """
    args = arguments(description, seconds=900.0, pictures=20_000, n=96, device="cpu")
    torch.set_num_threads(1)
    # Make the tokens before the processes start, or two of them would write the same file.
    cached_tokens(Muse.load("toy-shapes"), "shapes", "train", args.pictures, args.out)
    ways = (rival, MASKED, CASCADE)
    jobs = {f"{way.name}/0": (way, 0, args) for way in ways}
    done = run_jobs(args.out / f"{claim}.json", jobs, measure, args.workers)
    sizes = {name: result["parameters"] for name, result in done.items()}
    if max(sizes.values()) > 1.05 * min(sizes.values()):
        raise ValueError(f"parameters differ by more than 5 %: {sizes}")
    timing_jobs = {str(batch): (ways, done, batch, args) for batch in BATCHES}
    times_file = args.out / f"{claim}-{args.device}-times.json"
    times = run_jobs(times_file, timing_jobs, measure_times, 1)
    compared = comparison(rival, done, times)
    compared.figure().savefig(args.out / f"{claim}.png", dpi=110, bbox_inches="tight")
    write_report(args.out, claim, done, compared.table(), "\n".join(compared.verdicts()))
