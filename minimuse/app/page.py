"""The page: what all tabs share at the left, and four tabs. `frames.py` makes their images."""

import html
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from minimuse import edit
from minimuse.app import frames as views
from minimuse.data import from_pil, to_pil
from minimuse.datasets.image_files import read_image
from minimuse.decode import SAMPLERS
from minimuse.muse import Muse
from minimuse.plumbing.messages import one_line, warn
from minimuse.runs.rehearsal import is_out_of_memory
from minimuse.schedule import LAWS

# For each setting its name on the page, what it is, the lesson that explains it, and what it may
# be: the smallest and largest value and the step of a slider, or a list to choose from.
SETTINGS = {
    "steps": ("Passes", "How many over the small grid. Lesson 06.", (1, 64, 1)),
    "guidance": ("Guidance", "How strongly to follow the prompt; 0: off. Lesson 07.", (0, 10, 0.5)),
    "sampler": ("Sampler", "Which guesses a pass keeps. Lessons 06 and 13.", list(SAMPLERS)),
    "temperature": ("Temperature", "0 draws the likeliest codes. Lesson 06.", (0, 2, 0.05)),
    "choice_temperature": ("Choice temperature", "Noise on confidence. Lesson 06.", (0, 10, 0.1)),
    "top_k": ("Top k", "Draw from the k likeliest codes; 0: all. Lesson 06.", (0, 100, 1)),
    "ramp": ("Ramp", "Whether guidance rises from pass to pass. Lesson 07.", [True, False]),
    "guided_from": ("Guided from", "Fraction at which guidance starts. Lesson 07.", (0, 1, 0.05)),
    "guided_to": ("Guided to", "Fraction at which guidance ends. Lesson 07.", (0, 1, 0.05)),
    "entropy_bound": ("Entropy bound", "In nats, sampler entropy only. Lesson 13.", (0, 20, 0.5)),
    "law": ("Schedule", "How many tokens each pass reveals. Lesson 04.", list(LAWS)),
}
EXAMPLES = {
    "toy": ["a red apple, noto style", "a smiling cat face, fluent 3d style"],
    "toy-shapes": [
        "a large red circle on a white background",
        "two small blue squares on a grey background",
    ],
}
SIDES = ["left", "top", "right", "bottom"]
CSS = """
img { image-rendering: pixelated; }
[data-testid="block-label"] { position: static; }
#drawn img { object-fit: contain; }
#scale { background: linear-gradient(90deg, #440154, #3b528b, #21918c, #5ec962, #fde725); }
"""


# --- Settings ---
def control(name: str, **options: Any) -> gr.Slider | gr.Dropdown:
    """The component of one of SETTINGS."""
    label, info, values = SETTINGS[name]
    if isinstance(values, list):
        return gr.Dropdown(values, label=label, info=info, **options)
    return gr.Slider(*values[:2], step=values[2], label=label, info=info, **options)


def defaults(muse: Muse) -> list[Any]:
    """The model's own value of each of SETTINGS."""
    own = vars(muse.config.sampling)
    own = own | {"guided_from": own["guided"][0], "guided_to": own["guided"][1]}
    return [own[name] for name in SETTINGS]


def changed(muse: Muse, values: tuple[Any, ...]) -> dict[str, Any]:
    """Those of SETTINGS that differ from the model's, as arguments of `Muse.generate`.

    The model's own are left out, since super-resolution has others.
    """
    given, own = (dict(zip(SETTINGS, each, strict=True)) for each in (values, defaults(muse)))
    for settings in (given, own):
        settings["guided"] = settings.pop("guided_from"), settings.pop("guided_to")
    return {name: value for name, value in given.items() if value != own[name]}


# --- Draw ---
# These functions return, or yield, the status line and what the outputs of an event become. `asked`
# has the prompt, the negative prompt, the seed and the settings: arguments of `Muse.generate`.
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
    images = [Image.fromarray(pixels) for pixels in views.decoded(muse, frame.ids, "high")]
    yield f"Drawn in {step} passes.", *[gr.skip()] * 5, images, images[0]


