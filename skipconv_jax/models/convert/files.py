"""Checkpoint files: safetensors, and PyTorch's own through its weights-only loader."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from skipconv_jax import whole_files

State = dict[str, np.ndarray]
_MOST_VALUES = 1 << 31
_SLACK = 1 << 20  # bytes
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".tar")


def load_state(path: str | os.PathLike[str]) -> State:
    """Reads a state dict of NumPy arrays from `path`.

    `.safetensors` needs nothing more; `.pth`, `.pt`, `.bin` and `.tar` need PyTorch (`pip install
    torch`), whose weights-only loader refuses arbitrary objects. A state dict under the key
    `state_dict` or `model` is found, and the prefix `module.` of data-parallel training is dropped.
    bfloat16 and float16 tensors become float32.

    Raises:
        ValueError: no such file, an unknown suffix, or content that is no state dict of tensors.
        ImportError: a PyTorch file without PyTorch.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`path` (={path}) must be a checkpoint file, and there is none; check it")
    if path.suffix == ".safetensors":
        return _strip(_load_safetensors(path))
    if path.suffix in _TORCH_SUFFIXES:
        return _strip(_load_torch(path))
    raise ValueError(
        f"`path` (={path}) must end in .safetensors or one of {', '.join(_TORCH_SUFFIXES)}; rename "
        "or convert it"
    )


def save_state(state: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    """Writes `state` to `path`: `.safetensors`, or with PyTorch `.pth`, `.pt`, `.bin` or `.tar`.

    Raises:
        ValueError: another suffix.
        ImportError: a PyTorch file without PyTorch.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        arrays = {k: np.ascontiguousarray(v) for k, v in state.items()}
        with whole_files.writing(path) as partial:
            safetensors.numpy.save_file(arrays, partial)
    elif path.suffix in _TORCH_SUFFIXES:
        torch = _torch(path)
        tensors = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}
        with whole_files.writing(path) as partial:
            torch.save(tensors, partial)
    else:
        raise ValueError(
            f"`path` (={path}) must end in .safetensors or one of {', '.join(_TORCH_SUFFIXES)}; "
            "rename it"
        )


def _load_safetensors(path: Path) -> State:
    try:
        state = safetensors.numpy.load_file(path)
    # KeyError, TypeError: kinds of numbers that NumPy does not have.
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`path` (={path}) must be a safetensors file, and reading it failed ({error}); fetch "
            "it again"
        ) from error
    return {key: _full_precision(value) for key, value in state.items()}


def _load_torch(path: Path) -> State:
    torch = _torch(path)
    _check_expansion(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader of zips and opcodes happens to raise
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ValueError(
            f"`path` (={path}) must hold tensors only, and PyTorch's weights-only loader refused "
            f"it ({reason}); save its state dict alone, best as .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise ValueError(
            f"`path` (={path}) must hold a state dict of tensors, and holds a "
            f"{type(content).__name__} with other "
            "values; save `model.state_dict()`"
        )
    if sum(value.numel() for value in content.values()) > _MOST_VALUES:
        raise ValueError(f"`path` (={path}) must hold at most {_MOST_VALUES} values")
    return {_name(path, key): _array(path, key, value) for key, value in content.items()}


def _name(path: Path, key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(
            f"`path` (={path}) must name its tensors by strings, and has the key {key!r}; save "
            "`model.state_dict()`"
        )
    return key


def _array(path: Path, key: str, value: Any) -> np.ndarray:
    """A tensor's values; parameters count as tensors, half precision becomes single."""
    import torch

    fault = (
        "is sparse"
        if value.layout != torch.strided
        else "is quantised"
        if value.is_quantized
        else "has no values (meta device)"
        if value.is_meta
        else "is complex"
        if value.is_complex()
        else ""
    )
    if fault:
        raise ValueError(
            f"`path` (={path}) must hold dense tensors of real numbers, and {key!r} {fault}; save "
            "the plain floating-point network"
        )
    value = value.detach()
    # Half, bfloat16 and the 8-bit kinds, which NumPy does not have.
    small = value.is_floating_point() and value.element_size() < 4
    return (value.float() if small else value).resolve_neg().numpy()


def _check_expansion(path: Path) -> None:
    """PyTorch stores its values as they are: an archive that expands was not written by it."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            expanded = sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return  # PyTorch's own reader says what is wrong
    if expanded > path.stat().st_size + _SLACK:
        raise ValueError(
            f"`path` (={path}) has {path.stat().st_size} bytes and expands to {expanded}; "
            "PyTorch's files do not, fetch it again"
        )


def _torch(path: Path) -> Any:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: an installation without its shared libraries
        raise ImportError(
            f"`path` (={path}) is a PyTorch file, which needs PyTorch: pip install torch. "
            "A .safetensors file needs nothing more"
        ) from error
    return torch


def _full_precision(value: np.ndarray) -> np.ndarray:
    # NumPy has no bfloat16 of its own: safetensors reads it as ml_dtypes'.
    half = value.dtype == np.float16 or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if half else value


def _strip(state: State) -> State:
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}
    return state
