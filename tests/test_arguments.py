"""Arguments that are no numbers: tensors, images, prompts, devices, names of settings.

What is wrong is refused by name before any network runs: `pytest tests/test_arguments.py`.
"""

# ruff: noqa: B023 (the functions made in loops are called in them)

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from minimuse import decode, edit, schedule
from minimuse.data import Images, from_pil, to_pil
from minimuse.datasets import load
from minimuse.decode import Sampling
from minimuse.metrics.images import psnr, ssim
from minimuse.metrics.likelihood import masked_nll
from minimuse.muse import Muse
from minimuse.plumbing import arguments
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.parts import PARTS, save_part
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import stages

PROMPT = "a small red circle on a grey background"
PICTURE = Image.new("RGB", (32, 32), (60, 60, 60))
PIXELS = from_pil(PICTURE)  # 3 32 32
HOLE = torch.zeros(32, 32, dtype=torch.bool)
HOLE[:, 16:] = True
MASK = Image.fromarray(HOLE.numpy())
LOW = torch.zeros(1, 16, dtype=torch.int64)  # ids of the tiny model
HIGH = torch.zeros(1, 64, dtype=torch.int64)
TEXTS = [PROMPT, PROMPT]


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


@pytest.fixture
def idle():
    """No network may run."""

    def fail(module, inputs):
        pytest.fail(f"{type(module).__name__} ran before the argument was refused")

    hook = register_module_forward_pre_hook(fail)
    yield
    hook.remove()


def test_the_fixture_notices_a_network(muse, idle):
    for run in (
        lambda: muse.generate(PROMPT),
        lambda: muse.pixels(LOW, "low"),
        lambda: edit.encode(muse, PIXELS),
        lambda: muse.text([PROMPT]),
    ):
        with pytest.raises(pytest.fail.Exception, match="ran before"):
            run()


def refused(match, call, error=ValueError):
    """The call raises an error of one line, which names the argument."""
    with pytest.raises(error, match=match) as raised:
        call()
    assert "\n" not in str(raised.value)


# --- Files ---
@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int32, torch.bool, torch.complex64, torch.float64, "int8", None, float],
)
def test_a_dtype_that_loses_the_weights(muse, tmp_path, dtype):
    refused("^dtype is .*choose torch.float32, .*int8", lambda: muse.save(tmp_path / "new", dtype))
    assert not (tmp_path / "new").exists()
    refused("^dtype is ", lambda: save_part(tmp_path, "base", muse.base, dtype))
    assert not list(tmp_path.iterdir())


def test_a_model_in_the_folder_stays(muse, tmp_path):
    muse.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == len(PARTS) + 1
    refused("^dtype", lambda: muse.save(tmp_path, torch.uint8))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("path", [b"toy", None, 3, ["toy"]])
def test_names_that_are_no_paths(muse, tiny_model, path):
    refused("^name is .*not a name or a path", lambda: Muse.load(path))
    refused("^directory is .*not a name or a path", lambda: muse.save(path))
    if path is not None:
        refused("^t5 is .*not a name or a path", lambda: Muse.load(tiny_model, t5=path))


# --- Devices ---
@pytest.mark.parametrize("device", ["foo", "", "cuda:99", "cuda:x", "meta", "xpu", 3.5, None])
def test_devices_that_are_not_there(tiny_model, tmp_path, device):
    """With the same words, wherever a model is loaded or trained."""
    text = load_t5("t5-toy")
    args = (("tokenizer",), tmp_path / "new", PRESETS["tiny"], "shapes", text, "t5-toy", 0)
    words = "^device is .*cpu, cuda or mps"
    refused(words, lambda: Muse.load(tiny_model, device))
    refused(words, lambda: next(stages.train_all(*args, device)))
    refused(words, lambda: next(stages.train_stage("tokenizer", tmp_path, {}, None, text, device)))
    refused(words, lambda: next(stages.fill_cache(tiny_model, device)))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a PyTorch without CUDA")
def test_cuda_without_cuda(tiny_model):
    refused(
        "^device is 'cuda', which is not available .*say auto, cpu",
        lambda: Muse.load(tiny_model, "cuda"),
    )


def test_a_device_of_pytorch(tiny_model):
    assert Muse.load(tiny_model, torch.device("cpu")).device == torch.device("cpu")


