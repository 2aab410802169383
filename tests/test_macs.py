"""Counting: tables by hand, spent work by brute force, Eq. 9 by its formula."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import Rule, macs, skip
from skipconv_jax.ops import AlwaysGate, ConvNormGate, GumbelGate, InputNormGate


class Net(nn.Module):
    """A stem, a depthwise convolution called twice, a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2, padding=1, name="stem")(x)
        depth = nn.Conv(4, (3, 3), feature_group_count=4, name="depth")
        return nn.Conv(5, (1, 1), name="head")(depth(nn.relu(depth(x))))


X = np.asarray(jax.random.normal(jax.random.key(0), (2, 13, 10, 3)))
RULES = [
    ("stem", Rule(GumbelGate(block=4))),
    ("depth@1", Rule(ConvNormGate(1e-2, block=3))),
    ("head", None),
]
# Stem: 7 x 5 outputs.
MACS = {"stem": 35 * 27 * 4, "depth": 35 * 9 * 4, "depth@1": 35 * 9 * 4, "head": 35 * 4 * 5}
GATES = {"stem": 35 * 27, "depth": 0, "depth@1": 35 * 9 * 4, "head": 0}


@pytest.fixture(scope="module")
def made():
    """Network, table and the state after two frames."""
    net = skip(Net().apply, RULES, gate=InputNormGate(0.3, block=4))
    variables = Net().init(jax.random.key(1), X)
    params, state = net.init(variables, X, key=jax.random.key(2))
    apply = jax.jit(net.apply)
    _, reference = apply(params, state, X)
    moved = X.copy()
    moved[0, :5, :5] += 1
    _, state = apply(params, reference, moved)
    return net.table(variables, X), reference, state


def test_table_by_hand(made):
    table, _, _ = made
    assert {row.name: row.macs for row in table.rows} == MACS
    assert {row.name: row.gate_macs for row in table.rows} == GATES
    assert table.macs == sum(MACS.values())
    assert table.gate_macs == sum(GATES.values())
    assert table.stages() == {
        "stem": MACS["stem"],
        "depth": 2 * MACS["depth"],
        "head": MACS["head"],
    }
    stem = table.rows[0]
    assert (stem.in_shape, stem.out_shape, stem.kernel_shape) == ((13, 10, 3), (7, 5, 4), (3, 3, 3, 4))  # fmt: skip  # noqa: E501
    assert [row.name for row in table.skipped()] == ["stem", "depth", "depth@1"]


def test_table_prints_and_serialises(made):
    table, _, _ = made
    text = str(table)
    for row in table.rows:
        assert row.name in text
    assert "dense: by rule" in text
    assert "4 convolutions, 1 dense" in text
    read = json.loads(table.to_json())
    assert read["macs"] == table.macs
    assert read["stages"] == table.stages()
    assert [row["macs"] for row in read["rows"]] == list(MACS.values())
    assert read["rows"][3]["gate"] is None
    assert read["rows"][0]["strides"] == [2, 2]


def brute_force(state, name, block):
    """MACs spent by counting output positions under the mask, `(B,)`."""
    fired = np.asarray(state[name].fired)
    up = fired.repeat(block, axis=1).repeat(block, axis=2)[:, :7, :5]
    return up.sum(axis=(1, 2)) / 35 * MACS[name]


def test_spent_equals_brute_force_with_ragged_blocks(made):
    table, reference, state = made
    blocks = {"stem": 4, "depth": 4, "depth@1": 3}
    for current in (reference, state):
        spent = macs.spent(table, current)
        assert sorted(spent) == sorted(blocks)
        for name, block in blocks.items():
            expected = brute_force(current, name, block)
            np.testing.assert_allclose(spent[name], expected, rtol=1e-6)
            np.testing.assert_allclose(
                macs.firing(table, current)[name], expected / MACS[name], rtol=1e-6
            )
        total = sum(spent.values()) + MACS["head"]
        np.testing.assert_allclose(macs.spent_total(table, current), total, rtol=1e-6)
    np.testing.assert_allclose(macs.spent_total(table, reference), [table.macs] * 2, rtol=1e-6)
    # The second stream stood still: its norm gates spend nothing.
    assert float(macs.spent(table, state)["depth"][1]) == 0 < macs.spent(table, state)["depth"][0]


def test_a_whole_ragged_edge_weighs_its_positions(made):
    table, _, state = made
    fired = jnp.zeros((2, 2, 2)).at[0, 1, 1].set(1.0)  # the corner block: 3 of 35 positions
    layer = dataclasses.replace(state["depth"], fired=fired)
    share = macs.firing(table, state | {"depth": layer})["depth"]
    np.testing.assert_allclose(share, [3 / 35, 0], rtol=1e-6)


