"""Alignment: how often images of scenes show what their captions say.

    from minimuse.metrics import alignment
    alignment.alignment(scenes, images)["colour"]["value"]      # fraction of images, 0 to 1

Muse measures this with CLIP (2301.00704, section 3). For scenes of shapes the detector reads each
image back, so that the measure is exact. For emoji see `judge.py`.
"""

from collections.abc import Sequence

import torch

from minimuse.datasets.detector import ATTRIBUTES, agree, detect
from minimuse.datasets.shapes import Scene
from minimuse.metrics.intervals import proportion


def alignment(scenes: Sequence[Scene], images: torch.Tensor) -> dict[str, dict[str, float]]:
    """For each attribute, the fraction of images (B, 3, H, W) in [-1, 1] that have it right.

    Each with a 95 % interval; a relation counts only where the caption names one.
    """
    if len(scenes) != len(images):
        raise ValueError(f"{len(scenes)} scenes for {len(images)} images")
    readings = detect(images)
    answers = [agree(scene, reading) for scene, reading in zip(scenes, readings, strict=True)]
    fractions = {}
    for attribute in ATTRIBUTES:
        right = [answer[attribute] for answer in answers if answer[attribute] is not None]
        fractions[attribute] = proportion(right)
    return fractions
