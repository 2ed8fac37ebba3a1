"""The scripts of lessons/claims and tests/bench run, on the tiny model and a few pictures. Their figures are in the lessons and the README."""

import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from minimuse.datasets import emoji, load

ROOT = Path(__file__).parents[1]


def module_of(script):
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, *argv):
    module = module_of(script)
    monkeypatch.setattr(sys, "argv", [script, *map(str, argv)])
    module.main()
    return module


def test_editing(tiny_model, tmp_path, monkeypatch, capsys):
    run(
        "lessons/claims/editing.py", monkeypatch, "--model", tiny_model, "--out", tmp_path, "--n", 2
    )
    report = json.loads((tmp_path / "editing.json").read_text())
    assert report["inpaint"]["asked"]["n"] == 2 and set(report["edit"]) == {
        "2",
        "4",
        "8",
        "16",
        "32",
        "64",
    }
    assert (tmp_path / "editing.png").is_file() and "inpaint" in capsys.readouterr().out


def test_which_real_picture_is_nearest():
    """Concepts a and b in five styles, as unit vectors of concept and style; what is drawn for noto/a looks like something else each time."""
    styles = emoji.STYLES
    names = [f"{style}/{concept}" for concept in "ab" for style in styles]
    one = torch.nn.functional.one_hot
    looks = lambda style, concept: torch.cat(
        [2.0 * one(torch.tensor("ab".index(concept)), 2), one(torch.tensor(styles.index(style)), 5)]
    )
    gallery = module_of("lessons/claims/emoji.py").Gallery(
        names, torch.stack([looks(*name.split("/")) for name in names])
    )
    score = lambda style, concept: gallery.nearest(looks(style, concept)[None], ["noto/a"])
    assert score("noto", "a") == {
        "concept first": 1,
        "chance": 0.5,
        "in ten": 1,
        "style first": 1,
        "chance of style": 0.2,
    }
    assert (score("twemoji", "a")["concept first"], score("twemoji", "a")["style first"]) == (1, 0)
    assert (score("noto", "b")["concept first"], score("noto", "b")["style first"]) == (0, 1)
    vectors, of = gallery.in_another_style(["noto/a", "fluent-3d/b"])
    assert of == ["noto/a", "fluent-3d/b"] and torch.equal(
        vectors, torch.stack([looks("fluent-flat", "a"), looks("openmoji", "b")])
    )


def test_emoji(tiny_model, tmp_path, monkeypatch):
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install 'minimuse[eval]' brings it"
    )
    module = module_of("lessons/claims/emoji.py")
    monkeypatch.setattr(
        module, "load", lambda source, split, side, count=70: load(source, split, side, count)
    )  # not all 8,076
    monkeypatch.setattr(
        module.Gallery, "nearest", lambda self, pictures, names: {"pictures": len(pictures)}
    )  # of names that are left out
    monkeypatch.setattr(
        sys, "argv", ["emoji.py", "--model", str(tiny_model), "--out", str(tmp_path), "--n", "66"]
    )
    module.main()
    report = json.loads((tmp_path / "emoji.json").read_text())
    assert report.keys() == {"held-out pairs", "trained pairs"} and report["trained pairs"][
        "drawn"
    ] == {"pictures": 66}
    assert len({*report["held-out pairs"]["nll"].values()}) == 4
    assert (
        all(
            (tmp_path / f"emoji-{name}.png").is_file()
            for name in ("asked", "heldout", "tokenizer", "edit")
        )
        and (tmp_path / "emoji.gif").is_file()
    )


def test_prompts(tiny_model, tmp_path, monkeypatch):
    run(
        "lessons/claims/prompts.py", monkeypatch, "--model", tiny_model, "--out", tmp_path, "--n", 2
    )
    report = json.loads((tmp_path / "prompts.json").read_text())
    assert all(
        0 <= cell["value"] <= 1
        for row in [*report["composition"].values(), *report["negative"].values()]
        for cell in row.values()
    )


