"""`skipconv COMMAND`: names, help, exit codes, configurations by name, from anywhere."""

import importlib
import os
import subprocess
import sys

import pytest

from skipconv_jax import config as configs
from skipconv_jax.commands import cli


def _run(repository, arguments, cwd, program=("-m", "skipconv_jax")):
    return subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(repository)},
        cwd=cwd, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--help"], 0), (["-h"], 0)])
def test_the_overview_names_every_command(capsys, arguments, code):
    assert cli.main(arguments) == code
    out = capsys.readouterr()
    text = out.err if code else out.out
    assert [line.split()[0] for line in text.splitlines()[2:-2]] == list(cli.COMMANDS)


def test_an_unknown_command_lists_the_known_ones(capsys):
    assert cli.main(["trian"]) == 2
    assert "`command` (='trian') must be one of train, eval, stream" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["macs", "profile", "demo", "prepare", "synthetic_pose", "synthetic_traffic"]
)
def test_commands_without_absl_say_how_to_call_them(capsys, name):
    module = importlib.import_module(cli.COMMANDS[name].module)
    assert not hasattr(module, "USAGE")
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    usage = capsys.readouterr().out.splitlines()[0]
    assert usage.startswith(("usage: skipconv ", "usage: python -m skipconv_jax.")), usage
    assert name in usage


@pytest.mark.parametrize(
    ("name", "flag"),
    [("train", "--[no]resume"), ("eval", "--baseline"), ("stream", "--drift_every"),
     ("calibrate", "--budget")],
)  # fmt: skip
def test_commands_with_flags_show_them_and_are_the_scripts(repository, tmp_path, name, flag):
    shown = _run(repository, [name, "--help"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"usage: skipconv {name} " in shown.stdout
    assert flag in shown.stdout
    assert "--config: configuration file" in shown.stdout
    script = _run(repository, ["--help"], tmp_path, (repository / f"{name}.py",))
    usage = (f"usage: skipconv {name} ", f"usage: python {name}.py ")
    assert script.stdout == shown.stdout.replace(*usage)


@pytest.mark.parametrize("spec", ["hrnet_synthetic", "configs/hrnet_synthetic.py"])
def test_shipped_configs_are_found_from_anywhere(repository, tmp_path, spec):
    done = _run(repository, ["eval", "--config", spec, "--config.data.root=nowhere"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: `config.data.root` (='nowhere') must hold the data.")


def test_names_of_configs(tmp_path, monkeypatch):
    assert {"hrnet_synthetic", "efficientdet_detrac"} <= set(configs.shipped())
    monkeypatch.chdir(tmp_path)
    assert configs.load("hrnet_jhmdb:3").data.split == 3
    with pytest.raises(ValueError, match="or one of efficientdet_detrac, efficientdet_synthetic"):
        configs.load("hrnet_jhmbd")
    # A file that is there comes first.
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "hrnet_jhmdb.py"
    own.write_text("def get_config():\n    return 7\n")
    assert configs.load("configs/hrnet_jhmdb.py") == 7
    assert configs.load("hrnet_jhmdb:2").data.split == 2


def test_the_flag_is_located_however_it_is_written():
    path = str(configs.shipped()["hrnet_jhmdb"])
    for given in (
        ["--config", "hrnet_jhmdb:2"],
        ["--config=hrnet_jhmdb:2"],
        ["-config=hrnet_jhmdb:2"],
    ):
        located = configs.locate_flag(["--out", "hrnet_jhmdb", *given, "--config.seed=1"])
        assert located[:2] == ["--out", "hrnet_jhmdb"]
        assert located[-1] == "--config.seed=1"
        assert f"{path}:2" in located[-2]
