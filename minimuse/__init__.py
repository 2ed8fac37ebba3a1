"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read.

from minimuse import Muse
muse = Muse.load("toy")
image = muse.generate("a red apple, noto style", seed=0)[0]
"""

from minimuse.muse import Muse

__all__ = ["Muse"]
