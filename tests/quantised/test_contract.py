"""Plans of a quantised network keep the contract of plans, in integers, on either engine."""

import pytest

from skipconv_jax import native, quantize
from tests.plans import contract

needs_native = pytest.mark.skipif(not native.available(), reason=native.status())


@pytest.fixture(scope="module")
def quantised():
    """Weights and function of the contract's network in int8."""
    return quantize(contract.network, contract.variables(), contract.clip())


@pytest.fixture(scope="module")
def folded(quantised):
    """In XLA."""
    weights, fn = quantised
    return contract.made("folded", fn, weights, "int8")


@pytest.fixture(scope="module")
def native_one(quantised):
    """In the engine."""
    weights, fn = quantised
    return contract.made("native", fn, weights, "int8")


class TestFolded(contract.PlanContract):
    """Integers in XLA."""

    engine = "folded"

    @pytest.fixture
    def made(self, folded):
        """Compiled once."""
        return folded


@needs_native
class TestNative(contract.PlanContract):
    """Integers in the engine."""

    engine = "native"

    @pytest.fixture
    def made(self, native_one):
        """Compiled once."""
        return native_one
