r"""Deep Feature Flow: features of a key frame, warped to where the frame has moved since.

    y_k = N(F(x_k)),    y_t = N(S_t * W(F(x_k), M(x_k, x_t)))

F is the backbone up to the pyramid's inputs, N pyramid and heads, M backward flow, W bilinear
warping and S_t a scale per value. F runs on every `interval`-th frame only; flow, warp and N run on
every other. Source: Zhu et al., "Deep Feature Flow for Video Recognition", CVPR 2017.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from skipconv_jax.baselines.flow import (
    DETECTOR,
    Classical,
    Estimator,
    Learned,
    count_values,
    part,
    warp_levels,
)
from skipconv_jax.baselines.video_net import (
    check_interval,
    conv_macs,
    restart,
    select,
    tick,
    zeros_like_shape,
)
from skipconv_jax.models.efficientdet import EfficientDet
from skipconv_jax.models.flow_net import FlowNet
from skipconv_jax.program.walk import number_of_streams
from skipconv_jax.warp.block_matching import BlockMatching

Tree = Any


class Costs(NamedTuple):
    """Multiply-accumulates per frame and stream.

    Attributes:
      dense: D, of a key frame.
      flow: of the estimate, scales included.
      warp: of bilinear sampling, four a value.
      head: of pyramid and heads.
    """

    dense: int
    flow: int
    warp: int
    head: int

    @property
    def between(self) -> int:
        """Of a frame that is no key frame."""
        return self.flow + self.warp + self.head


class FlowState(NamedTuple):
    """What is kept between frames.

    Attributes:
      levels: features of each stream's last key frame, `(B, H_l, W_l, C_l)` each.
      frame: that key frame, as it came.
      wait: `(B,)` int32, frames until the next key frame.
      costs: (2,) float32, multiply-accumulates of a key frame and of another.
      spent: `(B,)` float32, of the last frame.
    """

    levels: list[jax.Array]
    frame: jax.Array
    wait: jax.Array
    costs: jax.Array
    spent: jax.Array


@dataclasses.dataclass(frozen=True)
class FeatureFlow:
    """Deep Feature Flow of any network in two halves, a `VideoNet`; `feature_flow` makes one.

    As in `Interleaved` every stream counts its own frames; while all have their key frames
    together, a `lax.cond` runs either F or flow and warp, never both.

    Attributes:
      extract: F, `(variables, x) -> levels` `(B, H_l, W_l, C_l)`, of prepared frames.
      detect: N, `(variables, levels) -> outputs`.
      estimate: M and S.
      prepare: of a frame `(B, H, W, C)` what `extract` and `estimate` see, such as `normalize`.
      interval: frames from one key frame to the next.

    Raises:
      ValueError: an interval below 1.
    """

    extract: Callable[[Tree, jax.Array], list[jax.Array]]
    detect: Callable[[Tree, list[jax.Array]], Any]
    estimate: Estimator
    prepare: Callable[[jax.Array], jax.Array]
    interval: int = 10

    def __post_init__(self) -> None:
        check_interval(self.interval)

    def init(
        self, variables: Tree, x: Any, *, key: jax.Array | None = None
    ) -> tuple[dict[str, Tree], FlowState]:
        """`{'model': variables, 'gates': {}}` and a state whose first frame is a key frame.

        Args:
          variables: the detector's, or joined with the flow network's (`join_variables`).
          x: a frame of B streams; a shape suffices.
          key: not used.
        """
        del key
        streams, costs = number_of_streams(x), self.costs(variables, x)
        levels = jax.eval_shape(lambda v, x: self.extract(v, self.prepare(x)), variables, x)
        state = FlowState(
            zeros_like_shape(levels),
            jnp.zeros(x.shape, x.dtype),
            jnp.zeros((streams,), jnp.int32),
            jnp.asarray([costs.dense, costs.between], jnp.float32),
            jnp.zeros((streams,), jnp.float32),
        )
        return {"model": variables, "gates": {}}, state

    def apply(
        self, params: dict[str, Tree], state: FlowState, x: jax.Array
    ) -> tuple[Any, FlowState]:
        """One frame: F and N at a key frame; flow, warp and N elsewhere."""
        variables = params["model"]
        due, wait = tick(state.wait, self.interval)
        new = jax.lax.cond(
            due.any(), lambda: self.extract(variables, self.prepare(x)), lambda: state.levels
        )
        levels = select(due, new, state.levels)
        frame = select(due, x, state.frame)
        warped = jax.lax.cond(
            due.all(), lambda: levels, lambda: self.warped(variables, levels, frame, x)
        )
        outputs = self.detect(variables, select(due, levels, warped))
        spent = jnp.where(due, state.costs[0], state.costs[1])
        return outputs, FlowState(levels, frame, wait, state.costs, spent)

    def warped(
        self, variables: Tree, levels: list[jax.Array], frame: jax.Array, x: jax.Array
    ) -> list[jax.Array]:
        """S * W(levels, M): features of `x` from those of an earlier `frame`."""
        guide = self.estimate(variables, self.prepare(frame), self.prepare(x))
        return warp_levels(levels, guide, (x.shape[1], x.shape[2]))

    def reset(self, state: FlowState, streams: jax.Array | None = None) -> FlowState:
        """State whose next frame is a key frame for the streams flagged `(B,)` (default: all).

        Raises:
          ValueError: flags of another shape or dtype.
        """
        return state._replace(wait=restart(state.wait, streams))

    def spent(self, state: FlowState) -> jax.Array:
        """`(B,)` float32 multiply-accumulates of the last frame."""
        return state.spent

    def dense_macs(self, variables: Tree, x: Any) -> int:
        """D, per frame and stream; shapes suffice."""
        return self.costs(variables, x).dense

    def costs(self, variables: Tree, x: Any) -> Costs:
        """What a frame costs, by part; shapes suffice."""
        seen = jax.eval_shape(self.prepare, x)
        levels = jax.eval_shape(self.extract, variables, seen)
        head = conv_macs(self.detect, variables, levels)
        dense = conv_macs(self.extract, variables, seen) + head
        flow = self.estimate.macs(variables, seen)
        return Costs(dense, flow, 4 * count_values(levels), head)


def feature_flow(
    model: EfficientDet,
    flow: FlowNet | BlockMatching,
    prepare: Callable[[jax.Array], jax.Array] = lambda x: x,
    interval: int = 10,
) -> FeatureFlow:
    """Deep Feature Flow of an EfficientDet, with running batch statistics.

    Args:
      model: the detector.
      flow: a flow network, to be trained by `flow_loss` (variables from `join_variables`), or a
        classical estimate, which works on a detector's variables as they are.
      prepare: of frames, such as `data.augment.normalize` for uint8 ones.
      interval: frames from one key frame to the next; the paper's is 10.

    Raises:
      ValueError: an interval below 1.
    """
    own = (lambda v: part(v, DETECTOR)) if isinstance(flow, FlowNet) else (lambda v: v)

    def extract(variables: Tree, x: jax.Array) -> list[jax.Array]:
        levels: Any = model.apply(own(variables), x, method="extract")
        return list(levels)

    def detect(variables: Tree, levels: list[jax.Array]) -> Any:
        return model.apply(own(variables), levels, method="detect")

    estimate = Learned(flow) if isinstance(flow, FlowNet) else Classical(flow)
    return FeatureFlow(extract, detect, estimate, prepare, interval)
