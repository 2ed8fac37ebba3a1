"""The page: controls at the left, and four tabs at the right. What they show is in `frames.py`."""

import base64
import html
import io
import shlex
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from PIL import Image

from minimuse import edit
from minimuse.app import frames as shown
from minimuse.app.controls import SETTINGS, control
from minimuse.app.frames import Request
from minimuse.data import from_pil, to_pil
from minimuse.datasets.image_files import read_image
from minimuse.muse import Muse
from minimuse.plumbing.messages import one_line
from minimuse.runs.rehearsal import is_out_of_memory

USERS_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)
EXAMPLES = {
    "toy": [
        "a red apple, noto style",
        "a smiling cat, fluent 3d style",
        "a blue heart, openmoji style",
    ],
    "toy-shapes": [
        "a large red circle on a white background",
        "two small blue squares on a grey background",
        "a large purple cross left of a small green triangle on a white background",
    ],
}


class Models(dict):
    """The models by name, each loaded when it is first asked for."""

    def __init__(self, device: str):
        super().__init__()
        self.device = device
        self.lock = threading.Lock()

    def __missing__(self, name: str) -> Muse:
        with self.lock:
            if name not in self.keys():
                self[name] = Muse.load(name, self.device)
        return self[name]


class Shared(NamedTuple):
    """What all tabs use."""

    models: Models
    inputs: list  # the components of the left column
    status: gr.HTML
    picture: gr.State  # the image that is edited, and taken apart into tokens


# --- What all tabs need ---
def defaults(muse: Muse) -> list[Any]:
    """The model's own value of each of SETTINGS."""
    sampling = vars(muse.config.sampling)
    sampling = sampling | dict(zip(("guided_from", "guided_to"), sampling["guided"], strict=True))
    return [sampling[name] for name in SETTINGS]


def request_of(muse: Muse, values: tuple[Any, ...]) -> Request:
    """The request that the left column makes. Settings are those that differ from the model's."""
    model, prompt, negative, seed, n, *settings = values
    changed = {}
    for name, value, default in zip(SETTINGS, settings, defaults(muse), strict=True):
        if value != default:
            changed[name] = value
    if "guided_from" in changed or "guided_to" in changed:
        given = dict(zip(SETTINGS, settings, strict=True))
        changed["guided"] = (given["guided_from"], given["guided_to"])
    settings = {name: value for name, value in changed.items() if "guided_" not in name}
    return Request(model, prompt, negative, seed, n, settings)


def command(request: Request) -> str:
    """The command that draws the same images."""
    words = ["minimuse", "generate", request.prompt, "--model", request.model]
    words += ["--seed", str(request.seed), "--n", str(request.n)]
    if request.negative:
        words += ["--negative", request.negative]
    for name, value in request.settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{flag}", text]
    return shlex.join(words)


def on(
    shared: Shared,
    trigger: Callable,
    function: Callable,
    extra: list,
    outputs: list,
    **options: Any,
) -> Any:
    """Run function(muse, request, *extra) on an event. It yields a status and values of outputs.

    The model works for one visitor at a time. What goes wrong is one line in the page.
    """

    def run(*values: Any) -> Iterator[tuple]:
        count = len(shared.inputs)
        states = None
        notes: list[str] = []
        while True:
            try:
                # Around one step only: no other visitor's step may run in here.
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    if states is None:
                        muse = shared.models[values[0]]
                        request = request_of(muse, values[:count])
                        states = function(shared, muse, request, *values[count:])
                    status, *updates = next(states)
            except StopIteration:
                return
            except USERS_ERRORS as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                gr.Warning(html.escape(one_line(error)))
                yield (f"<b>{html.escape(one_line(error))}</b>", *[gr.skip()] * len(outputs))
                return
            new = [one_line(each.message) for each in heard if each.category is UserWarning]
            for note in new:
                gr.Warning(html.escape(note))
            notes += new
            yield ("<br>".join([status, *map(html.escape, notes)]), *updates)

    return trigger(
        run,
        [*shared.inputs, *extra],
        [shared.status, *outputs],
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="hidden",
        **options,
    )


