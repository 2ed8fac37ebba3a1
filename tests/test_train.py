"""The training loop, its checkpoints, and every stage on the tiny preset: the longest of the tests.

    pytest tests/test_train.py

Stopping and resuming must end with the same weights as never stopping, bit for bit. On the way are
the plain autoencoder, the k-means of the codebook and the adversarial loss.
"""

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
import torch
from minimuse.checks.properties import training
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file

from minimuse import losses, train, vq
from minimuse.data import Images, halve
from minimuse.maskgit import masked_token_loss
from minimuse.plumbing import checkpoint as checkpoints
from minimuse.plumbing import config as configs
from minimuse.plumbing.device import autocast, generator_at
from minimuse.plumbing.parts import build, load_part
from minimuse.runs import stages
from minimuse.runs.cache import tokens_of
from minimuse.runs.directory import check_same_model, describe_model
from minimuse.runs.stages import NEEDS, STAGES, train_all, train_stage
from minimuse.train import batch_at, learning_rate_fraction, set_step, training_loop
from minimuse.vq_loss import ImageLoss

STEPS = 5
IMAGE_STAGES = ("tokenizer", "tokenizer_hi", "decoder")  # the stages with an ImageLoss


def make_config():
    settings = ["scenes=6", "caption_dropout=0.5", "loss.discriminator_channels=4"]
    for stage in STAGES:
        settings += [f"stages.{stage}.steps={STEPS}", f"stages.{stage}.batch=4"]
    settings.append("stages.superres.muon_every=3")  # which the end of a run may interrupt
    return configs.override(configs.PRESETS["tiny"], settings)


CONFIG = make_config()


class Text:
    """A frozen text encoder of 16 numbers per letter."""

    width, fingerprint, dtype = 16, "0123456789ab", torch.float32
    table = torch.randn(128, 16, generator=torch.Generator().manual_seed(1))

    def __call__(self, texts):
        T = max(len(t) for t in texts)
        mask = torch.arange(T)[None] < torch.tensor([[len(t)] for t in texts])
        letters = torch.tensor([list(t.ljust(T).encode("ascii")) for t in texts])
        return self.table[letters] * mask[..., None], mask


def sample_images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    captions = [("red", "a red one"), ("blue",), ("red",), ("green", "leaf"), ("sky",), ("a",)]
    return Images(pixels, captions, [f"{i}" for i in range(6)])


def test_fsq_is_quantized_from_the_first_step():
    """It has no codes to place, and only the quantizer bounds its latents."""
    settings = ["tokenizer.quantizer=fsq", "tokenizer.code_width=2", "tokenizer.levels=(4,4)"]
    config = configs.override(CONFIG, [*settings, "tokenizer.codes=16"])
    assert round(config.loss.quantize_from * STEPS) > 0
    model = torch.nn.ModuleDict({"part": build("tokenizer", config, 16)})
    model["loss"] = ImageLoss(config.loss, None)
    loss_of = losses.tokenizer_loss(
        model, sample_images(), config, config.stages.tokenizer, low=True, device="cpu"
    )
    generator = torch.Generator().manual_seed(0)
    _, metrics = next(loss_of(torch.arange(4), generator, 0))
    assert "perplexity" in metrics


def about_at(out, seed=0):
    """What config.json says of the model in `out`."""
    about = describe_model(CONFIG, "shapes", Text(), "letters", seed)
    check_same_model(out, about)
    return about


def run_to_step(records, stop):
    """Train up to a step, and save a checkpoint; every record."""
    seen = []
    for record in records:
        seen.append(record)
        if record.step == stop:
            record.save()
            break
    return seen


