"""A gate plan for a budget, from runs of the skipped network alone: no gradient, no label."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops import InputNormGate
from skipconv_jax.program.walk import Site
from skipconv_jax.transform import SkipNet, skip
from skipconv_jax.tuning.gate_plan import GatePlan
from skipconv_jax.tuning.search import Budget, Measured, bisect
from skipconv_jax.tuning.sensitivity import network_sites
from skipconv_jax.tuning.shape import ROUNDS, Curve, Shaped, shape, sweep
from skipconv_jax.tuning.trials import Loss, Trials, thresholds

Score = Callable[[Any, Any], float]
"""`(what was read of the skipped network, of the dense one) -> quality`, arrays `(T, B, ...)`."""

# Factors on the chosen thresholds that the sweep on held-out frames shows.
SWEPT = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)
# How far all thresholds may be moved to meet the budget, and in how many runs.
_REACH, _RUNS = 16.0, 7
# Log of a threshold that nothing reaches.
_CLOSED = 60.0
# A map with fewer positions a side than so many blocks takes the smallest block.
_COARSE = 4


@dataclasses.dataclass(frozen=True)
class Material:
    """What is calibrated, and on what.

    Attributes:
      fn: the dense network `fn(variables, x)`.
      variables: its own.
      clip: `(T, B, ...)` frames to calibrate on, T >= 2.
      held_out: the same to check on.
      loss: how far outputs are from the dense ones, of a frame.
      read: what of the outputs `score` takes; None where there is no score.
      score: for the drop; None takes the loss for the drop.
      held_out_score: the same on `held_out`, where labels are part of it; `score` by default.
      engine: that runs the skipped network, as for `compile_plan`.
    """

    fn: Callable[..., Any]
    variables: Any
    clip: Any
    held_out: Any
    loss: Loss
    read: Callable[[Any], Any] | None = None
    score: Score | None = None
    held_out_score: Score | None = None
    engine: str = "auto"

    def trials(self, net: SkipNet) -> Trials:
        """The network on the clip."""
        return Trials(net, self.variables, self.clip, self.loss, read=self.read, engine=self.engine)


class Judge:
    """A clip with its trials: what a setting costs and drops there."""

    def __init__(self, trials: Trials, score: Score | None, timed: bool) -> None:
        self.trials, self._score, self._timed = trials, score, timed
        self._dense = trials.dense() if score else None
        self._best = score(self._dense, self._dense) if score else 0.0

    def __call__(self, logs: Any) -> Measured:
        """Runs log thresholds."""
        gates = thresholds(self.trials.names, np.exp(logs))
        if self._score is None:
            seen = self.trials(gates)
            drop = seen.loss
        else:
            seen, read = self.trials.read(gates)
            drop = self._best - self._score(read, self._dense)
        ms = self.trials.milliseconds(gates) if self._timed else math.nan
        return Measured(seen.macs, drop, seen.loss, ms)

    def cost(self, logs: np.ndarray) -> tuple[float, float]:
        """Share of the dense network's multiply-accumulates, and loss."""
        seen = self.trials(thresholds(self.trials.names, np.exp(logs)))
        return seen.macs / self.trials.dense_macs, seen.loss


