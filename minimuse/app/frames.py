"""What the page shows of a drawing, as plain functions: images of each pass, and likely codes.

    for frame in frames(muse, request):
        token_view(muse, frame, hatched=True)      # a PIL image: guesses, hidden ones hatched

Letters: B images, N image tokens, h grid side, H pixels.
"""

import colorsys
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from minimuse.data import to_pil
from minimuse.guidance import conditions_of, guided_logits
from minimuse.muse import Muse

CELL = 384  # pixels of one enlarged image
GAP = 8
# From probability 0 to 1: colours of the map "viridis", which also differ in brightness.
HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])


class Request(NamedTuple):
    """What to draw: the arguments of `Muse.generate`."""

    model: str
    prompt: str
    negative: str
    seed: int
    n: int
    settings: dict[str, Any]


class Frame(NamedTuple):
    """What one pass of decoding left behind."""

    stage: str  # "low" or "high"
    ids: np.ndarray  # (B, N) int32, the guess or the known code of each token
    probability: np.ndarray  # (B, N) float32, of each code when it was drawn
    hidden: np.ndarray  # (B, N) bool, hidden again after this pass
    was_hidden: np.ndarray  # (B, N) bool, hidden before it
    guidance: float  # t of this pass


# --- Decoding ---
def frames(muse: Muse, request: Request) -> Iterator[Frame]:
    """Decode a request and yield each pass. The images are those of `Muse.generate`."""
    guidances = []

    def run_pass(model: Any, ids: Any, mask_id: Any, hidden: Any, left: Any, *rest: Any) -> Any:
        guidances.append(float(rest[1]))
        return muse.run_pass(model, ids, mask_id, hidden, left, *rest)

    watched = copy.copy(muse)  # shares all weights; only this copy tells the guidance
    watched.run_pass = run_pass
    prompts = [request.prompt] * request.n
    sampling = muse.sampling(**request.settings)
    probability = None
    for stage, step in watched.steps(prompts, request.negative, *sampling, seed=request.seed):
        drawn_now = step.confidence.isfinite()  # B N
        if probability is None or probability.shape != step.ids.shape:
            probability = torch.zeros_like(step.confidence)
        probability = torch.where(drawn_now, step.confidence.exp(), probability)
        yield Frame(
            stage,
            step.ids.cpu().numpy().astype(np.int32),
            probability.float().cpu().numpy(),
            step.hidden.cpu().numpy(),
            drawn_now.cpu().numpy(),
            guidances[-1],
        )


def kept_in(drawing: list[Frame], number: int) -> np.ndarray:
    """The pass (B, N), counted from 1, that kept each token of frame `number`; 0 if hidden yet."""
    stage = drawing[number].stage
    kept = np.zeros(drawing[number].ids.shape, dtype=int)
    of_stage = [frame for frame in drawing[: number + 1] if frame.stage == stage]
    for i, frame in enumerate(of_stage, 1):
        kept[frame.was_hidden & ~frame.hidden] = i
    return kept


def likeliest(
    muse: Muse, request: Request, drawing: list[Frame], number: int, image: int, token: int
) -> tuple[Frame, torch.Tensor]:
    """The pass that drew a token of frame `number`, and the probabilities (K,) of its codes then.

    This runs that pass of one image again, from the tokens that were visible before it.
    """
    frame = drawing[number]
    while not frame.was_hidden[image, token]:  # it was drawn in an earlier pass
        number -= 1
        frame = drawing[number]
    model = muse.base if frame.stage == "low" else muse.superres
    low = [other.ids for other in drawing if other.stage == "low"][-1]
    low_ids = None if frame.stage == "low" else as_ids(low[image : image + 1], muse)
    hidden = torch.from_numpy(frame.was_hidden[image : image + 1]).to(muse.device)  # 1 N
    ids = as_ids(frame.ids[image : image + 1], muse).masked_fill(hidden, model.mask_id)  # 1 N
    embedded = muse.embed_prompts([request.prompt], request.negative)
    contexts = muse.contexts(model, embedded, frame.guidance, low_ids)
    conditions = conditions_of(*contexts, embedded.weights, ids).at(frame.guidance)
    with torch.no_grad():
        logits = guided_logits(model, ids, hidden, conditions, frame.guidance)  # 1 N K
    return frame, logits[0, token].float().softmax(dim=-1).cpu()


def as_ids(ids: np.ndarray, muse: Muse) -> torch.Tensor:
    """Stored ids as the model takes them."""
    return torch.from_numpy(ids).long().to(muse.device)


