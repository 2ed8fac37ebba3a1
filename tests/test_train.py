"""The loop, its checkpoints and every stage, on the tiny preset: `pytest tests/test_train.py` (the longest of the tests).

Stopping and resuming has to end in the same weights as never stopping, bit for bit, with the plain
autoencoder, the k-means of the codebook and the adversarial loss all on the way.
"""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from minimuse.checks.properties import training
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minimuse import losses, vq
from minimuse.data import Images, halve
from minimuse.device import generator_at
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing import config as configs
from minimuse.runs import stages as ours
from minimuse.runs.cache import tokens_of
from minimuse.runs.stages import STAGES, describe, train_all, train_stage
from minimuse.train import batch_at, learning_rate, training_loop

STEPS, DRAWING = 5, ("tokenizer", "tokenizer_hi", "decoder")  # the stages with a picture loss
CONFIG = configs.override(
    configs.PRESETS["tiny"],
    [f"stages.{s}.{setting}" for s in STAGES for setting in (f"steps={STEPS}", "batch=4")]
    + ["scenes=6", "caption_dropout=0.5", "loss.discriminator_channels=4"],
)


class Text:
    """A frozen text encoder of 16 numbers per letter."""

    width, fingerprint = 16, "0123456789ab"
    table = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))

    def __call__(self, texts):
        T = max(len(t) for t in texts)
        mask = torch.arange(T)[None] < torch.tensor([[len(t)] for t in texts])
        letters = torch.tensor([[ord(c) % 128 for c in t.ljust(T)] for t in texts])
        return self.table[letters] * mask[..., None], mask


