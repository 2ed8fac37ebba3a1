"""Paths as people type them, folders and models that move, and what differs between two trainings.

pytest tests/test_places.py
"""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from minimuse.cli import evaluate, main
from minimuse.cli.console import escapes_on_console
from minimuse.data import ASSETS
from minimuse.metrics import report
from minimuse.muse import Muse
from minimuse.plumbing.config import PRESETS, override
from minimuse.plumbing.files import digest
from minimuse.plumbing.identity import differences
from minimuse.plumbing.parts import find_model, read_about
from minimuse.plumbing.places import absolute, data_place, text_place
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs.directory import describe_model
from minimuse.runs.stages import train_all

STAGES = ("tokenizer", "tokenizer-hi", "base", "superres", "decoder")
ONE_STEP = [f"stages.{stage.replace('-', '_')}.steps=1" for stage in STAGES]
# A base model that is stopped half-way leaves a checkpoint.
THREE_STEPS = ["stages.base.steps=3"]


def run(*argv):
    """The exit code of a command."""
    return main([str(arg) for arg in argv])


def make_folder(root):
    root.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(root / f"p{i}.png")
        (root / f"p{i}.txt").write_text(f"image {i}")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A directory with the folder `pics` and, trained on it, the model `run`; to be copied."""
    root = tmp_path_factory.mktemp("project") / "here"
    make_folder(root / "pics")
    shutil.copytree(ASSETS / "t5-toy", root / "t5")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        begin = ["--preset", "tiny", "--data", "pics", "--t5", "t5"]
        assert run("train", "tokenizer", "--out", "run", *begin, *ONE_STEP) == 0
        for stage in STAGES[1:]:
            assert run("train", stage, "--out", "run") == 0
    return root


@pytest.fixture
def here(project, tmp_path, monkeypatch):
    """A copy of the project, from before the decoder was trained; the current directory."""
    root = shutil.copytree(project, tmp_path / "here")
    set_places(root, root)
    (root / "run" / "decoder.safetensors").unlink()
    monkeypatch.chdir(root)
    return root


def set_places(root, stored):
    """Write into config.json that everything lies below `stored`."""
    path = root / "run" / "config.json"
    about = json.loads(path.read_text())
    about["data"], about["text"]["name"] = str(stored / "pics"), str(stored / "t5")
    path.write_text(json.dumps(about))


@pytest.fixture
def fails(capfd):
    """fails(*argv): the one line of a command that ends with 2."""

    def check(*argv):
        capfd.readouterr()
        assert run(*argv) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return check


@pytest.fixture
def quick_evaluate(monkeypatch):
    """`evaluate` reads the images and the model, and measures nothing."""

    def draw(muse, captions, **settings):
        return torch.zeros(len(captions), 3, 16, 16), torch.zeros(len(captions), 3, 32, 32)

    monkeypatch.setattr(Muse, "draw", draw)
    monkeypatch.setattr(report, "has_lite0", lambda: False)
    monkeypatch.setattr(report, "token_report", lambda muse, tokens: {})
    monkeypatch.setattr(
        report, "tokenizer_report", lambda muse, tokens, real: ({}, {"finetuned": real})
    )
    monkeypatch.setattr(evaluate, "draw_samples", lambda *arguments: None)


def decoder(*argv):
    """Train the one stage that is missing."""
    return run("train", "decoder", "--out", "run", "--resume", *argv)


# --- Paths as they are typed ---
SPELLINGS = ["pics", "pics/", "./pics", "pics/../pics", "{here}/pics", "../here/pics", "link"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_folder_under_all_its_names(here, spelling):
    (here / "link").symlink_to("pics")
    assert decoder("--data", spelling.format(here=here)) == 0
    about = json.loads((here / "run" / "config.json").read_text())
    assert about["data"] == str(here / "pics")


def test_a_path_below_the_home_directory(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert absolute("~/pics", "--data") == str(here / "pics")
    (here / "~").mkdir()
    assert absolute("~", "--data") == str(here / "~"), "a folder of that name comes first"


@pytest.mark.parametrize("spelling", ["t5", "t5/", "./t5", "{here}/t5"])
def test_one_text_encoder_under_all_its_names(here, spelling):
    assert decoder("--t5", spelling.format(here=here)) == 0
    assert json.loads((here / "run" / "config.json").read_text())["text"]["name"] == str(
        here / "t5"
    )


def test_names_that_ship_stay_names(here):
    for name in ("emoji", "shapes"):
        assert data_place(name) == name
        assert data_place(f"./{name}") == data_place(f"{name}/") == str(here / name)
    assert text_place("t5-toy") == "t5-toy"
    assert text_place("./t5-toy") == str(here / "t5-toy")
    # These lie beside the text encoder that ships, and are none.
    for name in ("emoji", "toy", "..", "."):
        assert text_place(name) == os.path.realpath(name)


def test_a_folder_called_as_a_name_that_ships(here, capfd):
    """The name wins, and a line says how to name the folder."""
    make_folder(here / "shapes")
    tokenizer = ["train", "tokenizer", "--preset", "tiny", *ONE_STEP, "scenes=4"]
    assert run(*tokenizer, "--data", "shapes", "--out", "new") == 0
    assert "--data ./shapes" in capfd.readouterr().err
    assert read_about(Path("new"))["data"] == "shapes"
    assert run(*tokenizer, "--data", "./shapes", "--out", "newer") == 0
    assert read_about(Path("newer"))["data"] == str(here / "shapes")


def test_text_encoder_in_the_current_directory(here, monkeypatch, capfd):
    """ "." is the directory where one is, and not where the shipped ones are."""
    monkeypatch.chdir(here / "t5")
    assert run("train", "decoder", "--out", "../run", "--resume", "--t5", ".") == 0


def test_a_model_of_ones_own_called_as_one_that_ships(here):
    shutil.copytree(here / "run", here / "toy")
    assert find_model("toy") == Path("toy")
    assert find_model("toy-shapes").parent == Path(str(ASSETS))
    for name in ("", "..", "../toy-shapes", "emoji"):
        with pytest.raises(FileNotFoundError):
            find_model(name)


@pytest.mark.parametrize("flag", ["--data", "--t5", "--start"])
def test_an_empty_flag_is_refused(here, fails, flag):
    """Such as --data "$PICTURES", where that is not set: not the default for an hour."""
    line = ["train", "tokenizer", "--preset", "tiny", "--out", "new"]
    assert fails(*line, flag, "").startswith("minimuse: ")
    assert not Path("new").exists()


# --- Folders, text encoders and models that move ---
def test_a_folder_that_moved(here, fails, quick_evaluate):
    (here / "pics").rename(here / "moved")
    said = fails("train", "decoder", "--out", "run", "--resume")
    assert str(here / "pics") in said and "--data" in said
    assert decoder("--data", "moved") == 0
    assert run("evaluate", "--model", "run", "--out", "report", "--n", "2") == 0


def test_another_folder_is_refused_by_its_files(here, fails):
    shutil.copytree(here / "pics", here / "other")
    (here / "other" / "p2.txt").write_text("something else")
    said = fails("train", "decoder", "--out", "run", "--resume", "--data", "other")
    assert "the captions of p2.png have changed" in said
    assert str(here / "other") in said and "run" in said


def test_other_data_are_named(here, fails):
    said = fails("train", "decoder", "--out", "run", "--resume", "--data", "emoji")
    assert f"data is emoji here and {here / 'pics'} in run" in said


def test_evaluate_from_anywhere(here, monkeypatch, fails, quick_evaluate):
    assert decoder() == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert run("evaluate", "--model", "../run", "--out", "r", "--n", "2") == 0
    (here / "pics").rename(here / "moved")
    said = fails("evaluate", "--model", "../run", "--out", "s", "--n", "2")
    assert str(here / "pics") in said and "--data" in said and not Path("s").exists()
    line = ["evaluate", "--model", "../run", "--out", "s", "--n", "2"]
    assert run(*line, "--data", "../moved") == 0


def test_evaluate_with_other_images_says_so(here, capfd, quick_evaluate):
    assert decoder() == 0
    (here / "pics" / "p2.txt").write_text("something else")
    assert run("evaluate", "--model", "run", "--out", "r", "--n", "2") == 0
    assert "the captions of p2.png have changed" in capfd.readouterr().err


def test_cache_with_folder_and_text_encoder_that_moved(here, fails):
    (here / "pics").rename(here / "moved")
    (here / "t5").rename(here / "moved-t5")
    assert "--t5" in fails("cache", "--out", "run", "--data", "moved")
    assert run("cache", "--out", "run", "--data", "moved", "--t5", "moved-t5") == 0
    (here / "run" / "base.safetensors").unlink()
    assert run("train", "base", "--out", "run") == 0


@pytest.mark.parametrize("kept", ["beside", "inside"])
def test_a_model_that_moves_with_its_data(here, tmp_path, monkeypatch, kept, quick_evaluate):
    """Where folder and text encoder lie as before, seen from the model, they are found."""
    if kept == "inside":
        for name in ("pics", "t5"):
            (here / name).rename(here / "run" / name)
        assert decoder("--data", "run/pics", "--t5", "run/t5") == 0
        (here / "run" / "decoder.safetensors").unlink()
        (here / "run").rename(here / "renamed")
        model = here / "renamed"
    else:
        assert decoder() == 0
        (here / "run" / "decoder.safetensors").unlink()
        model = here.rename(tmp_path / "there") / "run"
    monkeypatch.chdir(tmp_path)
    assert run("train", "decoder", "--out", model, "--resume") == 0
    assert run("evaluate", "--model", model, "--out", "r", "--n", "2") == 0
    assert read_about(model)["data"] == os.path.realpath(model / "pics") or kept == "beside"


def test_a_copy_finds_its_own_data_when_the_first_is_gone(here, tmp_path):
    assert decoder() == 0
    copy = shutil.copytree(here, tmp_path / "copy")
    assert read_about(copy / "run")["data"] == str(here / "pics")
    shutil.rmtree(here / "pics")
    assert read_about(copy / "run")["data"] == str(copy / "pics")


# --- Models of older versions ---
def as_older(here, data="pics"):
    """What a version wrote that stored paths as they were typed, and no manifest."""
    out = here / "run"
    about = json.loads((out / "config.json").read_text())
    about.pop("ways", None)
    about["data"], about["text"]["name"] = data, "t5"
    (out / "config.json").write_text(json.dumps(about))
    for path in out.glob("images.*"):
        path.unlink()


@pytest.mark.parametrize("spelling", [[], ["--data", "pics/"], ["--data", "{here}/pics"]])
def test_older_models_go_on(here, spelling):
    as_older(here)
    assert decoder(*[text.format(here=here) for text in spelling]) == 0
    assert (here / "run" / "images.json").is_file()


def test_older_models_are_evaluated_from_anywhere(here, tmp_path, monkeypatch, quick_evaluate):
    assert decoder() == 0
    as_older(here)
    monkeypatch.chdir(tmp_path)
    assert run("evaluate", "--model", here / "run", "--out", "r", "--n", "2") == 0


def test_the_folder_of_an_older_model_may_move(here, capfd, fails):
    as_older(here)
    shutil.copytree(here / "pics", here / "other")
    (here / "other" / "p2.txt").write_text("something else")
    said = fails("train", "decoder", "--out", "run", "--resume", "--data", "other")
    assert "the captions of p2.png" in said
    (here / "pics").rename(here / "moved")
    assert decoder("--data", "moved") == 0
    assert "pics is gone" in capfd.readouterr().err


def stopped_base(here, monkeypatch):
    """A base model that was stopped after a step, with its checkpoint."""
    about = json.loads((here / "run" / "config.json").read_text())
    config = override(PRESETS["tiny"], [*ONE_STEP, *THREE_STEPS])
    text = load_t5("t5")
    (here / "run" / "base.safetensors").unlink()
    about = describe_model(config, about["data"], text, "t5", 0)
    (here / "run" / "config.json").write_text(json.dumps(about))

    records = train_all(("base",), here / "run", config, "pics", text, "t5")
    next(records)
    monkeypatch.setattr("minimuse.plumbing.stopping.stop_signals", {2})
    monkeypatch.setattr("minimuse.train.stop_signals", {2}, raising=False)
    monkeypatch.setattr("minimuse.plumbing.checkpoint.stop_signals", {2}, raising=False)
    with pytest.raises(KeyboardInterrupt):
        next(records)
    for module in ("plumbing.stopping", "train", "plumbing.checkpoint"):
        monkeypatch.setattr(f"minimuse.{module}.stop_signals", set(), raising=False)
    return here / "run" / "base.checkpoint.safetensors"


def older_checkpoint(path):
    """The same checkpoint with the key of a version that stored paths as they were typed."""

    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    del header["sha256"]
    key = json.loads(header["key"])
    key |= {"data": "pics", "text": key["text"]["fingerprint"]}
    key["config"] |= {"scale": None}
    del key["config"]["caption_dropout"]  # a setting that it did not know: its default
    header["key"] = json.dumps(key)
    save_file(tensors, path, header | {"sha256": digest(tensors, header)})


@pytest.mark.parametrize("older", [False, True])
def test_checkpoints_go_on_with_a_folder_that_moved(here, monkeypatch, older):
    checkpoint = stopped_base(here, monkeypatch)
    if older:
        older_checkpoint(checkpoint)
    (here / "pics").rename(here / "moved")
    assert run("train", "base", "--out", "run", "--resume", "--data", "moved") == 0
    assert not checkpoint.exists()


def test_what_differs_from_a_checkpoint_is_named(here, monkeypatch, fails):
    stopped_base(here, monkeypatch)
    (here / "run" / "config.json").unlink()
    line = ["train", "base", "--out", "run", "--preset", "tiny", "--data", "pics", "--t5", "t5"]
    said = fails(*line, "--resume", *ONE_STEP, "stages.base.steps=4")
    assert "stages.base.steps is 4 here and 3 in base.checkpoint.safetensors" in said


# --- What differs ---
@pytest.mark.parametrize(
    "setting, said",
    [
        ("base.width=64", "base.width is 64 here and 32 in run"),
        ("stages.base.steps=10", "stages.base.steps is 10 here and 1 in run"),
        ("caption_dropout=0.5", "caption_dropout is 0.5 here and 0.1 in run"),
        ("tokenizer.multipliers=1,2,4", "tokenizer.multipliers is [1, 2, 4] here and [1, 2, 2]"),
    ],
)
def test_a_setting_that_differs_is_named(here, fails, setting, said):
    assert said in fails("train", "decoder", "--out", "run", "--resume", setting)


def test_a_seed_and_an_encoder_that_differ_are_named(here, fails):
    said = fails("train", "decoder", "--out", "run", "--resume", "--seed", "3")
    assert "seed is 3 here and 0 in run" in said
    about = read_about(here / "run")
    other = about | {"text": {"name": "x", "fingerprint": "0123456789ab"}}
    assert differences(other, about, "run").startswith("text encoder is 0123456789ab here and ")


@pytest.mark.parametrize(
    "setting",
    ["scale.micro_batch=1", "skip_unreadable=True", "sampling.steps=7", "sampling_hi.guidance=9"],
)
def test_settings_that_decide_on_no_weights_may_change(here, setting):
    assert decoder(setting) == 0


def test_no_more_than_four_differences_are_named():
    a = {"config": None, "seed": 0} | {f"s{i}": i for i in range(9)}
    b = {"config": None, "seed": 0} | {f"s{i}": -i for i in range(9)}
    assert differences(a, b, "run").endswith("4 more") and differences(a, a, "run") == ""
    assert differences(a, [], "run"), "what is no description differs"


# --- skip_unreadable, and the cache ---
def damage(path):
    path.write_bytes(b"\x89PNG\r\n\x1a\n")


def test_the_advice_about_a_damaged_image_works(here, fails, capfd):
    whole = (here / "pics" / "p3.png").read_bytes()
    damage(here / "pics" / "p3.png")
    said = fails("train", "decoder", "--out", "run", "--resume")
    assert "p3.png cannot be read" in said and "--resume skip_unreadable=True" in said
    assert "put the old file back" in said
    assert decoder("skip_unreadable=True") == 0
    assert "left out" in capfd.readouterr().err
    (here / "run" / "decoder.safetensors").unlink()
    assert decoder() == 0, "the setting is kept"
    (here / "run" / "decoder.safetensors").unlink()
    (here / "pics" / "p3.png").write_bytes(whole)
    assert decoder("skip_unreadable=False") == 0


def test_a_stage_that_is_stopped_goes_on_without_a_damaged_image(here, monkeypatch):
    stopped_base(here, monkeypatch)
    damage(here / "pics" / "p3.png")
    assert run("train", "base", "--out", "run", "--resume", "skip_unreadable=True") == 0


def test_a_finished_model_takes_the_setting_too(here, fails):
    """So that `cache`, which has no settings, goes on."""
    damage(here / "pics" / "p3.png")
    assert "skip_unreadable=True" in fails("cache", "--out", "run")
    line = ["train", "tokenizer", "--out", "run", "--resume", "skip_unreadable=True"]
    assert run(*line) == 0
    assert run("cache", "--out", "run") == 0


def remake_base(here):
    (here / "run" / "base.safetensors").unlink()
    return ["train", "base", "--out", "run"]


def test_a_cache_stays_good_when_nothing_that_is_used_changes(here):
    assert run("cache", "--out", "run") == 0
    before = (here / "run" / "cache" / "index.json").read_bytes()
    (here / "pics" / ".DS_Store").write_bytes(b"")
    for path in (here / "pics").iterdir():
        os.utime(path, (0, 0))
    (here / "pics").rename(here / "renamed")
    assert run(*remake_base(here), "--data", "renamed") == 0
    assert (here / "run" / "cache" / "index.json").read_bytes() == before


def test_a_cache_goes_on_without_its_folder(here):
    """On another machine, where there is only the model."""
    assert run("cache", "--out", "run") == 0
    shutil.rmtree(here / "pics")
    assert run(*remake_base(here)) == 0


def test_a_cache_of_other_captions_is_refused(here, fails):
    assert run("cache", "--out", "run") == 0
    (here / "pics" / "p2.txt").write_text("something else")
    assert "the captions of p2.png have changed" in fails(*remake_base(here))


def test_a_cache_of_images_that_are_left_out_now_is_refused(here, fails):
    assert run("cache", "--out", "run") == 0
    damage(here / "pics" / "p3.png")
    line = [*remake_base(here), "--resume", "skip_unreadable=True"]
    assert run(*line) == 2
    assert "other: files" in fails(*line)
    assert run("cache", "--out", "run") == 0
    assert run(*line) == 0


# --- What is printed ---
def test_a_name_that_the_console_lacks_is_printed(tmp_path, monkeypatch):
    """The last line of the work must not fail."""

    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr("sys.stdout", ascii_only)
    with escapes_on_console():
        print("caf\u00e9 \udcff \u732b")
    ascii_only.flush()
    assert ascii_only.buffer.getvalue().splitlines() == [b"caf\\xe9 \\udcff \\u732b"]
    assert ascii_only.errors == "strict", "as it was before"


def test_weights_are_the_same_from_kept_images(here, tmp_path):
    """Decoded again, or read back: bit for bit."""

    weights = []
    for _ in range(2):
        assert decoder() == 0
        weights.append(load_file(here / "run" / "decoder.safetensors"))
        (here / "run" / "decoder.safetensors").unlink()
        (here / "run" / "images.safetensors").unlink(missing_ok=True)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("typed", ["caf\u00e9", "cafe\u0301"])
@pytest.mark.parametrize("there", ["caf\u00e9", "cafe\u0301"])
def test_a_folder_in_composed_and_decomposed_letters(tmp_path, monkeypatch, typed, there):
    (tmp_path / there).mkdir()
    monkeypatch.chdir(tmp_path)
    assert os.path.isdir(data_place(typed))


@pytest.mark.parametrize(
    "wrong",
    [{"ways": 3}, {"ways": {"data": 3}}, {"data": 3}, {"data": None}, {"ways": {"text": []}}],
)
def test_places_that_are_no_text_are_refused(here, fails, wrong):
    path = here / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    assert "config.json" in fails("train", "decoder", "--out", "run", "--resume")


def test_a_text_encoder_is_known_by_its_weights(here):
    """Not by dates, hidden files, or the name of its directory."""
    before = load_t5("t5").fingerprint
    (here / "t5" / ".DS_Store").write_bytes(b"")
    for path in (here / "t5").iterdir():
        os.utime(path, (0, 0))
    (here / "t5").rename(here / "renamed")
    assert load_t5("renamed").fingerprint == before
    assert decoder("--t5", "renamed") == 0


def test_another_text_encoder_is_refused(here, fails):
    path = here / "t5" / "model.safetensors"
    weights = load(path.read_bytes())  # copies, since the file is written again
    name = sorted(weights)[0]
    save_file(weights | {name: weights[name] + 1}, path)
    said = fails("train", "decoder", "--out", "run", "--resume")
    assert "text encoder is " in said and " here and " in said
