"""The light core runs alone; what is missing is one line that names the extra."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from skipconv_jax import extras

# Blocks every optional module, then lets the core stream a network of bare `jax.lax`.
RUN = """
import importlib, sys
sys.modules.update(dict.fromkeys({blocked!r}))
import jax, jax.numpy as jnp
import skipconv_jax
from skipconv_jax.ops import InputNormGate
from skipconv_jax.plans import compile_plan
import skipconv_jax.macs, skipconv_jax.streaming.runner, skipconv_jax.streaming.sources
heavy = [m for m in ("matplotlib", "ml_collections", "torch") if sys.modules.get(m)]
assert not heavy, heavy

def fn(kernel, x):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

x = jnp.ones((1, 8, 8, 3))
net = skipconv_jax.skip(fn, gate=InputNormGate(1e-3))
params, _ = net.init(jnp.ones((3, 3, 3, 4)), x)
plan = compile_plan(net, params, x)
y, _, _ = plan.step(plan.init_state(), x)
assert float(y[0, 4, 4, 0]) == 27.0
for module in {wanting!r}:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, type(error).__name__, error, sep="|")
"""
WANTING = {
    "skipconv_jax.live.mqtt": "serve",
    "skipconv_jax.models": "models",
    "skipconv_jax.training.step": "train",
    "skipconv_jax.data.pipeline": "data",
    "skipconv_jax.data.records": "data",
    "skipconv_jax.compress": "models",
}


def test_the_core_streams_alone_and_names_the_extra_that_is_missing(repository):
    code = RUN.format(blocked=sorted(extras.EXTRA_OF), wanting=sorted(WANTING))
    env = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [(module, kind) for module, kind, _ in lines] == [
        (m, "MissingExtra") for m in sorted(WANTING)
    ]
    for module, _, message in lines:
        assert f"pip install 'skipconv-jax[{WANTING[module]}]'" in message


def test_a_module_of_no_extra_is_left_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"), extras.required():
        import nowhere_to_be_found  # noqa: F401  # type: ignore[import-not-found]


def test_every_optional_module_is_in_the_extra_that_its_message_names(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    listed = {
        extra: {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    package = {"orbax": "orbax-checkpoint", "paho": "paho-mqtt"}
    for module, extra in extras.EXTRA_OF.items():
        assert package.get(module, module.lower().replace("_", "-")) in listed[extra], module
    core = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    assert core.isdisjoint(package.get(m, m.lower()) for m in extras.EXTRA_OF)
