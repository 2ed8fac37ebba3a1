"""Editing: holes, windows, seams and iterations, and broken versions of them."""

import numpy as np
import pytest
import torch
from minimuse.checks.lesson10 import EXERCISES
from PIL import Image, ImageDraw

from minimuse import data, edit
from minimuse.cli import main
from minimuse.decode import Sampling
from minimuse.muse import Muse
from minimuse.plumbing import arguments, holes


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_properties(exercise):
    """The package's functions, which have the signatures of lesson 10's exercises."""
    for prop in exercise.properties:
        prop(exercise.ours)


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_broken_ones_are_refused(exercise, planted_profile):
    for planted in exercise.wrong:
        refused = []
        for prop in exercise.properties:
            try:
                prop(planted)
            except Exception as error:
                refused.append(error)
        assert refused, f"{exercise.name}: {planted} passes"


# --- The pipeline, on the tiny model ---
# It draws 32 x 32 pixels. Low-res tokens are 8 pixels wide in them, high-res tokens 4.
CAPTION = "a small red circle on a grey background"


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def picture(width=32, height=32, seed=0):
    """An image of soft random colours."""
    shape = (height // 4 + 1, width // 4 + 1, 3)
    noise = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def mask(width=32, height=32, box=(16, 8, 32, 24)):
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return image


@pytest.fixture
def drawn_ids(muse, monkeypatch):
    """The high-res ids (B, h, w) that the last image was made of."""
    seen = {}
    package = muse.decode_vectors

    def decode_vectors(vectors, resolution, *rest):
        # The tiny model has no mean vectors: each is that of a code.
        seen["ids"] = muse.tokenizers[resolution].quantizer.nearest(vectors)
        return package(vectors, resolution, *rest)

    monkeypatch.setattr(muse, "decode_vectors", decode_vectors)
    return seen


# --- Inpainting and outpainting ---
@pytest.mark.parametrize("box", [(16, 8, 32, 24), (0, 0, 1, 1), (3, 5, 30, 9), (0, 0, 32, 32)])
def test_tokens_outside_of_the_mask_stay(muse, drawn_ids, box):
    hole = holes.hole_from_mask(mask(box=box), 32, 32)
    _, before = edit.encode(muse, data.from_pil(picture()))
    first, second = edit.inpaint(muse, picture(), mask(box=box), CAPTION, n=2)
    ids = drawn_ids["ids"]
    assert ids.shape == (2, 8, 8)
    assert 0 <= int(ids.min()) and int(ids.max()) < muse.superres.mask_id
    outside = ~hole.view(8, 4, 8, 4).any(dim=3).any(dim=1)
    assert torch.equal(ids[:, outside], before[:, outside].expand(2, -1))
    assert first.size == second.size == (32, 32)
    again = edit.inpaint(muse, picture(), mask(box=box), CAPTION, n=2)
    assert first.tobytes() == again[0].tobytes()  # a function of the seed


def test_encoding_around_a_hole_hides_the_tokens_that_touch_it(muse):
    hole = torch.zeros(20, 32, dtype=torch.bool)
    hole[7:9, 4] = True  # it touches two tokens in both grids
    pixels = data.from_pil(picture(32, 20))
    low, high = edit.encode_around(muse, pixels, hole)
    assert (low[0] == muse.base.mask_id).nonzero().tolist() == [[0, 0], [1, 0]]
    assert (high[0] == muse.superres.mask_id).nonzero().tolist() == [[1, 1], [2, 1]]
    whole_low, whole_high = edit.encode(muse, pixels)
    assert low.shape == whole_low.shape == (1, 4, 4)
    assert int((low != whole_low).sum()) == int((high != whole_high).sum()) == 2


def test_kept_pixels_are_the_images_own(muse):
    outside = ~holes.hole_from_mask(mask(), 32, 32).numpy()
    before = np.array(picture())
    (kept,) = edit.inpaint(muse, picture(), mask(), CAPTION, keep_pixels=True)
    (drawn,) = edit.inpaint(muse, picture(), mask(), CAPTION, keep_pixels=False)
    kept = np.array(kept)
    drawn = np.array(drawn)
    assert (kept[outside] == before[outside]).all()
    assert not (drawn[outside] == before[outside]).all()
    assert not (kept[~outside] == before[~outside]).all()


def test_an_empty_mask_draws_nothing_and_says_so(muse):
    with pytest.warns(UserWarning, match="nothing in the mask is white"):
        (after,) = edit.inpaint(
            muse, picture(), Image.new("L", (32, 32)), CAPTION, keep_pixels=True
        )
    assert after.tobytes() == picture().tobytes()


def test_a_full_mask_is_a_drawing(muse):
    full = edit.inpaint(muse, picture(), Image.new("L", (32, 32), 255), CAPTION, seed=3)[0]
    assert full.tobytes() == muse.generate(CAPTION, seed=3)[0].tobytes()


def test_a_mask_of_another_size_is_resized(muse):
    with pytest.warns(UserWarning, match="16x16.*32x32"):
        small = edit.inpaint(muse, picture(), mask(16, 16, (8, 4, 16, 12)), CAPTION)[0]
    assert small.tobytes() == edit.inpaint(muse, picture(), mask(), CAPTION)[0].tobytes()


def test_every_kind_of_image_and_mask(muse):
    plain = edit.inpaint(muse, picture(), mask(), CAPTION)[0].tobytes()
    as_rgba = mask().convert("RGBA")
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    clear.paste((0, 0, 0, 0), (16, 8, 32, 24))  # a hole cut out of a black mask
    for other in (mask().convert("RGB"), as_rgba, mask().convert("1"), mask().convert("P"), clear):
        assert edit.inpaint(muse, picture(), other, CAPTION)[0].tobytes() == plain, other.mode
    assert edit.inpaint(muse, picture().convert("RGBA"), mask(), CAPTION)[0].tobytes() == plain
    for mode in ("L", "P", "1", "LA", "CMYK"):
        assert edit.inpaint(muse, picture().convert(mode), mask(), CAPTION)[0].mode == "RGB"
    for mode in ("I", "F", "I;16"):
        with pytest.raises(ValueError, match="8 bits"):
            edit.inpaint(muse, Image.new(mode, (32, 32)), mask(), CAPTION)
    seethrough = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 32), "white")
    assert data.from_pil(seethrough).equal(data.from_pil(white))


