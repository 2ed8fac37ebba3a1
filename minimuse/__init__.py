"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read."""

import os
from pathlib import Path

# The toy world, minimuse.shapes, lies in data/ with the project's other data sets.
__path__.append(str(Path(__file__).resolve().parents[1] / "data"))
# A step hides another number of tokens each time, and oneDNN keeps what it prepared for 1,024 shapes: gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

from minimuse.muse import Muse  # noqa: E402

__all__ = ["Muse"]
