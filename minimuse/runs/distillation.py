"""Distil the base model of a finished model into one pass; `beyond/distill.py` has the algorithm.

    minimuse train distill --start toy-shapes --out runs/one-pass

OUT then holds a whole model: the student as its base model, and copies of the teacher's other
parts. OUT/start has the teacher's base model and its config.json. In OUT/config.json, stages.base
says how the student is trained, and `sampling` how it draws: in one step, without guidance.
"""

from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

from torch import nn

from minimuse.beyond.distill import distillation_loss
from minimuse.data import Tokens
from minimuse.decode import Sampling
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.config import Config, Stage, from_json, override
from minimuse.plumbing.files import write_json
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.parts import PARTS, load_part, read_about, save_part
from minimuse.plumbing.pieces import copy_part
from minimuse.plumbing.stopping import finish_first
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache
from minimuse.runs.directory import checkpoint_path, part_path, remove_checkpoints
from minimuse.runs.images import load_images
from minimuse.runs.rehearsal import explain_out_of_memory
from minimuse.runs.watch import Watcher
from minimuse.t5_frozen import FrozenT5
from minimuse.train import Record, training_loop

# How a student trains and draws, unless key=value says otherwise.
# discriminator_lr is the rate of the auxiliary model, which must keep up with the student.
STUDENT = Stage(
    steps=3000,
    batch=64,
    lr=1e-3,
    discriminator_lr=2e-3,
    weight_decay=0.0,
    betas=(0.0, 0.99),
    discriminator_betas=(0.0, 0.99),
)
SEEKING = 1.0  # see `matching_gradient`
ONE_PASS = Sampling(steps=1, guidance=0.0, temperature=0.5, random_codes=0.4)


def begin_distillation(out: Path, start: Path, assignments: list[str], seed: int | None) -> None:
    """Write a student to be trained into `out`: its settings, and the parts of its teacher.

    Raises a FileExistsError if there is a model already, and a ValueError if the teacher draws in
    one pass itself, or if the student is to have another size.
    """
    for path in (out / "config.json", part_path(out, "base")):
        if path.is_file():
            raise FileExistsError(f"{path} exists already; add --resume to go on, or another --out")
    about = read_about(start)
    teacher = from_json(about["config"])
    if teacher.sampling.random_codes > 0:
        raise ValueError(f"{start} draws in one pass already; give the model it was made from")
    config = replace(teacher, stages=replace(teacher.stages, base=STUDENT), sampling=ONE_PASS)
    config = override(config, assignments)
    for part in ("tokenizer", "tokenizer_hi", "base", "superres"):
        if getattr(config, part) != getattr(teacher, part):
            raise ValueError(f"a student has the {part} of its teacher; leave out {part}.key=value")
    if config.sampling.random_codes == 0:
        raise ValueError("sampling.random_codes is 0; one pass needs random codes, such as 0.4")
    for part in PARTS:
        home = out / "start" if part == "base" else out
        copy_part(start / f"{part}.safetensors", home / f"{part}.safetensors")
    write_json(out / "start" / "config.json", about)
    changed = {"config": asdict(config), "seed": about["seed"] if seed is None else seed}
    write_json(out / "config.json", about | changed)


@in_usual_state
def distill(out: Path, device: str = "cpu") -> Iterator[Record]:
    """Train the student in `out`, from its checkpoint if there is one; yields a record per step."""
    about = read_about(out)
    config = from_json(about["config"])
    teacher_config = from_json(read_about(out / "start")["config"])
    text = load_t5(about["text"]["name"], device)
    with one_process_at_a_time(out, "base"):
        if part_path(out, "base").is_file():
            return
        teacher = load_part(out / "start", "base", config, text.width).to(device)
        model = nn.ModuleDict({"student": deepcopy(teacher), "auxiliary": deepcopy(teacher)})
        teacher.requires_grad_(False)
        tokens = caption_tokens(out, config, about, text, device)
        loss_of = distillation_loss(
            model,
            teacher,
            tokens,
            teacher_config.sampling.guidance,
            config.sampling.random_codes,
            SEEKING,
            config.stages.base.steps,
            device,
        )
        checkpoint = checkpoint_path(out, "base")
        key = about | {"stage": "distill", "pictures": len(tokens)}
        settings, seed = config.stages.base, about["seed"]
        arguments = ("distill", model, loss_of, settings, len(tokens), seed, checkpoint, key)
        watcher = Watcher(out, "base", images=None, heldout=None)
        with explain_out_of_memory("base", config), finish_first(), closing(watcher):
            yield from training_loop(*arguments, watch=watcher)
            save_part(out, "base", model["student"])
            remove_checkpoints(checkpoint)


def caption_tokens(out: Path, config: Config, about: dict, text: FrozenT5, device: str) -> Tokens:
    """The captions of the training images, as `data.Tokens`."""
    tokenizer = load_part(out, "tokenizer", config, text.width).eval().to(device)
    images = load_images(config, about["data"], out=out)
    return cache.tokens_of({"tokenizer": tokenizer}, text, images, device)
