"""`compile_plan`: a skipped network made ready for streaming, on the engine named or the best."""

import warnings
from typing import Any

import jax

from skipconv_jax.native import library
from skipconv_jax.plans.base import PRECISIONS, Plan
from skipconv_jax.plans.folded import FoldedPlan, fold_plan
from skipconv_jax.plans.native import Unsupported, UnsupportedOnBytes, native_plan, why_no_engine
from skipconv_jax.plans.plain import once, plain_plan
from skipconv_jax.transform import SkipNet

ENGINES = ("auto", "native", "folded", "plain")
_OLD = {"xla": "plain"}  # names of 0.1.0


def engine_name(name: str) -> str:
    """The engine's name of today.

    Raises:
      ValueError: there is none such.
    """
    name = _OLD.get(name, name)
    if name not in ENGINES:
        raise ValueError(f"`engine` (={name!r}) must be one of {', '.join(ENGINES)}.")
    return name


def compile_plan(
    net: SkipNet,
    params: Any,
    x: Any,
    *,
    engine: str = "auto",
    precision: str | None = None,
    winograd: bool = True,
    keep_outputs: bool = False,
) -> Plan:
    """Makes a skipped network with concrete parameters ready for streaming frames like x.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`, concrete.
      x: a frame of B streams; only shapes are read.
      engine: 'native' (the CPU engine), 'folded' (XLA, batch norm and activations folded into the
        convolutions), 'plain' (XLA, `net.apply` as it is). 'auto' takes the native one on a CPU,
        and the plain one where that can't run, with a warning if it is not built; on a GPU or TPU
        the folded one, and the plain one where that can't run. `plan.why` says which and why.
      precision: 'int8': what a quantised network (a QDQ ONNX file, `skipconv_jax.quantize`) says
        in integers is computed in integers, exact to the bit; 'float32': evaluated as float
        arithmetic. None: int8 where the network is quantised, as far as the engine can.
      winograd: of native plans: F(2x2, 3x3) for 3x3 convolutions of stride 1; errors stay near 1e-6
        relative.
      keep_outputs: of native plans: keep the outputs in the state and write them where they
        changed, instead of all of them into new memory. For large outputs that are read before the
        next frame.

    Raises:
      ValueError: an unknown engine, or one asked for by name that can't run this, and why not; an
        unknown precision, or 'int8' of a network that isn't quantised.
    """
    engine = engine_name(engine)
    if precision not in (None, *PRECISIONS):
        raise ValueError(f"`precision` (={precision!r}) must be one of {PRECISIONS}, or None.")
    # Whichever reads it, the network is traced here and nowhere else.
    net = once(net, params["model"], x)
    if engine == "plain":
        if precision == "int8":
            raise ValueError(
                "`engine` (='plain') computes what `net.apply` does, in floats; use "
                "engine='folded' for precision='int8'."
            )
        return plain_plan(net, params, x)
    if engine == "folded":
        plan = fold_plan(net, params, x, precision=precision)
        if not isinstance(plan, FoldedPlan):
            raise ValueError(f"`engine` (='folded') can't run this network: {plan.why}.")
        return plan
    options: Any = {"winograd": winograd, "keep_outputs": keep_outputs, "precision": precision}
    if engine == "native":
        return native_plan(net, params, x, **options)
    return _best(net, params, x, options)


def _integers(net: SkipNet, params: Any, x: Any, reason: str) -> Plan:
    """Integers where the native engine can't run them: XLA does, folded."""
    plan = fold_plan(net, params, x, reason, precision="int8")
    if not isinstance(plan, FoldedPlan):
        raise ValueError(f"`precision` (='int8') can't be had with engine='auto': {plan.why}.")
    return plan


def _best(net: SkipNet, params: Any, x: Any, options: Any) -> Plan:
    reason = why_no_engine()
    if not reason:
        try:
            return native_plan(net, params, x, why=library.status(), **options)
        except UnsupportedOnBytes as error:
            return _integers(net, params, x, str(error))
        except Unsupported as error:
            return plain_plan(net, params, x, str(error))
    if options["precision"] == "int8":
        return _integers(net, params, x, reason)
    if jax.default_backend() != "cpu":
        return fold_plan(net, params, x, reason, precision=options["precision"])
    warnings.warn(reason, RuntimeWarning, stacklevel=3)
    return plain_plan(net, params, x, reason)
