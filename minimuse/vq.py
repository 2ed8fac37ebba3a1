"""The image tokenizer: an image becomes a small grid of integers, and back.

    encode:  image (B, 3, H, W) -> latents (B, C, h, w) -> nearest codes -> ids (B, h, w)
    decode:  ids (B, h, w) -> code vectors (B, C, h, w) -> image (B, 3, H, W)

    from minimuse import Muse
    tokenizer = Muse.load("toy").tokenizer_hi
    ids = tokenizer.encode(images)                 # images (B, 3, H, W) in [-1, 1]
    images = tokenizer.decode(ids)

This is a VQ-VAE; `vq_loss.py` has the losses that make it a VQGAN, and `grow.py` enlarges the
decoder. It is fully convolutional (Muse, section 2.2 and appendix), so it takes any image whose
sides are multiples of the factor f = H/h. Unlike VQGAN it has no GroupNorm, which would make each
code depend on the whole image, and such tokens are hard to predict; only each latent vector is
normalized, on its own. Residual blocks that start as the identity keep the training stable instead.

Papers: VQ-VAE (1711.00937; appendix A.1: moving codebook), VQGAN (2012.09841), FSQ (2309.15505).
Letters: B batch, H W pixels, h w token grid, C code width, K codes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from minimuse.plumbing.arguments import check_ids, check_images
from minimuse.plumbing.collectives import copy_from_first
from minimuse.plumbing.precision import full_precision
from minimuse.plumbing.ranges import check_settings, check_tokenizer


@dataclass(frozen=True)
class TokenizerConfig:
    side: int  # pixels of a training image; the network itself takes any multiple of the factor
    codes: int = 1024  # K; with FSQ the product of its levels
    code_width: int = 16  # C
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)  # of the channels; sides halve from one to the next
    blocks: tuple[int, ...] = (2, 2, 2)  # residual blocks per resolution
    # Do the encoder's convolutions reach into neighbouring patches? If not, and without residual
    # blocks, a token depends on its own patch only.
    overlap: bool = True
    quantizer: str = "ema"  # or "fsq"
    levels: tuple[int, ...] = ()  # FSQ: number of values per latent dimension
    # Muse finetunes a decoder with twice the channels. 0 and (): the same as in the encoder.
    decoder_channels: int = 0
    decoder_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        check_tokenizer(self)

    @property
    def factor(self) -> int:
        """f: pixels per token along a side, H / h."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along a side of a training image."""
        return self.side // self.factor


class ImageTokenizer(nn.Module):
    """Encoder, quantizer and decoder."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        if config.quantizer == "fsq":
            self.quantizer = FSQuantizer(config.levels)
        else:
            self.quantizer = EMAQuantizer(config.codes, config.code_width)
        self.decoder = Decoder(config)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> latents before quantization (B, h, w, C), float32.

        Raises a ValueError if H or W is not a multiple of the factor.
        """
        H, W = images.shape[-2:]
        factor = self.config.factor
        if H % factor != 0 or W % factor != 0:
            raise ValueError(f"image is {H}x{W}; the tokenizer needs multiples of {factor}")
        # Convolutions on a CPU are 2-3 times faster in this memory format.
        images = images.contiguous(memory_format=torch.channels_last)
        z = rearrange(self.encoder(images), "B C h w -> B h w C").float()
        if self.config.quantizer == "fsq":
            return z  # FSQ bounds the latents itself
        # Latents of unit scale keep the codes from shrinking to 0 and from drifting away.
        return F.layer_norm(z, z.shape[-1:])

    def autoencode(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> reconstruction (B, 3, H, W) without codes, as training starts."""
        return self.decoder(rearrange(self.latents(images), "B h w C -> B C h w"))

    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct images (B, 3, H, W) through the codes.

        Returns the reconstruction (B, 3, H, W), the latents (B, h, w, C), the ids (B, h, w) and
        the commitment loss ().
        """
        z = self.latents(images)  # (B, h, w, C)
        code, ids, commitment = self.quantizer(z)  # (B, h, w, C), (B, h, w), ()
        reconstruction = self.decoder(rearrange(code, "B h w C -> B C h w"))  # (B, 3, H, W)
        return reconstruction, z, ids, commitment

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> ids (B, h, w), int64 in 0..K-1.

        Computes in float32, since bf16 or TF32 would choose another code where two are close.
        """
        check_images("images", images)
        with full_precision(images.device):
            return self.quantizer.nearest(self.latents(images))

    @torch.no_grad()
    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, h, w) -> images (B, 3, H, W), clamped to [-1, 1].

        Raises a ValueError if an id is not in 0..K-1.
        """
        check_ids("ids", ids, ("B", "h", "w"), self.config.codes - 1)
        code = rearrange(self.quantizer.lookup(ids), "B h w C -> B C h w")
        return self.decoder(code).float().clamp(-1, 1)


class Encoder(nn.Sequential):
    """Image (B, 3, H, W) -> latents (B, C, h, w)."""

    def __init__(self, config: TokenizerConfig):
        if config.overlap:
            first_kernel, halving_kernel, padding = 3, 3, 1
        else:
            first_kernel, halving_kernel, padding = 1, 2, 0
        widths = [config.channels * m for m in config.multipliers]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], first_kernel, padding=padding)]
        for i, width in enumerate(widths):
            if i > 0:  # halve the sides
                layers.append(
                    nn.Conv2d(widths[i - 1], width, halving_kernel, padding=padding, stride=2)
                )
            layers += [ResidualBlock(width) for _ in range(config.blocks[i])]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], config.code_width, 1))


