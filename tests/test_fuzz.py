"""The short form of the fuzzing campaign, and inputs that once got through, one of each kind."""

import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from fuzz import campaign
from fuzz.readers import readers
from skipconv_jax.compress.search import ScoreCache
from skipconv_jax.config import check_unchanged
from skipconv_jax.data import jhmdb
from skipconv_jax.live.config import ConfigError, load
from skipconv_jax.training.metrics import JsonLines
from skipconv_jax.tuning.gate_plan import GatePlan


def test_the_short_campaign_finds_nothing(repository):
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "--short"],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not done.returncode, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith("of each reader from seed 0: 0 bad")


def test_a_reader_that_breaks_is_noticed(tmp_path):
    """The campaign itself can fail: each kind of breakage is told from the others."""

    def fails(error):
        def read(folder):
            raise error

        return campaign.Reader("x", lambda folder: None, read, "*")

    cases = {
        "internal error": [KeyError("x"), ValueError("two\nlines"), ValueError("")],
        "refused": [ValueError("one line"), OSError("no such file")],
        "memory": [MemoryError()],
    }
    for kind, errors in cases.items():
        for error in errors:
            assert campaign.classify(fails(error), tmp_path, "").kind == kind
    value = campaign.Reader("x", lambda folder: None, lambda folder: 1, "*")
    assert campaign.classify(value, tmp_path, campaign.digest(1)).kind == "same"
    assert campaign.classify(value, tmp_path, campaign.digest(2)).kind == "changed"


def test_a_hang_is_noticed(tmp_path, monkeypatch):
    def read(folder):
        while True:
            pass

    monkeypatch.setattr(campaign, "SECONDS", 1)
    reader = campaign.Reader("x", lambda folder: None, read, "*")
    assert campaign.classify(reader, tmp_path, "").kind == "hang"


def test_every_seed_gives_the_same_input_again(tmp_path):
    reader = next(r for r in readers() if r.name == "image png")
    (tmp_path / "example").mkdir()
    reader.make(tmp_path / "example")
    for name in ("a", "b"):
        campaign.damage(reader, tmp_path / "example", tmp_path / name, 7)
    assert (tmp_path / "a" / "a.png").read_bytes() == (tmp_path / "b" / "a.png").read_bytes()


@pytest.mark.parametrize(
    "change",
    [{"layers": 1.5}, {"layers": {"conv1": []}}, {"notes": []}, {"policy": "a" * 5000},
     {"layers": {"conv1": {"kernel": {}}}},
     {"layers": {"conv1": {"kernel": [3], "gate": {"name": "input_norm", "threshold": 1e999}}}}],
)  # fmt: skip
def test_gate_plans_with_lists_for_dictionaries(tmp_path, change):
    plan = {"format": "skipconv_jax gate plan 1", "policy": "previous", "notes": {}, "layers": {}}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, **change}))
    with pytest.raises(ValueError, match=r"`gate plan`.*\$\.") as caught:
        GatePlan.load(tmp_path / "plan.json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("line", [b"\xff\xfe", b'{"loss": 1}', b"5", b"[]", b'{"step": "x"}'])
def test_metrics_are_kept_up_to_a_damaged_line(tmp_path, line):
    good = b'{"step": 1}\n{"step": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + line + b'\n{"step": 3}\n')
    JsonLines(tmp_path / "metrics.jsonl", 9).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[1]", b'{"batch": 5}'])
def test_a_damaged_configuration_of_a_run_is_named(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        check_unchanged(ConfigDict({"batch": 4}), tmp_path / "config.json", ())
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "config.json").read_bytes() == content  # nothing is lost


@pytest.mark.parametrize("line", [b"\xff", b"5", b'{"name": "conv"}', b'{"name": 1, "rank": 2}'])
def test_a_damaged_cache_of_scores_is_named(tmp_path, line):
    (tmp_path / "c").write_bytes(b'{"of": "abc"}\n' + line + b"\n")
    with pytest.raises(ValueError, match=r"`cache` \(=.*is damaged .*; delete it"):
        ScoreCache(tmp_path / "c", "abc")


_NESTED = "[" * 100_000
_ALIASES = "\n".join(
    ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [("cameras: 2001-99-99", "no valid YAML"), (_ALIASES, "at most 100000 values"),
     (_NESTED, "no valid YAML|nested too deep")],
)  # fmt: skip
def test_yaml_that_grows_or_is_no_date(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load(tmp_path / "c.yaml", {})


def test_damaged_records_are_one_line_that_names_their_folder(tmp_path):
    """TFDS and its record format promise no kinds of errors."""
    reader = next(r for r in readers() if r.name == "records")
    (tmp_path / "example").mkdir()
    reader.make(tmp_path / "example")
    (folder,) = (tmp_path / "example").glob("data/jhmdb/synthetic/*.*.*")
    shards = sorted(folder.glob("*array_record*"))
    for path in (*shards[:2], folder / "features.json", folder / "dataset_info.json"):
        whole = path.read_bytes()
        for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 9 + whole[109:]):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"damaged .*prepare the dataset again") as caught:
                reader.read(tmp_path / "example")
            assert len(str(caught.value).splitlines()) == 1
            assert str(folder) in str(caught.value)
        path.write_bytes(whole)
    (folder / "metadata.json").write_text(json.dumps({"records": {"clips_9": [["a", 1]]}}))
    with pytest.raises(ValueError, match="splits as 'clips_112'"):
        jhmdb.load(tmp_path / "example" / "data", "train", config="synthetic")


def test_an_onnx_operator_of_several_lines_is_named_in_one(tmp_path):
    onnx = pytest.importorskip("onnx")
    reader = next(r for r in readers() if r.name == "ONNX")
    reader.make(tmp_path)
    file = onnx.load(tmp_path / "net.onnx")
    file.graph.node[0].op_type = "Conv*\n\x04pads"
    (tmp_path / "net.onnx").write_bytes(file.SerializeToString())
    with pytest.raises(ValueError, match=r"not known here: 'Conv\*\\n\\x04pads'") as caught:
        reader.read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_camera_address_of_5000_letters_is_cut(tmp_path):
    (tmp_path / "c.toml").write_text(
        f'[network]\nonnx = "n.onnx"\n[[cameras]]\nname = "a"\naddress = "{"a" * 5000}://x"\n'
    )
    with pytest.raises(ConfigError, match="must begin with one of") as caught:
        load(tmp_path / "c.toml", {})
    assert len(str(caught.value)) < 1000