@pytest.mark.parametrize("size", [(5, 7), (31, 33), (40, 32), (50, 47), (128, 20)])
def test_any_size_comes_back_as_it_was(muse, size):
    box = (size[0] // 3, size[1] // 3, size[0], size[1])
    (after,) = edit.inpaint(muse, picture(*size), mask(*size, box), CAPTION, keep_pixels=True)
    assert after.size == size
    outside = ~holes.hole_from_mask(mask(*size, box), *size).numpy()
    assert (np.array(after)[outside] == np.array(picture(*size))[outside]).all()


def test_very_large_images_are_asked_about(muse):
    large = picture(140, 33)
    with pytest.raises(ValueError, match="140x33.*128x128.*--tile"):
        edit.inpaint(muse, large, mask(140, 33), CAPTION)
    assert edit.inpaint(muse, large, mask(140, 33), CAPTION, tile=True)[0].size == (140, 33)


@pytest.mark.parametrize(
    "pad", [(0, 0, 32, 0), (1, 0, 0, 0), (3, 9, 5, 17), (8, 8, 8, 8), (0, 40, 0, 0)]
)
@pytest.mark.parametrize("size", [(32, 32), (27, 21)])
def test_outpainting_puts_the_image_where_it_belongs(muse, pad, size):
    (after,) = edit.outpaint(muse, picture(*size), CAPTION, pad, keep_pixels=True)
    left, top, right, bottom = pad
    width, height = size
    assert after.size == (left + width + right, top + height + bottom)
    inside = after.crop((left, top, left + width, top + height))
    assert inside.tobytes() == picture(*size).tobytes()


def test_narrow_part_beside_a_wide_one_is_redrawn():
    """The blend of a thin line does not depend on what else the hole holds."""
    line = torch.zeros(24, 40, dtype=torch.bool)
    line[4:20, 3] = True
    square = torch.zeros(24, 40, dtype=torch.bool)
    square[4:20, 20:36] = True
    alone = [holes.feather_weight(part, width=3)[0, 0] for part in (line, square)]
    both = holes.feather_weight(line | square, width=3)[0, 0]
    assert both[line].eq(1).all()
    assert both.equal(alone[0] + alone[1])
    # The square: a third at its edge, two thirds one pixel further in, then all of it.
    row = both[12, 20:36]
    torch.testing.assert_close(row[:4], torch.tensor([1 / 3, 2 / 3, 1.0, 1.0]))


def test_outpainting_needs_something_to_do(muse):
    for pad in ((0, 0, 0, 0), (-1, 0, 3, 0), 8, None):
        with pytest.raises(ValueError, match="pad is"):
            edit.outpaint(muse, picture(), CAPTION, pad)


# --- Windows ---
def test_windows_end_and_see_as_much_as_they_can():
    """From a known corner of a grid, windows come one after the other until nothing is hidden."""
    low_hidden = torch.ones(6, 9, dtype=torch.bool)
    high_hidden = torch.ones(12, 18, dtype=torch.bool)
    low_hidden[:2, :3] = False
    high_hidden[:4, :6] = False
    windows = []
    window = holes.next_window(low_hidden, high_hidden, 4)
    while window is not None:
        windows.append(window)
        y, x = window
        low = low_hidden[y : y + 4, x : x + 4]
        high = high_hidden[2 * y : 2 * y + 8, 2 * x : 2 * x + 8]
        assert low.shape == (4, 4) and high.shape == (8, 8)
        assert low.any() or high.any()
        low[:] = False  # views: this fills the window
        high[:] = False
        window = holes.next_window(low_hidden, high_hidden, 4)
    assert windows[0] == (0, 0)
    assert len(windows) == len(set(windows))
    assert not low_hidden.any() and not high_hidden.any()


def test_windows_look_at_high_res_tokens_too():
    low_hidden = torch.zeros(2, 4, dtype=torch.bool)
    high_hidden = torch.zeros(4, 8, dtype=torch.bool)
    assert holes.next_window(low_hidden, high_hidden, 2) is None
    high_hidden[0, 7] = True
    assert holes.next_window(low_hidden, high_hidden, 2) == (0, 2)


# --- Mask-free editing ---
def test_an_iteration_redraws_its_share_and_no_more(muse):
    settings = {"iterations": 6, "share": 0.2, "n": 3}
    states = list(edit.edits(muse, picture(), CAPTION, **settings))
    assert len(states) == 7
    assert all(state.shape == (3, 16) for state in states)
    assert torch.equal(states[0][0], states[0][1])
    for before, after in zip(states, states[1:], strict=False):
        assert int((before != after).sum(-1).max()) <= 4  # 0.2 of 16, rounded up
        assert 0 <= int(after.min()) and int(after.max()) < muse.base.mask_id
    assert not torch.equal(states[-1], states[0])
    assert not torch.equal(states[-1][0], states[-1][1])
    again = list(edit.edits(muse, picture(), CAPTION, **settings))
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
    settings |= {"guidance": 0.0, "top_k": 1, "temperature": 0.0}
    *_, other = edit.edits(muse, picture(), CAPTION, **settings)
    assert not torch.equal(states[-1], other)


def test_iterations_are_resamplings(muse, monkeypatch):
    """Each iteration is one call of `resample`, with the share, the generators and the model."""
    calls = []
    resample = edit.resample

    def remember(ids, mask_id, share, generators, draw):
        calls.append((mask_id, share, generators))
        return resample(ids, mask_id, share, generators, draw)

    monkeypatch.setattr(edit, "resample", remember)
    list(edit.edits(muse, picture(), CAPTION, iterations=3, share=0.3))
    assert len(calls) == 3
    assert {call[:2] for call in calls} == {(muse.base.mask_id, 0.3)}
    assert len({id(generators) for _, _, generators in calls}) == 1


def test_editing_leaves_high_res_tokens_under_unchanged_ones(muse, drawn_ids):
    *_, low = edit.edits(muse, picture(), CAPTION, iterations=2)
    low_before, high_before = edit.encode(muse, data.from_pil(picture()))
    edit.finish(muse, picture(), CAPTION, low)
    unchanged = low.view(1, 4, 4) == low_before
    unchanged = unchanged.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert unchanged.any() and not unchanged.all()
    high = drawn_ids["ids"].view(1, 8, 8)
    assert torch.equal(high[unchanged], high_before[unchanged])
    (same,) = edit.finish(muse, picture(), CAPTION, low_before.flatten(1))
    assert same.tobytes() == edit.edit(muse, picture(), CAPTION, 0)[0].tobytes()


def test_finishing_hides_all_high_res_tokens_under_changed_ones(muse, monkeypatch):
    low_before, _ = edit.encode(muse, data.from_pil(picture()))
    low = low_before.flatten(1).clone()
    low[0, 5] = (low[0, 5] + 1) % muse.base.mask_id  # row 1, column 1
    started = []
    steps = muse.steps

    def remember(*args, high, **settings):
        started.append(high.view(8, 8))
        return steps(*args, high=high, **settings)

    monkeypatch.setattr(muse, "steps", remember)
    edit.finish(muse, picture(), CAPTION, low)
    hidden = (started[0] == muse.superres.mask_id).nonzero().tolist()
    assert hidden == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_mask_free_editing_draws_as_asked_at_both_resolutions(muse, monkeypatch):
    used = []
    steps = muse.steps

    def remember(*args, sampling_hi, **settings):
        used.append(sampling_hi)
        return steps(*args, sampling_hi=sampling_hi, **settings)

    monkeypatch.setattr(muse, "steps", remember)
    edit.edit(muse, picture(), CAPTION, 1, guidance=7.0, steps=2)
    edit.edit(muse, picture(), CAPTION, 1)
    own = muse.config.sampling_hi
    assert used[0].guidance == 7.0 and used[0].steps == own.steps
    assert used[1] == own


@pytest.mark.parametrize("setting", [*Sampling.__dataclass_fields__, "steps"])
def test_a_setting_that_is_none_is_the_models(muse, setting):
    """In every function that takes settings: None and not given are the same."""

    def everything(**settings):
        low = list(edit.edits(muse, picture(), CAPTION, 2, **settings))[-1]
        images = [
            *muse.generate(CAPTION, **settings),
            *edit.inpaint(muse, picture(), mask(), CAPTION, **settings),
            *edit.outpaint(muse, picture(), CAPTION, (4, 0, 0, 0), **settings),
            *edit.edit(muse, picture(), CAPTION, 2, **settings),
            *edit.finish(muse, picture(), CAPTION, low, **settings),
        ]
        return [image.tobytes() for image in images]

    assert everything(**{setting: None}) == everything()
    assert muse.sampling(**{setting: None}) == muse.sampling()


def test_an_image_has_an_end_also_in_tiles(muse, monkeypatch):
    monkeypatch.setattr(arguments, "MOST_PIXELS", 200 * 50)
    with pytest.raises(ValueError, match="201x50; at most 10,000 pixels"):
        edit.inpaint(muse, picture(201, 50), mask(201, 50), CAPTION, tile=True)
    with pytest.raises(ValueError, match="40x1032; at most"):
        edit.outpaint(muse, picture(), CAPTION, (8, 0, 0, 1000), tile=True)


def test_mask_free_editing_refuses(muse):
    with pytest.raises(ValueError, match="40x32.*32x32"):
        edit.edit(muse, picture(40, 32), CAPTION)
    for wrong in ({"iterations": -1}, {"share": 0.0}, {"share": 1.5}):
        with pytest.raises(ValueError, match="iterations|share"):
            edit.edit(muse, picture(), CAPTION, **wrong)
    assert edit.edit(muse, picture(20, 13), CAPTION, 1)[0].size == (20, 13)


# --- The command line ---
@pytest.mark.parametrize(
    "argv, names",
    [
        (["inpaint", "p.png", "nope.png", "a"], "nope.png"),
        (["inpaint", "nope.png", "m.png", "a"], "nope.png"),
        (["inpaint", "p.png", "m.txt", "a"], "m.txt"),
        (["inpaint", "p.png", "m.png", "a", "--n", "0"], "--n: 0 is not"),
        (["inpaint", "p.png", "m.png", "a", "--n", "100000000"], "--n: 100000000 is not"),
        (["edit", "p.png", "a", "--n", "9999", "--sheet", "s.webp"], "at most 16383 a side"),
        (["outpaint", "p.png", "a"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "x"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "1,2"], "left,top,right,bottom"),
        (["outpaint", "p.png", "a", "--pad", "0"], "pad is 0"),
        (["outpaint", "p.png", "a", "--pad", "1.5"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "nan"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "300"], "--tile"),
        (["outpaint", "p.png", "a", "--pad", "1000000", "--tile"], "at most 4,194,304 pixels"),
        (["outpaint", "p.png", "a", "--pad", "10000000000"], "--pad"),
        (["edit", "p.png", "a", "--iterations", "-1"], "--iterations: -1"),
        (["edit", "p.png", "a", "--iterations", "1000000000"], "--iterations: 1000000000"),
        (["edit", "p.png", "a", "--share", "2"], "--share: 2.0"),
        (["edit", "p.png", "a", "--share", "nan"], "--share: nan"),
        (["edit", "p.png", "a", "--seed", str(-(2**64))], "--seed"),
        (["edit", "p.png", "a", "-o", "nowhere/x.png"], "nowhere"),
    ],
)
def test_the_command_line_refuses(tiny_model, tmp_path, monkeypatch, capsys, argv, names):
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    mask().save("m.png")
    (tmp_path / "m.txt").write_text("no picture")
    capsys.readouterr()
    try:
        code = main([*argv, "--model", str(tiny_model)])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and names in lines[0], (code, lines)
    # Nothing half-written.
    assert {path.name for path in tmp_path.iterdir()} == {"p.png", "m.png", "m.txt"}


def test_the_command_line_edits(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    mask().save("m.png")
    settings = ["--model", str(tiny_model), "--sampler", "halton"]
    inpaint = ["inpaint", "p.png", "m.png", CAPTION, "--n", "2", "--keep-pixels"]
    outpaint = ["outpaint", "p.png", CAPTION, "--pad", "4,0,8,0"]
    mask_free = ["edit", "p.png", CAPTION, "--iterations", "2"]
    assert main([*inpaint, "-o", "i.png", "--sheet", "is.png", *settings]) == 0
    assert main([*outpaint, "-o", "o.png", "--sheet", "os.png", *settings]) == 0
    assert main([*mask_free, "-o", "e.png", "--sheet", "es.png", *settings]) == 0
    sizes = {name: Image.open(name).size for name in ("i-0.png", "i-1.png", "o.png", "e.png")}
    assert sizes == {"i-0.png": (32, 32), "i-1.png": (32, 32), "o.png": (44, 32), "e.png": (32, 32)}
    assert Image.open("is.png").width > 4 * 64
    assert Image.open("es.png").width > 2 * 64
    assert Image.open("os.png").width > 3 * 44
