"""What presets cost, against counts made by hand: `pytest tests/test_describe.py`.

The paper's sizes: T5-XXL's encoder 4,762 M, the 3 B model 3.2 to 3.3 B, its super-resolution about .77 B; per 256 px image at 24 guided
steps 74.3 TFLOP with nothing cached and 71.3 with the text's keys and values computed once.
"""

import json

import pytest
import torch

from minimuse.cli import main
from minimuse.cli.describe import GPUS, XXL, describe
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.parts import PARTS, build

T = 77
LARGE = {name: describe(name) for name in ("muse-3b", "muse-632m")}


def test_the_papers_sizes():
    found = LARGE["muse-3b"]
    assert found["parameters"]["text"] == pytest.approx(4762.3e6, rel=1e-4)
    assert 3.2e9 < found["parameters"]["base"] < 3.3e9 and found["parameters"][
        "superres"
    ] == pytest.approx(0.77e9, rel=0.03)
    assert found["flops"]["base_image_uncached"] == pytest.approx(74.3e12, rel=0.03)
    assert found["flops"]["base_image"] == pytest.approx(71.3e12, rel=0.03)
    assert found["flops"]["superres_image_uncached"] == pytest.approx(68.5e12, rel=0.03)
    assert found["flops"]["superres_image"] == pytest.approx(67e12, rel=0.03)
    small = LARGE["muse-632m"]["parameters"]
    assert small["base"] == pytest.approx(632e6, rel=0.02) and small["superres"] == pytest.approx(
        268e6, rel=0.02
    )


def t5_by_hand(c):
    inner, mlps = c.num_heads * c.d_kv, 3 if c.feed_forward_proj == "gated-gelu" else 2
    layer = 4 * c.d_model * inner + mlps * c.d_model * c.d_ff + 2 * c.d_model
    return (
        c.vocab_size * c.d_model
        + c.num_layers * layer
        + c.relative_attention_num_buckets * c.num_heads
        + c.d_model
    )


def base_by_hand(config, E):
    """Parameters, and multiply-adds of a pass and of what is computed once per caption, from the letters."""
    D, L, H, K, N = (
        config.base.width,
        config.base.layers,
        config.base.heads,
        config.tokenizer.codes,
        config.tokenizer.grid**2,
    )
    side = config.tokenizer.grid
    block = (
        4 * D * D + 4 * D * D + 8 * D * D + 3 * D + H * (2 * side - 1) ** 2
    )  # self, cross, MLP, norms, offsets
    head = D * D + D + D * K + K
    parameters = E * D + D + D + (K + 1) * D + 2 * side * D + L * block + D + head
    attention = 2 * N * N * D + 2 * N * T * D  # scores and mixture, of all heads together
    again = L * (N * (3 + 1 + 1 + 1 + 8) * D * D + attention) + N * (D * D + D * K)
    once = T * E * D + L * T * 2 * D * D
    return parameters, again, once


@pytest.mark.parametrize("name", ["tiny", "toy", "muse-632m", "muse-3b"])
def test_the_base_model_by_hand(name):
    config, found = PRESETS[name], describe(name)
    E = XXL.d_model if name.startswith("muse") else 256
    parameters, again, once = base_by_hand(config, E)
    S = config.sampling.steps
    assert found["parameters"]["base"] == parameters
    assert found["flops"]["base_pass"] == 2 * (again + once)
    assert found["flops"]["base_image"] == 2 * 2 * (S * again + once) and found["flops"][
        "base_image_uncached"
    ] == 2 * 2 * S * (again + once)
    assert found["flops"]["base_train_step"] == 6 * config.stages.base.batch * (again + once)


