"""Distillation into one pass: its loss, its training, and how a student draws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimuse import Muse, edit
from minimuse.beyond import distill
from minimuse.beyond.distill import distillation_loss, kl, matching_gradient
from minimuse.beyond.random_start import partly_random
from minimuse.cli import main
from minimuse.data import Tokens
from minimuse.decode import Sampling
from minimuse.maskgit import BaseConfig, MaskGit, hide
from minimuse.plumbing.optimizers import make_optimizers
from minimuse.runs import distillation

CAPTION = "a small red circle on a grey background"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- The start ---
@given(B=st.integers(1, 5), N=st.integers(1, 20), K=st.integers(2, 9), fraction=st.floats(0, 1))
def test_a_start_hides_exactly_the_fraction(B, N, K, fraction):
    ids = partly_random(B, N, K, fraction, seeded(0))
    assert ids.shape == (B, N) and ids.min() >= 0 and ids.max() <= K
    assert ((ids == K).sum(1) == math.ceil(fraction * N)).all()


def test_random_codes_are_uniform_at_every_position():
    ids = partly_random(4000, 6, 3, 0.5, seeded(0))
    for position in range(6):
        counts = torch.bincount(ids[:, position], minlength=4) / 4000
        torch.testing.assert_close(counts[3], torch.tensor(0.5), atol=0.03, rtol=0)
        torch.testing.assert_close(counts[:3], torch.full((3,), 1 / 6), atol=0.03, rtol=0)


# --- The loss ---
def test_the_covering_gradient_is_that_of_the_divergence():
    student, teacher, auxiliary = torch.randn(3, 7, 5, generator=seeded(1))
    auxiliary.requires_grad_(True)
    (expected,) = torch.autograd.grad(7 * kl(teacher, auxiliary), auxiliary)
    found = matching_gradient(student, teacher, auxiliary, seeking=0.0)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


def test_the_seeking_gradient_is_that_of_the_divergence_of_the_student():
    """Where the auxiliary model has learnt what the student says, it is KL(s || p)'s gradient."""
    student, teacher = torch.randn(2, 7, 5, generator=seeded(1))
    student.requires_grad_(True)
    (expected,) = torch.autograd.grad(7 * kl(student, teacher), student)
    found = matching_gradient(student, teacher, student.detach(), seeking=1.0)
    torch.testing.assert_close(found, expected)


def test_a_code_that_the_teacher_rules_out_weighs_at_most_so_much():
    even = torch.zeros(1, 2)
    ruled_out = torch.tensor([[0.0, -math.inf]])
    found = matching_gradient(even, ruled_out, even, seeking=1.0)
    excess = torch.tensor([[math.log(0.5), math.log(0.5) - distill.LEAST_LOG_P]])
    torch.testing.assert_close(found, (excess - excess.mean()) / 2)


class AllAlike:
    """A perfect teacher of a world whose images are 0000 or 1111, each with probability 1/2."""

    def context(self, text, visible):
        return text

    def __call__(self, ids, context, where):
        known = torch.stack([(ids == code).sum(1) for code in (0, 1)], 1)  # B K
        # Half-half where nothing is visible; a drawing with both codes gets half-half, too.
        logits = 4.0 * (known > 0)  # B K
        return logits[:, None].expand(-1, ids.shape[1], -1)[where]  # M K


def small_model(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskGit(BaseConfig(width=16, layers=2, heads=2), codes=2, grid=2, text_width=4)


def one_caption():
    words = torch.zeros(1, 4)
    return Tokens(
        [
            {
                "low": torch.zeros(1, 4),
                "text": words,
                "starts": torch.tensor([0, 1]),
                "variants": torch.tensor([0]),
                "owns": torch.tensor([0, 1]),
            }
        ]
    )


def raised_by_a_step(monkeypatch, seeking):
    """How much more likely code 1 becomes after a step, if all tokens that are drawn are 1."""
    model = nn.ModuleDict({"student": small_model(0), "auxiliary": small_model(1)})
    monkeypatch.setattr(distill, "draw", lambda logits, *_, **__: torch.ones(64, 4).long())
    tokens = one_caption()
    loss_of = distillation_loss(model, AllAlike(), tokens, 0.0, 0.5, seeking, 100, "cpu")
    student = model["student"]
    text, visible = tokens.captions(torch.zeros(64, dtype=torch.long))
    start = partly_random(64, 4, 2, 0.5, seeded(7))

    def ones():
        with torch.no_grad():
            logits = student(start, student.context(text, visible))  # B N K
        return float(logits.softmax(dim=-1)[..., 1].mean())

    before = ones()
    ((loss, _),) = loss_of(torch.zeros(64, dtype=torch.long), seeded(0), 0)
    loss.backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    return ones() - before


@pytest.mark.parametrize("seeking", [0.0, 0.5, 1.0])
def test_a_step_raises_what_fits_the_tokens_that_are_visible(monkeypatch, seeking):
    """The teacher knows that all tokens are alike, and the auxiliary model does not."""
    assert raised_by_a_step(monkeypatch, seeking) > 1e-3


@pytest.mark.parametrize(
    "planted",
    [
        lambda *models_and_seeking: -matching_gradient(*models_and_seeking),
        lambda student, *_: torch.zeros_like(student),
    ],
)
def test_a_step_the_wrong_way_is_found(monkeypatch, planted):
    monkeypatch.setattr(distill, "matching_gradient", planted)
    assert raised_by_a_step(monkeypatch, 0.5) < 1e-3


def test_only_the_student_learns_from_the_teacher_and_the_auxiliary_from_the_student():
    model = nn.ModuleDict({"student": small_model(0), "auxiliary": small_model(1)})
    loss_of = distillation_loss(model, AllAlike(), one_caption(), 0.0, 0.5, 0.5, 2, "cpu")
    ((loss, metrics),) = loss_of(torch.zeros(8, dtype=torch.long), seeded(0), 0)
    (loss - metrics["auxiliary"]).backward()
    for name, part in model.items():
        assert all(p.grad is not None for p in part.parameters()), name
    assert metrics["divergence"] > 0
    assert not metrics["auxiliary"].requires_grad


def test_fewer_tokens_are_hidden_in_the_second_half():
    tokens = one_caption()
    model = nn.ModuleDict({"student": small_model(0), "auxiliary": small_model(1)})
    shares = []

    def counted(ids, mask_id, generator, law):
        corrupted = hide(ids, mask_id, generator, law)
        shares.append(float(corrupted.hidden.float().mean()))
        return corrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "hide", counted)
        loss_of = distillation_loss(model, AllAlike(), tokens, 0.0, 0.5, 0.5, 4, "cpu")
        for step in range(4):
            list(loss_of(torch.zeros(500, dtype=torch.long), seeded(step), step))
    # Of 4 tokens, rounded up.
    assert min(shares[:2]) > 0.7 and max(shares[2:]) < 0.5, shares


