"""`minimuse train` and `minimuse cache`: which model to train, from which weights, in which way.

    minimuse train all --preset toy --data emoji --out runs/emoji
    minimuse train base --data my-images --start toy --out runs/mine     # keep the toy's tokenizers
    minimuse train distill --start toy-shapes --out runs/one-pass        # draws in one pass
    minimuse cache --out runs/emoji

What is not said on the command line is taken from the model in --out, else from the one in --start,
else from the preset `toy`. `minimuse.train` has the training loop.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minimuse.cli.progress import show_progress
from minimuse.plumbing import collectives, stopping
from minimuse.plumbing import config as configs
from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.messages import warn
from minimuse.plumbing.parts import find_model, read_about
from minimuse.plumbing.pieces import copy_part
from minimuse.plumbing.places import DATA_NAMES, check_apart, data_place, text_place
from minimuse.plumbing.status import status
from minimuse.plumbing.t5_files import LazyT5
from minimuse.runs import parallel
from minimuse.runs.cache import plan_path
from minimuse.runs.directory import check_resumable
from minimuse.runs.distillation import begin_distillation, distill
from minimuse.runs.rehearsal import check_trainable
from minimuse.runs.stages import STAGES, fill_cache, prepare, train_all
from minimuse.runs.training_words import keep_start_vocabulary
from minimuse.runs.workers import TrainingJob, side_by_side
from minimuse.train import Record

# --start keeps these parts and trains the others further.
TOKENIZERS = ("tokenizer", "tokenizer_hi")
DEFAULTS = {"data": "emoji", "seed": 0, "text": {"name": "t5-toy"}}
DEFAULT_PRESET = "toy"


def run_train(args: argparse.Namespace) -> None:
    """`minimuse train`: train one stage or all, on one device or in several processes."""
    if args.stage == "distill":
        run_distill(args)
        return
    if args.resume:
        check_resumable(args.out)
    about = about_model(args)
    config = training_config(args, about)
    data, text_name, seed = chosen_inputs(args, about)
    if not args.resume:
        check_apart(args.out, data)
    stages = selected_stages(args.stage)
    device = parallel.begin(args.device)
    with status("checking that the model fits into memory"):
        check_trainable(config, stages, data, device)
    resume = copied_start(args, stages) or args.resume
    todo = prepare(stages, args.out, config, data, seed, resume)
    rank, processes = collectives.rank_and_size()
    if not todo and rank == 0:
        print(f"{args.out} holds {', '.join(stages)} already: nothing is left to train")
    if todo and args.stage == "all" and device == "cpu" and processes == 1:
        side_by_side(TrainingJob(args.out, config, data, text_name, seed, resume, show_progress))
    else:  # with nothing to train, this notes changed settings
        text = LazyT5(text_name, device)
        run_steps(train_all(stages, args.out, config, data, text, text_name, seed, device, resume))
    parallel.end()


def run_distill(args: argparse.Namespace) -> None:
    """`minimuse train distill`: a student that draws in one pass what --start draws in many."""
    for name in ("preset", "data", "t5"):
        if getattr(args, name) is not None:
            raise ValueError(f"distill takes what --{name} says from its teacher; leave it out")
    if args.resume:
        if args.settings or args.seed is not None or args.start is not None:
            raise ValueError("distill goes on as it began; leave out --start, --seed and key=value")
        check_resumable(args.out)
    elif args.start is None:
        raise ValueError("distill needs a teacher: a model that draws in many steps, as --start")
    else:
        begin_distillation(args.out, find_model(args.start), args.settings, args.seed)
    show_progress(distill(args.out, chosen_device(args.device)))


def chosen_inputs(args: argparse.Namespace, about: dict[str, Any]) -> tuple[str, str, int]:
    """Data, text encoder and seed: what the flags say, and else what config.json does."""
    data = about["data"] if args.data is None else chosen_data(args.data)
    text_name = about["text"]["name"] if args.t5 is None else text_place(args.t5)
    seed = about["seed"] if args.seed is None else args.seed
    return data, text_name, seed


def copied_start(args: argparse.Namespace, stages: tuple[str, ...]) -> bool:
    """Copy the parts of --start into --out, if it is given and they are not there already."""
    if args.start is None:
        return False
    refuse_to_overwrite(args, stages)
    if holds_model(args.out):
        return False
    copy_start(find_model(args.start), args.out, stages)
    return True


def run_cache(args: argparse.Namespace) -> None:
    """`minimuse cache`: compute token ids and text embeddings once, and store them in --out."""
    stopping.state.resumable = str(plan_path(args.out))
    stopping.state.remedy = "the same command goes on"
    data = None if args.data is None else chosen_data(args.data)
    device = parallel.begin(args.device)
    run_steps(fill_cache(args.out, device, data, args.t5, args.settings))
    parallel.end()


def chosen_data(name: str) -> str:
    """What --data says: "emoji", "shapes", or the absolute path of a folder."""
    place = data_place(name)
    if place in DATA_NAMES and Path(place).is_dir():
        warn(f"--data {name} is what ships with minimuse; the folder here is --data ./{name}")
    return place


def run_steps(records: Iterable[Record]) -> None:
    """Train, which each record is one step of; the first of several processes shows progress."""
    rank, _ = collectives.rank_and_size()
    if rank == 0:
        show_progress(records)
        return
    for _ in records:
        pass


def holds_model(out: Path) -> bool:
    return (out / "config.json").is_file()


def has_part(directory: Path, part: str) -> bool:
    return (directory / f"{part}.safetensors").is_file()


def about_model(args: argparse.Namespace) -> dict[str, Any]:
    """What config.json says in --out, else in --start; else the defaults, without "config"."""
    if holds_model(args.out):
        return read_about(args.out)
    if args.start is not None:
        return read_about(find_model(args.start))
    return DEFAULTS


def training_config(args: argparse.Namespace, about: dict[str, Any]) -> configs.Config:
    """The settings of --preset, else of the model, with each key=value of the command line."""
    if args.preset or "config" not in about:
        config = configs.PRESETS[args.preset or DEFAULT_PRESET]
    else:
        config = configs.from_json(about["config"])
    return configs.override(config, args.settings)


def selected_stages(name: str) -> tuple[str, ...]:
    """The stages of the command line's argument, such as "tokenizer-hi" or "all"."""
    if name == "all":
        return STAGES
    return (name.replace("-", "_"),)


