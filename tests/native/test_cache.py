"""A plan's step comes out of JAX's persistent compilation cache."""

import os
import pathlib
import subprocess
import sys

import pytest

from skipconv_jax import native

_SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from skipconv_jax import skip
from skipconv_jax.plans import compile_plan

def net(variables, x):
    z = jax.lax.conv_general_dilated(
        x, variables["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(z)

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16, 16, 4)), jnp.float32)
skipped = skip(net)
params, _ = skipped.init({"kernel": jnp.ones((3, 3, 4, 8))}, x)
plan = compile_plan(skipped, params, x)
hits.clear()
y, state, _ = plan.step(plan.init_state(), x)
y, state, masks = plan.step(state, 2 * x)
np.testing.assert_allclose(y, net(params["model"], 2 * x), rtol=1e-5, atol=1e-5)
print("hits", hits.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.skipif(not native.available(), reason=native.status())
def test_second_process_compiles_nothing(tmp_path: pathlib.Path) -> None:
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    hits = []
    for _ in range(2):
        command = [sys.executable, "-c", _SCRIPT]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr[-2000:]
        hits.append(int(done.stdout.split()[-1]))
    assert list(tmp_path.glob("jit__advance*"))
    assert hits[1] > hits[0]
