"""The pipeline: captions to images, prompts, files and back."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minimuse import edit
from minimuse.cli.describe import describe
from minimuse.data import ASSETS
from minimuse.datasets import load, shapes
from minimuse.metrics import alignment
from minimuse.metrics.images import psnr
from minimuse.metrics.likelihood import masked_nll
from minimuse.metrics.report import token_report
from minimuse.muse import Muse
from minimuse.plumbing.device import autocast
from minimuse.plumbing.parts import load_part
from minimuse.runs.cache import tokens_of
from minimuse.runs.rehearsal import check_trainable
from minimuse.runs.stages import STAGES
from minimuse.t5_frozen import FrozenT5

RED = "a small red circle on a grey background"
TWO = "two large blue squares on a white background"


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def last(muse, *args, **kwargs):
    """The last step of each resolution."""
    return dict(muse.steps(*args, **kwargs))


# --- Drawing ---
def test_steps_end_in_full_grids_of_codes(muse):
    steps = list(muse.steps([RED, TWO], seed=3))
    assert [resolution for resolution, _ in steps] == ["low"] * 4 + ["high"] * 2
    for resolution, step in steps:
        tokenizer = muse.tokenizer if resolution == "low" else muse.tokenizer_hi
        assert step.ids.shape == (2, tokenizer.config.grid**2)
        # No step has a mask id.
        assert 0 <= int(step.ids.min()) and int(step.ids.max()) < tokenizer.config.codes
    for _, step in (steps[3], steps[-1]):
        assert not step.hidden.any()
    images = muse.pixels(steps[-1][1].ids, "high")
    assert images.shape == (2, 3, 32, 32) and float(images.abs().max()) <= 1


def test_between_two_steps_all_is_as_before(muse, monkeypatch):
    """Autocast ends with each model pass: it never holds in the caller's code."""
    # As on a CPU that is fast at bf16.
    for module in ("muse", "decode"):
        monkeypatch.setattr(
            f"minimuse.{module}.autocast", lambda device: torch.autocast("cpu", torch.bfloat16)
        )
    red_alone = [step.ids for _, step in muse.steps([RED], seed=1)]
    two_alone = [step.ids for _, step in muse.steps([TWO], seed=1)]
    side_by_side = zip(muse.steps([RED], seed=1), muse.steps([TWO], seed=1), strict=True)
    steps = 0
    for k, ((_, red), (_, two)) in enumerate(side_by_side):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.equal(red.ids, red_alone[k])
        assert torch.equal(two.ids, two_alone[k])
        steps += 1
    assert not torch.is_autocast_enabled("cpu")
    assert steps == len(red_alone) == len(two_alone)


def test_same_seed_same_image(muse):
    first, second, other = (muse.generate(RED, seed=seed)[0].tobytes() for seed in (1, 1, 2))
    assert first == second
    assert first != other


def test_an_image_is_the_same_in_a_batch_of_any_size(muse):
    """Image i has the seed `seed` + i, whatever is drawn beside it."""
    _, all_at_once = muse.draw([RED, TWO, RED], seed=4)
    _, in_batches = muse.draw([RED, TWO, RED], batch=2, seed=4)
    _, second = muse.draw([TWO], seed=5)
    # A convolution of another batch may round the last bit in another way.
    assert torch.allclose(all_at_once, in_batches, atol=1e-5)
    assert torch.allclose(all_at_once[1:2], second, atol=1e-5)
    images = [image.tobytes() for image in muse.generate(RED, n=4, seed=7)]
    assert len(set(images)) == 4
    for i, image in enumerate(images):
        assert muse.generate(RED, seed=7 + i)[0].tobytes() == image


def test_neighbouring_seeds_do_not_meet(muse):
    """The stages of one seed, and the windows of one hole, draw other noise than the next seed."""
    places = [(0, 0), (0, 4), (4, 0)]
    firsts = set()
    for seed in range(3):
        for stage in ("low", "high", "edit"):
            for place in places:
                (generator,) = muse.generators(stage, seed, 1, place)
                firsts.add(float(torch.rand(1, generator=generator)))
    assert len(firsts) == 27