# --- Token ids and what becomes of them ---
NOT_IDS = {
    "array": lambda ids: ids.numpy(),
    "list": lambda ids: ids.tolist(),
    "bool": lambda ids: ids.bool(),
    "uint8": lambda ids: ids.byte(),
    "int16": lambda ids: ids.short(),
    "float": lambda ids: ids.float(),
    "complex": lambda ids: ids.to(torch.complex64),
    "another device": lambda ids: ids.to("meta"),
    "one image": lambda ids: ids[0],
    "four dimensions": lambda ids: ids[None, None],
    "too few": lambda ids: ids[:, 1:],
    "negative": lambda ids: ids - 1,
    "too large": lambda ids: ids + 10**6,
    "text": lambda ids: "ids",
}


@pytest.mark.parametrize("kind", NOT_IDS)
def test_what_is_no_token_ids(muse, idle, kind):
    change = NOT_IDS[kind]
    for name, ids in (("low", LOW), ("high", HIGH)):
        wrong = {name: change(ids)}
        refused(f"^{name} ", lambda: muse.draw([PROMPT], **wrong))
        refused(f"^{name} ", lambda: muse.steps([PROMPT], **wrong))
        refused("^ids ", lambda: muse.pixels(change(ids), name))
    refused("^ids ", lambda: muse.pixels(change(HIGH), "high", finetuned=False))
    refused("^low ", lambda: edit.finish(muse, PICTURE, PROMPT, change(LOW)))
    if kind not in ("another device", "too few"):
        refused("^ids ", lambda: muse.tokenizer.decode(change(LOW.view(1, 4, 4))))


def test_a_mask_id_is_no_picture(muse, idle):
    """`draw` starts from mask ids. Pixels need codes, in every decoder."""
    hidden = torch.full((1, 64), muse.superres.mask_id)
    words = f"^ids has values {muse.superres.mask_id}..{muse.superres.mask_id}, not 0..63$"
    for finetuned in (True, False):
        refused(words, lambda: muse.pixels(hidden, "high", finetuned))
    refused("^low has values", lambda: edit.finish(muse, PICTURE, PROMPT, LOW + muse.base.mask_id))


@pytest.mark.parametrize("resolution", ["LOW", "hi", "", None, 32, b"low"])
def test_resolutions_that_there_are_not(muse, idle, resolution):
    refused("^resolution is .*choose one of low, high", lambda: muse.pixels(LOW, resolution))


def test_ids_of_the_other_resolution(muse, idle):
    """Today's 16 of 64 ids would be a strip of 8 x 2 tokens."""
    refused("^ids .*64", lambda: muse.pixels(LOW, "high"))
    refused("^ids .*16", lambda: muse.pixels(HIGH, "low"))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_both_types_of_ids(muse, dtype):
    expected = muse.draw([PROMPT], low=LOW, high=HIGH)
    for image, same in zip(
        expected, muse.draw([PROMPT], low=LOW.to(dtype), high=HIGH.to(dtype)), strict=True
    ):
        assert torch.equal(image, same)
    wide = muse.pixels(torch.zeros(2, 4, 6, dtype=dtype), "low")
    assert wide.shape == (2, 3, 16, 24)


@pytest.mark.parametrize(
    "change",
    [
        lambda vectors: vectors.double(),
        lambda vectors: vectors.long(),
        lambda vectors: vectors[..., :-1],
        lambda vectors: vectors.flatten(1, 2),
        lambda vectors: vectors.tolist(),
        lambda vectors: vectors / 0,
        lambda vectors: vectors.to("meta"),
        lambda vectors: "vectors",
        lambda vectors: None,
    ],
)
def test_what_is_no_vectors(muse, idle, change):
    vectors = muse.tokenizer_hi.quantizer.lookup(torch.zeros(1, 8, 8, dtype=torch.long))
    refused("^vectors ", lambda: muse.decode_vectors(change(vectors), "high"))
    refused("^resolution is", lambda: muse.decode_vectors(vectors, "middle"))


