"""The light core runs alone; what is missing is one line that names the extra."""

import json
import os
import re
import subprocess
import sys
import tomllib

import cv2
import numpy as np
import pytest

from skipconv_jax import extras

# Blocks every optional module, then lets the core stream a network of bare `jax.lax`.
RUN = """
import importlib, sys
sys.modules.update(dict.fromkeys({blocked!r}))
import jax, jax.numpy as jnp
import skipconv_jax
from skipconv_jax.ops import InputNormGate
from skipconv_jax.plans import compile_plan
import skipconv_jax.macs, skipconv_jax.streaming.runner, skipconv_jax.streaming.sources
heavy = [m for m in ("matplotlib", "ml_collections", "torch") if sys.modules.get(m)]
assert not heavy, heavy

def fn(kernel, x):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

x = jnp.ones((1, 8, 8, 3))
net = skipconv_jax.skip(fn, gate=InputNormGate(1e-3))
params, _ = net.init(jnp.ones((3, 3, 3, 4)), x)
plan = compile_plan(net, params, x)
y, _, _ = plan.step(plan.init_state(), x)
assert float(y[0, 4, 4, 0]) == 27.0
for module in {wanting!r}:
    try:
        importlib.import_module(module)
    except ImportError as error:
        print(module, type(error).__name__, error, sep="|")
"""
WANTING = {
    "skipconv_jax.live.mqtt": "serve",
    "skipconv_jax.models": "models",
    "skipconv_jax.training.step": "train",
    "skipconv_jax.data.pipeline": "data",
    "skipconv_jax.data.records": "data",
    "skipconv_jax.compress": "models",
}


def test_the_core_streams_alone_and_names_the_extra_that_is_missing(repository):
    code = RUN.format(blocked=sorted(extras.EXTRA_OF), wanting=sorted(WANTING))
    env = os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert [(module, kind) for module, kind, _ in lines] == [
        (m, "MissingExtra") for m in sorted(WANTING)
    ]
    for module, _, message in lines:
        assert f"pip install 'skipconv-jax[{WANTING[module]}]'" in message


# A network that is trained already, and the command line on which every extra but one is missing.
MINE = """
import jax

def network():
    kernel = jax.random.normal(jax.random.key(0), (8, 3, 3, 3))
    return kernel, lambda kernel, x: jax.lax.conv(x, kernel, (2, 2), "SAME")
"""
COMMAND = """
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
from skipconv_jax.commands.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def command(tmp_path, repository):
    """Runs `skipconv ARGUMENTS` where of all optional modules only `there` can be imported."""
    (tmp_path / "mine.py").write_text(MINE)
    paths = os.pathsep.join([str(repository), str(tmp_path)])
    env = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}

    def run(*arguments, there=()):
        code = COMMAND.format(blocked=sorted(set(extras.EXTRA_OF) - set(there)))
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=env, capture_output=True, text=True, cwd=tmp_path,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("what", ["onnx", "fn"])
def test_a_brought_network_streams_a_video_without_what_trains(command, tmp_path, what):
    """The first command of the README, after `pip install 'skipconv-jax[onnx]'`."""
    (tmp_path / "clip").mkdir()
    for t in range(2):
        image = np.zeros((32, 48, 3), np.uint8)
        image[4:12, 8 * t : 8 * t + 8] = 255
        cv2.imwrite(str(tmp_path / "clip" / f"{t}.png"), image)
    network = ["--fn", "mine:network", "--size", "32,48"]
    if what == "onnx":
        onnx = pytest.importorskip("onnx")
        weight = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
        shapes = {"x": [1, 3, 32, 48], "y": [1, 4, 32, 48]}
        x, y = (
            onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
            for n, s in shapes.items()
        )
        graph = onnx.helper.make_graph([node], "net", [x], [y], [weight])
        opset = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset), tmp_path / "net.onnx")
        network = ["--onnx", "net.onnx"]
    done = command("stream", "clip", *network, "--out", "out", there={what})
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["frames"] == 2
    assert {p.suffix for p in (tmp_path / "out").iterdir()} >= {".mp4", ".png", ".jsonl"}


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("train --config hrnet_synthetic", "train"),
        ("eval --config hrnet_synthetic", "data"),
        ("macs --config hrnet_synthetic", "data"),
        ("demo", "models"),
        ("prepare", "data"),
        ("stream clip --onnx net.onnx", "onnx"),
        ("serve cameras.yaml", "serve"),
    ],
)
def test_a_command_whose_extra_is_missing_says_so_in_one_line(command, tmp_path, arguments, extra):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "0.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3)))[1])
    (tmp_path / "net.onnx").write_bytes(b"")
    api = "network: {onnx: net.onnx}\ncameras: [{name: a, address: clip}]\napi: {port: 8787}\n"
    (tmp_path / "cameras.yaml").write_text(api)
    done = command(*arguments.split())
    line = rf"error: `\w+` is not installed; run `pip install 'skipconv-jax\[{extra}\]'`\.\n"
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(line, done.stderr), done.stderr


def test_a_module_of_no_extra_is_left_as_it_is():
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"), extras.required():
        import nowhere_to_be_found  # noqa: F401  # type: ignore[import-not-found]


def test_every_optional_module_is_in_the_extra_that_its_message_names(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    listed = {
        extra: {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
        for extra, lines in project["optional-dependencies"].items()
    }
    package = {"orbax": "orbax-checkpoint", "paho": "paho-mqtt"}
    for module, extra in extras.EXTRA_OF.items():
        assert package.get(module, module.lower().replace("_", "-")) in listed[extra], module
    core = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    assert core.isdisjoint(package.get(m, m.lower()) for m in extras.EXTRA_OF)
