import shutil
from collections import deque
from functools import partial

import torch

from minimuse.cli.progress import show_progress
from minimuse.plumbing import collectives
from minimuse.plumbing import config as configs
from minimuse.plumbing.parts import build, find_model, read_about
from minimuse.plumbing.stopping import finish_step_on_signal
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import parallel
from minimuse.runs.stages import STAGES, train_all
from minimuse.runs.workers import side_by_side


def run_train(args) -> tuple | None:
    held = (args.out / "config.json").is_file()
    home = args.out if held else args.start and find_model(args.start)
    there = read_about(home) if home else {"data": "emoji", "seed": 0, "text": {"name": "t5-toy"}}
    config = (
        configs.from_json(there["config"])
        if home and not args.preset
        else configs.PRESETS[args.preset or "toy"]
    )
    config = configs.override(config, args.settings)
    if args.settings:  # what does not go together is told now, not when its stage begins; text of any width will do
        with torch.device("meta"):
            [build(part, config, 64) for part in STAGES]
    seed = args.seed if args.seed is not None else there["seed"]
    data, name = args.data or there["data"], args.t5 or there["text"]["name"]
    stages = STAGES if args.stage == "all" else (args.stage.replace("-", "_"),)
    device = parallel.begin(args.device)
    learnt = {*stages} - {*STAGES[:2]}
    if (
        args.start
        and not args.resume
        and (held or any((args.out / f"{part}.safetensors").is_file() for part in learnt))
    ):
        raise FileExistsError(
            f"{args.out} holds a model or parts of one; add --resume to go on with it, or start from {args.start} in another --out"
        )
    if args.start and not held:
        has = [part for part in STAGES if (home / f"{part}.safetensors").is_file()]
        if collectives.rank_and_size()[1] > 1 or not learnt:
            raise ValueError(
                "--start keeps the tokenizers and trains the rest further; begin in one process, with base, superres, decoder or all"
            )
        if lacking := {*stages, *STAGES[:2]} - {*has}:
            raise FileNotFoundError(
                f"{home} has no {' and no '.join(sorted(lacking))}, to start from"
            )
        (args.out / "start").mkdir(parents=True, exist_ok=True)
        for part in has:
            for folder in [args.out / "start"] + [args.out] * (
                part not in learnt
            ):  # `train` looks in start
                shutil.copy(home / f"{part}.safetensors", folder)
        args.resume = True
    if args.stage == "all" and device == "cpu" and collectives.rank_and_size()[1] == 1:
        return side_by_side(args.out, config, data, name, seed, args.resume, show_progress)
    text = load_t5(
        name, "cpu" if (args.out / "cache" / "index.json").is_file() else device
    )  # if it is done, no GPU needs to hold it
    consume = show_progress if collectives.rank_and_size()[0] == 0 else partial(deque, maxlen=0)
    with finish_step_on_signal():
        consume(train_all(stages, args.out, config, data, text, name, seed, device, args.resume))
    parallel.end()
