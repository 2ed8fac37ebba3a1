"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read."""

from pathlib import Path

# The toy world, minimuse.shapes, lies in data/ with the project's other data sets.
__path__.append(str(Path(__file__).resolve().parents[1] / "data"))

from minimuse.muse import Muse  # noqa: E402

__all__ = ["Muse"]
