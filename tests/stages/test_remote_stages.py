"""From sentences to a trained side network with the cache in a bucket, as with a folder."""

import json
from pathlib import Path

import pytest
import s3kit
from stagekit import write_rows
from tiny import save_tiny

from cache import Cache, CacheUnreachable, parse_location, verify
from cache.storage.location import ObjectPath
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.extract import ExtractConfig, extract
from pipeline.train import train, train_config


def settings(tmp_path: Path, out: str) -> dict[str, object]:
    rows = tmp_path / "rows.tsv"
    if not rows.exists():
        write_rows(rows, 160)
        save_tiny("bert", tmp_path / "bert")
    data = {"train": str(rows)}
    return {"backbone": str(tmp_path / "bert"), "out": out, "data": data, "block_tokens": 24}


def test_a_run_from_a_bucket_is_the_run_from_a_folder(bucket, tmp_path) -> None:
    places = {"there": f"{bucket}/c.zarr", "here": str(tmp_path / "c.zarr")}
    metrics = {}
    for name, place in places.items():
        given = settings(tmp_path, place)
        report = extract(ExtractConfig.build(given))
        assert report.to_dict()["path"] == place
        config = train_config(
            {
                "data": given["data"],
                "cache": place,
                "out": str(tmp_path / name),
                "epochs": 2,
                "side_width": 8,
                "device": "cpu",
            }
        )
        train(config)
        told = json.loads((tmp_path / name / "run.json").read_text())
        assert told["config"]["cache"] == told["towers"]["text"]["cache"]["path"] == place
        metrics[name] = told["metrics"]
        evaluate(EvaluateConfig.build({"run": str(tmp_path / name), "split": "test"}))
    assert metrics["there"] == metrics["here"]
    assert verify(places["there"]).ok
    assert (
        Cache.open(places["there"]).fingerprint.digest
        == Cache.open(places["here"]).fingerprint.digest
    )


def test_an_extraction_that_is_cut_off_goes_on(bucket, tmp_path, s3_server, monkeypatch) -> None:
    from cache.storage import location

    proxy = s3kit.Proxy(s3_server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3kit.environment(proxy.address)["AWS_ENDPOINT_URL"])
    monkeypatch.setattr(location, "_TRIES", 1)
    location.connect.cache_clear()
    config = ExtractConfig.build(settings(tmp_path, f"{bucket}/c.zarr"))
    proxy.cut = lambda request: 0 if b"/c/1/0/0/0" in request.partition(b"\r\n")[0] else None
    with pytest.raises(CacheUnreachable, match="run the same command again to go on"):
        extract(config)
    proxy.cut = lambda _: None
    report = extract(config)
    assert 0 < report.shards_written < report.shards
    place = parse_location(f"{bucket}/c.zarr")
    assert isinstance(place, ObjectPath)
    assert sum(place.below().values()) == report.bytes
    proxy.close()
    location.connect.cache_clear()


def test_a_config_keeps_urls(tmp_path) -> None:
    given = {"data": {"train": "rows.tsv"}, "cache": "s3://bucket/a.zarr", "out": "run"}
    config = train_config(given)
    assert str(config.cache) == "s3://bucket/a.zarr"
    again = train_config(config.model_dump(mode="json"))
    assert again == config
    assert train_config(given | {"cache": "folder/a.zarr"}).cache == Path("folder/a.zarr")