def calibrate_measured(
    material: Material,
    budget: Budget,
    *,
    policy: Any,
    gates: Callable[[float, int], Any] = InputNormGate,
    blocks: Sequence[int] = (8,),
    margin: float = 0.0,
    rounds: Sequence[tuple[int, float]] = ROUNDS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> GatePlan:
    """Uniform thresholds are swept, blocks chosen, the thresholds' shape improved, the budget met.

    Of a budget in milliseconds blocks are chosen and the budget is met by measured time; the shape
    is improved for multiply-accumulates, which no other process on the machine disturbs.

    Args:
      material: network, frames and loss.
      budget: to keep on the clip.
      policy: under which the network is to run.
      gates: `(threshold, block) -> gate`, a norm gate.
      blocks: sizes to choose from: each for all layers, and the smallest for coarse maps alone.
      margin: share of the budget that is left unused, for scenes busier than the clip.
      rounds: of `shape`.
      seed: of `shape`.
      progress: told a line now and then.

    Returns:
      The gate plan. Its notes hold the budget, what was measured on both clips, `gain` over
      uniform thresholds on the calibration clip, and `sweep`: on held-out frames, share of the
      dense multiply-accumulates, drop and loss of uniform thresholds and of multiples of those
      chosen (`at`: factor on them).

    Raises:
      ValueError: a budget that can't be kept, or is kept with nothing computed after the first
        frame (a clip that shows nothing cannot tell one layer from another); a margin that is no
        share.
    """
    if not 0 <= margin < 1:
        raise ValueError(f"`margin` (={margin}) must be in [0, 1), a share of the budget.")
    aim = Budget(budget.kind, budget.limit * (1 - margin))
    sites = network_sites(material.fn, material.variables, jnp.asarray(material.clip[0]))
    start = float(gates(InputNormGate.threshold, blocks[0]).threshold)
    judge, curve, sizes, runs = _choose_blocks(
        material, sites, policy, gates, blocks, budget.kind == "ms", aim, start, progress
    )
    operating, tried = _meet(judge, aim, np.zeros(len(judge.trials.names)), curve)
    found: Shaped = shape(judge.cost, curve, operating, rounds=rounds, seed=seed, progress=progress)
    shift, met = _meet(judge, aim, found.point.thresholds, None)
    chosen = found.point.thresholds + shift
    seen = next(m for price, m in met if math.isclose(-math.log(price), shift))
    later = material.held_out_score or material.score
    checker = Judge(judge.trials.on(material.held_out), later, budget.kind == "ms")
    checked = checker(chosen)
    plan = {
        name: gates(float(math.exp(log)), sizes[name])
        for name, log in zip(judge.trials.names, chosen, strict=True)
    }
    return GatePlan.make(
        sites,
        plan,
        policy,
        budget={"kind": budget.kind, "limit": budget.limit},
        margin=margin,
        seed=seed,
        calibration=rounded(seen),
        held_out={**rounded(checked), "kept": checked.meets(budget)},
        gain=round(found.gain, 3),
        sweep=_sweep(checker, chosen, curve),
        dense_macs=judge.trials.dense_macs,
        dense_passes=2,
        backward_passes=0,
        skipped_runs=runs + len(tried) + found.runs + len(met) + 1,
    )


def rounded(measured: Measured) -> dict[str, float | None]:
    """As JSON holds it."""
    return {
        key: None if math.isnan(value) else float(f"{value:.6g}")
        for key, value in measured._asdict().items()
    }


def patterns(sites: Sequence[Site], blocks: Sequence[int]) -> list[dict[str, int]]:
    """Block sizes of all layers to choose from: each size everywhere, and mixed by resolution."""
    layers = [site for site in sites if site.conv is not None]
    found = [{site.name: block for site in layers} for block in sorted(set(blocks), reverse=True)]
    if len(found) < 2:
        return found
    large, small = max(blocks), min(blocks)

    def mixed(site: Site) -> int:
        assert site.conv is not None
        return small if min(site.conv.out_spatial) < _COARSE * large else large

    return [*found, {site.name: mixed(site) for site in layers}]


def _choose_blocks(
    material: Material,
    sites: Sequence[Site],
    policy: Any,
    gates: Callable[[float, int], Any],
    blocks: Sequence[int],
    timed: bool,
    aim: Budget,
    start: float,
    progress: Callable[[str], None],
) -> tuple[Judge, Curve, dict[str, int], int]:
    """The block sizes that cost least at one loss, each under its own uniform threshold."""
    best: tuple[float, Judge, Curve, dict[str, int]] | None = None
    wanted, runs = math.nan, 0
    for sizes in patterns(sites, blocks):
        book = GatePlan.make(sites, {n: gates(0.0, b) for n, b in sizes.items()}, policy)
        judge = Judge(
            material.trials(skip(material.fn, book, policy=policy)), material.score, timed
        )
        if best is None:
            _refuse_still(judge, aim)
        curve = sweep(judge.cost, len(judge.trials.names), start)
        runs += len(curve.points)
        if best is None:
            at, tried = _meet(judge, aim, np.zeros(len(judge.trials.names)), curve)
            wanted, runs = curve.at(at)[1], runs + len(tried)
        at = curve.threshold(wanted)
        cost = judge(np.full(len(judge.trials.names), at)).ms if timed else curve.at(at)[0]
        progress(f"blocks {_described(sizes)}: {cost:.4g} {'ms' if timed else 'of the MACs'}")
        if best is None or cost < best[0]:
            best = cost, judge, curve, sizes
    assert best is not None
    return best[1], best[2], best[3], runs


def _refuse_still(judge: Judge, aim: Budget) -> None:
    """Refuses a clip that keeps the budget with every gate closed."""
    # Of a drop it would say little: scores of small clips are 0 for many reasons.
    if aim.kind != "error":
        return
    closed = judge(np.full(len(judge.trials.names), _CLOSED))
    if closed.meets(aim):
        raise ValueError(
            f"`clip` must show what is to be found change: with nothing computed after the first "
            f"frame its error is {closed.error:.3g}, within the budget of {aim.limit:g}, so that "
            "no threshold is too large for it. Take frames in which something comes, goes and "
            "moves, and more of them."
        )


def _described(sizes: Mapping[str, int]) -> str:
    counts = {block: list(sizes.values()).count(block) for block in sorted(set(sizes.values()))}
    return ", ".join(f"{block} in {count} layers" for block, count in counts.items())


def _meet(
    judge: Judge, aim: Budget, shape: np.ndarray, curve: Curve | None
) -> tuple[float, list[tuple[float, Measured]]]:
    """How far to move all log thresholds alike so that the budget is just kept, and what was tried.

    Of uniform thresholds the curve says between which; elsewhere the move is small.
    """
    low, high = -math.log(_REACH), math.log(_REACH)
    if curve is not None:
        low, high = curve.points[0].thresholds[0], curve.points[-1].thresholds[0]
    price, tried = bisect(
        lambda price: judge(shape - math.log(price)), aim, math.exp(-high), math.exp(-low), _RUNS
    )
    return -math.log(price), tried


def _sweep(checker: Judge, chosen: np.ndarray, curve: Curve) -> dict[str, list[dict[str, float]]]:
    """Drop over cost on the held-out frames, of uniform thresholds and multiples of the chosen."""
    dense = checker.trials.dense_macs

    def row(at: float, logs: Any) -> dict[str, float]:
        seen = checker(logs)
        return {
            "at": float(f"{at:.4g}"),
            "share": round(seen.macs / dense, 5),
            "drop": round(seen.drop, 5),
            "loss": round(seen.error, 5),
        }

    return {
        "uniform": [
            row(math.exp(p.thresholds[0]), np.full_like(chosen, p.thresholds[0]))
            for p in curve.points
        ],
        "calibrated": [row(f, chosen + math.log(f)) for f in SWEPT],
    }
