"""Key frames' predictions, copied; the protocol every video network keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import macs, skip
from skipconv_jax.baselines.interleaved import Interleaved
from skipconv_jax.baselines.video_net import Skipped, make_video_streamer, restart, select, tick
from skipconv_jax.ops import InputNormGate
from skipconv_jax.streaming.runner import make_streamer


def test_copies_exactly_and_costs_dense_over_the_interval(halves):
    model, variables, frames = halves
    net = Interleaved(model.apply, interval=3)
    params, state = net.init(variables, frames[0])
    np.testing.assert_array_equal(net.spent(state), [0, 0])
    _, reading = make_video_streamer(net, lambda y: y)(params, state, frames)

    dense = jax.jit(model.apply)
    for t, outputs in enumerate(reading.outputs):
        np.testing.assert_array_equal(outputs, reading.outputs[t - t % 3])
        np.testing.assert_allclose(outputs, dense(variables, frames[t - t % 3]), atol=1e-6)
    whole = skip(model.apply).table(variables, frames[0]).macs
    assert net.dense_macs(variables, frames[0]) == whole
    spent = [whole, 0, 0, whole, 0, 0, whole]
    np.testing.assert_array_equal(reading.macs, np.stack([spent, spent], axis=1))


def test_a_clip_no_longer_than_the_interval_costs_dense_over_its_length(halves):
    model, variables, frames = halves
    net = Interleaved(model.apply, interval=len(frames))
    params, state = net.init(variables, frames[0])
    _, reading = make_video_streamer(net, lambda y: y.mean())(params, state, frames)
    dense = net.dense_macs(variables, frames[0])
    np.testing.assert_allclose(reading.macs.mean(), macs.clip_mean(dense, 0, 7), rtol=1e-6)


def test_interval_of_one_is_the_network(halves):
    model, variables, frames = halves
    net = Interleaved(model.apply, interval=1)
    params, state = net.init(variables, frames[0])
    _, reading = make_video_streamer(net, lambda y: y)(params, state, frames)
    dense = jax.jit(jax.vmap(lambda x: model.apply(variables, x)))(frames)
    np.testing.assert_allclose(reading.outputs, dense, rtol=1e-5, atol=1e-5)


def test_streams_are_separate(halves, check_streams):
    model, variables, frames = halves
    check_streams(Interleaved(model.apply, interval=4), variables, frames)


def test_the_network_does_not_run_between_key_frames(halves):
    """Counted where it runs, by a callback in its branch."""
    model, variables, frames = halves
    runs = []

    def fn(variables, x):
        jax.debug.callback(lambda: runs.append(None))
        return model.apply(variables, x)

    net = Interleaved(fn, interval=4)
    params, state = net.init(variables, frames[0])
    state, reading = make_video_streamer(net, lambda y: y)(params, state, frames)
    jax.block_until_ready(reading)
    jax.effects_barrier()
    assert len(runs) == 2


def test_a_skipped_network_reads_as_its_own_streamer(halves):
    model, variables, frames = halves
    skipped = skip(model.apply, gate=InputNormGate(0.1, block=2))
    table = skipped.table(variables, frames[0])
    net = Skipped(skipped, table)
    params, state = net.init(variables, frames[0])
    streamer = make_video_streamer(net, lambda y: y)
    after, ours = streamer(params, state, frames)
    params, state = net.init(variables, frames[0])
    _, theirs = make_streamer(skipped, table, lambda y: y)(params, state, frames)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert net.dense_macs(variables, frames[0]) == table.macs
    assert 0 < float(ours.macs[-1].mean()) <= table.macs

    _, again = streamer(params, net.reset(after), frames)
    jax.tree.map(np.testing.assert_array_equal, again, ours)
    with pytest.raises(ValueError, match=r"`x` \(of 1 streams\) must have the 2 streams"):
        net.init(variables, frames[0, :1])


def test_counting_and_choosing_streams():
    due, wait = tick(jnp.array([0, 2, 1]), 5)
    np.testing.assert_array_equal(due, [True, False, False])
    np.testing.assert_array_equal(wait, [4, 1, 0])
    np.testing.assert_array_equal(restart(wait, jnp.array([True, False, False])), [0, 1, 0])
    np.testing.assert_array_equal(restart(wait, None), [0, 0, 0])
    new, old = ({"a": jnp.full((3, 2), v), "b": jnp.full((3,), v)} for v in (1.0, 0.0))
    chosen = select(due, new, old)
    np.testing.assert_array_equal(chosen["a"], [[1, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(chosen["b"], [1, 0, 0])


def test_errors_say_what_to_do(halves):
    model, variables, frames = halves
    with pytest.raises(ValueError, match=r"`interval` \(=0\) must be at least 1"):
        Interleaved(model.apply, interval=0)
    net = Interleaved(model.apply)
    _, state = net.init(variables, frames[0])
    for flags in (jnp.array([True]), jnp.array([1, 0])):
        with pytest.raises(ValueError, match=r"`streams` .* must be bool of shape \(2,\)"):
            net.reset(state, flags)
