"""A stand-in for an accelerator: a device that computes on the CPU and notes what runs on it.

    with Accelerator() as device:
        main(["generate", "a red circle", "--device", "meta", ...])
    device.operators         # names of all operators that ran there
    device.waits             # how often the CPU had to wait for a result
    device.doubles           # operators that made float64, which Apple's GPUs do not have

Its tensors say that they are on PyTorch's device "meta", and hold their values in an ordinary
tensor on the CPU. What a real device refuses is refused here, too: an operator whose tensors are
partly on the CPU, and a conversion to NumPy.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CPU = torch.device("cpu")

# The CPU waits until the device has the result: the values are needed there, or the shape.
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}

# These take tensors of both devices: a copy from one to the other, and indices.
MIXED = {"copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"}


class OnDevice(torch.Tensor):
    """A tensor of the stand-in; `value` is a tensor on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> "OnDevice":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device="meta",
        )
        tensor.value = value
        return tensor

    def tolist(self) -> list:
        """PyTorch refuses this to subclasses; of a real device it copies the tensor first."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Accelerator.current.run(func, args, kwargs or {})


TRUE_GENERATOR = torch.Generator


class GeneratorOnDevice(TRUE_GENERATOR):
    """A generator on the CPU that says that it is on the stand-in."""

    device = torch.device("meta")
    __module__ = "torch"


class GeneratorAnywhere(TRUE_GENERATOR):
    """Stands for torch.Generator, which has no random numbers on "meta"."""

    def __new__(cls, device: str | torch.device = "cpu") -> torch.Generator:
        is_here = torch.device(device).type == "meta"
        return GeneratorOnDevice() if is_here else TRUE_GENERATOR(device)


class Accelerator(TorchDispatchMode):
    """While it is entered, "meta" is a device that computes."""

    current: "Accelerator"

    def __init__(self):
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()

    def __enter__(self) -> "Accelerator":
        Accelerator.current = self
        # PyTorch keeps a list of all functions that make tensors, which must be the true ones.
        with torch.device("cpu"):
            torch.empty(0)
        self.replaced = (torch.autocast, torch.tensor, TRUE_GENERATOR)
        torch.autocast, torch.tensor, torch.Generator = (
            self.autocast,
            self.tensor,
            GeneratorAnywhere,
        )
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        torch.autocast, torch.tensor, torch.Generator = self.replaced

    def autocast(self, device_type: str, *args, **kwargs):
        """PyTorch has no autocast of "meta"."""
        return self.replaced[0]("cpu" if device_type == "meta" else device_type, *args, **kwargs)

    def tensor(self, data: Any, *args, device=None, **kwargs) -> torch.Tensor:
        """PyTorch forgets the values of a new tensor on "meta"."""
        return self.replaced[1](data, *args, **kwargs).to(device or "cpu")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        """Run an operator on the CPU, and wrap what it returns if it runs on the device."""
        tensors = tensors_in((args, kwargs))
        on_device = [x for x in tensors if isinstance(x, OnDevice)]
        target = torch.device(kwargs.get("device") or "cpu").type
        if not on_device and target != "meta":
            return func(*args, **kwargs)

        name = str(func).removeprefix("aten.").removesuffix(".default")
        copies_to_cpu = name == "copy_" and not isinstance(args[0], OnDevice)
        to_cpu = copies_to_cpu or (name == "_to_copy" and kwargs.get("device") == CPU)
        self.operators[name] += 1
        self.note(name, args, tensors, to_cpu)
        result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
        if copies_to_cpu:
            return args[0]
        return result if to_cpu else self.to_device(name, result, on_device)

    def note(self, name: str, args: tuple, tensors: list[torch.Tensor], to_cpu: bool) -> None:
        """Count a wait, or refuse tensors of two devices."""
        base = name.partition(".")[0]
        if to_cpu or base in WAITS or indexes_with_bool(base, args):
            self.waits[name] += 1
        elif base not in MIXED:
            self.refuse_mixed(name, tensors)

    def to_device(self, name: str, result: Any, on_device: list[OnDevice]) -> Any:
        """Wrap what an operator returned; where it works in place, that is its argument."""
        for x in tensors_in(result):
            if x.dtype in (torch.float64, torch.complex128):
                self.doubles[name] += 1
        wrapped = {id(x.value): x for x in on_device}
        return tree_map(lambda x: wrap(x, wrapped), result)

    def refuse_mixed(self, name: str, tensors: list[torch.Tensor]) -> None:
        """Raise what a real device raises where one tensor is there and another on the CPU.

        Tensors without dimensions are numbers, and may be anywhere.
        """
        for x in tensors:
            if not isinstance(x, OnDevice) and x.dim() > 0:
                raise RuntimeError(f"{name}: expected all tensors on one device; {x.shape} is not")


def tensors_in(tree: Any) -> list[torch.Tensor]:
    return [x for x in tree_iter(tree) if isinstance(x, torch.Tensor)]


def on_cpu(x: Any) -> Any:
    if isinstance(x, OnDevice):
        return x.value
    return torch.device("cpu") if isinstance(x, torch.device) else x


def wrap(x: Any, wrapped: dict[int, OnDevice]) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, OnDevice):
        return x
    if id(x) in wrapped:
        return wrapped[id(x)]
    return OnDevice(x)


def indexes_with_bool(base: str, args: tuple) -> bool:
    """Whether an index is a mask on the device: how many elements it chooses must be known."""
    if base not in ("index", "index_put_", "_index_put_impl_"):
        return False
    return any(isinstance(x, OnDevice) and x.dtype == torch.bool for x in args[1] or ())