def pictures():
    pixels = torch.randint(
        256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return Images(
        pixels,
        [("red", "a red one"), ("blue",), ("red",), ("green", "leaf"), ("sky",), ("a",)],
        [f"{i}" for i in range(6)],
    )


def run_stage(name, out, stops=(), seed=0):
    """Train a stage to its end, stopping and resuming on the way; its records."""
    about = describe(out, CONFIG, "shapes", Text(), "letters", seed)
    for stop in stops:
        torch.manual_seed(stop)  # must not matter
        run = train_stage(name, out, about, pictures(), Text())
        for record in run:
            if record.step == stop:
                break
        run.close()
        assert (out / f"{name}.checkpoint.safetensors").is_file() and not (
            out / f"{name}.safetensors"
        ).exists()
    return [*train_stage(name, out, about, pictures(), Text())]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with all five stages, trained without a stop, and their records."""
    out = tmp_path_factory.mktemp("trained") / "model"
    return out, {name: run_stage(name, out) for name in STAGES}


# The loop alone, on a model of four weights


def small_run(folder, stops, steps=6, averages=3, decay=0.7, seed=0):
    """optimize() on a small regression, stopped and resumed: the weights after each step of the last run, and the model."""
    inputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(9))
    settings = configs.Stage(steps, 4, 0.1, average_decay=decay, averages=averages)
    checkpoint, history = folder / "small.checkpoint.safetensors", []
    for stop in (*stops, steps + 1):
        model = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(model.weight, 0.5)
        torch.nn.init.constant_(model.bias, 0.0)

        def parts_of(indices, generator, step):
            noise = torch.randn(len(indices), 1, generator=generator)
            yield (
                (model(inputs[indices]) - inputs[indices].sum(-1, keepdim=True) - noise)
                .square()
                .mean(),
                {},
            )

        history = []
        run = training_loop(
            "small", model, parts_of, settings, 10, seed, checkpoint, {"stage": "small"}
        )
        for record in run:
            history.append(model.weight.detach().clone())
            if record.step == stop:
                break
        run.close()
    checkpoint.unlink(missing_ok=True)
    return history, model


def resumable(folder):
    return lambda stops: small_run(folder, stops)[1].state_dict()


def test_stopping_anywhere_changes_nothing(tmp_path):
    training.stopping_changes_nothing(
        resumable(tmp_path), [(k,) for k in range(1, 7)] + [(1, 2, 5), (3, 4)]
    )


def forgetful(monkeypatch, bug):
    """train.restore, or the generators, with a published bug."""
    restore = ours.restore

    def broken(path, model, average, optimizers, key):
        kept = {k: v.clone() for k, v in average.items()}
        step = restore(path, model, average, optimizers, key)
        if bug == "no optimizer":
            optimizers[0].state.clear()
        if bug == "no optimizer step":
            for state in optimizers[0].state.values():
                state["step"] = torch.zeros_like(state["step"])
        if bug == "no average":
            average.update(kept)
        if bug == "averages for weights":
            model.load_state_dict(average)
        return step + {"one step twice": -1, "one step left out": 1}.get(bug, 0)

    monkeypatch.setattr(ours, "restore", broken)
    if bug == "data order":
        stream = torch.Generator().manual_seed(0)
        monkeypatch.setattr(
            ours,
            "batch_at",
            lambda seed, stage, step, batch, size: torch.randperm(size, generator=stream)[:batch],
        )
    if bug == "noise":
        monkeypatch.setattr(
            ours,
            "generator_at",
            lambda *key: generator_at(*key[:-1], torch.initial_seed(), torch.rand(()).item()),
        )


BUGS = [
    "no optimizer",
    "no optimizer step",
    "no average",
    "averages for weights",
    "one step twice",
    "one step left out",
    "data order",
    "noise",
]


@pytest.mark.parametrize("bug", BUGS)
def test_what_a_checkpoint_can_forget(bug, tmp_path, monkeypatch, refuses):
    forgetful(monkeypatch, bug)
    refuses(training.stopping_changes_nothing, resumable(tmp_path), [(4,)])


def test_averages(tmp_path, refuses):
    def run(steps, averages, decay, wrong=None):
        history, model = small_run(tmp_path, (), steps, averages, decay)
        return history, model.weight.detach() if wrong is None else wrong(history, model)

    training.averages_checkpoints(run)
    for wrong in (
        lambda history, model: history[-1],  # no average
        lambda history, model: torch.stack(history).mean(0),
        lambda history, model: (
            torch.full((1, 3), 0.5) if len(history) == 1 else model.weight.detach()
        ),  # the initial weights count
    ):
        refuses(training.averages_checkpoints, lambda *a: run(*a, wrong=wrong))


def test_learning_rate(refuses):
    stage = configs.Stage(10, 1, 1.0)
    rate = lambda lr, steps, share, step: (
        lr * learning_rate(replace(stage, lr=lr, steps=steps, warmup=share), step)
    )
    training.warms_up_and_falls_to_zero(rate)
    for planted in (
        lambda lr, steps, share, step: lr,
        lambda lr, steps, share, step: rate(
            lr, steps, share, min(step, steps - 2)
        ),  # one step behind at the end
        lambda lr, steps, share, step: (
            rate(lr, steps, share, step) * step / (step + 1)
        ),  # starts at 0
        lambda lr, steps, share, step: (
            lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        ),  # no warm-up
    ):
        refuses(training.warms_up_and_falls_to_zero, planted)


def test_batches(refuses):
    training.visits_every_picture_once(batch_at)

    def with_replacement(seed, stage, step, batch, size):
        return torch.randint(size, (batch,), generator=generator_at(seed, stage, step))

    def drops_the_rest(seed, stage, step, batch, size):
        per = max(1, size // batch)
        order = torch.randperm(size, generator=generator_at(seed, stage, step // per)).repeat(batch)
        return order[step % per * batch :][:batch]

    def one_order_for_all(seed, stage, step, batch, size):
        return batch_at(0, "", step, batch, size)

    for planted in (with_replacement, drops_the_rest, one_order_for_all):
        refuses(training.visits_every_picture_once, planted)


def test_generators_depend_on_the_whole_key():
    keys = [
        (0, "base", 1),
        (0, "base", 2),
        (1, "base", 1),
        (0, "superres", 1),
        (0, "base", "epoch", 1),
        (0, "base", 11),
        (0, "base1", 1),
    ]
    first = [torch.rand(4, generator=generator_at(*key)).tolist() for key in keys]
    assert len({tuple(x) for x in first}) == len(keys)
    assert first == [torch.rand(4, generator=generator_at(*key)).tolist() for key in keys]


def test_every_step_has_a_generator_of_its_own(tmp_path):
    model, seen = torch.nn.Linear(3, 1), []

    def parts_of(indices, generator, step):
        seen.append(generator.initial_seed())
        yield model(torch.ones(1, 3)).square().mean(), {}

    for name, seed in (("base", 0), ("superres", 0), ("base", 1)):
        list(
            training_loop(
                name, model, parts_of, configs.Stage(4, 1, 0.1), 4, seed, tmp_path / "none", {}
            )
        )
    assert len(set(seen)) == 12


# The stages


def copy_parts(trained, name, folder):
    """A new directory with what the stage needs."""
    out = folder / "model"
    out.mkdir(parents=True)
    for part in ours.NEEDS[name]:
        shutil.copy(trained / f"{part}.safetensors", out)
    return out


@pytest.mark.parametrize(
    "name, stops",
    [
        (
            "tokenizer",
            [(1,), (2,), (4,)],
        ),  # before the codebook starts, after it, with the discriminator on
        ("tokenizer_hi", [(1, 3)]),
        ("base", [(1,), (2,), (3,), (4,), (1, 2, 3, 4)]),
        ("superres", [(2,)]),
        ("decoder", [(4,)]),
    ],
)
def test_stopping_a_stage_changes_nothing(name, stops, trained, tmp_path):
    folders = iter(range(99))

    def run(stops):
        if not stops:
            return load_file(trained[0] / f"{name}.safetensors")
        out = copy_parts(trained[0], name, tmp_path / str(next(folders)))
        run_stage(name, out, stops)
        assert not (out / f"{name}.checkpoint.safetensors").exists()
        return load_file(out / f"{name}.safetensors")

    training.stopping_changes_nothing(run, stops)


def test_records(trained):
    """Every step is reported; the discriminator comes in half-way, the codebook after a fifth."""
    for name, records in trained[1].items():
        assert [(r.stage, r.step, r.steps) for r in records] == [
            (name, i + 1, STEPS) for i in range(STEPS)
        ]
        assert all(torch.as_tensor(v).isfinite() for r in records for v in r.metrics.values())
        assert not any(
            torch.as_tensor(v).requires_grad for r in records for v in r.metrics.values()
        )
        if name in DRAWING:
            assert ["discriminator" in r.metrics for r in records] == [
                step >= 0.5 * STEPS for step in range(STEPS)
            ]
    for name in ("tokenizer", "tokenizer_hi"):
        assert ["perplexity" in r.metrics for r in trained[1][name]] == [
            step >= 0.2 * STEPS for step in range(STEPS)
        ]


def test_the_high_res_tokenizer_learns_from_pieces(trained, tmp_path, monkeypatch):
    """As large as the low-res pictures, and from all over the picture; the low-res one sees whole ones, halved."""
    seen = {"tokenizer": [], "tokenizer_hi": []}
    for name, images in seen.items():
        out = copy_parts(trained[0], name, tmp_path / name)
        with monkeypatch.context() as patch:
            patch.setattr(
                vq.ImageTokenizer,
                "forward",
                lambda self, x, forward=vq.ImageTokenizer.forward: (
                    images.append(x) or forward(self, x)
                ),
            )
            list(
                train_stage(
                    name,
                    out,
                    describe(out, CONFIG, "shapes", Text(), "letters", 0),
                    pictures(),
                    Text(),
                )
            )
    whole = pictures().batch(torch.arange(6))
    windows = whole.unfold(2, 16, 1).unfold(3, 16, 1)  # 6 3 17 17 16 16
    places = [
        (windows == x[None, :, None, None]).all(dim=(1, 4, 5)).nonzero()
        for batch in seen["tokenizer_hi"]
        for x in batch
    ]
    assert all(len(p) == 1 for p in places), "a true piece of a true picture"
    assert len({tuple(p[0, 1:].tolist()) for p in places}) == len(seen["tokenizer_hi"]), (
        "a place for each step"
    )
    halves = halve(whole)
    assert all((halves == x).all(dim=(1, 2, 3)).any() for batch in seen["tokenizer"] for x in batch)


@pytest.mark.parametrize("stops", [(), (1,), (2,)])
def test_the_codebook_starts_once(stops, tmp_path, monkeypatch):
    """After the plain autoencoder's share of the steps, resumed or not."""
    starts, start = [], vq.EMAQuantizer.start
    monkeypatch.setattr(
        vq.EMAQuantizer,
        "start",
        lambda self, z, generator: starts.append(z.shape) or start(self, z, generator),
    )
    run_stage("tokenizer", copy_parts(tmp_path, "tokenizer", tmp_path), stops)
    assert [tuple(shape[1:]) for shape in starts] == [(4, 4, 8)]


def test_another_seed_gives_other_weights(trained, tmp_path):
    out = copy_parts(trained[0], "base", tmp_path)
    run_stage("base", out, seed=1)
    a, b = load_file(out / "base.safetensors"), load_file(trained[0] / "base.safetensors")
    assert a.keys() == b.keys() and not torch.equal(
        a["decoder.embedding.weight"], b["decoder.embedding.weight"]
    )


def test_the_global_generator_does_not_matter(trained, tmp_path):
    out = copy_parts(trained[0], "base", tmp_path)
    torch.manual_seed(12345)
    run_stage("base", out)
    a, b = load_file(out / "base.safetensors"), load_file(trained[0] / "base.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_stopping_at_the_last_record_loses_nothing(trained, tmp_path):
    """Closing the generator saves: after the last step too, what was trained is on the disk, as a checkpoint or as the part."""
    out, checkpoint = stopped(trained, tmp_path, step=STEPS)
    assert checkpoint.is_file() or (out / "base.safetensors").is_file()


@pytest.mark.parametrize("name", ["base", "superres", "decoder"])
def test_frozen_parts_stay_frozen(name, trained, tmp_path, monkeypatch):
    """Bit for bit: files and tensors; and no frozen parameter is in the optimizer."""
    out, loaded, optimized = copy_parts(trained[0], name, tmp_path), [], []
    load, adamw = ours.load_part, torch.optim.AdamW
    monkeypatch.setattr(ours, "load_part", lambda *a: loaded.append(load(*a)) or loaded[-1])
    monkeypatch.setattr(
        torch.optim,
        "AdamW",
        lambda parameters, **k: adamw(optimized.extend(parameters) or list(optimized), **k),
    )
    before = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    run_stage(name, out)
    assert all((out / file).read_bytes() == data for file, data in before.items())
    assert len(loaded) == len(ours.NEEDS[name]) and optimized
    for part, net in zip(ours.NEEDS[name], loaded):
        assert all(
            torch.equal(v, load_file(out / f"{part}.safetensors")[k])
            for k, v in net.state_dict().items()
        )
        assert not {id(p) for p in net.parameters()} & {id(p) for p in optimized}
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_the_decoder_stage_starts_from_the_tokenizers_decoder(trained):
    """Its first pictures are as good as the tokenizer's own: the grown decoder is the same function."""
    from minimuse.device import autocast
    from minimuse.plumbing.parts import load_part

    net = load_part(trained[0], "tokenizer_hi", CONFIG, 16).eval()
    images = losses.crop(
        pictures().batch(batch_at(0, "decoder", 0, 4, 6)),
        CONFIG.tokenizer.side,
        generator_at(0, "decoder", 0),
    )
    with autocast("cpu"), torch.no_grad():
        fake = net(images)[0]
    psnr = 10 * torch.log10(4 / (fake.float() - images).square().mean())
    assert abs(float(trained[1]["decoder"][0].metrics["psnr"]) - float(psnr)) < 0.05


# The token loss


class Spy(torch.nn.Module):
    """A token model that notes what it is shown."""

    mask_id = 7

    def __init__(self):
        super().__init__()
        self.shown = []

    def context(self, text, visible, low=None, places=None):
        return text, visible, low, places

    def places(self, ids, generator):
        return torch.randint(9, (len(ids), 1), generator=generator) + torch.arange(
            4
        )  # four in a row

    def forward(self, ids, context, where):
        self.shown.append((ids, context, where))
        return torch.randn(
            ids.shape[0], ids.shape[1], 7, generator=torch.Generator().manual_seed(5)
        )[where]


LOW = torch.randint(7, (6, 4), generator=torch.Generator().manual_seed(0))
HIGH = torch.randint(7, (6, 16), generator=torch.Generator().manual_seed(1))


class FakeTokens:
    def ids(self, resolution, indices):
        return (LOW if resolution == "low" else HIGH)[indices]

    def choose(self, indices, generator):
        return [torch.zeros(2, 3) for _ in indices]


@pytest.mark.parametrize("resolution", ["low", "high"])
def test_token_loss(resolution):
    """The model sees masked ids and dropped captions, super-resolution the low-res tokens whole, of high-res ones those of its places; the
    loss is the hidden tokens'."""
    spy, tokens, indices = Spy(), FakeTokens(), torch.tensor([4, 0, 0, 2])
    parts_of = losses.token_loss(spy, tokens, CONFIG, resolution, "cpu")
    dropped = 0
    for step in range(40):
        ((loss, metrics),) = parts_of(indices, generator_at(0, "base", step), step)
        seen, (text, visible, low, places), where = spy.shown[-1]
        ids = tokens.ids(resolution, indices)
        ids = ids if resolution == "low" else ids.gather(1, places)
        assert (
            torch.equal(seen == Spy.mask_id, where)
            and torch.equal(seen[~where], ids[~where])
            and where.any(-1).all()
        )
        logits = torch.randn(*ids.shape, 7, generator=torch.Generator().manual_seed(5))[where]
        wanted = masked_token_loss(logits, ids, where)
        assert torch.allclose(loss, wanted.loss, atol=1e-2) and torch.allclose(
            metrics["accuracy"], wanted.correct
        )
        assert low is None if resolution == "low" else torch.equal(low, LOW[indices])
        assert (visible.all(-1) | ~visible.any(-1)).all()
        dropped += int((~visible.any(-1)).sum())
    assert abs(dropped - 80) < 5 * 40**0.5, (
        f"{dropped} of 160 captions dropped, at a share of one half"
    )


def test_tokens(trained):
    """Ids and embeddings computed once are those of every picture and caption on its own."""
    parts = {
        p: ours.load_part(trained[0], p, CONFIG, 16).eval() for p in ("tokenizer", "tokenizer_hi")
    }
    some = pictures()
    tokens = tokens_of(parts, Text(), some, "cpu", batch=4)
    assert tokens.ids("low").shape == (6, 16) and tokens.ids("high").shape == (6, 64)
    whole = tokens_of(parts, Text(), some, "cpu", batch=64)
    assert all(torch.equal(whole.ids(r), tokens.ids(r)) for r in ("low", "high"))
    seen = {i: set() for i in range(6)}
    for step in range(30):
        embeddings, visible = tokens.captions(torch.arange(6), generator_at(step))
        assert visible.shape[1] == int(visible.sum(-1).max()), "padded to the longest of the batch"
        for i in range(6):
            matches = [c for c in some.captions[i] if len(c) == int(visible[i].sum())]
            assert len(matches) == 1
            wanted = Text()(matches)[0][0].bfloat16().float()
            assert (
                torch.equal(embeddings[i][visible[i]], wanted)
                and (embeddings[i][~visible[i]] == 0).all()
            )
            seen[i] |= set(matches)
    assert all(seen[i] == set(some.captions[i]) for i in range(6)), (
        "every caption is drawn at times"
    )
    first, visible = tokens.captions(torch.tensor([0, 3]))
    assert visible.sum(-1).tolist() == [3, 5], "without a generator, the plainest"


# Files that do not fit


def stopped(trained, folder, name="base", step=2):
    out = copy_parts(trained[0], name, folder)
    run = train_stage(
        name, out, describe(out, CONFIG, "shapes", Text(), "letters", 0), pictures(), Text()
    )
    for record in run:
        if record.step == step:
            break
    run.close()
    return out, out / f"{name}.checkpoint.safetensors"


def test_damaged_checkpoints(trained, tmp_path):
    out, checkpoint = stopped(trained, tmp_path)
    about, data = json.loads((out / "config.json").read_text()), checkpoint.read_bytes()
    attempt = lambda: next(train_stage("base", out, about, pictures(), Text()))
    for length in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:length])
        with pytest.raises(ValueError, match="base.checkpoint.safetensors is damaged"):
            attempt()
    checkpoint.write_bytes(data)
    assert attempt().step == 3, "whole again, it goes on"


