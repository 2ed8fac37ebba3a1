"""What the page shows, computed without Gradio: each pass as images, likely codes, all codes.

Letters: B images (1, 2 or 4), N image tokens, h side of the token grid, H pixels, K codes.
"""

import copy
import time
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from minimuse.beyond.mean_vectors import vectors_of
from minimuse.data import to_pil
from minimuse.guidance import conditions_of, guided_logits
from minimuse.muse import Muse

SIDE = 384  # pixels of one enlarged image
ROW = 32  # codes in a row of the sheet of all codes
# Colours of probabilities from 0 to 1: those of the map "viridis".
HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])


class Frame(NamedTuple):
    """What one pass left behind, of B images."""

    stage: str  # "low" or "high"
    number: int  # of this pass in its stage, from 1
    ids: np.ndarray  # (B, N) int32, the known code or the guess
    probability: np.ndarray  # (B, N) float32, of the code in the pass that drew it
    kept: np.ndarray  # (B, N) int16, the number of the pass that kept it; 0 if it is hidden
    guidance: float  # t of this pass
    vectors: np.ndarray  # (B, h, h, C) float32, what the decoder gets for all codes and guesses


# --- Decoding ---
def frames(
    muse: Muse, n: int, prompt: str, negative: str, seed: int, **settings: Any
) -> Iterator[Frame]:
    """Yield each pass of a drawing. Its images are those of `Muse.generate`."""
    guidances = []

    def run_pass(*arguments: Any) -> Any:
        guidances.append(float(arguments[6]))  # `t` of `one_pass`
        return muse.run_pass(*arguments)

    watched = copy.copy(muse)  # it shares all weights
    watched.run_pass = run_pass
    samplings, stage_before = muse.sampling(**settings), ""
    for stage, step in watched.steps([prompt] * n, negative, *samplings, seed=seed):
        if stage != stage_before:
            number, stage_before = 0, stage
            kept, probability = np.zeros((2, *step.ids.shape), np.float32)
        number += 1
        probability = np.where(kept > 0, probability, step.confidence.exp().float().cpu())
        kept = np.where((kept == 0) & ~step.hidden.cpu().numpy(), number, kept).astype(np.int16)
        ids = step.ids.cpu().numpy().astype(np.int32)
        vectors = vectors_of(step, muse.tokenizers[stage]).cpu().numpy()
        yield Frame(stage, number, ids, probability, kept, guidances[-1], vectors)


@torch.no_grad()
def code_probabilities(
    muse: Muse, asked: dict, drawing: list[Frame], frame: Frame, b: int, token: int
) -> torch.Tensor:
    """The probabilities (K,) of a token of image b in the pass that drew its code of this frame.

    That pass is run again, from the tokens that were visible before it, for `asked`, the prompt and
    the negative prompt.
    """
    number = int(frame.kept[b, token]) or frame.number
    frame = [other for other in drawing if other.stage == frame.stage][number - 1]
    model, low = muse.base, []
    if frame.stage == "high":
        model = muse.superres
        low = [as_ids(muse, other.ids[b : b + 1]) for other in drawing if other.stage == "low"][-1:]
    hidden = np.isin(frame.kept[b : b + 1], (0, number))  # 1 N, before that pass
    hidden = torch.from_numpy(hidden).to(muse.device)
    ids = as_ids(muse, frame.ids[b : b + 1]).masked_fill(hidden, model.mask_id)  # 1 N
    prompts = muse.embed_prompts([asked["prompt"]], asked["negative"])
    contexts = muse.contexts(model, prompts, frame.guidance, *low)
    conditions = conditions_of(*contexts, prompts.weights, ids)
    logits = guided_logits(model, ids, hidden, conditions, frame.guidance)  # 1 N K
    return logits[0, token].float().softmax(dim=-1).cpu()


def as_ids(muse: Muse, ids: np.ndarray) -> torch.Tensor:
    """Ids as a model takes them."""
    return torch.from_numpy(ids).long().to(muse.device)


# --- Images ---
def guesses(muse: Muse, frame: Frame, picked: list[int] | None = None) -> Image.Image:
    """All guesses, with hidden tokens hatched. The token at the pixel `picked` has a frame."""
    image = enlarged(tiled(images_of(muse, frame)), len(frame.ids))
    hidden = enlarged(191 * on_grid(frame.kept == 0), len(frame.ids))
    stripes = np.add(*np.indices(hidden.size[::-1])) // 4 % 3 == 0
    image.paste(Image.fromarray(np.where(stripes, 110, 165).astype(np.uint8)), mask=hidden)
    return framed(image, frame.ids, picked)


