"""The page: what all tabs share at the left, and four tabs. `frames.py` makes their images."""

import html
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from minimuse.app import events
from minimuse.app.frames import SIDE
from minimuse.app.turns import Turns
from minimuse.decode import SAMPLERS
from minimuse.muse import Muse
from minimuse.plumbing.messages import one_line, warn
from minimuse.runs.rehearsal import is_out_of_memory
from minimuse.schedule import LAWS

# For each setting its name on the page, what it is, the lesson that explains it, and what it may
# be: the smallest and largest value and the step of a slider, or a list to choose from.
SETTINGS = {
    "steps": ("Passes", "How many over the small grid. Lesson 06.", (1, 64, 1)),
    "guidance": (
        "Guidance",
        "0 follows the prompt, too; more does so harder, and rougher. Lesson 07.",
        (0, 10, 0.5),
    ),
    "sampler": ("Sampler", "Which guesses a pass keeps. Lessons 06 and 13.", list(SAMPLERS)),
    "temperature": ("Temperature", "0 draws the likeliest codes. Lesson 06.", (0, 2, 0.05)),
    "choice_temperature": ("Choice temperature", "Noise on confidence. Lesson 06.", (0, 10, 0.1)),
    "top_k": ("Top k", "Draw from the k likeliest codes; 0: all. Lesson 06.", (0, 100, 1)),
    "mean_vectors": (
        "Mean vectors",
        "Images of the mean of all codes by probability. Lesson 08.",
        [True, False],
    ),
    "ramp": ("Ramp", "Whether guidance rises from pass to pass. Lesson 07.", [True, False]),
    "guided_from": ("Guided from", "Fraction at which guidance starts. Lesson 07.", (0, 1, 0.05)),
    "guided_to": ("Guided to", "Fraction at which guidance ends. Lesson 07.", (0, 1, 0.05)),
    "entropy_bound": ("Entropy bound", "In nats, sampler entropy only. Lesson 13.", (0, 20, 0.5)),
    "law": ("Schedule", "How many tokens each pass reveals. Lesson 04.", list(LAWS)),
}
EXAMPLES = {
    "toy": ["a red apple, noto style", "a grinning cat, fluent 3d style"],
    "toy-shapes": [
        "a large red circle on a white background",
        "two small blue squares on a grey background",
    ],
}
DESCRIBE = re.compile("minimuse describe .*? lists")
# So many events run at once and take turns. Each holds one of Gradio's 40 threads; the others are
# for what is quick, such as noting where an image was clicked.
AT_ONCE = 20
CSS = """
.info { color: var(--block-info-text-color); font-size: var(--block-info-text-size); }
.info { margin-top: -8px; }
img { image-rendering: pixelated; }
[data-testid="block-label"] { position: static; }
#likely .caption-label { white-space: normal; max-width: 100%; inset: auto 0 0 auto; padding: 2px; }
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
    # The finished image is what a visitor looks at.
    own = own | {"mean_vectors": muse.config.sampling_hi.mean_vectors}
    return [own[name] for name in SETTINGS]


def changed(muse: Muse, values: tuple[Any, ...]) -> dict[str, Any]:
    """Those of SETTINGS that differ from the model's, as arguments of `Muse.generate`.

    The model's own are left out, since super-resolution has others.
    """
    given, own = (dict(zip(SETTINGS, each, strict=True)) for each in (values, defaults(muse)))
    for settings in (given, own):
        settings["guided"] = settings.pop("guided_from"), settings.pop("guided_to")
    return {name: value for name, value in given.items() if value != own[name]}


# --- Layout ---
class Page:
    """The components that tabs share, and the tabs."""

    def __init__(self, load: Callable[[str], Muse], first: str):
        self.load = load
        self.turns = Turns()
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

    def on(
        self,
        trigger: Any,
        function: Callable,
        extra: list,
        outputs: list,
        missing: str = "there is no image yet: draw one, or upload one",
        **options: Any,
    ):
        """On an event call function(muse, asked, *extra); see `events.py`.

        Several events run at once, and each takes a turn at the model for each of its results. What
        goes wrong becomes one line in the page. The function cannot do without the first of
        `extra`: if that is None, the line is `missing`.
        """

        def results(name: str, prompt: str, negative: str, seed: int, *values: Any) -> Iterator:
            settings, own = values[: len(SETTINGS)], values[len(SETTINGS) :]
            asked = {"prompt": prompt, "negative": negative, "seed": seed}
            try:
                if own and own[0] is None:
                    raise ValueError(missing)
                if seed is None:
                    raise ValueError("the seed is empty: give a whole number, such as 0")
                muse = self.load(name)
                returned = function(muse, asked | changed(muse, settings), *own)
                yield from [returned] if isinstance(returned, tuple) else returned
            except (ValueError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                warn(str(error))
                yield "", *[gr.skip()] * len(outputs)

        def run(*values: Any) -> Iterator[list]:
            returned, notes = results(*values), []
            while True:
                # Warnings are recorded for all threads at once, so only one may do this: in a turn.
                with self.turns.turn(), warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("ignore")
                    warnings.simplefilter("always", UserWarning)
                    result = next(returned, None)
                if result is None:
                    return
                for each in heard:
                    # The page itself lists the words that a model knows.
                    text = DESCRIBE.sub("the column at the left lists", one_line(each.message))
                    # Both sides of a comparison, and each click on a token, read the prompt again.
                    if html.escape(text) not in notes:
                        notes.append(html.escape(text))
                        gr.Warning(notes[-1], duration=5)
                status, *updates = result
                yield ["<br>".join(filter(None, [status, *notes])), *updates]

        queue = {"concurrency_id": "model", "concurrency_limit": AT_ONCE, "show_progress": "hidden"}
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
        title = "Examples: click one to make it the prompt"
        examples = gr.Dataset(components=[prompt], samples=samples, label=title)
        info = "The same seed draws the same image. Lesson 06."
        seed = gr.Number(0, precision=0, label="Seed", info=info, elem_id="seed")
        with gr.Accordion("Sampling: how tokens are drawn", open=False):
            info = "What guidance steers away from. Lesson 07."
            negative = gr.Textbox("", label="Negative prompt", info=info)
            pairs = zip(SETTINGS, own, strict=True)
            settings = [control(name, value=value, elem_id=name) for name, value in pairs]
        with gr.Accordion("Words that the model knows", open=False):
            info = "All words of the captions in its training. Lesson 03."
            known = gr.Textbox(words, label="Known words", info=info, max_lines=8, elem_id="words")
        self.inputs = [model, prompt, negative, seed, *settings]
        model.change(self.about, model, [examples, prompt, known, *settings])
        examples.click(lambda sample: sample[0], examples, prompt)

    def about(self, name: str) -> list:
        """The examples of a model, the first of them, the words that it knows, and its settings."""
        with self.turns.turn():
            muse = self.load(name)
        texts = EXAMPLES.get(name, [""])
        samples = gr.update(samples=[[text] for text in texts])
        return [samples, texts[0], muse.about.get("vocabulary") or "", *defaults(muse)]

    def draw_tab(self, tab: gr.Tab) -> None:
        """Draw, watch the passes, and look at single tokens."""
        with gr.Row():
            info = "How many to draw; each has the next seed. Lesson 00."
            n = gr.Radio([1, 2, 4], value=1, label="Images", info=info, elem_id="n")
            info = "Draw the prompt, and watch each pass. Lesson 06."
            self.draw = button("Draw", "draw", info, variant="primary")
        info = "Go back through the passes. Click a token for its likeliest codes. Lesson 06."
        step = gr.Slider(1, 2, step=1, label="Pass", info=info, elem_id="step")
        with gr.Row():
            tokens = image("Guesses of this pass; hatched: not kept", "tokens")
            heat = image("Probability of each guess; number: pass that kept it", "heat")
        gr.HTML("<b style='color: white'>0</b><b style='float: right'>1</b>", elem_id="scale")
        note(
            "Each pass guesses all hidden tokens, and keeps some of them (red frames): those with "
            "the largest probabilities, once noise is added (Choice temperature). Lesson 06. "
            "The base model fills the small grid, then super-resolution the large one. Lesson 08."
        )
        options = {"format": "png", "columns": 5, "fit_columns": False, "allow_preview": False}
        label = "Likeliest codes of the token in the pink frame, when drawn: probability (code)"
        codes = gr.Gallery(label=label, height=200, elem_id="likely", **options)
        drawn = gr.Gallery(label="Drawn", height=240, elem_id="drawn", **options)
        drawing, spot = gr.State(), gr.State()
        outputs = [tokens, heat, codes, drawing, step, drawn, self.picture]
        self.on(self.draw.click, events.draw, [n], outputs, api_name="draw")
        looks = events.shown, [drawing, step, spot], [tokens, heat, codes]
        self.on(step.input, *looks, trigger_mode="always_last")
        for view in (tokens, heat):
            self.on(view.select(pixel_of, None, spot).then, *looks)

    def compare_tab(self, tab: gr.Tab) -> None:
        """Two samplings beside each other; all else is as at the left."""
        note("A and B have these settings of their own. All others are those at the left.")
        values = []
        with gr.Row():
            for name, guidance in (("A", 0), ("B", 8)):
                with gr.Column(min_width=150):
                    note(f"<b>{name}</b>")
                    values += [control("sampler", value="confidence"), control("steps", value=12)]
                    values += [control("guidance", value=guidance)]
        info = "Draw one seed with the left settings (A) and the right ones (B). Lessons 06 and 07."
        compare = button("Compare", "compare", info, variant="primary")
        with gr.Row():
            images = [image("A", "compare-a"), image("B", "compare-b")]
        self.on(compare.click, events.compare, values, images)

    def edit_tab(self, tab: gr.Tab) -> None:
        """Inpainting, outpainting, and editing without a mask."""
        info = "Edit an image of your own instead of the last drawing. Lesson 10."
        files = {"kind": gr.UploadButton, "file_types": ["image"]}
        upload = button("Upload an image", "upload", info, **files)
        brush = gr.Brush(40, colors=["#ff00ff"], color_mode="fixed")
        options = {"type": "pil", "format": "png", "sources": (), "transforms": (), "layers": False}
        size = {"canvas_size": (SIDE, SIDE), "height": 480}
        note("Paint over the part that is to be drawn anew, with the brush. Lesson 10.")
        with gr.Row():
            # The editor hides its label.
            editor = gr.ImageEditor(
                show_label=False, brush=brush, elem_id="editor", **options, **size
            )
            both = gr.ImageSlider(
                label="Before | after; grey: was not there", format="png", elem_id="both"
            )
        info = "Draw the painted part anew, for the prompt. The rest stays. Lesson 10."
        paint = button("Inpaint the painted part", "inpaint", info, variant="primary")
        with gr.Row():
            info = "Where to add pixels. Lesson 10."
            sides = gr.CheckboxGroup(events.SIDES, value=["right"], label="Sides", info=info)
            pad = gr.Slider(8, 64, 32, step=8, label="New pixels", info="On each side. Lesson 10.")
            info = "Draw new pixels at these sides, for the prompt. Lesson 10."
            beside = button("Outpaint", "outpaint", info)
        with gr.Row():
            info = "More change the image more. Lesson 10."
            count = gr.Slider(1, 100, 50, step=1, label="Iterations", info=info, elem_id="count")
            info = "The fraction of tokens that each draws anew. Lesson 10."
            share = gr.Slider(0.02, 0.5, 0.08, step=0.02, label="Share", info=info)
            info = "Draw some tokens anew again and again, for the prompt. Lesson 10."
            whole = button("Edit without a mask", "edit", info)
        info = "Go back through the iterations. The last is after super-resolution. Lesson 10."
        step = gr.Slider(0, 1, step=1, label="Iteration", info=info, elem_id="iteration")
        edited = gr.State()  # the last one without a mask
        outputs = [both, self.picture]
        self.on(upload.upload, events.take, [upload], [self.picture])
        gr.on([upload.upload, self.draw.click], lambda: None, None, both)
        self.on(paint.click, events.inpaint, [self.picture, editor], outputs)
        self.on(beside.click, events.outpaint, [self.picture, sides, pad], outputs)
        inputs = [self.picture, count, share]
        self.on(whole.click, events.change, inputs, [*outputs, edited, step])
        looks = events.iteration, [edited, step], [both]
        self.on(step.input, *looks, trigger_mode="always_last")
        self.picture.change(events.canvas, self.picture, editor)

    def tokenizer_tab(self, tab: gr.Tab) -> None:
        """The image as tokens, which can be changed one by one."""
        note("This is the last image that was drawn, uploaded or edited.")
        info = "Those of the base model, or those of super-resolution. Lesson 01."
        grids = [("small grid", "low"), ("large grid", "high")]
        stage = gr.Radio(grids, value="high", label="Tokens", info=info, elem_id="stage")
        with gr.Row():
            original = image("The image", "original")
            whole = image("The image from its tokens: click one", "whole")
            colours = image("The tokens: each code has a colour", "map")
        codes = image(
            "All codes, from dark to bright; pale: not in this image. Click a new one", "codes"
        )
        ids, spot, clicked = gr.State(), gr.State(), gr.State()
        outputs = [whole, colours, codes, ids, spot]
        for event in (tab.select, stage.change):
            self.on(event, events.take_apart, [self.picture, stage], [*outputs, original])
        for view in (whole, colours):
            picked = view.select(pixel_of, None, spot)
            self.on(picked.then, events.of_tokens, [ids, stage, spot], outputs)
        picked = codes.select(pixel_of, None, clicked)
        first = "click a token of the image first, and then its new code"
        self.on(picked.then, events.replace, [spot, ids, stage, clicked], outputs, missing=first)


def image(label: str, name: str) -> gr.Image:
    """An image that the page shows."""
    return gr.Image(label=label, elem_id=name, format="png", interactive=False, buttons=[])


def button(text: str, name: str, info: str, kind: type = gr.Button, **options: Any) -> gr.Button:
    """A button, and below it one line: what it does, and the lesson that explains it."""
    with gr.Column(min_width=160):
        made = kind(text, elem_id=name, **options)
        note(info)
    return made


def note(text: str) -> None:
    """A line of small text."""
    gr.HTML(text, padding=False, elem_classes="info")


def pixel_of(event: gr.SelectData) -> list[int]:
    """Where an image was clicked."""
    return list(event.index)


def build(load: Callable[[str], Muse], first: str) -> gr.Blocks:
    """The page; `load` gives a model by name, and `first` is the one to begin with."""
    with gr.Blocks(title="minimuse", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        Page(load, first)
    return blocks