@pytest.fixture
def claims(monkeypatch):
    """The folder of the scripts that import each other."""
    pytest.importorskip("matplotlib", reason="pip install 'minimuse[lessons]' brings it")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(ROOT / "lessons" / "claims")
    return importlib.import_module


def test_frontier(tiny_model, tmp_path, monkeypatch, claims):
    how = ("--model", tiny_model, "--out", tmp_path, "--n", 2, "--passes", 1, "--workers", 1)
    run("lessons/claims/frontier.py", monkeypatch, *how)
    first = (tmp_path / "frontier-tiny.json").read_text()
    assert {key.split("/")[0] for key in json.loads(first)} == {
        "base",
        "superres",
        "guidance 1",
        "guidance 2",
        "guidance 4",
    }
    run(
        "lessons/claims/frontier.py", monkeypatch, *how
    )  # a stopped run goes on: nothing is measured twice
    assert (tmp_path / "frontier-tiny.json").read_text() == first and (
        tmp_path / "frontier-tiny.png"
    ).is_file()


def test_frontier_judges_emoji_by_those_asked_for(claims, monkeypatch):
    """The features of the real pictures themselves are at no distance, and those of others are not."""
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install 'minimuse[eval]' brings it"
    )
    frontier = claims("frontier")
    (test, judge), (tune, _) = frontier.asked("toy", "test", 12), frontier.asked("toy", "tune", 12)
    assert len(test) == 12 and len(tune) == 6 and not {*test} & {*tune}
    pictures = frontier.load("emoji", "heldout", 64)
    real = pictures.batch(
        [
            next(i for i, said in enumerate(pictures.captions) if said[0] == caption)
            for caption in test
        ]
    )
    assert (
        judge(real)["KID"] < judge(real.flip(2))["KID"]
        and judge(real)["ten"] > judge(real.roll(1, 0))["ten"]
    )


def started(module, monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, argv), "--workers", "1"])
    module.main()


def test_laws(claims, tmp_path, monkeypatch, capsys):
    laws = claims("laws")
    monkeypatch.setattr(laws, "RATIOS", {name: laws.RATIOS[name] for name in ("cosine", "15 %")})
    monkeypatch.setattr(laws, "SEEDS", (0, 1))
    how = ("--out", tmp_path, "--steps", 1, "--pictures", 64, "--n", 4)
    started(laws, monkeypatch, *how)
    first = (tmp_path / "laws.json").read_text()
    assert (
        set(json.loads(first)) == {"cosine/0", "cosine/1", "15 %/0", "15 %/1"}
        and (tmp_path / "laws.png").is_file()
    )
    started(laws, monkeypatch, *how)
    assert (
        tmp_path / "laws.json"
    ).read_text() == first and "cosine against 15 %" in capsys.readouterr().out


def test_pieces(claims, tmp_path, monkeypatch, capsys):
    pieces = claims("pieces")
    monkeypatch.setattr(pieces, "SEEDS", (0, 1))
    started(pieces, monkeypatch, "--out", tmp_path, "--steps", 1, "--pictures", 64, "--n", 4)
    assert set(json.loads((tmp_path / "pieces.json").read_text())) == {
        f"{way}/{seed}" for way in pieces.WAYS for seed in (0, 1)
    }
    assert "pieces are better" in capsys.readouterr().out


