"""A float network quantised over a clip: in integers but for its ends, close to what it was."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import skipconv_jax as skipconv
from skipconv_jax.ops.quantised import Grid
from skipconv_jax.program import fold
from skipconv_jax.quantising import quantize, ranges


def _conv(x, w, stride=1, groups=1):
    return jax.lax.conv_general_dilated(
        x, w, (stride,) * 2, "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def network(v, x):
    """Batch norm, a residual sum, a depthwise convolution, squeeze and excite, two ends."""
    x = jax.nn.relu(_conv(x, v["stem"]["kernel"], 2) * v["stem"]["scale"] + v["stem"]["shift"])
    y = jax.nn.silu(_conv(x, v["deep"]["kernel"], groups=8))
    x = jax.nn.relu(x + (_conv(y, v["point"]["kernel"]) + v["point"]["bias"]))
    gate = x.mean((1, 2), keepdims=True)
    x = x * jax.nn.sigmoid(_conv(gate, v["gate"]["kernel"]))
    both = jnp.concatenate([x, jax.nn.silu(_conv(x, v["side"]["kernel"]))], -1)
    return {"score": jax.nn.sigmoid(_conv(both, v["score"]["kernel"])), "box": jnp.exp(
        _conv(both, v["box"]["kernel"]) * 0.1)}  # fmt: skip


@pytest.fixture(scope="module")
def variables():
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])), jnp.float32)

    def channels(low, high):
        return jnp.linspace(low, high, 8).reshape(1, 1, 1, 8)

    norm = {"scale": channels(-1.5, 1.5), "shift": channels(-0.5, 0.5)}
    return {
        "stem": {"kernel": kernel(3, 3, 3, 8), **norm},
        "deep": {"kernel": kernel(3, 3, 1, 8)},
        "point": {"kernel": kernel(1, 1, 8, 8), "bias": channels(-0.2, 0.2)},
        "gate": {"kernel": kernel(1, 1, 8, 8)},
        "side": {"kernel": kernel(1, 1, 8, 8)},
        "score": {"kernel": kernel(1, 1, 16, 4)},
        "box": {"kernel": kernel(3, 3, 16, 4)},
    }


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(1).normal(size=(4, 1, 12, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def quantised(variables, clip):
    return quantize(network, variables, clip)


def _relative(got, wanted):
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
    off = sum(np.square(np.asarray(a) - b).sum() for a, b in pairs)
    return float(np.sqrt(off / sum(np.square(np.asarray(b)).sum() for _, b in pairs)))


def test_is_computed_in_integers_but_for_its_ends(quantised, clip):
    v, fn = quantised
    kinds = Counter(type(n).__name__ for n in fold.build(fn, v, clip[0]).nodes)
    assert kinds["QConvNode"] == 7
    assert kinds["QSumNode"] == kinds["QMulNode"] == kinds["QMeanNode"] == 1
    assert kinds["QuantizeNode"] == 1
    assert not {"ConvNode", "SumNode", "BinaryNode", "DequantizeNode"} & set(kinds)
    assert v["stem"]["kernel"].dtype == jnp.int8
    assert fn.quantised == ("stem", "deep", "point", "gate", "side", "score", "box")


def test_is_close_to_the_float_network(quantised, variables, clip):
    v, fn = quantised
    x = np.random.default_rng(2).normal(size=(3, 12, 16, 3)).astype(np.float32)
    wanted = network(variables, x)
    assert _relative(fn(v, x), wanted) < 0.03


def test_a_plan_of_it_is_lossless_at_threshold_zero(quantised, clip):
    v, fn = quantised
    net = skipconv.skip(fn, gate=skipconv.InputNormGate(0.0, block=4), policy=skipconv.Previous())
    params, _ = net.init(v, clip[0])
    plan = skipconv.compile_plan(net, params, clip[0], engine="folded", precision="int8")
    state, fresh = plan.init_state(), plan.init_state()
    dense = jax.jit(lambda x: plan.apply(fresh, x)[0])
    moving = clip[0].copy()
    for t in range(3):
        moving[:, t : t + 2, :3] += 0.5
        y, state, masks = plan.step(state, jnp.asarray(moving))
        jax.tree.map(np.testing.assert_array_equal, y, dense(jnp.asarray(moving)))
        assert float(plan.fired(masks)["stem"].mean()) == (1 if t == 0 else 1 / 4)
    assert _relative(y, fn(v, moving)) < 0.01


def test_bias_correction_brings_the_mean_back(variables, clip):
    """Kernels whose rounding error has a mean: a channel that is small beside another's step."""
    wide = dict(variables)
    kernel = np.array(variables["score"]["kernel"])
    kernel[:, :, 1:] = np.abs(kernel[:, :, 1:]) * 0.01
    kernel[:, :, 0] = 4.0
    wide["score"] = {"kernel": jnp.asarray(kernel)}

    def last(v, x):
        y = jnp.abs(x) + jnp.arange(16.0).reshape(1, 1, 1, 16)
        return _conv(y, v["score"]["kernel"])

    deep = np.random.default_rng(3).normal(size=(4, 1, 6, 6, 16)).astype(np.float32)
    wanted = np.asarray(last(wide, deep[0]))
    off = {}
    for corrected in (False, True):
        v, fn = quantize(last, wide, deep, bias_correction=corrected)
        off[corrected] = np.abs((np.asarray(fn(v, deep[0])) - wanted).mean((0, 1, 2))).max()
    assert off[True] < 0.3 * off[False]


