"""`minimuse app`: what its page shows, its controls, and its command. No browser is needed.

    pytest tests/test_app.py
    pytest tests/test_app_browser.py      # the same in a browser

What needs Gradio is skipped where that is not installed.
"""

import importlib.util
import re
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from minimuse import Muse, edit
from minimuse.app import frames as views
from minimuse.app.turns import Turns
from minimuse.data import to_pil
from minimuse.decode import Sampling
from minimuse.plumbing.config import PRESETS

LESSONS = Path(__file__).parents[1] / "lessons"
CAPTION = "a large red circle on a white background"
ASKED = {"prompt": CAPTION, "negative": "", "seed": 3}


@pytest.fixture(scope="module")
def muse():
    return Muse.load("toy-shapes")


@pytest.fixture(scope="module")
def drawing(muse):
    return list(views.frames(muse, 2, **ASKED, guidance=2.0))


# --- Passes ---
@pytest.mark.parametrize(
    "asked",
    [
        ASKED,
        ASKED | {"negative": "a blue ring on a white background", "guidance": 4.0, "steps": 5},
        ASKED | {"sampler": "halton", "temperature": 0.7, "guided": (0.5, 1.0)},
        ASKED | {"sampler": "entropy", "entropy_bound": 5.0},
    ],
)
def test_the_last_frame_is_what_generate_draws(muse, asked):
    *_, last = views.frames(muse, 2, **asked)
    expected = [np.asarray(image) for image in muse.generate(n=2, **asked)]
    assert (views.images_of(muse, last) == np.stack(expected)).all()


def first_visible(hidden, place):
    """The number of the first pass after which a token is not hidden; 0 if there is none."""
    for number, step in enumerate(hidden, start=1):
        if not step[place]:
            return number
    return 0


@pytest.mark.parametrize("stage", ["low", "high"])
def test_a_token_has_the_number_of_the_pass_that_kept_it(muse, drawing, stage):
    steps = list(muse.steps([CAPTION] * 2, "", *muse.sampling(guidance=2.0), seed=3))
    assert len(steps) == len(drawing)
    of_stage = [frame for frame in drawing if frame.stage == stage]
    hidden = [step.hidden.numpy() for name, step in steps if name == stage]
    assert [frame.number for frame in of_stage] == list(range(1, len(of_stage) + 1))
    for frame in of_stage:
        for place in np.ndindex(frame.kept.shape):
            assert frame.kept[place] == first_visible(hidden[: frame.number], place)