def run_stage(name, out, stops=(), seed=0):
    """Train a stage to its end, stopping and resuming on the way; the records of the last run."""
    about = about_at(out, seed)
    for stop in stops:
        torch.manual_seed(stop)  # must not matter
        run_to_step(train_stage(name, out, about, sample_images(), Text()), stop)
        assert (out / f"{name}.checkpoint.safetensors").is_file()
        assert not (out / f"{name}.safetensors").exists()
    return list(train_stage(name, out, about, sample_images(), Text()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with all five stages, trained without a stop, and their records."""
    out = tmp_path_factory.mktemp("trained") / "model"
    return out, {name: run_stage(name, out) for name in STAGES}


def same_tensors(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The loop alone, on a model of four weights


def run_small_once(checkpoint, settings, seed, stop):
    """Train a small regression up to a step: its weights after each step, and the model."""
    inputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(9))
    model = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, 0.0)

    def loss_of(indices, generator, step):
        noise = torch.randn(len(indices), 1, generator=generator)
        target = inputs[indices].sum(-1, keepdim=True) + noise
        yield (model(inputs[indices]) - target).square().mean(), {}

    weights = []
    run = training_loop("small", model, loss_of, settings, 10, seed, checkpoint, {"stage": "small"})
    for record in run:
        weights.append(model.weight.detach().clone())
        if record.step == stop:
            record.save()
            break
    return weights, model


def run_small(folder, stops, steps=6, averages=3, decay=0.7, seed=0):
    """The same, stopped and resumed: the weights after each step of the last run, and the model."""
    settings = configs.Stage(steps, 4, 0.1, average_decay=decay, averages=averages)
    checkpoint = folder / "small.checkpoint.safetensors"
    for stop in (*stops, steps + 1):
        weights, model = run_small_once(checkpoint, settings, seed, stop)
    checkpoint.unlink(missing_ok=True)
    return weights, model


def resumable(folder):
    def run(stops):
        _, model = run_small(folder, stops)
        return model.state_dict()

    return run


def test_stopping_anywhere_changes_nothing(tmp_path):
    stops = [(k,) for k in range(1, 7)] + [(1, 2, 5), (3, 4)]
    training.stopping_changes_nothing(resumable(tmp_path), stops)


def plant(bug, monkeypatch):
    """Give the loop a bug, of a kind that others have published."""
    restore = checkpoints.restore_checkpoint

    def broken_restore(path, model, average, optimizers, key):
        old_average = {k: v.clone() for k, v in average.items()}
        step = restore(path, model, average, optimizers, key)
        if bug == "no optimizer":
            optimizers[0].state.clear()
        if bug == "no optimizer step":
            for state in optimizers[0].state.values():
                state["step"] = torch.zeros_like(state["step"])
        if bug == "no average":
            average.update(old_average)
        if bug == "averages for weights":
            model.load_state_dict(average)
        if bug == "one step twice":
            return step - 1
        if bug == "one step left out":
            return step + 1
        return step

    stream = torch.Generator().manual_seed(0)

    def batch_from_stream(seed, stage, step, batch, size, order=None):
        return torch.randperm(size, generator=stream)[:batch]

    def global_generator(*key):
        return generator_at(*key[:-1], torch.initial_seed(), torch.rand(()).item())

    monkeypatch.setattr(checkpoints, "restore_checkpoint", broken_restore)
    if bug == "data order":
        monkeypatch.setattr(train, "batch_at", batch_from_stream)
    if bug == "noise":
        monkeypatch.setattr(train, "generator_at", global_generator)


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
    plant(bug, monkeypatch)
    refuses(training.stopping_changes_nothing, resumable(tmp_path), [(4,)])


def test_averages(tmp_path, refuses):
    def run(final, steps, averages, decay):
        weights, model = run_small(tmp_path, (), steps, averages, decay)
        return weights, final(weights, model)

    def right(weights, model):
        return model.weight.detach()

    def no_average(weights, model):
        return weights[-1]

    def plain_mean(weights, model):
        return torch.stack(weights).mean(0)

    def initial_weights_count(weights, model):
        return torch.full((1, 3), 0.5) if len(weights) == 1 else model.weight.detach()

    training.averages_checkpoints(partial(run, right))
    for wrong in (no_average, plain_mean, initial_weights_count):
        refuses(training.averages_checkpoints, partial(run, wrong))


def test_learning_rate(refuses):
    stage = configs.Stage(10, 1, 1.0)

    def rate(lr, steps, warmup, step):
        return lr * learning_rate_fraction(replace(stage, lr=lr, steps=steps, warmup=warmup), step)

    def constant(lr, steps, warmup, step):
        return lr

    def a_step_behind_at_the_end(lr, steps, warmup, step):
        return rate(lr, steps, warmup, min(step, steps - 2))

    def starts_at_0(lr, steps, warmup, step):
        return rate(lr, steps, warmup, step) * step / (step + 1)

    def no_warmup(lr, steps, warmup, step):
        return lr * 0.5 * (1 + math.cos(math.pi * step / steps))

    training.warms_up_and_falls_to_zero(rate)
    for wrong in (constant, a_step_behind_at_the_end, starts_at_0, no_warmup):
        refuses(training.warms_up_and_falls_to_zero, wrong)


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
    model = torch.nn.Linear(3, 1)
    seeds = []

    def loss_of(indices, generator, step):
        seeds.append(generator.initial_seed())
        yield model(torch.ones(1, 3)).square().mean(), {}

    settings = configs.Stage(4, 1, 0.1)
    for name, seed in (("base", 0), ("superres", 0), ("base", 1)):
        list(training_loop(name, model, loss_of, settings, 4, seed, tmp_path / "none", {}))
    assert len(set(seeds)) == 12


# The stages


def copy_parts(trained, name, folder):
    """A new directory with what the stage needs."""
    out = folder / "model"
    out.mkdir(parents=True)
    for part in NEEDS[name]:
        shutil.copy(trained / f"{part}.safetensors", out)
    return out


@pytest.mark.parametrize(
    "name, stops",
    [
        # before the codebook starts, after it, and with the discriminator
        ("tokenizer", [(1,), (2,), (4,)]),
        ("tokenizer_hi", [(1, 3)]),
        ("base", [(1,), (2,), (3,), (4,), (1, 2, 3, 4)]),
        ("superres", [(2,)]),
        ("decoder", [(4,)]),
    ],
)
def test_stopping_a_stage_changes_nothing(name, stops, trained, tmp_path):
    training.stopping_changes_nothing(stage_runner(name, trained, tmp_path), stops)


def stage_runner(name, trained, folder):
    """A function that trains a stage, stopped at some steps, and returns its weights."""
    numbers = count()

    def run(stops):
        if not stops:
            return load_file(trained[0] / f"{name}.safetensors")
        out = copy_parts(trained[0], name, folder / str(next(numbers)))
        run_stage(name, out, stops)
        assert not (out / f"{name}.checkpoint.safetensors").exists()
        return load_file(out / f"{name}.safetensors")

    return run


def test_a_resumed_muon_that_counts_from_zero_is_found(trained, tmp_path, monkeypatch, refuses):
    """Muon moves a third of the matrices in a step: which, depends on the number of the step."""

    def leaves_muon_to_count(optimizers, settings, step):
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        own = [group.get("step", 0) for group in groups]
        set_step(optimizers, settings, step)
        for group, number in zip(groups, own, strict=True):
            group["step"] = number

    monkeypatch.setattr(train, "set_step", leaves_muon_to_count)
    # Without a stop, Muon's own count is right.
    out = copy_parts(trained[0], "superres", tmp_path / "whole")
    run_stage("superres", out)
    without_stop = load_file(out / "superres.safetensors")
    assert same_tensors(without_stop, load_file(trained[0] / "superres.safetensors"))
    run = stage_runner("superres", trained, tmp_path)
    refuses(training.stopping_changes_nothing, run, [(2,)])


def test_records(trained):
    """Every step is reported, with finite metrics that need no gradient."""
    for name, records in trained[1].items():
        steps = [(record.stage, record.step, record.steps) for record in records]
        assert steps == [(name, i + 1, STEPS) for i in range(STEPS)]
        for record in records:
            for value in record.metrics.values():
                assert torch.as_tensor(value).isfinite()
                assert not torch.as_tensor(value).requires_grad


def test_the_discriminator_comes_in_half_way_and_the_codebook_after_a_fifth(trained):
    _, records = trained
    for name in IMAGE_STAGES:
        steps = [r.step - 1 for r in records[name] if "discriminator" in r.metrics]
        assert steps == [step for step in range(STEPS) if step >= 0.5 * STEPS]
    for name in ("tokenizer", "tokenizer_hi"):
        steps = [r.step - 1 for r in records[name] if "perplexity" in r.metrics]
        assert steps == [step for step in range(STEPS) if step >= 0.2 * STEPS]


def record_inputs(monkeypatch):
    """Images that tokenizers are called with, from now on."""
    seen = []
    forward = vq.ImageTokenizer.forward

    def recording(self, images):
        seen.append(images)
        return forward(self, images)

    monkeypatch.setattr(vq.ImageTokenizer, "forward", recording)
    return seen


def test_the_high_res_tokenizer_trains_on_crops(trained, tmp_path, monkeypatch):
    """As large as the low-res images, and from all over the image."""
    out = copy_parts(trained[0], "tokenizer_hi", tmp_path)
    batches = record_inputs(monkeypatch)
    run_stage("tokenizer_hi", out)
    images = sample_images().batch(torch.arange(6))
    windows = images.unfold(2, 16, 1).unfold(3, 16, 1)  # 6 3 17 17 16 16
    places = set()
    for batch in batches:
        for crop in batch:
            matches = (windows == crop[None, :, None, None]).all(dim=(1, 4, 5)).nonzero()
            assert len(matches) == 1, "not a crop of one of the images"
            places.add(tuple(matches[0, 1:].tolist()))
    assert len(places) == len(batches), "not one place for each step"


def test_the_low_res_tokenizer_trains_on_halved_images(trained, tmp_path, monkeypatch):
    out = copy_parts(trained[0], "tokenizer", tmp_path)
    batches = record_inputs(monkeypatch)
    run_stage("tokenizer", out)
    halved = halve(sample_images().batch(torch.arange(6)))
    assert batches
    for batch in batches:
        for image in batch:
            assert (halved == image).all(dim=(1, 2, 3)).any()


@pytest.mark.parametrize("stops", [(), (1,), (2,)])
def test_the_codebook_starts_once(stops, tmp_path, monkeypatch):
    """After the steps of the plain autoencoder, resumed or not."""
    shapes = []
    start = vq.EMAQuantizer.start

    def recording(self, z, generator):
        shapes.append(tuple(z.shape[1:]))
        return start(self, z, generator)

    monkeypatch.setattr(vq.EMAQuantizer, "start", recording)
    run_stage("tokenizer", copy_parts(tmp_path, "tokenizer", tmp_path), stops)
    assert shapes == [(4, 4, 8)]


def test_another_seed_gives_other_weights(trained, tmp_path):
    out = copy_parts(trained[0], "base", tmp_path)
    run_stage("base", out, seed=1)
    a, b = load_file(out / "base.safetensors"), load_file(trained[0] / "base.safetensors")
    assert a.keys() == b.keys()
    assert not torch.equal(a["decoder.embedding.weight"], b["decoder.embedding.weight"])


def test_the_global_generator_does_not_matter(trained, tmp_path):
    out = copy_parts(trained[0], "base", tmp_path)
    torch.manual_seed(12345)
    run_stage("base", out)
    a, b = load_file(out / "base.safetensors"), load_file(trained[0] / "base.safetensors")
    assert same_tensors(a, b)


def test_stopping_at_the_last_record_loses_nothing(trained, tmp_path):
    """Closing the generator saves. After the last step there is a checkpoint or the part."""
    out, checkpoint = stopped(trained, tmp_path, step=STEPS)
    assert checkpoint.is_file() or (out / "base.safetensors").is_file()


@pytest.mark.parametrize("name", ["base", "superres", "decoder"])
def test_frozen_parts_stay_frozen(name, trained, tmp_path, monkeypatch):
    """Files and tensors stay the same, bit for bit; no frozen parameter is in the optimizer."""
    out = copy_parts(trained[0], name, tmp_path)
    loaded, optimized = [], []
    adamw = torch.optim.AdamW

    def recording_load(*arguments):
        loaded.append(load_part(*arguments))
        return loaded[-1]

    def recording_adamw(groups, **settings):
        for group in groups:
            optimized.extend(group["params"])
        return adamw(groups, **settings)

    monkeypatch.setattr(stages, "load_part", recording_load)
    monkeypatch.setattr(torch.optim, "AdamW", recording_adamw)
    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    run_stage(name, out)
    assert all((out / file).read_bytes() == data for file, data in before.items())
    assert len(loaded) == len(NEEDS[name]) and optimized
    optimized_ids = {id(p) for p in optimized}
    for part, net in zip(NEEDS[name], loaded, strict=True):
        file = load_file(out / f"{part}.safetensors")
        assert all(torch.equal(v, file[k]) for k, v in net.state_dict().items())
        assert not any(id(p) in optimized_ids for p in net.parameters())
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_the_decoder_stage_starts_from_the_tokenizers_decoder(trained):
    """Its first images are as good as the tokenizer's: the grown decoder is the same function."""
    tokenizer = load_part(trained[0], "tokenizer_hi", CONFIG, 16).eval()
    batch = sample_images().batch(batch_at(0, "decoder", 0, 4, 6))
    images = losses.crop(batch, CONFIG.tokenizer.side, generator_at(0, "decoder", 0))
    with autocast("cpu"), torch.no_grad():
        fake = tokenizer(images)[0]
    psnr = 10 * torch.log10(4 / (fake.float() - images).square().mean())
    assert abs(float(trained[1]["decoder"][0].metrics["psnr"]) - float(psnr)) < 0.05


# The token loss


def fake_logits(ids):
    return torch.randn(*ids.shape, 7, generator=torch.Generator().manual_seed(5))


class Spy(torch.nn.Module):
    """A token model that notes what it is called with."""

    mask_id = 7

    def __init__(self):
        super().__init__()
        self.calls = []

    def context(self, text, visible, low=None, places=None):
        return text, visible, low, places

    def sample_places(self, ids, generator):
        first = torch.randint(9, (len(ids), 1), generator=generator)
        return first + torch.arange(4)  # four in a row

    def forward(self, ids, context, where):
        self.calls.append((ids, context, where))
        return fake_logits(ids)[where]


LOW = torch.randint(7, (6, 4), generator=torch.Generator().manual_seed(0))
HIGH = torch.randint(7, (6, 16), generator=torch.Generator().manual_seed(1))


class FakeTokens:
    def ids(self, resolution, indices):
        return (LOW if resolution == "low" else HIGH)[indices]

    def choose_captions(self, indices, generator):
        return [torch.zeros(2, 3) for _ in indices]


@pytest.mark.parametrize("resolution", ["low", "high"])
def test_token_loss(resolution):
    """The model sees masked ids and dropped captions; the loss is that of the hidden tokens.

    Super-resolution sees all low-res tokens, and the high-res tokens of its places.
    """
    spy, tokens, indices = Spy(), FakeTokens(), torch.tensor([4, 0, 0, 2])
    loss_of = losses.token_loss(spy, tokens, CONFIG, resolution, "cpu")
    dropped = 0
    for step in range(40):
        ((loss, metrics),) = loss_of(indices, generator_at(0, "base", step), step)
        seen, (text, visible, low, places), where = spy.calls[-1]
        ids = tokens.ids(resolution, indices)
        if resolution == "low":
            assert low is None
        else:
            assert torch.equal(low, LOW[indices])
            ids = ids.gather(1, places)
        assert torch.equal(seen == Spy.mask_id, where)
        assert torch.equal(seen[~where], ids[~where])
        assert where.any(-1).all()
        expected = masked_token_loss(fake_logits(ids)[where], ids, where)
        assert torch.allclose(loss, expected.loss, atol=1e-2)
        assert torch.allclose(metrics["accuracy"], expected.correct)
        assert (visible.all(-1) | ~visible.any(-1)).all()
        dropped += int((~visible.any(-1)).sum())
    assert abs(dropped - 80) < 5 * 40**0.5, f"{dropped} of 160 captions dropped, not about half"


@pytest.mark.parametrize("resolution", ["low", "high"])
def test_only_super_resolution_hides_all(resolution):
    """`fully_hidden` of the settings arrives in its training, and the base model does without."""
    spy, tokens, indices = Spy(), FakeTokens(), torch.tensor([4, 0, 0, 2])
    config = replace(CONFIG, fully_hidden=1.0)
    loss_of = losses.token_loss(spy, tokens, config, resolution, "cpu")
    for step in range(20):
        list(loss_of(indices, generator_at(0, "base", step), step))
    wheres = torch.cat([where for _, _, where in spy.calls])
    if resolution == "high":
        assert wheres.all()
    else:
        assert 0.5 < wheres.double().mean() < 0.8


def tokenizers(out):
    return {name: load_part(out, name, CONFIG, 16).eval() for name in ("tokenizer", "tokenizer_hi")}


def test_token_ids_do_not_depend_on_the_batch(trained):
    parts, images = tokenizers(trained[0]), sample_images()
    tokens = tokens_of(parts, Text(), images, "cpu", batch=4)
    assert tokens.ids("low").shape == (6, 16) and tokens.ids("high").shape == (6, 64)
    whole = tokens_of(parts, Text(), images, "cpu", batch=64)
    assert all(torch.equal(whole.ids(r), tokens.ids(r)) for r in ("low", "high"))


def test_captions_of_tokens(trained):
    """Embeddings computed once are those of every caption alone."""
    images = sample_images()
    tokens = tokens_of(tokenizers(trained[0]), Text(), images, "cpu", batch=4)
    drawn = [set() for _ in range(6)]
    for step in range(30):
        embeddings, visible = tokens.captions(torch.arange(6), generator_at(step))
        assert visible.shape[1] == int(visible.sum(-1).max()), "padded to the longest of the batch"
        for i in range(6):
            # The captions of an image have different lengths, so the length tells which it is.
            (caption,) = [c for c in images.captions[i] if len(c) == int(visible[i].sum())]
            expected = Text()([caption])[0][0]
            assert torch.equal(embeddings[i][visible[i]], expected)
            assert (embeddings[i][~visible[i]] == 0).all()
            drawn[i].add(caption)
    assert drawn == [set(captions) for captions in images.captions], "some captions are never drawn"
    _, visible = tokens.captions(torch.tensor([0, 3]))
    assert visible.sum(-1).tolist() == [3, 5], "without a generator, the plainest"


# Files that do not fit


def stopped(trained, folder, name="base", step=2):
    """A directory with a stage that was stopped at a step, and its checkpoint."""
    out = copy_parts(trained[0], name, folder)
    run_to_step(train_stage(name, out, about_at(out), sample_images(), Text()), step)
    return out, out / f"{name}.checkpoint.safetensors"


def first_record(out, about, images=None):
    """Start or resume the base model, for one step."""
    return next(train_stage("base", out, about, images or sample_images(), Text()))


def test_damaged_checkpoints(trained, tmp_path):
    out, checkpoint = stopped(trained, tmp_path)
    about, data = json.loads((out / "config.json").read_text()), checkpoint.read_bytes()
    for length in (0, 1, 8, 100, len(data) // 2, len(data) - 1):
        checkpoint.write_bytes(data[:length])
        with pytest.raises(ValueError, match="base.checkpoint.safetensors is damaged"):
            first_record(out, about)
    checkpoint.write_bytes(data)
    assert first_record(out, about).step == 3, "whole again, it resumes"


def test_checkpoints_that_are_something_else(trained, tmp_path):
    """A file of weights without the header of a checkpoint, and one without some of the weights."""
    out, checkpoint = stopped(trained, tmp_path)
    about = json.loads((out / "config.json").read_text())
    whole = load(checkpoint.read_bytes())  # copies, since the file is written again
    without_embeddings = {k: v for k, v in whole.items() if "embedding" not in k}
    header = {"step": "2", "key": json.dumps(about | {"stage": "base", "pictures": 6})}
    for tensors, metadata in (
        (whole, None),
        (whole, {"step": "2"}),
        (without_embeddings, header),
    ):
        save_file(tensors, checkpoint, metadata)
        with pytest.raises(ValueError, match="base.checkpoint.safetensors"):
            first_record(out, about)


def test_checkpoints_of_other_settings(trained, tmp_path):
    out, checkpoint = stopped(trained, tmp_path)
    about = json.loads((out / "config.json").read_text())
    other_lr = json.loads(json.dumps(about))
    other_lr["config"]["stages"]["base"]["lr"] = 0.5
    for wrong in (
        other_lr,
        about | {"seed": 1},
        about | {"data": "emoji"},
        about | {"text": {"name": "letters", "fingerprint": "f"}},
    ):
        with pytest.raises(ValueError, match="base.checkpoint.safetensors.*other settings"):
            first_record(out, wrong)
    images = sample_images()
    fewer = Images(images.pixels[:5], images.captions[:5], images.names[:5])
    with pytest.raises(ValueError, match="other settings, data"):
        first_record(out, about, fewer)
    assert checkpoint.is_file()


def test_checkpoints_are_written_whole(trained, tmp_path, monkeypatch):
    """A write that fails leaves the checkpoint before it, readable."""
    out, checkpoint = stopped(trained, tmp_path)
    about, data = json.loads((out / "config.json").read_text()), checkpoint.read_bytes()

    def fails(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("minimuse.plumbing.files.save_file", fails)
    run = train_stage("base", out, about, sample_images(), Text())
    record = next(run)
    with pytest.raises(OSError, match="base.checkpoint.safetensors cannot be written"):
        record.save()
    assert checkpoint.read_bytes() == data


def test_a_checkpoint_every_minute(tmp_path, monkeypatch):
    """Not only when it is asked for: a killed process loses a minute at most."""
    monkeypatch.setattr(checkpoints, "SAVE_EVERY", -1e9)
    model = torch.nn.Linear(3, 1)

    def loss_of(indices, generator, step):
        return [(model(torch.ones(1, 3)).square().mean(), {})]

    path = tmp_path / "c.safetensors"
    run = training_loop("small", model, loss_of, configs.Stage(3, 1, 0.1), 4, 0, path, {})
    for done in (1, 2):
        next(run)
        with safe_open(path, "pt") as file:
            assert file.metadata()["step"] == str(done)


def test_directories(trained, tmp_path):
    """What train_all refuses before any work."""

    def attempt(out, names=("base",), config=CONFIG, **options):
        return next(train_all(names, out, config, "shapes", Text(), "letters", **options))

    new = tmp_path / "new"
    with pytest.raises(
        FileNotFoundError, match="tokenizer.safetensors.*with tokenizer in place of base"
    ):
        attempt(new)
    hint = "tokenizer_hi.safetensors.*with tokenizer-hi in place of decoder"
    with pytest.raises(FileNotFoundError, match=hint):
        attempt(new, ("decoder",))
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
    """A finished stage is not trained again, and gives the next one what it needs."""
    out = copy_parts(trained[0], "superres", tmp_path)
    names = ("base", "superres")
    records = list(train_all(names, out, CONFIG, "shapes", Text(), "letters"))
    steps = [(record.stage, record.step) for record in records]
    assert steps == [(name, i + 1) for name in names for i in range(STEPS)]
    before = load_file(out / "superres.safetensors")
    (out / "superres.safetensors").unlink()
    again = list(train_all(names, out, CONFIG, "shapes", Text(), "letters", resume=True))
    assert {record.stage for record in again} == {"superres"}
    assert same_tensors(load_file(out / "superres.safetensors"), before)
    assert not list(train_all(("base",), out, CONFIG, "shapes", Text(), "letters", resume=True))
