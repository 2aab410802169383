"""Modules of 0.1.0 import under their old names, with a warning, and are what they became."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import skipconv_jax
from skipconv_jax.moved import MOVED, new_name

PACKAGE = Path(skipconv_jax.__file__).parent


@pytest.mark.parametrize("old", sorted(MOVED))
def test_old_modules_are_the_new_ones(old):
    assert not list(PACKAGE.glob(f"{old.replace('.', '/')}*.py")), "it is still there"
    sys.modules.pop(f"skipconv_jax.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"`skipconv_jax.{old}` is now `skipconv_jax."):
        module = importlib.import_module(f"skipconv_jax.{old}")
    target = importlib.import_module(f"skipconv_jax.{MOVED[old]}")
    own = [name for name in vars(target) if not name.startswith("__")]
    assert own
    assert all(getattr(module, name) is getattr(target, name) for name in own)
    assert target.__spec__.name == target.__name__
    with pytest.raises(AttributeError):
        module.no_such_name  # noqa: B018


def test_only_what_moved_is_found():
    assert new_name("skipconv_jax.graph.nodes") == "skipconv_jax.program.fold.nodes"
    assert new_name("skipconv_jax.ops.conv.reference") == "skipconv_jax.ops.masked_conv.dense"
    assert new_name("skipconv_jax.plans") is None
    assert new_name("plan") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("skipconv_jax.planets")


def test_the_warning_names_the_user_s_line(tmp_path):
    script = tmp_path / "old.py"
    script.write_text("import jax\nfrom skipconv_jax.plan import compile_plan\n")
    done = subprocess.run(
        [sys.executable, "-W", "default::DeprecationWarning:__main__", script],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert f"{script}:2: DeprecationWarning: `skipconv_jax.plan` is now" in done.stderr


def test_names_that_moved_within():
    from skipconv_jax import streaming, tuning
    from skipconv_jax.streaming import runner

    with pytest.warns(DeprecationWarning, match="now `skipconv_jax.tuning.gate_plan.GatePlan`"):
        assert tuning.Plan is tuning.GatePlan
    with pytest.warns(DeprecationWarning, match="now `skipconv_jax.streaming.runner.make_streamer"):
        assert streaming.make_streamer is runner.make_streamer
    with pytest.raises(AttributeError, match=r"'skipconv_jax\.tuning' has no attribute 'Plans'"):
        tuning.Plans  # noqa: B018
