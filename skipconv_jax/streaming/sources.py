"""Frames from a video file or a folder, and an annotated video back (PyAV), in constant memory."""

import dataclasses
import heapq
import re
import reprlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.data import images
from skipconv_jax.entries import find

# Lists of other files and addresses: what they name is not what was asked for.
_LISTS = {"hls", "dash", "concat", "concatf", "imf", "sdp", "rtsp", "image2"}
# Whose decoder, with threads over slices, takes the end of each slice for damage.
_ONE_THREAD = {"mpeg1video", "mpeg2video"}
# Whose encoders write a packet of a few bytes where the picture before is to be shown again.
_REPEATING = {"mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "flv1"}
_NOT_CODED = 16  # bytes of such a packet, at most
_MOST_MISSING = 10_000  # frames of one gap that are given out one by one
# Report damage instead of concealing it: a concealed frame looks valid and is not.
_DEPENDENT = "frame depends on a corrupt one"
_SLACK = 0.25  # seconds by which a whole file may fall short of the length in its head
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode", "ec": "0"}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame of a source.

    Attributes:
      index: position in the source, 0-based.
      image: `(H, W, 3)` uint8, RGB; None where the frame can't be decoded.
      event: what happened since the last frame that a stream must not ignore ('' for nothing).
    """

    index: int
    image: np.ndarray | None
    event: str = ""


class VideoError(ValueError):
    """A source that can't be opened, or ends before its time."""


class FrameSource(Protocol):
    """What a stream asks of a source; a camera of your own has these.

    Attributes:
      path: names the output and is blamed in messages; need not exist.
      rate: frames per second of the annotated video.
      frames: how many there will be; None where nobody knows.

    Iterating yields each frame once, in order, its index counting from 0. A frame that was lost has
    `image=None` and says why in `event`; what follows an event starts from a reference frame.
    """

    path: Path
    rate: Fraction
    frames: int | None

    def __iter__(self) -> Iterator[Frame]: ...


def open_source(spec: str) -> FrameSource:
    """A file, a folder, a COCO-style list (see `Source`), or `module:object`, which is called.

    Raises:
      VideoError: no such file or folder.
      ValueError: no such object.
    """
    if re.fullmatch(r"[\w.]+:\w+", spec) and not Path(spec).exists():
        source: FrameSource = find(spec, "video")()
        return source
    return Source(spec)


class Source:
    """Iterates over a video file or a folder of images, in order, each frame once.

    `labels.json`, a COCO-style file beside its frames, stands for the frames of its video, in its
    order; `labels.json#name` for one of several videos.

    A frame that can't be decoded comes with `image=None`. In a video, so do the frames after it up
    to the next key frame, which are predicted from it, and frames whose packets are missing: where
    times jump and bytes of the file between them belong to no packet. Times that jump alone are a
    variable frame rate. A change of size is an event. Damage is seen where the decoder sees it:
    H.264, HEVC and MPEG-4 notice most, VP8 has nothing to notice it by. Frames are upright: as the
    file's display matrix or EXIF orientation says. Hidden files in a folder are no frames.

    Raises:
      VideoError: when opened, no such source or nothing to decode; at the end of the iteration, a
        file that stops before the number of frames or the duration its head promises.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rate: Fraction = Fraction(25)
        listed, _, video = _split(str(path))
        if listed.endswith(".json"):
            self._images = _listed_images(Path(listed), video)
            self.frames: int | None = len(self._images)
        elif self.path.is_dir():
            self._images = sorted(filter(images.is_frame, self.path.iterdir()), key=_natural)
            if not self._images:
                raise VideoError(
                    f"`video` (={self.path}) must hold images ({', '.join(images.SUFFIXES)}); it "
                    "has none."
                )
            self.frames = len(self._images)
        elif self.path.is_file():
            self._images = []
            with _open(self.path) as container:
                stream = _video_stream(container, self.path)
                self.rate = stream.average_rate or stream.guessed_rate or self.rate
                self.frames = stream.frames or None
        else:
            raise VideoError(
                f"`video` (={self.path}) must be a video file, a folder of images or a COCO-style "
                "JSON file."
            )

    def __iter__(self) -> Iterator[Frame]:
        return _with_size_events(self._folder() if self._images else self._file())

    def _folder(self) -> Iterator[Frame]:
        for index, path in enumerate(self._images):
            try:
                yield Frame(index, images.decode(images.read(path), path.name))
            except images.ImageError as error:
                known = not isinstance(error, images.NoImageError)
                yield Frame(
                    index, None, str(error) if known else f"{path.name} is no readable image"
                )

    def _file(self) -> Iterator[Frame]:
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            stream.codec_context.options = dict(_STRICT)
            packets, end, decoder = 0, 0.0, _Decoder(stream.codec_context.name)
            continuity = _Continuity(container, stream)
            try:
                # Packets of every stream: what lies between two of them is no damage.
                for packet in container.demux():
                    missing = continuity(packet)
                    if packet.stream.index != stream.index:
                        continue
                    packets += (packet.size > 0) + missing.repeated
                    if packet.pts is not None:
                        end = max(
                            end, float((packet.pts + (packet.duration or 0)) * stream.time_base)
                        )
                    decoder.miss(missing)
                    yield from decoder(packet)
            except av.error.FFmpegError as error:
                raise VideoError(self._short(decoder.count, error.strerror)) from error
            tail = continuity.tail(self.frames or 0, self.path)
            packets += tail.repeated
            decoder.miss(tail)
            yield from decoder.rest()
            promised = _seconds(container, stream)
        if self.frames and packets < self.frames:
            raise VideoError(self._short(decoder.count, "the file is truncated"))
        if not self.frames and end + _SLACK < promised:
            reason = f"the file is truncated at {end:.2f} of {promised:.2f} s"
            raise VideoError(self._short(decoder.count, reason))

    def _short(self, index: int, reason: str | None) -> str:
        return (
            f"`video` (={self.path}) ends after {index} of {self.frames or 'unknown'} frames: "
            f"{reason}. What was decoded up to there is valid."
        )


@dataclasses.dataclass(frozen=True)
class _Missing:
    """Frames without a packet before the next one.

    Attributes:
      times: when they are to be shown, in ticks.
      reason: why they are lost; empty where the frame before them is to be shown again.
      step: ticks of a frame.
    """

    times: tuple[float, ...] = ()
    reason: str = ""
    step: float = 1.0

    @property
    def repeated(self) -> int:
        """How many of them are the frame before, as the encoder meant it."""
        return 0 if self.reason else len(self.times)


class _Continuity:
    """Finds frames that have no packet, by times and by places in the file.

    AVI numbers its frames, and one of no bytes (8 for its head) repeats the frame before. In
    Matroska and FLV a jump in time alone is a variable frame rate; with bytes in between that
    belong to no packet of any stream, frames are lost: the demuxer looked for the next cluster it
    could read. Other containers count their packets (MP4) or have a mark of their own (MPEG-TS).
    """

    _HEADS = 128  # bytes that heads of clusters, blocks and tags may take
    _AVI_HEAD = 8

    def __init__(self, container: Any, stream: Any) -> None:
        names = set(container.format.name.split(","))
        self._avi = "avi" in names
        self._holes = bool(names & {"matroska", "webm", "flv"})
        self._index = stream.index
        self._base = float(stream.time_base)
        self._end: int | None = None  # of the last packet, in bytes
        self._last: int | None = None  # the latest time of a packet of our stream
        self._step = 0.0
        self._hole = 0  # bytes of no packet since our last one

    def __call__(self, packet: Any) -> _Missing:
        if packet.pos is not None and packet.size:
            if self._end is not None:
                self._hole += max(packet.pos - self._end, 0)
            self._end = max(packet.pos + packet.size, self._end or 0)
        # FFmpeg makes up the times of decoding, but those of AVI.
        time = packet.dts if self._avi else packet.pts
        if packet.stream.index != self._index or time is None or not packet.size:
            return _Missing()
        last, hole, self._hole = self._last, self._hole, 0
        self._last = time if last is None else max(time, last)
        if last is None or time <= last:
            return _Missing()
        step, self._step = self._step, self._usual(packet.duration, time - last)
        step = step or self._step
        count = round((time - last) / step) - 1 if step else 0
        if count < 1 or not (self._avi or self._holes):
            return _Missing()
        times = tuple(last + step * k - 0.5 for k in range(1, min(count, _MOST_MISSING) + 1))
        if self._avi and hole <= self._AVI_HEAD * (count + 1) + self._HEADS:
            return _Missing(times)
        if hole <= self._HEADS * (1 if self._holes else count):
            return _Missing()
        seconds = (time - last) * self._base
        reason = f"{count} frames of {seconds:.2f} s are missing: {hole} bytes can't be read"
        return _Missing(times, reason, step)

    def _usual(self, duration: int | None, since: float) -> float:
        """Ticks of a frame: as the packet says, else the shortest time between two so far."""
        if self._avi:
            return 1.0
        if duration:
            return float(duration)
        return min(self._step, since) if self._step else since

    def tail(self, frames: int, path: Path) -> _Missing:
        """Frames of no bytes at the end of an AVI file that is as long as its head says."""
        if not self._avi or self._last is None:
            return _Missing()
        with path.open("rb") as file:
            head = file.read(8)
        if path.stat().st_size < 8 + int.from_bytes(head[4:8], "little"):
            return _Missing()
        last = self._last
        return _Missing(
            tuple(time - 0.5 for time in range(last + 1, min(frames, last + 1 + _MOST_MISSING)))
        )


class _Decoder:
    """Packets to frames in the order they are shown: each packet one frame, decoded or lost.

    A packet whose decoding fails may still come out as a picture, two frames later and marked as
    sound; and frames are shown in another order than they are decoded. So every packet's time and
    number are kept until its frame is out, and a frame is lost if it or anything since the last
    sound key frame failed.
    """

    def __init__(self, codec: str) -> None:
        self.count = 0  # frames given out
        self._repeating = codec in _REPEATING
        self._image: np.ndarray | None = None  # the last one given out
        self._repeats: set[float] = set()  # times at which it is to be shown again
        self._missing: list[float] = []  # times of frames without a packet
        self._step = 1.0  # ticks between those
        self._number = 0  # of the packet, in the order of decoding
        self._awaited: list[tuple[float, int]] = []  # heap of (time, number)
        self._reasons: dict[float | None, str] = {}  # why the packet of this time failed
        self._failed: list[int] = []  # numbers of failed packets that no frame came after yet
        self._whole = True

    def miss(self, missing: _Missing) -> None:
        """Takes note of frames that have no packet, before the packet after them."""
        self._step = missing.step if missing.times else self._step
        self._missing = [*self._missing[-_MOST_MISSING:], *missing.times]
        for time in missing.times:
            heapq.heappush(self._awaited, (time, self._number))
            if missing.reason:
                self._reasons[time] = missing.reason
            else:
                self._repeats.add(time)
        if missing.reason:
            self._failed.append(self._number)
            self._number += 1

    def __call__(self, packet: Any) -> Iterator[Frame]:
        time = packet.dts if packet.pts is None else packet.pts
        if self._repeating and 0 < packet.size <= _NOT_CODED and time is not None:
            self._repeats.add(time)
        if self._missing and time is not None:
            self._found(time)
        if packet.size and time is not None:
            heapq.heappush(self._awaited, (time, self._number))
        reason, decoded = "corrupt packet" if packet.is_corrupt else "", []
        if not reason:
            try:
                decoded = packet.decode()
            except av.error.FFmpegError as error:
                reason = f"corrupt frame ({error.strerror})"
        if reason:
            self._failed.append(self._number)
            self._reasons[time] = reason
        self._number += 1
        for frame in decoded:
            yield from self._shown(frame)

    def _found(self, time: float) -> None:
        """A packet that comes later than it is shown: it was not missing."""
        for missing in self._missing:
            if abs(missing + 0.5 - time) < 0.4 * self._step:
                self._awaited = [entry for entry in self._awaited if entry[0] != missing]
                heapq.heapify(self._awaited)
                self._missing.remove(missing)
                return

    def rest(self) -> Iterator[Frame]:
        """What never came out."""
        while self._awaited:
            yield from self._lost(heapq.heappop(self._awaited)[0])

    def _shown(self, frame: Any) -> Iterator[Frame]:
        time = frame.dts if frame.pts is None else frame.pts
        while self._awaited and time is not None and self._awaited[0][0] < time:
            yield from self._lost(heapq.heappop(self._awaited)[0])
        number = heapq.heappop(self._awaited)[1] if self._awaited else self._number
        reason = self._reasons.pop(time, "") or ("corrupt frame" if frame.is_corrupt else "")
        pending = [n for n in self._failed if n > number]
        self._whole = self._whole and len(pending) == len(self._failed)
        self._failed = pending
        self._whole = (self._whole or bool(frame.key_frame)) and not reason
        event = "" if self._whole else reason or _DEPENDENT
        self._repeats.discard(time)
        self._image = _upright(frame) if self._whole else None
        yield Frame(self.count, self._image, event)
        self.count += 1

    def _lost(self, time: float) -> Iterator[Frame]:
        """A packet no frame came of: lost where something failed, shown again where it says so.

        Else it was not meant to be shown.
        """
        reason = self._reasons.pop(time, "")
        if time in self._repeats and self._image is not None and not reason:
            self._repeats.discard(time)
            yield Frame(self.count, self._image)
            self.count += 1
        elif reason or self._failed or not self._whole:
            yield Frame(self.count, None, reason or _DEPENDENT)
            self.count += 1


def _upright(frame: Any) -> np.ndarray:
    """Pixels as the file's display matrix wants them shown; turns by other angles are left out."""
    image = np.asarray(frame.to_ndarray(format="rgb24"))
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    signs = np.sign(np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]])
    # x' = a x + c y, y' = b x + d y; as EXIF numbers them.
    orientation = _ORIENTATIONS.get(tuple(signs.tolist()), 1)
    return np.ascontiguousarray(images.orient(image, orientation))


_ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}


def _split(path: str) -> tuple[str, str, str]:
    """A JSON file and the name of one of its videos; `#` is part of the name of what is there."""
    if Path(path).exists():
        return path, "", ""
    listed, mark, video = path.partition(".json#")
    return (f"{listed}.json", "#", video) if mark else (path, "", "")


def _seconds(container: Any, stream: Any) -> float:
    """When the last frame ends as the file's head says, 0 where it says nothing of this stream."""
    tag = {key.upper(): value for key, value in stream.metadata.items()}.get("DURATION", "")
    found = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tag)
    if found:
        hours, minutes, seconds = (float(part) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    if stream.duration:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return 0.0


def is_video(path: Path) -> bool:
    """Whether `Source` is meant to read this: a file that is no JSON, or images in a folder."""
    if path.is_dir():
        return any(images.is_frame(p) for p in path.iterdir())
    return path.suffix.lower() != ".json"


def _natural(path: Path) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _listed_images(file: Path, video: str) -> list[Path]:
    """Frames of a video of a COCO-style file."""
    # Imported here: few streams come from such a file.
    from skipconv_jax.data.coco_folder import CocoFolder, Pictures

    videos = CocoFolder.read(file.parent, file, Pictures).videos
    if not video and len(videos) == 1:
        video = next(iter(videos))
    if video not in videos:
        raise VideoError(
            f"`video` (={file}{'#' if video else ''}{video}) must name one of its videos, as in "
            f"{file}#{next(iter(videos), 'name')[:80]}; it has {reprlib.repr(sorted(videos))}."
        )
    return [image.path for image in videos[video]]


def _open(path: Path) -> Any:
    try:
        # With its protocol a name is a name, whatever is in it; and it leads to no other protocol.
        container = av.open(f"file:{path}", options={"protocol_whitelist": "file"})
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"`video` (={path}) must be a readable video file: {reason}; an MP4 cut off before its "
            "index can't be read at all."
        ) from error
    if _LISTS & set(container.format.name.split(",")):
        container.close()
        raise VideoError(
            f"`video` (={path}) must hold the video itself; it is a list of others "
            f"({container.format.name}). Pass the file it names."
        )
    return container


