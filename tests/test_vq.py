"""The image tokenizer: quantizers, moving codebook, encoder, decoder, and broken versions of them.

pytest tests/test_vq.py
"""

import dataclasses
import math

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


def randomize(net, std=0.2, seed=0):
    """Give all weights random values; residual blocks start as the identity, which hides bugs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "norm" not in name:
                p.copy_(torch.randn(p.shape, generator=generator) * std)
    return net


def tokenizer(settings=TINY, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomize(ImageTokenizer(settings), seed=seed)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- Which code ---


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
    """|c|^2 - z c in place of |c|^2 - 2 z c."""
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
    """With a codebook of real size float32 rounds; the code is nearest to five digits."""
    z = properties.normal(300, 16)
    codebook = properties.normal(1024, 16, seed=1) / 4
    distance = torch.cdist(z.double(), codebook.double())
    ids = nearest(z, codebook)
    chosen = distance.gather(1, ids[:, None])[:, 0]
    assert torch.allclose(chosen, distance.amin(1), rtol=1e-5)


# --- Gradients ---


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
    errors = {"wrong side": z.detach() - code, "both": z - z.detach()}
    squares = errors.get(bug, z - code).square()
    commitment = squares.sum() if bug == "summed" else squares.mean()
    return values.get(bug, right), ids, commitment


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
    for name, p in net.named_parameters():
        assert p.grad is not None and (p.grad != 0).any(), f"{name} gets no gradient"
    before = net.quantizer.codebook.clone()
    net(images(2, 3, 8, 8, seed=1))
    assert torch.equal(net.quantizer.codebook, before), "forward moved the codebook"


# --- The moving codebook ---


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
    """EMAQuantizer with its update written another way, and one bug at a time."""

    bug = ""

    @torch.no_grad()
    def start(self, z, generator, rounds=12):
        if self.bug == "no start":
            return
        if self.bug == "one mean":
            z = z.mean(dim=(0, 1)).expand_as(z)
        if self.bug == "another generator":
            generator = None
        super().start(z, generator, rounds)

    def move_codes(self, z, ids):
        has_history = bool(self.mass.any())
        old_weight = self.decay if has_history else 0.0
        new_weight = 1 - old_weight
        if self.bug == "weights swapped" and has_history:
            old_weight, new_weight = new_weight, old_weight
        if self.bug == "no first batch" and not has_history:
            old_weight, new_weight = self.decay, 1 - self.decay

        counts = torch.bincount(ids, minlength=len(self.mass)).float()
        sums = torch.zeros_like(self.total).index_add_(0, ids, z)
        if self.bug == "means of means":
            sums = sums / counts.clamp(min=1)[:, None]
            counts = (counts > 0).float()
        self.mass.mul_(old_weight).add_(counts, alpha=new_weight)
        old_sum_weight = 1.0 if self.bug == "sum kept" else old_weight
        self.total.mul_(old_sum_weight).add_(sums, alpha=new_weight)

        mass = self.mass + 0.5 if self.bug == "large eps" else self.mass
        used = mass > 0
        self.codebook[used] = self.total[used] / mass[used, None]

    def restart_dead_codes(self, z, ids, generator):
        K, D = self.codebook.shape
        threshold = self.restart_below * len(z) / K
        dead = (self.mass < threshold).nonzero()[:, 0]
        if len(dead) == 0 or self.bug == "no restarts":
            return 0
        if self.bug == "restarts all":
            dead = torch.arange(K)
        rows = torch.randperm(len(z), generator=generator)[: len(dead)]
        if self.bug == "all on one latent":
            rows = rows[:1].expand(len(dead))
        codes = z[rows]
        if self.bug == "restarts anywhere":
            codes = torch.randn(len(dead), D, generator=generator)
        mass = 0.0 if self.bug == "dead at once" else 2 * threshold
        self.codebook[dead] = codes
        self.mass[dead] = mass
        self.total[dead] = codes * 2 * threshold
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
    """Latents are drawn by squared distance, so never one that its code already equals."""
    quantizer = make(6, 2, 0.9, 0.3)
    z = torch.cat([torch.zeros(30, 2), properties.normal(5, 2) + 3])
    ids = torch.cat([torch.zeros(30), torch.ones(5)]).long()
    assert quantizer.update(z, ids, properties.generator()) == 4
    assert (quantizer.codebook[2:].norm(dim=1) > 0.1).all()
    restarted = quantizer.update(torch.zeros(7, 2), torch.zeros(7).long(), properties.generator())
    assert restarted == 0, "all latents have a code"


def test_restarts_keep_a_codebook_in_use():
    """Eight clusters of latents, and codes far from seven of them: they need restarts."""
    generator = properties.generator()
    centres = properties.normal(8, 4, seed=5) * 4
    used = {}
    for below in (0.0, 0.1):
        quantizer = make(8, 4, 0.9, below)
        quantizer.codebook.mul_(0.01)
        for _ in range(30):
            clusters = torch.randint(8, (64,), generator=generator)
            z = centres[clusters] + 0.1 * torch.randn(64, 4, generator=generator)
            ids = quantizer.nearest(z)
            quantizer.update(z, ids, generator)
        used[below] = perplexity(quantizer.nearest(z), 8)
    value_without, used_without = used[0.0]
    value_with, used_with = used[0.1]
    assert used_with == 8 and used_without < 8 and value_without < value_with


def codes_that_occur(ids, codes):
    used = len(ids.unique())
    return float(used), used


def all_codes_are_used(ids, codes):
    value, _ = perplexity(ids, codes)
    return value, codes


def entropy(ids, codes):
    value, used = perplexity(ids, codes)
    return math.log(value), used


def test_perplexity(refuses):
    properties.perplexity_is_bounded(perplexity)
    for planted in (codes_that_occur, all_codes_are_used, entropy):
        refuses(properties.perplexity_is_bounded, planted)


# --- FSQ ---


def test_fsq():
    properties.every_id_is_reachable(FSQuantizer)
    properties.rounds_with_a_gradient(FSQuantizer)


class Reversed(FSQuantizer):
    """Ids in one order of digits, look-up in the other."""

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
    for planted in (Reversed, OneShort):
        refuses(properties.every_id_is_reachable, planted)
    refuses(properties.rounds_with_a_gradient, NoGradient)


def test_an_fsq_tokenizer_can_use_its_codes():
    """Nothing before the quantizer may take away codes, as a norm over two channels would."""
    ids = []
    for seed in range(8):
        net = tokenizer(FSQ, seed)
        ids.append(net.quantizer.nearest(net.latents(2 * images(4, 3, 8, 8, seed=seed))))
    _, used = perplexity(torch.cat(ids), FSQ.codes)
    assert used > FSQ.codes / 2, f"eight random encoders reach {used} of {FSQ.codes} codes"


# --- The tokenizer ---


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_shapes_and_round_trip(settings):
    net = tokenizer(settings).eval()
    real = images(3, 3, 8, 12)
    fake, z, ids, commitment = net(real)
    assert fake.shape == real.shape
    assert z.shape == (3, 4, 6, settings.code_width)
    assert commitment.shape == ()
    assert ids.shape == (3, 4, 6) and ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < settings.codes
    encoded = net.encode(real)
    decoded = net.decode(ids)
    assert torch.equal(encoded, ids)
    assert torch.allclose(decoded, fake.clamp(-1, 1), atol=1e-5) and decoded.abs().max() <= 1
    assert not encoded.requires_grad and not decoded.requires_grad


def test_batch_split_is_the_whole():
    net = tokenizer().eval()
    real = images(5, 3, 8, 8)
    ids = net.encode(real)
    assert torch.equal(torch.cat([net.encode(real[:2]), net.encode(real[2:])]), ids)
    net.double()  # a convolution of another batch may round in another way
    decoded_in_parts = torch.cat([net.decode(ids[:1]), net.decode(ids[1:])])
    assert torch.allclose(decoded_in_parts, net.decode(ids), atol=1e-6)


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_ids_do_not_depend_on_autocast(settings):
    net = tokenizer(settings).eval()
    real = images(32, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net.quantizer.nearest(net.latents(real))
        ids = net.encode(real)
    assert torch.equal(ids, net.encode(real))
    assert not torch.equal(ids, rounded), "in bf16 all codes are as in fp32: this test cannot fail"


@pytest.mark.parametrize("settings", [TINY, FSQ])
def test_state_dict_round_trip(settings):
    net, other = tokenizer(settings), tokenizer(settings, seed=1)
    real = images(2, 3, 8, 8)
    if settings is TINY:
        net.quantizer.update(net.latents(real).detach(), net.encode(real), properties.generator())
    assert not torch.equal(other(real)[0], net(real)[0])
    other.load_state_dict(net.state_dict(), strict=True)
    for a, b in zip(net(real), other(real), strict=True):
        assert torch.equal(a, b)


def test_wrong_sizes():
    net = tokenizer(config.PRESETS["tiny"].tokenizer)
    with pytest.raises(ValueError, match="16x18.*4"):
        net.encode(images(1, 3, 16, 18))
    with pytest.raises(ValueError, match="15x16.*4"):
        net(images(1, 3, 15, 16))
    with pytest.raises(ValueError, match="-1..5.*0..63"):
        net.decode(torch.tensor([[[5, -1]]]))
    with pytest.raises(ValueError, match="5..64.*0..63"):
        net.decode(torch.tensor([[[5, 64]]]))


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
        dataclasses.replace(TINY, **wrong)


def receptive_radius(settings):
    """How many pixels beyond its own a token sees: each 3x3 convolution adds the stride so far."""
    radius, stride = 1, 1
    for i, blocks in enumerate(settings.blocks):
        if i > 0:
            radius += stride
            stride *= 2
        radius += 2 * blocks * stride
    return radius


SMALL = config.PRESETS["tiny"].tokenizer


def test_tokens_are_local():
    net = tokenizer(SMALL).eval()
    with torch.no_grad():
        properties.is_local(net.latents, SMALL.factor, receptive_radius(SMALL))


def test_tokens_under_a_norm_over_the_image_are_not(refuses):
    net = tokenizer(SMALL).eval()
    *body, activation, last = net.encoder
    net.encoder = nn.Sequential(*body, nn.GroupNorm(2, last.in_channels), activation, last)
    with torch.no_grad():
        refuses(properties.is_local, net.latents, SMALL.factor, receptive_radius(SMALL))


@pytest.mark.parametrize("overlap", [True, False])
def test_without_overlap_a_token_is_its_own_patch(overlap):
    torch.manual_seed(0)
    settings = TokenizerConfig(
        side=16, codes=8, code_width=4, channels=8, blocks=(0, 0, 0), overlap=overlap
    )
    net = ImageTokenizer(settings).double()
    image = torch.randn(1, 3, 16, 16, dtype=torch.double)
    changed = image.clone()
    changed[..., 4:8, 4:8] += 1  # the patch of token 1, 1
    with torch.no_grad():
        moved = (net.latents(image) != net.latents(changed)).any(-1)[0]
    assert moved[1, 1]
    if overlap:
        assert moved.sum() > 1
    else:
        assert moved.sum() == 1


def test_local_ids():
    """The decoder is local, too: a token far away changes no pixel here."""
    net = tokenizer(SMALL).eval()
    ids = torch.randint(64, (1, 4, 16), generator=properties.generator())
    other = ids.clone()
    other[..., 12:] = (other[..., 12:] + 1) % 64
    a, b = net.decode(ids), net.decode(other)
    moved = (a - b).abs().amax(dim=(0, 1, 2))
    assert moved[:16].max() < 1e-5 and moved[48:].max() > 1e-2


# --- The finetuned decoder ---


def grown(channels, blocks, seed=0):
    wide = dataclasses.replace(SMALL, decoder_channels=channels, decoder_blocks=blocks)
    small, large = randomize(Decoder(SMALL)), Decoder(wide)
    grow(small, large, torch.Generator().manual_seed(seed))
    return small, large


def assert_same_function(small, large):
    code = properties.normal(2, SMALL.code_width, 4, 4)
    a, b = small(code).detach(), large(code).detach()
    gap = float((a - b).abs().max())
    scale = float(a.abs().max())
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * scale), f"outputs differ by up to {gap}"
    return a


@pytest.mark.parametrize(
    "channels, blocks", [(16, (2, 2, 2)), (24, (1, 1, 1)), (8, (1, 3, 2)), (16, (1, 1, 2))]
)
def test_grown_decoder_starts_as_the_same_function(channels, blocks):
    small, large = grown(channels, blocks)
    assert sum(p.numel() for p in large.parameters()) > sum(p.numel() for p in small.parameters())
    output = assert_same_function(small, large)
    assert output.std() > 0.1


def test_copies_of_a_channel_learn_different_things():
    _, large = grown(16, (2, 2, 2))
    large(properties.normal(2, SMALL.code_width, 4, 4)).square().mean().backward()
    for name, p in large.named_parameters():
        if p.dim() == 4 and p.shape[0] % 16 == 0 and (p.grad != 0).any():
            first, second = p.grad.chunk(2)  # output channels of the two copies
            assert not torch.allclose(first, second, rtol=1e-3), f"{name}: copies get one gradient"


def test_layers_weight_the_copies_of_a_channel_differently():
    _, large = grown(16, (2, 2, 2))
    checked = 0
    for name, p in large.named_parameters():
        if p.dim() == 4 and p.shape[1] % 16 == 0 and (p != 0).any():
            first, second = p.chunk(2, dim=1)  # input channels of the two copies
            assert not torch.allclose(first, second), f"{name}: copies have equal weights"
            checked += 1
    assert checked > 0


@pytest.mark.parametrize("blocks", [((0, 1, 2), (1, 2, 2)), ((0, 0, 0), (1, 0, 1))])
def test_blocks_grow_where_there_are_none(blocks):
    few, many = blocks
    small = randomize(Decoder(dataclasses.replace(SMALL, blocks=few, channels=8)))
    large = Decoder(dataclasses.replace(SMALL, blocks=many, channels=16))
    grow(small, large, torch.Generator().manual_seed(0))
    assert_same_function(small, large)


@pytest.mark.parametrize(
    "channels, blocks", [(12, (1, 1, 1)), (16, (1, 0, 1)), (16, (0, 0, 0)), (4, (1, 1, 1))]
)
def test_decoders_that_cannot_grow(channels, blocks):
    """Widths that are no multiples, or too few blocks, raise an error."""
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
    assert len(wide) >= len(narrow)
    for large_blocks, small_blocks in zip(
        settings.decoder_blocks, settings.tokenizer_hi.blocks, strict=True
    ):
        assert large_blocks >= small_blocks


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
