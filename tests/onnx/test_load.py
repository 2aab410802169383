"""What `load` folds, names, binds and refuses."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from skipconv_jax.onnx import UnknownOperators, load  # noqa: E402
from tests.onnx.graphs import convolution, model, node  # noqa: E402


def run(made: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    variables, fn = load(made.SerializeToString(), **options)
    return np.asarray(fn(variables, x))


def test_static_shapes_leave_nothing_but_the_reshape() -> None:
    # Reshape(x, Concat(Shape(x)[:2], [-1])) as exporters write `x.flatten(2)`.
    made = model(
        [
            node("Shape", ["x"], ["shape"]),
            node("Slice", ["shape", "zero", "two"], ["front"]),
            node("Concat", ["front", "minus"], ["target"], axis=0),
            node("Reshape", ["x", "target"], ["y"]),
        ],
        {"zero": np.array([0]), "two": np.array([2]), "minus": np.array([-1])},
        ("batch", 3, 4, 5),
    )
    variables, fn = load(made.SerializeToString())
    assert variables == {}
    assert [s.node.op for s in fn.program.steps] == ["Reshape"]
    assert fn(variables, jnp.zeros((2, 3, 4, 5))).shape == (2, 3, 20)


def test_weights_computed_from_weights_are_folded_under_their_name() -> None:
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    made = model(
        [node("Transpose", ["w"], ["t"]), node("MatMul", ["x", "t"], ["y"])], {"w": w}, (1, 3)
    )
    variables, fn = load(made.SerializeToString())
    np.testing.assert_array_equal(variables["w"], w.T)
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(fn(variables, x), x @ w.T)


def test_one_weight_read_twice_differently_is_two_parameters() -> None:
    w = np.arange(9, dtype=np.float32).reshape(3, 3)
    nodes = [
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "t"], ["y"]),
    ]
    made = model(nodes, {"w": w}, (1, 3))
    variables, fn = load(made.SerializeToString())
    assert sorted(variables) == ["t", "w"]
    x = np.ones((1, 3), np.float32)
    np.testing.assert_allclose(fn(variables, x), x @ w @ w.T)


def test_parameters_differentiate() -> None:
    variables, fn = load(convolution().SerializeToString())
    grad = jax.grad(lambda v: fn(v, jnp.ones((1, 3, 8, 8))).sum())(variables)
    assert grad["conv.weight"].shape == (4, 3, 3, 3)
    assert float(jnp.abs(grad["conv.weight"]).min()) > 0


def test_an_if_on_a_shape_takes_its_branch() -> None:
    def branch(op: str) -> Any:
        return onnx.helper.make_graph(
            [node(op, ["x"], [f"{op}_y"])],
            op,
            [],
            [onnx.helper.make_tensor_value_info(f"{op}_y", 1, None)],
        )

    nodes = [
        node("Size", ["x"], ["n"]),
        node("Greater", ["n", "limit"], ["many"]),
        node("If", ["many"], ["y"], then_branch=branch("Neg"), else_branch=branch("Abs")),
    ]
    made = model(nodes, {"limit": np.array(4)}, (1, 5))
    x = np.ones((1, 5), np.float32)
    np.testing.assert_array_equal(run(made, x), -x)


# Graphs whose constants fix the batch to 1, and what one stream must give.
BATCHES = {
    "flatten": [node("Reshape", ["x", "to"], ["y"])],
    "shuffle": [  # the batch and the channels share an axis, as in ShuffleNet's exports
        node("Reshape", ["x", "wide"], ["a"]),
        node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        node("Reshape", ["b", "halves"], ["c"]),
        node("Gather", ["c", "one"], ["y"], axis=0),
    ],
    "rows": [node("Reshape", ["x", "rows"], ["a"]), node("Softmax", ["a"], ["y"], axis=0)],
    "squeezed": [
        node("Squeeze", ["x", "axis"], ["a"]),
        node("ReduceMax", ["a"], ["b"], axes=[0], keepdims=0),
        node("Unsqueeze", ["b", "axis"], ["y"]),
    ],
    "token": [
        node("Reshape", ["x", "to"], ["a"]),
        node("Concat", ["token", "a"], ["y"], axis=2),
    ],
    "resized": [node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")],
}
CONSTANTS = {
    "to": np.array([1, 4, -1]),
    "wide": np.array([2, 2, 4]),
    "halves": np.array([2, -1, 2, 2, 2]),
    "one": np.array(1),
    "rows": np.array([-1, 4]),
    "axis": np.array([0]),
    "token": np.full((1, 4, 1), 7, np.float32),
    "sizes": np.array([1, 4, 6, 2]),
}


@pytest.mark.parametrize("name", sorted(BATCHES))
def test_streams_take_the_place_of_a_fixed_batch(name: str) -> None:
    used = {i for n in BATCHES[name] for i in n.input}
    made = model(
        BATCHES[name], {k: v for k, v in CONSTANTS.items() if k in used}, (1, 4, 2, 2), opset=13
    )
    variables, fn = load(made.SerializeToString())
    x = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    together = np.asarray(fn(variables, x))
    apart = [np.asarray(fn(variables, x[i : i + 1])) for i in range(3)]
    want = onnx.reference.ReferenceEvaluator(made).run(None, {"x": x[:1]})[0]
    np.testing.assert_allclose(apart[0], want, rtol=1e-6)
    assert apart[0].shape == want.shape
    np.testing.assert_array_equal(together, np.stack(apart).reshape(together.shape))


def test_a_batch_of_four_stays_one_of_four() -> None:
    made = model([node("Relu", ["x"], ["y"])], shape=(4, 2))
    assert run(made, -np.ones((4, 2), np.float32)).shape == (4, 2)
    with pytest.raises(ValueError, match=r"`x` \(shape \(1, 2\)\) must have the shape \(4, 2\)"):
        run(made, np.ones((1, 2), np.float32))


class TestErrors:
    def test_unknown_operators_are_listed_together(self) -> None:
        nodes = [
            node("NonMaxSuppression", ["x", "x"], ["a"], name="nms"),
            node("Relu", ["a"], ["b"]),
            node("Det", ["b"], ["c"]),
            node("Fused", ["c"], ["y"], name="f1", domain="com.vendor"),
            node("Det", ["x"], ["unused"]),
        ]
        with pytest.raises(UnknownOperators) as caught:
            load(model(nodes).SerializeToString())
        message = str(caught.value)
        assert "NonMaxSuppression (opset 17): 'nms'" in message
        assert "Det (opset 17): 'c';" in message
        assert "com.vendor.Fused" in message
        assert "unused" not in message
        assert "\n" not in message

    def test_free_axes_are_named(self) -> None:
        made = model([node("Relu", ["x"], ["y"])], shape=("batch", 3, "height", None))
        with pytest.raises(ValueError, match=r"leaves axis 2 \('height'\), 3 free; bind it"):
            load(made.SerializeToString())
        x = np.ones((2, 3, 4, 5), np.float32)
        assert run(made, x, shapes={"x": (1, 3, 4, 5)}).shape == x.shape

    def test_shapes_that_the_file_contradicts(self) -> None:
        data = convolution().SerializeToString()
        with pytest.raises(ValueError, match=r"must fit the file's \(1, 3, 8, 8\)"):
            load(data, shapes={"x": (1, 3, 16, 16)})
        with pytest.raises(ValueError, match=r"`shapes` names \['z'\]"):
            load(data, shapes={"z": (1, 3, 8, 8)})

    def test_inputs_that_do_not_fit(self) -> None:
        variables, fn = load(convolution().SerializeToString())
        with pytest.raises(ValueError, match=r"must have the shape \(B, 3, 8, 8\)"):
            fn(variables, jnp.zeros((1, 8, 8, 3)))
        with pytest.raises(ValueError, match="must be float32"):
            fn(variables, jnp.zeros((1, 3, 8, 8), jnp.uint8))
        with pytest.raises(ValueError, match="must map the file's inputs"):
            fn(variables, {"image": jnp.zeros((1, 3, 8, 8))})

    @pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a model", b"\x00" * 64, b"{}"])
    def test_foreign_bytes(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="is no ONNX model"):
            load(data)

    def test_truncated_models_never_load(self) -> None:
        data = convolution().SerializeToString()
        for end in range(0, len(data) - 1, 7):
            with pytest.raises(ValueError, match=r"."):
                load(data[:end])

    @pytest.mark.parametrize("number", [0, 97])
    def test_types_that_are_none(self, number: int) -> None:
        model = convolution()
        model.graph.input[0].type.tensor_type.elem_type = number
        with pytest.raises(ValueError, match=rf"type of '.*' \(={number}\) must be a data type"):
            load(model.SerializeToString())

    def test_old_and_future_opsets(self) -> None:
        for opset in (8, 999):
            made = model([node("Relu", ["x"], ["y"])], opset=opset)
            with pytest.raises(ValueError, match=f"has opset {opset}; it must be 9 to"):
                load(made.SerializeToString())

    def test_tensors_nobody_makes(self) -> None:
        made = model([node("Add", ["x", "ghost"], ["y"])])
        with pytest.raises(ValueError, match=r"damaged: Add 'y' read 'ghost'"):
            load(made.SerializeToString())

    def test_oversized_constants(self) -> None:
        nodes = [node("ConstantOfShape", ["size"], ["a"]), node("Add", ["x", "a"], ["y"])]
        made = model(nodes, {"size": np.array([1 << 40])}, (1,))
        start = time.monotonic()
        with pytest.raises(ValueError, match="would make"):
            load(made.SerializeToString())
        assert time.monotonic() - start < 5

    def test_shapes_that_do_not_fit_name_the_node(self) -> None:
        made = model([node("Add", ["x", "w"], ["y"])], {"w": np.ones((5,), np.float32)})
        with pytest.raises(ValueError, match=r"Add 'y' can't take inputs of shapes"):
            load(made.SerializeToString())


class TestExternalData:
    def _save(self, folder: Path, location: str) -> Path:
        made = convolution()
        tensor = made.graph.initializer[0]
        (folder / "weights.bin").write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location
        path = folder / "model.onnx"
        path.write_bytes(made.SerializeToString())
        return path

    def test_beside_the_model(self, tmp_path: Path) -> None:
        variables, _ = load(self._save(tmp_path, "weights.bin"))
        want, _ = load(convolution().SerializeToString())
        np.testing.assert_array_equal(variables["conv.weight"], want["conv.weight"])

    @pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "link.bin", ""])
    def test_never_outside(self, tmp_path: Path, location: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "weights.bin").write_bytes(b"x" * 4096)
        (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
        with pytest.raises(ValueError, match="must lie in the model's own folder"):
            load(self._save(folder, location))

    def test_missing_short_or_without_a_folder(self, tmp_path: Path) -> None:
        path = self._save(tmp_path, "weights.bin")
        with pytest.raises(ValueError, match="load the model by its path"):
            load(path.read_bytes())
        (tmp_path / "weights.bin").write_bytes(b"short")
        with pytest.raises(ValueError, match=r"damaged: the tensor 'conv\.weight'"):
            load(path)
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(ValueError, match=r"no file 'weights.bin'"):
            load(path)
