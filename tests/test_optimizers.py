"""Which parameter is trained by which optimizer, what decays, and what is clipped together.

pytest tests/test_optimizers.py
"""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file
from torch import nn

from minimuse.plumbing import config
from minimuse.plumbing.checkpoint import previous, restore_checkpoint, save_checkpoint
from minimuse.plumbing.files import digest
from minimuse.plumbing.muon import Muon
from minimuse.plumbing.optimizers import clip_gradients, make_optimizers
from minimuse.plumbing.parts import build
from minimuse.train import set_step
from minimuse.vq_loss import ImageLoss, LossWeights

TINY = config.PRESETS["tiny"]


def part(name, settings=TINY):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(name, settings, 16)


def with_discriminator(name):
    """A tokenizer or decoder as it is trained, with the loss that holds its discriminator."""
    loss = ImageLoss(replace(LossWeights(), discriminator_channels=4), None)
    return nn.ModuleDict({"part": part(name), "loss": loss})


def names_of(model, parameters):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in parameters}


def assigned(model, settings):
    """For each parameter's name: (class of its optimizer, its weight decay, its learning rate)."""
    result = {}
    for optimizer in make_optimizers(model, settings):
        for group in optimizer.param_groups:
            for name in names_of(model, group["params"]):
                assert name not in result, f"{name} is in two groups"
                kind = type(optimizer).__name__
                result[name] = (kind, group["weight_decay"], optimizer.defaults["lr"])
    return result


BASE = """
decoder.blocks.0.cross_attention.kv.weight decoder.blocks.0.cross_attention.out.weight
decoder.blocks.0.cross_attention.q.weight decoder.blocks.0.mlp.0.weight
decoder.blocks.0.mlp.2.weight decoder.blocks.0.self_attention.out.weight
decoder.blocks.0.self_attention.qkv.weight
"""


def test_parameters_of_the_base_model_by_name():
    """Muon gets the matrices of blocks alone; of the others, only matrices decay."""
    model = part("base", config.override(TINY, ["base.layers=1"]))
    got = assigned(model, TINY.stages.base)
    assert set(got) == {name for name, _ in model.named_parameters()}
    assert {name for name, (kind, _, _) in got.items() if kind == "Muon"} == set(BASE.split())
    decaying = {name for name, (_, decay, _) in got.items() if decay > 0}
    others = {"text.0.weight", "decoder.head.0.weight", "decoder.head.3.weight"}
    assert decaying == set(BASE.split()) | others
    tables = {
        "decoder.embedding.weight",
        "decoder.positions.rows",
        "decoder.positions.columns",
        "decoder.blocks.0.self_attention.biases.0.weight",
    }
    assert tables <= set(got) - decaying


@pytest.mark.parametrize("name", ["base", "superres"])
@pytest.mark.parametrize("muon_lr", [0.0, 0.025])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_tables_norms_and_biases_are_never_matrices(name, muon_lr, optimizer):
    model = part(name)
    settings = replace(getattr(TINY.stages, name), muon_lr=muon_lr, optimizer=optimizer)
    got = assigned(model, settings)
    assert set(got) == {name for name, _ in model.named_parameters()}
    for name, (kind, decay, _) in got.items():
        words = ("norm", "bias", "embedding", "positions", "text.1", "head.2")
        is_matrix = not any(word in name for word in words)
        assert (decay > 0) == is_matrix, name
        assert (kind == "Muon") == (is_matrix and "blocks" in name and muon_lr > 0), name


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_hi", "decoder"])
def test_convolutions_decay_and_their_biases_do_not(name):
    model = with_discriminator(name)
    for name, (kind, decay, _) in assigned(model, TINY.stages.tokenizer).items():
        assert kind == "AdamW"
        assert (decay > 0) == (not name.endswith("bias")), name


def test_a_position_bias_moves_as_a_vector():
    """Muon would move all heads' tables by orthogonal updates, whatever their gradients."""
    model = part("base")
    table = model.decoder.blocks[0].self_attention.biases[0].weight
    before = table.detach().clone()
    optimizers = make_optimizers(model, TINY.stages.base)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    table.grad[0, :3] = torch.tensor([1.0, -2.0, 3.0])
    for optimizer in optimizers:
        optimizer.step()
    moved = table.detach() - before
    assert torch.equal(moved != 0, table.grad != 0)
    lr = TINY.stages.base.lr
    assert torch.allclose(moved[0, :3], -lr * table.grad[0, :3].sign(), rtol=1e-3)


# --- Weight decay ---
def test_muons_weight_decay_is_decoupled():
    matrix = nn.Parameter(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)))
    twin = nn.Parameter(matrix.detach().clone())
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    before = matrix.detach().clone()
    matrix.grad, twin.grad = gradient, gradient.clone()
    Muon([matrix], lr=0.1, weight_decay=0.5).step()
    Muon([twin], lr=0.1).step()
    assert torch.allclose(matrix, twin - 0.1 * 0.5 * before, atol=1e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="came with torch 2.9")
