"""Muon: an optimizer for weight matrices, whose updates are orthogonal matrices.

A gradient changes a matrix mostly along a few directions. Muon takes Nesterov momentum and sets all
singular values of that update to about 1, so that every direction moves equally far (Jordan et al.
2024, kellerjordan.github.io/posts/muon).

On a CPU this takes about a fifth of a small model's training time. So matrices can take turns,
which they do not in the original Muon: with `every=4`, each step updates a quarter of the matrices,
with four times the learning rate. The momentum of every matrix is updated in every step.

Where matrices are spread over several processes, each is gathered at one of them, which computes
its update. So every update is computed once, and all processes work at the same time.
"""

import torch

from minimuse.plumbing import collectives
from minimuse.plumbing.device import autocast, cpu_has_amx


class Muon(torch.optim.Optimizer):
    """Muon with decoupled weight decay, for matrices only."""

    def __init__(
        self,
        matrices: list[torch.Tensor],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        every: int = 1,
    ):
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, every=every)
        # The number of the next step decides whose turn it is. The training loop sets it.
        super().__init__(matrices, defaults | {"step": 0})

    @torch.no_grad()
    def step(self) -> None:
        """Take in all gradients, and move the matrices whose turn it is.

        Collective: every rank must call this.
        """
        _, processes = collectives.rank_and_size()
        for group in self.param_groups:
            every = group["every"]
            momentum = group["momentum"]
            turn = []
            for place, matrix in enumerate(group["params"]):
                self.average(matrix, momentum)
                if (group["step"] + place) % every == 0:
                    turn.append(matrix)
            for first in range(0, len(turn), processes):
                matrices = turn[first : first + processes]
                # Nesterov: momentum * mean + (1 - momentum) * gradient
                updates = [m.grad.lerp(self.state[m]["mean"], momentum) for m in matrices]
                updates = collectives.each_on_one_process(orthogonal_update, updates)
                for matrix, update in zip(matrices, updates, strict=True):
                    self.move(matrix, update, every * group["lr"], group["weight_decay"])
            group["step"] += 1

    def average(self, matrix: torch.Tensor, momentum: float) -> None:
        """Update the moving average of the gradient of a matrix (m, n)."""
        state = self.state[matrix]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(matrix)
        state["mean"].lerp_(matrix.grad, 1 - momentum)

    def move(
        self, matrix: torch.Tensor, update: torch.Tensor, lr: float, weight_decay: float
    ) -> None:
        """Move a matrix (m, n) along an orthogonal update (m, n)."""
        rows, columns = matrix.shape
        scale = max(1, rows / columns) ** 0.5
        matrix.mul_(1 - lr * weight_decay)  # decoupled, as in AdamW
        matrix.add_(update, alpha=-lr * scale)


def orthogonal_update(update: torch.Tensor) -> torch.Tensor:
    """`orthogonalize` (m, n) -> (m, n), in bf16 where that is faster."""
    with autocast(update.device, worth=gains_by_bf16(update)):
        return orthogonalize(update)


def gains_by_bf16(matrix: torch.Tensor) -> bool:
    """Whether `orthogonalize` is faster in bf16 for this matrix, on a device that is fast at it.

    On a GPU always, as in `torch.optim.Muon`. On a CPU with AMX from 256 x 256 on: 128 x 128 takes
    1.27 ms in bf16 and 0.95 in float32, 256 x 256 takes 3.5 and 5.3. On a CPU with AVX512-BF16
    alone always: there bf16 halves the time at 128 x 128, too.
    """
    return matrix.is_cuda or min(matrix.shape) >= 256 or not cpu_has_amx()


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
        square = x @ x.mT  # k k, k = min(m, n)
        polynomial = torch.addmm(square, square, square, beta=b, alpha=c)  # b XX' + c (XX')^2
        x = torch.addmm(x, polynomial, x, beta=a)
    if tall:
        x = x.mT
    return x
