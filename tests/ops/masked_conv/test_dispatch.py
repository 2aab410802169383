"""Who computes a masked convolution: by platform, by name, and never after an error."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import pytest

from skipconv_jax.ops import IMPLEMENTATIONS
from skipconv_jax.ops.masked_conv import (
    Epilogue,
    api,
    blocks,
    implementation_name,
    masked_conv,
    preferred,
    why_unsupported,
)
from tests.ops.masked_conv.contract import drawn, posed


@dataclasses.dataclass
class _Spy:
    """An implementation that notes its use, and computes nothing."""

    name: str
    supports: object
    used: list

    def masked_conv(self, problem, arrays):
        """Notes its name."""
        self.used.append(self.name)
        return arrays.base


@pytest.mark.parametrize(
    ("platform", "case", "chosen"),
    [
        ("cpu", {}, "blocks"),
        ("tpu", {}, "pallas_tpu"),
        ("tpu", {"groups": 2}, "dense"),
        ("gpu", {}, "pallas_gpu"),
        ("gpu", {"block": 4}, "packed"),
        ("gpu", {"block": 2}, "dense"),
    ],
)
def test_dispatch_by_platform_with_fallback(monkeypatch, platform, case, chosen):
    keywords, arrays = drawn(**case)
    used = []
    real = api._implementation
    spies = {name: _Spy(name, real(name).supports, used) for name in IMPLEMENTATIONS}
    monkeypatch.setattr(api, "_implementation", spies.__getitem__)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    hopper = types.SimpleNamespace(compute_capability="9.0", device_kind="H200")
    monkeypatch.setattr(jax, "devices", lambda: [hopper])
    assert preferred(posed(keywords, arrays)) == chosen
    masked_conv(*arrays, **keywords)
    assert used == [chosen]


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_an_error_inside_an_implementation_is_not_a_case_it_lacks(monkeypatch, error):
    keywords, arrays = drawn()

    def fail(problem, arrays):
        raise error("a bug")

    monkeypatch.setattr(blocks, "masked_conv", fail)
    for name in (None, "blocks"):
        with pytest.raises(error, match=r"^a bug$"):
            masked_conv(*arrays, **keywords, implementation=name)


def test_unknown_implementation_is_refused_with_the_list():
    keywords, arrays = drawn()
    for ask in (
        lambda: masked_conv(*arrays, **keywords, implementation="fast"),
        lambda: why_unsupported("fast", posed(keywords, arrays)),
        lambda: implementation_name("fast"),
    ):
        with pytest.raises(ValueError, match=r"`implementation` \(='fast'\) must be one of"):
            ask()


def test_a_former_name_is_understood():
    assert "reference" not in IMPLEMENTATIONS
    assert implementation_name("reference") == "dense"
    assert implementation_name(None) is None
    keywords, arrays = drawn(spatial=(8, 8), streams=1)
    got, same = (
        masked_conv(*arrays, **keywords, implementation=name) for name in ("reference", "dense")
    )
    assert (got == same).all()


def test_epilogue_refuses_outputs_that_are_added_to():
    keywords, arrays = drawn(recompute=False)
    with pytest.raises(ValueError, match="`epilogue` must be None with `recompute=False`"):
        masked_conv(*arrays, **keywords, epilogue=Epilogue(arrays[2], arrays[2]))
    with pytest.raises(ValueError, match="`activation`"):
        Epilogue(arrays[2], arrays[2], activation="gelu")


REFUSED_BY_BOTH = {
    "float16": ({}, jnp.float16),
    "negative padding": ({"padding": ((-1, 1), (1, 1))}, jnp.float32),
    "groups": ({"groups": 2}, jnp.float32),
}


@pytest.mark.parametrize("name", ["pallas_tpu", "pallas_gpu"])
@pytest.mark.parametrize(("case", "dtype"), REFUSED_BY_BOTH.values(), ids=REFUSED_BY_BOTH)
def test_what_no_kernel_takes_is_named(name, case, dtype, request):
    keywords, (x, *rest) = drawn(**case)
    with pytest.raises(
        NotImplementedError, match=f"^{name}: .*{request.node.callspec.id.split('-')[0]}"
    ):
        masked_conv(x.astype(dtype), *rest, **keywords, implementation=name)