def _video_stream(container: Any, path: Path) -> Any:
    # A picture of the cover is a video stream to FFmpeg.
    covers = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        raise VideoError(f"`video` (={path}) must hold a video stream; it has none.")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"`video` (={path}) is coded by a codec that this FFmpeg has not.")
    # Threads over frames report an error with a later packet than the one it is in.
    stream.thread_type = "SLICE"
    if stream.codec_context.name in _ONE_THREAD:
        stream.codec_context.thread_count = 1
    return stream


def _with_size_events(frames: Iterator[Frame]) -> Iterator[Frame]:
    size: tuple[int, ...] | None = None
    for frame in frames:
        if frame.image is None:
            yield frame
            continue
        now = frame.image.shape[:2]
        if size is not None and now != size:
            change = f"frame size changed from {size[1]}x{size[0]} to {now[1]}x{now[0]}"
            events = "; ".join(filter(None, (frame.event, change)))
            frame = dataclasses.replace(frame, event=events)
        size = now
        yield frame


class VideoWriter:
    """Writes RGB frames as H.264 in MP4; the first fixes the size, others are resized to it.

    Until `close` the file is a hidden one beside `path`: half an MP4 plays nowhere.
    """

    def __init__(self, path: str | Path, rate: Fraction) -> None:
        self._path, self._partial = path, whole_files.beside(path)
        self._container = av.open(f"file:{self._partial}", "w")
        # A file's average rate may have terms beyond what the MPEG-4 time base can hold.
        self._rate = Fraction(rate).limit_denominator(1001)
        self._stream: Any = None

    def write(self, image: np.ndarray) -> None:
        """Appends a frame, `(H, W, 3)` uint8."""
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            # 4:2:0 needs even sides.
            self._stream.height, self._stream.width = (side - side % 2 for side in image.shape[:2])
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "23", "preset": "veryfast"}
        size = (self._stream.width, self._stream.height)
        if image.shape[1::-1] != size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flushes the encoder and finishes the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if self._stream is not None:
            whole_files.settle(self._partial, self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