# --- Prompts ---
class Column:
    """Like a column of a table: it has a length and items, and is no list."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(TEXTS)


NOT_LISTS = {
    "generator": lambda: (text for text in TEXTS),
    "array": lambda: np.array(TEXTS),
    "set": lambda: {PROMPT},
    "dict": lambda: {PROMPT: 1},
    "number": lambda: 3,
    "None": lambda: None,
    "text": lambda: PROMPT,
    "bytes": lambda: b"red",
    "map": lambda: map(str, TEXTS),
    "column": Column,
}


@pytest.mark.parametrize("kind", NOT_LISTS)
def test_what_is_no_list_of_texts(muse, idle, kind):
    make = NOT_LISTS[kind]
    for call in (muse.draw, muse.steps, muse.embed_prompts):
        refused("^prompts is .*not a list of texts", lambda: call(make()))
    refused("^texts is .*not a list of texts", lambda: muse.text(make()))
    refused("^texts is .*not a list of texts", lambda: muse.text.tokenizer.encode(make()))


@pytest.mark.parametrize("text", [1, None, b"red", ["a"], np.array(["a"])])
def test_what_is_no_text(muse, idle, text):
    for call in (
        lambda: muse.generate(text),
        lambda: muse.draw([PROMPT, text]),
        lambda: muse.steps([text]),
        lambda: muse.generate(PROMPT, negative=text),
        lambda: edit.fill(muse, PIXELS, HOLE, text),
        lambda: edit.fill(muse, PIXELS, HOLE, PROMPT, negative=text),
        lambda: edit.edits(muse, PICTURE, text),
        lambda: edit.edit(muse, PICTURE, text),
        lambda: edit.finish(muse, PICTURE, text, LOW),
    ):
        refused("^the (negative )?prompt is .*not a text", call)
    refused("^a text is .*not a text", lambda: muse.text([PROMPT, text]))


def test_tuples_of_prompts(muse):
    a, b = muse.draw(tuple(TEXTS))[1], muse.draw(TEXTS)[1]
    assert torch.equal(a, b)


# --- Settings ---
@pytest.mark.parametrize(
    "call",
    [
        lambda muse, **a: muse.generate(PROMPT, **a),
        lambda muse, **a: muse.sampling(**a),
        lambda muse, **a: edit.fill(muse, PIXELS, HOLE, PROMPT, **a),
        lambda muse, **a: edit.inpaint(muse, PICTURE, MASK, PROMPT, **a),
        lambda muse, **a: edit.outpaint(muse, PICTURE, PROMPT, (1, 0, 0, 0), **a),
        lambda muse, **a: edit.edits(muse, PICTURE, PROMPT, **a),
        lambda muse, **a: edit.edit(muse, PICTURE, PROMPT, **a),
        lambda muse, **a: edit.finish(muse, PICTURE, PROMPT, LOW, **a),
    ],
)
def test_settings_that_there_are_not(muse, idle, call):
    for name in ("batch", "stpes", "cfg_scale", "sampling"):
        words = f"no setting {name!r}; there is steps, guidance, .*law"
        refused(words, lambda: call(muse, **{name: 1}), TypeError)
        refused(words, lambda: call(muse, **{name: None}), TypeError)


def test_draw_says_where_settings_go(muse, idle):
    words = r"^draw has no argument 'steps'; .*sampling=muse.sampling\(steps=\.\.\.\)\[0\]"
    refused(words, lambda: muse.draw([PROMPT], steps=3), TypeError)
    # What is no setting is not sent to `sampling`, which would refuse it, too.
    words = r"^draw has no argument 'nevative'; [a-z_, ]*plain$"
    refused(words, lambda: muse.draw([PROMPT], nevative=""), TypeError)


@pytest.mark.parametrize("wrong", [{"steps": 3}, {}, 3, "low", (Sampling(), Sampling()), Sampling])
def test_what_is_no_sampling(muse, idle, wrong):
    for name in ("sampling", "sampling_hi"):
        words = rf"^{name} is .*not a Sampling; muse.sampling\(steps=3\)"
        refused(words, lambda: muse.draw([PROMPT], **{name: wrong}))
        refused(words, lambda: muse.steps([PROMPT], **{name: wrong}))


@pytest.mark.parametrize("wrong", ["no", 1, 0, None, "True", np.True_])
def test_switches(muse, idle, wrong):
    """A text is true, also the text "no"."""
    refused("^plain is .*True or False", lambda: muse.draw([PROMPT], plain=wrong))
    refused("^plain is .*True or False", lambda: muse.steps([PROMPT], plain=wrong))
    refused("^plain is .*True or False", lambda: muse.embed_prompts([PROMPT], plain=wrong))
    refused("^finetuned is", lambda: muse.pixels(HIGH, "high", finetuned=wrong))
    refused("^keep_pixels is", lambda: edit.fill(muse, PIXELS, HOLE, PROMPT, keep_pixels=wrong))
    refused("^tile is", lambda: edit.inpaint(muse, PICTURE, MASK, PROMPT, tile=wrong))
    refused("^tile is", lambda: edit.outpaint(muse, PICTURE, PROMPT, (1, 0, 0, 0), tile=wrong))


# --- Pixels and holes ---
NOT_PIXELS = {
    "0 to 255": lambda x: (x + 1) * 127.5,
    "NaN": lambda x: x * float("nan"),
    "one NaN": lambda x: x.index_fill(-1, torch.tensor(3), float("nan")),
    "infinite": lambda x: x - float("inf"),
    "bytes": lambda x: x.byte(),
    "channels last": lambda x: x.movedim(-3, -1),
    "grey": lambda x: x[..., :1, :, :],
    "RGBA": lambda x: torch.cat([x, x[..., :1, :, :]], -3),
    "one dimension more": lambda x: x[None],
    "one dimension less": lambda x: x[0],
    "no pixels": lambda x: x[..., :0],
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "PIL": lambda x: PICTURE,
    "None": lambda x: None,
}


@pytest.mark.parametrize("kind", NOT_PIXELS)
def test_what_is_no_pixels(muse, idle, kind):
    wrong = NOT_PIXELS[kind](PIXELS)
    words = r"^pixels .*\(3, H, W\).*in \[-1, 1\]"
    refused(words, lambda: edit.fill(muse, wrong, HOLE, PROMPT))
    refused(words, lambda: edit.encode_around(muse, wrong, HOLE))
    refused(words, lambda: edit.encode(muse, wrong))
    wrong = NOT_PIXELS[kind](PIXELS[None])
    words = r"^images .*\(B, 3, H, W\).*in \[-1, 1\]"
    refused(words, lambda: muse.tokenizer.encode(wrong))
    refused(words, lambda: muse.tokenizer_hi.encode(wrong))


def test_floats_of_any_size(muse):
    """Half and double precision are pixels, too, and give the same image."""
    half = (PIXELS * 4).round() / 4  # exact in all of them
    expected = edit.fill(muse, half, HOLE, PROMPT, keep_pixels=True)[0].tobytes()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        (image,) = edit.fill(muse, half.to(dtype), HOLE, PROMPT, keep_pixels=True)
        assert image.tobytes() == expected


@pytest.mark.parametrize(
    "hole",
    [
        HOLE[:16],
        HOLE[:, :16],
        HOLE.repeat(2, 2),
        HOLE[None],
        HOLE.float(),
        HOLE.byte(),
        torch.full((32, 32), float("nan")),
        torch.full((32, 32), -1.0),
        HOLE.numpy(),
        MASK,
        None,
    ],
    ids=lambda hole: str(getattr(hole, "shape", "")) + str(getattr(hole, "dtype", type(hole))),
)
def test_what_is_no_hole(muse, idle, hole):
    words = r"^hole is .*bool tensor \(32, 32\)"
    for keep_pixels in (False, True):
        refused(words, lambda: edit.fill(muse, PIXELS, hole, PROMPT, keep_pixels=keep_pixels))
    refused(words, lambda: edit.encode_around(muse, PIXELS, hole))


@pytest.mark.parametrize(
    "measure, a, b",
    [
        (psnr, (2, 3, 16, 16), (1, 3, 16, 16)),
        (psnr, (2, 3, 16, 16), (3, 16, 16)),
        (ssim, (2, 3, 16, 16), (1, 3, 16, 16)),
        (ssim, (2, 3, 16, 16), (2, 3, 16, 1)),
        (psnr, (2, 3, 16, 16), (2, 1, 16, 16)),
    ],
)
def test_measures_of_images_of_two_shapes(measure, a, b):
    """PyTorch would repeat the smaller one."""
    refused(
        "^images are .* and .*: give two of one shape",
        lambda: measure(torch.zeros(a), torch.zeros(b)),
    )


@pytest.mark.parametrize(
    "images", [PIXELS, PIXELS[None].byte(), PIXELS[None].numpy(), None, PICTURE]
)
def test_what_becomes_no_pil_images(images):
    refused(r"^images .*\(B, 3, H, W\)", lambda: to_pil(images))


# --- PIL images ---
NOT_IMAGES = {
    "array": np.array(PICTURE),
    "path": "a.png",
    "Path": Path("a.png"),
    "tensor": PIXELS,
    "bools": np.ones((32, 32), bool),
    "None": None,
    "no pixels": Image.new("RGB", (0, 0)),
    "no width": Image.new("L", (0, 32)),
    "16 bits": Image.new("I;16", (32, 32)),
    "32 bits": Image.new("I", (32, 32)),
    "floats": Image.new("F", (32, 32)),
    "LAB": Image.new("LAB", (32, 32)),
}


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_what_is_no_pil_image(muse, idle, kind):
    wrong = NOT_IMAGES[kind]
    is_image = isinstance(wrong, Image.Image)
    words = "(has|is) .*(8 bits|pixel)" if is_image else "is .*not a PIL image; .*Image.open"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a mask without pixels is not resized first
        for call in (
            lambda: edit.inpaint(muse, wrong, MASK, PROMPT),
            lambda: edit.outpaint(muse, wrong, PROMPT, (1, 0, 0, 0)),
            lambda: edit.edits(muse, wrong, PROMPT),
            lambda: edit.edit(muse, wrong, PROMPT),
            lambda: edit.finish(muse, wrong, PROMPT, LOW),
        ):
            refused(f"^image {words}", call)
        refused(f"^mask {words}", lambda: edit.inpaint(muse, PICTURE, wrong, PROMPT))


def test_an_image_too_large_to_be_finished(muse, idle):
    large = Image.new("RGB", (40, 32))
    refused("40x32.*32x32", lambda: edit.finish(muse, large, PROMPT, LOW))
    refused("40x32.*32x32", lambda: edit.edits(muse, large, PROMPT))


# --- Data of one's own ---
BYTES = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
CAPTIONS = [("a",), ("b", "c")]


@pytest.mark.parametrize(
    "pixels, captions, names, words",
    [
        (BYTES.float() / 127.5 - 1, CAPTIONS, ["a", "b"], "^pixels is .*torch.uint8$"),
        (BYTES.permute(0, 2, 3, 1), CAPTIONS, ["a", "b"], "^pixels is .*(M, 3, H, W)"),
        (BYTES.numpy(), CAPTIONS, ["a", "b"], "^pixels is .*ndarray"),
        (BYTES[0], CAPTIONS, ["a", "b"], "^pixels is "),
        (BYTES, CAPTIONS[:1], ["a", "b"], "2 images, captions for 1, and 2 names"),
        (BYTES, CAPTIONS, ["a", "b", "c"], "2 images, captions for 2, and 3 names"),
        (BYTES, ["a red thing"] * 2, ["a", "b"], "^captions has 'a red thing'; give a tuple"),
        (BYTES, [("a",), ()], ["a", "b"], r"^captions has \(\).*; give a tuple"),
        (BYTES, [("a",), (None,)], ["a", "b"], "^a caption is None.*not a text"),
    ],
)
def test_what_is_no_dataset(pixels, captions, names, words):
    """Captions that are texts would be trained on letter by letter."""
    refused(words, lambda: Images(pixels, captions, names))


# --- Random numbers ---
@pytest.mark.parametrize("generator", [None, 3, "cpu", np.random.default_rng(0)])
def test_random_numbers_come_from_a_generator(generator):
    """PyTorch would take None for its global one, which belongs to the caller."""
    words = "^generator is .*, not a torch.Generator"
    before = torch.get_rng_state()
    refused(words, lambda: schedule.random_masks(torch.tensor([2]), 4, generator))
    refused(words, lambda: schedule.sample_ratios(2, generator))
    refused(words, lambda: decode.gumbel((2, 2), generator))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "generators",
    [
        None,
        torch.Generator(),
        [],
        [torch.Generator()],
        [torch.Generator()] * 3,
        [0, 1],
        [None, None],
    ],
)
def test_each_image_has_its_own_generator(muse, generators):
    def draw():
        context = muse.base.context(*muse.text([PROMPT] * 2))
        ids = torch.full((2, 16), muse.base.mask_id)
        rest = (muse.base.mask_id, context, None, Sampling())
        return list(decode.decode(muse.base, ids, *rest, generators))

    refused("^generators? is", draw)


def test_nothing_to_decode_are_no_steps(muse):
    context = muse.base.context(*muse.text([]))
    ids = torch.full((0, 16), muse.base.mask_id)
    rest = (muse.base.mask_id, context, None, Sampling())
    assert list(decode.decode(muse.base, ids, *rest, [])) == []


def test_what_is_remembered_stays_as_it_is():
    decode.halton_order(36).zero_()
    assert sorted(decode.halton_order(36).tolist()) == list(range(36))
    with torch.device("meta"):  # another size: it is not remembered yet
        assert decode.halton_order(49).device == torch.device("cpu")
    assert sorted(decode.halton_order(49).tolist()) == list(range(49))


# --- Measures ---
@pytest.mark.parametrize("ratio", [0, -1, 2, float("nan"), None])
def test_fractions_of_hidden_tokens(muse, ratio):
    refused("^ratio is", lambda: masked_nll(muse.base, LOW, None, ratio))


def test_ids_as_a_cache_stores_them(muse):
    text, visible = muse.text([PROMPT])

    def context(rows):
        return muse.base.context(text[rows], visible[rows])

    assert masked_nll(muse.base, LOW.int(), context, 0.5) == masked_nll(
        muse.base, LOW, context, 0.5
    )


def test_a_measure_does_not_depend_on_the_default_device():
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        assert ssim(x, x) == pytest.approx(1.0)


# --- Messages ---
@pytest.mark.parametrize(
    "name, value, words",
    [
        ("steps", "3", "^steps is '3', not a whole number"),
        ("guidance", "", "^guidance is '', not a number"),
        ("ramp", np.bool_(True), r"^ramp is True, of type numpy\.bool_?, not True or False$"),
        ("guided", np.array([0.0, 1.0]), r"^guided is \[0\. 1\.\], of type numpy.ndarray, not 2"),
        ("top_k", torch.tensor(3), "^top_k is .*of type torch.Tensor, not a whole number"),
        ("law", [], r"^law is \[\], not a name"),
        ("law", "circle", "^law is 'circle'; choose one of exp, cubic"),
        ("sampler", "best", "^sampler is 'best'; choose one of confidence, "),
    ],
)
def test_a_value_of_another_type_is_shown_with_it(name, value, words):
    """Not "steps is 3, not a whole number"."""
    refused(words, lambda: Sampling(**{name: value}))


def test_assignments_are_a_list():
    refused("^assignments is .*not a list", lambda: override(PRESETS["tiny"], "base.width=64"))


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64, torch.int8, torch.float16])
def test_precisions_of_the_text_encoder(dtype):
    refused(
        "^dtype is .*; take torch.float32 or torch.bfloat16", lambda: load_t5("t5-toy", dtype=dtype)
    )


# --- Generators ---
def test_generators_check_their_arguments_at_once(muse, idle):
    """Not with their first item, in another place."""
    refused("^seed is", lambda: muse.steps([PROMPT], seed=float("nan")))
    refused("nothing to draw", lambda: muse.steps([]))
    for wrong in ({"iterations": -1}, {"share": 0}, {"n": 0}, {"seed": None}, {"guidance": -1}):
        (name,) = wrong
        refused(f"^{name} is", lambda: edit.edits(muse, PICTURE, PROMPT, **wrong))


# --- Warnings ---
def caught(call):
    """The warnings of a call that began in this file."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        call()
    return told


