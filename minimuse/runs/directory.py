"""The directory of a model in training, OUT on the command line: settings, parts, checkpoints.

    OUT/config.json                     settings, data, seed, text encoder, words of the captions
    OUT/images.json                     the images of a folder, see `runs/manifest.py`
    OUT/images.safetensors              the same images, decoded
    OUT/index/                          where images begin in tar files, see `runs/tar_index.py`
    OUT/base.safetensors                a finished part
    OUT/base.checkpoint.safetensors     the last checkpoint of a stage that is not finished
    OUT/base.checkpoint.before          the checkpoint before it
    OUT/base.checkpoint.step-000230/    a checkpoint of several processes, see `sharded.py`
    OUT/cache/                          token ids and text embeddings, see `runs/cache.py`
    OUT/start/                          parts of another model, from which this training continues
    OUT/log.jsonl                       losses of all stages, see `runs/log.py`
    OUT/watch/base-000288.png           what a stage made of held-out images, see `runs/watch.py`
    OUT/tensorboard/                    the log again, where TensorBoard is installed

Only the config and the parts are needed to generate images. images.safetensors, the index and the
cache may be removed at any time, and are made again where they are needed. The last three are for
you to look at: nothing is computed from them.
"""

import dataclasses
import json
from pathlib import Path

from minimuse.plumbing import collectives
from minimuse.plumbing.checkpoint import checkpoints_at, remove_checkpoint
from minimuse.plumbing.config import Config
from minimuse.plumbing.files import write_json
from minimuse.plumbing.identity import differences
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.parts import read_about
from minimuse.plumbing.places import data_place, text_place, with_ways
from minimuse.runs.manifest import can_write
from minimuse.runs.training_words import training_vocabulary
from minimuse.t5_frozen import FrozenT5


def part_path(out: Path, name: str) -> Path:
    """The file of a finished part."""
    return out / f"{name}.safetensors"


def checkpoint_path(out: Path, name: str) -> Path:
    """The file of the last checkpoint of a stage."""
    return out / f"{name}.checkpoint.safetensors"


def log_path(out: Path) -> Path:
    """The log of all stages."""
    return out / "log.jsonl"


def sheet_path(out: Path, name: str, step: int) -> Path:
    """What a stage made of held-out images after a step."""
    return out / "watch" / f"{name}-{step:06}.png"


def describe_model(config: Config, data: str, text: FrozenT5, text_name: str, seed: int) -> dict:
    """The contents of config.json but the vocabulary: all that a model depends on."""
    about = {
        "config": dataclasses.asdict(config),
        "data": data_place(data),
        "seed": seed,
        "text": {"name": text_place(text_name), "fingerprint": text.fingerprint},
    }
    return json.loads(json.dumps(about))  # tuples become lists, as in the file


def check_same_model(out: Path, about: dict) -> None:
    """Raise a ValueError if OUT/config.json is that of a model with other settings."""
    if not (out / "config.json").is_file():
        return
    different = differences(about, read_about(out), str(out))
    if different:
        raise ValueError(
            f"{out} holds a model with other settings, data, text encoder or seed: {different}; "
            "give the same ones, or another --out"
        )


def check_same_settings(out: Path, config: Config, data: str, seed: int) -> None:
    """The same without the text encoder, which need not be loaded for this."""
    if not (out / "config.json").is_file():
        return
    before = read_about(out)
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    check_same_model(out, before | {"config": settings, "data": data_place(data), "seed": seed})


def is_outdated(out: Path, about: dict) -> bool:
    """Whether there is a config.json in OUT, and `write_config` would change it."""
    path = out / "config.json"
    if not path.is_file():
        return False
    stored = json.loads(path.read_text())
    vocabulary = stored.pop("vocabulary", None)
    if stored != with_ways(out, about):
        return True
    # Older versions wrote no vocabulary. A directory that can only be read does without.
    return vocabulary is None and can_write(out)


def write_config(out: Path, about: dict) -> None:
    """Write OUT/config.json, with the vocabulary of the training captions."""
    rank, _ = collectives.rank_and_size()
    # Stages that train side by side write the same file, so wait for each other.
    with one_process_at_a_time(out, "config", wait=-1), collectives.fail_together():
        if rank == 0:
            contents = with_ways(out, about)
            vocabulary = training_vocabulary(out, about["data"])
            if vocabulary is not None:
                contents = contents | {"vocabulary": vocabulary}
            write_json(out / "config.json", contents)


def check_resumable(out: Path) -> None:
    """Raise a FileNotFoundError if OUT holds no model, so that --resume has nothing to go on with.

    A slip of the pen would otherwise train another model, perhaps for hours.
    """
    files, folders = out.glob("*.checkpoint.safetensors"), out.glob("*.checkpoint.step-*")
    has_checkpoint = any(files) or any(folders)
    if not (out / "config.json").is_file() and not has_checkpoint:
        raise FileNotFoundError(
            f"{out} holds no model to go on with (it has no config.json); "
            "give the directory that does, or leave --resume out to begin a new model"
        )


def check_nothing_exists(stage: str, out: Path) -> None:
    """Raise a FileExistsError if OUT holds the part of a stage, or a checkpoint of it."""
    for path in (part_path(out, stage), *checkpoints_at(checkpoint_path(out, stage))):
        if path.exists():
            raise FileExistsError(
                f"{path} exists already; add --resume to go on, or give another --out"
            )


def remove_checkpoints(checkpoint: Path) -> None:
    """Remove the checkpoints of a finished stage."""
    for path in checkpoints_at(checkpoint):
        remove_checkpoint(path)
