"""One connection to a camera (PyAV): frames as they arrive, damage and stalls as they happen."""

import contextlib
import dataclasses
import functools
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from skipconv_jax.live.address import Kind, kind, shown
from skipconv_jax.streaming.sources import open_source

# Containers and raw streams that hold video themselves; lists of other addresses are left out.
_FORMATS = "mpjpeg,mjpeg,jpeg_pipe,mpegts,mov,mp4,matroska,webm,flv,h264,hevc,mpegvideo,ogg,avi,nut"
_PROTOCOLS = {
    Kind.RTSP: "rtsp,rtsps,rtp,srtp,udp,tcp,tls,crypto",
    Kind.HTTP: "http,https,tcp,tls,httpproxy,crypto",
}
# Every packet is a picture of its own, which need not be decoded before somebody wants it.
_INTRA = {"mjpeg", "png", "rawvideo", "bmp"}
_PLANAR = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"}
_WAIT = 0.005  # seconds between two looks at a device without a frame
THUMBNAIL = (36, 64)


class CaptureError(Exception):
    """A connection that failed or ended; its text has no address and no credentials in it."""


class Stalled(CaptureError):
    """A connection over which no frame came for too long."""


@dataclasses.dataclass(frozen=True)
class Connection:
    """How a source is opened.

    Attributes:
      transport: of RTSP: 'tcp' loses nothing on the way, 'udp' is what some cameras want.
      open_seconds: a connection must stand within.
      stall_seconds: without a frame, a stream is taken for dead.
      damaged: 'drop' leaves out damaged frames and all that depend on them, up to the next key
        frame; 'keep' shows what the decoder makes of them.
      format: of a pipe, where FFmpeg can't tell ('mpegts', 'h264', 'mjpeg', ...).
      options: of FFmpeg, as `{'video_size': '640x480'}` for a device.
      pace: files and folders are read at their own rate.
      loop: files and folders start again at their end.
    """

    transport: str = "tcp"
    open_seconds: float = 10.0
    stall_seconds: float = 10.0
    damaged: str = "drop"
    format: str = ""
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    pace: bool = True
    loop: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Shot:
    """A frame as it came, its pixels made only when somebody asks.

    Attributes:
      number: position in the camera's life, over all its connections.
      time: when it arrived, seconds since 1970.
      arrived: the same by the clock that no one sets, `time.monotonic`.
      pts: the source's own time in seconds, None where it has none.
      event: what happened since the frame before that a stream must not ignore ('' for nothing).
      pixels: makes `(H, W, 3)` uint8, RGB.
      thumbnail: `(36, 64, 3)` uint8 samples, None where it would have to be decoded for them.
    """

    number: int
    time: float
    arrived: float
    pts: float | None
    event: str
    pixels: Callable[[], np.ndarray]
    thumbnail: np.ndarray | None = None


@dataclasses.dataclass
class Counts:
    """What a camera's connections have brought so far."""

    frames: int = 0
    damaged: int = 0
    size: tuple[int, int] | None = None  # height, width


def capture(
    address: str, connection: Connection, counts: Counts, stop: threading.Event
) -> Iterator[Shot]:
    """Frames of one connection until it ends; a damaged frame is counted and not given out.

    Raises:
      CaptureError: it can't be opened, or broke.
      Stalled: no frame for `stall_seconds`.
    """
    what = kind(address)
    if what is Kind.FRAMES:
        return _paced(address, connection, counts, stop)
    return _decoded(address, what, connection, counts, stop)


def _decoded(
    address: str, what: Kind, connection: Connection, counts: Counts, stop: threading.Event
) -> Iterator[Shot]:
    with contextlib.ExitStack() as stack:
        try:
            container = _open(address, what, connection, stop, stack)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, TimeoutError) and what in (Kind.PIPE, Kind.STDIN):
                raise Stalled(_stall(connection)) from None
            raise CaptureError(f"can't open {shown(address)}: {_reason(error)}") from None
        try:
            yield from _Reader(container, connection, counts, stop)
        except (av.error.FFmpegError, OSError) as error:
            if isinstance(error, av.error.EOFError):
                return
            if isinstance(error, av.error.ExitError | TimeoutError):
                raise Stalled(_stall(connection)) from None
            raise CaptureError(f"the connection broke: {_reason(error)}") from None


def _stall(connection: Connection) -> str:
    return f"no frame for {connection.stall_seconds:g} s"


def _reason(error: BaseException) -> str:
    """What FFmpeg says, without the address it says it of."""
    if isinstance(error, av.error.ExitError):
        return "no answer in time"
    return getattr(error, "strerror", None) or type(error).__name__


