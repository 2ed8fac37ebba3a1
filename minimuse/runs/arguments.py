"""What `train_all` is given: checked before anything is written."""

from typing import Any

from minimuse.plumbing.arguments import check_paths, described
from minimuse.plumbing.config import Config
from minimuse.plumbing.parts import PARTS
from minimuse.plumbing.t5_files import LazyT5, find_t5, t5_paths
from minimuse.t5_frozen import FrozenT5


def check_training(
    stages: Any, out: Any, config: Any, data: Any, text: Any, text_name: Any
) -> None:
    """Raise a ValueError, or a FileNotFoundError if there is no text encoder of this name."""
    check_stages(stages)
    check_paths(out=out, data=data, text_name=text_name)
    if not isinstance(config, Config):
        raise ValueError(f"config is {described(config)}, not a Config, such as PRESETS['toy']")
    if not hasattr(text, "fingerprint"):
        raise ValueError(f"text is {described(text)}, not a text encoder; load_t5 makes one")
    if isinstance(text, (FrozenT5, LazyT5)):
        # The model is loaded with the encoder of this name.
        t5_paths(find_t5(text_name))


def check_stages(stages: Any) -> None:
    """Raise a ValueError unless these are names of stages in their order."""
    if not isinstance(stages, (tuple, list)):
        raise ValueError(f"stages is {described(stages)}, not a tuple of names")
    for stage in stages:
        if stage not in PARTS:
            raise ValueError(f"stages has {stage!r}; there is {', '.join(PARTS)}")
    if list(stages) != [stage for stage in PARTS if stage in stages]:
        raise ValueError(
            f"stages are {', '.join(stages)}; give them in this order, each once: "
            f"{', '.join(PARTS)}"
        )
