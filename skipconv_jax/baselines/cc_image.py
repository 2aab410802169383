"""CC-image: conditional computation on still images, the paper's baseline without memory.

z_t = g(x_t) * (w conv x_t): Gumbel gates as in Eq. 8, but on the frame instead of the residual, and
zero where they do not fire (section 4.2, after Verelst & Tuytelaars, CVPR 2020). The network has
the interface of `skip`, so training, evaluation and MAC counting are the same.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from skipconv_jax.ops.gates import Gate, GumbelGate
from skipconv_jax.ops.geometry import Conv, widen
from skipconv_jax.ops.policies import Decision, Observation
from skipconv_jax.transform import NetParams, NetState, Rule, SkipNet, skip


@dataclasses.dataclass(frozen=True)
class Frame:
    """No past at all: the gate sees x_t, fired positions compute w conv x_t, others are zero."""

    recomputes = True

    def init(self, x: jax.Array, conv: Conv, gate: Gate) -> dict[str, jax.Array]:
        """Nothing is remembered."""
        del x, conv, gate
        return {}

    def residual(self, seen: Observation) -> jax.Array:
        """x_t itself."""
        return widen(seen.x)

    def scores(self, seen: Observation) -> jax.Array:
        """The gate's scores of x_t, max-pooled over blocks."""
        return seen.block_scores(widen(seen.x))

    def kept(self, reference: Any, output: jax.Array) -> jax.Array:
        """Zeros: what is not computed is not there."""
        del reference
        return jnp.zeros_like(output)

    def update(self, seen: Observation, decision: Decision) -> dict[str, jax.Array]:
        """Nothing is remembered."""
        del seen, decision
        return {}


@dataclasses.dataclass(frozen=True)
class StillNet(SkipNet):
    """A network gated on each frame alone; made by `cc_image`. No frame is a reference frame."""

    def init(
        self, variables: Any, x: Any, *args: Any, key: jax.Array | None = None
    ) -> tuple[NetParams, NetState]:
        """As `SkipNet.init`, every stream ready for a frame like any other."""
        params, state = super().init(variables, x, *args, key=key)
        return params, {
            name: dataclasses.replace(layer, fresh=jnp.zeros_like(layer.fresh))
            for name, layer in state.items()
        }

    def reset(self, state: NetState, streams: jax.Array | None = None) -> NetState:
        """The state as it is: there is nothing to forget."""
        del streams
        return state


def cc_image(
    fn: Callable[..., Any],
    rules: Sequence[tuple[str, Rule | None]] = (),
    *,
    gate: Gate | None = None,
    implementation: str | None = None,
) -> StillNet:
    """Gates every convolution of a network on its input frame, without memory.

    The bias of a convolution is added everywhere, because in the traced network it is an addition
    of its own.

    Args:
      fn: as for `skip`.
      rules: as for `skip`; a rule's policy is not used.
      gate: for convolutions no rule names; `GumbelGate()` by default.
      implementation: as for `skip`.

    Raises:
      ValueError: as `skip` does.
    """
    gated = [
        (pattern, None if rule is None else dataclasses.replace(rule, policy=Frame()))
        for pattern, rule in rules
    ]
    net = skip(fn, gated, gate=gate or GumbelGate(), policy=Frame(), implementation=implementation)
    return StillNet(**{f.name: getattr(net, f.name) for f in dataclasses.fields(net)})
