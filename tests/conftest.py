"""Fixtures that several test files use, and how many examples Hypothesis tries.

Hypothesis profiles: `quick` is the default, and HYPOTHESIS_PROFILE=explore draws many new examples.
`planted` is for broken variants, which a property must reject: few examples, and no search for the
smallest.
"""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# `pytest -n` runs tests in several processes. If each had as many threads as there are cores, they
# would wait for each other.
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if PROCESSES > 1:
    threads = max(1, (os.cpu_count() or 1) // PROCESSES)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the programs that tests start

settings.register_profile(
    "quick", max_examples=25, derandomize=True, deadline=None, report_multiple_bugs=False
)
settings.register_profile("explore", max_examples=500, deadline=None, report_multiple_bugs=False)
settings.register_profile(
    "planted",
    max_examples=15,
    derandomize=True,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.generate),
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
settings.load_profile(PROFILE)


def pytest_addoption(parser):
    parser.addoption(
        "--lessons", action="store_true", help="run the code of the lessons instead of the tests"
    )


def pytest_configure(config):
    if config.option.lessons:
        config.args = [str(Path(__file__).parents[1] / "lessons")]


@pytest.fixture(autouse=True)
def same_threads():
    """Restore the number of threads: scripts of claims set it, and it changes the last digits."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def planted_profile():
    settings.load_profile("planted")
    yield
    settings.load_profile(PROFILE)


@pytest.fixture
def refuses():
    """refuses(property, *arguments): the property raises an AssertionError, and no other error."""

    def check(prop, *arguments):
        settings.load_profile("planted")
        try:
            with pytest.raises(AssertionError):
                prop(*arguments)
        finally:
            settings.load_profile(PROFILE)

    return check


@pytest.fixture
def fails(capsys):
    """Run a command that must end with exit code 2 and one line on stderr; returns the line."""

    from minimuse.cli import main

    def run_failing(*argv):
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        lines = capsys.readouterr().err.splitlines()
        assert code == 2 and len(lines) == 1, (code, lines)
        return lines[0]

    return run_failing


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model directory of `minimuse demo --preset tiny`: every stage, trained for a few steps."""
    from minimuse.cli import main

    out = tmp_path_factory.mktemp("models") / "tiny"
    assert main(["demo", "--preset", "tiny", "--out", str(out)]) == 0
    return out
