"""What packaging promises: badges, classifiers, Linux-only calls in one file."""

import re
import tomllib

import pytest


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_badges_are_true(repository, project):
    """Every badge of the README is a file of ours that says what pyproject.toml says."""
    named = re.findall(
        r"!\[[^]]*\]\((docs/images/\w+\.svg)\)", (repository / "README.md").read_text()
    )
    assert sorted(named) == [f"docs/images/{n}.svg" for n in ("arxiv", "licence", "python")]
    text = {
        name: (repository / f"docs/images/{name}.svg").read_text()
        for name in ("licence", "python", "arxiv")
    }
    assert f">{project['license']}</text>" in text["licence"]
    assert "Apache License" in (repository / "LICENSE").read_text()[:200]
    minors = [
        int(found[1])
        for line in project["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", line))
    ]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f">3.{minors[0]} to 3.{minors[-1]}</text>" in text["python"]
    assert project["requires-python"] == f">=3.{minors[0]}"
    (paper,) = re.findall(r"arxiv\.org/abs/([\d.]+)", project["urls"]["Paper"])
    assert f">{paper}</text>" in text["arxiv"]
    assert paper in (repository / "CITATION.cff").read_text()


# Headers, functions and files that only Linux has.
LINUX = re.compile(
    r"sys/mman\.h|sys/prctl\.h|sys/syscall\.h|linux/|sched\.h|__linux__|madvise|mmap\(|MAP_POPULATE|"
    r"pthread_setaffinity|sched_setaffinity|futex|/proc/|/sys/|malloc\.h|memalign\("
)


def test_linux_only_calls_are_in_one_file(repository):
    """So that another system is one file's work: macOS compiles in principle."""
    csrc = repository / "skipconv_jax" / "native" / "csrc"
    found = {
        f"{path.relative_to(csrc)}:{number}: {line.strip()}"
        for path in csrc.rglob("*")
        if path.suffix in (".cpp", ".h")
        and path.relative_to(csrc).as_posix() != "runtime/platform.cpp"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if LINUX.search(line.partition("//")[0])
    }
    assert not found, "they belong in runtime/platform.cpp:\n" + "\n".join(sorted(found))
    assert LINUX.search((csrc / "runtime" / "platform.cpp").read_text())
