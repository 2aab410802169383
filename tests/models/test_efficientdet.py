"""EfficientDet: the known cost of every call, public keys, an independent package's numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import EfficientDet, efficientdet, init_variables
from skipconv_jax.models.convert import from_torch, to_torch
from skipconv_jax.models.efficientdet import SCALES, BiFPN, Head, fusion_plan, resize_level
from skipconv_jax.models.efficientnet import STAGES, EfficientNet, scale_features


def small(**kwargs):
    return EfficientDet(**{"classes": 3, "features": 16, "cells": 2, "head_depth": 1} | kwargs)


def test_d0_has_the_published_convolutions(convolutions, reference_rows):
    rows = convolutions(efficientdet("d0"), (1, 512, 512, 3))
    assert sum(row["macs"] for row in rows) == 2_492_331_520
    assert rows == reference_rows("effdet_d0_macs.json")  # same order, too


@pytest.mark.parametrize(
    ("name", "classes", "gmacs"),
    [("d1", 1, 5.4025), ("d2", 90, 10.8325), ("d3", 1, 22.4273)],
)
def test_known_cost(convolutions, name, classes, gmacs):
    size = SCALES[name].size
    rows = convolutions(efficientdet(name, classes), (1, size, size, 3))
    assert sum(row["macs"] for row in rows) / 1e9 == pytest.approx(gmacs, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "classes", "gmacs"),
    [("d0", 1, 2.2126), ("d1", 90, 6.0034), ("d2", 1, 9.7312), ("d3", 90, 24.5688)],
)
def test_known_cost_of_the_other_class_count(convolutions, name, classes, gmacs):
    """The other count is traced above; the difference is what the next test finds in a network."""
    per_class = _macs_per_class(SCALES[name].size, SCALES[name].features)
    other = 90 if classes == 1 else 1
    known = {"d0": 2.49233152, "d1": 5.40250668, "d2": 10.832466688, "d3": 22.427328224}[name]
    assert known + per_class * (classes - other) / 1e9 == pytest.approx(gmacs, abs=5e-5)


def _macs_per_class(size, features):
    """Nine anchors at every position of five levels, seen through `features` channels."""
    return sum((size // 2**level) ** 2 for level in range(3, 8)) * 9 * features


def test_the_last_convolution_alone_depends_on_the_classes(convolutions):
    few, many = (convolutions(small(classes=n), (1, 128, 128, 3)) for n in (3, 8))
    differing = [i for i, (a, b) in enumerate(zip(few, many, strict=True)) if a != b]
    assert len(differing) == 5  # a level each
    assert {many[i]["cout"] for i in differing} == {8 * 9}
    more = sum(many[i]["macs"] - few[i]["macs"] for i in differing)
    assert more == 5 * _macs_per_class(128, 16) > 0


def test_d0_has_every_public_key_and_shape(reference_keys):
    model = efficientdet("d0")
    x = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    ours = {key: value.shape for key, value in to_torch(zeros).items()}
    assert ours == reference_keys("keys_tf_efficientdet_d0.txt")


@pytest.mark.parametrize(
    ("size", "weighted"), [((512, 512), True), ((200, 328), False)], ids=["square", "oblong-odd"]
)
def test_matches_effdet(effdet, torch, randomised, size, weighted):
    config = effdet.get_efficientdet_config("tf_efficientdet_d0")
    config.image_size, config.num_classes = size, 7
    config.fpn_name = None if weighted else "bifpn_sum"  # D6 and D7 add, D0 to D5 weigh
    peer = effdet.EfficientDet(config, pretrained_backbone=False).eval()

    model = EfficientDet(classes=7, weighted=weighted)
    x = jax.random.normal(jax.random.key(1), (1, *size, 3))
    variables = randomised(init_variables(model, jax.random.key(0), x), 2)
    state = to_torch(variables)
    peer.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})

    with torch.no_grad():
        levels = peer(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2))
    expected = [
        np.concatenate([y.permute(0, 2, 3, 1).reshape(1, -1, n).numpy() for y in head], axis=1)
        for head, n in zip(levels, (7, 4), strict=True)
    ]
    for ours, theirs in zip(jax.jit(model.apply)(variables, x), expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())

    template = jax.tree.map(jnp.zeros_like, variables)
    same = jax.tree.map(
        lambda a, b: bool(jnp.array_equal(a, b)), from_torch(state, template), variables
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", ["d1", "d3", "d4", "d7"])
def test_backbone_widths_and_depths_match_timm(timm, torch, name):
    scale = SCALES[name]
    number = {"d7": 6}.get(name, int(name[1]))  # D7 is D6 on larger images
    with torch.device("meta"):
        peer = timm.create_model(f"tf_efficientnet_b{number}", features_only=True)
    model = EfficientNet(scale.width, scale.depth)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    for index, stage in enumerate(STAGES):
        blocks = list(peer.blocks[index])
        assert len(shapes["blocks"][str(index)]) == len(blocks)
        first = shapes["blocks"][str(index)]["0"]
        last = "conv_pw" if stage.expansion == 1 else "conv_pwl"
        assert first[last]["kernel"].shape[-1] == getattr(blocks[0], last).weight.shape[0]
        squeezed = blocks[0].se.conv_reduce.weight.shape[0]
        assert first["se"]["conv_reduce"]["kernel"].shape[-1] == squeezed


def test_scaled_features_follow_the_published_rule():
    for features, width, expected in [(32, 1.0, 32), (32, 1.1, 32), (16, 1.2, 24), (320, 1.4, 448)]:
        assert scale_features(features, width) == expected
    assert scale_features(16, 0.1) == 8


def test_fusion_plan_of_five_levels():
    assert fusion_plan(5) == [
        (3, (3, 4)), (2, (2, 5)), (1, (1, 6)), (0, (0, 7)),
        (1, (1, 7, 8)), (2, (2, 6, 9)), (3, (3, 5, 10)), (4, (4, 11)),
    ]  # fmt: skip


def test_levels_resize_to_their_neighbours():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(
        resize_level(x, (3, 6))[0, :, :, 0],
        [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]],
    )
    np.testing.assert_array_equal(resize_level(x, (1, 2))[0, :, :, 0], [[4, 5]])
    # Negative values survive: the pads of a max-pool are -inf, not 0.
    np.testing.assert_array_equal(resize_level(-1 - x, (1, 2))[0, :, :, 0], [[-1, -2]])
    assert resize_level(x, (2, 3)) is x


class Neck(nn.Module):
    """Pyramid and one head without the backbone, which compiles too slowly for a gradient here."""

    @nn.compact
    def __call__(self, levels, train):
        pyramid = BiFPN(features=8, cells=1, levels=3, name="fpn")(levels, train)
        return Head(2, depth=1, name="net")(pyramid, train)


def test_training_updates_statistics_and_reaches_every_parameter(quick_jit):
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(2, 16, 16, 4), (2, 8, 8, 6), (2, 4, 4, 10)]
    levels = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    variables = init_variables(Neck(), jax.random.key(0), levels, False)

    def loss(params):
        all_variables = {**variables, "params": params}
        y, mutated = Neck().apply(all_variables, levels, True, mutable=["batch_stats"])
        return jnp.sum(jnp.square(y - 1.0)), mutated["batch_stats"]

    gradients, after = quick_jit(jax.grad(loss, has_aux=True))(variables["params"])
    before = variables["batch_stats"]
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after, before)
    assert all(jax.tree.leaves(moved))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))
    # A bias that a batch norm follows changes nothing; all else must learn.
    flat = jax.tree_util.tree_leaves_with_path(gradients)
    still = [jax.tree_util.keystr(path) for path, g in flat if float(jnp.max(jnp.abs(g))) < 1e-3]
    assert all(name.endswith(("['conv']['bias']", "['conv_pw']['bias']")) for name in still), still


def test_initial_classes_are_improbable_and_kernels_scaled():
    model = small()
    x = jax.ShapeDtypeStruct((1, 128, 128, 3), jnp.float32)
    params = init_variables(model, jax.random.key(0), x)["params"]
    prior = jax.nn.sigmoid(params["class_net"]["predict"]["conv_pw"]["bias"])
    np.testing.assert_allclose(prior, 0.01, rtol=1e-5)
    assert not np.any(params["box_net"]["predict"]["conv_pw"]["bias"])
    edges = params["fpn"]["cell"]["0"]["fnode"]["4"]["combine"]["edge_weights"]
    np.testing.assert_array_equal(edges, np.ones(3, np.float32))
    # Depthwise 3x3: 9 inputs and 9 outputs per channel, so He's deviation is sqrt(2 / 9).
    depthwise = params["backbone"]["blocks"]["6"]["0"]["conv_dw"]["kernel"]
    assert depthwise.shape == (3, 3, 1, 1152)
    assert np.std(depthwise) == pytest.approx(np.sqrt(2 / 9), rel=0.03)


@pytest.mark.parametrize(
    "bad", [{"classes": 0}, {"features": 0}, {"levels": 2}, {"head_depth": -1}]
)
def test_rejects_bad_sizes(bad):
    with pytest.raises(ValueError, match=f"`{next(iter(bad))}` .* must .*; use"):
        small(**bad)


def test_rejects_unknown_names_and_inputs():
    with pytest.raises(ValueError, match=r"`name` .*'d9'.* must be one of d0, d1"):
        efficientdet("d9")
    with pytest.raises(ValueError, match=r"`width` .* must be positive"):
        EfficientNet(width=0.0)
    with pytest.raises(ValueError, match=r"use x\[None\]"):
        jax.eval_shape(small().init, jax.random.key(0), jnp.zeros((64, 64, 3)))
