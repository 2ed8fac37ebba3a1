"""The optimizers of a stage: which parameter is trained by which, and which weights decay.

    optimizers = make_optimizers(model, settings)      # settings: a `config.Stage`
    finite = clip_gradients(model)                     # those of a rival apart

Three kinds of parameters are told apart:

- matrices: the weights of linear layers and convolutions. They decay. With `muon_lr`, Muon trains
  those inside transformer blocks.
- tables: embeddings, positions and position biases. Each row stands for itself, so they are trained
  as vectors are, although they have two dimensions.
- vectors: biases and norms. Neither tables nor vectors decay.
"""

from collections.abc import Iterable

import torch
from torch import nn

from minimuse.plumbing import collectives
from minimuse.plumbing.adafactor import SpreadAdafactor
from minimuse.plumbing.config import Stage
from minimuse.plumbing.muon import Muon
from minimuse.transformer import Block, GridPositions, OffsetBias
from minimuse.vq_loss import PatchDiscriminator

MAX_GRADIENT_NORM = 1.0
TABLES = (nn.Embedding, GridPositions, OffsetBias)


def make_optimizers(model: nn.Module, settings: Stage) -> list[torch.optim.Optimizer]:
    """AdamW or Adafactor, then Muon and the rival's AdamW or Adafactor, if they are needed.

    Muse trains its transformers with Adafactor, which in PyTorch has no first moment.
    """
    check_processes(settings)
    rival = rival_parameters(model)
    muon_matrices = without(block_matrices(model), rival) if settings.muon_lr else []
    others = without(model.parameters(), [*muon_matrices, *rival])
    tables = parameters_inside(model, TABLES)

    optimizers = [adaptive(others, tables, settings, settings.lr, settings.betas)]
    if muon_matrices:
        muon = Muon(
            muon_matrices, settings.muon_lr, settings.weight_decay, every=settings.muon_every
        )
        optimizers.append(muon)
    if rival:
        lr = settings.discriminator_lr or settings.lr
        optimizers.append(adaptive(rival, tables, settings, lr, settings.discriminator_betas))
    return optimizers


def adaptive(
    parameters: list[nn.Parameter],
    tables: list[nn.Parameter],
    settings: Stage,
    lr: float,
    betas: tuple[float, float],
) -> torch.optim.Optimizer:
    """The optimizer that `settings` names, in which only matrices decay."""
    matrices = without([p for p in parameters if p.ndim >= 2], tables)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": without(parameters, matrices), "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    _, processes = collectives.rank_and_size()
    if settings.optimizer == "adafactor" and processes > 1:
        return SpreadAdafactor(groups, lr=lr)
    if settings.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=lr)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices inside transformer blocks."""
    inside = [p for p in parameters_inside(model, Block) if p.ndim == 2]
    return without(inside, parameters_inside(model, TABLES))


def rival_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the network that trains against a part, if there is one.

    It is a discriminator, or the auxiliary model of a student (`beyond/distill.py`). It has a
    learning rate of its own, since it must keep up with the part.
    """
    rival = parameters_inside(model, PatchDiscriminator)
    if isinstance(model, nn.ModuleDict) and "auxiliary" in model:
        rival += list(model["auxiliary"].parameters())
    return rival


def parameters_inside(model: nn.Module, kinds: type | tuple[type, ...]) -> list[nn.Parameter]:
    """The trained parameters of all modules of these kinds inside a model, each of them once."""
    found = {}
    for module in model.modules():
        if isinstance(module, kinds):
            found |= {id(p): p for p in module.parameters() if p.requires_grad}
    return list(found.values())


def without(parameters: Iterable[nn.Parameter], excluded: list[nn.Parameter]) -> list[nn.Parameter]:
    """Those parameters that are trained, and not among the excluded ones."""
    numbers = {id(p) for p in excluded}
    return [p for p in parameters if p.requires_grad and id(p) not in numbers]


def check_processes(settings: Stage) -> None:
    """Raise a ValueError if the processes cannot share the batch evenly."""
    _, processes = collectives.rank_and_size()
    if settings.batch % processes:
        raise ValueError(
            f"a batch of {settings.batch} cannot be shared evenly by {processes} processes"
        )


def clip_gradients(model: nn.Module) -> bool:
    """Scale the gradients to a norm of at most 1; return whether the norm was finite.

    Those of a rival have a norm of their own. In one norm with the tokenizer's, of which
    they are most, they would decide how far the tokenizer moves.
    """
    rival = rival_parameters(model)
    networks = [without(model.parameters(), rival), rival]
    norms = [nn.utils.clip_grad_norm_(network, MAX_GRADIENT_NORM) for network in networks]
    return all(bool(collectives.gather(norm).isfinite()) for norm in norms)