def shown(muse: Muse, asked: dict, drawn: tuple, step: int, spot: Any = None) -> tuple:
    """The status of one pass, its guesses, its probabilities, and the codes of the token at `spot`.

    `drawn` is what was asked for a drawing, and its passes.
    """
    asked, drawing = drawn
    frame = drawing[step - 1]
    kept = frame.kept > 0
    grid = {"low": "the small grid", "high": "the large grid"}[frame.stage]
    status = f"<progress value={kept.mean()}></progress> Pass {frame.number} over {grid}, guidance "
    status += f"{frame.guidance:.2g}: {kept[0].sum()} of {kept.shape[1]} tokens are kept."
    codes = []
    if spot is not None:
        b, token = views.token_at(frame.ids, spot)
        when = f"kept in pass {frame.kept[b, token]}" if kept[b, token] else "hidden again"
        status += f"<br>The token in the frame has code {frame.ids[b, token]}, {when}."
        p = views.code_probabilities(muse, asked, drawing, frame, b, token)
        order, images = views.all_codes(muse, frame.stage)
        for code in p.topk(5).indices.tolist():
            patch = Image.fromarray(images[order == code][0])
            codes.append((patch, f"code {code}: {p[code]:.1%}"))
    return status, views.guesses(muse, frame, spot), views.heat(frame, spot), codes


# --- Compare ---
def compare(muse: Muse, asked: dict, *both: Any) -> Iterator[tuple]:
    """Draw with two samplings, and tell how long each takes."""
    images: list[Any] = [gr.skip(), gr.skip()]
    for i, values in enumerate((both[:3], both[3:])):
        settings = dict(zip(("sampler", "steps", "guidance"), values, strict=True))
        start = time.perf_counter()
        drawing = list(views.frames(muse, 1, **asked | settings))
        label = f"{len(drawing)} passes, {time.perf_counter() - start:.1f} s"
        images[i] = gr.Image(views.guesses(muse, drawing[-1]), label=label)
        yield f"{'AB'[i]} is drawn.", *images


# --- Edit: the status, the images before and after, and the image to edit next ---
def take(muse: Muse, asked: dict, path: str) -> tuple:
    """Read an image, and scale it to the size of the model's images."""
    try:
        image = read_image(Path(path))
    except ValueError as error:  # of a file in a folder of Gradio's, which nobody knows
        raise ValueError(str(error).replace(str(Path(path).parent) + "/", "")) from None
    size = f"{image.width}x{image.height}"
    image.thumbnail([muse.config.tokenizer_hi.side] * 2, Image.Resampling.LANCZOS)
    return f"An image of {size} pixels, here {image.width}x{image.height}.", image


def inpaint(muse: Muse, asked: dict, picture: Any, editor: dict) -> tuple:
    """Draw the painted part anew."""
    mask = np.zeros((picture.height, picture.width), np.uint8)
    for layer in editor["layers"]:
        alpha = layer.getchannel("A").resize(picture.size, Image.Resampling.BOX)
        mask[np.asarray(alpha) > 0] = 255
    (image,) = edit.inpaint(muse, picture, Image.fromarray(mask), **asked)
    return "The painted part is drawn anew.", (big(picture), big(image)), image


def outpaint(muse: Muse, asked: dict, picture: Any, sides: list[str], pad: int) -> tuple:
    """Draw beside the image."""
    around = tuple(pad if side in sides else 0 for side in SIDES)
    (image,) = edit.outpaint(muse, picture, pad=around, **asked)
    return f"Now {image.width}x{image.height} pixels.", (big(picture), big(image)), image


def change(muse: Muse, asked: dict, picture: Any, count: int, share: float) -> Iterator[tuple]:
    """Change the whole image without a mask, and show each iteration."""
    for i, low in enumerate(edit.edits(muse, picture, iterations=count, share=share, **asked)):
        (image,) = to_pil(muse.pixels(low, "low"))
        status = f"<progress value={i} max={count}></progress> Iteration {i} of {count}."
        yield status, (big(picture), big(image)), gr.skip()
    (image,) = edit.finish(muse, picture, low=low, **asked)
    yield f"Changed in {count} iterations.", (big(picture), big(image)), image


def big(image: Image.Image) -> Image.Image:
    """An image of any shape, enlarged."""
    return views.enlarged(np.asarray(image))


# --- Tokenizer ---
def take_apart(muse: Muse, asked: dict, picture: Any, stage: str) -> tuple:
    """Turn the image into tokens, and these into an image."""
    small = picture.copy()
    small.thumbnail([muse.config.tokenizer_hi.side] * 2)
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


