"""A file of cameras: what is wrong is named with its place, and no secret is in a message."""

import pytest

from skipconv_jax.live.config import ConfigError, load

GOOD = """
network: {onnx: net.onnx, preset: yolox}
cameras:
  - {name: door, address: "rtsp://me:${SECRET}@cam/live", rate: 5}
  - {name: yard, address: "http://cam/video", drop: oldest, zones: {gate: [[0, 0], [1, 0], [1, 1]]}}
lines: {path: "-"}
"""
TOML = """
[network]
onnx = "net.onnx"
[[cameras]]
name = "door"
address = "rtsp://cam/live"
"""


def _load(tmp_path, text, suffix="yaml", **environment):
    path = tmp_path / f"cameras.{suffix}"
    path.write_text(text)
    return load(path, environment)


def test_yaml_and_toml(tmp_path):
    config = _load(tmp_path, GOOD, SECRET="hush")
    door, yard = config.cameras
    assert door.address == "rtsp://me:hush@cam/live"
    assert (door.rate, door.drop, yard.drop) == (5, "newest", "oldest")
    assert door.connection().transport == "tcp"
    assert yard.zones["gate"] == [(0, 0), (1, 0), (1, 1)]
    assert _load(tmp_path, TOML, "toml").cameras[0].name == "door"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rate: 5", "rate: -5", r"Expected `float` >= 0.0 at \$.cameras\[0\].rate"),
        (
            "rate: 5",
            "rat: 5",
            r"unknown field `rat` at \$.cameras\[0\]; it must be one of name, ad",
        ),
        ("drop: oldest", "drop: eldest", r"Invalid enum value 'eldest' at \$.cameras\[1\].drop"),
        ("name: yard", "name: door", r"`name` \(='door'\) must be of one camera only"),
        ("name: yard", "name: a/b", r"matching regex .* at \$.cameras\[1\].name"),
        ("lines:", "line:", r"unknown field `line` at \$; it must be one of network, cameras"),
        ("http://cam", "ftp://u:hush@cam", r"`address` \(=ftp://cam/...\) must .*cameras\[1\]"),
        ("[[0, 0], [1, 0], [1, 1]]}", "[[0, 0], [1, 0]]}", r"length >= 3 at \$.cameras\[1\].zones"),
        ("[[0, 0], [1, 0], [1, 1]]}", "[[0, 0], [1, 0], [1, 9]]}", r"<= 1.0 at \$.cameras\[1\]"),
        ("onnx: net.onnx", "onx: net.onnx", r"at \$.network; it must be one of onnx, preset"),
        ("cameras:", "cameras: [", "no valid YAML in line"),
        ("SECRET", "OTHER", r"\$.cameras\[0\].address names \$\{OTHER\}, which the environment"),
    ],
)
def test_what_is_wrong_is_named_and_no_secret_is_said(tmp_path, old, new, said):
    text = GOOD.replace(old, new)
    assert text != GOOD
    with pytest.raises(ConfigError, match=said) as caught:
        _load(tmp_path, text, SECRET="hush")
    assert "hush" not in str(caught.value)
    assert "cameras.yaml" in str(caught.value)


def test_files_that_are_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"must end in .yaml, .yml or .toml"):
        _load(tmp_path, GOOD, "json")
    with pytest.raises(ConfigError, match="no valid TOML"):
        _load(tmp_path, GOOD, "toml")
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"Expected `object`, got `null` at \$"):
        _load(tmp_path, "")