def test_checkpoints_that_are_something_else(trained, tmp_path):
    """A file of weights without the header of a checkpoint, and one without some of the weights."""
    out, checkpoint = stopped(trained, tmp_path)
    about = json.loads((out / "config.json").read_text())
    whole = load_file(checkpoint)
    header = {"step": "2", "key": json.dumps(about | {"stage": "base", "pictures": 6})}
    for tensors, metadata in (
        (whole, None),
        (whole, {"step": "2"}),
        ({k: v for k, v in whole.items() if "embedding" not in k}, header),
    ):
        save_file(tensors, checkpoint, metadata)
        with pytest.raises(ValueError, match="base.checkpoint.safetensors"):
            next(train_stage("base", out, about, pictures(), Text()))


def test_checkpoints_of_other_settings(trained, tmp_path):
    out, checkpoint = stopped(trained, tmp_path)
    about = json.loads((out / "config.json").read_text())
    other = json.loads(json.dumps(about))
    other["config"]["stages"]["base"]["lr"] = 0.5
    for wrong in (
        other,
        about | {"seed": 1},
        about | {"data": "emoji"},
        about | {"text": {"name": "letters", "fingerprint": "f"}},
    ):
        with pytest.raises(ValueError, match="base.checkpoint.safetensors.*other settings"):
            next(train_stage("base", out, wrong, pictures(), Text()))
    fewer = pictures()
    fewer = Images(fewer.pixels[:5], fewer.captions[:5], fewer.names[:5])
    with pytest.raises(ValueError, match="other settings, data"):
        next(train_stage("base", out, about, fewer, Text()))
    assert checkpoint.is_file()


