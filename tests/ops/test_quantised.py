"""The integer semantics against NumPy, which divides and rounds as IEEE 754 has it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipconv_jax.ops import quantised as q
from skipconv_jax.ops.geometry import Conv

GRIDS = [
    q.Grid(scale, zero, dtype)
    for scale in (0.1, 1 / 255, 3.7e-5, 2.5, 1e-30)
    for dtype, zero in (("uint8", 0), ("uint8", 131), ("int8", 0), ("int8", -77))
]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantize_divides_and_rounds_half_to_even(grid):
    rng = np.random.default_rng(0)
    halves = ((np.arange(-300, 300) + 0.5) * np.float64(grid.scale)).astype(np.float32)
    x = np.concatenate(
        [
            rng.normal(size=20000) * grid.scale * 100,
            *(np.nextafter(halves, np.float32(to)) for to in (-9, 0, 9)),
            halves,
            [np.inf, -np.inf, 3e38, -3e38, 0, -0.0, np.nan],
        ]
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        steps = np.rint(x / np.float32(grid.scale)) + grid.zero
    wanted = np.clip(np.nan_to_num(steps, nan=grid.low), grid.low, grid.high).astype(grid.dtype)
    for fn in (q.quantize, jax.jit(q.quantize, static_argnums=1)):
        found = fn(jnp.asarray(x), grid)
        assert found.dtype == grid.dtype
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("grid", GRIDS[:8], ids=str)
def test_every_level_comes_back(grid):
    values = q.dequantize(jnp.asarray(grid.levels), grid)
    np.testing.assert_array_equal(values, grid.values)
    np.testing.assert_array_equal(q.quantize(values, grid), grid.levels)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [((0.0, 0, "int8"), "scale"), ((1.0, 200, "int8"), "zero"), ((1.0, 0, "int16"), "dtype")],
)
def test_a_grid_names_what_is_wrong(fields, fault):
    with pytest.raises(ValueError, match=rf"`{fault}` \(="):
        q.Grid(*fields)


def _direct(steps, kernel, conv):
    """The convolution in int64, tap by tap."""
    x = np.pad(steps.astype(np.int64), ((0, 0), *conv.padding, (0, 0)))
    out = np.zeros((x.shape[0], *conv.out_spatial, conv.out_channels), np.int64)
    per_out, per_in = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    (oh, ow), (sh, sw), (dh, dw) = conv.out_spatial, conv.strides, conv.dilation
    for ky, kx in np.ndindex(*conv.window):
        seen = x[:, ky * dh :, kx * dw :][:, ::sh, ::sw][:, :oh, :ow]
        for group in range(conv.groups):
            part = seen[..., group * per_in : (group + 1) * per_in]
            at = slice(group * per_out, (group + 1) * per_out)
            out[..., at] += part @ kernel[ky, kx, :, at].astype(np.int64)
    return out


@settings(max_examples=12, deadline=None)
@given(
    window=st.sampled_from([(1, 1), (3, 3), (2, 5)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    deep=st.booleans(),
    extreme=st.booleans(),
)
def test_convolutions_are_exact(window, stride, dilation, groups, deep, extreme):
    rng = np.random.default_rng(1)
    channels = 4 * (150 if deep else 1)
    shape = (*window, channels // groups, 8)
    kernel = rng.integers(-127, 128, shape).astype(np.int8)
    steps = rng.integers(-255, 256, (2, 7, 9, channels)).astype(np.int32)
    if extreme:
        # Every product at its largest: float32 sums of all of them would round.
        kernel, steps = np.full_like(kernel, 127), np.full_like(steps, 255)
        steps[0, 3, 4, 0] = 254
    conv = Conv.make(steps.shape, shape, strides=stride, dilation=dilation, groups=groups)
    np.testing.assert_array_equal(
        q.int_conv(jnp.asarray(steps), kernel, conv), _direct(steps, kernel, conv)
    )


def test_a_window_too_large_for_float32_is_added_in_integers():
    kernel = np.full((24, 24, 1, 1), 127, np.int8)
    steps = np.full((1, 24, 24, 1), 255, np.int32)
    steps[0, 0, 0, 0] = 254
    assert q.channel_groups(kernel) is None
    conv = Conv.make(steps.shape, kernel.shape, padding=0)
    assert int(q.int_conv(jnp.asarray(steps), kernel, conv)[0, 0, 0, 0]) == 576 * 127 * 255 - 127


def test_finishing_rounds_once_clips_in_steps_and_looks_up():
    grid = q.Grid(0.5, 3, "uint8")
    acc = np.array([-1000, -5, 0, 1, 2, 3, 5, 7, 2000, 2**31 - 1], np.int32)
    v = acc.astype(np.float32) * np.float32(0.5)
    wanted = np.clip(np.rint(np.clip(v, 0, 60)) + 3, 0, 255).astype(np.uint8)
    out = q.Finish.on(grid, lo=0.0, hi=60.0)
    np.testing.assert_array_equal(q.scaled(jnp.asarray(acc), np.float32(0.5), out), wanted)
    flip = np.arange(127, -129, -1).astype(np.int8)
    np.testing.assert_array_equal(
        q.scaled(jnp.asarray(acc), np.float32(0.5), out.then(flip)), flip[wanted]
    )
    back = out.then(flip).then(np.arange(255, -1, -1).astype(np.uint8))
    np.testing.assert_array_equal(
        q.scaled(jnp.asarray(acc), np.float32(0.5), back), 255 - (flip[wanted].astype(int) + 128)
    )
    real = q.scaled(jnp.asarray(acc), np.float32(0.5), q.Finish.real(lo=-1.0))
    np.testing.assert_array_equal(real, np.maximum(v, -1))


def test_a_sum_adds_tables_from_the_left_and_a_product_rounds_once():
    rng = np.random.default_rng(2)
    a, b, c = rng.integers(0, 256, (3, 1, 5, 5, 7)).astype(np.uint8)
    tables = rng.normal(size=(3, 256)).astype(np.float32) * 50
    out = q.Finish.on(q.Grid(1.0, -3, "int8"))
    v = (tables[0][a] + tables[1][b]) + tables[2][c]
    wanted = np.clip(np.rint(v) - 3, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(jax.jit(lambda *t: q.summed(t, tables, out))(a, b, c), wanted)
    v = ((a.astype(np.int32) - 7) * (b.astype(np.int32) - 9)).astype(np.float32) * np.float32(0.013)
    wanted = np.clip(np.rint(v) - 3, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(
        q.product(jnp.asarray(a), jnp.asarray(b), (7, 9), 0.013, out), wanted
    )


def test_change_of_a_support_and_when_it_fires():
    conv = Conv.make((1, 4, 4, 2), (3, 3, 2, 5), padding=1)
    steps = np.zeros((1, 4, 4, 2), np.int32)
    steps[0, 0, 0] = (3, -4)
    change = np.asarray(q.support_change(jnp.asarray(steps), conv))[0]
    wanted = np.zeros((4, 4), np.int32)
    wanted[:2, :2] = 7
    np.testing.assert_array_equal(change, wanted)
    factor = q.norm_factor(conv, 0.25)
    assert factor == np.float32(0.25 / 18)
    assert q.norm_factor(conv, 0.25, mean=False, weights=2.0) == np.float32(0.5)
    at = np.float32(7) * factor
    below = np.nextafter(at, np.float32(0))
    for threshold, fires in [(at, 0), (below, 1), (0.0, 1), (-1.0, 1), (np.nan, 1)]:
        assert float(q.fires(jnp.asarray(change.max()), factor, np.float32(threshold))) == fires
    assert float(q.fires(jnp.int32(0), factor, np.float32(0.0))) == 0
