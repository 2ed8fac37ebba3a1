"""A decoding pass as one compiled program: `minimuse generate --compile`.

    muse.run_pass = compile_pass(one_pass)

PyTorch compiles the pass once for each shape (of the images, and of the text in steps of 16
tokens), once with guidance and once without. On a GPU it records all kernels of a pass and replays
them with one call (CUDA graphs), because a small model's kernels take less time than their launch.
Compiling takes much longer than drawing one image, so it is meant for many. On a CPU it needs a C++
compiler. How much it gains on a GPU has not been measured.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from minimuse.plumbing.device import is_fast_at_bf16
from minimuse.transformer import Context

# So many programs are kept: two models, with and without guidance, some sizes of batches and texts.
PROGRAMS = 64


def compile_pass(one_pass: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """The function `decode.one_pass`, compiled whole: it has the same arguments and results."""
    # PyTorch takes a mode only for its own backend. Tests give others.
    mode = "reduce-overhead" if backend == "inductor" else None
    program = torch.compile(one_pass, fullgraph=True, dynamic=False, mode=mode, backend=backend)

    def run(
        model: Any,
        ids: torch.Tensor,
        inputs: torch.Tensor,
        hidden: torch.Tensor,
        left: torch.Tensor,
        conditions: Any,
        t: float,
        *rest: Any,
    ) -> Any:
        # A number would be compiled into the program, and guidance differs from step to step.
        guidance = torch.full((), t, dtype=torch.float32, device=ids.device)
        torch.compiler.cudagraph_mark_step_begin()
        same_length = conditions._replace(
            cond=padded(conditions.cond),
            uncond=padded(conditions.uncond),
            joined=padded(conditions.joined),
        )
        with torch._dynamo.config.patch(recompile_limit=PROGRAMS):
            step = program(model, ids, inputs, hidden, left, same_length, guidance, *rest)
        # The next replay writes to the same memory.
        return type(step)(*(None if tensor is None else tensor.clone() for tensor in step))

    return run


def round_weights(*models: nn.Module) -> bool:
    """Round the matrices of transformers to bfloat16, in place, where the device is fast at it.

    Otherwise `autocast` converts them in every pass. For three billion weights that takes three
    times as long as to read the converted ones. Under `autocast` the results are the same, bit for
    bit. Afterwards the models work under `autocast` only, and cannot be trained or saved.
    Returns whether they were rounded.
    """
    if not all(is_fast_at_bf16(next(model.parameters()).device) for model in models):
        return False
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    return True


def padded(context: Context | None) -> Context | None:
    """A context with invisible keys behind it, so that T is a multiple of 16."""
    missing = 0 if context is None else -context.visible.shape[1] % 16
    if missing == 0:
        return context
    return context._replace(
        keys=[F.pad(keys, (0, 0, 0, missing)) for keys in context.keys],  # B H T d
        values=[F.pad(values, (0, 0, 0, missing)) for values in context.values],
        visible=F.pad(context.visible, (0, missing)),  # B T
    )
