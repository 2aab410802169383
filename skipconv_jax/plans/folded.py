"""Inference plans in XLA, for accelerators and wherever the native engine is missing.

`skip` replaces the convolutions of a network and leaves the rest as it was: batch norm, activations
and additions are passes over whole maps, fired or not. `fold_plan` folds the traced network first
(`skipconv_jax.program.fold`), and a convolution whose policy recomputes its blocks takes scale,
shift and activation into its own pass (`Epilogue`): its state holds the activated output, and
blocks that do not fire are neither read nor written for it. Compare `skipconv_jax.plans.plain`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops import Gate, InputNormGate, Policy, SkipState, skip_conv
from skipconv_jax.ops.gates import AlwaysGate, GumbelGate
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv.epilogue import ACTIVATIONS, Epilogue, finish
from skipconv_jax.ops.quantised_conv import init_int_state, int_skip_conv
from skipconv_jax.plans.base import FirstLayer, check_quantised, shapes_of, unused
from skipconv_jax.plans.plain import XlaPlan, first_name, once, plain_plan
from skipconv_jax.program import fold as g
from skipconv_jax.program.fold.execute import execute_node
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.transform import NetParams, NetState, Rule, SkipNet

# A channel scaled by less holds nothing of its kernel that could be told.
_LOST = 1e-20


@dataclasses.dataclass(frozen=True, eq=False)
class FoldedPlan(XlaPlan):
    """The folded network in XLA. `constants` are `{'weights': ..., 'gates': ...}`.

    Attributes:
      graph: the folded network.
      layers: geometry and rule of every Skip-Convolution.
    """

    graph: g.Graph
    layers: Mapping[str, tuple[Conv, Rule]]

    engine = "folded"

    def init_state(self, streams: int | None = None) -> NetState:
        """State of fresh streams, by default as many as the example frame has; donate it."""
        state = super().init_state(streams)
        found = {name: state[name] for name in self.layers}
        for node in self.graph.nodes:
            if isinstance(node, g.QConvNode) and node.name in self.layers:
                _, rule = self.layers[node.name]
                # One flag per stream, images of a stream one after the other, as the network has.
                images = found[node.name].output.shape[0]
                made = init_int_state(node, *_gate_and_policy(rule), images)
                found[node.name] = dataclasses.replace(made, fresh=found[node.name].fresh)
        return found

    def apply(
        self, state: NetState, x: Any, constants: NetParams | None = None, *, threads: int = 0
    ) -> tuple[Any, NetState, dict[str, jax.Array]]:
        """One frame: what the network returns, the new state, and the masks; see `Plan.apply`."""
        del threads
        self.check(state, x)
        values, new = self._run(state, x, self.params if constants is None else constants)
        leaves = [values[o] if isinstance(o, int) else jnp.asarray(o) for o in self.graph.outputs]
        y = jax.tree.unflatten(self.graph.tree, leaves)
        return y, new, {name: layer.fired for name, layer in new.items()}

    def _run(
        self, state: NetState, x: Any, params: NetParams, until: str = ""
    ) -> tuple[dict[int, Any], NetState]:
        """Tensors and states of all nodes, or of those up to a Skip-Convolution."""
        graph = self.graph
        values: dict[int, Any] = dict(zip(graph.inputs, jax.tree.leaves(x), strict=True))
        new: NetState = {}
        for node in graph.nodes:
            if until in new:
                break
            inputs = [values[r] for r in node.inputs]
            if isinstance(node, g.ConvNode | g.QConvNode) and node.name in self.layers:
                made, new[node.name] = self._skipped(node, inputs, params, state[node.name])
                values[node.output] = made
                continue
            shape = (-1, *graph.avals[node.output].shape[1:])
            refs = node.outputs if isinstance(node, g.OtherNode) else (node.output,)
            values.update(zip(refs, execute_node(node, inputs, shape), strict=True))
        return values, new

    def first_layer(self) -> FirstLayer:
        """The first Skip-Convolution, which the state holds all of."""
        return _First(self, first_name(self))

    def _skipped(
        self,
        node: g.ConvNode | g.QConvNode,
        x: list[jax.Array],
        params: NetParams,
        state: SkipState,
    ) -> tuple[jax.Array, SkipState]:
        if isinstance(node, g.QConvNode):
            return self._int_convolve(node, x, params, state)
        return self._convolve(node, x, params, state)

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

    def _int_convolve(
        self, node: g.QConvNode, x: list[jax.Array], params: NetParams, state: SkipState
    ) -> tuple[jax.Array, SkipState]:
        _, rule = self.layers[node.name]
        gate, policy = _gate_and_policy(rule)
        return int_skip_conv(
            node,
            params["weights"][node.name],
            params["gates"][node.name],
            state,
            x[0],
            gate=gate,
            policy=policy,
            implementation=rule.implementation,
        )

    def report(self) -> str:
        """How many convolutions finish their blocks themselves, and what keeps the others."""
        convs = [n for n in self.graph.nodes if isinstance(n, g.ConvNode)]
        ours = [n for n in convs if n.name in self.layers]
        left = [(n.name, _why_not_fused(n, self.layers[n.name][1])) for n in ours]
        lines = []
        if ours:
            lines.append(
                f"{sum(not why for _, why in left)} of {len(ours)} Skip-Convolutions take what "
                "follows them into their own pass; of the others"
            )
        reasons = sorted({why for _, why in left if why})
        lines += [f"{sum(why == r for _, why in left)}: {r}" for r in reasons]
        integers = sum(isinstance(n, g.QConvNode) for n in self.graph.nodes)
        if integers:
            lines.append(f"{integers} convolutions of int8, exact in int32")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _First:
    """`FirstLayer` of a state that holds every layer's own."""

    plan: FoldedPlan
    name: str

    def init(self, streams: int) -> tuple[()]:
        del streams
        return ()

    def firing(self, memory: Any, state: NetState, x: Any, constants: NetParams) -> jax.Array:
        del memory
        _, new = self.plan._run(state, x, constants, until=self.name)
        return new[self.name].fired.reshape(number_of_streams(x), -1).mean(axis=1)

    def after(self, memory: Any, x: Any, reset: jax.Array) -> Any:
        del x, reset
        return memory


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