def heat(frame: Frame, picked: list[int] | None = None) -> Image.Image:
    """Probabilities as colours. A kept token has the number of its pass, framed if it is this."""
    p, kept = on_grid(frame.probability), on_grid(frame.kept)
    ticks = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(p, ticks, channel) for channel in HEAT.T], axis=-1)
    image = enlarged(colours, len(frame.ids))
    pen, size = ImageDraw.Draw(image), image.width / p.shape[1]
    font = ImageFont.load_default(min(28, 0.55 * size))
    for y, x in np.argwhere(kept):
        centre = (x + 0.5) * size, (y + 0.5) * size
        pen.text(centre, f"{kept[y, x]}", "white" if p[y, x] < 0.6 else "black", font, "mm")
        if kept[y, x] == frame.number:
            box = x * size, y * size, (x + 1) * size - 1, (y + 1) * size - 1
            pen.rectangle(box, outline="red", width=2)
    return framed(image, frame.ids, picked)


def id_map(ids: np.ndarray) -> Image.Image:
    """Ids (1, N) as an enlarged image, in which each code has a colour of its own."""
    return enlarged(127.5 + 127.5 * np.sin(on_grid(ids)[..., None] * np.array([2.4, 5.9, 9.1])))


def images_of(muse: Muse, frame: Frame) -> np.ndarray:
    """Images (B, H, W, 3) uint8 of a pass; those of the last pass are `Muse.generate`'s."""
    finished = bool(frame.kept.all())  # only then the large decoder is worth its time
    vectors = torch.from_numpy(frame.vectors).to(muse.device)
    return as_bytes(muse.decode_vectors(vectors, frame.stage, finished))


def decoded(muse: Muse, ids: np.ndarray, stage: str) -> np.ndarray:
    """Ids (B, N) -> images (B, H, W, 3) uint8."""
    return as_bytes(muse.pixels(as_ids(muse, ids), stage))


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """Images (B, 3, H, W) -> (B, H, W, 3) uint8, as files have them."""
    return np.stack([np.asarray(image) for image in to_pil(images)])


def tiled(images: np.ndarray) -> np.ndarray:
    """Images (B, H, W, ...) as one image with two in a row."""
    return rearrange(images, "(r c) H W ... -> (r H) (c W) ...", c=min(2, len(images)))


def on_grid(values: np.ndarray) -> np.ndarray:
    """Values of tokens (B, N), `tiled`."""
    return tiled(rearrange(values, "B (h w) -> B h w", h=int(values.shape[1] ** 0.5)))


def enlarged(image: np.ndarray, B: int = 1) -> Image.Image:
    """B images, `tiled`, without smoothing; each becomes SIDE pixels wide."""
    width = SIDE * min(2, B)
    size = width, width * image.shape[0] // image.shape[1]
    page = Image.fromarray(image.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    # Gradio names a file by its bytes. Without a time in it, a file could be written while another
    # visitor, who sees the same image, reads it.
    page.info["time"] = str(time.monotonic_ns())
    return page


def framed(image: Image.Image, ids: np.ndarray, picked: list[int] | None) -> Image.Image:
    """An enlarged image of ids (B, N), with a frame around the token at the pixel `picked`."""
    if picked is not None:
        size = SIDE / int(ids.shape[1] ** 0.5)
        x, y = (place // size * size for place in picked)
        box = x, y, x + size - 1, y + size - 1
        ImageDraw.Draw(image).rectangle(box, outline="#ff00ff", width=4)
    return image


def token_at(ids: np.ndarray, picked: list[int]) -> tuple[int, int]:
    """The image and the token of ids (B, N) at a pixel of an enlarged image."""
    h = int(ids.shape[1] ** 0.5)
    column, row = (place * h // SIDE for place in picked)
    return row // h * min(2, len(ids)) + column // h, row % h * h + column % h


# --- Codes ---
@cache
def all_codes(muse: Muse, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes of a tokenizer (K,), from dark to bright, and images of them (K, H, W, 3) uint8.

    An image has 3x3 tokens of one code. It comes from the tokenizer's own decoder, a fast one.
    """
    codes = torch.arange(muse.tokenizers[stage].config.codes, device=muse.device)
    pixels = muse.pixels(codes[:, None, None].expand(-1, 3, 3), stage, finetuned=False)
    images = ((rearrange(pixels, "K C H W -> K H W C") + 1) * 127.5).byte().cpu().numpy()
    order = images.mean((1, 2, 3)).argsort(kind="stable")
    return order, images[order]


def code_sheet(muse: Muse, stage: str, ids: np.ndarray) -> Image.Image:
    """All codes in rows of ROW; those that `ids` do not have are pale."""
    codes, images = all_codes(muse, stage)
    pale = ~np.isin(codes, ids)[:, None, None, None]
    images = np.where(pale, images // 2 + 128, images)
    white = np.full((-len(codes) % ROW, *images.shape[1:]), 255)
    rows = np.concatenate([images, white])
    return enlarged(rearrange(rows, "(r c) H W C -> (r H) (c W) C", c=ROW), 2)


def code_at(muse: Muse, stage: str, picked: list[int]) -> int:
    """The code at a pixel of `code_sheet`."""
    column, row = (place * ROW // (2 * SIDE) for place in picked)
    codes, _ = all_codes(muse, stage)
    return int(codes[min(row * ROW + column, len(codes) - 1)])
