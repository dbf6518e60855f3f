import json
import os
import shutil
from pathlib import Path

import pytest
from cachekit import Sample, contents

from cache import (
    Cache,
    CacheDamaged,
    CacheIncomplete,
    CacheLocked,
    CacheNotFound,
    gc,
    ls,
    verify,
)
from cache.storage.files import append_synced

SAMPLE = Sample()
SHARDS = SAMPLE.layout().n_shards


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return SAMPLE.write(tmp_path_factory.mktemp("made") / "cache")


@pytest.fixture
def path(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "cache"))


def shard_file(path, shard):
    return path / f"activations/tokens-4/c/{shard}/0/0/0"


def extract(path):
    """Do what the command that made the cache does; return the shards that it made."""
    with SAMPLE.writer(path) as writer:
        made = writer.pending
        for shard in made:
            SAMPLE.fill(writer, shard)
        writer.finish()
    return made


def flip(file, position=5):
    data = bytearray(file.read_bytes())
    data[position] ^= 0x10
    file.write_bytes(data)


def change(file, old, new):
    data = file.read_bytes()
    assert data.count(old)
    file.write_bytes(data.replace(old, new))


def drop_line(path, number):
    lines = (path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    del lines[number]
    (path / "ledger.jsonl").write_bytes(b"".join(lines))


SHARD_HARM = {
    "flipped byte": (lambda p: flip(shard_file(p, 1)), (1,)),
    "flipped index": (lambda p: flip(shard_file(p, 0), -7), (0,)),
    "truncated": (lambda p: os.truncate(shard_file(p, 2), 100), (2,)),
    "missing": (lambda p: shard_file(p, 1).unlink(), (1,)),
    "swapped": (lambda p: shutil.copy(shard_file(p, 0), shard_file(p, 1)), (1,)),
    "two at once": (lambda p: (flip(shard_file(p, 2)), shard_file(p, 0).unlink()), (0, 2)),
    "altered ledger line": (lambda p: change(p / "ledger.jsonl", b'd":1,', b'd":2,'), (1,)),
    "lost ledger line": (lambda p: drop_line(p, 1), (1,)),
    "lost ledger": (lambda p: (p / "ledger.jsonl").unlink(), tuple(range(SHARDS))),
}


@pytest.mark.parametrize("name", SHARD_HARM)
def test_repair_has_exactly_the_bad_shards_made_again(path, made, name):
    harm, wanted = SHARD_HARM[name]
    harm(path)
    before = contents(path)
    report = verify(path)
    assert not report.ok
    assert "--repair" in report.render()
    assert len(report.damaged) + report.unlisted == len(wanted)
    assert contents(path) == before
    report = verify(path, repair=True)
    assert report.repaired
    assert not report.complete
    json.dumps(report.to_dict())
    assert f"Marked {len(wanted)} shard(s)" in report.render()
    with pytest.raises(CacheIncomplete):
        Cache.open(path)
    assert extract(path) == wanted
    assert contents(path) == contents(made)


RECORD_HARM = {
    "edited metadata": lambda p: change(p / "activations/tokens-4/zarr.json", b"16", b"32"),
    "lost metadata": lambda p: (p / "index/keys/zarr.json").unlink(),
    "torn last line": lambda p: append_synced(p / "ledger.jsonl", b'{"shard":1,"sa'),
    "edited COMPLETE": lambda p: change(p / "COMPLETE.json", b"n_shards", b"n_shardz"),
}


@pytest.mark.parametrize("name", RECORD_HARM)
def test_records_are_restored_from_intact_ones(path, made, name):
    RECORD_HARM[name](path)
    with pytest.raises(CacheDamaged):
        Cache.open(path)
    report = verify(path, repair=True)
    assert report.repaired
    assert report.complete
    assert "the cache is complete" in report.render()
    assert contents(path) == contents(made)


def test_a_damaged_index_is_restored_by_the_command(path, made):
    flip(path / "index/block/c/0")
    report = verify(path, repair=True)
    assert (report.damaged, report.complete) == ((), False)
    assert extract(path) == ()
    assert contents(path) == contents(made)


def test_a_sound_cache_is_left_as_it_is(path, made):
    report = verify(path, repair=True)
    assert report.ok
    assert not report.repaired
    assert contents(path) == contents(made)


def test_an_edited_root_costs_no_shard(path, made):
    change(path / "zarr.json", b"ab12", b"ab13")
    before = contents(path)
    assert any("belong to another zarr.json" in line for line in verify(path).problems)
    with pytest.raises(CacheDamaged, match=r"put the old file back.*Nothing was changed"):
        verify(path, repair=True)
    assert contents(path) == before
    change(path / "zarr.json", b"ab13", b"ab12")
    assert verify(path, repair=True).ok
    assert contents(path) == contents(made)


def test_an_unfinished_cache_is_verified_only_to_repair(tmp_path):
    with SAMPLE.writer(tmp_path / "c") as writer:
        SAMPLE.fill(writer, 0)
        SAMPLE.fill(writer, 2)
        with pytest.raises(CacheLocked):
            verify(tmp_path / "c", repair=True)
    with pytest.raises(CacheIncomplete, match="--repair"):
        verify(tmp_path / "c")
    flip(shard_file(tmp_path / "c", 2))
    assert verify(tmp_path / "c", repair=True).damaged == (2,)
    assert extract(tmp_path / "c") == tuple(s for s in range(SHARDS) if s != 0)


class Cut(BaseException):
    pass


def test_repair_cut_off_at_every_step_never_hides_the_damage(made, tmp_path):
    for step in range(1, 12):
        path = Path(shutil.copytree(made, tmp_path / str(step)))
        flip(shard_file(path, 1))
        calls = 0

        def wrap(function):
            def wrapped(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls >= step:  # noqa: B023 - called within this turn
                    raise Cut
                return function(*args, **kwargs)

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((os, "fsync"), (os, "write"), (Path, "replace"), (Path, "unlink")):
                patch.setattr(owner, name, wrap(getattr(owner, name)))
            try:
                verify(path, repair=True)
                done = True
            except Cut:
                done = False
        with pytest.raises((CacheDamaged, CacheIncomplete)):
            Cache.open(path).read(range(SAMPLE.n))
        verify(path, repair=True)
        assert extract(path) == (1,)
        assert contents(path) == contents(made)
        if done:
            return
    pytest.fail("more steps than expected")


def test_listing_tells_the_state_of_every_cache(path, tmp_path):
    with SAMPLE.writer(tmp_path / "deep/er/unfinished") as writer:
        SAMPLE.fill(writer, 0)
    shutil.copytree(path, tmp_path / "damaged")
    shard_file(tmp_path / "damaged", 0).unlink()
    shutil.copytree(path, tmp_path / "newer")
    change(tmp_path / "newer/zarr.json", b'"version": 3', b'"version": 7')
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/writer.lock").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/zarr.json").write_text('{"attributes": {}}')
    (tmp_path / "loop").symlink_to(tmp_path)
    listing = ls(tmp_path)
    states = {each.path.name: each.state for each in listing.caches}
    assert states == {
        "begun": "unfinished",
        "cache": "complete",
        "damaged": "damaged",
        "newer": "other version",
        "unfinished": "unfinished",
    }
    whole = next(each for each in listing.caches if each.path.name == "cache")
    assert (whole.samples, whole.rows, len(whole.taps)) == (SAMPLE.n, SAMPLE.n, 3)
    assert whole.nbytes == sum(map(len, contents(path).values()))
    assert "0 of" in listing.render()
    assert "missing; extract again" in listing.render()
    json.dumps(listing.to_dict())
    assert len(ls(path).caches) == 1
    (tmp_path / "empty").mkdir()
    assert "no caches" in ls(tmp_path / "empty").render()
    with pytest.raises(CacheNotFound):
        ls(tmp_path / "absent")


def litter(path):
    left = [
        path / "ledger.jsonl.partial",
        path / "activations/tokens-4/c/1/0/0/0.partial",
        path / "activations/tokens-4/c/77/0/0/0",
    ]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
    return {*left, path / "writer.lock"}


def test_gc_names_leftovers_and_deletes_only_when_told(path, made, tmp_path):
    left = litter(path)
    (path / "mine.txt").write_text("precious")
    before = contents(path)
    report = gc(tmp_path)
    assert {item.path for item in report.items} == left
    assert report.nbytes == 300
    assert "nothing was deleted" in report.render()
    json.dumps(report.to_dict())
    assert contents(path) == before
    report = gc(tmp_path, delete=True)
    assert {item.path for item in report.items} == left
    assert "deleted" in report.render()
    good = {name: data for name, data in contents(made).items() if name != "writer.lock"}
    assert contents(path) == good | {"mine.txt": b"precious"}
    assert not (path / "activations/tokens-4/c/77").exists()
    assert gc(tmp_path, delete=True).render() == "no leftovers"


def test_gc_leaves_the_living_and_the_unreadable_alone(path, tmp_path):
    with SAMPLE.writer(tmp_path / "living") as writer:
        SAMPLE.fill(writer, 0)
        litter(tmp_path / "living")
        before = contents(tmp_path / "living")
        report = gc(tmp_path / "living", delete=True)
        assert report.items == ()
        assert "living process" in report.render()
        assert contents(tmp_path / "living") == before
    litter(path)
    change(path / "zarr.json", b"{", b"[")
    before = contents(path)
    assert str(path) in gc(path, delete=True).skipped
    assert contents(path) == before


def test_gc_removes_what_was_only_begun_and_nothing_like_it(tmp_path, monkeypatch):
    def stop(*args):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr("cache.writing.writer.encode_ledger", stop)
        patch.setattr("cache.writing.writer.build_files", stop)
        with pytest.raises(Cut):
            SAMPLE.writer(tmp_path / "begun")
    (tmp_path / "begun/index").mkdir()
    (tmp_path / "begun/index/zarr.json").write_text("{}")
    (tmp_path / "like/index").mkdir(parents=True)
    (tmp_path / "like/writer.lock").touch()
    (tmp_path / "like/index/thesis.tex").write_text("precious")
    report = gc(tmp_path, delete=True)
    assert len(report.items) == 2
    assert not (tmp_path / "begun").exists()
    assert (tmp_path / "like/index/thesis.tex").read_text() == "precious"


def test_gc_keeps_an_unfinished_cache_resumable(made, tmp_path):
    with SAMPLE.writer(tmp_path / "c") as writer:
        SAMPLE.fill(writer, 0)
    litter(tmp_path / "c")
    assert len(gc(tmp_path / "c", delete=True).items) == 3
    assert 0 not in extract(tmp_path / "c")
    assert contents(tmp_path / "c") == contents(made)


def test_a_writer_that_met_a_deleted_lock_is_refused(path, monkeypatch):
    real = os.open

    def opened_then_deleted(name, *rest):
        fd = real(name, *rest)
        if str(name).endswith("writer.lock"):
            Path(name).unlink()
        return fd

    monkeypatch.setattr(os, "open", opened_then_deleted)
    with pytest.raises(CacheLocked):
        SAMPLE.writer(path)
