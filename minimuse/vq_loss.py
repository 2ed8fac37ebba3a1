"""What makes a VQ-VAE a VQGAN: a discriminator on patches, and a perceptual distance.

A pixel loss alone pays for blur, the mean of all plausible edges. The discriminator punishes what does not look real, patch by patch;
the perceptual distance compares features of a network trained on photographs. Muse (2301.00704, appendix) weighs them 0.1 and 0.05.
Papers: VQGAN (2012.09841) section 3.1; hinge loss (1705.02894); PatchGAN (1611.07004); LPIPS (1801.03924).
"""

import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minimuse.plumbing.lite0 import Lite0, has_lite0


@dataclass(frozen=True)
class LossWeights:
    commitment: float = 0.25
    perceptual: float = (
        0.05  # needs the Lite0 network of the `eval` extra; without it, none, and a warning
    )
    adversarial: float = 0.1
    quantize_from: float = (
        0.2  # share of the training that is a plain autoencoder's; then k-means places the codes
    )
    adversarial_from: float = 0.5  # share of the training after which the discriminator comes in
    discriminator_channels: int = 32


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) -> a map of logits, one per overlapping patch: high where it looks real. Spectral norm keeps
    it from growing steep, and, unlike batch norm, does not mix pictures."""

    def __init__(self, channels: int = 32, layers: int = 2):
        super().__init__()
        widths = [channels * 2**i for i in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            conv = nn.Conv2d(
                widths[i], widths[i + 1], 4, stride=2 if i + 1 < layers else 1, padding=1
            )
            body += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images.contiguous(memory_format=torch.channels_last)).float()


def discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Hinge: real logits above 1 and fake logits below -1 cost nothing."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """What the decoder minimises: minus the logits of its pictures."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """Scale, at most 1e4, that gives both losses gradients of equal length at the decoder's last layer (VQGAN, eq. 7)."""
    length = lambda loss: torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
    return (length(reconstruction) / (length(adversarial) + 1e-4)).clamp(max=1e4).detach()


def perceptual_distance(net: Lite0, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of unit feature vectors, over positions and the first five stages: () >= 0, 0 for equal images."""
    pairs = zip(net.stages(a, 5), net.stages(b, 5))
    return (
        sum(
            (F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1))
            .square()
            .sum(dim=1)
            .mean()
            for x, y in pairs
        )
        / 5
    )


class PictureLoss(nn.Module):
    """Pixel + perceptual + adversarial loss of a decoder's pictures, and the discriminator's own loss, in one backward pass: frozen while
    it judges the decoder, and shown detached pictures while it learns itself, neither gets the other's gradient."""

    def __init__(self, weights: LossWeights):
        super().__init__()
        self.weights = weights
        self.discriminator = (
            PatchDiscriminator(weights.discriminator_channels) if weights.adversarial else None
        )
        if weights.perceptual and not has_lite0():
            warnings.warn(
                "training without the perceptual distance, and so to other weights than with it: pip install 'minimuse[eval]'",
                stacklevel=2,
            )
        self.lite0 = (
            [Lite0()] if weights.perceptual and has_lite0() else []
        )  # a list: not a part to train or save

    def forward(
        self, fake: torch.Tensor, real: torch.Tensor, last_layer: torch.Tensor, adversarial: bool
    ):
        """fake and real (B, 3, H, W) -> loss to minimise, and a dict of its parts (detached)."""
        difference = fake.float() - real
        # squares let the few pixels of an object outweigh the many of a background; the absolute value sharpens
        loss = 4 * difference.square().mean() + 0.5 * difference.abs().mean()
        parts = {
            "pixel": loss.detach(),
            "psnr": 10 * torch.log10(4 / difference.detach().square().mean()),
        }
        if self.lite0:
            perceptual = perceptual_distance(self.lite0[0].to(fake.device), fake.float(), real)
            loss = loss + self.weights.perceptual * perceptual
            parts["perceptual"] = perceptual.detach()
        if self.discriminator is not None and adversarial:
            self.discriminator.requires_grad_(False)
            judged = generator_loss(self.discriminator(fake))
            scale = adaptive_weight(loss, judged, last_layer)
            self.discriminator.requires_grad_(True)
            against = discriminator_loss(
                self.discriminator(real), self.discriminator(fake.detach())
            )
            loss = loss + self.weights.adversarial * scale * judged + against
            parts["discriminator"] = against.detach()
        return loss, parts
