"""What a caller has set in PyTorch neither changes what minimuse computes, nor is changed by it.

pytest tests/test_caller_state.py
"""

import ast
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import minimuse
from minimuse import Muse, decode, edit, losses, maskgit
from minimuse.cli.figures import decoding_frames
from minimuse.data import Images
from minimuse.datasets import load
from minimuse.metrics.report import report
from minimuse.plumbing import config
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.parts import build, load_part
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache, stages
from minimuse.runs.directory import describe_model
from minimuse.train import training_loop
from minimuse.vq_loss import ImageLoss

STAGES = ("tokenizer", "tokenizer_hi", "base", "superres", "decoder")
PROMPT = "a large red circle on a black background"
SETTINGS = [f"stages.{stage}.{x}" for stage in STAGES for x in ("steps=3", "batch=2")]
SETTINGS += ["scenes=4", "loss.discriminator_channels=4"]
CONFIG = config.override(config.PRESETS["tiny"], SETTINGS)


# --- What callers set ---
@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": default_dtype,
    "a device": default_device,
    "within a device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": deterministic,
}


def state():
    """What a caller may have set, and may notice."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "random numbers": torch.random.get_rng_state().sum().item(),
    }


@contextmanager
def unchanged():
    before, numbers = state(), torch.random.get_rng_state()
    yield
    assert state() == before
    assert torch.equal(torch.random.get_rng_state(), numbers), "the caller's numbers were used"


# --- Training ---
@pytest.fixture(scope="module")
def text():
    return load_t5("t5-toy")


def train(out, text):
    for _ in stages.train_all(STAGES, out, CONFIG, "shapes", text, "t5-toy"):
        pass
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text):
    return train(tmp_path_factory.mktemp("usual") / "model", text)


@pytest.mark.parametrize("name", STATES)
def test_training_does_not_depend_on_the_caller(name, trained, text, tmp_path):
    """All stages, as a library: the same weights, bit for bit, and the caller's state back."""
    with STATES[name](), unchanged():
        train(tmp_path / "model", text)
    for stage in STAGES:
        expected = load_file(trained / f"{stage}.safetensors")
        got = load_file(tmp_path / "model" / f"{stage}.safetensors")
        assert expected.keys() == got.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, got[key]), f"{stage}: {key}"


@pytest.mark.parametrize("name", STATES)
def test_between_two_steps_the_caller_has_its_own_state(name, text, tmp_path):
    with STATES[name]():
        before = state()
        records = stages.train_all(("tokenizer",), tmp_path, CONFIG, "shapes", text, "t5-toy")
        seen = []
        for _ in records:
            seen.append(state())
        assert seen == [before] * 3
        assert state() == before


# --- Drawing and measuring ---
def drawn(model):
    muse = Muse.load(model)
    images = muse.generate(PROMPT, n=2, seed=1)
    images += edit.inpaint(muse, images[0], Image.new("L", (32, 32), "white"), PROMPT, seed=1)
    images += edit.outpaint(muse, images[0], PROMPT, (8, 0, 0, 0))
    images += edit.edit(muse, images[0], PROMPT, iterations=1)
    return [image.tobytes() for image in images]


@pytest.mark.parametrize("name", STATES)
def test_drawing_does_not_depend_on_the_caller(name, trained):
    expected = drawn(trained)
    with STATES[name](), unchanged():
        assert drawn(trained) == expected


@pytest.mark.parametrize("name", ["float64", "a device", "autocast", "inference mode"])
def test_measures_do_not_depend_on_the_caller(name, trained):
    muse = Muse.load(trained)
    expected, _ = report(muse, 2, splits=("heldout",))
    with STATES[name](), unchanged():
        got, _ = report(Muse.load(trained), 2, splits=("heldout",))
    assert repr(got) == repr(expected)


def test_a_model_loaded_in_inference_mode_can_be_trained_further(trained):
    with torch.inference_mode():
        muse = Muse.load(trained)
    ids = torch.zeros(1, muse.base.decoder.grid**2, dtype=torch.long)
    muse.base.requires_grad_(True)
    text, visible = muse.text([PROMPT])
    muse.base(ids, muse.base.context(text, visible)).sum().backward()


def test_a_cache_does_not_depend_on_the_caller(trained, tmp_path):
    """Written in a strange state and in the usual one: the same tokens."""
    tokens = []
    for strange in (nullcontext, default_dtype, torch.inference_mode, STATES["autocast"]):
        with strange(), unchanged():
            list(stages.fill_cache(trained, "cpu"))
        tokens.append(load_file(trained / "cache" / "000000.safetensors"))
    for other in tokens[1:]:
        for key, tensor in tokens[0].items():
            assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("name", ["float64", "a device", "inference mode"])
