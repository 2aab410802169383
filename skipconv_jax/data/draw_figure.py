"""Draws the articulated figure and its mask with OpenCV, limbs ordered by depth."""

import dataclasses

import cv2
import numpy as np

from skipconv_jax.data.figure import Motion
from skipconv_jax.data.skeleton import JOINTS

LIMBS = ("sided", "plain")
"""`sided`: right limbs red and orange, left ones blue and green; `plain`: sides alike."""

_SHIFT = 4  # fractional bits of coordinates: motion must be smooth below a pixel
_J = {name: index for index, name in enumerate(JOINTS)}
_SIDED = {  # RGB before each clip's own variation
    "right_arm": (215, 50, 45),
    "left_arm": (50, 80, 220),
    "right_leg": (235, 150, 40),
    "left_leg": (40, 165, 95),
}
_CHAINS = {"arm": ("shoulder", "elbow", "wrist"), "leg": ("hip", "knee", "ankle")}
Color = tuple[int, int, int]
Part = tuple[
    float, str, str, int, list[np.ndarray], float
]  # depth, kind, side, its index, points, far


@dataclasses.dataclass(frozen=True)
class Clothes:
    """Colours (RGB) and girth of one figure; `girth` is a factor on the limbs' thickness."""

    colors: dict[str, Color]
    torso: Color
    stripe: Color
    skin: Color
    hair: Color
    girth: float


def random_clothes(limbs: str, rng: np.random.Generator) -> Clothes:
    """Draws a figure's colours."""
    vary = rng.uniform(-22, 22, (4, 3))
    if limbs == "sided":
        colors = {
            part: _color(np.array(base) + change)
            for (part, base), change in zip(_SIDED.items(), vary, strict=True)
        }
    else:
        sleeve, trousers = rng.uniform(20, 235, (2, 3))
        colors = {part: _color(sleeve if "arm" in part else trousers) for part in _SIDED}
    torso = rng.uniform(30, 225, 3)
    return Clothes(
        colors=colors,
        torso=_color(torso),
        stripe=_color(255 - torso),
        skin=_color(np.array([215, 165, 135]) + rng.uniform(-45, 25)),
        hair=_color(rng.uniform(10, 90, 3)),
        girth=float(rng.uniform(0.85, 1.2)),
    )


def _color(rgb: np.ndarray) -> Color:
    red, green, blue = (int(v) for v in np.clip(rgb, 0, 255))
    return red, green, blue


def _shade(color: Color, factor: float) -> Color:
    return _color(np.array(color) * factor)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    x, y = np.round(np.asarray(point)[:2] * (1 << _SHIFT)).astype(int)
    return int(x), int(y)


