"""A compiled pass: it is one program without a break, and draws what the plain one draws."""

import pytest
import torch

from minimuse import Muse
from minimuse.datasets.shapes import COLOURS
from minimuse.decode import SAMPLERS, one_pass
from minimuse.plumbing.compiled import compile_pass, round_weights

PROMPTS = ["a large red circle on a black background", "a small blue square"]


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def drawn(muse, run_pass, prompts=PROMPTS, **settings):
    """All ids of a decoding with this pass."""
    return [step.ids for step in decoded(muse, run_pass, prompts, **settings)]


def decoded(muse, run_pass, prompts=PROMPTS, **settings):
    """All steps of a decoding with this pass."""
    muse.run_pass = run_pass
    sampling, sampling_hi = muse.sampling(**settings)
    steps = muse.steps(prompts, sampling=sampling, sampling_hi=sampling_hi, seed=3)
    return [step for _, step in steps]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def slow(settings):
    """PyTorch takes ten seconds and more to follow a pass."""
    return pytest.param(settings, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance": 1.0, "sampler": "halton"},
        *(slow({"sampler": sampler, "guidance": 1.0}) for sampler in SAMPLERS),
        slow({"guidance": 0.0}),
        slow({"mean_vectors": True, "guidance": 1.0}),
        slow({"top_k": 3, "temperature": 0.5, "guidance": 2.0, "guided": (0.5, 1.0)}),
    ],
    ids=str,
)
def test_a_pass_is_one_program(muse, settings):
    """`fullgraph=True` refuses whatever cannot be compiled, or would wait for the device."""
    compiled = compile_pass(one_pass, backend="eager")
    expected = decoded(muse, one_pass, steps=3, **settings)
    result = decoded(muse, compiled, steps=3, **settings)
    assert len(result) == len(expected)
    for step, other in zip(result, expected, strict=True):
        torch.testing.assert_close(step[:3], other[:3])
        if settings.get("mean_vectors"):
            drawn_now = ~other.confidence.isposinf()  # B N
            probabilities = [each.probabilities[drawn_now] for each in (step, other)]
            torch.testing.assert_close(*probabilities)


@pytest.mark.slow
def test_composed_prompts_are_one_program(muse):
    prompts = ["a red circle AND a blue square:0.5"]
    compiled = compile_pass(one_pass, backend="eager")
    assert same(drawn(muse, compiled, prompts), drawn(muse, one_pass, prompts))


def test_a_program_is_made_once_for_each_shape(muse):
    """Not once for each call, step, seed, text of about that length, or value of guidance."""
    made = []

    def count(graph, inputs):
        made.append(graph)
        return graph

    compiled = compile_pass(one_pass, backend=count)
    drawn(muse, compiled, guidance=1.0, steps=3)
    first = len(made)
    assert first == 2  # the base model and super-resolution
    drawn(muse, compiled, guidance=1.0, steps=3)
    drawn(muse, compiled, ["a small green ring", "three large white stars"], guidance=1.5, steps=4)
    # Other settings of Sampling are another program, values of guidance are not.
    assert len(made) == first


@pytest.mark.slow
def test_pytorchs_own_compiler_draws_the_same(muse):
    """In float32. It needs a C++ compiler, and a minute."""
    muse.compile()
    assert same(drawn(muse, muse.run_pass), drawn(muse, one_pass))


@pytest.mark.parametrize("fast", [False, True])
def test_rounded_weights_draw_the_same(tiny_model, monkeypatch, fast):
    """Rounding them once gives the numbers that autocast gives in every pass."""
    for module in ("minimuse.plumbing.device", "minimuse.plumbing.compiled"):
        monkeypatch.setattr(f"{module}.is_fast_at_bf16", lambda device: fast)
    rounded, plain = Muse.load(tiny_model), Muse.load(tiny_model)
    round_weights(rounded.base, rounded.superres)
    expected = torch.bfloat16 if fast else torch.float32
    assert rounded.base.decoder.head[-1].weight.dtype == expected
    settings = {"guidance": 1.0, "steps": 3}
    assert same(drawn(rounded, one_pass, **settings), drawn(plain, one_pass, **settings))


def test_a_model_with_rounded_weights_is_not_saved(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("minimuse.plumbing.compiled.is_fast_at_bf16", lambda device: True)
    muse = Muse.load(tiny_model)
    muse.save(tmp_path)
    muse.compile()
    with pytest.raises(ValueError, match="compile.. has rounded the weights; load"):
        muse.save(tmp_path)


@pytest.mark.slow
def test_in_bfloat16_nearly_all_tokens_of_the_first_pass_are_the_same(monkeypatch):
    """A compiler adds numbers in another order, and rounds fewer of them to bfloat16."""
    for module in ("minimuse.plumbing.device", "minimuse.plumbing.compiled"):
        monkeypatch.setattr(f"{module}.is_fast_at_bf16", lambda device: True)
    prompts = [f"two large {colour} circles on a white background" for colour in COLOURS]
    muse = Muse.load("toy-shapes")
    _, plain = next(muse.steps(prompts))
    muse.compile()
    _, compiled = next(muse.steps(prompts))
    same_tokens = (plain.ids == compiled.ids).float().mean()
    assert same_tokens >= 0.99
