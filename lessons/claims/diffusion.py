"""Claim 7: masked decoding is faster than latent diffusion, at similar quality
(Muse, section 3 and table 3).

    python lessons/claims/diffusion.py --out runs/claims   # an hour of two cores

It takes less time after autoregression.py, whose masked models it uses.

The rival draws the same tokenizer's 16 x 16 latents of 8 numbers, as they are before quantization.
It is a rectified flow (2209.03003, 2403.03206): it turns noise into latents along straight lines.
Its network has the masked model's blocks, and the time is added to its tokens. Euler's method
follows the flow, in as many steps as suit it best. The nearest codes of the result are the tokens.
Its temperature is the scale of the noise at the start. `direct.py` says what is measured, and what
keeps it fair.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from direct import SIZE, WINDOW, Direct, Part, Way, compare
from einops import rearrange
from torch import nn

from minimuse import Muse
from minimuse.data import Images, Tokens
from minimuse.datasets import load
from minimuse.guidance import guide
from minimuse.maskgit import BaseConfig, drop_captions
from minimuse.muse import Prompts
from minimuse.plumbing.initialization import start_white
from minimuse.transformer import Context


def time_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """Times (B,) in [0, 1] -> sines and cosines (B, width), of up to 100 radians."""
    exponents = torch.linspace(0, math.log(100), width // 2, device=t.device)
    angles = t[:, None] * exponents.exp()  # B width/2
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Flow(Direct):
    """The velocity of noisy latents at a time.

    Latents of C numbers are its input and output, where the masked model has tokens.
    """

    def __init__(self, config: BaseConfig, latents: int, grid: int, text_width: int, window: int):
        super().__init__(config, latents, grid, text_width, window)
        width = config.width
        self.decoder.embedding = nn.Linear(latents, width, bias=False)
        self.time = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        # As large as the masked model's embeddings of codes.
        nn.init.normal_(self.decoder.embedding.weight, std=0.3 * latents**-0.5)

    def forward(self, z: torch.Tensor, t: torch.Tensor, context: Context) -> torch.Tensor:
        """z (B, N, C), t (B,), 0 for noise and 1 for latents -> velocity (B, N, C)."""
        waves = time_embedding(t, self.time[-1].out_features)  # B D
        time = self.time(waves)[:, None]  # B 1 D
        return self.decoder(z, context._replace(from_low=time))


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
    """Noise (B, N, C) -> latents. Rows without caption, if any, run in the same batch."""
    both = context if uncond is None else context.join(uncond)
    rows = len(both.visible)

    def velocity(z: torch.Tensor, t: float) -> torch.Tensor:
        repeated = z.repeat(rows // len(z), 1, 1)  # rows N C
        times = torch.full((rows,), t, device=z.device)
        velocities = model(repeated, times, both)  # rows N C
        if uncond is None:
            return velocities
        return guide(*velocities.chunk(2), guidance)

    return euler(velocity, noise, steps)


def make(muse: Muse, words: torch.Tensor) -> Flow:
    high = muse.tokenizer_hi.config
    # It has no table of codes. So it is wider, to have as many parameters as the others.
    size = replace(SIZE, width=144)
    model = Flow(size, high.code_width, high.grid, muse.text.width, WINDOW)
    start_white(model.text[0], words)
    return model


@lru_cache
def training_images(side: int, count: int) -> Images:
    """The training images, in the order of their tokens."""
    return load("shapes", "train", side, count)


def loss(model: Flow, muse: Muse, tokens: Tokens) -> Callable:
    """The squared error of the velocity, (x - noise - velocity)^2.

    It is taken at a random point of the line from noise to latents x. Its time is the sigmoid of a
    normal number (2403.03206).
    """
    data = training_images(muse.tokenizer_hi.config.side, len(tokens))

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        with torch.no_grad():
            latents = muse.tokenizer_hi.latents(data.batch(indices))
        x = rearrange(latents, "B h w C -> B (h w) C")
        text, visible = tokens.captions(indices, generator)  # B T E, B T
        visible = drop_captions(visible, 0.1, generator)
        noise = torch.randn(x.shape, generator=generator)  # B N C
        t = torch.randn(len(x), generator=generator).sigmoid()  # B
        z = torch.lerp(noise, x, t[:, None, None])  # B N C
        velocity = model(z, t, model.context(text, visible))  # B N C
        yield F.mse_loss(velocity, x - noise), {}

    return parts_of


def images(
    muse: Muse,
    models: list,
    prompts: Prompts,
    passes: int,
    settings: dict,
    generators: list[torch.Generator],
) -> torch.Tensor:
    (model,) = models
    high = muse.tokenizer_hi
    shape = (len(prompts.text), high.config.grid**2, high.config.code_width)  # B N C
    noise = settings["temperature"] * torch.randn(shape, generator=generators[0])
    guidance = settings["guidance"]
    contexts = muse.contexts(model, prompts, guidance)
    latents = sample(model, *contexts, guidance, noise.to(muse.device), passes)
    return muse.pixels(high.quantizer.nearest(latents), "high")


GRID = {"guidance": (0.0, 0.5, 1.0, 2.0, 4.0), "temperature": (0.7, 0.85, 1.0)}
RIVAL = Way(
    "diffusion",
    parts=(Part(make, loss, batch=16),),
    images=images,
    passes=(1, 2, 4, 8, 16, 32, 64),
    tuned_at=16,
    grid=GRID,
)


def main():
    compare(__doc__, "diffusion", RIVAL)


if __name__ == "__main__":
    main()
