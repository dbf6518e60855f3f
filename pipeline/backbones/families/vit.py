"""ViT (arXiv:2010.11929) and its heirs: one grid of patches with a CLS token, pre-norm layers."""

from pipeline.backbones.family import Family, register_family

VIT = register_family(
    Family(
        name="vit",
        model_types=("vit", "deit"),
        modality="image",
        embeddings=("embeddings",),
        layers=("layers", "encoder.layer"),
        final=("layernorm",),
    )
)

DINOV2 = register_family(
    Family(
        name="dinov2",  # arXiv:2304.07193; registers (arXiv:2309.16588) follow the CLS token
        model_types=("dinov2", "dinov2_with_registers"),
        modality="image",
        embeddings=("embeddings",),
        layers=("encoder.layer", "layers"),
        final=("layernorm",),
    )
)
