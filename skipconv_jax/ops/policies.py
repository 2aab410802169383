"""Policies: which past a residual is taken against, and what happens to change that was skipped.

A policy is a frozen dataclass without state of its own. It owns the `reference` entry of a layer's
state, scores the blocks through the gate, and says whether a fired block adds the convolution of
the residual to its old output or is recomputed from the frame.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from skipconv_jax.ops.gates import Gate, GateParams, GumbelGate
from skipconv_jax.ops.geometry import Conv, block_max, per_stream, tiles, widen

Reference = Any


@dataclasses.dataclass(frozen=True)
class Observation:
    """One frame as one layer meets it: all that a policy may look at before it decides.

    Attributes:
      gate: the layer's gate.
      params: the gate's parameters.
      kernel: `(*window, Ci / groups, Co)`.
      conv: geometry.
      reference: the policy's part of the state.
      x: the frame, `(B, *spatial, Ci)`.
      fresh: `(B,)` bool, where the frame is a reference frame.
    """

    gate: Gate
    params: GateParams
    kernel: jax.Array
    conv: Conv
    reference: Reference
    x: jax.Array
    fresh: jax.Array

    def since(self, past: jax.Array) -> jax.Array:
        """x_t - past in the accumulation dtype; x_t where the stream is fresh."""
        return _difference(self.x, past, self.fresh)

    def block_scores(self, residual: jax.Array) -> jax.Array:
        """The gate's scores of a residual of the frame, max-pooled over blocks, `(B, *grid)`."""
        scores = self.gate.scores(self.params, residual, self.kernel, self.conv)
        return block_max(scores, self.gate.block)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What came of a frame.

    Attributes:
      scores: `(B, *grid)`, as the policy gave them.
      fired: `(B, *grid)` in {0, 1}; everywhere 1 where the stream was fresh.
      output: `(B, *out_spatial, Co)`, in full where the stream was fresh.
    """

    scores: jax.Array
    fired: jax.Array
    output: jax.Array


@runtime_checkable
class Policy(Protocol):
    """What `skip_conv` asks of a policy.

    `recomputes` is False where a fired block adds w * r_t to its output (Eq. 3), True where it is
    computed afresh as w * x_t + bias.
    """

    recomputes: bool

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> Reference:
        """Reference of a stream that has seen nothing; zeros."""
        ...

    def residual(self, seen: Observation) -> jax.Array:
        """r_t `(B, *spatial, Ci)` in the accumulation dtype, which a fired block convolves."""
        ...

    def scores(self, seen: Observation) -> jax.Array:
        """Block scores `(B, *grid)` for `gate.fire`."""
        ...

    def kept(self, reference: Reference, output: jax.Array) -> jax.Array:
        """What unfired positions output; the last output but for `Keyframe`."""
        ...

    def update(self, seen: Observation, decision: Decision) -> Reference:
        """Reference for the next frame."""
        ...


def _difference(x: jax.Array, past: jax.Array, fresh: jax.Array) -> jax.Array:
    past = jnp.where(per_stream(fresh, past), jnp.zeros((), past.dtype), past)
    return widen(x) - widen(past)


class _KeepsOutput:
    """Unfired positions keep the last output."""

    def kept(self, reference: Reference, output: jax.Array) -> jax.Array:
        """The last output."""
        del reference
        return output


class _Recomputing(_KeepsOutput):
    """A fired block is computed afresh from the frame."""

    recomputes = True

    def residual(self, seen: Observation) -> jax.Array:
        """x_t itself: fired blocks are recomputed."""
        return widen(seen.x)


@dataclasses.dataclass(frozen=True)
class Previous(_KeepsOutput):
    """Eq. 3 as published: r_t = x_t - x_{t-1}; a fired block adds w * r_t, skipped change is lost.

    The error of a slow drift below the threshold is unbounded (a ramp of 0.009 a frame never fires
    at eps = 0.01). Reference: x_{t-1}.
    """

    recomputes = False

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> jax.Array:
        """Zeros of the input's shape and dtype."""
        del conv, gate
        return jnp.zeros_like(x)

    def residual(self, seen: Observation) -> jax.Array:
        """x_t - x_{t-1}; x_t for a fresh stream."""
        return seen.since(seen.reference)

    def scores(self, seen: Observation) -> jax.Array:
        """The gate's scores of r_t, max-pooled over blocks."""
        return seen.block_scores(self.residual(seen))

    def update(self, seen: Observation, decision: Decision) -> jax.Array:
        """x_t, fired or not."""
        del decision
        return seen.x


