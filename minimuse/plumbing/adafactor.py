"""Adafactor for parameters that are spread over several processes.

PyTorch's Adafactor needs the norms of whole rows and columns. With parameters that are spread, it
fails at those of the columns. Here every process gathers one parameter after the other, lets
PyTorch's Adafactor move it, and keeps its own part. The state of a matrix (m, n) has m + n numbers,
and every process has all of them. So a step gathers all weights and all gradients once more than a
step of AdamW does, and sends the weights out again.
"""

import torch

from minimuse.plumbing import collectives


class SpreadAdafactor(torch.optim.Adafactor):
    """`torch.optim.Adafactor`, whose steps move one whole parameter after the other."""

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters along their gradients. Collective: every rank must call this."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.move(parameter, group)

    def move(self, parameter: torch.Tensor, group: dict) -> None:
        """Move one parameter along its gradient, by the settings of its group."""
        whole = collectives.gather(parameter)
        whole.grad = collectives.gather(parameter.grad)
        one = torch.optim.Adafactor([group | {"params": [whole]}])
        # A checkpoint may have spread a state that is as large as its parameter.
        state = self.state[parameter]
        one.state[whole] = {name: collectives.gather(value) for name, value in state.items()}
        one.step()
        self.state[parameter] = one.state[whole]
        collectives.copy_into(parameter, whole)
