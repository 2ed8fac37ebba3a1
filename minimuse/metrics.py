"""Measures of a trained model, each with what it has to beat.

`report` is what `minimuse evaluate` writes: NLL of hidden tokens, tokenizers, and for shapes alignment; held-out pictures, fixed seeds.
"""

from collections.abc import Callable

import torch

from minimuse import schedule, shapes
from minimuse.cache import Tokens
from minimuse.data import halve
from minimuse.muse import Muse, autocast
from minimuse.train import generator_at, pictures_of
from minimuse.transformer import Context
from minimuse.vq import perplexity
from minimuse.vq_loss import Lite0, has_lite0, perceptual_distance


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over images (B, 3, H, W) in [-1, 1] of the peak signal-to-noise ratio, in dB."""
    return float((10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))).mean())


@torch.no_grad()
def masked_nll(model, ids: torch.Tensor, context: Callable[[slice], Context], ratio: float, seed: int = 0, batch: int = 64) -> float:
    """Mean negative log-likelihood, in nats, of a share `ratio` of the ids (M, N), hidden, the same ones for the same seed; chance is ln K.
    context(rows) gives what the model looks at for a slice of rows."""
    M, N = ids.shape
    counts = schedule.mask_counts(torch.full((M,), ratio, dtype=torch.float64), N)
    hidden = schedule.random_masks(counts, N, generator_at(seed, "nll", ratio)).to(ids.device)
    total = 0.0
    for rows in (slice(start, start + batch) for start in range(0, M, batch)):
        with autocast(ids.device):
            logits = model(ids[rows].masked_fill(hidden[rows], model.mask_id), context(rows), hidden[rows])
        total += float(torch.nn.functional.cross_entropy(logits, ids[rows][hidden[rows]], reduction="sum"))
    return total / int(hidden.sum())


def nll_tables(muse: Muse, tokens: Tokens) -> dict:
    """Per mask ratio: the base model with its caption, without, and with another picture's; super-resolution
    with its low-res tokens, with those of another picture, and without caption."""
    text, visible = (tensor.to(muse.device) for tensor in tokens.captions(torch.arange(len(tokens))))
    low, high = (tokens.ids(resolution).to(muse.device) for resolution in ("low", "high"))
    none, other = torch.zeros_like(visible), torch.arange(len(text)).roll(1)
    said = lambda model, given: lambda rows: model.context(*(tensor[rows] for tensor in given))
    table = lambda model, ids, *given: {str(r): masked_nll(model, ids, said(model, given), r) for r in (1.0, 0.75, 0.5, 0.25, 0.1)}
    return {
        "base": {
            "caption": table(muse.base, low, text, visible),
            "no caption": table(muse.base, low, text, none),
            "other caption": table(muse.base, low, text[other], visible[other]),
        },
        "superres": {
            "low-res and caption": table(muse.superres, high, text, visible, low),
            "no caption": table(muse.superres, high, text, none, low),
            "other low-res": table(muse.superres, high, text, visible, low[other]),
        },
    }


@torch.no_grad()
def tokenizer_report(muse: Muse, tokens: Tokens, images: torch.Tensor, batch: int = 64) -> tuple[dict, dict[str, torch.Tensor]]:
    """PSNR, codes used and perplexity on pictures (B, 3, H, W); and the reconstructions (low, high, finetuned)."""
    decode = lambda ids, *how: torch.cat([muse.pixels(part, *how) for part in ids.split(batch)])
    low, high = (tokens.ids(resolution).to(muse.device) for resolution in ("low", "high"))
    made = {"low": decode(low, "low"), "high": decode(high, "high", False), "finetuned": decode(high, "high")}
    lite0 = Lite0().to(muse.device) if has_lite0() else None
    report = {}
    for name, picture in made.items():
        real, ids = (halve(images), low) if name == "low" else (images, high)
        codes = (muse.tokenizer if name == "low" else muse.tokenizer_hi).config.codes
        entropy, used = perplexity(ids, codes)
        report[name] = {"psnr": psnr(picture, real), "perplexity": entropy, "used": used, "codes": codes}
        if lite0 is not None:  # needs the `eval` extra
            pairs = zip(picture.split(batch), real.split(batch))
            report[name]["perceptual"] = sum(float(perceptual_distance(lite0, a, b)) * len(a) for a, b in pairs) / len(real)
    return report, made


def report(muse: Muse, n: int = 256, seed: int = 0) -> tuple[dict, dict]:
    """Every measure that fits the model's data, over at most n held-out pictures; and the pictures it speaks of."""
    data, config = muse.about["data"], muse.config
    pictures = pictures_of(config, data, "heldout", n, seed)
    captions = [variants[0] for variants in pictures.captions]
    real = pictures.batch(torch.arange(len(pictures))).to(muse.device)
    tokens = Tokens.of(muse.parts, muse.text, pictures, str(muse.device))
    tokenizers, made = tokenizer_report(muse, tokens, real)
    low, high = muse.draw(captions, seed=seed)
    found = {"nll": nll_tables(muse, tokens), "tokenizers": tokenizers}
    if data == "shapes":
        scenes = [shapes.parse(caption) for caption in captions]
        shown = {"real": real, "reconstructed": made["finetuned"], "reconstructed_low": made["low"], "generated": high, "generated_low": low}
        found["alignment"] = {name: shapes.alignment(scenes, images) for name, images in shown.items()}
        found["alignment"]["shuffled"] = shapes.alignment(scenes[1:] + scenes[:1], high)  # what chance would score
    return found, {"captions": captions, "real": real, "low": low, "high": high}