def test_ids_that_are_complete_are_drawn_as_they_are(muse):
    """`draw` takes ids to start from, also more than one batch of them."""
    steps = last(muse, [RED, TWO, RED], seed=1)
    low, high = steps["low"].ids, steps["high"].ids
    for batch in (1, 2, 32):
        low_images, images = muse.draw([RED, TWO, RED], batch, low=low)
        torch.testing.assert_close(low_images, muse.pixels(low, "low"), rtol=0, atol=0.02)
        _, same = muse.draw([RED, TWO, RED], batch, low=low, high=high)
        torch.testing.assert_close(same, muse.pixels(high, "high"), rtol=0, atol=0.02)
        assert images.shape == same.shape


@pytest.mark.parametrize("name", ["low", "high"])
def test_ids_that_are_none_of_the_model(muse, name):
    N = muse.config.tokenizer.grid**2 if name == "low" else muse.config.tokenizer_hi.grid**2
    mask_id = muse.base.mask_id
    for ids in (
        torch.zeros(1, N + 1).long(),
        torch.zeros(2, N).long(),
        torch.zeros(N).long(),
        torch.zeros(1, N),
        torch.full((1, N), mask_id + 1),
        torch.full((1, N), -1),
        [[0] * N],
        3,
    ):
        with pytest.raises(ValueError, match=f"^{name} "):
            muse.draw([RED], **{name: ids})


def test_there_must_be_something_to_draw(muse):
    with pytest.raises(ValueError, match="at least 1 image"):
        muse.draw([])


# --- Prompts: how they are parsed is in test_prompts.py ---
def test_weights_are_read_where_prompts_are_composed_and_nowhere_else(muse):
    time = "a clock at 12:05"
    both = "black AND white:0.5"
    assert muse.embed_prompts([both]).weights == (1.0, 0.5)
    assert muse.embed_prompts([time]).weights == (1.0,)
    plain = muse.embed_prompts([time, both], plain=True)
    assert plain.weights == (1.0,)
    text, visible = muse.text([time, both, ""])
    assert torch.equal(plain.text, text[:2])
    assert torch.equal(plain.visible, visible[:2])


def test_composed_prompts_come_prompt_by_prompt(muse):
    """The first prompt of every image, then the second; the negative prompt for each image."""
    prompts = muse.embed_prompts(["a AND b:2", "c AND d:2"], negative="e")
    text, visible = muse.text(["a", "c", "b", "d", "e"])
    assert torch.equal(prompts.text, text[:4])
    assert torch.equal(prompts.visible, visible[:4])
    assert prompts.weights == (1.0, 2.0)
    assert torch.equal(prompts.negative_text, text[4:].expand(2, -1, -1))
    assert torch.equal(prompts.negative_visible, visible[4:].expand(2, -1))


def test_weights_must_be_the_same_for_all_images(muse):
    with pytest.raises(ValueError, match="same weights.*1.0.*0.5"):
        muse.embed_prompts(["a", "a AND b:0.5"])


# --- What belongs to the caller ---
def test_parts_of_the_caller_stay_as_they_are(tiny_model):
    loaded = Muse.load(tiny_model)
    parts = {name: part.train().requires_grad_(True) for name, part in loaded.parts.items()}
    encoder = loaded.text.encoder.train().requires_grad_(True)
    text = FrozenT5(encoder, loaded.text.tokenizer, loaded.text.fingerprint)
    own = Muse(loaded.config, text, parts, loaded.about)
    images = own.generate(RED)[0].tobytes(), edit.edit(own, Image.new("RGB", (32, 32)), RED, 1)
    assert images[0] == Muse.load(tiny_model).generate(RED)[0].tobytes()
    for module in [*parts.values(), encoder]:
        assert module.training
        assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_what_is_loaded_is_frozen(tiny_model):
    loaded = Muse.load(tiny_model)
    for module in [*loaded.parts.values(), loaded.text.encoder]:
        assert not module.training and not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: Muse.load(model),
        lambda model: Muse.load(model).generate(RED, 2, seed=3),
        lambda model: edit.edit(Muse.load(model), Image.new("RGB", (32, 32)), RED, 2),
        lambda model: load("shapes", "train", 16, 4, seed=1),
        lambda model: load("emoji", "train", 16, 4, seed=1),
        lambda model: describe("tiny"),
        lambda model: check_trainable(Muse.load(model).config, STAGES, "shapes", "cpu"),
    ],
    ids=["load", "generate", "edit", "shapes", "emoji", "describe", "check_trainable"],
)
def test_global_random_numbers_are_the_callers(tiny_model, call):
    """No function draws from PyTorch's, numpy's or Python's generators."""
    states = [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]
    call(tiny_model)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == [np.random.get_state()[1].tolist(), random.getstate()]


