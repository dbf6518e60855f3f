"""OPT: learned positions are added outside any module, so `embeddings` holds the tokens' alone.

The smallest post-norm model (350M) ends in a projection instead of a norm; whichever of the two
comes last is `final_norm`.
"""

from pipeline.backbones.family import Family, register_family

OPT = register_family(
    Family(
        name="opt",
        model_types=("opt",),
        embeddings=("decoder.project_in", "decoder.embed_tokens"),
        layers="decoder.layers",
        final=("decoder.project_out", "decoder.final_layer_norm"),
    )
)
