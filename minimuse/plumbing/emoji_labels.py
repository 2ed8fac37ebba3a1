"""What the captions of emoji call the thing that a prompt asks for.

    label_for("a bike", "noto")              # "bicycle"
    label_for("a slice of pizza", "noto")    # "pizza": one of its tags is "slice"
    label_for("a red car", "noto")           # "automobile", if its picture in this style is red
    label_for("a bicycle", "noto")           # None: it says so already
    label_for("a cat on a bike", "noto")     # None: no emoji has all these words

Our text encoder has read a few megabytes, and the emoji models a few thousand captions. So they
draw "bicycle" well and "bike" badly. Muse's T5-XXL knows that both are the same. Here a table says
it, data/emoji/other-names.json. It was written by hand: tags alone would make a bear of "honey".
"""

import json
from collections.abc import Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from minimuse.data import ASSETS
from minimuse.datasets import emoji
from minimuse.plumbing.vocabulary import words_of

# Words of a prompt that do not say what is to be drawn.
SMALL_WORDS = frozenset(("a", "an", "the", "of", "with", "my", "this", "some", "one", "in", "on"))


@dataclass(frozen=True)
class Names:
    """What one emoji is called."""

    label: str
    names: tuple[frozenset[str], ...]  # the words of the label, then those of each other name
    words: frozenset[str]  # of all names and tags
    colours: dict[str, str]  # for each style the colour of the picture; "" if it has no clear one


def label_for(prompt: str, style: str) -> str | None:
    """The label of the emoji that a prompt asks for in other words; None if there is none.

    The prompt must have all words of one of its names. Each further word must be one of its tags,
    or the colour of its picture in `style`. Small words such as "a" and "of" do not count. If
    several emoji fit, it is the one with the longest name. A prompt that is a label already, in the
    singular or the plural, has no other.
    """
    wanted = content_words(prompt)
    if wanted in all_labels():
        return None
    fitting = []
    for one in all_names():
        lengths = [len(name) for name in one.names if name <= wanted]
        if lengths and has_all_words(one, wanted, style):
            fitting.append((max(lengths), one.label))
    longest = max((length for length, _ in fitting), default=0)
    labels = {label for length, label in fitting if length == longest}
    # If two emoji fit equally well, it cannot be told which one is meant.
    return labels.pop() if len(labels) == 1 else None


def has_all_words(one: Names, wanted: Set[str], style: str) -> bool:
    """Does an emoji have these words as names, as tags, or as the colour of its picture?"""
    return wanted - one.words <= {one.colours.get(style)}


def content_words(text: str) -> frozenset[str]:
    """The words that say what is to be drawn, in the singular."""
    return frozenset(singular(word) for word in words_of(text) if word not in SMALL_WORDS)


def singular(word: str) -> str:
    """A word without the ending of a plural. The rest need not be a word, only always the same."""
    if len(word) > 3 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us")):
        return word[:-1]
    return word


@cache
def all_labels() -> frozenset[frozenset[str]]:
    """The words of the label of each emoji, also of those that training never sees."""
    captions, _ = emoji.read_words_and_index(Path(ASSETS))
    return frozenset(content_words(entry["label"]) for entry in captions.values())


@cache
def all_names() -> tuple[Names, ...]:
    """The names of all emoji that training has seen in some style."""
    captions, index = emoji.read_words_and_index(Path(ASSETS))
    other_names = json.loads((ASSETS / "emoji" / "other-names.json").read_text(encoding="utf-8"))
    all_of_them = []
    for concept, entry in captions.items():
        if emoji.split_of(concept, emoji.STYLES[0]) == "heldout-concept":
            continue
        label = entry["label"].lower()
        names = [content_words(name) for name in (label, *other_names.get(label, []))]
        tags = content_words(" ".join(entry["tags"]))
        colours = {
            style: index[style]["blobs"][concept][2]
            for style in emoji.STYLES
            if concept in index[style]["blobs"]
        }
        all_of_them.append(Names(label, tuple(names), tags.union(*names), colours))
    return tuple(all_of_them)
