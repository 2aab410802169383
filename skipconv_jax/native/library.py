"""Finds, loads and registers the shared library of the native engine."""

import ctypes
import functools
import os
import pathlib
import warnings
from collections.abc import Iterator

import jax
import numpy as np

TARGET = "skipconv_jax_execute"
_ISA = ("portable", "avx2", "avx512", "neon")
_VNNI = {"avx_vnni": "avx2", "avx512_vnni": "avx512"}  # sets of int8 kernels, and the float ones'
_OFF = ("0", "off", "no", "false")


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """The loaded library, or None and why."""
    if os.environ.get("SKIPCONV_JAX_NATIVE", "").lower() in _OFF:
        return None, "switched off by SKIPCONV_JAX_NATIVE"
    wanted = _settings()
    # Imported late: `python -m skipconv_jax.native.build` must find it not yet imported.
    from skipconv_jax.native import build

    path = build.find_library()
    if path is None:
        return None, _why_none(build.damaged_library(), build.why_untrusted())
    try:
        lib = ctypes.CDLL(str(path))
        execute = lib.SkipconvExecute
    except (OSError, AttributeError) as error:
        return None, f"{path.name} does not load: {error}; delete it and build again"
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(execute), platform="cpu")
    lib.skipconv_profile.argtypes = [ctypes.c_int, ctypes.POINTER(ctypes.c_double), ctypes.c_int]
    lib.skipconv_int8_isa.restype = ctypes.c_char_p
    lacking = wanted in _VNNI and lib.skipconv_int8_isa().decode() != wanted
    if wanted and (lacking or _ISA.index(_VNNI.get(wanted, wanted)) > lib.skipconv_isa()):
        warnings.warn(
            f"SKIPCONV_JAX_ISA={wanted} is more than this CPU has; the engine runs "
            f"{_ISA[lib.skipconv_isa()]} code, {lib.skipconv_int8_isa().decode()} for int8.",
            RuntimeWarning,
            stacklevel=4,
        )
    return lib, ""


def _why_none(damaged: pathlib.Path | None, untrusted: str) -> str:
    build = "run `python -m skipconv_jax.native.build`"
    if damaged is not None:
        return f"{damaged} is damaged or not of this build; {build}"
    return f"not built; {build}" + (f". {untrusted}" if untrusted else "")


def _settings() -> str:
    """The instruction set asked for, or ''.

    Raises:
      ValueError: a variable whose value the library would misread.
    """
    wanted = os.environ.get("SKIPCONV_JAX_ISA", "")
    if wanted and wanted not in (*_ISA, *_VNNI):
        raise ValueError(
            f"the environment variable SKIPCONV_JAX_ISA (={wanted!r}) must be one of "
            f"{(*_ISA, *_VNNI)}; unset it to use the best this CPU has."
        )
    threads = os.environ.get("SKIPCONV_JAX_NUM_THREADS", "")
    if threads and not (threads.isascii() and threads.isdigit() and 0 < int(threads) <= 64):
        raise ValueError(
            f"the environment variable SKIPCONV_JAX_NUM_THREADS (={threads!r}) must be a whole "
            "number from 1 to 64; unset it to use the cores, at most 8."
        )
    return wanted


def available() -> bool:
    """Whether the engine is built, loads and is not switched off."""
    return _library()[0] is not None


def load() -> ctypes.CDLL:
    """The library, registered with XLA.

    Raises:
      RuntimeError: it is not available; the message says why and what to do.
    """
    lib, why = _library()
    if lib is None:
        raise RuntimeError(f"the native engine is not available: {why}")
    return lib


def isa() -> str:
    """Instruction set in use: 'avx512', 'avx2', 'portable' (as SKIPCONV_JAX_ISA says) or 'neon'."""
    return _ISA[load().skipconv_isa()]


def int8_isa() -> str:
    """Instruction set of the int8 kernels: that of `isa()`, or 'avx512_vnni', 'avx_vnni'."""
    return str(load().skipconv_int8_isa().decode())


def num_threads() -> int:
    """Threads of one call; SKIPCONV_JAX_NUM_THREADS sets it (default: the cores, at most 8)."""
    return int(load().skipconv_threads())


def status() -> str:
    """One line: which backend runs, and how to change it."""
    lib, why = _library()
    if lib is None:
        return f"skipconv_jax: plain XLA ({why})"
    names = "|".join((*(name for name in _ISA if name != "neon"), *_VNNI))
    sets = "" if isa() == "neon" else f"SKIPCONV_JAX_ISA={names}, "
    return (
        f"skipconv_jax: native engine, {isa()} (int8: {int8_isa()}), {num_threads()} threads "
        f"(SKIPCONV_JAX_NATIVE=0 for plain XLA, {sets}SKIPCONV_JAX_NUM_THREADS=n)"
    )


class profile:
    """Context in which calls time their operations, to be read after each of them."""

    def __enter__(self) -> "profile":
        load().skipconv_profile(1, None, 0)
        return self

    def __exit__(self, *_: object) -> None:
        load().skipconv_profile(0, None, 0)

    def read(self) -> np.ndarray:
        """Seconds and positions computed of every operation since the last reading, `(n, 2)`.

        Of several programs, one behind the other as they ran.
        """
        lib = load()
        out = np.zeros(lib.skipconv_profile(1, None, 0))
        lib.skipconv_profile(1, out.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), out.size)
        return out.reshape(-1, 2)

    def seconds(self) -> np.ndarray:
        """Seconds per operation, as `read`."""
        return self.read()[:, 0]

    def __iter__(self) -> Iterator[float]:
        return iter(self.seconds())
