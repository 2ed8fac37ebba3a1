"""Which colour word people would use of a picture on white, by rules.

    from minimuse.datasets.colours import dominant_colours
    dominant_colours(images)        # [("red", 0.8), ...]: the word, and how much of the thing it is

The thing is all that is not white. Each of its pixels has one colour word, by its hue, saturation
and value; the word of most pixels is the picture's.
Letters: B images.
"""

import numpy as np
import torch

# Names of hues, each with the hue at which it ends, in degrees. Red begins again at 345.
HUES = (
    ("red", 18),
    ("orange", 36),
    ("yellow", 70),
    ("green", 165),
    ("blue", 255),
    ("purple", 300),
    ("pink", 345),
    ("red", 360),
)

COLOUR_WORDS = (*dict(HUES), "brown", "black", "grey", "white")

# A pixel whose three values are all above this belongs to the white background.
WHITE = 0.85

# Below this value a pixel is black, whatever its hue; below this saturation it has no hue.
BLACK = 0.32
GREY = 0.15


def dominant_colours(images: torch.Tensor) -> list[tuple[str, float]]:
    """The colour word of each image (B, 3, H, W) in [-1, 1], and the fraction of the thing it is.

    A white image is ("white", 1.0).
    """
    answers = []
    for image in images.detach().float().cpu():
        words = colour_of_pixels((image.permute(1, 2, 0).numpy() + 1) / 2)
        thing = words[words != COLOUR_WORDS.index("white")]
        counts = np.bincount(thing, minlength=len(COLOUR_WORDS))
        if len(thing) == 0:
            answers.append(("white", 1.0))
        else:
            answers.append((COLOUR_WORDS[counts.argmax()], float(counts.max() / len(thing))))
    return answers


def colour_of_pixels(rgb: np.ndarray) -> np.ndarray:
    """The index in COLOUR_WORDS of each pixel of an image (H, W, 3) in [0, 1]: (H, W)."""
    high, low = rgb.max(-1), rgb.min(-1)  # H W
    saturation = (high - low) / np.maximum(high, 1e-6)
    hue = hue_of_pixels(rgb)

    def index(word: str) -> int:
        return COLOUR_WORDS.index(word)

    ends = [end for _, end in HUES]
    numbers = np.array([index(word) for word, _ in HUES])
    words = numbers[np.searchsorted(ends, hue, side="right").clip(max=len(HUES) - 1)]
    # Pale red is called pink, and dark orange brown.
    reddish = (hue < 20) | (hue >= 330)
    words[reddish & (saturation < 0.55) & (high > 0.75)] = index("pink")
    words[(hue >= 8) & (hue < 45) & (high < 0.8)] = index("brown")
    words[(saturation < GREY)] = index("grey")
    words[(high < BLACK)] = index("black")
    words[low > WHITE] = index("white")
    return words


def hue_of_pixels(rgb: np.ndarray) -> np.ndarray:
    """The hue of each pixel of an image (H, W, 3): (H, W), in degrees from 0 to 360; red is 0."""
    red, green, blue = (rgb[..., i] for i in range(3))
    high, low = rgb.max(-1), rgb.min(-1)
    spread = np.maximum(high - low, 1e-6)
    hue = np.where(
        high == red,
        (green - blue) / spread,
        np.where(high == green, 2 + (blue - red) / spread, 4 + (red - green) / spread),
    )
    return 60 * hue % 360
