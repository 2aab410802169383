"""The implementations in plain XLA that take every platform's cases: dense, and by blocks."""

import functools

import chex
import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from skipconv_jax.ops import Conv
from skipconv_jax.ops.masked_conv import masked_conv
from tests.ops.cases import BY_NAME, Case, dense, upsampled
from tests.ops.masked_conv.contract import (
    TOLERANCE,
    LoopContract,
    MaskedConvContract,
    SparseContract,
    of_case,
    run,
    some,
)


class TestDense(MaskedConvContract, LoopContract):
    """Takes every case."""

    implementation = "dense"


class TestBlocks(SparseContract, LoopContract):
    """A loop over fired blocks."""

    implementation = "blocks"
    activations = ("relu", "swish")


class TestVariants(chex.TestCase):
    """The same values with and without jit."""

    @chex.variants(with_jit=True, without_jit=True)
    def test_equal_to_the_dense_one(self):
        case = BY_NAME["stride-two-torch"]
        params, x, base, grid = of_case(case)
        conv = Conv.make(x.shape, params["kernel"].shape, **case.geometry)
        fn = functools.partial(masked_conv, conv=conv, block=case.block, recompute=True)
        arrays = (x, params["kernel"], params["bias"], base, jnp.asarray(some(grid)))
        expected = fn(*arrays, implementation="dense")
        for name in ("dense", "blocks", "packed"):
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
    params, x, base, grid = of_case(case, seed)
    mask = some(grid, seed)
    out = run("blocks", case, params, x, base, jnp.asarray(mask), recompute=recompute)
    z = dense(case, params if recompute else {"kernel": params["kernel"]}, x)
    fired = upsampled(mask, case.block, z.shape[1:-1]) > 0
    expected = np.where(fired, np.asarray(z if recompute else base + z), np.asarray(base))
    np.testing.assert_allclose(np.asarray(out), expected, rtol=0, atol=TOLERANCE)


def test_negative_padding_is_computed_by_default_and_refused_by_name():
    case = Case("cropped", (9, 9), (3, 3), padding=((-1, 0), (0, -2)), block=4)
    params, x, base, grid = of_case(case)
    mask = jnp.ones(grid, jnp.float32)
    out = run(None, case, params, x, base, mask, recompute=True, jit=False)
    chex.assert_trees_all_close(out, dense(case, params, x), atol=TOLERANCE, rtol=0)
    with pytest.raises(NotImplementedError, match="negative padding"):
        run("blocks", case, params, x, base, mask, recompute=True, jit=False)
