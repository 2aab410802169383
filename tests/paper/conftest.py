"""The experiments' commands in their quick form, one after the other in one working folder."""

import importlib
import json

import jax
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the experiments of a file keep data, networks and rows, which they share."""
    return tmp_path_factory.mktemp("experiments")


@pytest.fixture(scope="session")
def run():
    """`run(name, folder)` is the exit code of a command."""

    def call(name, folder):
        module = importlib.import_module(f"paper.{name}")
        # Optax's bias correction relies on a promotion that the tests forbid elsewhere.
        with jax.numpy_dtype_promotion("standard"):
            return module.main(["--quick", "--workdir", str(folder)])

    return call


@pytest.fixture(scope="session")
def check(run):
    """`check(name, folder)` runs a command and looks at everything it has to write."""

    def call(name, folder):
        assert run(name, folder) == 0
        results = folder / "results"
        text = (results / f"{name}.md").read_text()
        assert f"`python -m paper.{name} --quick`" in text
        assert "these figures mean nothing" in text
        for part in ("## Here", "## The paper", "## Reading", "commit", "seeds 0"):
            assert part in text
        payload = json.loads((results / f"{name}.json").read_text())
        assert payload["rows"]
        assert len(payload["paper"]) > 1
        assert all(isinstance(claim["holds"], bool) for claim in payload["claims"])
        assert list(results.glob(f"{name}*.png"))

    return call
