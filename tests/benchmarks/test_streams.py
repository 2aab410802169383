"""Many streams: what is played, apart from the clock."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.streams import shifted


@pytest.mark.parametrize("streams", [1, 2, 3, 8])
def test_every_stream_plays_the_whole_clip_from_another_frame_on(streams: int) -> None:
    clip = [jnp.full((1, 2), t) for t in range(6)]
    frames = np.asarray([f[:, 0] for f in shifted(clip, streams)])
    assert frames.shape == (6, streams)
    for played in frames.T:
        first = int(played[0])
        np.testing.assert_array_equal(played, [(first + t) % 6 for t in range(6)])
    assert len(set(frames[0])) == min(streams, 6)
