"""Properties of the losses (`maskgit.masked_token_loss`, `vq_loss.py`)."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from minimuse.checks.compare import assert_same
from torch import nn

seeds = st.integers(0, 2**31 - 1)


def is_one_mean_over_hidden_tokens(masked_token_loss):
    """The mean of -log p(true id) over all hidden tokens of the batch (Muse, section 2.3).

    masked_token_loss(logits (M, K), ids (B, N), hidden (B, N)) -> (loss, accuracy), M hidden
    tokens. A mean of the rows' means would weight a token more, the fewer its row hides.
    """

    @given(seeds, st.integers(1, 4), st.integers(1, 6), st.integers(2, 5))
    @example(0, 2, 6, 3)
    def check(seed, B, N, K):
        draw = torch.Generator().manual_seed(seed)
        full = torch.randn(B, N, K, generator=draw) * 3
        ids = torch.randint(K, (B, N), generator=draw)
        hidden = torch.rand(B, N, generator=draw) < torch.rand(B, 1, generator=draw)
        hidden[0, 0] = True
        loss, correct = masked_token_loss(full[hidden], ids, hidden)
        costs, right = [], []
        for logits, true in zip(full[hidden].tolist(), ids[hidden].tolist(), strict=True):
            costs.append(math.log(sum(math.exp(x - logits[true]) for x in logits)))
            right.append(max(logits) == logits[true])
        mean = sum(costs) / len(costs)
        assert math.isclose(float(loss), mean, rel_tol=1e-4, abs_tol=1e-5), (
            f"loss {float(loss)}, not {mean}; hidden {hidden.tolist()}"
        )
        fraction = sum(right) / len(right)
        assert math.isclose(float(correct), fraction, rel_tol=1e-5), (
            f"{sum(right)} of {len(right)} guesses are right: {float(correct)}, not {fraction}"
        )

    check()
    logits = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss, _ = masked_token_loss(logits, torch.tensor([[1]]), torch.tensor([[True]]))
    assert abs(float(loss.detach()) - 1000) < 1e-2, (
        f"logits 1000 and 0, the second is true: the loss is {float(loss.detach())}, not 1000"
    )
    assert loss.requires_grad, "the loss has no gradient"
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_same(gradient, [[1.0, -1.0]], "logits 1000 and 0: their gradient", atol=1e-4)


def does_not_depend_on_the_split(masked_token_loss):
    """Losses of two parts of a batch, weighted by hidden tokens, average to that of the whole."""

    @given(seeds)
    def check(seed):
        draw = torch.Generator().manual_seed(seed)
        full = torch.randn(4, 8, 5, generator=draw)
        ids = torch.randint(5, (4, 8), generator=draw)
        hidden = torch.rand(4, 8, generator=draw) < torch.tensor([[0.2], [0.9], [0.5], [0.7]])
        hidden[:, 0] = True
        whole, _ = masked_token_loss(full[hidden], ids, hidden)
        weighted = 0.0
        for rows in (slice(0, 1), slice(1, 4)):
            part, _ = masked_token_loss(full[rows][hidden[rows]], ids[rows], hidden[rows])
            weighted = weighted + part * hidden[rows].sum()
        case = f"hidden {hidden.int().tolist()}: the mean of both parts' losses"
        assert_same(weighted / hidden.sum(), whole, case, rtol=1e-5, atol=1e-5)

    check()


def is_the_hinge(discriminator_loss):
    """discriminator_loss(real, fake) averages max(0, 1 - real) and max(0, 1 + fake): by hand."""
    by_hand = [
        ([2.0, 5.0], [-3.0, -1.0], 0.0),
        ([1.0], [-1.0], 0.0),
        ([0.0], [0.0], 1.0),
        ([-1.0], [1.0], 2.0),
        ([0.5, 3.0], [-2.0, -0.5], 0.25),
        ([0.0], [-4.0], 0.5),
        ([4.0], [0.0], 0.5),
    ]
    for real, fake, wanted in by_hand:
        got = float(discriminator_loss(torch.tensor(real), torch.tensor(fake)))
        assert abs(got - wanted) < 1e-6, f"real {real}, fake {fake}: {got}, not {wanted}"


def raises_the_judged_logits(generator_loss):
    """generator_loss(fake) is minus the mean logit: it falls with the same slope everywhere."""
    fake = torch.tensor([[-7.0, 0.0], [1.0, 30.0]], requires_grad=True)
    loss = generator_loss(fake)
    (grad,) = torch.autograd.grad(loss, fake)
    answer = f"loss {loss.item()}, gradient {grad.tolist()}"
    assert abs(loss.item() + 6.0) < 1e-6, answer
    assert torch.allclose(grad, torch.full_like(fake, -0.25)), answer


def balances_gradients(adaptive_weight):
    """The weight gives both losses gradients of one norm at the last layer (VQGAN, section 3.1).

    adaptive_weight(reconstruction, adversarial, last_layer) = |gradient of the reconstruction| /
    |gradient of the adversarial loss|. It is finite for a zero gradient, and autograd takes it for
    a constant.
    """

    @given(st.floats(0.1, 10), st.floats(0.1, 10))
    @example(1.0, 4.0)
    def check(a, b):
        layer = torch.tensor([3.0, 4.0], requires_grad=True)
        reconstruction = a * layer.square().sum() / 2  # gradient a (3, 4)
        adversarial = b * layer.sum()  # gradient b (1, 1)
        weight = adaptive_weight(reconstruction, adversarial, layer)
        assert not weight.requires_grad, "autograd must take the weight for a constant"
        long, short = 5 * a, b * math.sqrt(2)
        assert math.isclose(float(weight), long / short, rel_tol=0.02), (
            f"weight {float(weight)} for gradients {long} and {short}"
        )
        (scaled,) = torch.autograd.grad(weight * adversarial, layer)
        assert math.isclose(float(scaled.norm()), 5 * a, rel_tol=0.02), (
            "the gradients differ in length"
        )

    check()
    layer = torch.ones(2, requires_grad=True)
    for reconstruction, adversarial in (
        (layer.sum(), 0 * layer.sum()),
        (0 * layer.sum(), layer.sum()),
        (0 * layer.sum(), 0 * layer.sum()),
    ):
        weight = adaptive_weight(reconstruction, adversarial, layer)
        assert weight.isfinite() and weight <= 1e4, f"weight {float(weight)} with a zero gradient"


def keeps_the_sides_apart(image_loss, discriminator, adversarial_weight, decoder):
    """The discriminator gets the gradient of its own loss only, and the decoder of its own only.

    image_loss(fake, real, last_layer, adversarial) -> (loss, parts), with a discriminator in eval
    mode (its spectral norms do not move). decoder(z) -> images.
    """
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 16, 16, generator=draw)
    real = torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1
    last_layer = next(decoder.parameters())
    weights = list(discriminator.parameters())
    loss, _ = image_loss(decoder(z), real, last_layer, True)
    gradients = torch.autograd.grad(loss, [last_layer, *weights], allow_unused=True)
    decoder_gradient, *discriminator_gradients = gradients

    cost_of_real = torch.relu(1 - discriminator(real)).mean()
    cost_of_fake = torch.relu(1 + discriminator(decoder(z).detach())).mean()
    expected = torch.autograd.grad((cost_of_real + cost_of_fake) / 2, weights)
    for got, wanted in zip(discriminator_gradients, expected, strict=True):
        assert got is not None and torch.allclose(got, wanted, atol=1e-6), (
            "the discriminator gets more, or less, than its own gradient"
        )

    fake = decoder(z)
    pixel, _ = image_loss(fake, real, last_layer, False)
    judged = -discriminator(fake).mean()
    (g_pixel,) = torch.autograd.grad(pixel, last_layer, retain_graph=True)
    (g_judged,) = torch.autograd.grad(judged, last_layer, retain_graph=True)
    scale = g_pixel.norm() / (g_judged.norm() + 1e-4)
    wanted = g_pixel + adversarial_weight * scale * g_judged
    assert torch.allclose(decoder_gradient, wanted, rtol=1e-3, atol=1e-6), (
        "the decoder gets more, or less, than its own gradient"
    )
    assert all(p.requires_grad for p in weights), "the discriminator stays frozen"


class OneLayer(nn.Conv2d):
    """The smallest decoder: (B, 4, H, W) -> (B, 3, H, W)."""

    def __init__(self):
        super().__init__(4, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-0.5, 0.5, 12).view(3, 4, 1, 1))
            self.bias.zero_()
