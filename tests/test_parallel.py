"""Several processes, micro-batches, recomputed and compiled blocks compute what one process does.

    pytest tests/test_parallel.py

Two gloo processes on a CPU run the same code as NCCL processes on GPUs.
"""

import dataclasses
import json
import random
import shutil
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from spread import RESTLESS, start
from torch.torch_version import TorchVersion

from minimuse import losses, vq
from minimuse.datasets import progress
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
TWENTY = 20
# Name -> stage, settings of the training, and those that only several processes have. Codes are
# placed in the first step, while the weights are the same bit for bit. Placed later, in 2 of 5
# trainings they parted there: among the random latents with which k-means starts are pairs that are
# as good as equal, and the last digits decide which of the two is the nearest code of a latent.
CASES = {
    "tokenizer": ("tokenizer", ["loss.quantize_from=0.0"], []),
    # Stopped before it has codes.
    "autoencoder": ("tokenizer", ["stages.tokenizer.steps=80", "loss.quantize_from=0.5"], []),
    "tokenizer_hi": ("tokenizer_hi", ["loss.quantize_from=0.0"], []),
    "base by Muon": (
        "base",
        ["stages.base.muon_lr=0.025"],
        ["scale.micro_batch=2", "scale.recompute=True"],  # two passes in each process
    ),
    "superres by Adafactor": (
        "superres",
        ["stages.superres.optimizer=adafactor", "stages.superres.lr=0.05"],
        [],
    ),
    "decoder": ("decoder", [], []),
}


def test_every_stage_is_scheduled():
    """A stage that `side_by_side` did not know would silently stay untrained."""
    assert set(ROWS) == set(STAGES) == set(NEEDS)


def make_settings():
    settings = ["scenes=24", "caption_dropout=0.3"]
    for stage in TOKEN_STAGES:
        for setting in ("muon_lr=0", "batch=8", f"steps={STEPS}"):
            settings.append(f"stages.{stage}.{setting}")
    return settings


def train_elsewhere(processes, stage, out, stop=STEPS):
    """The metrics of every step up to `stop`, from one or several processes of their own."""
    (out / "metrics.json").unlink(missing_ok=True)
    done = start(processes, f"{stage}:{stop}={out}")
    assert done.returncode == 0, done.stderr[-3000:]
    return read_metrics(out)


def read_metrics(out):
    return json.loads((out / "metrics.json").read_text())


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
        if record.step == step < record.steps:
            record.save()
            break
    return seen


@pytest.fixture(scope="module", autouse=True)
def as_elsewhere():
    """Compute as the processes of `spread.py` do: in fp32, in one thread, with codes that may die.

    In bf16, sums in another order differ by about 1e-4, as much as wrong sums do.
    """
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        patch.setattr(vq, "EMAQuantizer", RESTLESS)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory):
    """A model directory with both tokenizers."""
    out = tmp_path_factory.mktemp("spread") / "model"
    config = override(configs.PRESETS["tiny"], make_settings())
    list(train_all(STAGES[:2], out, config, "shapes", load_t5("t5-toy"), "t5-toy"))
    return out


@pytest.fixture(scope="module")
def copy(tokenized, tmp_path_factory):
    """copy(*settings): a copy of that directory, with some settings changed."""
    folder = tmp_path_factory.mktemp("copies")
    numbers = count()

    def make(*settings):
        out = shutil.copytree(tokenized, folder / f"copy{next(numbers)}")
        change_settings(out, settings)
        return out

    return make


def change_settings(out, settings):
    path = out / "config.json"
    about = json.loads(path.read_text())
    config = override(configs.from_json(about["config"]), list(settings))
    about["config"] = dataclasses.asdict(config)
    path.write_text(json.dumps(about))


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


@pytest.fixture(scope="module")
def cases(copy):
    """(untrained, trained): `untrained()` makes a model directory for each of CASES.

    The stages of the others are trained in this process.
    """

    def untrained(several=True):
        outs = {}
        for name, (stage, settings, more) in CASES.items():
            length = [f"stages.{stage}.steps={TWENTY}", f"stages.{stage}.batch=8"]
            outs[name] = copy(*length, *settings, *(more if several else []))
            (outs[name] / f"{stage}.safetensors").unlink(missing_ok=True)
            log_path(outs[name]).unlink()
        return outs

    trained = untrained(several=False)
    for name, out in trained.items():
        metrics = train_here(CASES[name][0], out, TWENTY)
        (out / "metrics.json").write_text(json.dumps(metrics))
    return untrained, trained


def tasks_of(outs, stop):
    """The arguments of `spread.py` to train each of some cases up to a step."""
    return [f"{CASES[name][0]}:{stop}={out}" for name, out in outs.items()]


@pytest.fixture(scope="module")
def spread(cases, copy):
    """What two processes have made of tokenizers and decoders, of killed stages, and of half a one.

    All of it in one start, which takes longer than the training. (Twenty steps of a transformer
    that is spread take as long as all of this.)
    """
    untrained, _ = cases
    whole = {name: out for name, out in untrained().items() if CASES[name][0] not in TOKEN_STAGES}
    killed, half = untrained(), copy()
    start(1, *tasks_of(killed, 17), "--die")
    for name, out in killed.items():
        stage = CASES[name][0]
        assert (out / f"{stage}.checkpoint.safetensors").is_file(), name
        assert list(out.glob(f"{stage}.checkpoint.safetensors.*.tmp")), name
    tasks = [*tasks_of(whole, TWENTY), *tasks_of(killed, TWENTY), f"base:3={half}"]
    done = start(2, *tasks)
    assert done.returncode == 0, done.stderr[-3000:]
    return whole, killed, half


