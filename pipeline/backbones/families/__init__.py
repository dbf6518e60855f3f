"""One small file for each family of models; importing this folder registers all of them."""

from pipeline.backbones.families import (
    albert,
    bert,
    clip,
    deberta,
    distilbert,
    gpt2,
    gpt_neox,
    llama,
    modernbert,
    opt,
    pyramids,
    roberta,
    vit,
)

__all__ = [
    "albert",
    "bert",
    "clip",
    "deberta",
    "distilbert",
    "gpt2",
    "gpt_neox",
    "llama",
    "modernbert",
    "opt",
    "pyramids",
    "roberta",
    "vit",
]
