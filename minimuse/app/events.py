"""What happens on each event of the page.

Each function returns, or yields, the status line and then the new values of the event's outputs.
`asked` has the prompt, the negative prompt, the seed, and the settings, as `Muse.generate` takes.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from minimuse import edit
from minimuse.app import frames as views
from minimuse.data import from_pil, to_pil
from minimuse.datasets.image_files import read_image
from minimuse.muse import Muse
from minimuse.plumbing.messages import warn

SIDES = ["left", "top", "right", "bottom"]


# --- Draw ---
def draw(muse: Muse, asked: dict, n: int) -> Iterator[tuple]:
    """Draw n images, and show each pass."""
    drawing: list[views.Frame] = []
    if not asked["prompt"].strip():
        warn("the prompt is empty: the model draws without a caption")
    for frame in views.frames(muse, n, **asked):
        drawing.append(frame)
        step = len(drawing)
        slider = gr.Slider(maximum=max(2, step), value=step)
        yield *shown(muse, asked, (asked, drawing), step), (asked, drawing), slider, [], gr.skip()
    images = [Image.fromarray(pixels) for pixels in views.images_of(muse, frame)]
    yield f"Drawn in {passes_of(drawing)}.", *[gr.skip()] * 5, images, images[0]


def passes_of(drawing: list[views.Frame]) -> str:
    """How many passes a drawing has had."""
    small = sum(frame.stage == "low" for frame in drawing)
    text = f"{small} passes over the small grid"
    if small < len(drawing):
        text += f" and {len(drawing) - small} over the large one"
    return text


def shown(muse: Muse, asked: dict, drawn: tuple, step: int, spot: Any = None) -> tuple:
    """The status of one pass, its guesses, its probabilities, and the codes of the token at `spot`.

    `drawn` is what was asked for a drawing, and its passes.
    """
    # The controls may have changed since, so the prompt of the drawing counts.
    asked, drawing = drawn
    frame = drawing[step - 1]
    kept = frame.kept > 0
    grid = {"low": "the small grid", "high": "the large grid"}[frame.stage]
    status = f"<progress value={kept.mean()}></progress> Pass {frame.number} over {grid}, guidance "
    status += f"{frame.guidance:.2g}: {kept[0].sum()} of {kept.shape[1]} tokens are kept."
    codes = []
    if spot is not None:
        b, token = views.token_at(frame.ids, spot)
        when = f"kept in pass {frame.kept[b, token]}" if kept[b, token] else "not kept"
        status += f"<br>The token in the pink frame has code {frame.ids[b, token]}, {when}."
        p = views.code_probabilities(muse, asked, drawing, frame, b, token)
        order, images = views.all_codes(muse, frame.stage)
        for code in p.topk(5).indices.tolist():
            patch = Image.fromarray(images[order == code][0])
            codes.append((patch, f"{p[code]:.1%} ({code})"))
    return status, views.guesses(muse, frame, spot), views.heat(frame, spot), codes


# --- Compare ---
def compare(muse: Muse, asked: dict, *both: Any) -> Iterator[tuple]:
    """Draw with two samplings, and tell how long each takes."""
    for i, values in enumerate((both[:3], both[3:])):
        settings = dict(zip(("sampler", "steps", "guidance"), values, strict=True))
        drawing: list[views.Frame] = []
        for frame, seconds in timed(views.frames(muse, 1, **asked | settings)):
            drawing.append(frame)
            images = [gr.skip(), gr.skip()]
            label = f"{'AB'[i]}: {seconds:.1f} s, {passes_of(drawing)}"
            images[i] = gr.Image(views.guesses(muse, frame), label=label)
            yield f"{'AB'[i]} is drawn: {passes_of(drawing)}.", *images
    yield "Both are drawn.", gr.skip(), gr.skip()


def timed(items: Iterator) -> Iterator[tuple[Any, float]]:
    """Yield each item, and the seconds that all so far took, without waiting for a turn."""
    seconds = 0.0
    start = time.perf_counter()
    for item in items:
        seconds += time.perf_counter() - start
        yield item, seconds
        start = time.perf_counter()


# --- Edit: the status, the images before and after, and the image to edit next ---
def take(muse: Muse, asked: dict, path: str) -> tuple:
    """Read an image, and scale it to the size of the model's images."""
    try:
        image = read_image(Path(path))
    except ValueError as error:  # of a file in a folder of Gradio's, which nobody knows
        raise ValueError(str(error).replace(str(Path(path).parent) + "/", "")) from None
    image = fitted(muse, image)
    return f"The image is {image.width}x{image.height} pixels.", image


def fitted(muse: Muse, image: Image.Image) -> Image.Image:
    """The image, shrunk to the size of training images if it is larger. A warning says so."""
    side = muse.config.tokenizer_hi.side
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if small.size != image.size:
        sizes = f"from {image.width}x{image.height} to {small.width}x{small.height} pixels"
        warn(f"the image is shrunk {sizes}: the model was trained on {side}x{side}")
    return small


