"""Every command runs on an accelerator, and asks it for nothing that Apple's GPUs lack.

pytest tests/test_operators.py

`stand_in.py` plays the accelerator. It computes on the CPU, notes every operator, and refuses to
mix its tensors with those of the CPU. What ran there is compared with what PyTorch 2.6, the oldest
that minimuse supports, has for MPS.
"""

import json
import re

import pytest
import torch
from PIL import Image
from stand_in import Accelerator

from minimuse.cli import main
from minimuse.metrics.judge import features
from minimuse.plumbing import arguments, config
from minimuse.plumbing.initialization import start_like, start_white
from minimuse.plumbing.parts import build
from minimuse.vq import EMAQuantizer, FSQuantizer
from minimuse.vq_loss import PatchDiscriminator, SpectralNorm

DEVICE = "meta"
STAGES = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")
PROMPT = "a large red circle on a black background"

# All operators that some command runs on an accelerator. PyTorch 2.6 has each of them for MPS: in
# its native_functions.yaml they have a kernel of their own there, or consist of other operators.
# A name that is missing here must be looked up there, and in the list of what is missing,
# github.com/pytorch/pytorch/issues/141287; what MPS lacks must get tensors on the CPU.
ON_MPS = set(
    """
    _local_scalar_dense _log_softmax _log_softmax_backward_data _softmax _softmax_backward_data
    _to_copy _unsafe_view abs add add_ addcdiv_ addcmul_ addmm alias all amax any arange argmax
    argmin avg_pool2d bincount bitwise_and bitwise_not bitwise_or bmm cat clamp clamp_ clamp_min
    clamp_min_ clone constant_pad_nd convolution convolution_backward copy_ cos cumsum detach div
    div_ dot embedding embedding_dense_backward empty empty_like eq equal exp expand fill_
    floor_divide full gather ge gelu gelu_backward gt hardtanh index index_add index_add_ index_put
    index_put_ index_select le leaky_relu leaky_relu_backward lerp lerp_ linalg_vector_norm log
    log10 log_ logical_and lt masked_fill max max_pool2d_with_indices mean min minimum mm mul mul_
    mv nansum native_batch_norm native_layer_norm native_layer_norm_backward ne neg neg_
    new_empty_strided new_ones new_zeros nll_loss_backward nll_loss_forward nonzero normal_ ones
    ones_like permute pow pow_ rand randn reciprocal relu remainder repeat replication_pad2d round
    rsqrt rsqrt_ rsub scalar_tensor select sgn sigmoid sigmoid_backward silu silu_backward sin slice
    slice_backward sort split split_with_sizes sqrt squeeze stack sub sum t threshold_backward topk
    transpose unbind uniform_ unsqueeze upsample_nearest2d upsample_nearest2d_backward view where
    zero_ zeros zeros_like
    """.split()
)


def missing_on_mps(device):
    """Operators that ran on the device, and that MPS may lack, without their overloads' names."""
    return {name.partition(".")[0] for name in device.operators} - ON_MPS


