"""Extraction of pictures and clips: views, content keys, broken and changing files, plans."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_tiny

from cache import Cache
from pipeline.backbones import ImageBackbone
from pipeline.backbones.preprocessing import plain_transform
from pipeline.backbones.video import VideoBackbone
from pipeline.extract import ExtractConfig, extract, extract_inputs
from pipeline.extraction import feed as feeding
from pipeline.extraction.config import parse_size
from pipeline.extraction.disk import written_bytes
from pipeline.extraction.fill import ExtractionInterrupted
from pipeline.extraction.job import InputFailed
from pipeline.extraction.media import BadMedia, MediaChanged, check_files
from pipeline.extraction.table import build_table
from pipeline.inputs import ImageInput, InputError, TextInput, VideoInput, view_key
from pipeline.plan import Plan, plan
from pipeline.planning.assumed import assume_rows, cap_lengths, keep_views
from pipeline.planning.budget import alternatives, thinned
from pipeline.planning.config import PlanConfig, parse_bytes

SIDE = 32
Rows = list[tuple[str, ImageInput]]


class TinyNet(torch.nn.Module):
    """A network of two stages with a configuration: the least an image backbone may be."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        conv = torch.nn.Conv2d
        self.stages = torch.nn.ModuleList([conv(3, 4, 4, 4), conv(4, 6, 2, 2), conv(6, 8, 1, 1)])
        self.config = type("C", (), {"model_type": "tiny-net", "depths": [1, 1, 1]})()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            pixel_values = torch.relu(stage(pixel_values))
        return pixel_values


