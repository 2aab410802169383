"""Every reader of a file that comes from outside: a valid example, and how it is read."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
      name: in tables.
      make: writes a valid example into a folder.
      read: what the reader makes of the folder.
      files: patterns of the files that are damaged, one at a time.
      weight: share of the campaign's inputs; slow readers get fewer.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: str
    weight: float = 1.0


def digest(value: Any) -> str:
    """Tells values apart that a user would tell apart."""
    sha = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for key in sorted(part, key=str):
                sha.update(str(key).encode())
                add(part[key])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif dataclasses.is_dataclass(part):
            add([getattr(part, field.name) for field in dataclasses.fields(part)])
        elif hasattr(part, "shape"):
            array = np.asarray(part)
            if array.dtype.hasobject:  # its bytes are addresses
                add(array.tolist())
                return
            sha.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        else:
            sha.update(repr(part).encode())

    add(value)
    return sha.hexdigest()


def _picture(height: int = 24, width: int = 32, shift: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = [x * 7 + shift * 3, y * 9, (x * y) % 251]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _image(suffix: str) -> Reader:
    import cv2

    from skipconv_jax.data import images

    def make(folder: Path) -> None:
        cv2.imwrite(str(folder / f"a{suffix}"), _picture())

    def read(folder: Path) -> Any:
        path = folder / f"a{suffix}"
        return images.decode(images.read(path), str(path))

    return Reader(f"image {suffix[1:]}", make, read, f"a{suffix}", 2)


def _coco(folder: Path) -> None:
    import cv2

    images, annotations = [], []
    for t in range(3):
        cv2.imwrite(str(folder / f"{t}.png"), _picture(shift=t))
        images.append({"id": t, "file_name": f"{t}.png", "height": 24, "width": 32,
                       "video_id": 1, "frame_id": t})  # fmt: skip
        annotations.append({"id": 9 + t, "image_id": t, "category_id": 1, "track_id": 4,
                            "bbox": [t + 1, 2, 9.5, 8], "iscrowd": 0,
                            "keypoints": [3, 4, 2, 9, 9, 1]})  # fmt: skip
    categories = [{"id": 1, "name": "person", "keypoints": ["left_shoulder", "neck"]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "labels.json").write_text(json.dumps(content))


def _read_boxes(folder: Path) -> Any:
    from skipconv_jax.data.coco_folder import CocoVideos

    videos = CocoVideos(folder, folder / "labels.json")
    windows = [videos.read(v, range(n)) for v, n in enumerate(videos.lengths)]
    return videos.names, videos.classes, [
        (w.encoded, w.track.boxes, w.track.labels, w.track.ids, w.ignored) for w in windows
    ]  # fmt: skip


def _read_poses(folder: Path) -> Any:
    from skipconv_jax.data.coco_folder import read_pose_clips

    clips = read_pose_clips(folder, folder / "labels.json")
    return [(c.name, c.joints, c.visible, c.boxes, c.frames(range(c.length))) for c in clips]


def _read_listed(folder: Path) -> Any:
    from skipconv_jax.streaming.sources import Source

    return [(f.index, f.image, f.event) for f in Source(folder / "labels.json")]


def _jhmdb(folder: Path) -> None:
    from skipconv_jax.data.synthetic_pose import Scene, generate

    generate(folder, 1, Scene(height=48, width=64, frames=3), seed=1, workers=1)


def _read_jhmdb(folder: Path) -> Any:
    from skipconv_jax.data.jhmdb_folder import JhmdbFolder

    found = JhmdbFolder(folder)
    names = found.names()
    splits = [found.split(part, n) for part in ("train", "test") for n in (1, 2, 3)]
    clips = [found.clip(name, decode_all=True) for name in names]
    return splits, [(c.name, c.joints, c.visible, c.boxes, c.mirrorable) for c in clips]


def _detrac(folder: Path) -> None:
    from skipconv_jax.data.synthetic_traffic import TrafficScene, generate

    scene = TrafficScene(height=64, width=96, frames=3, night=0.0, density=0.6)
    generate(folder, 2, scene, seed=1, workers=1)


def _read_detrac(folder: Path) -> Any:
    from skipconv_jax.data.ua_detrac_folder import PARTS, DetracFolder

    found = DetracFolder(folder)
    sequences = [found.sequence(part, name) for part in PARTS for name in found.names(part)]
    return [(s.name, s.track.boxes, s.track.labels, s.track.ids, s.ignored) for s in sequences]


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a.weight": rng.normal(size=(4, 3)).astype(np.float32), "b": np.arange(3)}


def _state_file(name: str) -> Reader:
    from skipconv_jax.models.convert.files import load_state, save_state

    return Reader(
        f"weights {name}",
        lambda folder: save_state(_weights(), folder / name),
        lambda folder: load_state(folder / name),
        name,
    )


def _gate_plan(folder: Path) -> None:
    from skipconv_jax.ops import InputNormGate
    from skipconv_jax.tuning.gate_plan import GatePlan, LayerGate

    layers = (("conv1", LayerGate((3, 3, 4, 8), InputNormGate(0.1, block=4))),)
    GatePlan(layers, "closed_loop").save(folder / "plan.json")


def _read_gate_plan(folder: Path) -> Any:
    from skipconv_jax.tuning.gate_plan import GatePlan

    return repr(GatePlan.load(folder / "plan.json"))


def _checkpoint(folder: Path) -> None:
    import jax.numpy as jnp

    from skipconv_jax.training.checkpoints import Checkpoints
    from skipconv_jax.training.step import TrainState

    empty = dict.fromkeys(TrainState._fields, jnp.zeros(()))
    weights = {"model": {"a": jnp.arange(6.0).reshape(2, 3)}, "gates": {}}
    state = TrainState(**empty)._replace(weights=weights, stats={}, step=jnp.asarray(3))
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(3, state, {"position": 3})
    checkpoints.wait()
    checkpoints.close()


def _read_checkpoint(folder: Path) -> Any:
    from skipconv_jax.training.checkpoints import Checkpoints

    return Checkpoints(folder / "checkpoints").weights()


def _video(name: str, codec: str) -> Reader:
    def make(folder: Path) -> None:
        import av

        with av.open(f"file:{folder / name}", "w") as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            stream.codec_context.gop_size = 4
            for t in range(12):
                frame = av.VideoFrame.from_ndarray(_picture(48, 64, t), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))

    def read(folder: Path) -> Any:
        from skipconv_jax.streaming.sources import Source

        return [(f.index, f.image, f.event) for f in Source(folder / name)]

    return Reader(f"video {codec} in {name[2:]}", make, read, name)


def _onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.random.default_rng(0).normal(size=(2, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node, helper.make_node("Relu", ["c"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 8, 8])],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)


def _read_onnx(folder: Path) -> Any:
    from skipconv_jax import onnx

    variables, _ = onnx.load(folder / "net.onnx")
    return {str(key): np.asarray(value) for key, value in variables.items()}


def _metrics(folder: Path) -> None:
    rows = [json.dumps({"step": step, "loss": step / 7}) for step in range(1, 6)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")


def _read_metrics(folder: Path) -> Any:
    from skipconv_jax.training.metrics import JsonLines

    # Resuming keeps the lines up to a step, and changes the file.
    JsonLines(folder / "metrics.jsonl", 5).close()
    return (folder / "metrics.jsonl").read_bytes()


def _saved_plan(folder: Path) -> None:
    from skipconv_jax.plans.skc_file import MaskDesc, SavedPlan, TensorDesc, write

    rng = np.random.default_rng(0)
    saved = SavedPlan(
        words=rng.integers(0, 99, 40).astype(np.int32),
        weights=rng.normal(size=64).astype(np.float32),
        gates=np.ones(3, np.float32),
        inputs=(TensorDesc("x", (8, 8, 4), (0, 1, 2)),),
        outputs=(TensorDesc("y", (8, 8, 8), (0, 1, 2)),),
        masks=(MaskDesc("conv", 0, (2, 2)),),
        meta={"keep_outputs": True, "rules": [1, {"a": "b"}]},
    )
    write(folder / "net.skc", saved)


def _read_saved_plan(folder: Path) -> Any:
    from skipconv_jax.plans import skc_file

    saved = skc_file.read(folder / "net.skc")
    return [getattr(saved, field.name) for field in dataclasses.fields(saved)]


def _records(folder: Path) -> None:
    from skipconv_jax.data import prepare

    source = folder.parent / "source"
    _jhmdb(source)
    prepare.prepare("jhmdb", source, folder / "data", workers=1)


def _read_records(folder: Path) -> Any:
    from skipconv_jax.data import jhmdb

    clips = [jhmdb.load(folder / "data", part, config="synthetic") for part in ("train", "test")]
    return [
        (c.name, c.joints, c.visible, c.boxes, c.height, c.width, c.mirrorable,
         [c.encoded(t) for t in range(c.length)])
        for found in clips for c in (found[i] for i in range(len(found.names)))
    ]  # fmt: skip


def _video_labels(name: str) -> Reader:
    def make(folder: Path) -> None:
        _coco(folder)
        lines = [f"{t},{i},{3 * i},4.5,10,12,1,1,0.9" for t in (1, 2, 3) for i in (1, 2)]
        (folder / "gt.txt").write_text("\n".join(lines) + "\n")

    def read(folder: Path) -> Any:
        from skipconv_jax.data.video_labels import read_labels

        labels = read_labels(folder / name)
        return labels.classes, labels.frames

    return Reader(f"labels of a video, {name}", make, read, name)


_SERVED = {
    "t.yaml": """network: &net {onnx: net.onnx, preset: yolox, size: [96, 96], threshold: 0.003}
