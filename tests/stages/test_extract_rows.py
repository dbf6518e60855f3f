"""Which inputs a backbone is given: those of the towers that read what it reads, for any task."""

from pathlib import Path
from typing import Any

import pytest
from stagekit import write_pairs, write_rows
from tiny import save_tiny

from cache import Cache
from pipeline import systems
from pipeline.backbones import load_backbone
from pipeline.config import ConfigError
from pipeline.data import Dataset, Example, Labelled
from pipeline.extract import ExtractConfig, extract
from pipeline.extraction.rows import Source
from pipeline.inputs import ImageInput
from pipeline.systems import Tower


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("bert", tmp_path_factory.mktemp("bert"))


def config(bert: Path, tmp_path: Path, **values: Any) -> ExtractConfig:
    data = {"train": write_rows(tmp_path / "rows.tsv", 40)}
    given = {"backbone": str(bert), "out": tmp_path / "cache", "data": data}
    return ExtractConfig.build(given | values)


def test_rows_hold_their_split_and_those_of_train_have_views(bert: Path, tmp_path: Path) -> None:
    source = Source.of(config(bert, tmp_path, views=3))
    rows = source.rows(load_backbone(str(bert)))
    splits = [name.partition("/")[0] for name, _ in rows.inputs]
    assert set(splits) == {"train", "dev", "test"}
    assert rows.augmented.tolist() == [split == "train" for split in splits]
    assert (rows.views, rows.bad_media, source.usual) == (3, "error", "text")


def test_both_sentences_of_a_pair_are_rows(bert: Path, tmp_path: Path) -> None:
    pairs = {
        "task": "regression",
        "train": write_pairs(tmp_path / "pairs.csv", 30),
        **{"text": "a", "text_pair": "b", "label": "score", "pair": "separate"},
    }
    rows = Source.of(config(bert, tmp_path, data=pairs)).rows(load_backbone(str(bert)))
    assert len(rows.inputs) == 60
    assert {name[-2:] for name, _ in rows.inputs} == {"#a", "#b"}


def test_texts_of_a_classification_have_views(bert: Path, tmp_path: Path) -> None:
    data = {"train": write_rows(tmp_path / "rows.tsv", 40)}
    made = ExtractConfig.build(
        {"backbone": str(masked(tmp_path)), "out": tmp_path / "c", "data": data, "views": 2}
    )
    report = extract(made)
    cache = Cache.open(tmp_path / "c")
    train = sum(name.startswith("train/") for name in cache.row_ids)
    assert (report.views, report.rows) == (2, 40)
    assert report.samples == 40 + train


def masked(tmp_path: Path) -> Path:
    """A tiny model whose tokenizer has a mask token."""
    from tiny import tiny_model, tiny_tokenizer

    tiny_model("bert").save_pretrained(tmp_path / "masked")
    tiny_tokenizer(mask_token="a").save_pretrained(tmp_path / "masked")
    return tmp_path / "masked"


class Seeing:
    """A system of labelled images beside their titles."""

    def towers(self, dataset: Dataset) -> dict[str, Tower]:
        return {"look": Tower(("image", "video")), "title": Tower(("text",))}


def test_a_backbone_that_no_tower_can_use_is_refused(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(bert, tmp_path)
    backbone = load_backbone(str(bert))
    backbone.modality = "image"
    expected = r"reads images, .* task 'classification' .* are: text \(texts\)"
    with pytest.raises(ConfigError, match=expected):
        Source.of(made).rows(backbone)


def test_the_modality_chooses_the_towers(bert: Path, tmp_path: Path) -> None:
    examples = [Example(f"train/{i}", (ImageInput(Path(f"{i}.mp4")),), 0) for i in range(3)]
    made = config(bert, tmp_path)
    dataset = Dataset({"train": Labelled(examples, ("look",))}, made.data)
    source = Source(made, dataset, Seeing().towers(dataset))
    assert source.usual is None
    backbone = load_backbone(str(bert))
    backbone.modality = "video"
    rows = source.rows(backbone)
    assert [type(given).__name__ for _, given in rows.inputs] == ["VideoInput"] * 3
    backbone.modality = "image"
    with pytest.raises(ValueError, match=r"0\.mp4 is a video.*--tower video"):
        source.rows(backbone)


def test_a_checkpoint_of_two_towers_gives_the_one_that_the_task_reads(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    data = {"train": write_rows(tmp_path / "rows.tsv", 40)}
    given = {"backbone": str(folder), "out": tmp_path / "c", "data": data}
    report = extract(ExtractConfig.build(given))
    assert (report.unit, report.taps[-1]) == ("tokens", "projection")
    with pytest.raises(ConfigError, match=r"no tower of the task 'classification'"):
        extract(ExtractConfig.build(given | {"tower": "image", "out": tmp_path / "d"}))


def save_clip(folder: Path) -> Path:
    """Save a tiny CLIP of two towers."""
    import transformers
    from tiny import tiny_tokenizer

    part = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "projection_dim": 8,
    }  # fmt: skip
    text = part | {"vocab_size": 64, "max_position_embeddings": 66, "eos_token_id": 3}
    vision = part | {"image_size": 32, "patch_size": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_registry_knows_what_has_the_same_options() -> None:
    for names in systems.SYSTEMS.values():
        assert all(systems.tasks_beside(name) == names for name in names)
    with pytest.raises(ConfigError, match="unknown task"):
        systems.tasks_beside("alchemy")
