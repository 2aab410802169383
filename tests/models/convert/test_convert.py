"""Public checkpoints to our variables and back: every key and shape, and clear refusals."""

import builtins
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from skipconv_jax.models import HRNet, hrnet_w32, init_variables
from skipconv_jax.models.convert import from_torch, load_state, save_state, to_torch

X = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def tiny(joints=4):
    return HRNet(2, joints, modules=(1, 1, 1), blocks=1, stem=4, layer1_blocks=1)


@pytest.fixture(scope="module")
def variables():
    return init_variables(tiny(), jax.random.key(0), X)


@pytest.fixture
def state(variables):
    return to_torch(variables)


def equal(a, b):
    same = jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)
    return all(jax.tree.leaves(same))


def test_hrnet_has_every_public_key_and_shape(reference_keys):
    model = hrnet_w32(joints=16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    ours = {key: value.shape for key, value in to_torch(zeros).items()}
    assert ours == reference_keys("keys_hrnet.txt")


def test_round_trip(variables, state):
    other = init_variables(tiny(), jax.random.key(1), X)
    assert not equal(other, variables)
    assert equal(from_torch(state, other), variables)


def test_kernels_are_transposed(variables, state):
    kernel = np.asarray(variables["params"]["conv1"]["kernel"])  # (kh, kw, Ci, Co)
    assert state["conv1.weight"].shape == (4, 3, 3, 3)
    assert state["conv1.weight"][2, 1, 0, 2] == kernel[0, 2, 1, 2]


def test_counters_are_optional(variables, state):
    bare = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    assert len(bare) < len(state)
    assert equal(from_torch(bare, variables), variables)


def test_everything_wrong_is_listed(variables, state):
    del state["conv1.weight"]
    state["extra.weight"] = np.zeros(3, np.float32)
    state["bn1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(ValueError, match="`state` must") as error:
        from_torch(state, variables)
    for part in (
        "1 missing:\n  conv1.weight",
        "1 unexpected:\n  extra.weight",
        "bn1.bias: (7,), expected (4,)",
    ):
        assert part in str(error.value)


def test_another_head_is_an_error_unless_asked_for(state, variables):
    five = init_variables(tiny(joints=5), jax.random.key(1), X)
    with pytest.raises(
        ValueError, match=r"final_layer\.weight: \(4, 2, 1, 1\), expected \(5, 2, 1, 1\)"
    ):
        from_torch(state, five)
    loaded = from_torch(state, five, replace=["final_layer.*"])
    assert equal(loaded["params"]["final_layer"], five["params"]["final_layer"])
    assert equal(loaded["params"]["stage4"], variables["params"]["stage4"])
    headless = {key: value for key, value in state.items() if not key.startswith("final_layer")}
    assert equal(from_torch(headless, five, replace=["final_layer.*"]), loaded)


def test_a_pattern_must_name_something(state, variables):
    with pytest.raises(ValueError, match=r"`replace` .* 'head\.\*', which names no key"):
        from_torch(state, variables, replace=["head.*"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(suffix, state, variables, tmp_path, request):
    if suffix == ".pth":
        request.getfixturevalue("torch")
    path = tmp_path / f"network{suffix}"
    save_state(state, path)
    read = load_state(path)
    assert read.keys() == state.keys()
    assert equal(from_torch(read, variables), variables)


def test_wrapped_prefixed_and_half_precision_files(torch, state, variables, tmp_path):
    tensors = {f"module.{k}": torch.from_numpy(np.array(v)) for k, v in state.items()}
    tensors["module.bn1.bias"] = tensors["module.bn1.bias"].to(torch.bfloat16)
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "network.pth")
    read = load_state(tmp_path / "network.pth")
    assert read["bn1.bias"].dtype == np.float32
    assert equal(from_torch(read, variables), variables)


class _Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_half_precision_safetensors_become_float32_and_integers_stay(torch, tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.tensor([1.5, -2.0]), "n": torch.tensor([3], dtype=torch.int16)}
    for kind in (torch.bfloat16, torch.float16):
        save_file(tensors | {"a": tensors["a"].to(kind)}, tmp_path / "half.safetensors")
        read = load_state(tmp_path / "half.safetensors")
        assert (read["a"].dtype, read["n"].dtype) == (np.float32, np.int16)
        np.testing.assert_array_equal(read["a"], [1.5, -2.0])


def test_a_pickle_is_refused_and_not_run(torch, tmp_path):
    path = tmp_path / "network.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": _Payload()}))
    with pytest.raises(ValueError, match="weights-only loader refused it"):
        load_state(path)
    torch.save({"conv1.weight": _Payload()}, path)
    with pytest.raises(ValueError, match="weights-only loader refused it"):
        load_state(path)


def test_other_content_is_refused(torch, tmp_path):
    torch.save({"epoch": 3}, tmp_path / "network.pth")
    with pytest.raises(ValueError, match="must hold a state dict of tensors"):
        load_state(tmp_path / "network.pth")
    (tmp_path / "network.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="weights-only loader refused it"):
        load_state(tmp_path / "network.pth")
    (tmp_path / "network.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        load_state(tmp_path / "network.safetensors")


def test_paths_are_checked(state, tmp_path):
    with pytest.raises(ValueError, match="must be a checkpoint file, and there is none"):
        load_state(tmp_path / "absent.safetensors")
    (tmp_path / "network.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        load_state(tmp_path / "network.ckpt")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        save_state(state, tmp_path / "network.ckpt")


def test_without_pytorch_the_way_out_is_named(monkeypatch, tmp_path):
    real = builtins.__import__

    def no_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *args, **kwargs)

    (tmp_path / "network.pth").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", no_torch)
    with pytest.raises(ImportError, match="pip install torch"):
        load_state(tmp_path / "network.pth")
