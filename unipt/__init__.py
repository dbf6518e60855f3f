"""UniPT side networks in plain torch: trained beside a frozen model, never through it.

The files of this package import nothing but torch and each other, so that they can be shipped
unchanged beside an exported model.
"""

from .classifier import Prediction, SideClassifier
from .config import SideNetworkConfig
from .network import SideNetwork, SideOutput
from .packed import lengths_to_offsets, pack, segment_mean, unpack
from .pooling import TokenPooling
from .recorder import TapRecorder

__all__ = [
    "Prediction",
    "SideClassifier",
    "SideNetwork",
    "SideNetworkConfig",
    "SideOutput",
    "TapRecorder",
    "TokenPooling",
    "lengths_to_offsets",
    "pack",
    "segment_mean",
    "unpack",
]