def test_the_parts_of_a_model_do_not_depend_on_the_caller(name, text):
    """Data, text embeddings and masks, which lessons and users compute one by one."""

    def computed():
        images = load("emoji", "train", 16, 2).pixels
        embeddings, visible = load_t5("t5-toy")(["a red apple", ""])
        generator = generator_at(0)
        masked = maskgit.hide(torch.zeros(2, 16, dtype=torch.long, device="cpu"), 8, generator)
        kept = maskgit.drop_captions(visible, 0.5, generator)
        return [images, load("shapes", "train", 16, 2).pixels, embeddings, *masked, kept]

    expected = computed()
    with STATES[name](), unchanged():
        got = computed()
    for a, b in zip(expected, got, strict=True):
        assert torch.equal(a, b)


def test_embeddings_made_in_inference_mode_can_be_trained_on(text):
    with torch.inference_mode():
        embeddings, _ = text(["a red apple"])
    layer = torch.nn.Linear(text.width, 2)
    layer(embeddings).sum().backward()


def test_random_numbers_do_not_depend_on_the_default_dtype():
    """In float64 the same generator would draw other masks, captions and tokens."""
    draws = []
    for strange in (nullcontext, default_dtype):
        with strange():
            generator = generator_at(0)
            draws.append(
                [
                    decode.gumbel((3, 4), generator),
                    minimuse.schedule.random_masks(torch.tensor([2, 3]), 8, generator),
                ]
            )
    for a, b in zip(*draws, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


# --- Generators: nothing may leak through a yield ---
SETS_STATE = {
    "autocast",
    "full_precision",
    "usual_state",
    "no_grad",
    "enable_grad",
    "set_grad_enabled",
    "inference_mode",
    "fork_rng",
    "device",
    "flags",
    "sdpa_kernel",
    "initial_random_numbers",
}


def leaks(tree):
    """Lines of `yield` inside of `with autocast(...)`, or another context that sets a state.

    A function decorated with @contextmanager is such a context itself.
    """
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        if any("contextmanager" in ast.unparse(d) for d in function.decorator_list):
            continue
        for block in ast.walk(function):
            if isinstance(block, ast.With) and sets_state(block):
                found += [n.lineno for n in ast.walk(block) if is_yield(n)]
    return found


def sets_state(block):
    for item in block.items:
        call = item.context_expr
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
            if name in SETS_STATE:
                return True
    return False


def is_yield(node):
    return isinstance(node, ast.Yield | ast.YieldFrom)


def test_no_yield_stands_inside_a_context_that_sets_a_state():
    for path in sorted(Path(minimuse.__file__).parent.rglob("*.py")):
        assert not leaks(ast.parse(path.read_text())), path


@pytest.mark.parametrize(
    "code, count",
    [
        ("def f():\n with autocast(d):\n  yield 1", 1),
        ("def f():\n with torch.no_grad():\n  for x in y:\n   yield x", 1),
        ("def f():\n with open(p), torch.autocast('cpu'):\n  yield from x", 1),
        ("def f():\n with autocast(d):\n  x = 1\n yield x", 0),
        ("@contextmanager\ndef f():\n with autocast(d):\n  yield", 0),
    ],
)
def test_a_leak_is_found(code, count):
    assert len(leaks(ast.parse(code))) == count


@pytest.fixture
def fast_at_bf16(monkeypatch):
    """As on a CPU with AMX: `minimuse.plumbing.device.autocast` is bfloat16."""
    monkeypatch.setattr("minimuse.plumbing.device.cpu_is_fast_at_bf16", lambda: True)


def four_images():
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator_at(0))
    return Images(pixels, [(PROMPT,)] * 4, list("abcd"))


