r"""Prompts as people type them: several composed into one, weights, an escape, a style by default.

    parse_prompt("black AND white:0.5")       # [("black", 1.0), ("white", 0.5)]

The grammar:

    PROMPT   PART, or PART AND PART AND ...
    PART     words, then perhaps a weight
    weight   a colon directly followed by a number, at the end of a part: :2 :0.5 :.5 :-1

- AND is in capitals, with white space around it. "and" is a word like any other.
- A weight needs an AND somewhere: alone, a prompt is words to its end.
- After a digit, a weight has a decimal point: "a clock at 12:30" and "a ratio of 16:9" are words.
- A backslash makes words of what it precedes: \AND is AND, \: is a colon, \\ is a backslash.

Whatever could have been meant otherwise than it is read is a warning that says how to write it.
"""

import re
from typing import Any, NamedTuple

from torch import Tensor

from minimuse.datasets.emoji import STYLES
from minimuse.plumbing.arguments import check_text, check_texts
from minimuse.plumbing.emoji_labels import label_for
from minimuse.plumbing.messages import warn
from minimuse.plumbing.ranges import check, number, shown


class Prompts(NamedTuple):
    """Embedded prompts of B images, P for each image, and one negative prompt.

    T text tokens, E text width.
    """

    text: Tensor  # (P B, T, E): the first prompt of every image, then the second, and so on
    visible: Tensor  # (P B, T) bool, True = real token
    weights: tuple[float, ...]  # one weight for each of the P prompts
    negative_text: Tensor  # (B, T, E): what guidance steers away from
    negative_visible: Tensor  # (B, T) bool, all False for the null caption


MOST_PARTS = 16
WEIGHT = number(-100, 100)

# A part's text, and its weight. After a digit, the number needs a decimal point.
WEIGHTED = re.compile(r"(.*)(?:(?<!\d):([+-]?\d+\.?)|:([+-]?\d*\.\d+))", re.DOTALL)
CLOCK_TIME = re.compile(r".*\d:\d\d", re.DOTALL)
# What looks like a weight and is none, at the end: ": 0.5", ":0,5", ":50%", ":1e-1", "(cat:1.2)";
# and before the end: "a cat:0.5 on grass", "a cat:2 and a dog".
ALMOST_A_WEIGHT = re.compile(
    r".*[:：]\s*[+-]?\s*(?:[\d.][\d.,/%eE+-]*|inf|nan)[\s)\]}]*", re.DOTALL | re.IGNORECASE
)
WEIGHT_INSIDE = re.compile(r"(?<!\d):[+-]?(?:\d*\.\d+\s|\d+\s+and\s)", re.IGNORECASE)
SEPARATOR = re.compile(r"(?:^|(?<=\s))AND(?=\s|$)")
ESCAPED = re.compile(r"\\(AND\b|:|\\)")
# Stand-ins for what is escaped, while a prompt is parsed. `check_text` refuses texts with them.
STAND_INS = {"AND": "\ud800", ":": "\ud801", "\\": "\ud802"}

# --- Styles ---
# The emoji models know five styles, and draw badly without one. The default is the one whose images
# are recognised most often: flat shapes in few colours (data/toy/README.md has the figures).
STYLE_NAMES = tuple(style.replace("-", " ") for style in STYLES)
DEFAULT_STYLE = "twemoji"
# What comes before a style at the end of a prompt, and the style.
ENDS_IN_STYLE = re.compile(
    r"([^,]*),\s*(openmoji|twemoji|noto|fluent[ -]flat|fluent[ -]3d)(?:\s+style)?\.?", re.IGNORECASE
)
# One of these words names a style.
STYLE_WORDS = re.compile(r"\b(openmoji|twemoji|noto|fluent|flat|3d)\b", re.IGNORECASE)


# --- The grammar ---
def parse_prompt(prompt: str) -> list[tuple[str, float]]:
    """Split "one thing AND another:0.5" into (words, weight) pairs; see the top of this file.

    Without AND it is one pair, of weight 1. A weight out of range is a ValueError; what may have
    been meant otherwise is a warning.
    """
    escaped = ESCAPED.sub(lambda match: STAND_INS[match[1]], prompt)
    parts = [part.strip() for part in SEPARATOR.split(escaped)]
    if len(parts) == 1 or not any(parts):
        say_if_almost_composed(prompt, escaped)
        return [(restored(escaped), 1.0)]
    if len(parts) > MOST_PARTS:
        raise ValueError(f"the prompt has {len(parts)} parts; compose at most {MOST_PARTS}")
    pairs = [parse_part(part) for part in parts]
    if not all(words for words, _ in pairs):
        warn(
            f"{shown(prompt)!r} has an empty part, which draws nothing of its own; "
            r"write \AND for the word AND"
        )
    return pairs