def test_muons_weight_decay_is_pytorchs(monkeypatch):
    monkeypatch.setattr("minimuse.plumbing.muon.gains_by_bf16", lambda matrix: False)
    start = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    our_muon = Muon([ours], lr=0.1, weight_decay=0.3)
    their_muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3)
    for step in range(5):
        gradient = torch.randn(24, 40, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient, gradient.clone()
        our_muon.step()
        their_muon.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


# --- The discriminator ---
def gradients(model, size_of_discriminator):
    for name, p in model.named_parameters():
        p.grad = torch.ones_like(p)
        if name.startswith("loss."):
            p.grad.mul_(size_of_discriminator)


def norm_of(model, prefix):
    grads = [p.grad for name, p in model.named_parameters() if name.startswith(prefix)]
    return float(torch.cat([g.flatten() for g in grads]).norm())


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_hi", "decoder"])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_discriminator_has_a_norm_of_its_own(name, size):
    """However large its gradients, the tokenizer's are scaled to the same norm."""
    model = with_discriminator(name)
    gradients(model, size)
    raw = norm_of(model, "loss.")
    assert clip_gradients(model)
    assert norm_of(model, "part.") == pytest.approx(1, abs=1e-3)
    assert norm_of(model, "loss.") == pytest.approx(min(1, raw), abs=1e-3)


@pytest.mark.parametrize("prefix", ["part.", "loss."])
def test_a_gradient_that_is_not_finite_is_noticed_in_both(prefix):
    model = with_discriminator("tokenizer")
    gradients(model, 1.0)
    first = next(p for name, p in model.named_parameters() if name.startswith(prefix))
    first.grad[0] = float("nan")
    assert not clip_gradients(model)


def test_before_the_discriminator_begins_it_has_no_gradients():
    model = with_discriminator("tokenizer")
    for p in model["part"].parameters():
        p.grad = torch.ones_like(p)
    assert clip_gradients(model)
    assert norm_of(model, "part.") == pytest.approx(1, abs=1e-3)


def test_a_discriminator_has_settings_of_its_own():
    model = with_discriminator("tokenizer")
    settings = replace(
        TINY.stages.tokenizer, lr=0.1, discriminator_lr=0.02, discriminator_betas=(0.5, 0.9)
    )
    own, discriminator = make_optimizers(model, settings)
    of_discriminator = [p for group in discriminator.param_groups for p in group["params"]]
    expected = {name for name, _ in model.named_parameters() if name.startswith("loss.")}
    assert names_of(model, of_discriminator) == expected
    assert {group["betas"] for group in discriminator.param_groups} == {(0.5, 0.9)}
    assert {group["betas"] for group in own.param_groups} == {settings.betas}
    set_step([own, discriminator], replace(settings, steps=10, warmup=0.2), 0)
    assert {group["lr"] for group in own.param_groups} == {0.05}
    assert {group["lr"] for group in discriminator.param_groups} == {0.01}
    own, discriminator = make_optimizers(model, replace(settings, discriminator_lr=0.0))
    assert discriminator.defaults["lr"] == own.defaults["lr"] == 0.1


# --- Checkpoints ---
def step_once(model, optimizers, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    for optimizer in optimizers:
        optimizer.step()


@pytest.mark.parametrize("name", ["base", "tokenizer"])
def test_every_group_is_saved_and_restored(name, tmp_path):
    """A training that is restored goes on as one that never stopped, in every group."""
    settings = getattr(TINY.stages, name)
    models = [part(name) if name == "base" else with_discriminator(name) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [make_optimizers(model, settings) for model in models]
    path, average = tmp_path / "c.safetensors", models[0].state_dict()
    step_once(models[0], optimizers[0], 0)
    save_checkpoint(path, 1, models[0], average, optimizers[0], {})
    assert restore_checkpoint(path, models[1], dict(average), optimizers[1], {}) == 1
    for model, some in zip(models, optimizers, strict=True):
        step_once(model, some, 1)
    for (key, a), b in zip(
        models[0].state_dict().items(), models[1].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key


def test_a_checkpoint_of_an_older_version_is_refused_with_a_remedy_that_works(tmp_path):
    model, path = part("base"), tmp_path / "base.checkpoint.safetensors"
    optimizers = make_optimizers(model, TINY.stages.base)
    average = model.state_dict()
    for step in (1, 2):  # the second leaves the first one beside it
        save_checkpoint(path, step, model, average, optimizers, {})
        with safe_open(path, "pt") as file:
            header = file.metadata()
        del header["format"]
        tensors = load(path.read_bytes())  # copies, since the file is written again
        del header["sha256"]
        save_file(tensors, path, header | {"sha256": digest(tensors, header)})
    with pytest.raises(ValueError, match="another version of minimuse") as error:
        restore_checkpoint(path, model, dict(average), optimizers, {})
    for file in (path, previous(path)):
        assert str(file) in str(error.value)
        file.unlink()
    assert restore_checkpoint(path, model, dict(average), optimizers, {}) == 0
