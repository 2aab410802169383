"""Checkpoint files: safetensors, and PyTorch's own through its weights-only loader."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

State = dict[str, np.ndarray]
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
        safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, path)
    elif path.suffix in _TORCH_SUFFIXES:
        torch = _torch(path)
        torch.save({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, path)
    else:
        raise ValueError(
            f"`path` (={path}) must end in .safetensors or one of {', '.join(_TORCH_SUFFIXES)}; "
            "rename it"
        )


def _load_safetensors(path: Path) -> State:
    try:
        state = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"`path` (={path}) must be a safetensors file, and reading it failed ({error}); fetch "
            "it again"
        ) from error
    return {key: _full_precision(value) for key, value in state.items()}


def _load_torch(path: Path) -> State:
    torch = _torch(path)
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
    half = (torch.bfloat16, torch.float16)
    return {
        key: (value.float() if value.dtype in half else value).numpy()
        for key, value in content.items()
    }


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
