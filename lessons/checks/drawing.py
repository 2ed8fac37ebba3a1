"""`minimuse check 06 --draw`: draw with the shipped model and the student's functions.

The package looks up each function by its name in a module. A *seam* is one such name. While a row
of the picture is drawn, the student's function stands there, in the signature of the package's:

    with replaced(SEAMS["07"]["guide"], my_guide):
        muse.generate("a large red circle on a white background")

The first row is the package's. Each of the following has one function of the student in its place,
whether it holds or not: what a wrong function does to images is worth seeing.
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from minimuse.checks.check import Result
from minimuse.checks.lesson06 import steps_with_a_pass
from PIL import Image, ImageDraw, ImageFont

from minimuse import decode, edit, guidance, muse, schedule, superres, transformer, vq
from minimuse.cli.draw import check_folder, check_suffix
from minimuse.data import from_pil, to_pil
from minimuse.muse import Muse
from minimuse.plumbing.device import autocast
from minimuse.plumbing.files import check_writable, save_image
from minimuse.runs.sheet import FONT_SIZE, GAP, LINE_HEIGHT, TEXT_COLOUR, WHITE

MODEL = "toy-shapes"
SEED = 7
CAPTIONS = [
    "a large red circle on a white background",
    "a small blue square above a large yellow circle on a white background",
    "two large green triangles on a black background",
    "a large red ring left of a small blue circle on a white background",
]
# How much images are enlarged.
SCALE = 2
# An image has far fewer windows to fill than this; a wrong `next_window` may never end.
MAX_WINDOWS = 50


class Seam(NamedTuple):
    """One name of the package, in whose place a student's function can be put."""

    owner: Any  # a module or a class
    name: str
    # The student's function -> the same with the signature of the package's.
    adapt: Callable[[Callable], Callable] = lambda function: function


@contextlib.contextmanager
def replaced(seam: Seam, function: Callable) -> Iterator[None]:
    """Put a student's function in the place of the package's, and afterwards put that back.

    While the student's function runs, the package's is in its place: the student may call it.
    """
    original = getattr(seam.owner, seam.name)
    adapted = seam.adapt(function)

    def replacement(*args, **kwargs):
        setattr(seam.owner, seam.name, original)
        try:
            return adapted(*args, **kwargs)
        finally:
            setattr(seam.owner, seam.name, replacement)

    setattr(seam.owner, seam.name, replacement)
    try:
        yield
    finally:
        setattr(seam.owner, seam.name, original)


# --- Students' functions with the signatures of the package ---
def as_nearest(function):
    return lambda self, z: function(z, self.codebook)


def as_gamma(function):
    return lambda u, law="cosine": function(u)


def as_masked_after(function):
    return lambda masked, steps, law="cosine": function(masked, steps)


def as_positions(function):
    """A grid_positions as `GridPositions.forward`."""
    return lambda self, grids=1: function(self.rows.repeat(grids, 1), self.columns.repeat(grids, 1))


def as_block(function):
    """A block as `Block.forward`, in the base model.

    Super-resolution has multi-axis attention, which is of lesson 08. There the package's stays.
    """
    package = transformer.Block.forward

    def forward(self, x, k=None, v=None, visible=None, where=None):
        if self.self_attention.window or not self.cross:
            return package(self, x, k, v, visible, where)
        # The model has computed the keys and values of the words before. They are the text here,
        # and the matrices `cross_k` and `cross_v` pick them out.
        text = rearrange([k, v], "two B H T d -> B T (two H d)")
        out = function(x, text, visible, weights_of(self), self.cross_attention.heads)
        return out if where is None else transformer.rows_where(out, where)

    return forward


def weights_of(block: transformer.Block) -> dict[str, torch.Tensor]:
    """A block's weights, as the exercise names them; the text is keys and values (B, T, 2D)."""
    self_attention, cross_attention = block.self_attention, block.cross_attention
    self_q, self_k, self_v = self_attention.qkv.weight.T.chunk(3, dim=1)  # D D
    D = len(self_q)
    cross_k, cross_v = torch.eye(2 * D, device=self_q.device).chunk(2, dim=1)  # 2D D
    return {
        "norm_self": block.norm_self.weight,
        "self_q": self_q,
        "self_k": self_k,
        "self_v": self_v,
        "self_out": self_attention.out.weight.T,
        "bias": self_attention.biases[0](),
        "norm_cross": block.norm_cross.weight,
        "cross_q": cross_attention.q.weight.T,
        "cross_k": cross_k,
        "cross_v": cross_v,
        "cross_out": cross_attention.out.weight.T,
        "norm_mlp": block.norm_mlp.weight,
        "mlp_up": block.mlp[0].weight.T,
        "mlp_down": block.mlp[2].weight.T,
    }


