"""What presets cost, against counts made by hand: `pytest tests/test_describe.py`.

The paper's sizes: T5-XXL's encoder has 4,762 M parameters, the 3 B model 3.2 to 3.3 B, its
super-resolution model about 0.77 B. An image of 256 pixels at 24 guided steps takes 74.3 TFLOP with
nothing cached, and 71.3 with the text's keys and values computed once.

Letters: D width, L layers, H heads, K codes, N image tokens, T text tokens, E text width, S steps.
"""

import json

import pytest
import torch

from minimuse.cli import main
from minimuse.cli.describe import GPUS, XXL, describe
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.parts import PARTS, build
from minimuse.train import make_optimizers

T = 77
LARGE = {name: describe(name) for name in ("muse-3b", "muse-632m")}


def text_width(preset):
    return XXL.d_model if preset.startswith("muse") else 256


def test_the_papers_sizes():
    parameters, flops = LARGE["muse-3b"]["parameters"], LARGE["muse-3b"]["flops"]
    assert parameters["text"] == pytest.approx(4762.3e6, rel=1e-4)
    assert 3.2e9 < parameters["base"] < 3.3e9
    assert parameters["superres"] == pytest.approx(0.77e9, rel=0.03)
    assert flops["base_image_uncached"] == pytest.approx(74.3e12, rel=0.03)
    assert flops["base_image"] == pytest.approx(71.3e12, rel=0.03)
    assert flops["superres_image_uncached"] == pytest.approx(68.5e12, rel=0.03)
    assert flops["superres_image"] == pytest.approx(67e12, rel=0.03)
    small = LARGE["muse-632m"]["parameters"]
    assert small["base"] == pytest.approx(632e6, rel=0.02)
    assert small["superres"] == pytest.approx(268e6, rel=0.02)


def t5_by_hand(c):
    """Parameters of a T5 encoder."""
    inner = c.num_heads * c.d_kv
    mlp_matrices = 3 if c.feed_forward_proj == "gated-gelu" else 2
    layer = 4 * c.d_model * inner + mlp_matrices * c.d_model * c.d_ff + 2 * c.d_model
    embedding = c.vocab_size * c.d_model
    positions = c.relative_attention_num_buckets * c.num_heads
    last_norm = c.d_model
    return embedding + c.num_layers * layer + positions + last_norm


def base_by_hand(config, E):
    """Parameters; multiply-adds of a forward pass; those that are computed once per caption."""
    D, L, H = config.base.width, config.base.layers, config.base.heads
    K, side = config.tokenizer.codes, config.tokenizer.grid
    N = side**2
    self_attention, cross_attention, mlp = 4 * D * D, 4 * D * D, 8 * D * D
    norms, offsets = 3 * D, H * (2 * side - 1) ** 2
    block = self_attention + cross_attention + mlp + norms + offsets
    head = D * D + D + D * K + K
    parameters = E * D + D + D + (K + 1) * D + 2 * side * D + L * block + D + head
    # Scores and mixture of self-attention and cross-attention, all heads together.
    attention = 2 * N * N * D + 2 * N * T * D
    each_pass = L * (N * (3 + 1 + 1 + 1 + 8) * D * D + attention) + N * (D * D + D * K)
    once = T * E * D + L * T * 2 * D * D
    return parameters, each_pass, once


@pytest.mark.parametrize("name", ["tiny", "toy", "muse-632m", "muse-3b"])
def test_the_base_model_by_hand(name):
    config, costs = PRESETS[name], describe(name)
    parameters, each_pass, once = base_by_hand(config, text_width(name))
    S = config.sampling.steps
    flops = costs["flops"]
    assert costs["parameters"]["base"] == parameters
    assert flops["base_pass"] == 2 * (each_pass + once)
    assert flops["base_image"] == 2 * 2 * (S * each_pass + once)
    assert flops["base_image_uncached"] == 2 * 2 * S * (each_pass + once)
    assert flops["base_train_step"] == 6 * config.stages.base.batch * (each_pass + once)


