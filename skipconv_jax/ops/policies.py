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

    def residual(self, reference: Reference, x: jax.Array, fresh: jax.Array) -> jax.Array:
        """r_t `(B, *spatial, Ci)` in the accumulation dtype, which a fired block convolves."""
        ...

    def scores(
        self,
        gate: Gate,
        params: GateParams,
        reference: Reference,
        x: jax.Array,
        fresh: jax.Array,
        kernel: jax.Array,
        conv: Conv,
    ) -> jax.Array:
        """Block scores `(B, *grid)` for `gate.fire`."""
        ...

    def kept(self, reference: Reference, output: jax.Array) -> jax.Array:
        """What unfired positions output; the last output but for `Keyframe`."""
        ...

    def update(
        self,
        reference: Reference,
        x: jax.Array,
        scores: jax.Array,
        fired: jax.Array,
        conv: Conv,
        gate: Gate,
        output: jax.Array,
        fresh: jax.Array,
    ) -> Reference:
        """Reference for the next frame, `output` being this frame's, in full where `fresh`."""
        ...


def _since(reference: jax.Array, x: jax.Array, fresh: jax.Array) -> jax.Array:
    past = jnp.where(per_stream(fresh, reference), jnp.zeros((), reference.dtype), reference)
    return widen(x) - widen(past)


@dataclasses.dataclass(frozen=True)
class Previous:
    """Eq. 3 as published: r_t = x_t - x_{t-1}; a fired block adds w * r_t, skipped change is lost.

    The error of a slow drift below the threshold is unbounded (a ramp of 0.009 a frame never fires
    at eps = 0.01). Reference: x_{t-1}.
    """

    recomputes = False

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> jax.Array:
        """Zeros of the input's shape and dtype."""
        del conv, gate
        return jnp.zeros_like(x)

    def residual(self, reference: jax.Array, x: jax.Array, fresh: jax.Array) -> jax.Array:
        """x_t - x_{t-1}; x_t for a fresh stream."""
        return _since(reference, x, fresh)

    def scores(
        self,
        gate: Gate,
        params: GateParams,
        reference: jax.Array,
        x: jax.Array,
        fresh: jax.Array,
        kernel: jax.Array,
        conv: Conv,
    ) -> jax.Array:
        """The gate's scores of r_t, max-pooled over blocks."""
        scores = gate.scores(params, self.residual(reference, x, fresh), kernel, conv)
        return block_max(scores, gate.block)

    def kept(self, reference: jax.Array, output: jax.Array) -> jax.Array:
        """The last output."""
        del reference
        return output

    def update(
        self,
        reference: jax.Array,
        x: jax.Array,
        scores: jax.Array,
        fired: jax.Array,
        conv: Conv,
        gate: Gate,
        output: jax.Array,
        fresh: jax.Array,
    ) -> jax.Array:
        """x_t, fired or not."""
        del reference, scores, fired, conv, gate, output, fresh
        return x


@dataclasses.dataclass(frozen=True)
class ClosedLoop:
    r"""No drift: each block is compared with the input tile of the last time this very block fired.

    A fired block is recomputed from x_t. Between fires, every support inside the block stays within
    eps of what its output was computed from, hence with the mean Input-Norm gate, for ever,

        |z~ - z| <= eps k Ci max|w|        (Hoelder; k taps, Ci channels of the support)

    and with the mean Output-Norm gate the same with eps / mean|w|. Reference: one input tile, halo
    included, per block: ((b + k - 1) / b)^2 of the input's memory at stride 1.
    """

    recomputes = True

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> jax.Array:
        """Zeros `(B, *grid, *tile, Ci)`."""
        shape = (x.shape[0], *conv.grid(gate.block), *conv.tile(gate.block), x.shape[-1])
        return jnp.zeros(shape, x.dtype)

    def residual(self, reference: jax.Array, x: jax.Array, fresh: jax.Array) -> jax.Array:
        """x_t itself: fired blocks are recomputed."""
        del reference, fresh
        return widen(x)

    def scores(
        self,
        gate: Gate,
        params: GateParams,
        reference: jax.Array,
        x: jax.Array,
        fresh: jax.Array,
        kernel: jax.Array,
        conv: Conv,
    ) -> jax.Array:
        """The gate's scores of each block's tile against its stored tile."""
        change = _since(reference, tiles(x, conv, gate.block), fresh)
        grid, lead = conv.grid(gate.block), 1 + conv.rank
        flat = change.reshape(-1, *change.shape[lead:])
        inside = dataclasses.replace(
            conv, in_spatial=conv.tile(gate.block), padding=((0, 0),) * conv.rank
        )
        scores = gate.scores(params, flat, kernel, inside)
        scores = scores.reshape(change.shape[0], *grid, *scores.shape[1:])
        for axis, n in enumerate(conv.out_spatial):
            position = jnp.arange(grid[axis] * gate.block).reshape(grid[axis], gate.block)
            shape = [1] * scores.ndim
            shape[1 + axis], shape[lead + axis] = position.shape
            scores = jnp.where((position < n).reshape(shape), scores, -jnp.inf)
        return scores.max(axis=tuple(range(lead, scores.ndim)))

    def kept(self, reference: jax.Array, output: jax.Array) -> jax.Array:
        """The last output."""
        del reference
        return output

    def update(
        self,
        reference: jax.Array,
        x: jax.Array,
        scores: jax.Array,
        fired: jax.Array,
        conv: Conv,
        gate: Gate,
        output: jax.Array,
        fresh: jax.Array,
    ) -> jax.Array:
        """x_t's tile where the block fired, the old tile elsewhere."""
        del scores, output, fresh
        mask = fired.reshape(fired.shape + (1,) * (reference.ndim - fired.ndim))
        return jnp.where(mask > 0, tiles(x, conv, gate.block), reference)


