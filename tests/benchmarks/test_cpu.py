"""Parts of the CPU benchmarks whose mistakes would not show in a table."""

import jax
import numpy as np
import pytest

from benchmarks import cpu, layers
from skipconv_jax import native
from skipconv_jax.models.layers import ConvBN
from skipconv_jax.ops.geometry import Conv

needs_engine = pytest.mark.skipif(not native.available(), reason=native.status())


def _conv(window: int, stride: int) -> Conv:
    pad = (window - 1) // 2
    return Conv.make(
        (1, 48, 48, 4),
        (window, window, 4, 6),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dilation=(1, 1),
        groups=1,
    )


@needs_engine
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_layer_frames_fire_the_share_they_claim(window: int, stride: int, share: float) -> None:
    conv = _conv(window, stride)
    frames, activity = layers.frames_of(conv, share, np.random.default_rng(0))
    assert activity == pytest.approx(share, abs=0.1)
    kernel = np.ones((*conv.window, conv.in_channels, conv.out_channels), np.float32)
    program = layers.program_of(conv, kernel)
    state, step = program.init_state(1), jax.jit(program.apply)
    for t in range(3):
        _, state, masks = step(program.constants, state, frames[t % 2])
    assert float(program.fired(masks)["layer"].mean()) == pytest.approx(activity)


def test_batch_statistics_are_those_of_the_frames() -> None:
    frames = jax.random.normal(jax.random.key(1), (2, 16, 16, 3)) + 2.0
    variables = cpu.make_variables(ConvBN(5, 3), frames)
    z = jax.lax.conv_general_dilated(
        frames,
        variables["params"]["0"]["kernel"],
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    stats = variables["batch_stats"]["1"]
    np.testing.assert_allclose(stats["mean"], z.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(stats["var"], z.var((0, 1, 2)), rtol=1e-3)