def compare(name, out, expected):
    """Each step in the log, the sheets and the weights are those of the other directory."""
    stage = CASES[name][0]
    ours, theirs = read_log(out)[stage], read_log(expected)[stage]
    assert [line["step"] for line in ours] == list(range(1, TWENTY + 1)), name
    for line, other in zip(ours, theirs, strict=True):
        assert line.keys() == other.keys()
        for key in line.keys() - {"stage", "seconds"}:
            assert line[key] == pytest.approx(other[key], rel=1e-5), (name, line, other)
    sheets = [path.name for path in sorted((expected / "watch").glob("*.png"))]
    assert sheets == [path.name for path in sorted((out / "watch").glob("*.png"))]
    if name == "autoencoder":
        return
    weights = load_file(out / f"{stage}.safetensors")
    for key, tensor in load_file(expected / f"{stage}.safetensors").items():
        assert torch.allclose(weights[key], tensor, atol=1e-3, rtol=1e-4), (name, key)
    assert not list(out.glob("*checkpoint*")) and not list(out.glob("*.tmp"))


def check_twenty_steps(outs, trained):
    """Losses, held-out losses, codebooks and all other weights are those of one process."""
    for name, out in outs.items():
        expected = read_metrics(trained[name])
        ratios = [a["loss"] / b["loss"] for a, b in zip(read_metrics(out), expected, strict=True)]
        largest = max(abs(ratio - 1) for ratio in ratios)
        print(f"{name}: largest relative difference of a loss {largest:.1e}")
        assert largest < 1e-5
        compare(name, out, trained[name])


def test_two_processes_are_one(spread, cases):
    check_twenty_steps(spread[0], cases[1])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_are_one_in_every_stage(processes, cases):
    untrained, trained = cases
    outs = untrained()
    done = start(processes, *tasks_of(outs, TWENTY))
    assert done.returncode == 0, done.stderr[-3000:]
    check_twenty_steps(outs, trained)


def test_killed_and_resumed_on_two_processes(spread, cases):
    """Each stage was killed while it saved step 17, and goes on as if it had not been."""
    for name, out in spread[1].items():
        assert len(read_metrics(out)) == 4, name
        compare(name, out, cases[1][name])


# The autoencoder has 80 steps, and may be past step twenty when it is killed.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "autoencoder"])
def test_killed_at_ten_random_moments(name, cases):
    """With one, two and four processes in turn. One is killed, and torchrun ends the others."""
    untrained, trained = cases
    stage, out = CASES[name][0], untrained()[name]
    moments = random.Random(name)
    for number in range(10):
        steps = len(read_log(out).get(stage, [])) if log_path(out).is_file() else 0
        stop = min(TWENTY - 1, steps + moments.randrange(1, 3))
        arguments = [f"{stage}:{stop}={out}", f"--die={moments.random() / 3}"]
        done = start((1, 2, 4)[number % 3], *arguments)
        assert done.returncode != 0, done.stderr[-3000:]
    train_elsewhere(2, stage, out, TWENTY)
    compare(name, out, trained[name])


def test_a_checkpoint_of_two_processes_resumes_on_one(spread, alone):
    out = spread[2]
    assert len(read_metrics(out)) == 3
    (folder,) = checkpoints_at(checkpoint_path(out, "base"))
    assert sharded.step_of(folder) == 3 and (folder / "manifest.json").is_file()
    assert not (out / "base.safetensors").exists()
    metrics = train_here("base", out)
    same(metrics, load_file(out / "base.safetensors"), alone["base"], first=3)


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
    start(1, f"base:4={out}", "--die")
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
    assert start(2, f"base:4={out}", "--die").returncode != 0
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

    def noting_hide(*arguments, **settings):
        corrupted = hide(*arguments, **settings)
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
        ("base", ["stages.base.batch=7"], "batch of 7 cannot be shared evenly by 2"),
        ("decoder", ["stages.decoder.batch=3"], "batch of 3 cannot be shared evenly by 2"),
    ],
)
def test_what_several_processes_cannot_do(stage, settings, message, copy, monkeypatch):
    monkeypatch.setattr(collectives, "rank_and_size", lambda: (0, 2))
    monkeypatch.setattr(parallel, "fit", lambda model, compile, recompute, device: None)
    with pytest.raises(ValueError, match=message):
        next(records_of(stage, copy(*settings)))


def test_an_old_pytorch_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.8.1"))
    with pytest.raises(ValueError, match="several processes need PyTorch 2.9 or newer.* 2.8.1"):
        parallel.begin("cpu")


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_process_alone_shows_bars(rank, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SILENCE", 0)
    monkeypatch.setattr(progress, "rank_and_size", lambda: (rank, 2))
    assert list(progress.bar("ab", "letters")) == ["a", "b"]
    assert ("letters" in capsys.readouterr().err) == (rank == 0)


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
