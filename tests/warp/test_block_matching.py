"""Block matching: finds what moved, leaves what has no texture, counts its operations."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.warp import BlockMatching, Flow, resample


def _world(seed, height, width, grain=10):
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(height // grain, width // grain, 3)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("shift", [(0, 0), (8, -20), (3.0, 5.5)])
def test_finds_a_translation_below_a_position(shift):
    world = _world(0, 180, 200)
    matrix = np.float32([[1, 0, shift[1]], [0, 1, shift[0]]])
    moved = cv2.warpAffine(world, matrix, (200, 180), flags=cv2.INTER_CUBIC)
    then, now = (jnp.asarray(x[None, 40:136, 40:168]) for x in (world, moved))
    field = jax.jit(BlockMatching(radius=6).field)(then, now)
    assert field.shape == (1, 24, 32, 2)
    error = np.abs(np.asarray(field) + np.float32(shift))[:, 6:-6, 6:-6]
    assert np.median(error) < 0.3
    assert np.mean(error) < 0.5  # pixels, of squares of 4


def test_a_small_fast_object_is_found_and_the_plain_ground_stays():
    rng = np.random.default_rng(1)
    ground = np.full((1, 96, 160, 3), 90.0) + rng.normal(0, 2, (1, 96, 160, 3))
    car = rng.uniform(0, 255, (5, 8, 3)).repeat(4, 0).repeat(4, 1)
    then, now = ground.copy(), ground + rng.normal(0, 2, ground.shape)
    then[0, 40:60, 20:52], now[0, 40:60, 48:80] = car, car
    field = jax.jit(BlockMatching(radius=8).field)(
        *(jnp.asarray(x, jnp.float32) for x in (then, now))
    )
    inside = field[0, 11:14, 14:18]
    np.testing.assert_allclose(inside, np.broadcast_to([0, -28], inside.shape), atol=1)
    outside = np.concatenate([field[0, :, :2].ravel(), field[0, :, 24:].ravel()])
    assert np.abs(outside).max() < 1


def test_as_a_motion_of_every_pixel():
    """Streams apart, any dtype and size: the flow explains the frame."""
    world = (_world(2, 120, 120) * 40 + 128).clip(0, 255).astype(np.uint8)
    then = jnp.asarray(np.stack([world[20:81, 20:91], world[40:101, 20:91]]))
    now = jnp.asarray(np.stack([world[26:87, 12:83], world[40:101, 30:101]]))
    matching = BlockMatching(stride=3, radius=5)
    flow = jax.jit(matching)(then, now)
    assert isinstance(flow, Flow)
    assert flow.field.shape == (2, 61, 71, 2)
    x, y = then.astype(jnp.float32), now.astype(jnp.float32)
    moved = resample(x, flow.source((61, 71), (61, 71)))
    inner = np.s_[:, 15:-15, 15:-15]
    left, right = (np.abs(np.asarray(a - y))[inner].mean((1, 2, 3)) for a in (moved, x))
    assert (left < 0.15 * right).all()
    alone = jax.jit(matching)(then[1:], now[1:])
    np.testing.assert_allclose(alone.field, flow.field[1:], atol=1e-4)


def test_counts_operations():
    assert BlockMatching(stride=2, radius=0, window=1, steps=0).macs(4, 6, 3) == 144 + 6 * (5 + 2)
    plain, finer = (BlockMatching(stride=s).macs(512, 512) for s in (8, 4))
    assert 3 < finer / plain < 4
    assert BlockMatching().macs(512, 512) == 65_781_760


@pytest.mark.parametrize(
    "bad",
    [{"stride": 0}, {"radius": -1}, {"window": 0}, {"window": 4}, {"stay": -1.0}, {"steps": -1}],
)
def test_rejects_bad_settings(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` .* must be"):
        BlockMatching(**bad)


def test_rejects_frames_of_different_shapes():
    with pytest.raises(ValueError, match=r"`previous` .* must be frames of one shape"):
        BlockMatching()(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 9, 3)))