cameras:
- name: door
  address: rtsp://127.0.0.1:8554/door
  rate: 5
  ignore: [[[0, 0], [0.5, 0], [0.5, 0.1]]]
- {name: yard, address: /dev/video0}
api: {port: 8080, token: "${FUZZ_TOKEN}"}
""",
    "t.toml": """workers = 2
[network]
onnx = "net.onnx"
[[cameras]]
name = "door"
address = "rtsp://127.0.0.1:8554/door"
rate = 5.0
[api]
port = 8080
""",
}


def _served(name: str) -> Reader:
    def read(folder: Path) -> Any:
        import msgspec

        from skipconv_jax.live import config

        return msgspec.to_builtins(config.load(folder / name, {"FUZZ_TOKEN": "t" * 20}))

    return Reader(f"cameras {name[2:]}", lambda f: _wrote(f / name, _SERVED[name]), read, name, 2)


def _wrote(path: Path, text: str) -> None:
    path.write_text(text)


def _run_config(folder: Path) -> None:
    _read_run_config(folder)


def _read_run_config(folder: Path) -> Any:
    from ml_collections import ConfigDict

    from skipconv_jax.config import check_unchanged

    settings = {"skip": {"gate": {"name": "input_norm", "threshold": 0.25}}, "batch": 4}
    check_unchanged(ConfigDict(settings), folder / "config.json", ())
    return (folder / "config.json").read_bytes()


def _scores(folder: Path) -> None:
    rows = [{"of": "f" * 16}, *({"name": "conv", "rank": r, "score": r / 7} for r in range(1, 5))]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_scores(folder: Path) -> Any:
    from skipconv_jax.compress.search import ScoreCache

    cache = ScoreCache(folder / "scores.jsonl", "f" * 16)
    return [cache.get("conv", rank) for rank in range(1, 5)]


def readers() -> list[Reader]:
    """All of them; those of optional parts where the parts are there."""
    found = [_image(suffix) for suffix in (".png", ".jpg", ".webp", ".bmp", ".tif")]
    found += [
        Reader("COCO boxes", _coco, _read_boxes, "labels.json", 3),
        Reader("COCO keypoints", _coco, _read_poses, "labels.json", 3),
        Reader("COCO stream", _coco, _read_listed, "labels.json", 2),
        _video_labels("labels.json"),
        _video_labels("gt.txt"),
        Reader("JHMDB .mat", _jhmdb, _read_jhmdb, "**/*.mat", 2),
        Reader("JHMDB lists and note", _jhmdb, _read_jhmdb, "**/*.[tj][xs]*"),
        Reader("UA-DETRAC XML", _detrac, _read_detrac, "**/*.xml", 2),
        _state_file("a.safetensors"),
        _state_file("a.pth"),
        Reader("gate plan", _gate_plan, _read_gate_plan, "plan.json"),
        Reader("checkpoint", _checkpoint, _read_checkpoint, "checkpoints/**/*", 0.5),
        Reader("records", _records, _read_records, "data/**/*", 0.5),
        Reader("configuration of a run", _run_config, _read_run_config, "config.json", 0.5),
        Reader("scores of compression", _scores, _read_scores, "scores.jsonl", 0.5),
        _served("t.yaml"),
        _served("t.toml"),
        Reader("metrics", _metrics, _read_metrics, "metrics.jsonl", 0.5),
        _video("a.mp4", "libx264"),
        _video("a.mkv", "libx264"),
        _video("a.ts", "mpeg2video"),
        _video("a.avi", "mpeg4"),
        _video("a.webm", "libvpx"),
    ]
    try:
        from skipconv_jax.onnx import load  # noqa: F401  (there or not)

        found.append(Reader("ONNX", _onnx, _read_onnx, "net.onnx"))
    except ImportError:
        pass
    try:
        from skipconv_jax.plans import skc_file  # noqa: F401  (there or not)

        found.append(Reader("saved plan", _saved_plan, _read_saved_plan, "net.skc"))
    except ImportError:
        pass
    return found