def further_trained(stages: tuple[str, ...]) -> tuple[str, ...]:
    """The stages that --start trains further: all but the tokenizers'."""
    return tuple(stage for stage in stages if stage not in TOKENIZERS)


def refuse_to_overwrite(args: argparse.Namespace, stages: tuple[str, ...]) -> None:
    """Raise a FileExistsError if --start would begin where there is a model or a part already."""
    if args.resume:
        return
    if holds_model(args.out) or any(has_part(args.out, part) for part in further_trained(stages)):
        raise FileExistsError(
            f"{args.out} holds a model or parts of one; add --resume to go on with it, "
            f"or start from {args.start} in another --out"
        )


def copy_start(start: Path, out: Path, stages: tuple[str, ...]) -> None:
    """Copy the parts of another model into `out`.

    All of them go to out/start, from which their stages begin. Those that are not trained go to
    `out` itself, too, as if they had been trained there.
    """
    trained = further_trained(stages)
    _, processes = collectives.rank_and_size()
    if processes > 1 or not trained:
        raise ValueError(
            "--start keeps the tokenizers and trains the rest further; "
            "begin in one process, with base, superres, decoder or all"
        )
    if "rest" in read_about(start):
        raise ValueError(
            f"{start} has no parts but a base model that draws in one pass; "
            "start from the model that it was made from"
        )
    parts = [part for part in STAGES if has_part(start, part)]
    missing = sorted({*stages, *TOKENIZERS} - {*parts})
    if missing:
        raise FileNotFoundError(f"{start} has no {' and no '.join(missing)}, to start from")
    for part in parts:
        name = f"{part}.safetensors"
        copy_part(start / name, out / "start" / name)
        if part not in trained:
            copy_part(start / name, out / name)
    keep_start_vocabulary(start, out)
