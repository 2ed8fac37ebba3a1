"""Several processes, micro-batches, recomputed and compiled blocks compute what one process does.

    pytest tests/test_parallel.py

Two gloo processes on a CPU run the same code as NCCL processes on GPUs.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimuse import losses
from minimuse.plumbing import collectives, sharded
from minimuse.plumbing import config as configs
from minimuse.plumbing.checkpoint import checkpoints_at
from minimuse.plumbing.config import override
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import parallel
from minimuse.runs.directory import checkpoint_path, log_path
from minimuse.runs.log import read_log
from minimuse.runs.stages import NEEDS, STAGES, TOKEN_STAGES, train_all
from minimuse.runs.workers import ROWS

STEPS = 6
WORKER = Path(__file__).with_name("spread.py")
TIMEOUT = 300  # seconds


def test_every_stage_is_scheduled():
    """A stage that `side_by_side` did not know would silently stay untrained."""
    assert set(ROWS) == set(STAGES) == set(NEEDS)


def make_settings():
    settings = ["scenes=24", "caption_dropout=0.3"]
    for stage in TOKEN_STAGES:
        for setting in ("muon_lr=0", "batch=8", f"steps={STEPS}"):
            settings.append(f"stages.{stage}.{setting}")
    return settings


def start(processes, stage, out, stop, *more):
    """Train a stage up to a step, in one or several processes of their own."""
    torchrun = []
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        torchrun += ["--nproc-per-node", str(processes)]
    arguments = [stage, str(out), str(out / "metrics.json"), str(stop), *more]
    command = [sys.executable, *torchrun, str(WORKER), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


def train_elsewhere(processes, stage, out, stop=STEPS):
    """The metrics of every step up to `stop`, from one or several processes of their own."""
    metrics = out / "metrics.json"
    metrics.unlink(missing_ok=True)
    done = start(processes, stage, out, stop)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(metrics.read_text())


def records_of(stage, out):
    """Train a stage in this process; its records."""
    config = configs.from_json(json.loads((out / "config.json").read_text())["config"])
    return train_all((stage,), out, config, "shapes", load_t5("t5-toy"), "t5-toy", resume=True)


def metrics_of(records):
    return [{k: float(v) for k, v in record.metrics.items()} for record in records]


def train_here(stage, out, stop=None):
    """The metrics of every step up to `stop`, in this process; None: to the end, with weights."""
    records = records_of(stage, out)
    if stop is None:
        return metrics_of(records)
    return metrics_of(stop_after(records, stop))


def stop_after(records, step):
    """Train up to a step, and save a checkpoint; every record."""
    seen = []
    for record in records:
        seen.append(record)
        if record.step == step:
            record.save()
            break
    return seen


@pytest.fixture(scope="module", autouse=True)
def fp32():
    """Compute in fp32 in this process, too.

    In bf16, sums in another order differ by about 1e-4, as much as wrong sums do.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        yield


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A model directory with both tokenizers."""
    out = tmp_path_factory.mktemp("spread") / "model"
    config = override(configs.PRESETS["tiny"], make_settings())
    list(train_all(STAGES[:2], out, config, "shapes", load_t5("t5-toy"), "t5-toy"))
    return out


@pytest.fixture
def copy(tokenized, tmp_path):
    """copy(*settings): a copy of that directory, with some settings changed."""
    numbers = count()

    def make(*settings):
        out = shutil.copytree(tokenized, tmp_path / f"copy{next(numbers)}")
        path = out / "config.json"
        about = json.loads(path.read_text())
        config = override(configs.from_json(about["config"]), list(settings))
        about["config"] = dataclasses.asdict(config)
        path.write_text(json.dumps(about))
        return out

    return make


@pytest.fixture(scope="module")
def alone(tokenized, tmp_path_factory):
    """Metrics, weights and held-out losses of each token stage, from this plain process."""
    results = {}
    for stage in TOKEN_STAGES:
        out = shutil.copytree(tokenized, tmp_path_factory.mktemp(f"alone-{stage}") / "model")
        metrics = train_here(stage, out)
        heldout = [line["heldout_loss"] for line in read_log(out)[stage]]
        results[stage] = metrics, load_file(out / f"{stage}.safetensors"), heldout
    return results


def same(metrics, weights, expected, first=0):
    """Metrics from step `first` on, and weights at the end, are those of a plain process."""
    expected_metrics, expected_weights, _ = expected
    assert len(metrics) == STEPS - first
    for ours, theirs in zip(metrics, expected_metrics[first:], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["accuracy"] == pytest.approx(theirs["accuracy"], abs=1e-5)
        assert ours["chance"] == pytest.approx(theirs["chance"], rel=1e-6)
    assert weights.keys() == expected_weights.keys()
    for name, tensor in weights.items():
        # AdamW's first steps divide by the size of a gradient. Where that is about 0, its last
        # bits decide, so single weights may differ.
        assert torch.allclose(tensor, expected_weights[name], atol=2e-3), name
        assert (tensor - expected_weights[name]).abs().mean() < 1e-5, name


@pytest.mark.parametrize("stage", ["base", pytest.param("superres", marks=pytest.mark.slow)])
def test_two_processes_are_one(stage, copy, alone):
    out = copy("scale.micro_batch=2", "scale.recompute=True")  # two passes in each process
    metrics = train_elsewhere(2, stage, out)
    pairs = zip(metrics, alone[stage][0], strict=True)
    largest = max(abs(ours["loss"] / theirs["loss"] - 1) for ours, theirs in pairs)
    print(f"largest relative difference of a loss: {largest:.1e}")
    same(metrics, load_file(out / f"{stage}.safetensors"), alone[stage])
    assert not list(out.glob("*checkpoint*")) and not list(out.glob("*.tmp"))
    # One process writes the log, and both look at the held-out images as one process does.
    lines = [json.loads(text) for text in log_path(out).read_text().splitlines()]
    lines = [line for line in lines if line["stage"] == stage]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    heldout = [line["heldout_loss"] for line in lines]
    assert heldout == pytest.approx(alone[stage][2], rel=1e-4)
    assert len(list((out / "watch").glob(f"{stage}-*.png"))) == STEPS


def test_a_checkpoint_of_two_processes_resumes_on_one(copy, alone):
    out = copy()
    assert len(train_elsewhere(2, "base", out, 3)) == 3
    assert (out / "base.checkpoint.step-000002" / "manifest.json").is_file()
    assert not (out / "base.safetensors").exists()
    metrics = train_here("base", out)
    first = STEPS - len(metrics)
    assert first in (2, 3)
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_resumes_on_two(copy, alone):
    out = copy()
    assert len(train_here("base", out, 3)) == 3
    assert (out / "base.checkpoint.safetensors").is_file()
    assert not (out / "base.safetensors").exists()
    metrics = train_elsewhere(2, "base", out)
    first = STEPS - len(metrics)
    assert first in (2, 3)
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first)


def test_killed_while_writing(copy, alone):
    """Half a file is left in the temporary folder; the checkpoint before it is complete."""
    out = copy()
    assert start(1, "base", out, 4, "die").returncode != 0
    checkpoint = out / "base.checkpoint.safetensors"
    (folder,) = out.glob("base.checkpoint.safetensors.*.tmp")
    half = folder / "base.checkpoint.safetensors"
    assert half.stat().st_size < checkpoint.stat().st_size
    metrics = train_here("base", out)
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first=3)


@pytest.mark.slow
@pytest.mark.parametrize("resumed_by", [1, 3])
def test_one_of_two_killed_while_writing(resumed_by, copy, alone):
    """Another number of processes goes on from the checkpoint before."""
    out = copy(*(f"stages.base.{setting}" for setting in ("batch=6", f"steps={STEPS}")))
    undisturbed = train_here("base", shutil.copytree(out, out.with_name("undisturbed")))
    assert start(2, "base", out, 4, "die").returncode != 0
    steps = [sharded.step_of(path) for path in checkpoints_at(checkpoint_path(out, "base"))]
    assert steps == [3, 2]
    metrics = train_elsewhere(resumed_by, "base", out)
    weights = load_file(out.with_name("undisturbed") / "base.safetensors")
    same(metrics, load_file(out / "base.safetensors"), (undisturbed, weights, None), first=3)


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
    metrics = train_here(stage, out)
    same(metrics, load_file(out / f"{stage}.safetensors"), alone[stage])


def test_scale_may_change_when_resuming(copy, alone):
    """A run that went out of memory resumes with smaller passes; no other setting may change."""
    out = copy()
    stop_after(records_of("base", out), 3)
    about = json.loads((out / "config.json").read_text())
    config = configs.from_json(about["config"])

    def resume(settings):
        text = load_t5("t5-toy")
        changed = override(config, settings)
        return train_all(("base",), out, changed, "shapes", text, "t5-toy", resume=True)

    with pytest.raises(ValueError, match="other settings"):
        next(resume(["caption_dropout=0.2"]))
    metrics = metrics_of(resume(["scale.micro_batch=2"]))
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first=3)


def test_the_mean_of_means_is_refused(copy, alone, refuses, monkeypatch):
    """The check notices micro-batches that count by their rows, whatever is hidden in them."""
    token_loss, hide = losses.masked_token_loss, losses.hide
    hidden_in_batch = []

    def noting_hide(*arguments):
        corrupted = hide(*arguments)
        hidden_in_batch.append(corrupted.hidden.sum())
        return corrupted

    def mean_of_means(logits, ids, hidden):
        right = token_loss(logits, ids, hidden)
        fraction_of_rows = len(ids) / 8
        fraction_of_hidden = hidden.sum() / hidden_in_batch[-1]
        return right._replace(loss=right.loss * fraction_of_rows / fraction_of_hidden)

    monkeypatch.setattr(losses, "hide", noting_hide)
    monkeypatch.setattr(losses, "masked_token_loss", mean_of_means)
    out = copy("scale.micro_batch=3")
    metrics = train_here("base", out)
    refuses(same, metrics, load_file(out / "base.safetensors"), alone["base"])


@pytest.mark.parametrize(
    "stage, settings, message",
    [
        ("base", ["stages.base.muon_lr=0.01"], "several processes need AdamW"),
        ("base", ["stages.base.optimizer=adafactor"], "several processes need AdamW"),
        ("base", ["stages.base.batch=7"], "batch of 7 cannot be shared evenly by 2"),
        ("decoder", [], "decoder trains in one process"),
    ],
)
def test_what_several_processes_cannot_do(stage, settings, message, copy, monkeypatch):
    monkeypatch.setattr(collectives, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(parallel, "fit", lambda model, compile, recompute, device: None)
    with pytest.raises(ValueError, match=message):
        next(records_of(stage, copy(*settings)))


def test_adafactor_learns_and_resumes(copy):
    """Bit for bit, as with AdamW. Its state has the shape of rows and columns of the parameters."""

    def train(stops):
        out = copy("stages.base.optimizer=adafactor", "stages.base.lr=0.05")
        for stop in stops:
            stop_after(records_of("base", out), stop)
        metrics = train_here("base", out)
        return [m["loss"] for m in metrics], load_file(out / "base.safetensors")

    whole, weights = train(stops=())
    resumed, resumed_weights = train(stops=(2,))
    assert resumed == whole[2:]
    assert whole[-1] < whole[0]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert all(torch.equal(tensor, resumed_weights[name]) for name, tensor in weights.items())
