"""Inference plans in XLA, for accelerators and wherever the native engine is missing.

`skip` replaces the convolutions of a network and leaves the rest as it was: batch norm, activations
and additions are passes over whole maps, fired or not. `fold_plan` folds the traced network first
(`skipconv_jax.program.fold`), and a convolution whose policy recomputes its blocks takes scale,
shift and activation into its own pass (`Epilogue`): its state holds the activated output, and
blocks that do not fire are neither read nor written for it. Same interface as
`skipconv_jax.plans.native.Plan`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.native import library
from skipconv_jax.ops import InputNormGate, SkipState, skip_conv
from skipconv_jax.ops.gates import AlwaysGate, GateParams, GumbelGate
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv.epilogue import ACTIVATIONS, Epilogue, finish
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.transform import NetParams, NetState, Rule, SkipNet

# A channel scaled by less holds nothing of its kernel that could be told.
_LOST = 1e-20


@dataclasses.dataclass(frozen=True, eq=False)
class XlaPlan:
    """A network ready for streaming by `net.apply`; see `skipconv_jax.plans.native.Plan`.

    Attributes:
      net: the skipped network.
      constants: its parameters; pass them to `apply` as arguments of a jit.
      frame: shapes of a frame.
      why: why it is not folded, for the report.
    """

    net: SkipNet
    constants: NetParams
    frame: Any
    why: str = ""

    def _variables(self) -> Any:
        return self.constants["model"]

    def init_state(self, streams: int | None = None) -> NetState:
        """State of fresh streams, by default as many as the example frame has."""

        def resized(a: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((streams or a.shape[0], *a.shape[1:]), a.dtype)

        frame = jax.tree.map(resized, self.frame)
        return self.net.init(self._variables(), frame, key=jax.random.key(0))[1]

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
        return jax.jit(self.apply, donate_argnums=0, static_argnames="threads")

    def step(
        self, state: NetState, x: Any, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """`apply`, compiled once, with the state updated in place (the old one is gone)."""
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
        """Why XLA runs everything, and as it stands."""
        return self.why or library.status()


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedPlan(XlaPlan):
    """The folded network in XLA. `constants` are `{'weights': ..., 'gates': ...}`.

    Attributes:
      graph: the folded network.
      layers: geometry and rule of every Skip-Convolution.
      variables: shapes of the network's variables.
    """

    graph: g.Graph | None = None
    layers: Mapping[str, tuple[Conv, Rule]] = dataclasses.field(default_factory=dict)
    variables: Any = None

    def _variables(self) -> Any:
        return self.variables

    def apply(
        self, state: NetState, x: Any, constants: NetParams | None = None, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """One frame: what the network returns, the new state, and the masks; `threads` is XLA's.

        Pure, fit for `jit` and `scan`. Under a jit of your own pass `plan.constants` as an
        argument, or the weights become part of the compiled program.
        """
        graph, params = self._graph(), constants or self.constants
        values: dict[int, Any] = dict(zip(graph.inputs, jax.tree.leaves(x), strict=True))
        new: NetState = {}
        for node in graph.nodes:
            inputs = [values[r] for r in node.inputs]
            if isinstance(node, g.ConvNode) and node.name in self.layers:
                made, new[node.name] = self._convolve(node, inputs, params, state[node.name])
                values[node.output] = made
                continue
            shape = (-1, *graph.avals[node.output].shape[1:])
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            values.update(zip(refs, execute_node(node, inputs, shape), strict=True))
        leaves = [values[o] if isinstance(o, int) else jnp.asarray(o) for o in graph.outputs]
        y = jax.tree.unflatten(graph.tree, leaves)
        return y, new, {name: layer.fired for name, layer in new.items()}

    def _graph(self) -> g.Graph:
        if self.graph is None:
            raise AssertionError("a folded plan without a graph")
        return self.graph

    def _convolve(
        self, node: g.ConvNode, x: list[jax.Array], params: NetParams, state: SkipState
    ) -> tuple[jax.Array, SkipState]:
        conv, rule = self.layers[node.name]
        weights = params["weights"][node.name]
        epilogue = None
        if _fuses(node, rule):
            epilogue = Epilogue(weights["scale"], weights["shift"], None, _activation(node))
        z, new = skip_conv(
            {"kernel": weights["kernel"], "gate": params["gates"][node.name]},
            state,
            x[0],
            strides=conv.strides,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            precision=conv.precision,
            gate=rule.gate,
            policy=rule.policy,
            implementation=rule.implementation,
            epilogue=epilogue,
        )
        if epilogue is not None:
            return z, new
        residual = None if node.residual is None else x[1]
        return _finished(node, z, weights, residual), new

    def report(self) -> str:
        """How many convolutions finish their blocks themselves, and what keeps the others."""
        convs = [n for n in self._graph().nodes if isinstance(n, g.ConvNode)]
        ours = [n for n in convs if n.name in self.layers]
        left = [(n.name, _why_not_fused(n, self.layers[n.name][1])) for n in ours]
        lines = [
            f"{sum(not why for _, why in left)} of {len(ours)} Skip-Convolutions take what follows "
            "them into their own pass; of the others"
        ]
        reasons = sorted({why for _, why in left if why})
        lines += [f"{sum(why == r for _, why in left)}: {r}" for r in reasons]
        return "\n".join(lines)


def _activation(node: g.ConvNode) -> str | None:
    return None if node.act == "none" else node.act


def _finished(
    node: g.ConvNode, z: jax.Array, weights: Mapping[str, jax.Array], residual: jax.Array | None
) -> jax.Array:
    """What follows a convolution, as a pass of its own."""
    if _activation(node) in ACTIVATIONS:
        return finish(z, weights["scale"], weights["shift"], residual, _activation(node))
    y = finish(z, weights["scale"], weights["shift"], residual, None)
    one = g.UnaryNode((0,), 1, node.act, params=node.params)
    if node.slope is not None:
        return execute_node(g.PReluNode((0,), 1, node.slope), [y], y.shape)[0]
    return execute_node(one, [y], y.shape)[0]


def _fuses(node: g.ConvNode, rule: Rule) -> bool:
    return not _why_not_fused(node, rule)


def _why_not_fused(node: g.ConvNode, rule: Rule) -> str:
    if rule.policy is None or not rule.policy.recomputes:
        return "its policy adds to the output, which therefore stays before the activation"
    if node.residual is not None:
        return "what it is added to changes where it does not fire"
    return "" if _activation(node) in ACTIVATIONS else f"no epilogue for {node.act}"


def _weights(node: g.ConvNode) -> dict[str, np.ndarray]:
    """Kernel as the gates know it, before folding, and the affine map that was folded into it."""
    channels = node.conv.out_channels
    scale = np.ones(channels, np.float32) if node.scale is None else np.asarray(node.scale)
    scale = np.broadcast_to(scale, (channels,)).astype(np.float32)
    bias = np.zeros(channels, np.float32) if node.bias is None else node.bias
    told = np.abs(scale) > _LOST
    kernel = np.where(told, node.kernel / np.where(told, scale, 1), 0).astype(np.float32)
    return {"kernel": kernel, "scale": scale, "shift": np.asarray(bias, np.float32)}


def _why_not_folded(graph: g.Graph, layers: Mapping[str, tuple[Conv, Rule]]) -> str:
    convs = {n.name: n for n in graph.nodes if isinstance(n, g.ConvNode)}
    missing = sorted(set(layers) - set(convs))
    if missing:
        return f"not folded: {missing[0]} is no float32 convolution of a channels-last map"
    for name, (_, rule) in layers.items():
        scale = convs[name].scale
        blind = isinstance(rule.gate, InputNormGate | GumbelGate | AlwaysGate)
        if not blind and scale is not None and (np.abs(scale) <= _LOST).any():
            return f"not folded: {name} scales channels by 0, and its gate looks at their kernel"
    return ""


def fold_plan(net: SkipNet, params: NetParams, x: Any) -> XlaPlan:
    """A plan in XLA for frames like x, folded where that can be; `report()` says what was done.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`, concrete.
      x: a frame of B streams; only shapes are read.
    """
    frame = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    found = net.layers(params["model"], x)
    layers = {n: (site.conv, rule) for n, (site, rule) in found.items() if site.conv is not None}
    graph = g.build(net.fn, params["model"], x)
    why = _why_not_folded(graph, layers)
    if why:
        return XlaPlan(net, params, frame, why)
    weights = {
        node.name: jax.tree.map(jnp.asarray, _weights(node))
        for node in graph.nodes
        if isinstance(node, g.ConvNode) and node.name in layers
    }
    constants = {"weights": weights, "gates": params["gates"]}
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params["model"])
    return FoldedPlan(net, constants, frame, "", graph, layers, shapes)
