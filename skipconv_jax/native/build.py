"""Builds the native engine with the system's C++ compiler: `python -m skipconv_jax.native.build`.

One shared library holds the engine for AVX-512, AVX2 and any x86-64, and picks at run time; on ARM
it is NEON. $SKIPCONV_JAX_MACHINE (x86_64, aarch64) builds one to give away: for that machine, by
the cross compiler that $CXX names, and with the C++ runtime inside.
`--export DIR` copies it and its header to `DIR/libskipconv.so` and `DIR/skipconv.h` for C.
The library's name carries a hash of sources and flags, so that an old one is never loaded, and
`<library>.sha256` beside it a hash of its content, so that a damaged one is never loaded either.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from types import ModuleType

# Compiled once per instruction set, and once for all of them.
PER_ISA = (
    "ops/op_chain.cpp",
    "ops/op_conv.cpp",
    "ops/op_input.cpp",
    "ops/op_output.cpp",
    "ops/op_pixels.cpp",
    "ops/op_qconv.cpp",
    "ops/op_qedges.cpp",
    "ops/op_qpixels.cpp",
    "ops/op_spatial.cpp",
    "runtime/engine.cpp",
)
# The int8 kernels, once per set that differs in how it multiplies bytes.
INT8 = "kernels/int8_table.cpp"
_ONCE = (
    "runtime/pool.cpp",
    "runtime/platform.cpp",
    "runtime/dispatch.cpp",
    "runtime/plan_file.cpp",
    "runtime/c_api.cpp",
    "runtime/ffi.cpp",
)
_COMMON = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread")
# Contraction to FMA is the point of the kernels; nothing else of fast-math is wanted.
_FLOAT = (
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-unused-function",
    "-Wno-psabi",
)
# The name is what C programs are linked to; Python loads by path.
_NAME = "-install_name,@rpath/" if sys.platform == "darwin" else "-soname,"
_LINK = ("-shared", "-pthread", f"-Wl,{_NAME}libskipconv.so")
_X86 = {
    "avx512": (
        16,
        (
            "-mavx512f",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx512bw",
            "-mfma",
            "-mprefer-vector-width=512",
        ),
    ),
    "avx2": (8, ("-mavx2", "-mfma")),
}


_VNNI = {
    "avx512_vnni": (16, (*_X86["avx512"][1], "-mavx512vnni")),
    "avx_vnni": (8, (*_X86["avx2"][1], "-mavxvnni")),
}


class BuildError(RuntimeError):
    """The native engine could not be compiled."""


def source_dir() -> pathlib.Path:
    """Where the C++ sources lie."""
    return pathlib.Path(__file__).parent / "csrc"


def machine() -> str:
    """The processor architecture that is built for: $SKIPCONV_JAX_MACHINE, or this one's."""
    return os.environ.get("SKIPCONV_JAX_MACHINE") or platform.machine()


def variants() -> dict[str, tuple[int, tuple[str, ...]]]:
    """Vector width and compiler flags of each instruction set of `machine()`."""
    if machine() in ("aarch64", "arm64"):
        return {"neon": (4, ())}
    portable: dict[str, tuple[int, tuple[str, ...]]] = {"portable": (4, ())}
    return portable | (_X86 if machine() in ("x86_64", "AMD64") else {})


def int8_variants() -> dict[str, tuple[int, tuple[str, ...]]]:
    """Vector width and compiler flags of each set of int8 kernels of `machine()`."""
    return variants() | (_VNNI if machine() in ("x86_64", "AMD64") else {})


def compiler() -> str | None:
    """`$CXX`, g++ or clang++, whichever is there."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    return None


def include_dir() -> pathlib.Path | None:
    """XLA's headers, which ship with jaxlib.

    An isolated build of the package can't import jaxlib, but finds where it will run.
    """
    spec = importlib.util.find_spec("jaxlib")
    roots = [pathlib.Path(p) for p in (spec.submodule_search_locations if spec else None) or ()]
    roots += [pathlib.Path(sysconfig.get_path(key), "jaxlib") for key in ("platlib", "purelib")]
    found = (root / "include" for root in roots)
    return next((p for p in found if (p / "xla" / "ffi" / "api" / "ffi.h").exists()), None)


def why_not() -> str:
    """What is missing to build the library; empty if nothing is."""
    if compiler() is None:
        return "no C++ compiler found; install g++ or set $CXX"
    if include_dir() is None:
        return "jaxlib with its headers is not installed; install it, then build"
    return ""


def _module(file: str) -> ModuleType:
    """A module of the package by its file: at installation, when this runs, there is no package."""
    path = pathlib.Path(__file__).parent / file
    spec = importlib.util.spec_from_file_location(f"skipconv_jax_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BuildError(f"{path} is missing; take a complete source tree")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest() -> str:
    """Hash of everything the library depends on."""
    parts = [repr((_COMMON, _FLOAT, _LINK, sorted(int8_variants().items())))]
    root = source_dir()
    parts += [
        p.relative_to(root).as_posix() + p.read_text()
        for p in sorted(root.rglob("*"))
        if p.suffix in (".cpp", ".h")
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def library_name() -> str:
    """File name of the library of these sources on this platform."""
    return f"_skipconv_{digest()}.so"


def candidate_dirs() -> list[pathlib.Path]:
    """Directories the library is looked for and built in: the package, then the user's cache.

    The cache is left out where somebody else could write to it (`why_untrusted` says so).
    """
    package = pathlib.Path(__file__).parent
    # Imported late: setup.py runs this file alone, where the package can't be imported.
    from skipconv_jax import trusted

    try:
        return [package, trusted.user_cache()]
    except OSError:
        return [package]


def why_untrusted() -> str:
    """Why the user's cache folder is not used; empty where it is."""
    from skipconv_jax import trusted

    try:
        trusted.user_cache()
    except OSError as error:
        return str(error)
    return ""


