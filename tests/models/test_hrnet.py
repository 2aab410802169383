"""HRNet: the published table of convolutions, a public implementation's numbers, its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import HRNet, hrnet_small, hrnet_w32, hrnet_w48, init_variables
from skipconv_jax.models.convert import to_torch


def parameters(model, size=64):
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_w32_has_the_published_convolutions(convolutions, reference_rows):
    rows = convolutions(hrnet_w32(joints=15), (1, 256, 256, 3))
    assert len(rows) == 293
    total = sum(row["macs"] for row in rows)
    assert total == 10_193_076_224
    # Every cost is proportional to the area: 256x192 with two more rows in the head.
    assert (total + 2 * 32 * 64 * 64) * 192 / 256 == pytest.approx(7.645e9, abs=1e6)
    assert rows == reference_rows("hrnet_w32_macs.json")  # same order, too


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (hrnet_w32(joints=15), 28_536_047),
        (hrnet_w48(joints=17), pytest.approx(63.6e6, abs=5e4)),  # as published
    ],
)
def test_parameter_counts(model, count):
    assert parameters(model) == count


def test_no_gather_in_the_trace():
    model = hrnet_small(width=4)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    primitives = {
        eqn.primitive.name for eqn in jax.make_jaxpr(model.apply)(variables, x).jaxpr.eqns
    }
    elementwise = {"add", "sub", "mul", "rsqrt", "custom_jvp_call"}
    assert primitives <= elementwise | {"conv_general_dilated", "broadcast_in_dim", "reshape"}


@pytest.mark.parametrize("shape", [(2, 64, 96, 3), (1, 32, 160, 3)])
def test_matches_timm(timm, torch, randomised, quick_jit, shape):
    from timm.models.hrnet import HighResolutionNet, cfg_cls

    width, blocks, modules = 6, 1, (1, 2, 2)
    config = {name: dict(value) for name, value in list(cfg_cls["hrnet_w32"].items())[1:]}
    config["stem_width"] = 64
    for stage, count in zip((2, 3, 4), modules, strict=True):
        config[f"stage{stage}"] |= {
            "num_modules": count,
            "num_blocks": (blocks,) * stage,
            "num_channels": tuple(width * 2**i for i in range(stage)),
        }
    peer = HighResolutionNet(config, head="").eval()

    model = HRNet(width, joints=5, modules=modules, blocks=blocks)
    x = jax.random.normal(jax.random.key(1), shape)
    variables = randomised(init_variables(model, jax.random.key(0), x), 2)
    state = {key: torch.from_numpy(value) for key, value in to_torch(variables).items()}
    head = torch.nn.Conv2d(width, 5, 1)
    head.load_state_dict({key: state.pop(f"final_layer.{key}") for key in ("weight", "bias")})
    # timm keeps the coarser outputs of the last module, which the pose network never computes.
    missing, unexpected = peer.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.startswith("stage4.1.fuse_layers.") and key[21] in "123" for key in missing)

    with torch.no_grad():
        y = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)
        y = peer.act1(peer.bn1(peer.conv1(y)))
        y = peer.act2(peer.bn2(peer.conv2(y)))
        expected = head(peer.stages(y)[0]).permute(0, 2, 3, 1).numpy()
    ours = quick_jit(model.apply)(variables, x)
    assert ours.shape == (shape[0], shape[1] // 4, shape[2] // 4, 5)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_training_updates_batch_statistics_and_reaches_every_parameter(quick_jit):
    model = HRNet(4, 3, modules=(1, 1, 1), blocks=1, stem=8, layer1_blocks=1)
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = init_variables(model, jax.random.key(0), x)

    def loss(params):
        all_variables = {**variables, "params": params}
        y, mutated = model.apply(all_variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(y - 1.0)), mutated["batch_stats"]

    gradients, after = quick_jit(jax.grad(loss, has_aux=True))(variables["params"])
    before = variables["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after, before)
    assert all(jax.tree.leaves(moved))
    assert all(bool(jnp.all(jnp.isfinite(g)) & jnp.any(g != 0)) for g in jax.tree.leaves(gradients))


def test_bfloat16_computes_near_float32(quick_jit):
    x = jax.random.normal(jax.random.key(1), (1, 64, 64, 3))
    kw = {"modules": (1, 1, 1), "blocks": 1, "stem": 8, "layer1_blocks": 1}
    variables = init_variables(HRNet(8, 5, **kw), jax.random.key(0), x)
    full = quick_jit(HRNet(8, 5, **kw).apply)(variables, x)
    half = quick_jit(HRNet(8, 5, **kw, dtype=jnp.bfloat16).apply)(variables, x)
    assert half.dtype == jnp.float32
    assert np.max(np.abs(half - full)) < 0.05 * np.max(np.abs(full))
    assert np.any(np.asarray(half) != np.asarray(full))  # it did compute in bfloat16


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (1, 64, 33, 3), (64, 64, 3), (1, 0, 64, 3)])
def test_rejects_sizes_it_cannot_halve(shape):
    with pytest.raises(ValueError, match=r"`x` \(shape .* must .*; "):
        jax.eval_shape(hrnet_small().init, jax.random.key(0), jnp.zeros(shape))


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 0},
        {"joints": -1},
        {"modules": (1, 2)},
        {"modules": 3},
        {"blocks": 0},
        {"width": 1.5},
    ],
)
def test_rejects_bad_sizes(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` .* must .*; use"):
        HRNet(**bad)
