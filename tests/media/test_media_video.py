"""The frames of a video, shown at the right times, from every container; or a clear refusal."""

import builtins
import random
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mediakit import STEP, add_sound, animation, noise, numbers_seen, video

from pipeline.media import containers
from pipeline.media.frames import VideoInfo, frame_numbers, frame_times
from pipeline.media.images import MediaError
from pipeline.media.video import is_video, iter_frames, media_kind, probe_video, read_frames

CONTAINERS = [
    ("a.mp4", "libx264", {}),
    ("a.mp4", "mpeg4", {}),
    ("a.mov", "libx264", {"bf": "0"}),
    ("a.mkv", "libx264", {"bf": "3"}),
    ("a.webm", "libvpx-vp9", {"lag-in-frames": "0", "deadline": "realtime"}),
    ("a.webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "8"}),  # has hidden frames
    ("a.avi", "mpeg4", {"bf": "2"}),
    ("a.ts", "libx264", {}),
]


def info_of(times: list[float], duration: float) -> VideoInfo:
    return VideoInfo(
        duration_s=duration,
        fps=len(times) / duration,
        frames=len(times),
        width=1,
        height=1,
        times=np.array(times),
        notes=(),
    )


def even(count: int, fps: float) -> VideoInfo:
    return info_of([i / fps for i in range(count)], count / fps)


# --- which frames


def test_one_frame_a_second() -> None:
    assert frame_numbers(even(100, 25.0), 1.0, 12).tolist() == [0, 25, 50, 75]
    assert frame_times(even(100, 25.0), 1.0, 12).tolist() == [0, 1, 2, 3]
    assert frame_numbers(even(101, 25.0), 1.0, 12).tolist() == [0, 25, 50, 75, 100]


def test_then_evenly_to_the_bound_as_clip4clip() -> None:
    numbers = frame_numbers(even(30 * 25, 25.0), 1.0, 12)
    assert (numbers // 25).tolist() == np.linspace(0, 29, num=12, dtype=int).tolist()


def test_short_clips_give_one_frame_at_1_fps() -> None:
    assert frame_numbers(even(5, 25.0)).tolist() == [0]


def test_fps_0_takes_the_middles_of_equal_parts() -> None:
    assert frame_numbers(even(40, 10.0), 0, 4).tolist() == [5, 15, 25, 35]
    assert frame_numbers(even(3, 10.0), 0, 4).tolist() == [0, 1, 2]
    assert frame_numbers(even(9, 10.0), 0, 1).tolist() == [4]


def test_rounded_ntsc_times_hit_their_ticks() -> None:
    times = [round(i * 1001 / 30) / 1000 for i in range(300)]  # matroska rounds to milliseconds
    numbers = frame_numbers(info_of(times, 10.01), 1.0, 20)
    assert numbers.tolist() == [max(i for i, t in enumerate(times) if t <= s) for s in range(11)]


def test_a_frame_is_never_given_twice() -> None:
    assert frame_numbers(even(3, 1.0), 30.0, 12).tolist() == [0, 1, 2]
    held = info_of([0.0, 0.1, 0.2], 60.0)  # the last is held for a minute
    assert frame_numbers(held, 1.0, 12).tolist() == [0, 2]
    assert frame_numbers(held, 0, 2).tolist() == [2]


@given(
    gaps=st.lists(st.integers(1, 3000), min_size=1, max_size=60),
    fps=st.sampled_from([0.0, 0.5, 1.0, 7.0, 30.0]),
    most=st.integers(1, 15),
)
@settings(deadline=None, max_examples=60)
def test_numbers_are_ascending_bounded_and_shown(gaps: list[int], fps: float, most: int) -> None:
    ends = np.cumsum(gaps) / 1000
    times = [0.0, *ends[:-1].tolist()]
    info = info_of(times, float(ends[-1]))
    numbers = frame_numbers(info, fps, most)
    assert 1 <= len(numbers) <= most
    assert (np.diff(numbers) > 0).all()
    if fps:
        ticks = np.arange(0, info.duration_s - 1e-5, 1 / fps)
        shown = {int(np.searchsorted(info.times, tick + 1e-7, side="right")) - 1 for tick in ticks}
        assert set(numbers.tolist()) <= shown
        assert len(numbers) == min(most, len(shown))


@pytest.mark.parametrize(("fps", "most"), [(-1.0, 1), (float("nan"), 1), (1.0, 0)])
def test_unusable_rates(fps: float, most: int) -> None:
    with pytest.raises(ValueError, match="give fps of at least 0"):
        frame_numbers(even(3, 1.0), fps, most)


# --- containers


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
def test_containers(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = video(tmp_path / name, codec, options=options)
    info = probe_video(path)
    assert info.frames == 20
    assert info.duration_s == pytest.approx(2.0, abs=0.002)
    assert info.times == pytest.approx(np.arange(20) / 10, abs=0.002)
    assert (info.width, info.height, info.notes) == (64, 48, ())
    frames = read_frames(path, fps=10, max_frames=100)
    assert numbers_seen(frames) == list(range(20))
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (64, 48))}
    assert numbers_seen(read_frames(path, 0, 4)) == [2, 7, 12, 17]
    assert numbers_seen(read_frames(path)) == [0, 10]


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
def test_every_frame_alone_is_the_one_in_its_place(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = video(tmp_path / name, codec, options=options)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    info = probe_video(path)
    assert len(frames) == info.frames
    for number, frame in enumerate(frames):
        (alone,) = containers.container_frames(path, info, [number])
        assert np.array_equal(np.asarray(alone), frame), number


def test_few_frames_of_a_long_clip_do_not_decode_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "a.mp4", "mpeg4", frames=25)
    seen: list[int] = []
    decode = containers._decode

    def counted(path: Path, wanted: list[int], jump: int | None) -> Any:
        seen.append(-1 if jump is None else jump)
        return decode(path, wanted, jump)

    monkeypatch.setattr(containers, "_decode", counted)
    assert numbers_seen(read_frames(path, 0, 1)) == [12]
    assert len(seen) == 1
    assert seen[0] > 0  # one jump, none from the start


def test_a_jump_that_lands_late_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / "a.mp4", "mpeg4", frames=25)
    decode = containers._decode
    jumps = []

    def late(path: Path, wanted: list[int], jump: int | None) -> Any:
        jumps.append(jump)
        return decode(path, wanted, None if jump is None else jump + 10**6)

    monkeypatch.setattr(containers, "_decode", late)
    assert numbers_seen(read_frames(path, 0, 5)) == [2, 7, 12, 17, 22]
    assert len([jump for jump in jumps if jump is not None]) == jumps[1:].count(None) > 0


