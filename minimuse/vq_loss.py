"""The losses that make a VQ-VAE a VQGAN: a patch discriminator and a perceptual distance.

A pixel loss alone gives blurred edges, since the mean of all plausible edges costs least. The
discriminator penalizes patches that do not look real. The perceptual distance compares features of
a network trained on photographs. Muse (2301.00704, appendix) weights them by 0.1 and 0.05.

Papers: VQGAN (2012.09841), section 3.1; hinge loss (1705.02894); PatchGAN (1611.07004);
spectral norm (1802.05957); LPIPS (1801.03924).
Letters: B batch, H W pixels, h w the map of patches.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from minimuse.plumbing.collectives import mean_over_processes
from minimuse.plumbing.ranges import check_settings

PEAK = 2.0  # pixels span -1 .. 1
FEATURE_MAPS = 5  # the perceptual distance compares the first five stages of its network


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses, when two of them start, and the width of the discriminator."""

    commitment: float = 0.25
    perceptual: float = 0.05  # needs the network of the `eval` extra; trained without if missing
    adversarial: float = 0.1
    quantize_from: float = 0.2  # fraction of the steps without codes; then k-means places them
    adversarial_from: float = 0.5  # fraction of the steps after which the discriminator starts
    discriminator_channels: int = 32

    def __post_init__(self) -> None:
        check_settings(self)


class ImageLoss(nn.Module):
    """Pixel, perceptual and adversarial loss of a decoder, and the loss of its discriminator.

    One backward pass trains both. The discriminator is frozen while it judges the decoder's images,
    and sees detached images while it learns, so neither gets the gradient of the other's loss.

    `features` is the frozen network of the perceptual distance, or None to train without it.
    """

    def __init__(self, weights: LossWeights, features: nn.Module | None):
        super().__init__()
        self.weights = weights
        self.discriminator = None
        if weights.adversarial > 0:
            self.discriminator = PatchDiscriminator(weights.discriminator_channels)
        # A list hides the network from nn.Module: it is no part of the parameters or saved state.
        self.frozen_features = [features]

    def forward(
        self, fake: torch.Tensor, real: torch.Tensor, last_layer: torch.Tensor, adversarial: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """fake and real (B, 3, H, W) -> loss to minimize (), and its parts, detached.

        `last_layer` is the weight of the decoder's last layer, for the adaptive weight.
        """
        loss = pixel_loss(fake, real)
        squared_error = mean_over_processes((fake.detach().float() - real).square().mean())
        parts = {"pixel": loss.detach(), "psnr": 10 * torch.log10(PEAK**2 / squared_error)}

        features = self.frozen_features[0]
        if features is not None:
            perceptual = perceptual_distance(features.to(fake.device), fake.float(), real)
            loss = loss + self.weights.perceptual * perceptual
            parts["perceptual"] = perceptual.detach()

        if self.discriminator is not None and adversarial:
            # In this pass the discriminator's weights need no gradient, only its input does.
            self.discriminator.requires_grad_(False)
            adversarial_loss = generator_loss(self.discriminator(fake))
            scale = adaptive_weight(loss, adversarial_loss, last_layer)
            self.discriminator.requires_grad_(True)
            real_logits = self.discriminator(real)  # (B, 1, h, w)
            fake_logits = self.discriminator(fake.detach())  # (B, 1, h, w)
            own_loss = discriminator_loss(real_logits, fake_logits)
            loss = loss + self.weights.adversarial * scale * adversarial_loss + own_loss
            parts["discriminator"] = own_loss.detach()
        return loss, parts


def pixel_loss(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The error of pixels, fake and real (B, 3, H, W): ().

    Squares weigh large errors more, and those are at objects, not in the background. Absolute
    values do not prefer a blurred mean. The factors are chosen here, not Muse's.
    """
    error = fake.float() - real  # (B, 3, H, W)
    return 4 * error.square().mean() + 0.5 * error.abs().mean()


class PatchDiscriminator(nn.Module):
    """Tells real images from decoded ones, patch by patch.

    Spectral norm on its middle layers limits how steep it can get and, unlike batch norm, does not
    mix images.
    """

    def __init__(self, channels: int = 32, layers: int = 2):
        super().__init__()
        widths = [channels * 2**i for i in range(layers + 1)]
        body: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(layers):
            is_last = i == layers - 1
            stride = 1 if is_last else 2
            conv = nn.Conv2d(widths[i], widths[i + 1], 4, stride=stride, padding=1)
            register_parametrization(conv, "weight", SpectralNorm(conv.weight))
            body.append(conv)
            body.append(nn.LeakyReLU(0.2))
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B, 3, H, W) -> logits (B, 1, h, w), one per overlapping patch, high for real."""
        images = images.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        return self.body(images).float()


class SpectralNorm(nn.Module):
    """Divides a weight by its largest singular value (1802.05957, algorithm 1).

    That value is u^T W v, with singular vectors u and v that follow the weight by one power
    iteration in each training step. The numbers are those of PyTorch's `spectral_norm`, which uses
    vdot: Apple's GPUs have it in later versions only.
    """

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        matrix = weight.detach().flatten(1)  # (m, n)
        self.register_buffer("u", F.normalize(torch.randn(len(matrix)), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        self.iterate(matrix, times=15)

    @torch.no_grad()
    def iterate(self, matrix: torch.Tensor, times: int) -> None:
        for _ in range(times):
            self.u.copy_(F.normalize(matrix.mv(self.v), dim=0))
            self.v.copy_(F.normalize(matrix.T.mv(self.u), dim=0))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """weight (m, ...) -> the same shape, with a largest singular value of about 1."""
        matrix = weight.flatten(1)  # (m, n)
        if self.training:
            self.iterate(matrix, times=1)
        # Copies, because the next pass changes u and v before the backward pass reads them.
        u, v = self.u.clone(), self.v.clone()
        return weight / u.dot(matrix.mv(v))


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss (1705.02894): logits of real patches above 1 and of fake ones below -1 cost 0."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """The decoder's adversarial loss: minus the mean logit of its images."""
    return -fake_logits.mean()


def adaptive_weight(
    reconstruction: torch.Tensor, adversarial: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """Factor for the adversarial loss that makes both losses pull equally (VQGAN, equation 7).

    With it, their gradients at the decoder's last layer have the same norm. At most 1e4, a
    constant for autograd.
    """
    reconstruction_norm = gradient_norm(reconstruction, last_layer)
    adversarial_norm = gradient_norm(adversarial, last_layer)
    return (reconstruction_norm / (adversarial_norm + 1e-4)).clamp(max=1e4).detach()


def gradient_norm(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Norm of d loss / d weight, in float32; the graph is kept for the backward pass to come."""
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    return mean_over_processes(gradient.float()).norm()


def perceptual_distance(features: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of the unit feature vectors of images a and b (B, 3, H, W).

    `features.stages(images, count)` returns that many feature maps (B, C, h, w). The distance is
    averaged over images, positions and maps: () >= 0, and 0 for equal images (LPIPS, equation 1,
    without learned weights).
    """
    total = 0.0
    maps_of_a = features.stages(a, FEATURE_MAPS)
    maps_of_b = features.stages(b, FEATURE_MAPS)
    for x, y in zip(maps_of_a, maps_of_b, strict=True):
        difference = F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)  # (B, C, h, w)
        total = total + difference.square().sum(dim=1).mean()
    return total / FEATURE_MAPS
