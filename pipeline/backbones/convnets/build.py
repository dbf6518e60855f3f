"""From a name to a ConvNet with random weights."""

from torch import nn

from .config import ConvNetConfig
from .efficientnet_lite import EfficientNetLite
from .resnet import ResNet

_LITE = (127 / 255,) * 3, (128 / 255,) * 3  # (x - 127) / 128 on bytes
_CONFIGS = (
    ConvNetConfig(model_type="resnet50"),
    ConvNetConfig(model_type="resnet101", depths=(3, 4, 23, 3)),
    ConvNetConfig(model_type="resnext50_32x4d", groups=32, group_width=4),
    ConvNetConfig(model_type="resnext101_32x8d", depths=(3, 4, 23, 3), groups=32, group_width=8),
    ConvNetConfig(
        model_type="efficientnet_lite0", layout="efficientnet_lite", mean=_LITE[0], std=_LITE[1]
    ),
)
ARCHITECTURES: dict[str, ConvNetConfig] = {config.model_type: config for config in _CONFIGS}
"""Architectures by name."""
_BRANCH = 0.2
"""Weight of each residual branch at first: with 1, the states of 33 random blocks overflow float16.
"""
_LAYOUTS: dict[str, type[ResNet] | type[EfficientNetLite]] = {
    "resnet": ResNet,
    "efficientnet_lite": EfficientNetLite,
}


def build_convnet(
    architecture: str | ConvNetConfig, *, classes: int = 0
) -> ResNet | EfficientNetLite:
    """Return the network of `architecture` with random weights.

    Args:
        architecture: a name of `ARCHITECTURES`, or a configuration of one's own.
        classes: outputs of its classifier; 0 builds none.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(architecture, str):
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise ValueError(f"unknown architecture {architecture!r}; known: {known}")
        architecture = ARCHITECTURES[architecture]
    model = _LAYOUTS[architecture.layout](architecture, classes=classes)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif name.endswith(".bn3"):
            nn.init.constant_(module.weight, _BRANCH)
    return model