def test_gate_loss_is_equation_9(made):
    table, reference, state = made
    rows = ("stem", "depth", "depth@1")
    whole = sum(MACS[name] for name in rows)
    expected = sum(
        MACS[name] / whole * float(np.mean(macs.firing(table, state)[name])) for name in rows
    )
    np.testing.assert_allclose(macs.gate_loss(table, state), expected, rtol=1e-6)
    np.testing.assert_allclose(macs.gate_loss(table, reference), 1.0, rtol=1e-6)


def test_gate_loss_is_differentiable_in_the_masks(made):
    table, _, state = made

    def loss(fired):
        layers = {n: dataclasses.replace(state[n], fired=fired[n]) for n in fired}
        return macs.gate_loss(table, state | layers)

    grad = jax.grad(loss)({"depth": state["depth"].fired})["depth"]
    whole = MACS["stem"] + 2 * MACS["depth"]
    sizes = np.outer([4, 3], [4, 1]) / 35
    expected = np.broadcast_to(MACS["depth"] / whole * sizes / 2, (2, 2, 2))
    np.testing.assert_allclose(grad, expected, rtol=1e-5)


def test_images_of_one_stream_add_up():
    def fn(variables, x):
        x = x.reshape(-1, *x.shape[2:])
        return jax.lax.conv_general_dilated(
            x, variables["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    variables, x = {"k": jnp.ones((3, 3, 3, 2))}, jnp.stack([X, X, X], axis=1)
    net = skip(fn, gate=GumbelGate(block=4))
    params, state = net.init(variables, x, key=jax.random.key(0))
    table = net.table(variables, x)
    assert table.rows[0].macs == 3 * 130 * 54
    assert table.gate_macs == 3 * 130 * 27
    _, state = net.apply(params, state, x)
    np.testing.assert_allclose(macs.spent_total(table, state), [table.macs] * 2, rtol=1e-6)


def test_counts_beyond_32_bits():
    """A frame of 4K through a wide layer: 8e9 and more do not fit an int32."""
    x = jax.ShapeDtypeStruct((1, 2160, 3840, 64), jnp.float32)
    kernel = {"k": jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)}

    def fn(variables, x):
        return jax.lax.conv_general_dilated(
            x, variables["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    table = skip(fn, gate=AlwaysGate(block=8)).table(kernel, x)
    assert table.macs == 2160 * 3840 * 9 * 64 * 64
    state = {"k": type("State", (), {"fired": jnp.ones((1, 270, 480))})}
    np.testing.assert_allclose(macs.spent_total(table, state), [table.macs], rtol=1e-6)


def test_clip_mean_counts_the_reference_frame():
    assert macs.clip_mean(10.0, 2.0, 1) == 10
    assert macs.clip_mean(10.0, 2.0, 4) == pytest.approx(4.0)
    with pytest.raises(ValueError, match=r"`frames` \(=0\)"):
        macs.clip_mean(10.0, 2.0, 0)


def test_bad_input(made):
    table, _, state = made
    with pytest.raises(ValueError, match=r"`masks` .*'stem'"):
        macs.spent(table, {"depth": state["depth"]})
    small = dataclasses.replace(state["stem"], fired=jnp.ones((2, 1, 1)))
    with pytest.raises(ValueError, match=r"`masks` \(layer 'stem', a mask of \(1, 1\) blocks"):
        macs.spent_total(table, state | {"stem": small})
    dense = skip(Net().apply, [("*", None)]).table(Net().init(jax.random.key(1), X), X)
    assert dense.skipped() == ()
    np.testing.assert_allclose(macs.spent_total(dense, {}), [table.macs] * 2)
    with pytest.raises(ValueError, match="`table`"):
        macs.gate_loss(dense, {})


def test_hrnet_w32_row_by_row(shared_dir):
    from skipconv_jax.models.hrnet import hrnet_w32

    reference = json.loads((shared_dir / "reference" / "hrnet_w32_macs.json").read_text())
    model, x = hrnet_w32(joints=15), jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    table = skip(model.apply, gate=GumbelGate(block=8)).table(variables, x)
    rows = {row.name.replace("/", "."): row for row in table.rows}
    assert len(table.rows) == len(rows) == 293
    assert set(rows) == {layer["name"] for layer in reference["layers"]}
    for layer in reference["layers"]:
        row = rows[layer["name"]]
        assert row.macs == layer["macs"], layer["name"]
        assert row.kernel_shape == (*layer["k"], layer["cin"] // layer["groups"], layer["cout"])
        assert row.in_shape == (layer["in_h"], layer["in_w"], layer["cin"])
        assert row.out_shape == (layer["out_h"], layer["out_w"], layer["cout"])
        assert list(row.conv.strides) == layer["stride"]
        assert not row.dense_because
    assert table.macs == reference["total_conv_macs"] == 10_193_076_224
    assert round(table.gate_macs / 1e9, 3) == 0.170
