"""What the emoji model has learnt: does it listen to the caption, and does it draw what was asked for?

    python lessons/claims/emoji.py --model toy --out runs/claims      # needs the `eval` extra

Writes OUT/emoji.json and the README's pictures: emoji-asked.png (eight concepts in all styles), emoji-heldout.png (64 held-out pairs, the
same ones every time, real above drawn), emoji-tokenizer.png (what the tokenizers make of real pictures), emoji.gif (four pictures, pass
by pass) and emoji-edit.png (a heart whose half is drawn anew, and the same heart edited without a mask). Sheets have 256 colours.

- Nats per hidden token of held-out pairs, everything hidden: with the caption, without, with another concept's in the same
  style, with the same concept's in another style.
- Is a drawn picture nearest to its own? By Lite0's last features, cosine similarity: among all real pictures of its style, is its
  concept's the first, or in the first ten; among its concept's real pictures, is its style's the first? Chance is said beside it.
  So is what real pictures score that are not the very picture: for the concept, the same concept in another style.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from minimuse import Muse, edit
from minimuse.cli.figures import beside, decoding_gif, sheet
from minimuse.data import ASSETS, Tokens, halve
from minimuse.datasets import emoji, load
from minimuse.metrics.likelihood import masked_nll
from minimuse.metrics.report import tokenizer_report
from minimuse.plumbing.lite0 import Lite0
from minimuse.runs.cache import tokens_of

CONCEPTS = {
    "red-apple": "a red apple",
    "tiger-face": "a tiger face",
    "rocket": "a rocket",
    "red-heart": "a red heart",
    "pizza": "a slice of pizza",
    "bicycle": "a bicycle",
    "octopus": "an octopus",
    "crown": "a crown",
}


def pair(name: str) -> tuple[str, str]:
    """ "noto/red-apple" -> ("noto", "red-apple")."""
    return tuple(name.split("/", 1))


def asking(words: dict, concept: str, style: str) -> str:
    """The second way to ask for it: "a red apple, noto style"."""
    return emoji.emoji_captions(words[concept]["label"], words[concept]["tags"], style)[1]


@torch.no_grad()
def nll(muse: Muse, tokens: Tokens, names: list[str], words: dict) -> dict[str, float]:
    """Nats per hidden low-res token, everything hidden, by what the base model is told."""
    own, styles = [pair(name) for name in names], emoji.STYLES
    others = [concept for _, concept in own[1:] + own[:1]]
    cases = {
        "own caption": [asking(words, concept, style) for style, concept in own],
        "no caption": [""] * len(own),
        "another concept, same style": [
            asking(words, other, style) for (style, _), other in zip(own, others)
        ],
        "same concept, another style": [
            asking(words, concept, styles[styles.index(style) - 1 - i % 4])
            for i, (style, concept) in enumerate(own)
        ],
    }
    found = {}
    for case, captions in cases.items():
        text, visible = muse.text(captions)
        found[case] = round(
            masked_nll(
                muse.base,
                tokens.ids("low").to(muse.device),
                lambda rows: muse.base.context(text[rows], visible[rows]),
                1.0,
            ),
            4,
        )
    return found


@torch.no_grad()
def features(net: Lite0, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> unit vectors (B, 320): the mean of the last feature map."""
    return torch.cat(
        [F.normalize(net.stages(part)[-1].mean(dim=(2, 3)), dim=1) for part in images.split(64)]
    )


class Gallery:
    """All real pictures of the emoji, by name, as unit vectors (M, C)."""

    def __init__(self, names: list[str], vectors: torch.Tensor):
        self.vectors, self.row = vectors, {name: row for row, name in enumerate(names)}
        self.of_style, self.of_concept = defaultdict(list), defaultdict(list)
        for name, row in self.row.items():
            style, concept = pair(name)
            self.of_style[style].append(row)
            self.of_concept[concept].append(row)

    def nearest(self, pictures: torch.Tensor, names: list[str]) -> dict[str, float]:
        """Shares of pictures (B, C) to which the real picture of their name is the nearest."""
        first, ten, chance, styled = [], [], [], []
        for vector, name in zip(pictures, names):
            style, concept = pair(name)
            likeness = self.vectors @ vector
            nearer = likeness > likeness[self.row[name]]  # M
            rank = int(nearer[self.of_style[style]].sum())
            first.append(rank == 0)
            ten.append(rank < 10)
            chance.append(1 / len(self.of_style[style]))
            if len(self.of_concept[concept]) == len(emoji.STYLES):
                styled.append(not nearer[self.of_concept[concept]].any())
        mean = lambda values: round(float(sum(values) / len(values)), 4)
        return {
            "concept first": mean(first),
            "chance": mean(chance),
            "in ten": mean(ten),
            "style first": mean(styled),
            "chance of style": 0.2,
        }

    def in_another_style(self, names: list[str]) -> tuple[torch.Tensor, list[str]]:
        """Real pictures of the same concepts in the next style that has them: what a picture of a wrong style would score."""
        found = []
        for name in names:
            style, concept = pair(name)
            i = emoji.STYLES.index(style)
            others = [f"{s}/{concept}" for s in emoji.STYLES[i + 1 :] + emoji.STYLES[:i]]
            found += [(self.row[other], name) for other in others if other in self.row][:1]
        return self.vectors[[row for row, _ in found]], [name for _, name in found]