@pytest.mark.parametrize(
    "more",
    [
        {"guidance": 3.0},
        {"negative": "a blue ring", "guidance": 1.0, "ramp": False, "steps": 6},
        {"sampler": "entropy", "entropy_bound": 6.0, "guidance": 2.0},
        {"prompt": f"{CAPTION} AND a blue ring:0.5", "guidance": 0.0},
    ],
)
def test_likely_codes_have_the_probabilities_that_decoding_used(muse, more):
    """Decoding notes the probability of each code it draws; the page computes that pass anew."""
    asked = ASKED | more
    passes = list(views.frames(muse, 2, **asked))
    torch.manual_seed(0)
    for frame in passes[:: max(1, len(passes) // 8)] + passes[-1:]:
        b, token = int(torch.randint(2, ())), int(torch.randint(frame.ids.shape[1], ()))
        p = views.code_probabilities(muse, asked, passes, frame, b, token)
        assert p.sum() == pytest.approx(1, abs=1e-4)
        code = frame.ids[b, token]
        assert float(p[code]) == pytest.approx(frame.probability[b, token], abs=1e-4)


def test_the_recorded_probability_stays_that_of_the_pass_that_drew_the_code(drawing):
    for before, after in zip(drawing, drawing[1:], strict=False):
        if before.stage == after.stage:
            known = before.kept > 0
            assert (after.probability[known] == before.probability[known]).all()
            assert (after.ids[known] == before.ids[known]).all()


# --- Images ---
def cell(image, b, token, frame):
    """The pixels of one token of an enlarged image of two."""
    h = int(frame.ids.shape[1] ** 0.5)
    size = views.SIDE // h
    y, x = token // h * size, token % h * size + b * views.SIDE
    return np.asarray(image)[y : y + size, x : x + size].astype(int)


def test_hidden_tokens_are_hatched_and_others_are_only_enlarged(muse, drawing):
    for frame in (drawing[2], drawing[-2]):
        image = views.guesses(muse, frame)
        pixels = views.images_of(muse, frame)
        factor = views.SIDE // pixels.shape[1]
        plain = np.concatenate(list(pixels.repeat(factor, 1).repeat(factor, 2)), axis=1)
        assert np.asarray(image).shape == plain.shape
        for b, token in np.ndindex(frame.ids.shape):
            same = cell(image, b, token, frame) == cell(plain, b, token, frame)
            assert same.all() == (frame.kept[b, token] > 0)


def test_the_heat_map_is_brighter_where_the_model_is_surer_and_frames_this_pass(drawing):
    frame = drawing[4]
    image = views.heat(frame)
    luminance = [views.HEAT @ [0.299, 0.587, 0.114]][0]
    assert (np.diff(luminance) > 20).all()
    for b, token in np.ndindex(frame.ids.shape):
        pixels = cell(image, b, token, frame)
        is_framed = (pixels[0, 0] == (255, 0, 0)).all()
        assert is_framed == (frame.kept[b, token] == frame.number)
        expected = np.interp(frame.probability[b, token], np.linspace(0, 1, 5), views.HEAT[:, 1])
        assert abs(pixels[5, 5, 1] - expected) <= 1


@pytest.mark.parametrize("B", [1, 2, 4])
def test_a_click_finds_the_token_under_it(B):
    ids = np.arange(B * 16).reshape(B, 16)
    page = np.asarray(views.enlarged(views.on_grid(ids), B))
    for y in range(3, page.shape[0], 48):
        for x in range(3, page.shape[1], 48):
            assert ids[views.token_at(ids, [x, y])] == page[y, x]


def test_the_frame_is_around_the_token_that_was_clicked(muse, drawing):
    frame = drawing[0]
    image = views.guesses(muse, frame, [views.SIDE + 100, 3])  # of image 1, token 1
    assert (cell(image, 1, 1, frame)[0, 0] == (255, 0, 255)).all()
    others = [place for place in np.ndindex(frame.ids.shape) if place != (1, 1)]
    assert not any((cell(image, *place, frame)[0, 0] == (255, 0, 255)).all() for place in others)


# --- Codes ---
@pytest.mark.parametrize("stage", ["low", "high"])
def test_a_click_on_the_sheet_of_codes_finds_each_code_once(muse, stage):
    order, images = views.all_codes(muse, stage)
    assert sorted(order) == list(range(len(order)))
    sheet = np.asarray(views.code_sheet(muse, stage, order))  # all are used, so none is pale
    size = 2 * views.SIDE // views.ROW
    for i, code in enumerate(order):
        x, y = i % views.ROW * size, i // views.ROW * size
        assert views.code_at(muse, stage, [x + 5, y + 5]) == code
        patch = Image.fromarray(images[i]).resize((size, size), Image.Resampling.NEAREST)
        assert abs(sheet[y : y + size, x : x + size].astype(int) - np.asarray(patch)).max() <= 1
    brightness = images.mean((1, 2, 3))
    assert (np.diff(brightness) >= 0).all()


def test_codes_that_no_token_has_are_pale(muse):
    order, _ = views.all_codes(muse, "low")
    sheets = [np.asarray(views.code_sheet(muse, "low", ids)) for ids in (order, order[:5])]
    size = 2 * views.SIDE // views.ROW
    differ = (sheets[0] != sheets[1]).any(-1)
    assert not differ[:size, : 5 * size].any()
    assert differ[size:].mean() > 0.5
    assert (sheets[1] >= sheets[0]).all()


# --- The command ---
def test_without_gradio_the_command_says_how_to_install_it(fails, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name)
    )
    assert "pip install -e '.[app]'" in fails("app")


def test_a_host_that_others_reach_must_be_wanted(fails):
    pytest.importorskip("gradio", reason="needs pip install -e '.[app]'")
    for host in ("0.0.0.0", "192.168.0.7", "127.0.0.1.example.org", ""):
        assert "--public" in fails("app", "--host", host)


def test_a_port_in_use_is_one_line(fails):
    pytest.importorskip("gradio", reason="needs pip install -e '.[app]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = fails("app", "--model", "toy-shapes", "--port", port)
    assert str(port) in line and "--port" in line


def test_mistakes_in_flags_are_one_line(fails):
    pytest.importorskip("gradio", reason="needs pip install -e '.[app]'")
    assert "no model 'nosuch'" in fails("app", "--model", "nosuch")


# --- The controls ---
@pytest.fixture(scope="module")
def page():
    pytest.importorskip("gradio", reason="needs pip install -e '.[app]'")
    from minimuse.app import page

    return page


@pytest.fixture(scope="module")
def blocks(page, muse):
    return page.build(lambda name: muse, "toy-shapes")


def test_every_control_says_what_it_is_and_names_a_lesson(blocks):
    import gradio as gr

    kinds = (gr.Slider, gr.Dropdown, gr.Textbox, gr.Number, gr.Radio, gr.Checkbox, gr.CheckboxGroup)
    controls = [block for block in blocks.blocks.values() if isinstance(block, kinds)]
    assert len(controls) >= 20
    for control in controls:
        numbers = re.findall(r"\d\d", control.info.partition("Lesson")[2])
        assert control.label and numbers, (control.label, control.info)
        assert all(list(LESSONS.glob(f"{number}-*.md")) for number in numbers)
        assert len(control.info) < 100


def test_every_button_says_below_what_it_does_and_names_a_lesson(blocks):
    import gradio as gr

    kinds = (gr.Button, gr.UploadButton)
    buttons = [block for block in blocks.blocks.values() if isinstance(block, kinds)]
    assert len(buttons) == 6
    for button in buttons:
        column = button.parent.children
        line = column[column.index(button) + 1].value
        numbers = re.findall(r"\d\d", line.partition("Lesson")[2])
        assert numbers, (button.value, line)
        assert all(list(LESSONS.glob(f"{number}-*.md")) for number in numbers)
        assert len(line) < 100


def test_there_is_a_control_for_every_field_of_sampling(page):
    # A model is distilled for one fraction of random codes, so nobody may choose it.
    names = {field.name for field in fields(Sampling)} - {"guided", "random_codes"}
    assert set(page.SETTINGS) == names | {"guided_from", "guided_to"}


def test_all_values_of_controls_are_allowed(page):
    base = {"sampler": "confidence", "guided": (0.0, 1.0)}
    for name, (_, _, values) in page.SETTINGS.items():
        for value in values if isinstance(values, list) else values[:2]:
            settings = {name: value}
            if name == "guided_from":
                settings = {"guided": (value, 1.0)}
            if name == "guided_to":
                settings = {"guided": (0.0, value)}
            Sampling(**base | settings)


def test_the_sampling_of_every_preset_fits_the_controls(page):
    for name, config in PRESETS.items():
        for value, (_, _, values) in zip(
            page.defaults(HasConfig(config)), page.SETTINGS.values(), strict=True
        ):
            fits = value in values if isinstance(values, list) else values[0] <= value <= values[1]
            assert fits, (name, value, values)


class HasConfig:
    """What `defaults` looks at of a model."""

    def __init__(self, config):
        self.config = config


def test_settings_that_are_the_models_are_left_to_the_model(page, muse):
    """Super-resolution has other ones, so to give them would change the image."""
    own = page.defaults(muse)
    assert page.changed(muse, own) == {}
    names = list(page.SETTINGS)
    values = list(own)
    values[names.index("temperature")] = 0.35
    values[names.index("guided_from")] = 0.25
    assert page.changed(muse, values) == {"temperature": 0.35, "guided": (0.25, 1.0)}
    other = HasConfig(replace(muse.config, sampling=replace(muse.config.sampling, top_k=5)))
    assert page.changed(other, own) == {"top_k": 0}


# --- Visitors at once ---
def test_turns_are_had_in_the_order_of_asking():
    turns, order = Turns(), []

    def ask(name):
        with turns.turn():
            order.append(name)

    visitors = [threading.Thread(target=ask, args=(name,)) for name in ("second", "third")]
    with turns.turn():
        order.append("first")
        for number, visitor in enumerate(visitors, start=2):
            visitor.start()
            deadline = time.monotonic() + 30
            while len(turns.queue) < number and time.monotonic() < deadline:
                time.sleep(0.001)
        assert len(turns.queue) == 3 and order == ["first"]
    ask("first")  # at once, and still after all who wait
    for visitor in visitors:
        visitor.join()
    assert order == ["first", "second", "third", "first"]


def test_a_turn_that_fails_is_given_back():
    turns = Turns()
    with pytest.raises(ValueError), turns.turn():
        raise ValueError
    assert not turns.queue


@pytest.fixture
def draw(blocks, page, muse, monkeypatch):
    """The event of the button Draw: its results, for a prompt and a seed."""
    (event,) = [each.fn for each in blocks.fns.values() if each.api_name == "draw"]
    # Without a browser, Gradio would make it a warning again, which the other visitor may hear.
    monkeypatch.setattr(page.gr, "Warning", lambda message, duration: None)
    settings = dict(zip(page.SETTINGS, page.defaults(muse), strict=True)) | {"steps": 6}
    return lambda prompt, seed: event("toy-shapes", prompt, "", seed, *settings.values(), 1)


def draw_at_once(draw, asked, muse, monkeypatch):
    """Two visitors draw: whose passes the model runs, in order, and the last result of each."""
    order, start = [], threading.Barrier(2)
    one_pass = muse.run_pass

    def run_pass(*arguments):
        order.append(threading.get_ident())
        return one_pass(*arguments)

    def visit(prompt, seed):
        start.wait()
        return list(draw(prompt, seed))[-1]

    monkeypatch.setattr(muse, "run_pass", run_pass)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(visit, *zip(*asked, strict=True)))
    monkeypatch.undo()
    return order, results


def take_turns(order):
    """Whether the next pass was mostly another visitor's."""
    changes = sum(one != next_one for one, next_one in pairwise(order))
    return changes > len(order) / 2


def test_two_events_at_once_take_turns_and_each_draws_what_it_draws_alone(draw, muse, monkeypatch):
    asked = [(CAPTION, 3), ("a large red zebra on a white background", 4)]
    order, results = draw_at_once(draw, asked, muse, monkeypatch)
    assert take_turns(order), order
    for (prompt, seed), (_, *_, picture) in zip(asked, results, strict=True):
        with pytest.warns(UserWarning) if "zebra" in prompt else nullcontext():
            (expected,) = muse.generate(prompt, seed=seed, steps=6)
        assert (np.asarray(picture) == np.asarray(expected)).all()
    # Each hears only its own warnings.
    assert ["zebra" in status for status, *_ in results] == [False, True]


def test_events_that_run_one_after_the_other_are_found(draw, muse, monkeypatch):
    lock = threading.Lock()

    def draw_alone(prompt, seed):
        with lock:
            yield from draw(prompt, seed)

    asked = [(CAPTION, 3), (CAPTION, 4)]
    order, _ = draw_at_once(draw_alone, asked, muse, monkeypatch)
    assert not take_turns(order), order


# --- Editing ---
@pytest.fixture(scope="module")
def events(page):
    return page.events


@pytest.fixture(scope="module")
def wide(muse):
    """An image as outpainting makes it: wider than those of training."""
    (image,) = muse.generate(CAPTION, seed=3, steps=4)
    (image,) = edit.outpaint(muse, image, CAPTION, pad=(0, 0, 32, 0), steps=4)
    return image


def test_all_iterations_of_an_edit_can_be_looked_at(events, muse):
    (image,) = muse.generate(CAPTION, seed=3, steps=4)
    asked = {"prompt": "a large blue circle on a white background", "negative": "", "seed": 5}
    results = list(events.change(muse, asked, image, 6, 0.2))
    *_, picture, edited, _ = results[-1]
    expected = list(edit.edits(muse, image, iterations=6, share=0.2, **asked))
    finished = edit.finish(muse, image, low=expected[-1], **asked)
    images = [to_pil(muse.pixels(low, "low"))[0] for low in expected] + finished
    assert len(results) == len(images) == 8
    assert (np.asarray(picture) == np.asarray(finished[0])).all()
    for i, each in enumerate(images):
        status, (before, after) = events.iteration(muse, asked, edited, i)
        assert (np.asarray(before) == np.asarray(events.big(image))).all()
        assert (np.asarray(after) == np.asarray(events.big(each))).all()
        assert f"Iteration {i} of 6" in status or i == 7


@pytest.mark.parametrize(
    "sides, box",
    [
        (["left"], (32, 0, 96, 64)),
        (["top"], (0, 32, 64, 96)),
        (["right"], (0, 0, 64, 64)),
        (["bottom"], (0, 0, 64, 64)),
        (["left", "top", "right", "bottom"], (32, 32, 96, 96)),
    ],
)
def test_new_pixels_are_at_the_sides_that_were_ticked(events, muse, wide, sides, box):
    image = wide.crop((0, 0, 64, 64))
    asked = ASKED | {"steps": 2}
    status, (before, after), drawn = events.outpaint(muse, asked, image, sides, 32)
    width = 64 + 32 * len({"left", "right"} & {*sides})
    height = 64 + 32 * len({"top", "bottom"} & {*sides})
    assert drawn.size == (width, height) and f"{width}x{height}" in status
    assert before.size == after.size
    assert (np.asarray(drawn.crop(box)) == np.asarray(image)).all()
    grey = np.asarray(before) == 211
    assert grey.all(-1).mean() == pytest.approx(1 - 64 * 64 / (width * height), abs=0.02)


def test_words_that_are_not_known_point_to_the_page(page):
    text = "toy may not know 'x'; minimuse describe 'my toy' --json lists all 3,407 words"
    assert page.DESCRIBE.sub("the column at the left lists", text).endswith(
        "'x'; the column at the left lists all 3,407 words"
    )


def test_a_large_image_is_shrunk_with_a_warning(events, muse, wide):
    assert wide.size == (96, 64)
    with pytest.warns(UserWarning, match="shrunk from 96x64 to 64x43 pixels"):
        *_, (_, (before, after), picture, *_) = events.change(muse, ASKED, wide, 1, 0.1)
    assert picture.size == (64, 43)
    assert before.size == after.size == (views.SIDE, views.SIDE * 43 // 64)
    with pytest.warns(UserWarning) as heard:
        *_, original = events.take_apart(muse, ASKED, wide, "high")
    assert "from 96x64 to 64x43" in str(heard[0].message)
    assert "edge of the image is repeated" in str(heard[1].message)
    assert original.size == (views.SIDE, views.SIDE * 43 // 64)


def test_an_image_of_the_right_size_is_taken_as_it_is(events, muse, wide):
    image = wide.crop((0, 0, 64, 64))
    assert (np.asarray(events.fitted(muse, image)) == np.asarray(image)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        events.take_apart(muse, ASKED, image, "low")
