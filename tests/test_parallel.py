"""Several processes, several passes, recomputed and compiled blocks: all must compute what one plain process does.

Two gloo processes on a CPU take the way that NCCL takes on GPUs: `pytest tests/test_parallel.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimuse.plumbing import collectives
from minimuse.plumbing import config as configs
from minimuse.plumbing.config import override
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import stages as ours
from minimuse.runs.stages import STAGES, train_all

STEPS, WORKER = 6, Path(__file__).with_name("spread.py")
TOKEN_STAGES = ("base", "superres")
SETTINGS = [
    f"stages.{s}.{x}" for s in TOKEN_STAGES for x in ("muon_lr=0", "batch=8", f"steps={STEPS}")
] + ["scenes=24", "caption_dropout=0.3"]


def run(processes, stage, out, stop=STEPS, *more, check=True):
    """The metrics of every step, from a process of its own, or from several, up to a step."""
    metrics = out / "metrics.json"
    metrics.unlink(missing_ok=True)
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes > 1
        else []
    )
    command = [
        sys.executable,
        *torchrun,
        str(WORKER),
        stage,
        str(out),
        str(metrics),
        str(stop),
        *more,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if not check:
        return done
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(metrics.read_text())


@pytest.fixture(scope="module", autouse=True)
def fp32():
    """In bf16, where a CPU has it, equal sums in another order differ by some 1e-4: too much to tell them from other sums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.backends.cpu, "get_cpu_capability", lambda: "AVX2"
        )  # as in the other processes
        yield


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A model directory with both tokenizers."""
    out = tmp_path_factory.mktemp("spread") / "model"
    config = override(configs.PRESETS["tiny"], SETTINGS)
    list(train_all(STAGES[:2], out, config, "shapes", load_t5("t5-toy"), "t5-toy"))
    return out


@pytest.fixture
def copy(tokenized, tmp_path):
    """A copy of it, with settings."""
    numbers = iter(range(99))

    def make(*settings):
        out = shutil.copytree(tokenized, tmp_path / f"copy{next(numbers)}")
        for path in out.glob("config.json"):
            about = json.loads(path.read_text())
            about["config"] = configs.dataclasses.asdict(
                override(configs.from_json(about["config"]), list(settings))
            )
            path.write_text(json.dumps(about))
        return out

    return make


@pytest.fixture(scope="module")
def alone(tokenized, tmp_path_factory):
    """Metrics and weights of each token stage, from this plain process."""
    found = {}
    for stage in TOKEN_STAGES:
        out = shutil.copytree(tokenized, tmp_path_factory.mktemp(f"alone-{stage}") / "model")
        found[stage] = here(stage, out), load_file(out / f"{stage}.safetensors")
    return found


def trained(stage, out):
    """Records of the same in this process."""
    config = configs.from_json(json.loads((out / "config.json").read_text())["config"])
    return train_all((stage,), out, config, "shapes", load_t5("t5-toy"), "t5-toy", resume=True)


def here(stage, out, stop=None):
    """Their metrics, up to a step. Without one the records are read to their end, at which the weights are saved."""
    return [
        {k: float(v) for k, v in record.metrics.items()}
        for record in islice(trained(stage, out), stop)
    ]


def same(metrics, weights, wanted, first=0):
    assert len(metrics) == STEPS - first
    for now, then in zip(metrics, wanted[0][first:]):
        assert now["loss"] == pytest.approx(then["loss"], rel=1e-5) and now[
            "accuracy"
        ] == pytest.approx(then["accuracy"], abs=1e-5)
        assert now["chance"] == pytest.approx(then["chance"], rel=1e-6)
    assert weights.keys() == wanted[1].keys()
    for (
        name,
        tensor,
    ) in weights.items():  # AdamW's first steps divide by a gradient's size: where that is about 0, its last bits decide
        assert torch.allclose(tensor, wanted[1][name], atol=2e-3), name
        assert (tensor - wanted[1][name]).abs().mean() < 1e-5, name


@pytest.mark.parametrize("stage", TOKEN_STAGES)
def test_two_processes_are_one(stage, copy, alone):
    out = copy("scale.micro_batch=2", "scale.recompute=True")  # in two passes each
    metrics = run(2, stage, out)
    print(
        f"largest relative difference of a loss: {max(abs(a['loss'] / b['loss'] - 1) for a, b in zip(metrics, alone[stage][0])):.1e}"
    )
    same(metrics, load_file(out / f"{stage}.safetensors"), alone[stage])
    assert not list(out.glob("*checkpoint*")) and not list(out.glob("*.tmp"))


@pytest.mark.parametrize("before, after", [(2, 1), (1, 2)])
def test_a_checkpoint_of_some_resumes_on_others(before, after, copy, alone):
    out = copy()
    train = lambda processes, stop=STEPS: (
        run(processes, "base", out, stop)
        if processes > 1
        else here("base", out, stop if stop < STEPS else None)
    )
    assert (
        len(train(before, 3)) == 3
        and (out / "base.checkpoint.safetensors").is_file()
        and not (out / "base.safetensors").exists()
    )
    metrics = train(after)
    first = STEPS - len(metrics)
    assert first in (2, 3), "one process saves when it is stopped, two when it is time"
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first)


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_while_writing(processes, copy, alone):
    """Half a file in a folder aside; the checkpoint before is whole, and found."""
    out = copy()
    assert run(processes, "base", out, 4, "die", check=False).returncode != 0
    torn = out / "base.checkpoint.safetensors.tmp" / "base.checkpoint.safetensors"
    assert torn.stat().st_size < (out / "base.checkpoint.safetensors").stat().st_size
    same(here("base", out), load_file(out / "base.safetensors"), alone["base"], first=3)


@pytest.mark.parametrize(
    "settings",
    [
        ["scale.micro_batch=3"],
        ["scale.recompute=True"],
        ["scale.micro_batch=4", "scale.recompute=True"],
        pytest.param(["scale.compile=True"], marks=pytest.mark.slow),
        pytest.param(["scale.compile=True", "scale.recompute=True"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stage", TOKEN_STAGES)
def test_scaling_changes_nothing(stage, settings, copy, alone):
    out = copy(*settings)
    same(here(stage, out), load_file(out / f"{stage}.safetensors"), alone[stage])


def test_how_it_fits_may_change_on_the_way(copy, alone):
    """A run that went out of memory goes on with smaller passes; no other setting may change."""
    out = copy()
    for record in (run_ := trained("base", out)):
        if record.step == 3:
            break
    run_.close()
    about = json.loads((out / "config.json").read_text())
    config = configs.from_json(about["config"])
    with pytest.raises(ValueError, match="other settings"):
        next(
            train_all(
                ("base",),
                out,
                override(config, ["caption_dropout=0.2"]),
                "shapes",
                load_t5("t5-toy"),
                "t5-toy",
                resume=True,
            )
        )
    smaller = override(config, ["scale.micro_batch=2"])
    metrics = [
        {k: float(v) for k, v in r.metrics.items()}
        for r in train_all(
            ("base",), out, smaller, "shapes", load_t5("t5-toy"), "t5-toy", resume=True
        )
    ]
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first=3)


def test_the_mean_of_means_is_refused(copy, alone, refuses, monkeypatch):
    """The check notices parts that count alike, whatever is hidden in them."""
    mean = ours.masked_token_loss

    def alike(
        logits, ids, hidden
    ):  # what every part would weigh if B rows made a part of 1 / (B / rows)
        found = mean(logits, ids, hidden)
        return found._replace(loss=found.loss * (len(ids) / 8) / (hidden.sum() / whole[-1]))

    whole, hide = [], ours.hide
    monkeypatch.setattr(ours, "hide", lambda *a: (c := hide(*a), whole.append(c.hidden.sum()))[0])
    monkeypatch.setattr(ours, "masked_token_loss", alike)
    out = copy("scale.micro_batch=3")
    refuses(same, here("base", out), load_file(out / "base.safetensors"), alone["base"])


def test_what_several_processes_cannot_do(copy, monkeypatch):
    monkeypatch.setattr(collectives, "place", lambda: (0, 2))
    monkeypatch.setattr(collectives, "fit", lambda model, compile, recompute, device: None)
    for stage, settings, message in (
        ("base", ["stages.base.muon_lr=0.01"], "several processes need AdamW"),
        ("base", ["stages.base.optimizer=adafactor"], "several processes need AdamW"),
        ("base", ["stages.base.batch=7"], "batch of 7 cannot be shared evenly by 2"),
        ("decoder", [], "decoder trains in one process"),
    ):
        with pytest.raises(ValueError, match=message):
            next(trained(stage, copy(*settings)))


def test_adafactor_learns_and_resumes(copy):
    """Its state is not of its parameters' shape: rows and columns. Bit for bit, as with AdamW."""
    losses = []
    for stops in ((), (2,)):
        out = copy("stages.base.optimizer=adafactor", "stages.base.lr=0.05")
        for stop in stops:
            run_ = trained("base", out)
            for record in run_:
                if record.step == stop:
                    break
            run_.close()
        losses.append([float(r.metrics["loss"]) for r in trained("base", out)])
        weights = load_file(out / "base.safetensors")
    assert losses[1] == losses[0][2:] and losses[0][-1] < losses[0][0]
    assert all(tensor.isfinite().all() for tensor in weights.values())
