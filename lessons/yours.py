"""Train the overture with your own functions, those of the exercises of lessons 05 to 07.

    python lessons/yours.py --out yours.png

Each function that `minimuse check` accepts takes the place of the overture's. The others stay the
overture's, so you can begin with one. All flags are those of `overture.py`.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from minimuse.checks.check import check_lesson
from torch import Tensor

from minimuse.decode import Sampling

OVERTURE = Path(__file__).with_name("overture.py")
LESSONS = ("05", "06", "07")


def main() -> None:
    overture = load_overture()
    yours = accepted_functions()
    names = put_in(overture, yours)
    print(f"yours: {', '.join(names) or 'nothing yet, so this is the overture as it is'}")
    overture.main()


def load_overture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("overture", OVERTURE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def accepted_functions() -> dict[str, Callable]:
    """Your functions by name, without those whose properties do not hold yet."""
    functions = {}
    for number in LESSONS:
        for result in check_lesson(number, package=False):
            if result.failure is None:
                functions[result.exercise.name] = result.function
    return functions


def put_in(overture: ModuleType, yours: dict[str, Callable]) -> list[str]:
    """Put your functions into the overture, and return the names of those that have a place."""
    names = [name for name in ADAPTERS if name in yours]
    for name in names:
        place, adapt = ADAPTERS[name]
        setattr(overture, place, adapt(overture, yours[name]))
    return names


# --- Your functions, with the arguments of the overture's ---
def adapt_attend(overture: ModuleType, attend: Callable) -> Callable:
    def attend_all(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attend(q, k, v, None, bias)

    return attend_all


def adapt_hide(overture: ModuleType, hide: Callable) -> Callable:
    def which_to_hide(ids: Tensor, generator: torch.Generator) -> Tensor:
        _, hidden = hide(ids, overture.MASK, generator)
        return hidden

    return which_to_hide


def adapt_drop_captions(overture: ModuleType, drop_captions: Callable) -> Callable:
    def drop_words(words: Tensor, generator: torch.Generator) -> Tensor:
        visible = drop_captions(torch.ones_like(words, dtype=torch.bool), 0.1, generator)
        return words.masked_fill(~visible, 0)

    return drop_words


def adapt_loss(overture: ModuleType, masked_token_loss: Callable) -> Callable:
    def masked_loss(
        model: Callable, ids: Tensor, words: Tensor, generator: torch.Generator
    ) -> Tensor:
        hidden = overture.hide(ids, generator)
        words = overture.drop_captions(words, generator)
        logits = model(ids.masked_fill(hidden, overture.MASK), words)
        loss, _ = masked_token_loss(logits[hidden], ids, hidden)
        return loss

    return masked_loss


def adapt_guide(overture: ModuleType, guide: Callable) -> Callable:
    return guide


def adapt_decode(overture: ModuleType, decode: Callable) -> Callable:
    """Your loop of lesson 06 has a generator for each image, and knows nothing of guidance."""

    @torch.no_grad()
    def decode_guided(
        model: Callable, words: Tensor, generator: torch.Generator, passes: int = overture.PASSES
    ) -> Tensor:
        def guided(ids: Tensor, words: Tensor) -> Tensor:
            cond, uncond = model(ids, words), model(ids, 0 * words)  # B N K
            unlikely = cond < cond.topk(overture.TOP).values[..., -1:]
            logits = overture.guide(cond, uncond, overture.GUIDANCE)
            return logits.masked_fill(unlikely, float("-inf"))

        ids = torch.full((len(words), overture.N), overture.MASK)
        seeds = torch.randint(2**31, (len(words),), generator=generator).tolist()
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        sampling = Sampling(steps=passes, choice_temperature=overture.CHOICE)
        *_, last = decode(guided, ids, overture.MASK, words, sampling, generators)
        return last.ids

    return decode_guided


# The name of your function: the name of the overture's, and what gives yours its arguments.
ADAPTERS = {
    "attend": ("attend", adapt_attend),
    "hide": ("hide", adapt_hide),
    "drop_captions": ("drop_captions", adapt_drop_captions),
    "masked_token_loss": ("masked_loss", adapt_loss),
    "guide": ("guide", adapt_guide),
    "decode": ("decode", adapt_decode),
}


if __name__ == "__main__":
    main()
