"""Claim 6: parallel decoding is over ten times as fast as autoregression, at like quality (Muse, section 3 and table 3).

    python lessons/claims/autoregression.py --out runs/claims        # three quarters of an hour of two cores

The rival draws the same 16 x 16 tokens in raster order, one per pass, each from those before it and the caption. It is the base model
with its sight cut off, and has all that makes such a model fast: keys and values of past tokens are kept, and so are the caption's.
What is measured, and how it is kept fair, is in `direct.py`. On a CPU time goes by the work done, and a kept token costs none; what
parallel decoding has to give is fewer passes, one after the other, which a GPU waits for: --device cuda times it there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from direct import SIZE, Part, Way, compare, vectors
from einops import rearrange
from torch import nn
from trial import arguments

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.decode import draw, guide, gumbel
from minimuse.initialization import initialize_weights
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions
from minimuse.muse import Prompts
from minimuse.transformer import Block, Context, SelfAttention, attend


class CausalAttention(SelfAttention):
    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, cache: torch.Tensor | None, at: int
    ) -> torch.Tensor:
        """x (B, n, D), tokens `at` to at + n; bias (H, n, at + n), -inf where there is nothing to see. cache (2, B, H, N, d): keys and
        values of the tokens before, to which those of x are added; without one, x begins at 0."""
        q, k, v = rearrange(self.qkv(x), "B n (three H d) -> three B H n d", three=3, H=self.heads)
        if cache is not None:
            end = at + x.shape[1]
            cache[0, :, :, at:end], cache[1, :, :, at:end] = k, v
            k, v = cache[:, :, :, :end]  # B H at+n d
        return self.out(rearrange(attend(q, k, v, bias=bias), "B H n d -> B n (H d)"))


class CausalBlock(Block):
    def __init__(self, width: int, heads: int, grid: int):
        super().__init__(width, heads, grid)
        self.self_attention = CausalAttention(width, heads, grid)

    def forward(self, x, bias, k, v, visible, cache, at) -> torch.Tensor:
        x = x + self.self_attention(self.norm_self(x), bias, cache, at)
        x = x + self.cross_attention(self.norm_cross(x), k, v, visible)
        return x + self.mlp(self.norm_mlp(x))


class Autoregressive(MaskGit):
    """p(token i | tokens 0 .. i-1, caption). Place i reads token i-1; place 0 reads the mask, which stands for the beginning."""

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int):
        super().__init__(config, codes, grid, text_width)
        self.decoder.blocks = nn.ModuleList(
            CausalBlock(config.width, config.heads, grid) for _ in range(config.layers)
        )
        initialize_weights(self, config.layers)

    def sight(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What is the same in every pass: positions (N, D), and for each layer what is added to its scores (H, N, N), -inf for later tokens."""
        positions = self.decoder.positions()
        later = torch.ones(
            len(positions), len(positions), dtype=torch.bool, device=positions.device
        ).triu(1)
        return positions, [
            block.self_attention.biases[0]().masked_fill(later, float("-inf"))
            for block in self.decoder.blocks
        ]

    def run(
        self,
        inputs: torch.Tensor,
        context: Context,
        sight: tuple,
        caches: list | None = None,
        at: int = 0,
    ) -> torch.Tensor:
        """inputs (B, n), tokens at - 1 to at + n - 1 -> logits (B, n, K) of the tokens `at` to at + n."""
        (positions, biases), end = sight, at + inputs.shape[1]
        x = self.decoder.embedding(inputs) + positions[at:end]  # B n D
        for i, block in enumerate(self.decoder.blocks):
            bias, cache = biases[i][:, at:end, :end], caches and caches[i]
            x = block(
                x, bias, context.keys[i], context.values[i], context.visible, cache, at
            )  # B n D
        return self.decoder.head(self.decoder.norm(x)).float()

    def forward(self, ids: torch.Tensor, context: Context) -> torch.Tensor:
        """ids (B, N) -> logits (B, N, K), each from the tokens before it."""
        return self.run(F.pad(ids[:, :-1], (1, 0), value=self.mask_id), context, self.sight())


@torch.no_grad()
def sample(
    model: Autoregressive,
    context: Context,
    uncond: Context | None,
    guidance: float,
    temperature: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """ids (B, N), one token per pass; rows without caption run in the same batch, if there are any."""
    both = context if uncond is None else context.join(uncond)
    sight, (rows, H, _, d), B = model.sight(), both.keys[0].shape, len(context.visible)
    caches = [keys.new_zeros(2, rows, H, len(sight[0]), d) for keys in both.keys]
    ids = [torch.full((B,), model.mask_id, device=both.visible.device)]
    for at in range(len(sight[0])):
        logits = model.run(ids[-1].repeat(rows // B)[:, None], both, sight, caches, at)[
            :, 0
        ]  # rows K
        mixed = logits if uncond is None else guide(*logits.chunk(2), guidance)  # B K
        ids.append(draw(mixed, gumbel(mixed.shape, generator).to(mixed.device), temperature))
    return torch.stack(ids[1:], dim=1)


def make(muse: Muse, words: torch.Tensor) -> Autoregressive:
    high = muse.tokenizer_hi
    model = Autoregressive(SIZE, high.config.codes, high.config.grid, muse.text.width)
    model.start(words, vectors(high))
    return model


def loss(model: Autoregressive, muse: Muse, tokens: Tokens) -> Callable:
    """Cross-entropy of every token, from the true ones before it; captions are dropped as for the others."""

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        ids, (text, visible) = tokens.ids("high", indices), tokens.captions(indices, generator)
        logits = model(ids, model.context(text, drop_captions(visible, 0.1, generator)))
        yield F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {}

    return parts_of


def ids(
    muse: Muse, models: list, asked: Prompts, passes: int, how: dict, generator: torch.Generator
) -> torch.Tensor:
    (model,) = models
    return sample(
        model,
        *muse.contexts(model, asked, how["guidance"]),
        how["guidance"],
        how["temperature"],
        generator,
    )


TUNED = {"guidance": (0.0, 0.5, 1.0, 2.0, 4.0), "temperature": (0.25, 0.5, 0.75, 1.0)}
RIVAL = Way("autoregressive", (Part(make, loss, 16),), ids, (256,), 256, TUNED)


def main():
    compare(
        arguments(__doc__, seconds=900.0, pictures=20_000, n=96, device="cpu"),
        "autoregression",
        RIVAL,
    )


if __name__ == "__main__":
    main()
