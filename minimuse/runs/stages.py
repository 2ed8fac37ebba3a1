"""The stages of a training, and what each of them needs.

    minimuse train all --preset toy --data emoji --out runs/emoji
    minimuse train base --preset toy --data emoji --out runs/emoji --resume    # one stage

    tokenizer, tokenizer_hi   the low-res and the high-res VQGAN
    base, superres            masked transformers over the tokens of the VQGANs
    decoder                   a larger decoder for the high-res VQGAN, whose encoder is frozen

A stage trains one part of the model and writes it to OUT/NAME.safetensors. The loop that trains is
in `train.py`, the losses are in `losses.py`; here is what comes before and after.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch
from torch import nn

from minimuse.data import Images, Tokens
from minimuse.datasets.stream import Stream
from minimuse.grow import grow
from minimuse.losses import LossOf, decoder_loss, token_loss, tokenizer_loss
from minimuse.plumbing.arguments import chosen_device
from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.config import Config, from_json, override
from minimuse.plumbing.device import generator_at
from minimuse.plumbing.files import check_writable
from minimuse.plumbing.lite0 import perceptual_network
from minimuse.plumbing.lock import one_process_at_a_time
from minimuse.plumbing.parts import (
    PARTS,
    TOKEN_PARTS,
    build,
    load_part,
    read_about,
    save_part,
)
from minimuse.plumbing.places import DATA_NAMES, data_place
from minimuse.plumbing.ranges import check_arguments
from minimuse.plumbing.stopping import finish_first
from minimuse.plumbing.t5_files import load_t5
from minimuse.runs import cache, parallel
from minimuse.runs.arguments import check_training
from minimuse.runs.directory import (
    check_nothing_exists,
    check_same_model,
    check_same_settings,
    checkpoint_path,
    describe_model,
    is_outdated,
    log_path,
    part_path,
    remove_checkpoints,
    sheet_path,
    write_config,
)
from minimuse.runs.images import has_images, load_both
from minimuse.runs.read_ahead import reading_ahead
from minimuse.runs.rehearsal import explain_out_of_memory
from minimuse.runs.watch import watcher_of
from minimuse.t5_frozen import FrozenT5
from minimuse.train import Record, training_loop
from minimuse.vq_loss import ImageLoss

STAGES = PARTS  # each part has a stage of the same name, in this order
TOKEN_STAGES = TOKEN_PARTS
RESOLUTION = {"base": "low", "superres": "high"}

# The parts that a stage needs, finished.
NEEDS = {
    "tokenizer": (),
    "tokenizer_hi": (),
    "base": ("tokenizer",),
    "superres": ("tokenizer", "tokenizer_hi"),
    "decoder": ("tokenizer_hi",),
}

# So many embeddings of words show how all of them are spread. Copies of all may not fit in memory.
WORDS_FOR_START = 2**17


@in_usual_state
def train_all(
    stages: tuple[str, ...],
    out: str | Path,
    config: Config,
    data: str,
    text: FrozenT5,
    text_name: str,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
) -> Iterator[Record]:
    """Train those of the stages that OUT does not hold yet, in order; yields a record per step.

    Without `resume`, a part or a checkpoint of one of the stages in OUT is an error.
    """
    check_training(stages, out, config, data, text, text_name)
    check_arguments(seed=seed, resume=resume)
    device = chosen_device(device)
    out, seed = Path(out), int(seed)
    about = describe_model(config, data, text, text_name, seed)
    check_same_model(out, about)
    todo = pending(stages, out, resume)
    images, heldout = images_for(todo, out, config, about["data"])
    # The folder may have moved, or settings may be new that decide on no weights.
    if is_outdated(out, about) and has_images(about["data"]):
        write_config(out, about)
    for stage in stages:
        # Also for a finished stage: this removes what a killed run has left.
        with one_process_at_a_time(out, stage):
            if not resume:
                check_nothing_exists(stage, out)  # another process may have written since
            if not part_path(out, stage).is_file():
                yield from train_stage(stage, out, about, images, text, device, heldout)


def prepare(
    stages: tuple[str, ...], out: Path, config: Config, data: str, seed: int, resume: bool
) -> list[str]:
    """Refuse what `train_all` would refuse, and decode the images of a folder into OUT.

    Returns the stages that OUT does not hold yet. This takes long, and Ctrl-C ends it at once, as
    long as nothing is trained.
    """
    check_same_settings(out, config, data, seed)
    todo = pending(stages, out, resume)
    if data not in DATA_NAMES:
        images_for(todo, out, config, data_place(data))
    return todo


def images_for(
    todo: list[str], out: Path, config: Config, data: str
) -> tuple[Images | Stream | None, Images | None]:
    """The images that stages train on, and held-out ones to look at meanwhile.

    The first are None if there is a cache and the stages need no images; a folder is then still
    compared with the one that the model was begun with. The others are None if the folder is gone,
    or if data that ship have nothing to train.
    """
    cached = cache.index_path(out).is_file()
    needed = any(stage not in TOKEN_STAGES or not cached for stage in todo)
    is_folder = data not in DATA_NAMES
    if needed or (is_folder and has_images(data)) or (todo and not is_folder):
        return load_both(config, data, out, train=needed)
    return None, None


@in_usual_state
def train_stage(
    name: str,
    out: Path,
    about: dict,
    images: Images | Stream | None,
    text: FrozenT5,
    device: str = "cpu",
    heldout: Images | None = None,
) -> Iterator[Record]:
    """Train one stage and write OUT/NAME.safetensors; yields a record per step.

    Reads the parts that the stage needs from OUT, and resumes from a checkpoint in OUT.
    about: the contents of config.json (see `describe_model`).
    images: base and super-resolution do not need them if there is a cache.
    heldout: images to look at during training; without them there is only the log of the losses.
    """
    device = chosen_device(device)
    config, seed = from_json(about["config"]), about["seed"]
    settings = getattr(config.stages, name)
    write_config(out, about)
    frozen = load_frozen_parts(name, out, config, text, device)
    order = None
    with initial_random_numbers(seed, name):
        part, is_new = build_or_load(name, out, config, text, device)
        if name in TOKEN_STAGES:
            tokens = open_tokens(out, about, frozen, text, images, device)
            if is_new:
                start_from_known_vectors(part, frozen, tokens, device)
            parallel.fit(part, config.scale.compile, config.scale.recompute, device)
            model, size = part, len(tokens)
            loss_of = token_loss(model, tokens, config, RESOLUTION[name], device)
        else:
            if is_new and name == "decoder":
                grow(frozen["tokenizer_hi"].decoder, part, generator_at(seed, name, "grow"))
            features = perceptual_network(config.loss.perceptual)
            image_loss = ImageLoss(config.loss, features).to(device)
            model = nn.ModuleDict({"part": part, "loss": image_loss})
            parallel.replicate(model)
            size = len(images)
            loss_of = choose_image_loss(name, model, frozen, images, config, device)
            loss_of, order = reading_ahead(loss_of, images, settings, name, seed)
    checkpoint = checkpoint_path(out, name)
    key = about | {"stage": name, "pictures": size}
    arguments = (name, model, loss_of, settings, size, seed, checkpoint, key)
    watcher = watcher_of(name, out, part, frozen, text, heldout, config, device)
    with explain_out_of_memory(name, config), finish_first(), closing(watcher):
        yield from training_loop(*arguments, watch=watcher, order=order)
        save_part(out, name, part)
        remove_checkpoints(checkpoint)


def load_frozen_parts(
    name: str, out: Path, config: Config, text: FrozenT5, device: str
) -> dict[str, nn.Module]:
    """The parts that a stage needs, from OUT; they are not trained."""
    parts = {}
    for part in NEEDS[name]:
        model = load_part(out, part, config, text.width)
        parts[part] = model.eval().requires_grad_(False).to(device)
    return parts


@contextmanager
def initial_random_numbers(seed: int, name: str) -> Iterator[None]:
    """Inside, new weights depend on (seed, stage) alone: they use PyTorch's global generator."""
    with torch.random.fork_rng(devices=[]):
        # Weights are drawn on the CPU. torch.manual_seed would seed the caller's GPUs, too.
        torch.default_generator.manual_seed(generator_at(seed, name, "weights").initial_seed())
        yield


