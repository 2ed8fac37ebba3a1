"""The diagrams of the lessons, drawn by code, so that their numbers are those of the models.

    from minimuse.drawings import architecture
    architecture(Muse.load("toy-shapes")).savefig("muse.png")

Each function returns a matplotlib figure. Matplotlib comes with the extra `lessons`.
"""

from minimuse.drawings.architecture import architecture
from minimuse.drawings.block import block, training_and_sampling
from minimuse.drawings.decoding_step import decoding_step

__all__ = ["architecture", "block", "decoding_step", "training_and_sampling"]
