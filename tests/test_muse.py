"""The pipeline: captions to pictures, files and back. Run: pytest tests/test_muse.py"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimuse.data import ASSETS
from minimuse.datasets import load, shapes
from minimuse.device import autocast
from minimuse.metrics import alignment
from minimuse.metrics.images import psnr
from minimuse.metrics.likelihood import masked_nll
from minimuse.metrics.report import token_report
from minimuse.muse import Muse
from minimuse.plumbing.parts import load_part
from minimuse.runs.cache import tokens_of

RED, TWO = "a small red circle on a grey background", "two large blue squares on a white background"


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def last(muse, *args, **kwargs):
    return {resolution: step for resolution, step in muse.steps(*args, **kwargs)}


def test_steps_end_in_full_grids_of_codes(muse):
    steps = list(muse.steps([RED, TWO], seed=3))
    assert [r for r, _ in steps] == ["low"] * 4 + ["high"] * 2
    for resolution, step in steps:
        tokenizer = muse.tokenizer if resolution == "low" else muse.tokenizer_hi
        assert step.ids.shape == (2, tokenizer.config.grid**2)
        assert (
            0 <= int(step.ids.min()) and int(step.ids.max()) < tokenizer.config.codes
        )  # no mask id, in no step
    assert not any(step.hidden.any() for step in (steps[3][1], steps[-1][1]))
    images = muse.pixels(steps[-1][1].ids, "high")
    assert images.shape == (2, 3, 32, 32) and float(images.abs().max()) <= 1


def test_between_two_steps_all_is_as_before(muse, monkeypatch):
    """The context of quick arithmetic ends with each pass: it is not the caller's, nor another drawing's."""
    monkeypatch.setattr(
        "minimuse.muse.autocast", lambda device, worth=True: torch.autocast("cpu", torch.bfloat16)
    )  # as on a CPU that has it
    both = [[step.ids for _, step in muse.steps([prompt], seed=1)] for prompt in (RED, TWO)]
    drawn = []
    for (_, a), (_, b) in zip(muse.steps([RED], seed=1), muse.steps([TWO], seed=1), strict=True):
        assert not torch.is_autocast_enabled("cpu")
        drawn.append((a.ids, b.ids))
    assert not torch.is_autocast_enabled("cpu")
    assert all(
        torch.equal(x, y)
        for pair, ids in zip(zip(*drawn, strict=True), both, strict=True)
        for x, y in zip(pair, ids, strict=True)
    )


def test_weights_are_read_where_prompts_are_composed_and_nowhere_else(muse):
    time, both = "a clock at 12:05", "black AND white:0.5"
    assert muse.embed_prompts([both]).weights == (1.0, 0.5)
    assert (
        muse.embed_prompts([time]).weights
        == muse.embed_prompts([time, both], plain=True).weights
        == (1.0,)
    )
    text, visible = muse.text([time, both, ""])
    plain = muse.embed_prompts([time, both], plain=True)
    assert torch.equal(plain.text, text[:2]) and torch.equal(plain.visible, visible[:2])


def test_same_seed_same_picture(muse):
    a, b, c = (muse.generate(RED, seed=s)[0].tobytes() for s in (1, 1, 2))
    assert a == b != c


def test_save_and_load_round_trip(muse, tmp_path):
    muse.save(tmp_path / "copy")
    again = Muse.load(tmp_path / "copy")
    assert muse.generate(TWO)[0].tobytes() == again.generate(TWO)[0].tobytes()
    muse.save(tmp_path / "half", torch.bfloat16)
    half = Muse.load(tmp_path / "half")
    for name, part in half.parts.items():
        for k, v in part.state_dict().items():
            torch.testing.assert_close(
                v,
                muse.parts[name].state_dict()[k].bfloat16().float() if v.is_floating_point() else v,
                rtol=0,
                atol=0,
            )


def test_whole_numbers_are_within_half_a_127th_of_their_row(muse, tmp_path):
    """And tokenizers are as in fp16: their ids must not change."""
    muse.save(tmp_path / "small", torch.int8)
    muse.save(tmp_path / "half", torch.float16)
    small, half = Muse.load(tmp_path / "small"), Muse.load(tmp_path / "half")
    for name, part in small.parts.items():
        for k, v in part.state_dict().items():
            exact = muse.parts[name].state_dict()[k]
            if name.startswith("tokenizer") or v.dim() < 2:
                assert torch.equal(v, half.parts[name].state_dict()[k])
            else:
                step = exact.flatten(1).abs().amax(dim=1) / 127
                assert ((v - exact).flatten(1).abs() <= 0.5001 * step[:, None] + 1e-9).all(), (
                    name,
                    k,
                )
                assert (
                    v.flatten(1).div(step[:, None].clamp(min=1e-9)).round().unique().numel() <= 255
                )
    size = lambda d: (tmp_path / d / "base.safetensors").stat().st_size
    assert size("small") < 0.62 * size("half")


def test_processes_may_write_one_file_at_once(tmp_path):
    """As the stages that train side by side do with config.json: one waits for the other, or would take its half-written file away."""
    loop = (
        "for n in range(500):\n with alone(path.parent, 'config', -1): write_json(path, {'n': n})"
    )
    code = f"import sys\nfrom pathlib import Path\nfrom minimuse.checkpoint import alone, write_json\npath = Path(sys.argv[1])\n{loop}"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "config.json")], stderr=subprocess.PIPE
        )
        for _ in range(2)
    ]
    assert [writer.communicate()[1][-300:] for writer in writers] == [b"", b""]
    assert (
        json.loads((tmp_path / "config.json").read_text()) == {"n": 499}
        and len(list(tmp_path.iterdir())) == 1
    )


def test_text_and_its_keys_are_computed_once_per_picture(muse, monkeypatch):
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
    assert calls == {"text": 1, "base": 2, "superres": 2}  # with the caption, and without it
    last(
        muse,
        [RED],
        sampling=replace(muse.config.sampling, guidance=0.0),
        sampling_hi=replace(muse.config.sampling_hi, guidance=0.0),
    )
    assert calls == {"text": 2, "base": 3, "superres": 3}  # no guidance: only with it


def test_a_negative_prompt_changes_guided_pictures_only(muse):
    def ids(negative, guidance):
        kind = dict(
            sampling=replace(muse.config.sampling, guidance=guidance),
            sampling_hi=replace(muse.config.sampling_hi, guidance=guidance),
        )
        return last(muse, [RED, TWO], negative=negative, **kind)["high"].ids

    assert not torch.equal(ids("a blue ring", 8.0), ids("", 8.0))
    assert torch.equal(ids("a blue ring", 0.0), ids("", 0.0))


def test_padding_beside_a_longer_prompt_changes_nothing(muse):
    short = "a red ring"
    alone, _ = muse.text([short])
    beside, visible = muse.text([short, TWO])
    with torch.no_grad():
        ids = torch.randint(
            0, 64, (1, muse.config.tokenizer.grid**2), generator=torch.Generator().manual_seed(0)
        )
        a = muse.base(ids, muse.base.context(alone, torch.ones(alone.shape[:2], dtype=torch.bool)))
        b = muse.base(ids, muse.base.context(beside[:1], visible[:1]))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_masked_nll_against_a_slow_loop(muse, tiny_model):
    pictures = load("shapes", "heldout", 32, 6)
    tokens = tokens_of(muse.parts, muse.text, pictures, "cpu")
    text, visible = tokens.captions(torch.arange(6))
    base = load_part(tiny_model, "base", muse.config, muse.text.width).double().eval()
    context = lambda rows: base.context(text[rows].double(), visible[rows])
    everything = masked_nll(base, tokens.ids("low"), context, 1.0, batch=4)
    total = 0.0
    with torch.no_grad():
        for i in range(6):
            blank = torch.full((1, tokens.ids("low").shape[1]), base.mask_id)
            p = base(blank, context(slice(i, i + 1))).log_softmax(-1)[0]
            total -= float(
                sum(p[n, tokens.ids("low")[i, n]] for n in range(tokens.ids("low").shape[1]))
            )
    assert everything == pytest.approx(
        total / tokens.ids("low").numel(), rel=2e-2
    )  # one of the two runs in bf16 where that is fast
    tables = token_report(muse, tokens)["nll"]
    assert tables["base"].keys() == {"caption", "no caption", "other caption"}
    assert tables["superres"].keys() == {"low-res and caption", "no caption", "other low-res"}


CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(not CPUINFO.is_file(), reason="asks Linux what the CPU can do")
def test_bf16_only_where_the_cpu_has_instructions_for_it(monkeypatch):
    """Emulated on AVX512, it made a tokenizer's step three times slower."""
    flags, wide = (
        set(CPUINFO.read_text().split()),
        "AVX512" in torch.backends.cpu.get_cpu_capability(),
    )
    with autocast("cpu"):
        assert torch.is_autocast_enabled("cpu") == bool(
            wide and flags & {"amx_bf16", "avx512_bf16"}
        )
    for capability, on in (("AVX2", False), ("AVX512", True)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        with autocast("cpu"):
            assert torch.is_autocast_enabled("cpu") == on


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    assert psnr(a, b) == pytest.approx(
        (20 + 40) / 2, abs=1e-4
    )  # the mean of the pictures' figures, peak to peak 2


def test_the_shipped_model_draws_what_it_is_told():
    muse = Muse.load("toy-shapes")
    caption = "a large red circle on a black background"
    _, images = muse.draw([caption] * 4, seed=0)
    right = alignment.alignment([shapes.parse(caption)] * 4, images)
    assert right["background"]["value"] == 1 and right["colour"]["value"] >= 0.75


def test_the_shipped_emoji_model_listens():
    """On held-out pairs of concept and style: its caption helps, another's is worse than none."""
    muse = Muse.load("toy")
    tables = token_report(
        muse, tokens_of(muse.parts, muse.text, load("emoji", "heldout", 64, 32), "cpu")
    )["nll"]
    told, none, other = (
        tables["base"][case]["1.0"] for case in ("caption", "no caption", "other caption")
    )
    assert told < none - 0.5 and other > none
    assert (
        tables["superres"]["low-res and caption"]["1.0"]
        < tables["superres"]["other low-res"]["1.0"] - 1
    )


def test_shipped_models_fit_into_25_mb():
    assert (
        sum(
            path.stat().st_size
            for name in ("toy", "toy-shapes")
            for path in (ASSETS / name).glob("*.safetensors")
        )
        < 25e6
    )
