"""Distillation: a student draws in one pass what its teacher draws in many (Di[M]O, 2503.15457).

One pass of a masked model draws all tokens independently of each other, so they do not fit. The
student starts from a grid with random codes at some positions (`random_start.py`). The codes mean
nothing, but all positions see them, so all positions can agree on one image.

No image is needed to train the student, only captions and the teacher:

1. The student draws an image in one pass.
2. A part of the drawn tokens is hidden (`maskgit.hide`): in the first half of the training as many
   as for any masked model, and then fewer. Whether tokens fit each other shows only where most of
   them are visible.
3. The teacher predicts the hidden tokens: a distribution p for each.
4. So does an auxiliary model, which learns from the student's images alone: a distribution q.
5. Where q is larger than p, the student draws this code too often in such an image. So its logits
   at the hidden positions move, in one of two ways or in a mixture (`matching_gradient`).

Nothing moves when the student's images have the distribution of the teacher's. All three models
are base models of the same shape, and all begin with the teacher's weights.

    model = nn.ModuleDict({"student": deepcopy(teacher), "auxiliary": deepcopy(teacher)})
    loss_of = distillation_loss(
        model, teacher, tokens, guidance, random_codes, seeking, steps, device
    )
    training_loop("distill", model, loss_of, ...)

Letters: B batch, N image tokens, M hidden tokens of the batch, K codes, T text tokens, E text
width.
"""

import torch
from torch import Tensor, nn

from minimuse.beyond.random_start import partly_random
from minimuse.data import Tokens
from minimuse.decode import draw, gumbel
from minimuse.guidance import conditions_of, mixed_logits
from minimuse.losses import Losses, LossOf
from minimuse.maskgit import MaskGit, hide, masked_token_loss
from minimuse.plumbing.device import autocast

# Laws of the mask ratios (`schedule.LAWS`).
EARLY_LAW = "cosine"  # hides 64 % of the tokens on average
LATE_LAW = "sqrt"  # hides 33 %
# The least log p. Without it, a code with p = 0 would give an infinite gradient.
LEAST_LOG_P = -15.0


def distillation_loss(
    model: nn.ModuleDict,
    teacher: MaskGit,
    tokens: Tokens,
    guidance: float,
    random_codes: float,
    seeking: float,
    steps: int,
    device: str,
) -> LossOf:
    """The losses of student and auxiliary model; `loss_of` yields once (see `losses.py`).

    model: {"student": ..., "auxiliary": ...}. teacher: frozen; it predicts with this guidance, so
    the student learns to draw as if guided. tokens: their captions alone are used. random_codes:
    the fraction of the grid that is random codes. seeking: see `matching_gradient`. steps: of the
    whole training. Metrics: `auxiliary`, the auxiliary model's loss, and `divergence`, the mean KL
    divergence of p and q, in nats for a hidden token.
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

        law = EARLY_LAW if step < steps / 2 else LATE_LAW
        masked_ids, hidden = hide(drawn, mask_id, generator, law)  # B N, B N
        with autocast(device):
            context = auxiliary.context(text, visible)
            auxiliary_logits = auxiliary(masked_ids, context, hidden).float()  # M K
            teacher_logits = predict(teacher, masked_ids, hidden, text, visible, guidance)  # M K
        auxiliary_loss = masked_token_loss(auxiliary_logits, drawn, hidden).loss
        hidden_logits = logits[hidden]  # M K
        gradient = matching_gradient(hidden_logits, teacher_logits, auxiliary_logits, seeking)
        # Its derivative with respect to the student's logits is `gradient`, divided by M.
        student_loss = (gradient * hidden_logits).sum(dim=-1).mean()
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


@torch.no_grad()
def matching_gradient(
    student_logits: Tensor, teacher_logits: Tensor, auxiliary_logits: Tensor, seeking: float
) -> Tensor:
    """The gradient for the student's logits (M, K), from those of all three models, each (M, K).

    Gradient descent on it lowers the codes that the student draws too often. There are two ways
    (Di[M]O, section 3, has a family of them). With s, p and q for the probabilities of student,
    teacher and auxiliary model:

    - *Covering*: q - p, the gradient of KL(p || q) for the logits of q, given to the student's. It
      learns to draw whatever the teacher may draw, and wrong images, too, if it must.
    - *Seeking*: the gradient of the sum of s (log q - log p). The student learns to draw only what
      the teacher may draw, and may leave out some of it.

    seeking: the share of the second, from 0 to 1.
    """
    s = student_logits.softmax(dim=-1)
    p, q = teacher_logits.softmax(dim=-1), auxiliary_logits.softmax(dim=-1)
    log_p = teacher_logits.log_softmax(dim=-1).clamp(min=LEAST_LOG_P)
    excess = auxiliary_logits.log_softmax(dim=-1) - log_p  # M K
    mean_excess = (s * excess).sum(dim=-1, keepdim=True)  # M 1
    return (1 - seeking) * (q - p) + seeking * s * (excess - mean_excess)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """The mean KL divergence of two sets of M distributions, given as logits (M, K), in nats."""
    log_p = p_logits.log_softmax(dim=-1)  # M K
    log_q = q_logits.log_softmax(dim=-1)  # M K
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
