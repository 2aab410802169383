"""The contract of a plan, as tests that every engine's own inherit: `net.apply` is what is right.

One network of every kind of site (strided, depthwise, a residual add, a kernel used twice),
compiled once per engine and module.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import macs, skip
from skipconv_jax.ops import ClosedLoop, InputNormGate
from skipconv_jax.plans import Plan, compile_plan

SHAPE = (2, 16, 20, 3)
FRAMES = 5
TOLERANCE = 2e-5


def conv(x, kernel, stride=1, groups=1):
    """`(B, H, W, Ci)` to `(B, H / stride, W / stride, Co)`."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def network(variables, x):
    """A strided, a depthwise and a pointwise convolution, the last one used twice."""
    x = jax.nn.relu(conv(x, variables["stem"], 2))
    y = jax.nn.relu6(conv(x, variables["depth"], groups=8))
    y = conv(y, variables["point"]) + x
    return {"map": conv(jax.nn.relu(y), variables["point"]), "mean": y.mean(axis=(1, 2))}


def variables():
    """Of unit gain."""
    shapes = {"stem": (3, 3, 3, 8), "depth": (3, 3, 1, 8), "point": (1, 1, 8, 8)}
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=s) / np.sqrt(np.prod(s[:-1])), jnp.float32)
        for name, s in shapes.items()
    }


def clip():
    """`(T, B, H, W, 3)`: a patch moves, the frame before the last repeats."""
    rng = np.random.default_rng(1)
    frames = np.repeat(rng.normal(size=(1, *SHAPE)), FRAMES, axis=0).astype(np.float32)
    for t in (1, 2, 4):
        frames[t:, :, 2 * t : 2 * t + 5, 3:9] += np.float32(0.7)
    return frames


@dataclasses.dataclass(frozen=True)
class Made:
    """A plan, and what `net.apply` makes of the clip."""

    plan: Plan
    clip: np.ndarray
    params: Any
    outputs: list[Any]
    masks: list[dict[str, np.ndarray]]
    macs: list[np.ndarray]


def made(engine, fn=network, weights=None, precision=None):
    """The network, or a form of it with weights of its own, on an engine.

    What is right is `net.apply`, in integers the definition in JAX: biases are whole numbers there.
    """
    net = skip(fn, gate=InputNormGate(0.1, block=4), policy=ClosedLoop())
    frames, weights = clip(), variables() if weights is None else weights
    params, state = net.init(weights, frames[0])
    plan = compile_plan(net, params, frames[0], engine=engine, precision=precision)
    if precision == "int8":
        right = compile_plan(net, params, frames[0], engine="folded", precision=precision)
        state = right.init_state()
    apply, table = jax.jit(net.apply), net.table(weights, frames[0])
    outputs, masks, spent = [], [], []
    for x in frames:
        if precision == "int8":
            y, state, seen = right.step(state, x)
            fired = right.fired(seen)
        else:
            y, state = apply(params, state, x)
            fired = {name: layer.fired for name, layer in state.items()}
        outputs.append(jax.device_get(y))
        masks.append(jax.device_get(fired))
        spent.append(np.asarray(macs.spent_total(table, fired)))
    return Made(plan, frames, params, outputs, masks, spent)


