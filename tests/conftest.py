"""Settings every test runs under, and the fixtures that several areas share."""

import os
from pathlib import Path

import jax
import pytest

# Most of the suite's time is XLA compiling networks that run a few times on a few pixels: compile
# them the cheap way, which is 2 to 5 times faster. `TEST_XLA=default` tests what users run.
_CHEAP = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if jax.__version_info__ < (0, 11):
    # Half of the gain; later versions have no such emitters, and die of a flag they don't know.
    _CHEAP.append("--xla_cpu_use_fusion_emitters=false")
if os.environ.get("TEST_XLA", "cheap") != "default":
    # What the caller set comes last and wins; processes that tests start inherit it.
    os.environ["XLA_FLAGS"] = " ".join([*_CHEAP, os.environ.get("XLA_FLAGS", "")])

# Silent promotion turns float32 pipelines into float64 ones, and (B,) into (B, B): forbid both.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Builds the native engine once, before any worker starts: unbuilt, its tests would skip.

    Where it can't be built (no compiler) or is switched off they do, with the reason.
    """
    if hasattr(config, "workerinput") or os.environ.get("SKIPCONV_JAX_NATIVE"):
        return
    from skipconv_jax.native import build

    if not build.why_not() and build.find_library() is None:
        build.build()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout: where the commands and `configs/` lie."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder `../shared` with reference figures and real data, which no checkout carries."""
    path = REPOSITORY.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the reference material in ../shared, not part of the repository")
    return path
