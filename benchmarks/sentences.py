"""Real sentences and a full-size backbone with random weights for the benchmarks."""

import csv
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from pipeline.demo.assets import minilm, sentiment
from pipeline.inputs import TextInput

WORK = Path(".demo")
"""Shared with `make demo`, so that packages are fetched once."""


def movie_sentences(count: int) -> list[TextInput]:
    """Return `count` distinct sentences of movie reviews, in the file's order."""
    path = sentiment(WORK) / "movieReviewSnippets_GroundTruth.txt"
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        texts = [row[2].strip() for row in csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE)]
    unique = list(dict.fromkeys(text for text in texts if text))
    if count > len(unique):
        raise ValueError(f"{count} sentences asked for; {path.name} holds {len(unique)}")
    return [TextInput(text) for text in unique[:count]]


def random_bert(folder: Path) -> Path:
    """Save a BERT-base with random weights (12 layers x 768, 110 M) and MiniLM's tokenizer."""
    torch.manual_seed(0)
    BertModel(BertConfig(), add_pooling_layer=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm(WORK)).save_pretrained(folder)
    return folder
