"""Held-out losses and sheets: they are right, always the same, and change nothing in a training.

pytest tests/test_watch.py
"""

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minimuse import schedule
from minimuse.cli import main
from minimuse.data import halve
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing import config as configs
from minimuse.plumbing.device import autocast
from minimuse.plumbing.parts import load_part
from minimuse.plumbing.t5_files import LazyT5, load_t5
from minimuse.runs import stages, watch
from minimuse.runs.cache import tokens_of
from minimuse.runs.heldout import (
    IMAGES_FOR_EACH,
    PICTURES,
    HeldoutImages,
    HeldoutTokens,
    count_for,
    sampling_of,
    spread_masks,
    uncompiled,
)
from minimuse.runs.images import HELDOUT, load_both, load_images
from minimuse.runs.log import read_log
from minimuse.runs.stages import NEEDS, STAGES, fill_cache, train_all
from minimuse.vq_loss import pixel_loss

STEPS = 4
SETTINGS = ["scenes=12", "caption_dropout=0.25", "superres.piece=4"]
for _stage in STAGES:
    SETTINGS += [f"stages.{_stage}.steps={STEPS}", f"stages.{_stage}.batch=4"]
CONFIG = configs.override(configs.PRESETS["tiny"], SETTINGS)


def train(stage, out, config=CONFIG, data="shapes"):
    """The global random numbers after a stage is trained."""
    torch.manual_seed(7)
    list(train_all((stage,), out, config, data, LazyT5("t5-toy"), "t5-toy"))
    return torch.get_rng_state()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model directory of which every stage was watched."""
    out = tmp_path_factory.mktemp("watched") / "model"
    for stage in STAGES:
        train(stage, out)
    return out


def copy_for(stage, trained, folder):
    """A new directory with what a stage needs."""
    folder.mkdir()
    for part in NEEDS[stage]:
        shutil.copy(trained / f"{part}.safetensors", folder)
    return folder


# --- What is written ---
def test_each_stage_has_a_loss_and_a_sheet_at_each_look(trained):
    log = read_log(trained)
    assert set(log) == set(STAGES)
    for stage in STAGES:
        assert all(line["heldout_loss"] > 0 for line in log[stage])
        for step in range(1, STEPS + 1):
            with Image.open(trained / "watch" / f"{stage}-{step:06}.png") as page:
                # Eight columns, two rows and a margin for their names.
                assert page.width > 8 * 128 + 60 and page.height > 2 * 128
    assert len(list((trained / "watch").iterdir())) == len(STAGES) * STEPS


def test_looks_are_evenly_spaced_and_one_is_at_the_end(trained, tmp_path):
    out = copy_for("base", trained, tmp_path / "model")
    config = configs.override(CONFIG, ["stages.base.steps=25", "stages.base.muon_lr=0"])
    train("base", out, config)
    looked = [line["step"] for line in read_log(out)["base"] if "heldout_loss" in line]
    assert looked == [4, 7, 10, 13, 16, 19, 22, 25]
    assert len(list((out / "watch").iterdir())) == watch.LOOKS


def test_sheets_of_an_earlier_training_go_at_its_first_step(trained, tmp_path):
    out = copy_for("decoder", trained, tmp_path / "model")
    train("decoder", out)
    mine = out / "watch" / "mine.png"
    shutil.copy(out / "watch" / "decoder-000001.png", mine)
    shutil.copy(mine, out / "watch" / "base-000004.png")
    (out / "decoder.safetensors").unlink()
    loop = train_all(("decoder",), out, CONFIG, "shapes", LazyT5("t5-toy"), "t5-toy")
    next(loop)
    loop.close()
    names = {path.name for path in (out / "watch").iterdir()}
    assert names == {"decoder-000001.png", "base-000004.png", "mine.png"}


# --- It changes nothing ---
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_is_not_watched_ends_with_the_same_weights(
    stage, trained, tmp_path, monkeypatch
):
    """Bit for bit, codebooks and all; and the global random numbers are the same, too."""
    watched, alone = (tmp_path / name for name in ("watched", "alone"))
    numbers = train(stage, copy_for(stage, trained, watched))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "watcher_of", lambda *_: Unwatched())
        numbers_alone = train(stage, copy_for(stage, trained, alone))
    assert not (alone / "log.jsonl").exists() and (watched / "log.jsonl").exists()
    ours = load_file(watched / f"{stage}.safetensors")
    theirs = load_file(alone / f"{stage}.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(numbers, numbers_alone)


class Unwatched:
    def __call__(self, record):
        pass

    def close(self):
        pass


def heldout_tokens(trained, name, config=CONFIG):
    """What watches a finished token model, and all held-out tokens."""
    text = load_t5("t5-toy")
    names = ("tokenizer", "tokenizer_hi") if name == "superres" else ("tokenizer",)
    tokenizers = {n: load_part(trained, n, config, text.width).eval() for n in names}
    model = load_part(trained, name, config, text.width)
    images = load_both(config, "shapes", trained)[1]
    tokens = tokens_of(tokenizers, text, images)
    return HeldoutTokens(model, tokens, tokenizers[names[-1]], config, name, "cpu"), tokens


@pytest.mark.parametrize("name", ["base", "superres"])
def test_a_look_is_always_the_same_and_leaves_the_model_alone(name, trained):
    heldout, _ = heldout_tokens(trained, name)
    before = {key: value.clone() for key, value in heldout.model.state_dict().items()}
    numbers = torch.get_rng_state()
    first = heldout.look(1)
    torch.manual_seed(3)
    second = heldout.look(2)
    assert first.loss == second.loss and torch.equal(first.drawn, second.drawn)
    after = heldout.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert heldout.model.training and not any(
        p.grad is not None for p in heldout.model.parameters()
    )
    torch.set_rng_state(numbers)
    heldout.at_once = 100  # all pictures in one batch, and not two at a time
    assert (heldout.look(3).drawn - first.drawn).abs().mean() < 0.05
    assert first.drawn.shape[0] == PICTURES and first.drawn.abs().max() <= 1


# --- It is right ---
@pytest.mark.parametrize("name", ["base", "superres"])
def test_the_loss_of_tokens_is_that_of_training(name, trained):
    """Compared with one pass over the whole batch, written out."""
    heldout, tokens = heldout_tokens(trained, name)
    batch = heldout.batch
    M = len(batch.ids)
    assert M == PICTURES and heldout.at_once == 4
    text = torch.nn.utils.rnn.pad_sequence(batch.texts, batch_first=True)
    visible = torch.arange(text.shape[1]) < torch.tensor([[len(t)] for t in batch.texts])
    visible = visible & batch.has_caption
    more = []
    if name == "superres":
        assert torch.equal(batch.low_ids, tokens.ids("low", torch.arange(M)))
        true_ids = tokens.ids("high", torch.arange(M)).gather(1, batch.places)
        more = [batch.low_ids, batch.places]
    else:
        true_ids = tokens.ids("low", torch.arange(M))
    assert torch.equal(batch.ids, true_ids)
    assert (batch.masked_ids == heldout.model.mask_id).equal(batch.hidden)
    with torch.no_grad(), autocast("cpu"):
        context = heldout.model.context(text, visible, *more)
        logits = heldout.model(batch.masked_ids, context, batch.hidden)
        expected = masked_token_loss(logits, batch.ids, batch.hidden).loss
    assert heldout.look(1).loss == pytest.approx(float(expected), rel=1e-3)


def test_masks_are_spread_over_the_law_of_training():
    """Their mean is 2 / pi, closer than that of ratios drawn at random."""
    M, N = 64, 256
    hidden = spread_masks(M, N, torch.Generator().manual_seed(0))
    counts = hidden.sum(-1)
    quantiles = schedule.gamma((torch.arange(M).double().numpy() + 0.5) / M)
    expected = schedule.mask_counts(torch.from_numpy(quantiles), N)
    assert counts.sort().values.equal(expected.sort().values)
    assert not counts.equal(counts.sort(descending=True).values), "rows are in random order"
    assert abs(float(counts.double().mean()) / N - 2 / torch.pi) < 0.005


def test_as_many_captions_are_dropped_as_in_training(trained):
    heldout, _ = heldout_tokens(trained, "base")
    assert int((~heldout.batch.has_caption).sum()) == round(0.25 * PICTURES)


@pytest.mark.parametrize("name", ["base", "superres"])
def test_as_many_images_are_fully_hidden_as_in_training(trained, name):
    """Of super-resolution alone. All other images keep the law of ratios."""
    plain, _ = heldout_tokens(trained, name)
    heldout, _ = heldout_tokens(trained, name, replace(CONFIG, fully_hidden=0.75))
    M, N = heldout.batch.hidden.shape
    if name == "base":
        assert torch.equal(heldout.batch.hidden, plain.batch.hidden)
        return
    full = round(0.75 * M)
    by_law = spread_masks(M - full, N, torch.Generator().manual_seed(0)).sum(-1)
    expected = torch.cat([by_law, torch.full((full,), N)])
    counts = heldout.batch.hidden.sum(-1)
    assert torch.equal(counts.sort().values.cpu(), expected.sort().values)


def mean_loss_of_crops(fake, real, name):
    """The mean pixel loss over all places where training may crop an image of 32 pixels."""
    if name == "tokenizer":
        return float(pixel_loss(fake, real))
    losses = []
    for y in range(17):
        for x in range(17):
            place = (..., slice(y, y + 16), slice(x, x + 16))
            losses.append(float(pixel_loss(fake[place], real[place])))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_hi", "decoder"])
def test_the_loss_of_images_is_that_of_pixels(name, trained):
    part = load_part(trained, name, CONFIG, 64)
    tokenizer = load_part(trained, "tokenizer_hi", CONFIG, 64).eval()
    images = load_both(CONFIG, "shapes", trained)[1]
    frozen = tokenizer if name == "decoder" else None
    heldout = HeldoutImages(part, frozen, images, CONFIG, name, "cpu")
    before = {key: value.clone() for key, value in part.state_dict().items()}
    look = heldout.look(STEPS)
    real = images.batch(range(PICTURES))
    if name == "tokenizer":
        real = halve(real)
    with torch.no_grad(), autocast("cpu"):
        if name == "decoder":
            codes = tokenizer.quantizer.lookup(tokenizer.encode(real))
            fake = part(codes.permute(0, 3, 1, 2))
        else:
            fake = part(real)[0]
    assert torch.allclose(look.drawn, fake.float(), atol=0.05)
    assert look.loss == pytest.approx(mean_loss_of_crops(fake, real, name), rel=0.05)
    assert all(torch.equal(before[k], v) for k, v in part.state_dict().items()), "codes are moved"


def test_before_there_are_codes_a_tokenizer_is_an_autoencoder(trained):
    part = load_part(trained, "tokenizer", CONFIG, 64)
    images = load_both(CONFIG, "shapes", trained)[1]
    heldout = HeldoutImages(part, None, images, CONFIG, "tokenizer", "cpu")
    heldout.codes_from = 2
    real = halve(images.batch(range(PICTURES)))
    with torch.no_grad(), autocast("cpu"):
        expected = part.autoencode(real).float()
    assert torch.allclose(heldout.look(2).drawn, expected, atol=0.05)
    assert not torch.allclose(heldout.look(3).drawn, expected, atol=0.05)


# --- Which images ---
def test_held_out_images_are_not_trained_on():
    images, heldout = load_both(CONFIG, "shapes", None)
    assert len(images) == 12 and len(heldout) == HELDOUT
    assert set(heldout.names) == set(load_images(CONFIG, "shapes", "heldout", HELDOUT).names)
    assert heldout.names != sorted(heldout.names), "in random order"
    assert not set(images.names) & set(heldout.names)
    again = load_both(CONFIG, "shapes", None, train=False)
    assert again[0] is None and again[1].names == heldout.names


def folder_of(path, count=30):
    path.mkdir()
    for i in range(count):
        Image.new("RGB", (40, 40), (8 * i, 90, 30)).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a square number {i}")
    return path


def test_of_a_folder_one_image_in_ten(tmp_path):
    data = str(folder_of(tmp_path / "images"))
    images, heldout = load_both(CONFIG, data, tmp_path / "out")
    assert 0 < len(heldout) < 10 and len(images) + len(heldout) == 30
    assert sorted(heldout.names) == load_images(CONFIG, data, "heldout", out=tmp_path / "out").names


def test_a_short_stage_looks_at_few_images():
    stage = CONFIG.stages.base
    assert count_for(stage, 64) == PICTURES and count_for(stage, 5) == 5
    long = configs.PRESETS["demo"].stages
    assert count_for(long.base, 64) == 64
    passed = 40 * IMAGES_FOR_EACH
    hi = replace(stage, steps=passed // stage.batch)
    assert count_for(hi, 64) == 40 and count_for(hi, 64, crops=4) == 10


def test_processes_take_as_many_passes_as_each_other(trained):
    config = configs.override(CONFIG, ["sampling.sampler=entropy", "sampling_hi.sampler=halton"])
    assert sampling_of(config, "base").sampler == "confidence"
    assert sampling_of(config, "superres") == config.sampling_hi


def test_blocks_that_are_compiled_for_training_run_as_they_are():
    def compiler(*_):
        pytest.fail("compiles for eight pictures")

    block = torch.compile(lambda x: x + 1, backend=compiler)
    with uncompiled(configs.override(CONFIG, ["scale.compile=True"])):
        assert block(torch.zeros(())) == 1


# --- With a cache ---
def test_a_cache_has_held_out_tokens_so_the_text_encoder_is_not_loaded(
    trained, tmp_path, monkeypatch
):
    out = copy_for("superres", trained, tmp_path / "model")
    shutil.copy(trained / "config.json", out)
    list(fill_cache(out, "cpu"))
    monkeypatch.setattr(LazyT5, "__call__", lambda *_: pytest.fail("loads the text encoder"))
    for stage in ("base", "superres"):
        train(stage, out)
        with_cache = [line["heldout_loss"] for line in read_log(out)[stage]]
        without = [line["heldout_loss"] for line in read_log(trained)[stage]]
        assert with_cache == pytest.approx(without, rel=1e-3)


def test_a_cache_of_an_older_version_has_none(trained, tmp_path):
    out = copy_for("base", trained, tmp_path / "model")
    shutil.copy(trained / "tokenizer_hi.safetensors", out)
    shutil.copy(trained / "config.json", out)
    list(fill_cache(out, "cpu"))
    (out / "cache" / "heldout.safetensors").unlink()
    train("base", out)
    assert not any("heldout_loss" in line for line in read_log(out)["base"])
    assert not (out / "watch").exists()


def test_without_images_there_is_the_log_alone(tmp_path):
    """Tokens are in the cache, and the folder is gone."""
    data, out = folder_of(tmp_path / "images"), tmp_path / "out"
    for stage in STAGES[:2]:
        train(stage, out, data=str(data))
    list(fill_cache(out, "cpu"))
    shutil.rmtree(data)
    train("base", out, data=str(data))
    lines = read_log(out)["base"]
    assert len(lines) == STEPS and not any("heldout_loss" in line for line in lines)
    assert not list((out / "watch").glob("base-*"))


# --- What cannot be written ---
def test_a_sheet_that_cannot_be_written_ends_the_training_in_one_line(
    trained, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = copy_for("base", trained, tmp_path / "model")
    monkeypatch.setattr("minimuse.plumbing.files.os.replace", full)
    monkeypatch.setattr(stages, "write_config", lambda *_: None)
    arguments = ["train", "base", "--preset", "tiny", "--data", "shapes", "--out", str(out)]
    assert main([*arguments, *SETTINGS]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "base-000001.png cannot be written (" in last and last.endswith("make room")


def test_a_folder_in_the_place_of_sheets_is_refused_before_the_first_step(tmp_path):
    (tmp_path / "watch").write_text("a file")
    with pytest.raises(OSError, match="watch/tokenizer-000000.png cannot be written"):
        train("tokenizer", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["watch"]


def test_titles_are_those_of_all_stages():
    assert set(watch.TITLES) == set(STAGES)
