"""Convolutions, clips and independent references that the tests of `skipconv_jax.ops` share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution and the block size of its gate."""

    name: str
    spatial: tuple[int, ...]
    window: tuple[int, ...]
    ci: int = 3
    co: int = 4
    strides: Any = 1
    padding: Any = "SAME"
    dilation: Any = 1
    groups: int = 1
    bias: bool = True
    block: int = 4

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of `skip_conv`, `init_state` and `Conv.make`."""
        return {
            "strides": self.strides,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def params(self, seed: int = 0, dtype: Any = np.float32) -> dict[str, jax.Array]:
        """Kernel of unit gain, and a bias where the case has one."""
        rng = np.random.default_rng(seed)
        shape = (*self.window, self.ci // self.groups, self.co)
        kernel = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        params = {"kernel": jnp.asarray(kernel, dtype)}
        if self.bias:
            params["bias"] = jnp.asarray(rng.standard_normal(self.co), dtype)
        return params

    def frames(self, count: int, streams: int = 2, seed: int = 1, dtype: Any = np.float32):
        """A clip `(T, B, *spatial, Ci)`: a random background, a third of it moving."""
        rng = np.random.default_rng(seed)
        clip = np.broadcast_to(
            rng.standard_normal((1, streams, *self.spatial, self.ci)),
            (count, streams, *self.spatial, self.ci),
        ).copy()
        width = max(self.spatial[0] // 3, 1)
        for t in range(count):
            start = int(rng.integers(0, self.spatial[0]))
            part = clip[t, :, start : start + width]
            part += rng.standard_normal(part.shape)
        return jnp.asarray(clip, dtype)


# One of everything the contract names; sizes are odd or ragged unless they are meant not to be.
CASES = (
    Case("plain", (9, 11), (3, 3)),
    Case("divides", (8, 8), (3, 3), block=4, bias=False),
    Case("one-by-one", (7, 5), (1, 1), block=2),
    Case("even-kernel", (9, 10), (2, 2), block=3),
    Case("five", (11, 9), (5, 5), block=8),
    Case("seven-stride-two", (13, 15), (7, 7), strides=2, padding=3, block=3),
    Case("stride-two-same", (9, 8), (3, 3), strides=2, block=2),
    Case("stride-two-same-lower", (8, 9), (3, 3), strides=2, padding="SAME_LOWER", block=2),
    Case("stride-two-torch", (10, 12), (3, 3), strides=2, padding=1, block=4),
    Case("stride-beyond-kernel", (11, 10), (2, 2), strides=3, padding="VALID", block=2),
    Case("uneven-strides", (9, 12), (3, 2), strides=(1, 3), block=2),
    Case("dilated", (11, 9), (3, 3), dilation=2, block=3),
    Case("dilated-strided", (13, 11), (3, 3), dilation=(3, 1), strides=(2, 1), block=4),
    Case("valid", (9, 7), (3, 3), padding="VALID", block=4),
    Case("valid-to-one", (3, 3), (3, 3), padding="VALID", block=8),
    Case("asymmetric", (7, 8), (3, 3), padding=((2, 0), (0, 3)), block=3),
    Case("more-padding-than-kernel", (5, 5), (2, 2), padding=((4, 3), (3, 5)), block=2),
    Case("grouped", (8, 9), (3, 3), ci=4, co=6, groups=2, block=4),
    Case("depthwise", (9, 9), (3, 3), ci=4, co=4, groups=4, block=4),
    Case("depthwise-multiplied", (6, 7), (3, 3), ci=3, co=6, groups=3, strides=2, block=2),
    Case("pixelwise", (5, 6), (3, 3), block=1),
    Case("one-row", (1, 17), (1, 3), block=8),
    Case("one-pixel", (1, 1), (3, 3), block=8),
    Case("1d", (19,), (5,), strides=2, block=3),
    Case("3d", (4, 5, 6), (2, 3, 3), strides=(1, 2, 1), block=2),
)
BY_NAME = {case.name: case for case in CASES}


def named(*names: str) -> list[Any]:
    """The cases of these names, as parameters of a test."""
    return [BY_NAME[name] for name in names]


def dense(case: Case, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """The dense convolution by `jax.lax`, with none of the library's geometry in it."""
    rank = len(case.spatial)
    letters = {1: "W", 2: "HW", 3: "DHW"}[rank]
    strides, dilation = (
        (v,) * rank if isinstance(v, int) else v for v in (case.strides, case.dilation)
    )
    padding = case.padding
    if isinstance(padding, int):
        padding = [(padding, padding)] * rank
    z = lax.conv_general_dilated(
        x,
        params["kernel"],
        strides,
        padding,
        rhs_dilation=dilation,
        feature_group_count=case.groups,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    return z + params["bias"].reshape((1,) * (z.ndim - 1) + (-1,)) if "bias" in params else z


def upsampled(mask: np.ndarray, block: int, spatial: tuple[int, ...]) -> np.ndarray:
    """`(B, *grid)` to `(B, *spatial, 1)` by repetition, in numpy."""
    for axis, n in enumerate(spatial, start=1):
        mask = np.repeat(mask, block, axis=axis).take(np.arange(n), axis=axis)
    return mask[..., None]


@dataclasses.dataclass(frozen=True)
class Replay:
    """A gate that fires where its parameters say: masks given, values tested alone."""

    block: int
    grid: tuple[int, ...]

    def init(self, key, conv):
        """Nothing fires."""
        del key, conv
        return {"mask": jnp.zeros(self.grid, jnp.float32)}

    def scores(self, params, residual, kernel, conv):
        """No matter."""
        del params, kernel
        return jnp.zeros((residual.shape[0], *conv.out_spatial), jnp.float32)

    def fire(self, params, scores, rng):
        """The given mask."""
        del scores, rng
        return params["mask"]

    def macs(self, conv):
        """Nothing."""
        del conv
        return 0
