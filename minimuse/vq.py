"""The tokenizer: an image becomes a small grid of integers, and back (the VQ-VAE inside a VQGAN).

    encode:  image (B, 3, H, W) -> latents (B, D, h, w) -> nearest code -> ids (B, h, w), H = f h
    decode:  ids -> code vectors -> image

Fully convolutional, with no attention (Muse, section 2.2 and appendix): any picture whose sides are multiples of f works. What makes
a VQ-VAE a VQGAN is in `vq_loss.py`. There is no normalisation layer, unlike in VQGAN: GroupNorm would make a code depend on the whole
picture, and such tokens are hard to predict; residual blocks that start as the identity make up for it.
Papers: VQ-VAE (1711.00937), EMA codebook (appendix A.1 there), VQGAN (2012.09841), FSQ (2309.15505).
Letters: B batch, H W pixels, h w token grid, f = H/h, C channels, D code width, K codes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn


@dataclass(frozen=True)
class TokenizerConfig:
    side: int  # pixels of a training picture; the network itself takes any multiple of the factor
    codes: int = 1024  # K; with FSQ the product of its levels
    code_width: int = 16  # D
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)  # channels per resolution; one halving between two
    blocks: tuple[int, ...] = (2, 2, 2)  # residual blocks per resolution
    overlap: bool = (
        True  # False: an encoder without residual blocks sees nothing but a token's own patch
    )
    quantizer: str = "ema"  # or "fsq"
    levels: tuple[int, ...] = ()  # FSQ: values per latent dimension
    decoder_channels: int = 0  # 0: as the encoder. Muse finetunes a decoder with twice the channels
    decoder_blocks: tuple[int, ...] = ()  # (): as the encoder

    def __post_init__(self):
        if not len(self.multipliers) == len(self.blocks) == len(self.decoder_blocks or self.blocks):
            raise ValueError(
                f"multipliers {self.multipliers}, blocks {self.blocks} and decoder_blocks {self.decoder_blocks} must be of one length"
            )
        if self.quantizer not in ("ema", "fsq"):
            raise ValueError(f"unknown quantizer {self.quantizer!r}; choose ema or fsq")
        if self.quantizer == "fsq" and (
            math.prod(self.levels) != self.codes or len(self.levels) != self.code_width
        ):
            raise ValueError(
                f"FSQ levels {self.levels} must multiply to codes={self.codes}, one per code_width={self.code_width}"
            )
        if self.side % self.factor:
            raise ValueError(f"side {self.side} is not a multiple of the factor {self.factor}")

    @property
    def factor(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        return self.side // self.factor


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # a block starts as the identity
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Sequential):
    """Image (B, 3, H, W) -> latents (B, D, h, w)."""

    def __init__(self, config: TokenizerConfig):
        widths = [config.channels * m for m in config.multipliers]
        first, halve = (
            (dict(kernel_size=3, padding=1),) * 2
            if config.overlap
            else (dict(kernel_size=1), dict(kernel_size=2))
        )
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], **first)]
        for i, width in enumerate(widths):
            if i:
                layers.append(nn.Conv2d(widths[i - 1], width, **halve, stride=2))
            layers += [ResidualBlock(width) for _ in range(config.blocks[i])]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], config.code_width, 1))


class Decoder(nn.Sequential):
    """Code vectors (B, D, h, w) -> image (B, 3, H, W)."""

    def __init__(self, config: TokenizerConfig):
        channels, blocks = (
            config.decoder_channels or config.channels,
            config.decoder_blocks or config.blocks,
        )
        blocks, widths = blocks[::-1], [channels * m for m in config.multipliers[::-1]]
        layers: list[nn.Module] = [nn.Conv2d(config.code_width, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                layers += [
                    nn.Upsample(scale_factor=2),
                    nn.Conv2d(widths[i - 1], width, 3, padding=1),
                ]  # double
            layers += [ResidualBlock(width) for _ in range(blocks[i])]
        super().__init__(*layers, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))


@torch.no_grad()
def grow(small: Decoder, large: Decoder, generator: torch.Generator) -> None:
    """Start a wider and deeper decoder as the same function as a small one, to finetune it (Muse, section 2.5): Net2Net (1511.05641).
    Every channel is copied r times, and a weight that reads one is divided among its copies, unevenly, or they would stay equal."""
    sources = iter([layer for layer in small if list(layer.parameters())])
    source = next(sources)
    for layer in large:
        if type(layer) is not type(source):
            continue  # no weights, or an added residual block
        for target, old in zip(layer.parameters(), source.parameters()):
            copies = [new // was for new, was in zip(target.shape, old.shape)]
            if any(c * was != new for c, new, was in zip(copies, target.shape, old.shape)):
                raise ValueError(
                    f"cannot grow weights of {tuple(old.shape)} to {tuple(target.shape)}: decoder_channels must be a multiple of channels"
                )
            wide = old.repeat(*copies)
            if old.dim() == 4 and copies[1] > 1:
                noise = 0.5 * torch.rand(
                    copies[1], *wide.shape[:1], *old.shape[1:], generator=generator
                )
                wide = wide * rearrange(noise.softmax(dim=0), "r O I y x -> O (r I) y x").to(
                    wide.device
                )  # shares that sum to 1
            target.copy_(wide)
        source = next(sources, None)
    if source is not None:
        raise ValueError("cannot grow a decoder to fewer residual blocks; raise decoder_blocks")


class EMAQuantizer(nn.Module):
    """A codebook of K vectors that follow, in `update`, the latents assigned to them, by moving averages: they take no gradient."""

    def __init__(self, codes: int, width: int, decay: float = 0.97, restart_below: float = 0.1):
        super().__init__()
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("codebook", torch.randn(codes, width))
        self.register_buffer(
            "mass", torch.zeros(codes)
        )  # moving average of the latents per code, per update
        self.register_buffer("total", torch.zeros(codes, width))  # moving average of their sum

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (..., D) -> ids (...) of the nearest code by Euclidean distance, in float32."""
        flat = z.reshape(-1, z.shape[-1]).float()
        # |z - c|^2 = |z|^2 - 2 z c + |c|^2, and |z|^2 does not change which c is nearest
        score = torch.addmm(self.codebook.square().sum(-1), flat, self.codebook.t(), alpha=-2.0)
        return score.argmin(dim=-1).view(z.shape[:-1])

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> code vectors (..., D)."""
        return F.embedding(ids, self.codebook)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """z (B, h, w, D) -> codes with z's gradient (straight-through), ids (B, h, w), commitment loss."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            code = self.lookup(ids := self.nearest(z.detach()))
            commitment = (z - code).square().mean()  # moves z only: the codebook is a buffer
            return z + (code - z).detach(), ids, commitment

    @torch.no_grad()
    def start(self, z: torch.Tensor, generator: torch.Generator, rounds: int = 12) -> None:
        """Put the codes where the latents z (..., D) are: k-means, from random latents, with restarts."""
        z = z.reshape(-1, z.shape[-1]).float()
        self.codebook.copy_(
            z[torch.randint(len(z), (len(self.codebook),), generator=generator).to(z.device)]
        )
        for _ in range(rounds):
            self.mass.zero_()  # nothing to average with: codes go straight to the mean of their latents
            self.update(z, self.nearest(z), generator)

    @torch.no_grad()
    def update(self, z: torch.Tensor, ids: torch.Tensor, generator: torch.Generator) -> int:
        """Move each code to the moving average of its latents' sum over that of their number; restart dead codes, and return how many.

        A code whose number has fallen below `restart_below` of a fair share (1/K) is dead. It is put on a latent of this batch, drawn by
        squared distance to its code, like the centres of k-means++: background has codes enough."""
        z, ids = z.detach().reshape(-1, z.shape[-1]).float(), ids.reshape(-1)
        if not z.isfinite().all():
            return 0  # a step that training will skip; codes would remember it
        decay = (
            self.decay if self.mass.any() else 0.0
        )  # the first batch has nothing to average with
        self.mass.mul_(decay).add_(torch.bincount(ids, minlength=len(self.mass)), alpha=1 - decay)
        self.total.mul_(decay).index_add_(0, ids, z, alpha=1 - decay)
        alive = self.mass > 0
        self.codebook[alive] = self.total[alive] / self.mass[alive, None]
        threshold = self.restart_below * len(z) / len(self.mass)
        error = (z - self.codebook[ids]).square().sum(-1).cpu().double()
        dead = (self.mass < threshold).nonzero()[: int((error > 0).sum()), 0]
        if len(dead):
            pick = torch.multinomial(error, len(dead), generator=generator).to(z.device)
            self.codebook[dead] = z[pick]
            self.mass[dead] = 2 * threshold  # some time to prove itself
            self.total[dead] = z[pick] * 2 * threshold
        return len(dead)


