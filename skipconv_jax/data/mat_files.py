"""MATLAB files (version 5): one array of numbers, in bounded memory."""

import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.io

MAX_BYTES = 1 << 28
"""That a file may expand to; the largest of JHMDB's has 3 MB."""
_COMPRESSED = 15
_NUMBERS = (
    "double",
    "single",
    "logical",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
)


class MatError(ValueError):
    """A file that can't be read, or holds something else."""


def read(path: Path, key: str) -> np.ndarray:
    """The variable `key`, a real array of finite numbers.

    Raises:
      MatError: no such file or variable, no array of numbers, or one that expands past `MAX_BYTES`.
    """
    if not path.is_file():
        raise MatError("missing")
    try:
        _check_expansion(path.read_bytes())
        kinds = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(path)}
        if key not in kinds:
            raise MatError(f"has no variable {key}")
        shape, kind = kinds[key]
        size = int(np.prod([int(n) for n in shape], dtype=object))
        if kind not in _NUMBERS or size * 8 > MAX_BYTES:
            raise MatError(
                f"{key} is a {kind} array of shape {shape}, not one of few enough numbers"
            )
        array = scipy.io.loadmat(path, variable_names=[key])[key]
    except MatError:
        raise
    # What SciPy raises on a damaged file depends on where the damage lies: zlib, struct, type...
    except Exception as error:
        raise MatError(f"cannot be read ({type(error).__name__}: {_line(error)})") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise MatError(f"{key} must be an array of real numbers")
    if not np.isfinite(array).all():
        raise MatError(f"{key} is not finite")
    return array


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _check_expansion(data: bytes) -> None:
    """Expands every compressed element piece by piece, and keeps none."""
    order = ">" if data[126:128] == b"MI" else "<"
    at, total = 128, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(order + "II", data, at)
        if kind == _COMPRESSED:
            expander, rest = zlib.decompressobj(), data[at + 8 : at + 8 + length]
            while rest and not expander.eof:
                total += len(expander.decompress(rest, 1 << 20))
                rest = expander.unconsumed_tail
                if total > MAX_BYTES:
                    raise MatError(f"expands to more than {MAX_BYTES} bytes")
        at += 8 + length
