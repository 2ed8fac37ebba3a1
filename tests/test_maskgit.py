"""The base model, hiding tokens, dropping captions and the loss, and broken ones.

pytest tests/test_maskgit.py
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from minimuse.checks.properties import losses, masks, models

from minimuse import schedule
from minimuse.maskgit import (
    BaseConfig,
    Corrupted,
    MaskGit,
    TokenLoss,
    drop_captions,
    hide,
    masked_token_loss,
)

CODES, GRID, TEXT = 7, 3, 12
PROPERTIES = (
    models.is_pure,
    models.where_selects,
    models.mask_is_no_code,
    models.text_matters,
    models.rows_do_not_mix,
    models.padding_does_not_matter,
    models.no_caption_is_no_text,
)


def model(seed=0):
    """A tiny model with weights so large that every input changes its output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = MaskGit(BaseConfig(width=16, layers=2, heads=2), CODES, GRID, TEXT)
        for name, p in net.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(p, std=0.3)
    return net


def case(net, context=None, logits=None, mask_id=None):
    """The model, or one with a broken part."""
    if mask_id is None:
        mask_id = net.mask_id
    return models.Case(
        context=context or net.context,
        logits=logits or net,
        mask_id=mask_id,
        codes=CODES,
        tokens=GRID * GRID,
        text_width=TEXT,
        train=net.train,
    )


@pytest.mark.parametrize("prop", PROPERTIES)
def test_model(prop):
    prop(case(model()))


def test_broken_models(refuses):
    net = model()

    def masking_inside(ids, context, where):
        generator = torch.Generator().manual_seed(int(torch.randint(99, ())))
        logits = net(hide(ids, net.mask_id, generator).ids, context)
        return logits if where is None else logits[where]

    def dropout_inside(ids, context, where):
        return F.dropout(net(ids, context, where), 0.1, net.training)

    def blind(text, visible):
        return net.context(text, torch.zeros_like(visible))

    def attends_to_padding(text, visible):
        return net.context(text, torch.ones_like(visible))

    def first_token_of_no_caption(text, visible):
        first = torch.arange(text.shape[1]) == 0
        empty = ~visible.any(-1, keepdim=True)
        return net.context(text, visible | (empty & first))

    def mean_over_tokens(text, visible):
        return net.context(text - text.mean(dim=1, keepdim=True), visible)

    def mean_over_batch(text, visible):
        return net.context(text - text.mean(dim=0), visible)

    def wrong_where(ids, context, where):
        if where is not None:
            where = where.flip(1)
        return net(ids, context, where)

    def mask_is_code_zero(ids, context, where):
        return net(ids.where(ids != net.mask_id, 0), context, where)

    for prop, planted in [
        (models.is_pure, case(net, logits=masking_inside)),
        (models.is_pure, case(net, logits=dropout_inside)),
        (models.where_selects, case(net, logits=wrong_where)),
        (models.mask_is_no_code, case(net, logits=mask_is_code_zero)),
        (models.mask_is_no_code, case(net, mask_id=0)),
        (models.text_matters, case(net, context=blind)),
        (models.rows_do_not_mix, case(net, context=mean_over_batch)),
        (models.padding_does_not_matter, case(net, context=attends_to_padding)),
        (models.padding_does_not_matter, case(net, context=mean_over_tokens)),
        (models.no_caption_is_no_text, case(net, context=attends_to_padding)),
        (models.no_caption_is_no_text, case(net, context=first_token_of_no_caption)),
    ]:
        refuses(prop, planted)


def test_an_empty_caption_takes_cross_attention_away():
    """Bit for bit, the logits are those of a model whose cross-attention adds zero."""
    net = model()
    without = copy.deepcopy(net)
    for block in without.decoder.blocks:
        torch.nn.init.zeros_(block.cross_attention.out.weight)
    ids, text, visible = models.inputs(case(net))
    no_caption = net.context(text, torch.zeros_like(visible))
    assert torch.equal(net(ids, no_caption), without(ids, without.context(text, visible)))


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="30.*4 heads"):
        BaseConfig(width=30, layers=1, heads=4)