def test_rivals(claims, tmp_path, monkeypatch):
    """One step of training, one setting to tune. The second script finds the first one's masked models."""
    direct, quick = (
        claims("direct"),
        lambda way, **other: way._replace(
            grid={name: options[-1:] for name, options in way.grid.items()}, **other
        ),
    )
    for name, value in {"BATCHES": (1, 2), "ROUNDS": 1, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(direct, name, value)
    for name in ("MASKED", "CASCADE"):
        monkeypatch.setattr(direct, name, quick(getattr(direct, name), passes=(1, 2), tuned_at=2))
    dates = set()
    for claim, other in (("autoregression", {}), ("diffusion", {"passes": (1, 2), "tuned_at": 2})):
        script = claims(claim)
        monkeypatch.setattr(script, "RIVAL", quick(script.RIVAL, **other))
        for _ in range(2):
            started(
                script, monkeypatch, "--out", tmp_path, "--seconds", 0, "--pictures", 32, "--n", 2
            )
            dates.add((tmp_path / "masked-0-0-0s.safetensors").stat().st_mtime_ns)
        done, times = (
            json.loads((tmp_path / name).read_text())
            for name in (f"{claim}.json", f"{claim}-cpu-times.json")
        )
        assert (
            set(done) == {f"{way}/0" for way in (script.RIVAL.name, "masked", "cascade")}
            and done["cascade/0"]["steps"] == "1 + 1"
        )
        assert set(times) == {"1", "2"} and all(
            seconds > 0 for by in times["2"].values() for seconds in by.values()
        )
        assert (
            "times as fast" in (tmp_path / f"{claim}.md").read_text()
            and (tmp_path / f"{claim}.png").is_file()
        )
    assert len(dates) == 1


def test_encoders(claims, tmp_path, monkeypatch, capsys):
    script = claims("encoders")
    monkeypatch.setattr(script, "SEEDS", (0, 1))
    started(script, monkeypatch, "--out", tmp_path, "--steps", 2, "--pictures", 32, "--n", 8)
    done = json.loads((tmp_path / "encoders.json").read_text())
    assert (
        set(done) == {f"{reader}/{seed}" for reader in script.READERS for seed in (0, 1)}
        and (tmp_path / "encoders.png").is_file()
    )
    nll = [
        done[name]["heldout"]["own"]
        for name in ("pretrained, frozen/0", "random, frozen/0", "random, learnt/0")
    ]
    assert len({*nll}) == 3  # two that are random read differently as soon as one learns
    assert "| held-out concepts: random, learnt |" in capsys.readouterr().out


def test_a_reader_learns_only_where_it_should(claims, tmp_path, monkeypatch):
    script, seen = claims("encoders"), []
    fit = script.fit

    def watch(name, make, *how):
        before = make()[0].reader.state_dict()
        fitted = fit(name, make, *how)
        seen.append(
            all(torch.equal(v, before[k]) for k, v in fitted.model.reader.state_dict().items())
        )
        return fitted

    monkeypatch.setattr(script, "fit", watch)
    for reader in script.READERS:
        script.work(reader, 0, 1, 16, 4, tmp_path)
    assert seen == [True, True, False]


def test_cascade(claims, tmp_path, monkeypatch, capsys):
    cascade, direct = claims("cascade"), claims("direct")
    quick = lambda way: way._replace(
        grid={name: options[-1:] for name, options in way.grid.items()}, passes=(1, 2), tuned_at=2
    )
    for name in ("MASKED", "CASCADE"):
        monkeypatch.setattr(cascade, name, quick(getattr(direct, name)))
    for module in (cascade, direct):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    started(cascade, monkeypatch, "--out", tmp_path, "--seconds", 0, "--pictures", 32, "--n", 2)
    assert set(json.loads((tmp_path / "cascade.json").read_text())) == {
        "cascade/0",
        "masked/0",
        "cascade/1",
        "masked/1",
    }
    assert (
        "the cascade is better in all: " in capsys.readouterr().out
        and (tmp_path / "cascade.png").is_file()
    )


def test_codebook(claims, tmp_path, monkeypatch):
    script = claims("codebook")
    monkeypatch.setattr(script, "SIZES", (16, 32, 64))
    started(
        script,
        monkeypatch,
        "--out",
        tmp_path,
        "--tokenizer_steps",
        5,
        "--steps",
        1,
        "--pictures",
        40,
        "--n",
        4,
    )
    done = json.loads((tmp_path / "codebook.json").read_text())
    assert all(
        1 <= done[codes]["perplexity"] <= done[codes]["used"] <= int(codes)
        for codes in ("16", "32", "64")
    )
    assert "codes do not help against 32" in (tmp_path / "codebook.md").read_text()


def test_counting(claims, tiny_model, tmp_path, monkeypatch):
    started(claims("counting"), monkeypatch, "--model", tiny_model, "--out", tmp_path, "--n", 24)
    done = json.loads((tmp_path / "counting.json").read_text())
    assert (
        sum(done["heldout/0"][name]["n"] for name in claims("counting").GROUPS) == 24
    )  # each caption is of one group
    assert "of four things are right than of one: " in (tmp_path / "counting.md").read_text()


def test_decoder_and_ramp(claims, tmp_path, monkeypatch):
    pytest.importorskip(
        "efficientnet_lite_pytorch", reason="pip install 'minimuse[eval]' brings it"
    )
    decoder, ramp = claims("decoder"), claims("ramp")
    for module in (decoder, ramp):
        monkeypatch.setattr(module, "SEEDS", (0, 1))
    monkeypatch.setattr(ramp, "STRENGTHS", (1.0, 4.0))
    started(decoder, monkeypatch, "--out", tmp_path, "--n", 8)
    sizes = [
        [row[name]["weights"] for name in decoder.DECODERS]
        for row in json.loads((tmp_path / "decoder.json").read_text()).values()
    ]
    assert all(large > small for small, large in sizes) and (tmp_path / "decoder.png").is_file()
    started(ramp, monkeypatch, "--out", tmp_path, "--n", 8)
    assert (
        len(json.loads((tmp_path / "ramp.json").read_text())) == 2 * 2 * 2 * 2
        and (tmp_path / "ramp.png").is_file()
    )


def test_verdicts(claims):
    trial = claims("trial")
    assert (
        trial.verdict([3.0, 3.1, 2.9], [1.0, 1.1, 0.9]) == "holds"
        and trial.verdict([1.0, 1.1, 0.9], [3.0, 3.1, 2.9]) == "does not hold"
    )
    assert (
        trial.verdict([1.0, 2.0, 3.0], [1.2, 1.9, 2.8])
        == trial.verdict([float("nan")] * 2, [1.0, 1.0])
        == "cannot be told"
    )


def test_a_training_that_was_cut_short_ends_the_same(claims, tmp_path, monkeypatch):
    """Stopped in the middle and started again: as many steps, the same weights; and another seed gives others."""
    trial = claims("trial")

    def make():
        model = torch.nn.Linear(4, 1)

        def parts_of(indices, generator, step):
            if step == stop:
                raise KeyboardInterrupt
            yield model(torch.randn(len(indices), 4, generator=generator)).square().mean(), {}

        return model, parts_of

    def fit(seed, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        return trial.fit("some", make, trial.settings(30, 8), 100, seed, tmp_path / folder)

    monkeypatch.setattr("minimuse.train.SAVE_EVERY", 0.0)
    stop = None
    whole, other = fit(0, "whole"), fit(1, "other")
    stop = 20
    with pytest.raises(KeyboardInterrupt):
        fit(0, "cut")
    stop = None
    cut = fit(0, "cut")
    assert torch.equal(whole.model.weight, cut.model.weight) and not torch.equal(
        whole.model.weight, other.model.weight
    )
    assert cut.steps == whole.steps == 30 and not any((tmp_path / "cut").iterdir())


def test_a_training_takes_as_long_as_it_should_when_steps_become_slower(claims, tmp_path):
    trial = claims("trial")

    def make():
        model = torch.nn.Linear(4, 1)

        def parts_of(indices, generator, step):
            begun = time.process_time()
            while time.process_time() - begun < (0.01 if step < 40 else 0.03):
                pass
            yield model(torch.randn(len(indices), 4, generator=generator)).square().mean(), {}

        return model, parts_of

    fitted = trial.fit("some", make, trial.settings(1, 8), 100, 0, tmp_path, seconds=3.0)
    assert 2.6 < fitted.seconds < 3.6 and 60 < fitted.steps < 200 and not any(tmp_path.iterdir()), (
        fitted
    )


def test_each_saving_of_decoding_gives_the_same_ids(tiny_model, monkeypatch, capsys):
    run("tests/bench/decoding.py", monkeypatch, "--model", tiny_model, "--rounds", 2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4 and not any("ids same" in line for line in lines), lines
