"""Folders of pictures and clips: indexed once, kept up to date, searched, drawn."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont
from towerkit import EMBED, drawing, make_towers, save_clips, save_pictures

from pipeline.fused.loading import NotAnExport, load_fused
from pipeline.fused.write import export_model
from pipeline.gallery.sheet import Tile, draw_sheet, shorten
from pipeline.gallery.store import GalleryError, Index, StaleIndex
from pipeline.index import IndexConfig, IndexProgress, build_index
from pipeline.search import SearchConfig, search


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export_model(make_towers(folder).job(), folder / "out")
    return folder / "out"


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Iterator[dict[str, Any]]:
    save_pictures(tmp_path / "media")
    (tmp_path / "media" / "notes.txt").write_text("no picture")
    (tmp_path / "media" / ".hidden.png").write_text("no picture either")
    yield {"model": model, "media": tmp_path / "media", "out": tmp_path / "index", "device": "cpu"}


def test_an_index_holds_every_picture_once_and_finds_it(place: dict[str, Any]) -> None:
    seen: list[IndexProgress] = []
    report = build_index(IndexConfig(**place, batch_size=2), seen.append)
    assert (report.files, report.embedded, report.removed, report.width) == (6, 6, 0, EMBED)
    assert seen[-1].done == seen[-1].total == 6
    assert "100%" in seen[-1].describe()
    index = Index.read(place["out"])
    assert [entry.path for entry in index.entries] == [f"{i}.png" for i in range(5)] + [
        "more/5.png"
    ]
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)
    wanted = load_fused(place["model"]).encode_image([place["media"] / "3.png"])
    np.testing.assert_allclose(index.vectors[3], wanted[0].numpy(), atol=1e-5)
    found = search(SearchConfig(index=place["out"], image=place["media"] / "more" / "5.png", k=2))
    assert [hit.rank for hit in found.hits] == [1, 2]
    assert found.hits[0].path == "more/5.png"
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert found.warnings == ()


def test_texts_are_ranked_by_cosine_and_drawn(place: dict[str, Any], tmp_path: Path) -> None:
    build_index(IndexConfig(**place))
    sheet = tmp_path / "sheets" / "dog.png"
    found = search(SearchConfig(index=place["out"], query="a dog", k=99, sheet=sheet))
    model, index = load_fused(place["model"]), Index.read(place["out"])
    scores = index.vectors @ model.encode_text("a dog")[0].numpy()
    order = np.argsort(-scores)
    assert [hit.path for hit in found.hits] == [index.entries[i].path for i in order]
    np.testing.assert_allclose([hit.score for hit in found.hits], scores[order], atol=1e-5)
    assert f"contact sheet: {sheet}" in found.render()
    assert json.loads(json.dumps(found.to_dict()))["hits"][0]["rank"] == 1
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {(255, 0, 0), (0, 0, 255)} <= colours  # the squares of two drawings


def test_only_what_changed_is_embedded_again(place: dict[str, Any]) -> None:
    media = place["media"]
    build_index(IndexConfig(**place))
    before = Index.read(place["out"])
    drawing(11).save(media / "0.png")  # other content
    (media / "1.png").rename(media / "moved.png")
    (media / "2.png").touch()  # another time, the same content
    (media / "3.png").unlink()
    drawing(12).save(media / "new.png")
    report = build_index(IndexConfig(**place))
    assert (report.files, report.embedded, report.removed) == (6, 2, 2)
    after = Index.read(place["out"])
    paths = [entry.path for entry in after.entries]
    assert paths == ["0.png", "2.png", "4.png", "more/5.png", "moved.png", "new.png"]
    np.testing.assert_array_equal(after.vectors[4], before.vectors[1])
    assert not np.allclose(after.vectors[0], before.vectors[0])
    assert len(list(place["out"].glob("vectors-*"))) == 1
    assert build_index(IndexConfig(**place)).embedded == 0


def test_broken_files_are_named_and_left_out_only_if_asked(place: dict[str, Any]) -> None:
    (place["media"] / "bad.png").write_bytes(b"not a picture")
    (place["media"] / "empty.jpg").touch()
    with pytest.raises(GalleryError, match=r"2 of 8 (.|\n)*bad\.png(.|\n)*empty\.jpg(.|\n)*skip"):
        build_index(IndexConfig(**place))
    with pytest.raises(StaleIndex, match="unfinished"):
        search(SearchConfig(index=place["out"], query="a dog"))
    report = build_index(IndexConfig(**place, bad_media="skip"))
    assert (report.files, report.embedded) == (6, 0)  # the others' vectors were kept
    assert set(report.skipped) == {"bad.png", "empty.jpg"}
    assert "skipped bad.png: " in report.render()
    assert Index.read(place["out"]).skipped == report.skipped


def test_an_interrupted_build_goes_on(place: dict[str, Any]) -> None:
    def stop(step: IndexProgress) -> None:
        if step.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(IndexConfig(**place, batch_size=2, threads=1), stop)
    assert not Index.read(place["out"]).complete
    assert build_index(IndexConfig(**place)).embedded == 2
    assert search(SearchConfig(index=place["out"], query="a dog", k=1)).files == 6


def test_what_has_gone_or_changed_is_told(place: dict[str, Any], tmp_path: Path) -> None:
    build_index(IndexConfig(**place))
    drawing(11).save(place["media"] / "0.png")
    (place["media"] / "3.png").unlink()
    asked = {"index": place["out"], "query": "a dog"}
    found = search(SearchConfig(**asked, sheet=tmp_path / "sheet.png"))
    assert {hit.path: hit.state for hit in found.hits if hit.state != "same"} == {
        "0.png": "changed",
        "3.png": "gone",
    }
    assert len(found.warnings) == 2
    assert "warning: 1 of 6 answers are gone (3.png)" in found.render()
    shutil.move(place["media"], tmp_path / "elsewhere")
    assert "the media folder" in search(SearchConfig(**asked)).warnings[0]
    moved = search(SearchConfig(**asked, media=tmp_path / "elsewhere"))
    assert len(moved.warnings) == 2


def test_another_model_makes_an_index_stale(place: dict[str, Any], tmp_path: Path) -> None:
    build_index(IndexConfig(**place))
    other = tmp_path / "other"
    export_model(make_towers(tmp_path / "b", media="resnet").job(), other)
    with pytest.raises(StaleIndex, match="build the index again"):
        search(SearchConfig(index=place["out"], query="a dog", model=other))
    with pytest.raises(StaleIndex, match="is gone"):
        search(SearchConfig(index=place["out"], query="a dog", model=tmp_path / "nowhere"))
    report = build_index(IndexConfig(**place | {"model": other}))
    assert report.embedded == 6
    assert "its model is not this one" in report.render()
    copy = shutil.copytree(other, tmp_path / "copy")
    assert search(SearchConfig(index=place["out"], query="a dog", model=copy)).files == 6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one query, not 0"),
        ({"query": "a", "image": "b.png"}, "give one query, not 2"),
        ({"query": "  "}, "the query is empty"),
        ({"image": "nowhere.png"}, r"cannot be read: .*nowhere\.png"),
        ({"query": "a", "index": "media"}, "holds no index"),
    ],
)
def test_unusable_queries_are_refused(
    place: dict[str, Any], asked: dict[str, str], message: str
) -> None:
    build_index(IndexConfig(**place))
    if "index" in asked:
        asked = asked | {"index": str(place["media"])}
    with pytest.raises(GalleryError, match=message):
        search(SearchConfig.build({"index": place["out"]} | asked))


def test_unusable_folders_are_refused(place: dict[str, Any], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(GalleryError, match="holds no images"):
        build_index(IndexConfig(**place | {"media": empty}))
    with pytest.raises(GalleryError, match="there is no media folder"):
        build_index(IndexConfig(**place | {"media": tmp_path / "nowhere"}))
    with pytest.raises(GalleryError, match="is no index"):
        build_index(IndexConfig(**place | {"out": place["media"]}))
    with pytest.raises(NotAnExport, match="holds no exported model"):
        build_index(IndexConfig(**place | {"model": empty}))
    build_index(IndexConfig(**place))
    (vectors,) = place["out"].glob("vectors-*")
    vectors.write_bytes(vectors.read_bytes()[:-9])
    with pytest.raises(GalleryError, match="damaged"):
        search(SearchConfig(index=place["out"], query="a"))


def test_clips_are_indexed_by_their_frames(tmp_path: Path) -> None:
    made = make_towers(tmp_path, clips=True)
    export_model(made.job(), tmp_path / "model")
    drawing(1).save(tmp_path / "media" / "picture.png")
    place = {"model": tmp_path / "model", "media": tmp_path / "media", "device": "cpu"}
    report = build_index(IndexConfig(**place, out=tmp_path / "index", batch_size=4))
    assert (report.kind, report.files) == ("video", 4)
    save_clips(tmp_path / "query", 1)
    sheet = tmp_path / "sheet.png"
    asked = SearchConfig(index=tmp_path / "index", video=tmp_path / "query" / "0.gif", sheet=sheet)
    found = search(asked)
    assert found.hits[0].path == "0.gif"
    assert found.hits[0].score == pytest.approx(1, abs=1e-5)
    assert sheet.is_file()
    pictures = build_index(IndexConfig(**place, out=tmp_path / "pictures", kind="image"))
    assert pictures.files == 1


def test_long_names_are_shortened_to_fit() -> None:
    font = ImageFont.load_default(size=14)
    name = "a_very_long_file_name_that_no_tile_can_hold_in_one_line.png"
    for middle in (False, True):
        cut = shorten(name, font, 120, middle=middle)
        assert font.getlength(cut) <= 120
        assert "..." in cut
        assert cut.endswith(".png") is middle
    assert shorten("short.png", font, 120) == "short.png"
    tile = Tile(image=None, rank=1, score=0.5, name=name)
    sheet = draw_sheet([tile] * 7, title="x" * 500, note="", query=drawing(0))
    assert sheet.size == draw_sheet([tile] * 6, title="", note="").size  # two rows of five
