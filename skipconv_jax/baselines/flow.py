"""Flow from a key frame to a later one, learned or classical, and features that follow it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.video_net import conv_macs
from skipconv_jax.models.flow_net import FlowNet
from skipconv_jax.warp.block_matching import BlockMatching, displaced
from skipconv_jax.warp.motion import resample

Tree = Any
DETECTOR, FLOW = "detector", "flow"


class Guide(NamedTuple):
    """How the features of a key frame become those of a later one.

    Attributes:
      field: `(B, h, w, 2)` float32, backward flow (y, x) in pixels of the frame, at any resolution.
      scales: per level `(B, H_l, W_l, C_l)`, or None to leave the values as they are.
    """

    field: jax.Array
    scales: tuple[jax.Array, ...] | None = None


class Estimator(Protocol):
    """Gives a guide, and says what that costs."""

    def __call__(self, variables: Tree, key: jax.Array, now: jax.Array) -> Guide:
        """From prepared frames `(B, H, W, C)`."""
        ...

    def macs(self, variables: Tree, x: Any) -> int:
        """Per frame and stream, for a prepared frame; shapes suffice."""
        ...


@dataclasses.dataclass(frozen=True)
class Classical:
    """Flow without parameters, values left as they are; one operation counts one."""

    matching: BlockMatching

    def __call__(self, variables: Tree, key: jax.Array, now: jax.Array) -> Guide:
        """The matching's field."""
        del variables
        return Guide(self.matching.field(key, now))

    def macs(self, variables: Tree, x: Any) -> int:
        """The matching's own count."""
        del variables
        return self.matching.macs(*x.shape[1:])


@dataclasses.dataclass(frozen=True)
class Learned:
    """A flow network, whose variables are the part `flow` of the whole."""

    net: FlowNet

    def __call__(self, variables: Tree, key: jax.Array, now: jax.Array) -> Guide:
        """The network's flow and scales."""
        guide: Any = self.net.apply(part(variables, FLOW), key, now)
        return Guide(*guide)

    def macs(self, variables: Tree, x: Any) -> int:
        """The network's convolutions; one more per scaled value."""

        def run(variables: Tree, pair: Sequence[jax.Array]) -> Guide:
            return self(variables, *pair)

        guide = jax.eval_shape(run, variables, (x, x))
        return conv_macs(run, variables, (x, x)) + count_values(guide.scales)


def warp_levels(
    levels: Sequence[jax.Array], guide: Guide, frame: tuple[int, int]
) -> list[jax.Array]:
    """S * W(levels, field): bilinear, exact at whole positions; the edge is repeated beyond it.

    The field is averaged (or interpolated) to a level's resolution. Differentiable in the field,
    at whole positions too.

    Args:
      levels: `(B, H_l, W_l, C_l)` each.
      guide: of the later frame.
      frame: `(H, W)` of the frame.
    """
    moved = []
    for index, x in enumerate(levels):
        spatial = (x.shape[1], x.shape[2])
        field = jax.image.resize(guide.field, (x.shape[0], *spatial, 2), "linear")
        strides = jnp.asarray([frame[0] / spatial[0], frame[1] / spatial[1]], jnp.float32)
        y = resample(x, displaced(spatial, field / strides[None, None, None]))
        moved.append(y if guide.scales is None else y * guide.scales[index].astype(y.dtype))
    return moved


def join_variables(
    detector: Mapping[str, Tree], flow: Mapping[str, Tree]
) -> dict[str, dict[str, Tree]]:
    """One tree of variables of both networks: `{collection: {'detector': ..., 'flow': ...}}`."""
    joined: dict[str, dict[str, Tree]] = {}
    for name, variables in ((DETECTOR, detector), (FLOW, flow)):
        for collection, tree in variables.items():
            joined.setdefault(collection, {})[name] = tree
    return joined


def part(variables: Mapping[str, Mapping[str, Tree]], name: str) -> dict[str, Tree]:
    """The variables of one network, 'detector' or 'flow', out of `join_variables`' tree.

    Raises:
      ValueError: the tree holds no such network.
    """
    found = {key: trees[name] for key, trees in variables.items() if name in trees}
    if not found:
        raise ValueError(
            f"`variables` must hold the networks 'detector' and 'flow', not only "
            f"{sorted({k for trees in variables.values() for k in trees})}; use join_variables."
        )
    return found


def count_values(levels: Sequence[Any] | None) -> int:
    """Values of the maps `(B, ...)` of a stream; shapes suffice, None has none."""
    return sum(level.size // level.shape[0] for level in levels or ())
