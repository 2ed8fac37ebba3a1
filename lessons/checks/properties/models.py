"""Properties of the two token models (`maskgit.py`, `superres.py`).

A `Case` is a model with its sizes: context(text (B, T, E), visible (B, T)) and logits(ids (B, N), context,
where). Super-resolution binds its low-res tokens in `context`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Case:
    context: Callable
    logits: Callable
    mask_id: int
    codes: int
    tokens: int
    text_width: int
    train: Callable = lambda mode: None  # train(True) and train(False) switch the module


B, T = 3, 5


def inputs(case, seed=0):
    """Half-hidden ids, text, and its mask: full, in part, one token."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(case.codes + 1, (B, case.tokens), generator=draw)
    ids[0] = case.mask_id
    text = torch.randn(B, T, case.text_width, generator=draw)
    return ids, text, torch.arange(T)[None] < torch.tensor([[T], [3], [1]])


def is_pure(case):
    """The same input gives the same logits, in train() as in eval(), with nothing masked or dropped inside forward."""
    ids, text, visible = inputs(case)
    before, results = ids.clone(), []
    for mode in (True, False, True):
        case.train(mode)
        results.append(case.logits(ids, case.context(text, visible), None))
    assert torch.equal(ids, before), "the ids were changed in place"
    assert all(torch.equal(r, results[0]) for r in results), "logits differ from call to call"
    assert results[0].dtype == torch.float32 and results[0].isfinite().all()


def where_selects(case):
    """With `where`, the logits at those positions and no others, in the order of a boolean index."""
    ids, text, visible = inputs(case)
    context = case.context(text, visible)
    full = case.logits(ids, context, None)
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    assert full.shape == (B, case.tokens, case.codes)
    for chosen in (where, torch.ones_like(where), torch.zeros_like(where)):
        some = case.logits(ids, context, chosen)
        assert some.shape == (int(chosen.sum()), case.codes) and torch.allclose(
            some, full[chosen], atol=1e-5
        )


def mask_is_no_code(case):
    """The mask has the id K, after the codes 0 .. K-1; there is no logit for it, so that it is never drawn."""
    ids, text, visible = inputs(case)
    logits = case.logits(ids, case.context(text, visible), None)
    assert case.mask_id == logits.shape[-1] == case.codes, (
        f"mask id {case.mask_id}, {logits.shape[-1]} logits, {case.codes} codes"
    )
    shown = ids.clone()
    shown[0, 0] = 0
    moved = (case.logits(shown, case.context(text, visible), None) - logits)[0].abs().max()
    assert moved > 1e-3, "the mask looks like code 0 to the model"


def text_matters(case):
    """Another caption gives other logits, at every row that has one."""
    ids, text, visible = inputs(case)
    a, b = (case.logits(ids, case.context(t, visible), None) for t in (text, text.flip(1) + 0.5))
    assert ((a - b).abs().amax(dim=(1, 2)) > 1e-3).all(), "the caption changes nothing"


def rows_do_not_mix(case):
    """A row's logits do not depend on the other rows of its batch."""
    ids, text, visible = inputs(case)
    together = case.logits(ids, case.context(text, visible), None)
    ids, text = ids.clone(), text.clone()
    ids[1:], text[1:] = 0, -text[1:]
    assert torch.allclose(
        case.logits(ids, case.context(text, visible), None)[0], together[0], atol=1e-5
    )


def padding_does_not_matter(case):
    """Tokens beyond the mask can be anything, and any number of them: the logits stay."""
    ids, text, visible = inputs(case)
    plain = case.logits(ids, case.context(text, visible), None)
    for more in (0, 1, 6):
        padded = torch.cat(
            [
                torch.where(visible[..., None], text, text * -3 + 1),
                torch.full((B, more, case.text_width), 2.0),
            ],
            dim=1,
        )
        mask = torch.cat([visible, torch.zeros(B, more, dtype=torch.bool)], dim=1)
        got = case.logits(ids, case.context(padded, mask), None)
        assert torch.allclose(got, plain, atol=1e-4), (
            f"{more} more tokens of padding move the logits by {(got - plain).abs().max():.2g}"
        )


def no_caption_is_no_text(case):
    """An all-False mask is finite and takes nothing from the text: change it, and the logits stay, bit for bit; its gradient is zero.

    "Attention reduces to image token self-attention" (Muse, section 2.7).
    """
    ids, text, visible = inputs(case)
    visible = visible.clone()
    visible[1] = False
    text = text.requires_grad_()
    logits = case.logits(ids, case.context(text, visible), None)
    assert logits.isfinite().all(), "an empty caption gives NaN"
    logits.square().sum().backward()
    assert (text.grad[1] == 0).all(), "a dropped caption gets a gradient"
    assert (text.grad[0] != 0).any() and text.grad.isfinite().all()
    other = text.detach().clone()
    other[1] = -3 * other[1] + 1
    assert torch.equal(
        case.logits(ids, case.context(other, visible), None)[1], logits[1].detach()
    ), "a dropped caption changes the logits"


def low_res_matters(context_of, logits, low_ids, codes):
    """Change one low-res token, or exchange two, and the logits change, with a caption and without (Muse, section 2.4).

    context_of(low_ids) -> context. Exchanging is the sharper test: it does nothing where the low-res tokens
    have no positions.
    """
    plain = logits(context_of(low_ids))
    changed = low_ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % codes
    permuted = low_ids.flip(1)
    assert not torch.equal(permuted, low_ids)
    for what, other in (("changing", changed), ("permuting", permuted)):
        moved = (logits(context_of(other)) - plain).abs().amax(dim=(1, 2))
        assert (moved > 1e-2).all(), f"{what} low-res tokens moves the logits by {moved.tolist()}"
