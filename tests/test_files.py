"""Files: written aside and renamed, with the mode that the umask says, and refused before the work.

pytest tests/test_files.py
"""

import os
import signal
import stat
import subprocess
import sys
import threading
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file

from minimuse.cli import main
from minimuse.plumbing import checkpoint, collectives, files
from minimuse.plumbing import config as configs
from minimuse.plumbing.files import check_writable, copy_file, save_tensors, write_text, write_whole
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.t5_files import LazyT5
from minimuse.runs.stages import STAGES, train_all
from minimuse.train import training_loop

SETTINGS = ["scenes=12"]
for _stage in STAGES:
    SETTINGS += [f"stages.{_stage}.steps=1", f"stages.{_stage}.batch=4"]
TRAIN = ["--preset", "tiny", "--data", "shapes", *SETTINGS]
TENSORS = {"weight": torch.arange(5.0)}


def run(*argv):
    return main([str(argument) for argument in argv])


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


UMASKS = pytest.mark.parametrize("umask", [0o022, 0o002, 0o027, 0o077], indirect=True)


# Modes


@UMASKS
def test_a_file_gets_the_mode_that_the_umask_says(umask, tmp_path):
    """Whatever a library or a copied file has."""
    source = tmp_path / "source"
    source.write_text("x")
    source.chmod(0o400)
    save_tensors(tmp_path / "a.safetensors", TENSORS)
    write_text(tmp_path / "b.txt", "b")
    copy_file(source, tmp_path / "c")
    files.save_image(Image.new("RGB", (4, 4)), tmp_path / "d.png")
    (tmp_path / "old").write_text("x")
    (tmp_path / "old").chmod(0o600)
    write_text(tmp_path / "old", "new")
    for name in ("a.safetensors", "b.txt", "c", "d.png", "old"):
        assert mode(tmp_path / name) == 0o666 & ~umask, name
    write_text(tmp_path / "new" / "folder" / "e", "e")
    assert mode(tmp_path / "new" / "folder") == 0o777 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True)
def test_every_file_of_a_model_has_it(umask, tmp_path):
    """Parts, settings, checkpoints, cache, locks, and what --start copies."""
    out, new, modes = tmp_path / "model", tmp_path / "new", set()
    text = LazyT5("t5-toy")
    config = configs.override(configs.PRESETS["tiny"], [*SETTINGS, "stages.tokenizer.steps=3"])
    for record in train_all(STAGES[:2], out, config, "shapes", text, "t5-toy"):
        record.save()
        modes |= {mode(path) for path in out.iterdir() if path.is_file()}
    assert run("cache", "--out", out) == 0
    for stage in ("base", "superres", "decoder"):
        assert run("train", stage, "--out", out) == 0
    assert run("train", "base", "--start", out, "--out", new) == 0
    for path in (*out.rglob("*"), *new.rglob("*")):
        if path.is_file():
            modes.add(mode(path))
        else:
            assert mode(path) == 0o750
    assert modes == {0o640}


# Links, names, places


def test_a_link_stays_a_link(tmp_path):
    """The file that it leads to is written, as if the link were that file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    for target in (disk / "there.txt", disk / "new.txt"):
        link = tmp_path / f"link-{target.name}"
        link.symlink_to(target)
        write_text(link, "text")
        assert link.is_symlink() and target.read_text() == "text"
    assert sorted(path.name for path in disk.iterdir()) == ["new.txt", "there.txt"]


def test_a_linked_checkpoint_is_kept_as_the_one_before(tmp_path):
    elsewhere = tmp_path / "elsewhere.safetensors"
    save_tensors(elsewhere, TENSORS)
    path, before = tmp_path / "c.safetensors", tmp_path / "c.before"
    path.symlink_to(elsewhere)
    save_tensors(path, {"weight": torch.ones(1)}, {"step": "1"}, before=before)
    assert load_file(before)["weight"].tolist() == TENSORS["weight"].tolist()
    assert load_file(path)["weight"].tolist() == [1.0]


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "[a] *?.png", "é" * 125 + ".png", " .png"])
def test_names_that_a_file_may_have(name, tmp_path):
    check_writable(tmp_path / name)
    assert not list(tmp_path.iterdir())
    files.save_image(Image.new("RGB", (4, 4)), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture
def places(tmp_path):
    """Places for a file in which it cannot be written, by what is wrong with them."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/proc/nowhere/x.png")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    return {
        "in a file": tmp_path / "file" / "x.png",
        "in a folder in a file": tmp_path / "file" / "a" / "x.png",
        "a folder": tmp_path / "folder.png",
        "a name too long": tmp_path / ("n" * 252 + ".png"),
        "a folder's name too long": tmp_path / ("n" * 256) / "x.png",
        "a path too long": tmp_path / "/".join(["n" * 200] * 21) / "x.png",
        "a file system without files": Path("/proc/x.png"),
        "a pipe": tmp_path / "pipe.png",
        "a link to such a place": tmp_path / "link.png",
        "in a folder that is a broken link": tmp_path / "broken" / "x.png",
    }


