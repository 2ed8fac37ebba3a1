"""Measures of images against their originals: PSNR and SSIM (Wang et al. 2004).

from minimuse.metrics.images import psnr, ssim
psnr(reconstructed, original)       # both (B, 3, H, W) in [-1, 1]; in dB, higher is better
"""

import torch
import torch.nn.functional as F

from minimuse.plumbing.arguments import check_same_shape
from minimuse.plumbing.caller_state import in_usual_state


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB: the mean over images (B, 3, H, W) in [-1, 1]."""
    check_same_shape(a, b)
    errors = (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)  # B; equal images get 106 dB
    peak = 4  # the squared range, from -1 to 1
    return float((10 * torch.log10(peak / errors)).mean())


@in_usual_state
def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of images (B, 3, H, W) in [-1, 1]: 1 for equal ones.

    Compares means, variances and covariance in a Gaussian window of 11 x 11 pixels with a standard
    deviation of 1.5, at all places inside the image. H and W must be at least 11.
    """
    check_same_shape(a, b)
    a, b = a.cpu().double(), b.cpu().double()  # on the CPU, because Apple's GPU has no doubles
    offsets = torch.arange(-5.0, 6, dtype=torch.float64)
    row = torch.softmax(-(offsets**2) / (2 * 1.5**2), dim=0)  # 11
    channels = a.shape[1]
    window = (row[:, None] * row).expand(channels, 1, -1, -1)  # 3 1 11 11

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, window, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a**2
    variance_b = blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    # Keep the fractions finite. The factor 2 is the range of the pixels, from -1 to 1.
    c1 = (0.01 * 2) ** 2
    c2 = (0.03 * 2) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    denominator = (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    return float((numerator / denominator).mean())
