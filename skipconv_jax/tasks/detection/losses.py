"""What training asks of detection: focal and Huber losses of anchors.

Source: Tan, Pang and Le, "EfficientDet", CVPR 2020, with the constants of its public training code.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.tasks.detection.anchors import decode, make_anchors, non_maximum_suppression
from skipconv_jax.tasks.detection.predictions import Predictions
from skipconv_jax.tasks.detection.targets import Targets, frame_targets


def focal_loss(
    logits: jax.Array, labels: jax.Array, alpha: float = 0.25, gamma: float = 1.5
) -> jax.Array:
    """Sum over anchors and classes of -a_t (1 - p_t)^gamma log(p_t) (Lin et al., 2017), float32.

    p_t = sigmoid(z) and a_t = alpha for an anchor's own class; 1 - sigmoid(z) and 1 - alpha else.

    Args:
      logits: z, (..., N, K).
      labels: (..., N) int: a class, -1 for background, -2 to leave the anchor out.
      alpha: weight of the positives, in [0, 1].
      gamma: how much less sure answers count, at least 0.
    """
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # With the logit of the right answer both factors come from stable functions: 1 - p_t is
    # sigmoid(-right), and -log(p_t) is softplus(-right).
    right = jnp.where(own, logits, -logits).astype(jnp.float32)
    weight = jnp.where(own, alpha, 1 - alpha) * jnp.exp(gamma * jax.nn.log_sigmoid(-right))
    counted = jnp.broadcast_to((labels != -2)[..., None], right.shape)
    return jnp.sum(weight * jax.nn.softplus(-right), where=counted)


def huber_loss(codes: jax.Array, targets: Targets, delta: float = 0.1) -> jax.Array:
    """Sum over matched anchors and coordinates of Huber(y - t), float32.

    Huber(e) = e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).

    Args:
      codes: predictions (..., N, 4).
      targets: of the same frames.
      delta: where the parabola becomes a line.
    """
    error = jnp.abs(codes.astype(jnp.float32) - targets.codes)
    bent = jnp.minimum(error, delta)
    loss = 0.5 * jnp.square(bent) + delta * (error - bent)
    counted = jnp.broadcast_to((targets.labels >= 0)[..., None], loss.shape)
    return jnp.sum(loss, where=counted)


@dataclasses.dataclass(frozen=True)
class DetectionTask:
    """What training, evaluation and streaming ask of detection.

    Attributes:
      size: height and width of the network's input.
      levels: of its pyramid.
      anchor_scale: base size of an anchor in strides.
      match_threshold: IoU from which an anchor answers for an object.
      alpha: focal weight of the positives.
      gamma: focal exponent.
      delta: Huber's.
      box_weight: of the box loss.
      candidates: best (anchor, class) pairs that go into the suppression.
      iou_threshold: above it a box repeats another of its class.
      keep: detections per frame.

    Raises:
      ValueError: `candidates` or `keep` below 1, or a size or scale that is not positive.
    """

    size: tuple[int, int] = (512, 512)
    levels: int = 5
    anchor_scale: float = 4.0
    match_threshold: float = 0.5
    alpha: float = 0.25
    gamma: float = 1.5
    delta: float = 0.1
    box_weight: float = 50.0
    candidates: int = 5000
    iou_threshold: float = 0.5
    keep: int = 100

    def __post_init__(self) -> None:
        for name in ("candidates", "keep"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"`{name}` (={value}) must be at least 1; use e.g. {name}=100")
        make_anchors(self.size, self.levels, self.anchor_scale)

    @property
    def anchors(self) -> np.ndarray:
        """(N, 4) float32, in the order of the network's outputs."""
        return make_anchors(self.size, self.levels, self.anchor_scale)

    def targets(self, truth: Mapping[str, jax.Array]) -> Targets:
        """Matches the anchors of frames with their objects.

        Args:
          truth: `boxes` (..., M, 4) in input pixels and `labels` (..., M), -1 on padding; optional
            `ignored` (..., K, 4), regions whose background anchors are not asked (those that one
            region covers by half), and `annotated` (...) bool, False where a frame asks nothing.
        """
        boxes, labels = truth["boxes"], truth["labels"]
        lead = labels.shape[:-1]
        if labels.shape[-1] == 0:  # nothing to gather from: one row of padding
            boxes, labels = jnp.zeros((*lead, 1, 4)), jnp.full((*lead, 1), -1, jnp.int32)
        ignored = truth.get("ignored", jnp.zeros((*lead, 0, 4), jnp.float32))
        annotated = truth.get("annotated", jnp.ones(lead, bool))
        one = functools.partial(frame_targets, self.anchors, threshold=self.match_threshold)
        for _ in lead:
            one = jax.vmap(one)
        return one(boxes, labels, ignored, annotated)

    def losses(
        self, outputs: tuple[jax.Array, jax.Array], targets: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """`{'class': focal / P, 'box': box_weight Huber / (4 P)}`, P = matched anchors + 1.

        Args:
          outputs: class logits (..., N, K) and box codes (..., N, 4).
          targets: see `targets`; labels must lie below K.

        Raises:
          ValueError: the network has another number of anchors than `size` gives.
        """
        logits, codes = outputs
        self._check(logits)
        wanted = jax.tree.map(jax.lax.stop_gradient, self.targets(targets))
        count = jnp.sum(wanted.labels >= 0).astype(jnp.float32) + 1.0
        focal = focal_loss(logits, wanted.labels, self.alpha, self.gamma) / count
        huber = huber_loss(codes, wanted, self.delta) / (4 * count)
        return {"class": focal, "box": self.box_weight * huber}

    def predict(self, outputs: tuple[jax.Array, jax.Array]) -> Predictions:
        """Detections of frames, by falling score, boxes cut at the edges of the input.

        Args:
          outputs: class logits (..., N, K) and box codes (..., N, 4).

        Raises:
          ValueError: the network has another number of anchors than `size` gives.
        """
        self._check(outputs[0])
        one = self._predict_frame
        for _ in outputs[0].shape[:-2]:
            one = jax.vmap(one)
        return one(*outputs)

    def _predict_frame(self, logits: jax.Array, codes: jax.Array) -> Predictions:
        classes = logits.shape[-1]
        flat = logits.astype(jnp.float32).reshape(-1)
        best, pairs = jax.lax.top_k(flat, min(self.candidates, flat.size))
        index, labels = pairs // classes, (pairs % classes).astype(jnp.int32)
        boxes = decode(codes[index].astype(jnp.float32), jnp.asarray(self.anchors)[index])
        height, width = self.size
        limits = jnp.asarray([width, height, width, height], jnp.float32)
        boxes = jnp.clip(boxes, 0.0, jnp.broadcast_to(limits, boxes.shape))
        scores = jax.nn.sigmoid(best)
        kept, found = non_maximum_suppression(boxes, scores, labels, self.iou_threshold, self.keep)
        return Predictions(
            jnp.where(found[:, None], boxes[kept], 0.0),
            jnp.where(found, scores[kept], 0.0),
            jnp.where(found, labels[kept], -1),
        )

    def _check(self, logits: jax.Array) -> None:
        count = self.anchors.shape[0]
        if logits.shape[-2] != count:
            raise ValueError(
                f"`outputs` (of {logits.shape[-2]} anchors) must have the {count} anchors of "
                f"`size` (={self.size}) and `levels` (={self.levels}); set both as the network's"
            )
