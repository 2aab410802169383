"""One skipped convolution on integers: `skip_conv` whose residuals and sums are exact.

In int32 w * x_t = w * x_{t-1} + w * r_t holds to the bit, so that under `Previous` nothing drifts,
and a threshold of 0 skips exactly the blocks of whose supports no quantised number changed: the
output equals the dense one's, bit for bit, under every policy.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops import quantised as q
from skipconv_jax.ops.gates import Gate, GateParams, InputNormGate, OutputNormGate
from skipconv_jax.ops.geometry import Conv, block_upsample, per_stream
from skipconv_jax.ops.masked_conv import masked_conv
from skipconv_jax.ops.policies import Decision, Observation, Policy, policy_name
from skipconv_jax.ops.state import SkipState


@dataclasses.dataclass
class IntConv:
    """finish(float32(sum w (x - zero) + bias) multiplier); borders have x = zero.

    Attributes:
      conv: geometry.
      grid: of the input.
      kernel: int8 `(*window, Ci / groups, Co)`.
      bias: int32 `(Co,)`.
      multiplier: float32 `(Co,)`: from accumulator to steps of the output before the table (to real
        numbers for an output of float32). Negative where a negative scale was folded in.
      finish: how the output is stored.
      weights_mean: mean |w| of the real kernel as `skip` sees it, for the Output-Norm gate.
      weights_sum: its sum.
      steps: float32 `(Co,)`, what one step of the kernel is worth in the kernel as `skip` sees it.
    """

    conv: Conv
    grid: q.Grid
    kernel: np.ndarray
    bias: np.ndarray
    multiplier: np.ndarray
    finish: q.Finish
    weights_mean: float
    weights_sum: float
    steps: np.ndarray

    def arrays(self) -> dict[str, Any]:
        """What a step multiplies with, as arguments of a jit: `weights` of `int_skip_conv`."""
        return {"kernel": self.kernel, "bias": self.bias, "multiplier": self.multiplier}

    def norm_factor(self, gate: InputNormGate | OutputNormGate) -> np.float32:
        """What one step of change on a support weighs for a norm gate."""
        mean = gate.reduction == "mean"
        size = self.weights_mean if mean else self.weights_sum
        weights = size if isinstance(gate, OutputNormGate) else None
        return q.norm_factor(self.conv, self.grid.scale, mean=mean, weights=weights)


@dataclasses.dataclass(frozen=True)
class _StepGate:
    """A gate that is shown residuals in steps: whole numbers in float32."""

    gate: Gate
    layer: IntConv
    block: int

    def scores(
        self, params: GateParams, residual: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Of a norm gate the change in steps, of any other its scores of the real residual."""
        if isinstance(self.gate, InputNormGate | OutputNormGate):
            return q.support_change(residual.astype(jnp.int32), conv).astype(jnp.float32)
        scale = np.float32(self.layer.grid.scale)
        return self.gate.scores(params, residual * scale, kernel, conv)

    def fire(self, params: GateParams, scores: jax.Array) -> jax.Array:
        """1 where a block is computed, `(B, *grid)` float32."""
        if isinstance(self.gate, InputNormGate | OutputNormGate):
            return q.fires(scores, self.layer.norm_factor(self.gate), params["threshold"])
        return self.gate.fire(params, scores, None)


def init_int_state(layer: IntConv, gate: Gate, policy: Policy, streams: int) -> SkipState:
    """State of streams that have seen no frame.

    The output is bytes where blocks are recomputed, int32 accumulators where they are added to; the
    reference is bytes, as the policy arranges them.

    Raises:
      ValueError: a policy of another class than those of `POLICIES`.
    """
    policy_name(policy)
    conv = layer.conv
    shape = (streams, *conv.out_spatial, conv.out_channels)
    dtype = layer.finish.dtype if policy.recomputes else "int32"
    x = jnp.zeros((streams, *conv.in_spatial, conv.in_channels), jnp.float32)
    reference = policy.init(x, conv, gate)
    if isinstance(reference, dict) and "output" in reference:
        reference = {**reference, "output": jnp.zeros(shape, dtype)}
    return SkipState(
        reference=_as_bytes(reference, layer.grid),
        output=jnp.zeros(shape, dtype),
        fresh=jnp.ones((streams,), jnp.bool_),
        fired=jnp.zeros((streams, *conv.grid(gate.block)), jnp.float32),
    )