def parse_part(part: str) -> tuple[str, float]:
    """The words of one part, in which escaped characters stand for themselves, and its weight."""
    match = WEIGHTED.fullmatch(part)
    if match is not None:
        words = restored(match[1]).strip()
        weight = float(match[2] or match[3])
        check(f"the weight of {shown(words)!r}", weight, WEIGHT)
        return words, weight
    almost = ALMOST_A_WEIGHT.fullmatch(part) and not CLOCK_TIME.fullmatch(part)
    if almost or WEIGHT_INSIDE.search(part):
        warn(
            f"all of {shown(restored(part))!r} is read as words; a weight is a colon directly "
            r"followed by a number, at the end, such as :0.5 (write \: for a colon in words)"
        )
    return restored(part), 1.0


def say_if_almost_composed(prompt: str, escaped: str) -> None:
    """Warn if a prompt without AND ends like a part with a weight."""
    stripped = escaped.strip()
    if re.search(r"\d:\d+$", stripped):
        return  # a clock time or a ratio
    almost = WEIGHTED.fullmatch(stripped) or ALMOST_A_WEIGHT.fullmatch(stripped)
    if almost or WEIGHT_INSIDE.search(stripped):
        warn(
            f"all of {shown(prompt)!r} is read as words; a weight needs another prompt, after AND "
            r"in capitals (write \: for a colon in words)"
        )


def common_weights(parsed: list[list[tuple[str, float]]]) -> tuple[float, ...]:
    """The weights of parsed prompts, which must be the same for all images drawn together."""
    distinct = set()
    for pairs in parsed:
        distinct.add(tuple(weight for _, weight in pairs))
    if len(distinct) > 1:
        raise ValueError(
            f"prompts drawn together need the same weights; these have {sorted(distinct)}"
        )
    return distinct.pop()


def restored(escaped: str) -> str:
    """The words, with each escaped character in place of its stand-in."""
    for character, stand_in in STAND_INS.items():
        escaped = escaped.replace(stand_in, character)
    return escaped


# --- Checks ---
def check_prompts(prompts: Any, negative: Any = "", plain: bool = True) -> None:
    """Raise a ValueError if prompts are no list of texts, or if one of them cannot be encoded."""
    check_texts("prompts", prompts, "the prompt")
    if not prompts:
        raise ValueError("nothing to draw; ask for at least 1 image")
    for prompt in prompts:
        check_text("the prompt", prompt)
    check_text("the negative prompt", negative)
    if not plain and len(SEPARATOR.split(negative)) > 1:
        warn(f"the negative prompt {shown(negative)!r} is read as words: only a prompt is composed")


# --- A style by default ---
def with_style(pairs: list[tuple[str, float]], data: str) -> list[tuple[str, float]]:
    """For a model of emoji, add a style to each part that names none, and warn of that.

    `data` is what the model was trained on, as in its config.json. Other models have no styles, an
    empty part is the null caption, and a part of negative weight is not to be drawn.
    """
    if data != "emoji":
        return pairs
    completed = []
    for words, weight in pairs:
        if weight > 0 and words.strip() and STYLE_WORDS.search(words) is None:
            first = ", ".join(STYLE_NAMES[:-1])
            warn(
                f"{shown(words)!r} names no style, so it is drawn in {DEFAULT_STYLE} style; "
                f"the styles are {first} and {STYLE_NAMES[-1]}"
            )
            words = f"{words.rstrip(' ,.')}, {DEFAULT_STYLE} style"
        completed.append((words, weight))
    return completed


# --- The words that captions use ---
def in_words_of_captions(pairs: list[tuple[str, float]], data: str) -> list[tuple[str, float]]:
    """For a model of emoji, say each part as its captions do: "bicycle" for "a bike". Warn of it.

    Only parts that are words and a style, without other commas, and whose words all belong to one
    emoji (see `label_for`). `data` is as for `with_style`. A part of negative weight stays.
    """
    if data != "emoji":
        return pairs
    said = []
    for words, weight in pairs:
        match = ENDS_IN_STYLE.fullmatch(words.strip())
        label = None
        if match is not None and weight > 0:
            thing, style = match.groups()
            style = style.lower().replace("-", " ")
            label = label_for(thing, style.replace(" ", "-"))
        if label is not None:
            warn(f"{shown(thing)!r} is drawn as {label!r}, the label of this emoji in the captions")
            words = f"{label}, {style} style"
        said.append((words, weight))
    return said


# --- For one model ---
def read_prompts(
    prompts: list[str], negative: str, data: str
) -> tuple[list[list[tuple[str, float]]], str]:
    """Prompts and the negative prompt for a model that was trained on `data`.

    Each prompt is parsed, gets a style, and is said as the captions would. Equal prompts are read
    once, so that what is said of one is said once.
    """
    read = {}
    for prompt in dict.fromkeys(prompts):
        pairs = in_words_of_captions(with_style(parse_prompt(prompt), data), data)
        read[prompt] = [(in_caption_case(words, data), weight) for words, weight in pairs]
    return [read[prompt] for prompt in prompts], in_caption_case(negative, data)


def in_caption_case(words: str, data: str) -> str:
    """The words as a model's captions write them: those of emoji are all in lower case.

    `data` is as for `with_style`. To the text encoder, "Red" is another word than "red", or pieces
    of one. Captions of other data may have capitals, so words for their models stay.
    """
    return words.lower() if data == "emoji" else words
