"""Properties of the two token models (`maskgit.py`, `superres.py`).

Each takes a `Case`, a model with its sizes, and raises an AssertionError with a counterexample if
the model is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Case:
    """A model to judge. Super-resolution binds its low-res tokens in `context`."""

    context: Callable  # context(text (B, T, E), visible (B, T))
    logits: Callable  # logits(ids (B, N), context, where)
    mask_id: int
    codes: int  # K
    tokens: int  # N
    text_width: int  # E
    train: Callable = lambda mode: None  # train(True) and train(False) switch the module


B, T = 3, 5


def inputs(case, seed=0):
    """Partly masked ids, text, and its mask: all tokens, three, one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(case.codes + 1, (B, case.tokens), generator=generator)
    ids[0] = case.mask_id
    text = torch.randn(B, T, case.text_width, generator=generator)
    visible = torch.arange(T)[None] < torch.tensor([[T], [3], [1]])
    return ids, text, visible


def is_pure(case):
    """The same input gives the same logits, in train() as in eval().

    So forward neither masks nor drops anything.
    """
    ids, text, visible = inputs(case)
    before = ids.clone()
    results = []
    for mode in (True, False, True):
        case.train(mode)
        results.append(case.logits(ids, case.context(text, visible), None))
    assert torch.equal(ids, before), "the ids were changed in place"
    for result in results:
        assert torch.equal(result, results[0]), "logits differ from call to call"
    assert results[0].dtype == torch.float32
    assert results[0].isfinite().all()


def where_selects(case):
    """With `where`, the logits of those tokens and no others, in the order of a boolean index."""
    ids, text, visible = inputs(case)
    context = case.context(text, visible)
    full = case.logits(ids, context, None)
    assert full.shape == (B, case.tokens, case.codes)
    some = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    for where in (some, torch.ones_like(some), torch.zeros_like(some)):
        logits = case.logits(ids, context, where)
        assert logits.shape == (int(where.sum()), case.codes)
        assert torch.allclose(logits, full[where], atol=1e-5)


def mask_is_no_code(case):
    """The mask has the id K, after the codes 0 .. K-1, and no logit, so it is never sampled."""
    ids, text, visible = inputs(case)
    logits = case.logits(ids, case.context(text, visible), None)
    assert case.mask_id == logits.shape[-1] == case.codes, (
        f"mask id {case.mask_id}, {logits.shape[-1]} logits, {case.codes} codes"
    )
    shown = ids.clone()
    shown[0, 0] = 0
    moved = case.logits(shown, case.context(text, visible), None) - logits
    assert moved[0].abs().max() > 1e-3, "the mask looks like code 0 to the model"


def text_matters(case):
    """Another caption gives other logits, in every row that has one."""
    ids, text, visible = inputs(case)
    one = case.logits(ids, case.context(text, visible), None)
    other = case.logits(ids, case.context(text.flip(1) + 0.5, visible), None)
    moved = (one - other).abs().amax(dim=(1, 2))  # B
    assert (moved > 1e-3).all(), "the caption changes nothing"


def rows_do_not_mix(case):
    """A row's logits do not depend on the other rows of its batch."""
    ids, text, visible = inputs(case)
    together = case.logits(ids, case.context(text, visible), None)
    ids, text = ids.clone(), text.clone()
    ids[1:] = 0
    text[1:] = -text[1:]
    others_changed = case.logits(ids, case.context(text, visible), None)
    assert torch.allclose(others_changed[0], together[0], atol=1e-5)


def padding_does_not_matter(case):
    """Text tokens that the mask hides can have any value and any number."""
    ids, text, visible = inputs(case)
    plain = case.logits(ids, case.context(text, visible), None)
    changed = torch.where(visible[..., None], text, text * -3 + 1)
    for more in (0, 1, 6):
        added = torch.full((B, more, case.text_width), 2.0)
        padded = torch.cat([changed, added], dim=1)
        mask = torch.cat([visible, torch.zeros(B, more, dtype=torch.bool)], dim=1)
        logits = case.logits(ids, case.context(padded, mask), None)
        moved = (logits - plain).abs().max()
        assert torch.allclose(logits, plain, atol=1e-4), (
            f"{more} more tokens of padding move the logits by {moved:.2g}"
        )


def no_caption_is_no_text(case):
    """An all-False mask gives finite logits that do not depend on the text, bit for bit.

    The gradient of the text is then zero. "Attention reduces to image token self-attention" (Muse,
    section 2.7).
    """
    ids, text, visible = inputs(case)
    visible = visible.clone()
    visible[1] = False
    text = text.requires_grad_()
    logits = case.logits(ids, case.context(text, visible), None)
    assert logits.isfinite().all(), "an empty caption gives NaN"
    logits.square().sum().backward()
    assert (text.grad[1] == 0).all(), "a dropped caption gets a gradient"
    assert (text.grad[0] != 0).any()
    assert text.grad.isfinite().all()
    other = text.detach().clone()
    other[1] = -3 * other[1] + 1
    other_logits = case.logits(ids, case.context(other, visible), None)
    assert torch.equal(other_logits[1], logits[1].detach()), "a dropped caption changes the logits"


def low_res_matters(context_of, logits, low_ids, codes):
    """Changing or exchanging low-res tokens changes the logits of every row (Muse, section 2.4).

    context_of(low_ids) -> context, with a caption or without. Exchanging is the sharper test: it
    changes nothing if the low-res tokens have no positions.
    """
    plain = logits(context_of(low_ids))
    changed = low_ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % codes
    permuted = low_ids.flip(1)
    assert not torch.equal(permuted, low_ids)
    for name, other in (("changing", changed), ("permuting", permuted)):
        moved = (logits(context_of(other)) - plain).abs().amax(dim=(1, 2))  # B
        assert (moved > 1e-2).all(), f"{name} low-res tokens moves the logits by {moved.tolist()}"
