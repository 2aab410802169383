"""Profiles of native plans count what was computed, and say what the machine could do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native, skip
from skipconv_jax.ops import ClosedLoop, InputNormGate
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.profiling import ceilings, profile

pytestmark = pytest.mark.skipif(not native.available(), reason="the native engine is not built")
_RNG = np.random.default_rng(0)
_SHAPE = (1, 40, 24, 3)


def _network(variables, frame):
    x = frame.astype(jnp.float32) / 255 - 0.5
    for name, stride in (("first", 2), ("second", 1), ("third", 1)):
        x = jax.lax.conv_general_dilated(
            x, variables[name], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x, 0)
    return x


@pytest.fixture(scope="module")
def variables():
    shapes = {"first": (3, 3, 3, 8), "second": (1, 1, 8, 40), "third": (3, 3, 40, 17)}
    return {k: jnp.asarray(_RNG.normal(size=s), jnp.float32) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def plan(variables):
    net = skip(_network, gate=InputNormGate(0.0, block=8), policy=ClosedLoop())
    frame = jnp.zeros(_SHAPE, jnp.uint8)
    params, _ = net.init(variables, frame)
    return compile_plan(net, params, frame, engine="native")


def _noise():
    return jnp.asarray(_RNG.integers(0, 256, _SHAPE), jnp.uint8)


def test_noise_costs_what_the_table_says(plan):
    found = profile(plan, [_noise() for _ in range(4)])
    assert found.macs().sum() == pytest.approx(plan.table.macs, rel=1e-6)
    assert [op.kind for op in found.operations if op.macs] == [
        "direct 3x3 /2", "direct 1x1", "winograd 3x3",
    ]  # fmt: skip
    assert found.seconds.shape == found.positions.shape == (3, len(found.operations))
    assert (found.steps >= found.seconds.sum(1)).all()
    assert 0 <= found.typical() < 3


def test_a_still_scene_computes_nothing_and_a_patch_its_blocks(plan):
    still = _noise()
    patched = still.at[0, 0, 0].add(1)
    found = profile(plan, [still, still, patched])
    convolutions = [i for i, op in enumerate(found.operations) if op.macs]
    assert not found.positions[0, convolutions].any()
    done = found.positions[1, convolutions]
    assert (done > 0).all()
    assert (done < found.positions.shape[1] * 20 * 12).all()
    assert done[0] == 64


def test_xla_goes_on_with_a_frame_it_has_made(plan, variables):
    assert "goes on with a frame" in plan.report()
    frame = _noise()
    y, _, _ = plan.step(plan.init_state(), frame)
    np.testing.assert_allclose(y, _network(variables, frame), rtol=2e-5, atol=2e-4)


def test_the_report_says_what_state_is_kept_and_why(plan):
    (program,) = plan.programs
    kept = {name: floats for name, floats in program.kept.items() if floats}
    assert set(kept) == {"values", "references", "scratch", "marks"}
    assert sum(kept.values()) + 16 == program.state_size
    lines = [line for line in plan.report().splitlines() if line.startswith("state: ")]
    assert len(lines) == len(kept)
    assert any("references: inputs as they were when a block last fired" in line for line in lines)


def test_what_can_not_be_profiled(plan, variables):
    with pytest.raises(ValueError, match="at least two"):
        profile(plan, [_noise()])
    net = skip(_network, gate=InputNormGate(0.0), policy=ClosedLoop())
    params, _ = net.init(variables, _noise())
    plain = compile_plan(net, params, _noise(), engine="plain")
    with pytest.raises(ValueError, match="must be of the native engine"):
        profile(plain, [_noise(), _noise()])


def test_ceilings_are_of_this_machine():
    found = ceilings(size=256, megabytes=4)
    assert found.macs > 1e8
    assert found.bytes > 1e8
