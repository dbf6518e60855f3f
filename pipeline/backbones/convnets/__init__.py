"""ConvNets in pure torch, named as their published checkpoints are; see `build_convnet`."""

from .build import ARCHITECTURES, build_convnet
from .efficientnet_lite import EfficientNetLite
from .resnet import ResNet

__all__ = ["ARCHITECTURES", "EfficientNetLite", "ResNet", "build_convnet"]
