"""Reading videos: every frame once, and damage reported instead of concealed."""

import json
import re
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from skipconv_jax.streaming.sources import Source, VideoError, VideoWriter, open_source


def _write(path, frames=48, size=(96, 128), gop=12, b_frames=0):
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (size[0], size[1] + frames, 3), np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 2)
    # Only MP4 has the option, and its index must come first for a cut file to be read at all.
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"g": str(gop), "sc_threshold": "0", "bf": str(b_frames)}
        for t in range(frames):
            image = np.ascontiguousarray(texture[:, t : t + size[1]])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def _packets(path):
    with av.open(str(path)) as container:
        return [(p.pos, p.size) for p in container.demux(video=0) if p.size]


def test_every_frame_comes_once(tmp_path):
    _write(tmp_path / "a.mp4")
    source = Source(tmp_path / "a.mp4")
    frames = list(source)
    assert source.frames == len(frames) == 48
    assert source.rate == 25
    assert [f.index for f in frames] == list(range(48))
    assert all(f.image.shape == (96, 128, 3) and not f.event for f in frames)


def test_a_corrupt_frame_and_all_that_depend_on_it_are_lost_and_reported(tmp_path):
    path = tmp_path / "a.mp4"
    _write(path)
    whole = [f.image for f in Source(path)]
    position, size = _packets(path)[17]
    data = bytearray(path.read_bytes())
    for k in range(position + size // 3, position + size):
        data[k] ^= 0x5A
    path.write_bytes(data)
    frames = list(Source(path))
    lost = [f.index for f in frames if f.image is None]
    assert lost == list(range(17, 24)), "from the corrupt frame up to the next key frame"
    assert "corrupt" in frames[17].event
    for frame in frames:
        if frame.image is not None:
            np.testing.assert_array_equal(frame.image, whole[frame.index])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_corrupt_key_frame_among_reordered_frames(tmp_path, name):
    """With B-frames a picture comes out later than its packet, also one whose decoding failed."""
    path = tmp_path / name
    _write(path, b_frames=3)
    whole = [f.image for f in Source(path)]
    assert len(whole) == 48
    position, size = _packets(path)[24]
    data = bytearray(path.read_bytes())
    data[position + size // 2] ^= 0xFF
    data[position + size // 2 + 40] ^= 0xFF
    path.write_bytes(data)
    frames = list(Source(path))
    assert [f.index for f in frames] == list(range(48))
    lost = [f.index for f in frames if f.image is None]
    assert set(range(24, 36)) <= set(lost) <= set(range(21, 36)), "the clip of the key frame"
    assert all(f.event for f in frames if f.image is None)
    for frame in frames:
        if frame.image is not None:
            np.testing.assert_array_equal(frame.image, whole[frame.index])


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_truncated_file_that_counts_no_frames_is_known_by_its_duration(tmp_path, b_frames):
    path = tmp_path / "a.mkv"
    _write(path, b_frames=b_frames)
    source = Source(path)
    assert source.frames is None
    assert len(list(source)) == 48
    path.write_bytes(path.read_bytes()[: _packets(path)[30][0]])
    whole: list[bool] = []
    with pytest.raises(VideoError, match=r"the file is truncated at 1\.\d+ of 1\.92 s"):
        whole.extend(frame.image is not None for frame in Source(path))
    assert all(whole)
    assert len(whole) >= 24


def test_a_truncated_file_is_an_error_after_its_last_whole_frame(tmp_path):
    path = tmp_path / "a.mp4"
    _write(path)
    whole = [f.image for f in Source(path)]
    path.write_bytes(path.read_bytes()[: _packets(path)[30][0]])
    frames = iter(Source(path))
    seen = [next(frames) for _ in range(30)]
    with pytest.raises(VideoError, match=r"ends after 30 of 48 frames: the file is truncated"):
        next(frames)
    np.testing.assert_array_equal(seen[-1].image, whole[29])


def test_a_folder_is_read_in_natural_order_and_reports_what_changes(tmp_path):
    for number, size in ((2, 20), (10, 20), (1, 20), (11, 30)):
        image = np.full((size, size, 3), number, np.uint8)
        cv2.imwrite(str(tmp_path / f"frame{number}.png"), image)
    (tmp_path / "frame3.png").write_bytes(b"no image")
    frames = list(Source(tmp_path))
    values = [None if f.image is None else int(f.image[0, 0, 0]) for f in frames]
    assert values == [1, 2, None, 10, 11]
    assert frames[2].event == "frame3.png is no readable image"
    assert frames[4].event == "frame size changed from 20x20 to 30x30"


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match="must be a readable video file"):
        Source(path)


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(VideoError, match="must be a video file, a folder"):
        Source(tmp_path / "nothing.mp4")
    with pytest.raises(VideoError, match="must hold images"):
        Source(tmp_path)


def test_odd_sizes_and_rates_can_be_written(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", Fraction(30000, 1001)) as writer:
        for value in (0, 128, 255):
            writer.write(np.full((33, 47, 3), value, np.uint8))
        writer.write(np.full((66, 94, 3), 10, np.uint8))
    frames = [f.image for f in Source(tmp_path / "a.mp4")]
    assert [f.shape for f in frames] == [(32, 46, 3)] * 4
    np.testing.assert_allclose([f.mean() for f in frames], [0, 128, 255, 10], atol=3)


def test_a_coco_file_stands_for_the_frames_of_one_of_its_videos(tmp_path):
    images = []
    for number, (video, order) in enumerate([("a", 1), ("a", 0), ("b", 0)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((4, 6, 3), 40 * number, np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": 4, "width": 6,
                       "video": video, "frame_id": order})  # fmt: skip
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    frames = list(Source(f"{file}#a"))
    assert [int(frame.image[0, 0, 0]) for frame in frames] == [40, 0], "in the order of frame_id"
    with pytest.raises(VideoError, match=r"must name one of its videos.*\['a', 'b'\]"):
        Source(file)
    images[0]["video"] = "v" * 5000
    file.write_text(json.dumps({"images": images}))
    with pytest.raises(VideoError, match="must name one of its videos") as caught:
        Source(file)
    assert len(str(caught.value)) < 600


def test_a_camera_of_one_s_own_is_named_by_module_and_object(tmp_path, monkeypatch):
    (tmp_path / "own_camera.py").write_text(
        "from fractions import Fraction\nfrom pathlib import Path\n\nimport numpy as np\n\n"
        "from skipconv_jax.streaming.sources import Frame\n\n\n"
        "class Camera:\n"
        "    path, rate, frames = Path('camera'), Fraction(10), None\n\n"
        "    def __iter__(self):\n"
        "        yield Frame(0, np.zeros((4, 6, 3), np.uint8))\n"
        "        yield Frame(1, None, 'unplugged')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    camera = open_source("own_camera:Camera")
    assert [(frame.index, frame.event) for frame in camera] == [(0, ""), (1, "unplugged")]
    with pytest.raises(ValueError, match=r"`video` .*NoCamera.* must be `module:object`"):
        open_source("own_camera:NoCamera")
    with pytest.raises(VideoError, match="must be a video file, a folder"):
        open_source(str(tmp_path / "nothing.mp4"))


def _coded(path, codec, frames, times=None, size=(48, 64), **options):
    """A video by PyAV; `times` are ticks of 1/25 s at which frames are shown."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 255, (*size, 3), np.uint8), (0, 0), 2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {key: str(value) for key, value in options.items()}
        stream.codec_context.time_base = Fraction(1, 25)
        for t in range(frames) if times is None else times:
            frame = av.VideoFrame.from_ndarray(np.roll(image, t, axis=1), format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("name", ["a.mpg", "a.ts", "a.mkv"])
def test_whole_mpeg_2_loses_nothing(tmp_path, name):
    """The decoder's threads over slices took the end of each for damage."""
    _coded(tmp_path / name, "mpeg2video", 40, size=(240, 320))
    frames = list(Source(tmp_path / name))
    assert [frame.event for frame in frames] == [""] * 40


@pytest.mark.parametrize(("turn", "back"), [(90, 1), (180, 2), (-90, 3)])
def test_a_phone_s_video_is_upright(tmp_path, turn, back):
    _coded(tmp_path / "a.mp4", "libx264", 3)
    whole = [frame.image for frame in Source(tmp_path / "a.mp4")]
    # The matrix of the track's head, whose nine numbers come after its times and sizes.
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    unity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(unity, data.index(b"tkhd"))
    cos, sin = {90: (0, 1), 180: (-1, 0), -90: (0, -1)}[turn]
    turned = [cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0, 0, 0, 1 << 30]
    data[at : at + 36] = struct.pack(">9i", *turned)
    (tmp_path / "b.mp4").write_bytes(data)
    for frame, stored in zip(Source(tmp_path / "b.mp4"), whole, strict=True):
        np.testing.assert_array_equal(frame.image, np.rot90(stored, back))


def test_a_lost_cluster_is_noticed_and_a_variable_rate_is_none(tmp_path):
    options = {"g": 10, "sc_threshold": 0, "bf": 2}
    _coded(tmp_path / "a.mkv", "libx264", 300, **options)
    whole = [frame.image for frame in Source(tmp_path / "a.mkv")]
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    cluster = [m.start() for m in re.finditer(b"\x1f\x43\xb6\x75", data)][1]
    data[cluster : cluster + 16] = bytes(16)
    (tmp_path / "b.mkv").write_bytes(data)
    frames = list(Source(tmp_path / "b.mkv"))
    assert len(frames) == len(whole) == 300
    lost = [frame for frame in frames if frame.image is None]
    assert len(lost) >= 10
    assert "bytes can't be read" in lost[0].event
    for frame, want in zip(frames, whole, strict=True):
        if frame.image is not None:
            np.testing.assert_array_equal(frame.image, want)

    varying = [t for t in range(300) if t < 60 or t % 7 < 2 or 200 < t < 220]
    _coded(tmp_path / "c.mkv", "libx264", 0, varying, **options)
    assert [frame.event for frame in Source(tmp_path / "c.mkv")] == [""] * len(varying)


def _not_coded(second, tick):
    """An MPEG-4 picture of a header alone, "as the one before", with 25 ticks a second."""
    bits = "01" + "1" * second + "0" + "1" + f"{tick:05b}" + "1" + "0"
    bits += "0" + "1" * (-(len(bits) + 1) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


def test_pictures_that_are_not_coded_repeat_the_one_before(tmp_path):
    """N-VOPs, as encoders of phones and cameras write where nothing moves."""
    path, rng = tmp_path / "a.mp4", np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.gop_size = 100
        packets = []
        for time in (0, 1, 2, 4, 5):  # the encoder never sees a picture 3
            image = rng.integers(0, 256, (32, 48, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        repeated = av.Packet(_not_coded(0, 3))
        repeated.stream, repeated.time_base = stream, packets[0].time_base
        tick = Fraction(1, 25) / packets[0].time_base
        repeated.pts = repeated.dts = int(3 * tick)
        repeated.duration = int(tick)
        for packet in (*packets[:3], repeated, *packets[3:]):
            container.mux(packet)
    frames = list(Source(path))
    assert [frame.event for frame in frames] == [""] * 6
    np.testing.assert_array_equal(frames[3].image, frames[2].image)
    assert np.any(frames[4].image != frames[3].image)


def test_frames_an_encoder_repeats_are_frames(tmp_path):
    """An AVI file has a packet of no bytes where the frame before is to be shown again."""
    times = [0, 1, 2, 5, 6, 9]
    _coded(tmp_path / "a.avi", "mpeg4", 0, times, qscale=2)
    source = Source(tmp_path / "a.avi")
    frames = list(source)
    assert len(frames) == source.frames == 10
    assert all(not frame.event for frame in frames)
    shown = [frame.image for frame in frames]
    for t in (3, 4, 7, 8):
        np.testing.assert_array_equal(shown[t], shown[t - 1])
    assert (shown[5] != shown[4]).any()
    data = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: data.index(b"idx1") - 100])
    with pytest.raises(VideoError, match="truncated"):
        list(Source(tmp_path / "a.avi"))


@pytest.mark.parametrize("name", ["a:b.mkv", "a#b.mkv", "100%d.mkv", "what?.mkv", "-a.mkv",
                                  "http:x.mkv", "x.json#1.mkv"])  # fmt: skip
def test_odd_names_are_names(tmp_path, monkeypatch, name):
    _coded(tmp_path / "plain.mkv", "libx264", 2)
    (tmp_path / "plain.mkv").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(list(Source(name))) == 2
    with VideoWriter(f"out{name}.mp4", Fraction(25)) as writer:
        writer.write(np.zeros((4, 4, 3), np.uint8))
    assert len(list(Source(f"out{name}.mp4"))) == 1


def test_hidden_files_are_no_frames_and_cut_ones_are_lost(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("1.jpg", "2.webp", "3.tif", "4.bmp"):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (20, 30, 3), np.uint8))
    for name in ("._1.jpg", ".DS_Store", ".5.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    (tmp_path / "5.jpg").write_bytes((tmp_path / "1.jpg").read_bytes()[:300])
    frames = list(Source(tmp_path))
    assert [frame.image is None for frame in frames] == [False] * 4 + [True]
    assert "5.jpg is cut short or damaged" in frames[4].event


def test_a_list_of_other_files_is_no_video(tmp_path):
    _coded(tmp_path / "a.ts", "libx264", 3)
    text = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.12,\na.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "a.m3u8").write_text(text)
    with pytest.raises(VideoError, match=r"must hold the video itself|must be a readable"):
        Source(tmp_path / "a.m3u8")
