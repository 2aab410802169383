"""Gates: their norms and logits by hand, their draws by statistics, their masks by structure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import (
    AlwaysGate,
    Conv,
    ConvNormGate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
    init_state,
    skip_conv,
)
from skipconv_jax.ops.geometry import block_max, block_upsample, tiles
from tests.ops.cases import BY_NAME, CASES, dense, named, upsampled

ALL = (InputNormGate, OutputNormGate, ConvNormGate, GumbelGate, AlwaysGate)


def windows(case, conv, x):
    """The support of every output position, `(positions, *window, Ci)`, by loops."""
    padded = np.pad(np.asarray(x), [*((max(lo, 0), max(hi, 0)) for lo, hi in conv.padding), (0, 0)])
    for at in np.ndindex(conv.out_spatial):
        index = [
            p * s + np.arange(k) * d
            for p, s, k, d in zip(at, conv.strides, conv.window, conv.dilation, strict=True)
        ]
        yield at, padded[np.ix_(*index)]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "case",
    named("plain", "dilated-strided", "asymmetric", "grouped", "depthwise", "1d", "3d"),
    ids=lambda c: c.name,
)
def test_norms_by_hand(case, reduction):
    params, r = case.params(), case.frames(1)[0]
    conv = Conv.make(r.shape, params["kernel"].shape, **case.geometry)
    kernel = params["kernel"]
    reduce = getattr(np, reduction)
    scores = {
        gate: np.asarray(gate(1.0, reduction=reduction).scores({}, r, kernel, conv))
        for gate in (InputNormGate, OutputNormGate, ConvNormGate)
    }
    weight = reduce(np.abs(np.asarray(kernel)))
    change = reduce(np.abs(np.asarray(dense(case, {"kernel": kernel}, r))), axis=-1)
    for at, support in windows(case, conv, r[1]):
        norm = reduce(np.abs(support))
        np.testing.assert_allclose(scores[InputNormGate][1][at], norm, rtol=1e-5)
        np.testing.assert_allclose(scores[OutputNormGate][1][at], weight * norm, rtol=1e-5)
    np.testing.assert_allclose(scores[ConvNormGate], change, rtol=1e-4, atol=1e-6)


def test_output_norm_bounds_the_output():
    """Young (Eq. 6): with sums, no output exceeds ||w|| ||r||."""
    case = BY_NAME["plain"]
    params, r = case.params(), case.frames(1)[0]
    conv = Conv.make(r.shape, params["kernel"].shape)
    exact, bound = (
        gate(1.0, reduction="sum").scores({}, r, params["kernel"], conv)
        for gate in (ConvNormGate, OutputNormGate)
    )
    assert bool((exact <= bound).all())


@pytest.mark.parametrize("gate", [InputNormGate, OutputNormGate, ConvNormGate])
def test_a_norm_equal_to_the_threshold_does_not_fire_and_nan_does(gate):
    scores = jnp.array([0.5, 0.75, 0.25, jnp.nan])
    fired = gate(0.5).fire({"threshold": jnp.float32(0.5)}, scores, None)
    np.testing.assert_array_equal(fired, [0, 1, 0, 1])
    np.testing.assert_array_equal(fired, gate(0.5).fire({"threshold": 0.5}, scores, None))


def test_gumbel_sees_the_signed_residual():
    case = BY_NAME["plain"]
    r = case.frames(1)[0]
    conv = Conv.make(r.shape, (3, 3, case.ci, case.co))
    gate = GumbelGate(bias_init=0.0)
    params = gate.init(jax.random.key(0), conv)
    plus, minus = (np.asarray(gate.scores(params, s * r, None, conv)) for s in (1.0, -1.0))
    np.testing.assert_allclose(plus, -minus, atol=1e-6)
    assert np.abs(plus).max() > 0.1


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_magnitude_gate_starts_as_the_input_norm_gate_and_weighs_channels(case):
    r = case.frames(1)[0]
    conv = Conv.make(r.shape, case.params()["kernel"].shape, **case.geometry)
    gate = GumbelGate(bias_init=-4.0, kernel_gain=20.0, sees="magnitude")
    params = gate.init(jax.random.key(0), conv)
    norm = InputNormGate(0.2)
    expected = 20.0 * (np.asarray(norm.scores({}, r, None, conv)) - 0.2)
    for sign in (1, -1):
        logits = gate.scores(params, sign * r, None, conv)
        np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-4)
    kernel = params["kernel"].at[..., 0, :].set(0)
    blind = gate.scores({**params, "kernel": kernel}, r, None, conv)
    other = gate.scores({**params, "kernel": kernel}, r.at[..., 0].add(9.0), None, conv)
    np.testing.assert_array_equal(np.asarray(blind), np.asarray(other))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_gumbel_logits_are_one_channel_of_the_same_geometry(case):
    r = case.frames(1)[0]
    conv = Conv.make(r.shape, case.params()["kernel"].shape, **case.geometry)
    gate = GumbelGate(bias_init=0.7)
    params = gate.init(jax.random.key(0), conv)
    logits = gate.scores(params, r, None, conv)
    plain = dataclasses.replace(case, groups=1, co=1)
    expected = dense(plain, {"kernel": params["kernel"], "bias": params["bias"]}, r)[..., 0]
    np.testing.assert_allclose(np.asarray(logits), np.asarray(expected), atol=1e-5)
    assert logits.shape[1:] == conv.out_spatial
    limit = np.sqrt(6 / (np.prod(case.window) * (case.ci + 1)))
    assert np.abs(np.asarray(params["kernel"])).max() <= limit
    assert gate.macs(conv) == params["kernel"].size * np.prod(conv.out_spatial)


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.65])
def test_samples_are_bernoulli_of_the_sigmoid(logit):
    """At logit 0 half of them fire; one Gumbel draw instead of two would give 63 %."""
    n = 200_000
    mask = GumbelGate().fire({}, jnp.full((n,), logit, jnp.float32), jax.random.key(7))
    p = 1 / (1 + np.exp(-logit))
    assert set(np.unique(mask)) == {0.0, 1.0}
    assert abs(float(mask.mean()) - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_samples_are_independent_between_blocks_streams_and_keys():
    zeros = jnp.zeros((64, 40, 40))
    mask = np.asarray(GumbelGate().fire({}, zeros, jax.random.key(0))) - 0.5
    other = np.asarray(GumbelGate().fire({}, zeros, jax.random.key(1))) - 0.5
    pairs = (mask[1:] * mask[:-1], mask[:, 1:] * mask[:, :-1], mask[..., 1:] * mask[..., :-1])
    for products in (*pairs, mask * other):
        assert abs(products.mean()) * 4 < 4.5 / np.sqrt(products.size)


def test_inference_fires_at_logit_zero_and_above():
    np.testing.assert_array_equal(
        GumbelGate().fire({}, jnp.array([-1e-3, 0.0, 1e-3]), None), [0, 1, 1]
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [2, 3, 8])
def test_what_fires_is_whole_blocks(block, training):
    """Published code pooled logits and then drew noise per pixel: masks without structure."""
    case = dataclasses.replace(BY_NAME["plain"], spatial=(13, 17), block=block)
    clip = case.frames(2)
    gate = GumbelGate(block=block, bias_init=0.0)
    conv = Conv.make(clip[0].shape, (3, 3, case.ci, case.co))
    params = case.params() | {"gate": gate.init(jax.random.key(2), conv)}
    state = init_state(params, clip[0], gate=gate)
    _, state = skip_conv(params, state, clip[0], gate=gate)
    rng = jax.random.key(3) if training else None
    _, after = skip_conv(params, state, clip[1], gate=gate, rng=rng)
    # Where a position's output moved, and only there, its block is reported as fired.
    moved = np.asarray(after.output != state.output).any(axis=-1)
    fired = upsampled(np.asarray(after.fired), block, (13, 17))[..., 0] > 0
    still = np.asarray(dense(case, {"kernel": params["kernel"]}, clip[1] - clip[0]) == 0).all(-1)
    np.testing.assert_array_equal(moved, fired & ~still)
    if training:
        assert 0 < after.fired.mean() < 1
    blocks = [moved | still, fired]
    assert all(b.shape == (2, 13, 17) for b in blocks)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("spatial", [(1, 1), (7, 9), (8, 8), (17,), (3, 4, 5)], ids=str)
def test_pooling_and_upsampling(spatial, block):
    scores = np.random.default_rng(0).standard_normal((2, *spatial)).astype(np.float32) - 5
    pooled = np.asarray(block_max(jnp.asarray(scores), block))
    assert pooled.shape == (2, *(-(-n // block) for n in spatial))
    for at in np.ndindex(pooled.shape[1:]):
        cut = tuple(slice(p * block, (p + 1) * block) for p in at)
        np.testing.assert_array_equal(
            pooled[(slice(None), *at)], scores[(slice(None), *cut)].reshape(2, -1).max(axis=1)
        )
    up = np.asarray(block_upsample(jnp.asarray(pooled), block, spatial))
    np.testing.assert_array_equal(up, upsampled(pooled, block, spatial)[..., 0])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_geometry_is_that_of_lax(case):
    x, kernel = case.frames(1)[0], case.params()["kernel"]
    conv = Conv.make(x.shape, kernel.shape, **case.geometry)
    z = dense(case, {"kernel": kernel}, x)
    assert conv.out_spatial == z.shape[1:-1]
    np.testing.assert_allclose(np.asarray(conv(x, kernel)), np.asarray(z), atol=1e-6)
    assert conv.macs == kernel[..., 0].size * z[0].size
    assert conv.block_sizes(case.block).sum() == np.prod(conv.out_spatial)
    assert conv.block_sizes(case.block).shape == conv.grid(case.block)
    assert hash(conv) == hash(Conv.make(x.shape, kernel.shape, **case.geometry))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_tiles_convolved_alone_give_the_blocks(case):
    x, kernel = case.frames(1)[0], case.params()["kernel"]
    conv = Conv.make(x.shape, kernel.shape, **case.geometry)
    cut, b = tiles(x, conv, case.block), case.block
    grid = conv.grid(b)
    assert cut.shape == (2, *grid, *conv.tile(b), case.ci)
    inside = dataclasses.replace(conv, in_spatial=conv.tile(b), padding=((0, 0),) * conv.rank)
    z = np.asarray(inside(cut.reshape(-1, *cut.shape[1 + conv.rank :]), kernel))
    z = z.reshape(2, *grid, *z.shape[1:])
    expected = np.asarray(conv(x, kernel))
    for at in np.ndindex(grid):
        whole = expected[(slice(None), *(slice(p * b, (p + 1) * b) for p in at))]
        part = z[(slice(None), *at, *(slice(0, n) for n in whole.shape[1:-1]))]
        np.testing.assert_allclose(part, whole, atol=1e-5)