def int_skip_conv(
    layer: IntConv,
    weights: Mapping[str, jax.Array],
    gate_params: GateParams,
    state: SkipState,
    x: jax.Array,
    *,
    gate: Gate,
    policy: Policy,
    implementation: str | None = None,
) -> tuple[jax.Array, SkipState]:
    """Convolves a quantised frame only where it changed.

    Args:
      layer: the convolution; its geometry, grid and finish are read here.
      weights: `layer.arrays()`.
      gate_params: of the gate; thresholds in units of the activations, as for float layers.
      state: from `init_int_state` or the previous frame.
      x: int8 or uint8, `(B, *spatial, Ci)`.
      gate: which blocks are computed. Norm gates sum |residual| in int32; others see the real
        residual in float32.
      policy: what the residual is taken against.
      implementation: of the masked convolution; None picks one.

    Returns:
      The finished output, and the state for the next frame.

    Raises:
      NotImplementedError: a warped state, whose references are no longer whole numbers.
    """
    if state.stale is not None:
        raise NotImplementedError(
            "`state.stale` must be None: warped references are not whole numbers; compile the plan "
            "with precision='float32'."
        )
    conv, kernel = layer.conv, weights["kernel"]
    real = kernel.astype(jnp.float32) * q.last_axes(layer.steps, kernel)
    steps = x.astype(jnp.float32) - float(layer.grid.zero)
    shown = _StepGate(gate, layer, gate.block)
    reference = _as_steps(state.reference, layer.grid)
    # One flag per image: the images of a stream follow one another.
    fresh = jnp.repeat(state.fresh, x.shape[0] // state.fresh.shape[0])
    seen = Observation(shown, gate_params, real, conv, reference, steps, fresh)  # type: ignore[arg-type]
    scores = policy.scores(seen)
    fired = shown.fire(gate_params, scores)
    fired = jnp.where(per_stream(fresh, fired), jnp.ones((), fired.dtype), fired)

    products = _products(layer, kernel, policy.residual(seen), fired, gate.block, implementation)
    bias = q.last_axes(weights["bias"], products)
    kept = policy.kept(state.reference, state.output)
    if policy.recomputes:
        made = q.scaled(products + bias, weights["multiplier"], layer.finish)
        mask = block_upsample(fired, gate.block, conv.out_spatial)[..., None]
        y = output = jnp.where(mask > 0, made, kept)
    else:
        output = jnp.where(per_stream(fresh, kept), bias, kept) + products
        y = q.scaled(output, weights["multiplier"], layer.finish)
    updated = policy.update(seen, Decision(scores, fired, output))
    new = _as_bytes(updated, layer.grid)
    return y, SkipState(new, output, jnp.zeros_like(state.fresh), fired)


def _products(
    layer: IntConv,
    kernel: jax.Array,
    steps: jax.Array,
    fired: jax.Array,
    block: int,
    implementation: str | None,
) -> jax.Array:
    """sum w steps where a block fired, 0 elsewhere, int32; channels in ranges that stay exact."""
    conv = layer.conv
    mask = block_upsample(fired, block, conv.out_spatial)[..., None]
    ranges = q.channel_groups(layer.kernel)
    if ranges is None:
        return jnp.where(mask > 0, q.int_conv(steps, layer.kernel, conv), 0)
    total = jnp.zeros((steps.shape[0], *conv.out_spatial, conv.out_channels), jnp.int32)
    for start, stop in ranges:
        part = masked_conv(
            q.channel_range(steps, conv, start, stop),
            kernel[..., start:stop, :].astype(jnp.float32),
            None,
            jnp.zeros(total.shape, jnp.float32),
            fired,
            conv=q.channel_part(conv, start, stop),
            block=block,
            recompute=True,
            implementation=implementation,
        )
        total = total + part.astype(jnp.int32)
    return total


def _as_steps(reference: Any, grid: q.Grid) -> Any:
    """What a policy compares with: stored bytes as steps, other entries as they are."""
    if isinstance(reference, dict):
        return {k: _as_steps(v, grid) if k == "frame" else v for k, v in reference.items()}
    return reference.astype(jnp.float32) - float(grid.zero)


def _as_bytes(reference: Any, grid: q.Grid) -> Any:
    """The inverse of `_as_steps`."""
    if isinstance(reference, dict):
        return {k: _as_bytes(v, grid) if k == "frame" else v for k, v in reference.items()}
    return (reference + float(grid.zero)).astype(grid.dtype)