@pytest.mark.parametrize("name", ["tiny", "muse-3b"])
def test_super_resolution_by_hand(name):
    config, costs = PRESETS[name], describe(name)
    model = config.superres
    E, D, L, w = text_width(name), model.width, model.layers, model.window
    grid, K = config.tokenizer_hi.grid, config.tokenizer_hi.codes
    n, N = config.tokenizer.grid**2, grid**2
    encoder = model.encoder_layers * (n * 12 * D * D + 2 * n * n * D)
    once = T * E * D + encoder + n * D * (N // n) * D + L * (n + T) * 2 * D * D
    # Two kinds of attention, each on half of the width, and twice: scores and mixture.
    multi_axis = N * (w * w + (grid // w) ** 2) * D
    each_pass = L * (N * 14 * D * D + multi_axis + 2 * N * (n + T) * D) + N * (D * D + D * K)
    assert costs["flops"]["superres_pass"] == 2 * (each_pass + once)


def test_text_and_memory_by_hand():
    costs = LARGE["muse-3b"]
    sizes, memory = costs["parameters"], costs["memory"]
    assert sizes["text"] == t5_by_hand(XXL)
    layer = T * (4 * 4096 * 4096 + 3 * 4096 * 10240) + 2 * T * T * 4096
    assert costs["flops"]["text"] == 2 * 24 * layer
    assert memory["hold"] == 2 * sum(sizes.values()) and set(sizes) == {"text", *PARTS}
    for n in GPUS:
        assert memory[f"base_adamw_on_{n}"] == pytest.approx(20 * sizes["base"] / n, abs=1)
    assert memory["base_adafactor_on_1"] == 12 * sizes["base"]


@pytest.mark.parametrize("optimizer_name, bytes_each", [("adamw", 20), ("adafactor", 12)])
def test_what_training_holds(optimizer_name, bytes_each):
    """20 bytes a parameter with AdamW, a little over 12 with Adafactor, all in float32.

    Counted in the tensors of a real step: weight, gradient, average, and the optimizer's.
    """
    settings = [
        "base.width=128",
        "stages.base.muon_lr=0",
        f"stages.base.optimizer={optimizer_name}",
    ]
    config = override(PRESETS["tiny"], settings)
    model = build("base", config, 16)
    (optimizer,) = make_optimizers(model, config.stages.base)
    ids = torch.zeros(2, 16, dtype=torch.long)
    hidden = torch.ones(2, 16, dtype=torch.bool)
    context = model.context(torch.zeros(2, 3, 16), torch.ones(2, 3, dtype=torch.bool))
    masked_token_loss(model(ids, context, hidden), ids, hidden).loss.backward()
    optimizer.step()
    state = sum(x.numel() for values in optimizer.state.values() for x in values.values())
    size = sum(p.numel() for p in model.parameters())
    counted = 4 * (3 * size + state)
    assert bytes_each * size <= counted < 1.02 * bytes_each * size


def test_the_command(capsys, tmp_path):
    assert main(["describe", "small", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs == describe("small") and set(costs) == {"parameters", "flops", "memory"}
    assert all(isinstance(value, int) for group in costs.values() for value in group.values())
    assert main(["describe", "muse-3b"]) == 0
    text = capsys.readouterr().out
    assert "3,268.480 M" in text and "71.520 TFLOP" in text
    assert len(text.splitlines()) == sum(len(group) for group in LARGE["muse-3b"].values())


def test_the_command_with_another_text_encoder(capsys, tmp_path):
    small = dict(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    (tmp_path / "config.json").write_text(json.dumps(small))
    assert main(["describe", "toy", "--t5", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["text"] < 1e5
    assert main(["describe", "toy", "--t5", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_three_billion_parameters_run():
    """The whole base model's forward pass in bf16 (6.5 GB)."""
    config = PRESETS["muse-3b"]
    ids, hidden = torch.randint(8192, (1, 256)), torch.rand(1, 256) < 0.6
    text, visible = torch.randn(1, T, 4096), torch.ones(1, T, dtype=torch.bool)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.no_grad():
            model = build("base", config, 4096)
            context = model.context(text.bfloat16(), visible)
            logits = model(ids.masked_fill(hidden, 8192), context, hidden)
    finally:
        torch.set_default_dtype(torch.float32)
    assert logits.shape == (int(hidden.sum()), 8192) and logits.isfinite().all()


@pytest.mark.slow
def test_four_layers_of_the_three_billion_model_learn():
    config = override(PRESETS["muse-3b"], ["base.layers=4"])
    ids, hidden = torch.randint(8192, (1, 256)), torch.rand(1, 256) < 0.6
    text, visible = torch.randn(1, T, 4096), torch.ones(1, T, dtype=torch.bool)
    model = build("base", config, 4096)
    (optimizer,) = make_optimizers(model, config.stages.base)
    losses = []
    for _ in range(2):
        logits = model(ids.masked_fill(hidden, 8192), model.context(text, visible), hidden)
        loss = masked_token_loss(logits, ids, hidden).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