def progress(done: int, total: int, words: str) -> str:
    """A progress bar, and what is going on."""
    return f'<progress value="{done}" max="{total}"></progress> {words}'


def index_of(event: gr.SelectData) -> list[int]:
    """The pixel of an image that was clicked."""
    return list(event.index)


# --- Draw ---
def draw(shared: Shared, muse: Muse, request: Request) -> Iterator[tuple]:
    """Draw a request, and show each pass."""
    drawing: list[shown.Frame] = []
    low, high = muse.sampling(**request.settings)
    total = min(low.steps, muse.config.tokenizer.grid**2)
    total += min(high.steps, muse.config.tokenizer_hi.grid**2)
    if not request.prompt.strip():
        warnings.warn("The prompt is empty: the model draws without a caption.", stacklevel=2)
    for frame in shown.frames(muse, request):
        drawing.append(frame)
        number = len(drawing)
        views = pass_views(muse, drawing, number - 1)
        slider = gr.update(maximum=max(2, total), value=number)
        words = f"Pass {number} of {total}, {pass_words(frame)}"
        yield progress(number, total, words), *views, slider, (request, drawing), gr.skip(), ""
    images = to_pil(muse.pixels(shown.as_ids(drawing[-1].ids, muse), "high"))
    slider = gr.update(maximum=max(2, len(drawing)), value=len(drawing))
    words = f"Drawn in {len(drawing)} passes. <code>{html.escape(command(request))}</code>"
    yield words, *views, slider, (request, drawing), images, ""


def pass_views(
    muse: Muse, drawing: list[shown.Frame], number: int, spot: list[int] | None = None
) -> tuple[Image.Image, Image.Image]:
    """The guesses and the map of probabilities of all images of one pass."""
    frame = drawing[number]
    views = [shown.token_view(muse, frame), shown.heat_view(drawing, number)]
    side = int(frame.ids.shape[1] ** 0.5)
    place = spot and shown.pointed_at(*spot, len(frame.ids), side)
    if place:
        for images in views:
            shown.outline(images[place[0]], place[1], side, "#ff00ff", 4)
    return shown.sheet(views[0]), shown.sheet(views[1])


def pass_words(frame: shown.Frame) -> str:
    """What a pass did, for the status line."""
    grid = "small grid" if frame.stage == "low" else "large grid"
    hidden = int(frame.hidden[0].sum())
    return f"{grid}: {hidden} of {frame.ids.shape[1]} tokens hidden, guidance {frame.guidance:.2f}"


def look(
    shared: Shared, muse: Muse, request: Request, drawn: Any, number: int, spot: list[int] | None
) -> Iterator[tuple]:
    """Show one pass again, and the likeliest codes of the token that was picked."""
    if drawn is None:
        raise ValueError("Nothing is drawn yet: press Draw.")
    request, drawing = drawn
    muse = shared.models[request.model]
    number = min(number, len(drawing)) - 1
    frame = drawing[number]
    views = pass_views(muse, drawing, number, spot)
    side = int(frame.ids.shape[1] ** 0.5)
    place = spot and shown.pointed_at(*spot, len(frame.ids), side)
    words = f"Pass {number + 1} of {len(drawing)}, {pass_words(frame)}"
    yield words, *views, token_words(muse, request, drawing, number, *place) if place else ""


def token_words(
    muse: Muse, request: Request, drawing: list, number: int, image: int, token: int
) -> str:
    """The five likeliest codes of one token, as HTML with small patches."""
    frame = drawing[number]
    drawn_in, p = shown.likeliest(muse, request, drawing, number, image, token)
    ids = frame.ids[image]
    codes = p.topk(5).indices.tolist()
    if ids[token] not in codes:
        codes.append(int(ids[token]))
    patches = shown.patches_in(muse, ids, frame.stage, token, codes)
    figures = []
    for code, patch in zip(codes, patches, strict=True):
        mark = " (drawn)" if code == ids[token] else ""
        figures.append(
            f"<figure>{picture_tag(patch)}<figcaption>code {code}<br>"
            f"{100 * p[code]:.1f} %{mark}</figcaption></figure>"
        )
    side = int(len(ids) ** 0.5)
    kept = shown.kept_in(drawing, number)[image, token]
    when = f"kept in pass {kept}" if kept else "hidden again after this pass"
    return (
        f"<p>Image {image + 1}, token in row {token // side + 1}, column {token % side + 1}: {when}."
        f" The likeliest codes when it was drawn:</p><div class=codes>{''.join(figures)}</div>"
    )


