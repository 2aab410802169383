"""Configurations: loading, the gates they name, and the command line's errors."""

import os
import subprocess
import sys

import pytest

from skipconv_jax import config as configs
from skipconv_jax.ops import ClosedLoop, GumbelGate, InputNormGate, OutputNormGate
from skipconv_jax.tasks import build
from skipconv_jax.tuning import GatePlan, LayerGate


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch, repository):
    monkeypatch.chdir(repository)


@pytest.mark.parametrize("name", ["hrnet_synthetic", "hrnet_jhmdb"])
def test_every_pose_config_builds_its_network(name):
    config = configs.load(f"configs/{name}.py")
    table = build(config).table()
    assert not [row for row in table.rows if not row.skipped]


@pytest.mark.parametrize(
    ("spec", "gmac"),
    # One class; `reference/effdet_d0_macs.json` has 90.
    [("efficientdet_detrac.py:d0", 2.2126), ("efficientdet_synthetic.py", 0.0524)],
)
def test_a_detector_has_a_gate_per_separable_pair(spec, gmac):
    table = build(configs.load(f"configs/{spec}")).table()
    assert table.macs / 1e9 == pytest.approx(gmac, rel=1e-3)
    kinds = {}
    for row in table.rows:
        part = "se" if "/se/" in row.name else "dw" if "conv_dw" in row.name else "other"
        kinds.setdefault(part, set()).add(type(row.gate).__name__)
    assert kinds == {"se": {"NoneType"}, "dw": {"InputNormGate"}, "other": {"GumbelGate"}}
    assert table.gate_macs < 0.03 * table.macs


@pytest.mark.parametrize("spec", ["efficientdet_synthetic.py:huge", "efficientdet_detrac.py:d9"])
def test_an_unknown_size_of_the_detector_is_refused(spec):
    with pytest.raises(ValueError, match="must be one of"):
        configs.load(f"configs/{spec}")


def test_an_argument_reaches_the_config():
    assert configs.load("configs/hrnet_jhmdb.py:3").data.split == 3
    with pytest.raises(ValueError, match="must be the split"):
        configs.load("configs/hrnet_jhmdb.py:4")


def test_what_is_no_config_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"existing \.py file"):
        configs.load("configs/nothing.py")
    (tmp_path / "x.py").write_text("")
    with pytest.raises(ValueError, match="must define `get_config"):
        configs.load(str(tmp_path / "x.py"))


def test_skip_options_name_gates_rules_and_policy():
    config = configs.base("pose")
    config.skip.rules = (("head*", None), ("stage4/*", {"name": "input_norm", "threshold": 0.5}))
    config.skip.policy = "closed_loop"
    options = configs.skip_options(config)
    assert options["gate"] == GumbelGate(block=8)
    assert options["rules"][0] == ("head*", None)
    assert options["rules"][1][1].gate == InputNormGate(threshold=0.5)
    assert options["policy"] == ClosedLoop()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="must be one of"):
        configs.gate({"name": "magic"})
    with pytest.raises(ValueError, match="must hold arguments of 'gumbel'"):
        configs.gate({"name": "gumbel", "threshold": 1.0})
    config = configs.base("pose")
    config.skip.policy = "none"
    with pytest.raises(ValueError, match=r"`skip\.policy`"):
        configs.skip_options(config)


def test_a_gate_and_a_policy_of_one_s_own():
    where = "skipconv_jax.ops.gates:OutputNormGate"
    made = configs.gate({"name": where, "threshold": 0.5, "block": 2})
    assert made == OutputNormGate(threshold=0.5, block=2)
    config = configs.base("pose")
    config.skip.policy = "skipconv_jax.ops.policies:ClosedLoop"
    assert configs.skip_options(config)["policy"] == ClosedLoop()
    with pytest.raises(ValueError, match=r"`gate.name` .* must be `module:object` that can be"):
        configs.gate({"name": "skipconv_jax.ops.gates:NoGate"})


def test_a_gate_plan_takes_the_place_of_gates_and_rules(tmp_path):
    """Under its name, and under the one it had in 0.1.0."""
    saved = GatePlan((("a", LayerGate((3, 3, 2, 4), InputNormGate(0.5))),), "closed_loop")
    saved.save(tmp_path / "gates.json")
    for field in ("gate_plan", "plan"):
        config = configs.base("pose")
        config.skip[field] = str(tmp_path / "gates.json")
        assert configs.skip_options(config)["rules"] == saved


def test_a_task_s_fields_are_its_own():
    assert configs.base("pose").eval.convention == "extent"
    assert "flow" in configs.base("detection")
    for task in ("", "given", "pose"):
        assert "flow" not in configs.base(task)
    with pytest.raises(ValueError, match=r"`task` \(='pots'\) must be a folder"):
        configs.base("pots")


def test_a_gate_from_the_command_line_replaces_all_gates():
    config = configs.base("pose")
    config.skip.rules = (("head*", None), ("stage4/*", {"name": "gumbel"}))
    changed = configs.set_gate(config, "input_norm", 0.1, 4)
    options = configs.skip_options(changed)
    assert options["gate"] == InputNormGate(threshold=0.1, block=4)
    assert options["rules"] == [("head*", None)]
    assert config.skip.gate.name == "gumbel", "the original is not changed"
    with pytest.raises(ValueError, match="must come with a norm gate"):
        configs.set_gate(config, None, 0.1, None)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train.py"], 2, "--config is missing"),
        (["train.py", "--config", "configs/none.py"], 1, "none.py"),
        (
            ["train.py", "--config", "configs/hrnet_synthetic.py", "--config.nothing=1"],
            2,
            "nothing",
        ),
        (
            ["train.py", "--config", "configs/hrnet_jhmdb.py", "--config.data.root=nowhere"],
            1,
            "To run without it: `python train.py --config configs/hrnet_synthetic.py`",
        ),
        (["stream.py", "nowhere.mp4", "--config", "configs/hrnet_synthetic.py"], 1, "nowhere.mp4"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(arguments, code, message):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
