"""EfficientNet-Lite0: MobileNet blocks with ReLU6 and without squeeze-and-excitation.

Parameters are named as in the PyPI package `efficientnet-lite-pytorch`, so that its checkpoints
load unchanged. Convolutions pad as TensorFlow's SAME does: the output has ceil(size / stride)
cells, the odd cell of padding at the bottom and the right, for any input size. 4.65 M parameters,
0.4 GMACs at 224 px. B images.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConvNetConfig

STEM, HEAD = 32, 1280
STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's SAME does."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding: list[int] = []
        for size in (x.shape[3], x.shape[2]):  # F.pad counts from the last axis
            short = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            padding += [short // 2, short - short // 2]
        y: Tensor = self._conv_forward(F.pad(x, padding), self.weight, self.bias)
        return y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Expand 1x1, depthwise, project 1x1; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = inputs * expand
        if expand != 1:
            self._expand_conv = SameConv2d(inputs, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv2d(inner, outputs, 1)
        self._bn2 = _norm(outputs)
        self._expands, self._adds = expand != 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)]."""
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self._adds else y


class EfficientNetLite(nn.Module):
    """Sixteen blocks at five resolutions, and a head of 1280 channels.

    Args:
        config: the architecture.
        classes: outputs of the classifier `_fc`; 0 leaves it out, as every tap comes before it.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: ConvNetConfig, *, classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self._conv_stem = SameConv2d(config.num_channels, STEM, 3, 2)
        self._bn0 = _norm(STEM)
        blocks, inputs = [], STEM
        for depth, kernel, stride, expand, outputs in STAGES:
            for k in range(depth):
                step = stride if k == 0 else 1
                blocks.append(Block(inputs, outputs, kernel=kernel, stride=step, expand=expand))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(inputs, HEAD, 1)
        self._bn1 = _norm(HEAD)
        self._head = nn.ReLU6()
        self._fc = nn.Linear(HEAD, classes) if classes else None

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to the head's map, [B, 1280, ceil(H / 32), ceil(W / 32)]."""
        x = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        for block in self._blocks:
            x = block(x)
        return {"last_hidden_state": self._head(self._bn1(self._conv_head(x)))}

    def classify(self, pixel_values: Tensor) -> Tensor:
        """Map images to the logits of the checkpoint's classes, [B, classes].

        Raises:
            RuntimeError: the network was built without its classifier.
        """
        if self._fc is None:
            raise RuntimeError("built without a classifier: pass classes=1000")
        logits: Tensor = self._fc(self(pixel_values)["last_hidden_state"].mean((2, 3)))
        return logits
