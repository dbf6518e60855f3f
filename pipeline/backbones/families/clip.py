"""CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343): two towers, each a backbone of its own.

`projection` is the vector that the two towers are compared by: CLIP's projected CLS and EOS states,
SigLIP's attention-pooled image and projected last token.
"""

from pipeline.backbones.family import Family, register_family

CLIP_VISION = register_family(
    Family(
        name="clip-vision",
        model_types=("clip_vision_model",),
        modality="image",
        embeddings=("vision_model.pre_layrnorm", "pre_layrnorm"),
        layers=("vision_model.encoder.layers", "encoder.layers"),
        projection=("visual_projection",),
    )
)

CLIP_TEXT = register_family(
    Family(
        name="clip-text",
        model_types=("clip_text_model",),
        embeddings=("text_model.embeddings", "embeddings"),
        layers=("text_model.encoder.layers", "encoder.layers"),
        final=("text_model.final_layer_norm", "final_layer_norm"),
        projection=("text_projection",),
    )
)

SIGLIP_VISION = register_family(
    Family(
        name="siglip-vision",
        model_types=("siglip_vision_model",),
        modality="image",
        embeddings=("vision_model.embeddings", "embeddings"),
        layers=("vision_model.encoder.layers", "encoder.layers"),
        final=("vision_model.post_layernorm", "post_layernorm"),
        projection=("vision_model.head", "head"),
    )
)

SIGLIP_TEXT = register_family(
    Family(
        name="siglip-text",
        model_types=("siglip_text_model",),
        embeddings=("text_model.embeddings", "embeddings"),
        layers=("text_model.encoder.layers", "encoder.layers"),
        final=("text_model.final_layer_norm", "final_layer_norm"),
        projection=("text_model.head", "head"),
        full_length=True,
    )
)
