"""Editing: holes, windows, seams and iterations, and broken ones: `pytest tests/test_edit.py`."""

import numpy as np
import pytest
import torch
from minimuse.checks.lesson10 import EXERCISES
from PIL import Image, ImageDraw

from minimuse import data, edit, holes
from minimuse.cli import main
from minimuse.muse import Muse


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_properties(exercise):
    """Of the package's functions; lesson 10's exercises give them their signatures."""
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


# The pipeline, on the tiny model: 32 pixels, a unit of 8, high-res tokens of 4

CAPTION = "a small red circle on a grey background"


@pytest.fixture(scope="module")
def muse(tiny_model):
    return Muse.load(tiny_model)


def picture(width=32, height=32, seed=0):
    noise = np.random.default_rng(seed).integers(
        0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8
    )
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def mask(width=32, height=32, box=(16, 8, 32, 24)):
    image = Image.new("L", (width, height))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return image


@pytest.fixture
def drawn_ids(muse, monkeypatch):
    """The high-res ids (B, h, w) that the last picture was made of."""
    seen, decode = {}, muse.pixels
    monkeypatch.setattr(muse, "pixels", lambda ids, *how: seen.update(ids=ids) or decode(ids, *how))
    return seen


@pytest.mark.parametrize("box", [(16, 8, 32, 24), (0, 0, 1, 1), (3, 5, 30, 9), (0, 0, 32, 32)])
def test_tokens_outside_of_the_mask_stay(muse, drawn_ids, box):
    hole = holes.hole_from_mask(mask(box=box), 32, 32)
    _, before = edit.encode(muse, data.from_pil(picture()))
    first, second = edit.inpaint(muse, picture(), mask(box=box), CAPTION, n=2)
    ids, outside = drawn_ids["ids"], hole.view(8, 4, 8, 4).any(dim=3).any(dim=1).logical_not()
    assert ids.shape == (2, 8, 8) and 0 <= int(ids.min()) and int(ids.max()) < muse.superres.mask_id
    assert torch.equal(ids[:, outside], before[:, outside].expand(2, -1))
    assert first.size == second.size == (32, 32)
    again = edit.inpaint(muse, picture(), mask(box=box), CAPTION, n=2)
    assert first.tobytes() == again[0].tobytes()  # a function of the seed


def test_kept_pixels_are_the_pictures_own(muse):
    outside = ~holes.hole_from_mask(mask(), 32, 32).numpy()
    before = np.array(picture())
    kept, tokens = (
        np.array(edit.inpaint(muse, picture(), mask(), CAPTION, keep_pixels=k)[0])
        for k in (True, False)
    )
    assert (kept[outside] == before[outside]).all() and not (
        tokens[outside] == before[outside]
    ).all()
    assert not (kept[~outside] == before[~outside]).all()


def test_an_empty_mask_draws_nothing_and_says_so(muse):
    with pytest.warns(UserWarning, match="empty"):
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


def test_every_kind_of_picture_and_mask(muse):
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


def test_very_large_pictures_are_asked_about(muse):
    large = picture(140, 33)
    with pytest.raises(ValueError, match="140x33.*128x128.*--tile"):
        edit.inpaint(muse, large, mask(140, 33), CAPTION)
    assert edit.inpaint(muse, large, mask(140, 33), CAPTION, tile=True)[0].size == (140, 33)


@pytest.mark.parametrize(
    "pad", [(0, 0, 32, 0), (1, 0, 0, 0), (3, 9, 5, 17), (8, 8, 8, 8), (0, 40, 0, 0)]
)
@pytest.mark.parametrize("size", [(32, 32), (27, 21)])
def test_outpainting_puts_the_picture_where_it_belongs(muse, pad, size):
    (after,) = edit.outpaint(muse, picture(*size), CAPTION, pad, keep_pixels=True)
    left, top, right, bottom = pad
    assert after.size == (left + size[0] + right, top + size[1] + bottom)
    assert (
        after.crop((left, top, left + size[0], top + size[1])).tobytes() == picture(*size).tobytes()
    )


def test_outpainting_needs_something_to_do(muse):
    for pad in ((0, 0, 0, 0), (-1, 0, 3, 0)):
        with pytest.raises(ValueError, match="pad is"):
            edit.outpaint(muse, picture(), CAPTION, pad)


