"""The contract of the masked convolution, as tests that every implementation's own inherit.

Masks are given: values alone are tested here. An implementation may refuse a case, but only by
`supports`, and only for the reasons that its tests list as its limits; an error is always a fault.
"""

import functools
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.ops import ClosedLoop, Conv, InputNormGate, Previous, init_state, skip_conv
from skipconv_jax.ops.masked_conv import Arrays, Epilogue, Problem, masked_conv, why_unsupported
from tests.ops.cases import BY_NAME, CASES, Case, dense, upsampled

TOLERANCE = 2e-5  # of outputs of unit variance


def of_case(case: Case, seed: int = 0):
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


def run(implementation, case, params, operand, base, mask, *, recompute, jit=True):
    """`masked_conv` of a case."""
    conv = Conv.make(operand.shape, params["kernel"].shape, **case.geometry)
    fn = functools.partial(
        masked_conv, conv=conv, block=case.block, recompute=recompute, implementation=implementation
    )
    arrays = (operand, params["kernel"], params.get("bias"), base, mask)
    return (jax.jit(fn) if jit else fn)(*arrays)


def drawn(
    spatial=(16, 16),
    ci=8,
    co=8,
    k=3,
    streams=2,
    block=8,
    recompute=True,
    seed=0,
    share=0.5,
    **geometry,
):
    """Geometry keywords of `masked_conv` and its arrays, outputs of about unit variance."""
    rng = np.random.default_rng(seed)
    groups = geometry.get("groups", 1)
    kernel_shape = (k, k, ci // groups, co)
    made = Conv.make((streams, *spatial, ci), kernel_shape, **geometry)
    out = (streams, *made.out_spatial, co)
    mask = (rng.random((streams, *made.grid(block))) < share).astype(np.float32)
    arrays = (
        rng.standard_normal((streams, *spatial, ci), np.float32),
        rng.standard_normal(kernel_shape, np.float32) / np.sqrt(np.prod(kernel_shape[:-1])),
        rng.standard_normal(co, np.float32),
        rng.standard_normal(out, np.float32),
        mask,
    )
    arrays = tuple(jnp.asarray(a, jnp.float32) for a in arrays)
    return {"conv": made, "block": block, "recompute": recompute}, arrays


def posed(keywords, arrays) -> Problem:
    """The problem of `masked_conv(*arrays, **keywords)`."""
    return Problem.of(Arrays(*arrays), **keywords)


def check(implementation, keywords, arrays, tolerance=TOLERANCE, epilogue=None):
    """Against `dense`, and bitwise `base` where the mask is 0."""
    keywords = keywords | {"epilogue": epilogue}
    expected = masked_conv(*arrays, **keywords, implementation="dense")
    got = jax.jit(functools.partial(masked_conv, **keywords, implementation=implementation))(
        *arrays
    )
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    *_, base, mask = arrays
    for axis, n in enumerate(base.shape[1:3], start=1):
        mask = jnp.repeat(mask, keywords["block"], axis=axis).take(np.arange(n), axis=axis)
    kept = np.broadcast_to(np.asarray(mask)[..., None] == 0, base.shape)
    np.testing.assert_array_equal(np.asarray(got)[kept], np.asarray(base)[kept])


class MaskedConvContract:
    """What every implementation keeps.

    Attributes:
      implementation: its name.
      cases: the convolutions it is tried on; all, unless compiling or interpreting it is slow.
      gradient_case: the one whose gradients are compared.
      limits: parts of the reasons it may give for a case that it does not take.
      activations: of the epilogues it is tried with.
    """

    implementation: ClassVar[str]
    cases: ClassVar[tuple[Case, ...]] = CASES
    gradient_case: ClassVar[Case] = BY_NAME["stride-two-torch"]
    limits: ClassVar[tuple[str, ...]] = ()
    activations: ClassVar[tuple[str, ...]] = ("relu",)

    def pytest_generate_tests(self, metafunc):
        """A test that takes a case runs on each, one that takes an activation on each."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=lambda case: case.name)
        if "activation" in metafunc.fixturenames:
            metafunc.parametrize("activation", self.activations)

    def need(self, problem: Problem) -> None:
        """Skips the test where the implementation names the problem as one of its limits."""
        reason = why_unsupported(self.implementation, problem)
        if reason is not None:
            assert any(limit in reason for limit in self.limits), reason
            pytest.skip(f"{self.implementation}: {reason}")

    def _need(self, case, params, x, base, mask, recompute):
        conv = Conv.make(x.shape, params["kernel"].shape, **case.geometry)
        arrays = Arrays(x, params["kernel"], params.get("bias"), base, mask)
        self.need(Problem.of(arrays, conv, case.block, recompute))

    @pytest.mark.parametrize("recompute", [False, True], ids=["add", "replace"])
    def test_fired_is_dense_and_unfired_is_bitwise_kept(self, case, recompute):
        params, x, base, grid = of_case(case)
        self._need(case, params, x, base, np.zeros(grid, np.float32), recompute)
        z = np.asarray(dense(case, params if recompute else {"kernel": params["kernel"]}, x))
        expected_fired = z if recompute else np.asarray(base) + z
        conv = Conv.make(x.shape, params["kernel"].shape, **case.geometry)
        compute = jax.jit(
            functools.partial(
                masked_conv,
                conv=conv,
                block=case.block,
                recompute=recompute,
                implementation=self.implementation,
            )
        )
        for mask in (some(grid), np.zeros(grid, np.float32), np.ones(grid, np.float32)):
            out = np.asarray(
                compute(x, params["kernel"], params.get("bias"), base, jnp.asarray(mask))
            )
            fired = np.broadcast_to(upsampled(mask, case.block, z.shape[1:-1]) > 0, z.shape)
            np.testing.assert_array_equal(out[~fired], np.asarray(base)[~fired])
            np.testing.assert_allclose(out[fired], expected_fired[fired], rtol=0, atol=TOLERANCE)

    def test_what_is_not_finite_stays_where_it_is(self):
        case = BY_NAME["plain"]
        params, x, base, grid = of_case(case)
        mask = np.zeros(grid, np.float32)
        mask[0, 0, 0] = 1
        x, base = x.at[:, -1, -1].set(jnp.nan), base.at[1].set(jnp.inf)
        self._need(case, params, x, base, mask, True)
        for recompute in (False, True):
            out = run(
                self.implementation, case, params, x, base, jnp.asarray(mask), recompute=recompute
            )
            assert np.isfinite(np.asarray(out[0])).all()
            np.testing.assert_array_equal(np.asarray(out[1]), np.asarray(base[1]))

    def test_epilogue(self, activation):
        keywords, arrays = drawn(spatial=(11, 8), streams=1, share=0.7)
        bias, base = arrays[2], arrays[3]
        epilogue = Epilogue(1 + bias / 4, bias[::-1], jnp.flip(base, 1), activation)
        self.need(posed(keywords, arrays))
        got = masked_conv(
            *arrays, **keywords, implementation=self.implementation, epilogue=epilogue
        )
        z = keywords["conv"](*arrays[:2]) + bias[None, None, None]
        y = z * (1 + bias / 4)[None, None, None] + bias[::-1][None, None, None] + jnp.flip(base, 1)
        y = jnp.maximum(y, 0.0) if activation == "relu" else y * jax.nn.sigmoid(y)
        fired = jnp.repeat(jnp.repeat(arrays[4], 8, 1)[:, :11], 8, 2)[:, :, :8, None]
        np.testing.assert_allclose(got, jnp.where(fired > 0, y, base), rtol=1e-4, atol=1e-4)

    def test_takes_what_it_says_it_takes(self):
        """The problem every implementation must take: none refuses its way through these tests."""
        assert why_unsupported(self.implementation, posed(*drawn())) is None


class LoopContract:
    """`vmap` against a loop, for those whose gradients under it are cheap to compile."""

    implementation: ClassVar[str]

    def test_vmap_equals_a_loop(self):
        case = BY_NAME["plain"]
        params, x, base, grid = of_case(case)
        xs = jnp.stack([x, x * 2, -x])
        masks = jnp.stack([jnp.asarray(some(grid, s)) for s in range(3)])

        def one(x, mask):
            return run(self.implementation, case, params, x, base, mask, recompute=False, jit=False)

        def loop(xs):
            return jnp.stack([one(x, m) for x, m in zip(xs, masks, strict=True)])

        together = jax.jit(jax.vmap(one))(xs, masks)
        chex.assert_trees_all_close(together, loop(xs), atol=TOLERANCE, rtol=0)
        sums = [
            jax.grad(lambda xs, fn=fn: jnp.sin(fn(xs)).sum())(xs)
            for fn in (lambda xs: jax.vmap(one)(xs, masks), loop)
        ]
        chex.assert_trees_all_close(sums[0], sums[1], atol=1e-4, rtol=0)


class SparseContract(MaskedConvContract):
    """What those keep that compute fired blocks alone."""

    @pytest.mark.parametrize("recompute", [False, True], ids=["add", "replace"])
    def test_gradients_are_those_of_the_dense_one(self, recompute):
        case = self.gradient_case
        params, x, base, grid = of_case(case)
        mask = jnp.asarray(some(grid))
        weight = jnp.cos(jnp.arange(base.size, dtype=jnp.float32))
        self._need(case, params, x, base, mask, recompute)

        def loss(name, x, params, base, mask):
            out = run(name, case, params, x, base, mask, recompute=recompute, jit=False)
            return (out.reshape(-1) * weight).sum()

        grads = [
            jax.jit(jax.grad(functools.partial(loss, name), argnums=(0, 1, 2, 3)))(
                x, params, base, mask
            )
            for name in ("dense", self.implementation)
        ]
        chex.assert_trees_all_close(grads[1], grads[0], atol=1e-4, rtol=1e-5)
        assert all(np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(grads[0][0]))

    def test_blocks_that_do_not_fire_are_not_read(self):
        """Poison in their input and in their residual reaches nothing."""
        keywords, (x, kernel, bias, base, mask) = drawn(k=1, seed=3, share=0.4)
        assert 0 < float(mask.mean()) <= 0.5
        quiet = jnp.repeat(jnp.repeat(mask, 8, 1), 8, 2)[..., None] == 0
        poisoned, residual = (jnp.where(quiet, jnp.nan, a) for a in (x, base))
        compute = functools.partial(masked_conv, **keywords)
        epilogue = Epilogue(bias, bias, residual, "relu")
        got = compute(
            poisoned, kernel, bias, base, mask,
            implementation=self.implementation, epilogue=epilogue,
        )  # fmt: skip
        epilogue = Epilogue(bias, bias, base, "relu")
        expected = compute(x, kernel, bias, base, mask, implementation="dense", epilogue=epilogue)
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


class AcceleratorContract(SparseContract):
    """What those keep that are made for accelerators."""

    @pytest.mark.parametrize("operand", [jnp.bfloat16, jnp.float32])
    def test_bfloat16_kernels_accumulate_in_float32(self, operand):
        keywords, (x, kernel, *rest) = drawn(spatial=(8, 8), ci=16, streams=1, share=1.0)
        # A float32 operand stands for the residual of bfloat16 frames: split, not rounded.
        arrays = (x.astype(operand), kernel.astype(jnp.bfloat16), *rest)
        check(self.implementation, keywords, arrays)

    def test_gradients_with_an_epilogue_are_the_dense_ones(self):
        keywords, arrays = drawn(spatial=(9, 8), streams=1)
        epilogue = Epilogue(arrays[2] + 2, arrays[2], arrays[3], "swish")

        def loss(implementation, arrays, epilogue):
            z = masked_conv(*arrays, **keywords, implementation=implementation, epilogue=epilogue)
            return (z * jnp.cos(z)).sum()

        grad = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
        chosen, expected = (grad(i, arrays, epilogue) for i in (self.implementation, "dense"))
        for got, want in zip(jax.tree.leaves(chosen), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)

    def test_vmap_over_streams_is_a_larger_batch(self):
        keywords, (x, kernel, bias, base, mask) = drawn(spatial=(8, 8), streams=3, share=0.6)
        compute = functools.partial(masked_conv, **keywords, implementation=self.implementation)
        expected = compute(x, kernel, bias, base, mask)
        alone = jax.vmap(
            lambda x, base, mask: compute(x[None], kernel, bias, base[None], mask[None])[0]
        )
        np.testing.assert_allclose(alone(x, base, mask), expected, rtol=TOLERANCE, atol=TOLERANCE)


class StreamsContract:
    """Streams in one batch, for those that are fast enough where they are interpreted."""

    implementation: ClassVar[str]

    @pytest.mark.parametrize("policy", [Previous(), ClosedLoop()], ids=["added", "recomputed"])
    def test_streams_in_one_batch_are_independent_and_reset_alone(self, policy):
        rng = np.random.default_rng(3)
        params = {"kernel": jnp.asarray(rng.standard_normal((3, 3, 4, 8)) / 6, jnp.float32)}
        clip = rng.standard_normal((1, 3, 16, 8, 4)).repeat(4, axis=0)
        clip[1:, :, :4] += rng.standard_normal((3, 3, 4, 8, 4))
        clip = jnp.asarray(clip, jnp.float32)
        resets = jnp.asarray(rng.random((4, 3)) < 0.3)
        options: dict[str, Any] = {"gate": InputNormGate(0.05, block=4), "policy": policy}

        def scan(clip, resets, implementation):
            def step(state, frame):
                x, reset = frame
                z, state = skip_conv(
                    params, state.reset(reset), x, **options, implementation=implementation
                )
                return state, (z, state.fired)

            return jax.lax.scan(step, init_state(params, clip[0], **options), (clip, resets))[1]

        scan = jax.jit(scan, static_argnums=2)
        together, fired = scan(clip, resets, self.implementation)
        assert 0 < float(fired[1:].mean()) < 1
        for s in range(3):
            one, fired_one = scan(clip[:, s : s + 1], resets[:, s : s + 1], "dense")
            np.testing.assert_array_equal(fired[:, s], fired_one[:, 0])
            np.testing.assert_allclose(together[:, s], one[:, 0], rtol=1e-4, atol=1e-5)
