"""Networks nobody here wrote, exported and streamed: what `load` and the engine make of them.

    python -m benchmarks.exports

Each row is a network with random weights, written by an exporter as any user would, read by
`skipconv_jax.onnx.load`, and skipped with thresholds of 0. Errors are max |y - y'| / max |y'| of
the second frame against onnxruntime on the same file (Keras without a file: against the model
itself); "in XLA" are the operations the engine left, by `plan.report()`.
"""

import argparse
import collections
import dataclasses
import io
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import torch_models
from skipconv_jax import ClosedLoop, InputNormGate, compile_plan, skip, whole_files
from skipconv_jax.onnx import load
from skipconv_jax.viz.tables import markdown

TORCHSCRIPT, DYNAMO = "torch, TorchScript", "torch, dynamo"
KERAS_TORCH, KERAS_JAX = "Keras 3, export (torch)", "Keras 3, stateless_call"

# What each kind of export met first, before it became a rule of `program/fold`.
FIRST = """
What failed first, and became a rule: the dense head of every classifier (`dot_general`) made a
second native call; layer norm broke ConvNeXt into 36; grouped transposed convolutions and `split`
stayed in XLA. A Keras model's `stateless_call` takes its variables by position, and JAX sorts the
keys of dictionaries: go by `v.path`, as here. Group norm is not folded yet.
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and how it comes here."""

    name: str
    exporter: str
    make: Callable[[], Any]
    size: int = 96


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of it."""

    case: Case
    convolutions: int
    skipped: int
    calls: int
    left: str
    dense: float
    native: float


# -- networks --------------------------------------------------------------------------------------
def _torchvision(name: str, family: str = "") -> Callable[[], Any]:
    def make() -> Any:
        models = torch_models.torchvision().models
        where = getattr(models, family) if family else models
        options = {"weights": None, "weights_backbone": None} if family else {"weights": None}
        return getattr(where, name)(**options)

    return make


def _timm(name: str) -> Callable[[], Any]:
    return lambda: torch_models.timm().create_model(name)


def _upscaler() -> Any:
    """Super-resolution: PReLU, a transposed convolution, pixel shuffle, bicubic skip."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Upscaler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.PReLU(16))
            self.up = nn.ConvTranspose2d(16, 16, 4, 2, 1)
            self.last = nn.Conv2d(16, 12, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.pixel_shuffle(self.last(functional.relu(self.up(self.first(x)))), 2)
            return y + functional.interpolate(x, scale_factor=4, mode="bicubic")

    return Upscaler()


def _depth() -> Any:
    """Depth: a U-Net with group norm, transposed convolutions in groups, bilinear output."""
    import torch
    from torch import nn
    from torch.nn import functional

    def block(i: int, o: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.GroupNorm(4, o), nn.ELU())

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = block(3, 16, 2), block(16, 32, 2), block(32, 32, 2)
            self.up = nn.ConvTranspose2d(32, 32, 2, 2, groups=4)
            self.up2 = nn.ConvTranspose2d(64, 16, 3, 2, 1, 1)
            self.last = nn.Conv2d(32, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None]
            a = self.a((x - mean) / 0.225)
            b = self.b(a)
            y = self.up2(torch.cat([self.up(self.c(b)), b], 1))
            y = self.last(torch.cat([y, a], 1))
            return functional.interpolate(
                functional.softplus(y), scale_factor=2, mode="bilinear", align_corners=True
            )

    return Depth()


_SEGMENTERS = ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large")
CASES = (
    Case("torchvision lraspp", TORCHSCRIPT, _torchvision(_SEGMENTERS[0], "segmentation")),
    Case("torchvision deeplabv3", DYNAMO, _torchvision(_SEGMENTERS[1], "segmentation")),
    Case("torchvision mobilenet_v3_small", DYNAMO, _torchvision("mobilenet_v3_small")),
    Case("torchvision shufflenet_v2_x0_5", TORCHSCRIPT, _torchvision("shufflenet_v2_x0_5")),
    Case("torchvision shufflenet_v2_x0_5", DYNAMO, _torchvision("shufflenet_v2_x0_5")),
    Case("torchvision squeezenet1_1", DYNAMO, _torchvision("squeezenet1_1")),
    Case("timm resnet18d", TORCHSCRIPT, _timm("resnet18d")),
    Case("timm convnext_atto", TORCHSCRIPT, _timm("convnext_atto")),
    Case("timm efficientnet_lite0", DYNAMO, _timm("efficientnet_lite0")),
    Case("timm efficientnet_b0", TORCHSCRIPT, _timm("efficientnet_b0")),
    Case("timm regnety_002", TORCHSCRIPT, _timm("regnety_002")),
    Case("timm mobileone_s0", DYNAMO, _timm("mobileone_s0")),
    Case("timm repvgg_a0", TORCHSCRIPT, _timm("repvgg_a0")),
    Case("timm hrnet_w18_small", TORCHSCRIPT, _timm("hrnet_w18_small")),
    Case("super-resolution with ConvTranspose, PixelShuffle", TORCHSCRIPT, _upscaler),
    Case("super-resolution with ConvTranspose, PixelShuffle", DYNAMO, _upscaler),
    Case("depth U-Net with GroupNorm, grouped ConvTranspose", DYNAMO, _depth),
    Case("depth U-Net with GroupNorm, grouped ConvTranspose", TORCHSCRIPT, _depth),
    Case("keras MobileNetV3Small", KERAS_TORCH, lambda: "MobileNetV3Small"),
    Case("keras EfficientNetV2B0", KERAS_JAX, lambda: "EfficientNetV2B0"),
    Case("keras MobileNetV3Small", KERAS_JAX, lambda: "MobileNetV3Small"),
)  # fmt: skip


# -- exporters -------------------------------------------------------------------------------------
def export(case: Case) -> bytes:
    """The file, as its exporter writes it."""
    if case.exporter == KERAS_TORCH:
        return _keras_file(case)
    import torch

    torch.manual_seed(0)
    network: Any = case.make().eval()
    # Untrained batch norms would make maps of zeros and ones.
    norms: list[Any] = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for module in norms:
        module.running_mean.uniform_(-0.1, 0.1)
        module.running_var.uniform_(0.5, 1.5)
    image, dynamo = torch.rand(1, 3, case.size, case.size), case.exporter == DYNAMO
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        quiet: dict[str, Any] = {"verbose": False} if dynamo else {}
        write: Any = torch.onnx.export
        write(network, (image,), file, dynamo=dynamo, **quiet)
    return file.getvalue()


_KERAS = """
import sys, keras
keras.utils.set_random_seed(0)
size = int(sys.argv[2])
make = getattr(keras.applications, sys.argv[1])
model = make(weights=None, input_shape=(size, size, 3), include_top=False)
model(keras.ops.zeros((1, size, size, 3)))
model.export(sys.argv[3], format="onnx", verbose=False)
"""


def _keras_file(case: Case) -> bytes:
    # A backend is chosen once per process.
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        command = [sys.executable, "-c", _KERAS, case.make(), str(case.size), str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return path.read_bytes()


def keras_function(case: Case) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Variables and `fn` of a Keras model on the JAX backend, and the model itself."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    keras.utils.set_random_seed(0)
    make = getattr(keras.applications, case.make())
    model = make(weights=None, input_shape=(case.size, case.size, 3), include_top=False)
    variables = {
        "trainable": {v.path: v.value for v in model.trainable_variables},
        "other": {v.path: v.value for v in model.non_trainable_variables},
    }

    def fn(variables: Any, x: Any) -> Any:
        # JAX sorts the keys of dictionaries; Keras goes by position.
        trainable = [variables["trainable"][v.path] for v in model.trainable_variables]
        other = [variables["other"][v.path] for v in model.non_trainable_variables]
        return model.stateless_call(trainable, other, x)[0]

    return variables, fn, lambda x: model(x)


# -- measuring -------------------------------------------------------------------------------------
def run(case: Case) -> Row:
    """Exports, loads, folds and runs two frames."""
    import onnxruntime

    rng = np.random.default_rng(0)
    if case.exporter == KERAS_JAX:
        variables, fn, peer = keras_function(case)
        shape: tuple[int, ...] = (1, case.size, case.size, 3)
    else:
        data = export(case)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        free = {1: case.size, 2: case.size, 3: case.size}
        shape = tuple(
            n if isinstance(n, int) else (1 if i == 0 else free[i])
            for i, n in enumerate(given.shape)
        )
        variables, fn = load(data, shapes={given.name: shape})
        peer = lambda x: session.run(None, {given.name: x})  # noqa: E731
    still = rng.random(shape, dtype=np.float32)
    frames = [still, still.copy()]
    frames[1][:, 20:50, 30:70] += 0.1
    net = skip(fn, gate=InputNormGate(0.0, block=8), policy=ClosedLoop())
    params = {"model": variables, "gates": net.init_gates(variables, still)}
    plan: Any = compile_plan(net, params, still, engine="native")
    state, y = plan.init_state(), None
    for x in frames:
        y, state, _ = plan.step(state, x)
    wanted = peer(frames[1])
    dense = jax.jit(fn)(variables, frames[1])
    left = collections.Counter(
        line.removeprefix("XLA: ").split(" (tensor")[0]
        for line in plan.report().splitlines()
        if line.startswith("XLA:")
    )
    table = net.table(variables, still)
    return Row(
        case,
        len(table.rows),
        len(table.skipped()),
        len(plan.segments),
        ", ".join(f"{n} x {what}" for what, n in left.items()),
        _error(dense, wanted),
        _error(y, wanted),
    )


def _error(got: Any, wanted: Any) -> float:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())
        for a, b in pairs
    )


def page(rows: Sequence[Row]) -> str:
    """The page."""
    body = [
        [
            r.case.name, r.case.exporter, f"{r.skipped} of {r.convolutions}", str(r.calls), r.left,
            f"{r.dense:.0e}", f"{r.native:.0e}",
        ]
        for r in rows
    ]  # fmt: skip
    header = ["network", "exporter", "convolutions skipped", "native calls", "in XLA",
              "error of fn", "error of the plan"]  # fmt: skip
    command = "    python -m benchmarks.exports --out docs/results/exports.md"
    about = " ".join(str(__doc__).split("\n\n")[2].split())
    return (
        "\n\n".join(
            [
                "# Networks nobody here wrote",
                about,
                command,
                FIRST.strip(),
                markdown(header, body, 2),
            ]
        )
        + "\n"
    )


def main() -> None:
    """Runs the cases and prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name or exporter has this in it")
    parser.add_argument("--out", type=Path, help="page to write")
    options = parser.parse_args()
    rows = []
    for case in CASES:
        if options.only not in f"{case.name} {case.exporter}":
            continue
        rows.append(run(case))
        print(rows[-1], flush=True)
    if options.out:
        whole_files.write_text(options.out, page(rows))


if __name__ == "__main__":
    main()
