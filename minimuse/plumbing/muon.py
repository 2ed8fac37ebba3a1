"""Muon: an optimizer for weight matrices, whose updates are orthogonal matrices.

A gradient changes a matrix mostly along a few directions. Muon takes Nesterov momentum and sets all
singular values of that update to about 1, so that every direction moves equally far (Jordan et al.
2024, kellerjordan.github.io/posts/muon).
"""

import torch

from minimuse.device import autocast


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay, for matrices only."""

    def __init__(
        self,
        matrices: list[torch.Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ):
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix once."""
        for group in self.param_groups:
            for matrix in group["params"]:
                self.update(matrix, group["lr"], group["weight_decay"], group["momentum"])

    def update(self, matrix: torch.Tensor, lr: float, weight_decay: float, momentum: float) -> None:
        """Update one matrix (m, n)."""
        state = self.state[matrix]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(matrix)
        mean = state["mean"].lerp_(matrix.grad, 1 - momentum)
        update = matrix.grad.lerp(mean, momentum)  # Nesterov: one step ahead

        # Products are in bf16 on a GPU, as in `torch.optim.Muon`. A CPU with bf16 gains by it for
        # large matrices alone.
        use_bf16 = matrix.is_cuda or min(matrix.shape) >= 256
        with autocast(matrix.device, worth=use_bf16):
            update = orthogonalize(update)
        rows, columns = matrix.shape
        scale = max(1, rows / columns) ** 0.5
        matrix.mul_(1 - lr * weight_decay)  # decoupled, as in AdamW
        matrix.add_(update, alpha=-lr * scale)


def orthogonalize(update: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """(m, n) -> (m, n) with the same singular vectors, and singular values near 1.

    Each round computes X <- a X + b (X X') X + c (X X')^2 X. That applies s <- a s + b s^3 + c s^5
    to every singular value s in [0, 1]; the polynomial is steep at 0. Values of at least a tenth of
    the largest one end between 0.6 and 1.25.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.mT  # then X X' is the smaller of the two square matrices
    for _ in range(rounds):
        square = x @ x.mT  # m m
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)  # b XX' + c (XX')^2
        x = torch.addmm(x, polynomial, x, beta=a)
    if tall:
        x = x.mT
    return x
