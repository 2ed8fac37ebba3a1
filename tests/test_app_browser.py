"""The page of `minimuse app` in a real browser, as its visitors use it, and with many at once.

    pip install -e '.[app]' playwright && apt-get install chromium
    pytest tests/test_app_browser.py
    pytest tests/test_app_browser.py -m slow      # 50 drawings for 5 clients

Playwright drives a Chromium that is on the PATH. Where one of them is missing the tests are skipped
and say which. `pytest -s` prints what was measured.
"""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minimuse import Muse, edit
from minimuse.app.frames import SIDE, enlarged, frames, guesses
from minimuse.data import to_pil

pytest.importorskip("gradio", reason="needs gradio: pip install -e '.[app]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

CAPTION = "a large red circle on a white background"
MODEL = "toy-shapes"
PATIENCE = 120_000  # milliseconds; other tests may run beside


# --- A server and its visitors ---
class Server:
    """`minimuse app` in a process of its own."""

    def __init__(self):
        command = [sys.executable, "-m", "minimuse", "app", "--model", MODEL, "--port", free_port()]
        self.start = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        line = self.process.stdout.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+/", line)[0]
        self.seconds = time.perf_counter() - self.start

    def megabytes(self):
        """The memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self):
        """Ctrl-C; returns the exit code, and what was printed to stderr."""
        self.process.send_signal(signal.SIGINT)
        _, stderr = self.process.communicate(timeout=30)
        return self.process.returncode, stderr


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="module")
def muse():
    return Muse.load(MODEL)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visitor:
    """One tab of the browser."""

    def __init__(self, browser, server):
        self.page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.requests = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(server.url)
        self.page.wait_for_selector("#draw")

    def says(self, words):
        """Wait until the status line holds some words; returns the line."""
        condition = "words => document.querySelector('#status').innerText.includes(words)"
        self.page.wait_for_function(condition, arg=words)
        return self.page.inner_text("#status")

    def draw(self, prompt=CAPTION, seed=0):
        self.page.fill("#prompt textarea", prompt)
        self.page.fill("#seed input", str(seed))
        self.page.click("#draw")

    def image(self, name, last=False):
        """The pixels of an image of the page, as the browser gets them."""
        images = self.page.locator(f"#{name} img")
        images.first.wait_for()
        url = (images.last if last else images.first).get_attribute("src")
        response = self.page.request.get(url)
        return np.asarray(Image.open(io.BytesIO(response.body())).convert("RGB"))

    def click_at(self, name, x, y):
        """Click an enlarged image at fractions of its width and height."""
        view = self.page.locator(f"#{name} img").first
        view.scroll_into_view_if_needed()
        box = view.bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def upload(self, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#upload")
        chooser.value.set_files(path)

    def set_number(self, name, value):
        """Type the value of a slider."""
        field = self.page.locator(f"#{name} input[type=number]")
        field.fill(str(value))
        field.press("Enter")


@pytest.fixture
def visitor(browser, server):
    tab = Visitor(browser, server)
    yield tab
    assert "Traceback" not in tab.page.inner_text("body")
    tab.page.context.close()


def drawn_by_generate(muse, **asked):
    (image,) = muse.generate(**{"prompt": CAPTION, "seed": 0} | asked)
    return np.asarray(image)


def big(image):
    return np.asarray(enlarged(np.asarray(image)))


# --- Draw ---
def test_draw_step_back_and_pick_a_token(visitor, server, muse):
    visitor.draw(seed=7)
    clicked = time.perf_counter()
    visitor.page.wait_for_selector("#tokens img")
    print(f"\nfrom the click to the first tokens: {time.perf_counter() - clicked:.1f} s")
    visitor.says("Drawn in")
    print(f"from the command to a drawing: {time.perf_counter() - server.start:.1f} s", end="")
    print(f" ({server.seconds:.1f} s to the address)")
    assert (visitor.image("drawn") == drawn_by_generate(muse, seed=7)).all()

    passes = list(frames(muse, 1, CAPTION, "", 7))
    assert (visitor.image("tokens") == np.asarray(guesses(muse, passes[-1]))).all()
    visitor.set_number("step", 3)
    visitor.says("Pass 3 over the small grid")
    visitor.page.wait_for_timeout(300)
    assert (visitor.image("tokens") == np.asarray(guesses(muse, passes[2]))).all()

    visitor.click_at("tokens", 0.6, 0.4)  # of 4 x 4 tokens: row 1, column 2
    line = visitor.says("The token in the pink frame")
    frame = passes[2]
    assert f"has code {frame.ids[0, 6]}," in line
    visitor.page.wait_for_selector("#likely img")
    captions = visitor.page.inner_text("#likely")
    codes = [int(code) for code in re.findall(r"\((\d+)\)", captions)]
    shares = [float(share) for share in re.findall(r"([\d.]+)%", captions)]
    assert len(codes) == 5 and shares == sorted(shares, reverse=True)
    if frame.ids[0, 6] in codes:
        share = shares[codes.index(frame.ids[0, 6])]
        assert share == pytest.approx(100 * frame.probability[0, 6], abs=0.1)


def test_nothing_is_asked_of_another_host_and_a_reload_begins_anew(visitor, server, muse):
    visitor.draw(seed=1)
    visitor.says("Drawn in")
    for tab in ("Compare", "Edit", "Tokenizer"):
        visitor.tab(tab)
    visitor.says("different codes")
    visitor.page.reload()
    visitor.page.wait_for_selector("#draw")
    visitor.draw(seed=2)
    visitor.says("Drawn in")
    assert (visitor.image("drawn") == drawn_by_generate(muse, seed=2)).all()
    others = [url for url in visitor.requests if not url.startswith((server.url, "data:", "blob:"))]
    assert len(visitor.requests) > 20 and not others


def test_two_visitors_get_their_own_drawings(browser, server, muse):
    visitors = [Visitor(browser, server) for _ in range(2)]
    for seed, each in enumerate(visitors):
        each.draw(seed=100 + seed)
    for each in visitors:
        each.says("Drawn in")
    # What is kept of a drawing is each visitor's own, too: its passes, and the image.
    for seed, each in enumerate(visitors, start=100):
        drawn = drawn_by_generate(muse, seed=seed)
        assert (each.image("drawn") == drawn).all()
        each.set_number("step", 3)
        each.says("Pass 3 over the small grid")
        each.page.wait_for_timeout(300)
        passes = list(frames(muse, 1, CAPTION, "", seed))
        assert (each.image("tokens") == np.asarray(guesses(muse, passes[2]))).all()
        each.tab("Tokenizer")
        each.says("different codes")
        assert (each.image("original") == big(drawn)).all()
    for each in visitors:
        each.page.context.close()


def test_what_goes_wrong_is_one_line(visitor, tmp_path):
    visitor.draw("a large red zebra on a white background")
    assert "'zebra'" in visitor.says("training captions never had")
    visitor.says("Drawn in")
    visitor.draw("red " * 3000)
    visitor.says("was cut to")
    visitor.says("Drawn in")
    visitor.draw("")
    visitor.says("the prompt is empty")
    visitor.says("Drawn in")

    visitor.page.fill("#seed input", "")
    visitor.page.click("#draw")
    visitor.says("the seed is empty")
    visitor.page.fill("#seed input", "0")
    visitor.tab("Tokenizer")
    visitor.says("different codes")
    visitor.click_at("codes", 0.5, 0.5)
    visitor.says("click a token of the image first")

    visitor.tab("Edit")
    visitor.page.click("#inpaint")
    visitor.says("nothing is painted")
    visitor.page.get_by_label("right").uncheck()
    visitor.page.click("#outpaint")
    visitor.says("no side is ticked")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "text.jpg").write_text("no image at all")
    Image.new("L", (12_000, 12_000)).save(tmp_path / "huge.png")
    for name in ("broken.png", "text.jpg", "huge.png"):
        visitor.upload(tmp_path / name)
        line = visitor.says(name)
        assert "cannot be read" in line and line.count("\n") == 0
    Image.new("RGB", (300, 150), "red").save(tmp_path / "wide.png")
    visitor.upload(tmp_path / "wide.png")
    visitor.says("shrunk from 300x150 to 64x32 pixels")
    visitor.tab("Tokenizer")
    visitor.says("edge of the image is repeated")


# --- Compare ---
def test_compare_two_settings(visitor, muse):
    visitor.page.fill("#seed input", "5")
    visitor.tab("Compare")
    visitor.page.click("#compare")
    visitor.says("Both are drawn")
    for name, guidance in (("compare-a", 0), ("compare-b", 8)):
        settings = {"steps": 12, "guidance": guidance, "sampler": "confidence", "seed": 5}
        expected = big(drawn_by_generate(muse, prompt=CAPTION, **settings))
        assert (visitor.image(name) == expected).all()
        passes = f"12 passes over the small grid and {muse.config.sampling_hi.steps} over the large"
        assert re.search(rf"[\d.]+ s, {passes}", visitor.page.inner_text(f"#{name}"))


# --- Edit ---
def paint(visitor, start, end):
    """Paint a line over the image in the editor, between two places in fractions of its sides."""
    canvas = visitor.page.locator("#editor canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    visitor.page.wait_for_timeout(1500)  # the editor zooms to the image
    box = canvas.bounding_box()
    # The image is SIDE pixels wide, in the middle.
    places = []
    for x, y in (start, end):
        places.append(
            (
                box["x"] + box["width"] / 2 + SIDE * (x - 0.5),
                box["y"] + box["height"] / 2 + SIDE * (y - 0.5),
            )
        )
    visitor.page.mouse.move(*places[0])
    visitor.page.mouse.down()
    visitor.page.mouse.move(*places[1], steps=20)
    visitor.page.mouse.up()
    visitor.page.wait_for_timeout(500)


def test_paint_a_mask_and_inpaint(visitor, muse):
    visitor.draw(seed=7)
    visitor.says("Drawn in")
    before = visitor.image("drawn")
    visitor.tab("Edit")
    paint(visitor, (0.85, 0.1), (0.85, 0.9))
    visitor.page.fill("#prompt textarea", "a large blue circle on a black background")
    visitor.page.click("#inpaint")
    visitor.says("is drawn anew")
    visitor.page.wait_for_timeout(500)
    after = visitor.image("both", last=True)
    changed = np.abs(after.astype(int) - big(before)).mean(-1)
    assert changed.shape == (SIDE, SIDE)
    assert changed[48:-48, 300:350].mean() > 60  # under the brush, the background is black now
    assert not changed[:, : SIDE // 2].any()  # where nothing was painted

    # The result is the next image. Outpainting makes it wider.
    visitor.page.click("#outpaint")
    visitor.says("Now 96x64 pixels")
    wide = visitor.image("both", last=True)
    assert wide.shape[1] == 1.5 * wide.shape[0]
    # Images of any shape are SIDE pixels wide here. The new pixels are at the right.
    nearest = Image.Resampling.NEAREST
    old = np.asarray(Image.fromarray(after).resize((SIDE * 2 // 3,) * 2, nearest))
    assert (wide[:, : SIDE * 2 // 3] == old).all()
    # The image before has a grey place for them, so that both lie on each other.
    before = visitor.image("both")
    assert before.shape == wide.shape and (before[:, : SIDE * 2 // 3] == old).all()
    assert (before[:, SIDE * 2 // 3 :] == (211, 211, 211)).all()

    # That is larger than the training images, which is said where it matters.
    visitor.tab("Tokenizer")
    visitor.says("shrunk from 96x64 to 64x43 pixels")
    visitor.tab("Edit")
    visitor.set_number("count", 2)
    visitor.page.click("#edit")
    assert "shrunk from 96x64" in visitor.says("Changed in 2 iterations")


def test_edit_without_a_mask_shows_its_iterations(visitor, muse):
    visitor.draw(seed=7)
    visitor.says("Drawn in")
    before = Image.fromarray(visitor.image("drawn"))
    visitor.tab("Edit")
    prompt = "a large green circle on a white background"
    visitor.page.fill("#prompt textarea", prompt)
    visitor.set_number("count", 12)
    watch = """() => { window.lines = new Set(); new MutationObserver(() => window.lines.add(
        document.querySelector('#status').innerText)).observe(
        document.querySelector('#status'), {childList: true, subtree: true, characterData: true}) }
    """
    visitor.page.evaluate(watch)
    visitor.page.click("#edit")
    visitor.says("Changed in 12 iterations")
    lines = visitor.page.evaluate("[...window.lines]")
    assert sum("Iteration" in line for line in lines) >= 6
    visitor.page.wait_for_timeout(500)
    (expected,) = edit.edit(muse, before, prompt, iterations=12, seed=7)
    assert (visitor.image("both", last=True) == big(expected)).all()

    # Each iteration can be looked at again.
    states = list(edit.edits(muse, before, prompt, iterations=12, seed=7))
    for i in (4, 0, 12):
        visitor.set_number("iteration", i)
        visitor.says(f"Iteration {i} of 12")
        visitor.page.wait_for_timeout(500)
        (expected,) = to_pil(muse.pixels(states[i], "low"))
        assert (visitor.image("both", last=True) == big(expected)).all()


# --- Tokenizer ---
def test_change_a_token(visitor, muse):
    visitor.draw(seed=7)
    visitor.says("Drawn in")
    visitor.tab("Tokenizer")
    visitor.says("different codes in 256 tokens")
    before = visitor.image("whole")
    visitor.click_at("map", 0.53, 0.03)  # of 16 x 16 tokens: row 0, column 8
    old = re.search(r"has code (\d+)", visitor.says("This token has code"))[1]
    visitor.click_at("codes", 0.01, 0.02)  # the darkest one
    visitor.page.wait_for_function(
        "old => !document.querySelector('#status').innerText.includes('code ' + old + ':')", arg=old
    )
    visitor.page.wait_for_timeout(300)
    changed = np.abs(visitor.image("whole").astype(int) - before).mean(-1)
    size = SIDE // 16
    inside = changed[5 : size - 5, 8 * size + 5 : 9 * size - 5].mean()
    # The decoder sees far, so other pixels may change by a level.
    assert inside > 50 and changed[SIDE // 2 :].max() <= 1


# --- Many at once ---
@pytest.mark.slow
def test_fifty_drawings_by_five_clients(server, muse):
    """All are answered, each with its own seed, and the memory stays."""
    gradio_client = pytest.importorskip("gradio_client")
    options = {"verbose": False, "download_files": False}
    clients = [gradio_client.Client(server.url, **options) for _ in range(5)]
    memory, seconds = [], []

    def ask(number):
        start = time.perf_counter()
        *_, gallery = clients[number % 5].predict(*arguments(muse, number), api_name="/draw")
        seconds.append(time.perf_counter() - start)
        memory.append(server.megabytes())
        with urllib.request.urlopen(gallery[0]["image"]["url"]) as file:
            return np.asarray(Image.open(file).convert("RGB"))

    with ThreadPoolExecutor(5) as pool:
        drawn = list(pool.map(ask, range(50)))
    expected = [drawn_by_generate(muse, seed=seed, steps=4) for seed in range(50)]
    assert all((one == other).all() for one, other in zip(drawn, expected, strict=True))
    print(f"\n50 drawings: {np.median(seconds):.2f} s in the middle, {max(seconds):.2f} s at most,")
    print(f"{memory[9]:.0f} MB after ten, {memory[-1]:.0f} MB at the end")
    assert memory[-1] < 1.1 * memory[9]


def arguments(muse, seed):
    """What the page sends to draw: the left column, and the number of images."""
    from minimuse.app import page

    settings = dict(zip(page.SETTINGS, page.defaults(muse), strict=True)) | {"steps": 4}
    return [MODEL, CAPTION, "", seed, *settings.values(), 1]


# --- The end: no test that needs the server may follow ---
def test_ctrl_c_ends_it_in_one_line(server):
    code, stderr = server.stop()
    assert code == 130 and stderr.splitlines()[-1] == "minimuse: stopped"
    assert "Traceback" not in stderr
