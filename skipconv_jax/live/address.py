"""Where a camera is: what kind of source an address names, and what of it may be shown."""

import enum
import os
import re
import stat
from urllib.parse import urlsplit


class Kind(enum.Enum):
    """How a source is read."""

    RTSP = "rtsp"
    HTTP = "http"
    V4L2 = "v4l2"
    PIPE = "pipe"
    STDIN = "stdin"
    FRAMES = "frames"  # files, folders, lists and `module:object`: `streaming.sources`


_SCHEMES = {"rtsp": Kind.RTSP, "rtsps": Kind.RTSP, "http": Kind.HTTP, "https": Kind.HTTP}
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")


def kind(address: str) -> Kind:
    """What an address names.

    Raises:
      ValueError: a scheme that is not read.
    """
    if address == "-":
        return Kind.STDIN
    found = _SCHEME.match(address)
    if found:
        scheme = found[1].lower()
        if scheme not in _SCHEMES:
            raise ValueError(
                f"`address` (={shown(address)[:120]}) must begin with one of "
                f"{', '.join(f'{s}://' for s in _SCHEMES)}, or be a device, pipe, file or folder."
            )
        return _SCHEMES[scheme]
    if re.fullmatch(r"/dev/video\d+", address):
        return Kind.V4L2
    try:
        pipe = stat.S_ISFIFO(os.stat(address).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return Kind.FRAMES
    except (OSError, ValueError) as error:  # a name too long, no right to look, a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"`address` (={address[:120]!r}) can't be looked at: {reason}.") from None
    return Kind.PIPE if pipe else Kind.FRAMES


def shown(address: str) -> str:
    """What of an address may stand in a log or an answer: scheme, host and port of a URL.

    Credentials stand before the host, in the query and, of many recorders, in the path: none of
    these is shown. A local path is shown whole.
    """
    if not _SCHEME.match(address):
        return address
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(an address that can't be read)"
    host = f"[{host}]" if ":" in host else host
    rest = "/..." if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{rest}"
