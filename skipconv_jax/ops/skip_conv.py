"""One skipped convolution as a pure function of parameters, state and frame (Eq. 3)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from skipconv_jax import checks
from skipconv_jax.ops.gates import Gate, InputNormGate
from skipconv_jax.ops.geometry import Conv, Padding, accumulation_dtype, per_stream, widen
from skipconv_jax.ops.masked_conv import masked_conv
from skipconv_jax.ops.masked_conv.epilogue import Epilogue
from skipconv_jax.ops.policies import Decision, Observation, Policy, Previous
from skipconv_jax.ops.state import SkipState

if TYPE_CHECKING:
    # Shapes in types are for readers and mypy: they cost no import.
    from jaxtyping import Array, Float

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
    streams: int | None = None,
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
      streams: B where `x` holds several images of each stream, one stream after the other;
        by default every image is a stream.

    Returns:
      A `SkipState` for B streams.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    gate, policy = _gate_and_policy(gate, policy)
    _check_frame(x)
    conv = Conv.make(
        x.shape,
        _kernel(params).shape,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=precision,
    )
    images = x.shape[0]
    streams = images if streams is None else checks.positive_integer("streams", streams, "or None.")
    if images % streams:
        raise ValueError(f"`streams` (={streams}) must divide the images in `x` (={images}).")
    return _blank_state(x, conv, gate, policy, streams)


def _blank_state(x: jax.Array, conv: Conv, gate: Gate, policy: Policy, streams: int) -> SkipState:
    images, dtype = x.shape[0], accumulation_dtype(x.dtype)
    return SkipState(
        reference=policy.init(jnp.zeros(x.shape, x.dtype), conv, gate),
        output=jnp.zeros((images, *conv.out_spatial, conv.out_channels), dtype),
        fresh=jnp.ones((streams,), jnp.bool_),
        fired=jnp.zeros((images, *conv.grid(gate.block)), dtype),
    )


def skip_conv(
    params: Params,
    state: SkipState,
    x: "Float[Array, 'B *spatial Ci']",
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
    epilogue: Epilogue | None = None,
) -> "tuple[Float[Array, 'B *out_spatial Co'], SkipState]":
    r"""Convolves a frame only where it changed.

        r_t  = x_t - x_{t-1}
        z~_t = z~_{t-1} + g(r_t) * (w conv r_t)
        z~_1 = w conv x_1 + bias                     in a fresh stream

    (Habibian et al., CVPR 2021, Eq. 3, with the default policy.) The bias belongs to the reference
    frame alone. Pure: fit for `jit`, `scan`, `vmap` and `grad`, state donatable.

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
      implementation: of the masked convolution, see `skipconv_jax.ops.masked_conv`; None
        picks the dense one for training and the best that takes the case for inference.
      epilogue: y = f(scale z + shift) in the pass of the convolution, for policies that recompute;
        the state holds y, and y is returned. Its residual must be None: it changes where no block
        fires.

    Returns:
      `z_t` `(B, *out_spatial, Co)` in the dtype of `x`, and the state for the next frame.

    Raises:
      ValueError: shapes or dtypes that do not fit each other, parameters that the gate does not
        take, a state made for another frame, gate or policy, or an epilogue that can't be kept.
      NotImplementedError: a named implementation that does not take the case.
    """
    gate, policy = _gate_and_policy(gate, policy)
    _check_frame(x)
    if rng is not None:
        checks.key("rng", rng)
    kernel, bias = _kernel(params), params.get("bias")
    conv = Conv.make(
        x.shape,
        kernel.shape,
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        precision=precision,
    )
    _check_arrays(kernel, bias, x, conv)
    _check_kind(state)
    # What a warp moved into the padding was there and is no more: the residual reaches that far.
    seen, around = (x, conv) if state.stale is None else (conv.pad(x), conv.padded())
    _check_state(state, seen, around, gate, policy)
    _check_epilogue(epilogue, policy)
    gate_params = _gate_params(params, gate, conv)
    # One flag per image: the images of a stream follow one another.
    fresh = jnp.repeat(state.fresh, x.shape[0] // state.fresh.shape[0])

    observed = Observation(gate, gate_params, kernel, around, state.reference, seen, fresh)
    scores = policy.scores(observed)
    fired = gate.fire(gate_params, scores, rng).astype(state.fired.dtype)
    fired = jnp.where(per_stream(fresh, fired), jnp.ones((), fired.dtype), fired)
    compute = functools.partial(
        masked_conv,
        conv=around,
        block=gate.block,
        # Sampling means training, whose backward pass is dense: so is the cheapest forward pass.
        implementation=implementation or (None if rng is None else "dense"),
        epilogue=epilogue,
    )
    base = _kept_output(policy.kept(state.reference, state.output), fresh, bias)
    operand, mask = policy.residual(observed), fired
    if state.stale is not None:
        # Nothing can be added to a stale output: it is recomputed from the frame by any policy.
        fired = jnp.where(state.stale, jnp.ones((), fired.dtype), fired)
        mask = fired
        if not policy.recomputes:
            stale = state.stale.astype(fired.dtype)
            base = compute(widen(seen), kernel, bias, base, stale, recompute=True)
            mask = fired * (1 - stale)
    output = compute(operand, kernel, bias, base, mask, recompute=policy.recomputes)
    reference = policy.update(
        dataclasses.replace(observed, x=x, conv=conv), Decision(scores, fired, output)
    )
    new_state = SkipState(reference, output, jnp.zeros_like(state.fresh), fired)
    return output.astype(x.dtype), new_state


def _kept_output(kept: jax.Array, fresh: jax.Array, bias: jax.Array | None) -> jax.Array:
    """What unfired positions keep, or the bias where a stream starts."""
    start = jnp.zeros((), kept.dtype)
    if bias is not None:
        start = bias.astype(kept.dtype).reshape((1,) * (kept.ndim - 1) + (-1,))
    return jnp.where(per_stream(fresh, kept), start, kept)


def _gate_and_policy(gate: Gate | None, policy: Policy | None) -> tuple[Gate, Policy]:
    gate = InputNormGate() if gate is None else gate
    policy = Previous() if policy is None else policy
    checks.instance("gate", gate, Gate, "e.g. InputNormGate(1e-2)")
    checks.instance("policy", policy, Policy, "e.g. Previous()")
    return gate, policy


def _check_frame(x: Any) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(
            f"`x` (a {type(x).__name__}) must be an array (B, *spatial, C); use jnp.asarray."
        )


def _kernel(params: Params) -> jax.Array:
    if not isinstance(params, Mapping):
        raise ValueError(
            f"`params` (a {type(params).__name__}) must be a mapping {{'kernel': array, ...}}; "
            "use {'kernel': kernel}."
        )
    if "kernel" not in params:
        raise ValueError(
            f"`params` (keys {sorted(params)}) must hold 'kernel'; 'bias' and 'gate' are optional."
        )
    return params["kernel"]


def _gate_params(params: Params, gate: Gate, conv: Conv) -> Any:
    """The gate's parameters, checked, or those it starts with."""
    if "gate" not in params:
        return gate.init(None, conv)
    given, expected = _shapes(params["gate"]), _gate_shapes(gate, conv)  # type: ignore[arg-type]
    if given != expected:
        raise ValueError(
            f"`params['gate']` (shapes {given}) must be what {gate} takes here (shapes "
            f"{expected}); make it with `gate.init`, or with the network's `init`."
        )
    return params["gate"]


