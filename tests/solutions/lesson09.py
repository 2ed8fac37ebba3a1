"""Right solutions of lesson 09, in other ways."""

import math

import torch
import torch.nn.functional as F
from torch import nn


# --- psnr ---
def psnr_image_by_image(a, b):
    decibels = []
    for x, y in zip(a.double(), b.double(), strict=True):
        error = max(float((x - y).pow(2).mean()), 1e-10)
        decibels.append(10 * math.log10(2**2 / error))
    return sum(decibels) / len(decibels)


def psnr_by_two_logarithms(a, b):
    error = F.mse_loss(a, b, reduction="none").flatten(1).mean(1).clamp(min=1e-10)
    return float((20 * math.log10(2) - 10 * error.log10()).mean())


def psnr_on_half_the_range(a, b):
    """Images in [0, 1] have a peak of 1 and a quarter of the error."""
    error = ((a - b) / 2).square().mean(dim=(1, 2, 3))
    return float((-10 * torch.log10(error.clamp(min=1e-10 / 4))).mean())


# --- crop ---
def crop_by_randint(images, side, generator):
    H, W = images.shape[2:]
    y = torch.randint(0, H - side + 1, (1,), generator=generator).item()
    x = torch.randint(0, W - side + 1, (1,), generator=generator).item()
    return images[:, :, y : y + side, x : x + side]


def crop_by_rand(images, side, generator):
    u = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    y, x = (
        int(fraction * (length - side + 1))
        for fraction, length in zip(u, images.shape[2:], strict=True)
    )
    return images.narrow(2, y, side).narrow(3, x, side).clone()


def crop_by_one_number(images, side, generator):
    pieces = images.unfold(2, side, 1).unfold(3, side, 1)
    rows, columns = pieces.shape[2:4]
    place = int(torch.randint(rows * columns, (), generator=generator))
    return pieces[:, :, place // columns, place % columns]


# --- widen_linear ---
def widen_with_softmax(w1, b1, w2, copies, generator):
    noise = torch.randn(copies, *w2.shape, generator=generator, dtype=w2.dtype) / 2
    fractions = noise.softmax(0)
    return (
        w1.repeat(copies, 1),
        b1.repeat(copies),
        torch.cat([w2 * fraction for fraction in fractions], dim=1),
    )


def widen_unit_by_unit(w1, b1, w2, copies, generator):
    """Copies of a unit stand beside each other."""
    rows, biases, columns = [], [], []
    for j in range(len(b1)):
        parts = 1 + torch.rand(copies, generator=generator, dtype=w2.dtype)
        for part in parts:
            rows.append(w1[j])
            biases.append(b1[j])
            columns.append(w2[:, j] * part / parts.sum())
    return torch.stack(rows), torch.stack(biases), torch.stack(columns, dim=1)


def widen_in_a_random_order(w1, b1, w2, copies, generator):
    J = len(b1)
    units = torch.arange(J).repeat(copies)[torch.randperm(copies * J, generator=generator)]
    parts = 0.5 + torch.rand(copies * J, generator=generator, dtype=w2.dtype)
    total = torch.zeros(J, dtype=w2.dtype).index_add(0, units, parts)
    return w1[units], b1[units], w2[:, units] * (parts / total[units])


# --- identity_block ---
class WithZeroConvolution(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding="same")
        with torch.no_grad():
            self.second.weight.zero_()
            self.second.bias.zero_()

    def forward(self, x):
        f = self.second(F.silu(self.first(F.silu(x))))
        return x + f


class WithoutBias(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.kernels = nn.ParameterList(
            [torch.randn(channels, channels, 3, 3) / 3, torch.zeros(channels, channels, 3, 3)]
        )

    def forward(self, x):
        f = x
        for kernel in self.kernels:
            f = F.conv2d(f * torch.sigmoid(f), kernel, padding=1)
        return f + x


def sequential_block(channels):
    class Residual(nn.Sequential):
        def forward(self, x):
            return x.add(super().forward(x))

    block = Residual(
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, 1, 1),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, 1, 1),
    )
    for parameter in block[3].parameters():
        nn.init.constant_(parameter, 0)
    return block


RIGHT = {
    "psnr": (psnr_image_by_image, psnr_by_two_logarithms, psnr_on_half_the_range),
    "crop": (crop_by_randint, crop_by_rand, crop_by_one_number),
    "widen_linear": (widen_with_softmax, widen_unit_by_unit, widen_in_a_random_order),
    "identity_block": (WithZeroConvolution, WithoutBias, sequential_block),
}