# --- Files ---
def test_save_and_load_round_trip(muse, tmp_path):
    muse.save(tmp_path / "copy")
    again = Muse.load(tmp_path / "copy")
    assert muse.generate(TWO)[0].tobytes() == again.generate(TWO)[0].tobytes()
    muse.save(tmp_path / "half", torch.bfloat16)
    half = Muse.load(tmp_path / "half")
    for name, part in half.parts.items():
        exact = muse.parts[name].state_dict()
        for key, value in part.state_dict().items():
            wanted = exact[key]
            if value.is_floating_point():
                wanted = wanted.bfloat16().float()
            torch.testing.assert_close(value, wanted, rtol=0, atol=0)


def test_whole_numbers_are_within_half_a_127th_of_their_row(muse, tmp_path):
    """And tokenizers are as in fp16: their ids must not change."""
    muse.save(tmp_path / "small", torch.int8)
    muse.save(tmp_path / "half", torch.float16)
    small = Muse.load(tmp_path / "small")
    half = Muse.load(tmp_path / "half")
    for name, part in small.parts.items():
        exact = muse.parts[name].state_dict()
        in_half = half.parts[name].state_dict()
        for key, value in part.state_dict().items():
            if name.startswith("tokenizer") or value.dim() < 2:
                assert torch.equal(value, in_half[key])
                continue
            row = exact[key].flatten(1)
            step = row.abs().amax(dim=1, keepdim=True) / 127
            off = (value.flatten(1) - row).abs()
            assert (off <= 0.5001 * step + 1e-9).all(), (name, key)
            multiples = value.flatten(1).div(step.clamp(min=1e-9)).round()
            assert multiples.unique().numel() <= 255

    def size(directory):
        return (tmp_path / directory / "base.safetensors").stat().st_size

    assert size("small") < 0.62 * size("half")


WRITE_500_TIMES = """
import sys
from pathlib import Path
from minimuse.plumbing.files import write_json
from minimuse.plumbing.lock import one_process_at_a_time
path = Path(sys.argv[1])
for n in range(500):
    with one_process_at_a_time(path.parent, "config", -1):
        write_json(path, {"n": n})
"""


def test_processes_may_write_one_file_at_once(tmp_path):
    """As stages that train side by side do with config.json.

    One waits for the other. Otherwise it would remove the other's half-written file.
    """
    path = tmp_path / "config.json"
    command = [sys.executable, "-c", WRITE_500_TIMES, str(path)]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    assert [writer.communicate()[1][-300:] for writer in writers] == [b"", b""]
    assert json.loads(path.read_text()) == {"n": 499}
    assert list(tmp_path.iterdir()) == [path]


# --- What the models look at ---
def test_text_and_its_keys_are_computed_once_per_image(muse, monkeypatch):
    calls = {"text": 0, "base": 0, "superres": 0}

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(muse, "text", counted("text", muse.text))
    for name in ("base", "superres"):
        model = getattr(muse, name)
        monkeypatch.setattr(model, "context", counted(name, model.context))
    last(muse, [RED], sampling=replace(muse.config.sampling, steps=9))
    # With the caption, and without it.
    assert calls == {"text": 1, "base": 2, "superres": 2}
    sampling, sampling_hi = muse.sampling(guidance=0.0)
    last(muse, [RED], sampling=sampling, sampling_hi=sampling_hi)
    # Without guidance, with the caption only.
    assert calls == {"text": 2, "base": 3, "superres": 3}


