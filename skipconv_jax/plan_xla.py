"""What stands in for a native plan where the engine is missing: `net.apply`, same interface."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from skipconv_jax.native import library
from skipconv_jax.ops.gates import GateParams
from skipconv_jax.transform import NetParams, NetState, SkipNet


@dataclasses.dataclass(frozen=True, eq=False)
class XlaPlan:
    """A network ready for streaming in plain XLA; see `skipconv_jax.plan.Plan`.

    Attributes:
      net: the skipped network.
      constants: its parameters; pass them to `apply` as arguments of a jit.
      frame: shapes of a frame.
    """

    net: SkipNet
    constants: NetParams
    frame: Any

    def init_state(self, streams: int | None = None) -> NetState:
        """State of fresh streams, by default as many as the example frame has."""

        def resized(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((streams or a.shape[0], *a.shape[1:]), a.dtype)

        frame = jax.tree.map(resized, self.frame)
        return self.net.init(self.constants["model"], frame, key=jax.random.key(0))[1]

    def reset(self, state: NetState, streams: jax.Array | None = None) -> NetState:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""
        return self.net.reset(state, streams)

    def apply(
        self, state: NetState, x: Any, constants: NetParams | None = None, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """One frame: what the network returns, the new state, and the masks; `threads` is XLA's."""
        y, state = self.net.apply(constants or self.constants, state, x)
        return y, state, {name: layer.fired for name, layer in state.items()}

    @functools.cached_property
    def _jitted(self) -> Any:
        return jax.jit(self.apply, static_argnames="threads")

    def step(
        self, state: NetState, x: Any, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """`apply`, compiled once."""
        return self._jitted(state, x, self.constants, threads=threads)

    def fired(self, masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`."""
        return masks

    def with_gates(self, gates: Mapping[str, GateParams]) -> NetParams:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""
        return {**self.constants, "gates": dict(gates)}

    def state_bytes(self) -> int:
        """Bytes of state of one stream."""
        state = jax.eval_shape(lambda: self.init_state(1))
        return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))

    def report(self) -> str:
        """Why XLA runs everything."""
        return library.status()