def test_warnings_point_to_the_callers_line(muse, tmp_path):
    """So that filters by module, and `-W error::UserWarning:__main__`, find them."""
    empty = Image.new("L", (32, 32))
    small = MASK.resize((16, 16))
    muse_of_emoji = Muse(muse.config, muse.text, muse.parts, muse.about | {"data": "emoji"})
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        PICTURE.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a picture")
    (folder / "0.png").write_bytes(b"no image")
    long = "a red circle " * 80
    for words, call in {
        "nothing in the mask is white": lambda: edit.inpaint(muse, PICTURE, empty, PROMPT),
        "the mask is 16x16": lambda: edit.inpaint(muse, PICTURE, small, PROMPT),
        "names no style": lambda: muse_of_emoji.generate("an apple"),
        "read as words": lambda: muse.generate("a cat:0.5"),
        "only a prompt is composed": lambda: muse.generate(PROMPT, negative="a AND b"),
        "was cut to": lambda: muse.text([long]),
        "left out": lambda: load(str(folder), "train", 16, skip_unreadable=True),
        "a caption of": lambda: muse.generate(long),
    }.items():
        told = caught(call)
        assert any(words in str(warning.message) for warning in told), words
        assert {warning.filename for warning in told} == {__file__}, words


def test_a_warning_of_a_generator_points_to_its_user(muse):
    told = caught(lambda: list(edit.edits(muse, PICTURE, "a cat:0.5", iterations=1)))
    assert {warning.filename for warning in told} == {__file__}


# --- Which device ---
@pytest.mark.parametrize(
    "cuda, mps, best",
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_gpu_if_there_is_one(monkeypatch, cuda, mps, best):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)
    assert arguments.chosen_device("auto") == best
    assert arguments.chosen_device("cpu") == "cpu"
