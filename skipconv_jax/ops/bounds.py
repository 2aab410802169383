"""How far a layer's output can be from the dense one under a policy that does not drift."""

import math

import jax
import jax.numpy as jnp

from skipconv_jax.ops.gates import (
    AlwaysGate,
    ConvNormGate,
    Gate,
    GateParams,
    InputNormGate,
    OutputNormGate,
)
from skipconv_jax.ops.geometry import Conv, widen


def output_bound(gate: Gate, params: GateParams, kernel: jax.Array, conv: Conv) -> jax.Array:
    r"""Bound on |z~ - z| at every position and frame, for ever, `(Co,)`.

    Under `ClosedLoop`, `Accumulate` and `Keyframe` an unfired support differs from the one its
    output was computed from by ||x_t - x_fired||_1 <= n eps (n = k Ci for means, 1 for sums), so by
    Hoelder's inequality, with the kernel w_o of output channel o,

        |z~_o - z_o| <= max|w_o| ||x_t - x_fired||_1 <= n eps max|w_o|      (Input-Norm)

    and eps / ||w|| in the place of eps for the Output-Norm gate; the Conv-Norm gate bounds the
    output itself, by eps Co (mean) or eps (sum). z is the dense output of the layer's own input,
    exact but for rounding. `Previous` has no such bound.

    Args:
      gate: a norm gate or `AlwaysGate`.
      params: its parameters.
      kernel: `(*window, Ci / groups, Co)`.
      conv: geometry.

    Raises:
      ValueError: a gate that does not decide by a norm.
    """
    if isinstance(gate, AlwaysGate):
        return jnp.zeros((conv.out_channels,), jnp.float32)
    weight = jnp.abs(widen(kernel))
    if isinstance(gate, ConvNormGate):
        n = conv.out_channels if gate.reduction == "mean" else 1
        return jnp.full((conv.out_channels,), n * params["threshold"].astype(weight.dtype))
    if not isinstance(gate, InputNormGate | OutputNormGate):
        raise ValueError(
            f"`gate` (={gate}) must decide by a norm for its error to be bounded; use "
            "InputNormGate, OutputNormGate or ConvNormGate."
        )
    mean = gate.reduction == "mean"
    eps = params["threshold"].astype(weight.dtype)
    if isinstance(gate, OutputNormGate):
        eps = eps / (weight.mean() if mean else weight.sum())
    n = math.prod(conv.window) * conv.in_channels if mean else 1
    return n * eps * weight.max(axis=tuple(range(weight.ndim - 1)))