def _open(
    address: str,
    what: Kind,
    connection: Connection,
    stop: threading.Event,
    stack: contextlib.ExitStack,
) -> Any:
    options = {"flags": "low_delay"}
    given: Any = address
    form = connection.format or None
    if what in _PROTOCOLS:
        options["protocol_whitelist"] = _PROTOCOLS[what]
        options["analyzeduration"] = "1000000"
    if what is Kind.RTSP:
        options |= {"rtsp_transport": connection.transport, "allowed_media_types": "video"}
    if what is Kind.HTTP:
        options["format_whitelist"] = _FORMATS
    if what is Kind.V4L2:
        form, options["fflags"] = "v4l2", "nonblock"
    if what in (Kind.PIPE, Kind.STDIN):
        given = stack.enter_context(
            contextlib.closing(_Pipe(address, what, connection.stall_seconds, stop))
        )
        options["format_whitelist"] = _FORMATS
    container = av.open(
        given,
        format=form,
        options=options | connection.options,
        timeout=(connection.open_seconds, connection.stall_seconds),
        buffer_size=32768,
    )
    stack.callback(container.close)
    return container


class _Pipe:
    """A named pipe or stdin that is read without ever waiting longer than a stall.

    FFmpeg's own reader of files can't be woken. A pipe with no writer yet is waited for; its end
    is the writer's going.
    """

    def __init__(self, path: str, what: Kind, stall: float, stop: threading.Event) -> None:
        self._stall, self._stop, self._own = stall, stop, what is Kind.PIPE
        self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if self._own else 0
        self._any = False

    def read(self, size: int) -> bytes:
        """At most so many bytes, as soon as there are any."""
        deadline = time.monotonic() + self._stall
        while not self._stop.is_set():
            if select.select([self._file], [], [], 0.1)[0]:
                data = self._take(size)
                if data or self._any:
                    self._any = True
                    return data or b""
                time.sleep(_WAIT)  # nobody writes yet
            if time.monotonic() > deadline:
                raise TimeoutError("no bytes in time")
        return b""

    def _take(self, size: int) -> bytes | None:
        try:
            return os.read(self._file, size)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Of a named pipe."""
        if self._own:
            os.close(self._file)


class _Reader:
    """Packets of the video stream to shots."""

    def __init__(
        self, container: Any, connection: Connection, counts: Counts, stop: threading.Event
    ) -> None:
        if not container.streams.video:
            raise CaptureError("the source has no video stream")
        self._container, self._connection = container, connection
        self._counts, self._stop = counts, stop
        self._stream = container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise CaptureError("the video is coded by a codec that this FFmpeg has not")
        context.thread_count = 1  # many cameras, few cores; and an error is of the packet it is in
        self._keep = connection.damaged == "keep"
        # Concealment stays on: without it, and without threads, whole pictures of several slices
        # count as damaged. A packet whose error it would conceal fails by `explode`.
        context.options = {} if self._keep else {"err_detect": "crccheck+bitstream+buffer+explode"}
        self._lazy = _OnDemand(context) if context.name in _INTRA else None
        self._colours = _Colours()
        self._whole = False  # since the last key frame
        self._begun = False
        # A decoder gives frames out later than their packets: each packet's number goes with it.
        context.copy_opaque = True
        self._packet = self._failed = 0
        self._event = ""

    def __iter__(self) -> Iterator[Shot]:
        last = time.monotonic()
        for packet in self._packets():
            now = time.monotonic()
            if packet is not None and packet.stream is self._stream and packet.size:
                last = now
                yield from self._shots(packet)
            elif now - last > self._connection.stall_seconds:
                raise Stalled(_stall(self._connection))

    def _packets(self) -> Iterator[Any]:
        """Packets of every stream, and None where a device has none yet."""
        packets = self._container.demux()
        while not self._stop.is_set():
            try:
                yield next(packets)
            except StopIteration:
                return
            except BlockingIOError:
                packets = self._container.demux()
                time.sleep(_WAIT)
                yield None

    def _shots(self, packet: Any) -> Iterator[Shot]:
        self._packet += 1
        packet.opaque = self._packet
        if packet.is_corrupt and not self._keep:
            self._damage()
            return
        if self._lazy is not None:
            yield self._on_demand(packet, self._lazy)
            return
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            self._damage()
            return
        for frame in frames:
            if self._sound(frame):
                yield self._shot(frame)

    def _damage(self) -> None:
        self._whole, self._failed = False, self._packet
        self._lost()

    def _lost(self) -> None:
        if self._begun:  # before the first key frame there was nothing to lose
            self._counts.damaged += 1
            self._event = "damaged"

    def _sound(self, frame: Any) -> bool:
        """Whether a frame is whole: since its key frame no packet failed."""
        if self._keep:
            return True
        number = frame.opaque or self._packet
        if frame.is_corrupt:
            self._whole, self._failed = False, max(self._failed, number)
        elif frame.key_frame and number > self._failed:
            self._whole = True
        if not self._whole:
            self._lost()
        return self._whole

    def _on_demand(self, packet: Any, decoder: "_OnDemand") -> Shot:
        data = bytes(packet)
        return self._made(packet, (packet.stream.height, packet.stream.width),
                          lambda: decoder(data), None)  # fmt: skip

    def _shot(self, frame: Any) -> Shot:
        return self._made(
            frame,
            (frame.height, frame.width),
            lambda: self._colours(frame),
            thumbnail(frame),
        )

    def _made(
        self,
        timed: Any,
        size: tuple[int, int],
        pixels: Callable[[], np.ndarray],
        small: np.ndarray | None,
    ) -> Shot:
        base = self._stream.time_base
        pts = None if timed.pts is None or base is None else float(timed.pts * base)
        shot = _numbered(self._counts, size, self._event, pixels, small, pts)
        self._event, self._begun = "", True
        return shot


def _numbered(
    counts: Counts,
    size: tuple[int, int],
    event: str,
    pixels: Callable[[], np.ndarray],
    small: np.ndarray | None,
    pts: float | None,
) -> Shot:
    if counts.size is not None and size != counts.size:
        was = counts.size
        change = f"frame size changed from {was[1]}x{was[0]} to {size[1]}x{size[0]}"
        event = "; ".join(filter(None, (event, change)))
    counts.size = size
    shot = Shot(counts.frames, time.time(), time.monotonic(), pts, event, pixels, small)
    counts.frames += 1
    return shot


class _Colours:
    """Frames to RGB. One converter for all of them: making one costs more than a frame does."""

    def __init__(self) -> None:
        self._converter, self._lock = VideoReformatter(), threading.Lock()

    def __call__(self, frame: Any) -> np.ndarray:
        with self._lock:
            made = self._converter.reformat(frame, format="rgb24", threads=1)
        return np.asarray(made.to_ndarray())


class _OnDemand:
    """Decodes single pictures on whatever thread asks; lives on when the connection is gone."""

    def __init__(self, context: Any) -> None:
        self._context = av.CodecContext.create(context.name, "r")
        self._context.extradata = context.extradata
        if context.name == "rawvideo":
            self._context.width, self._context.height = context.width, context.height
            self._context.pix_fmt = context.pix_fmt
        self._colours, self._lock = _Colours(), threading.Lock()

    def __call__(self, data: bytes) -> np.ndarray:
        with self._lock:
            try:
                frames = self._context.decode(av.Packet(data))
            except av.error.FFmpegError as error:
                raise CaptureError(f"damaged picture ({error.strerror})") from None
        if not frames:
            raise CaptureError("damaged picture (nothing to show)")
        return self._colours(frames[0])


def thumbnail(frame: Any) -> np.ndarray:
    """`(36, 64, 3)` uint8: samples of the planes as they are, or of RGB; no conversion of it all.

    Good for telling how much of a picture changed since another of the same stream.
    """
    if frame.format.name not in _PLANAR:
        small = frame.reformat(width=THUMBNAIL[1], height=THUMBNAIL[0], format="rgb24")
        return np.asarray(small.to_ndarray())
    planes = []
    for plane in frame.planes:
        pixels = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        planes.append(sampled(pixels[: plane.height, : plane.width]))
    return np.stack(planes, axis=-1)


def sampled(pixels: np.ndarray) -> np.ndarray:
    """`(36, 64, ...)`: the middle of each cell of a picture."""
    return pixels[_places(pixels.shape[0], pixels.shape[1])]


@functools.lru_cache(64)
def _places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of samples, the middle of each cell."""
    rows, columns = (
        (np.arange(count) * side + side // 2) // count
        for count, side in zip(THUMBNAIL, (height, width), strict=True)
    )
    return rows[:, None], columns


def _paced(
    address: str, connection: Connection, counts: Counts, stop: threading.Event
) -> Iterator[Shot]:
    """Files and folders, at their own rate."""
    event, due = "", time.monotonic()
    while not stop.is_set():
        try:
            source = open_source(address)
        except (ValueError, OSError) as error:
            raise CaptureError(f"can't open {shown(address)}: {error}") from None
        step = float(1 / Fraction(source.rate))
        try:
            for frame in source:
                if connection.pace:
                    stop.wait(max(due - time.monotonic(), 0))
                    due = max(due + step, time.monotonic() - step)
                if stop.is_set():
                    return
                if frame.image is None:
                    counts.damaged += 1
                    event = "; ".join(dict.fromkeys(filter(None, (event, frame.event))))
                    continue
                event = "; ".join(dict.fromkeys(filter(None, (event, frame.event))))
                yield _numbered(counts, frame.image.shape[:2], event, _same(frame.image),
                                sampled(frame.image), frame.index * step)  # fmt: skip
                event = ""
        except ValueError as error:
            raise CaptureError(str(error)) from None
        if not connection.loop:
            return
        event = "looped"


def _same(image: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: image