class Decoder(nn.Sequential):
    """Code vectors (B, C, h, w) -> image (B, 3, H, W), not clamped."""

    def __init__(self, config: TokenizerConfig):
        channels = config.decoder_channels or config.channels
        blocks = (config.decoder_blocks or config.blocks)[::-1]
        widths = [channels * m for m in config.multipliers[::-1]]
        layers: list[nn.Module] = [nn.Conv2d(config.code_width, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:  # double the sides
                layers.append(nn.Upsample(scale_factor=2))
                layers.append(nn.Conv2d(widths[i - 1], width, 3, padding=1))
            layers += [ResidualBlock(width) for _ in range(blocks[i])]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))


class ResidualBlock(nn.Module):
    """x + two convolutions of x; starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, channels, H, W) -> the same shape."""
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class EMAQuantizer(nn.Module):
    """A codebook of K vectors that are moving averages of their latents and take no gradient."""

    def __init__(self, codes: int, width: int, decay: float = 0.97, restart_below: float = 0.1):
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.register_buffer("codebook", torch.randn(codes, width))
        # Moving averages of how many latents a code gets in an update, and of their sum.
        self.register_buffer("mass", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, width))

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents z (B, h, w, C) -> codes (B, h, w, C), ids (B, h, w), commitment loss ().

        The codes carry the gradient of z (straight-through, VQ-VAE, section 3.2).
        """
        with full_precision(z.device):
            z = z.float()  # (B, h, w, C)
            ids = self.nearest(z.detach())  # (B, h, w)
            code = self.lookup(ids)  # (B, h, w, C)
            commitment = (z - code).square().mean()  # moves z only, since codes are a buffer
            return z + (code - z).detach(), ids, commitment

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (..., C) -> ids (...) of the nearest codes by Euclidean distance, in float32."""
        flat = z.reshape(-1, z.shape[-1]).float()  # (L, C) of L latents
        # |z - c|^2 = |z|^2 - 2 z c + |c|^2. |z|^2 is the same for all codes c, so leave it out.
        code_norms = self.codebook.square().sum(-1)  # (K,)
        with full_precision(z.device):
            scores = torch.addmm(code_norms, flat, self.codebook.t(), alpha=-2.0)  # (L, K)
        return scores.argmin(dim=-1).view(z.shape[:-1])

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> code vectors (..., C)."""
        return F.embedding(ids, self.codebook)

    @torch.no_grad()
    def start(self, z: torch.Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """Place the codes among the latents z (..., C) by k-means, starting from random latents."""
        z = z.reshape(-1, z.shape[-1]).float()
        rows = torch.randint(len(z), (len(self.codebook),), generator=generator)
        self.codebook.copy_(z[rows.to(z.device)])
        for _ in range(rounds):
            # Without a history, `update` moves each code to the mean of its latents: k-means.
            self.mass.zero_()
            self.update(z, self.nearest(z), generator)

    @torch.no_grad()
    def update(self, z: torch.Tensor, ids: torch.Tensor, generator: torch.Generator) -> int:
        """Move codes to their latents: z (..., C), ids (...) -> number of dead codes restarted."""
        z = z.detach().reshape(-1, z.shape[-1]).float()
        ids = ids.reshape(-1)
        if not z.isfinite().all():
            return 0  # training skips such a step, but the moving averages would keep the NaN
        self.move_codes(z, ids)
        restarted = self.restart_dead_codes(z, ids, generator)
        copy_from_first(*self.buffers())  # a GPU's sums vary, so processes might drift apart
        return restarted

    def move_codes(self, z: torch.Tensor, ids: torch.Tensor) -> None:
        """Set each code to (moving average of its latents' sum) / (that of their number).

        VQ-VAE, appendix A.1. z (L, C) of L latents, ids (L,).
        """
        has_history = bool(self.mass.any())
        decay = self.decay if has_history else 0.0
        counts = torch.bincount(ids, minlength=len(self.mass))
        self.mass.mul_(decay).add_(counts, alpha=1 - decay)
        self.total.mul_(decay).index_add_(0, ids, z, alpha=1 - decay)
        used = self.mass > 0  # a code that never had a latent stays where it is
        self.codebook[used] = self.total[used] / self.mass[used, None]

    def restart_dead_codes(
        self,
        z: torch.Tensor,
        ids: torch.Tensor,
        generator: torch.Generator,
    ) -> int:
        """Put dead codes on latents of this batch, each on one of its own; return how many.

        A code is dead if its mass is below `restart_below` of what it would have if all codes
        were used alike. The latent is drawn by its squared distance to its own code, like the
        centres of k-means++, because frequent latents (the background) have enough codes.
        """
        threshold = self.restart_below * len(z) / len(self.mass)
        error = (z - self.codebook[ids]).square().sum(-1).cpu().double()
        dead = (self.mass < threshold).nonzero()[:, 0]
        # Each code gets a latent of its own, and a latent without error needs no code.
        dead = dead[: int((error > 0).sum())]
        if len(dead) == 0:
            return 0
        rows = torch.multinomial(error, len(dead), generator=generator).to(z.device)
        self.codebook[dead] = z[rows]
        # With twice the threshold a code has some updates' time to attract latents.
        self.mass[dead] = 2 * threshold
        self.total[dead] = z[rows] * 2 * threshold
        return len(dead)


class FSQuantizer(nn.Module):
    """Finite scalar quantization: bounds each latent dimension and rounds it. It has no codebook.

    The rounded dimensions are digits, and an id is the number that they make (2309.15505).
    """

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = levels
        place_values = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("sizes", torch.tensor(levels), persistent=False)
        self.register_buffer("place_values", torch.tensor(place_values), persistent=False)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents z (B, h, w, C) -> code vectors (B, h, w, C), ids (B, h, w), loss 0 ()."""
        with full_precision(z.device):
            z = z.float()  # (B, h, w, C)
            code = self.code_of(self.digits(z))  # (B, h, w, C)
            return code, self.nearest(z), z.new_zeros(())

    def digits(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (..., C) -> digits in 0..L-1 per dimension, as floats.

        The rounding goes straight through, so the gradient is that of the bound.
        """
        bounded = torch.sigmoid(z) * (self.sizes - 1)  # (..., C), each number between 0 and L-1
        return bounded + (bounded.round() - bounded).detach()

    def code_of(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits in 0..L-1 (..., C) -> codes in [-1, 1] (..., C)."""
        return digits / (self.sizes - 1) * 2 - 1

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (..., C) -> ids (...)."""
        return (self.digits(z.float()).round().long() * self.place_values).sum(-1)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> codes (..., C)."""
        return self.code_of(ids[..., None] // self.place_values % self.sizes)

    def start(self, z: torch.Tensor, generator: torch.Generator) -> None:
        """Do nothing: there is no codebook to place."""

    def update(self, z: torch.Tensor, ids: torch.Tensor, generator: torch.Generator) -> int:
        """Do nothing: there is no codebook to move. Returns 0, the number of restarted codes."""
        return 0


def perplexity(ids: torch.Tensor, codes: int) -> tuple[float, int]:
    """How much of a codebook the ids use: exp(entropy of the code frequencies), and how many occur.

    1 <= perplexity <= number of codes that occur <= K.
    """
    counts = torch.bincount(ids.reshape(-1), minlength=codes).cpu().double()
    frequencies = counts[counts > 0] / counts.sum()
    entropy = -(frequencies * frequencies.log()).sum()
    return float(torch.exp(entropy)), len(frequencies)
