"""Int8 kernels of every instruction set against scalar integers, between guards."""

import pathlib
import subprocess

import pytest

from skipconv_jax.native import build
from tests.native.kernel_programs import check_kernel, compile_programs

_KERNELS = ("dense", "pointwise", "depthwise", "store", "distance")
# What every processor with a compiler has in place of vectors of bytes, as on ARM.
_GENERIC = "generic"
_NEEDS: dict[str, set[str]] = {
    "portable": set(),
    _GENERIC: set(),
    "avx2": {"avx2", "fma"},
    "avx_vnni": {"avx2", "fma", "avx_vnni"},
    "avx512": {"avx512f", "avx512dq", "avx512vl", "avx512bw"},
    "avx512_vnni": {"avx512f", "avx512dq", "avx512vl", "avx512bw", "avx512_vnni"},
}


def _missing(isa: str) -> str:
    """Why this machine can't run an instruction set; empty if it can."""
    if isa not in (*build.int8_variants(), _GENERIC):
        return f"{isa} is not of this machine's architecture"
    info = pathlib.Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    lacking = sorted(_NEEDS[isa] - flags)
    return f"this CPU lacks {', '.join(lacking)}" if lacking else ""


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """One test program per instruction set that runs here."""
    variants = {
        isa: (isa, *build.int8_variants()[isa])
        for isa in _NEEDS
        if isa != _GENERIC and not _missing(isa)
    }
    if not _missing(_GENERIC):
        variants[_GENERIC] = ("portable", 4, ("-DSKC_GENERIC",))
    source = pathlib.Path(__file__).with_name("int8_kernels.cpp")
    return compile_programs(source, tmp_path_factory.mktemp("kernels"), variants)


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("isa", _NEEDS)
def test_kernel_equals_scalar_integers(
    isa: str, kernel: str, binaries: dict[str, pathlib.Path]
) -> None:
    if missing := _missing(isa):
        pytest.skip(missing)
    check_kernel(binaries[isa], kernel)


def test_every_set_and_kernel_is_tested(binaries: dict[str, pathlib.Path]) -> None:
    done = subprocess.run([str(binaries["portable"])], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == _KERNELS
    assert set(build.int8_variants()) - {"neon"} <= set(_NEEDS)
