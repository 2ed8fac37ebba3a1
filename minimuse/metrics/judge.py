"""Does a picture of an emoji show what was asked for? A judge of what Muse draws, for the emoji what `shapes.detect` is for shapes.

    from minimuse.judge import Judge, features                       # needs the `eval` extra
    judge, net = Judge.load(), Lite0()
    verdicts = judge(features(net, images), ["noto/red-apple", ...])  # each picture: style right? concept first? in the first ten?
    print(judge.shares(verdicts))                                     # with 95 % intervals, beside chance

Two linear heads on frozen features of Lite0, a network trained on photographs. One says which of the styles it is. The other maps a
picture to where MiniLM, a sentence encoder, puts the words for its concept, and asks which of all concepts lies nearest: CLIP score's
idea (Muse, 2301.00704, section 3), but as a share with a known chance. `data/build_judge.py` trains the heads on real pictures and
writes how often they are right about pictures they never saw (data/judge/figures.json): read a score beside those, not beside 1.
Left out: how good a picture looks.
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


SIDE = 128  # Lite0 halves five times: of 64 pixels 2x2 positions would be left, and the heads would be right less often


STAGES = (2, 4, 6)  # edges and paint tell a style, the last stage and the head a concept


TEN = 10


@torch.no_grad()
def features(net: Lite0, images: torch.Tensor, batch: int = 64) -> torch.Tensor:
    """images (B, 3, H, W) in [-1, 1], 32 pixels a side or more -> (B, C): means of some of Lite0's maps; C = 40 + 112 + 320 + 1280."""
    if (
        images.dim() != 4
        or images.shape[1] != 3
        or min(images.shape[2:]) < 32
        or not images.is_floating_point()
    ):
        raise ValueError(
            f"images are {tuple(images.shape)} {images.dtype}; the judge needs floats (B, 3, H, W), 32 pixels a side or more"
        )
    found = []
    for part in images.split(batch):
        maps = net.stages(
            F.interpolate(part.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        )
        head = F.relu6(
            net.net._bn1(net.net._conv_head(maps[-1]))
        )  # (B, 1280, 4, 4), what the ImageNet classes are read from
        found.append(
            torch.cat([x.mean(dim=(2, 3)) for x in (*(maps[i] for i in STAGES), head)], dim=1)
        )
    return torch.cat(found)


@dataclass(frozen=True, eq=False)  # eq: tensors have no single truth value
class Verdicts:
    """Three answers about each picture: booleans (B,)."""

    style: torch.Tensor
    first: torch.Tensor  # the concept asked for is the likeliest
    ten: torch.Tensor  # it is among the ten likeliest


@dataclass(frozen=True, eq=False)
class Judge:
    styles: tuple[str, ...]
    concepts: tuple[str, ...]  # M of them
    style_weight: torch.Tensor  # (styles, C)
    style_bias: torch.Tensor  # (styles,)
    words_weight: torch.Tensor  # (E, C)
    words_bias: torch.Tensor  # (E,)
    words: torch.Tensor  # (M, E), unit vectors: each concept's sentence embedding

    def __post_init__(self):
        S, M, C, E = (
            len(self.styles),
            len(self.concepts),
            self.style_weight.shape[-1],
            self.words.shape[-1],
        )
        wanted = {
            "style_weight": (S, C),
            "style_bias": (S,),
            "words_weight": (E, C),
            "words_bias": (E,),
            "words": (M, E),
        }
        for name, shape in wanted.items():
            if (found := tuple(getattr(self, name).shape)) != shape:
                raise ValueError(f"{name} is {found}, not {shape}")

    @classmethod
    def load(cls, path: Path = PATH) -> "Judge":
        """From the file that ships."""
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"{path} is missing; a clone of the project has it, and data/build_judge.py makes it"
            )
        try:
            with safe_open(path, "pt") as file:
                names = {
                    key: tuple(json.loads(file.metadata()[key])) for key in ("styles", "concepts")
                }
                return cls(**names, **{key: file.get_tensor(key).float() for key in file.keys()})
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not a judge's file ({error}); restore it, or run data/build_judge.py"
            ) from None

    def save(self, path: Path) -> None:
        """All numbers in fp16."""
        tensors = {
            name: value.half() for name, value in vars(self).items() if torch.is_tensor(value)
        }
        save_tensors(
            path, tensors, {key: json.dumps(getattr(self, key)) for key in ("styles", "concepts")}
        )

    @property
    def chance(self) -> dict[str, float]:
        """How often a guess is right."""
        return {
            "style": 1 / len(self.styles),
            "first": 1 / len(self.concepts),
            "ten": min(1.0, TEN / len(self.concepts)),
        }

    def places(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, C) -> logits of the styles (B, S), cosine likeness to the concepts (B, M)."""
        meaning = F.normalize(
            F.linear(features, self.words_weight, self.words_bias), dim=1
        )  # (B, E)
        return F.linear(features, self.style_weight, self.style_bias), meaning @ self.words.T

    def __call__(self, features: torch.Tensor, names: list[str]) -> Verdicts:
        """Features (B, C) of pictures that were to show "noto/red-apple" and so on."""
        if len(features) != len(names):
            raise ValueError(f"{len(features)} pictures, {len(names)} names")
        known = {
            f"{style}/{concept}": (i, j)
            for i, style in enumerate(self.styles)
            for j, concept in enumerate(self.concepts)
        }
        if strange := [name for name in names if name not in known]:
            raise ValueError(
                f"{strange[0]!r} is no style/concept that the judge knows, such as {next(iter(known))}"
            )
        styles, concepts = (
            torch.tensor([known[name] for name in names], dtype=torch.long).reshape(-1, 2).T
        )
        logits, likeness = self.places(features.cpu())
        rank = behind(likeness, concepts)
        return Verdicts(behind(logits, styles) == 0, rank == 0, rank < TEN)

    def shares(self, verdicts: Verdicts) -> dict[str, dict[str, float]]:
        """How often the answer was right: value, 95 % interval (Wilson), number of pictures, and chance."""
        return {
            key: proportion(getattr(verdicts, key).tolist()) | {"chance": chance}
            for key, chance in self.chance.items()
        }


def behind(scores: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """scores (B, M), own (B,) -> (B,): behind how many others the own score lies. A tie counts as behind, and so does not-a-number:
    a picture that the judge can make nothing of is never right."""
    return scores.shape[1] - 1 - (scores < scores.gather(1, own[:, None])).sum(dim=1)
