"""Prompts as people type them: is the thing in the picture, and does it have the colour?

    from minimuse.metrics.typed import read_prompts, typed_report, typed_right
    prompts = read_prompts("prompts.csv")              # columns prompt, concepts, style, colour
    right = typed_right(prompts, images)               # images (B, 3, H, W) in [-1, 1]
    typed_report(prompts, [right])["both"]["value"]

A person asks for "a red car", and would take any of four emoji for it. So a prompt has one or more
concepts that count as right. The judge (`judge.py`) must have one of them among its ten likeliest.
The colour is the word for most of the thing's pixels (`datasets/colours.py`). Where a prompt names
no colour, any is right.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from minimuse.datasets.captions import lines_of_table
from minimuse.datasets.colours import COLOUR_WORDS, dominant_colours
from minimuse.metrics.intervals import mean_of
from minimuse.metrics.judge import TOP, Judge, features
from minimuse.plumbing.lite0 import Lite0

COLUMNS = ("prompt", "concepts", "style", "colour")


class TypedPrompt(NamedTuple):
    """What somebody typed, and what its picture should show."""

    prompt: str
    concepts: tuple[str, ...]  # any of these is right
    style: str  # empty: any; for who reads the table, since it is not judged
    colour: str  # empty: any


def read_prompts(path: str | Path) -> list[TypedPrompt]:
    """Read a table with the columns prompt, concepts (names with spaces between), style, colour.

    Raises a ValueError that names the line if it is no such table.
    """
    rows = lines_of_table(Path(path))
    _, header = next(rows, (1, []))
    if tuple(header) != COLUMNS:
        raise ValueError(f"{path}: its first line must be {','.join(COLUMNS)}")
    prompts = []
    for line, fields in rows:
        # A row may end early: then the last fields are empty.
        filled = [*fields, "", "", "", ""][: len(COLUMNS)]
        prompt, concepts, style, colour = (field.strip() for field in filled)
        place = f"{path} line {line}"
        if not prompt or not concepts:
            raise ValueError(f"{place}: a row needs a prompt and one concept or more")
        if colour and colour not in COLOUR_WORDS:
            raise ValueError(
                f"{place}: the colour is {colour!r}; it must be one of {', '.join(COLOUR_WORDS)}"
            )
        prompts.append(TypedPrompt(prompt, tuple(concepts.split()), style, colour))
    return prompts


def typed_report(
    prompts: Sequence[TypedPrompt], rights: Sequence[dict[str, list[bool]]]
) -> dict[str, dict[str, float]]:
    """How many drawings show the concept, the colour, and both.

    rights: what `typed_right` says of each drawing of all prompts. A prompt counts by the fraction
    of its drawings, and intervals are by prompts: drawings of one prompt are alike. "colour" counts
    only prompts that name one.
    """
    concept, colour = (
        torch.tensor([right[name] for right in rights]).double()  # drawings, prompts
        for name in ("concept", "colour")
    )
    named = [i for i, prompt in enumerate(prompts) if prompt.colour]
    return {
        "concept": mean_of(concept.mean(dim=0)),
        "colour": mean_of(colour[:, named].mean(dim=0)),
        "both": mean_of((concept * colour).mean(dim=0)),
    }


def typed_right(prompts: Sequence[TypedPrompt], images: torch.Tensor) -> dict[str, list[bool]]:
    """For each image whether it shows one of the concepts, and the colour that is named, if any.

    images (B, 3, H, W) in [-1, 1], one for each prompt. Needs Lite0, of the extra `eval`.
    """
    if len(prompts) != len(images):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images")
    judge = Judge.load()
    net = Lite0().to(images.device)
    _, cosines = judge.scores(features(net, images).cpu())  # B M
    likeliest = cosines.topk(TOP, dim=1).indices.tolist()
    shown_concepts = [{judge.concepts[i] for i in row} for row in likeliest]
    shown_colours = [word for word, _ in dominant_colours(images)]
    concept, colour = [], []
    for prompt, concepts, word in zip(prompts, shown_concepts, shown_colours, strict=True):
        unknown = sorted(set(prompt.concepts) - set(judge.concepts))
        if unknown:
            raise ValueError(f"{prompt.prompt!r}: the judge knows no concept {unknown[0]!r}")
        concept.append(not concepts.isdisjoint(prompt.concepts))
        colour.append(prompt.colour in ("", word))
    return {"concept": concept, "colour": colour}
