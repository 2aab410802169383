"""Every kernel on every instruction set against scalar code, between guards (kernels.cpp)."""

import pathlib
import subprocess

import pytest

from skipconv_jax.native import build
from tests.native.kernel_programs import check_kernel, compile_programs

_KERNELS = (
    "direct", "winograd", "depthwise", "grouped", "pooling", "elementwise", "activations",
    "channels", "resampling", "softmax", "reduction", "norm_gate", "linear_gate",
)  # fmt: skip
_ISAS = ("portable", "avx2", "avx512")
_NEEDS: dict[str, set[str]] = {
    "portable": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"},
}


def _missing(isa: str) -> str:
    """Why this machine can't run an instruction set; empty if it can."""
    if isa not in build.variants():
        return f"{isa} is not of this machine's architecture"
    info = pathlib.Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    lacking = sorted(_NEEDS[isa] - flags)
    return f"this CPU lacks {', '.join(lacking)}" if lacking else ""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """One test program per instruction set that runs here."""
    variants = {i: (i, *build.variants()[i]) for i in _ISAS if not _missing(i)}
    source = pathlib.Path(__file__).with_name("kernels.cpp")
    return compile_programs(source, tmp_path_factory.mktemp("kernels"), variants)


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("isa", _ISAS)
def test_kernel_equals_scalar_code(
    isa: str, kernel: str, binaries: dict[str, pathlib.Path]
) -> None:
    if missing := _missing(isa):
        pytest.skip(missing)
    check_kernel(binaries[isa], kernel)


def test_no_kernel_is_left_out(binaries: dict[str, pathlib.Path]) -> None:
    done = subprocess.run([str(binaries["portable"])], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == _KERNELS
