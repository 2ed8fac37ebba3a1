"""The report of `minimuse evaluate`: every measure that fits a model's data.

    minimuse evaluate --model toy --out runs/evaluated
    minimuse evaluate --model toy --out runs/again --seed 1    # other drawings, to be added up

That writes report.json, report.md (a table), samples.png and decoding.gif. Each measure stands
beside the same measure of real images, because few measures mean anything alone. What is measured
of each split of the data:

- token models: nats per hidden token and bits per token (`likelihood.py`)
- tokenizers: reconstructions against originals (`images.py`), and how many codes are in use
- generated images against their captions: `alignment.py` for shapes, `judge.py` for emoji; how
  exact the outlines of shapes are: `outline.py`
- generated images against real ones, as sets (`distances.py`)

The last two of emoji, and every measure of sets, need the `eval` extra.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from minimuse.data import Images, Tokens, halve
from minimuse.datasets import shapes, splits_of
from minimuse.datasets.progress import Bar
from minimuse.maskgit import MaskGit
from minimuse.metrics import alignment
from minimuse.metrics.distances import frechet, kid, precision
from minimuse.metrics.images import psnr, ssim
from minimuse.metrics.intervals import interval, mean_of
from minimuse.metrics.judge import SMALLEST_SIDE, Judge, features
from minimuse.metrics.likelihood import bits_per_token, masked_nll
from minimuse.metrics.outline import outline
from minimuse.muse import Muse
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.lite0 import Lite0, has_lite0
from minimuse.plumbing.ranges import MAX_SEED
from minimuse.runs.cache import tokens_of
from minimuse.runs.images import load_images
from minimuse.superres import SuperRes
from minimuse.transformer import Context
from minimuse.vq import perplexity
from minimuse.vq_loss import perceptual_distance

# Fractions of hidden tokens, from an empty grid to nearly all tokens visible.
RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)

# Precision looks for the third nearest neighbour in random halves of the images. Sets of this size
# or less are too small for that.
TOO_FEW = 8

Measures = dict[str, dict]  # by name; a measure's values may be named again
ImageSets = dict[str, torch.Tensor]  # by name, each (B, 3, H, W) in [-1, 1]


# --- All splits ---
@in_usual_state
def report(
    muse: Muse,
    n: int,
    seed: int = 0,
    splits: tuple[str, ...] | None = None,
    home: Path | None = None,
) -> tuple[dict[str, Measures], dict[str, dict]]:
    """Measure at most n images of each split; returns the measures and the images, by split.

    seed: of the drawings, and of the choice of images where a split has more than n. Other seeds
        give other drawings, so the counts of several seeds may be added up.
    home: the directory of the model, if it keeps the decoded images of a folder.
    """
    data = muse.about["data"]
    if splits is None:
        splits = default_splits(data)
    measures, images = {}, {}
    with Bar(total=len(STEPS) * len(splits), desc="evaluate") as bar:
        for split in splits:
            progress = partial(say, bar, split)
            measures[split], images[split] = measure(muse, split, n, seed, progress, home)
    return measures, images


def default_splits(data: str) -> tuple[str, ...]:
    """All splits, held-out ones first; of shapes, "validation" stands in for "train"."""
    splits = splits_of(data)[::-1]
    if data == "shapes":
        splits = tuple(split for split in splits if split != "train")
    return splits


# --- One split ---
STEPS = ("tokens", "drawing", "measuring")  # what the progress bar says


def say(bar: Bar, split: str, step: str) -> None:
    bar.set_postfix_str(f"{split}: {step}")
    bar.update()


@in_usual_state
def measure(
    muse: Muse,
    split: str,
    n: int,
    seed: int,
    progress: Callable[[str], None],
    home: Path | None = None,
) -> tuple[Measures, dict]:
    """All measures that fit, over at most n images of one split; and the images themselves.

    Generated images serve all measures. Calls progress(step) at the start of each of STEPS.
    """
    data = muse.about["data"]
    load = partial(load_images, muse.config, data, out=home, strict=False)
    dataset = load(split, n, seed)
    captions = [variants[0] for variants in dataset.captions]
    real = dataset.batch(torch.arange(len(dataset))).to(muse.device)

    progress("tokens")
    tokens = tokens_of(muse.parts, muse.text, dataset, str(muse.device))
    tokenizers, reconstructed = tokenizer_report(muse, tokens, real)
    measures = token_report(muse, tokens)
    measures["tokenizers"] = tokenizers

    progress("drawing")
    # Image i of a drawing has the seed of the drawing + i. So seeds that are n apart share none.
    drawing_seed = seed * n % (MAX_SEED + 1)
    low, high = muse.draw(captions, seed=drawing_seed, plain=True)

    progress("measuring")
    shown = {"real": real, "reconstructed": reconstructed["finetuned"], "generated": high}
    if data == "shapes":
        low_res = {"reconstructed_low": reconstructed["low"], "generated_low": low}
        measures["alignment"] = alignment_report(captions, shown | low_res)
    large_enough = min(real.shape[-2:]) >= SMALLEST_SIDE
    if has_lite0() and large_enough and len(dataset) > TOO_FEW:
        train = load("train", 2 * n, seed)
        measures |= feature_report(muse, dataset, shown, train)
    return measures, {"captions": captions, "real": real, "low": low, "high": high}


# --- Token models ---
def token_report(muse: Muse, tokens: Tokens) -> Measures:
    """Nats per hidden token by mask ratio, and bits per token, of both token models.

    The base model with its caption, without one, and with the caption of another image.
    Super-resolution with low-res tokens and caption, without caption, and with the low-res tokens
    of another image.
    """
    text, visible = tokens.captions(torch.arange(len(tokens)))
    text, visible = text.to(muse.device), visible.to(muse.device)
    low = tokens.ids("low").to(muse.device)
    high = tokens.ids("high").to(muse.device)
    no_caption = torch.zeros_like(visible)
    other = torch.arange(len(text)).roll(1)
    base_inputs = {
        "caption": (text, visible),
        "no caption": (text, no_caption),
        "other caption": (text[other], visible[other]),
    }
    superres_inputs = {
        "low-res and caption": (text, visible, low),
        "no caption": (text, no_caption, low),
        "other low-res": (text, visible, low[other]),
    }
    return {
        "nll": {
            "base": nll_report(muse.base, low, base_inputs),
            "superres": nll_report(muse.superres, high, superres_inputs),
        },
        "bits per token": {
            "base": bits_per_token(muse.base, low, context_of(muse.base, base_inputs["caption"])),
            "superres": bits_per_token(
                muse.superres,
                high,
                context_of(muse.superres, superres_inputs["low-res and caption"]),
            ),
        },
    }


def nll_report(
    model: MaskGit | SuperRes, ids: torch.Tensor, inputs: dict[str, tuple[torch.Tensor, ...]]
) -> Measures:
    """Nats per hidden token, for each kind of input and each mask ratio."""
    result = {}
    for name, tensors in inputs.items():
        context = context_of(model, tensors)
        result[name] = {str(ratio): masked_nll(model, ids, context, ratio) for ratio in RATIOS}
    return result


def context_of(
    model: MaskGit | SuperRes, tensors: tuple[torch.Tensor, ...]
) -> Callable[[slice], Context]:
    """A function from a slice of rows to the model's context of these rows."""

    def context(rows: slice) -> Context:
        return model.context(*(tensor[rows] for tensor in tensors))

    return context


