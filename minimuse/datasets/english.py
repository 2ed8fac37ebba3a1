"""A little English for captions: articles, plurals, and the noun that a label is about.

    with_article("orange square")             # "an orange square"
    plural("smiling face with sunglasses")    # "smiling faces with sunglasses"
    head_of("smiling face with sunglasses")   # "face"

The rules are as good as the labels and tags of emoji need. Where they are not sure, they leave a
label as it is.
"""

import re

# What comes after one of these belongs to the thing before it: "face with sunglasses".
PREPOSITION = re.compile(
    r" (?=(?:with|without|of|in|at|over|on|behind|under|showing|for|from|through|blowing|facing"
    r"|screaming|not)\b)"
)

# Nouns without an article and a plural: "bread", and not "a bread".
MASS = frozenset(
    "alcohol armor art bacon badminton baggage beef booze bread broccoli butter celery "
    "champagne cheese chocolate clothing coffee coral corn cream curry denim dna earth "
    "embroidery equipment fire fog food fruit furniture garbage garlic ginger glitter gold "
    "hair hockey honey ice information ink jewelry judo karate lacrosse laundry lightning "
    "liquor litter luggage mail makeup meat medicine milk mistletoe money music oatmeal oil "
    "paper pasta pong popcorn pork porridge rice sake salt sand seafood seaweed shampoo "
    "silver smoke snow soap soccer soda soup spaghetti steam sugar sunscreen sushi "
    "tableware tape tea tennis traffic transportation trash underwear water weather wheat "
    "wind wine wood wool yarn".split()
)

# Labels may end with a word that is no noun: "hourglass done", "chart increasing".
NO_NOUN = re.compile(
    r".*(?:[a-z]{3}ing|ed|[^a-z])|done|open|up|down|left|right|increasing|high|medium|low|full|big"
    r"|vertically|horizontally|laughing|free|dizzy|o'clock|.*-thirty|zzz|away"
    r"|star-struck|together|bald|foggy|off|wireless|radioactive|fuji"
)
# The noun of "man rowing boat" is not its last word, and "hammer and pick" has two.
OTHER_NOUN = re.compile(r'^(wo)?man |^person |^deaf |^no |^(people|men|women)\b|[:"]|\b(and|not)\b')
NOUNS_LIKE_VERBS = frozenset(
    ("building", "wedding", "painting", "earring", "pudding", "bed", "seed")
)


IRREGULAR = {
    "aircraft": "aircraft",
    "bison": "bison",
    "calf": "calves",
    "child": "children",
    "deer": "deer",
    "die": "dice",
    "elf": "elves",
    "foot": "feet",
    "goose": "geese",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mango": "mangoes",
    "merperson": "merpeople",
    "moose": "moose",
    "mosquito": "mosquitoes",
    "mouse": "mice",
    "octopus": "octopuses",
    "ox": "oxen",
    "person": "people",
    "potato": "potatoes",
    "scarf": "scarves",
    "sheaf": "sheaves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "superhero": "superheroes",
    "tomato": "tomatoes",
    "tooth": "teeth",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
    "wolf": "wolves",
    "woman": "women",
}


def with_article(label: str) -> str:
    """The label with "a" or "an" before it; a plural such as "crossed swords" stays as it is."""
    # A final s makes a plural, but not in "compass" and "cactus".
    if re.search(r"[^su]s$", label):
        return label
    return f"{article_of(label)} {label}"


def article_of(words: str) -> str:
    """ "an" before a vowel that is spoken as one: not in "one" and "unicorn", but in "hour".

    Some are wrong: "an euro", "a unimpressed face", "a x-ray". The shipped models read them so.
    """
    return "an" if re.match(r"[aei]|o(?!ne)|u(?!ni)|hour", words) else "a"


def thing_with_article(thing: str) -> str:
    """As `with_article`, but by the noun: "bread" gets none, "face with big eyes" gets "a"."""
    head = head_of(thing)
    is_plural = head in IRREGULAR.values() or with_article(head) == head
    is_bare = is_plural or head in MASS or thing.startswith("people ")
    return thing if is_bare else f"{article_of(thing)} {thing}"


def head_of(label: str) -> str:
    """The noun that a label is about: its last word, or the last before "with" and the like."""
    return PREPOSITION.split(label, maxsplit=1)[0].split()[-1]


def plural(label: str) -> str:
    """The label for several things; as it is, if it has no plural or is one."""
    phrase, *rest = PREPOSITION.split(label, maxsplit=1)
    head = phrase.split()[-1]
    is_plural = re.search(r"[^us]s$|men$", head) or head in IRREGULAR.values()
    has_other_noun = OTHER_NOUN.search(label)
    if is_plural or has_other_noun or head in MASS or not is_noun(head):
        return label
    return " ".join([phrase[: len(phrase) - len(head)] + plural_of_word(head), *rest])


def is_noun(word: str) -> bool:
    """Guess from its letters whether the last word of a label is a noun."""
    return word in NOUNS_LIKE_VERBS or not NO_NOUN.fullmatch(word)


def plural_of_word(noun: str) -> str:
    """The plural of one noun in the singular."""
    if noun.endswith("fish"):
        return noun
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith("woman") or noun.endswith("man"):
        return f"{noun[:-2]}en"
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if re.search(r"(s|x|z|ch|sh)$", noun) else f"{noun}s"
