"""UniPT side networks in plain torch: trained beside a frozen model, never through it.

The files of this package import nothing but torch and each other, so that they can be shipped
unchanged beside an exported model.
"""

from .classifier import SideClassifier
from .config import ConvSideNetworkConfig, EncoderDecoderConfig, SideNetworkConfig
from .convnet import ConvSideNetwork
from .encoder_decoder import EncoderDecoderOutput, EncoderDecoderSideNetwork
from .loss import contrastive_loss, hinge_loss
from .network import SideNetwork, SideOutput
from .packed import lengths_to_offsets, pack, segment_mean, unpack
from .pooling import GeneralizedPooling, TokenPooling
from .presets import preset, preset_names
from .recorder import TapRecorder
from .reference import import_reference, reference_views
from .states import Outputs, SideModel, States, Stream
from .towers import Embedding, SideTower, TwoTowers

__all__ = [
    "ConvSideNetwork",
    "ConvSideNetworkConfig",
    "Embedding",
    "EncoderDecoderConfig",
    "EncoderDecoderOutput",
    "EncoderDecoderSideNetwork",
    "GeneralizedPooling",
    "Outputs",
    "SideClassifier",
    "SideModel",
    "SideNetwork",
    "SideNetworkConfig",
    "SideOutput",
    "SideTower",
    "States",
    "Stream",
    "TapRecorder",
    "TokenPooling",
    "TwoTowers",
    "contrastive_loss",
    "hinge_loss",
    "import_reference",
    "lengths_to_offsets",
    "pack",
    "preset",
    "preset_names",
    "reference_views",
    "segment_mean",
    "unpack",
]