def as_draw(function):
    """A tempered_draw takes rows (N, K), and has no top-k."""

    def draw(logits, noise, temperature, top_k=0):
        K = logits.shape[-1]
        ids = function(logits.reshape(-1, K), noise.reshape(-1, K), temperature)
        return ids.view(logits.shape[:-1])

    return draw


def as_hidden_again(function):
    """The package's step, in which the student's function says which tokens are hidden again."""
    package = decode.step

    def step(logits, ids, hidden, left, token_noise, choice_noise, sampling):
        result = package(logits, ids, hidden, left, token_noise, choice_noise, sampling)
        scores = result.confidence + choice_noise
        return result._replace(hidden=function(scores, hidden, left))

    return step


def as_step(function):
    return lambda *state_and_noise: function(*state_and_noise[:-1], state_and_noise[-1].temperature)


def as_decode(function):
    """A decode without guidance gets a model that mixes the logits itself."""

    def loop(model, ids, mask_id, context, uncond, sampling, generators, weights=(1.0,), run=None):
        conditions = guidance.conditions_of(context, uncond, weights, ids)
        steps = iter(steps_with_a_pass(ids == mask_id, sampling.steps))

        def guided_model(inputs, context, where=None):
            k = next(steps, sampling.steps - 1)
            t = schedule.guidance_at(
                k, sampling.steps, sampling.guidance, sampling.ramp, sampling.guided
            )
            hidden = inputs == mask_id
            with torch.no_grad(), autocast(ids.device):
                logits = guidance.guided_logits(model, inputs, hidden, conditions.at(t), t)
            return logits if where is None else logits[where]

        yield from function(guided_model, ids, mask_id, context, sampling, generators)

    return loop


def as_guidance_at(function):
    return lambda k, steps, guidance, ramp=True, guided=(0.0, 1.0): function(k, steps, guidance)


def as_spread(function):
    """The package knows the low-res grid by the number of tokens."""

    def spread(vectors, scale):
        low_grid = math.isqrt(vectors.shape[1])
        return function(vectors, low_grid, low_grid * scale)

    return spread


def as_next_window(function):
    """It looks at low-res tokens only. It is stopped if it finds more windows than there can be."""
    calls = []

    def next_window(low_hidden, high_hidden, grid):
        calls.append(grid)
        if len(calls) > MAX_WINDOWS:
            raise RuntimeError(f"still windows to fill after {MAX_WINDOWS}")
        return function(low_hidden, grid)

    return next_window


SEAMS: dict[str, dict[str, Seam]] = {
    "01": {"nearest": Seam(vq.EMAQuantizer, "nearest", as_nearest)},
    "04": {
        "cosine_gamma": Seam(schedule, "gamma", as_gamma),
        "masked_after": Seam(schedule, "masked_after", as_masked_after),
    },
    "05": {
        "grid_positions": Seam(transformer.GridPositions, "forward", as_positions),
        "attend": Seam(transformer, "attend"),
        "block": Seam(transformer.Block, "forward", as_block),
    },
    "06": {
        "noise_at": Seam(schedule, "noise_at"),
        "gumbel": Seam(decode, "gumbel"),
        "tempered_draw": Seam(decode, "draw", as_draw),
        "hidden_again": Seam(decode, "step", as_hidden_again),
        "step": Seam(decode, "step", as_step),
        "decode": Seam(muse, "decode", as_decode),
    },
    "07": {
        "guide": Seam(guidance, "guide"),
        "guidance_at": Seam(schedule, "guidance_at", as_guidance_at),
        "compose": Seam(guidance, "compose"),
    },
    "08": {"spread": Seam(superres, "spread_over_squares", as_spread)},
    "10": {
        "pad_to_tokens": Seam(edit, "pad_to_tokens"),
        "hidden_tokens": Seam(edit, "hidden_tokens"),
        "next_window": Seam(edit, "next_window", as_next_window),
        "feather": Seam(edit, "feather"),
        "resample": Seam(edit, "resample"),
        "changed_below": Seam(edit, "changed_below"),
    },
}


# --- One row of the picture ---
def draw_captions(model: Muse) -> list[Image.Image]:
    _, images = model.draw(CAPTIONS, seed=SEED)
    return to_pil(images)


def draw_strongly_guided(model: Muse) -> list[Image.Image]:
    """With more guidance than the model's own, and a prompt composed of two."""
    sampling, sampling_hi = model.sampling(guidance=3.0)
    _, images = model.draw(CAPTIONS[:3], seed=SEED, sampling=sampling, sampling_hi=sampling_hi)
    both = f"{CAPTIONS[0]} AND {CAPTIONS[2]}"
    _, composed = model.draw([both], seed=SEED, sampling=sampling, sampling_hi=sampling_hi)
    return to_pil(torch.cat([images, composed]))


