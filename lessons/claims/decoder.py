"""Claim 3: a bigger decoder sharpens detail, with no other part trained again (Muse, section 2.5).

    python lessons/claims/decoder.py --out runs/claims   # half an hour of one core; `eval` extra

The high-res decoders of both shipped models: as the tokenizers were trained, and after growing and
finetuning. Both decode the same tokens. Those of real held-out images are compared with the images
by PSNR, SSIM, the perceptual distance and sharpness. Others are drawn for held-out captions, with
five seeds. Sharpness is the mean difference of neighbouring pixels, as a fraction of the real
images'. There is one decoder of each kind.
"""

import time

import torch
from PIL import Image
from trial import (
    SEEDS,
    arguments,
    first_captions,
    mean_and_std,
    run_jobs,
    table,
    verdict,
    write_report,
)

from minimuse import Muse
from minimuse.cli.figures import beside, sheet
from minimuse.datasets import load, shapes
from minimuse.metrics.alignment import alignment
from minimuse.metrics.images import psnr, ssim
from minimuse.plumbing.lite0 import Lite0
from minimuse.runs.cache import tokens_of
from minimuse.vq_loss import perceptual_distance

MODELS = ("toy-shapes", "toy")
DECODERS = {"the tokenizer's": False, "finetuned": True}
# Measures of reconstructions, and their digits in the table.
MEASURES = {"psnr": 2, "ssim": 4, "perceptual": 4, "sharpness": 3}
DRAWN_MEASURES = ("drawn sharpness", "drawn shape", "drawn all")


def sharpness(images: torch.Tensor) -> float:
    """Mean absolute difference of neighbours in a row and in a column, of images (B, 3, H, W)."""
    along_rows = images.diff(dim=-1).abs().mean()
    along_columns = images.diff(dim=-2).abs().mean()
    return float((along_rows + along_columns) / 2)


def decode_batches(muse: Muse, ids: torch.Tensor, finetuned: bool) -> torch.Tensor:
    """High-res ids (B, N) -> images (B, 3, H, W), 64 at a time."""
    return torch.cat([muse.pixels(part, "high", finetuned) for part in ids.split(64)])


def draw_ids(muse: Muse, captions: list[str], seed: int) -> torch.Tensor:
    """High-res ids (B, N) for the captions, 32 at a time."""
    batches = []
    for start in range(0, len(captions), 32):
        *_, (_, last) = muse.steps(captions[start : start + 32], seed=seed + start)
        batches.append(last.ids)
    return torch.cat(batches)


def mean_perceptual_distance(net: Lite0, a: torch.Tensor, b: torch.Tensor) -> float:
    """The mean over pairs of images, one pair at a time."""
    distances = [
        float(perceptual_distance(net, x[None], y[None])) for x, y in zip(a, b, strict=True)
    ]
    return sum(distances) / len(distances)


def work(name: str, seed: int, n: int) -> dict:
    """One seed of drawing. The real images are the same for each seed."""
    begun = time.monotonic()
    muse = Muse.load(name)
    net = Lite0()
    images = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    captions = first_captions(images)
    real = images.batch(range(len(images)))
    ids = tokens_of(muse.parts, muse.text, images).ids("high")
    drawn_ids = draw_ids(muse, captions, seed)
    results = {}
    for decoder, finetuned in DECODERS.items():
        module = muse.decoder if finetuned else muse.tokenizer_hi.decoder
        reconstructed = decode_batches(muse, ids, finetuned)
        drawn = decode_batches(muse, drawn_ids, finetuned)
        results[decoder] = {
            "weights": sum(p.numel() for p in module.parameters()),
            "psnr": psnr(reconstructed, real),
            "ssim": ssim(reconstructed, real),
            "perceptual": mean_perceptual_distance(net, reconstructed, real),
            "sharpness": sharpness(reconstructed) / sharpness(real),
            "drawn sharpness": sharpness(drawn) / sharpness(real),
        }
        if muse.about["data"] == "shapes":
            cells = alignment([shapes.parse(caption) for caption in captions], drawn)
            results[decoder]["drawn shape"] = cells["shape"]["value"]
            results[decoder]["drawn all"] = cells["all"]["value"]
    return results | {"seconds": round(time.monotonic() - begun, 1)}


def examples(name: str, n: int) -> Image.Image:
    """Real images, and what each decoder makes of their tokens."""
    muse = Muse.load(name)
    images = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    ids = tokens_of(muse.parts, muse.text, images).ids("high")
    rows = [images.batch(range(n))]
    for finetuned in DECODERS.values():
        rows.append(muse.pixels(ids, "high", finetuned))
    return sheet(rows, first_captions(images), titles=("real", "tokenizer", "finetuned"))


def of_seeds(done: dict, model: str, decoder: str, measure: str) -> list[float]:
    return [done[f"{model}/{seed}"][decoder][measure] for seed in SEEDS]


def row(done: dict, model: str, decoder: str) -> list[str]:
    first = done[f"{model}/{SEEDS[0]}"][decoder]
    cells = [f"{model}: {decoder}", f"{first['weights'] / 1e6:.2f} M"]
    for measure, digits in MEASURES.items():
        cells.append(f"{first[measure]:.{digits}f}")
    for measure in DRAWN_MEASURES:
        if measure in first:
            cells.append(mean_and_std(of_seeds(done, model, decoder, measure)))
        else:
            cells.append("")
    return cells


def verdicts_of_model(done: dict, model: str) -> list[str]:
    """Whether the finetuned decoder is nearer to real images, and whether it draws sharper ones.

    Both decoders get the same tokens, seed by seed. So the paired test would be the right one, and
    could find a difference that `verdict`, which does not use the pairs, misses.
    """
    old_name, new_name = DECODERS
    result = done[f"{model}/{SEEDS[0]}"]
    old, new = result[old_name], result[new_name]
    better = [
        new["psnr"] > old["psnr"],
        new["ssim"] > old["ssim"],
        new["perceptual"] < old["perceptual"],
    ]
    nearer = "holds" if all(better) else "does not hold"
    old_sharpness = of_seeds(done, model, old_name, "drawn sharpness")
    new_sharpness = of_seeds(done, model, new_name, "drawn sharpness")
    return [
        f"- {model}: nearer to real images by PSNR, SSIM and the perceptual distance: {nearer}",
        f"- {model}: drawn images are sharper: {verdict(new_sharpness, old_sharpness)}",
    ]


def verdicts(done: dict) -> list[str]:
    return [line for model in MODELS for line in verdicts_of_model(done, model)]


def main():
    args = arguments(__doc__, n=256)
    jobs = {f"{model}/{seed}": (model, seed, args.n) for model in MODELS for seed in SEEDS}
    done = run_jobs(args.out / "decoder.json", jobs, work, args.workers)
    sheets = [examples(model, 5) for model in MODELS]
    beside(sheets, list(MODELS), scale=1).save(args.out / "decoder.png", optimize=True)
    head = [
        "decoder",
        "weights",
        "PSNR, dB",
        "SSIM",
        "perceptual",
        "sharpness",
        "sharpness, drawn",
        "right shapes, drawn",
        "all right, drawn",
    ]
    rows = [row(done, model, decoder) for model in MODELS for decoder in DECODERS]
    write_report(args.out, "decoder", done, table(head, rows), "\n".join(verdicts(done)))


if __name__ == "__main__":
    main()
