"""What `minimuse evaluate` writes: every measure that fits a model's data, beside what real pictures have, with fixed seeds.

    minimuse evaluate --model toy --out runs/evaluated       # report.json, report.md (a table), samples.png, decoding.gif

Three kinds of pictures, where the data have them: held-out pairs (of concept and style; of shape, colour and size), pictures as they
were trained on, and held-out concepts. The same drawings serve all measures.
"""

from collections.abc import Callable

import torch
from tqdm import tqdm

from minimuse.data import Tokens, halve
from minimuse.datasets import SPLITS, shapes
from minimuse.metrics import alignment
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.images import psnr, ssim
from minimuse.metrics.intervals import interval, mean_of
from minimuse.metrics.judge import Judge, features
from minimuse.metrics.likelihood import bits_per_token, masked_nll
from minimuse.muse import Muse
from minimuse.plumbing.lite0 import Lite0, has_lite0
from minimuse.runs.cache import tokens_of
from minimuse.runs.stages import load_images
from minimuse.vq import perplexity
from minimuse.vq_loss import perceptual_distance

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)


def token_report(muse: Muse, tokens: Tokens) -> dict:
    """Nats per hidden token by mask ratio, and bits per token: of the base model with its caption, without, and with another picture's;
    of super-resolution with its low-res tokens, with those of another picture, and without caption."""
    text, visible = (
        tensor.to(muse.device) for tensor in tokens.captions(torch.arange(len(tokens)))
    )
    low, high = (tokens.ids(resolution).to(muse.device) for resolution in ("low", "high"))
    none, other = torch.zeros_like(visible), torch.arange(len(text)).roll(1)
    cases = {
        "base": (
            muse.base,
            low,
            {
                "caption": (text, visible),
                "no caption": (text, none),
                "other caption": (text[other], visible[other]),
            },
        ),
        "superres": (
            muse.superres,
            high,
            {
                "low-res and caption": (text, visible, low),
                "no caption": (text, none, low),
                "other low-res": (text, visible, low[other]),
            },
        ),
    }
    found = {"nll": {}, "bits per token": {}}
    for name, (model, ids, told) in cases.items():
        said = lambda given: lambda rows: model.context(*(tensor[rows] for tensor in given))
        found["nll"][name] = {
            case: {str(r): masked_nll(model, ids, said(given), r) for r in RATIOS}
            for case, given in told.items()
        }
        found["bits per token"][name] = bits_per_token(model, ids, said(next(iter(told.values()))))
    return found


@torch.no_grad()
def tokenizer_report(
    muse: Muse, tokens: Tokens, images: torch.Tensor, batch: int = 64
) -> tuple[dict, dict[str, torch.Tensor]]:
    """PSNR, SSIM, perceptual distance, codes used and perplexity on pictures (B, 3, H, W); and the reconstructions (low, high, finetuned)."""
    decode = lambda ids, *how: torch.cat([muse.pixels(part, *how) for part in ids.split(batch)])
    low, high = (tokens.ids(resolution).to(muse.device) for resolution in ("low", "high"))
    made = {
        "low": decode(low, "low"),
        "high": decode(high, "high", False),
        "finetuned": decode(high, "high"),
    }
    measures = {"psnr": (psnr, 1), "ssim": (ssim, 11)}  # and the least side of a picture
    if has_lite0():  # needs the `eval` extra
        lite0 = Lite0().to(muse.device)
        measures["perceptual"] = (lambda a, b: float(perceptual_distance(lite0, a, b))), 16
    found = {}
    for name, picture in made.items():
        real, ids = (halve(images), low) if name == "low" else (images, high)
        of_each = lambda measure: torch.tensor(
            [measure(a[None], b[None]) for a, b in zip(picture, real)]
        )
        found[name] = {
            title: mean_of(of_each(measure))
            for title, (measure, least) in measures.items()
            if real.shape[-1] >= least
        }
        codes = (muse.tokenizer if name == "low" else muse.tokenizer_hi).config.codes
        found[name] |= dict(zip(("perplexity", "used"), perplexity(ids, codes))) | {"codes": codes}
    return found, made


def likeness(drawn: torch.Tensor, real: torch.Tensor) -> dict:
    """Of features (M, C): is what is drawn like the real, as a whole (Frechet distance, KID)? Is it real (precision), is all of it drawn?"""
    measures = {
        "frechet": frechet,
        "kid": kid,
        "precision": precision,
        "recall": lambda drawn, real: precision(real, drawn),
    }
    return {name: interval(measure, drawn, real) for name, measure in measures.items()}


def measure(
    muse: Muse, split: str, n: int, seed: int, say: Callable[[str], None]
) -> tuple[dict, dict]:
    """All that fits, over at most n pictures of one split; and the pictures it speaks of."""
    data, config = muse.about["data"], muse.config
    pictures = load_images(config, data, split, n, seed)
    captions = [variants[0] for variants in pictures.captions]
    real = pictures.batch(torch.arange(len(pictures))).to(muse.device)
    say("tokens")
    tokens = tokens_of(muse.parts, muse.text, pictures, str(muse.device))
    tokenizers, made = tokenizer_report(muse, tokens, real)
    found = token_report(muse, tokens) | {"tokenizers": tokenizers}
    say("drawing")
    low, high = muse.draw(captions, seed=seed, plain=True)
    say("looking")
    shown = {"real": real, "reconstructed": made["finetuned"], "generated": high}
    if data == "shapes":
        scenes, small = (
            [shapes.parse(caption) for caption in captions],
            {"reconstructed_low": made["low"], "generated_low": low},
        )
        found["alignment"] = {
            name: alignment.alignment(scenes, images) for name, images in (shown | small).items()
        }
        found["alignment"]["shuffled"] = alignment.alignment(
            scenes[1:] + scenes[:1], high
        )  # what chance would score
    if has_lite0() and len(pictures) > 8:  # or halves would have no third neighbour
        net = Lite0().to(muse.device)
        look = {name: features(net, images) for name, images in shown.items()}
        more = load_images(
            config, data, "train", 2 * n, seed
        )  # a held-out split may have too few others: then the shift of splits is in it
        others = [i for i, name in enumerate(more.names) if name not in {*pictures.names}][
            : len(pictures)
        ]
        if len(others) > 8:
            look["other real pictures"] = features(net, more.batch(others).to(muse.device))
        found["likeness"] = {
            name: likeness(vectors, look["real"])
            for name, vectors in look.items()
            if name != "real"
        }
        if data == "emoji":
            judge = Judge.load()
            found["judged"] = {
                name: judge.shares(judge(look[name], pictures.names)) for name in shown
            }
    return found, {"captions": captions, "real": real, "low": low, "high": high}


def report(
    muse: Muse, n: int, seed: int = 0, splits: tuple[str, ...] | None = None
) -> tuple[dict, dict]:
    """What was measured, by split, and the pictures of each."""
    data = muse.about["data"]
    splits = splits or tuple(
        s for s in SPLITS.get(data, SPLITS["folder"])[::-1] if (data, s) != ("shapes", "train")
    )
    with tqdm(total=3 * len(splits), desc="evaluate") as bar:
        say = lambda split: lambda what: bar.set_postfix_str(f"{split}: {what}") or bar.update()
        found = {split: measure(muse, split, n, seed, say(split)) for split in splits}
    return {split: measured for split, (measured, _) in found.items()}, {
        split: pictures for split, (_, pictures) in found.items()
    }