@dataclasses.dataclass(frozen=True)
class ClosedLoop(_Recomputing):
    r"""No drift: each block is compared with the input tile of the last time this very block fired.

    A fired block is recomputed from x_t. Between fires, every support inside the block stays within
    eps of what its output was computed from, hence with the mean Input-Norm gate, for ever,

        |z~ - z| <= eps k Ci max|w|        (Hoelder; k taps, Ci channels of the support)

    and with the mean Output-Norm gate the same with eps / mean|w|. Reference: one input tile, halo
    included, per block: ((b + k - 1) / b)^2 of the input's memory at stride 1. The name is that of
    video coding: a difference is taken against what the receiver holds, so errors don't add up.
    """

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> jax.Array:
        """Zeros `(B, *grid, *tile, Ci)`."""
        shape = (x.shape[0], *conv.grid(gate.block), *conv.tile(gate.block), x.shape[-1])
        return jnp.zeros(shape, x.dtype)

    def scores(self, seen: Observation) -> jax.Array:
        """The gate's scores of each block's tile against its stored tile."""
        conv, gate = seen.conv, seen.gate
        change = _difference(tiles(seen.x, conv, gate.block), seen.reference, seen.fresh)
        grid, lead = conv.grid(gate.block), 1 + conv.rank
        flat = change.reshape(-1, *change.shape[lead:])
        inside = dataclasses.replace(
            conv, in_spatial=conv.tile(gate.block), padding=((0, 0),) * conv.rank
        )
        scores = gate.scores(seen.params, flat, seen.kernel, inside)
        scores = scores.reshape(change.shape[0], *grid, *scores.shape[1:])
        for axis, n in enumerate(conv.out_spatial):
            position = jnp.arange(grid[axis] * gate.block).reshape(grid[axis], gate.block)
            shape = [1] * scores.ndim
            shape[1 + axis], shape[lead + axis] = position.shape
            scores = jnp.where((position < n).reshape(shape), scores, -jnp.inf)
        return scores.max(axis=tuple(range(lead, scores.ndim)))

    def update(self, seen: Observation, decision: Decision) -> jax.Array:
        """x_t's tile where the block fired, the old tile elsewhere."""
        fired, reference = decision.fired, seen.reference
        mask = fired.reshape(fired.shape + (1,) * (reference.ndim - fired.ndim))
        return jnp.where(mask > 0, tiles(seen.x, seen.conv, seen.gate.block), reference)


@dataclasses.dataclass(frozen=True)
class Accumulate(_Recomputing):
    r"""No drift, one scalar a block: norms skipped since the last fire add up until they pass eps.

    By the triangle inequality sum_t ||r_t|| >= ||x_t - x_fired|| on every support, so the bound of
    `ClosedLoop` holds; noise adds up too, so it fires more often. A fired block is recomputed from
    x_t. Reference: x_{t-1} and the sum skipped by each block. Norm gates only.
    """

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> dict[str, jax.Array]:
        """`{'frame': zeros like x, 'skipped': (B, *grid)}`.

        Raises:
          ValueError: a gate whose scores are not norms.
        """
        if isinstance(gate, GumbelGate):
            raise ValueError(
                f"`gate` (={gate}) must score by a norm under the Accumulate policy, because "
                "skipped norms are added up; use a norm gate, or the ClosedLoop policy."
            )
        skipped = jnp.zeros((x.shape[0], *conv.grid(gate.block)), widen(x).dtype)
        return {"frame": jnp.zeros_like(x), "skipped": skipped}

    def scores(self, seen: Observation) -> jax.Array:
        """Norm of x_t - x_{t-1} on the block plus what it skipped since it last fired."""
        return seen.block_scores(seen.since(seen.reference["frame"])) + seen.reference["skipped"]

    def update(self, seen: Observation, decision: Decision) -> dict[str, jax.Array]:
        """x_t, and the sum so far where the block did not fire."""
        scores = decision.scores
        skipped = jnp.where(decision.fired > 0, jnp.zeros_like(scores), scores)
        return {"frame": seen.x, "skipped": skipped}


@dataclasses.dataclass(frozen=True)
class Keyframe(_Recomputing):
    r"""No drift, no chain: r_t = x_t - x_ref, z_t = z_ref + g w * r_t, from the reference frame.

    Every output depends on the reference frame and on x_t alone, so frames between them may be lost
    without a trace, and the bound of `ClosedLoop` holds. The price: what moved away from the
    reference frame is computed on every frame until the next reset. A fired block is recomputed
    from x_t, which is the same sum. Reference: x_ref and z_ref.
    """

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> dict[str, jax.Array]:
        """`{'frame': zeros like x, 'output': (B, *out_spatial, Co)}`."""
        del gate
        shape = (x.shape[0], *conv.out_spatial, conv.out_channels)
        return {"frame": jnp.zeros_like(x), "output": jnp.zeros(shape, widen(x).dtype)}

    def scores(self, seen: Observation) -> jax.Array:
        """The gate's scores of x_t - x_ref, max-pooled over blocks."""
        return seen.block_scores(seen.since(seen.reference["frame"]))

    def kept(self, reference: dict[str, jax.Array], output: jax.Array) -> jax.Array:
        """z_ref."""
        del output
        return reference["output"]

    def update(self, seen: Observation, decision: Decision) -> dict[str, jax.Array]:
        """x_t and z_t on a reference frame, unchanged between."""
        now = {"frame": seen.x, "output": decision.output}
        return {
            name: jnp.where(per_stream(seen.fresh, now[name]), now[name], seen.reference[name])
            for name in ("frame", "output")
        }


_AnyPolicy = type[Previous | ClosedLoop | Accumulate | Keyframe]
# What `closed_loop` was called in 0.1.0, in saved plans and command lines.
_FORMER_NAMES = {"reference": "closed_loop"}


class _Policies(dict[str, _AnyPolicy]):
    """Lists each policy once, and finds it under its former name too."""

    def __missing__(self, name: str) -> _AnyPolicy:
        if name not in _FORMER_NAMES:
            raise KeyError(name)
        return self[_FORMER_NAMES[name]]

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in _FORMER_NAMES


POLICIES = _Policies(
    previous=Previous, closed_loop=ClosedLoop, accumulate=Accumulate, keyframe=Keyframe
)
"""Policies by the names that configurations, commands and plans use."""

POLICY_NAMES = (*sorted(POLICIES), *_FORMER_NAMES)
"""Names that are understood: those of `POLICIES`, and former ones."""


def policy_name(policy: Policy) -> str:
    """The name of a policy in `POLICIES`.

    Raises:
      ValueError: a policy of another class.
    """
    for name, cls in POLICIES.items():
        if type(policy) is cls:
            return name
    raise ValueError(f"`policy` (={policy}) must be one of {sorted(POLICIES)} to have a name.")
