"""The diagrams of the lessons: the shapes that they name are those of the models.

pip install -e '.[test,lessons]' && pytest tests/test_drawings.py
"""

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from minimuse import Muse

ROOT = Path(__file__).parents[1]

pytest.importorskip("matplotlib", reason="the diagrams need the extra lessons")


@pytest.fixture(scope="module")
def words_of_architecture():
    """What is written in the figure, by the height at which it stands."""
    from minimuse.drawings import architecture

    axes = architecture(Muse.load("toy-shapes")).axes[0]
    return [text.get_text().replace("\n", " ") for text in axes.texts]


def test_architecture_has_the_shapes_of_the_shipped_model(words_of_architecture):
    config = json.loads((ROOT / "data/toy-shapes/config.json").read_text())["config"]
    low, high = config["tokenizer"], config["tokenizer_hi"]
    low_grid = low["side"] // 2 ** (len(low["multipliers"]) - 1)
    high_grid = high["side"] // 2 ** (len(high["multipliers"]) - 1)
    shapes = (
        f"{config['base']['layers']} layers, width {config['base']['width']}, ",
        f"{low_grid} x {low_grid} of {low['codes']:,} codes",
        f"{config['superres']['layers']} layers, width {config['superres']['width']}, ",
        f"{high_grid} x {high_grid} of {high['codes']:,} codes",
        f"{config['decoder_channels']} channels",
        f"{high['side']} x {high['side']} pixels",
    )
    for shape in shapes:
        assert any(shape in words for words in words_of_architecture), shape


def test_architecture_has_the_shapes_of_the_paper(words_of_architecture):
    """Muse, section 2: 16 x 16 tokens of 256 pixels, 64 x 64 of 512, 24 and 8 passes."""
    preset = tomllib.loads((ROOT / "data/presets.toml").read_text())["muse-3b"]
    width = f"{preset['base']['width']:,}"
    shapes = (
        f"{preset['base']['layers']} layers, width {width}, 24 passes",
        "16 x 16 of 8,192 codes",
        "64 x 64 of 8,192 codes",
        "8 passes",
        "512 x 512 pixels",
    )
    for shape in shapes:
        assert any(words.endswith(shape) for words in words_of_architecture), shape


def test_a_token_has_the_mean_colour_of_its_patch():
    """Compared with a loop over patches, on an image whose sides are easily exchanged."""
    from minimuse.drawings.architecture import token_colours

    image = torch.rand(1, 3, 8, 8) * 2 - 1
    colours = token_colours(image, 4)
    for i in range(4):
        for j in range(4):
            patch = image[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            mean = (patch.mean(dim=(1, 2)) + 1) / 2
            assert np.allclose(colours[i, j], mean.numpy(), atol=1e-6)


def test_a_caption_is_broken_into_as_many_lines_as_asked():
    from minimuse.drawings.architecture import in_lines

    text = "a large blue ring left of a small red square on a grey background"
    lines = in_lines(text, 4).split("\n")
    assert len(lines) == 4 and " ".join(lines) == text


def test_a_decoding_step_shows_what_the_model_does():
    """A probability for each hidden token; those in bold are the largest, as many as are kept."""
    from minimuse.drawings import decoding_step

    caption = "a large blue ring left of a small red square on a white background"
    axes = decoding_step(Muse.load("toy-shapes"), caption, number=5).axes[0]
    words = [text.get_text() for text in axes.texts]
    cells = [text for text in axes.texts if re.fullmatch(r"(1|)\.\d\d", text.get_text())]
    everything = " ".join(words)
    hidden = int(re.search(r"(\d+) tokens are hidden", everything)[1])
    kept = int(re.search(r"keep the (\d+) most", everything)[1])
    bold = [float(cell.get_text()) for cell in cells if cell.get_weight() == "bold"]
    others = [float(cell.get_text()) for cell in cells if cell.get_weight() != "bold"]
    assert len(cells) == hidden and len(bold) == kept
    assert min(bold) >= max(others)


def test_training_hides_the_tokens_that_it_says():
    from minimuse.drawings import training_and_sampling

    muse = Muse.load("toy-shapes")
    image = torch.full((1, 3, 32, 32), -1.0)  # black: no true token is grey
    hidden = (0, 5, 15)
    axes = training_and_sampling(muse, image, "a red circle", hidden=hidden).axes[0]
    grids = [shown.get_array() for shown in axes.images if shown.get_array().shape == (4, 4, 3)]
    masked = grids[1].reshape(16, 3)
    for position in range(16):
        assert (masked[position].mean() > 0.5) == (position in hidden)


def test_predictions_cover_the_tokens_that_are_hidden():
    """Pixel by pixel: grey where the token of a pixel is hidden, the decoded image elsewhere."""
    from minimuse.drawings.architecture import to_pixels
    from minimuse.drawings.predictions import covered

    muse = Muse.load("toy-shapes")
    ids = torch.arange(16)[None]
    hidden = torch.arange(16) % 5 == 1
    image, shown = to_pixels(muse.pixels(ids, "low")), covered(muse, ids, hidden)
    for y in range(32):
        for x in range(32):
            is_hidden = bool(hidden[4 * (y // 8) + x // 8])
            expected = np.full(3, 0.72) if is_hidden else image[y, x]
            assert np.allclose(shown[y, x], expected)


def test_the_frame_is_around_the_token_that_is_asked_about():
    from minimuse.drawings.predictions import outline

    frame = outline(token=6, grid=4, side=32)  # row 1, column 2; a token is 8 pixels wide
    assert frame.get_xy() == (15.5, 7.5)
    assert (frame.get_width(), frame.get_height()) == (8, 8)


def test_the_weights_of_a_token_are_those_of_its_row():
    """Bars over the words and numbers on the small grid are the weights, both in percent."""
    from minimuse.drawings.attention import context_weights

    weights = torch.rand(16, 4 + 3)  # 16 high-res tokens, 4 low-res tokens, 3 words
    image = torch.zeros(1, 3, 8, 8)
    figure = context_weights(image, weights, {"here": 5, "there": 9}, ["a", "red", "ring"])
    corners = [(-0.5, -0.5), (-0.5, 0.5)]  # 5 is in row 1, 9 in row 2 of 4; both are in column 1
    for row, token in enumerate((5, 9)):
        _, low, words = figure.axes[3 * row : 3 * row + 3]
        assert np.allclose(low.images[0].get_array(), weights[token, :4].view(2, 2))
        assert [text.get_text() for text in low.texts] == [
            f"{100 * weight:.1f}" for weight in weights[token, :4].tolist()
        ]
        assert low.patches[0].get_xy() == corners[row], "the frame is where the token is"
        percent = 100 * weights[token, 4:]
        assert np.allclose([bar.get_height() for bar in words.patches], percent)
