import torch
import torch.nn.functional as F


# --- Pictures against the same pictures ---
def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean over images (B, 3, H, W) in [-1, 1] of the peak signal-to-noise ratio, in dB."""
    return float(
        (10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))).mean()
    )


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean structural similarity of images (B, 3, H, W) in [-1, 1], at least 11 pixels a side: 1 for equal ones. Means, variances and
    covariance in a Gaussian window (sigma 1.5, 11 x 11), wherever it lies inside."""
    a, b, offset = (
        a.cpu().double(),
        b.cpu().double(),
        torch.arange(-5.0, 6, dtype=torch.float64),
    )  # an Apple GPU has no doubles
    row = torch.softmax(-(offset**2) / (2 * 1.5**2), dim=0)
    blur = lambda x: F.conv2d(
        x, (row[:, None] * row).expand(x.shape[1], 1, -1, -1), groups=x.shape[1]
    )
    mean_a, mean_b, c1, c2 = blur(a), blur(b), (0.01 * 2) ** 2, (0.03 * 2) ** 2  # 2: from -1 to 1
    spread_a, spread_b, both = (
        blur(a * a) - mean_a**2,
        blur(b * b) - mean_b**2,
        blur(a * b) - mean_a * mean_b,
    )
    same = (
        (2 * mean_a * mean_b + c1)
        * (2 * both + c2)
        / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))
    )
    return float(same.mean())
