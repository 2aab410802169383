"""A closed loop's reference that the change since can't have left by the threshold is not read."""

import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.native import ProgramBuilder
from tests.native.emulation import Emulator, Layer

needs_engine = pytest.mark.skipif(not native.available(), reason=native.status())


@needs_engine
@pytest.mark.parametrize(("stride", "drift"), [(1, 0.0), (1, 0.004), (2, 0.004)])
def test_noise_and_drift_fire_when_the_sum_since_the_reference_does(
    stride: int, drift: float
) -> None:
    rng = np.random.default_rng(stride)
    layer = Layer(
        kernel=rng.normal(0, 0.3, (3, 3, 16, 16)).astype(np.float32),
        bias=np.zeros(16, np.float32),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        dilation=(1, 1),
        groups=1,
        block=4,
        policy="closed_loop",
        gate="norm",
        gate_params=np.array([0.03], np.float32),
        count=9.0 * 16,
        residual=False,
        act="none",
    )
    builder = ProgramBuilder()
    builder.output(builder.conv(builder.input(24, 24, 16), layer.spec("c")))
    program, emulator = builder.finish(), Emulator(layer)
    state, base = program.init_state(1), rng.normal(size=(1, 24, 24, 16))
    direction, fired, still = rng.choice([-1.0, 1.0], base.shape), 0, 0
    for t in range(30):
        # Noise comes and goes, its sums would pass the threshold soon; the drift does in the end.
        noise = rng.normal(0, 0.006, base.shape) * (rng.random((1, 24, 24, 1)) < 0.8)
        frame = (base + t * drift * direction + noise).astype(np.float32)
        (made,), state, masks = program.apply(program.constants, state, frame)
        want, mask = emulator.step(frame, np.full(1, t == 0))
        np.testing.assert_array_equal(program.fired(masks)["c"], mask, err_msg=f"frame {t}")
        np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-4)
        fired, still = fired + mask.sum() * (t > 0), still + (~mask).sum()
    assert still > 100
    assert (fired > 8) == (drift > 0)
