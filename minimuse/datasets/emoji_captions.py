"""Sixteen ways to ask for one emoji, from the words that people gave it and from its colour.

    words = {"label": "automobile", "tags": ["car", "driving"], "things": ["car"], ...}
    emoji_captions(words, "noto", "red")
    # ("automobile, noto style", "an automobile, noto style", ..., "a red car, noto style", ...)

People ask for "a red car" and not for "automobile, vehicle". A model understands only what its
captions said, so they say it in as many ways. They are in lower case, and so are prompts when a
model of emoji reads them. Everything follows from hashes of names: nothing is random.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.datasets.english import (
    PREPOSITION,
    head_of,
    is_noun,
    plural,
    thing_with_article,
    with_article,
)
from minimuse.plumbing.device import stable_hash

# Words that a caption may put before the label: "a nice red apple".
BEFORE = (
    "the",
    "one",
    "my",
    "this",
    "some",
    "a nice",
    "a funny",
    "a simple",
    "a beautiful",
    "just a",
)

# What a caption may say the label is of: "a drawing of a red apple", "a piece of pizza".
OF = (
    "a picture",
    "an emoji",
    "a drawing",
    "an image",
    "a piece",
    "a kind",
    "an icon",
    "a bit",
    "a sort",
)
# The same, for what is whole: "an emoji of a car".
PICTURE_OF = ("a picture", "an emoji", "a drawing", "an image", "an icon")

# Tags that are the kind of a thing, the narrowest first: "a red flower".
KINDS = (
    *("bird", "insect", "fish", "flower", "fruit", "vegetable", "dessert", "drink", "pastry"),
    *("pet", "plant", "animal", "food", "boat", "vehicle", "building", "clock"),
    *("instrument", "tool", "weapon", "shoe", "hat", "clothing", "ball", "face", "arrow"),
)

# Nobody says the colour of a person (it is that of clothes or skin) or of an hour.
NO_COLOUR = ("people & body", "time")


def emoji_captions(words: dict, style: str, colour: str) -> tuple[str, ...]:
    """Sixteen captions of one image, the plainest first; each ends with the style.

    words: label, tags, things, group and subgroup, as in captions.json. colour: the picture's
    colour word; "" if it has no clear one. Where words are missing for a caption, a plainer one
    takes its place. The first eight do not depend on the colour, and are those that the model in
    data/toy was trained on; data/toy/README.md has the measurements.
    """
    label = words["label"].lower()
    if words["group"] in NO_COLOUR or words["subgroup"] in NO_COLOUR or label.startswith("no "):
        colour = ""
    pick = partial(_pick, name=f"{style} {label}")
    variants = (
        *_with_tags(label, words["tags"], style),
        *_with_things(label, words["things"], colour, style),
        _of_kind(label, words["tags"], colour, pick),
        [_reordered(label, colour, pick)],
        [plural(label)],
    )
    ending = f"{style.replace('-', ' ')} style"
    return tuple(", ".join([*parts, ending]) for parts in variants)


def _with_tags(label: str, tags: list[str], style: str) -> tuple[list[str], ...]:
    """Eight captions, each in parts between commas.

    The label; with an article; with one tag; with two more tags; with another word before it; as a
    drawing or a piece of it; after a tag; a tag alone. A model trained on the first four only
    learns those sentences by heart, and does not understand "a slice of pizza".
    """
    phrase = with_article(label)
    pick = partial(_pick, name=f"{style} {label}")
    # A tag that the label contains says nothing new: "apple" of a red apple.
    new_tags = _in_order([tag for tag in tags if tag.lower() not in label], f"{style} {label}")
    return (
        [label],
        [phrase],
        [label, *new_tags[:1]],
        [phrase, *new_tags[1:3]],
        [f"{pick(BEFORE)} {label}"],
        [f"{pick(OF)} of {pick((label, phrase))}"],
        [f"{_at(3, new_tags, label)} {label}"],
        [_at(4, new_tags, label)],
    )


def _with_things(label: str, things: list[str], colour: str, style: str) -> tuple[list[str], ...]:
    """Five captions of tags that name a thing, such as "bike", and of the colour.

    The label with its colour; a thing with its colour; a thing; a picture of one; two of them.
    """
    pick = partial(_pick, name=f"{style} {label}")
    things = _in_order(things, f"{style} {label}")
    return (
        [thing_with_article(_coloured(label, label, colour))],
        [_coloured(_at(0, things, label), label, colour)],
        [thing_with_article(_at(1, things, label))],
        [f"{pick(PICTURE_OF)} of {thing_with_article(_at(2, things, label))}"],
        _two_things(label, things, pick),
    )


def _coloured(thing: str, label: str, colour: str) -> str:
    """A thing with its colour: "red car", "sad yellow face".

    Of a label that names a colour, it is that one: a "red apple" is a red fruit, also where its
    picture is orange.
    """
    words = thing.split()
    if any(word in COLOUR_WORDS for word in words):
        return thing
    named = [word for word in label.split() if word in COLOUR_WORDS]
    colour = named[0] if named and thing != label else colour
    if not colour:
        return thing
    place = len(words) - 1
    if thing == label:
        place = 1 if label.startswith("two ") else 0
    return " ".join([*words[:place], colour, *words[place:]])


def _two_things(label: str, things: list[str], pick: Callable) -> list[str]:
    """Two things as people put them: "car vehicle", "car and vehicle", "sad tired face"."""
    if not things or (len(things) == 1 and things[0] in label):
        return [thing_with_article(label)]
    if len(things) == 1:
        return [f"{things[0]}, {label}"]
    first, second = things[:2]
    adjective, _, noun = first.rpartition(" ")
    if adjective and second.endswith(f" {noun}"):
        return [f"{adjective} {second}"]
    return [pick((f"{first} {second}", f"{first} and {second}"))]


def _of_kind(label: str, tags: list[str], colour: str, pick: Callable) -> list[str]:
    """A red flower; or: hibiscus, a flower; without a kind, the label with its article."""
    # An "envelope with arrow" is no arrow.
    others = set(label.split()) - {head_of(label)}
    kinds = [kind for kind in KINDS if kind in tags and kind not in others]
    if not kinds:
        return [with_article(label)]
    if kinds[0] in label or (colour and pick((True, False))):
        return [thing_with_article(_coloured(kinds[0], label, colour))]
    return [label, thing_with_article(kinds[0])]


def _reordered(label: str, colour: str, pick: Callable) -> str:
    """The words of a label in another order, as people remember them."""
    phrase, *rest = PREPOSITION.split(label, maxsplit=1)
    before, _, noun = phrase.rpartition(" ")
    if not re.fullmatch("[a-z' -]+", label) or not is_noun(noun) or " and" in phrase:
        return label
    if rest and before:
        return pick((f"{noun} {rest[0]}", f"{noun}, {before}, {rest[0]}"))
    if rest:
        return f"{phrase}, {rest[0]}"
    if before in COLOUR_WORDS:
        return pick((f"{noun} {before}", f"{noun} in {before}"))
    # "polo, man playing water" is nonsense.
    if before and not re.search("(man|person) ", before):
        return f"{noun}, {before}"
    return f"{label} in {colour}" if colour and not before else label


def _in_order(tags: list[str], name: str) -> list[str]:
    """Tags in an order that follows from the name, so that each style has one of its own."""
    return sorted(tags, key=lambda tag: stable_hash(f"{name} {tag}"))


def _pick(options: Sequence, name: str) -> Any:
    """One of the options, always the same one for this name."""
    return options[stable_hash(f"{name} {options[0]}") % len(options)]


def _at(i: int, tags: list[str], label: str) -> str:
    """The i-th tag, counted round the list; the label if there is no tag."""
    return tags[i % len(tags)] if tags else label
