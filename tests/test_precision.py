"""What is frozen, and the codebook, are computed in float32, whatever the caller has set.

pytest tests/test_precision.py
"""

import threading
from contextlib import ExitStack, contextmanager, nullcontext

import pytest
import torch
import torch.nn.functional as F

from minimuse import losses
from minimuse.data import Images
from minimuse.plumbing import config
from minimuse.plumbing.parts import build
from minimuse.plumbing.precision import EXACT_PRODUCTS, full_precision
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache
from minimuse.vq import EMAQuantizer, FSQuantizer

NEW_SETTINGS = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # from PyTorch 2.9 on
CAPTIONS = ["a red circle", "a small blue square on a grey background", "", "two green rings"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture
def fast_at_bf16(monkeypatch):
    """As on a CPU with AMX: `minimuse.plumbing.device.autocast` is bfloat16."""
    monkeypatch.setattr("minimuse.plumbing.device.cpu_is_fast_at_bf16", lambda: True)


# --- The codebook, and autocast ---
def latents(count=2000, width=8):
    return torch.randn(count, width, generator=generator())


def codebook(z):
    quantizer = EMAQuantizer(64, z.shape[-1])
    quantizer.codebook.copy_(z[:64])
    return quantizer


def test_nearest_codes_do_not_depend_on_autocast():
    z = latents()
    quantizer = codebook(z)
    expected = quantizer.nearest(z)
    with bf16():
        assert torch.equal(quantizer.nearest(z), expected)
        rounded = torch.addmm(
            quantizer.codebook.square().sum(-1), z, quantizer.codebook.T, alpha=-2.0
        ).argmin(-1)
    assert not torch.equal(rounded, expected), "bf16 gives the same ids: this test cannot fail"


def test_k_means_does_not_depend_on_autocast():
    books = []
    for precision in (nullcontext(), bf16()):
        quantizer = EMAQuantizer(64, 8)
        with precision:
            quantizer.start(latents(), generator())
        books.append(quantizer.state_dict())
    for name, tensor in books[0].items():
        assert torch.equal(tensor, books[1][name]), name


def test_updates_do_not_depend_on_autocast():
    books = []
    for precision in (nullcontext(), bf16()):
        quantizer = codebook(latents())
        for step in range(3):
            z = latents() + step
            with precision:
                quantizer.update(z, quantizer.nearest(z), generator(step))
        books.append(quantizer.state_dict())
    for name, tensor in books[0].items():
        assert torch.equal(tensor, books[1][name]), name


def test_finite_scalar_quantization_of_bf16_latents_is_in_float32():
    z = latents(4000, 2).bfloat16()
    quantizer = FSQuantizer((7, 9))
    assert torch.equal(quantizer.nearest(z), quantizer.nearest(z.float()))


def tokenizer():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("tokenizer", config.PRESETS["tiny"], 16).eval()


def random_images(count=64, side=16):
    return 2 * torch.rand(count, 3, side, side, generator=generator(1)) - 1


def test_the_codebook_is_placed_by_what_encode_computes(fast_at_bf16):
    """The k-means of a training: its latents, too, are those of `encode`."""
    net, images = tokenizer(), random_images()
    expected = EMAQuantizer(64, 8)
    with torch.no_grad():
        expected.start(net.latents(images), generator())
    losses.place_codes(net, iter(images.split(32)), generator(), "cpu")
    assert torch.equal(net.quantizer.codebook, expected.codebook)


# --- The text encoder ---
def embedded(text, captions):
    embeddings, visible = text(captions)
    return [row[is_word] for row, is_word in zip(embeddings, visible, strict=True)]


@pytest.fixture(scope="module")
def text():
    return load_t5("t5-toy")


def test_captions_do_not_depend_on_autocast(text):
    expected, _ = text(CAPTIONS)
    with bf16():
        assert torch.equal(text(CAPTIONS)[0], expected)


def test_training_sees_the_embeddings_that_drawing_sees(text, fast_at_bf16):
    """Computed at once for all captions, on a CPU that is fast at bf16."""
    of_training = cache.embed_captions(text, CAPTIONS)
    for a, b in zip(of_training, embedded(text, CAPTIONS), strict=True):
        assert torch.equal(a.float(), b)


def test_training_from_tokens_sees_them_too(text, fast_at_bf16):
    """Through `Tokens`, which lays all captions end to end."""
    pixels = torch.zeros(len(CAPTIONS), 3, 32, 32, dtype=torch.uint8)
    images = Images(pixels, [(caption,) for caption in CAPTIONS], CAPTIONS)
    tokens = cache.tokens_of({"tokenizer": tokenizer()}, text, images)
    embeddings, visible = tokens.captions(torch.arange(len(CAPTIONS)))
    for i, expected in enumerate(embedded(text, CAPTIONS)):
        # Captions are sorted and padded in another order, which changes the last digits.
        assert torch.allclose(embeddings[i][visible[i]], expected, rtol=1e-4, atol=1e-5)


def test_the_cache_on_disk_rounds_nothing(text, tmp_path):
    pixels = torch.zeros(len(CAPTIONS), 3, 32, 32, dtype=torch.uint8)
    images = Images(pixels, [(caption,) for caption in CAPTIONS], CAPTIONS)
    parts = {"tokenizer": tokenizer()}
    list(cache.write_cache(tmp_path, {}, parts, text, images, "cpu", 4096))
    stored = cache.read_cache(tmp_path, {}).captions(torch.arange(len(CAPTIONS)))
    in_memory = cache.tokens_of(parts, text, images).captions(torch.arange(len(CAPTIONS)))
    assert torch.equal(stored[0], in_memory[0]) and torch.equal(stored[1], in_memory[1])


def test_an_encoder_in_bf16_loses_nothing_in_bf16():
    """As XXL: its embeddings are stored in two bytes a number, and are what drawing sees."""
    text = load_t5("t5-toy", dtype=torch.bfloat16)
    stored = cache.embed_captions(text, CAPTIONS)
    assert {embedding.dtype for embedding in stored} == {torch.bfloat16}
    for a, b in zip(stored, embedded(text, CAPTIONS), strict=True):
        assert torch.equal(a.float(), b)


def test_token_ids_are_the_same_in_training_and_in_editing(fast_at_bf16):
    net, images = tokenizer(), random_images(side=32)
    pixels = ((images + 1) * 127.5).round().byte()
    data = Images(pixels, [("",)] * len(images), [""] * len(images))
    ids = cache.token_ids({"low": net}, data, torch.arange(len(images)), "cpu", 16)["low"]
    halved = F.avg_pool2d(data.batch(range(len(images))), 2)
    assert torch.equal(ids.long(), net.encode(halved).flatten(1))


# --- What a caller allows: products in TF32 and in bfloat16 ---
def float32_state():
    """Everything that PyTorch says of the precision of float32 products."""
    state = {}
    for name, read in (
        ("matmul", torch.get_float32_matmul_precision),
        ("cublas", lambda: torch.backends.cuda.matmul.allow_tf32),
        ("cudnn", lambda: torch.backends.cudnn.allow_tf32),
    ):
        try:
            state[name] = read()
        except RuntimeError:  # old and new settings were mixed by the caller
            state[name] = "mixed"
    if NEW_SETTINGS:
        state["new"] = [owner.fp32_precision for owner in new_owners()]
    return state


def new_owners():
    backends = torch.backends
    return [
        backends,
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]


@contextmanager
def restored():
    """Undo what a test sets."""
    precision = torch.get_float32_matmul_precision()
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        if NEW_SETTINGS:
            for owner in new_owners():
                owner.fp32_precision = "none"
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def set_old(precision):
    return lambda: torch.set_float32_matmul_precision(precision)


def allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def set_new(number, value):
    def set_it():
        new_owners()[number].fp32_precision = value

    return set_it


WAYS = {"high": set_old("high"), "medium": set_old("medium"), "tf32": allow_tf32}
if NEW_SETTINGS:
    WAYS |= {
        "all tf32": set_new(0, "tf32"),
        "all bf16": set_new(0, "bf16"),
        "cublas tf32": set_new(1, "tf32"),
        "cudnn ieee": set_new(2, "ieee"),
        "mkldnn bf16": set_new(3, "bf16"),
        "convolutions bf16": set_new(4, "bf16"),
    }


def is_exact(kind):
    """Whether products on this kind of device are in float32, by what is set."""
    reduced = ("tf32", "bf16", "high", "medium", True)
    return not any(read() in reduced for read, _, _ in EXACT_PRODUCTS[kind].settings)


def exactness_inside_addmm(monkeypatch, kind):
    """Note what is set whenever distances are computed."""
    noted = []
    addmm = torch.addmm

    def noting(*args, **kwargs):
        noted.append(is_exact(kind))
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", noting)
    return noted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_inside_products_are_exact_and_after_it_all_is_as_before(way, kind):
    with restored():
        WAYS[way]()
        before = float32_state()
        with full_precision(kind):
            assert is_exact(kind)
            with full_precision(kind):
                assert is_exact(kind)
            assert is_exact(kind), "the inner context restored what the outer one needs"
        assert float32_state() == before
        with pytest.raises(KeyError), full_precision(kind):
            raise KeyError
        assert float32_state() == before


@pytest.mark.parametrize("way", WAYS)
def test_encode_and_nearest_are_exact_under_every_setting(way, monkeypatch):
    net, images = tokenizer(), random_images(4)
    expected = net.encode(images)
    noted = exactness_inside_addmm(monkeypatch, "cpu")
    with restored():
        WAYS[way]()
        before = float32_state()
        assert torch.equal(net.encode(images), expected)
        net.quantizer.nearest(latents())
        net(images)
        net.quantizer.start(latents(), generator())
        assert float32_state() == before
    assert len(noted) > 10 and all(noted)


def test_captions_are_exact_under_every_setting(text, monkeypatch):
    noted = []
    linear = F.linear

    def noting(*args):
        noted.append(is_exact("cpu"))
        return linear(*args)

    monkeypatch.setattr(F, "linear", noting)
    with restored():
        torch.set_float32_matmul_precision("medium")
        text(CAPTIONS)
    assert noted and all(noted)


def test_the_last_of_several_threads_restores():
    """The settings are global: a thread that ends must not take them from another one."""
    inside, may_end = threading.Event(), threading.Event()

    def other():
        with full_precision("cpu"):
            inside.set()
            may_end.wait(10)

    thread = threading.Thread(target=other)
    with restored(), ExitStack() as stack:
        torch.set_float32_matmul_precision("medium")
        before = float32_state()
        stack.callback(thread.join)
        stack.callback(may_end.set)
        with full_precision("cpu"):
            thread.start()
            inside.wait(10)
        assert is_exact("cpu"), "the other thread still computes"
        stack.close()
        assert float32_state() == before