def build_or_load(
    name: str, out: Path, config: Config, text: FrozenT5, device: str
) -> tuple[nn.Module, bool]:
    """The part to train, and whether it is new.

    OUT/start holds the parts of another model, if this training continues from one.
    """
    start = out / "start"
    is_new = not part_path(start, name).is_file()
    if is_new:
        part = build(name, config, text.width)
    else:
        part = load_part(start, name, config, text.width)
    return part.to(device), is_new


def open_tokens(
    out: Path,
    about: dict,
    tokenizers: dict[str, nn.Module],
    text: FrozenT5,
    images: Images | Stream | None,
    device: str,
) -> Tokens:
    """The training data of base and super-resolution: from OUT/cache, or computed in memory."""
    if cache.index_path(out).is_file():
        return cache.read_cache(out, cache.cache_key(out, about))
    if cache.plan_path(out).is_file():
        folder = cache.index_path(out).parent
        raise ValueError(f"{folder} is unfinished; run minimuse cache again, or remove it")
    return cache.tokens_of(tokenizers, text, images, device)


def start_from_known_vectors(
    model: nn.Module, tokenizers: dict[str, nn.Module], tokens: Tokens, device: str
) -> None:
    """Start a transformer's embeddings from the captions' words and from the tokenizers' codes."""
    texts = [shard["text"] for shard in tokens.shards]
    words = []
    for text in texts:
        every = 1 + len(text) * len(texts) // WORDS_FOR_START
        words.append(text[::every])
    codebooks = []
    for tokenizer in tokenizers.values():
        codes = torch.arange(tokenizer.config.codes, device=device)
        codebooks.append(tokenizer.quantizer.lookup(codes))  # K C
    model.start(torch.cat(words).float().to(device), *codebooks)