def test_checkpoints_are_written_whole(trained, tmp_path, monkeypatch):
    """A write that fails leaves the checkpoint before it, readable."""
    out, checkpoint = stopped(trained, tmp_path)
    about, data = json.loads((out / "config.json").read_text()), checkpoint.read_bytes()

    def fails(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("minimuse.checkpoint.save_file", fails)
    run = train_stage("base", out, about, pictures(), Text())
    next(run)
    with pytest.raises(OSError):
        run.close()
    assert checkpoint.read_bytes() == data


def test_a_checkpoint_every_minute(tmp_path, monkeypatch):
    """Not only when the generator is closed: a killed process loses a minute at most."""
    monkeypatch.setattr(ours, "SAVE_EVERY", -1e9)
    model = torch.nn.Linear(3, 1)
    parts_of = lambda indices, generator, step: [(model(torch.ones(1, 3)).square().mean(), {})]
    run = training_loop(
        "small", model, parts_of, configs.Stage(3, 1, 0.1), 4, 0, tmp_path / "c.safetensors", {}
    )
    for done in (1, 2):
        next(run)
        with safe_open(tmp_path / "c.safetensors", "pt") as file:
            assert file.metadata()["step"] == str(done)


def test_directories(trained, tmp_path):
    """What train_all and describe refuse, before any work."""
    attempt = lambda out, stages=("base",), config=CONFIG, **k: next(
        train_all(stages, out, config, "shapes", Text(), "letters", **k)
    )
    with pytest.raises(FileNotFoundError, match="tokenizer.safetensors.*minimuse train tokenizer"):
        attempt(tmp_path / "new")
    with pytest.raises(
        FileNotFoundError, match="tokenizer_hi.safetensors.*minimuse train tokenizer-hi"
    ):
        attempt(tmp_path / "new", ("decoder",))
    with pytest.raises(FileExistsError, match="base.safetensors.*--resume"):
        attempt(trained[0])
    with pytest.raises(ValueError, match="other settings"):
        attempt(trained[0], config=configs.override(CONFIG, ["base.width=64"]), resume=True)
    with pytest.raises(ValueError, match="other settings"):
        attempt(trained[0], seed=1, resume=True)
    out, _ = stopped(trained, tmp_path)
    with pytest.raises(FileExistsError, match="checkpoint.*--resume"):
        attempt(out)


def test_train_all_is_the_stages_one_by_one(trained, tmp_path):
    """What train_all shares between stages (tokens, embeddings) changes nothing; a finished stage is not trained again."""
    out = copy_parts(trained[0], "superres", tmp_path)
    records = [*train_all(("base", "superres"), out, CONFIG, "shapes", Text(), "letters")]
    assert [(r.stage, r.step) for r in records] == [
        (s, i + 1) for s in ("base", "superres") for i in range(STEPS)
    ]
    both = {s: load_file(out / f"{s}.safetensors") for s in ("base", "superres")}
    (out / "superres.safetensors").unlink()
    again = [
        *train_all(("base", "superres"), out, CONFIG, "shapes", Text(), "letters", resume=True)
    ]
    assert {r.stage for r in again} == {"superres"}
    assert all(
        torch.equal(v, both["superres"][k])
        for k, v in load_file(out / "superres.safetensors").items()
    )
    assert [*train_all(("base",), out, CONFIG, "shapes", Text(), "letters", resume=True)] == []
