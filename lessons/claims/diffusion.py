"""Claim 7: masked decoding is faster than latent diffusion, at like quality (Muse, section 3 and table 3).

    python lessons/claims/diffusion.py --out runs/claims        # an hour of two cores; less where autoregression.py has been

The rival draws the same tokenizer's 16 x 16 latents of 8 numbers, as they are before quantization: a rectified flow (2209.03003,
2403.03206) that turns noise into latents along straight lines, by a network of the masked model's blocks with the time added to its
tokens. Euler's method takes it there in as many steps as suit it best; the nearest codes of what comes out are the tokens. Its
temperature is the scale of the noise it begins with. What is measured, and how it is kept fair, is in `direct.py`.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from direct import SIZE, WINDOW, Direct, Part, Way, compare
from einops import rearrange
from torch import nn
from trial import arguments

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.datasets import load
from minimuse.decode import guide
from minimuse.initialization import start_white
from minimuse.maskgit import BaseConfig, drop_captions
from minimuse.muse import Prompts
from minimuse.transformer import Context


def waves(t: torch.Tensor, width: int) -> torch.Tensor:
    """Times (B,) in [0, 1] -> sines and cosines (B, width), of up to 100 radians."""
    angles = (
        t[:, None] * torch.linspace(0, math.log(100), width // 2, device=t.device).exp()
    )  # B width/2
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Flow(Direct):
    """The velocity of noisy latents at a time. Latents of C numbers come in and go out where tokens would."""

    def __init__(self, config: BaseConfig, latents: int, grid: int, text_width: int, window: int):
        super().__init__(config, latents, grid, text_width, window)
        width = config.width
        self.decoder.embedding = nn.Linear(latents, width, bias=False)
        self.time = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        nn.init.normal_(
            self.decoder.embedding.weight, std=0.3 * latents**-0.5
        )  # as much as the masked model's codes

    def forward(self, z: torch.Tensor, t: torch.Tensor, context: Context) -> torch.Tensor:
        """z (B, N, C), t (B,), 0 for noise and 1 for latents -> velocity (B, N, C)."""
        below = self.time(waves(t, self.time[-1].out_features))[:, None]  # B 1 D
        return self.decoder(z, context._replace(below=below))


def euler(velocity: Callable, z: torch.Tensor, steps: int) -> torch.Tensor:
    """Follow velocity(z, t) from z at time 0 to time 1, in equal steps."""
    for k in range(steps):
        z = z + velocity(z, k / steps) / steps
    return z


@torch.no_grad()
def sample(
    model: Flow,
    context: Context,
    uncond: Context | None,
    guidance: float,
    noise: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Noise (B, N, C) -> latents; rows without caption run in the same batch, if there are any."""
    both = context if uncond is None else context.join(uncond)
    rows = len(both.visible)

    def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
        found = model(z.repeat(rows // len(z), 1, 1), torch.full((rows,), t, device=z.device), both)
        return found if uncond is None else guide(*found.chunk(2), guidance)

    return euler(velocity, noise, steps)


def make(muse: Muse, words: torch.Tensor) -> Flow:
    high = muse.tokenizer_hi.config
    model = Flow(SIZE, high.code_width, high.grid, muse.text.width, WINDOW)
    start_white(model.text[0], words)
    return model


@lru_cache
def pixels(side: int, count: int):
    """The training pictures, in the order of their tokens."""
    return load("shapes", "train", side, count)


def loss(model: Flow, muse: Muse, tokens: Tokens) -> Callable:
    """(x - noise - velocity)^2 at a point of the line from noise to latents x, its time the sigmoid of a normal number (2403.03206)."""
    pictures = pixels(muse.tokenizer_hi.config.side, len(tokens))

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        with torch.no_grad():
            x = rearrange(
                muse.tokenizer_hi.latents(pictures.batch(indices)), "B h w C -> B (h w) C"
            )
        text, visible = tokens.captions(indices, generator)
        visible = drop_captions(visible, 0.1, generator)
        noise, t = (
            torch.randn(x.shape, generator=generator),
            torch.randn(len(x), generator=generator).sigmoid(),
        )
        found = model(torch.lerp(noise, x, t[:, None, None]), t, model.context(text, visible))
        yield F.mse_loss(found, x - noise), {}

    return parts_of


def ids(
    muse: Muse, models: list, asked: Prompts, passes: int, how: dict, generator: torch.Generator
) -> torch.Tensor:
    (model,), high = models, muse.tokenizer_hi
    noise = how["temperature"] * torch.randn(
        len(asked.text), high.config.grid**2, high.config.code_width, generator=generator
    ).to(muse.device)
    return high.quantizer.nearest(
        sample(model, *muse.contexts(model, asked, how["guidance"]), how["guidance"], noise, passes)
    )


TUNED = {"guidance": (0.0, 0.5, 1.0, 2.0, 4.0), "temperature": (0.7, 0.85, 1.0)}
RIVAL = Way("diffusion", (Part(make, loss, 16),), ids, (1, 2, 4, 8, 16, 32, 64), 16, TUNED)


def main():
    compare(
        arguments(__doc__, seconds=900.0, pictures=20_000, n=96, device="cpu"), "diffusion", RIVAL
    )


if __name__ == "__main__":
    main()