def picture_tag(image: Image.Image) -> str:
    """A small image as HTML."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'


# --- Compare ---
def compare(shared: Shared, muse: Muse, request: Request, *both: Any) -> Iterator[tuple]:
    """Draw one request with two samplings, and say how long each takes."""
    views, rows = [gr.skip(), gr.skip()], ["", ""]
    for i in range(2):
        sampler, steps, guidance = both[3 * i : 3 * i + 3]
        settings = {"sampler": sampler, "steps": steps, "guidance": guidance}
        start = time.perf_counter()
        drawing = []
        for frame in shown.frames(muse, request._replace(settings=request.settings | settings)):
            drawing.append(frame)
            yield progress(len(drawing), 0, f"{'AB'[i]}: pass {len(drawing)}"), *views, *rows
        seconds = time.perf_counter() - start
        low = sum(frame.stage == "low" for frame in drawing)
        views[i] = shown.sheet(shown.token_view(muse, drawing[-1]))
        rows[i] = f"{low} + {len(drawing) - low} passes, {seconds:.1f} s"
    yield "Both drawn with the same seed.", *views, *rows


# --- Edit ---
def take(shared: Shared, muse: Muse, request: Request, path: str | None) -> Iterator[tuple]:
    """Read an uploaded image, and scale it to the model's size."""
    if path is None:
        raise ValueError("Give an image file: PNG, JPEG or WebP.")
    image = read_image(Path(path))
    size = f"{image.width}x{image.height}"
    side = muse.config.tokenizer_hi.side
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    yield f"An image of {size} pixels, now {image.width}x{image.height}.", image, canvas(image)


def draw_one(shared: Shared, muse: Muse, request: Request) -> Iterator[tuple]:
    """Draw a first image to edit."""
    settings = request.settings
    (image,) = muse.generate(request.prompt, 1, request.negative, request.seed, **settings)
    yield "Drawn. Paint over what to draw anew, and change the prompt.", image, canvas(image)


def canvas(image: Image.Image) -> dict[str, Any]:
    """An image for the editor, enlarged."""
    return {"background": shown.enlarged(image), "layers": [], "composite": None}


def painted(editor: dict[str, Any] | None, picture: Image.Image | None) -> Image.Image:
    """The painted part of the editor as a mask of the picture's size."""
    if picture is None:
        raise ValueError("There is no image yet: draw or upload one.")
    mask = np.zeros((picture.height, picture.width), bool)
    for layer in editor["layers"] if editor else []:
        alpha = layer.convert("RGBA").getchannel("A").resize(picture.size, Image.Resampling.BOX)
        mask |= np.asarray(alpha) > 0
    if not mask.any():
        raise ValueError("Nothing is painted: paint over the part to draw anew.")
    return Image.fromarray((255 * mask).astype(np.uint8))


def changed(words: str, before: Image.Image, after: Image.Image, history: Any) -> tuple:
    """What the edit tab shows after an edit: the result is the next image to edit."""
    views = shown.enlarged(before), shown.enlarged(after)
    last = len(history[1]) if history else 0
    slider = gr.update(maximum=max(1, last), value=last, interactive=last > 0)
    return words, *views, after, canvas(after), history, slider


def inpaint(
    shared: Shared, muse: Muse, request: Request, picture: Any, editor: Any, keep: bool
) -> Iterator[tuple]:
    """Draw the painted part anew."""
    mask = painted(editor, picture)
    options = {"negative": request.negative, "seed": request.seed, "keep_pixels": keep}
    (after,) = edit.inpaint(muse, picture, mask, request.prompt, **options, **request.settings)
    yield changed("The painted part is drawn anew.", picture, after, None)


