"""Small tagged sentences whose words tell their tags, as CoNLL files and on a tiny model."""

from pathlib import Path
from typing import Any

from tiny import save_tiny

from pipeline.extract import ExtractConfig, extract

NAMES = {"cat": "B-animal", "dog": "B-animal", "tree": "B-place", "mat": "B-place"}
SUBJECTS = ("the cat", "a dog", "the film", "a very good cat", "the bad dog")
PLACES = ("on the mat", "under a tree", "on the tree", "under the film")


def sentences() -> list[list[tuple[str, str]]]:
    """Return sentences of (word, tag); an adjective before an animal belongs to it."""
    found = []
    for subject in SUBJECTS:
        for place in PLACES:
            for verb in ("sat", "ran", "is not"):
                words = f"{subject} {verb} {place}".split()
                tags = [NAMES.get(word, "O") for word in words]
                for at in range(len(words) - 1):
                    if words[at] in ("good", "bad") and tags[at + 1] == "B-animal":
                        tags[at], tags[at + 1] = "B-animal", "I-animal"
                found.append(list(zip(words, tags, strict=True)))
    return found


def write_conll(path: Path) -> Path:
    """Write the sentences, a word and its tag a line."""
    blocks = ["\n".join(f"{word}\t{tag}" for word, tag in each) for each in sentences()]
    path.write_text("-DOCSTART- O\n\n" + "\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


def settings(
    folder: Path, out: str = "run", windows: dict[str, int] | None = None, **changes: Any
) -> dict[str, Any]:
    """Return a small training as plain values, its data, model and cache written on first use.

    `windows` are `max_words` and `overlap` of the data.
    """
    data = {"task": "tagging", "train": str(folder / "words.conll"), **(windows or {})}
    if not (folder / "cache").exists():
        write_conll(folder / "words.conll")
        model = save_tiny("bert", folder / "model")
        options = {"data": data, "backbone": str(model), "out": str(folder / "cache")}
        extract(ExtractConfig.build(options | {"device": "cpu"}))
    return {
        "data": data,
        "cache": str(folder / "cache"),
        "out": str(folder / out),
        "epochs": 30,
        "batch_size": 8,
        "lr": 3e-2,
        "weight_decay": 0.0,
        "dropout": 0.0,
        "device": "cpu",
    } | changes
