"""How much of a stream's picture changed since its last turn, and whether it is another scene."""

import functools
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.live.capture import THUMBNAIL
from skipconv_jax.streaming.guards import Look, SceneCut

LEVELS = 12  # of 255: what differs by more is change, what by less is noise


@functools.cache
def _cut() -> Any:
    """`SceneCut` by colours alone, on thumbnails: they are cheap, and no layer need run twice."""
    policy = SceneCut(firing=0.0)
    nothing = jnp.zeros((1,))

    def before(memory: Any, small: jax.Array) -> Any:
        return policy.before(memory, Look(small, lambda: nothing, lambda names: {}))

    return jax.jit(before)


def prepare() -> None:
    """Compiles what the first cut would wait for, with every stream behind it."""
    black = np.zeros((*THUMBNAIL, 3), np.uint8)
    changes = Changes()
    changes.ran(black)
    changes.look(black + 255)


class Changes:
    """Of one stream; thumbnails in, judged against that of the last frame that ran."""

    def __init__(self) -> None:
        self._last: np.ndarray | None = None

    def look(self, small: np.ndarray | None, cuts: bool = True) -> tuple[float | None, bool]:
        """The share of it that changed and whether the scene was cut; None where nobody knows.

        Args:
          small: the thumbnail.
          cuts: look for cuts.
        """
        if small is None or self._last is None or small.shape != self._last.shape:
            return None, False
        red, green, blue = cv2.split(cv2.absdiff(small, self._last))
        most = cv2.max(cv2.max(red, green), blue)
        change = cv2.countNonZero(cv2.threshold(most, LEVELS, 1, cv2.THRESH_BINARY)[1]) / most.size
        # A cut changes most of the picture: the histograms need not be asked otherwise.
        return change, cuts and change > 0.25 and self._is_cut(small)

    def _is_cut(self, small: np.ndarray) -> bool:
        memory = SceneCut(firing=0.0).init(small[None])
        _, memory = _cut()(memory, self._last[None])  # type: ignore[index]
        cut, _ = _cut()(memory, small[None])
        return bool(cut[0])

    def ran(self, small: np.ndarray | None) -> None:
        """This frame had its turn."""
        self._last = small