class _Canvas:
    """An image and its mask, drawn together."""

    def __init__(self, image: np.ndarray, mask: np.ndarray) -> None:
        self.image, self.mask = image, mask

    def line(self, a: np.ndarray, b: np.ndarray, color: Color, thickness: int) -> None:
        cv2.line(self.image, _fixed(a), _fixed(b), color, thickness, cv2.LINE_AA, _SHIFT)
        cv2.line(self.mask, _fixed(a), _fixed(b), 1, thickness, cv2.LINE_8, _SHIFT)

    def polygon(self, points: list[np.ndarray], color: Color) -> None:
        corners = np.array([_fixed(p) for p in points], np.int32)
        cv2.fillConvexPoly(self.image, corners, color, cv2.LINE_AA, _SHIFT)
        cv2.fillConvexPoly(self.mask, corners, 1, cv2.LINE_8, _SHIFT)

    def disc(self, centre: np.ndarray, radius: float, color: Color) -> None:
        size = max(round(radius * (1 << _SHIFT)), 1)
        cv2.circle(self.image, _fixed(centre), size, color, -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(self.mask, _fixed(centre), size, 1, -1, cv2.LINE_8, _SHIFT)


def _limb(
    canvas: _Canvas, points: list[np.ndarray], color: Color, width: float, far: float
) -> None:
    """A limb of two segments with an outline, bands of cloth and a light edge."""
    color = _shade(color, 1 - 0.3 * far)
    for i in (0, 1):
        thickness = max(round(width * (1 - 0.18 * i)), 1)
        canvas.line(points[i], points[i + 1], _shade(color, 0.55), thickness + 2)
    for i in (0, 1):
        thickness = max(round(width * (1 - 0.18 * i)), 1)
        a, b = points[i][:2], points[i + 1][:2]
        canvas.line(a, b, color, thickness)
        along = (b - a) / (np.linalg.norm(b - a) + 1e-6)
        across = np.array([-along[1], along[0]]) * thickness * 0.42
        for share in (0.3, 0.62):
            middle = a + share * (b - a)
            canvas.line(
                middle - across, middle + across, _shade(color, 0.7), max(thickness // 5, 1)
            )
        edge = across * 0.5
        canvas.line(a + edge, b + edge, _shade(color, 1.3), max(thickness // 6, 1))


def _torso(canvas: _Canvas, joints: np.ndarray, clothes: Clothes, height: float) -> None:
    corners = [
        joints[_J[n]][:2] for n in ("right_shoulder", "left_shoulder", "left_hip", "right_hip")
    ]
    girth = max(round(0.075 * height * clothes.girth), 2)
    outline = _shade(clothes.torso, 0.55)
    spine = [joints[_J["neck"]][:2], joints[_J["belly"]][:2], (corners[2] + corners[3]) / 2]
    for i in range(4):
        canvas.line(corners[i], corners[(i + 1) % 4], outline, girth + 2)
    for i in (0, 1):  # a torso seen from the side still has a depth
        canvas.line(spine[i], spine[i + 1], clothes.torso, round(1.8 * girth))
    canvas.polygon(corners, clothes.torso)
    for i in range(4):
        canvas.line(corners[i], corners[(i + 1) % 4], clothes.torso, girth)
    for share in (0.22, 0.5, 0.78):
        right = corners[0] + share * (corners[3] - corners[0])
        left = corners[1] + share * (corners[2] - corners[1])
        canvas.line(right, left, clothes.stripe, max(round(0.014 * height), 1))


def _head(canvas: _Canvas, motion: Motion, t: int, joints: np.ndarray, nose: np.ndarray,
          clothes: Clothes, height: float) -> None:  # fmt: skip
    face, radius = joints[_J["face"]][:2], 0.062 * height
    canvas.line(joints[_J["neck"]], face, _shade(clothes.skin, 0.8), max(round(0.05 * height), 2))
    canvas.disc(face, radius + 1, _shade(clothes.hair, 0.6))
    if motion.facing[t] < -0.3:
        canvas.disc(face, radius, clothes.hair)
        return
    ahead = (nose[:2] - face) * 0.45
    canvas.disc(face - ahead * 0.5 - np.array([0, 0.1 * radius]), radius, clothes.hair)
    canvas.disc(face + ahead * 0.5 + np.array([0, 0.15 * radius]), 0.82 * radius, clothes.skin)
    eye = np.array([0.32 * radius * abs(motion.facing[t]), 0.0])
    for side in (-1, 1):
        canvas.disc(face + ahead + side * eye, max(0.12 * radius, 0.7), (25, 25, 30))
    canvas.disc(
        face + ahead * 1.6 + np.array([0, 0.3 * radius]), 0.15 * radius, _shade(clothes.skin, 0.75)
    )


def draw_figure(
    image: np.ndarray, motion: Motion, t: int, offset: np.ndarray, height: float, clothes: Clothes
) -> np.ndarray:
    """Draws frame t of a figure into an RGB image in place.

    Args:
      image: `(H, W, 3)` uint8.
      motion: the figure's motion.
      t: frame, 0-based.
      offset: `(2,)` pixels at which the figure's ground point lies.
      height: of the figure in pixels.
      clothes: its colours.

    Returns:
      The figure's mask `(H, W)` uint8, 1 on the figure.
    """
    canvas = _Canvas(image, np.zeros(image.shape[:2], np.uint8))
    origin = np.array([*offset, 0.0])
    joints = motion.joints[t] * height + origin
    toes, nose = motion.toes[t] * height + origin, motion.nose[t] * height + origin
    thick = {"arm": 0.048 * height * clothes.girth, "leg": 0.068 * height * clothes.girth}
    parts: list[Part] = []
    for s, side in enumerate(("right", "left")):
        far = float(joints[_J[f"{side}_hip"]][2] > joints[_J["belly"]][2] + 0.03 * height)
        for kind, chain in (
            ("arm", ("shoulder", "elbow", "wrist")),
            ("leg", ("hip", "knee", "ankle")),
        ):
            points = [joints[_J[f"{side}_{name}"]] for name in chain]
            parts.append((float(np.mean([p[2] for p in points])), kind, side, s, points, far))
    middle = joints[_J["belly"]][2]
    # A limb that lies within the torso's own depth is in front of it when the person faces us.
    front = 0.02 * height * np.sign(motion.facing[t])
    parts.sort(key=lambda part: -part[0])
    behind = [p for p in parts if p[0] > middle + front]
    for part in behind:
        _draw_part(canvas, part, toes, clothes, thick)
    _torso(canvas, joints, clothes, height)
    _head(canvas, motion, t, joints, nose, clothes, height)
    for part in parts[len(behind) :]:
        _draw_part(canvas, part, toes, clothes, thick)
    return canvas.mask


def _draw_part(
    canvas: _Canvas, part: tuple, toes: np.ndarray, clothes: Clothes, thick: dict
) -> None:
    _, kind, side, s, points, far = part
    width = thick[kind]
    if kind == "leg":
        canvas.line(points[2], toes[s], _shade(clothes.hair, 0.8), max(round(0.7 * width), 2))
    _limb(canvas, points, clothes.colors[f"{side}_{kind}"], width, far)
    if kind == "arm":
        canvas.disc(points[2], 0.6 * width, _shade(clothes.skin, 1 - 0.25 * far))
