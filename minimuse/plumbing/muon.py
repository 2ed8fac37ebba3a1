"""Muon: an optimizer for matrices whose updates are orthogonal, so that no direction of a weight is starved.

Nesterov momentum; then the update's singular values are pushed to about 1 (Jordan et al. 2024, kellerjordan.github.io/posts/muon).
Products are in bf16 on a GPU, as in `torch.optim.Muon`. A CPU without it would be many times slower so; one with it gains by large ones alone.
"""

import torch

from minimuse.device import autocast


def orthogonalize(update: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """(m, n) -> (m, n) with the same singular vectors; values from a tenth of the largest up end between .6 and 1.25, by
    X <- a X + b (X X') X + c (X X')^2 X, which applies a s + b s^3 + c s^5 to each singular value s in [0, 1], steep at 0."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm() + 1e-7)
    x = x.mT if (tall := x.shape[0] > x.shape[1]) else x  # X X' is then the smaller square
    for _ in range(rounds):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    def __init__(self, matrices: list[torch.Tensor], lr: float, momentum: float = 0.95):
        super().__init__(matrices, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        for p in (group := self.param_groups[0])["params"]:
            mean = (
                self.state[p]
                .setdefault("mean", torch.zeros_like(p))
                .lerp_(p.grad, 1 - group["momentum"])
            )
            with autocast(p.device, worth=p.is_cuda or min(p.shape) >= 256):
                update = orthogonalize(
                    p.grad.lerp(mean, group["momentum"])
                )  # Nesterov: one step ahead
            p.add_(update, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
