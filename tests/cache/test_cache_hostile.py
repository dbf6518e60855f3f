"""Caches made or changed by ill will: also where every checksum agrees with the lie."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from benchmarks import fuzz
from cache import Cache, CacheDamaged, CacheError, CacheVersionError, gc, ls, verify
from cache.errors import CacheTooLarge


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "cache"
    fuzz.make(path)
    return path


@pytest.fixture
def path(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "cache"))


def edit(path, change):
    """Change the manifest and make all checksums agree."""
    root = json.loads((path / "zarr.json").read_bytes())
    change(root["attributes"]["unipt_cache"])
    (path / "zarr.json").write_text(json.dumps(root, indent=2))
    fuzz.forge(path)


def test_forged_checksums_alone_change_nothing(path, made):
    fuzz.forge(path)
    assert fuzz.is_right(Cache.open(path))


@pytest.mark.parametrize("seed", [0, 1])
def test_spoiled_records_give_an_error_or_the_right_numbers(tmp_path, seed):
    counts, bad = fuzz.fuzz(tmp_path, 40, seed)
    assert bad == []
    assert counts["refused"] > 20


def test_the_fuzzer_notices_wrong_numbers_and_foreign_errors(path, monkeypatch):
    assert fuzz.outcome(path, forged=False) == "right"
    monkeypatch.setattr(fuzz, "LENGTHS", fuzz.LENGTHS[::-1])
    assert fuzz.outcome(path, forged=False) == "wrong numbers"

    def crash(path):
        raise KeyError("x")

    monkeypatch.setattr(fuzz, "verify", crash)
    assert fuzz.outcome(path, forged=False).startswith("crash: KeyError")


@pytest.mark.parametrize("value", [2**40, 2**48, 2**62, 10**40])
@pytest.mark.parametrize(
    "name", ["n_samples", "n_blocks", "n_rows", "row_id_bytes", "blocks_per_shard"]
)
def test_absurd_sizes_are_refused_before_allocating(path, name, value):
    edit(path, lambda manifest: manifest.__setitem__(name, value))
    tracemalloc.start()
    try:
        for allow in (False, True):
            with pytest.raises(CacheError):
                Cache.open(path, allow_incomplete=allow)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_file_of_holes_as_large_as_claimed_is_refused(path):
    rows = 2**38
    edit(path, lambda manifest: manifest.__setitem__("n_rows", rows))
    shape = f'"shape": [\n    {rows}'.encode()
    for name, count in (("row_to_sample", rows), ("row_id_offsets", rows + 1)):
        file = path / f"index/{name}/zarr.json"
        old = b"%d" % (24 if name == "row_to_sample" else 25)
        file.write_bytes(file.read_bytes().replace(b"    " + old, b"    %d" % count))
        os.truncate(path / f"index/{name}/c/0", 8 * count + 4)
    assert shape in (path / "index/row_to_sample/zarr.json").read_bytes()
    with pytest.raises(CacheError) as error:
        Cache.open(path, allow_incomplete=True)
    assert isinstance(error.value, CacheTooLarge)


@pytest.mark.parametrize("name", ["../../../tmp/x", "/etc/passwd", "a/../b", "..", "\0", "ü"])
def test_names_cannot_leave_the_folder(path, name):
    before = sorted(path.parent.rglob("*"))
    for key in ("name", "axis"):
        copy = Path(shutil.copytree(path, path.parent / key))
        edit(copy, lambda manifest, key=key: manifest["taps"][0].__setitem__(key, name))
        with pytest.raises(CacheDamaged, match=key):
            Cache.open(copy)
        with pytest.raises(CacheDamaged):
            verify(copy, repair=True)
        assert ls(copy).caches[0].state == "damaged"
        shutil.rmtree(copy)
    assert sorted(path.parent.rglob("*")) == before


def test_a_newer_version_is_named_also_where_checksums_agree(path):
    edit(path, lambda manifest: manifest.__setitem__("version", 4))
    for action in (Cache.open, verify):
        with pytest.raises(CacheVersionError, match="version 4"):
            action(path)
    assert ls(path).caches[0].state == "other version"


def test_row_ids_that_are_no_text(path, tmp_path):
    file = path / "index/row_id_bytes/c/0"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    fuzz.forge(path)
    cache = Cache.open(path)
    with pytest.raises(CacheDamaged, match="not UTF-8"):
        cache.row_ids  # noqa: B018
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(ValueError, match=r"24 row ids are not Unicode text, such as '\\udcff'"),
    ):
        create = fuzz.CacheWriter.create
        patch.setattr(
            fuzz.CacheWriter,
            "create",
            lambda *args, **named: create(*args, **(named | {"row_ids": ["\udcff"] * 24})),
        )
        fuzz.make(tmp_path / "new")


def test_links_out_of_the_folder_are_never_followed_to_delete(path, tmp_path):
    (tmp_path / "home/c/0").mkdir(parents=True)
    (tmp_path / "home/c/0/thesis.partial").write_text("precious")
    chunks = next(path.glob("activations/tokens-4/c"))
    (chunks / "77").symlink_to(tmp_path / "home")
    (path / "activations/stray").symlink_to(tmp_path / "home")
    report = gc(path, delete=True)
    assert [item.path.name for item in report.items] == ["77", "writer.lock"]
    assert (tmp_path / "home/c/0/thesis.partial").read_text() == "precious"
    assert fuzz.is_right(Cache.open(path))
