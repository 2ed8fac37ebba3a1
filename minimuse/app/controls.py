"""Every control of the page: its label, what it is, and the lesson that explains it."""

from typing import Any

import gradio as gr

from minimuse.decode import SAMPLERS
from minimuse.schedule import LAWS

CONTROLS = {
    "model": ("Model", "Which trained model draws.", "00"),
    "prompt": ("Prompt", "What to draw. Inpainting: what the whole image should show.", "00"),
    "negative": ("Negative prompt", "What guidance steers away from.", "07"),
    "seed": ("Seed", "Starts the random numbers: the same seed draws the same image.", "06"),
    "n": ("Images", "How many to draw; each has the next seed.", "00"),
    "steps": ("Passes", "How many passes the base model takes for its tokens.", "06"),
    "guidance": ("Guidance", "How strongly to follow the prompt; 0 is no guidance.", "07"),
    "ramp": ("Ramp", "Guidance rises from pass to pass up to its value.", "07"),
    "guided_from": ("Guided from", "The fraction of the passes at which guidance starts.", "07"),
    "guided_to": ("Guided to", "The fraction of the passes at which guidance ends.", "07"),
    "temperature": ("Temperature", "0 takes the likeliest code; higher is more random.", "06"),
    "top_k": ("Top k", "Draw from the k likeliest codes only; 0 is all.", "06"),
    "sampler": ("Sampler", "Which guesses a pass keeps.", "06"),
    "choice_temperature": ("Choice temperature", "Noise on the choice of what to keep.", "06"),
    "entropy_bound": ("Entropy bound", "In nats, of the sampler entropy only.", "13"),
    "law": ("Schedule", "How many tokens stay hidden after each pass.", "04"),
    "step": ("Pass", "Go back and look at every pass.", "06"),
    "keep": ("Keep pixels", "Leave pixels outside of the painted part as they are.", "10"),
    "sides": ("Sides", "Where outpainting adds pixels.", "10"),
    "pad": ("Pixels", "How many pixels outpainting adds on each of these sides.", "10"),
    "iterations": ("Iterations", "How often the edit without a mask draws tokens anew.", "10"),
    "share": ("Share", "The fraction of the tokens that one iteration draws anew.", "10"),
    "iteration": ("Iteration", "Go back through the edit without a mask.", "10"),
    "stage": ("Tokens", "The small grid of the base model, or the large one.", "01"),
}
# Smallest value, largest value and step of each slider.
SLIDERS = {
    "n": (1, 4, 1),
    "steps": (1, 64, 1),
    "guidance": (0, 10, 0.5),
    "guided_from": (0, 1, 0.05),
    "guided_to": (0, 1, 0.05),
    "temperature": (0, 2, 0.05),
    "top_k": (0, 100, 1),
    "choice_temperature": (0, 10, 0.1),
    "entropy_bound": (0, 20, 0.5),
    "step": (1, 2, 1),
    "pad": (8, 64, 8),
    "iterations": (1, 100, 1),
    "share": (0.02, 0.5, 0.02),
    "iteration": (0, 1, 1),
}
CHOICES = {"sampler": list(SAMPLERS), "law": list(LAWS)}
SETTINGS = (
    "steps",
    "guidance",
    "sampler",
    "temperature",
    "choice_temperature",
    "top_k",
    "ramp",
    "guided_from",
    "guided_to",
    "entropy_bound",
    "law",
)


def control(name: str, kind: Any = None, **options: Any) -> Any:
    """The component of one control; a slider, a list or a switch unless `kind` says otherwise."""
    label, what, lesson = CONTROLS[name]
    options = {"label": label, "info": f"{what} Lesson {lesson}."} | options
    if name in SLIDERS:
        minimum, maximum, step = SLIDERS[name]
        return gr.Slider(minimum, maximum, step=step, **options)
    if name in CHOICES:
        return gr.Dropdown(CHOICES[name], **options)
    return (kind or gr.Checkbox)(**options)
