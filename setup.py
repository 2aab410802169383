"""Compiles the native CPU engine at installation where a compiler and XLA's headers are there.

`.ci/wheels` sets $SKIPCONV_JAX_MACHINE: then it is compiled for that machine, or the build fails.

Everything else is in pyproject.toml. Without them the package installs all the same, runs on plain
XLA, and `skipconv_jax.native.status()` says so. The configurations of `configs/` travel inside the
package, where `--config NAME` finds them.
"""

import importlib.util
import os
import pathlib
import re
import shutil
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

_ROOT = pathlib.Path(__file__).parent
_NATIVE = _ROOT / "skipconv_jax" / "native"
_MACHINE = os.environ.get("SKIPCONV_JAX_MACHINE", "")


def _builder() -> ModuleType:
    """`skipconv_jax.native.build`, loaded without the package, which needs JAX."""
    spec = importlib.util.spec_from_file_location("skipconv_jax_build", _NATIVE / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{_NATIVE / 'build.py'} is missing; take a complete source tree.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildWithEngine(build_py):
    """Copies the package, then adds the configurations and the engine's library to it."""

    def run(self) -> None:
        """Never fails for want of the engine, unless it is for a wheel to give away."""
        super().run()
        if not self.editable_mode:
            shipped = pathlib.Path(self.build_lib) / "skipconv_jax" / "configs"
            shipped.mkdir(parents=True, exist_ok=True)
            for config in sorted((_ROOT / "configs").glob("*.py")):
                shutil.copyfile(config, shipped / config.name)
        build = _builder()
        inside = pathlib.Path(self.build_lib) / "skipconv_jax" / "native"
        folder = _NATIVE if self.editable_mode else inside
        try:
            print(f"skipconv_jax: built {build.build(folder)}")
        except (build.BuildError, OSError) as error:
            if _MACHINE:
                raise SystemExit(f"skipconv_jax: no engine for {_MACHINE}: {error}") from error
            print(f"skipconv_jax: installed without the native engine: {error}")


class MaybeBinary(Distribution):
    """Wheels carry the platform's tag only if they carry the library."""

    def has_ext_modules(self) -> bool:
        """Whether the engine can be built here."""
        return bool(super().has_ext_modules()) or not _builder().why_not()


class EngineWheel(bdist_wheel):
    """One wheel for every Python: ctypes loads the engine, which knows nothing of its version."""

    def get_tag(self) -> tuple[str, str, str]:
        """`py3-none` with the platform: that of this machine, or manylinux for one to give away."""
        platform = super().get_tag()[2]
        if not _MACHINE:
            return "py3", "none", platform
        (library,) = pathlib.Path(self.bdist_dir).rglob("_skipconv_*.so")
        # The newest function of the C library that the engine calls says which systems it runs on.
        versions = re.findall(rb"\bGLIBC_(\d+)\.(\d+)", library.read_bytes())
        major, minor = max((int(a), int(b)) for a, b in versions)
        return "py3", "none", f"manylinux_{major}_{minor}_{_MACHINE}"


setup(
    cmdclass={"build_py": BuildWithEngine, "bdist_wheel": EngineWheel},
    distclass=MaybeBinary,
)
