"""The plain plan: `net.apply` as it is, in XLA, with everything `skip` can do."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from skipconv_jax.ops.gates import GateParams
from skipconv_jax.plans import probe
from skipconv_jax.plans.base import FirstLayer, Plan, shapes_of
from skipconv_jax.program.replay import Replay
from skipconv_jax.transform import NetParams, NetState, SkipNet


@dataclasses.dataclass(frozen=True, eq=False)
class XlaPlan(Plan):
    """What plans in XLA share: the state is that of `net.apply`, masks go by name.

    Attributes:
      net: the skipped network.
      variables: shapes of its variables.
      params: its parameters, or what the engine made of them.
    """

    net: SkipNet
    variables: Any
    params: Any

    @property
    def constants(self) -> Any:
        """Parameters; pass them to `apply` as arguments of a jit of your own."""
        return self.params

    def init_state(self, streams: int | None = None) -> NetState:
        """State of fresh streams, by default as many as the example frame has; donate it."""

        def resized(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((streams or a.shape[0], *a.shape[1:]), a.dtype)

        frame = jax.tree.map(resized, self.frame)
        return self.net.init(self.variables, frame, key=jax.random.key(0))[1]

    def reset(self, state: NetState, streams: jax.Array | None = None) -> NetState:
        """State whose next frame computes everything for the given streams `(B,)` (default all)."""
        return self.net.reset(state, streams)

    def fresh(self, state: NetState) -> jax.Array:
        """Streams whose next frame computes everything, `(B,)` bool."""
        return state[first_name(self)].fresh

    def fired(self, masks: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`."""
        return masks

    def with_gates(self, gates: Mapping[str, GateParams]) -> Any:
        """`constants` with other gate parameters (thresholds, gate kernels); nothing recompiles."""
        return {**self.params, "gates": dict(gates)}


def first_name(plan: Plan) -> str:
    """Name of the first Skip-Convolution.

    Raises:
      ValueError: a network left dense.
    """
    rows = plan.table.skipped()
    if not rows:
        raise ValueError("`net` must have a Skip-Convolution; its rules left all dense.")
    return rows[0].name


@dataclasses.dataclass(frozen=True, eq=False)
class PlainPlan(XlaPlan):
    """A network ready for streaming by `net.apply`. `constants` are its parameters."""

    engine = "plain"
    looks_inside = True

    def apply(
        self, state: NetState, x: Any, constants: NetParams | None = None, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """One frame: what the network returns, the new state, and the masks; see `Plan.apply`."""
        del threads
        self.check(state, x)
        y, state = self.net.apply(self.params if constants is None else constants, state, x)
        return y, state, {name: layer.fired for name, layer in state.items()}

    def first_layer(self) -> FirstLayer:
        """The first Skip-Convolution, which the state holds all of."""
        first_name(self)
        return _First(self.net)

    def sampled(
        self, state: NetState, constants: NetParams, x: Any, names: Sequence[str]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Outputs of named convolutions after frame x, as streamed and as the dense network's."""
        dense = probe.dense_outputs(self.net.fn, constants["model"], x, names)
        return {name: state[name].output for name in names}, dense

    def report(self) -> str:
        """Why XLA runs everything as it stands."""
        return f"net.apply in XLA: {self.why}"


@dataclasses.dataclass(frozen=True)
class _First:
    """`FirstLayer` of a state that holds every layer's own."""

    net: SkipNet

    def init(self, streams: int) -> tuple[()]:
        del streams
        return ()

    def firing(self, memory: Any, state: NetState, x: Any, constants: NetParams) -> jax.Array:
        del memory
        return probe.first_firing(self.net, constants, state, x)

    def after(self, memory: Any, x: Any, reset: jax.Array) -> Any:
        del x, reset
        return memory


def plain_plan(net: SkipNet, params: NetParams, x: Any, why: str = "asked for") -> PlainPlan:
    """A plan that runs `net.apply`, for frames like x.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`; shapes suffice where every
        `apply` is given its own.
      x: a frame of B streams; only shapes are read.
      why: why not another engine.
    """
    net = once(net, params["model"], x)
    table = net.table(params["model"], x)
    return PlainPlan(table, shapes_of(x), why, net, shapes_of(params["model"]), params)


def once(net: SkipNet, variables: Any, x: Any) -> SkipNet:
    """The network, traced already for frames like x."""
    if isinstance(net.fn, Replay):
        return net
    return dataclasses.replace(net, fn=Replay(net.fn, variables, x))