def image_model(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = ImageLoss(replace(CONFIG.loss), None)
        return torch.nn.ModuleDict({"part": build(name, CONFIG, 256), "loss": loss})


def loss_generators(text):
    """The generator of each loss, at a step in which all of it is on."""
    images, step = four_images(), 2
    tokenizers = {}
    for name in ("tokenizer", "tokenizer_hi"):
        model = image_model(name)
        tokenizers[name] = model["part"]
        settings = getattr(CONFIG.stages, name)
        low = name == "tokenizer"
        yield losses.tokenizer_loss(model, images, CONFIG, settings, low, "cpu"), step
        yield losses.tokenizer_loss(model, images, CONFIG, settings, low, "cpu"), 0
        yield losses.tokenizer_loss(model, images, CONFIG, settings, low, "cpu"), 1
    model = image_model("decoder")
    settings = CONFIG.stages.decoder
    frozen = tokenizers["tokenizer_hi"]
    yield losses.decoder_loss(model, frozen, images, CONFIG, settings, "cpu"), step
    tokens = cache.tokens_of(tokenizers, text, images)
    for name, resolution in (("base", "low"), ("superres", "high")):
        model = build(name, CONFIG, text.width)
        yield losses.token_loss(model, tokens, CONFIG, resolution, "cpu"), step


def test_backward_passes_run_outside_of_autocast(text, fast_at_bf16):
    """After next(loss_of(...)) autocast is off, so the caller's backward pass is in float32."""
    seen = 0
    for loss_of, step in loss_generators(text):
        generator = loss_of(torch.arange(2), generator_at(step), step)
        loss, _ = next(generator)
        assert not torch.is_autocast_enabled("cpu")
        loss.backward()
        generator.close()
        assert not torch.is_autocast_enabled("cpu")
        seen += 1
    assert seen == 9


def generators_of(trained, text, folder):
    """One of each kind of generator that computes."""
    muse = Muse.load(trained)
    image = Image.new("RGB", (32, 32), "white")
    yield "Muse.steps", muse.steps([PROMPT])
    prompts = muse.embed_prompts([PROMPT])
    contexts = muse.contexts(muse.base, prompts, 1.0)
    ids = muse.hidden_grid(muse.base, muse.config.tokenizer.grid, 1)
    sampling = muse.config.sampling
    yield (
        "decode",
        decode.decode(
            muse.base, ids, muse.base.mask_id, *contexts, sampling, muse.generators("low", 0, 1)
        ),
    )
    yield "edit.edits", edit.edits(muse, image, PROMPT, iterations=2)
    yield "decoding_frames", decoding_frames(muse, [PROMPT])
    yield "fill_cache", stages.fill_cache(trained, "cpu")
    images, parts = four_images(), {"tokenizer": muse.tokenizer}
    yield "write_cache", cache.write_cache(folder / "a", {}, parts, text, images, "cpu", 2)
    yield (
        "train_all",
        stages.train_all(("tokenizer",), folder / "b", CONFIG, "shapes", text, "t5-toy"),
    )
    about = describe_model(CONFIG, "shapes", text, "t5-toy", 0)
    yield "train_stage", stages.train_stage("tokenizer", folder / "c", about, images, text)
    model = image_model("tokenizer")
    settings = CONFIG.stages.tokenizer
    loss_of = losses.tokenizer_loss(model, images, CONFIG, settings, True, "cpu")
    yield (
        "training_loop",
        training_loop("tokenizer", model, loss_of, settings, 4, 0, folder / "none", {}),
    )


def test_between_two_items_of_every_generator_all_is_as_before(
    trained, text, tmp_path, fast_at_bf16
):
    before = state()
    for name, generator in generators_of(trained, text, tmp_path):
        for count, _ in zip(range(2), generator, strict=False):
            now = state() | {"random numbers": before["random numbers"]}
            assert now == before, f"{name} after item {count}"
        generator.close()
    assert torch.is_grad_enabled()


def test_a_generator_is_decorated_as_one():
    @in_usual_state
    def numbers():
        for i in range(3):
            yield i, torch.get_default_dtype(), torch.is_inference_mode_enabled()

    ended = []

    @in_usual_state
    def endless():
        try:
            while True:
                yield 0
        finally:
            ended.append(torch.get_default_dtype())

    with default_dtype(), torch.inference_mode():
        assert [*numbers()] == [(i, torch.float32, False) for i in range(3)]
        run = endless()
        next(run)
        run.close()
    assert ended == [torch.float32]
    assert numbers.__name__ == "numbers"


# --- Random numbers ---
def test_loading_and_training_use_none_of_the_callers_random_numbers(trained, text, tmp_path):
    with unchanged():
        load_part(trained, "tokenizer", CONFIG, text.width)
    with unchanged():
        train(tmp_path / "model", text)
    with unchanged():
        list(stages.fill_cache(trained, "cpu"))


def test_weights_are_drawn_without_seeding_a_gpu(monkeypatch, trained, text, tmp_path):
    """torch.manual_seed would set the caller's generators of all devices."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeds every device"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds GPUs"))
    train(tmp_path / "model", text)
