"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read."""

from minimuse.muse import Muse

__all__ = ["Muse"]
