"""Settings every test runs under, and the fixtures that several areas share."""

from pathlib import Path

import jax
import pytest

# Silent promotion turns float32 pipelines into float64 ones, and (B,) into (B, B): forbid both.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parent.parent


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
