"""Checkpoints of a model that is spread over processes, and large parts in several files.

    pytest tests/test_sharded.py

Gloo processes on a CPU save and load a small model with `torch.distributed.checkpoint`. What the
folders hold is compared with the whole tensors, gathered. tests/test_parallel.py trains with them,
and tests/bench/sharded.py measures their memory.
"""

import json
import os
import resource
import shutil
import signal
import warnings
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from minimuse.plumbing import checkpoint, collectives, files, pieces, sharded
from minimuse.plumbing.config import PRESETS
from minimuse.plumbing.parts import build, load_part, save_part
from minimuse.runs.directory import check_nothing_exists, check_resumable

KEY = {"of": "a test"}
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch.distributed.checkpoint", "test_sharded"]
)


# --- A small model in several processes ---


def make_model(seed):
    """Matrices of 7, 3 and 1 rows, so that of four processes some hold nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1))


def make_state(model, seed):
    """(model, average, optimizers) after one step of AdamW."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(4, 5)).square().sum().backward()
    optimizer.step()
    average = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    return model, average, [optimizer]


def whole(model, average, optimizers):
    """All tensors of a state, gathered, by the names that they have in a checkpoint."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
    for name, _, state in checkpoint.optimizer_states(model, optimizers):
        tensors |= {f"optimizer.{name}/{entry}": tensor for entry, tensor in state.items()}
    return {name: collectives.gather(tensor).clone() for name, tensor in tensors.items()}


def spread_state(seed):
    from torch.distributed.fsdp import fully_shard

    model = make_model(seed)
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    return make_state(model, seed)


def save_steps(folder, steps, rank, hook=None):
    """Save a checkpoint after each of the steps, and beside it what it should hold."""
    for step in steps:
        state = spread_state(seed=step)
        expected = whole(*state)
        if rank == 0:
            save_file(expected, folder / f"expected-{step}.safetensors")
        if hook is not None:
            hook(step, state)
        checkpoint.save_checkpoint(path_in(folder), step, *state, KEY)


def load_and_tell(folder, rank):
    """Load the checkpoint into a state of other values; write what it then holds."""
    state = spread_state(seed=99)
    step = checkpoint.restore_checkpoint(path_in(folder), *state, KEY)
    loaded = whole(*state)
    if rank == 0:
        save_file(loaded, folder / "loaded.safetensors", {"step": str(step)})


def path_in(folder):
    return folder / "base.checkpoint.safetensors"


def member(rank, size, folder, work, meeting, answers):
    """One of the processes: call work(folder, rank=rank), and tell what came of it."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    try:
        work(folder, rank=rank)
        answers.put((rank, ""))
    except BaseException as error:
        answers.put((rank, f"{type(error).__name__}: {error}"))
    dist.destroy_process_group()


