"""A stream through a native plan reads the same as one through `net.apply`."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from skipconv_jax import native, skip
from skipconv_jax.ops import ClosedLoop, InputNormGate
from skipconv_jax.plans import compile_plan
from skipconv_jax.plans.native import NativePlan
from skipconv_jax.streaming.runner import make_streamer

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())


def test_plan_streamer_reads_what_the_streamer_reads() -> None:
    layers = [
        nn.Conv(8, (3, 3)),
        nn.relu,
        nn.Conv(16, (3, 3), strides=2),
        nn.relu,
        nn.Conv(3, (1, 1)),
    ]
    model = nn.Sequential(layers)
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.normal(size=(1, 1, 48, 48, 3)), 6, axis=0).astype(np.float32)
    for t in range(1, 6):
        frames[t:, :, 6 * t : 6 * t + 6, 16:24] += np.float32(0.5)
    variables = model.init(jax.random.key(0), frames[0])

    net = skip(model.apply, gate=InputNormGate(3e-2, block=4), policy=ClosedLoop())
    params, state = net.init(variables, frames[0])
    plan, table = compile_plan(net, params, frames[0]), net.table(variables, frames[0])
    assert isinstance(plan, NativePlan)
    slow = make_streamer(net, table, lambda y: y, (16, 16))
    fast = make_streamer(plan, table, lambda y: y, (16, 16))
    _, want = slow(params, state, frames)
    carry, first = fast(plan.constants, plan.init_state(), frames[:3])
    _, second = fast(plan.constants, carry, frames[3:])
    assert float(want.macs[-1, 0]) < 0.9 * float(want.macs[0, 0])
    for part, piece in ((first, slice(0, 3)), (second, slice(3, 6))):
        np.testing.assert_allclose(part.outputs, want.outputs[piece], atol=1e-4, rtol=0)
        np.testing.assert_allclose(part.macs, want.macs[piece], rtol=1e-6)
        assert want.places is not None
        np.testing.assert_allclose(part.places, want.places[piece], atol=1e-6)
        for stage, share in want.firing.items():
            np.testing.assert_allclose(part.firing[stage], share[piece], rtol=1e-5)