def test_an_iteration_redraws_its_share_and_no_more(muse):
    states = list(edit.edits(muse, picture(), CAPTION, iterations=6, share=0.2, n=3))
    assert len(states) == 7 and all(s.shape == (3, 16) for s in states)
    assert torch.equal(states[0][0], states[0][1])
    for before, after in zip(states, states[1:], strict=False):
        assert int((before != after).sum(-1).max()) <= 4  # 0.2 of 16, rounded up
        assert 0 <= int(after.min()) and int(after.max()) < muse.base.mask_id
    assert not torch.equal(states[-1], states[0]) and not torch.equal(states[-1][0], states[-1][1])
    again = list(edit.edits(muse, picture(), CAPTION, iterations=6, share=0.2, n=3))
    assert all(torch.equal(a, b) for a, b in zip(states, again, strict=True))
    other = list(
        edit.edits(
            muse,
            picture(),
            CAPTION,
            iterations=6,
            share=0.2,
            n=3,
            guidance=0.0,
            top_k=1,
            temperature=0.0,
        )
    )
    assert not torch.equal(states[-1], other[-1])


def test_editing_leaves_high_res_tokens_under_unchanged_ones(muse, drawn_ids):
    *_, low = edit.edits(muse, picture(), CAPTION, iterations=2)
    was, before = edit.encode(muse, data.from_pil(picture()))
    edit.finish(muse, picture(), CAPTION, low)
    same = (low.view(1, 4, 4) == was).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert same.any() and not same.all()
    assert torch.equal(drawn_ids["ids"].view(1, 8, 8)[same], before[same])
    unchanged = edit.finish(muse, picture(), CAPTION, was.flatten(1))
    assert unchanged[0].tobytes() == edit.edit(muse, picture(), CAPTION, 0)[0].tobytes()


def test_mask_free_editing_draws_as_asked_at_both_resolutions(muse, monkeypatch):
    asked, steps = [], muse.steps
    monkeypatch.setattr(
        muse,
        "steps",
        lambda *a, sampling_hi, **k: (
            asked.append(sampling_hi) or steps(*a, sampling_hi=sampling_hi, **k)
        ),
    )
    edit.edit(muse, picture(), CAPTION, 1, guidance=7.0, steps=2)
    edit.edit(muse, picture(), CAPTION, 1)
    own = muse.config.sampling_hi
    assert asked[0].guidance == 7.0 and asked[0].steps == own.steps and asked[1] == own


def test_mask_free_editing_refuses(muse):
    with pytest.raises(ValueError, match="40x32.*32x32"):
        edit.edit(muse, picture(40, 32), CAPTION)
    for wrong in (dict(iterations=-1), dict(share=0.0), dict(share=1.5)):
        with pytest.raises(ValueError, match="iterations|share"):
            edit.edit(muse, picture(), CAPTION, **wrong)
    assert edit.edit(muse, picture(20, 13), CAPTION, 1)[0].size == (20, 13)


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


@pytest.mark.parametrize(
    "argv, names",
    [
        (["inpaint", "p.png", "nope.png", "a"], "nope.png"),
        (["inpaint", "nope.png", "m.png", "a"], "nope.png"),
        (["inpaint", "p.png", "m.txt", "a"], "m.txt"),
        (["inpaint", "p.png", "m.png", "a", "--n", "0"], "--n is 0"),
        (["outpaint", "p.png", "a"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "x"], "--pad"),
        (["outpaint", "p.png", "a", "--pad", "1,2"], "left,top,right,bottom"),
        (["outpaint", "p.png", "a", "--pad", "0"], "pad is 0,0,0,0"),
        (["outpaint", "p.png", "a", "--pad", "300"], "--tile"),
        (["edit", "p.png", "a", "--iterations", "-1"], "iterations -1"),
        (["edit", "p.png", "a", "--share", "2"], "share 2"),
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
    assert {p.name for p in tmp_path.iterdir()} == {
        "p.png",
        "m.png",
        "m.txt",
    }  # nothing half-written


def test_the_command_line_edits(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("p.png")
    mask().save("m.png")
    how = ["--model", str(tiny_model), "--sampler", "halton"]
    assert (
        main(
            [
                "inpaint",
                "p.png",
                "m.png",
                CAPTION,
                "-o",
                "i.png",
                "--n",
                "2",
                "--keep-pixels",
                "--sheet",
                "is.png",
                *how,
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "outpaint",
                "p.png",
                CAPTION,
                "--pad",
                "4,0,8,0",
                "-o",
                "o.png",
                "--sheet",
                "os.png",
                *how,
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "edit",
                "p.png",
                CAPTION,
                "--iterations",
                "2",
                "-o",
                "e.png",
                "--sheet",
                "es.png",
                *how,
            ]
        )
        == 0
    )
    sizes = {name: Image.open(name).size for name in ("i-0.png", "i-1.png", "o.png", "e.png")}
    assert sizes == {"i-0.png": (32, 32), "i-1.png": (32, 32), "o.png": (44, 32), "e.png": (32, 32)}
    assert (
        Image.open("is.png").width > 4 * 64
        and Image.open("es.png").width > 2 * 64
        and Image.open("os.png").width > 3 * 44
    )