def choose_image_loss(
    name: str,
    model: nn.ModuleDict,
    frozen: dict[str, nn.Module],
    images: Images | Stream,
    config: Config,
    device: str,
) -> LossOf:
    """The loss of a stage that trains on images: one of the tokenizers, or the decoder."""
    settings = getattr(config.stages, name)
    if name == "decoder":
        return decoder_loss(model, frozen["tokenizer_hi"], images, config, settings, device)
    low = name == "tokenizer"
    return tokenizer_loss(model, images, config, settings, low, device)


def pending(stages: tuple[str, ...], out: Path, resume: bool) -> list[str]:
    """The stages that OUT does not hold yet; an error if one of them cannot be trained."""
    todo = [stage for stage in stages if not (resume and part_path(out, stage).is_file())]
    for stage in todo:
        if not resume:
            check_nothing_exists(stage, out)
        for part in NEEDS[stage]:
            if part not in todo and not part_path(out, part).is_file():
                raise FileNotFoundError(
                    f"{stage} needs {part_path(out, part)}; train it first: the same command "
                    f"with {part.replace('_', '-')} in place of {stage.replace('_', '-')}"
                )
    # A stage may take hours before it writes its part.
    paths = [log_path(out)] if todo else []
    for stage in todo:
        paths += [part_path(out, stage), checkpoint_path(out, stage), sheet_path(out, stage, 0)]
    check_writable(*paths)
    return todo


@in_usual_state
def fill_cache(
    out: Path,
    device: str,
    data: str | None = None,
    text_name: str | None = None,
    settings: Sequence[str] = (),
) -> Iterator[Record]:
    """Write OUT/cache, the training data of base and super-resolution; a record for each round.

    Meanwhile no other process may train these two: they read the cache while they train. Several
    processes write a shard each in a round. Collective: every rank must call this.
    data, text_name: where the folder of images and the text encoder are now, if they have moved.
    settings: such as skip_unreadable=True; those that decide on weights are an error.
    """
    device = chosen_device(device)
    about = read_about(out)
    config = override(from_json(about["config"]), list(settings))
    data = about["data"] if data is None else data
    text_name = about["text"]["name"] if text_name is None else text_name
    check_writable(cache.index_path(out))
    check_same_settings(out, config, data, about["seed"])
    text = load_t5(text_name, device)
    # The text encoder of this name may not be the one that the model was begun with.
    about = describe_model(config, data, text, text_name, about["seed"])
    check_same_model(out, about)
    tokenizers = {}
    for name in ("tokenizer", "tokenizer_hi"):
        tokenizers[name] = load_part(out, name, config, text.width).eval().to(device)
    with ExitStack() as locks:
        for what in ("cache", *TOKEN_STAGES):
            locks.enter_context(one_process_at_a_time(out, what))
        images, heldout = load_both(config, about["data"], out)
        write_config(out, about)
        arguments = (out, cache.cache_key(out, about), tokenizers, text, images, device)
        for done, shards in cache.write_cache(*arguments, cache.IMAGES_PER_SHARD, heldout):
            yield Record("cache", done, shards, {})
