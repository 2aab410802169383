r"""Low-rank convolutions: one k x k convolution becomes two cheaper ones of rank r.

- Spatial SVD (Jaderberg et al., BMVC 2014): of the (Ci kh) x (Co kw) matrix of the kernel. A kh x 1
  convolution with stride (s, 1) and r outputs, then a 1 x kw convolution with stride (1, s).
- Weight SVD (Zhang et al., TPAMI 2015, without its non-linear term): of the Ci x (Co kh kw) matrix.
  A 1 x 1 convolution to r channels, then kh x kw with the layer's stride and dilation.

Both share the singular values between their factors, V sqrt(S) and sqrt(S) U, are exact at full
rank, and leave the bias where it was: it is added after the second one.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.compress.kernels import Kernel, Path, get, plain, replaced
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.walk import Site, Visitor, evaluate

Tree = Any
METHODS = ("spatial", "weight")
_PARTS = ("first", "second")


@dataclasses.dataclass(frozen=True)
class Factor:
    """How one convolution is factored: `method` of `METHODS`, and the rank r."""

    method: str
    rank: int


def why_not(kernel: Kernel, method: str) -> str:
    """Why a kernel can't be factored by `method`; empty where it can.

    Raises:
      ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"`method` (={method!r}) must be one of {METHODS}.")
    if kernel.fixed_because:
        return kernel.fixed_because
    if kernel.conv.groups != 1:
        return f"it has {kernel.conv.groups} groups"
    if method == "spatial" and kernel.conv.rank != 2:
        return f"it has {kernel.conv.rank} spatial axes"
    if method == "spatial" and math.prod(kernel.conv.window) == 1:
        return "it has no spatial extent to factor"
    return ""


def full_rank(conv: Conv, method: str) -> int:
    """Largest rank that is of use: that of the matrix."""
    if method == "spatial":
        return min(conv.window[0] * conv.in_channels, conv.window[1] * conv.out_channels)
    return min(conv.in_channels, math.prod(conv.window) * conv.out_channels)


def pair(conv: Conv, factor: Factor) -> tuple[Conv, Conv]:
    """Geometry of the two convolutions that take the place of `conv`."""
    ones, none = (1,) * conv.rank, (0, 0)
    change: dict[str, Any] = {
        "window": ones,
        "strides": ones,
        "padding": (none,) * conv.rank,
        "dilation": ones,
    }
    rest: dict[str, Any] = {}
    if factor.method == "spatial":
        (kh, kw), (sh, sw), (ph, pw) = conv.window, conv.strides, conv.padding
        dh, dw = conv.dilation
        change = {"window": (kh, 1), "strides": (sh, 1), "padding": (ph, none), "dilation": (dh, 1)}
        rest = {"window": (1, kw), "strides": (1, sw), "padding": (none, pw), "dilation": (1, dw)}
    first = dataclasses.replace(conv, out_channels=factor.rank, **change)
    second = dataclasses.replace(
        conv,
        in_channels=factor.rank,
        in_spatial=first.out_spatial,
        **rest,
    )
    return first, second


def factored_macs(kernel: Kernel, factor: Factor) -> int:
    """Multiply-accumulates of the factored kernel, all uses, per frame and stream."""
    return sum(calls * sum(part.macs for part in pair(conv, factor)) for conv, calls in kernel.uses)


def largest_rank(kernel: Kernel, method: str, ratio: float) -> int:
    """Largest rank whose cost is at most `ratio` of the kernel's; 0 where rank 1 costs more."""
    fits = math.floor(ratio * kernel.macs / factored_macs(kernel, Factor(method, 1)))
    return min(fits, full_rank(kernel.conv, method))


def factors(kernel: Any, factor: Factor) -> tuple[np.ndarray, np.ndarray]:
    """Kernels of the two convolutions for a kernel `(*window, Ci, Co)`, float64 arithmetic.

    Returns:
      `(kh, 1, Ci, r)` and `(1, kw, r, Co)`, or `(1, ..., Ci, r)` and `(*window, r, Co)`.
    """
    dense = np.asarray(kernel, np.float64)
    *window, inputs, outputs = dense.shape
    rank = len(window)
    if factor.method == "spatial":
        matrix = dense.transpose(2, 0, 3, 1).reshape(inputs * window[0], outputs * window[1])
    else:
        matrix = dense.transpose(rank, rank + 1, *range(rank)).reshape(inputs, -1)
    u, s, vt = _svd(matrix.tobytes(), matrix.shape)
    root = np.sqrt(s[: factor.rank])
    left, right = u[:, : factor.rank] * root, root[:, None] * vt[: factor.rank]
    r = len(root)
    if factor.method == "spatial":
        first = left.reshape(inputs, window[0], 1, r).transpose(1, 2, 0, 3)
        second = right.reshape(r, outputs, window[1], 1).transpose(3, 2, 0, 1)
    else:
        first = left.reshape((1,) * rank + (inputs, r))
        second = right.reshape(r, outputs, *window).transpose(*range(2, rank + 2), 0, 1)
    return first, second


