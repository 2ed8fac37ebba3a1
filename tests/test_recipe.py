"""How an image was drawn stands in its file, and --like draws it again."""

import json

import pytest
from PIL import Image, PngImagePlugin

from minimuse.cli import main
from minimuse.cli.recipe import read_recipe

PROMPT = "a large red circle, \N{RED APPLE} on a “black” background"
FLAGS = ["--guidance", "1.5", "--no-ramp", "--guided", "0,0.75", "--steps", "3", "--top-k", "2"]


@pytest.fixture(scope="module")
def drawn(tiny_model, tmp_path_factory):
    """Three images of one command, and their folder."""
    folder = tmp_path_factory.mktemp("drawn")
    command = ["generate", PROMPT, "--model", tiny_model, "--n", "3", "--seed", "5", *FLAGS]
    assert main([*map(str, command), "-o", str(folder / "a.png")]) == 0
    return folder


def generate(*argv):
    return main(["generate", *map(str, argv)])


def pixels(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_each_image_can_be_had_again(drawn, tmp_path):
    images = [drawn / f"a-{i}.png" for i in range(3)]
    assert len({pixels(path) for path in images}) == 3
    for path in images:
        again = tmp_path / path.name
        assert generate("--like", path, "-o", again) == 0
        assert pixels(again) == pixels(path)
        assert read_recipe(again) == read_recipe(path)


def test_a_recipe_says_what_was_asked(drawn, tiny_model):
    found = read_recipe(drawn / "a-2.png")
    assert found == {
        "command": "generate",
        "prompt": PROMPT,
        "negative": "",
        "seed": 7,
        "model": str(tiny_model.resolve()),
        "settings": {
            "guidance": 1.5,
            "ramp": False,
            "guided": [0.0, 0.75],
            "steps": 3,
            "top_k": 2,
        },
    }


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".gif"])
def test_every_format_holds_it(drawn, tmp_path, suffix):
    copy = tmp_path / f"copy{suffix}"
    assert generate("--like", drawn / "a-1.png", "-o", copy) == 0
    assert read_recipe(copy) == read_recipe(drawn / "a-1.png")
    again = tmp_path / "again.png"
    assert generate("--like", copy, "-o", again) == 0
    assert pixels(again) == pixels(drawn / "a-1.png")


def test_flags_change_some_of_it(drawn, tiny_model, tmp_path):
    other, plain = tmp_path / "other.png", tmp_path / "plain.png"
    assert generate("--like", drawn / "a-0.png", "--seed", "9", "--top-k", "0", "-o", other) == 0
    settings = [*FLAGS[:-1], "0"]
    model = ["--model", tiny_model]
    assert generate(PROMPT, "--seed", "9", *settings, *model, "-o", plain) == 0
    assert pixels(other) == pixels(plain)
    assert generate("a small star", "--like", drawn / "a-0.png", "-o", other) == 0
    assert read_recipe(other)["prompt"] == "a small star"
    assert read_recipe(other)["seed"] == 5


def without_recipe(folder):
    Image.new("RGB", (8, 8)).save(folder / "x.png")


def with_text(text):
    def write(folder):
        info = PngImagePlugin.PngInfo()
        info.add_text("minimuse", text)
        Image.new("RGB", (8, 8)).save(folder / "x.png", pnginfo=info)

    return write


GOOD = {"command": "generate", "prompt": "a", "negative": "", "seed": 0, "model": "toy"}


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda folder: None, "there is no such file"),
        (without_recipe, "does not say how it was drawn"),
        (lambda folder: (folder / "x.png").write_text("no image"), "does not say how"),
        (with_text("no json"), "does not say how"),
        (with_text("[]"), "does not say how"),
        (with_text(json.dumps(GOOD)), "does not say how"),
        (with_text(json.dumps(GOOD | {"settings": [3]})), "there is no setting"),
        (with_text(json.dumps(GOOD | {"settings": {"step": 3}})), "there is no setting 'step'"),
        (with_text(json.dumps(GOOD | {"settings": {"steps": -3}})), "steps is -3"),
        (with_text(json.dumps(GOOD | {"settings": {"ramp": 3}})), "ramp is 3"),
        (with_text(json.dumps(GOOD | {"settings": {}, "seed": "x"})), "does not say how"),
        (with_text(json.dumps(GOOD | {"settings": {}, "seed": 2**70})), "seed is"),
        (with_text(json.dumps(GOOD | {"settings": {}, "model": "nowhere"})), "no model 'nowhere'"),
        (with_text(json.dumps(GOOD | {"settings": {}, "command": "edit"})), "`minimuse edit`"),
    ],
)
def test_what_is_no_recipe_is_refused(write, words, tmp_path, capsys):
    write(tmp_path)
    assert generate("--like", tmp_path / "x.png", "-o", tmp_path / "y.png") == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "y.png").exists()


def test_a_prompt_is_needed(capsys):
    assert generate() == 2
    assert "say what to draw" in capsys.readouterr().err


def test_edits_say_how_they_were_made(drawn, tiny_model, tmp_path, capsys):
    edited = tmp_path / "edited.png"
    options = ["--model", str(tiny_model), "--iterations", "1", "-o", str(edited)]
    assert main(["edit", str(drawn / "a-0.png"), "a small star", "--seed", "3", *options]) == 0
    found = read_recipe_of(edited)
    assert found["command"] == "edit" and found["seed"] == 3 and found["prompt"] == "a small star"
    assert generate("--like", edited, "-o", tmp_path / "y.png") == 2
    assert "from another image" in capsys.readouterr().err


def read_recipe_of(path):
    with Image.open(path) as image:
        return json.loads(image.info["minimuse"])
