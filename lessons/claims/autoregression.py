"""Claim 6: parallel decoding is over ten times as fast as autoregression, at similar quality
(Muse, section 3 and table 3).

    python lessons/claims/autoregression.py --out runs/claims   # 45 minutes of two cores

The rival draws the same 16 x 16 tokens in raster order, one per pass, each from the tokens before
it and from the caption. It is the base model with causal attention. It has what makes such a model
fast: keys and values of past tokens are kept, and so are the caption's. `direct.py` says what is
measured, and what keeps it fair.

On a CPU, time grows with the work done, and a token that is kept costs none. What parallel
decoding gives is fewer passes in sequence, and a GPU waits for each of these: --device cuda
measures the time there.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from direct import SIZE, Part, Way, code_vectors, compare
from einops import rearrange
from torch import nn

from minimuse import Muse
from minimuse.data import Tokens
from minimuse.decode import draw, gumbel
from minimuse.guidance import guide
from minimuse.maskgit import BaseConfig, MaskGit, drop_captions
from minimuse.muse import Prompts
from minimuse.plumbing.initialization import initialize_weights
from minimuse.transformer import Block, Context, SelfAttention, attend


class CausalAttention(SelfAttention):
    def forward(
        self, x: torch.Tensor, bias: torch.Tensor, cache: torch.Tensor | None, start: int
    ) -> torch.Tensor:
        """Attention of the tokens `start` to start + n to all tokens up to themselves.

        x: (B, n, D). bias: (H, n, start + n), -inf at later tokens. cache: (2, B, H, N, d), keys
        and values of the tokens before, to which those of x are added. Without one, start is 0.
        """
        qkv = self.qkv(x)  # B n 3HD
        q, k, v = rearrange(qkv, "B n (three H d) -> three B H n d", three=3, H=self.heads)
        if cache is not None:
            end = start + x.shape[1]
            cache[0, :, :, start:end] = k
            cache[1, :, :, start:end] = v
            k, v = cache[:, :, :, :end]  # B H start+n d
        attended = attend(q, k, v, bias=bias)  # B H n d
        return self.out(rearrange(attended, "B H n d -> B n (H d)"))


class CausalBlock(Block):
    def __init__(self, width: int, heads: int, grid: int):
        super().__init__(width, heads, grid)
        self.self_attention = CausalAttention(width, heads, grid)

    def forward(self, x, bias, k, v, visible, cache, start) -> torch.Tensor:
        x = x + self.self_attention(self.norm_self(x), bias, cache, start)
        x = x + self.cross_attention(self.norm_cross(x), k, v, visible)
        return x + self.mlp(self.norm_mlp(x))


class Autoregressive(MaskGit):
    """p(token i | tokens 0 .. i-1, caption).

    Place i reads token i-1. Place 0 reads the mask id, which stands for the beginning.
    """

    def __init__(self, config: BaseConfig, codes: int, grid: int, text_width: int):
        super().__init__(config, codes, grid, text_width)
        self.decoder.blocks = nn.ModuleList(
            CausalBlock(config.width, config.heads, grid) for _ in range(config.layers)
        )
        initialize_weights(self, config.layers)

    def positions_and_biases(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What is the same in every pass: positions (N, D), and each layer's attention bias.

        A bias (H, N, N) is -inf at later tokens.
        """
        positions = self.decoder.positions()  # N D
        N = len(positions)
        later = torch.ones(N, N, dtype=torch.bool, device=positions.device).triu(1)
        biases = []
        for block in self.decoder.blocks:
            bias = block.self_attention.biases[0]()  # H N N
            biases.append(bias.masked_fill(later, float("-inf")))
        return positions, biases

    def run(
        self,
        inputs: torch.Tensor,
        context: Context,
        positions_and_biases: tuple[torch.Tensor, list[torch.Tensor]],
        caches: list[torch.Tensor] | None = None,
        start: int = 0,
    ) -> torch.Tensor:
        """The logits (B, n, K) of the tokens `start` to start + n.

        inputs: (B, n), the tokens start - 1 to start + n - 1.
        """
        positions, biases = positions_and_biases
        end = start + inputs.shape[1]
        x = self.decoder.embedding(inputs) + positions[start:end]  # B n D
        for i, block in enumerate(self.decoder.blocks):
            bias = biases[i][:, start:end, :end]  # H n start+n
            cache = None if caches is None else caches[i]  # 2 B H N d
            k = context.keys[i]
            v = context.values[i]
            x = block(x, bias, k, v, context.visible, cache, start)  # B n D
        return self.decoder.head(self.decoder.norm(x)).float()  # B n K

    def forward(self, ids: torch.Tensor, context: Context) -> torch.Tensor:
        """ids (B, N) -> logits (B, N, K), each from the tokens before it."""
        inputs = F.pad(ids[:, :-1], (1, 0), value=self.mask_id)  # B N
        return self.run(inputs, context, self.positions_and_biases())


@torch.no_grad()
def sample(
    model: Autoregressive,
    context: Context,
    uncond: Context | None,
    guidance: float,
    temperature: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """ids (B, N), one token per pass. Rows without caption, if any, run in the same batch."""
    B = len(context.visible)
    both = context if uncond is None else context.join(uncond)
    rows, H, _, d = both.keys[0].shape
    positions, biases = model.positions_and_biases()
    N = len(positions)
    caches = [keys.new_zeros(2, rows, H, N, d) for keys in both.keys]
    last = torch.full((B,), model.mask_id, device=both.visible.device)
    columns = []
    for start in range(N):
        inputs = last.repeat(rows // B)[:, None]  # rows 1
        logits = model.run(inputs, both, (positions, biases), caches, start)[:, 0]  # rows K
        if uncond is not None:
            logits = guide(*logits.chunk(2), guidance)  # B K
        noise = gumbel(logits.shape, generator).to(logits.device)
        last = draw(logits, noise, temperature)  # B
        columns.append(last)
    return torch.stack(columns, dim=1)


def make(muse: Muse, words: torch.Tensor) -> Autoregressive:
    high = muse.tokenizer_hi
    model = Autoregressive(SIZE, high.config.codes, high.config.grid, muse.text.width)
    model.start(words, code_vectors(high))
    return model


def loss(model: Autoregressive, muse: Muse, tokens: Tokens) -> Callable:
    """Cross-entropy of every token, given the true ones before it.

    Captions are dropped as often as in the training of the other models.
    """

    def parts_of(indices: torch.Tensor, generator: torch.Generator, step: int):
        ids = tokens.ids("high", indices)  # B N
        text, visible = tokens.captions(indices, generator)  # B T E, B T
        logits = model(ids, model.context(text, drop_captions(visible, 0.1, generator)))  # B N K
        yield F.cross_entropy(logits.flatten(0, 1), ids.flatten()), {}

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
    guidance = settings["guidance"]
    contexts = muse.contexts(model, prompts, guidance)
    ids = sample(model, *contexts, guidance, settings["temperature"], generators[0])
    return muse.pixels(ids, "high")


GRID = {"guidance": (0.0, 0.5, 1.0, 2.0, 4.0), "temperature": (0.25, 0.5, 0.75, 1.0)}
RIVAL = Way(
    "autoregressive",
    parts=(Part(make, loss, batch=16),),
    images=images,
    passes=(256,),
    tuned_at=256,
    grid=GRID,
)


def main():
    compare(__doc__, "autoregression", RIVAL)


if __name__ == "__main__":
    main()
