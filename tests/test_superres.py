"""Super-resolution: the properties of the base model, and what the low-res tokens do: `pytest tests/test_superres.py`."""

import pytest
import torch
from minimuse.checks.properties import models

from minimuse.maskgit import masked_token_loss
from minimuse.superres import SuperRes, SuperResConfig

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = SuperRes(
            SuperResConfig(width=16, encoder_layers=1, layers=2, heads=2, window=2),
            LOW_CODES,
            LOW_GRID,
            CODES,
            GRID,
            TEXT,
        )
        for name, p in net.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(p, std=0.3)
    return net


def case(net, context=None):
    return models.Case(
        context or (lambda text, visible: net.context(text, visible, LOW)),
        net,
        net.mask_id,
        CODES,
        GRID * GRID,
        TEXT,
        net.train,
    )


@pytest.mark.parametrize("prop", PROPERTIES)
def test_model(prop):
    prop(case(model()))


def looks(net, caption=True, context=None):
    """Arguments of models.low_res_matters: everything hidden, with a caption or without."""
    _, text, visible = models.inputs(case(net))
    visible = visible if caption else torch.zeros_like(visible)
    blank = torch.full((3, GRID * GRID), net.mask_id)
    context = context or net.context
    return (lambda low: context(text, visible, low)), (lambda c: net(blank, c)), LOW, LOW_CODES


@pytest.mark.parametrize("caption", [True, False])
def test_low_res_tokens_matter(caption):
    models.low_res_matters(*looks(model(), caption))


def test_broken_conditioning(refuses):
    net = model()
    refuses(
        models.low_res_matters,
        *looks(net, context=lambda text, visible, low: net.context(text, visible, LOW)),
    )  # not passed on

    def with_the_caption(text, visible, low):
        context = net.context(text, visible, low)
        captioned = visible.any(-1, keepdim=True)
        return context._replace(
            visible=context.visible & captioned, below=context.below * captioned[..., None]
        )

    models.low_res_matters(*looks(net, context=with_the_caption))
    refuses(
        models.low_res_matters, *looks(net, caption=False, context=with_the_caption)
    )  # the null caption hides them too
    torch.nn.init.zeros_(net.low_positions.rows)
    torch.nn.init.zeros_(net.low_positions.columns)
    for block in net.low_blocks:
        torch.nn.init.zeros_(block.self_attention.biases[0].weight)  # which tells places too
    models.low_res_matters(
        *looks(net)
    )  # each high-res token still starts from its own low-res token
    placeless = lambda text, visible, low: net.context(text, visible, low)._replace(below=0.0)
    refuses(
        models.low_res_matters, *looks(net, context=placeless)
    )  # no positions at all: permuting changes nothing
    _, text, visible = models.inputs(case(net))
    refuses(models.text_matters, case(model(), context=lambda t, v: model().context(text, v, LOW)))


def test_context_is_low_res_tokens_then_text():
    net = model()
    _, text, visible = models.inputs(case(net))
    context = net.context(text, visible, LOW)
    low, said, spare = context.visible.split(
        [LOW_GRID**2, text.shape[1], 16 - LOW_GRID**2 - text.shape[1]], dim=1
    )
    assert low.all() and torch.equal(said, visible) and not spare.any()
    assert len(context.keys) == 2 and context.keys[0].shape == (3, 2, 16, 8)


def test_text_alone_reaches_the_decoder_not_the_encoder():
    """Keys of the low-res tokens do not depend on the caption: the encoder sees none (Muse, section 2.4)."""
    net = model()
    _, text, visible = models.inputs(case(net))
    one, other = (net.context(t, visible, LOW) for t in (text, -text))
    for a, b in zip([*one.keys, *one.values], [*other.keys, *other.values]):
        assert torch.equal(a[:, :, : LOW_GRID**2], b[:, :, : LOW_GRID**2]) and not torch.equal(a, b)


def test_a_token_starts_from_the_low_res_token_that_covers_it():
    net = model()
    net.low_blocks = torch.nn.ModuleList()  # attention would spread a change over the picture
    _, text, visible = models.inputs(case(net))
    changed = LOW.clone()
    changed[:, 1] = 4 - LOW[:, 1]  # the upper right one of 2 x 2
    one, other = (net.context(text, visible, low).below for low in (LOW, changed))
    moved = (one != other).any(-1).view(3, GRID, GRID)
    covered = torch.zeros(GRID, GRID, dtype=torch.bool)
    covered[:2, 2:] = True
    assert all(torch.equal(row, covered) for row in moved[:2])  # in the third row, 4 - 2 is 2


def test_start():
    """The embeddings of low-res and high-res codes come from the tokenizers' vectors, each from its own."""
    torch.manual_seed(0)
    net, low, high = model(), torch.randn(LOW_CODES, 3), torch.randn(CODES, 5)
    low[1], high[1] = low[0], high[0]
    net.start(torch.randn(50, net.text[0].in_features), low, high)
    for rows in (net.low_embedding.weight, net.decoder.embedding.weight):
        distances = torch.cdist(rows, rows).fill_diagonal_(9)
        assert distances[0].argmin() == 1 and distances[0, 1] < distances[0, 2:].min()