@functools.lru_cache(maxsize=4096)
def _gate_shapes(gate: Gate, conv: Conv) -> dict[str, tuple[int, ...]]:
    return _shapes(jax.eval_shape(lambda: gate.init(jax.random.key(0), conv)))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    named, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in named}


def _check_arrays(kernel: jax.Array, bias: jax.Array | None, x: jax.Array, conv: Conv) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"`x` (dtype {x.dtype}) must be floating point; convert frames before.")
    dtype = accumulation_dtype(x.dtype)
    if not jnp.issubdtype(kernel.dtype, jnp.floating) or accumulation_dtype(kernel.dtype) != dtype:
        raise ValueError(
            f"`kernel` (dtype {kernel.dtype}) must be floating point and accumulate in {dtype} as "
            f"`x` (dtype {x.dtype}) does; cast one of them."
        )
    if bias is not None and bias.shape != (conv.out_channels,):
        raise ValueError(
            f"`bias` (shape {bias.shape}) must be ({conv.out_channels},), one per output."
        )


def _check_epilogue(epilogue: Epilogue | None, policy: Policy) -> None:
    if epilogue is None:
        return
    if not policy.recomputes:
        raise ValueError(
            f"`epilogue` must be None under `policy` (={policy}), which adds to its output; apply "
            "it to the output, or recompute blocks with ClosedLoop(), Accumulate() or Keyframe()."
        )
    if epilogue.residual is not None:
        raise ValueError(
            "`epilogue.residual` must be None: it would be missed where no block fires; add it to "
            "the output."
        )


def _check_kind(state: Any) -> None:
    if not isinstance(state, SkipState):
        raise ValueError(
            f"`state` (a {type(state).__name__}) must be a SkipState; make one with `init_state`."
        )


def _check_state(state: SkipState, x: jax.Array, conv: Conv, gate: Gate, policy: Policy) -> None:
    streams = state.fresh.shape[0]
    expected = jax.eval_shape(
        lambda: _blank_state(jnp.zeros(x.shape, x.dtype), conv, gate, policy, streams)
    )
    given, needed = _described(dataclasses.replace(state, stale=None)), _described(expected)
    if given != needed or x.shape[0] % streams:
        wrong = {k: given.get(k) for k in given | needed if given.get(k) != needed.get(k)}
        right = {k: needed.get(k) for k in wrong}
        raise ValueError(
            f"`state` (with {wrong}) must match frame, gate and policy (which need {right}); make "
            "a new one with `init_state`, or with the network's `init`."
        )


def _described(state: SkipState) -> dict[str, str]:
    named, _ = jax.tree_util.tree_flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in named
    }
