"""ResNet: the known cost, torchvision's keys and numbers, and its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import ResNet, init_variables, resnet18, resnet50, resnet101
from skipconv_jax.models.convert import from_torch, to_torch

X = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)


def zeros(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def test_resnet101_macs(convolutions):
    rows = convolutions(resnet101(), (1, 224, 224, 3))
    assert len(rows) == 104
    gmacs = sum(row["macs"] for row in rows) / 1e9
    assert gmacs == pytest.approx(7.7994, abs=5e-5)
    # The paper's rows of TSN: 25 frames and 6 frames.
    assert 25 * gmacs == pytest.approx(194.98, abs=0.01)
    assert 6 * gmacs == pytest.approx(46.80, abs=0.01)


@pytest.mark.parametrize(
    ("model", "count"),
    [(resnet18(), 11_689_512), (resnet50(), 25_557_032), (resnet101(), 44_549_160)],
)
def test_parameter_counts(model, count):
    assert sum(leaf.size for leaf in jax.tree.leaves(zeros(model)["params"])) == count


def test_resnet101_has_every_public_key_and_shape(reference_keys):
    ours = {key: value.shape for key, value in to_torch(zeros(resnet101())).items()}
    assert ours == reference_keys("keys_resnet101.txt")


@pytest.mark.parametrize(
    ("bottleneck", "depths", "shape"),
    [(True, (1, 2, 1, 1), (2, 64, 96, 3)), (False, (1, 1, 2, 1), (1, 75, 50, 3))],
)
def test_matches_torchvision(torchvision, torch, randomised, quick_jit, bottleneck, depths, shape):
    from torchvision.models import resnet as peers

    block = peers.Bottleneck if bottleneck else peers.BasicBlock
    peer = peers.ResNet(block, list(depths), num_classes=7).eval()
    model = ResNet(depths, bottleneck, classes=7)
    x = jax.random.normal(jax.random.key(1), shape)
    variables = randomised(init_variables(model, jax.random.key(0), x), 2)
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(variables).items()})

    with torch.no_grad():
        expected = peer(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)).numpy()
    ours = quick_jit(model.apply)(variables, x)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    state = {key: value.numpy() for key, value in peer.state_dict().items()}
    loaded = from_torch(state, init_variables(model, jax.random.key(3), x))
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), loaded, variables)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("bad", [{"depths": (1, 0)}, {"depths": ()}, {"classes": 0}, {"width": 0}])
def test_rejects_bad_sizes(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` .* must .*; use"):
        ResNet(**bad)


def test_rejects_one_image():
    with pytest.raises(ValueError, match=r"use x\[None\]"):
        jax.eval_shape(resnet18().init, jax.random.key(0), jnp.zeros((64, 64, 3)))