def make(kind: type[ImageBackbone] = ImageBackbone, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TinyNet().eval().requires_grad_(False)
    transform = plain_transform(SIDE, (0.5,) * 3, (0.5,) * 3)
    return kind(model, transform, name="tiny-net", **options)


def save_picture(path: Path, seed: int, size: tuple[int, int] = (40, 36)) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Return eight pictures: four to train on, one of them there twice, and a copy under dev."""
    (folder := tmp_path / "media").mkdir()
    found = [(f"train/{i}", ImageInput(save_picture(folder / f"{i}.png", i))) for i in range(6)]
    (folder / "copy.png").write_bytes((folder / "1.png").read_bytes())
    found.append(("train/again", ImageInput(folder / "copy.png")))
    return [*found, ("dev/9", ImageInput(save_picture(folder / "9.png", 9)))]


def augmented(rows: Rows) -> np.ndarray:
    return np.array([name.startswith("train/") for name, _ in rows])


def keys_of(rows: Rows, view: int = 0) -> np.ndarray:
    found = b"".join(view_key(item.key(), view) for _, item in rows)
    return np.frombuffer(found, np.uint8).reshape(-1, 16)


def test_cached_maps_are_the_live_ones_and_a_content_is_computed_once(
    rows: Rows, tmp_path: Path
) -> None:
    backbone = make()
    report = extract_inputs(backbone, rows, tmp_path / "cache", store_dtype="float32")
    assert (report.rows, report.samples, report.unit, report.tokens) == (8, 7, "images", 7)
    assert report.bytes == written_bytes(tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    samples = cache.find(keys_of(rows))
    assert samples.tolist() == cache.row_to_sample.tolist()
    assert samples[1] == samples[6]
    for (_, item), sample in zip(rows, samples, strict=True):
        live = backbone.forward(backbone.encode([item]))
        read = cache.read(np.array([sample]))
        for tap, state in live.items():
            torch.testing.assert_close(read[tap].reshape(state.shape), state)


def test_views_are_cached_beside_the_clean_picture(rows: Rows, tmp_path: Path) -> None:
    backbone = make()
    report = extract_inputs(
        backbone, rows, tmp_path / "cache", views=3, augmented=augmented(rows),
        store_dtype="float32",
    )  # fmt: skip
    assert (report.views, report.samples) == (3, 6 * 3 + 1)
    assert "in 3 views" in report.render()
    cache = Cache.open(tmp_path / "cache")
    table = np.asarray(cache.row_to_sample)
    assert table.shape == (8, 3)
    assert (table[7] == table[7, 0]).all()
    assert all(len(set(row)) == 3 for row in table[:7].tolist())
    for view in range(3):
        assert cache.find(keys_of(rows[:7], view)).tolist() == table[:7, view].tolist()
    for view in (0, 2):
        live = backbone.forward(backbone.encode([rows[4][1]], [view]))
        read = cache.read(table[4, view : view + 1])
        for tap, state in live.items():
            torch.testing.assert_close(read[tap].reshape(state.shape), state)


def test_views_of_texts_are_corrupted_captions(tmp_path: Path) -> None:
    from pipeline.backbones import load_backbone

    folder = save_tiny("bert", tmp_path / "bert")
    backbone = load_backbone(str(folder))
    backbone.tokenizer.mask_token = "a"
    text = TextInput("the cat sat on the mat the dog ran under the tree")
    report = extract_inputs(backbone, [("train/0", text)], tmp_path / "cache", views=4)
    cache = Cache.open(tmp_path / "cache")
    assert (report.views, report.samples) == (4, 4)
    assert cache.find(keys_of([("", text)], 3)).tolist() == [cache.row_to_sample[0][3]]


def test_views_and_preprocessing_are_part_of_the_fingerprint(rows: Rows) -> None:
    def parts(views: int = 1, **options: Any) -> Any:
        backbone = make(**options)
        table = build_table(backbone, rows, views=views)
        types = dict.fromkeys(backbone.tap_modules, "float16")
        return table.fingerprint(backbone, types).mapping

    assert "views" not in parts()["inputs"]
    assert parts(2)["inputs"]["views"]["count"] == 2
    assert parts(2)["inputs"]["views"]["count"] != parts(3)["inputs"]["views"]["count"]
    assert parts()["preprocessing"]["image"]["size"] == [SIDE, SIDE]


@pytest.fixture
def broken(rows: Rows, tmp_path: Path) -> Rows:
    """Append a file that is none, an empty one, and one whose pixels end too soon."""
    folder = tmp_path / "media"
    (folder / "text.png").write_text("not a picture")
    (folder / "empty.png").touch()
    whole = save_picture(folder / "cut.jpg", 3, (200, 200)).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    names = ("text.png", "empty.png", "cut.jpg", "missing.png")
    return [*rows, *((f"train/{name}", ImageInput(folder / name)) for name in names)]


def test_broken_files_are_all_named_before_anything_is_written(
    broken: Rows, tmp_path: Path
) -> None:
    with pytest.raises(BadMedia, match=r"row\(s\) have media that cannot be read") as caught:
        extract_inputs(make(), broken, tmp_path / "cache")
    text = str(caught.value)
    for part in ("train/text.png", "empty.png is empty", "train/missing.png", "--bad-media skip"):
        assert part in text
    assert not (tmp_path / "cache").exists()


def test_broken_files_are_left_out_if_asked(broken: Rows, tmp_path: Path) -> None:
    report = extract_inputs(make(), broken, tmp_path / "cache", bad_media="skip")
    assert (report.rows, report.samples) == (8, 7)
    assert sorted(report.skipped) == sorted(name for name, _ in broken[8:])
    assert "4 row(s) left out" in report.render()
    assert report.to_dict()["skipped"]["train/empty.png"].endswith("is empty (0 bytes)")
    assert list(Cache.open(tmp_path / "cache").row_ids) == [name for name, _ in broken[:8]]


def test_nothing_but_broken_files_is_an_error_even_if_skipped(broken: Rows) -> None:
    with pytest.raises(InputError, match="no inputs to extract"):
        build_table(make(), broken[8:], on_bad_media="skip")


def test_odd_files_are_counted(rows: Rows, tmp_path: Path) -> None:
    odd = tmp_path / "media" / "16.png"
    Image.fromarray(np.arange(900, dtype=np.uint16).reshape(30, 30)).save(odd)
    Image.new("CMYK", (30, 30), (9, 8, 7, 6)).save(tmp_path / "media" / "cmyk.jpg")
    more = [(f"train/{n}", ImageInput(tmp_path / "media" / n)) for n in ("16.png", "cmyk.jpg")]
    report = extract_inputs(make(), rows + more, tmp_path / "cache")
    assert sum(report.notes.values()) == 2
    assert "odd media files, all used: 1 " in report.render()


def test_a_file_that_changes_during_the_run_is_named_and_shards_are_kept(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cache.format.layout.shard_blocks", lambda *_: 1)
    monkeypatch.setattr("cache.format.layout.slot_limit", lambda *_: 1)
    monkeypatch.setattr(feeding, "threads", lambda: 1)
    whole = extract_inputs(make(taps=["*2"]), rows, tmp_path / "whole")
    assert whole.shards == whole.samples
    backbone = make(taps=["*2"])
    forward, last = backbone.forward, []

    def change_later(encoded: Any, *args: Any, **options: Any) -> Any:
        if len(last) == 3:
            for _, item in rows:
                if item.path not in last:
                    os.utime(item.path, ns=(0, 0))
        last.extend(encoded.paths)
        return forward(encoded, *args, **options)

    times = {item.path: item.path.stat().st_mtime_ns for _, item in rows}
    backbone.forward = change_later
    with pytest.raises(InputFailed, match=r"\.png changed since the run began.*run the same"):
        extract_inputs(backbone, rows, tmp_path / "parts", batch_bound=1)
    for path, time in times.items():
        os.utime(path, ns=(time, time))
    rest = extract_inputs(make(taps=["*2"]), rows, tmp_path / "parts", batch_bound=1)
    assert 0 < rest.shards_written < whole.shards
    for path in sorted((tmp_path / "whole").rglob("*")):
        if path.is_file():
            twin = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert twin.read_bytes() == path.read_bytes()


def test_a_file_that_fails_during_the_run_is_named(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = build_table(make(), rows)
    rows[3][1].path.unlink()
    with pytest.raises(MediaChanged, match=r"3\.png can no longer be read"):
        table.check_unchanged(np.arange(table.n_samples))
    monkeypatch.setattr("pipeline.extraction.fill.build_table", lambda *_, **__: table)
    with pytest.raises(InputFailed, match=r"3\.png.*finished shards are kept"):
        extract_inputs(make(), rows, tmp_path / "cache")


def test_pictures_are_decoded_in_threads_ahead_of_the_model_within_bounds(
    rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeding, "threads", lambda: 2)
    backbone = make()
    prepare, threads, ready = backbone.prepare, set(), []

    def watched(encoded: Any) -> Any:
        threads.add(threading.current_thread().name)
        result = prepare(encoded)
        ready.append(1)
        return result

    backbone.prepare = watched
    table = build_table(backbone, rows)
    passes = feeding.feed(backbone, table, ((0, np.array([i % 7])) for i in range(40)))
    for count, each in enumerate(passes):
        assert each.samples.tolist() == [count % 7]
        assert len(ready) <= count + 5  # two at work, three waiting
    assert len(ready) == 40
    assert threading.current_thread().name not in threads


def test_ctrl_c_stops_the_threads_and_the_run_can_go_on(rows: Rows, tmp_path: Path) -> None:
    backbone = make()

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    backbone.forward = stop
    with pytest.raises(ExtractionInterrupted, match=r"of 7 images.*Run the same command"):
        extract_inputs(backbone, rows, tmp_path / "cache")
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
    assert extract_inputs(make(), rows, tmp_path / "cache").shards_written > 0


def test_a_key_follows_content_and_kind_not_path(rows: Rows) -> None:
    assert rows[1][1].key() == rows[6][1].key() != rows[2][1].key()
    path = rows[1][1].path
    assert VideoInput(path).key() != ImageInput(path).key()
    known = ImageInput(Path("nowhere"), rows[1][1].key())
    assert known.key() == rows[1][1].key()
    key = known.key()
    assert view_key(key, 0) == key
    assert len({view_key(key, view) for view in range(5)}) == 5


def test_each_file_is_read_once_for_its_key(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    key = ImageInput.key

    def counted(self: ImageInput) -> bytes:
        if self.digest is None:
            seen.append(self.path)
        return key(self)

    monkeypatch.setattr(ImageInput, "key", counted)
    build_table(make(), [*rows, ("train/twice", rows[0][1])], views=2)
    assert sorted(seen) == sorted({item.path for _, item in rows})
    assert check_files([TextInput("a")]) == {}


def animation(path: Path, frames: int) -> Path:
    noise = np.random.default_rng(frames).integers(0, 255, (frames, 24, 24, 3), dtype=np.uint8)
    first, *rest = [Image.fromarray(frame) for frame in noise]
    first.save(path, save_all=True, append_images=rest, duration=1000, loop=0, lossless=True)
    return path


@pytest.fixture
def clips(tmp_path: Path) -> list[tuple[str, VideoInput]]:
    frames = (2, 5, 3, 9)
    return [(f"train/{n}", VideoInput(animation(tmp_path / f"{n}.webp", n))) for n in frames]


def test_clips_are_cached_frame_by_frame(clips: Any, tmp_path: Path) -> None:
    backbone = make(VideoBackbone, fps=1.0, max_frames=4)
    report = extract_inputs(backbone, clips, tmp_path / "cache", store_dtype="float32")
    table = build_table(backbone, clips)
    assert (report.unit, report.tokens) == ("frames", int(table.encoded.lengths.sum()))
    cache = Cache.open(tmp_path / "cache")
    samples = cache.find(keys_of(clips))
    for (_, item), sample in zip(clips, samples, strict=True):
        live = backbone.forward(backbone.encode([item]))
        read = cache.read(np.array([sample]))
        for tap, state in live.items():
            torch.testing.assert_close(read[tap].reshape(state.shape), state)


def test_a_clip_without_frames_is_bad_media(clips: Any, tmp_path: Path) -> None:
    (tmp_path / "none.mp4").write_bytes(b"\0" * 64)
    rows = [*clips, ("train/none", VideoInput(tmp_path / "none.mp4"))]
    with pytest.raises(BadMedia, match=r"train/none: .*none\.mp4"):
        build_table(make(VideoBackbone), rows)
    table = build_table(make(VideoBackbone), rows, on_bad_media="skip")
    assert list(table.skipped) == ["train/none"]


def bytes_of(table: Any, backbone: Any, **options: Any) -> int:
    layout = table.layout(backbone, dtype="float16", seed=0, block_tokens=640, **options)
    return int(layout.total_bytes)


def test_assumed_rows_have_the_lengths_and_views_of_those_given(rows: Rows) -> None:
    given = build_table(
        make(), rows[:5] + rows[7:], views=3, augmented=augmented(rows[:5] + rows[7:])
    )
    table = assume_rows(given, 60)
    assert table.row_to_sample.shape == (60, 3)
    assert table.n_samples == 50 * 3 + 10 == len(np.unique(table.row_to_sample))
    assert (table.row_to_sample[5::6] == table.row_to_sample[5::6, :1]).all()
    assert (table.views, table.n_duplicates, table.row_tokens) == (3, 0, 60)


def test_an_assumed_plan_is_the_plan_of_as_many_files(rows: Rows, tmp_path: Path) -> None:
    backbone = make()
    names = [(f"assumed/{i}", ImageInput(save_picture(tmp_path / f"{i}.png", i))) for i in range(9)]
    real = build_table(backbone, names)
    assert bytes_of(assume_rows(build_table(backbone, rows), 9), backbone) == bytes_of(
        real, backbone
    )


def test_fewer_views_and_shorter_clips_are_priced_as_if_extracted(rows: Rows, clips: Any) -> None:
    backbone = make()
    for views in (1, 2):
        kept = keep_views(build_table(backbone, rows, views=3), views)
        real = build_table(backbone, rows, views=views)
        assert kept.row_to_sample.tolist() == real.row_to_sample.tolist()
        assert kept.keys.tolist() == real.keys.tolist()
        assert bytes_of(kept, backbone) == bytes_of(real, backbone)
    long, short = make(VideoBackbone, max_frames=8), make(VideoBackbone, max_frames=4)
    capped = cap_lengths(build_table(long, clips), 4)
    assert bytes_of(capped, short) == bytes_of(build_table(short, clips), short)


def test_alternatives_are_exact_and_those_within_the_budget_come_first(
    rows: Rows, tmp_path: Path
) -> None:
    config = PlanConfig(backbone="x", data={"train": tmp_path / "c.csv"}, views=2)
    backbone = make()
    table = build_table(backbone, rows, views=2)
    names = list(backbone.tap_modules)
    budget = bytes_of(table, backbone, taps=names[1:])
    found = alternatives(config, backbone, table, budget)
    assert [each.fits for each in found] == sorted((each.fits for each in found), reverse=True)
    assert any(each.fits for each in found)
    by_options = {each.options: each.total_bytes for each in found}
    single = build_table(backbone, rows)
    assert by_options["--views 1",] == bytes_of(single, backbone)
    taps = (f"--taps {names[1]}", f"--taps {names[2]}")
    assert by_options[taps] == bytes_of(table, backbone, taps=names[1:])
    for each in found:
        assert each.fits == (each.total_bytes <= budget)


def test_smaller_pictures_are_an_alternative(rows: Rows, tmp_path: Path) -> None:
    config = PlanConfig(backbone="x", data={"train": tmp_path / "c.csv"})
    model = make().model
    large = ImageBackbone(model, plain_transform(256, (0.5,) * 3, (0.5,) * 3), name="tiny-net")
    small = ImageBackbone(model, plain_transform(128, (0.5,) * 3, (0.5,) * 3), name="tiny-net")
    table = build_table(large, rows)
    found = {e.options: e.total_bytes for e in alternatives(config, large, table, 1)}
    assert found["--image-size 128",] == bytes_of(build_table(small, rows), small)


def test_thinning_keeps_the_anchor_and_drops_the_heaviest() -> None:
    assert thinned([8, 4, 2, 1], 2) == [2, 3]
    assert thinned([5] * 13, 5) == [0, 3, 6, 9, 12]
    assert thinned([1, 9, 9, 9], 3) == [0, 2, 3]


def test_sizes_of_pictures_and_caches_are_read() -> None:
    assert (parse_size("512"), parse_size("384x640")) == ((512, 512), (384, 640))
    assert (parse_bytes("200GB"), parse_bytes("1.5 MiB"), parse_bytes("7")) == (
        200 * 10**9, 3 * 2**19, 7,
    )  # fmt: skip
    for wrong in ("0", "12y4", "x", "384x"):
        with pytest.raises(ValueError, match="height x width"):
            parse_size(wrong)
    for wrong in ("GB", "-1", "3 parsecs"):
        with pytest.raises(ValueError, match="a size is a number"):
            parse_bytes(wrong)


def captions(folder: Path, names: list[str]) -> Path:
    """Write a captions file for the media `names` of `folder`."""
    path = folder / "captions.csv"
    lines = [f"{name},a film of the cat number {name.split('.')[0]}" for name in names]
    path.write_text("\n".join(["file_name,caption", *lines]) + "\n", encoding="utf-8")
    return path


def save_vit(folder: Path) -> Path:
    """Save a tiny ViT with its processor, as `load_backbone` reads it."""
    import transformers

    size = {"height": SIDE, "width": SIDE}
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=SIDE, patch_size=16,
    )  # fmt: skip
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    transformers.ViTImageProcessorPil(size=size).save_pretrained(folder)
    return folder


def test_a_retrieval_data_set_is_priced_and_extracted_tower_by_tower(tmp_path: Path) -> None:
    (media := tmp_path / "media").mkdir()
    names = [f"{i}.png" for i in range(10)]
    for i, name in enumerate(names):
        save_picture(media / name, i)
    vit, bert = save_vit(tmp_path / "vit"), save_tiny("bert", tmp_path / "bert")
    data = {"task": "retrieval", "train": captions(media, names)}
    for backbone, views, unit in ((vit, 2, "images"), (bert, 1, "tokens")):
        values = {"backbone": str(backbone), "out": tmp_path / unit, "data": data, "views": views}
        options = {"trial_seconds": 0.01, "side_width": 4, "budget": "1kB"}
        priced = plan(PlanConfig.build(values | options))
        report = extract(ExtractConfig.build(values))
        assert (priced.total_bytes, priced.samples) == (report.bytes, report.samples)
        assert (priced.unit, report.unit) == (unit, unit)
        assert report.bytes == written_bytes(tmp_path / unit)
        assert (priced.side_seconds > 0, priced.forward_seconds > 0) == (True, True)
        cache = Cache.open(tmp_path / unit)
        train = sum(name.startswith("train/") for name in cache.row_ids)
        assert report.samples == len(cache.row_ids) + train * (views - 1)
        for part in (f"{priced.total_bytes:,} bytes", f" {unit}/s", "OVER IT", "none of those"):
            assert part in priced.render()
    assumed = plan(PlanConfig.build(values | options | {"assume": 5000}))
    assert (assumed.rows, assumed.samples, assumed.assumed) == (5000, 5000, True)
    assert "5,000 rows assumed" in assumed.render()
    assert "measured on the inputs given" in assumed.render()
    assert Plan(**json.loads(assumed.model_dump_json())) == assumed


def test_clips_given_to_an_image_tower_name_the_way_out(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / f"{i}.mp4").write_bytes(b"x")
    path = captions(tmp_path, [f"{i}.mp4" for i in range(10)])
    data = {"task": "retrieval", "train": path}
    values = {"backbone": str(save_vit(tmp_path / "vit")), "out": "y", "data": data}
    with pytest.raises(InputError, match=r"is a video.*--tower video"):
        extract(ExtractConfig.build(values))


def test_a_wrong_option_is_told_with_the_others(tmp_path: Path) -> None:
    from pipeline.config import ConfigError

    values = {"backbone": "x", "out": "y", "data": {"train": tmp_path}, "image_size": "big"}
    with pytest.raises(ConfigError, match=r"image_size.*'384x640'"):
        ExtractConfig.build(values | {"views": 0})
    with pytest.raises(ConfigError, match="budget"):
        PlanConfig.build({"backbone": "x", "data": {"train": tmp_path}, "budget": "much"})
