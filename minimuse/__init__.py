"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read."""

import os

# A step hides another number of tokens each time, and oneDNN keeps what it prepared for 1,024 shapes: gigabytes.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

from minimuse.muse import Muse  # noqa: E402

__all__ = ["Muse"]