def together(size, folder, work, dies=None):
    """What each of `size` processes raised, or ""; `dies`: the rank that will not answer."""
    answers = SERVER.Queue()
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    processes = [
        SERVER.Process(
            target=member, args=(rank, size, folder, work, meeting, answers), daemon=True
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    count = size if dies is None else size - 1
    said = dict(answers.get(timeout=300) for _ in range(count))
    if dies is not None:
        processes[dies].join(300)
        assert processes[dies].exitcode == -signal.SIGKILL
    for process in processes:
        process.join(300)
    return said


def same(loaded, expected):
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, expected[name]), name


def load_here(folder):
    """The step and the tensors of the checkpoint, loaded by this process alone."""
    state = make_state(make_model(99), 99)
    step = checkpoint.restore_checkpoint(path_in(folder), *state, KEY)
    return step, whole(*state)


def steps_at(folder):
    """The steps of the checkpoints in a folder, the newest first."""
    paths = checkpoint.checkpoints_at(path_in(folder))
    return [int(checkpoint.read_checkpoint(p)[0]["step"]) for p in paths]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoints of three steps, saved by four processes."""
    folder = tmp_path_factory.mktemp("saved")
    said = together(4, folder, partial(save_steps, steps=(1, 2, 3)))
    assert said == dict.fromkeys(range(4), "")
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


# --- Save and load ---


def test_the_two_newest_are_kept(saved):
    assert steps_at(saved) == [3, 2]
    folders = sorted(path.name for path in saved.glob("base.*"))
    assert folders == ["base.checkpoint.step-000002", "base.checkpoint.step-000003"]
    assert not list(saved.rglob("*.metadata"))  # PyTorch's pickle


def test_each_process_writes_its_part(saved):
    """No file has all rows, and no row is stored twice."""
    parts = sorted((saved / "base.checkpoint.step-000003").glob("*.safetensors"))
    assert len(parts) == 4
    rows = [len(load_file(part).get("model.0.weight", ())) for part in parts]
    assert sum(rows) == 7 and max(rows) == 2
    size = sum(tensor.nbytes for tensor in load_file(saved / "expected-3.safetensors").values())
    largest = max(sum(t.nbytes for t in load_file(part).values()) for part in parts)
    assert largest < size / 2


def save_in_small_files(folder, rank):
    pieces.PIECE_BYTES = 200
    save_steps(folder, (1,), rank)


def test_each_process_may_write_several_files(tmp_path):
    assert set(together(2, tmp_path, save_in_small_files).values()) == {""}
    (folder,) = sharded.folders_at(path_in(tmp_path))
    parts = list(folder.glob("*.safetensors"))
    assert len(parts) > 4
    for part in parts:
        assert sum(tensor.nbytes for tensor in load_file(part).values()) <= 300
    same(load_here(tmp_path)[1], load_file(tmp_path / "expected-1.safetensors"))


def test_one_process_loads_it(saved):
    step, loaded = load_here(saved)
    assert step == 3
    same(loaded, load_file(saved / "expected-3.safetensors"))


@pytest.mark.parametrize("processes", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_other_numbers_of_processes_load_it(processes, copy):
    assert set(together(processes, copy, load_and_tell).values()) == {""}
    with safe_open(copy / "loaded.safetensors", "pt") as file:
        assert file.metadata()["step"] == "3"
    same(load_file(copy / "loaded.safetensors"), load_file(copy / "expected-3.safetensors"))


def test_another_key_is_refused(saved):
    state = make_state(make_model(99), 99)
    with pytest.raises(ValueError, match="started with other settings"):
        checkpoint.restore_checkpoint(path_in(saved), *state, {"of": "another"})


def test_an_out_that_holds_only_folders(copy):
    with pytest.raises(FileExistsError, match="step-000003 exists already"):
        check_nothing_exists("base", copy)
    check_resumable(copy)


def test_one_process_goes_on_with_files(copy):
    """Its first save keeps the newest folder as the one before; the next one removes that, too."""
    state = make_state(make_model(4), 4)
    checkpoint.save_checkpoint(path_in(copy), 4, *state, KEY)
    assert steps_at(copy) == [4, 3]
    path_in(copy).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="checkpoint.safetensors is damaged"):
        assert load_here(copy)[0] == 3
    checkpoint.save_checkpoint(path_in(copy), 4, *state, KEY)
    checkpoint.save_checkpoint(path_in(copy), 5, *state, KEY)
    assert steps_at(copy) == [5, 4] and not sharded.folders_at(path_in(copy))


def test_several_processes_go_on_from_files(tmp_path):
    for step in (1, 2):
        checkpoint.save_checkpoint(path_in(tmp_path), step, *make_state(make_model(1), 1), KEY)
    assert set(together(2, tmp_path, partial(save_steps, steps=(3,))).values()) == {""}
    assert steps_at(tmp_path) == [3, 2]
    step, loaded = load_here(tmp_path)
    assert step == 3
    same(loaded, load_file(tmp_path / "expected-3.safetensors"))


# --- Faults ---


def kill_in_second(step, state, rank, moment):
    """Prepare that process 1 of 2 (or 0, if it alone acts) is killed inside the save of step 2."""
    if step != 2:
        return
    write_parts, write_manifest = sharded.write_parts, sharded.write_manifest

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(folder, tensors):
        write_parts(folder, tensors)
        (own,) = folder.glob(f"shard-{rank + 1:05}-*")
        os.truncate(own, own.stat().st_size // 2)
        die()

    def write_and_die(*arguments):
        write_manifest(*arguments)
        die()

    if rank == 1 and moment == "before its part":
        sharded.write_parts = die
    if rank == 1 and moment == "inside its part":
        sharded.write_parts = write_half
    if rank == 0 and moment == "before the manifest":
        sharded.write_manifest = die
    if rank == 0 and moment == "before the folder has its name":
        sharded.write_manifest = write_and_die


def save_and_die(folder, rank, moment):
    hook = partial(kill_in_second, rank=rank, moment=moment)
    save_steps(folder, (1, 2), rank, hook)


@pytest.mark.parametrize(
    "moment, rank",
    [
        pytest.param("before its part", 1, marks=pytest.mark.slow),
        ("inside its part", 1),
        pytest.param("before the manifest", 0, marks=pytest.mark.slow),
        pytest.param("before the folder has its name", 0, marks=pytest.mark.slow),
    ],
)
def test_killed_while_saving(moment, rank, tmp_path):
    """kill -9 of one process leaves no folder of that step under its name; the other one fails."""
    said = together(2, tmp_path, partial(save_and_die, moment=moment), dies=rank)
    assert said[1 - rank] != ""
    assert steps_at(tmp_path) == [1]
    step, loaded = load_here(tmp_path)
    assert step == 1
    same(loaded, load_file(tmp_path / "expected-1.safetensors"))
    # The next save of the same step is not in the way of what was left.
    assert set(together(2, tmp_path, partial(save_steps, steps=(2,))).values()) == {""}
    assert steps_at(tmp_path) == [2, 1] and not list(tmp_path.glob("*.tmp"))


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def damage(folder, what):
    part = sorted(folder.glob("*.safetensors"))[1]
    manifest = folder / "manifest.json"
    if what == "a bit of a part":
        flip(part)
    if what == "half a part":
        os.truncate(part, part.stat().st_size // 2)
    if what == "a part is missing":
        part.unlink()
    if what == "a part too many":
        shutil.copy(part, folder / "shard-00009-model-00001-of-00001.safetensors")
    if what == "no manifest":
        manifest.unlink()
    if what == "another step":
        manifest.write_text(manifest.read_text().replace('"step": "3"', '"step": "4"'))
    if what == "no JSON":
        flip(manifest, 0)
    if what == "a list":
        manifest.write_text("[1, 2]")


DAMAGES = [
    "a bit of a part",
    "half a part",
    "a part is missing",
    "a part too many",
    "no manifest",
    "another step",
    "no JSON",
    "a list",
]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_used(what, copy):
    damage(copy / "base.checkpoint.step-000003", what)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step, loaded = load_here(copy)
    (message,) = [str(warning.message) for warning in caught]
    assert "base.checkpoint.step-000003 is damaged" in message and "one before" in message
    assert step == 2
    same(loaded, load_file(copy / "expected-2.safetensors"))
    assert steps_at(copy) == [2]  # the damaged one would count as the newest at the next save


def test_several_processes_agree_that_one_is_damaged(copy):
    """Each reads other files, and only one of them reads the damaged one."""
    damage(copy / "base.checkpoint.step-000003", "a bit of a part")
    assert set(together(2, copy, load_and_tell).values()) == {""}
    same(load_file(copy / "loaded.safetensors"), load_file(copy / "expected-2.safetensors"))


def test_all_are_damaged(copy):
    for folder in sharded.folders_at(path_in(copy)):
        damage(folder, "a bit of a part")
    with (
        pytest.raises(ValueError, match="step-000002 is damaged.*remove it to start"),
        warnings.catch_warnings(action="ignore"),
    ):
        load_here(copy)


def spoil(step, state, rank, fault):
    """Prepare that process 1 cannot save step 2: its disk is full, or a weight is not finite."""
    if step != 2 or rank != 1:
        return
    if fault == "full disk":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    else:
        model, _, _ = state
        model[0].weight.to_local().detach().fill_(float("nan"))


def save_spoiled(folder, rank, fault):
    save_steps(folder, (1, 2), rank, partial(spoil, rank=rank, fault=fault))


@pytest.mark.parametrize("fault, words", [("full disk", "make room"), ("nan", "is not finite")])
def test_one_process_cannot_save(fault, words, tmp_path):
    """All fail, with the reason, and nothing is left of the attempt."""
    said = together(2, tmp_path, partial(save_spoiled, fault=fault))
    assert all(words in message and "step-000002" in message for message in said.values())
    assert steps_at(tmp_path) == [1] and not list(tmp_path.glob("*.tmp"))


# --- Large parts ---


def export(folder, rank):
    """Write a spread model in pieces; note how much is written at once."""
    pieces.PIECE_BYTES = 100
    sizes = []

    def noting_save(tensors, path, metadata):
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, path, metadata)

    files.save_file = noting_save
    model, _, _ = spread_state(seed=1)
    save_part(folder, "base", model)
    expected = {name: collectives.gather(t).clone() for name, t in model.state_dict().items()}
    if rank == 0:
        save_file(expected, folder / "expected.safetensors")
        (folder / "sizes.json").write_text(json.dumps(sizes))


def test_a_spread_model_is_exported_in_pieces(tmp_path):
    assert set(together(2, tmp_path, export).values()) == {""}
    same(
        pieces.load_pieces(tmp_path / "base.safetensors"),
        load_file(tmp_path / "expected.safetensors"),
    )
    sizes = json.loads((tmp_path / "sizes.json").read_text())
    assert sizes == [140, 28, 84 + 12, 12 + 4]  # at most 100, but for a tensor that is larger


@pytest.fixture
def part():
    torch.manual_seed(0)
    return build("base", PRESETS["tiny"], 256)


def load_tiny(folder):
    return load_part(folder, "base", PRESETS["tiny"], 256).state_dict()


def test_a_small_part_is_one_plain_file(part, tmp_path):
    save_part(tmp_path, "base", part)
    save_file(part.state_dict(), tmp_path / "plain.safetensors")
    written = (tmp_path / "base.safetensors").read_bytes()
    assert written == (tmp_path / "plain.safetensors").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture
def in_pieces(part, tmp_path, monkeypatch):
    """A directory with a part in several files."""
    size = sum(tensor.nbytes for tensor in part.state_dict().values())
    monkeypatch.setattr(pieces, "PIECE_BYTES", size // 3)
    save_part(tmp_path, "base", part)
    assert len(list(tmp_path.glob("base.*-of-*.safetensors"))) in (2, 3, 4)
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_part_in_pieces_is_the_same_part(dtype, part, tmp_path, monkeypatch):
    save_part(tmp_path / "one", "base", part, dtype)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 20_000)
    save_part(tmp_path / "pieces", "base", part, dtype)
    assert len(list((tmp_path / "pieces").iterdir())) >= 3
    same(load_tiny(tmp_path / "pieces"), load_tiny(tmp_path / "one"))


def test_a_missing_or_foreign_piece_is_named(in_pieces):
    first = min(in_pieces.glob("base.*-of-*"))
    whole_file = first.read_bytes()
    flip(first)
    with pytest.raises(ValueError, match=f"{first.name} is damaged, or of another training"):
        load_tiny(in_pieces)
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name} is missing"):
        load_tiny(in_pieces)
    first.write_bytes(whole_file)
    load_tiny(in_pieces)


def test_pieces_are_copied_and_removed_with_their_part(part, in_pieces, tmp_path, monkeypatch):
    copied = tmp_path / "copied" / "base.safetensors"
    pieces.copy_part(in_pieces / "base.safetensors", copied)
    same(load_tiny(copied.parent), part.state_dict())
    monkeypatch.undo()
    save_part(copied.parent, "base", part)
    assert [path.name for path in copied.parent.iterdir()] == ["base.safetensors"]