@pytest.fixture(scope="module", autouse=True)
def plain_adamw():
    """PyTorch has its fused AdamW for MPS, but not for the device of the stand-in."""

    class PlainAdamW(torch.optim.AdamW):
        def __init__(self, parameters, fused, **settings):
            super().__init__(parameters, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", PlainAdamW)
        patch.setattr(arguments, "DEVICES", re.compile(DEVICE))
        yield


def run(*argv):
    """Run a command on the stand-in; returns what it noted."""
    with Accelerator() as device:
        code = main([*map(str, argv), "--device", DEVICE])
    assert code == 0, argv
    assert device.operators, f"{argv} ran nothing on the device"
    return device


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of all stages, trained on the stand-in, and what that noted."""
    out = tmp_path_factory.mktemp("device") / "model"
    # Each stage has a step before the codes, one with them, and one with the discriminator.
    settings = [f"stages.{stage}.{x}" for stage in STAGES for x in ("steps=3", "batch=2")]
    settings += ["scenes=4", "loss.discriminator_channels=4", "base.layers=1"]
    device = run("train", "all", "--preset", "tiny", "--data", "shapes", "--out", out, *settings)
    return out, device


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (32, 32), "white").save(folder / "image.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 20, 20))
    mask.save(folder / "mask.png")
    return folder


def check(device):
    assert not missing_on_mps(device)
    assert not device.doubles, "float64 on the device"


def test_training_of_every_stage(trained):
    check(trained[1])


def test_cache_and_training_from_it(trained, tmp_path):
    check(run("cache", "--out", trained[0]))


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance", "2"],
        ["--sampler", "halton", "--top-k", "3", "--guidance", "0"],
        ["--sampler", "entropy"],
        ["--sampler", "random", "--temperature", "0"],
    ],
)
def test_generate(trained, tmp_path, options):
    check(run("generate", PROMPT, "--model", trained[0], "-o", tmp_path / "a.png", *options))


@pytest.mark.slow
def test_demo_trains_there(tmp_path):
    """One stage after another, with the seconds of each, and a report."""
    out = tmp_path / "demo"
    check(run("demo", "--preset", "tiny", "--out", out))
    report = json.loads((out / "report.json").read_text())
    assert list(report["stages"]) == list(STAGES)
    assert set(report["seconds"]) == {*STAGES, "report", "total"}
    assert (out / "samples.png").is_file()


def test_composed_prompts_and_a_gif(trained, tmp_path):
    gif = tmp_path / "a.gif"
    prompt = f"{PROMPT} AND a small blue square:0.5"
    options = ["-o", tmp_path / "a.png", "--gif", gif, "--steps", "2"]
    check(run("generate", prompt, "--model", trained[0], *options))
    assert gif.is_file()


def test_edits(trained, image, tmp_path):
    model = ["--model", trained[0], "-o", tmp_path / "a.png", "--steps", "2"]
    original = image / "image.png"
    check(run("inpaint", original, image / "mask.png", PROMPT, "--keep-pixels", *model))
    check(run("outpaint", original, PROMPT, "--pad", "8", *model))
    check(run("edit", original, PROMPT, "--iterations", "2", *model[:-2]))


def test_evaluate(trained, tmp_path):
    check(run("evaluate", "--model", trained[0], "--out", tmp_path, "--n", "2"))


def test_other_quantizers_and_optimizers_train():
    """Settings that no preset has: FSQ, windows of pieces, Adafactor."""
    with Accelerator() as device:
        FSQuantizer((3, 4)).to(DEVICE)(torch.randn(2, 4, 4, 2).to(DEVICE))
        quantizer = EMAQuantizer(8, 4).to(DEVICE)
        z = torch.randn(2, 4, 4, 4).to(DEVICE)
        quantizer.start(z, torch.Generator())
        quantizer.update(z, quantizer.nearest(z), torch.Generator())
        weight = torch.nn.Parameter(torch.randn(4, 3).to(DEVICE))
        optimizer = torch.optim.Adafactor([weight])
        weight.square().sum().backward()
        optimizer.step()
    check(device)


# --- What only the CPU can do is done there ---
def test_white_projections_are_the_same_on_a_device():
    text = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for name in ("cpu", DEVICE):
        with Accelerator() as device, torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            linear = torch.nn.Linear(16, 8).to(name)
            start_white(linear, text.to(name))
            start_like(linear.weight, torch.randn(5, 3).to(name), std=0.5)
        check(device)
        results.append((linear.weight.cpu(), linear.bias.cpu()))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_places_are_the_same_on_a_device():
    model = build("superres", config.PRESETS["demo"], 64)
    ids = torch.randint(9, (3, model.grid**2), generator=torch.Generator().manual_seed(0))
    expected = model.sample_places(ids, torch.Generator().manual_seed(1))
    with Accelerator() as device:
        places = model.sample_places(ids.to(DEVICE), torch.Generator().manual_seed(1))
        assert places.device.type == DEVICE
        assert torch.equal(places.cpu(), expected)
    check(device)


class Features(torch.nn.Module):
    """As much of Lite0 as `features` uses."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Module()
        self.net._conv_head = torch.nn.Conv2d(3, 5, 1)
        self.net._bn1 = torch.nn.Identity()

    def stages(self, images):
        return [images] * 7


def test_the_judge_resizes_on_the_cpu():
    net = Features().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = features(net, images)
    with Accelerator() as device:
        assert torch.allclose(features(net.to(DEVICE), images.to(DEVICE)).cpu(), expected)
    check(device)


def test_the_discriminator_uses_no_vdot():
    with Accelerator() as device:
        net = PatchDiscriminator(4).to(DEVICE)
        net(torch.rand(2, 3, 16, 16).to(DEVICE)).mean().backward()
    assert "dot" in device.operators
    check(device)


def test_spectral_norm_is_pytorchs():
    """Bit for bit, through several steps, and with the same random numbers."""
    results = []
    for register in (
        lambda conv: torch.nn.utils.parametrize.register_parametrization(
            conv, "weight", SpectralNorm(conv.weight)
        ),
        torch.nn.utils.parametrizations.spectral_norm,
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            conv = torch.nn.Conv2d(3, 6, 4)
            register(conv)
            optimizer = torch.optim.SGD(conv.parameters(), 0.1)
            for _ in range(3):
                # Two passes before one backward pass, as in training.
                a, b = torch.randn(2, 1, 3, 8, 8)
                (conv(a).square().mean() - conv(b).abs().mean()).backward()
                optimizer.step()
                optimizer.zero_grad()
            results.append(conv.eval().weight.detach())
    assert torch.equal(*results)


# --- The stand-in notices what it should ---
def test_a_missing_operator_is_noticed():
    with Accelerator() as device:
        x = torch.rand(4, 4).to(DEVICE)
        torch.linalg.eigh(x @ x.T)
        torch.linalg.qr(x)
        x.mode()
        torch.vdot(x[0], x[1])
    assert missing_on_mps(device) == {"_linalg_eigh", "linalg_qr", "mode", "vdot"}


def test_doubles_and_waits_are_noticed():
    with Accelerator() as device:
        x = torch.rand(4).to(DEVICE)
        x.double()
        float(x[0])
        x[x > 0.5]
        x.cpu()
    assert sum(device.doubles.values()) == 1
    waits = {"_local_scalar_dense": 1, "index.Tensor": 1, "_to_copy": 1}
    assert dict(device.waits) == waits


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(4),
        lambda x: torch.cat([x, torch.ones(4)]),
        lambda x: torch.where(x > 0, x, torch.ones(4)),
    ],
)
def test_tensors_on_two_devices_are_refused(mixed):
    with Accelerator():
        x = torch.rand(4).to(DEVICE)
        assert (x + torch.tensor(1.0)).device.type == DEVICE
        with pytest.raises(RuntimeError, match="one device"):
            mixed(x)


