"""The scripts of lessons/claims and tests/bench run, on the tiny model and a few pictures. Their figures are in the lessons and the README."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(script, monkeypatch, *argv):
    spec = importlib.util.spec_from_file_location("script", ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script, *map(str, argv)])
    module.main()
    return module


def test_editing(tiny_model, tmp_path, monkeypatch, capsys):
    run("lessons/claims/editing.py", monkeypatch, "--model", tiny_model, "--out", tmp_path, "--n", 2)
    report = json.loads((tmp_path / "editing.json").read_text())
    assert report["inpaint"]["asked"]["n"] == 2 and set(report["edit"]) == {"2", "4", "8", "16", "32", "64"}
    assert (tmp_path / "editing.png").is_file() and "inpaint" in capsys.readouterr().out


def test_prompts(tiny_model, tmp_path, monkeypatch):
    run("lessons/claims/prompts.py", monkeypatch, "--model", tiny_model, "--out", tmp_path, "--n", 2)
    report = json.loads((tmp_path / "prompts.json").read_text())
    assert all(0 <= cell["value"] <= 1 for row in [*report["composition"].values(), *report["negative"].values()] for cell in row.values())


def test_frontier(tiny_model, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="pip install 'minimuse[lessons]' brings it")
    monkeypatch.setenv("MPLBACKEND", "agg")
    how = ("--model", tiny_model, "--out", tmp_path, "--n", 2, "--base", 1, "--superres", 1)
    run("lessons/claims/frontier.py", monkeypatch, *how)
    first = (tmp_path / "frontier.json").read_text()
    assert {key.split("/")[0] for key in json.loads(first)} == {"base", "superres", "guidance 1.0", "guidance 2.0", "guidance 4.0"}
    run("lessons/claims/frontier.py", monkeypatch, *how)  # a stopped run goes on: nothing is measured twice
    assert (tmp_path / "frontier.json").read_text() == first and (tmp_path / "frontier.png").is_file()


def test_each_saving_of_decoding_gives_the_same_ids(tiny_model, monkeypatch, capsys):
    run("tests/bench/decoding.py", monkeypatch, "--model", tiny_model, "--runs", 1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and not any("ids same" in line for line in lines), lines
