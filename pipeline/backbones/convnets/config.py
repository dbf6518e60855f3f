"""What identifies a ConvNet of this folder: its name and what it reads. Plain data."""

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ConvNetConfig:
    """One architecture.

    Attributes:
        model_type: the architecture's name.
        layout: "resnet" or "efficientnet_lite".
        image_size: side of the images it was trained on, in pixels; any other works too.
        mean: of each channel, of pixels between 0 and 1.
        std: of each channel.
        depths: blocks of each stage (ResNet).
        groups: groups of the 3x3 convolutions (ResNeXt, arXiv:1611.05431).
        group_width: channels of a group in the first stage.
        num_channels: of an image.
    """

    model_type: str
    layout: str = "resnet"
    image_size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    depths: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 1
    group_width: int = 64
    num_channels: int = 3