def outpaint(
    shared: Shared, muse: Muse, request: Request, picture: Any, sides: list[str], pad: int
) -> Iterator[tuple]:
    """Draw new pixels beside the image."""
    if picture is None:
        raise ValueError("There is no image yet: draw or upload one.")
    around = tuple(pad if side in sides else 0 for side in SIDES)
    options = {"negative": request.negative, "seed": request.seed}
    (after,) = edit.outpaint(muse, picture, request.prompt, around, **options, **request.settings)
    words = f"The image is {after.width}x{after.height} pixels now."
    yield changed(words, picture, after, None)


def edit_all(
    shared: Shared, muse: Muse, request: Request, picture: Any, iterations: int, share: float
) -> Iterator[tuple]:
    """Change the whole image step by step, and show each iteration."""
    if picture is None:
        raise ValueError("There is no image yet: draw or upload one.")
    arguments = (muse, picture, request.prompt)
    options = {"negative": request.negative, "seed": request.seed, **request.settings}
    states = []
    for low in edit.edits(*arguments, iterations, share, **options):
        states.append(low.cpu().numpy().astype(np.int32)[0])
        (image,) = to_pil(muse.pixels(low, "low"))
        words = progress(len(states) - 1, iterations, f"Iteration {len(states) - 1}")
        views = shown.enlarged(picture), shown.enlarged(image)
        yield words, *views, *[gr.skip()] * 4
    (after,) = edit.finish(*arguments, low, **options)
    yield changed(f"{iterations} iterations.", picture, after, (request.model, states, after))


def iteration(
    shared: Shared, muse: Muse, request: Request, history: Any, number: int
) -> Iterator[tuple]:
    """Show the small grid after one iteration; at the end of the slider, the result."""
    if history is None:
        raise ValueError("There are no iterations yet: edit without a mask.")
    model, states, after = history
    if number < len(states):
        muse = shared.models[model]
        (after,) = to_pil(muse.pixels(shown.as_ids(states[number][None], muse), "low"))
    yield f"After iteration {number}", shown.enlarged(after)


# --- Tokenizer ---
def take_apart(
    shared: Shared, muse: Muse, request: Request, picture: Any, stage: str
) -> Iterator[tuple]:
    """Turn the image into tokens, and back."""
    if picture is None:
        raise ValueError("There is no image yet: draw or upload one in the tab Edit.")
    side = muse.config.tokenizer_hi.side
    small = picture.copy()
    small.thumbnail((side, side))
    low, high = edit.encode(muse, from_pil(small))
    ids = (low if stage == "low" else high).cpu().numpy().astype(np.int32).ravel()
    yield token_state(muse, request.model, stage, ids, None, small)


def token_state(
    muse: Muse, model: str, stage: str, ids: np.ndarray, spot: Any, original: Image.Image
) -> tuple:
    """What the tokenizer tab shows of ids (N,)."""
    side = int(len(ids) ** 0.5)
    (image,) = to_pil(muse.pixels(shown.as_ids(ids[None], muse), stage))
    views = [shown.enlarged(image), shown.id_map(ids)]
    token = shown.pointed_at(*spot, 1, side)[1] if spot else None
    words = f"{len(np.unique(ids))} different codes in {len(ids)} tokens."
    if token is not None:
        for view in views:
            shown.outline(view, token, side, "#ff00ff", 4)
        words += f" Token {token} has code {ids[token]}: pick another one below."
    codes = shown.code_image(*shown.code_sheet(muse, stage), ids, token)
    return words, shown.enlarged(original), *views, codes, (model, stage, ids, spot, original)


def pick_token(
    shared: Shared, muse: Muse, request: Request, tokens: Any, spot: list[int]
) -> Iterator[tuple]:
    """Mark the token that was clicked."""
    model, stage, ids, _, original = tokens
    yield token_state(shared.models[model], model, stage, ids, spot, original)


def pick_code(
    shared: Shared, muse: Muse, request: Request, tokens: Any, spot: list[int]
) -> Iterator[tuple]:
    """Give the marked token the code that was clicked."""
    model, stage, ids, place, original = tokens
    if place is None:
        raise ValueError("Click a token first.")
    muse = shared.models[model]
    order, _ = shown.code_sheet(muse, stage)
    ids = ids.copy()
    _, token = shown.pointed_at(*place, 1, int(len(ids) ** 0.5))
    ids[token] = shown.code_at(order, *spot)
    yield token_state(muse, model, stage, ids, place, original)


