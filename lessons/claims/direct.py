"""Ways to draw the fine tokens of toy-shapes from a caption, compared fairly: what claims 2, 6 and 7 have in common.

Two ways are here: `MASKED`, one masked model that predicts the 16 x 16 tokens directly, and `CASCADE`, a base model of 4 x 4 tokens and
super-resolution. The scripts of the claims bring a third, and call `compare`:

1. All are trained for the same number of seconds of one processor, on the same pictures, with the same optimizer; parameters within 5 %
   (checked). The learning rates are those of the presets for all: they are not tuned.
2. Guidance and temperatures are tuned for each, over its whole grid, at one number of passes, on captions of the training split with odd
   numbers: the mean over what the detector reads (less noisy than "right in all", and above 0 early in training). Then, on the same
   captions, a way's own number of passes: the fewest that come within .02 of its best.
3. Measured by the same mean on held-out captions, three sampling seeds, at every number of passes.
4. Timed in this process alone, one thread, from caption embeddings to pixels: medians of five rounds in which all take turns.

Trained models are kept in OUT, each under its seed and seconds, and the next script takes them from there.
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
    SEEDS,
    finish,
    fit,
    masked_loss,
    settings,
    table,
    tokens_of,
    told,
    verdict,
    work_through,
)

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import shapes
from minimuse.decode import Sampling, decode
from minimuse.device import autocast
from minimuse.initialization import initialize_weights
from minimuse.maskgit import BaseConfig, MaskGit
from minimuse.metrics import alignment
from minimuse.muse import Prompts
from minimuse.plumbing.files import save_tensors
from minimuse.superres import SuperRes, SuperResConfig
from minimuse.transformer import TokenDecoder
from minimuse.vq import ImageTokenizer

SIZE, WINDOW = BaseConfig(width=128, layers=3, heads=4), 8
BATCHES, ROUNDS = (1, 32), 5  # to time


class Direct(MaskGit):
    """The base model over a fine grid: the same, but for multi-axis attention."""

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int, window: int):
        super().__init__(config, codes, grid, text_width)
        self.decoder = TokenDecoder(codes, grid, config.width, config.heads, config.layers, window)
        initialize_weights(self, config.layers)


class Part(NamedTuple):
    make: Callable  # (muse, embeddings of words (M, E)) -> a fresh model
    loss: Callable  # (model, muse, tokens) -> what `optimize` wants
    batch: int
    share: float = 1.0  # of the way's training seconds


class Way(NamedTuple):
    """One way from a caption to the fine tokens."""

    name: str
    parts: tuple[Part, ...]
    ids: Callable  # (muse, models, asked, passes, how, generator) -> (B, N)
    passes: tuple[int, ...]  # those to measure
    tuned_at: int  # passes
    grid: dict[str, tuple]  # the settings `how` to choose from


def vectors(tokenizer: ImageTokenizer) -> torch.Tensor:
    return tokenizer.quantizer.lookup(torch.arange(tokenizer.config.codes))


def make_direct(muse: Muse, words: torch.Tensor) -> Direct:
    high = muse.tokenizer_hi
    model = Direct(SIZE, high.config.codes, high.config.grid, muse.text.width, WINDOW)
    model.start(words, vectors(high))
    return model


def make_base(muse: Muse, words: torch.Tensor) -> MaskGit:
    low = muse.tokenizer
    model = MaskGit(
        BaseConfig(width=96, layers=3, heads=4), low.config.codes, low.config.grid, muse.text.width
    )
    model.start(words, vectors(low))
    return model


def make_superres(muse: Muse, words: torch.Tensor) -> SuperRes:
    low, high = muse.tokenizer, muse.tokenizer_hi
    size = SuperResConfig(width=64, layers=2, heads=4, encoder_layers=1, window=WINDOW)
    model = SuperRes(
        size,
        low.config.codes,
        low.config.grid,
        high.config.codes,
        high.config.grid,
        muse.text.width,
    )
    model.start(words, vectors(low), vectors(high))
    return model


def low_loss(model: nn.Module, muse: Muse, tokens: Tokens) -> Callable:
    return masked_loss(model, tokens, "low")


def high_loss(model: nn.Module, muse: Muse, tokens: Tokens) -> Callable:
    return masked_loss(model, tokens, "high")


def parallel(
    muse: Muse,
    model: nn.Module,
    asked: Prompts,
    passes: int,
    how: dict,
    generator: torch.Generator,
    *low: torch.Tensor,
) -> torch.Tensor:
    """A masked model's tokens (B, N); low: the low-res ids, for super-resolution."""
    sampling = Sampling(
        passes, how["guidance"], temperature=how["temperature"], choice_temperature=how["choice"]
    )
    ids = torch.full(
        (len(asked.text), len(model.decoder.positions())), model.mask_id, device=muse.device
    )
    for step in decode(
        model,
        ids,
        model.mask_id,
        *muse.contexts(model, asked, sampling.guidance, *low),
        sampling,
        generator,
    ):
        ids = step.ids
    return ids


