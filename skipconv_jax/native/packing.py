"""Weights in the order the kernels read them (see csrc/kernels)."""

import numpy as np

from skipconv_jax.native.schema import PANEL

# F(2x2, 3x3) filter transform.
_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float64)


def round_up(n: int, multiple: int) -> int:
    """Smallest multiple that holds n."""
    return -(-n // multiple) * multiple


def _panels(matrix: np.ndarray) -> np.ndarray:
    """`(K, Co)` -> panels of 32 (the last of 16 if that is enough), each `(K, width)`, flat."""
    k, co = matrix.shape
    padded = np.zeros((k, round_up(co, 16)), np.float32)
    padded[:, :co] = matrix
    return np.concatenate(
        [padded[:, c : c + PANEL].ravel() for c in range(0, padded.shape[1], PANEL)]
    )


def pack_direct(kernel: np.ndarray) -> np.ndarray:
    """`(kh, kw, Ci, Co)` -> [panel][kh][kw][ci][width]."""
    return _panels(kernel.reshape(-1, kernel.shape[-1]))


def pack_winograd(kernel: np.ndarray) -> np.ndarray:
    """`(3, 3, Ci, Co)` -> [panel][16 points][ci][width]."""
    ci, co = kernel.shape[2:]
    u = np.einsum("ia,jb,abcd->ijcd", _G, _G, kernel.astype(np.float64), optimize=True)
    return _panels(u.reshape(16 * ci, co).astype(np.float32))


def pack_depthwise(kernel: np.ndarray, stride: int) -> np.ndarray:
    """`(kh, kw, 1, C)` -> [kh][kw][stride]."""
    out = np.zeros((kernel.shape[0] * kernel.shape[1], stride), np.float32)
    out[:, : kernel.shape[3]] = kernel.reshape(-1, kernel.shape[3])
    return out.ravel()


def pack_grouped(kernel: np.ndarray, groups: int) -> np.ndarray:
    """`(kh, kw, Ci / g, Co)` -> per group [panel][kh][kw][ci][width]."""
    split = np.split(kernel, groups, axis=3)
    return np.concatenate([pack_direct(part) for part in split])


def pad_channels(values: np.ndarray, stride: int) -> np.ndarray:
    """`(C,)` -> `(stride,)` with zeros behind."""
    out = np.zeros(stride, np.float32)
    out[: values.size] = values
    return out


def pack_bytes(kernel: np.ndarray) -> np.ndarray:
    """int8 `(kh, kw, Ci, Co)` -> [panel of 16][kh kw][ci / 4][16][4]."""
    kh, kw, ci, co = kernel.shape
    padded = np.zeros((kh * kw, round_up(ci, 4), round_up(co, 16)), np.int8)
    padded[:, :ci, :co] = kernel.reshape(kh * kw, ci, co)
    quads = padded.reshape(kh * kw, -1, 4, padded.shape[2] // 16, 16)
    return quads.transpose(3, 0, 1, 4, 2)


def pack_bytes_depthwise(kernel: np.ndarray) -> np.ndarray:
    """int8 `(kh, kw, 1, C)` -> [panel of 16][kw][kh / 4][16][4]."""
    kh, kw, _, c = kernel.shape
    padded = np.zeros((round_up(kh, 4), kw, round_up(c, 16)), np.int8)
    padded[:kh, :, :c] = kernel[:, :, 0]
    quads = padded.reshape(-1, 4, kw, padded.shape[2] // 16, 16)
    return quads.transpose(3, 2, 0, 4, 1)


def as_floats(values: np.ndarray) -> np.ndarray:
    """The bytes of an array in whole floats: weights are floats, whatever they hold."""
    raw = np.ascontiguousarray(values).tobytes()
    return np.frombuffer(raw + bytes(-len(raw) % 4), np.float32)
