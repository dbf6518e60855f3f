"""ResNet and ResNeXt with bottlenecks (arXiv:1512.03385, arXiv:1611.05431).

Parameters are named as torchvision names them, so that its checkpoints, and the weakly supervised
`ig_resnext101_32x8-*.pth` (arXiv:1805.00932), load unchanged. The stride sits in the 3x3
convolution. B images; stage i emits 256 * 2^(i-1) channels at 1 / (2 * 2^i) of the input's size,
rounded up, for any input size. ResNeXt-101 32x8d: 86.7 M parameters, 16.4 GMACs at 224 px.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConvNetConfig

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1, each with batch norm, added to the (projected) input."""

    def __init__(self, inputs: int, planes: int, *, stride: int, groups: int, base: int) -> None:
        super().__init__()
        width, outputs = planes * base * groups // 64, planes * _EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 4 * planes, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Four stages, `layer1` to `layer4`, each a map at half the resolution of the one before.

    Args:
        config: the architecture.
        classes: outputs of the classifier `fc`; 0 leaves it out, as every tap comes before it.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: ConvNetConfig, *, classes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.conv1 = nn.Conv2d(config.num_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for i, depth in enumerate(config.depths):
            planes, blocks = 64 * 2**i, []
            for k in range(depth):
                stride = 2 if k == 0 and i > 0 else 1
                blocks.append(
                    Bottleneck(
                        inputs, planes, stride=stride, groups=config.groups, base=config.group_width
                    )
                )
                inputs = planes * _EXPANSION
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes) if classes else None

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Map images [B, 3, H, W] to the last stage, [B, C, ceil(H / 32), ceil(W / 32)]."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for i in range(len(self.config.depths)):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return {"last_hidden_state": x}

    def classify(self, pixel_values: Tensor) -> Tensor:
        """Map images to the logits of the checkpoint's classes, [B, classes].

        Raises:
            RuntimeError: the network was built without its classifier.
        """
        if self.fc is None:
            raise RuntimeError("built without a classifier: pass classes=1000")
        logits: Tensor = self.fc(self(pixel_values)["last_hidden_state"].mean((2, 3)))
        return logits