# --- Hiding ---


def test_hide():
    masks.hides_by_replacing(hide)
    masks.shares_differ_within_a_batch(hide)
    masks.hides_any_places(hide)
    net = model()
    context = net.context(*models.inputs(case(net))[1:])

    def predict(ids, generator):
        corrupted = hide(ids % CODES, net.mask_id, generator)
        return net(corrupted.ids[:, : GRID * GRID], context), corrupted.hidden

    masks.hidden_tokens_do_not_matter(predict)


def keeps_the_ids(ids, mask_id, generator):
    """A bug of published code: the mask only selects the loss, and the model sees all ids."""
    return Corrupted(ids, hide(ids, mask_id, generator).hidden)


def hides_by_coin(ids, mask_id, generator):
    """A coin for each token: the ratio is right on average only."""
    noise = torch.rand(ids.shape, generator=generator)
    ratios = schedule.sample_ratios(len(ids), generator)
    hidden = noise < ratios[:, None]
    return Corrupted(ids.masked_fill(hidden, mask_id), hidden)


def one_count_for_the_batch(ids, mask_id, generator):
    B, N = ids.shape
    counts = schedule.mask_counts(schedule.sample_ratios(1, generator), N).expand(B)
    hidden = schedule.random_masks(counts, N, generator)
    return Corrupted(ids.masked_fill(hidden, mask_id), hidden)


def half_of_each(ids, mask_id, generator):
    B, N = ids.shape
    half_rounded_up = (N + 1) // 2
    hidden = schedule.random_masks(torch.full((B,), half_rounded_up), N, generator)
    return Corrupted(ids.masked_fill(hidden, mask_id), hidden)


def random_ids_for_masks(ids, mask_id, generator):
    hidden = hide(ids, mask_id, generator).hidden
    random_ids = torch.randint(mask_id, ids.shape, generator=generator)
    return Corrupted(torch.where(hidden, random_ids, ids), hidden)


def test_broken_hiding(refuses):
    for planted in (keeps_the_ids, hides_by_coin, random_ids_for_masks):
        refuses(masks.hides_by_replacing, planted)
    for planted in (one_count_for_the_batch, half_of_each):
        refuses(masks.shares_differ_within_a_batch, planted)
    embedding = torch.nn.Embedding(CODES + 1, 4)

    def predict(ids, generator):
        corrupted = keeps_the_ids(ids, CODES, generator)
        return embedding(corrupted.ids), corrupted.hidden

    refuses(masks.hidden_tokens_do_not_matter, predict)


def test_fully_hidden_rows():
    """About that fraction of the rows hides all tokens; the others keep the law of ratios."""
    B, N = 4000, 16
    ids = torch.zeros(B, N, dtype=torch.long)

    def counts(fraction):
        generator = torch.Generator().manual_seed(0)
        corrupted = hide(ids, 1, generator, fully_hidden=fraction)
        assert corrupted.ids.bool().equal(corrupted.hidden)
        return corrupted.hidden.sum(dim=1)

    by_law = counts(0.0)
    # A row of the cosine law hides all 16 with a ratio above 15 / 16.
    all_by_law = 1 - 2 / torch.pi * math.asin(15 / 16)
    for fraction in (0.0, 0.25, 0.8):
        expected = fraction + (1 - fraction) * all_by_law
        hidden = counts(fraction)
        assert (hidden == N).double().mean() == pytest.approx(expected, abs=0.03)
        others = hidden < N
        # The same ratios as without it, since they are drawn first.
        assert hidden[others].equal(by_law[others])
    assert (counts(1.0) == N).all()


# --- Dropping captions ---


