"""Claim 3: a bigger decoder sharpens detail, with nothing else trained again (Muse, section 2.5).

    python lessons/claims/decoder.py --out runs/claims        # minutes of one core; needs the `eval` extra

The high-res decoders of both shipped models, as their tokenizers were trained and after growing and finetuning, from the same tokens: those
of real held-out pictures, against which PSNR, SSIM, the perceptual distance and sharpness are taken, and those drawn for held-out captions
(three seeds). Sharpness is the mean difference of neighbouring pixels, as a share of the real pictures'. One decoder of each kind.
"""

import time

import torch
from trial import SEEDS, arguments, finish, table, told, verdict, work_through

from minimuse import Muse
from minimuse.cli.figures import beside, sheet
from minimuse.datasets import load, shapes
from minimuse.metrics import alignment
from minimuse.metrics.images import psnr, ssim
from minimuse.plumbing.lite0 import Lite0
from minimuse.runs.cache import tokens_of
from minimuse.vq_loss import perceptual_distance

DECODERS = {"the tokenizer's": False, "finetuned": True}


def sharpness(images: torch.Tensor) -> float:
    """Mean absolute difference of neighbours in a row and in a column, of images (B, 3, H, W)."""
    return float((images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2)


def work(name: str, seed: int, n: int) -> dict:
    """One seed of drawing, and (for each seed the same) real pictures."""
    begun, muse, net = time.monotonic(), Muse.load(name), Lite0()
    pictures = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    captions, real = (
        [variants[0] for variants in pictures.captions],
        pictures.batch(range(len(pictures))),
    )
    ids = tokens_of(muse.parts, muse.text, pictures).ids("high")
    drawn = []
    for start in range(0, len(captions), 32):
        *_, (_, last) = muse.steps(captions[start : start + 32], seed=seed + start)
        drawn.append(last.ids)
    found = {}
    for decoder, finetuned in DECODERS.items():
        made, new = (
            torch.cat([muse.pixels(part, "high", finetuned) for part in x.split(64)])
            for x in (ids, torch.cat(drawn))
        )
        found[decoder] = {
            "weights": sum(
                p.numel()
                for p in (muse.decoder if finetuned else muse.tokenizer_hi.decoder).parameters()
            ),
            "psnr": psnr(made, real),
            "ssim": ssim(made, real),
            "perceptual": sum(
                float(perceptual_distance(net, a[None], b[None])) for a, b in zip(made, real)
            )
            / len(real),
            "sharpness": sharpness(made) / sharpness(real),
            "drawn sharpness": sharpness(new) / sharpness(real),
        }
        if muse.about["data"] == "shapes":
            share = alignment.alignment([shapes.parse(caption) for caption in captions], new)
            found[decoder] |= {f"drawn {part}": share[part]["value"] for part in ("shape", "all")}
    return found | {"seconds": round(time.monotonic() - begun, 1)}


def seen(name: str, n: int):
    """Real pictures, and what each decoder makes of their tokens, with a corner of each enlarged."""
    muse = Muse.load(name)
    pictures = load(muse.about["data"], "heldout", muse.config.tokenizer_hi.side, n)
    ids = tokens_of(muse.parts, muse.text, pictures).ids("high")
    rows = [
        pictures.batch(range(n)),
        *(muse.pixels(ids, "high", finetuned) for finetuned in DECODERS.values()),
    ]
    return sheet(
        rows,
        [variants[0] for variants in pictures.captions],
        titles=("real", "tokenizer", "finetuned"),
    )


def main():
    args = arguments(__doc__, n=256)
    models = ("toy-shapes", "toy")
    done = work_through(
        args.out / "decoder.json",
        {f"{m}/{seed}": (m, seed, args.n) for m in models for seed in SEEDS},
        work,
        args.workers,
    )
    rows, verdicts = [], []
    for model in models:
        of = lambda decoder, key: [done[f"{model}/{seed}"][decoder][key] for seed in SEEDS]
        for decoder in DECODERS:
            real = [
                f"{of(decoder, key)[0]:.{digits}f}"
                for key, digits in (("psnr", 2), ("ssim", 4), ("perceptual", 4), ("sharpness", 3))
            ]
            drawn = [
                told(of(decoder, key)) if key in done[f"{model}/0"][decoder] else ""
                for key in ("drawn sharpness", "drawn shape", "drawn all")
            ]
            rows.append(
                [f"{model}: {decoder}", f"{of(decoder, 'weights')[0] / 1e6:.2f} M", *real, *drawn]
            )
        old, new = (
            {key: of(decoder, key)[0] for key in ("psnr", "ssim", "perceptual", "sharpness")}
            for decoder in DECODERS
        )
        truer = (
            new["psnr"] > old["psnr"]
            and new["ssim"] > old["ssim"]
            and new["perceptual"] < old["perceptual"]
        )
        verdicts += [
            f"- {model}: nearer to real pictures by PSNR, SSIM and the perceptual distance: {'holds' if truer else 'does not hold'}",
            f"- {model}: drawn pictures are sharper: {verdict(of('finetuned', 'drawn sharpness'), of(list(DECODERS)[0], 'drawn sharpness'))}",
        ]
    both = [seen(model, 5) for model in models]
    beside(both, [*models], scale=1).save(args.out / "decoder.png", optimize=True)
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
    finish(args.out, "decoder", done, table(head, rows), "\n".join(verdicts))


if __name__ == "__main__":
    main()
