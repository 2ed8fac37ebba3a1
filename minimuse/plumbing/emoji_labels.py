"""What the captions of emoji call the thing that a prompt asks for.

    label_for("a bike", "noto")              # "bicycle"
    label_for("a slice of pizza", "noto")    # "pizza"
    label_for("a red car", "noto")           # "automobile", whose picture in this style is red
    label_for("a bicycle", "noto")           # None: it says so already
    label_for("a cat on a bike", "noto")     # None: no emoji has all these words

Our text encoder has read a few megabytes, and the emoji models a few thousand captions. So they
draw "bicycle" well and "bike" badly. Muse's T5-XXL knows that both are the same. Here people have
said it: each emoji has a label, and tags that others search for it with.
"""

from collections.abc import Set
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

from minimuse.data import ASSETS
from minimuse.datasets import emoji
from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.datasets.english import head_of
from minimuse.plumbing.vocabulary import words_of

# Words of a prompt that do not say what is to be drawn.
SMALL_WORDS = frozenset(
    ("a", "an", "the", "of", "with", "my", "this", "some", "one", "two", "three", "in", "on", "and")
)


@dataclass(frozen=True)
class Names:
    """What one emoji is called."""

    label: str
    names: tuple[tuple[str, frozenset[str]], ...]  # of label and things: the noun, and all words
    words: frozenset[str]  # of label, things and all other tags
    colours: dict[str, str]  # for each style the colour of the picture; "" if it has no clear one


def label_for(prompt: str, style: str) -> str | None:
    """The label of the emoji that a prompt asks for in other words.

    All words of the prompt must be words of the emoji, or the colour of its picture in `style`.
    Small words such as "a" and "of" do not count. One of them must be the noun of its label or of a
    thing that it shows. If several emoji fit, it is the one with the name most like the prompt.
    None if none fits, or if the prompt is a label already.
    """
    wanted = content_words(prompt)
    known = all_names()
    if any(wanted == one.names[0][1] for one in known):
        return None
    things = wanted - set(COLOUR_WORDS)
    candidates = []
    for one in known:
        similarities = [overlap(words, things) for noun, words in one.names if noun in things]
        if similarities and things <= one.words and has_colours(one, wanted, style):
            # Of equal ones, the one that is spelt most alike.
            spelling = SequenceMatcher(None, one.label, prompt.lower()).ratio()
            candidates.append((max(similarities), spelling, one.label))
    return max(candidates)[-1] if candidates else None


def has_colours(one: Names, wanted: Set[str], style: str) -> bool:
    """Does an emoji have the colours that a prompt names, and its label no other one?"""
    colours = wanted & set(COLOUR_WORDS)
    in_label = one.names[0][1] & set(COLOUR_WORDS)
    return in_label <= colours and (colours <= one.words or colours == {one.colours.get(style)})


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


def overlap(a: Set[str], b: Set[str]) -> float:
    """The fraction of the words of two sets that are in both."""
    return len(a & b) / len(a | b)


@cache
def all_names() -> tuple[Names, ...]:
    """The names of all emoji that training has seen in some style."""
    captions, index = emoji.read_words_and_index(Path(ASSETS))
    all_of_them = []
    for concept, entry in captions.items():
        if emoji.split_of(concept, emoji.STYLES[0]) == "heldout-concept":
            continue
        label = entry["label"].lower()
        names = [
            (singular(head_of(name)), content_words(name)) for name in (label, *entry["things"])
        ]
        tags = content_words(" ".join(entry["tags"]))
        words_of_all = tags.union(*(words for _, words in names))
        colours = {
            style: index[style]["blobs"][concept][2]
            for style in emoji.STYLES
            if concept in index[style]["blobs"]
        }
        all_of_them.append(Names(label, tuple(names), words_of_all, colours))
    return tuple(all_of_them)