def reconstruct(model: Muse) -> list[Image.Image]:
    """What is left of images that become tokens of the nearest codes, and images again."""
    pixels = torch.stack([from_pil(image) for image in drawn_by_package(model)])
    ids = model.tokenizer_hi.encode(pixels)
    return to_pil(model.pixels(ids, "high"))


def draw_edits(model: Muse) -> list[Image.Image]:
    """An image, its right half drawn anew, a stripe of it, and the image edited without a mask."""
    image = drawn_by_package(model)[1]
    prompt = CAPTIONS[3]
    right_half = Image.new("L", image.size)
    right_half.paste(255, (image.width // 2, 0, *image.size))
    stripe = Image.new("L", image.size)
    stripe.paste(255, (0, 20, image.width, 30))
    settings = {"seed": SEED, "keep_pixels": True}
    inpainted = edit.inpaint(model, image, right_half, prompt, **settings)
    striped = edit.inpaint(model, image, stripe, prompt, **settings)
    edited = edit.edit(model, image, prompt, iterations=8, seed=SEED)
    return [image, *inpainted, *striped, *edited]


def drawn_by_package(model: Muse) -> list[Image.Image]:
    """Images to start from. No seam of lessons 01 and 10 has a part in drawing them."""
    return draw_captions(model)


PICTURES: dict[str, Callable[[Muse], list[Image.Image]]] = {
    "01": reconstruct,
    "04": draw_captions,
    "05": draw_captions,
    "06": draw_captions,
    "07": draw_strongly_guided,
    "08": draw_captions,
    "10": draw_edits,
}


# --- The picture ---
def check_drawable(number: str | None, path: Path) -> None:
    """Raise an error if the lesson has nothing to draw, or the file cannot be written."""
    drawable = ", ".join(SEAMS)
    if number is None:
        raise ValueError(f"--draw needs a lesson: minimuse check 06 --draw; choose of {drawable}")
    if number not in SEAMS:
        raise ValueError(f"lesson {number} has nothing to draw; choose one of {drawable}")
    check_suffix(path)
    check_folder(path)
    check_writable(path)


def draw_lesson(number: str, results: list[Result], path: Path) -> None:
    """Draw a row with the package, and one with each function that is written."""
    model = Muse.load(MODEL)
    # A student's step gives codes and no probabilities, so the package has only those, too.
    plain = replace(model.config.sampling_hi, mean_vectors=False)
    model.config = replace(model.config, sampling_hi=plain)
    picture = PICTURES[number]
    ours = picture(model)
    rows = [("minimuse", ours)]
    for result in results:
        name = result.exercise.name
        if name not in SEAMS[number] or not result.is_written:
            continue
        title = f"with your {name}"
        if result.failure is not None:
            title += ", WHICH FAILS ITS CHECK"
        try:
            with replaced(SEAMS[number][name], result.function):
                images = draw_quietly(picture, model)
        except Exception as error:
            # Whatever it raises: other functions may still draw.
            print(f"  {name:28} draws nothing: {type(error).__name__}: {error}")
            continue
        title += f": {difference_of(images, ours)}"
        rows.append((title, images))
        print(f"  {title}")
    save_image(page(rows), path)
    print(f"drawn with {MODEL}: {path}, the first row by minimuse, {len(rows) - 1} with yours")


def draw_quietly(picture: Callable[[Muse], list[Image.Image]], model: Muse) -> list[Image.Image]:
    """Draw, and drop what the student's function prints in every step."""
    with contextlib.redirect_stdout(io.StringIO()):
        return picture(model)


def difference_of(images: list[Image.Image], ours: list[Image.Image]) -> str:
    same = [a.tobytes() == b.tobytes() for a, b in zip(images, ours, strict=True)]
    if all(same):
        return "the same images"
    return f"{same.count(False)} of {len(same)} images differ"


def page(rows: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """A page with a title above each row of images."""
    font = ImageFont.load_default(FONT_SIZE)
    cell = SCALE * rows[0][1][0].width
    height = cell + LINE_HEIGHT + 2 * GAP
    columns = len(rows[0][1])
    result = Image.new("RGB", (columns * (cell + GAP) + GAP, len(rows) * height + GAP), WHITE)
    pen = ImageDraw.Draw(result)
    for i, (title, images) in enumerate(rows):
        pen.text((GAP, i * height + GAP), title, TEXT_COLOUR, font)
        for j, image in enumerate(images):
            enlarged = image.resize((cell, cell), Image.Resampling.NEAREST)
            result.paste(enlarged, (GAP + j * (cell + GAP), i * height + GAP + LINE_HEIGHT))
    return result
