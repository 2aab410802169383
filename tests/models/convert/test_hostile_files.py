"""PyTorch files that hold other things than dense tensors of real numbers under names."""

import zipfile

import numpy as np
import pytest

from skipconv_jax.models.convert.files import load_state

torch = pytest.importorskip("torch")


def _load(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    return load_state(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor_is_named(tmp_path):
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    for value, fault in [
        (torch.eye(2).to_sparse(), "is sparse"),
        (quantised, "is quantised"),
        (torch.empty(2, device="meta"), "has no values"),
        (torch.ones(2, dtype=torch.complex64), "is complex"),
    ]:
        with pytest.raises(ValueError, match=rf"'layer\.weight' {fault}") as caught:
            _load(tmp_path, {"layer.weight": value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [1, None, ("a", "b")])
def test_keys_must_be_names(tmp_path, key):
    with pytest.raises(ValueError, match=r"name its tensors by strings"):
        _load(tmp_path, {key: torch.ones(2)})


def test_parameters_views_and_small_kinds_are_values(tmp_path):
    content = {
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "view": torch.arange(6.0).reshape(2, 3).T,
        "half": torch.ones(2, dtype=torch.bfloat16),
        "tiny": torch.ones(2).to(torch.float8_e4m3fn),
    }
    state = _load(tmp_path, content)
    assert {name: value.dtype for name, value in state.items()} == dict.fromkeys(
        content, np.float32
    )
    np.testing.assert_array_equal(state["view"], [[0, 3], [1, 4], [2, 5]])


def test_views_that_pretend_to_be_huge_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold at most"):
        _load(tmp_path, {"x": torch.ones(1, dtype=torch.float16).expand(1 << 33)})


def test_an_archive_that_expands_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * (8 << 20))
    with pytest.raises(ValueError, match=r"expands to 8388608"):
        load_state(tmp_path / "x.pth")