@pytest.mark.parametrize("name", ["tiny", "muse-3b"])
def test_super_resolution_by_hand(name):
    config, found = PRESETS[name], describe(name)
    c, E = config.superres, XXL.d_model if name.startswith("muse") else 256
    n, N, D = config.tokenizer.grid**2, config.tokenizer_hi.grid**2, c.width
    K, w = config.tokenizer_hi.codes, c.window
    encoder = c.encoder_layers * (n * 12 * D * D + 2 * n * n * D)
    once = T * E * D + encoder + n * D * (N // n) * D + c.layers * (n + T) * 2 * D * D
    multi_axis = (
        N * (w * w + (config.tokenizer_hi.grid // w) ** 2) * D
    )  # half of the width each, twice: scores and mixture
    again = c.layers * (N * 14 * D * D + multi_axis + 2 * N * (n + T) * D) + N * (D * D + D * K)
    assert found["flops"]["superres_pass"] == 2 * (again + once)


def test_text_and_memory_by_hand():
    found = LARGE["muse-3b"]
    assert found["parameters"]["text"] == t5_by_hand(XXL)
    layer = T * (4 * 4096 * 4096 + 3 * 4096 * 10240) + 2 * T * T * 4096
    assert found["flops"]["text"] == 2 * 24 * layer
    sizes, memory = found["parameters"], found["memory"]
    assert memory["hold"] == 2 * sum(sizes.values()) and set(sizes) == {"text", *PARTS}
    for n in GPUS:
        assert memory[f"base_adamw_on_{n}"] == pytest.approx(20 * sizes["base"] / n, abs=1)
    assert memory["base_adafactor_on_1"] == 12 * sizes["base"]


def test_what_training_holds():
    """20 bytes a parameter with AdamW, 12 and a little with Adafactor: counted in the tensors of a real step, in fp32."""
    from minimuse.train import make_optimizers

    for kind, each in (("adamw", 20), ("adafactor", 12)):
        config = override(
            PRESETS["tiny"],
            ["base.width=128", "stages.base.muon_lr=0", f"stages.base.optimizer={kind}"],
        )
        model = build("base", config, 16)
        (optimizer,) = make_optimizers(model, config.stages.base)
        ids, hidden = torch.zeros(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.bool)
        masked_token_loss(
            model(
                ids,
                model.context(torch.zeros(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)),
                hidden,
            ),
            ids,
            hidden,
        ).loss.backward()
        optimizer.step()
        state = sum(x.numel() for values in optimizer.state.values() for x in values.values())
        size = sum(p.numel() for p in model.parameters())
        assert each * size <= 4 * (3 * size + state) < 1.02 * each * size, (
            "weight, gradient, average, and the optimizer's"
        )


def test_the_command(capsys, tmp_path):
    assert main(["describe", "toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == describe("toy") and set(found) == {"parameters", "flops", "memory"}
    assert all(isinstance(value, int) for row in found.values() for value in row.values())
    assert main(["describe", "muse-3b"]) == 0
    text = capsys.readouterr().out
    assert (
        "3,268.480 M" in text
        and "71.520 TFLOP" in text
        and len(text.splitlines()) == sum(map(len, LARGE["muse-3b"].values()))
    )
    other = tmp_path / "config.json"
    other.write_text(
        json.dumps(dict(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    )
    assert main(["describe", "toy", "--t5", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["text"] < 1e5
    assert main(["describe", "toy", "--t5", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_three_billion_parameters_run_and_learn():
    """The whole base model's forward pass in bf16 (6.5 GB), and an optimizer step of four of its layers."""
    config = PRESETS["muse-3b"]
    ids, hidden = torch.randint(8192, (1, 256)), torch.rand(1, 256) < 0.6
    text, visible = torch.randn(1, T, 4096), torch.ones(1, T, dtype=torch.bool)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.no_grad():
            model = build("base", config, 4096)
            logits = model(
                ids.masked_fill(hidden, 8192), model.context(text.bfloat16(), visible), hidden
            )
    finally:
        torch.set_default_dtype(torch.float32)
    assert logits.shape == (int(hidden.sum()), 8192) and logits.isfinite().all()
    del model
    from minimuse.train import make_optimizers

    shallow = build("base", override(config, ["base.layers=4"]), 4096)
    (optimizer,) = make_optimizers(shallow, config.stages.base)
    losses = []
    for _ in range(2):
        loss = masked_token_loss(
            shallow(ids.masked_fill(hidden, 8192), shallow.context(text, visible), hidden),
            ids,
            hidden,
        ).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]
