"""What the emoji model has learnt: does it follow the caption, and does it draw what it says?

    python lessons/claims/emoji.py --model toy --out runs/claims      # needs the `eval` extra

Writes OUT/emoji.json and the README's figures: emoji-asked.png (eight concepts in all styles),
emoji-heldout.png (64 held-out pairs, the same ones every time, real above drawn),
emoji-tokenizer.png (what the tokenizers make of real images), emoji.gif (four images, pass by pass)
and emoji-edit.png (a heart whose half is drawn anew, and the same heart edited without a mask).
Sheets have 256 colours.

- Nats per hidden token of held-out pairs, all hidden: with the caption, without it, with
  another concept's caption in the same style, and with the same concept's in another style.
- Is a drawn image nearest to its own real image? The distance is the cosine similarity of Lite0's
  last features. Among all real images of its style, is its concept the first, or one of the first
  ten? Among the real images of its concept, is its style the first? The report has the chance level
  beside it, and what other real images score: for the concept, the same concept in another style.
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
from minimuse.data import ASSETS, Images, Tokens, halve
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
GIF_PROMPTS = [
    "a red heart, noto style",
    "a grinning face, twemoji style",
    "a red apple, fluent 3d style",
    "a blue book, openmoji style",
]


def pair(name: str) -> tuple[str, str]:
    """Style and concept: "noto/red-apple" -> ("noto", "red-apple")."""
    return tuple(name.split("/", 1))


def caption_of(words: dict, concept: str, style: str) -> str:
    """The second of the captions: "a red apple, noto style"."""
    return emoji.emoji_captions(words[concept], style, colour="")[1]


# --- Does it follow the caption? ---


def captions_by_case(names: list[str], words: dict) -> dict[str, list[str]]:
    """For each emoji: its own caption, none, another concept's, and another style's."""
    styles = emoji.STYLES
    pairs = [pair(name) for name in names]
    own = []
    other_concept = []
    other_style = []
    for i, (style, concept) in enumerate(pairs):
        _, next_concept = pairs[(i + 1) % len(pairs)]
        another_style = styles[styles.index(style) - 1 - i % 4]
        own.append(caption_of(words, concept, style))
        other_concept.append(caption_of(words, next_concept, style))
        other_style.append(caption_of(words, concept, another_style))
    return {
        "own caption": own,
        "no caption": [""] * len(names),
        "another concept, same style": other_concept,
        "same concept, another style": other_style,
    }


@torch.no_grad()
def nll_by_caption(muse: Muse, tokens: Tokens, names: list[str], words: dict) -> dict[str, float]:
    """Nats per hidden low-res token, with all tokens hidden, by the kind of caption."""
    ids = tokens.ids("low").to(muse.device)  # M N
    nll = {}
    for case, captions in captions_by_case(names, words).items():
        text, visible = muse.text(captions)

        def context(rows: torch.Tensor, text=text, visible=visible):
            return muse.base.context(text[rows], visible[rows])

        nll[case] = round(masked_nll(muse.base, ids, context, 1.0), 4)
    return nll


# --- Is a drawn image nearest to its own real image? ---


@torch.no_grad()
def features(net: Lite0, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) -> unit vectors (B, 320): the mean of the last feature map."""
    batches = []
    for part in images.split(64):
        last_map = net.stages(part)[-1]  # b 320 h w
        batches.append(F.normalize(last_map.mean(dim=(2, 3)), dim=1))
    return torch.cat(batches)


def mean(values: list) -> float:
    return round(float(sum(values) / len(values)), 4)


class Gallery:
    """All real images of the emoji, by name, as unit vectors (M, C)."""

    def __init__(self, names: list[str], vectors: torch.Tensor):
        self.vectors = vectors
        self.row = {name: row for row, name in enumerate(names)}
        self.of_style = defaultdict(list)
        self.of_concept = defaultdict(list)
        for name, row in self.row.items():
            style, concept = pair(name)
            self.of_style[style].append(row)
            self.of_concept[concept].append(row)

    def nearest(self, vectors: torch.Tensor, names: list[str]) -> dict[str, float]:
        """The fractions of images (B, C) to which the real image of their name is the nearest."""
        first = []
        ten = []
        chance = []
        style_first = []
        for vector, name in zip(vectors, names, strict=True):
            style, concept = pair(name)
            similarity = self.vectors @ vector  # M
            nearer = similarity > similarity[self.row[name]]  # M
            rank = int(nearer[self.of_style[style]].sum())
            first.append(rank == 0)
            ten.append(rank < 10)
            chance.append(1 / len(self.of_style[style]))
            if len(self.of_concept[concept]) == len(emoji.STYLES):
                style_first.append(not nearer[self.of_concept[concept]].any())
        return {
            "concept first": mean(first),
            "chance": mean(chance),
            "in ten": mean(ten),
            "style first": mean(style_first),
            "chance of style": 0.2,
        }

    def in_another_style(self, names: list[str]) -> tuple[torch.Tensor, list[str]]:
        """Real images of the same concepts in the next style that has them.

        They say what an image with the right concept in a wrong style would score.
        """
        rows = []
        kept_names = []
        for name in names:
            other = self.next_style(name)
            if other is not None:
                rows.append(self.row[other])
                kept_names.append(name)
        return self.vectors[rows], kept_names

    def next_style(self, name: str) -> str | None:
        """The same concept in the next style that has it."""
        style, concept = pair(name)
        i = emoji.STYLES.index(style)
        for other in (*emoji.STYLES[i + 1 :], *emoji.STYLES[:i]):
            if f"{other}/{concept}" in self.row:
                return f"{other}/{concept}"
        return None


