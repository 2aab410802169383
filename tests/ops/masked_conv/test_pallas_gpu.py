"""The kernel for Hopper GPUs, interpreted on the CPU; see `test_pallas_tpu`."""

import types

import jax
import pytest

from skipconv_jax.ops.masked_conv import masked_conv
from tests.ops.cases import Case, named
from tests.ops.masked_conv.contract import AcceleratorContract, check, drawn

CASES = {
    "added to, ragged": {"spatial": (13, 9), "streams": 1, "share": 0.7, "recompute": False},
    "nothing fires": {"share": 0.0, "streams": 1},
    "5x5, stride 2, blocks of 16": {"k": 5, "strides": 2, "block": 16, "streams": 1},
}
# What the tensor cores take: blocks of 8 and channels by 8.
_TAKEN = Case("tensor-cores", (9, 10), (3, 3), ci=8, co=8, strides=2, padding=1, block=8)


class TestPallasGpu(AcceleratorContract):
    """Interpreted, hence few cases."""

    implementation = "pallas_gpu"
    cases = (_TAKEN, *named("plain", "stride-two-torch", "depthwise"))
    gradient_case = _TAKEN
    limits = ("block 4; a multiple of 8",)

    @pytest.mark.parametrize("drawing", CASES.values(), ids=CASES)
    def test_equals_the_dense_one(self, drawing):
        check(self.implementation, *drawn(**drawing))


@pytest.mark.parametrize(
    ("case", "match"),
    [({"block": 4}, "block 4"), ({"ci": 3}, "3 input channels"), ({"co": 17}, "17 output")],
)
def test_what_tensor_cores_do_not_take_is_refused(case, match):
    keywords, arrays = drawn(**case)
    with pytest.raises(NotImplementedError, match=f"^pallas_gpu: {match}"):
        masked_conv(*arrays, **keywords, implementation="pallas_gpu")


def test_a_gpu_that_is_no_hopper_is_refused(monkeypatch):
    keywords, arrays = drawn()
    ampere = types.SimpleNamespace(compute_capability="8.0", device_kind="A100")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [ampere])
    with pytest.raises(NotImplementedError, match=r"^pallas_gpu: A100 .*8\.0.* no Hopper"):
        masked_conv(*arrays, **keywords, implementation="pallas_gpu")
