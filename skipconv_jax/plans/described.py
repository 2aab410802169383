"""What a saved plan says of its network, as JSON values and back: table, gates, masks, frames."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from skipconv_jax.macs import Row, Table
from skipconv_jax.native.program import MaskSlot
from skipconv_jax.native.specs import GateSpec
from skipconv_jax.ops import AlwaysGate, Conv, GumbelGate, InputNormGate, OutputNormGate
from skipconv_jax.ops.gates import Gate

_GATES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (AlwaysGate, GumbelGate, InputNormGate, OutputNormGate)
}
# Of the products in JAX: the engine has its own, and JSON has no word for it.
_LEFT_OUT = ("precision",)


def table_values(table: Table) -> dict[str, Any]:
    """A table, rows with geometry and gates included."""
    rows = []
    for row in table.rows:
        conv = None if row.conv is None else _fields(row.conv)
        rows.append(_fields(row) | {"gate": _gate(row.gate), "conv": conv})
    return {"streams": table.streams, "rows": rows}


def table_of(values: Mapping[str, Any]) -> Table:
    """What `table_values` was made of.

    Raises:
      KeyError, TypeError, ValueError: it was not.
    """
    rows = []
    for row in values["rows"]:
        gate, conv = row["gate"], row["conv"]
        known = _tuples({k: v for k, v in row.items() if k not in ("gate", "conv")})
        made = None if gate is None else _GATES[gate["kind"]](**gate["settings"])
        rows.append(Row(**known, gate=made, conv=None if conv is None else Conv(**_tuples(conv))))
    return Table(tuple(rows), int(values["streams"]))


def slot_values(slot: MaskSlot, taps: np.ndarray | None) -> dict[str, Any]:
    """Where a mask and its gate's parameters lie, without these.

    Args:
      slot: of the program.
      taps: of the convolution, where rewriting moved them.
    """
    gate = {f: getattr(slot.gate, f) for f in ("kind", "block", "factor", "count")}
    return {
        "offset": slot.offset,
        "grid": list(slot.grid),
        "gate": {k: v if isinstance(v, str) else np.asarray(v).item() for k, v in gate.items()},
        "gate_offset": slot.gate_offset,
        "channels": slot.channels,
        "stride": slot.stride,
        "taps": None if taps is None else np.asarray(taps).tolist(),
    }


def slot_of(values: Mapping[str, Any]) -> tuple[MaskSlot, np.ndarray | None]:
    """What `slot_values` was made of.

    Raises:
      KeyError, TypeError, ValueError: it was not.
    """
    known = {k: v for k, v in values.items() if k not in ("gate", "taps", "grid")}
    rows, columns = values["grid"]
    slot = MaskSlot(**known, grid=(int(rows), int(columns)), gate=GateSpec(**values["gate"]))
    taps = values["taps"]
    return slot, None if taps is None else np.asarray(taps, np.int64)


def tree_values(tree: Any, what: str) -> Any:
    """A structure of dicts, lists and tuples; leaves are numbers, or shapes with dtypes.

    Raises:
      ValueError: other containers; `what` begins the message.
    """
    if tree is None or isinstance(tree, int):
        return tree
    if isinstance(tree, jax.ShapeDtypeStruct):
        return {"array": [tree.dtype.name, list(tree.shape)]}
    if isinstance(tree, Mapping):
        return {"dict": {str(k): tree_values(v, what) for k, v in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [tree_values(v, what) for v in tree]}
    raise ValueError(
        f"{what} a {type(tree).__name__}; to be saved the network must have dicts, lists, tuples "
        "and arrays."
    )


def tree_of(values: Any) -> Any:
    """What `tree_values` was made of.

    Raises:
      KeyError, TypeError, ValueError: it was not.
    """
    if values is None or isinstance(values, int):
        return values
    ((kind, parts),) = values.items()
    if kind == "dict":
        return {k: tree_of(v) for k, v in parts.items()}
    if kind == "array":
        dtype, shape = parts
        return jax.ShapeDtypeStruct(tuple(int(n) for n in shape), np.dtype(dtype))
    made = [tree_of(v) for v in parts]
    return {"tuple": tuple, "list": list}[kind](made)


def _fields(value: Any) -> dict[str, Any]:
    """Fields of a dataclass, as they are."""
    names = [f.name for f in dataclasses.fields(value) if f.name not in _LEFT_OUT]
    return {name: getattr(value, name) for name in names}


def _gate(gate: Gate | None) -> dict[str, Any] | None:
    return None if gate is None else {"kind": type(gate).__name__, "settings": _fields(gate)}


def _tuples(values: Any) -> Any:
    """JSON's lists as the tuples they were."""
    if isinstance(values, dict):
        return {k: _tuples(v) for k, v in values.items()}
    return tuple(_tuples(v) for v in values) if isinstance(values, list) else values
