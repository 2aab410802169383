"""Frames from a video file or a folder, and an annotated video back (PyAV), in constant memory."""

import dataclasses
import heapq
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import cv2
import numpy as np

from skipconv_jax.entries import find

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
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
    to the next key frame, which are predicted from it. A change of size is an event. Damage is seen
    where the decoder sees it: H.264, HEVC and MPEG-4 notice most, VP8 has nothing to notice it by.

    Raises:
      VideoError: when opened, no such source or nothing to decode; at the end of the iteration, a
        file that stops before the number of frames or the duration its head promises.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rate: Fraction = Fraction(25)
        listed, _, video = str(path).partition("#")
        if listed.endswith(".json"):
            self._images = _listed_images(Path(listed), video)
            self.frames: int | None = len(self._images)
        elif self.path.is_dir():
            self._images = sorted(
                (p for p in self.path.iterdir() if p.suffix.lower() in _IMAGES), key=_natural
            )
            if not self._images:
                raise VideoError(
                    f"`video` (={self.path}) must hold images ({', '.join(sorted(_IMAGES))}); it "
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
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None:
                yield Frame(index, None, f"{path.name} is no readable image")
            else:
                yield Frame(index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))

    def _file(self) -> Iterator[Frame]:
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            stream.codec_context.options = dict(_STRICT)
            packets, end, decoder = 0, 0.0, _Decoder()
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    if packet.pts is not None:
                        end = max(
                            end, float((packet.pts + (packet.duration or 0)) * stream.time_base)
                        )
                    yield from decoder(packet)
            except av.error.FFmpegError as error:
                raise VideoError(self._short(decoder.count, error.strerror)) from error
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


class _Decoder:
    """Packets to frames in the order they are shown: each packet one frame, decoded or lost.

    A packet whose decoding fails may still come out as a picture, two frames later and marked as
    sound; and frames are shown in another order than they are decoded. So every packet's time and
    number are kept until its frame is out, and a frame is lost if it or anything since the last
    sound key frame failed.
    """

    def __init__(self) -> None:
        self.count = 0  # frames given out
        self._number = 0  # of the packet, in the order of decoding
        self._awaited: list[tuple[int, int]] = []  # heap of (time, number)
        self._reasons: dict[int, str] = {}  # why the packet of this time failed
        self._failed: list[int] = []  # numbers of failed packets that no frame came after yet
        self._whole = True

    def __call__(self, packet: Any) -> Iterator[Frame]:
        time = packet.dts if packet.pts is None else packet.pts
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
        yield Frame(self.count, frame.to_ndarray(format="rgb24") if self._whole else None, event)
        self.count += 1

    def _lost(self, time: int) -> Iterator[Frame]:
        """A packet no frame came of: lost where something failed, else not meant to be shown."""
        reason = self._reasons.pop(time, "")
        if reason or self._failed or not self._whole:
            yield Frame(self.count, None, reason or _DEPENDENT)
            self.count += 1


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
        return any(p.suffix.lower() in _IMAGES for p in path.iterdir())
    return path.suffix.lower() != ".json"


def _natural(path: Path) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _listed_images(file: Path, video: str) -> list[Path]:
    """Frames of a video of a COCO-style file."""
    # Imported here: few streams come from such a file.
    from skipconv_jax.data.coco_folder import CocoFolder

    videos = CocoFolder.read(file.parent, file).videos
    if not video and len(videos) == 1:
        video = next(iter(videos))
    if video not in videos:
        raise VideoError(
            f"`video` (={file}{'#' if video else ''}{video}) must name one of its videos, as in "
            f"{file}#{next(iter(videos), 'name')}; it has {sorted(videos)}."
        )
    return [image.path for image in videos[video]]


def _open(path: Path) -> Any:
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise VideoError(
            f"`video` (={path}) must be a readable video file: {error.strerror}; an MP4 cut off "
            "before its index can't be read at all."
        ) from error


def _video_stream(container: Any, path: Path) -> Any:
    if not container.streams.video:
        raise VideoError(f"`video` (={path}) must hold a video stream; it has none.")
    stream = container.streams.video[0]
    # Threads over frames report an error with a later packet than the one it is in.
    stream.thread_type = "SLICE"
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
    """Writes RGB frames as H.264 in MP4; the first fixes the size, others are resized to it."""

    def __init__(self, path: str | Path, rate: Fraction) -> None:
        self._container = av.open(str(path), "w")
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

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
