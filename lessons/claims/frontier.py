"""Quality against passes, for each sampler, each at its own best temperatures.

    python lessons/claims/frontier.py --model toy-shapes --out runs/claims

Writes OUT/frontier.json and OUT/frontier.png. Quality is the share of pictures that are right in all attributes, read by the detector.
Temperatures are tuned for each sampler *and* number of passes, on captions of the validation split; what is shown is measured on
held-out captions, three seeds. First the base model's passes, with super-resolution as the model's config.json says; then
super-resolution's, from low-res tokens drawn once; and ramp, constant and interval of guidance at (nearly) equal passes.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from minimuse import Muse, shapes
from minimuse.decode import SAMPLERS, Sampling

SEEDS = (0, 1, 2)
CONFIDENCE = [(t, c) for t in (0.5, 1.0) for c in (0.5, 2.0, 8.0)]  # temperature, choice temperature
OTHERS = [(t, 1.0) for t in (0.25, 0.5, 1.0)]


def scenes(split: str, n: int) -> list:
    """Held-out combinations for the test; for tuning others, of the validation split: odd training numbers."""
    return [shapes.scene(2 * i + 1 if split == "train" else i, split) for i in range(n)]


def draw(muse: Muse, wanted: list, seed: int, low: Sampling, high: Sampling, start: torch.Tensor | None = None) -> float:
    """Share of pictures that are right in everything; `start`: low-res tokens (n, N) that are there already."""
    images = []
    for i in range(0, len(wanted), 32):
        given = {} if start is None else {"low": start[i : i + 32]}
        for _, step in muse.steps([shapes.caption(s) for s in wanted[i : i + 32]], "", low, high, seed * 10_000 + i, **given):
            ids = step.ids
        images.append(muse.pixels(ids, "high"))
    return shapes.alignment(wanted, torch.cat(images))["all"]["value"]


def low_tokens(muse: Muse, wanted: list, seed: int) -> torch.Tensor:
    """Low-res tokens (n, N), drawn as config.json says."""
    found = []
    for i in range(0, len(wanted), 64):
        for resolution, step in muse.steps([shapes.caption(s) for s in wanted[i : i + 64]], seed=seed * 10_000 + i):
            if resolution == "high":
                break
            last = step.ids
        found.append(last)
    return torch.cat(found)


def tuned(muse: Muse, name: str, passes: tuple[int, ...], vary, tune: list, test: list, starts: dict, done: dict, save) -> None:
    """Fill done["name/sampler/steps"]; what is there already stays, so that a stopped run goes on."""
    for sampler in SAMPLERS:
        for steps in passes:
            key = f"{name}/{sampler}/{steps}"
            if key in done:
                continue
            grid = CONFIDENCE if sampler == "confidence" else OTHERS
            settings = [dict(sampler=sampler, steps=steps, temperature=t, choice_temperature=c) for t, c in grid]
            scores = [draw(muse, tune, 9, *vary(s), starts.get("tune")) for s in settings]
            best = settings[int(np.argmax(scores))]
            values = [draw(muse, test, seed, *vary(best), starts.get(seed)) for seed in SEEDS]
            done[key] = {"best": best, "tuning": max(scores), "values": values}
            save()
            tqdm.write(f"{key:24} {np.mean(values):.3f} +- {np.std(values):.3f}  temperature {best['temperature']}, choice {best['choice_temperature']}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="toy-shapes")
    p.add_argument("--out", type=Path, default=Path("runs/claims"))
    p.add_argument("--n", type=int, default=128, help="held-out captions; half as many to tune")
    p.add_argument("--base", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="the toy's base model has 16 tokens: more passes do nothing")
    p.add_argument("--superres", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse, path = Muse.load(args.model), args.out / "frontier.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    save = lambda: path.write_text(json.dumps(done, indent=1) + "\n")
    low, high = muse.config.sampling, muse.config.sampling_hi
    tune, test = scenes("train", args.n // 2), scenes("heldout", args.n)
    tuned(muse, "base", tuple(args.base), lambda s: (replace(low, **s), high), tune, test, {}, done, save)
    starts = {"tune": low_tokens(muse, tune, 9)} | {seed: low_tokens(muse, test, seed) for seed in SEEDS}
    tuned(muse, "superres", tuple(args.superres), lambda s: (low, replace(high, **s)), tune, test, starts, done, save)
    for guidance in (1.0, 2.0, 4.0):  # of the base model; an unguided step is half a pass: the interval takes more of them
        courses = {"ramp": dict(steps=8), "constant": dict(steps=8, ramp=False), "interval": dict(steps=11, ramp=False, guided=(0.5, 1.0))}
        for course, settings in courses.items():
            if (key := f"guidance {guidance}/{course}") not in done:
                done[key] = {"values": [draw(muse, test, seed, replace(low, guidance=guidance, **settings), high) for seed in SEEDS]}
                save()
                tqdm.write(f"{key:24} {np.mean(done[key]['values']):.3f} +- {np.std(done[key]['values']):.3f}")
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for axis, name, passes in zip(axes, ("base", "superres"), (args.base, args.superres)):
        for sampler in SAMPLERS:
            values = np.array([done[f"{name}/{sampler}/{steps}"]["values"] for steps in passes])
            axis.errorbar(passes, values.mean(1), values.std(1), label=sampler, marker="o", markersize=3, capsize=2)
        axis.set(xscale="log", xticks=passes, xticklabels=passes, xlabel=f"passes of {name}", title=name)
        axis.minorticks_off()
    axes[0].set_ylabel("right in all attributes")
    axes[0].legend(fontsize=8)
    figure.savefig(args.out / "frontier.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
