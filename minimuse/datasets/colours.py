"""Which colour word people would use of a picture on white, by rules.

    from minimuse.datasets.colours import clear_colour, dominant_colours
    dominant_colours(images)        # [("red", 0.8), ...]: the word, and how much of the thing it is
    clear_colour(rgb)               # "red", or "" where people would not agree

Each pixel has one colour word, by its hue, saturation and value. `dominant_colours` judges
drawings: the thing is all that is not white, and the word of most of its pixels is the picture's.
`clear_colour` is for captions, which must be true: it says nothing of a picture of many colours,
and knows a white thing from the page.
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

# A pixel is called white if its red, green and blue are all above this.
WHITE = 0.85

# A pixel is black if the largest of them is below BLACK; with less saturation than GREY, it has no
# hue.
BLACK = 0.32
GREY = 0.15

# --- When a colour is clear ---
# A pixel with all three above this may be the page, unless the thing surrounds it.
PAGE = 0.97
# Words that are no hue. They are often outlines, tyres and windows.
NEUTRAL = ("black", "grey", "white")
# A hue is clear if so much of all that has a hue, and so much of the whole thing, has it. Below
# these, "purple" was said of bowling pins, and "blue" of a white cup.
OF_HUES = 0.6
OF_THING = 0.35
# Black, grey or white is clear if so much of the thing has it.
NEUTRAL_OF_THING = 0.6


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


def clear_colour(rgb: np.ndarray) -> str:
    """The colour word that people would agree on for an image (H, W, 3) in [0, 1]; "" if none.

    "a red car" has black tyres and grey windows. So a hue need not be most of the thing, if it is
    most of all that has a hue.
    """
    thing = colour_of_pixels(rgb)[~page_of(rgb)]
    counts = np.bincount(thing, minlength=len(COLOUR_WORDS))
    number_of = dict(zip(COLOUR_WORDS, counts.tolist(), strict=True))
    total = len(thing)
    neutral = {word: number_of.pop(word) for word in NEUTRAL}
    hue = max(number_of, key=number_of.get)
    of_hues = number_of[hue] / max(sum(number_of.values()), 1)
    if number_of[hue] > OF_THING * total and of_hues > OF_HUES:
        return hue
    word = max(neutral, key=neutral.get)
    return word if neutral[word] > NEUTRAL_OF_THING * total else ""


def page_of(rgb: np.ndarray) -> np.ndarray:
    """Which pixels of an image (H, W, 3) are the page: (H, W) bool.

    They are white, and so are all pixels from there to an edge of the image, in a straight line. A
    white rabbit within its outline is then a thing.
    """
    white = rgb.min(-1) > PAGE  # H W
    to_edge = np.logical_and.accumulate
    from_top, from_left = to_edge(white, 0), to_edge(white, 1)
    from_bottom = to_edge(white[::-1], 0)[::-1]
    from_right = to_edge(white[:, ::-1], 1)[:, ::-1]
    return from_top | from_left | from_bottom | from_right


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
