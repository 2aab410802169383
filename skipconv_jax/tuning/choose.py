"""The constrained choice: per layer a block size and a threshold, or dense, under one price."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from skipconv_jax.program.walk import Site
from skipconv_jax.tuning.sensitivity import Sensitivity

_ROUNDS = 60


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen at one price of damage.

    Attributes:
      options: by layer, (block, threshold); None for dense.
      firing: by layer, predicted share of output positions computed.
      macs: predicted per frame, convolutions no gate can skip included.
      damage: predicted squared relative error of the output.
    """

    options: dict[str, tuple[int, float] | None]
    firing: dict[str, float]
    macs: float
    damage: float


Cost = Callable[[Site, int, np.ndarray], np.ndarray]


def macs_cost(site: Site, block: int, firing: np.ndarray) -> np.ndarray:
    """Multiply-accumulates at given shares of firing."""
    del block
    return site.macs * firing


def time_cost(site: Site, block: int, firing: np.ndarray) -> np.ndarray:
    """Cost in time, in dense multiply-accumulates: halos are read again, masks are not free.

    A twelfth of the dense convolution for what is done on every frame, and the halo of every block.
    """
    conv = site.conv
    halo = 1.0
    if conv is not None:
        for tile, stride in zip(conv.tile(block), conv.strides, strict=True):
            halo *= tile / (block * stride)
    return site.macs * (firing * halo + 1 / 12)


def choose(
    found: Sensitivity,
    price: float,
    *,
    cost: Cost = macs_cost,
    blocks: dict[str, int | None] | None = None,
    allow_dense: bool = False,
) -> Choice:
    r"""argmin over each layer's options of cost + price * damage.

    Damages of different layers are taken as independent, so that their squares add up, and the sum
    is minimal for its cost on the lower convex hull of all choices (Lagrange).

    Args:
      found: the curves.
      price: multiply-accumulates worth spending to avoid a squared relative error of 1.
      cost: of a layer at given shares of firing.
      blocks: by layer, the block size that is settled, None for dense; default all measured.
      allow_dense: whether a layer may be left dense where that is cheaper.
    """
    options: dict[str, tuple[int, float] | None] = {}
    firing: dict[str, float] = {}
    macs = damage = 0.0
    for site in found.sites:
        sizes = _sizes(found, site, blocks)
        best: tuple[float, tuple[int, float] | None, float, float]
        best = (math.inf if sizes and not allow_dense else float(site.macs), None, 1.0, 0.0)
        for block in sizes:
            curve = found.curves[site.name, block]
            total = cost(site, block, curve.firing) + price * curve.damage
            k = int(np.argmin(total))
            if total[k] < best[0]:
                picked = (block, float(curve.thresholds[k]))
                best = (float(total[k]), picked, float(curve.firing[k]), float(curve.damage[k]))
        options[site.name], firing[site.name] = best[1], best[2]
        macs += site.macs * best[2]
        damage += best[3]
    return Choice(options, firing, macs, damage)


def _sizes(found: Sensitivity, site: Site, blocks: dict[str, int | None] | None) -> tuple[int, ...]:
    if site.conv is None:
        return ()
    if blocks is None:
        return found.blocks
    settled = blocks.get(site.name)
    return () if settled is None else (settled,)


def choose_for_macs(
    found: Sensitivity, macs: float, *, cost: Cost = macs_cost
) -> tuple[float, Choice]:
    """The price at which the predicted multiply-accumulates meet a target, and the choice there.

    Args:
      found: the curves.
      macs: target per frame.
      cost: as for `choose`.
    """
    low, high = price_range(found)
    for _ in range(_ROUNDS):
        middle = math.sqrt(low * high)
        if choose(found, middle, cost=cost).macs > macs:
            high = middle
        else:
            low = middle
    return low, choose(found, low, cost=cost)


def price_range(found: Sensitivity) -> tuple[float, float]:
    """Prices between which the choice goes from cheapest to most careful."""
    dense = float(sum(site.macs for site in found.sites))
    damages = np.concatenate([curve.damage for curve in found.curves.values()])
    positive = damages[damages > 0]
    if not positive.size:
        return 1.0, 1.0
    return 1e-3 * dense / positive.max() / len(found.sites), 1e3 * dense / positive.min()
