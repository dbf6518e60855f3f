"""A cache in a bucket is the cache on a disk: the same bytes, the same batches, the same faults."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3kit
import torch
import zarr
from cachekit import LONG, Sample, contents, frame_taps
from onesource import OneSource
from zarr.storage import ObjectStore

from cache import (
    Cache,
    CacheDamaged,
    CacheError,
    CacheIncomplete,
    CacheLocked,
    CacheNotFound,
    CacheUnreachable,
    InvalidLocation,
    convert,
    gc,
    info,
    ls,
    merge,
    parse_location,
    verify,
)
from cache.storage import lease
from cache.storage import location as module
from cache.storage.lease import WriterLease
from cache.storage.location import ObjectPath

TOKENS = LONG["tokens"]
SAMPLES = {
    "float16": TOKENS,
    "int8": Sample(lengths=range(1, 20), dtype="int8"),
    "frames": Sample(taps=frame_taps(), block_tokens={"frames": 5}, dtype="bfloat16"),
}


@pytest.fixture
def proxy(s3_server, bucket, monkeypatch) -> Iterator[s3kit.Proxy]:
    """The way to the bucket, from now on."""
    found = s3kit.Proxy(s3_server)
    module.connect.cache_clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3kit.environment(found.address)["AWS_ENDPOINT_URL"])
    yield found
    found.close()
    module.connect.cache_clear()


def given(sample: Sample) -> dict:
    return (
        {"rms": {t.name: torch.ones(t.shape[-1]) for t in sample.taps}}
        if sample.dtype == "int8"
        else {}
    )


def objects(url: str) -> dict[str, bytes]:
    root = parse_location(url)
    return {name: (root / name).read_bytes() for name in root.below()}


def on_disk(sample: Sample, path: Path) -> dict[str, bytes]:
    found = contents(sample.write(path, **given(sample)))
    del found["writer.lock"]
    return found


def read_all(cache: Cache, sample: Sample) -> bool:
    found = cache.read(np.arange(sample.n))
    return all(
        torch.allclose(found[tap.name].float(), sample.values(tap, range(sample.n)), atol=0.6)
        for tap in sample.taps
    )


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_objects_are_the_files_of_the_folder(bucket, tmp_path, kind) -> None:
    sample, url = SAMPLES[kind], f"{bucket}/deep/c.zarr"
    sample.write(url, **given(sample))
    assert objects(url) == on_disk(sample, tmp_path / "c")
    there, here = Cache.open(url), Cache.open(tmp_path / "c")
    samples = np.array([3, 0, 3, sample.n - 1])
    for name, values in here.read(samples).items():
        assert torch.equal(there.read(samples, [name])[name], values)
    assert read_all(there, sample)
    assert str(there.path) == url
    assert verify(url).ok
    assert info(url).to_dict() == info(tmp_path / "c").to_dict() | {"path": url}


def test_zarr_opens_it(bucket) -> None:
    TOKENS.write(f"{bucket}/c")
    from obstore.store import from_url

    array = zarr.open(
        ObjectStore(from_url(f"{bucket}/c", client_options={"allow_http": True})),
        mode="r",
        path="activations/tokens-4",
    )
    cache = Cache.open(f"{bucket}/c")
    block, slot = int(cache.table.block[5]), int(cache.table.start["tokens"][5])
    wanted = cache.read(np.array([5]))["tokens.layer.1"]
    assert np.array_equal(array[block, 1, slot : slot + len(wanted)], wanted.numpy())


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_batches_are_those_of_the_disk(bucket, tmp_path, tier) -> None:
    caches = [Cache.open(TOKENS.write(place)) for place in (f"{bucket}/c", tmp_path / "c")]
    loaders = [
        OneSource(cache, np.arange(TOKENS.n), taps=None, batch_size=7, seed=1, tier=tier, window=3)
        for cache in caches
    ]
    for there, here in zip(*(loader.epoch(2) for loader in loaders), strict=True):
        assert torch.equal(there.values, here.values)
        assert torch.equal(there.index, here.index)


def test_many_requests_are_in_flight(bucket, proxy) -> None:
    TOKENS.write(f"{bucket}/c")
    cache = Cache.open(f"{bucket}/c")
    proxy.most, proxy.pause = 0, 0.2
    assert read_all(cache, TOKENS)
    assert proxy.most >= 16


def is_chunk_read(request: bytes) -> bool:
    return (
        request.startswith(b"GET") and b"activations/tokens-4/c/" in request.partition(b"\r\n")[0]
    )


def test_broken_connections_are_tried_again(bucket, proxy) -> None:
    TOKENS.write(f"{bucket}/c")
    cache, broken = Cache.open(f"{bucket}/c"), []

    def cut(request: bytes) -> int | None:
        if not is_chunk_read(request) or len(broken) >= 12:
            return None
        broken.append(request)
        return (0, 60, 400)[len(broken) % 3]  # before the answer, in its head, in its body

    proxy.cut = cut
    assert read_all(cache, TOKENS)
    assert len(broken) == 12


def test_a_connection_that_stays_broken_is_an_error(bucket, proxy, monkeypatch) -> None:
    TOKENS.write(f"{bucket}/c")
    cache = Cache.open(f"{bucket}/c")
    monkeypatch.setattr(module, "_TRIES", 2)
    module.connect.cache_clear()
    proxy.cut = lambda request: 0 if is_chunk_read(request) else None
    with pytest.raises(CacheUnreachable, match="cannot be reached or broke off"):
        read_all(cache, TOKENS)
    proxy.cut = lambda _: None
    assert read_all(cache, TOKENS)


def test_a_broken_connection_is_no_damage_whatever_its_figures(bucket, monkeypatch) -> None:
    TOKENS.write(f"{bucket}/c")
    cache = Cache.open(f"{bucket}/c")

    def broken(path: module.ObjectPath, *_: object) -> None:
        raise CacheUnreachable(f"{path}: GET http://127.0.0.1:41677 broke off in 274.844167ms")

    monkeypatch.setattr(module.ObjectPath, "read_ranges", broken)
    with pytest.raises(CacheUnreachable, match="broke off"):
        read_all(cache, TOKENS)


def test_a_slow_connection_only_takes_longer(bucket, proxy) -> None:
    TOKENS.write(f"{bucket}/c")
    cache = Cache.open(f"{bucket}/c")
    proxy.pause, proxy.piece = 0.002, 100
    assert read_all(cache, TOKENS)


def test_a_busy_store_is_asked_again(bucket, proxy, tmp_path) -> None:
    refused = []

    def busy(request: bytes) -> bytes | None:
        refused.append(request)
        return s3kit.SLOW_DOWN if len(refused) % 3 == 0 else None

    proxy.answer = busy
    SAMPLES["frames"].write(f"{bucket}/c")
    assert read_all(Cache.open(f"{bucket}/c"), SAMPLES["frames"])
    proxy.answer = lambda _: None
    assert objects(f"{bucket}/c") == on_disk(SAMPLES["frames"], tmp_path / "c")


@pytest.mark.parametrize(
    ("answer", "told"),
    [(s3kit.SLOW_DOWN, "slow down.*fewer workers"), (s3kit.FORBIDDEN, "refuses these credentials")],
)
def test_a_store_that_refuses_says_why(bucket, proxy, monkeypatch, answer, told) -> None:
    TOKENS.write(f"{bucket}/c")
    monkeypatch.setattr(module, "_TRIES", 1)
    module.connect.cache_clear()
    proxy.answer = lambda _: answer
    with pytest.raises(CacheUnreachable, match=told):
        Cache.open(f"{bucket}/c")
    with pytest.raises(CacheUnreachable, match=told):
        TOKENS.writer(f"{bucket}/d")


def test_what_is_missing_is_named(bucket, monkeypatch) -> None:
    with pytest.raises(CacheNotFound, match="extract one there first"):
        Cache.open(f"{bucket}/nothing")
    with pytest.raises(CacheUnreachable, match="there is no such bucket"):
        Cache.open("s3://no-such-bucket/c")
    with pytest.raises(CacheUnreachable, match="there is no such bucket"):
        TOKENS.writer("s3://no-such-bucket/c")
    monkeypatch.setattr(module, "_TRIES", 0)
    with pytest.raises(CacheUnreachable, match="AZURE_STORAGE_ACCOUNT_NAME"):
        Cache.open("az://container/c")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CacheUnreachable, match="no credentials: set AWS_ACCESS_KEY_ID"):
        Cache.open("s3://half-the-credentials/c")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CacheUnreachable, match="no credentials: set AWS_ACCESS_KEY_ID"):
        Cache.open("s3://no-credentials/c")
    monkeypatch.setitem(sys.modules, "obstore", None)
    module.library.cache_clear()
    with pytest.raises(CacheError, match=r"unipt\[cloud\]"):
        Cache.open(f"{bucket}/c")
    module.library.cache_clear()


def flip(url: str, name: str, at: int) -> None:
    path = parse_location(f"{url}/{name}")
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write(bytes(data))


SHARD = "activations/tokens-4/c/1/0/0/0"


def swap(url: str) -> None:
    parse_location(f"{url}/{SHARD}").write(
        parse_location(f"{url}/{SHARD.replace('c/1', 'c/0')}").read_bytes()
    )


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda url: flip(url, SHARD, 5), "fails its checksum"),
        (lambda url: flip(url, SHARD, -20), "shard index"),
        (swap, "not the file that the ledger lists"),
        (lambda url: parse_location(f"{url}/{SHARD}").unlink(), "is missing"),
        (lambda url: parse_location(f"{url}/{SHARD}").write(b"short"), "holds 5 bytes"),
        (lambda url: flip(url, "index/block/c/0", 3), "fails its checksum"),
        (lambda url: flip(url, "ledger.jsonl", 30), "altered"),
    ],
)
def test_damage_is_noticed_and_repaired(bucket, tmp_path, harm, told) -> None:
    url = f"{bucket}/c"
    TOKENS.write(url)
    good = objects(url)
    harm(url)
    with pytest.raises(CacheDamaged, match=told):
        read_all(Cache.open(url), TOKENS)
    assert not verify(url, repair=True).ok
    TOKENS.write(url)
    assert objects(url) == good


def test_damage_while_it_is_open_is_noticed(bucket) -> None:
    TOKENS.write(f"{bucket}/c")
    cache, path = Cache.open(f"{bucket}/c"), parse_location(f"{bucket}/c/{SHARD}")
    inside = np.flatnonzero(cache.table.block // cache.geometry.blocks_per_shard == 1)
    for change in (lambda: path.write(b"short"), path.unlink):
        change()
        with pytest.raises(CacheDamaged, match=r"ends too early|is missing"):
            cache.read(inside)


def test_an_interrupted_writing_is_resumed(bucket, tmp_path) -> None:
    url = f"{bucket}/c"
    with TOKENS.writer(url) as writer:
        for shard in (4, 1):
            TOKENS.fill(writer, shard)
        parse_location(f"{url}/activations/tokens-4/c/7/0/0/0").write(b"written, not listed")
    with pytest.raises(CacheIncomplete, match="not finished"):
        Cache.open(url)
    assert Cache.open(url, allow_incomplete=True).finished == {1, 4}
    with TOKENS.writer(url, check=True) as writer:
        assert {1, 4}.isdisjoint(writer.pending)
        assert f"{SHARD.replace('c/1', 'c/7')}" not in objects(url)
        for shard in writer.pending:
            TOKENS.fill(writer, shard)
        writer.finish()
    assert objects(url) == on_disk(TOKENS, tmp_path / "c")


WRITER = """
import sys; sys.path[:0] = {path!r}
from cachekit import LONG
LONG["tokens"].write({url!r})
"""


def test_a_killed_writer_is_resumed_at_once(bucket, tmp_path) -> None:
    url = f"{bucket}/c"
    code = WRITER.format(path=sys.path, url=url)
    ledger, end = parse_location(f"{url}/ledger.jsonl"), time.monotonic() + 60
    running = subprocess.Popen([sys.executable, "-c", code])
    while not (ledger.is_file() and ledger.read_bytes()):
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    running.kill()
    running.wait()
    before = len(ledger.read_bytes().splitlines())
    with TOKENS.writer(url) as writer:
        assert len(writer.pending) == writer.layout.n_shards - before < writer.layout.n_shards
        for shard in writer.pending:
            TOKENS.fill(writer, shard)
        writer.finish()
    assert objects(url) == on_disk(TOKENS, tmp_path / "c")


def test_a_second_writer_is_refused_while_the_first_lives(bucket, monkeypatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 3.0)
    with TOKENS.writer(f"{bucket}/c") as first:
        with pytest.raises(CacheLocked, match="being written by another process"):
            TOKENS.writer(f"{bucket}/c")
        TOKENS.fill(first, 0)
    with TOKENS.writer(f"{bucket}/c") as second:
        assert 0 not in second.pending
    assert "writer.lock" not in objects(f"{bucket}/c")


def test_the_lock_of_a_machine_that_is_gone_ends_by_itself(bucket, monkeypatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.5)
    for left in (json.dumps({"host": "elsewhere", "pid": 1}).encode(), b"", b"[1]"):
        parse_location(f"{bucket}/c/writer.lock").write(left)
        started = time.monotonic()
        with TOKENS.writer(f"{bucket}/c"):
            assert time.monotonic() - started >= 0.5


def test_a_lock_that_is_given_up_meanwhile_is_taken(bucket) -> None:
    path = parse_location(f"{bucket}/c/writer.lock")
    path.write(b'{"host": "elsewhere"}')
    giving_up = threading.Timer(0.3, path.unlink)
    giving_up.start()
    held = lease_of(f"{bucket}/c")  # long before the lease of the other one has ended
    giving_up.join()
    assert held.held
    held.release()


def test_a_writer_that_was_away_too_long_changes_nothing(bucket, monkeypatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.3)
    with monkeypatch.context() as patch:
        patch.setattr(WriterLease, "_keep", lambda self: None)
        patch.setattr(lease, "_own", lambda: {"host": "elsewhere"})
        first = TOKENS.writer(f"{bucket}/c")
    second = TOKENS.writer(f"{bucket}/c")
    TOKENS.fill(second, 2)
    with pytest.raises(CacheLocked, match="taken over"):
        TOKENS.fill(first, 1)
    with pytest.raises(CacheError, match="closed"):
        TOKENS.fill(first, 1)
    first.close()
    TOKENS.fill(second, 3)
    second.close()
    assert Cache.open(f"{bucket}/c", allow_incomplete=True).finished == {2, 3}


def test_a_renewal_that_was_sent_twice_is_ours(bucket) -> None:
    held = lease_of(f"{bucket}/c")
    held._version = "one that was replaced by our own first try"
    held.renew()
    assert held.held
    held.release()
    held.release()
    with pytest.raises(CacheLocked):
        held.renew()


def lease_of(url: str) -> WriterLease:
    path = parse_location(f"{url}/writer.lock")
    assert isinstance(path, ObjectPath)
    return WriterLease(path)


def test_other_things_are_left_alone(bucket) -> None:
    parse_location(f"{bucket}/c/thesis.tex").write(b"precious")
    with pytest.raises(CacheError, match="holds other things"):
        TOKENS.writer(f"{bucket}/c")
    assert objects(f"{bucket}/c") == {"thesis.tex": b"precious"}


@pytest.mark.parametrize(
    "work",
    [
        lambda url, here: ls(url),
        lambda url, here: gc(url),
        convert,
        lambda url, here: convert(here, url, dtype="float32"),
        lambda url, here: merge([here, url], here.parent / "out"),
    ],
)
def test_what_needs_a_folder_says_so(bucket, tmp_path, work) -> None:
    with pytest.raises(CacheError, match=r"works on folders of this machine, not on s3://"):
        work(f"{bucket}/c", TOKENS.write(tmp_path / "c"))


def test_places_are_read_as_they_are_written() -> None:
    assert parse_location("a/b") == Path("a/b")
    place = parse_location("s3://bucket//a/b/")
    assert str(place) == "s3://bucket/a/b"
    assert (place / "c").parent == place
    assert (place.name, place.key, place.bucket) == ("b", "a/b", "s3://bucket")
    assert parse_location(place) is place
    for wrong in (
        "s3://",
        "s3://bucket",
        "s3://bucket/../x",
        "s3://b/a//c",
        "ftp://b/c",
        "s3://b/?x",
    ):
        with pytest.raises(InvalidLocation, match=r"s3://bucket/name\.zarr"):
            parse_location(wrong)
