"""From sensitivities to a gate plan that keeps a budget, checked on frames it was not made on."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import macs
from skipconv_jax.ops import InputNormGate
from skipconv_jax.plans import compile_plan
from skipconv_jax.transform import SkipNet, skip
from skipconv_jax.tuning.choose import (
    Choice,
    Cost,
    choose,
    choose_for_macs,
    macs_cost,
    price_range,
    time_cost,
)
from skipconv_jax.tuning.gate_plan import GatePlan
from skipconv_jax.tuning.sensitivity import Sensitivity, measure_sensitivity

Score = Callable[[Any, Any], float]
KINDS = ("macs", "drop", "error", "ms")
_FALLING = ("drop", "error")  # with the price of damage

# Where nearly everything fires a gate saves nothing and still costs its state.
_DENSE_ABOVE = 0.95
# Share of the dense network at which block sizes are settled when the budget is no count.
_TYPICAL_SHARE = 0.3


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a gate plan has to keep.

    Attributes:
      kind: 'macs' (multiply-accumulates per frame after the reference frame), 'drop' (of the
        score, see `calibrate`), 'error' (of the outputs: `Measured.error`) or 'ms' (milliseconds
        per frame).
      limit: the most of it.
    """

    kind: str
    limit: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` (={self.kind!r}) must be one of {KINDS}.")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"`limit` (={self.limit}) must be a positive number.")

    @classmethod
    def parse(cls, text: str, dense_macs: float) -> "Budget":
        """`macs=0.02` (GMAC), `macs=30%` (of the dense network), `drop=0.01`, `error=0.03` or
        `ms=12`.

        Raises:
          ValueError: none of these.
        """
        kind, _, number = text.partition("=")
        share = number.endswith("%")
        try:
            limit = float(number.rstrip("%"))
        except ValueError:
            limit = math.nan
        if kind not in KINDS or math.isnan(limit) or (share and kind != "macs"):
            raise ValueError(
                f"`budget` (={text!r}) must be macs=GMAC, macs=SHARE%, drop=SCORE, "
                "error=SHARE or ms=TIME."
            )
        if kind == "macs":
            limit *= dense_macs / 100 if share else macs.GIGA
        return cls(kind, limit)


class Measured(NamedTuple):
    """A gate plan run on a clip.

    Attributes:
      macs: per frame and stream, the reference frame left out.
      drop: of the score.
      error: ||y~ - y|| / ||y|| over the clip; of `calibrate_measured` what its loss says.
      ms: per frame, NaN where it was not timed.
    """

    macs: float
    drop: float
    error: float
    ms: float

    def meets(self, budget: Budget) -> bool:
        """Whether it keeps the budget."""
        return bool(getattr(self, budget.kind) <= budget.limit)


class Runner:
    """Runs a skipped network on one clip; new thresholds compile nothing.

    Args:
      net: the network.
      variables: its own.
      clip: T frames, B streams each.
      score: `(outputs, dense outputs) -> quality`, arrays `(T, B, ...)`; by default
        1 - ||y~ - y|| / ||y||.
      timed: measure milliseconds, with the implementation the network runs with.
      engine: that it runs on, as for `compile_plan`.
    """

    def __init__(
        self,
        net: SkipNet,
        variables: Any,
        clip: Sequence[Any],
        score: Score | None = None,
        timed: bool = False,
        engine: str = "auto",
    ) -> None:
        self.net, self._timed = net, timed
        self._clip = jax.tree.map(lambda *frames: jnp.stack(frames), *clip)
        gates = net.init_gates(variables, clip[0])
        self._plan = compile_plan(net, {"model": variables, "gates": gates}, clip[0], engine=engine)
        self._table = self._plan.table
        dense = jax.jit(lambda v, frames: jax.lax.map(lambda x: net.fn(v, x), frames))
        self._dense = jax.device_get(dense(variables, self._clip))
        self._score = score or (lambda y, dense: 1 - relative_error(y, dense))
        self._best = self._score(self._dense, self._dense)
        self._run = jax.jit(self._scan)

    def _scan(self, constants: Any, state: Any, clip: Any) -> Any:
        def step(state: Any, x: Any) -> Any:
            y, state, masks = self._plan.apply(state, x, constants)
            return state, (y, macs.spent_total(self._table, self._plan.fired(masks)))

        return jax.lax.scan(step, state, clip)[1]

    @property
    def dense_macs(self) -> int:
        """Of the dense network, per frame and stream."""
        return self._table.macs

    @property
    def dense(self) -> Any:
        """The dense network's outputs, `(T, B, ...)`."""
        return self._dense

    def __call__(self, gates: dict[str, Any]) -> Measured:
        """Runs gate parameters `{name: {'threshold': ()}}`."""
        constants, state = self._plan.with_gates(gates), self._plan.init_state()
        outputs, spent = jax.device_get(self._run(constants, state, self._clip))
        return Measured(
            float(np.mean(spent[1:])),
            self._best - self._score(outputs, self._dense),
            relative_error(outputs, self._dense),
            self._milliseconds(constants) if self._timed else math.nan,
        )

    def _milliseconds(self, constants: Any) -> float:
        times = []
        for _ in range(3):
            state = jax.block_until_ready(self._plan.init_state())
            begin = time.perf_counter()
            jax.block_until_ready(self._run(constants, state, self._clip))
            times.append(time.perf_counter() - begin)
        return 1e3 * float(np.median(times)) / len(jax.tree.leaves(self._clip)[0])

    def shared(self, threshold: float) -> Measured:
        """One threshold for all layers."""
        names = [row.name for row in self._table.skipped()]
        return self({name: {"threshold": jnp.float32(threshold)} for name in names})


def relative_error(outputs: Any, dense: Any) -> float:
    """||y~ - y|| / ||y|| over all leaves."""
    pairs = list(zip(jax.tree.leaves(outputs), jax.tree.leaves(dense), strict=True))
    error = sum(float(np.sum(np.square(np.float64(a) - np.float64(b)))) for a, b in pairs)
    size = sum(float(np.sum(np.square(np.float64(b)))) for _, b in pairs)
    return math.sqrt(error / max(size, 1e-30))


def settle(found: Sensitivity, budget: Budget) -> dict[str, int | None]:
    """Block size of every layer, None for dense: what changes a compiled program, chosen once."""
    cost: Cost = time_cost if budget.kind == "ms" else macs_cost
    dense = float(sum(site.macs for site in found.sites))
    target = budget.limit if budget.kind == "macs" else _TYPICAL_SHARE * dense
    price, _ = choose_for_macs(found, target, cost=cost)
    choice = choose(found, price, cost=cost, allow_dense=budget.kind == "ms")
    return {
        name: None if option is None or choice.firing[name] > _DENSE_ABOVE else option[0]
        for name, option in choice.options.items()
    }


def gate_params(choice: Choice) -> dict[str, dict[str, jax.Array]]:
    """Parameters of the gates of a choice."""
    return {
        name: {"threshold": jnp.float32(option[1])}
        for name, option in choice.options.items()
        if option is not None
    }


def net_for(
    fn: Callable[..., Any],
    blocks: dict[str, int | None],
    gates: Callable[[float, int], Any],
    policy: Any,
    found: Sensitivity,
    implementation: str | None,
) -> SkipNet:
    """The network with settled block sizes and thresholds that are yet to be filled in."""
    gate_plan = GatePlan.make(
        found.sites,
        {name: None if block is None else gates(0.0, block) for name, block in blocks.items()},
        policy,
    )
    return skip(fn, gate_plan, policy=policy, implementation=implementation)


def bisect(
    run: Callable[[float], Measured], budget: Budget, low: float, high: float, evaluations: int
) -> tuple[float, list[tuple[float, Measured]]]:
    """The best price whose measurement keeps the budget, and all that was measured.

    Multiply-accumulates and time grow with the price of damage, the drop falls.

    Raises:
      ValueError: no price keeps it.
    """
    tried: list[tuple[float, Measured]] = []
    for _ in range(evaluations):
        price = math.sqrt(low * high)
        tried.append((price, run(price)))
        ok = tried[-1][1].meets(budget)
        if ok == (budget.kind in _FALLING):
            high = price
        else:
            low = price
    kept = [(price, seen) for price, seen in tried if seen.meets(budget)]
    if not kept:
        nearest = min(tried, key=lambda item: getattr(item[1], budget.kind))[1]
        raise ValueError(
            f"`budget` ({budget.kind} <= {budget.limit:.6g}) can't be kept on this clip; the "
            f"nearest gate plan has {getattr(nearest, budget.kind):.6g}. Give more, allow smaller "
            "blocks, or take a clip with less change."
        )
    pick = min if budget.kind in _FALLING else max
    return pick(price for price, _ in kept), tried


def calibrate(
    fn: Callable[..., Any],
    variables: Any,
    clip: Sequence[Any],
    held_out: Sequence[Any],
    budget: Budget,
    *,
    policy: Any,
    gates: Callable[[float, int], Any] = InputNormGate,
    blocks: Sequence[int] = (8,),
    score: Score | None = None,
    held_out_score: Score | None = None,
    probes: int = 2,
    evaluations: int = 8,
    implementation: str | None = "dense",
    found: Sensitivity | None = None,
    engine: str = "auto",
) -> GatePlan:
    """A gate plan for a trained network: two dense passes, a choice, a few skipped runs, a check.

    Args:
      fn: the dense network `fn(variables, x)`.
      variables: its own.
      clip: frames to calibrate on, T >= 2, B streams each.
      held_out: frames to check on.
      budget: to keep on `clip`.
      policy: under which the network is to run.
      gates: `(threshold, block) -> gate`, a norm gate.
      blocks: sizes to choose from, per layer.
      score: `(outputs, dense outputs) -> quality` for the drop; without labels the agreement with
        the dense output (default 1 - ||y~ - y|| / ||y||), with labels an accuracy.
      held_out_score: the same for `held_out`; `score` by default.
      probes: backward passes per frame.
      evaluations: runs of the skipped network on `clip`.
      implementation: of the masked convolution while measuring; None for what would serve, as
        a budget in milliseconds needs.
      found: sensitivities measured before.
      engine: that the skipped network runs on, as for `compile_plan`.

    Returns:
      The gate plan; its notes hold the budget, the measurements and the held-out check.

    Raises:
      ValueError: a budget that can't be kept.
    """
    if found is None:
        found = measure_sensitivity(
            fn, variables, clip, gates, policy, blocks=blocks, probes=probes
        )
    timed = budget.kind == "ms"
    implementation = None if timed else implementation
    settled = settle(found, budget)
    net = net_for(fn, settled, gates, policy, found, implementation)
    runner = Runner(net, variables, clip, score, timed, engine)
    cost: Cost = time_cost if timed else macs_cost

    def at(price: float) -> Choice:
        return choose(found, price, cost=cost, blocks=settled)

    low, high = price_range(found)
    price, tried = bisect(lambda p: runner(gate_params(at(p))), budget, low, high, evaluations)
    chosen = at(price)
    checker = Runner(net, variables, held_out, held_out_score or score, timed, engine)
    checked = checker(gate_params(chosen))
    seen = next(m for p, m in tried if p == price)
    final = {
        name: None if option is None else gates(option[1], option[0])
        for name, option in chosen.options.items()
    }
    return GatePlan.make(
        found.sites,
        final,
        policy,
        budget={"kind": budget.kind, "limit": budget.limit},
        calibration=_rounded(seen),
        held_out={**_rounded(checked), "kept": checked.meets(budget)},
        dense_macs=runner.dense_macs,
        dense_passes=found.passes,
        backward_passes=found.backward,
        skipped_runs=len(tried) + 1,
    )


def _rounded(measured: Measured) -> dict[str, float | None]:
    return {
        key: None if math.isnan(value) else float(f"{value:.6g}")
        for key, value in measured._asdict().items()
    }
