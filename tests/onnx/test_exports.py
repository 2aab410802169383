"""Networks that others export: both PyTorch exporters, and what docs/onnx.md shows."""

import importlib.util
import io
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import jax
import numpy as np
import pytest

from skipconv_jax.onnx import load

pytest.importorskip("onnx")


def _export(torch: Any, model: Any, image: Any, dynamo: bool) -> bytes:
    if dynamo:
        pytest.importorskip("onnxscript")
    file = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch deprecates one exporter and warns of its own code in the other.
        warnings.simplefilter("ignore")
        if dynamo:
            torch.onnx.export(model, (image,), dynamo=True, verbose=False).save(file)
        else:
            torch.onnx.export(model, (image,), file, dynamo=False)
    return file.getvalue()


def _networks(torch: Any) -> dict[str, Any]:
    nn, functional = torch.nn, torch.nn.functional

    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Conv2d(3, 8, 3, padding=1)
            self.norm = nn.GroupNorm(2, 8)
            self.deep = nn.Conv2d(8, 16, 3, 2, 1)
            self.up = nn.ConvTranspose2d(16, 8, 2, 2)
            self.head = nn.Conv2d(16, 2, 1)

        def forward(self, x: Any) -> Any:
            a = torch.relu(self.norm(self.down(x)))
            return self.head(torch.cat([a, self.up(functional.gelu(self.deep(a)))], 1))

    class SuperResolution(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 5, padding=2)
            self.slope = nn.PReLU(16)
            self.last = nn.Conv2d(16, 12, 3, padding=1)

        def forward(self, x: Any) -> Any:
            y = functional.pixel_shuffle(self.last(self.slope(self.first(x))), 2)
            return y + functional.interpolate(x, scale_factor=2, mode="bicubic")

    class Shuffle(nn.Module):  # two outputs, a shuffle, hard activations, adaptive pools
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, 2, 1)
            self.group = nn.Conv2d(8, 8, 3, 1, 1, groups=4)

        def forward(self, x: Any) -> Any:
            y = functional.hardswish(self.conv(x))
            y = self.group(y)
            n, c, h, w = y.shape
            y = y.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
            left, right = y.chunk(2, 1)
            scale = functional.hardsigmoid(functional.adaptive_avg_pool2d(left, 1))
            return right * scale, functional.max_pool2d(left, 3, 2, 1).flatten(1)

    return {"unet": UNet(), "super_resolution": SuperResolution(), "shuffle": Shuffle()}


@pytest.mark.parametrize(
    ("name", "dynamo"),
    [("unet", False), ("super_resolution", False), ("shuffle", False), ("shuffle", True)],
)
def test_equals_pytorch_for_every_stream(torch: Any, name: str, dynamo: bool) -> None:
    torch.manual_seed(0)
    model = _networks(torch)[name].eval()
    images = torch.rand(2, 3, 16, 24)
    data = _export(torch, model, images[:1], dynamo)
    variables, fn = load(data)
    got = jax.jit(fn)(variables, images.numpy())
    with torch.no_grad():
        wanted = model(images)
    wanted = list(wanted) if isinstance(wanted, tuple) else [wanted]
    found = [got[name] for name in fn.outputs] if isinstance(got, dict) else [got]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-4, atol=1e-4)
    weights = {n for n, _ in model.named_parameters()}
    assert weights & set(variables)


@pytest.mark.usefixtures("timm")
def test_the_pytorch_route_of_the_docs(repository: Any) -> None:
    code = _snippets(repository, "PyTorch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exec(compile(code, "docs/onnx.md", "exec"), {})


def test_the_onnx_route_of_the_docs(repository: Any, tmp_path: Any) -> None:
    from tests.onnx.graphs import convolution

    path = tmp_path / "model.onnx"
    path.write_bytes(convolution().SerializeToString())
    scope = {"path": path, "x": np.ones((2, 3, 8, 8), np.float32)}
    exec(compile(_snippets(repository, "An ONNX file"), "docs/onnx.md", "exec"), scope)
    assert scope["y"].shape == (2, 4, 8, 8)


def test_the_keras_route_of_the_docs(repository: Any) -> None:
    # Keras picks its backend when it is first imported: a process of its own.
    if importlib.util.find_spec("keras") is None:
        pytest.skip("needs Keras")
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    code = _snippets(repository, "Keras 3")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def _snippets(repository: Any, section: str) -> str:
    text = (repository / "docs/onnx.md").read_text(encoding="utf-8")
    part = text.split(f"## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    assert found
    return "\n".join(found)
