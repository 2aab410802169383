"""Reset policies inside the compiled stream: pieces follow on, a cut is a reference frame."""

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax import skip
from skipconv_jax.ops import InputNormGate
from skipconv_jax.streaming.guards import Drift, Every, Guard, SceneCut
from skipconv_jax.streaming.runner import make_streamer


def _network(variables, frame):
    x = frame.astype(jnp.float32) / 255
    for name in ("stem", "head"):
        x = jax.lax.conv_general_dilated(
            x, variables[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


def test_pieces_of_a_guarded_stream():
    keys = jax.random.split(jax.random.key(0), 2)
    shapes = {"stem": (3, 3, 3, 4), "head": (3, 3, 4, 2)}
    variables = {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)}
    rng = np.random.default_rng(0)
    scenes = [rng.integers(0, 60, (1, 16, 16, 3)), 150 + rng.integers(0, 60, (1, 16, 16, 3))]
    clip = np.stack([scenes[t >= 7] for t in range(12)]).astype(np.uint8)
    net = skip(_network, gate=InputNormGate(0.02, block=4))
    guard = Guard.make(net, variables, clip[0], [Every(100), SceneCut(), Drift(every=4)])
    table = net.table(variables, clip[0])
    streamer = make_streamer(net, table, lambda y: y.mean(axis=(1, 2)), guard=guard)
    params, state = net.init(variables, clip[0])
    whole_carry, whole = streamer(params, (state, guard.init(clip[0])), clip)
    np.testing.assert_array_equal(np.flatnonzero(whole.fresh[:, 0]), [0, 7])
    np.testing.assert_allclose(whole.macs[7], table.macs)
    assert whole.figures["drift/head"].shape == (12, 1)

    params, state = net.init(variables, clip[0])
    carry = (state, guard.init(clip[0]))
    parts = []
    for start in (0, 4, 8):
        carry, reading = streamer(params, carry, clip[start : start + 4])
        parts.append(reading)
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)
    jax.tree.map(np.testing.assert_array_equal, carry, whole_carry)
