"""Int8 kernels of every instruction set against scalar integers, between guards."""

import concurrent.futures
import os
import pathlib
import subprocess

import pytest

from skipconv_jax.native import build

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
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    source = pathlib.Path(__file__).with_name("int8_kernels.cpp")
    made, jobs = {}, []
    for isa in _NEEDS:
        if _missing(isa):
            continue
        generic = isa == _GENERIC
        width, flags = (4, ("-DSKC_GENERIC",)) if generic else build.int8_variants()[isa]
        made[isa] = folder / isa
        common = ["-std=c++17", "-O1", "-ffp-contract=fast", "-Wno-psabi", "-Wno-unused-function"]
        name = "portable" if generic else isa
        defines = [f"-DSKC_ISA={name}", f"-DSKC_VW={width}", f"-I{build.source_dir()}"]
        jobs.append([cxx, *common, *flags, *defines, str(source), "-o", str(made[isa])])

    def compile_one(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr[-3000:] if done.returncode else ""

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        assert not [error for error in pool.map(compile_one, jobs) if error]
    return made


@pytest.mark.parametrize("kernel", _KERNELS)
@pytest.mark.parametrize("isa", _NEEDS)
def test_kernel_equals_scalar_integers(
    isa: str, kernel: str, binaries: dict[str, pathlib.Path]
) -> None:
    if missing := _missing(isa):
        pytest.skip(missing)
    command = [str(binaries[isa]), kernel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout == "200 cases, 0 wrong\n"


def test_every_set_and_kernel_is_tested(binaries: dict[str, pathlib.Path]) -> None:
    done = subprocess.run([str(binaries["portable"])], capture_output=True, text=True, check=True)
    assert tuple(done.stdout.split()) == _KERNELS
    assert set(build.int8_variants()) - {"neon"} <= set(_NEEDS)
