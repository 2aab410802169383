"""Optional dependencies: one that is missing is one line that names the extra to install."""

import contextlib
import importlib.util
from collections.abc import Iterator

# Top-level module -> the extra of pyproject.toml that brings it.
EXTRA_OF = {
    "array_record": "data",
    "faster_coco_eval": "data",
    "flax": "models",
    "grain": "data",
    "onnx": "onnx",
    "optax": "train",
    "orbax": "train",
    "paho": "serve",
    "prometheus_client": "serve",
    "rich": "data",
    "ray": "ray",
    "starlette": "serve",
    "tensorboardX": "tensorboard",
    "tensorflow_datasets": "data",
    "uvicorn": "serve",
}


class MissingExtra(ImportError):
    """A module of an extra that is not installed."""

    def __init__(self, module: str) -> None:
        root = module.partition(".")[0]
        super().__init__(
            f"`{root}` is not installed; run `pip install 'skipconv-jax[{EXTRA_OF[root]}]'`.",
            name=module,
        )


@contextlib.contextmanager
def required() -> Iterator[None]:
    """Imports inside: a module of an extra that is missing raises `MissingExtra`.

    Any other missing module is left as it is: that is a broken installation, not a choice.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in EXTRA_OF:
            raise MissingExtra(error.name) from error
        raise


def require(*modules: str) -> None:
    """Raises `MissingExtra` for the first of the top-level modules that is not installed."""
    for module in modules:
        try:
            found = importlib.util.find_spec(module) is not None
        except ValueError:  # `sys.modules[module]` is None: blocked
            found = False
        if not found:
            raise MissingExtra(module)
