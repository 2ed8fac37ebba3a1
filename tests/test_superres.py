"""Super-resolution: the properties of the base model, and what the low-res tokens do.

pytest tests/test_superres.py
"""

import pytest
import torch
from minimuse.checks.properties import models

from minimuse.maskgit import masked_token_loss
from minimuse.superres import SuperRes, SuperResConfig, covering

LOW_CODES, LOW_GRID, CODES, GRID, TEXT = 5, 2, 7, 4, 12
LOW = torch.tensor([[0, 1, 2, 3], [4, 4, 1, 0], [3, 2, 0, 0]])
PROPERTIES = (
    models.is_pure,
    models.where_selects,
    models.mask_is_no_code,
    models.text_matters,
    models.padding_does_not_matter,
    models.no_caption_is_no_text,
)


def model(seed=0):
    """A tiny model with weights so large that every input changes its output."""
    config = SuperResConfig(width=16, encoder_layers=1, layers=2, heads=2, window=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SuperRes(config, LOW_CODES, LOW_GRID, CODES, GRID, TEXT)
        for name, p in net.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(p, std=0.3)
    return net


def case(net, context=None):
    """The model with its low-res tokens, or with a broken `context`."""

    def own_context(text, visible):
        return net.context(text, visible, LOW)

    return models.Case(
        context=context or own_context,
        logits=net,
        mask_id=net.mask_id,
        codes=CODES,
        tokens=GRID * GRID,
        text_width=TEXT,
        train=net.train,
    )


@pytest.mark.parametrize("prop", PROPERTIES)
def test_model(prop):
    prop(case(model()))


# --- The low-res tokens ---


def low_res_case(net, caption=True, context=None):
    """Arguments of models.low_res_matters: everything masked, with a caption or without."""
    _, text, visible = models.inputs(case(net))
    if not caption:
        visible = torch.zeros_like(visible)
    masked = torch.full((3, GRID * GRID), net.mask_id)
    make_context = context or net.context

    def context_of(low_ids):
        return make_context(text, visible, low_ids)

    def logits(context):
        return net(masked, context)

    return context_of, logits, LOW, LOW_CODES


@pytest.mark.parametrize("caption", [True, False])
def test_low_res_tokens_matter(caption):
    models.low_res_matters(*low_res_case(model(), caption))


def test_low_res_tokens_that_are_not_passed_on_are_noticed(refuses):
    net = model()

    def always_the_same(text, visible, low):
        return net.context(text, visible, LOW)

    refuses(models.low_res_matters, *low_res_case(net, context=always_the_same))


def test_low_res_tokens_hidden_with_the_caption_are_noticed(refuses):
    net = model()

    def hidden_with_the_caption(text, visible, low):
        context = net.context(text, visible, low)
        has_caption = visible.any(-1, keepdim=True)
        return context._replace(
            visible=context.visible & has_caption,
            from_low=context.from_low * has_caption[..., None],
        )

    models.low_res_matters(*low_res_case(net, context=hidden_with_the_caption))
    without_caption = low_res_case(net, caption=False, context=hidden_with_the_caption)
    refuses(models.low_res_matters, *without_caption)


def test_low_res_tokens_without_any_positions_are_noticed(refuses):
    net = model()
    torch.nn.init.zeros_(net.low_positions.rows)
    torch.nn.init.zeros_(net.low_positions.columns)
    for block in net.low_blocks:
        torch.nn.init.zeros_(block.self_attention.biases[0].weight)  # it depends on places, too
    # Each high-res token still starts from its own low-res token.
    models.low_res_matters(*low_res_case(net))

    def placeless(text, visible, low):
        return net.context(text, visible, low)._replace(from_low=0.0)

    # Now nothing depends on places: permuting changes nothing.
    refuses(models.low_res_matters, *low_res_case(net, context=placeless))


def test_broken_text_conditioning(refuses):
    net = model()
    _, same_text, _ = models.inputs(case(net))

    def ignores_its_text(text, visible):
        return net.context(same_text, visible, LOW)

    refuses(models.text_matters, case(net, context=ignores_its_text))


def test_context_is_low_res_tokens_then_text():
    net = model()
    _, text, visible = models.inputs(case(net))
    context = net.context(text, visible, LOW)
    n, T = LOW_GRID**2, text.shape[1]
    low_visible, text_visible, padding = context.visible.split([n, T, 16 - n - T], dim=1)
    assert low_visible.all()
    assert torch.equal(text_visible, visible)
    assert not padding.any()
    assert len(context.keys) == 2
    assert context.keys[0].shape == (3, 2, 16, 8)


def test_text_alone_reaches_the_decoder_not_the_encoder():
    """Keys of the low-res tokens do not depend on the caption (Muse, section 2.4)."""
    net = model()
    _, text, visible = models.inputs(case(net))
    one, other = net.context(text, visible, LOW), net.context(-text, visible, LOW)
    n = LOW_GRID**2
    for a, b in zip([*one.keys, *one.values], [*other.keys, *other.values], strict=True):
        assert torch.equal(a[:, :, :n], b[:, :, :n])
        assert not torch.equal(a, b)


def test_a_token_starts_from_the_low_res_token_that_covers_it():
    net = model()
    net.low_blocks = torch.nn.ModuleList()  # attention would spread a change over the image
    _, text, visible = models.inputs(case(net))
    changed = LOW.clone()
    changed[:, 1] = 4 - LOW[:, 1]  # the upper right one of 2 x 2
    one = net.context(text, visible, LOW).from_low
    other = net.context(text, visible, changed).from_low
    moved = (one != other).any(-1).view(3, GRID, GRID)
    covered = torch.zeros(GRID, GRID, dtype=torch.bool)
    covered[:2, 2:] = True
    for row in moved[:2]:  # in the third row 4 - 2 is 2: nothing changed
        assert torch.equal(row, covered)


def test_start():
    """Embeddings of low-res and high-res codes come from the vectors of their own tokenizer."""
    torch.manual_seed(0)
    net, low, high = model(), torch.randn(LOW_CODES, 3), torch.randn(CODES, 5)
    low[1], high[1] = low[0], high[0]
    net.start(torch.randn(50, net.text[0].in_features), low, high)
    for rows in (net.low_embedding.weight, net.decoder.embedding.weight):
        distances = torch.cdist(rows, rows).fill_diagonal_(9)
        assert distances[0].argmin() == 1
        assert distances[0, 1] < distances[0, 2:].min()


def test_rows_do_not_mix():
    net = model()
    ids, text, visible = models.inputs(case(net))
    together = net(ids, net.context(text, visible, LOW))
    for b in range(3):
        row = slice(b, b + 1)
        alone = net(ids[row], net.context(text[row], visible[row], LOW[row]))
        assert torch.allclose(alone[0], together[b], atol=1e-4)


def test_windows_divide_the_grid():
    config = SuperResConfig(width=16, encoder_layers=1, layers=1, heads=2, window=3)
    with pytest.raises(ValueError, match=r"\(4\).*\(3\)"):
        SuperRes(config, 4, 2, 4, 4, TEXT)
    with pytest.raises(ValueError, match="30.*4 heads"):
        SuperResConfig(width=30, encoder_layers=1, layers=1, heads=4, window=2)


# --- Pieces ---


def model_of_pieces(piece=2, low_grid=LOW_GRID):
    config = SuperResConfig(width=16, encoder_layers=1, layers=2, heads=2, window=0, piece=piece)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SuperRes(config, LOW_CODES, low_grid, CODES, GRID, TEXT)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return net


def test_a_piece_alone_is_what_it_is_in_the_image():
    """What is learnt of one piece holds in the whole image, and pieces do not see each other."""
    net = model_of_pieces()
    ids, text, visible = models.inputs(case(net))
    whole = net(ids, net.context(text, visible, LOW))  # B N K
    for y, x in ((0, 0), (0, 2), (2, 0), (2, 2)):
        piece = torch.tensor([GRID * (y + i) + x + j for i in range(2) for j in range(2)])
        places = piece.expand(3, -1)
        alone = net(ids.gather(1, places), net.context(text, visible, LOW, places))
        torch.testing.assert_close(alone, whole[:, piece], atol=1e-4, rtol=1e-4)
        other = ids.clone()
        other[:, piece] = (ids[:, piece] + 1) % CODES
        difference = net(other, net.context(text, visible, LOW)) - whole
        moved = difference.abs().amax(-1) > 1e-6  # B N
        assert moved[:, piece].all()
        assert moved.sum() == places.numel()


def test_several_pieces_at_once():
    net = model_of_pieces()
    ids, text, visible = models.inputs(case(net))
    whole = net(ids, net.context(text, visible, LOW))  # B N K
    left_and_right_exchanged = torch.arange(GRID * GRID).view(2, 2, 2, 2).roll(1, dims=2).flatten()
    places = left_and_right_exchanged.expand(3, -1)
    out = net(ids.gather(1, places), net.context(text, visible, LOW, places))
    torch.testing.assert_close(out, whole[:, left_and_right_exchanged], atol=1e-4, rtol=1e-4)


def test_without_pieces_every_token_sees_every_other():
    net = model_of_pieces(piece=0)
    ids, text, visible = models.inputs(case(net))
    lower_right = torch.tensor([10, 11, 14, 15])
    other = ids.clone()
    other[:, lower_right] = (ids[:, lower_right] + 1) % CODES
    context = net.context(text, visible, LOW)
    assert (net(other, context) != net(ids, context)).all()


def test_places_are_pieces_and_busy_ones_likelier():
    net, generator, rows = model_of_pieces(), torch.Generator().manual_seed(0), 4000
    ids = torch.zeros(rows, GRID * GRID, dtype=torch.long)
    ids[:, [2, 3, 6]] = torch.tensor([1, 2, 3])  # three of the upper right piece
    pieces = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    sampled = (net.sample_places(ids, generator)[:, None] == pieces).all(-1)  # B P
    assert (sampled.sum(-1) == 1).all()
    expected = torch.tensor([1, 4, 1, 1]) / 7
    sigma = (4 / 7 * 3 / 7 / rows) ** 0.5
    assert (sampled.double().mean(0) - expected).abs().max() < 5 * sigma


def test_without_pieces_the_places_are_all_tokens():
    ids = torch.zeros(2, GRID * GRID, dtype=torch.long)
    places = model_of_pieces(piece=0).sample_places(ids, torch.Generator().manual_seed(0))
    assert torch.equal(places, torch.arange(GRID * GRID).expand(2, -1))


def test_a_quarter_of_the_pieces_is_sampled_without_repeats():
    net = model_of_pieces(1, low_grid=GRID)
    ids = torch.zeros(9, GRID * GRID, dtype=torch.long)
    for row in net.sample_places(ids, torch.Generator().manual_seed(0)):
        assert row.shape == (4,)
        assert row.unique().numel() == 4


def test_covering():
    """The four squares of a 4 x 4 grid, in another order, over a low-res grid of 2 x 2."""
    places = torch.tensor([[10, 11, 2, 3], [14, 15, 6, 7], [0, 1, 8, 9], [4, 5, 12, 13]])
    assert covering(places.view(1, -1), grid=4, low_grid=2).tolist() == [[3, 1, 0, 2]]
    one_square = torch.tensor([[2, 3, 6, 7]])
    assert covering(one_square, grid=4, low_grid=2).tolist() == [[1]]


def test_pieces_divide_the_grid():
    settings = SuperResConfig(width=8, layers=1, heads=2, encoder_layers=0, window=0, piece=4)
    with pytest.raises(ValueError, match="3 pieces along a side of 12"):
        SuperRes(settings, 5, 3, 7, 12, 6)
    with pytest.raises(ValueError, match="4 tokens.*pieces of 3"):
        model_of_pieces(3)
    with pytest.raises(ValueError, match="4 tokens.*pieces of 1: .*piece a multiple of 2"):
        model_of_pieces(1)
    with pytest.raises(ValueError, match=r"\(4\) is not a multiple of the low-res one \(8\)"):
        model_of_pieces(low_grid=8)
    with pytest.raises(ValueError, match=r"\(4\) is not a multiple of the low-res one \(3\)"):
        model_of_pieces(low_grid=3)


# --- Training ---


def test_low_res_tokens_can_be_copied():
    """High-res tokens that repeat the low-res ones, 2 x 2 each, are soon learnt from those."""
    config = SuperResConfig(width=32, encoder_layers=1, layers=2, heads=2, window=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SuperRes(config, low_codes=4, low_grid=2, codes=4, grid=4, text_width=8)
    low = torch.randint(4, (4, 2, 2), generator=torch.Generator().manual_seed(0))
    high = low.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    text, no_caption = torch.zeros(4, 1, 8), torch.zeros(4, 1, dtype=torch.bool)
    masked, everything = torch.full_like(high, net.mask_id), torch.ones_like(high, dtype=torch.bool)

    def loss_of(low):
        context = net.context(text, no_caption, low.flatten(1))
        return masked_token_loss(net(masked, context, everything), high, everything)

    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss_of(low).loss.backward()
        optimizer.step()
    with torch.no_grad():
        own, exchanged = loss_of(low), loss_of(low.roll(1, dims=0))
    assert own.loss < 0.2 and own.correct > 0.9, own
    assert exchanged.loss > 2, exchanged
