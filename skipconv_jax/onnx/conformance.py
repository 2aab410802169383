"""ONNX's own backend node tests, run on this reader: `python -m skipconv_jax.onnx.conformance`.

The package `onnx` carries a test case for every operator, opset and corner. A case is run where
every operator in it is one that `load` takes; what is refused on purpose is listed with its reason.
"""

import argparse
import dataclasses
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.onnx import OPERATORS, load
from skipconv_jax.onnx.nodes import Node, find
from skipconv_jax.onnx.reader import OLDEST

# Folded when a file is loaded, so that no function for a frame exists.
FOLDED = ("Constant", "ConstantOfShape", "Range", "Shape", "Size")


@dataclasses.dataclass(frozen=True)
class Case:
    """One test case: a small model with inputs and the outputs it must give."""

    name: str
    operators: tuple[str, ...]
    model: Any
    data: Sequence[Sequence[Sequence[Any]]]
    rtol: float
    atol: float


def cases() -> Iterator[Case]:
    """The cases whose operators are all taken, in the package's order."""
    from onnx.backend.test.loader import load_model_tests

    taken = {*OPERATORS, *FOLDED}
    with warnings.catch_warnings():
        # Expected outputs of corner cases (0 / 0, overflow) are computed here, with NumPy's noise.
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    for case in found:
        assert case.model is not None
        used = tuple(dict.fromkeys(n.op_type for n in case.model.graph.node))
        if set(used) <= taken:
            data = [
                tuple([_array(v) for v in half] for half in pair) for pair in case.data_sets or ()
            ]
            yield Case(case.name, used, _renewed(case.model), data, case.rtol, case.atol)


def _array(value: Any) -> Any:
    """Values of types that NumPy lacks come as protobuf tensors."""
    from onnx import TensorProto, numpy_helper

    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value


def _renewed(model: Any) -> Any:
    """Cases of opsets that `load` doesn't read, as opset 9 where that changes none of them."""
    from onnx import ModelProto, defs

    (version,) = (o.version for o in model.opset_import if not o.domain)
    operators = {n.op_type for n in model.graph.node}
    if version >= OLDEST or any(
        defs.get_schema(name, version).since_version != defs.get_schema(name, OLDEST).since_version
        for name in operators
    ):
        return model
    renewed = ModelProto()
    renewed.CopyFrom(model)
    renewed.opset_import[0].version = OLDEST
    return renewed


def refused(case: Case) -> str:
    """Why a case can't be met; empty where it must be."""
    if "Dropout" in case.operators and "training" in case.name and "zero_ratio" not in case.name:
        return "draws random numbers for training"
    kinds = {str(a.dtype) for arrays in case.data[0] for a in arrays if hasattr(a, "dtype")}
    if any(kind in ("object", "str") or kind.startswith("<U") for kind in kinds):
        return "strings"
    if "float8_e8m0fnu" in kinds:
        return "a type of scales, never of a frame"
    if any(not hasattr(a, "dtype") for arrays in case.data[0] for a in arrays):
        return "sequences and optionals"
    return ""


def run(chosen: Sequence[Case]) -> list[str]:
    """For each case: empty where every output is right, else what is wrong.

    All of them are compiled as one program: one case costs XLA as much time as fifty.
    """
    problems, prepared = [""] * len(chosen), []
    for at, case in enumerate(chosen):
        for inputs, outputs in case.data:
            try:
                prepared.append((at, *_prepare(case, inputs, outputs)))
            except (ValueError, TypeError, NotImplementedError) as error:
                problems[at] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    calls = [fn for _, fn, *_ in prepared]
    level = {"xla_backend_optimization_level": 0}

    @partial(jax.jit, compiler_options=level)
    def together(variables: Any, frames: Any, doubled: Any) -> Any:
        once = [fn(v, x) for fn, v, x in zip(calls, variables, frames, strict=True)]
        twice = [
            fn(v, x) if x is not None else None
            for fn, v, x in zip(calls, variables, doubled, strict=True)
        ]
        return once, twice

    variables, frames, doubled = ([p[i] for p in prepared] for i in (2, 3, 4))
    once, twice = together(variables, frames, doubled)
    for (at, fn, *_, wanted), one, two in zip(prepared, once, twice, strict=True):
        problems[at] = problems[at] or _differ(chosen[at], fn, one, wanted)
        if two is not None:
            second = jax.tree.map(lambda y: y[1:], two)
            problems[at] = problems[at] or _differ(chosen[at], fn, second, wanted, streams=True)
    return problems


