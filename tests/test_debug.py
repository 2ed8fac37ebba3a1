"""Faults of the overture: each is found by a check, and the pages show what they look like.

pytest tests/test_debug.py
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from minimuse.checks.overture import CHECKS, first_fault

LESSONS = Path(__file__).parents[1] / "lessons"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem.replace("-", "_"), path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


faults = load(LESSONS / "faults.py")
ALL = faults.FAULTS | faults.CASES
# These are settings, which no check of a function can find: the function does what it is told.
SETTINGS = {"one-pass", "guidance"}


def write_fault(name, folder):
    path = folder / f"{name}.py"
    path.write_text(faults.with_fault(ALL[name]))
    return path


def run_debug(*arguments, folder):
    command = [sys.executable, str(LESSONS / "debug.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_overture_passes_every_check():
    assert first_fault(load(LESSONS / "overture.py")) is None


@pytest.mark.parametrize("name", sorted(set(ALL) - SETTINGS))
def test_every_fault_of_a_function_is_found(name, tmp_path):
    assert first_fault(load(write_fault(name, tmp_path))) is not None


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_setting_is_no_fault_of_a_function(name, tmp_path):
    assert first_fault(load(write_fault(name, tmp_path))) is None


def test_every_check_finds_a_fault_that_the_others_miss(tmp_path):
    """No check is idle: without it, some fault of the pages would pass."""
    found_by = {check: set() for check in CHECKS}
    for name in sorted(set(ALL) - SETTINGS):
        module = load(write_fault(name, tmp_path))
        for check in CHECKS:
            try:
                check(module)
            except Exception:
                found_by[check].add(name)
    assert all(found_by.values()), found_by


def test_a_case_is_written_once_and_judged(tmp_path):
    written = run_debug("new", 3, folder=tmp_path)
    assert written.returncode == 0 and "case-3.py" in written.stdout
    again = run_debug("new", 3, folder=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr

    judged = run_debug("check", "case-3.py", folder=tmp_path)
    assert judged.returncode == 1 and "gradients" in judged.stdout
    fault = faults.CASES["case-3"]
    path = tmp_path / "case-3.py"
    path.write_text(
        path.read_text().replace(f"        {fault.wrong}\n", f"        {fault.right}\n")
    )
    judged = run_debug("check", "case-3.py", folder=tmp_path)
    assert judged.returncode == 0 and "is right" in judged.stdout


def test_a_file_that_is_missing_or_broken_is_one_line(tmp_path):
    missing = run_debug("check", "nowhere.py", folder=tmp_path)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    (tmp_path / "broken.py").write_text("def masked_loss(:\n")
    broken = run_debug("check", "broken.py", folder=tmp_path)
    assert (
        broken.returncode == 2 and broken.stderr.count("\n") == 1 and "broken.py" in broken.stderr
    )


def test_each_fault_has_its_figure_and_its_place_on_a_page():
    wrong = (LESSONS / "what-goes-wrong.md").read_text()
    debug = (LESSONS / "debug.md").read_text()
    for name in faults.FAULTS:
        assert f"(figures/wrong-{name}.png)" in wrong, f"{name} is not on the page"
    for name in faults.CASES:
        number = name.removeprefix("case-")
        assert f"(figures/debug-{number}.png)" in debug and f"## Case {number}" in debug
    # What a figure says about a fault is what its run printed, and the page repeats it.
    assert len(re.findall(r"^## ", wrong, flags=re.M)) >= len(faults.FAULTS)


@pytest.mark.slow
def test_a_few_steps_with_a_fault_make_its_figure(tmp_path):
    pytest.importorskip("matplotlib")
    command = [sys.executable, str(LESSONS / "faults.py"), "--out", str(tmp_path), "--steps", "1"]
    subprocess.run([*command, "leak"], check=True, capture_output=True)
    assert (tmp_path / "wrong-leak.png").stat().st_size > 5000
    assert "leak" not in (tmp_path / "healthy.py").read_text()