# --- Tokenizers ---
@torch.no_grad()
def tokenizer_report(
    muse: Muse, tokens: Tokens, images: torch.Tensor, batch: int = 64
) -> tuple[Measures, ImageSets]:
    """Measure the reconstructions of images (B, 3, H, W); returns these reconstructions, too.

    Three decoders: "low", "high", and "finetuned", the high-res one that Muse draws with.
    """
    low = tokens.ids("low").to(muse.device)
    high = tokens.ids("high").to(muse.device)
    reconstructed = {
        "low": torch.cat([muse.pixels(part, "low") for part in low.split(batch)]),
        "high": torch.cat([muse.pixels(part, "high", False) for part in high.split(batch)]),
        "finetuned": torch.cat([muse.pixels(part, "high") for part in high.split(batch)]),
    }
    lite0 = Lite0().to(muse.device) if has_lite0() else None
    low_images = halve(images)
    low_codes = muse.tokenizer.config.codes
    high_codes = muse.tokenizer_hi.config.codes
    measures = {
        "low": quality(reconstructed["low"], low_images, lite0) | usage(low, low_codes),
        "high": quality(reconstructed["high"], images, lite0) | usage(high, high_codes),
        "finetuned": quality(reconstructed["finetuned"], images, lite0) | usage(high, high_codes),
    }
    return measures, reconstructed


