"""Guidance: steer the logits towards the caption, and away from something else.

    logits = guide(cond, uncond, t)            # (1 + t) cond - t uncond
    logits = compose(uncond, conds, weights)   # several prompts, each with a weight

In every decoding step the model predicts the hidden tokens twice: for the caption, and without one
(or for a negative prompt, which is then what guidance steers away from). The difference is what the
caption says; guidance exaggerates it. Which rows run, and in how many batches, is decided here.

Papers: classifier-free guidance, Muse (2301.00704), section 2.7; composed prompts (2206.01714).
Letters: B batch, N image tokens, K codes, P prompts of each image, M hidden tokens of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from minimuse.transformer import Context

# Up to this many tokens (B N), a CPU runs conditional and unconditional rows faster in one batch.
# With more, one pass already keeps the CPU busy, and a batch twice as large no longer fits in its
# caches. A GPU always runs both in one batch. The logits are the same, up to rounding.
ONE_BATCH_TOKENS = 1024


class Conditions(NamedTuple):
    """What the model looks at while it decodes B images: the same in every step."""

    cond: Context  # P B rows: the first prompt of every image, then the second, ...
    weights: tuple[float, ...]  # one weight for each of the P prompts
    uncond: Context | None  # B rows that guidance steers away from; None without guidance
    joined: Context | None  # the rows of `cond`, then of `uncond`, if both run in one batch

    def at(self, t: float) -> "Conditions":
        """What is needed at guidance t: one prompt needs no unconditional rows if t is 0."""
        if t == 0 and self.weights == (1.0,):
            return self._replace(uncond=None, joined=None)
        return self


def conditions_of(
    context: Context, uncond: Context | None, weights: tuple[float, ...], ids: Tensor
) -> Conditions:
    """Collect what the model looks at while it decodes ids (B, N).

    Both contexts are joined, once for all steps, if they are to run in one batch.
    """
    if uncond is None and weights != (1.0,):
        raise ValueError(f"prompts with weights {weights} need an unconditional context")
    in_one_batch = ids.device.type != "cpu" or ids.numel() <= ONE_BATCH_TOKENS
    joined = None
    if uncond is not None and in_one_batch:
        joined = context.join(uncond)
    return Conditions(context, weights, uncond, joined)


def guided_logits(
    model: Callable[..., Tensor],
    ids: Tensor,
    hidden: Tensor,
    conditions: Conditions,
    t: float | Tensor,
) -> Tensor:
    """Logits (B, N, K) of ids (B, N), with guidance t; those of known tokens do not matter.

    How many tokens are hidden changes from step to step. A GPU computes all logits, because it is
    quicker with one shape, and so does a compiled pass. Otherwise a CPU leaves out those of known
    tokens, which are zeros here.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return mixed_logits(model, ids, None, conditions, t)
    logits_hidden = mixed_logits(model, ids, hidden, conditions, t)  # M K
    logits = logits_hidden.new_zeros(*ids.shape, logits_hidden.shape[-1])  # B N K
    logits[hidden] = logits_hidden
    return logits


def mixed_logits(
    model: Callable[..., Tensor],
    ids: Tensor,
    where: Tensor | None,
    conditions: Conditions,
    t: float | Tensor,
) -> Tensor:
    """Logits with guidance t: (B, N, K), or (M, K) of the M tokens in `where` (B, N)."""
    if conditions.uncond is None:
        return run_model(model, ids, where, conditions.cond)
    *conds, uncond = logits_of_each(model, ids, where, conditions)
    if conditions.weights == (1.0,):
        return guide(conds[0], uncond, t)
    return compose(uncond, conds, [(1 + t) * weight for weight in conditions.weights])


def logits_of_each(
    model: Callable[..., Tensor], ids: Tensor, where: Tensor | None, conditions: Conditions
) -> list[Tensor]:
    """Logits under each of the P prompts, and then the unconditional ones."""
    P = len(conditions.weights)
    if conditions.joined is not None:
        return list(run_model(model, ids, where, conditions.joined, P + 1).chunk(P + 1))
    conds = run_model(model, ids, where, conditions.cond, P)
    uncond = run_model(model, ids, where, conditions.uncond)
    return [*conds.chunk(P), uncond]


def run_model(
    model: Callable[..., Tensor],
    ids: Tensor,
    where: Tensor | None,
    context: Context,
    copies: int = 1,
) -> Tensor:
    """Run the model on `copies` of the ids (B, N), one below the other."""
    if copies > 1:
        ids = ids.repeat(copies, 1)
        where = None if where is None else where.repeat(copies, 1)
    return model(ids, context, where)


def guide(cond: Tensor, uncond: Tensor, t: float | Tensor) -> Tensor:
    """Classifier-free guidance of logits: (1 + t) cond - t uncond (Muse, section 2.7).

    t = 0 gives `cond`, bit for bit. Others write uncond + s (cond - uncond), with s = 1 + t.
    """
    # A compiled pass has t as a tensor. To ask for its value would be to wait for the GPU.
    if not torch.is_tensor(t) and t == 0:
        return cond
    return (1 + t) * cond - t * uncond


def compose(uncond: Tensor, conds: list[Tensor], weights: list[float | Tensor]) -> Tensor:
    """Compose prompts: uncond + the sum of w_i (cond_i - uncond) (2206.01714).

    A negative weight steers away from its prompt. One prompt of weight 1 + t is `guide`.
    """
    pulls = [weight * (cond - uncond) for weight, cond in zip(weights, conds, strict=True)]
    return uncond + sum(pulls)