@pytest.mark.parametrize(
    "options",
    [
        ["--guidance", "1"],
        ["--sampler", "halton"],
        pytest.param(["--guidance", "0"], marks=pytest.mark.slow),
        pytest.param(["--guidance", "1", "--no-ramp", "--top-k", "3"], marks=pytest.mark.slow),
        pytest.param(["--sampler", "random"], marks=pytest.mark.slow),
        pytest.param(["--n", "3", "--seed", "2"], marks=pytest.mark.slow),
    ],
)
def test_a_step_of_decoding_waits_for_nothing(trained, tmp_path, options):
    """More steps do not make the CPU wait for the device more often."""
    waits = []
    for steps in (2, 6):
        argv = ["--model", trained[0], "--steps", steps, "-o", tmp_path / "a.png", *options]
        waits.append(run("generate", PROMPT, *argv).waits)
    assert waits[0] == waits[1]


def test_only_the_entropy_sampler_waits(trained, tmp_path):
    """How many tokens it has revealed decides whether another pass is needed."""
    argv = ["--model", trained[0], "-o", tmp_path / "a.png", "--sampler", "entropy"]
    waits = []
    for steps in (2, 6):
        device = run("generate", PROMPT, *argv, "--steps", steps)
        waits.append(sum(device.waits.values()))
    assert 0 < waits[1] - waits[0] <= 4
