"""Draws on frames: keypoints, skeletons, boxes, notes and the blocks that fired."""

from collections.abc import Sequence

import cv2
import numpy as np

from skipconv_jax import whole_files
from skipconv_jax.data.skeleton import BONES

_RIGHT, _LEFT, _MIDDLE = (66, 133, 244), (244, 160, 0), (52, 168, 83)
_BOXES = ((66, 133, 244), (244, 160, 0), (52, 168, 83), (171, 71, 188), (0, 172, 193))
_FIRED = np.asarray((255, 64, 64), np.float32)


def _colour(joint: int) -> tuple[int, int, int]:
    """Right limbs blue, left limbs orange, the trunk green (RGB)."""
    if joint < 3:
        return _MIDDLE
    return _RIGHT if joint % 2 else _LEFT


def draw_pose(
    image: np.ndarray,
    joints: np.ndarray,
    scores: np.ndarray | None = None,
    limbs: Sequence[tuple[int, int]] = BONES,
    minimum: float = 0.0,
) -> np.ndarray:
    """A copy of the frame with joints and limbs.

    Args:
      image: `(H, W, 3)` uint8, RGB.
      joints: `(J, 2)` x, y in pixels; a joint that is not finite is left out.
      scores: `(J,)` confidences; None draws every joint.
      limbs: pairs of joint indices joined by a line.
      minimum: joints with a lower score are left out.
    """
    canvas = np.ascontiguousarray(image).copy()
    shown = np.isfinite(joints).all(axis=-1)
    if scores is not None:
        shown &= scores >= minimum
    size = max(image.shape[:2])
    thick, radius = max(1, size // 250), max(2, size // 120)
    points = [
        tuple(int(v) for v in np.rint(p)) if s else None for p, s in zip(joints, shown, strict=True)
    ]
    for a, b in limbs:
        start, end = points[a], points[b]
        if start is not None and end is not None:
            cv2.line(canvas, start, end, _colour(max(a, b)), thick, cv2.LINE_AA)
    for index, point in enumerate(points):
        if point is not None:
            cv2.circle(canvas, point, radius, _colour(index), -1, cv2.LINE_AA)
            cv2.circle(canvas, point, radius, (255, 255, 255), 1, cv2.LINE_AA)
    return canvas


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]] | np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """A copy of the frame with boxes, each under its label and score.

    Args:
      image: `(H, W, 3)` uint8, RGB.
      boxes: `(N, 4)` x1, y1, x2, y2, edges in pixels.
      labels: N names.
      scores: N confidences; None writes the names alone.
    """
    canvas = np.ascontiguousarray(image).copy()
    size = max(image.shape[:2])
    thick, scale = max(1, size // 400), max(0.3, size / 2200)
    for index, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        # Edges to the pixels just inside of them.
        x1, y1, x2, y2 = (int(v) for v in np.rint(np.asarray(box) - (0, 0, 1, 1)))
        colour = _BOXES[sum(map(ord, label)) % len(_BOXES)]
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thick)
        text = label if scores is None else f"{label} {scores[index]:.2f}"
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
        top = max(y1 - height - 4, 0)
        cv2.rectangle(canvas, (x1, top), (x1 + width + 2, top + height + 4), colour, -1)
        cv2.putText(canvas, text, (x1 + 1, top + height + 1), cv2.FONT_HERSHEY_SIMPLEX, scale,
                    (255, 255, 255), 1, cv2.LINE_AA)  # fmt: skip
    return canvas


def overlay_firing(image: np.ndarray, firing: np.ndarray, alpha: float = 0.45) -> np.ndarray:
    """The frame tinted red where convolutions fired.

    Args:
      image: `(H, W, 3)` uint8, RGB.
      firing: `(h, w)` in [0, 1], share of the work spent at each place; covers the whole frame.
      alpha: strength of the tint where everything fired.
    """
    height, width = image.shape[:2]
    # Nearest, so that blocks keep their edges.
    share = cv2.resize(firing.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    weight = (alpha * np.clip(share, 0, 1))[..., None]
    return np.rint(image * (1 - weight) + _FIRED * weight).astype(np.uint8)


def overlay_classes(
    image: np.ndarray, classes: np.ndarray, bare: int | None = 0, alpha: float = 0.5
) -> np.ndarray:
    """The frame tinted by the class of every pixel.

    Args:
      image: `(H, W, 3)` uint8, RGB.
      classes: `(H, W)` numbers of classes.
      bare: the class that is left as it is, None for none.
      alpha: strength of the tint.
    """
    # A third of the circle on from class to class, so that neighbours in number differ.
    hue = (np.arange(int(classes.max(initial=0)) + 1) * 67 + 100) % 180
    wheel = np.stack([hue, np.full_like(hue, 200), np.full_like(hue, 255)], -1).astype(np.uint8)
    colours = cv2.cvtColor(wheel[None], cv2.COLOR_HSV2RGB)[0].astype(np.float32)
    weight = np.where(classes == bare, 0.0, alpha).astype(np.float32)[..., None]
    return np.rint(image * (1 - weight) + colours[classes] * weight).astype(np.uint8)


def caption(image: np.ndarray, text: str) -> np.ndarray:
    """A copy of the frame with one line of text in its upper left corner."""
    return _write(image, text, at_top=True)


def note(image: np.ndarray, text: str) -> np.ndarray:
    """A copy of the frame with one line of text in its lower left corner."""
    return _write(image, text, at_top=False)


def _write(image: np.ndarray, text: str, at_top: bool) -> np.ndarray:
    canvas = np.ascontiguousarray(image).copy()
    scale = max(0.35, max(image.shape[:2]) / 1100)
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    line = height + base + 6
    top = 0 if at_top else image.shape[0] - line
    cv2.rectangle(canvas, (0, top), (width + 8, top + line), (0, 0, 0), -1)
    cv2.putText(canvas, text, (4, top + height + 3), cv2.FONT_HERSHEY_SIMPLEX, scale,
                (255, 255, 255), 1, cv2.LINE_AA)  # fmt: skip
    return canvas


def contact_sheet(images: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Frames of one size side by side, `columns` a row, on white.

    Raises:
      ValueError: no images, or images of different sizes.
    """
    shapes = {image.shape for image in images}
    if len(shapes) != 1:
        raise ValueError(f"`images` (shapes {sorted(shapes)}) must hold frames of one size.")
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    sheet = np.full(
        (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8
    )
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def save(path: str, image: np.ndarray) -> None:
    """Writes an RGB frame as PNG or JPEG by the ending of `path`.

    Raises:
      OSError: the file cannot be written.
    """
    with whole_files.writing(path) as partial:
        if not cv2.imwrite(str(partial), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
            raise OSError(
                f"`path` (={path}) could not be written; check the folder and its rights."
            )