class FSQuantizer(nn.Module):
    """Finite scalar quantization (2309.15505): bound each latent dimension and round it; ids are the digits of one number. No codebook."""

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.levels = levels
        self.register_buffer("sizes", torch.tensor(levels), persistent=False)
        self.register_buffer(
            "radix",
            torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]),
            persistent=False,
        )

    def digits(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (..., D) -> digits in 0 .. L-1 per dimension, rounded, still float and with gradient of the bound."""
        bounded = torch.sigmoid(z) * (self.sizes - 1)  # (0, L-1)
        return bounded + (bounded.round() - bounded).detach()

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        return (
            ids[..., None] // self.radix % self.sizes / (self.sizes - 1) * 2 - 1
        )  # digits, in [-1, 1]

    def nearest(self, z: torch.Tensor) -> torch.Tensor:
        return (self.digits(z).round().long() * self.radix).sum(-1)

    def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            return self.digits(z) / (self.sizes - 1) * 2 - 1, self.nearest(z), z.new_zeros(())

    start = update = lambda self, *arguments: 0  # no codebook: nothing to place, nothing to move


class ImageTokenizer(nn.Module):
    """Encoder, quantizer, decoder."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = (
            FSQuantizer(config.levels)
            if config.quantizer == "fsq"
            else EMAQuantizer(config.codes, config.code_width)
        )
        self.decoder = Decoder(config)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> latents before quantization (B, h, w, D)."""
        H, W = images.shape[-2:]
        if H % self.config.factor or W % self.config.factor:
            raise ValueError(
                f"image is {H}x{W}; the tokenizer needs multiples of {self.config.factor}"
            )
        images = images.contiguous(
            memory_format=torch.channels_last
        )  # 2-3x faster convolutions on CPU
        z = rearrange(self.encoder(images), "B D h w -> B h w D")
        # unit scale: codes neither collapse to 0 nor drift away; FSQ bounds them in the quantizer
        return (
            z.float() if self.config.quantizer == "fsq" else F.layer_norm(z.float(), z.shape[-1:])
        )

    def autoencode(self, images: torch.Tensor) -> torch.Tensor:
        """images -> reconstruction (B, 3, H, W) from the latents as they are, past the quantizer: to start with."""
        return self.decoder(rearrange(self.latents(images), "B h w D -> B D h w"))

    def forward(
        self, images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """images -> (reconstruction (B, 3, H, W), latents (B, h, w, D), ids (B, h, w), commitment loss)."""
        z = self.latents(images)
        code, ids, commitment = self.quantizer(z)
        return self.decoder(rearrange(code, "B h w D -> B D h w")), z, ids, commitment

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) in [-1, 1] -> ids (B, h, w) int64 in 0..K-1, in float32: bf16 or TF32 would pick other codes among close ones."""
        with (
            torch.autocast(images.device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            return self.quantizer.nearest(self.latents(images))

    @torch.no_grad()
    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, h, w) -> images (B, 3, H, W), clamped to [-1, 1]."""
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.config.codes:
            raise ValueError(
                f"ids span {int(ids.min())}..{int(ids.max())}; the codebook has 0..{self.config.codes - 1}"
            )
        return (
            self.decoder(rearrange(self.quantizer.lookup(ids), "B h w D -> B D h w"))
            .float()
            .clamp(-1, 1)
        )


def perplexity(ids: torch.Tensor, codes: int) -> tuple[float, int]:
    """exp(entropy) of how often each code occurs in `ids`, and how many occur at all: 1 <= perplexity <= used <= K."""
    share = torch.bincount(ids.reshape(-1), minlength=codes).cpu().double()
    share = share[share > 0] / share.sum()
    return float(torch.exp(-(share * share.log()).sum())), len(share)
