"""minimuse: Google's Muse, text to image by masked generative transformers, small enough to read.

from minimuse import Muse
muse = Muse.load("toy")
image = muse.generate("a red apple, noto style", seed=0)[0]
"""

TYPE_CHECKING = False  # type checkers take it for True; importing `typing` takes time
if TYPE_CHECKING:
    from minimuse.muse import Muse

__all__ = ["Muse"]


def __getattr__(name: str) -> object:
    """Import `Muse` when it is asked for: with PyTorch that takes a second."""
    if name != "Muse":
        raise AttributeError(f"module 'minimuse' has no attribute {name!r}")
    from minimuse.muse import Muse

    return Muse
