"""Frames from a video file or a folder, and an annotated video back (PyAV), in constant memory."""

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
# Report damage instead of concealing it: a concealed frame looks valid and is not.
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


class Source:
    """Iterates over a video file or a folder of images, in order, each frame once.

    A frame that can't be decoded comes with `image=None`. In a video, so do the frames after it up
    to the next key frame, which are predicted from it. A change of size is an event.

    Raises:
      VideoError: when opened, no such source or nothing to decode; at the end of the iteration, a
        file that stops before the number of frames its index promises.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rate: Fraction = Fraction(25)
        if self.path.is_dir():
            self._images = sorted(
                (p for p in self.path.iterdir() if p.suffix.lower() in _IMAGES), key=_natural
            )
            if not self._images:
                raise VideoError(
                    f"`video` (={self.path}) must hold images ({', '.join(sorted(_IMAGES))}); it "
                    "has none."
                )
            self.frames: int | None = len(self._images)
        elif self.path.is_file():
            self._images = []
            with _open(self.path) as container:
                stream = _video_stream(container, self.path)
                self.rate = stream.average_rate or stream.guessed_rate or self.rate
                self.frames = stream.frames or None
        else:
            raise VideoError(f"`video` (={self.path}) must be a video file or a folder of images.")

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
            packets, index, whole = 0, 0, True
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    if packet.is_corrupt:
                        whole = False
                        yield Frame(index, None, "corrupt packet")
                        index += 1
                        continue
                    try:
                        decoded = packet.decode()
                    except av.error.FFmpegError as error:
                        whole = False
                        yield Frame(index, None, f"corrupt frame ({error.strerror})")
                        index += 1
                        continue
                    for frame in decoded:
                        whole = (whole or bool(frame.key_frame)) and not frame.is_corrupt
                        event = "" if whole else "frame depends on a corrupt one"
                        image = frame.to_ndarray(format="rgb24") if whole else None
                        yield Frame(index, image, event)
                        index += 1
            except av.error.FFmpegError as error:
                raise VideoError(self._short(index, error.strerror)) from error
        if self.frames and packets < self.frames:
            raise VideoError(self._short(index, "the file is truncated"))

    def _short(self, index: int, reason: str | None) -> str:
        return (
            f"`video` (={self.path}) ends after {index} of {self.frames or 'unknown'} frames: "
            f"{reason}. What was decoded up to there is valid."
        )


def _natural(path: Path) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


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
    stream.thread_type = "AUTO"
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