# --- Layout ---
SIDES = ("left", "top", "right", "bottom")
CSS = """
img { image-rendering: pixelated; }
.codes { display: flex; flex-wrap: wrap; gap: 12px; }
.codes figure { margin: 0; font-size: 14px; }
.codes img { width: 64px; height: 64px; border: 1px solid #888; }
.scale { background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725);
  height: 12px; }
.ends { display: flex; justify-content: space-between; font-size: 14px; }
progress { width: 160px; }
"""
SCALE = """<div class=scale></div><div class=ends><span>probability 0</span><span>1</span></div>
<p>A number is the pass that kept the token; red frames are those of this pass.</p>"""


def build(models: Models, first: str) -> gr.Blocks:
    """The whole page; `first` is the model that it begins with."""
    names = list(dict.fromkeys([first, *EXAMPLES]))
    with gr.Blocks(title="minimuse", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                inputs, about = left_column(models, names)
            with gr.Column(scale=3, min_width=340):
                status = gr.HTML("Press Draw.", elem_id="status")
                shared = Shared(models, inputs, status, gr.State())
                with gr.Tabs() as tabs:
                    canvases = [gr.State()]
                    with gr.Tab("Draw", id="draw"):
                        drawn = draw_tab(shared)
                    with gr.Tab("Compare", id="compare"):
                        compare_tab(shared)
                    with gr.Tab("Edit", id="edit"):
                        edit_tab(shared)
                    with gr.Tab("Tokenizer", id="tokenizer"):
                        tokenizer_tab(shared)
    return page


def left_column(models: Models, names: list[str]) -> tuple[list, list]:
    """The controls that all tabs use."""
    model = control("model", gr.Dropdown, choices=names, value=names[0])
    prompt = control("prompt", gr.Textbox, value=EXAMPLES.get(names[0], [""])[0], lines=2)
    samples = [[text] for text in EXAMPLES.get(names[0], [])]
    examples = gr.Dataset(components=[prompt], samples=samples, label="Examples")
    with gr.Accordion("Words that the captions had", open=False):
        words = gr.Textbox(vocabulary(models[names[0]]), show_label=False, max_lines=6)
    negative = control("negative", gr.Textbox)
    seed = control("seed", gr.Number, value=0, precision=0)
    n = control("n", value=1)
    with gr.Accordion("Sampling", open=False):
        values = defaults(models[names[0]])
        settings = [
            control(name, value=value) for name, value in zip(SETTINGS, values, strict=True)
        ]

    def choose(name: str) -> list:
        texts = EXAMPLES.get(name, [""])
        dataset = gr.Dataset(samples=[[text] for text in texts])
        return [texts[0], dataset, vocabulary(models[name]), *defaults(models[name])]

    model.change(choose, model, [prompt, examples, words, *settings], concurrency_id="model")
    examples.click(lambda sample: sample[0], examples, prompt)
    return [model, prompt, negative, seed, n, *settings], [examples, words]


def vocabulary(muse: Muse) -> str:
    """The words of the model's training captions."""
    return muse.about.get("vocabulary") or "This model does not say."


def image(label: str, **options: Any) -> gr.Image:
    """An image that the page shows."""
    return gr.Image(label=label, format="png", interactive=False, **options)


def draw_tab(shared: Shared) -> None:
    """Draw, watch the passes, and look at single tokens."""
    with gr.Row():
        button = gr.Button("Draw", variant="primary", elem_id="draw")
        stop = gr.Button("Stop")
    with gr.Row():
        tokens = image("Guesses; hidden tokens are hatched", elem_id="tokens")
        heat = image("Probability of each guess", elem_id="heat")
    gr.HTML(SCALE)
    step = control("step", value=1, elem_id="step")
    detail = gr.HTML("<p>Click a token to see its likeliest codes.</p>", elem_id="detail")
    gallery = gr.Gallery(label="Drawn", format="png", columns=4, elem_id="drawn")
    drawn, spot = gr.State(), gr.State()
    outputs = [tokens, heat, step, drawn, gallery, detail]
    event = on(shared, button.click, draw, [], outputs, api_name="draw")
    stop.click(None, cancels=[event])
    looked = [tokens, heat, detail]
    on(shared, step.input, look, [drawn, step, spot], looked, trigger_mode="always_last")
    for view in (tokens, heat):
        clicked = view.select(index_of, None, spot)
        on(shared, clicked.then, look, [drawn, step, spot], looked)
    return drawn


def compare_tab(shared: Shared) -> None:
    """Two samplings beside each other."""
    gr.Markdown("Both sides use the prompt, the seed and all other settings at the left.")
    components, views, rows = [], [], []
    with gr.Row():
        for letter, guidance in (("A", 0), ("B", 8)):
            with gr.Column(min_width=150):
                components += [
                    control("sampler", value="confidence"),
                    control("steps", value=12),
                    control("guidance", value=guidance),
                ]
                views.append(image(letter, elem_id=f"compare-{letter}"))
                rows.append(gr.HTML(elem_id=f"time-{letter}"))
    button = gr.Button("Compare", variant="primary", elem_id="compare")
    on(shared, button.click, compare, components, [*views, *rows])


def edit_tab(shared: Shared) -> None:
    """Inpainting, outpainting, and editing without a mask."""
    with gr.Row():
        first = gr.Button("Draw an image", elem_id="first")
        upload = gr.UploadButton("Upload an image", file_types=["image"], elem_id="upload")
    editor = gr.ImageEditor(
        type="pil",
        image_mode="RGBA",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=40, colors=["#ff00ff"], color_mode="fixed"),
        canvas_size=(shown.CELL, shown.CELL),
        label="Paint over what to draw anew",
        elem_id="editor",
        format="png",
    )
    with gr.Row():
        keep = control("keep", value=False)
        button = gr.Button("Inpaint", variant="primary", elem_id="inpaint")
    with gr.Row():
        sides = control("sides", gr.CheckboxGroup, choices=SIDES, value=["right"])
        pad = control("pad", value=32)
        outward = gr.Button("Outpaint", elem_id="outpaint")
    with gr.Row():
        iterations, share = control("iterations", value=50), control("share", value=0.08)
        whole = gr.Button("Edit without a mask", elem_id="edit")
    with gr.Row():
        before, after = image("Before", elem_id="before"), image("After", elem_id="after")
    slider = control("iteration", value=0, interactive=False, elem_id="iteration")
    history, picture = gr.State(), shared.picture
    started = [picture, editor]
    on(shared, first.click, draw_one, [], started)
    on(shared, upload.upload, take, [upload], started)
    outputs = [before, after, picture, editor, history, slider]
    on(shared, button.click, inpaint, [picture, editor, keep], outputs)
    on(shared, outward.click, outpaint, [picture, sides, pad], outputs)
    on(shared, whole.click, edit_all, [picture, iterations, share], outputs)
    options = {"trigger_mode": "always_last"}
    on(shared, slider.input, iteration, [history, slider], [after], **options)


def tokenizer_tab(shared: Shared) -> None:
    """An image as tokens, which can be changed one by one."""
    with gr.Row():
        stage = control("stage", gr.Radio, choices=["low", "high"], value="high")
        button = gr.Button("Take the image of Edit apart", variant="primary", elem_id="apart")
    with gr.Row():
        views = [image("Image"), image("From its tokens", elem_id="from"), image("Codes")]
    sheet = image("All codes; large ones are used. Click one.", elem_id="sheet")
    tokens, spot, code_spot = gr.State(), gr.State(), gr.State()
    outputs = [*views, sheet, tokens]
    on(shared, button.click, take_apart, [shared.picture, stage], outputs)
    for view in views[1:]:
        on(shared, view.select(index_of, None, spot).then, pick_token, [tokens, spot], outputs)
    clicked = sheet.select(index_of, None, code_spot)
    on(shared, clicked.then, pick_code, [tokens, code_spot], outputs)