def inpaint(muse: Muse, asked: dict, picture: Any, editor: dict) -> tuple:
    """Draw the painted part anew."""
    mask = np.zeros((picture.height, picture.width), np.uint8)
    for layer in editor["layers"]:
        alpha = layer.getchannel("A").resize(picture.size, Image.Resampling.BOX)
        mask[np.asarray(alpha) > 0] = 255
    if not mask.any():
        raise ValueError("nothing is painted: paint over the part that is to be drawn anew")
    (image,) = edit.inpaint(muse, picture, Image.fromarray(mask), keep_pixels=True, **asked)
    return "The painted part is drawn anew.", (big(picture), big(image)), image


def outpaint(muse: Muse, asked: dict, picture: Any, sides: list[str], pad: int) -> tuple:
    """Draw beside the image."""
    if not sides:
        raise ValueError("no side is ticked: tick one or more")
    left, top, _, _ = around = tuple(pad if side in sides else 0 for side in SIDES)
    (image,) = edit.outpaint(muse, picture, pad=around, keep_pixels=True, **asked)
    # As large as the new image, so that both lie on each other.
    before = Image.new("RGB", image.size, "lightgrey")
    before.paste(picture, (left, top))
    return f"Now {image.width}x{image.height} pixels.", (big(before), big(image)), image


def change(muse: Muse, asked: dict, picture: Any, count: int, share: float) -> Iterator[tuple]:
    """Change the whole image without a mask, and show each iteration."""
    picture = fitted(muse, picture)
    images: list[Image.Image] = []
    edited = picture, count, images
    for i, low in enumerate(edit.edits(muse, picture, iterations=count, share=share, **asked)):
        # A low-res image has half as many pixels. What was added to fill the grid is cut off.
        size = (picture.width + 1) // 2, (picture.height + 1) // 2
        images.append(to_pil(muse.pixels(low, "low"))[0].crop((0, 0, *size)))
        slider = gr.Slider(maximum=max(1, i), value=i)
        yield *iteration(muse, asked, edited, i), gr.skip(), edited, slider
    images += edit.finish(muse, picture, low=low, **asked)
    slider = gr.Slider(maximum=count + 1, value=count + 1)
    yield *iteration(muse, asked, edited, count + 1), images[-1], edited, slider


def iteration(muse: Muse, asked: dict, edited: tuple, i: int) -> tuple:
    """The status, and the images before and after iteration i.

    `edited` is the image before, the number of iterations, and the images after them. One more, the
    last, is the finished image.
    """
    before, count, images = edited
    status = f"<progress value={i} max={count}></progress> Iteration {i} of {count}."
    if i > count:
        status = f"Changed in {count} iterations, and then finished by super-resolution."
    return status, (big(before), big(images[i]))


def big(image: Image.Image) -> Image.Image:
    """An image of any shape, enlarged."""
    return views.enlarged(np.asarray(image))


def canvas(image: Image.Image) -> dict[str, Any]:
    """An image for the editor, with nothing painted."""
    return {"background": big(image), "layers": [], "composite": None}


# --- Tokenizer ---
def take_apart(muse: Muse, asked: dict, picture: Any, stage: str) -> tuple:
    """Turn the image into tokens, and these into an image."""
    small = fitted(muse, picture)
    side = muse.config.tokenizer_hi.side
    if small.size != (side, side):
        warn("the right or lower edge of the image is repeated, to fill the grid of tokens")
    ids = edit.encode(muse, from_pil(small))[stage == "high"].flatten(1).int().cpu().numpy()
    return *of_tokens(muse, asked, ids, stage, None), big(small)


def of_tokens(muse: Muse, asked: dict, ids: np.ndarray, stage: str, spot: Any) -> tuple:
    """What the tab shows of ids (1, N), with a frame around the token at `spot`."""
    image = views.framed(views.enlarged(views.decoded(muse, ids, stage)[0]), ids, spot)
    status = f"{len(np.unique(ids))} different codes in {ids.shape[1]} tokens."
    if spot is not None:
        code = ids[views.token_at(ids, spot)]
        status += f" This token has code {code}: click another code below to change it."
    codes = views.code_sheet(muse, stage, ids)
    return status, image, views.framed(views.id_map(ids), ids, spot), codes, ids, spot


def replace(muse: Muse, asked: dict, spot: Any, ids: Any, stage: str, clicked: Any) -> tuple:
    """Give the token at `spot` the code that was clicked."""
    ids = ids.copy()
    ids[views.token_at(ids, spot)] = views.code_at(muse, stage, clicked)
    return of_tokens(muse, asked, ids, stage, spot)