class Study:
    """The model, the real images, and all that one split is measured with."""

    def __init__(self, muse: Muse, out: Path):
        self.muse = muse
        self.out = out
        self.net = Lite0()
        self.side = muse.config.tokenizer_hi.side
        self.words = json.loads((ASSETS / "emoji" / "captions.json").read_text())
        splits = ("train", "heldout", "heldout-concept")
        self.splits: list[Images] = [load("emoji", split, self.side) for split in splits]
        names = [name for images in self.splits for name in images.names]
        vectors = [features(self.net, images.batch(range(len(images)))) for images in self.splits]
        self.gallery = Gallery(names, torch.cat(vectors))

    def measure(self, split: str, n: int) -> dict:
        """Every measure of a split; of the held-out one, the sheets too."""
        muse = self.muse
        images = load("emoji", split, self.side, n)
        captions = [variants[1] for variants in images.captions]  # the same as `caption_of`
        real = images.batch(range(len(images)))
        tokens = tokens_of(muse.parts, muse.text, images, str(muse.device))
        tokenizers, decoded = tokenizer_report(muse, tokens, real.to(muse.device))
        decoded = {name: batch.cpu() for name, batch in decoded.items()}
        low, high = (batch.cpu() for batch in muse.draw(captions, seed=0))
        nearest = self.gallery.nearest
        if split == "heldout":
            self.save_sheets(captions, real, decoded, low, high)
        return {
            "nll": nll_by_caption(muse, tokens, images.names, self.words),
            "drawn": nearest(features(self.net, high), images.names),
            "through the tokenizer": nearest(
                features(self.net, decoded["finetuned"]), images.names
            ),
            "real, in another style": nearest(*self.gallery.in_another_style(images.names)),
            "tokenizers": tokenizers,
        }

    def save_sheets(
        self,
        captions: list[str],
        real: torch.Tensor,
        decoded: dict[str, torch.Tensor],
        low: torch.Tensor,
        high: torch.Tensor,
    ) -> None:
        """64 images, the same ones every time: real and drawn; 16 through the tokenizers."""
        generator = torch.Generator().manual_seed(64)
        chosen = torch.randperm(len(real), generator=generator)[:64].tolist()
        shown = [captions[i] for i in chosen]
        rows = [real[chosen], low[chosen], high[chosen]]
        page = sheet(rows, shown, titles=("real", "base", "super-res"))
        page.quantize().save(self.out / "emoji-heldout.png")
        few = chosen[:16]
        batches = (real, halve(real), decoded["low"], decoded["high"], decoded["finetuned"])
        rows = [batch[few] for batch in batches]
        titles = ("real", "halved", "low-res", "high-res", "finetuned")
        page = sheet(rows, shown[:16], titles=titles)
        page.quantize().save(self.out / "emoji-tokenizer.png")

    def save_concepts(self) -> None:
        """Eight concepts in all styles, real above drawn."""
        real = {}
        for images in self.splits:
            for i, name in enumerate(images.names):
                if pair(name)[1] in CONCEPTS:
                    real[name] = images.batch([i])[0]
        pairs = [(style, concept) for style in emoji.STYLES for concept in CONCEPTS]
        prompts = []
        titles = []
        for style, concept in pairs:
            prompt = f"{CONCEPTS[concept]}, {style.replace('-', ' ')} style"
            heldout = emoji.split_of(concept, style) != "train"
            prompts.append(prompt)
            titles.append(f"{prompt} (held out)" if heldout else prompt)
        _, high = self.muse.draw(prompts, seed=0)
        high = high.cpu()
        blank = torch.ones_like(high[0])
        real_row = [real.get(f"{style}/{concept}", blank) for style, concept in pairs]
        page = sheet([torch.stack(real_row), high], titles, titles=("real", "drawn"))
        page.quantize().save(self.out / "emoji-asked.png")


def edited_hearts(muse: Muse) -> Image.Image:
    """A red heart, its right half drawn anew in blue, and all of it edited into a green one."""
    (heart,) = muse.generate("a red heart, noto style")
    mask = Image.new("L", heart.size)
    mask.paste(255, (heart.width // 2, 0, *heart.size))
    (half,) = edit.inpaint(muse, heart, mask, "a blue heart, noto style")
    (green,) = edit.edit(muse, heart, "a green heart, noto style")
    grey = (190, 190, 190)
    framed = [
        ImageOps.expand(image.convert("RGB"), 1, grey)
        for image in (heart, mask, half, heart, green)
    ]
    return beside(framed, ["before", "mask", "after", "before", "after"])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"))
    parser.add_argument("--n", type=int, default=256, help="images to draw of each kind")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    muse = Muse.load(args.model, args.device)
    study = Study(muse, args.out)
    report = {
        "held-out pairs": study.measure("heldout", args.n),
        "trained pairs": study.measure("train", args.n),
    }
    study.save_concepts()
    edited_hearts(muse).save(args.out / "emoji-edit.png")
    decoding_gif(muse, GIF_PROMPTS, args.out / "emoji.gif", cell=120)
    text = json.dumps(report, indent=1)
    (args.out / "emoji.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