def find_library() -> pathlib.Path | None:
    """The built library, or None. One that is damaged, or that others could write, is passed over.

    In the package's own folder owner and mode are those of the Python code that is running already.
    """
    from skipconv_jax import trusted

    package, *caches = (folder / library_name() for folder in candidate_dirs())
    if is_whole(package):
        return package
    for path in caches:
        with contextlib.suppress(trusted.UntrustedError):
            trusted.check(path)
            if is_whole(path):
                return path
    return None


def damaged_library() -> pathlib.Path | None:
    """A library of the right name whose content is not what was built, or None."""
    paths = (folder / library_name() for folder in candidate_dirs())
    return next((path for path in paths if path.exists() and not is_whole(path)), None)


def _sum_file(library: pathlib.Path) -> pathlib.Path:
    return library.with_name(library.name + ".sha256")


def is_whole(library: pathlib.Path) -> bool:
    """Whether the content is what was built: its hash is the one in the file beside it."""
    try:
        written = _sum_file(library).read_text().split()
        return bool(written) and hashlib.sha256(library.read_bytes()).hexdigest() == written[0]
    except (OSError, ValueError):
        return False


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def build(folder: pathlib.Path | None = None) -> pathlib.Path:
    """Compiles the library into `folder` (default: the first writable of `candidate_dirs()`).

    Raises:
      BuildError: no compiler or no headers, or it failed.
    """
    cxx, headers = compiler(), include_dir()
    if cxx is None or headers is None:
        raise BuildError(why_not())
    folders = [folder] if folder else [d for d in candidate_dirs() if _writable(d)]
    if not folders:
        reason = why_untrusted() or f"none of {candidate_dirs()} is writable"
        raise BuildError(f"{reason}; or pass a folder")
    if stale := _module("schema.py").stale():
        raise BuildError(stale)
    target = folders[0] / library_name()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.parent):
        if not is_whole(target):
            _build_to(target, cxx, headers)
    return target


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """One build in a folder at a time; the system frees the lock of a build that was killed."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _build_to(target: pathlib.Path, cxx: str, headers: pathlib.Path) -> None:
    src = source_dir()
    # Parts of builds that were killed; nobody else builds now.
    for part in target.parent.glob(f".{target.name}*.tmp"):
        part.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        jobs, objects = [], []

        def compile_to(name: str, source: str, *flags: str) -> None:
            objects.append(f"{tmp}/{name}_{source.replace('/', '_')}.o")
            command = [cxx, *_COMMON, f"-I{src}", *flags, "-c", str(src / source)]
            jobs.append([*command, "-o", objects[-1]])

        for isa, (width, flags) in int8_variants().items():
            for source in (*(PER_ISA if isa in variants() else ()), INT8):
                compile_to(isa, source, *_FLOAT, *flags, f"-DSKC_ISA={isa}", f"-DSKC_VW={width}")
        for source in _ONCE:
            compile_to("any", source, f"-I{headers}")
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_compile, jobs))
        # What is given away must not ask for this compiler's runtime.
        static = ("-static-libstdc++", "-Wl,--exclude-libs,ALL", "-Wl,--gc-sections")
        inside = static if os.environ.get("SKIPCONV_JAX_MACHINE") else ()
        _compile([cxx, *_LINK, *inside, *objects, "-o", f"{tmp}/lib.so"])
        content = pathlib.Path(tmp, "lib.so").read_bytes()
    # Without its sum a library counts as damaged: the old one goes first, the new one comes last.
    _sum_file(target).unlink(missing_ok=True)
    _put(target, content)
    _put(_sum_file(target), f"{hashlib.sha256(content).hexdigest()}  {target.name}\n".encode())


def _put(target: pathlib.Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, whenever this process is killed.

    A library that is loaded somewhere keeps its old content there: the new file is another one.
    """
    with _module("../whole_files.py").writing(target) as partial:
        partial.write_bytes(content)
        partial.chmod(0o755 if target.suffix == ".so" else 0o644)


def export(folder: pathlib.Path) -> pathlib.Path:
    """The library as `folder/libskipconv.so` beside `skipconv.h`, for programs without Python.

    Raises:
      BuildError: it is not built and can't be.
    """
    library = find_library() or build()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source_dir() / "include" / "skipconv.h", folder)
    return pathlib.Path(shutil.copy(library, folder / "libskipconv.so"))


def _writable(folder: pathlib.Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m skipconv_jax.native.build")
    parser.add_argument("--export", metavar="DIR", help="copy library and header there, for C")
    options = parser.parse_args()
    try:
        print(export(pathlib.Path(options.export)) if options.export else build())
    except (BuildError, OSError) as error:
        sys.exit(f"skipconv_jax: {error}")