def test_named_convolutions_stay_float(variables, clip):
    v, fn = quantize(network, variables, clip, keep=["deep", "box"])
    assert fn.kept == ("box", "deep")
    assert v["deep"]["kernel"].dtype == jnp.float32
    names = {n.name for n in fold.build(fn, v, clip[0]).nodes if isinstance(n, fold.ConvNode)}
    assert names == {"deep", "box"}


def test_the_most_sensitive_convolution_is_found(variables, clip):
    """One kernel of a single large weight per channel: its int8 form loses the others."""
    spoilt = dict(variables)
    kernel = np.array(variables["side"]["kernel"])
    kernel[0, 0, 0] = 1000.0

    # What the large weights would add is taken off again, so that the small ones decide.
    def fn(v, x):
        y = jnp.concatenate([x[..., :1] * 0, x[..., 1:]], -1)
        return _conv(jax.nn.relu(_conv(y, v["side"]["kernel"])), v["point"]["kernel"])

    spoilt["side"] = {"kernel": jnp.asarray(kernel)}
    deep = np.random.default_rng(4).normal(size=(2, 1, 6, 6, 8)).astype(np.float32)
    _, found = quantize(fn, spoilt, deep, keep=1)
    assert found.kept == ("side",)
    assert found.sensitivity["side"] > 10 * found.sensitivity["point"]


@pytest.mark.parametrize("name", sorted(ranges.RANGES))
def test_ranges_hold_what_they_say(name):
    values = np.random.default_rng(5).normal(size=20000).astype(np.float32)
    values[0] = 100.0
    low, high = ranges.RANGES[name](values)
    assert (high == 100) == (name == "min_max")
    grid = ranges.grid_of(low, high)
    assert grid.values[0] <= low + grid.scale
    assert 0.0 in grid.values
    assert high > 3


def test_zero_is_exact_in_every_grid():
    assert ranges.grid_of(0.5, 2.0) == Grid(2 / 255, 0, "uint8")
    assert ranges.grid_of(-2.0, -0.5).zero == 255
    assert ranges.grid_of(0.0, 0.0).scale > 0


def test_errors_name_what_is_wrong(variables, clip):
    with pytest.raises(ValueError, match=r"`ranges` \(='best'\) must be one of"):
        quantize(network, variables, clip, ranges="best")
    with pytest.raises(ValueError, match=r"`keep` names \['neck'\]"):
        quantize(network, variables, clip, keep=["neck"])
    with pytest.raises(ValueError, match="must have frames"):
        quantize(network, variables, clip[:0])
