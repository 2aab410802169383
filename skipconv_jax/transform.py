"""`skip`: any pure JAX network becomes one whose convolutions run only where the frame changed."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import checks, macs
from skipconv_jax.ops import SkipState, init_state, skip_conv
from skipconv_jax.ops.gates import Gate, GateParams, InputNormGate
from skipconv_jax.ops.geometry import Conv
from skipconv_jax.ops.masked_conv import implementation_name
from skipconv_jax.ops.policies import ClosedLoop, Policy
from skipconv_jax.program.walk import Site, Visitor, evaluate, find_sites, number_of_streams

NetState = dict[str, SkipState]
NetParams = dict[str, Any]

SAFE_GATE = InputNormGate(1e-3, block=8)
"""Gate of `skip(fn)`: with `ClosedLoop`, within 1 point of AP of the dense network on every trained
detector and video of docs/results/defaults.md, which shows what a larger threshold gains."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the convolutions a pattern names are skipped.

    Attributes:
      gate: which blocks fire.
      policy: what the residual is taken against; None takes the network's.
      implementation: of the masked convolution; None takes the network's.
    """

    gate: Gate
    policy: Policy | None = None
    implementation: str | None = None

    def __post_init__(self) -> None:
        checks.instance("gate", self.gate, Gate, "e.g. InputNormGate(1e-2)")
        if self.policy is not None:
            checks.instance("policy", self.policy, Policy, "e.g. Previous()")


@runtime_checkable
class RuleBook(Protocol):
    """Rules that know which network they were made for, such as a calibrated gate plan."""

    def rules(self) -> Sequence[tuple[str, Rule | None]]:
        """(pattern, rule) pairs, as `skip` takes them."""
        ...

    def check(self, sites: Sequence[Site]) -> None:
        """Raises ValueError, naming what differs, for the convolutions of another network."""
        ...


@dataclasses.dataclass(frozen=True)
class SkipNet:
    """A skipped network: pure functions of parameters, state and frame. Made by `skip`."""

    fn: Callable[..., Any]
    rules: tuple[tuple[str, Rule | None], ...]
    default: Rule
    book: RuleBook | None = None

    def init(
        self, variables: Any, x: Any, *args: Any, key: jax.Array | None = None
    ) -> tuple[NetParams, NetState]:
        """Parameters and the state of streams that have seen no frame.

        Args:
          variables: the network's own, any pytree of arrays.
          x: a frame; arrays lead with the axis of B streams; only shapes are read.
          *args: further arguments of `fn`.
          key: for gates with random initial parameters (Gumbel).

        Returns:
          `{'model': variables, 'gates': {name: parameters}}` and `{name: SkipState}`.

        Raises:
          ValueError: a rule that names no convolution, or a Gumbel gate without a key.
        """
        ruled, streams = self._ruled(self._sites(variables, x, args)), number_of_streams(x)
        gates = _gates(ruled, key)
        shapes = jax.eval_shape(
            lambda: {
                site.name: _blank(site, _conv_of(site), rule, streams)
                for site, rule in ruled
                if rule is not None
            }
        )
        return {"model": variables, "gates": gates}, _unseen(shapes)

    def init_gates(
        self, variables: Any, x: Any, *args: Any, key: jax.Array | None = None
    ) -> dict[str, GateParams]:
        """Gate parameters alone, as `init` makes them: plans keep a state of their own.

        Args:
          variables: the network's own; shapes suffice (`jax.eval_shape`).
          x: a frame of B streams; a shape suffices.
          *args: further arguments of `fn`.
          key: for gates with random initial parameters (Gumbel).

        Raises:
          ValueError: a rule that names no convolution, or a Gumbel gate without a key.
        """
        return _gates(self._ruled(self._sites(variables, x, args)), key)

    def apply(
        self, params: NetParams, state: NetState, x: Any, *args: Any, rng: jax.Array | None = None
    ) -> tuple[Any, NetState]:
        """One frame: what `fn` returns, and the state for the next frame.

        Pure and shaped like a `scan` step: fit for `jit`, `scan` over frames, `vmap` and `grad`;
        `state` may be donated. Not jitted here: jit the step that calls it.

        Args:
          params: `{'model': variables, 'gates': {name: parameters}}`.
          state: from `init` or the previous frame.
          x: the frame, B streams.
          *args: further arguments of `fn`, such as dropout keys. Arrays: they are traced, so bind
            Python flags into `fn` instead (`functools.partial`).
          rng: key for sampling gates, which means training; None for inference.

        Raises:
          ValueError: gate parameters or a state made for another network or frame size.
        """
        _check_made_by_init(params, state)
        if rng is not None:
            checks.key("rng", rng)
        visitor = Skipper(self, params, state, rng)
        y, _ = evaluate(self.fn, params["model"], x, args, visitor)
        visitor.check_complete()
        return y, visitor.made

    def reset(self, state: NetState, streams: jax.Array | None = None) -> NetState:
        """State whose next frame is a reference frame for the given streams (default: all).

        Args:
          state: of the network.
          streams: `(B,)` bool.

        Raises:
          ValueError: flags of another shape or dtype.
        """
        return {name: layer.reset(streams) for name, layer in state.items()}

    def table(self, variables: Any, x: Any, *args: Any) -> macs.Table:
        """Every convolution of the network with its MACs, skipped or dense and why.

        Args:
          variables: the network's own; shapes suffice (`jax.eval_shape`).
          x: a frame of B streams; a shape suffices.
          *args: further arguments of `fn`.
        """
        return self.survey(variables, x, *args)[0]

    def layers(self, variables: Any, x: Any, *args: Any) -> dict[str, tuple[Site, Rule]]:
        """Every Skip-Convolution of the network and how it is skipped, in the order of the trace.

        Args:
          variables: the network's own; shapes suffice (`jax.eval_shape`).
          x: a frame of B streams; a shape suffices.
          *args: further arguments of `fn`.
        """
        return self.survey(variables, x, *args)[1]

    def survey(
        self, variables: Any, x: Any, *args: Any
    ) -> tuple[macs.Table, dict[str, tuple[Site, Rule]]]:
        """`table` and `layers` of one trace."""
        found = self._ruled(self._sites(variables, x, args))
        rows = [macs.Row.make(site, None if rule is None else rule.gate) for site, rule in found]
        layers = {site.name: (site, rule) for site, rule in found if rule is not None}
        return macs.Table(tuple(rows), number_of_streams(x)), layers

    def rule_for(self, site: Site) -> Rule | None:
        """The first rule whose pattern matches, or the default; None means dense."""
        if site.dense_because:
            return None
        plain = site.name.rpartition("@")[0] or site.name
        for pattern, rule in self.rules:
            if fnmatch.fnmatchcase(site.name, pattern) or fnmatch.fnmatchcase(plain, pattern):
                return None if rule is None else self._completed(rule)
        return self.default

    def _completed(self, rule: Rule) -> Rule:
        return Rule(
            rule.gate,
            rule.policy or self.default.policy,
            rule.implementation or self.default.implementation,
        )

    def _sites(self, variables: Any, x: Any, args: Sequence[Any]) -> list[Site]:
        return find_sites(self.fn, variables, x, args)

    def _ruled(self, sites: Sequence[Site]) -> list[tuple[Site, Rule | None]]:
        """Each convolution with its rule; refuses patterns that match nothing."""
        if self.book is not None:
            self.book.check(sites)
        for pattern, _ in self.rules:
            names = [n for s in sites for n in (s.name, s.name.rpartition("@")[0])]
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"`rules` pattern {pattern!r} must match a convolution; this network has "
                    f"{sorted({s.name for s in sites})}."
                )
        return [
            (dataclasses.replace(site, dense_because="by rule"), None)
            if not site.dense_because and self.rule_for(site) is None
            else (site, self.rule_for(site))
            for site in sites
        ]


def skip(
    fn: Callable[..., Any],
    rules: Sequence[tuple[str, Rule | None]] | RuleBook = (),
    *,
    gate: Gate | None = None,
    policy: Policy | None = None,
    implementation: str | None = None,
) -> SkipNet:
    """Makes every convolution of a network a Skip-Convolution (Eq. 3), the network unmodified.

    `fn` is traced, and each convolution whose input depends on the frame and whose kernel does not
    is replaced by `skip_conv` with a state of its own. Convolutions inside `scan`, `while` and
    `cond` stay dense, and `table` says so.

    Args:
      fn: pure function `fn(variables, x, *args)` of any library: Flax, Equinox, Haiku, bare JAX.
        `x` leads with the axis of independent streams.
      rules: (pattern, `Rule` or None) pairs; the first whose shell-style pattern matches the name
        of a convolution (`stage4/*`) holds; None leaves it dense. Or a calibrated `GatePlan`.
      gate: for convolutions no rule names; `SAFE_GATE`, `InputNormGate(1e-3, block=8)`, by default.
      policy: what residuals are taken against; by default `ClosedLoop()`, whose error stays within
        the gate's threshold however long a stream runs. `Previous()` is the paper's Eq. 3: what it
        skips is lost until a reset, so that slow change adds up (trained detectors lose 10 to 60
        points of AP within 120 frames, docs/results/defaults.md); take it with `Every` or for clips
        of a few frames.
      implementation: of the masked convolution; None picks one per convolution.

    Returns:
      A `SkipNet` with `init`, `apply`, `reset` and `table`.

    Raises:
      ValueError: a rule that is no (pattern, Rule or None) pair, or an unknown implementation.
    """
    if not callable(fn):
        raise ValueError(f"`fn` (={fn!r}) must be a function fn(variables, x, *args).")
    if not isinstance(rules, Iterable | RuleBook):
        raise ValueError(
            f"`rules` (={rules!r}) must be (pattern, Rule) pairs or a calibrated gate plan."
        )
    book = rules if isinstance(rules, RuleBook) else None
    pairs = tuple(rules.rules() if isinstance(rules, RuleBook) else rules)
    for entry in pairs:
        if (
            not isinstance(entry, Sequence)
            or len(entry) != 2
            or not isinstance(entry[0], str)
            or not isinstance(entry[1], Rule | None)
        ):
            raise ValueError(
                f"`rules` entry {entry!r} must be a (pattern, Rule(...)) or (pattern, None) pair."
            )
    for name in (implementation, *(r.implementation for _, r in pairs if r is not None)):
        implementation_name(name)
    default = Rule(
        SAFE_GATE if gate is None else gate,
        ClosedLoop() if policy is None else policy,
        implementation,
    )
    return SkipNet(fn, pairs, default, book)


class Skipper(Visitor):
    """Replaces convolutions by `skip_conv`, collecting the new states."""

    def __init__(
        self, net: SkipNet, params: NetParams, state: NetState, rng: jax.Array | None
    ) -> None:
        super().__init__()
        self._net, self._gates, self._state, self._rng = net, params["gates"], state, rng
        self._used: set[str] = set()

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> jax.Array | None:
        rule = self._net.rule_for(site)
        if rule is None:
            return None
        if site.name not in self._state or site.name not in self._gates:
            raise ValueError(
                f"`state` and `params['gates']` must hold {site.name!r}; they were made for "
                "another network or other rules: make them with `init` of this one."
            )
        rng = None if self._rng is None else jax.random.fold_in(self._rng, len(self._used))
        self._used.add(site.name)
        # Outside a trace the layer runs operation by operation, as the network around it does.
        run = _traced_once if isinstance(x, jax.core.Tracer) else skip_conv
        _, new = run(
            {"kernel": kernel, "gate": self._gates[site.name]},
            self._state[site.name],
            x,
            **_geometry(_conv_of(site)),
            gate=rule.gate,
            policy=rule.policy,
            rng=rng,
            implementation=rule.implementation,
        )
        self.made[site.name] = new
        return new.output

    def check_complete(self) -> None:
        """Refuses a state with layers this network does not have."""
        extra = sorted(set(self._state) - self._used)
        if extra:
            raise ValueError(
                f"`state` must belong to this network; it holds {extra}, which the network has not."
            )


_traced_once = jax.jit(
    skip_conv,
    static_argnames=(
        *("strides", "padding", "dilation", "groups", "precision"),
        *("gate", "policy", "implementation"),
    ),
)
"""Layers of equal shapes, gate and policy share a trace: a deep network has ten of each."""


def _check_made_by_init(params: Any, state: Any) -> None:
    """Refuses what is no result of `init`, such as the network's bare variables."""
    if not isinstance(params, Mapping) or not {"model", "gates"} <= set(params):
        found = sorted(map(str, params)) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"`params` (={found}) must be {{'model': variables, 'gates': ...}}; take them from "
            "`init`, which returns (params, state)."
        )
    if not isinstance(state, Mapping):
        raise ValueError(
            f"`state` (a {type(state).__name__}) must map names of convolutions to their states; "
            "take it from `init` or from the frame before."
        )


