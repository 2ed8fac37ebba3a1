"""The judge of emoji: does an image show the concept and the style that it should?

    from minimuse.metrics.judge import Judge, features
    from minimuse.plumbing.lite0 import Lite0                 # needs the `eval` extra
    judge = Judge.load()
    verdicts = judge(features(Lite0(), images), ["noto/red-apple", ...])
    judge.accuracy(verdicts)["style"]["value"]                # "style", "first" and "ten"

The judge is two linear heads on frozen features of Lite0, a network trained on photographs. One
head says which style an image has. The other maps an image to where MiniLM, a sentence encoder,
puts the words for its concept; all concepts are then ranked by their cosine similarity. That is the
idea of CLIP score (Muse, 2301.00704, section 3), but the result is an accuracy with a known chance.

The heads were trained on real images (`data/recipes/build_judge.py`) and make mistakes themselves.
`data/judge/figures.json` has their accuracy on real images that they never saw: compare a score
with that, not with 1. The judge does not measure how good an image looks.
Letters: B images, S styles, M concepts, C features, E width of a sentence embedding.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open

from minimuse.data import ASSETS
from minimuse.metrics.intervals import proportion
from minimuse.plumbing.files import save_tensors
from minimuse.plumbing.lite0 import Lite0

PATH = ASSETS / "judge" / "heads.safetensors"

# Images are resized to this side. Lite0 halves five times: of 64 pixels only 2x2 positions would be
# left, and the heads would be right less often.
SIDE = 128

# The stages of Lite0 whose feature maps count: early ones see edges and paint, which tell a style,
# the last one tells a concept.
STAGES = (2, 4, 6)

SMALLEST_SIDE = 32  # pixels of an image that Lite0 can make something of
TOP = 10  # the verdict "ten": the concept is among the ten most similar ones


@torch.no_grad()
def features(net: Lite0, images: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """Means of some of Lite0's feature maps: images (B, 3, H, W) in [-1, 1] -> (B, C).

    C = 40 + 112 + 320 + 1280. H and W must be at least SMALLEST_SIDE.
    """
    is_batch = images.dim() == 4 and images.shape[1] == 3 and images.is_floating_point()
    if not is_batch or min(images.shape[2:]) < SMALLEST_SIDE:
        raise ValueError(
            f"images are {tuple(images.shape)} {images.dtype}; Lite0 needs floats (B, 3, H, W), "
            f"with H and W at least {SMALLEST_SIDE}"
        )
    batches = []
    for part in images.split(batch):
        # On the CPU, because PyTorch 2.6 has no antialias on Apple's GPUs.
        small = part.float().cpu()
        resized = F.interpolate(small, (SIDE, SIDE), mode="bilinear", antialias=True)
        maps = net.stages(resized.to(part.device))
        # The map from which the network reads ImageNet's classes: B 1280 4 4.
        head = F.relu6(net.net._bn1(net.net._conv_head(maps[-1])))
        chosen = [*(maps[i] for i in STAGES), head]
        batches.append(torch.cat([x.mean(dim=(2, 3)) for x in chosen], dim=1))  # B C
    return torch.cat(batches)


@dataclass(frozen=True, eq=False)  # no ==, because comparing tensors gives many answers, not one
class Verdicts:
    """Three answers about each image: booleans (B,)."""

    style: torch.Tensor  # the style is right
    first: torch.Tensor  # the concept is the most similar one
    ten: torch.Tensor  # the concept is among the ten most similar ones


@dataclass(frozen=True, eq=False)
class Judge:
    """Names, and the weights of both heads."""

    styles: tuple[str, ...]
    concepts: tuple[str, ...]
    style_weight: torch.Tensor  # (S, C)
    style_bias: torch.Tensor  # (S,)
    words_weight: torch.Tensor  # (E, C)
    words_bias: torch.Tensor  # (E,)
    words: torch.Tensor  # (M, E), unit vectors: the sentence embedding of each concept

    def __post_init__(self) -> None:
        S, M = len(self.styles), len(self.concepts)
        C, E = self.style_weight.shape[-1], self.words.shape[-1]
        shapes = {
            "style_weight": (S, C),
            "style_bias": (S,),
            "words_weight": (E, C),
            "words_bias": (E,),
            "words": (M, E),
        }
        for name, expected in shapes.items():
            shape = tuple(getattr(self, name).shape)
            if shape != expected:
                raise ValueError(f"{name} is {shape}, not {expected}")

    @classmethod
    def load(cls, path: Path = PATH) -> "Judge":
        """Read the judge that ships, or another file."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} is missing; a clone of the project has it, "
                "and data/recipes/build_judge.py makes it"
            )
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
                return cls(
                    styles=tuple(json.loads(metadata["styles"])),
                    concepts=tuple(json.loads(metadata["concepts"])),
                    **{name: file.get_tensor(name).float() for name in file.keys()},
                )
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not a judge's file ({error}); "
                "restore it, or run data/recipes/build_judge.py"
            ) from None

    def save(self, path: Path) -> None:
        """Write one safetensors file, with all numbers in fp16."""
        fields = vars(self)
        tensors = {name: value.half() for name, value in fields.items() if torch.is_tensor(value)}
        metadata = {"styles": json.dumps(self.styles), "concepts": json.dumps(self.concepts)}
        save_tensors(path, tensors, metadata)

    @property
    def chance(self) -> dict[str, float]:
        """The accuracy of a guess, for each verdict."""
        return {
            "style": 1 / len(self.styles),
            "first": 1 / len(self.concepts),
            "ten": min(1.0, TOP / len(self.concepts)),
        }

    def scores(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, C) -> logits of the styles (B, S), cosines with the concepts (B, M)."""
        logits = F.linear(features, self.style_weight, self.style_bias)  # B S
        meaning = F.linear(features, self.words_weight, self.words_bias)  # B E
        return logits, F.normalize(meaning, dim=1) @ self.words.T

    def __call__(self, features: torch.Tensor, names: list[str]) -> Verdicts:
        """Judge features (B, C) of images that should show e.g. "noto/red-apple"."""
        if len(features) != len(names):
            raise ValueError(f"{len(features)} images, {len(names)} names")
        styles, concepts = self.indices(names)
        logits, cosines = self.scores(features.cpu())
        rank = rank_of(cosines, concepts)
        return Verdicts(style=rank_of(logits, styles) == 0, first=rank == 0, ten=rank < TOP)

    def indices(self, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Index of the style and of the concept of each name: (B,) and (B,)."""
        known = {}
        for i, style in enumerate(self.styles):
            for j, concept in enumerate(self.concepts):
                known[f"{style}/{concept}"] = (i, j)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is no style/concept that the judge knows, "
                f"such as {next(iter(known))}"
            )
        pairs = torch.tensor([known[name] for name in names], dtype=torch.long).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def accuracy(self, verdicts: Verdicts) -> dict[str, dict[str, float]]:
        """For each verdict how often it is "right", its 95 % interval, and chance."""
        result = {}
        for name, chance in self.chance.items():
            right = getattr(verdicts, name).tolist()
            result[name] = proportion(right) | {"chance": chance}
        return result


def rank_of(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """How many of scores (B, M) are above the one at index own (B,): (B,), 0 for the best.

    A tie counts against it, and so does not-a-number: an image without usable features is never
    right.
    """
    own_score = scores.gather(1, own[:, None])  # B 1
    below = (scores < own_score).sum(dim=1)
    others = scores.shape[1] - 1
    return others - below