def _gate_and_policy(rule: Rule) -> tuple[Gate, Policy]:
    """The rule's, which `SkipNet.survey` has filled in."""
    if rule.gate is None or rule.policy is None:
        raise AssertionError(f"an unresolved rule: {rule}")
    return rule.gate, rule.policy


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
    integers = {n.name for n in graph.nodes if isinstance(n, g.QConvNode)}
    missing = sorted(set(layers) - set(convs) - integers)
    if missing:
        return f"not folded: {missing[0]} is no float32 convolution of a channels-last map"
    for name, (_, rule) in layers.items():
        scale = convs[name].scale if name in convs else None
        blind = isinstance(rule.gate, InputNormGate | GumbelGate | AlwaysGate)
        if not blind and scale is not None and (np.abs(scale) <= _LOST).any():
            return f"not folded: {name} scales channels by 0, and its gate looks at their kernel"
    return ""


def fold_plan(
    net: SkipNet, params: Any, x: Any, why: str = "asked for", *, precision: str | None = None
) -> XlaPlan:
    """A plan in XLA for frames like x, folded where that can be; `report()` says what was done.

    Args:
      net: from `skip`.
      params: `{'model': variables, 'gates': {name: parameters}}`, concrete.
      x: a frame of B streams; only shapes are read.
      why: why not another engine.
      precision: 'int8' or 'float32', see `compile_plan`; None is what the network says.

    Raises:
      ValueError: 'int8' of a network without quantised convolutions.
    """
    net = once(net, params["model"], x)
    table, found = net.survey(params["model"], x)
    graph = g.build(net.fn, params["model"], x, quantised=precision != "float32")
    check_quantised(graph, precision)
    table = table.without(unused(table, graph))
    layers = {
        row.name: (row.conv, found[row.name][1]) for row in table.skipped() if row.conv is not None
    }
    kept_apart = _why_not_folded(graph, layers)
    if kept_apart:
        return plain_plan(net, params, x, kept_apart)
    weights = {
        node.name: jax.tree.map(jnp.asarray, _weights(node))
        for node in graph.nodes
        if isinstance(node, g.ConvNode) and node.name in layers
    }
    for node in graph.nodes:
        if isinstance(node, g.QConvNode) and node.name in layers:
            weights[node.name] = jax.tree.map(jnp.asarray, node.arrays())
    constants = {"weights": weights, "gates": params["gates"]}
    shapes = shapes_of(params["model"])
    return FoldedPlan(table, shapes_of(x), why, net, shapes, constants, graph, layers)