def quality(images: torch.Tensor, originals: torch.Tensor, lite0: Lite0 | None) -> Measures:
    """PSNR, SSIM and perceptual distance of images (B, 3, H, W), each where the size allows it."""
    side = originals.shape[-1]
    measures = {"psnr": mean_over_images(psnr, images, originals)}
    if side >= 11:  # the side of SSIM's window
        measures["ssim"] = mean_over_images(ssim, images, originals)
    if lite0 is not None and side >= 16:  # less leaves nothing in the deepest feature map
        measures["perceptual"] = mean_over_images(
            partial(perceptual_distance, lite0), images, originals
        )
    return measures


def mean_over_images(
    function: Callable, images: torch.Tensor, originals: torch.Tensor
) -> dict[str, float]:
    """The mean of a measure that is taken of each image alone, with its interval."""
    values = [
        float(function(image[None], original[None]))
        for image, original in zip(images, originals, strict=True)
    ]
    return mean_of(torch.tensor(values))


def usage(ids: torch.Tensor, codes: int) -> dict[str, float]:
    """Perplexity of the ids, how many different codes they use, and how many there are."""
    of_ids, used = perplexity(ids, codes)
    return {"perplexity": of_ids, "used": used, "codes": codes}


# --- Generated images against captions ---
def alignment_report(captions: list[str], shown: ImageSets) -> Measures:
    """Alignment and outlines of each set of images.

    "shuffled" compares with other captions: that is chance.
    """
    scenes = [shapes.parse(caption) for caption in captions]
    result = {}
    for name, images in shown.items():
        result[name] = alignment.alignment(scenes, images) | {"outline": outline(images)}
    result["shuffled"] = alignment.alignment(scenes[1:] + scenes[:1], shown["generated"])
    return result


# --- Generated images against real ones ---
def feature_report(muse: Muse, dataset: Images, shown: ImageSets, train: Images) -> Measures:
    """Measures on Lite0's features: likeness to the real images and, of emoji, the judge's view.

    train: images of the training split, more than the data set has.
    """
    net = Lite0().to(muse.device)
    vectors = {name: features(net, images) for name, images in shown.items()}
    others = other_real_images(dataset, train).to(muse.device)
    compared = {name: x for name, x in vectors.items() if name != "real"}
    if len(others) > TOO_FEW:
        compared["other real pictures"] = features(net, others)
    measures = {
        "likeness": {name: likeness(x, vectors["real"]) for name, x in compared.items()},
    }
    if muse.about["data"] == "emoji":
        judge = Judge.load()
        measures["judged"] = {
            name: judge.accuracy(judge(x, dataset.names)) for name, x in vectors.items()
        }
    return measures


def other_real_images(dataset: Images, train: Images) -> torch.Tensor:
    """As many training images as the data set has, or fewer, and none of its own.

    They show how unlike two sets of real images are. They come from training because a held-out
    split may have too few images, so the distance includes how the splits differ.
    """
    own = set(dataset.names)
    indices = [i for i, name in enumerate(train.names) if name not in own]
    chosen = torch.tensor(indices[: len(dataset)], dtype=torch.int64)
    return train.batch(chosen)


def likeness(generated: torch.Tensor, real: torch.Tensor) -> Measures:
    """Four measures of features (M, C) and (M', C), with intervals.

    Frechet distance and KID: are the sets alike? Precision: is what is generated among the real
    images? Recall: are all kinds of real images generated?
    """
    return {
        "frechet": interval(frechet, generated, real),
        "kid": interval(kid, generated, real),
        "precision": interval(precision, generated, real),
        "recall": interval(recall, generated, real),
    }


def recall(generated: torch.Tensor, real: torch.Tensor) -> float:
    """Fraction of real features (M', C) that lie among the generated ones (M, C)."""
    return precision(real, generated)
