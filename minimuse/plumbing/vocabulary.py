"""The words of a model's training captions, and what to say of a prompt that has other words.

    words_of("A red T-shirt, 3D style!")      # ["a", "red", "t", "shirt", "3d", "style"]

config.json holds the vocabulary of a model: the words of its training captions, sorted, as one text
with spaces between them. `runs/training_words.py` makes it. What a word is:

- A run of letters and digits, with the apostrophes inside it: "red", "3d", "o'clock".
- Case does not matter, and all other punctuation is no part of a word.
- A hyphen separates two words, as people write both "t-shirt" and "t shirt".
- A symbol, such as an emoji, is a word of its own. So is a letter of a script without capitals, as
  Chinese or Thai has: many of these scripts put no spaces between words.
"""

import difflib
import shlex
import unicodedata
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from minimuse.plumbing.messages import warn
from minimuse.plumbing.ranges import shown

# A model with more words than this gets no vocabulary, and nothing is said of its prompts: with a
# part of the words, others would be called unknown that captions had. So many words are those of a
# crawl of the web, where hardly any word of a prompt is new, and would take half a megabyte.
MOST_WORDS = 50_000
# A message lists a vocabulary of so many characters whole, and names so many unknown words.
MOST_LISTED = 400
MOST_NAMED = 8
# For so many unknown words it gives so many near ones. To find those takes up to .2 s for a word.
MOST_COMPARED = 3
MOST_NEAR = 5

# The unknown words that the running call has told already; None outside of calls that remember it.
told: ContextVar[set[str] | None] = ContextVar("told", default=None)

Function = TypeVar("Function", bound=Callable[..., Any])


# --- Words ---
def words_of(text: str) -> list[str]:
    """The words of a text, in their order and in lower case; see the top of this file."""
    characters = []
    # NFKC makes one letter of "e" and its accent. "’" is the apostrophe of word processors.
    for character in unicodedata.normalize("NFKC", text).lower().replace("’", "'"):
        kind = unicodedata.category(character)
        if kind in ("So", "Lo"):  # symbols, and letters without capitals
            characters += [" ", character, " "]
        elif kind[0] in "LNM" or character == "'":  # letters, numbers, marks on letters
            characters.append(character)
        else:
            characters.append(" ")
    words = [word.strip("'") for word in "".join(characters).split()]
    # A mark without a letter is no word: emoji have one that asks for colours.
    return [word for word in words if word and unicodedata.category(word[0])[0] != "M"]


def distinct_words(texts: Iterable[str]) -> set[str]:
    """All words of some texts. Captions repeat most of theirs, so each is looked at once."""
    pieces: set[str] = set()
    for text in texts:
        pieces.update(text.split())
    words: set[str] = set()
    for piece in pieces:
        words.update(words_of(piece))
    return words


def vocabulary_of(words: set[str]) -> str | None:
    """A vocabulary as config.json holds it; None if there are no words, or more than MOST_WORDS."""
    if not words or len(words) > MOST_WORDS:
        return None
    return " ".join(sorted(words))


# --- Unknown words ---
def each_word_once(function: Function) -> Function:
    """Decorate a function that reads prompts several times: a call tells an unknown word once.

    Calls within a call belong to the outer one.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if told.get() is not None:
            return function(*args, **kwargs)
        token = told.set(set())
        try:
            return function(*args, **kwargs)
        finally:
            told.reset(token)

    return call


def say_unknown_words(name: str, vocabulary: str | None, prompts: Iterable[str]) -> None:
    """Warn of words in prompts that no training caption of a model had.

    name: of the model, as a user gave it. vocabulary: that of its config.json. Without one, as in
    models of older versions, nothing is said.
    """
    if vocabulary is None:
        return
    words = vocabulary.split()
    unknown = unknown_words(prompts, set(words))
    if not unknown:
        return
    named = ", ".join(repr(shown(word)) for word in unknown[:MOST_NAMED])
    if len(unknown) > MOST_NAMED:
        named += f" and {len(unknown) - MOST_NAMED} more"
    these = "this word" if len(unknown) == 1 else "these words"
    warn(
        f"{shown(name)} may not know {named}: its training captions never had {these}; "
        f"{what_to_ask(name, unknown, words)}"
    )


def unknown_words(prompts: Iterable[str], known: set[str]) -> list[str]:
    """The words of prompts that are not known, without those that this call has told already."""
    already = told.get()
    if already is None:
        already = set()
    # dict.fromkeys drops repeats and keeps the order.
    words = dict.fromkeys(word for prompt in dict.fromkeys(prompts) for word in words_of(prompt))
    unknown = [word for word in words if word not in known and word not in already]
    already.update(unknown)
    return unknown


def what_to_ask(name: str, unknown: list[str], words: list[str]) -> str:
    """The words that captions had: all, or those near the unknown ones and where to see all."""
    listed = ", ".join(words)
    if len(listed) <= MOST_LISTED:
        return f"their words are {listed}"
    where = f"minimuse describe {shlex.quote(name)} --json lists all {len(words):,} words"
    near: list[str] = []
    for word in unknown[:MOST_COMPARED]:
        near += difflib.get_close_matches(word, words, MOST_NEAR)
    if not near:
        return where
    return f"near words are {', '.join(dict.fromkeys(near))}; {where}"
