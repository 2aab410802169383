"""`import skipconv_jax` has every public name, costs little, and loads no heavy library."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import skipconv_jax

HEAVY = ("matplotlib", "tensorflow_datasets", "tensorflow", "orbax", "grain", "cv2", "av", "onnx",
         "torch", "scipy", "flax", "optax", "chex", "rich")  # fmt: skip


def _run(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True,
        cwd=Path(skipconv_jax.__file__).parent.parent,
    )  # fmt: skip
    return done.stdout.split()


def test_importing_costs_under_a_second_and_loads_nothing_heavy():
    seconds, *heavy = _run(
        "import sys, time, jax, jax.numpy\n"
        "since = time.process_time()\n"
        "import skipconv_jax\n"
        "print(time.process_time() - since)\n"
        f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert float(seconds) < 1.0
    assert heavy == []


def test_skipping_a_network_loads_nothing_heavy():
    assert (
        _run(
            "import sys, skipconv_jax as s\n"
            "s.skip, s.Rule, s.InputNormGate, s.ClosedLoop, s.macs, s.skip_conv, s.compile_plan\n"
            "s.SceneCut, s.Drift, s.make_streamer, s.calibrate\n"
            f"print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
        )
        == []
    )


@pytest.mark.parametrize("name", skipconv_jax.__all__)
def test_every_public_name_is_there(name):
    found = getattr(skipconv_jax, name)
    assert found is not None
    assert name in dir(skipconv_jax)
    if not isinstance(found, type(skipconv_jax)):
        home = importlib.import_module(f"skipconv_jax.{skipconv_jax._HOME[name]}")
        assert found is getattr(home, name)


def test_types_know_the_same_names():
    """What mypy sees (the `TYPE_CHECKING` imports) is what `__all__` promises."""
    tree = ast.parse(Path(skipconv_jax.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {(i.module, a.name) for i in block.body for a in i.names}
    assert sorted(name for _, name in names) == sorted(skipconv_jax.__all__)
    homes = {name: home.removeprefix("skipconv_jax.") for home, name in names}
    assert {n: h for n, h in homes.items() if h != "skipconv_jax"} == skipconv_jax._HOME


def test_other_names_are_errors():
    with pytest.raises(AttributeError, match="no attribute 'skipp'"):
        skipconv_jax.skipp  # noqa: B018
