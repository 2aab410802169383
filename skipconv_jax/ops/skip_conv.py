"""One skipped convolution as a pure function of parameters, state and frame (Eq. 3)."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.ops.conv import masked_conv
from skipconv_jax.ops.gates import Gate, InputNormGate
from skipconv_jax.ops.geometry import Conv, Padding, accumulation_dtype, per_stream, widen
from skipconv_jax.ops.policies import Policy, Previous
from skipconv_jax.ops.state import SkipState

Params = Mapping[str, Any]


def init_state(
    params: Params,
    x: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    precision: Any = None,
    gate: Gate | None = None,
    policy: Policy | None = None,
) -> SkipState:
    """State of streams that have seen no frame: all zeros, every stream fresh.

    Args:
      params: as for `skip_conv`; only shapes are read.
      x: a frame `(B, *spatial, Ci)`; only shape and dtype are read.
      strides: as for `skip_conv`, like the rest.
      padding: likewise.
      dilation: likewise.
      groups: likewise.
      precision: likewise.
      gate: likewise.
      policy: likewise.

    Returns:
      A `SkipState` for B streams.
    """
    gate, policy = gate or InputNormGate(), policy or Previous()
    conv = Conv.make(
        x.shape,
        params["kernel"].shape,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=precision,
    )
    streams, dtype = x.shape[0], accumulation_dtype(x.dtype)
    return SkipState(
        reference=policy.init(jnp.zeros(x.shape, x.dtype), conv, gate),
        output=jnp.zeros((streams, *conv.out_spatial, conv.out_channels), dtype),
        fresh=jnp.ones((streams,), jnp.bool_),
        fired=jnp.zeros((streams, *conv.grid(gate.block)), dtype),
    )


def skip_conv(
    params: Params,
    state: SkipState,
    x: jax.Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    gate: Gate | None = None,
    policy: Policy | None = None,
    rng: jax.Array | None = None,
    precision: Any = None,
    implementation: str | None = None,
) -> tuple[jax.Array, SkipState]:
    r"""Convolves a frame only where it changed.

    z~_t = z~_{t-1} + g(r_t) * (w conv r_t), r_t = x_t - x_{t-1}; a fresh stream computes
    z~_1 = w conv x_1 + bias. (Habibian et al., CVPR 2021, Eq. 3, with the default policy.) The bias
    belongs to the reference frame alone. Pure: fit for `jit`, `scan`, `vmap` and `grad`, state
    donatable.

    Args:
      params: `kernel` `(*window, Ci / groups, Co)`, optional `bias` `(Co,)`, optional `gate` (the
        gate's parameters; by default those of `gate.init`).
      state: from `init_state` or the previous frame.
      x: frame of B streams, `(B, *spatial, Ci)`: NHWC in 2D. float32, bfloat16, float16 or float64.
      strides: per spatial axis or one for all.
      padding: 'SAME', 'SAME_LOWER', 'VALID', an integer, or a (low, high) pair per axis.
      dilation: of the kernel.
      groups: feature groups; Ci of them make the convolution depthwise.
      gate: which blocks are computed; `InputNormGate()` by default.
      policy: what the residual is taken against; `Previous()` (Eq. 3) by default.
      rng: key for sampling gates, which means training; None for inference.
      precision: of the products, as in `jax.lax`; None for the platform's default.
      implementation: of the masked convolution, see `skipconv_jax.ops.conv`; None picks the dense
        one for training and the best that takes the case for inference.

    Returns:
      `z_t` `(B, *out_spatial, Co)` in the dtype of `x`, and the state for the next frame.

    Raises:
      ValueError: shapes that do not fit each other, or a state made for another frame size.
      NotImplementedError: a named implementation that does not take the case.
    """
    gate, policy = gate or InputNormGate(), policy or Previous()
    kernel, bias = params["kernel"], params.get("bias")
    conv = Conv.make(
        x.shape,
        kernel.shape,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=precision,
    )
    _check(params, state, x, conv, gate)
    gate_params = params["gate"] if "gate" in params else gate.init(None, conv)

    scores = policy.scores(gate, gate_params, state.reference, x, state.fresh, kernel, conv)
    fired = gate.fire(gate_params, scores, rng).astype(state.fired.dtype)
    fired = jnp.where(per_stream(state.fresh, fired), jnp.ones((), fired.dtype), fired)
    compute = functools.partial(
        masked_conv,
        conv=conv,
        block=gate.block,
        # Sampling means training, whose backward pass is dense: so is the cheapest forward pass.
        implementation=implementation or (None if rng is None else "reference"),
    )
    base = _kept_output(policy.kept(state.reference, state.output), state.fresh, bias)
    operand, mask = policy.residual(state.reference, x, state.fresh), fired
    if state.stale is not None:
        # Nothing can be added to a stale output: it is recomputed from the frame by any policy.
        fired = jnp.where(state.stale, jnp.ones((), fired.dtype), fired)
        mask = fired
        if not policy.recomputes:
            stale = state.stale.astype(fired.dtype)
            base = compute(widen(x), kernel, bias, base, stale, recompute=True)
            mask = fired * (1 - stale)
    output = compute(operand, kernel, bias, base, mask, recompute=policy.recomputes)
    reference = policy.update(
        state.reference, x, scores, fired, conv, gate, output=output, fresh=state.fresh
    )
    new_state = SkipState(reference, output, jnp.zeros_like(state.fresh), fired)
    return output.astype(x.dtype), new_state


def _kept_output(kept: jax.Array, fresh: jax.Array, bias: jax.Array | None) -> jax.Array:
    """What unfired positions keep, or the bias where a stream starts."""
    start = jnp.zeros((), kept.dtype)
    if bias is not None:
        start = bias.astype(kept.dtype).reshape((1,) * (kept.ndim - 1) + (-1,))
    return jnp.where(per_stream(fresh, kept), start, kept)


def _check(params: Params, state: SkipState, x: jax.Array, conv: Conv, gate: Gate) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` (dtype {x.dtype}) must be floating point; convert frames before.")
    expected = (x.shape[0], *conv.out_spatial, conv.out_channels)
    grid = (x.shape[0], *conv.grid(gate.block))
    if state.output.shape != expected or state.fired.shape != grid:
        raise ValueError(
            f"`state` (output {state.output.shape}, mask {state.fired.shape}) must match the frame "
            f"and the gate (output {expected}, mask {grid}); make a new one with `init_state`."
        )
    bias = params.get("bias")
    if bias is not None and bias.shape != (conv.out_channels,):
        raise ValueError(
            f"`bias` (shape {bias.shape}) must be ({conv.out_channels},), one per output."
        )
