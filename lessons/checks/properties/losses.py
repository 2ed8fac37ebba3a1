"""Properties of the losses (`maskgit.masked_token_loss`, `vq_loss.py`)."""

import math

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

seeds = st.integers(0, 2**31 - 1)


def is_one_mean_over_hidden_tokens(masked_token_loss):
    """-log p(true id), averaged over all hidden tokens of the batch and over nothing else (Muse, section 2.3).

    masked_token_loss(logits (M, K), ids (B, N), hidden (B, N)) -> (loss, share right). A mean of the rows'
    means gives a token more weight the fewer are hidden beside it.
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
        for b in range(B):
            for n in range(N):
                if hidden[b, n]:
                    row, true = full[b, n].tolist(), int(ids[b, n])
                    costs.append(math.log(sum(math.exp(x - row[true]) for x in row)))
                    right.append(max(row) == row[true])
        mean = sum(costs) / len(costs)
        assert math.isclose(float(loss), mean, rel_tol=1e-4, abs_tol=1e-5), (
            f"loss {float(loss)}, not {mean}; hidden {hidden.tolist()}"
        )
        assert math.isclose(float(correct), sum(right) / len(right), rel_tol=1e-5)

    check()
    logits = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss, _ = masked_token_loss(logits, torch.tensor([[1]]), torch.tensor([[True]]))
    assert abs(float(loss.detach()) - 1000) < 1e-2, (
        f"logits 1000 and 0, the second is true: the loss is {float(loss.detach())}, not 1000"
    )
    assert loss.requires_grad, "the loss has no gradient"


def does_not_depend_on_the_split(masked_token_loss):
    """Weighed by their hidden tokens, the losses of two parts of a batch average to the loss of the whole."""

    @given(seeds)
    def check(seed):
        draw = torch.Generator().manual_seed(seed)
        full, ids = torch.randn(4, 8, 5, generator=draw), torch.randint(5, (4, 8), generator=draw)
        hidden = torch.rand(4, 8, generator=draw) < torch.tensor([[0.2], [0.9], [0.5], [0.7]])
        hidden[:, 0] = True
        whole = masked_token_loss(full[hidden], ids, hidden)[0]
        parts = [
            (masked_token_loss(full[r][hidden[r]], ids[r], hidden[r])[0], int(hidden[r].sum()))
            for r in (slice(0, 1), slice(1, 4))
        ]
        assert torch.allclose(
            sum(loss * n for loss, n in parts) / sum(n for _, n in parts), whole, atol=1e-5
        )

    check()


def is_the_hinge(discriminator_loss):
    """(max(0, 1 - real) + max(0, 1 + fake)) / 2, averaged: by hand. discriminator_loss(real, fake)."""
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
    """Falls as the fake's logits rise, with the same slope everywhere: minus their mean."""
    fake = torch.tensor([[-7.0, 0.0], [1.0, 30.0]], requires_grad=True)
    loss = generator_loss(fake)
    (grad,) = torch.autograd.grad(loss, fake)
    assert abs(loss.item() + 6.0) < 1e-6 and torch.allclose(grad, torch.full_like(fake, -0.25)), (
        f"loss {loss.item()}, gradient {grad.tolist()}"
    )


def balances_gradients(adaptive_weight):
    """|gradient of the reconstruction| / |gradient of the adversarial loss| at the last layer (VQGAN, section 3.1).

    adaptive_weight(reconstruction, adversarial, last_layer). Multiplying one loss by c moves it by c or 1/c;
    a zero gradient keeps it finite; autograd takes it for a constant.
    """

    @given(st.floats(0.1, 10), st.floats(0.1, 10))
    @example(1.0, 4.0)
    def check(a, b):
        layer = torch.tensor([3.0, 4.0], requires_grad=True)
        rec, adv = a * layer.square().sum() / 2, b * layer.sum()  # gradients a (3, 4) and b (1, 1)
        weight = adaptive_weight(rec, adv, layer)
        assert not weight.requires_grad, "autograd must take the weight for a constant"
        long, short = 5 * a, b * math.sqrt(2)
        assert math.isclose(float(weight), long / short, rel_tol=0.02), (
            f"weight {float(weight)} for gradients {long} and {short}"
        )
        scaled = torch.autograd.grad(weight * adv, layer)[0].norm()
        assert math.isclose(float(scaled), 5 * a, rel_tol=0.02), "the gradients differ in length"

    check()
    layer = torch.ones(2, requires_grad=True)
    for reconstruction, adversarial in (
        (layer.sum(), 0 * layer.sum()),
        (0 * layer.sum(), layer.sum()),
        (0 * layer.sum(), 0 * layer.sum()),
    ):
        weight = adaptive_weight(reconstruction, adversarial, layer)
        assert weight.isfinite() and weight <= 1e4, f"weight {float(weight)} with a zero gradient"


def keeps_the_sides_apart(picture_loss, discriminator, adversarial_share, decoder):
    """The discriminator gets its own loss's gradient and no other, and the decoder nothing of the discriminator's.

    picture_loss(fake, real, last_layer, adversarial) -> (loss, parts), with a discriminator in eval mode (its
    spectral norms at rest); with adversarial False, what else there is. decoder(z) -> pictures.
    """
    draw = torch.Generator().manual_seed(0)
    z, real = (
        torch.randn(2, 4, 16, 16, generator=draw),
        torch.rand(2, 3, 16, 16, generator=draw) * 2 - 1,
    )
    (last_layer, *_), judge = decoder.parameters(), list(discriminator.parameters())
    fake = decoder(z)
    loss, _ = picture_loss(fake, real, last_layer, True)
    together = torch.autograd.grad(loss, [last_layer, *judge], allow_unused=True)
    hinge = (
        torch.relu(1 - discriminator(real)).mean()
        + torch.relu(1 + discriminator(decoder(z).detach())).mean()
    ) / 2
    for got, wanted in zip(together[1:], torch.autograd.grad(hinge, judge)):
        assert got is not None and torch.allclose(got, wanted, atol=1e-6), (
            "the discriminator gets more, or less, than its own gradient"
        )
    fake = decoder(z)
    pixel, _ = picture_loss(fake, real, last_layer, False)
    judged = -discriminator(fake).mean()
    (g_pixel,), (g_judged,) = (
        torch.autograd.grad(x, last_layer, retain_graph=True) for x in (pixel, judged)
    )
    wanted = g_pixel + adversarial_share * g_pixel.norm() / (g_judged.norm() + 1e-4) * g_judged
    assert torch.allclose(together[0], wanted, rtol=1e-3, atol=1e-6), (
        "the decoder gets more, or less, than its own gradient"
    )
    assert all(p.requires_grad for p in judge), "the discriminator stays frozen"


class OneLayer(nn.Conv2d):
    """The smallest decoder: (B, 4, H, W) -> (B, 3, H, W)."""

    def __init__(self):
        super().__init__(4, 3, 1)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(-0.5, 0.5, 12).view(3, 4, 1, 1))
            self.bias.zero_()