@functools.lru_cache(maxsize=4)
def _svd(data: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The candidates of a layer share one decomposition; few layers are looked at at a time."""
    return np.linalg.svd(np.frombuffer(data).reshape(shape), full_matrices=False)


def approximate(kernel: Any, factor: Factor) -> np.ndarray:
    """The rank-r kernel as one kernel of the old shape: the same function, nothing saved."""
    first, second = factors(kernel, factor)
    if factor.method == "spatial":
        return np.einsum("hir,wrc->hwic", first[:, 0], second[0]).astype(np.float32)
    return np.einsum("ir,...rc->...ic", first.reshape(first.shape[-2:]), second).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Factorization:
    """Which kernels of a network are factored, and how; made by `factorization`.

    Attributes:
      entries: of each factored kernel name, path in the variables, shape, and factor.
    """

    entries: tuple[tuple[str, Path, tuple[int, ...], Factor], ...]

    def variables(self, dense: Tree) -> Tree:
        """The factored network's: `kernel` becomes `first/kernel` and `second/kernel`."""
        for _, path, _, factor in self.entries:
            kernel = get(dense, path)
            dense = replaced(dense, path, None)
            for part, value in zip(_PARTS, factors(kernel, factor), strict=True):
                leaf = jnp.asarray(value, kernel.dtype)
                dense = replaced(dense, (*path[:-1], part, path[-1]), leaf)
        return dense

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """The network `fn(variables, x, *args)` on factored variables: skips, trains and serves.

        `fn` may be any function that runs the dense network, in training or in inference.
        """

        def factored(variables: Tree, x: Any, *args: Any) -> Any:
            whole, parts = self._whole(variables)
            y, _ = evaluate(fn, whole, x, args, _Substitute(parts))
            return y

        return factored

    def _whole(self, variables: Tree) -> tuple[Tree, dict[str, tuple[Factor, Any, Any]]]:
        """Variables of the dense network's shapes; the zeros in place of kernels are not used."""
        parts = {}
        for name, path, shape, factor in self.entries:
            first, second = (get(variables, (*path[:-1], part, path[-1])) for part in _PARTS)
            for part in _PARTS:
                variables = replaced(variables, (*path[:-1], part), None)
            variables = replaced(variables, path, jnp.zeros(shape, first.dtype))
            parts[name] = (factor, first, second)
        return variables, parts


class _Substitute(Visitor):
    """Runs two convolutions where the network runs one."""

    def __init__(self, parts: Mapping[str, tuple[Factor, Any, Any]]) -> None:
        super().__init__()
        self._parts = parts

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        part = self._parts.get(plain(site.name))
        if part is None or site.conv is None:
            return None
        factor, *halves = part
        for conv, half in zip(pair(site.conv, factor), halves, strict=True):
            x = conv(x, half.astype(kernel.dtype)).astype(kernel.dtype)
        return x


def factorization(kernels: Mapping[str, Kernel], plan: Mapping[str, Factor]) -> Factorization:
    """The factorization of a network under a plan.

    Args:
      kernels: of the network, from `find_kernels`.
      plan: how each named kernel is factored; the others stay.

    Raises:
      ValueError: a name the network has not, a kernel that can't be factored, or a bad rank.
    """
    entries = []
    for name, factor in plan.items():
        if name not in kernels:
            raise ValueError(f"`plan` names {name!r}; the network has {sorted(kernels)}.")
        kernel = kernels[name]
        why = why_not(kernel, factor.method)
        most = full_rank(kernel.conv, factor.method)
        if why or not 1 <= factor.rank <= most:
            why = why or f"its rank (={factor.rank}) must lie in 1..{most}"
            raise ValueError(f"`plan` can't factor {name!r}: {why}; leave it out or change it.")
        entries.append((name, kernel.path, kernel.shape, factor))
    return Factorization(tuple(entries))
