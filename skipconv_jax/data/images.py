"""Image files to pixels, in one place for training and streaming: PNG, JPEG, WebP, BMP and TIFF.

The header is read before anything is decoded: size and orientation are known, a file that is cut is
refused although decoders would fill it up with grey, and a header that promises more pixels than
memory holds costs nothing. Bytes after the end of the picture (maker notes, motion photos) are none
of the picture's and are left alone.
"""

import dataclasses
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 1 << 27
"""Of one image, 400 MB decoded: the largest that is read."""
_MAX_BYTES = 1 << 30
_FIRST = 1 << 17  # bytes that hold the header of nearly every file
_ORIENTATION = 0x112
# JPEG: a marker inside of coded data that is neither a stuffed byte, a restart nor a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAME_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}


class ImageError(ValueError):
    """A file that is no image, or no whole one."""


class NoImageError(ImageError):
    """A file of another kind."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says about its picture.

    Attributes:
      kind: PNG, JPEG, WebP, BMP or TIFF.
      height: of the stored pixels.
      width: of the stored pixels.
      orientation: EXIF's, 1 to 8: how the stored pixels are to be shown; 1 as they are.
    """

    kind: str
    height: int
    width: int
    orientation: int = 1

    @property
    def shown(self) -> tuple[int, int]:
        """Height and width of the picture as it is to be shown."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


def is_frame(path: Path) -> bool:
    """Whether a file's name is that of an image; `._x.jpg` and other hidden files are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read(path: Path) -> bytes:
    """Bytes of an image file.

    Raises:
      ImageError: it can't be read, or is larger than any image.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES or not path.is_file():
            raise ImageError(f"{path} ({size} bytes) must be an image file of at most 1 GiB.")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}.") from error


def decode(data: bytes, what: str) -> np.ndarray:
    """A picture as it is to be shown: `(H, W, 3)` uint8, RGB, orientation applied.

    Args:
      data: of the whole file.
      what: names the file in messages.

    Raises:
      ImageError: it is no image, is cut short, damaged or too large.
    """
    head = header(data, what)
    # Orientation is applied here for all kinds alike; OpenCV does it for some.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"{what} can't be decoded ({error.err}); fetch it again.") from error
    # OpenCV's reader of TIFF turns the pixels by itself, whatever the flags say.
    upright = image if image is None or head.kind == "TIFF" else orient(image, head.orientation)
    if upright is None or upright.shape[:2] != head.shown:
        raise ImageError(f"{what} can't be decoded as {head.kind}; fetch the file again.")
    return np.ascontiguousarray(upright)


def orient(image: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels `(H, W, ...)` as EXIF's orientation (1 to 8) wants them shown; a view."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def orient_points(points: np.ndarray, head: Header, edge: float) -> np.ndarray:
    """Positions `(..., 2)`, x and y, of stored pixels in the picture as it is shown.

    Args:
      points: in stored pixels.
      head: of the file.
      edge: 0 for edges (0 to width), 1 for centres of pixels (0 to width - 1).
    """
    x, y = points[..., 0], points[..., 1]
    if head.orientation >= 5:
        x, y = y, x
    height, width = head.shown
    if head.orientation in (3, 4, 7, 8):
        y = height - edge - y
    if head.orientation in (2, 3, 6, 7):
        x = width - edge - x
    return np.stack([x, y], axis=-1)


def peek(path: Path) -> Header:
    """Kind, size and orientation by the first bytes of a file, whether the rest is whole or not.

    Raises:
      ImageError: it can't be read, is no image of a known kind, or is too large.
    """
    try:
        with path.open("rb") as file:
            first = file.read(_FIRST)
    except OSError as error:
        raise ImageError(f"{path} can't be read: {error.strerror or error}.") from error
    try:
        return header(first, str(path), whole=False)
    except ImageError:
        if len(first) < _FIRST:
            raise
        return header(read(path), str(path), whole=False)


def header(data: bytes, what: str, whole: bool = True) -> Header:
    """Kind, size and orientation.

    Args:
      data: of the file.
      what: names the file in messages.
      whole: look through the whole file for what is missing or fails its checksum.

    Raises:
      ImageError: it is no image of a known kind, ends before its picture does, or is too large.
    """
    parse = next((parse for magic, parse in _KINDS if magic.match(data)), None)
    if parse is None:
        raise NoImageError(
            f"{what} is no PNG, JPEG, WebP, BMP or TIFF image; convert it or fetch it again."
        )
    try:
        found = parse(data, whole)
    except (struct.error, IndexError, _CutError) as error:
        reason = str(error) if isinstance(error, _CutError) else "its header is damaged"
        raise ImageError(f"{what} is cut short or damaged ({reason}); fetch it again.") from error
    if not (found.height > 0 and found.width > 0 and found.height * found.width <= MAX_PIXELS):
        raise ImageError(
            f"{what} has a header of {found.width} x {found.height} pixels; at least 1 and at most "
            f"{MAX_PIXELS} in all are read. Scale it down or fetch it again."
        )
    return found


class _CutError(Exception):
    """What is missing or wrong."""


def _png(data: bytes, whole: bool) -> Header:
    at, size, orientation = 8, (0, 0), 1
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"IDAT" and not whole:
            return Header("PNG", size[1], size[0], orientation)
        if len(data) < at + 12 + length:
            raise _CutError(f"ends inside of chunk {kind!r}")
        if zlib.crc32(kind + body) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise _CutError(f"chunk {kind!r} fails its checksum")
        if kind == b"IHDR":
            size = struct.unpack_from(">II", body)
        elif kind == b"eXIf":
            orientation = _orientation(body)
        elif kind == b"IEND":
            return Header("PNG", size[1], size[0], orientation)
        at += 12 + length


def _jpeg(data: bytes, whole: bool) -> Header:
    at, size, orientation = 2, (0, 0), 1
    while True:
        if data[at] != 0xFF:
            raise _CutError(f"no marker at byte {at}")
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xD9:
            return Header("JPEG", size[0], size[1], orientation)
        if marker in _ALONE:
            at += 2
            continue
        length = struct.unpack_from(">H", data, at + 2)[0]
        body = data[at + 4 : at + 2 + length]
        if marker in _FRAME_MARKERS:
            size = struct.unpack_from(">HH", body, 1)
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            orientation = _orientation(body[6:])
        at += 2 + length
        if marker == 0xDA:
            if not whole:
                return Header("JPEG", size[0], size[1], orientation)
            end = _NEXT_MARKER.search(data, at)
            if end is None:
                raise _CutError("ends inside of its coded data")
            at = end.start()


def _webp(data: bytes, whole: bool) -> Header:
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    if whole and len(data) < end:
        raise _CutError(f"{len(data)} of {end} bytes")
    at, size, orientation = 12, (0, 0), 1
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        if kind == b"VP8X":
            width, height = (int.from_bytes(body[i : i + 3], "little") for i in (4, 7))
            size = (height + 1, width + 1)
        elif kind == b"VP8 " and not size[0]:
            width, height = struct.unpack_from("<HH", body, 6)
            size = (height & 0x3FFF, width & 0x3FFF)
        elif kind == b"VP8L" and not size[0]:
            bits = struct.unpack_from("<I", body, 1)[0]
            size = (1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF))
        elif kind == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return Header("WebP", size[0], size[1], orientation)


def _bmp(data: bytes, whole: bool) -> Header:
    start, head = struct.unpack_from("<II", data, 10)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        packed = 0
    else:
        width, height, _, bits, packed = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: the rows come from top to bottom
    if whole and packed in (0, 3) and len(data) < start + (width * bits + 31) // 32 * 4 * height:
        raise _CutError("ends inside of its rows")
    return Header("BMP", height, width)


def _tiff(data: bytes, whole: bool) -> Header:
    tags = _first_directory(data)
    if 256 not in tags or 257 not in tags:
        raise _CutError("says no size")
    for offsets, counts in ((273, 279), (324, 325)):
        pairs = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if whole and any(start + count > len(data) for start, count in pairs):
            raise _CutError("ends inside of its pixels")
    (width, *_), (height, *_) = tags[256], tags[257]
    return Header("TIFF", height, width, _valid(tags.get(_ORIENTATION, (1,))))


def _orientation(exif: bytes) -> int:
    """Of an EXIF block, which is a small TIFF; 1 where it says nothing or is damaged."""
    try:
        return _valid(_first_directory(exif).get(_ORIENTATION, (1,)))
    except (struct.error, IndexError, _CutError):
        return 1


def _valid(values: tuple[int, ...]) -> int:
    return values[0] if values and 1 <= values[0] <= 8 else 1


def _first_directory(data: bytes) -> dict[int, tuple[int, ...]]:
    """Tags of whole numbers in the first directory of a TIFF."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise _CutError("no byte order")
    at = struct.unpack_from(order + "I", data, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, at)[0]):
        place = at + 2 + 12 * entry
        tag, kind, count = struct.unpack_from(order + "HHI", data, place)
        if kind not in _TIFF_TYPES:
            continue
        form = _TIFF_TYPES[kind]
        size = struct.calcsize(order + form) * count
        if size > len(data):
            raise _CutError(f"tag {tag} of {count} values")
        where = place + 8 if size <= 4 else struct.unpack_from(order + "I", data, place + 8)[0]
        tags[tag] = struct.unpack_from(f"{order}{count}{form}", data, where)
    return tags


_KINDS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"II\*\0|MM\0\*"), _tiff),
)