def masked_ids(
    muse: Muse, models: list, asked: Prompts, passes: int, how: dict, generator: torch.Generator
) -> torch.Tensor:
    return parallel(muse, models[0], asked, passes, how, generator)


def cascade_ids(
    muse: Muse, models: list, asked: Prompts, passes: int, how: dict, generator: torch.Generator
) -> torch.Tensor:
    """`passes` of the base model; of super-resolution, as in Muse, a third of them (24 and 8)."""
    low = parallel(muse, models[0], asked, passes, how, generator)
    return parallel(muse, models[1], asked, -(-passes // 3), how, generator, low)


TUNED = {"guidance": (0.0, 1.0, 2.0, 4.0), "temperature": (0.5, 1.0), "choice": (0.5, 4.0)}
MASKED = Way(
    "masked", (Part(make_direct, high_loss, 16),), masked_ids, (1, 2, 4, 8, 16, 32), 16, TUNED
)
CASCADE = Way(
    "cascade",
    (Part(make_base, low_loss, 48, 1 / 3), Part(make_superres, high_loss, 16, 2 / 3)),
    cascade_ids,
    (1, 2, 4, 8, 16),
    16,
    TUNED,
)


def trained(way: Way, seed: int, muse: Muse, args: Namespace) -> tuple[list[nn.Module], list[dict]]:
    """The models of a way, and the steps and seconds that each took; from OUT, if they are there."""
    tokens, models, found = tokens_of(muse, "shapes", "train", args.pictures, args.out), [], []
    for i, part in enumerate(way.parts):

        def make():
            model = part.make(muse, tokens.shards[0]["text"].float())
            return model, part.loss(model, muse, tokens)

        name = f"{way.name}-{i}-{seed}-{args.seconds:g}s"
        if not (path := args.out / f"{name}.safetensors").is_file():
            model, steps, seconds = fit(
                name,
                make,
                settings(1, part.batch),
                len(tokens),
                seed,
                args.out,
                part.share * args.seconds,
            )
            save_tensors(path, model.state_dict(), {"steps": str(steps), "seconds": str(seconds)})
        model = make()[0].eval().requires_grad_(False)
        model.load_state_dict(load_file(path))
        with safe_open(path, "pt") as file:
            found.append({k: float(v) for k, v in file.metadata().items()})
        models.append(model)
    return models, found


def draw(
    way: Way, muse: Muse, models: list, asked: Prompts, passes: int, how: dict, seed: int
) -> torch.Tensor:
    """Pictures (B, 3, H, W), from embeddings to pixels."""
    with autocast(muse.device), torch.no_grad():
        ids = way.ids(muse, models, asked, passes, how, torch.Generator().manual_seed(seed))
    return muse.pixels(ids, "high")


def mean(found: dict[str, float]) -> float:
    """Over all that the detector reads: what is tuned for, and what compares models that are seldom right in everything."""
    return statistics.mean(found.values())


def measured(way: Way, seed: int, args: Namespace) -> dict:
    """Train, tune, measure: steps 1 to 3, each result kept as it comes."""
    muse = Muse.load("toy-shapes")
    models, training = trained(way, seed, muse, args)
    wanted = {"train": scenes("train", -(-args.n // 2)), "heldout": scenes("heldout", args.n)}

    def right(split: str, passes: int, how: dict, sampling_seed: int) -> dict[str, float]:
        """Share of pictures that are right in each attribute."""
        images, captions = [], [shapes.caption(scene) for scene in wanted[split]]
        for i in range(0, len(captions), 32):
            images.append(
                draw(
                    way,
                    muse,
                    models,
                    muse.embed_prompts(captions[i : i + 32]),
                    passes,
                    how,
                    sampling_seed * 10_000 + i,
                )
            )
        return {
            k: share["value"]
            for k, share in alignment.alignment(wanted[split], torch.cat(images)).items()
            if share["n"]
        }

    kept = lambda what, jobs: work_through(
        args.out / f"{way.name}-{seed}-{args.seconds:g}s-{args.n}-{what}.json", jobs, right, 1
    )
    hows = [dict(zip(way.grid, chosen)) for chosen in itertools.product(*way.grid.values())]
    tuning = kept("tuning", {json.dumps(how): ("train", way.tuned_at, how, 9) for how in hows})
    how = json.loads(max(tuning, key=lambda name: mean(tuning[name])))
    passing = {
        int(passes): mean(found)
        for passes, found in kept(
            "passes", {str(p): ("train", p, how, 9) for p in way.passes}
        ).items()
    }
    own = min(p for p in way.passes if passing[p] >= max(passing.values()) - 0.02)
    test = kept("test", {f"{p}/{s}": ("heldout", p, how, s) for p in way.passes for s in SEEDS})
    return {
        "parameters": sum(p.numel() for model in models for p in model.parameters()),
        "seconds": sum(t["seconds"] for t in training),
        "steps": " + ".join(f"{t['steps']:.0f}" for t in training),
        "how": how,
        "passes": own,
        "test": {p: [test[f"{p}/{s}"] for s in SEEDS] for p in way.passes},
    }


def race(
    ways: tuple[Way, ...], done: dict, batch: int, args: Namespace
) -> dict[str, dict[int, float]]:
    """Seconds per picture of each way at each number of passes, all taking turns."""
    muse = Muse.load("toy-shapes", args.device)
    asked, took = muse.embed_prompts([shapes.caption(scene) for scene in scenes("heldout", batch)]), {}
    models = {
        way.name: [
            model.to(muse.device) for model in trained(way, 0, Muse.load("toy-shapes"), args)[0]
        ]
        for way in ways
    }
    for round_ in range(1 + ROUNDS):
        for way, passes in ((way, p) for way in ways for p in way.passes):
            begun = time.perf_counter()
            draw(
                way, muse, models[way.name], asked, passes, done[f"{way.name}/0"]["how"], round_
            ).sum().item()  # item() waits for a GPU
            if round_:  # the first is to warm up
                took.setdefault(way.name, {}).setdefault(passes, []).append(
                    (time.perf_counter() - begun) / batch
                )
    return {
        name: {p: statistics.median(times) for p, times in by.items()} for name, by in took.items()
    }


def compare(args: Namespace, claim: str, rival: Way) -> None:
    """A rival against parallel decoding, direct and in a cascade; tables, verdicts and figure."""
    torch.set_num_threads(1)
    tokens_of(
        Muse.load("toy-shapes"), "shapes", "train", args.pictures, args.out
    )  # here, or two processes would make the same file
    ways = rival, MASKED, CASCADE
    done = work_through(
        args.out / f"{claim}.json",
        {f"{way.name}/0": (way, 0, args) for way in ways},
        measured,
        args.workers,
    )
    sizes = {name: result["parameters"] for name, result in done.items()}
    assert max(sizes.values()) <= 1.05 * min(sizes.values()), (
        f"parameters differ by more than 5 %: {sizes}"
    )
    jobs = {str(batch): (ways, done, batch, args) for batch in BATCHES}
    times = work_through(args.out / f"{claim}-{args.device}-times.json", jobs, race, 1)
    by = {way.name: done[f"{way.name}/0"] for way in ways}
    part = lambda name, what: [found[what] for found in by[name]["test"][str(by[name]["passes"])]]
    score = lambda name, passes: [mean(found) for found in by[name]["test"][str(passes)]]
    second = lambda name, passes, batch: times[str(batch)][name][str(passes)]
    rows = [
        [
            name,
            f"{r['parameters']:,}",
            r["steps"],
            f"{r['seconds']:.0f}",
            ", ".join(f"{k} {v:g}" for k, v in r["how"].items()),
            str(r["passes"]),
            told(score(name, r["passes"])),
            *(told(part(name, what)) for what in ("shape", "count", "all")),
            *(f"{1000 * second(name, r['passes'], b):.0f} ms" for b in BATCHES),
        ]
        for name, r in by.items()
    ]
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
    ]
    head += [f"a picture, batch {b}" for b in BATCHES]
    verdicts, (name, own) = [], (rival.name, by[rival.name]["passes"])
    for way in ways[1:]:
        like = [
            p
            for p in way.passes
            if verdict(score(way.name, p), score(name, own)) != "does not hold"
        ]
        for said, passes in (
            ("at its own number of passes", by[way.name]["passes"]),
            *[("with the fewest that are not surely worse", p) for p in like[:1]],
        ):
            faster = " and ".join(
                f"{second(name, own, b) / second(way.name, passes, b):.1f} (batch {b})"
                for b in BATCHES
            )
            better = verdict(score(way.name, passes), score(name, own))
            verdicts.append(
                f"- {way.name}, {said}, {passes}, against {name}, {own}: {faster} times as fast; better: {better}"
            )
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axis, batch in zip(axes, BATCHES):
        for way in ways:
            x, y = (
                [second(way.name, p, batch) for p in way.passes],
                np.array([score(way.name, p) for p in way.passes]),
            )
            axis.errorbar(
                x, y.mean(1), y.std(1), label=way.name, marker="o", markersize=3, capsize=2
            )
            for p, *place in zip(way.passes, x, y.mean(1)):
                axis.annotate(str(p), place, xytext=(2, 3), textcoords="offset points", fontsize=7)
        axis.set(xlabel=f"seconds per picture, batch {batch}", xscale="log")
        ticks = [
            tick
            for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
            if axis.get_xlim()[0] < tick < axis.get_xlim()[1]
        ]
        axis.set(xticks=ticks, xticklabels=ticks)
        axis.minorticks_off()
    axes[0].set_ylabel("right, mean of attributes")
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / f"{claim}.png", dpi=110, bbox_inches="tight")
    finish(args.out, claim, done, table(head, rows), "\n".join(verdicts))
