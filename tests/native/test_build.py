"""Building the engine, instruction sets, and what happens where it is missing."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from skipconv_jax import native
from skipconv_jax.native import build, library

needs_engine = pytest.mark.skipif(not native.available(), reason=native.status())

_PROGRAM = """
import sys, jax, numpy as np
from skipconv_jax import native
from tests.native.emulation import random_case
print(native.isa())
for seed in (17, 29, 47, 63):
    case = random_case(seed)
    state = case.program.init_state(case.frames.shape[1])
    step = jax.jit(case.program.apply)
    for t, frame in enumerate(case.frames):
        state = case.program.reset(state, case.fresh[t])
        outputs, state, masks = step(case.program.constants, state, frame)
        for made, want in zip(outputs, case.outputs[t], strict=True):
            tolerance = 2e-5 * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(made, want, rtol=0, atol=tolerance, err_msg=case.text)
        np.testing.assert_array_equal(masks, case.masks[t], err_msg=case.text)
"""


def _python(code: str, repository: pathlib.Path, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu", **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


@needs_engine
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_lower_instruction_sets_give_the_same(isa: str, repository: pathlib.Path) -> None:
    if native.isa() == "portable":
        pytest.skip("this CPU has nothing above the portable path")
    assert _python(_PROGRAM, repository, SKIPCONV_JAX_ISA=isa).strip() == isa


def test_without_the_engine_plans_run_in_xla_and_say_so(repository: pathlib.Path) -> None:
    code = """
import warnings, jax, jax.numpy as jnp, flax.linen as nn
from skipconv_jax import native, skip
from skipconv_jax.ops import InputNormGate
from skipconv_jax.plans import compile_plan
print(native.status())
model, x = nn.Conv(4, (3, 3)), jnp.ones((2, 16, 16, 3))
net = skip(model.apply, gate=InputNormGate(0.1, block=4))
params, state = net.init(model.init(jax.random.key(0), x), x)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    plan = compile_plan(net, params, x)
assert [str(w.message) for w in caught] == [native.status()], caught
made = plan.init_state()
for frame in (x, x + 1, x + 1):
    y, state = net.apply(params, state, frame)
    got, made, masks = plan.step(made, frame)
    assert (got == y).all()
    assert (plan.fired(masks)["kernel"] == state["kernel"].fired).all()
assert plan.report() == f"net.apply in XLA: {native.status()}"
"""
    first = _python(code, repository, SKIPCONV_JAX_NATIVE="0").splitlines()[0]
    assert first == "skipconv_jax: plain XLA (switched off by SKIPCONV_JAX_NATIVE)"


def test_build_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compiler() is None
    with pytest.raises(build.BuildError, match="install g\\+\\+"):
        build.build(tmp_path)


def test_an_installation_needs_no_package(tmp_path: pathlib.Path) -> None:
    """`pip install` runs the build alone: without this package, JAX, or anything installed."""
    script = (
        "import importlib.util as u; spec = u.spec_from_file_location('b', sys_argv); "
        "build = u.module_from_spec(spec); spec.loader.exec_module(build); "
        "print(len(build.digest()), build._module('schema.py').stale(), "
        "build._module('../whole_files.py').beside('a'))"
    ).replace("sys_argv", repr(build.__file__))
    command = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_headers_are_those_of_the_installed_jaxlib() -> None:
    assert str(build.include_dir()) == str(pathlib.Path(jax.ffi.include_dir()))


@needs_engine
def test_nan_fires_and_shows() -> None:
    builder = native.ProgramBuilder()
    x = builder.input(12, 12, 16)
    kernel = np.ones((3, 3, 16, 16), np.float32)
    pad = ((1, 1), (1, 1))
    gate = native.GateSpec("norm", [1e30], 4)
    builder.output(builder.conv(x, native.ConvSpec(kernel, name="c", padding=pad, gate=gate)))
    program = builder.finish()
    frame = np.ones((1, 12, 12, 16), np.float32)
    _, state, _ = program.apply(program.constants, program.init_state(1), frame)
    frame = frame.copy()
    frame[0, 5, 5, 3] = np.nan
    (y,), _, masks = program.apply(program.constants, state, frame)
    fired = program.fired(masks)["c"][0]
    np.testing.assert_array_equal(fired, [[0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert np.isnan(y[0, 4:7, 4:7]).all()


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    """A cache that holds a whole library, in a world where the package's folder holds none."""
    found = build.find_library()
    assert found is not None
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = build.candidate_dirs()[1]
    monkeypatch.setattr(build, "candidate_dirs", lambda: [tmp_path / "package", cache])
    for path in (found, build._sum_file(found)):
        (cache / path.name).write_bytes(path.read_bytes())
        (cache / path.name).chmod(0o644)
    assert build.find_library() == cache / found.name
    return cache / found.name


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@needs_engine
@pytest.mark.parametrize("damage", [_cut, _flip, lambda p: p.write_bytes(b"foreign"),
                                    lambda p: build._sum_file(p).unlink()])  # fmt: skip
def test_a_damaged_library_is_not_loaded_and_is_built_again(
    copied: pathlib.Path, monkeypatch: pytest.MonkeyPatch, damage
) -> None:
    whole = copied.read_bytes()
    damage(copied)
    assert build.find_library() is None
    assert build.damaged_library() == copied
    # The compiler's part is not what is tested: it gives what it gave before.
    monkeypatch.setattr(
        build, "_compile", lambda command: pathlib.Path(command[-1]).write_bytes(whole)
    )
    assert build.build(copied.parent) == copied
    assert build.find_library() == copied
    assert copied.read_bytes() == whole


@needs_engine
def test_a_library_others_may_write_is_not_loaded(copied: pathlib.Path) -> None:
    copied.chmod(0o666)
    assert build.find_library() is None
    copied.chmod(0o644)
    assert build.find_library() == copied


def test_an_open_cache_is_named_where_no_engine_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tmp_path.chmod(0o777)
    assert build.candidate_dirs() == [pathlib.Path(build.__file__).parent]
    assert "writable by everybody" in build.why_untrusted()


def test_leftovers_of_killed_builds_are_no_libraries_and_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / build.library_name()
    part = target.with_name(f".{target.name}.123.tmp")
    part.write_bytes(b"half")
    target.write_bytes(b"library, but its sum was not written before the kill")
    monkeypatch.setattr(build, "_compile", lambda c: pathlib.Path(c[-1]).write_bytes(b"whole"))
    build.build(tmp_path)
    assert target.read_bytes() == b"whole"
    assert build.is_whole(target)
    assert not part.exists()


@needs_engine
@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("SKIPCONV_JAX_ISA", "avx-512", "portable.*avx2.*avx512"),
        ("SKIPCONV_JAX_NUM_THREADS", "two", "from 1 to 64"),
        ("SKIPCONV_JAX_NUM_THREADS", "0", "from 1 to 64"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} \\(='{value}'\\).*{allowed}"):
        library._settings()