def _conv_of(site: Site) -> Conv:
    if site.conv is None:
        raise AssertionError(f"{site.name} is dense: {site.dense_because}")
    return site.conv


def _gates(
    ruled: Sequence[tuple[Site, Rule | None]], key: jax.Array | None
) -> dict[str, GateParams]:
    """Parameters of the gate of every Skip-Convolution; each has a key of its own."""
    if key is not None:
        checks.key("key", key)
    return {
        site.name: rule.gate.init(
            None if key is None else jax.random.fold_in(key, index), _conv_of(site)
        )
        for index, (site, rule) in enumerate(ruled)
        if rule is not None
    }


def _blank(site: Site, conv: Conv, rule: Rule, streams: int) -> SkipState:
    """State of a site's layer before its first frame."""
    return init_state(
        {"kernel": jnp.zeros(site.kernel_shape, site.dtype)},
        jnp.zeros((streams * site.calls, *site.in_shape), site.dtype),
        **_geometry(conv),
        gate=rule.gate,
        policy=rule.policy,
        streams=streams,
    )


def _unseen(shapes: NetState) -> NetState:
    """States of these shapes before a frame: zeros, fresh.

    XLA compiles 50 ms for every new shape of zeros, so they come from NumPy; but inside a trace
    that would make them constants of the program.
    """
    traced = isinstance(jnp.zeros(()), jax.core.Tracer)

    def zeros(leaf: Any) -> jax.Array:
        if traced:
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jax.device_put(np.zeros(leaf.shape, leaf.dtype), may_alias=False)

    return {
        name: dataclasses.replace(
            jax.tree.map(zeros, state), fresh=jnp.logical_not(zeros(state.fresh))
        )
        for name, state in shapes.items()
    }


def _geometry(conv: Conv) -> dict[str, Any]:
    return {
        "strides": conv.strides,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "precision": conv.precision,
    }
