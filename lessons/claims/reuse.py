"""Guidance runs the model twice in each pass. How many of the second runs can be saved?

    python lessons/claims/reuse.py --model toy-shapes --out runs/claims   # toy: `eval` extra

The first run has the caption, the second has none. Guidance adds their difference, times t. Ways
to save second runs, each with a temperature of its own, tuned on other captions:

- always: both runs in every pass, as Muse.
- never: no guidance, and no second run.
- early: guidance in the first half of the passes only; late: in the second half (2404.07724).
- every 2nd, every 4th: the difference is computed in every second or fourth pass, and used again
  in the passes between. From one pass to the next, few tokens change.
- once: it is computed in the first pass alone.

Only the base model's passes are changed; super-resolution is as in config.json, and so are
guidance, its ramp and the number of passes. Five seeds of drawing. Is a way worse than `always`,
and is a difference that is used again better than guidance in one half? The report says how often
the base model runs.
"""

import copy
from dataclasses import replace
from pathlib import Path
from time import monotonic

import matplotlib.pyplot as plt
import torch
from corrected import measure_of, summary
from frontier import BATCH, TUNING_SEED, load_muse, quality, task
from torch import Tensor, nn
from trial import SEEDS, arguments, mean_and_std, run_jobs, table, verdict, write_report

from minimuse import Muse
from minimuse.data import to_pil
from minimuse.decode import Sampling, Step, one_pass, step
from minimuse.guidance import Conditions, run_model

TEMPERATURES = (0.3, 0.6, 0.8, 1.0)
NEVER_AGAIN = 10_000
# By name: the fractions of the passes that are guided, and in which of these passes the difference
# is computed: every one, every second one, and so on.
WAYS = {
    "always": ((0.0, 1.0), 1),
    "never": (None, 1),
    "early": ((0.0, 0.5), 1),
    "late": ((0.5, 1.0), 1),
    "every 2nd": ((0.0, 1.0), 2),
    "every 4th": ((0.0, 1.0), 4),
    "once": ((0.0, 1.0), NEVER_AGAIN),
}


class Reusing:
    """`decode.one_pass` for the base model of one batch, with a difference that is used again.

    It counts in `runs` how often the model ran. Each image has one prompt.
    """

    def __init__(self, base: nn.Module, every: int):
        self.base = base
        self.every = every
        self.guided_passes = 0
        self.runs = 0
        self.difference = None  # (B, N, K)

    def __call__(
        self,
        model: nn.Module,
        ids: Tensor,
        inputs: Tensor,
        hidden: Tensor,
        left: Tensor,
        conditions: Conditions,
        t: float,
        token_noise: Tensor,
        choice_noise: Tensor,
        sampling: Sampling,
    ) -> Step:
        noises = (token_noise, choice_noise)
        if model is not self.base:  # super-resolution
            return one_pass(model, ids, inputs, hidden, left, conditions, t, *noises, sampling)
        logits = run_model(model, inputs, None, conditions.cond)  # B N K
        self.runs += 1
        if conditions.uncond is not None:
            if self.guided_passes % self.every == 0:
                self.difference = logits - run_model(model, inputs, None, conditions.uncond)
                self.runs += 1
            self.guided_passes += 1
            logits = logits + t * self.difference
        left = torch.minimum(left, hidden.sum(dim=-1))  # B
        return step(logits, ids, hidden, left, *noises, sampling)


def drawn(
    muse: Muse, captions: list[str], seed: int, way: str, temperature: float
) -> tuple[Tensor, int]:
    """Images (B, 3, H, W) of some captions, and how often the base model ran."""
    guided, every = WAYS[way]
    sampling = replace(muse.config.sampling, temperature=temperature)
    if guided is None:
        sampling = replace(sampling, guidance=0.0)
    else:
        sampling = replace(sampling, guided=guided)
    watched = copy.copy(muse)  # it shares all weights
    watched.run_pass = Reusing(muse.base, every)
    _, images = watched.draw(captions, len(captions), seed=seed, sampling=sampling)
    return images, watched.run_pass.runs


@torch.no_grad()
def judged(model: str, part: str, n: int, seed: int, way: str, temperature: float) -> dict:
    """Draw all captions of a part in one way, and judge the images."""
    muse = load_muse(model)
    captions, judge = task(model, part, n)
    images = []
    for start in range(0, len(captions), BATCH):
        batch = captions[start : start + BATCH]
        of_batch, runs = drawn(muse, batch, seed * 10_000 + start, way, temperature)
        images.append(of_batch)
    return judge(torch.cat(images)) | {"runs": runs}


def work(model: str, n: int, way: str) -> dict:
    """Tune the temperature of one way, then draw the captions of the test with every seed."""
    begun = monotonic()

    def tuning(temperature: float) -> float:
        # Of the part "tune", `task` takes half as many captions as it is asked for.
        return quality(judged(model, "tune", 2 * n, TUNING_SEED, way, temperature))

    best = max(TEMPERATURES, key=tuning)
    results = [judged(model, "test", n, seed, way, best) for seed in SEEDS]
    return summary(results, begun) | {"tuned": best}


def verdicts(done: dict) -> list[str]:
    """Is a way worse than to compute both in every pass, and is one half worse than reuse?"""
    name, sign = measure_of(done)
    pairs = [("always", way) for way in done if way != "always"]
    pairs += [("every 2nd", half) for half in ("early", "late")]
    lines = []
    for better, worse in pairs:
        scores = [[sign * value for value in done[way][name]] for way in (better, worse)]
        lines.append(f"- {name}: {worse} is worse than {better}: {verdict(*scores)}")
    return lines


def make_table(done: dict) -> str:
    measures = [name for name in done["always"] if name not in ("runs", "seconds", "tuned")]
    rows = []
    for way, result in done.items():
        cells = [mean_and_std(result[name]) for name in measures]
        rows.append([way, str(result["runs"][0]), str(result["tuned"]), *cells])
    return table(["second run", "runs of the base model", "temperature", *measures], rows)


def draw_figure(path: Path, model: str, n: int, done: dict) -> None:
    """The first captions of the test, a row for each way."""
    muse = load_muse(model)
    captions = task(model, "test", n).captions[:8]
    size = (9.6, 1.2 * len(WAYS))
    figure, axes = plt.subplots(len(WAYS), len(captions), figsize=size, layout="constrained")
    for row, way in zip(axes, WAYS, strict=True):
        row[0].set_ylabel(way)
        images, _ = drawn(muse, captions, 0, way, done[way]["tuned"])
        for axis, image in zip(row, to_pil(images), strict=True):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main():
    args = arguments(__doc__, model="toy-shapes", n=128)
    name = f"reuse-{Path(args.model).name}"
    jobs = {way: (args.model, args.n, way) for way in WAYS}
    done = run_jobs(args.out / f"{name}.json", jobs, work, args.workers)
    draw_figure(args.out / f"{name}.png", args.model, args.n, done)
    write_report(args.out, name, done, make_table(done), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
