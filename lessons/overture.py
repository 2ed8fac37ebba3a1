"""An overture: a whole masked text-to-image generator in one file, to be read from top to bottom.

    python lessons/overture.py --out overture.png

It draws scenes with captions, turns the images into tokens, trains a transformer to guess hidden
tokens, and draws captions that training never had. The page `overture.md` explains it.

Letters: B batch, T words of a caption, N image tokens, K codes, C numbers in a patch, D width.
"""

import argparse
import math
import textwrap
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor, nn

from minimuse.datasets import detector, shapes

SIDE, PATCH = 24, 6  # pixels of an image, and of a patch; one patch becomes one token
GRID, N = SIDE // PATCH, (SIDE // PATCH) ** 2  # tokens in a row, and in an image
K, T = 1024, 15  # no caption has more words than T
MASK = K  # the id of a hidden token: one more than the last code
D, LAYERS, HEADS = 96, 2, 8  # a head for each neighbour
SCENES, STEPS, BATCH, LEARNING_RATE = 20_000, 800, 96, 6e-3
PASSES, GUIDANCE, TOP, CHOICE = 12, 1.0, 30, 20.0  # of decode()
VOCABULARY = ["", *sorted(set(shapes.every_word().split()))]  # word 0 means no word


# --- Data: scenes, as images and as words ---
def draw_scenes(numbers: range, split: str) -> tuple[list[str], Tensor]:
    """Scenes as captions and as images (B, 3, SIDE, SIDE) in [-1, 1]."""
    scenes = [shapes.scene(number, split) for number in numbers]
    images = shapes.render(scenes, SIDE).float() / 127.5 - 1
    return [shapes.caption(scene) for scene in scenes], images


def encode(captions: list[str]) -> Tensor:
    """Each word becomes its number in the vocabulary: (B, T), with 0 after the last word."""
    words = torch.zeros(len(captions), T, dtype=torch.long)
    for row, caption in zip(words, captions, strict=True):
        for i, word in enumerate(caption.split()):
            row[i] = VOCABULARY.index(word)
    return words


# --- Tokens: an image is a grid of patches, and each patch becomes the nearest of K codes ---
def to_patches(images: Tensor) -> Tensor:
    """Cut images into N patches of C numbers: (B, 3, H, W) -> (B, N, C)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def to_images(patches: Tensor) -> Tensor:
    """Put patches together again: (B, N, C) -> (B, 3, H, W)."""
    return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=GRID, p=PATCH, q=PATCH)


def nearest(patches: Tensor, codes: Tensor) -> Tensor:
    """The id of the code nearest to each patch, by |code|^2 - 2 patch . code: (..., C) -> (...)."""
    return (codes.square().sum(-1) - 2 * patches @ codes.T).argmin(-1)


def k_means(patches: Tensor, generator: torch.Generator, rounds: int = 6) -> Tensor:
    """Find K codes (K, C) such that each of the patches (M, C) is near to one of them."""
    codes = patches[torch.randperm(len(patches), generator=generator)[:K]].clone()
    for _ in range(rounds):
        ids = nearest(patches, codes)  # M
        members = torch.bincount(ids, minlength=K)[:, None]  # K 1
        sums = torch.zeros_like(codes).index_add_(0, ids, patches)  # K C
        codes = torch.where(members > 0, sums / members.clamp(min=1), codes)
    return codes


# --- Model: a transformer that sees the visible tokens and the caption ---
def neighbours() -> Tensor:
    """(8, N, N): 1 where token j is the neighbour of token i above left, above, ... below right."""
    row, column = torch.arange(N) // GRID, torch.arange(N) % GRID
    down, right = row[None] - row[:, None], column[None] - column[:, None]  # N N
    places = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    return torch.stack([(down == y) & (right == x) for y, x in places]).float()


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Each token takes a weighted mean of the values v of all tokens: (B, h, N, d)."""
    scores = q @ k.mT / q.shape[-1] ** 0.5 + bias  # B h N N
    return scores.softmax(-1) @ v


class Block(nn.Module):
    """Self-attention, in which tokens look at each other, then an MLP for each token."""

    def __init__(self):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.bias = nn.Parameter(4 * neighbours())  # each head starts at a neighbour
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        qkv = self.qkv(self.norm_attention(x))  # B N 3D
        q, k, v = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=HEADS)
        attended = attend(q, k, v, self.bias)  # B h N d
        x = x + self.out(rearrange(attended, "b h n d -> b n (h d)"))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class Model(nn.Module):
    """From visible tokens and a caption to a guess at every token."""

    def __init__(self, codes: Tensor, generator: torch.Generator):
        super().__init__()
        self.token = nn.Embedding(K + 1, D)  # the last one stands for a hidden token
        # Each word at each place of a caption has a vector for each of the N tokens.
        self.word = nn.EmbeddingBag(T * len(VOCABULARY), N * D, mode="sum")
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, K, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Embedding | nn.EmbeddingBag):
                std = 0.07 if isinstance(layer, nn.Linear) else 0.25
                nn.init.normal_(layer.weight, std=std, generator=generator)
        # Codes that look alike start with embeddings and logits that are alike.
        projection = torch.randn(codes.shape[1], D, generator=generator)  # C D
        start = (codes - codes.mean(0)) @ projection / codes.shape[1] ** 0.5  # K D
        self.token.weight.data[:K] = start
        self.head.weight.data[:] = 0.05 * start

    def forward(self, ids: Tensor, words: Tensor) -> Tensor:
        """ids (B, N), where MASK is hidden, and words (B, T) -> logits (B, N, K)."""
        caption = self.word(words + torch.arange(T) * len(VOCABULARY))  # B N*D, a sum over words
        x = self.token(ids) + rearrange(caption, "b (n d) -> b n d", n=N)  # B N D
        return self.head(self.norm(self.blocks(x)))  # B N K