def test_variable_frame_rate_goes_by_time(tmp_path: Path) -> None:
    pts = [0, 100, 200, 1500, 1600, 3700, 3800, 3900]
    path = video(tmp_path / "a.mkv", frames=8, pts=pts)
    info = probe_video(path)
    assert info.times.tolist() == pytest.approx([value / 1000 for value in pts])
    assert info.notes == ("variable frame rate: frames by their times",)
    assert numbers_seen(read_frames(path)) == [0, 2, 4]  # at 0, 1, 2 and 3 s, the third twice


def test_clip_that_starts_late_counts_from_its_first_frame(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", frames=10, pts=[5000 + 100 * i for i in range(10)])
    info = probe_video(path)
    assert (info.times[0], info.frames) == (0.0, 10)
    assert info.duration_s == pytest.approx(1.0, abs=0.11)
    assert numbers_seen(read_frames(path, 5.0)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("matrix", "turned", "note"),
    [
        ((0, 1, -1, 0), True, "rotated by 270 degrees"),  # a phone held upright: clockwise
        ((0, -1, 1, 0), True, "rotated by 90 degrees"),
        ((-1, 0, 0, -1), False, "rotated by 180 degrees"),
    ],
)
def test_rotation(tmp_path: Path, matrix: tuple[int, ...], turned: bool, note: str) -> None:
    path = tmp_path / "a.mp4"
    corner = np.zeros((48, 64, 3), dtype=np.uint8)
    corner[:24, :32] = 255  # white at the top left, as stored
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        container.mux(stream.encode())
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the track's matrix: a b u, c d v, x y w
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    info = probe_video(path)
    assert info.notes == (note,)
    frame = read_frames(path)[0]
    assert frame.size == (info.width, info.height) == ((48, 64) if turned else (64, 48))
    corners = {
        "rotated by 270 degrees": (-1, 0),  # (x, y) of the white corner, as shown
        "rotated by 90 degrees": (0, -1),
        "rotated by 180 degrees": (-1, -1),
    }
    shown = np.asarray(frame.convert("L"))
    x, y = corners[note]
    assert shown[y, x] > 200
    assert sum(int(shown[j, i]) > 200 for j in (0, -1) for i in (0, -1)) == 1


def test_sound_beside_the_image_is_ignored(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", sound=True)
    assert (probe_video(path).frames, probe_video(path).notes) == (20, ())
    assert numbers_seen(read_frames(path, 0, 2)) == [5, 15]


def test_second_video_stream_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("mpeg4", rate=10) for _ in range(2)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(10):
            for stream, value in zip(streams, (index * STEP, 255), strict=True):
                values = np.full((48, 64, 3), value, dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(values, format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    assert probe_video(path).notes == ("2 video streams: the first is used",)
    assert numbers_seen(read_frames(path, 0, 2)) == [2, 7]


def test_sound_alone(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        add_sound(container)
    with pytest.raises(MediaError, match=r"song\.mp4: holds only audio, no video"):
        probe_video(path)


def test_cover_image_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        add_sound(container)
        values = np.zeros((48, 64, 3), dtype=np.uint8)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(cover.encode())
    with av.open(str(path)) as container:
        stored = bool(container.streams.video[0].disposition & av.stream.Disposition.attached_pic)
    assert stored
    with pytest.raises(MediaError, match="only sound with a cover image"):
        probe_video(path)


def test_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        add_sound(container)
    with pytest.raises(MediaError, match=r"none\.mkv: its video stream holds no frames"):
        probe_video(path)


def test_raw_stream_states_no_times(tmp_path: Path) -> None:
    path = video(tmp_path / "a.h264")
    with pytest.raises(MediaError, match="state no times; put it in a container"):
        probe_video(path)


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS[:7])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_truncated_containers_are_refused(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], share: float
) -> None:
    path = video(tmp_path / name, codec, options=options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(MediaError, match=rf"{name}: .*(truncated|no frames)"):
        probe_video(path)
    with pytest.raises(MediaError, match=name):
        read_frames(path)


def test_truncated_says_how_much_is_readable(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mkv", "mpeg4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(
        MediaError, match=r"\d+ frames, 1\.\d s, are readable of the 2\.0 s"
    ) as info:
        probe_video(path)
    assert "ffmpeg -i FILE -c copy" in str(info.value)


def test_index_before_a_cut_tells_the_missing_frames(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", "mpeg4")
    with (
        av.open(str(path)) as source,
        av.open(str(tmp_path / "b.mp4"), "w", options={"movflags": "+faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = (tmp_path / "b.mp4").read_bytes()
    assert whole.index(b"moov") < whole.index(b"mdat")
    (tmp_path / "b.mp4").write_bytes(whole[:-300])
    with pytest.raises(MediaError, match=r"truncated: 1\d frames.*of the 20 frames"):
        probe_video(tmp_path / "b.mp4")


@pytest.mark.parametrize(("name", "codec", "options"), CONTAINERS)
def test_damage_gives_frames_or_a_media_error(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = video(tmp_path / name, codec, options=options)
    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(25):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 40)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            info = probe_video(path)
            assert len(read_frames(path, 0, 4, info)) == len(frame_numbers(info, 0, 4))
        except MediaError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("content", [b"", b"hello", bytes(5000)])
def test_not_a_clip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.mp4: (the file is empty|not a video)"):
        probe_video(path)


def test_missing_clip(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"none\.mp4: cannot be read: No such file"):
        probe_video(tmp_path / "none.mp4")


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, moving = video(tmp_path / "a.mp4"), animation(tmp_path / "a.webp")
    original = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MediaError, match=r"unipt\[video\]"):
        probe_video(path)
    assert len(read_frames(moving, 0, 3)) == 3


def test_shipped_files_can_be_loaded_without_pyav() -> None:
    from transformers.dynamic_module_utils import get_imports

    folder = Path(containers.__file__).parent
    wanted = {name for path in folder.glob("*.py") for name in get_imports(path)}
    assert {"PIL", "numpy", "torch"} <= wanted
    assert "av" not in wanted


# --- animated images


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_animated_images(tmp_path: Path, suffix: str) -> None:
    shown = [100, 300, 100, 100, 500, 100]
    path = animation(tmp_path / f"a.{suffix}", frames=6, ms=shown)
    info = probe_video(path)
    assert (info.frames, info.duration_s) == (6, pytest.approx(1.2))
    assert info.times == pytest.approx(np.cumsum([0, *shown[:-1]]) / 1000)
    assert (info.width, info.height, info.notes) == (32, 24, ())
    assert numbers_seen(read_frames(path, 5.0)) == [0, 1, 2, 4]
    assert numbers_seen(read_frames(path)) == [0, 4]
    assert numbers_seen(list(iter_frames(path, 0, 2, info))) == [1, 4]


def test_animated_transparency_is_white(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", alpha=0)
    assert all(np.asarray(frame).min() == 255 for frame in read_frames(path, 0))


def test_still_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise(8, 6).save(path)
    assert probe_video(path).notes == ("a still image: one frame",)
    assert [frame.size for frame in read_frames(path, 0, 12)] == [(8, 6)]


def test_frames_of_no_duration_last_100_ms(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.gif", frames=4, ms=0)
    info = probe_video(path)
    assert info.duration_s == pytest.approx(0.4)
    assert info.notes == ("frames of no stated duration: 100 ms each",)


@pytest.mark.parametrize("suffix", ["webp", "gif", "png"])
def test_truncated_animation_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = [noise(32, 32, seed) for seed in range(6)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=rf"a\.{suffix}"):
        read_frames(path, 0, 6)


# --- kinds


def test_media_kind(tmp_path: Path) -> None:
    assert media_kind("a.JPG") == "image"
    assert media_kind("a.Mp4") == "video"
    assert media_kind("notes.txt") is None
    for suffix in ("webp", "gif", "png"):
        assert is_video(animation(tmp_path / f"moving.{suffix}"))
        noise(4, 4).save(tmp_path / f"still.{suffix}")
        assert media_kind(tmp_path / f"still.{suffix}") == "image"
    (tmp_path / "bad.webp").write_bytes(b"hello")
    assert media_kind(tmp_path / "bad.webp") == "image"
