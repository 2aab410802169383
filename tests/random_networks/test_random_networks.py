"""A few random networks; `python -m tests.random_networks` runs as many as there is time for."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.ops import AlwaysGate, InputNormGate, Previous
from tests.random_networks import compare
from tests.random_networks.__main__ import main
from tests.random_networks.compare import Case, draw_case
from tests.random_networks.draw import Skipping
from tests.random_networks.networks import Network, Op, function, weights
from tests.random_networks.shrink import shrink

pytestmark = pytest.mark.skipif(not native.available(), reason=native.status())

_CONV = {
    "window": (3, 3),
    "strides": (1, 1),
    "dilation": (1, 1),
    "padding": ((1, 1), (1, 1)),
    "groups": "one",
    "multiplier": 1,
    "features": 4,
    "bias": True,
    "off_frame": False,
}


def _conv(layer: str, source: int) -> Op:
    return Op("conv", (source,), (("layer", layer), *_CONV.items()))


def _case(*ops: Op, gate=None) -> Case:
    network = Network("NHWC", (11, 9), 3, ops, (len(ops),), seed=1)
    skipping = Skipping(gate or InputNormGate(0.1, block=4), Previous(), ())
    return Case(network, skipping, streams=2, frames=24, seed=3, broken=False, winograd=False)


TWO = _case(_conv("c0", 0), Op("act", (1,), (("fn", "relu"),)), _conv("c1", 2))


@pytest.mark.parametrize("index", range(12))
def test_native_apply_and_dense_agree(index):
    case = draw_case(1, index, 48, ("NHWC",))
    outcome = compare.compare(case)
    if outcome.refused is not None:
        pytest.skip(outcome.refused)
    assert not outcome.differences, case
    assert outcome.compared >= 24


def _with_plan(monkeypatch, change):
    """`compare` whose native plan has other constants than the network."""
    real = compare.Run.__init__

    def init(self, case):
        real(self, case)
        change(self)

    monkeypatch.setattr(compare.Run, "__init__", init)


def _thresholds_times(factor):
    """A change of a run: its plan's thresholds are multiplied."""

    def change(run):
        gates = {
            name: {"threshold": jnp.float32(factor) * parts["threshold"]}
            for name, parts in run.params["gates"].items()
        }
        run.plan.__dict__["constants"] = run.plan.with_gates(gates)

    return change


def test_a_wrong_threshold_is_a_difference(monkeypatch):
    plain = compare.compare(TWO)
    assert (plain.compared, plain.flips, plain.differences) == (48, 0, ())
    assert 0.05 < plain.fired < 0.95
    _with_plan(monkeypatch, _thresholds_times(1.5))
    (difference,) = compare.compare(TWO).differences
    assert "mask of c" in difference
    assert "far of the threshold" in difference


@pytest.mark.parametrize(
    ("factor", "step", "flips", "said"),
    [(1 - 1e-6, 0.125, 2, ""), (1 - 4e-5, 0.125 * (1 - 2e-5), 0, "0.0001")],
)
def test_a_score_at_the_threshold_flips_and_one_beside_it_must_not(
    monkeypatch, factor, step, flips, said
):
    """Steps of at most the threshold do not fire; in a plan whose threshold is lower they do."""

    def change(run):
        _thresholds_times(factor)(run)
        resets = np.zeros((24, 2), bool)
        resets[[0, 12]] = True
        steps = np.where(np.arange(24) > 6, step, 0.0).astype(np.float32)
        clip = np.broadcast_to(steps[:, None, None, None, None], (24, 2, 11, 9, 3)).copy()
        run.__dict__["clip"] = clip, resets

    _with_plan(monkeypatch, change)
    one = dict(_conv("c0", 0).attributes) | {"window": (1, 1), "padding": ((0, 0), (0, 0))}
    case = _case(Op("conv", (0,), tuple(one.items())), gate=InputNormGate(0.125, block=4))
    outcome = compare.compare(case)
    assert outcome.flips == flips
    if said:
        assert said in outcome.differences[0]
    else:
        # Both streams are left alone from the flip at frame 7 until their reset at frame 12.
        assert not outcome.differences
        assert outcome.compared == 2 * (24 - 5)


def test_a_wrong_value_is_a_difference(monkeypatch):
    def change(run):
        words, values, gates = run.plan.constants[0]
        run.plan.__dict__["constants"] = ((words, values * 1.01, gates),)

    _with_plan(monkeypatch, change)
    always = _case(_conv("c0", 0), gate=AlwaysGate(block=4))
    (difference,) = compare.compare(always).differences
    assert "native against net.apply: output 0 differs by" in difference


def test_shrinking_keeps_what_fails_and_drops_the_rest():
    ops = (
        *TWO.network.ops,
        Op(
            "mean_pool",
            (3,),
            (("window", (2, 2)), ("strides", (2, 2)), ("padding", ((0, 0), (0, 0)))),
        ),
    )
    case = dataclasses.replace(
        TWO, network=dataclasses.replace(TWO.network, ops=ops, outputs=(4, 1))
    )

    def fails(case):
        return any(op.kind == "mean_pool" for op in case.network.ops)

    small = shrink(case, fails)
    assert [op.kind for op in small.network.ops] == ["mean_pool"]
    assert small.streams == 1
    assert small.frames == 3
    assert len(small.network.outputs) == 1
    x = jnp.zeros(small.network.frame_shape(1))
    assert function(small.network)(weights(small.network), x)[0].shape == (1, 5, 4, 3)


def test_cases_are_the_same_again_and_differ_by_number():
    first, again, other = (draw_case(5, i, 8, ("NHWC", "NCHW")) for i in (0, 0, 1))
    assert first == again
    assert first != other


def test_the_command_counts_and_reports(capsys, monkeypatch):
    assert main(["--networks", "3", "--frames", "12", "--layout", "nhwc", "--seed", "1"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["networks"] + sum(summary["refused"].values()) == 3
    assert summary["stream_frames"] >= 12 * summary["networks"] > 0
    assert summary["differences"] == []
    wrong = compare.Outcome(None, 1, 0, 0.5, ("made up",))
    monkeypatch.setattr("tests.random_networks.__main__.compare", lambda case: wrong)
    assert main(["--networks", "1", "--frames", "12", "--layout", "nhwc", "--tries", "3"]) == 1
    assert "DIFFERENCE --seed 0 --first 0: made up" in capsys.readouterr().out