# --- Loss: hide some tokens, drop some captions, and ask for the hidden tokens ---
def hide(ids: Tensor, generator: torch.Generator) -> Tensor:
    """Which tokens to hide, (B, N) bool: in each row cos(pi u / 2) of them, u uniform in [0, 1]."""
    u = torch.rand(len(ids), 1, generator=generator)
    count = (N * torch.cos(math.pi / 2 * u)).ceil().clamp(min=1)  # B 1
    rank = torch.rand(ids.shape, generator=generator).argsort(-1).argsort(-1)  # a random order, B N
    return rank < count


def drop_captions(words: Tensor, generator: torch.Generator) -> Tensor:
    """Leave no words in a tenth of the rows (B, T), so that the model can do without a caption."""
    dropped = torch.rand(len(words), 1, generator=generator) < 0.1
    return words.masked_fill(dropped, 0)


def masked_loss(model: Model, ids: Tensor, words: Tensor, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy of the hidden tokens, in nats."""
    hidden = hide(ids, generator)
    logits = model(ids.masked_fill(hidden, MASK), drop_captions(words, generator))  # B N K
    return F.cross_entropy(logits[hidden], ids[hidden])


# --- Training ---
def train(model: Model, ids: Tensor, words: Tensor, steps: int, generator: torch.Generator) -> None:
    """Take `steps` random batches; the learning rate rises for a moment, then falls to 0."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.96), fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min((step + 1) / 50, 1 - step / steps)
        rows = torch.randint(len(ids), (BATCH,), generator=generator)
        loss = masked_loss(model, ids[rows], words[rows], generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4}: loss {loss:.2f}")


# --- Decoding: all tokens are hidden at first, and 12 passes reveal them ---
def guide(cond: Tensor, uncond: Tensor, t: float) -> Tensor:
    """Classifier-free guidance: go further in the direction in which the caption moves logits."""
    return (1 + t) * cond - t * uncond


@torch.no_grad()
def decode(model: Model, words: Tensor, generator: torch.Generator, passes: int = PASSES) -> Tensor:
    """Parallel decoding: guess all hidden tokens at once, keep the surest. (B, T) -> (B, N)."""
    ids = torch.full((len(words), N), MASK)
    for step in range(passes):
        done = (step + 1) / passes
        hidden = ids == MASK  # B N
        cond, uncond = model(ids, words), model(ids, 0 * words)  # B N K
        unlikely = cond < cond.topk(TOP).values[..., -1:]  # all but the TOP likeliest codes
        log_p = guide(cond, uncond, GUIDANCE).masked_fill(unlikely, -math.inf).log_softmax(-1)
        guess = torch.multinomial(log_p.exp().flatten(0, 1), 1, generator=generator).view_as(ids)
        confidence = log_p.gather(-1, guess[..., None])[..., 0]  # B N
        noise = -torch.empty(ids.shape).exponential_(generator=generator).log()  # Gumbel noise
        confidence += CHOICE * (1 - done) * noise  # how much chance is in the order
        confidence[~hidden] = math.inf  # what is revealed stays
        ids = torch.where(hidden, guess, ids)
        count = min(int(N * math.cos(math.pi / 2 * done)), N - step - 1)  # reveals one or more
        ids.scatter_(-1, confidence.argsort(-1)[:, :count], MASK)  # hides the least sure again
    return ids


# --- All of it ---
def report(captions: list[str], images: Tensor) -> None:
    """Print in how many images a program that reads images finds what their captions say."""
    verdicts = list(map(detector.agree, map(shapes.parse, captions), detector.detect(images)))
    for part in ("background", "colour", "relation", "count", "shape"):
        right = [verdict[part] for verdict in verdicts if verdict[part] is not None]
        print(f"{part:10} right in {sum(right) / len(right):.2f} of {len(right)}")


def save_sheet(images: Tensor, captions: list[str], path: Path) -> None:
    """Write images with their captions, six in a row."""
    sheet = Image.new("RGB", (6 * 150, math.ceil(len(images) / 6) * 190), "white")
    pen = ImageDraw.Draw(sheet)
    levels = ((images + 1) * 127.5).round().byte()  # B 3 H W
    for i, caption in enumerate(captions):
        x, y = i % 6 * 150 + 15, i // 6 * 190 + 10
        image = Image.fromarray(levels[i].permute(1, 2, 0).numpy())
        sheet.paste(image.resize((120, 120), Image.Resampling.NEAREST), (x, y))
        pen.text((x, y + 125), "\n".join(textwrap.wrap(caption, 22)), "black")
    sheet.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("overture.png"), help="the sheet to write")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(args.seed)
    start = time.monotonic()

    # Scenes with odd numbers are for validation: the settings above were chosen on them.
    captions, images = draw_scenes(range(0, 2 * SCENES, 2), "train")
    patches = to_patches(images)
    codes = k_means(patches.flatten(0, 1)[:50_000].unique(dim=0), generator)  # K C
    model = Model(codes, generator)
    train(model, nearest(patches, codes), encode(captions), args.steps, generator)

    asked, _ = draw_scenes(range(64), "heldout")
    drawn = to_images(codes[decode(model, encode(asked), generator)])
    save_sheet(drawn[:24], asked[:24], args.out)
    report(asked, drawn)
    print(f"{args.out} is written, after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
