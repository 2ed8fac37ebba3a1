import torch

from minimuse.datasets.detector import ATTRIBUTES, agree, detect
from minimuse.metrics.intervals import proportion


def alignment(scenes, images: torch.Tensor) -> dict[str, dict[str, float]]:
    """How often pictures (B, 3, S, S) in [-1, 1] show what the scenes' captions say."""
    if len(scenes) != len(images):
        raise ValueError(f"{len(scenes)} scenes for {len(images)} images")
    answers = [agree(s, reading) for s, reading in zip(scenes, detect(images))]
    return {k: proportion([a[k] for a in answers if a[k] is not None]) for k in ATTRIBUTES}
