"""Test programs of the kernels: one binary per instruction set, compiled side by side."""

import concurrent.futures
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence

import pytest

from skipconv_jax.native import build


def compile_programs(
    source: pathlib.Path,
    folder: pathlib.Path,
    variants: Mapping[str, tuple[str, int, Sequence[str]]],
) -> dict[str, pathlib.Path]:
    """A program per variant `(SKC_ISA, SKC_VW, flags)`, by its name; skips without a compiler."""
    cxx = build.compiler()
    if cxx is None:
        pytest.skip("no C++ compiler")
    common = ["-std=c++17", "-O1", "-ffp-contract=fast", "-Wno-psabi", "-Wno-unused-function"]
    made, jobs = {}, []
    for variant, (isa, width, flags) in variants.items():
        made[variant] = folder / variant
        defines = [f"-DSKC_ISA={isa}", f"-DSKC_VW={width}", f"-I{build.source_dir()}"]
        jobs.append([cxx, *common, *flags, *defines, str(source), "-o", str(made[variant])])

    def compile_one(command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr[-3000:] if done.returncode else ""

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        assert not [error for error in pool.map(compile_one, jobs) if error]
    return made


def check_kernel(program: pathlib.Path, kernel: str) -> None:
    """Runs one kernel's cases: none crashes, none is wrong, none is left out."""
    command = [str(program), kernel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stdout == "200 cases, 0 wrong\n"