def _prepare(
    case: Case, inputs: Sequence[Any], outputs: Sequence[Any]
) -> tuple[Any, Any, Any, Any, dict[str, np.ndarray]]:
    """(fn, variables, frame, the frame as two streams or None, wanted outputs)."""
    model, given = _bind(case.model, inputs)
    variables, fn = load(model.SerializeToString(), shapes={n: a.shape for n, a in given.items()})
    wanted = dict(zip((o.name for o in model.graph.output), outputs, strict=True))
    doubled = None
    if fn.program.streams and fn.inputs:
        doubled = _frame({n: np.concatenate([a, a]) for n, a in given.items()})
        jax.eval_shape(fn, variables, doubled)
    return fn, variables, _frame(given), doubled, wanted


def _frame(given: dict[str, np.ndarray]) -> Any:
    return {name: jnp.asarray(array) for name, array in given.items()}


def _bind(model: Any, inputs: Sequence[Any]) -> tuple[Any, dict[str, np.ndarray]]:
    """The model with inputs that a file must know (axes, shapes) as initializers, and the rest."""
    from onnx import ModelProto, numpy_helper

    bound = ModelProto()
    bound.CopyFrom(model)
    static = _static_inputs(model)
    frame = {}
    for value, array in zip(model.graph.input, inputs, strict=True):
        if value.name in static:
            tensor = numpy_helper.from_array(array, value.name)
            bound.graph.initializer.append(tensor)
        else:
            frame[value.name] = np.asarray(array)
    return bound, frame


def _static_inputs(model: Any) -> set[str]:
    """Graph inputs from which a static input of some operator is computed."""
    version = next(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))
    needed: set[str] = set()
    for proto in reversed(model.graph.node):
        node = Node(proto.op_type, "", version, tuple(proto.input), tuple(proto.output), {})
        operator = find(node)
        if operator is not None:
            needed |= {n for i, n in enumerate(node.inputs) if i in operator.static}
        if proto.op_type in FOLDED and proto.op_type not in ("Shape", "Size"):
            needed |= set(node.inputs)
        if needed & set(node.outputs) and proto.op_type not in ("Shape", "Size"):
            needed |= set(node.inputs)
    return needed


def _differ(
    case: Case, fn: Any, got: Any, wanted: dict[str, np.ndarray], streams: bool = False
) -> str:
    found = got if isinstance(got, dict) else {fn.outputs[0]: got}
    for name, want in wanted.items():
        array = np.asarray(found[name])
        if streams and array.ndim > want.ndim:
            array = array[0]
        if array.shape != want.shape:
            return f"{name}: shape {array.shape}, must be {want.shape}"
        same = str(array.dtype) == str(want.dtype) or str(want.dtype) in (
            "int64",
            "float64",
            "uint64",
        )
        if not same:
            return f"{name}: dtype {array.dtype}, must be {want.dtype}"
        a, b = (_plain(v) for v in (array, want))
        # Steps of the type, where it is coarser than the case's tolerance: one per operator or so.
        step = float(jnp.finfo(want.dtype).eps) if jnp.issubdtype(want.dtype, np.floating) else 0.0
        step *= 1 if len(case.operators) == 1 else 4
        if not np.allclose(a, b, rtol=max(case.rtol, step), atol=case.atol, equal_nan=True):
            return f"{name}: differs by up to {np.nanmax(np.abs(a - b)):.3g}"
    return ""


def _plain(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _row(case: Case) -> str:
    return case.operators[0] if len(case.operators) == 1 else "(several operators)"


def groups(chosen: Sequence[Case], size: int = 64) -> Iterator[Sequence[Case]]:
    """The cases in portions that are compiled together."""
    for start in range(0, len(chosen), size):
        yield chosen[start : start + size]


def main() -> None:
    """Prints passed/all per operator, and every case that is not passed, with its reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--operator", help="only cases with this operator")
    wanted = parser.parse_args().operator
    rows: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    notes = []
    chosen = [c for c in cases() if not wanted or wanted in c.operators]
    reasons = [refused(case) for case in chosen]
    for group in groups([c for c, reason in zip(chosen, reasons, strict=True) if not reason]):
        for case, problem in zip(group, run(group), strict=True):
            rows[_row(case)][2 if problem else 0] += 1
            notes += [f"{case.name}: {problem}"] if problem else []
    for case, reason in zip(chosen, reasons, strict=True):
        rows[_row(case)][1] += bool(reason)
        notes += [f"{case.name}: refused, {reason}"] if reason else []
    print(f"{'operator':24}{'passed':>8}{'all':>6}{'refused':>9}{'failed':>8}")
    total = [sum(column) for column in zip(*rows.values(), strict=True)]
    for name, (passed, no, failed) in [*sorted(rows.items()), ("total", total)]:
        print(f"{name:24}{passed:8}{passed + no + failed:6}{no:9}{failed:8}")
    print(*notes, sep="\n")


if __name__ == "__main__":
    main()
