"""What the tests of networks share: traced convolutions, reference packages, random variables."""

import functools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from benchmarks import torch_models

Row = dict[str, Any]


def _list_convolutions(model: Any, shape: tuple[int, ...]) -> list[Row]:
    """One row per convolution call in the order of the trace, in the reference files' fields."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    # Initialisation returns the very variables its convolutions read: one trace tells both.
    trace = jax.make_jaxpr(model.init_with_output, return_shape=True)
    closed, shapes = trace(jax.random.key(0), x)
    jaxpr, paths = closed.jaxpr, jax.tree_util.tree_leaves_with_path(shapes)
    names = {
        var: ".".join(key.key for key in path[2:-1])
        for var, (path, _) in zip(jaxpr.outvars, paths, strict=True)
        if path[0].idx == 1
    }

    rows = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name != "conv_general_dilated":
            continue
        image, kernel = eqn.invars
        (_, h, w, cin), (_, out_h, out_w, cout) = image.aval.shape, eqn.outvars[0].aval.shape
        kh, kw, group_cin, _ = kernel.aval.shape
        rows.append(
            {
                "name": names[kernel],
                "cin": cin,
                "cout": cout,
                "k": [kh, kw],
                "stride": list(eqn.params["window_strides"]),
                "groups": eqn.params["feature_group_count"],
                "in_h": h,
                "in_w": w,
                "out_h": out_h,
                "out_w": out_w,
                "macs": kh * kw * group_cin * cout * out_h * out_w,
            }
        )
    return rows


@pytest.fixture(scope="session")
def convolutions() -> Callable[..., list[Row]]:
    """`convolutions(model, (B, H, W, C))`: its convolution calls, traced, not computed."""
    return _list_convolutions


@pytest.fixture(scope="session")
def quick_jit() -> Callable[..., Any]:
    """`jax.jit` for code that runs once: half the time to compile whole networks, slower to run."""
    return functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="session")
def reference_rows(shared_dir: Path) -> Callable[[str], list[Row]]:
    """`reference_rows(file)`: rows of a MAC table in the reference material, in our fields."""

    def read(name: str) -> list[Row]:
        layers = json.loads((shared_dir / "reference" / name).read_text())["layers"]
        return [{k: v for k, v in row.items() if k not in ("bias", "params")} for row in layers]

    return read


@pytest.fixture(scope="session")
def reference_keys(shared_dir: Path) -> Callable[[str], dict[str, tuple[int, ...]]]:
    """`reference_keys(file)`: key to shape of a public checkpoint."""

    def read(name: str) -> dict[str, tuple[int, ...]]:
        keys = {}
        for line in (shared_dir / "reference" / name).read_text().splitlines():
            key, shape = line.split("\t")
            keys[key] = tuple(int(n) for n in shape.strip("()").split(",") if n.strip())
        return keys

    return read


@pytest.fixture(scope="session")
def randomised() -> Callable[[Any, int], Any]:
    """`randomised(variables, seed)`: scales, biases and statistics drawn too, as if trained."""

    def draw(variables: Any, seed: int) -> Any:
        rng = np.random.default_rng(seed)

        def leaf(path: tuple[str, ...], value: Any) -> jax.Array:
            if path[-1] in ("scale", "var", "edge_weights"):
                return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), jnp.float32)
            if path[-1] in ("bias", "mean"):
                return jnp.asarray(rng.normal(0, 0.2, value.shape), jnp.float32)
            return value

        flat = traverse_util.flatten_dict(variables)
        return traverse_util.unflatten_dict({p: leaf(p, v) for p, v in flat.items()})

    return draw


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch on one thread; skips where it is missing or lacks its shared libraries."""
    try:
        import torch
    except (ImportError, OSError) as error:
        pytest.skip(f"needs PyTorch, which cannot be imported here: {error}")
    torch.set_num_threads(1)
    return torch


@pytest.fixture(scope="session")
def torchvision(torch: Any) -> Any:
    """torchvision, also where its build is for another device than PyTorch's."""
    try:
        return torch_models.torchvision()
    except ImportError as error:
        pytest.skip(f"needs torchvision: {error}")


@pytest.fixture(scope="session")
def timm(torchvision: Any) -> Any:
    """timm, whose import needs torchvision's."""
    return pytest.importorskip("timm")


@pytest.fixture(scope="session")
def effdet(timm: Any) -> Any:
    """effdet, an independent EfficientDet; it compiles functions in a way PyTorch deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"`torch\.jit\.script", category=DeprecationWarning
        )
        return pytest.importorskip("effdet")