def listing(folder):
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_places_that_are_refused(places, tmp_path):
    before = listing(tmp_path)
    for what, path in places.items():
        with pytest.raises(OSError, match="cannot be written") as caught:
            check_writable(path)
        assert str(path) in str(caught.value), what
    check_writable(tmp_path / "new" / "folders" / "x.png")
    assert listing(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("what", ["in a file", "a folder", "a name too long", "a pipe"])
def test_commands_that_draw_refuse_them_before_they_load_a_model(
    what, places, fails, monkeypatch, tmp_path
):
    monkeypatch.setattr("minimuse.muse.Muse.load", lambda *_: pytest.fail("works before it looks"))
    path = str(places[what])
    draw = ["generate", "a cat"]
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png")
    for argv in (
        [*draw, "-o", path],
        [*draw, "-o", tmp_path / "o.png", "--gif", path],
        ["edit", tmp_path / "in.png", "a cat", "-o", tmp_path / "o.png", "--sheet", path],
    ):
        assert path in fails(*argv)
    assert not (tmp_path / "o.png").exists()


@pytest.mark.parametrize("name", ["report.json", "report.md", "samples.png", "decoding.gif", "."])
def test_evaluate_and_demo_refuse_them_before_the_work(name, fails, monkeypatch, tmp_path):
    monkeypatch.setattr("minimuse.muse.Muse.load", lambda *_: pytest.fail("works before it looks"))
    out = tmp_path / "out"
    if name == ".":
        out.write_text("a file")
    else:
        (out / name).mkdir(parents=True)
    before = listing(tmp_path)
    assert str(out) in fails("evaluate", "--out", out)
    assert str(out) in fails("evaluate", "--out", out / "inside" if name == "." else out)
    assert str(out) in fails("demo", "--preset", "tiny", "--out", out)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["base.safetensors", "decoder.checkpoint.safetensors"])
def test_train_refuses_them_before_the_first_stage(name, fails, tmp_path):
    """The base model would be written hours after the tokenizers."""
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    assert name in fails("train", "all", "--out", out, *TRAIN)
    assert listing(out) == [str(out / name)]


def test_cache_refuses_it(fails, tmp_path):
    out = tmp_path / "out"
    for stage in ("tokenizer", "tokenizer-hi"):
        assert run("train", stage, "--out", out, *TRAIN) == 0
    (out / "cache").write_text("a file")
    assert "index.json" in fails("cache", "--out", out)


def test_a_full_disk_is_known_before(tmp_path):
    """No file may be larger than some bytes: as on a full disk, which still takes empty files."""
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from minimuse.plumbing.files import check_writable;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "check_writable(Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "x.png"], capture_output=True, text=True
    )
    assert "x.png cannot be written (File too large)" in done.stderr
    assert not list(tmp_path.iterdir())


