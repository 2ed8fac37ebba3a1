"""Claim 11: masked decoding is faster than diffusion of pixels, at similar quality
(Muse, section 3 and table 3: Imagen and DALL-E 2).

    python lessons/claims/pixels.py --out runs/claims   # an hour and a half of one core

The rival is a cascade of two small U-Nets that see no tokens: one draws 32 pixels of a side, the
other makes 64 of them (Imagen, 2205.11487). Both learn to predict v (2202.00512) from noisy pixels,
the time and the text, from the same frozen T5. DDIM (2010.02502) draws without new noise, in as
many steps as suit it best, and in a third as many for super-resolution. So that the second network
forgives the first one's errors, its low-res image is noisy in training, and it is told how noisy.

The masked models need tokenizers, which somebody had to train. So the rival gets their seconds, on
top of its own. It has no transformer blocks, so AdamW trains all of it, where Muon trains the
matrices of the others. `direct.py` says what is measured, and what keeps it fair.

Letters: B batch, C channels, H W pixels, T text tokens, E text width, D width of the condition.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusion import time_embedding, training_images
from direct import Part, Way, compare
from torch import Tensor, nn

from minimuse import Muse
from minimuse.data import Tokens, halve
from minimuse.guidance import guide
from minimuse.maskgit import drop_captions
from minimuse.muse import Prompts

WIDTH = 96  # D
HEADS = 4
GROUPS = 8
# The tokenizers of toy-shapes took 645 seconds of one core (its model card): the rival trains for
# 900 + 645 seconds where the others train for 900.
TOKENIZERS = 645 / 900
# In training, the low-res image of super-resolution has noise of up to this standard deviation.
MOST_NOISE = 0.5


# --- The network ---


class Condition(NamedTuple):
    """What a U-Net knows besides the noisy pixels."""

    text: Tensor  # (B, T, E)
    visible: Tensor  # (B, T) bool
    low: Tensor | None = None  # (B, 3, H / 2, W / 2), for super-resolution
    noise: Tensor | None = None  # (B,), how noisy that is


class ResidualBlock(nn.Module):
    """Two convolutions. The condition scales and shifts what the second one sees."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first_norm = nn.GroupNorm(min(GROUPS, inputs), inputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.condition = nn.Linear(WIDTH, 2 * outputs)
        self.second_norm = nn.GroupNorm(min(GROUPS, outputs), outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # at first, the block changes nothing
        self.skip = nn.Identity()
        if inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, H, W), condition (B, D)."""
        h = self.first(F.silu(self.first_norm(x)))
        scale, shift = self.condition(F.silu(condition))[..., None, None].chunk(2, dim=1)
        h = self.second(F.silu(self.second_norm(h) * (1 + scale) + shift))
        return self.skip(x) + h


class Attention(nn.Module):
    """Every place looks at all places, and then at the words."""

    def __init__(self, channels: int, text_width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(GROUPS, channels) for _ in range(2)])
        self.places = nn.MultiheadAttention(channels, HEADS, batch_first=True)
        # A zero among the keys: a row without caption has nothing else to look at.
        options = {"kdim": text_width, "vdim": text_width, "add_zero_attn": True}
        self.words = nn.MultiheadAttention(channels, HEADS, batch_first=True, **options)

    def forward(self, x: Tensor, text: Tensor, visible: Tensor) -> Tensor:
        """x (B, C, H, W), text (B, T, E), visible (B, T)."""
        query = self.norms[0](x).flatten(2).transpose(1, 2)  # B HW C
        mixed, _ = self.places(query, query, query, need_weights=False)
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        query = self.norms[1](x).flatten(2).transpose(1, 2)  # B HW C
        mixed, _ = self.words(query, text, text, key_padding_mask=~visible, need_weights=False)
        return x + mixed.transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """v of noisy pixels, for a time and a condition. Attention is on the smallest grid alone."""

    def __init__(self, channels: tuple[int, ...], text_width: int, enlarges: bool):
        """channels: of each resolution, the finest first. enlarges: for super-resolution."""
        super().__init__()
        self.enlarges = enlarges
        self.time = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.text = nn.Linear(text_width, WIDTH)
        self.first = nn.Conv2d(6 if enlarges else 3, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        inputs = channels[0]
        for outputs in channels:
            self.down.append(ResidualBlock(inputs, outputs))
            inputs = outputs
        self.attention = Attention(inputs, text_width)
        self.middle = ResidualBlock(inputs, inputs)
        for outputs in reversed(channels):
            self.up.append(ResidualBlock(inputs + outputs, outputs))
            inputs = outputs
        self.norm = nn.GroupNorm(GROUPS, inputs)
        self.last = nn.Conv2d(inputs, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def forward(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """z (B, 3, H, W), t (B,) from 0 for images to 1 for noise -> v (B, 3, H, W)."""
        noise = torch.zeros_like(t) if condition.noise is None else condition.noise
        waves = [time_embedding(t, WIDTH), time_embedding(noise, WIDTH)]  # each B D
        count = condition.visible.sum(dim=1, keepdim=True).clamp(min=1)  # B 1
        words = (condition.text * condition.visible[..., None]).sum(dim=1) / count  # B E
        told = self.time(torch.cat(waves, dim=1)) + self.text(words)  # B D
        if self.enlarges:
            z = torch.cat([z, F.interpolate(condition.low, scale_factor=2.0)], dim=1)
        x = self.first(z)
        seen = []
        for level, block in enumerate(self.down):
            if level > 0:
                x = F.avg_pool2d(x, 2)
            x = block(x, told)
            seen.append(x)
        x = self.middle(self.attention(x, condition.text, condition.visible), told)
        for level, block in enumerate(self.up):
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0)
            x = block(torch.cat([x, seen.pop()], dim=1), told)
        return self.last(F.silu(self.norm(x)))


# --- Diffusion ---


def alpha_sigma(t: Tensor) -> tuple[Tensor, Tensor]:
    """Of times (B,): how much of the image and of the noise z has, each (B, 1, 1, 1)."""
    angle = (math.pi / 2 * t)[:, None, None, None]
    return angle.cos(), angle.sin()


def velocity_loss(
    model: UNet, x: Tensor, condition: Condition, generator: torch.Generator
) -> Tensor:
    """The squared error of v = alpha noise - sigma x, at a random time."""
    noise = torch.randn(x.shape, generator=generator)
    t = torch.rand(len(x), generator=generator)
    alpha, sigma = alpha_sigma(t)
    v = model(alpha * x + sigma * noise, t, condition)
    return F.mse_loss(v, alpha * noise - sigma * x)


@torch.no_grad()
def ddim(velocity: Callable, z: Tensor, steps: int) -> Tensor:
    """Noise z (B, 3, H, W) -> images, in equal steps of time. velocity(z, t (B,)) -> v."""
    times = torch.linspace(1, 0, steps + 1)
    for now, then in zip(times[:-1], times[1:], strict=True):
        t = now.expand(len(z))
        alpha, sigma = alpha_sigma(t)
        v = velocity(z, t)
        x = (alpha * z - sigma * v).clamp(-1, 1)
        # The noise that z then has. As z = alpha x + sigma noise, it follows from x.
        noise = (z - alpha * x) / sigma
        alpha, sigma = alpha_sigma(then.expand(len(z)))
        z = alpha * x + sigma * noise
    return z


def guided(model: UNet, prompts: Prompts, guidance: float) -> Callable:
    """The guided v, as `ddim` takes it. Rows without caption, if any, run in the same batch."""
    if guidance == 0:
        condition = Condition(prompts.text, prompts.visible)
        return lambda z, t: model(z, t, condition)
    both = Condition(
        torch.cat([prompts.text, prompts.negative_text]),
        torch.cat([prompts.visible, prompts.negative_visible]),
    )

    def velocity(z: Tensor, t: Tensor) -> Tensor:
        v = model(z.repeat(2, 1, 1, 1), t.repeat(2), both)  # 2B 3 H W
        return guide(*v.chunk(2), guidance)

    return velocity


def images(
    muse: Muse,
    models: list,
    prompts: Prompts,
    passes: int,
    settings: dict,
    generators: list[torch.Generator],
) -> Tensor:
    """Images (B, 3, H, W): first of half the size."""
    base, enlarger = models
    B, H = len(prompts.text), muse.tokenizer_hi.config.side
    (generator, *_) = generators
    guidance = settings["guidance"]
    noise = torch.randn(B, 3, H // 2, H // 2, generator=generator)
    low = ddim(guided(base, prompts, guidance), noise, passes)
    low = low + settings["noise"] * torch.randn(low.shape, generator=generator)
    level = torch.full((B,), settings["noise"])
    condition = Condition(prompts.text, prompts.visible, low, level)
    noise = torch.randn(B, 3, H, H, generator=generator)
    # The low-res image says nearly all, so there is no guidance.
    return ddim(lambda z, t: enlarger(z, t, condition), noise, -(-passes // 3))


# --- Training ---


def make_base(muse: Muse, words: Tensor) -> UNet:
    return UNet((24, 40, 64), muse.text.width, enlarges=False)


def make_enlarger(muse: Muse, words: Tensor) -> UNet:
    return UNet((16, 24, 40, 64), muse.text.width, enlarges=True)


def loss(model: UNet, muse: Muse, tokens: Tokens) -> Callable:
    """What `training_loop` takes as parts_of."""
    data = training_images(muse.tokenizer_hi.config.side, len(tokens))

    def parts_of(indices: Tensor, generator: torch.Generator, step: int):
        x = data.batch(indices)  # B 3 H W
        text, visible = tokens.captions(indices, generator)  # B T E, B T
        condition = Condition(text, drop_captions(visible, 0.1, generator))
        low = halve(x)  # B 3 H/2 W/2
        if model.enlarges:
            level = MOST_NOISE * torch.rand(len(x), generator=generator)  # B
            noise = torch.randn(low.shape, generator=generator)
            noisy = low + level[:, None, None, None] * noise
            condition = condition._replace(low=noisy, noise=level)
        yield velocity_loss(model, x if model.enlarges else low, condition, generator), {}

    return parts_of


GRID = {"guidance": (0.0, 0.5, 1.0, 2.0, 4.0), "noise": (0.0, 0.1)}
RIVAL = Way(
    "pixels",
    parts=(
        Part(make_base, loss, batch=16, fraction=(1 + TOKENIZERS) / 2, lr=1e-3),
        Part(make_enlarger, loss, batch=16, fraction=(1 + TOKENIZERS) / 2, lr=1e-3),
    ),
    images=images,
    passes=(5, 10, 20, 50, 100),
    tuned_at=20,
    grid=GRID,
)


def main():
    compare(__doc__, "pixels", RIVAL)


if __name__ == "__main__":
    main()
