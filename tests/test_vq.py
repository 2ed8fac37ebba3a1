"""The tokenizer: quantizers, their moving codebook, encoder and decoder, and broken ones: `pytest tests/test_vq.py`."""

import pytest
import torch
from einops import rearrange
from minimuse.checks.properties import quantizer as properties
from torch import nn

from minimuse.grow import grow
from minimuse.plumbing import config
from minimuse.vq import (
    Decoder,
    EMAQuantizer,
    FSQuantizer,
    ImageTokenizer,
    TokenizerConfig,
    perplexity,
)

TINY = TokenizerConfig(side=8, codes=6, code_width=4, channels=8, multipliers=(1, 2), blocks=(1, 1))
FSQ = TokenizerConfig(
    side=8,
    codes=12,
    code_width=2,
    channels=8,
    multipliers=(1, 2),
    blocks=(1, 1),
    quantizer="fsq",
    levels=(3, 4),
)


def stir(net, std=0.2, seed=0):
    """Random weights everywhere: residual blocks start as the identity, which would hide their bugs."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm" not in name:
                p.copy_(torch.randn(p.shape, generator=draw) * std)
    return net


def tokenizer(settings=TINY, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return stir(ImageTokenizer(settings), seed=seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Which code


def ema(codebook):
    quantizer = EMAQuantizer(*codebook.shape)
    quantizer.codebook.copy_(codebook)
    return quantizer


def nearest(z, codebook):
    return ema(codebook).nearest(z)


def quantize(z, codebook):
    return ema(codebook)(z)


NEAREST = (
    properties.is_the_nearest,
    properties.codes_are_their_own,
    properties.follows_a_permutation,
)


@pytest.mark.parametrize("prop", NEAREST)
def test_nearest(prop):
    prop(nearest)


def dot_product(z, codebook):
    return (z @ codebook.T).argmax(-1)


def half_a_distance(z, codebook):
    """|c|^2 - z c for |c|^2 - 2 z c."""
    return (codebook.square().sum(-1) - z @ codebook.T).argmin(-1)


def city_block(z, codebook):
    return (z[..., None, :] - codebook).abs().sum(-1).argmin(-1)


def never_the_last(z, codebook):
    return nearest(z, codebook[: max(1, len(codebook) - 1)])


@pytest.mark.parametrize(
    "prop, planted",
    [
        (properties.is_the_nearest, dot_product),
        (properties.is_the_nearest, half_a_distance),
        (properties.is_the_nearest, city_block),
        (properties.codes_are_their_own, dot_product),
        (properties.codes_are_their_own, never_the_last),
        (properties.follows_a_permutation, never_the_last),
    ],
)
def test_broken_nearest(prop, planted, refuses):
    refuses(prop, planted)


def test_nearest_of_many_codes_against_float64():
    """The size of a real codebook, where float32 rounds: as close as the closest, to five digits."""
    z, codebook = properties.normal(300, 16), properties.normal(1024, 16, seed=1) / 4
    distance = torch.cdist(z.double(), codebook.double())
    assert torch.allclose(
        distance.gather(1, nearest(z, codebook)[:, None])[:, 0], distance.amin(1), rtol=1e-5
    )


# Gradients


def test_straight_through_and_commitment():
    properties.passes_straight_through(quantize)
    properties.commitment_moves_the_latents_only(quantize)


def broken_quantize(z, codebook, bug):
    ids = nearest(z.detach(), codebook)
    code = codebook[ids]
    right = z + (code - z).detach()
    values = {
        "no straight-through": code,
        "latents": z,
        "half": z + 0.5 * (code - z).detach(),
        "doubled": right + z - z.detach(),
    }
    error = {"wrong side": z.detach() - code, "both": z - z.detach()}.get(bug, z - code)
    return (
        values.get(bug, right),
        ids,
        error.square().sum() if bug == "summed" else error.square().mean(),
    )


@pytest.mark.parametrize(
    "prop, bug",
    [
        (properties.passes_straight_through, "no straight-through"),
        (properties.passes_straight_through, "latents"),
        (properties.passes_straight_through, "half"),
        (properties.passes_straight_through, "doubled"),
        (properties.commitment_moves_the_latents_only, "wrong side"),  # beta on the codebook's term
        (properties.commitment_moves_the_latents_only, "both"),
        (properties.commitment_moves_the_latents_only, "summed"),
    ],
)
def test_broken_gradients(prop, bug, refuses):
    refuses(prop, lambda z, codebook: broken_quantize(z, codebook, bug))


def test_codebook_takes_no_gradient():
    net = tokenizer()
    fake, z, ids, commitment = net(images(2, 3, 8, 8))
    (fake.square().mean() + commitment).backward()
    assert not any("quantizer" in name for name, _ in net.named_parameters())
    assert net.quantizer.codebook.grad is None and not net.quantizer.codebook.requires_grad
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters()), (
        "encoder and decoder both learn"
    )
    before = net.quantizer.codebook.clone()
    net(images(2, 3, 8, 8, seed=1))
    assert torch.equal(net.quantizer.codebook, before), "forward is pure"


# The moving codebook


def make(codes, width, decay, restart_below, kind=EMAQuantizer):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(codes, width, decay, restart_below)


MOVING = (
    properties.averages_latents,
    properties.stays_in_the_hull,
    properties.restarts_dead_codes_only,
    properties.starts_among_the_latents,
)


@pytest.mark.parametrize("prop", MOVING)
def test_moving_codebook(prop):
    prop(make)


class Broken(EMAQuantizer):
    """EMAQuantizer.update with one bug at a time."""

    bug = ""

    @torch.no_grad()
    def start(self, z, generator, rounds=12):
        if self.bug == "no start":
            return
        if self.bug == "one mean":
            z = z.mean(dim=(0, 1)).expand_as(z)
        super().start(z, None if self.bug == "another generator" else generator, rounds)

    @torch.no_grad()
    def update(self, z, ids, generator):
        K, decay = len(self.mass), self.decay if self.mass.any() else 0.0
        new = 1 - decay
        counts = torch.bincount(ids, minlength=K).float()
        sums = torch.zeros_like(self.total).index_add_(0, ids, z)
        if self.bug == "weights swapped" and decay:
            decay, new = new, decay
        if self.bug == "means of means":
            sums, counts = sums / counts.clamp(min=1)[:, None], (counts > 0).float()
        if self.bug == "no first batch" and not self.mass.any():
            decay, new = self.decay, 1 - self.decay
        self.mass.mul_(decay).add_(counts, alpha=new)
        self.total.mul_(1.0 if self.bug == "sum kept" else decay).add_(sums, alpha=new)
        mass = self.mass + (0.5 if self.bug == "large eps" else 0.0)
        alive = mass > 0
        self.codebook[alive] = self.total[alive] / mass[alive, None]
        threshold = self.restart_below * len(z) / K
        dead = (self.mass < threshold).nonzero()[:, 0]
        if not len(dead) or self.bug == "no restarts":
            return 0
        if self.bug == "restarts all":
            dead = torch.arange(K)
        pick = torch.randperm(len(z), generator=generator)[: len(dead)]
        if self.bug == "all on one latent":
            pick = pick[:1].expand(len(dead))
        self.codebook[dead] = (
            torch.randn(len(dead), z.shape[1], generator=generator)
            if self.bug == "restarts anywhere"
            else z[pick]
        )
        self.mass[dead], self.total[dead] = 2 * threshold, self.codebook[dead] * 2 * threshold
        if self.bug == "dead at once":
            self.mass[dead] = 0.0
        return len(dead)


def broken(bug):
    kind = type("Broken", (Broken,), {"bug": bug})
    return lambda *arguments: make(*arguments, kind=kind)


def test_update_without_a_bug():
    for prop in MOVING:
        prop(broken(""))


@pytest.mark.parametrize(
    "prop, bug",
    [
        (properties.averages_latents, "weights swapped"),
        (properties.averages_latents, "means of means"),  # equal with counts of 1
        (properties.averages_latents, "no first batch"),
        (properties.averages_latents, "large eps"),
        (properties.stays_in_the_hull, "sum kept"),
        (properties.stays_in_the_hull, "large eps"),
        (properties.restarts_dead_codes_only, "no restarts"),
        (properties.restarts_dead_codes_only, "restarts all"),
        (properties.restarts_dead_codes_only, "restarts anywhere"),
        (properties.restarts_dead_codes_only, "all on one latent"),
        (properties.restarts_dead_codes_only, "dead at once"),
        (properties.starts_among_the_latents, "no start"),
        (properties.starts_among_the_latents, "one mean"),
        (properties.starts_among_the_latents, "another generator"),
    ],
)
def test_broken_update(prop, bug, refuses):
    refuses(prop, broken(bug))


def test_restarts_go_where_the_error_is():
    """Drawn in proportion to squared distance: never on a latent that its code already equals."""
    quantizer = make(6, 2, 0.9, 0.3)
    z = torch.cat([torch.zeros(30, 2), properties.normal(5, 2) + 3])
    ids = torch.cat([torch.zeros(30), torch.ones(5)]).long()
    assert quantizer.update(z, ids, properties.generator()) == 4
    assert (quantizer.codebook[2:].norm(dim=1) > 0.1).all()
    assert (
        quantizer.update(torch.zeros(7, 2), torch.zeros(7).long(), properties.generator()) == 0
    ), "nothing to restart on"


def test_restarts_keep_a_codebook_in_use():
    """Latents in eight clusters and codes far away from seven of them: without restarts those codes stay dead."""
    draw = properties.generator()
    centres = properties.normal(8, 4, seed=5) * 4
    used = {}
    for below in (0.0, 0.1):
        quantizer = make(8, 4, 0.9, below)
        quantizer.codebook.mul_(0.01)
        for _ in range(30):
            z = centres[torch.randint(8, (64,), generator=draw)] + 0.1 * torch.randn(
                64, 4, generator=draw
            )
            ids = quantizer.nearest(z)
            quantizer.update(z, ids, draw)
        used[below] = perplexity(quantizer.nearest(z), 8)
    assert used[0.1][1] == 8 and used[0.0][1] < 8 and used[0.0][0] < used[0.1][0]


def test_perplexity(refuses):
    properties.perplexity_is_bounded(perplexity)
    refuses(
        properties.perplexity_is_bounded,
        lambda ids, codes: (float(len(ids.unique())), len(ids.unique())),
    )
    refuses(properties.perplexity_is_bounded, lambda ids, codes: (perplexity(ids, codes)[0], codes))
    entropy = lambda ids, codes: (
        float(torch.tensor(perplexity(ids, codes)[0]).log()),
        perplexity(ids, codes)[1],
    )
    refuses(properties.perplexity_is_bounded, entropy)


# FSQ


def test_fsq():
    properties.every_id_is_reachable(FSQuantizer)
    properties.rounds_with_a_gradient(FSQuantizer)


class Cyclic(FSQuantizer):
    """Ids in one order, look-up in the other."""

    def lookup(self, ids):
        return super().lookup(ids).flip(-1)


class OneShort(FSQuantizer):
    """The top level is never reached."""

    def digits(self, z):
        return super().digits(z).clamp(max=self.sizes - 1.6)


class NoGradient(FSQuantizer):
    def digits(self, z):
        return (torch.sigmoid(z) * (self.sizes - 1)).round()


def test_broken_fsq(refuses):
    for planted in (Cyclic, OneShort):
        refuses(properties.every_id_is_reachable, planted)
    refuses(properties.rounds_with_a_gradient, NoGradient)


def test_an_fsq_tokenizer_can_use_its_codes():
    """Not only its quantizer: nothing before it may take away what the digits need, as a norm over two channels would."""
    seen = [tokenizer(FSQ, seed).encode(2 * images(4, 3, 8, 8, seed=seed)) for seed in range(8)]
    used = perplexity(torch.cat(seen), FSQ.codes)[1]
    assert used > FSQ.codes / 2, f"eight random encoders reach {used} of {FSQ.codes} codes"


# The tokenizer


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_shapes_and_round_trip(settings):
    net = tokenizer(settings).eval()
    pictures = images(3, 3, 8, 12)
    fake, z, ids, commitment = net(pictures)
    assert (
        fake.shape == pictures.shape
        and z.shape == (3, 4, 6, settings.code_width)
        and commitment.shape == ()
    )
    assert (
        ids.shape == (3, 4, 6)
        and ids.dtype == torch.int64
        and 0 <= ids.min() <= ids.max() < settings.codes
    )
    assert torch.equal(net.encode(pictures), ids)
    decoded = net.decode(ids)
    assert torch.allclose(decoded, fake.clamp(-1, 1), atol=1e-5) and decoded.abs().max() <= 1
    assert not net.encode(pictures).requires_grad and not decoded.requires_grad


def test_batch_split_is_the_whole():
    net = tokenizer().eval()
    pictures = images(5, 3, 8, 8)
    ids = net.encode(pictures)
    assert torch.equal(torch.cat([net.encode(pictures[:2]), net.encode(pictures[2:])]), ids)
    assert torch.allclose(
        torch.cat([net.decode(ids[:1]), net.decode(ids[1:])]), net.decode(ids), atol=1e-5
    )


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_ids_do_not_depend_on_autocast(settings):
    net, pictures = tokenizer(settings).eval(), images(32, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.quantizer.nearest(net.latents(pictures))
        ids = net.encode(pictures)
    assert torch.equal(ids, net.encode(pictures))
    assert not torch.equal(ids, rounded), "in bf16 all codes are as in fp32: this test cannot fail"


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_state_dict_round_trip(settings):
    net, other = tokenizer(settings), tokenizer(settings, seed=1)
    pictures = images(2, 3, 8, 8)
    if settings is TINY:
        net.quantizer.update(
            net.latents(pictures).detach(), net.encode(pictures), properties.generator()
        )
    assert not torch.equal(other(pictures)[0], net(pictures)[0])
    other.load_state_dict(net.state_dict(), strict=True)
    for a, b in zip(net(pictures), other(pictures)):
        assert torch.equal(a, b)


def test_wrong_sizes():
    net = tokenizer(config.PRESETS["tiny"].tokenizer)
    with pytest.raises(ValueError, match="16x18.*4"):
        net.encode(images(1, 3, 16, 18))
    with pytest.raises(ValueError, match="15x16.*4"):
        net(images(1, 3, 15, 16))
    for wrong in (-1, 64):
        with pytest.raises(ValueError, match=f"{min(wrong, 5)}..{max(wrong, 5)}.*0..63"):
            net.decode(torch.tensor([[[5, wrong]]]))


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(blocks=(1, 1, 1)), "one length"),
        (dict(decoder_blocks=(1,)), "one length"),
        (dict(quantizer="vq"), "'vq'"),
        (dict(quantizer="fsq", levels=(3, 4)), "codes=6"),
        (dict(side=9), "9.*2"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        TokenizerConfig(**{**TINY.__dict__, **wrong})


def field(settings):
    """How far, in pixels, a token sees: sum over its convolutions of (kernel - 1)/2 times the stride so far."""
    radius, jump = 1, 1
    for i, blocks in enumerate(settings.blocks):
        if i:
            radius, jump = radius + jump, 2 * jump
        radius += 2 * blocks * jump
    return radius


SMALL = config.PRESETS["tiny"].tokenizer


def test_tokens_are_local():
    net = tokenizer(SMALL).eval()
    with torch.no_grad():
        properties.is_local(net.latents, SMALL.factor, field(SMALL))


def test_tokens_under_a_norm_over_the_picture_are_not(refuses):
    net = tokenizer(SMALL).eval()
    *body, activation, last = net.encoder
    net.encoder = nn.Sequential(*body, nn.GroupNorm(2, last.in_channels), activation, last)
    with torch.no_grad():
        refuses(properties.is_local, net.latents, SMALL.factor, field(SMALL))


@pytest.mark.parametrize("overlap", [True, False])
def test_without_overlap_a_token_is_its_own_patch(overlap):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(
        TokenizerConfig(
            side=16, codes=8, code_width=4, channels=8, blocks=(0, 0, 0), overlap=overlap
        )
    ).double()
    image, f = torch.randn(1, 3, 16, 16, dtype=torch.double), 4
    changed = image.clone()
    changed[..., f : 2 * f, f : 2 * f] += 1
    with torch.no_grad():
        moved = (tokenizer.latents(image) != tokenizer.latents(changed)).any(-1)[0]
    assert moved[1, 1] and (moved.sum() == 1) == (not overlap)


def test_local_ids():
    """The same for whole ids, and for a decoder: a token far away changes no pixel here."""
    net = tokenizer(SMALL).eval()
    ids = torch.randint(64, (1, 4, 16), generator=properties.generator())
    other = ids.clone()
    other[..., 12:] = (other[..., 12:] + 1) % 64
    a, b = net.decode(ids), net.decode(other)
    moved = (a - b).abs().amax(dim=(0, 1, 2))
    assert moved[:16].max() < 1e-5 and moved[48:].max() > 1e-2


# The finetuned decoder


def grown(channels, blocks, seed=0):
    wide = TokenizerConfig(
        **{**SMALL.__dict__, "decoder_channels": channels, "decoder_blocks": blocks}
    )
    small, large = stir(Decoder(SMALL)), Decoder(wide)
    grow(small, large, torch.Generator().manual_seed(seed))
    return small, large


@pytest.mark.parametrize(
    "channels, blocks", [(16, (2, 2, 2)), (24, (1, 1, 1)), (8, (1, 3, 2)), (16, (1, 1, 2))]
)
def test_grown_decoder_starts_as_the_same_function(channels, blocks):
    small, large = grown(channels, blocks)
    code = properties.normal(2, SMALL.code_width, 4, 4)
    a, b = small(code), large(code)
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    assert a.std() > 0.1 and torch.allclose(
        a, b, rtol=1e-5, atol=1e-5 * float(a.detach().abs().max())
    ), float((a - b).abs().max())


def test_copies_of_a_channel_learn_different_things():
    _, large = grown(16, (2, 2, 2))
    large(properties.normal(2, SMALL.code_width, 4, 4)).square().mean().backward()
    for name, p in large.named_parameters():
        if p.dim() == 4 and p.shape[0] % 16 == 0 and (p.grad != 0).any():
            first, second = p.grad.chunk(2)  # rows of the two copies
            assert not torch.allclose(first, second, rtol=1e-3), (
                f"{name}: the copies get one gradient"
            )
    copies = [
        (n, *p.chunk(2, dim=1))
        for n, p in large.named_parameters()
        if p.dim() == 4 and (p != 0).any() and p.shape[1] % 16 == 0
    ]
    assert copies and all(not torch.allclose(a, b) for _, a, b in copies), (
        "what reads the copies weighs them differently"
    )


@pytest.mark.parametrize("blocks", [((0, 1, 2), (1, 2, 2)), ((0, 0, 0), (1, 0, 1))])
def test_blocks_grow_where_there_are_none(blocks):
    before, after = (
        TokenizerConfig(**{**SMALL.__dict__, "blocks": b, "channels": c})
        for b, c in zip(blocks, (8, 16))
    )
    small, large = stir(Decoder(before)), Decoder(after)
    grow(small, large, torch.Generator().manual_seed(0))
    code = properties.normal(2, SMALL.code_width, 4, 4)
    a, b = small(code), large(code)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(a.detach().abs().max())), float(
        (a - b).abs().max()
    )


@pytest.mark.parametrize(
    "channels, blocks", [(12, (1, 1, 1)), (16, (1, 0, 1)), (16, (0, 0, 0)), (4, (1, 1, 1))]
)
def test_decoders_that_cannot_grow(channels, blocks):
    """No copy of every weight, or too few blocks: an error, and not a decoder with a part of its weights."""
    with pytest.raises(ValueError):
        grown(channels, blocks)


@pytest.mark.parametrize("name", config.PRESETS)
def test_the_decoder_of_every_preset_can_grow(name):
    settings = config.PRESETS[name]
    with torch.device("meta"):
        small, large = Decoder(settings.tokenizer_hi), Decoder(settings.decoder)
    wide = [tuple(p.shape) for p in large.parameters()]
    narrow = [tuple(p.shape) for p in small.parameters()]
    assert settings.decoder_channels % settings.tokenizer_hi.channels == 0
    assert len(wide) >= len(narrow) and all(
        a >= b for a, b in zip(settings.decoder_blocks, settings.tokenizer_hi.blocks)
    )


def test_last_layer_makes_the_pixels():
    decoder = tokenizer().decoder
    assert decoder[-1].weight.shape[0] == 3
    code = rearrange(properties.normal(1, 4, 4, 4), "B h w D -> B D h w")
    (grad,) = torch.autograd.grad(decoder(code).sum(), decoder[-1].weight)
    assert (grad != 0).any()


def test_growing_follows_the_device():
    """The generator's numbers are drawn on the CPU; the weights may lie elsewhere."""
    settings = config.PRESETS["tiny"]
    with torch.device("meta"):
        small, large = Decoder(settings.tokenizer_hi), Decoder(settings.decoder)
    grow(small, large, torch.Generator().manual_seed(0))