# --- Layout ---
class Page:
    """The components that tabs share, and the tabs."""

    def __init__(self, load: Callable[[str], Muse], first: str):
        self.load = load
        with gr.Row():
            with gr.Column(min_width=300):
                self.left_column(list(dict.fromkeys([first, *EXAMPLES])))
            with gr.Column(scale=3, min_width=340):
                self.status = gr.HTML("Press Draw.", elem_id="status")
                self.picture = gr.State()  # which is edited, and taken apart
                tabs = self.draw_tab, self.compare_tab, self.edit_tab, self.tokenizer_tab
                for title, fill in zip(("Draw", "Compare", "Edit", "Tokenizer"), tabs, strict=True):
                    with gr.Tab(title) as tab:
                        fill(tab)

    def on(self, trigger: Any, function: Callable, extra: list, outputs: list, **options: Any):
        """On an event call function(muse, asked, *extra); see the comment above `draw`.

        The model works for one visitor at a time. What goes wrong becomes one line in the page. The
        first of `extra` is what the function cannot do without.
        """

        def result(name: str, prompt: str, negative: str, seed: int, *values: Any) -> Iterator:
            settings, own = values[: len(SETTINGS)], values[len(SETTINGS) :]
            if own and own[0] is None:
                raise ValueError("there is nothing to work on yet: draw an image, or upload one")
            muse = self.load(name)
            asked = {"prompt": prompt, "negative": negative, "seed": seed}
            returned = function(muse, asked | changed(muse, settings), *own)
            yield from [returned] if isinstance(returned, tuple) else returned

        def run(*values: Any) -> Iterator[list]:
            results, notes = result(*values), []
            while True:
                try:
                    # Around one result only: between two of them, others may be warned.
                    with warnings.catch_warnings(record=True) as heard:
                        warnings.simplefilter("ignore")
                        warnings.simplefilter("always", UserWarning)
                        status, *updates = next(results)
                except StopIteration:
                    return
                except (ValueError, OSError, MemoryError, RuntimeError) as error:
                    if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                        raise
                    status, updates, heard = "", [gr.skip()] * len(outputs), [error]
                for each in heard:
                    notes.append(html.escape(one_line(getattr(each, "message", each))))
                    gr.Warning(notes[-1])
                yield ["<br>".join(filter(None, [status, *notes])), *updates]

        queue = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden"}
        inputs = [*self.inputs, *extra]
        return trigger(run, inputs, [self.status, *outputs], **queue, **options)

    def left_column(self, names: list[str]) -> None:
        """The controls that all tabs use."""
        _, text, words, *own = self.about(names[0])
        info = "Which trained model draws. Lesson 00."
        model = gr.Dropdown(names, value=names[0], label="Model", info=info, elem_id="model")
        info = "What the whole image should show. Lesson 00."
        prompt = gr.Textbox(text, label="Prompt", info=info, lines=2, elem_id="prompt")
        samples = [[text] for text in EXAMPLES.get(names[0], [])]
        examples = gr.Dataset(components=[prompt], samples=samples, label="Examples")
        info = "What guidance steers away from. Lesson 07."
        negative = gr.Textbox(label="Negative prompt", info=info)
        info = "The same seed draws the same image. Lesson 06."
        seed = gr.Number(0, precision=0, label="Seed", info=info, elem_id="seed")
        with gr.Accordion("Sampling", open=False):
            pairs = zip(SETTINGS, own, strict=True)
            settings = [control(name, value=value, elem_id=name) for name, value in pairs]
        info = "All words of the captions in its training. Lesson 03."
        known = gr.Textbox(words, label="Known words", info=info, max_lines=3, elem_id="words")
        self.inputs = [model, prompt, negative, seed, *settings]
        model.change(self.about, model, [examples, prompt, known, *settings])
        examples.click(lambda sample: sample[0], examples, prompt)

    def about(self, name: str) -> list:
        """The examples of a model, the first of them, the words that it knows, and its settings."""
        muse, texts = self.load(name), EXAMPLES.get(name, [""])
        samples = gr.update(samples=[[text] for text in texts])
        return [samples, texts[0], muse.about.get("vocabulary") or "", *defaults(muse)]

    def draw_tab(self, tab: gr.Tab) -> None:
        """Draw, watch the passes, and look at single tokens."""
        with gr.Row():
            info = "How many to draw; each has the next seed. Lesson 00."
            n = gr.Radio([1, 2, 4], value=1, label="Images", info=info, elem_id="n")
            button = gr.Button("Draw", variant="primary", elem_id="draw")
        info = (
            "Go back through all passes, and click a token to see its likeliest codes. Lesson 06."
        )
        step = gr.Slider(1, 2, step=1, label="Pass", info=info, elem_id="step")
        with gr.Row():
            tokens = image("Guesses of this pass; hatched: hidden again", "tokens")
            heat = image("Probability of each guess; number: pass that kept it", "heat")
        gr.HTML("<b style='color: white'>0</b><b style='float: right'>1</b>", elem_id="scale")
        options = {"format": "png", "columns": 5, "fit_columns": False, "allow_preview": False}
        label = "The five likeliest codes of the token in the frame, when it was drawn"
        codes = gr.Gallery(label=label, height=200, elem_id="likely", **options)
        drawn = gr.Gallery(label="Drawn", height=240, elem_id="drawn", **options)
        drawing, spot = gr.State(), gr.State()
        outputs = [tokens, heat, codes, drawing, step, drawn, self.picture]
        self.on(button.click, draw, [n], outputs, api_name="draw")
        looks = shown, [drawing, step, spot], [tokens, heat, codes]
        self.on(step.input, *looks, trigger_mode="always_last")
        for view in (tokens, heat):
            self.on(view.select(pixel_of, None, spot).then, *looks)

    def compare_tab(self, tab: gr.Tab) -> None:
        """Two samplings beside each other; all else is as at the left."""
        values = []
        with gr.Row():
            for guidance in (0, 8):
                with gr.Column(min_width=150):
                    values += [control("sampler", value="confidence"), control("steps", value=12)]
                    values += [control("guidance", value=guidance)]
        button = gr.Button("Compare", variant="primary", elem_id="compare")
        with gr.Row():
            images = [image("A", "compare-a"), image("B", "compare-b")]
        self.on(button.click, compare, values, images)

    def edit_tab(self, tab: gr.Tab) -> None:
        """Inpainting, outpainting, and editing without a mask."""
        upload = gr.UploadButton("Upload an image", file_types=["image"], elem_id="upload")
        brush = gr.Brush(40, colors=["#ff00ff"], color_mode="fixed")
        options = {"type": "pil", "format": "png", "sources": (), "transforms": (), "layers": False}
        size = {"canvas_size": (views.SIDE, views.SIDE), "height": 480}
        with gr.Row():
            title = "The image: paint over what to draw anew"
            editor = gr.ImageEditor(label=title, brush=brush, elem_id="editor", **options, **size)
            both = gr.ImageSlider(label="Before | after", format="png", elem_id="both")
        paint = gr.Button("Inpaint the painted part", variant="primary", elem_id="inpaint")
        with gr.Row():
            info = "Where to add pixels. Lesson 10."
            sides = gr.CheckboxGroup(SIDES, value=["right"], label="Sides", info=info)
            pad = gr.Slider(8, 64, 32, step=8, label="New pixels", info="On each side. Lesson 10.")
            beside = gr.Button("Outpaint", elem_id="outpaint")
        with gr.Row():
            info = "More change the image more. Lesson 10."
            count = gr.Slider(1, 100, 50, step=1, label="Iterations", info=info, elem_id="count")
            info = "The fraction of tokens that each draws anew. Lesson 10."
            share = gr.Slider(0.02, 0.5, 0.08, step=0.02, label="Share", info=info)
            whole = gr.Button("Edit without a mask", elem_id="edit")
        outputs = [both, self.picture]
        self.on(upload.upload, take, [upload], [self.picture])
        self.on(paint.click, inpaint, [self.picture, editor], outputs)
        self.on(beside.click, outpaint, [self.picture, sides, pad], outputs)
        self.on(whole.click, change, [self.picture, count, share], outputs)
        self.picture.change(canvas, self.picture, editor)

    def tokenizer_tab(self, tab: gr.Tab) -> None:
        """The image as tokens, which can be changed one by one."""
        info = "Of the small grid, or of the large one. Lesson 01."
        stage = gr.Radio(["low", "high"], value="high", label="Tokens", info=info, elem_id="stage")
        with gr.Row():
            original = image("The image", "original")
            whole = image("The image from its tokens: click one", "whole")
            colours = image("The tokens: each code has a colour", "map")
        codes = image("All codes, from dark to bright; pale: not used. Click a new one", "codes")
        ids, spot, clicked = gr.State(), gr.State(), gr.State()
        outputs = [whole, colours, codes, ids, spot]
        for event in (tab.select, stage.change):
            self.on(event, take_apart, [self.picture, stage], [*outputs, original])
        for view in (whole, colours):
            self.on(view.select(pixel_of, None, spot).then, of_tokens, [ids, stage, spot], outputs)
        picks = codes.select(pixel_of, None, clicked)
        self.on(picks.then, replace, [spot, ids, stage, clicked], outputs)


def image(label: str, name: str) -> gr.Image:
    """An image that the page shows."""
    return gr.Image(label=label, elem_id=name, format="png", interactive=False, buttons=[])


def pixel_of(event: gr.SelectData) -> list[int]:
    """Where an image was clicked."""
    return list(event.index)


def canvas(image: Image.Image) -> dict[str, Any]:
    """An image for the editor, with nothing painted."""
    return {"background": big(image), "layers": [], "composite": None}


def build(load: Callable[[str], Muse], first: str) -> gr.Blocks:
    """The page; `load` gives a model by name, and `first` is the one to begin with."""
    with gr.Blocks(title="minimuse", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        Page(load, first)
    return blocks