# --- Images ---
def token_view(muse: Muse, frame: Frame, hatched: bool = True) -> list[Image.Image]:
    """B enlarged images of all codes, with hidden tokens hatched in grey."""
    views = []
    pixels = to_pil(muse.pixels(as_ids(frame.ids, muse), frame.stage))
    row, column = np.mgrid[:CELL, :CELL]
    grey = np.where((row + column) // 4 % 3 == 0, 110.0, 165.0)[..., None]
    for image, hidden in zip(pixels, frame.hidden, strict=True):
        view = np.asarray(enlarged(image)).astype(float)
        covered = cells(hidden)[..., None] & hatched
        view = np.where(covered, 0.25 * view + 0.75 * grey, view)
        views.append(Image.fromarray(view.astype(np.uint8)))
    return views


def heat_view(drawing: list[Frame], number: int) -> list[Image.Image]:
    """B maps of probability. A kept token has the number of its pass, red if it is this one."""
    frame = drawing[number]
    side = int(frame.ids.shape[1] ** 0.5)
    cell = CELL / side
    font = ImageFont.load_default(min(28, 0.55 * cell))
    kept = kept_in(drawing, number)
    views = []
    for probability, kept_passes in zip(frame.probability, kept, strict=True):
        view = Image.fromarray(heat(cells(probability)))
        pen = ImageDraw.Draw(view)
        for token in np.flatnonzero(kept_passes):
            centre = ((token % side + 0.5) * cell, (token // side + 0.5) * cell)
            dark = probability[token] > 0.6
            pen.text(centre, str(kept_passes[token]), "black" if dark else "white", font, "mm")
            if kept_passes[token] == kept.max():
                outline(view, int(token), side, "#ff2020", 2)
        views.append(view)
    return views


def heat(values: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 (...) as colours (..., 3) of HEAT, uint8."""
    ticks = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values, ticks, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def id_map(ids: np.ndarray) -> Image.Image:
    """Ids (N,) as an image in which each code has a colour of its own."""
    golden = 0.618034  # steps of this fraction of the circle of hues are far apart
    colour = {}
    for code in np.unique(ids):
        hue = float(code * golden % 1)
        value = 0.55 + 0.45 * (code % 3) / 2
        colour[code] = [round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.65, value)]
    side = int(len(ids) ** 0.5)
    pixels = np.array([colour[code] for code in ids], np.uint8).reshape(side, side, 3)
    return enlarged(Image.fromarray(pixels))


def cells(values: np.ndarray) -> np.ndarray:
    """Values (N,) of a square grid as an image (CELL, CELL)."""
    side = int(len(values) ** 0.5)
    place = np.arange(CELL) * side // CELL
    return values.reshape(side, side)[place[:, None], place]


def enlarged(image: Image.Image, side: int = CELL) -> Image.Image:
    """An image whose longer side is `side` pixels, without smoothing."""
    factor = side / max(image.size)
    size = (round(factor * image.width), round(factor * image.height))
    return image.resize(size, Image.Resampling.NEAREST)


def outline(view: Image.Image, token: int, side: int, colour: str, width: int) -> None:
    """Draw a frame around one token of an enlarged image, in place."""
    cell = CELL / side
    x, y = token % side * cell, token // side * cell
    ImageDraw.Draw(view).rectangle((x, y, x + cell - 1, y + cell - 1), None, colour, width)


def sheet(views: list[Image.Image]) -> Image.Image:
    """One image of 1 to 4 enlarged images, two to a row."""
    columns = min(2, len(views))
    rows = -(-len(views) // 2)
    size = (columns * (CELL + GAP) - GAP, rows * (CELL + GAP) - GAP)
    page = Image.new("RGB", size, "white")
    for i, view in enumerate(views):
        page.paste(view, (i % 2 * (CELL + GAP), i // 2 * (CELL + GAP)))
    return page


def pointed_at(x: int, y: int, images: int, side: int) -> tuple[int, int] | None:
    """The image and the token at a pixel of a `sheet`; None between images."""
    column, x = divmod(x, CELL + GAP)
    row, y = divmod(y, CELL + GAP)
    image = 2 * row + column
    if x >= CELL or y >= CELL or image >= images:
        return None
    return image, y * side // CELL * side + x * side // CELL


# --- Codes ---
def patches_in(muse: Muse, ids: np.ndarray, stage: str, token: int, codes: list[int]) -> list:
    """How an image of ids (N,) looks at one token with each of some codes there: PIL images."""
    side = int(len(ids) ** 0.5)
    variants = np.repeat(ids[None], len(codes), axis=0)  # B N
    variants[:, token] = codes
    views = to_pil(muse.pixels(as_ids(variants, muse), stage))
    unit = views[0].width // side
    x, y = token % side * unit, token // side * unit
    return [view.crop((x, y, x + unit, y + unit)) for view in views]


def code_sheet(muse: Muse, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """All codes sorted by brightness (K,), and a patch (K, f, f, 3) uint8 of each among its like."""
    tokenizer = muse.tokenizer if stage == "low" else muse.tokenizer_hi
    codes = torch.arange(tokenizer.config.codes, device=muse.device)
    pixels = muse.pixels(codes[:, None, None].expand(-1, 3, 3), stage)  # K 3 3f 3f
    f = pixels.shape[-1] // 3
    patches = ((pixels[..., f : 2 * f, f : 2 * f] + 1) * 127.5).round().byte()
    patches = patches.permute(0, 2, 3, 1).cpu().numpy()
    order = patches.mean(axis=(1, 2, 3)).argsort(kind="stable")
    return order, patches[order]


CODE = 24  # pixels of one code in `code_image`
CODE_COLUMNS = 32


def code_image(
    order: np.ndarray, patches: np.ndarray, ids: np.ndarray, token: int | None
) -> Image.Image:
    """All codes in rows: bright if some token of ids (N,) has it. That of `token` has a frame."""
    rows = -(-len(order) // CODE_COLUMNS)
    page = Image.new("RGB", (CODE_COLUMNS * CODE, rows * CODE), "white")
    used = set(ids.tolist())
    for i, (code, patch) in enumerate(zip(order, patches, strict=True)):
        x, y = i % CODE_COLUMNS * CODE, i // CODE_COLUMNS * CODE
        size = CODE - 2 if code in used else CODE - 14
        margin = (CODE - size) // 2
        page.paste(enlarged(Image.fromarray(patch), size), (x + margin, y + margin))
        if token is not None and code == ids[token]:
            box = (x, y, x + CODE - 1, y + CODE - 1)
            ImageDraw.Draw(page).rectangle(box, None, "#ff00ff", 2)
    return page


def code_at(order: np.ndarray, x: int, y: int) -> int:
    """The code at a pixel of `code_image`."""
    place = y // CODE * CODE_COLUMNS + x // CODE
    return int(order[min(place, len(order) - 1)])
