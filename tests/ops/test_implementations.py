"""Every implementation of the masked convolution, held to one contract and one tolerance.

Values and masks are tested apart: here masks are given. An implementation may refuse a case, but
only the ones listed as its own limits.
"""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from skipconv_jax.ops import IMPLEMENTATIONS, Conv
from skipconv_jax.ops.masked_conv import masked_conv
from tests.ops.cases import BY_NAME, CASES, Case, dense, named, upsampled

PLAIN_XLA = ("reference", "blocks", "packed")
KERNELS = tuple(name for name in IMPLEMENTATIONS if name not in PLAIN_XLA)
# `packed` compiles a convolution per capacity and interpreted kernels are slow: a few cases each;
# both have suites of their own.
SELECTED = {name: named("plain", "stride-two-torch", "depthwise") for name in KERNELS}
SELECTED["packed"] = named("stride-two-torch", "depthwise", "3d")
TOLERANCE = 2e-5  # of outputs of unit variance


def pairs() -> list:
    """(implementation, case): all cases for the implementations of every platform."""
    cases = [(i, case) for i in IMPLEMENTATIONS for case in SELECTED.get(i, CASES)]
    return [pytest.param(i, case, id=f"{i}-{case.name}") for i, case in cases]


def run(implementation, case, params, operand, base, mask, *, recompute, jit=True):
    """`masked_conv` of a case; skips where a kernel names the case as one it does not take."""
    conv = Conv.make(operand.shape, params["kernel"].shape, **case.geometry)
    fn = functools.partial(
        masked_conv, conv=conv, block=case.block, recompute=recompute, implementation=implementation
    )
    arrays = (operand, params["kernel"], params.get("bias"), base, mask)
    try:
        return (jax.jit(fn) if jit else fn)(*arrays)
    except NotImplementedError as error:
        if implementation in PLAIN_XLA or not str(error).startswith(str(implementation)):
            raise
        pytest.skip(str(error))


def problem(case: Case, seed: int = 0):
    """Parameters, operand, an old output, and the shape of the mask."""
    params, x = case.params(), case.frames(1)[0]
    conv = Conv.make(x.shape, params["kernel"].shape, **case.geometry)
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((x.shape[0], *conv.out_spatial, case.co)).astype(np.float32)
    return params, x, jnp.asarray(base), (x.shape[0], *conv.grid(case.block))


def some(shape, seed=0, share=0.5):
    """A random mask with at least one block fired and, if it has two, one not."""
    flat = (np.random.default_rng(seed).random(int(np.prod(shape))) < share).astype(np.float32)
    flat[0], flat[-1] = 0, 1
    return flat.reshape(shape)