def test_drop_captions():
    masks.drops_the_share_of_captions(drop_captions)
    net = model()
    ids, text, visible = models.inputs(case(net))
    assert not drop_captions(visible, 1.0, torch.Generator()).any()
    for seed in range(20):
        kept = drop_captions(visible, 0.5, torch.Generator().manual_seed(seed))
        dropped = ~kept.any(dim=-1)
        if dropped.any() and not dropped.all():
            break
    logits = net(ids, net.context(text, kept))
    changed = -3 * text + 1
    changed_where_dropped = torch.where(dropped[:, None, None], changed, text)
    assert torch.equal(net(ids, net.context(changed_where_dropped, kept)), logits)
    moved = net(ids, net.context(changed, kept)) - logits
    assert (moved.abs().amax(dim=(1, 2)) > 1e-3).tolist() == (~dropped).tolist()


def inverted(visible, fraction, generator):
    """Kept with the probability of being dropped."""
    return visible & (torch.rand(len(visible), generator=generator) < fraction)[:, None]


def word_by_word(visible, fraction, generator):
    return visible & (torch.rand(visible.shape, generator=generator) >= fraction)


def all_or_none(visible, fraction, generator):
    return visible & (torch.rand(1, generator=generator) >= fraction)


def an_exact_count(visible, fraction, generator):
    order = torch.randperm(len(visible), generator=generator)
    kept = order >= round(fraction * len(visible))
    return visible & kept[:, None]


def test_broken_caption_dropout(refuses):
    for planted in (inverted, word_by_word, all_or_none, an_exact_count):
        refuses(masks.drops_the_share_of_captions, planted)


# --- The loss ---


def test_loss():
    losses.is_one_mean_over_hidden_tokens(masked_token_loss)
    losses.does_not_depend_on_the_split(masked_token_loss)


def mean_of_rows(logits, ids, hidden):
    losses_of_tokens = F.cross_entropy(logits, ids[hidden], reduction="none")  # M
    by_row = torch.zeros(hidden.shape).masked_scatter(hidden, losses_of_tokens)  # B N
    rows = hidden.any(dim=-1)
    means = by_row.sum(-1)[rows] / hidden.sum(-1)[rows]
    return TokenLoss(means.mean(), masked_token_loss(logits, ids, hidden).correct)


def over_all_tokens(logits, ids, hidden):
    loss, correct = masked_token_loss(logits, ids, hidden)
    return TokenLoss(loss * hidden.sum() / hidden.numel(), correct)


def first_ids(logits, ids, hidden):
    """The targets in another order than the logits."""
    target = ids.flatten()[: len(logits)]
    return TokenLoss(F.cross_entropy(logits, target), (logits.argmax(-1) == target).float().mean())


def test_broken_losses(refuses):
    for planted in (mean_of_rows, over_all_tokens, first_ids):
        refuses(losses.is_one_mean_over_hidden_tokens, planted)
    for planted in (mean_of_rows, over_all_tokens):
        refuses(losses.does_not_depend_on_the_split, planted)


def test_a_few_images_can_be_learnt_by_heart():
    """One batch with everything hidden: only the caption tells the images apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = MaskGit(BaseConfig(width=32, layers=2, heads=2), 16, 3, 8)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(16, (4, 9), generator=generator)
    text = torch.randn(4, 2, 8, generator=generator)
    visible = torch.ones(4, 2, dtype=torch.bool)
    masked, everything = torch.full_like(ids, net.mask_id), torch.ones_like(ids, dtype=torch.bool)

    def loss_of(text):
        logits = net(masked, net.context(text, visible), everything)
        return masked_token_loss(logits, ids, everything)

    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    before = loss_of(text).loss.item()
    for _ in range(80):
        optimizer.zero_grad()
        loss_of(text).loss.backward()
        optimizer.step()
    with torch.no_grad():
        own, exchanged = loss_of(text), loss_of(text.roll(1, dims=0))
    assert before > 2.5
    assert own.loss < 0.1 and own.correct == 1, own
    assert exchanged.loss > 2, "the wrong caption is as good"
