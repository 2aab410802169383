"""Dense runtimes on an ONNX model in NCHW; without JAX, so that its memory is not counted."""

from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Any]


def onnxruntime_session(model: bytes | str, threads: int) -> tuple[Run, tuple[int, ...]]:
    """onnxruntime's CPU provider; `run` takes and returns NCHW."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x}), tuple(session.get_inputs()[0].shape)


def openvino_request(model: bytes | str, threads: int) -> tuple[Run, tuple[int, ...]]:
    """OpenVINO pinned to float32; its default on some hardware would be bfloat16."""
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(model), "CPU", options)
    request = compiled.create_infer_request()

    def run(x: np.ndarray) -> Any:
        results = request.infer({0: x})
        return [results[i] for i in range(len(results))]

    return run, tuple(compiled.input(0).shape)


def load(name: str, path: str, threads: int) -> tuple[Run, tuple[int, ...]]:
    """Opens a file by the name of its runtime; gives `run` and the shape of its input."""
    makers = {"onnxruntime": onnxruntime_session, "OpenVINO f32": openvino_request}
    return makers[name](path, threads)
