"""Build modules without drawing their initial weights, for a caller that loads others at once.

    with WithoutInitialWeights():
        part = build(name, config, text_width)
    part.load_state_dict(state)

The last line has to replace every weight.
"""

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class WithoutInitialWeights(TorchFunctionMode):
    """Inside, most functions of torch.nn.init do nothing: weights are whatever memory held.

    Those are the functions that PyTorch lets a mode intercept: `uniform_`, `normal_`, `constant_`
    and `kaiming_uniform_`, which linear layers, convolutions and embeddings use. All else runs.
    That saves time. On the meta device, drawing would also import PyTorch's compiler, which takes
    seconds and changes the environment of the process.
    """

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))
