"""Backbones whose stages halve the resolution: their taps are maps, coarser from stage to stage.

Swin (arXiv:2103.14030) emits the cells of its maps as tokens; a stage is taken before the patches
are merged for the next one. EfficientNet (arXiv:1905.11946) has blocks, not stages: `stage.N` is
the last block at each resolution.
"""

from pipeline.backbones.convnets import ARCHITECTURES
from pipeline.backbones.family import Family, register_family

RESNET = register_family(
    Family(name="resnet", model_types=("resnet",), modality="image", stages=("encoder.stages",))
)

CONVNEXT = register_family(
    Family(
        name="convnext",  # arXiv:2201.03545, arXiv:2301.00808
        model_types=("convnext", "convnextv2"),
        modality="image",
        stages=("encoder.stages",),
    )
)

SWIN = register_family(
    Family(
        name="swin",
        model_types=("swin",),
        modality="image",
        stages=("encoder.layers",),
        stage_end="blocks",
        final=("layernorm",),
        cells=True,
    )
)

EFFICIENTNET = register_family(
    Family(
        name="efficientnet",
        model_types=("efficientnet",),
        modality="image",
        blocks=("encoder.blocks",),
        head=("encoder.top_activation",),
    )
)

RESNET_FILE = register_family(
    Family(
        name="resnet-file",
        model_types=tuple(n for n, c in ARCHITECTURES.items() if c.layout == "resnet"),
        modality="image",
        stages=("layer{}",),
    )
)

EFFICIENTNET_LITE = register_family(
    Family(
        name="efficientnet-lite",
        model_types=tuple(n for n, c in ARCHITECTURES.items() if c.layout == "efficientnet_lite"),
        modality="image",
        blocks=("_blocks",),
        head=("_head",),
    )
)