# --- The training ---
@pytest.fixture(scope="module")
def one_pass(tiny_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("distilled") / "one"
    argv = ["train", "distill", "--start", str(tiny_model), "--out", str(out)]
    assert main([*argv, "stages.base.steps=6", "stages.base.batch=4"]) == 0
    return out


def test_the_student_is_a_whole_model(one_pass, tiny_model):
    muse, teacher = Muse.load(one_pass), Muse.load(tiny_model)
    assert muse.config.sampling == distillation.ONE_PASS
    for name in ("tokenizer", "superres", "decoder"):
        mine, theirs = muse.parts[name].state_dict(), teacher.parts[name].state_dict()
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    base = zip(muse.base.parameters(), teacher.base.parameters(), strict=True)
    assert not all(torch.equal(mine, theirs) for mine, theirs in base)


def test_it_draws_in_one_pass_from_random_codes(one_pass, monkeypatch):
    muse = Muse.load(one_pass)
    seen = []
    forward = muse.base.forward

    def watched(ids, *rest):
        seen.append(ids)
        return forward(ids, *rest)

    monkeypatch.setattr(muse.base, "forward", watched)
    low, high = muse.draw([CAPTION] * 3, seed=5)
    (ids,) = seen
    N, mask = ids.shape[1], muse.base.mask_id
    assert ((ids == mask).sum(1) == math.ceil(0.6 * N)).all()
    # Image i is that of the seed + i, alone or in a batch.
    alone, _ = muse.draw([CAPTION], seed=7)
    torch.testing.assert_close(alone[0], low[2], atol=1e-5, rtol=0)
    assert not torch.equal(low[0], low[1])


def test_a_training_that_was_stopped_ends_the_same(one_pass, tiny_model, tmp_path):
    out = tmp_path / "resumed"
    settings = ["stages.base.steps=6", "stages.base.batch=4"]
    distillation.begin_distillation(out, tiny_model, settings, None)
    steps = distillation.distill(out)
    for _ in range(3):
        record = next(steps)
    record.save()
    steps.close()
    assert not (out / "base.safetensors").is_file()
    assert main(["train", "distill", "--out", str(out), "--resume"]) == 0
    mine, theirs = Muse.load(out).base, Muse.load(one_pass).base
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_distilled(fails, one_pass, tiny_model, tmp_path):
    new = tmp_path / "new"
    assert "needs a teacher" in fails("train", "distill", "--out", new)
    assert "in one pass already" in fails("train", "distill", "--start", one_pass, "--out", new)
    again = fails("train", "distill", "--start", tiny_model, "--out", one_pass)
    assert "exists already" in again
    argv = ("train", "distill", "--start", tiny_model, "--out", new)
    assert "leave it out" in fails(*argv, "--preset", "tiny")
    assert "random_codes is 0" in fails(*argv, "sampling.random_codes=0")
    assert "has the base of its teacher" in fails(*argv, "base.width=64")
    assert not new.exists()
    going_on = ("train", "distill", "--resume", "--out", one_pass)
    for changed in (("--seed", "7"), ("--start", tiny_model), ("stages.base.steps=6",)):
        assert "goes on as it began" in fails(*going_on, *changed)


def test_what_one_pass_cannot_do(one_pass):
    muse = Muse.load(one_pass)
    with pytest.raises(ValueError, match="steps is 4; with random_codes above 0 it must be 1"):
        muse.generate(CAPTION, steps=4)
    with pytest.raises(ValueError, match="random_codes"):
        Sampling(steps=2, random_codes=0.4)
    (image,) = muse.generate(CAPTION)
    mask = image.convert("L").point(lambda _: 0)
    mask.paste(255, (0, 0, 8, 8))
    with pytest.raises(ValueError, match="fills no holes; take its teacher"):
        edit.inpaint(muse, image, mask, CAPTION)


def test_the_auxiliary_model_has_a_rate_of_its_own():
    model = nn.ModuleDict({"student": small_model(0), "auxiliary": small_model(1)})
    settings = distillation.STUDENT
    mine, rival = make_optimizers(model, settings)
    assert mine.defaults["lr"] == settings.lr < rival.defaults["lr"] == settings.discriminator_lr
    groups = {"student": mine, "auxiliary": rival}
    for name, optimizer in groups.items():
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in model[name].parameters()}