def edited(muse: Muse) -> Image.Image:
    """A red heart, its right half drawn anew in blue, and all of it edited into a green one."""
    (heart,) = muse.generate("a red heart, noto style")
    mask = Image.new("L", heart.size)
    mask.paste(255, (heart.width // 2, 0, *heart.size))
    (half,) = edit.inpaint(muse, heart, mask, "a blue heart, noto style")
    (green,) = edit.edit(muse, heart, "a green heart, noto style")
    framed = [
        ImageOps.expand(picture.convert("RGB"), 1, (190, 190, 190))
        for picture in (heart, mask, half, heart, green)
    ]
    return beside(framed, ["before", "mask", "after", "before", "after"])


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="toy")
    p.add_argument("--out", type=Path, default=Path("runs/claims"))
    p.add_argument("--n", type=int, default=256, help="pictures to draw of each kind")
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = p.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse, net = Muse.load(args.model, args.device), Lite0()
    side = muse.config.tokenizer_hi.side
    words = json.loads((ASSETS / "emoji" / "captions.json").read_text())
    everything = [load("emoji", split, side) for split in ("train", "heldout", "heldout-concept")]
    names = [name for part in everything for name in part.names]
    gallery = Gallery(
        names, torch.cat([features(net, part.batch(range(len(part)))) for part in everything])
    )
    found = {}
    for kind, split in (("held-out pairs", "heldout"), ("trained pairs", "train")):
        pictures = load("emoji", split, side, args.n)
        captions = [variants[1] for variants in pictures.captions]  # what `asking` gives
        real, tokens = (
            pictures.batch(range(len(pictures))),
            tokens_of(muse.parts, muse.text, pictures, str(muse.device)),
        )
        tokenizers, through = tokenizer_report(muse, tokens, real.to(muse.device))
        through = {name: images.cpu() for name, images in through.items()}
        low, high = (images.cpu() for images in muse.draw(captions, seed=0))
        found[kind] = {
            "nll": nll(muse, tokens, pictures.names, words),
            "drawn": gallery.nearest(features(net, high), pictures.names),
            "through the tokenizer": gallery.nearest(
                features(net, through["finetuned"]), pictures.names
            ),
            "real, in another style": gallery.nearest(*gallery.in_another_style(pictures.names)),
            "tokenizers": tokenizers,
        }
        if split == "heldout":
            chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(64))[
                :64
            ].tolist()
            said = [captions[i] for i in chosen]
            sheet(
                [x[chosen] for x in (real, low, high)], said, titles=("real", "base", "super-res")
            ).quantize().save(args.out / "emoji-heldout.png")
            rows = [
                x[chosen[:16]]
                for x in (real, halve(real), through["low"], through["high"], through["finetuned"])
            ]
            sheet(
                rows, said[:16], titles=("real", "halved", "low-res", "high-res", "finetuned")
            ).quantize().save(args.out / "emoji-tokenizer.png")

    real = {
        name: part.batch([i])[0]
        for part in everything
        for i, name in enumerate(part.names)
        if pair(name)[1] in CONCEPTS
    }
    asked = [(style, concept) for style in emoji.STYLES for concept in CONCEPTS]
    prompts = [f"{CONCEPTS[concept]}, {style.replace('-', ' ')} style" for style, concept in asked]
    high = muse.draw(prompts, seed=0)[1].cpu()
    shown = [
        p + (" (held out)" if emoji.split_of(c, s) != "train" else "")
        for p, (s, c) in zip(prompts, asked)
    ]
    blank = torch.ones_like(high[0])
    sheet(
        [torch.stack([real.get(f"{s}/{c}", blank) for s, c in asked]), high],
        shown,
        titles=("real", "drawn"),
    ).quantize().save(args.out / "emoji-asked.png")
    edited(muse).save(args.out / "emoji-edit.png")
    decoding_gif(
        muse,
        [
            "a red heart, noto style",
            "a grinning face, twemoji style",
            "a red apple, fluent 3d style",
            "a blue book, openmoji style",
        ],
        args.out / "emoji.gif",
        cell=120,
    )
    (args.out / "emoji.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