def close(got, want):
    """Equal up to the engine's order of additions."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0), got, want)


class PlanContract:
    """Inherit, name the engine, and give a module-scoped fixture `made`."""

    engine: ClassVar[str]

    def test_steps_are_those_of_net_apply(self, made):
        plan, state = made.plan, made.plan.init_state()
        for t, x in enumerate(made.clip):
            y, state, masks = plan.step(state, x)
            close(y, made.outputs[t])
            fired = plan.fired(masks)
            assert sorted(fired) == sorted(made.masks[t])
            for name, mask in fired.items():
                np.testing.assert_array_equal(mask, made.masks[t][name], err_msg=name)
            spent = macs.spent_total(plan.table, fired)
            np.testing.assert_allclose(spent, made.macs[t], rtol=1e-6)
        assert 0 < made.macs[1].max() < plan.table.macs
        np.testing.assert_array_equal(made.macs[3], 0)

    def test_a_scan_is_frame_by_frame(self, made):
        """And weights are arguments of a jit, not part of what is compiled."""
        plan = made.plan

        @jax.jit
        def run(constants, state, frames):
            def one(state, x):
                y, state, masks = plan.apply(state, x, constants)
                return state, (y, plan.fired(masks))

            return jax.lax.scan(one, state, frames)[1]

        outputs, fired = run(plan.constants, plan.init_state(), made.clip)
        for t in range(FRAMES):
            close(jax.tree.map(lambda a, t=t: a[t], outputs), made.outputs[t])
        for name, mask in fired.items():
            np.testing.assert_array_equal(mask[2], made.masks[2][name])
        quiet = plan.with_gates(self._gates(made, 99.0))
        _, still = run(quiet, plan.init_state(), made.clip)
        for mask in still.values():
            assert mask[0].min() == 1
            assert mask[1:].max() == 0
        assert run._cache_size() == 1

    def test_other_gates_compile_nothing(self, made):
        plan, state = made.plan, made.plan.init_state()
        _, state, _ = plan.step(state, made.clip[0])
        compiled = plan._jitted._cache_size()
        _, state, masks = plan.step(state, made.clip[1], plan.with_gates(self._gates(made, 0.0)))
        assert all(mask.max() == 1 for mask in plan.fired(masks).values())
        assert plan._jitted._cache_size() == compiled

    def test_single_streams_start_anew(self, made):
        plan, state = made.plan, made.plan.init_state()
        np.testing.assert_array_equal(plan.fresh(state), [True, True])
        for x in made.clip[:2]:
            _, state, _ = plan.step(state, x)
        np.testing.assert_array_equal(plan.fresh(state), [False, False])
        state = plan.reset(state, jnp.array([False, True]))
        np.testing.assert_array_equal(plan.fresh(state), [False, True])
        _, state, masks = plan.step(state, made.clip[3])
        for name, mask in plan.fired(masks).items():
            assert mask[1].min() == 1, name
            assert mask[0].min() == 0, name
        np.testing.assert_array_equal(plan.fresh(plan.reset(state)), [True, True])

    def test_streams_are_as_if_each_were_alone(self, made):
        plan = made.plan
        both, alone = plan.init_state(), plan.init_state(1)
        for x in made.clip[:3]:
            y, both, _ = plan.step(both, x)
            z, alone, _ = plan.step(alone, x[1:])
            close(jax.tree.map(lambda a: a[1:], y), jax.device_get(z))

    def test_the_state_is_updated_in_place(self, made):
        plan, state = made.plan, made.plan.init_state()
        _, new, _ = plan.step(state, made.clip[0])
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(new))
        # The last masks are nobody's input: XLA leaves them where they are.
        left = [leaf.nbytes for leaf in jax.tree.leaves(state) if not leaf.is_deleted()]
        assert sum(left) < 0.05 * size
        assert plan.state_bytes() == size // SHAPE[0]

    def test_it_says_what_it_is(self, made):
        assert made.plan.engine == self.engine
        assert made.plan.why == "asked for"
        assert made.plan.report()
        assert made.plan.streams == SHAPE[0]
        assert [row.name for row in made.plan.table.rows] == ["stem", "depth", "point", "point@1"]

    def test_what_does_not_fit_is_refused_by_name(self, made):
        plan, state, x = made.plan, made.plan.init_state(), made.clip[0]
        with pytest.raises(ValueError, match=r"`x` \(=float32\[2,3,16,20\]\).*another order"):
            plan.apply(state, x.transpose(0, 3, 1, 2))
        with pytest.raises(ValueError, match=r"`x` \(=float32\[2,16,24,3\]\) must be a frame like"):
            plan.apply(state, np.zeros((2, 16, 24, 3), np.float32))
        with pytest.raises(ValueError, match=r"`x` \(dtype uint8\) must have the dtype"):
            plan.apply(state, x.astype(np.uint8))
        with pytest.raises(ValueError, match=r"`x` .* must be a frame like"):
            plan.apply(state, {"frame": x})
        with pytest.raises(ValueError, match=r"`state` .*another number of streams"):
            plan.apply(plan.init_state(1), x)
        with pytest.raises(ValueError, match="`state`"):
            plan.apply({"other": x}, x)

    def _gates(self, made, threshold):
        return {name: {"threshold": jnp.float32(threshold)} for name in made.params["gates"]}
