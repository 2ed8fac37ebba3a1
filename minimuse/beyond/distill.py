"""Distillation: a student draws in one pass what its teacher draws in many (Di[M]O, 2503.15457).

One pass of a masked model draws all tokens independently of each other, so they do not fit. The
student starts from a grid with random codes at some positions (`maskgit.partly_random`). The codes
mean nothing, but all positions see them, so all positions can agree on one image.

No image is needed to train the student, only captions and the teacher:

1. The student draws an image in one pass.
2. A part of the drawn tokens is hidden, as in the training of any masked model (`maskgit.hide`).
3. The teacher predicts the hidden tokens: a distribution p for each.
4. So does an auxiliary model, which learns from the student's images alone: a distribution q.
5. Where q is larger than p, the student draws this code too often in such an image. So the
   student's logits at the hidden positions move along p - q.

Nothing moves when the student's images have the distribution of the teacher's. All three models
are base models of the same shape, and all begin with the teacher's weights.

The settings are not tuned yet (`STUDENT` in `runs/distillation.py`). If the auxiliary model does
not keep up, the student swings from one kind of image to another.

    model = nn.ModuleDict({"student": deepcopy(teacher), "auxiliary": deepcopy(teacher)})
    loss_of = distillation_loss(model, teacher, tokens, guidance, random_codes, device)
    training_loop("distill", model, loss_of, ...)

Letters: B batch, N image tokens, M hidden tokens of the batch, K codes, T text tokens, E text
width.
"""

import torch
from torch import Tensor, nn

from minimuse.data import Tokens
from minimuse.decode import draw, gumbel
from minimuse.guidance import conditions_of, mixed_logits
from minimuse.losses import Losses, LossOf
from minimuse.maskgit import MaskGit, hide, masked_token_loss, partly_random
from minimuse.plumbing.device import autocast


def distillation_loss(
    model: nn.ModuleDict,
    teacher: MaskGit,
    tokens: Tokens,
    guidance: float,
    random_codes: float,
    device: str,
) -> LossOf:
    """The losses of student and auxiliary model; `loss_of` yields once (see `losses.py`).

    model: {"student": ..., "auxiliary": ...}. teacher: frozen; it predicts with this guidance, so
    the student learns to draw as if guided. tokens: their captions alone are used. random_codes:
    the fraction of the grid that is random codes. Metrics: `auxiliary`, the auxiliary model's
    loss, and `divergence`, the mean KL divergence of p and q, in nats for a hidden token.
    """
    student, auxiliary = model["student"], model["auxiliary"]
    mask_id = student.mask_id
    N = student.decoder.grid**2

    def loss_of(indices: Tensor, generator: torch.Generator, step: int) -> Losses:
        text, visible = tokens.captions(indices, generator)  # B T E, B T
        text, visible = text.to(device), visible.to(device)
        start = partly_random(len(indices), N, mask_id, 1 - random_codes, generator).to(device)
        with autocast(device):
            logits = student(start, student.context(text, visible))  # B N K
        logits = logits.float()
        noise = gumbel(tuple(logits.shape), generator).to(device)  # B N K
        drawn = draw(logits.detach(), noise, temperature=1.0)  # B N

        masked_ids, hidden = hide(drawn, mask_id, generator)  # B N, B N
        with autocast(device):
            context = auxiliary.context(text, visible)
            auxiliary_logits = auxiliary(masked_ids, context, hidden).float()  # M K
            teacher_logits = predict(teacher, masked_ids, hidden, text, visible, guidance)  # M K
        auxiliary_loss = masked_token_loss(auxiliary_logits, drawn, hidden).loss
        direction = matching_gradient(teacher_logits, auxiliary_logits.detach())  # M K
        # The gradient of this sum with respect to the student's logits is `direction`.
        student_loss = (direction * logits[hidden]).sum(dim=-1).mean()
        divergence = kl(teacher_logits, auxiliary_logits.detach())
        metrics = {"auxiliary": auxiliary_loss.detach(), "divergence": divergence}
        yield student_loss + auxiliary_loss, metrics

    return loss_of


@torch.no_grad()
def predict(
    teacher: MaskGit, ids: Tensor, hidden: Tensor, text: Tensor, visible: Tensor, guidance: float
) -> Tensor:
    """The teacher's logits (M, K) of the M hidden tokens of ids (B, N), with guidance."""
    context = teacher.context(text, visible)
    uncond = None
    if guidance > 0:
        uncond = teacher.context(text, torch.zeros_like(visible))
    conditions = conditions_of(context, uncond, (1.0,), ids)
    return mixed_logits(teacher, ids, hidden, conditions, guidance).float()


def matching_gradient(teacher_logits: Tensor, auxiliary_logits: Tensor) -> Tensor:
    """How to change the student: q - p, from logits (M, K) of both models -> (M, K).

    It is the gradient of KL(p || q) with respect to the logits of q (Di[M]O, section 3). A step of
    gradient descent raises the codes that the student draws too rarely.
    """
    return auxiliary_logits.softmax(dim=-1) - teacher_logits.softmax(dim=-1)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """The mean KL divergence of two sets of M distributions, given as logits (M, K), in nats."""
    log_p = p_logits.log_softmax(dim=-1)  # M K
    log_q = q_logits.log_softmax(dim=-1)  # M K
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