def test_a_negative_prompt_changes_guided_images_only(muse):
    def ids(negative, guidance):
        sampling, sampling_hi = muse.sampling(guidance=guidance)
        steps = last(
            muse, [RED, TWO], negative=negative, sampling=sampling, sampling_hi=sampling_hi
        )
        return steps["high"].ids

    assert not torch.equal(ids("a blue ring", 8.0), ids("", 8.0))
    assert torch.equal(ids("a blue ring", 0.0), ids("", 0.0))


def test_padding_beside_a_longer_prompt_changes_nothing(muse):
    short = "a red ring"
    alone, _ = muse.text([short])
    beside, visible = muse.text([short, TWO])
    N = muse.config.tokenizer.grid**2
    ids = torch.randint(0, 64, (1, N), generator=torch.Generator().manual_seed(0))
    all_visible = torch.ones(alone.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        a = muse.base(ids, muse.base.context(alone, all_visible))
        b = muse.base(ids, muse.base.context(beside[:1], visible[:1]))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# --- Measures ---
def test_masked_nll_against_a_slow_loop(muse, tiny_model):
    images = load("shapes", "heldout", 32, 6)
    tokens = tokens_of(muse.parts, muse.text, images, "cpu")
    ids = tokens.ids("low")
    text, visible = tokens.captions(torch.arange(6))
    base = load_part(tiny_model, "base", muse.config, muse.text.width).double().eval()

    def context(rows):
        return base.context(text[rows].double(), visible[rows])

    everything = masked_nll(base, ids, context, 1.0, batch=4)
    total = 0.0
    with torch.no_grad():
        for i in range(6):
            blank = torch.full((1, ids.shape[1]), base.mask_id)
            log_p = base(blank, context(slice(i, i + 1))).log_softmax(-1)[0]
            for n in range(ids.shape[1]):
                total -= float(log_p[n, ids[i, n]])
    # One of the two runs in bf16 where that is fast.
    assert everything == pytest.approx(total / ids.numel(), rel=2e-2)
    tables = token_report(muse, tokens)["nll"]
    assert tables["base"].keys() == {"caption", "no caption", "other caption"}
    assert tables["superres"].keys() == {"low-res and caption", "no caption", "other low-res"}


# --- Precision ---
CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.is_file(), reason="asks Linux what the CPU can do")
def test_bf16_only_where_the_cpu_has_instructions_for_it():
    """Emulated on AVX512, bf16 made a step of the tokenizer three times slower."""
    flags = set(CPUINFO.read_text().split())
    is_wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    has_bf16 = bool(flags & {"amx_bf16", "avx512_bf16"})
    with autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == (is_wide and has_bf16)


@pytest.mark.parametrize("capability, enabled", [("AVX2", False), ("AVX512", True)])
def test_bf16_needs_avx512(monkeypatch, capability, enabled):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == enabled


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    # The mean over images; values range over 2, from -1 to 1.
    assert psnr(a, b) == pytest.approx((20 + 40) / 2, abs=1e-4)


# --- Models that ship ---
def test_the_shipped_model_draws_what_it_is_told():
    muse = Muse.load("toy-shapes")
    caption = "a large red circle on a black background"
    _, images = muse.draw([caption] * 4, seed=0)
    right = alignment.alignment([shapes.parse(caption)] * 4, images)
    assert right["background"]["value"] == 1
    assert right["colour"]["value"] >= 0.75


@pytest.mark.slow
def test_the_shipped_emoji_model_listens():
    """On held-out pairs of concept and style, its caption helps, and another is worse than none."""
    muse = Muse.load("toy")
    held_out = load("emoji", "heldout", 64, 32)
    tables = token_report(muse, tokens_of(muse.parts, muse.text, held_out, "cpu"))["nll"]
    base = {case: ratios["1.0"] for case, ratios in tables["base"].items()}
    superres = {case: ratios["1.0"] for case, ratios in tables["superres"].items()}
    assert base["caption"] < base["no caption"] - 0.5
    assert base["other caption"] > base["no caption"]
    assert superres["low-res and caption"] < superres["other low-res"] - 1


def test_shipped_models_fit_into_25_mb():
    size = 0
    for name in ("toy", "toy-shapes"):
        size += sum(path.stat().st_size for path in (ASSETS / name).glob("*.safetensors"))
    assert size < 25e6