@pytest.mark.parametrize("recompute", [False, True], ids=["add", "replace"])
@pytest.mark.parametrize(("implementation", "case"), pairs())
def test_fired_is_dense_and_unfired_is_bitwise_kept(implementation, case, recompute):
    params, x, base, grid = problem(case)
    z = np.asarray(dense(case, params if recompute else {"kernel": params["kernel"]}, x))
    expected_fired = z if recompute else np.asarray(base) + z
    for mask in (some(grid), np.zeros(grid, np.float32), np.ones(grid, np.float32)):
        out = np.asarray(
            run(implementation, case, params, x, base, jnp.asarray(mask), recompute=recompute)
        )
        fired = np.broadcast_to(upsampled(mask, case.block, z.shape[1:-1]) > 0, z.shape)
        np.testing.assert_array_equal(out[~fired], np.asarray(base)[~fired])
        np.testing.assert_allclose(out[fired], expected_fired[fired], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_not_finite_stays_where_it_is(implementation):
    case = BY_NAME["plain"]
    params, x, base, grid = problem(case)
    mask = np.zeros(grid, np.float32)
    mask[0, 0, 0] = 1
    x, base = x.at[:, -1, -1].set(jnp.nan), base.at[1].set(jnp.inf)
    for recompute in (False, True):
        out = run(implementation, case, params, x, base, jnp.asarray(mask), recompute=recompute)
        assert np.isfinite(np.asarray(out[0])).all()
        np.testing.assert_array_equal(np.asarray(out[1]), np.asarray(base[1]))


class TestVariants(chex.TestCase):
    """The same values with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_equal_to_the_reference(self):
        case = BY_NAME["stride-two-torch"]
        params, x, base, grid = problem(case)
        conv = Conv.make(x.shape, params["kernel"].shape, **case.geometry)
        fn = functools.partial(masked_conv, conv=conv, block=case.block, recompute=True)
        arrays = (x, params["kernel"], params["bias"], base, jnp.asarray(some(grid)))
        expected = fn(*arrays, implementation="reference")
        for name in PLAIN_XLA:
            out = self.variant(functools.partial(fn, implementation=name))(*arrays)
            chex.assert_trees_all_close(out, expected, atol=TOLERANCE, rtol=0)


@st.composite
def convolutions(draw) -> Case:
    """Convolutions that fit their input, of any stride, dilation, padding, groups and block."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    window = tuple(draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(2))
    dilation = tuple(draw(st.integers(1, 3)) for _ in range(2))
    named_padding = st.sampled_from(["SAME", "SAME_LOWER", "VALID"])
    pads = st.tuples(*(st.tuples(st.integers(0, 4), st.integers(0, 4)) for _ in range(2)))
    least = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    return Case(
        "drawn",
        tuple(draw(st.integers(n, n + 9)) for n in least),
        window,
        ci=groups * draw(st.integers(1, 2)),
        co=groups * draw(st.integers(1, 3)),
        strides=tuple(draw(st.integers(1, 4)) for _ in range(2)),
        padding=draw(st.one_of(named_padding, pads)),
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        block=draw(st.sampled_from([1, 2, 3, 4, 8])),
    )


@hypothesis.settings(max_examples=20, deadline=None, derandomize=True, database=None)
@hypothesis.given(case=convolutions(), recompute=st.booleans(), seed=st.integers(0, 99))
def test_drawn_convolutions_equal_the_dense_one(case, recompute, seed):
    params, x, base, grid = problem(case, seed)
    mask = some(grid, seed)
    out = run("blocks", case, params, x, base, jnp.asarray(mask), recompute=recompute)
    z = dense(case, params if recompute else {"kernel": params["kernel"]}, x)
    fired = upsampled(mask, case.block, z.shape[1:-1]) > 0
    expected = np.where(fired, np.asarray(z if recompute else base + z), np.asarray(base))
    np.testing.assert_allclose(np.asarray(out), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("implementation", [i for i in IMPLEMENTATIONS if i != "reference"])
@pytest.mark.parametrize("recompute", [False, True], ids=["add", "replace"])
def test_gradients_are_those_of_the_reference(implementation, recompute):
    case = BY_NAME["stride-two-torch"]
    params, x, base, grid = problem(case)
    mask, weight = jnp.asarray(some(grid)), jnp.cos(jnp.arange(base.size, dtype=jnp.float32))

    def loss(name, x, params, base, mask):
        out = run(name, case, params, x, base, mask, recompute=recompute, jit=False)
        return (out.reshape(-1) * weight).sum()

    grads = [
        jax.jit(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(
            x, params, base, mask
        )
        for name in ("reference", implementation)
    ]
    chex.assert_trees_all_close(grads[1], grads[0], atol=1e-4, rtol=1e-5)
    assert all(np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(grads[0][0]))


@pytest.mark.parametrize("implementation", ["reference", "blocks"])
def test_vmap_equals_a_loop(implementation):
    case = BY_NAME["plain"]
    params, x, base, grid = problem(case)
    xs, masks = jnp.stack([x, x * 2, -x]), jnp.stack([jnp.asarray(some(grid, s)) for s in range(3)])

    def one(x, mask):
        return run(implementation, case, params, x, base, mask, recompute=False, jit=False)

    together = jax.jit(jax.vmap(one))(xs, masks)
    apart = jnp.stack([one(x, m) for x, m in zip(xs, masks, strict=True)])
    chex.assert_trees_all_close(together, apart, atol=TOLERANCE, rtol=0)
    sums = [
        jax.grad(lambda xs, fn=fn: jnp.sin(fn(xs)).sum())(xs)
        for fn in (
            lambda xs: jax.vmap(one)(xs, masks),
            lambda xs: jnp.stack([one(x, m) for x, m in zip(xs, masks, strict=True)]),
        )
    ]
    chex.assert_trees_all_close(sums[0], sums[1], atol=1e-4, rtol=0)


def test_negative_padding_is_computed_by_default_and_refused_by_name():
    case = Case("cropped", (9, 9), (3, 3), padding=((-1, 0), (0, -2)), block=4)
    params, x, base, grid = problem(case)
    mask = jnp.ones(grid, jnp.float32)
    out = run(None, case, params, x, base, mask, recompute=True, jit=False)
    chex.assert_trees_all_close(out, dense(case, params, x), atol=TOLERANCE, rtol=0)
    with pytest.raises(NotImplementedError, match="negative padding"):
        run("blocks", case, params, x, base, mask, recompute=True, jit=False)


def test_unknown_implementation_is_refused_with_the_list():
    case = BY_NAME["plain"]
    params, x, base, grid = problem(case)
    with pytest.raises(ValueError, match=r"`implementation` \(='fast'\) must be one of"):
        run("fast", case, params, x, base, jnp.ones(grid, jnp.float32), recompute=True, jit=False)
