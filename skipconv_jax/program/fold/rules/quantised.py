"""Calls that the trace names: QuantizeLinear and DequantizeLinear of tensors with one scale.

Rules of this file go by the name of a `jit`, not of a primitive; None leaves the call to what is
inside it, which is float arithmetic that means the same.
"""

from typing import Any

import numpy as np

from skipconv_jax.ops.quantised import Grid
from skipconv_jax.program.fold import nodes as g
from skipconv_jax.program.fold.quantised.nodes import DequantizeNode, QuantizeNode
from skipconv_jax.program.fold.reader import Calls, Known, Reader, Rule
from skipconv_jax.program.fold.views import View

QUANTIZE, DEQUANTIZE = "quantize_linear", "dequantize_linear"


def _grid(scale: Any, zero: list[Any], dtype: Any) -> Grid | None:
    """One scale and zero point of 8 bits, or None."""
    parameters = [scale, *zero]
    if any(not isinstance(p, Known) or p.array.size != 1 for p in parameters):
        return None
    if np.dtype(dtype).name not in ("int8", "uint8"):
        return None
    step = float(scale.array.reshape(()))
    if not (np.isfinite(step) and step > 0):
        return None
    return Grid(step, int(zero[0].array.reshape(())) if zero else 0, np.dtype(dtype).name)


def _quantize(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    x, scale, *zero = values
    dtype = eqn.outvars[0].aval.dtype
    grid = _grid(scale, zero, dtype)
    if grid is None or isinstance(x, Known) or reader.avals[x.ref].dtype != np.float32:
        return None
    ref = reader.make(lambda o: QuantizeNode((x.ref,), o, grid), reader.shape(x.ref), dtype)
    return x.on(ref)


def _dequantize(reader: Reader, eqn: Any, values: list[Any]) -> View | None:
    q, scale, *zero = values
    if isinstance(q, Known) or eqn.outvars[0].aval.dtype != np.float32:
        return None
    grid = _grid(scale, zero, reader.avals[q.ref].dtype)
    if grid is None:
        return None
    ref = reader.make(lambda o: DequantizeNode((q.ref,), o, grid), reader.shape(q.ref))
    return q.on(ref)


def levels(eqn: Any, values: list[Any]) -> g.Levels | None:
    """What a constant was dequantised from; None where its zero point leaves int8's range."""
    if eqn.params.get("name") != DEQUANTIZE:
        return None
    q, scale, *zero = (v.array for v in values)
    if q.dtype not in (np.int8, np.uint8) or scale.size not in (1, *q.shape):
        return None
    if zero and zero[0].size > 1 and np.any(zero[0] != zero[0].flat[0]):
        return None
    steps = q.astype(np.int32) - (int(zero[0].flat[0]) if zero else 0)
    if np.abs(steps).max(initial=0) > 127:
        return None
    return g.Levels(steps.astype(np.int8), scale.astype(np.float32).ravel())


RULES: dict[str, Rule] = {QUANTIZE: _quantize, DEQUANTIZE: _dequantize}
CALLS = Calls(RULES, levels)
