"""The accelerator benchmark in its CPU form, on a network of two convolutions."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu
from skipconv_jax import skip


class Pair(nn.Module):
    """Two convolutions."""

    @nn.compact
    def __call__(self, x):
        """`(B, H, W, 3)` to `(B, H, W, 4)`."""
        return nn.Conv(4, (1, 1))(nn.relu(nn.Conv(8, (3, 3))(x)))


@pytest.fixture
def network(monkeypatch):
    """`pair`, 32 x 32, in blocks of 8: 16 blocks a layer."""
    monkeypatch.setitem(gpu.NETWORKS, "pair", gpu.Network(lambda dtype: Pair(), 32))
    return "pair"


def test_one_command_prints_and_writes_a_row_per_share(network, capsys, tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(f"--networks {network} --matrix 64 --activity 0.5 1 --json {out}".split())
    printed = capsys.readouterr().out
    assert printed.startswith(f"platform: {jax.devices()[0].platform}")
    rows = json.loads(out.read_text())["rows"]
    assert [row["fired"] for row in rows] == [0.5, 1.0]
    half, full = (row["MACs / dense"] for row in rows)
    assert 0.2 < half < 0.8
    assert full == pytest.approx(1)
    for row in rows:
        assert row["of promise"] == pytest.approx(row["speed-up"] * row["MACs / dense"])
        assert str(row["streams"]) in printed


def test_streams_are_reset_each_by_itself_in_the_compiled_step(network):
    bench = gpu.Bench(network, "float32", 3, None)
    bench.share(0.25)
    _, state = bench.skipped(jnp.array([False, True, False]))
    fired = [float(state["Conv_0"].fired[stream].mean()) for stream in range(3)]
    assert fired[1] == 1
    assert max(fired[0], fired[2]) < 1


def test_share_gate_fires_its_share_of_blocks():
    gate = gpu.ShareGate(block=8)
    for share in (0.0, 0.25, 1.0):
        fired = gate.fire({"share": jnp.asarray(share)}, jnp.zeros((64, 8, 8)), None)
        assert float(fired.mean()) == pytest.approx(share, abs=0.02)


def test_least_bytes_counts_halo_state_and_weights():
    def net(w, x):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    skipped = skip(net, gate=gpu.ShareGate(block=8))
    table = skipped.table(jnp.zeros((3, 3, 2, 4)), jnp.zeros((1, 16, 16, 2)))
    inputs, outputs, weights = 16 * 16 * 2 * 4, 16 * 16 * 4 * 4, 9 * 2 * 4 * 4
    assert gpu.least_bytes(table, None, 4) == inputs + outputs + weights
    halo = (10 / 8) ** 2
    expected = 3 * inputs + 0.5 * (halo * inputs + 2 * outputs) + weights
    np.testing.assert_allclose(gpu.least_bytes(table, 0.5, 4), expected)