@dataclasses.dataclass(frozen=True)
class Accumulate:
    r"""No drift, one scalar a block: norms skipped since the last fire add up until they pass eps.

    By the triangle inequality sum_t ||r_t|| >= ||x_t - x_fired|| on every support, so the bound of
    `ClosedLoop` holds; noise adds up too, so it fires more often. A fired block is recomputed from
    x_t. Reference: x_{t-1} and the sum skipped by each block. Norm gates only.
    """

    recomputes = True

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

    def residual(
        self, reference: dict[str, jax.Array], x: jax.Array, fresh: jax.Array
    ) -> jax.Array:
        """x_t itself: fired blocks are recomputed."""
        del reference, fresh
        return widen(x)

    def scores(
        self,
        gate: Gate,
        params: GateParams,
        reference: dict[str, jax.Array],
        x: jax.Array,
        fresh: jax.Array,
        kernel: jax.Array,
        conv: Conv,
    ) -> jax.Array:
        """Norm of x_t - x_{t-1} on the block plus what it skipped since it last fired."""
        change = _since(reference["frame"], x, fresh)
        return (
            block_max(gate.scores(params, change, kernel, conv), gate.block) + reference["skipped"]
        )

    def kept(self, reference: dict[str, jax.Array], output: jax.Array) -> jax.Array:
        """The last output."""
        del reference
        return output

    def update(
        self,
        reference: dict[str, jax.Array],
        x: jax.Array,
        scores: jax.Array,
        fired: jax.Array,
        conv: Conv,
        gate: Gate,
        output: jax.Array,
        fresh: jax.Array,
    ) -> dict[str, jax.Array]:
        """x_t, and the sum so far where the block did not fire."""
        del reference, conv, gate, output, fresh
        return {"frame": x, "skipped": jnp.where(fired > 0, jnp.zeros_like(scores), scores)}


@dataclasses.dataclass(frozen=True)
class Keyframe:
    r"""No drift, no chain: r_t = x_t - x_ref, z_t = z_ref + g w * r_t, from the reference frame.

    Every output depends on the reference frame and on x_t alone, so frames between them may be lost
    without a trace, and the bound of `ClosedLoop` holds. The price: what moved away from the
    reference frame is computed on every frame until the next reset. A fired block is recomputed
    from x_t, which is the same sum. Reference: x_ref and z_ref.
    """

    recomputes = True

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> dict[str, jax.Array]:
        """`{'frame': zeros like x, 'output': (B, *out_spatial, Co)}`."""
        del gate
        shape = (x.shape[0], *conv.out_spatial, conv.out_channels)
        return {"frame": jnp.zeros_like(x), "output": jnp.zeros(shape, widen(x).dtype)}

    def residual(
        self, reference: dict[str, jax.Array], x: jax.Array, fresh: jax.Array
    ) -> jax.Array:
        """x_t itself: fired blocks are recomputed."""
        del reference, fresh
        return widen(x)

    def scores(
        self,
        gate: Gate,
        params: GateParams,
        reference: dict[str, jax.Array],
        x: jax.Array,
        fresh: jax.Array,
        kernel: jax.Array,
        conv: Conv,
    ) -> jax.Array:
        """The gate's scores of x_t - x_ref, max-pooled over blocks."""
        change = _since(reference["frame"], x, fresh)
        return block_max(gate.scores(params, change, kernel, conv), gate.block)

    def kept(self, reference: dict[str, jax.Array], output: jax.Array) -> jax.Array:
        """z_ref."""
        del output
        return reference["output"]

    def update(
        self,
        reference: dict[str, jax.Array],
        x: jax.Array,
        scores: jax.Array,
        fired: jax.Array,
        conv: Conv,
        gate: Gate,
        output: jax.Array,
        fresh: jax.Array,
    ) -> dict[str, jax.Array]:
        """x_t and z_t on a reference frame, unchanged between."""
        del scores, fired, conv, gate
        now = {"frame": x, "output": output}
        return {
            name: jnp.where(per_stream(fresh, now[name]), now[name], reference[name])
            for name in ("frame", "output")
        }


POLICIES: dict[str, type[Previous | ClosedLoop | Accumulate | Keyframe]] = {
    "previous": Previous,
    "reference": ClosedLoop,
    "accumulate": Accumulate,
    "keyframe": Keyframe,
}
"""Policies by the names that configurations, commands and plans use."""


def policy_name(policy: Policy) -> str:
    """The name of a policy in `POLICIES`.

    Raises:
      ValueError: a policy of another class.
    """
    for name, cls in POLICIES.items():
        if type(policy) is cls:
            return name
    raise ValueError(f"`policy` (={policy}) must be one of {sorted(POLICIES)} to have a name.")