def test_rows_do_not_mix():
    net = model()
    ids, text, visible = models.inputs(case(net))
    together = net(ids, net.context(text, visible, LOW))
    for b in range(3):
        alone = net(
            ids[b : b + 1], net.context(text[b : b + 1], visible[b : b + 1], LOW[b : b + 1])
        )
        assert torch.allclose(alone[0], together[b], atol=1e-4)


def test_windows_divide_the_grid():
    config = SuperResConfig(width=16, encoder_layers=1, layers=1, heads=2, window=3)
    with pytest.raises(ValueError, match=r"\(4\).*\(3\)"):
        SuperRes(config, 4, 2, 4, 4, TEXT)
    with pytest.raises(ValueError, match="30.*4 heads"):
        SuperResConfig(width=30, encoder_layers=1, layers=1, heads=4, window=2)


def in_pieces(piece=2, low_grid=LOW_GRID):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SuperResConfig(
            width=16, encoder_layers=1, layers=2, heads=2, window=0, piece=piece
        )
        net = SuperRes(config, LOW_CODES, low_grid, CODES, GRID, TEXT)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    return net


def test_a_piece_alone_is_what_it_is_in_the_picture():
    """What is learnt of one piece holds when the whole picture is drawn, and no piece looks at another."""
    net = in_pieces()
    ids, text, visible = models.inputs(case(net))
    whole = net(ids, net.context(text, visible, LOW))  # B N K
    for y, x in ((0, 0), (0, 2), (2, 0), (2, 2)):
        places = torch.tensor([GRID * (y + i) + x + j for i in range(2) for j in range(2)]).expand(
            3, -1
        )
        alone = net(ids.gather(1, places), net.context(text, visible, LOW, places))
        torch.testing.assert_close(alone, whole[:, places[0]], atol=1e-4, rtol=1e-4)
        other = ids.clone()
        other[:, places[0]] = (ids[:, places[0]] + 1) % CODES
        moved = (net(other, net.context(text, visible, LOW)) - whole).abs().amax(-1) > 1e-6  # B N
        assert moved[:, places[0]].all() and moved.sum() == places.numel()
    swapped = (
        torch.arange(GRID * GRID).view(2, 2, 2, 2).roll(1, dims=2).reshape(1, -1).expand(3, -1)
    )  # the left pieces on the right
    context = net.context(text, visible, LOW, swapped)
    torch.testing.assert_close(
        net(ids.gather(1, swapped), context), whole[:, swapped[0]], atol=1e-4, rtol=1e-4
    )  # several at once
    one_piece = in_pieces(piece=0)
    assert (
        one_piece(other, one_piece.context(text, visible, LOW))
        != one_piece(ids, one_piece.context(text, visible, LOW))
    ).all()


def test_places_are_pieces_and_busy_ones_likelier():
    net, generator = in_pieces(), torch.Generator().manual_seed(0)
    ids = torch.zeros(4000, GRID * GRID, dtype=torch.long)
    ids[:, [2, 3, 6]] = torch.tensor([1, 2, 3])  # three of the upper right piece
    pieces = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    taken = (net.places(ids, generator)[:, None] == pieces).all(-1)  # B 4
    assert (taken.sum(-1) == 1).all()
    assert (taken.double().mean(0) - torch.tensor([1, 4, 1, 1]) / 7).abs().max() < 5 * (
        4 / 7 * 3 / 7 / 4000
    ) ** 0.5
    assert torch.equal(
        in_pieces(piece=0).places(ids[:2], generator), torch.arange(GRID * GRID).expand(2, -1)
    )
    for row in in_pieces(1, low_grid=GRID).places(
        ids[:9], generator
    ):  # a quarter of sixteen pieces of one token: four others
        assert row.shape == (4,) and row.unique().numel() == 4


def test_pieces_divide_the_grid():
    with pytest.raises(ValueError, match="4 tokens.*pieces of 3"):
        in_pieces(3)
    with pytest.raises(ValueError, match="4 tokens.*pieces of 1: .*multiple of 2"):
        in_pieces(1)


def test_low_res_tokens_can_be_copied():
    """High-res tokens that repeat the low-res ones, 2 x 2 each, are soon learnt from those alone, without a caption."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SuperRes(
            SuperResConfig(width=32, encoder_layers=1, layers=2, heads=2, window=2), 4, 2, 4, 4, 8
        )
    low = torch.randint(4, (4, 2, 2), generator=torch.Generator().manual_seed(0))
    high = low.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    nothing, everything, blank = (
        torch.zeros(4, 1, dtype=torch.bool),
        torch.ones_like(high, dtype=torch.bool),
        torch.full_like(high, net.mask_id),
    )
    loss_of = lambda low: masked_token_loss(
        net(blank, net.context(torch.zeros(4, 1, 8), nothing, low.flatten(1)), everything),
        high,
        everything,
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss_of(low).loss.backward()
        optimizer.step()
    with torch.no_grad():
        told, wrong = loss_of(low), loss_of(low.roll(1, dims=0))
    assert told.loss < 0.2 and told.correct > 0.9 and wrong.loss > 2, (told, wrong)