# Written aside


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError("no")])
def test_a_write_that_fails_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "report.md"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_whole(path, write)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_two_threads_write_the_same_file(tmp_path):
    """One of them wins, and none removes what the other is writing."""
    path = tmp_path / "x.txt"
    errors = []

    def work(text):
        try:
            for _ in range(30):
                write_text(path, text * 1000)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(set(path.read_text())) == 1
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from minimuse.plumbing.files import write_whole
write_whole(Path(sys.argv[1]), lambda temporary: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    path = tmp_path / "[x].png"
    done = subprocess.run([sys.executable, "-c", KILLED, path])
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    write_text(path, "text")
    assert list(tmp_path.iterdir()) == [path]


# A training that is stopped


def small_loop(path, steps=6):
    model = torch.nn.Linear(3, 1)
    torch.nn.init.constant_(model.weight, 0.5)
    torch.nn.init.constant_(model.bias, 0.0)

    def loss_of(indices, generator, step):
        yield model(torch.randn(4, 3, generator=generator)).square().mean(), {}

    settings = configs.Stage(steps, 4, 0.1)
    return model, training_loop("small", model, loss_of, settings, 10, 0, path, {})


def test_a_loop_that_is_dropped_or_closed_writes_nothing(tmp_path):
    path = tmp_path / "c.safetensors"
    _, loop = small_loop(path)
    next(loop)
    del loop
    _, loop = small_loop(path)
    next(loop)
    loop.close()
    assert not list(tmp_path.iterdir())


def test_a_record_saves_and_the_training_goes_on_from_it(tmp_path):
    path = tmp_path / "c.safetensors"
    whole, loop = small_loop(tmp_path / "whole.safetensors")
    list(loop)
    _, loop = small_loop(path)
    for record in loop:
        if record.step == 3:
            record.save()
            break
    resumed, loop = small_loop(path)
    assert [record.step for record in loop] == [4, 5, 6]
    assert torch.equal(whole.weight, resumed.weight)


def mappings(word):
    """The lines of this process's memory map that name a file with this word."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if word in line]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_checkpoint_is_not_mapped(stage, tmp_path):
    """Windows does not replace a file that is mapped."""
    config = configs.override(configs.PRESETS["tiny"], [*SETTINGS, f"stages.{stage}.steps=9"])
    text = LazyT5("t5-toy")
    for part in STAGES[: STAGES.index(stage)]:
        list(train_all((part,), tmp_path, config, "shapes", text, "t5-toy"))

    def records(resume):
        return train_all((stage,), tmp_path, config, "shapes", text, "t5-toy", resume=resume)

    next(records(False)).save()
    assert checkpoint.checkpoints_at(tmp_path / f"{stage}.checkpoint.safetensors")
    loop = records(True)
    record = next(loop)
    assert record.step == 2 and not mappings("checkpoint") and not mappings(str(tmp_path))


# Several processes


def fail_in_one(rank, folder, who, error, answers):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        if who == "lock":
            with one_process_at_a_time(folder / "out", "base", wait=0.1):
                pass
        else:
            with collectives.fail_together():
                if rank == who:
                    raise error
        answers.put((rank, None))
    except BaseException as caught:
        answers.put((rank, f"{type(caught).__name__}: {caught}"))
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "who, error",
    [
        (0, OSError("x.safetensors cannot be written")),
        (0, ValueError("x.safetensors is not finite")),
        (1, MemoryError("too little")),
        (0, KeyboardInterrupt("stopped")),
        ("lock", None),
    ],
)
def test_one_process_that_fails_leaves_no_other_waiting(who, error, tmp_path):
    context = get_context("spawn")
    answers = context.Queue()
    with one_process_at_a_time(tmp_path / "out", "base"):
        processes = [
            context.Process(target=fail_in_one, args=(rank, tmp_path, who, error, answers))
            for rank in (0, 1)
        ]
        for process in processes:
            process.start()
        said = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    message = "another process writes the base" if who == "lock" else str(error)
    assert message in said[0] and message in said[1]


# What is printed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("reader", ["gone", "full"])
def test_output_that_nobody_takes(reader):
    """`minimuse describe toy | true`, and a file on a full disk: one line, no traceback."""
    output = "/dev/full"
    if reader == "gone":
        read_end, output = os.pipe()
        os.close(read_end)
    with open(output, "w") as stdout:
        command = [sys.executable, "-m", "minimuse", "describe", "toy"]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("minimuse: ")
