"""Configurations: what a config file holds, how it is read, and what is built from it.

A config file is Python with `get_config(arg="")` returning an `ml_collections.ConfigDict`; its
docstring is the run card. `python train.py --config configs/x.py --config.gated.beta=1e-4` changes
one value, `--config configs/x.py:arg` hands `arg` to the file. Those of `configs/` ship with the
package and are found by name, too: `skipconv train --config hrnet_synthetic`.
"""

import importlib.util
import json
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

from skipconv_jax import Rule, json_files, whole_files
from skipconv_jax.entries import find
from skipconv_jax.ops import (
    POLICIES,
    AlwaysGate,
    ConvNormGate,
    GumbelGate,
    InputNormGate,
    OutputNormGate,
)
from skipconv_jax.tuning.gate_plan import GatePlan

GATES: dict[str, type] = {
    "input_norm": InputNormGate,
    "output_norm": OutputNormGate,
    "conv_norm": ConvNormGate,
    "gumbel": GumbelGate,
    "always": AlwaysGate,
}


PHASE = {
    "steps": 0,  # 0: `epochs` decides
    "epochs": 100,
    "batch": 16,
    "lr": 1e-3,
    "schedule": "steps",  # 'constant', 'cosine' or 'steps'
    "milestones": (0.4, 0.8),  # shares of the steps where 'steps' divides the rate by 10
    "warmup": 0,
    "optimizer": "adam",  # or 'sgd'
    "momentum": 0.9,  # of 'sgd'
    "weight_decay": 0.0,  # of kernels, added to their gradients
    "clip_norm": 0.0,  # 0: no clipping
    "gate_lr_scale": 1.0,
}
"""Settings of any phase of training."""


def base(task: str = "") -> ConfigDict:
    """What a config of a task starts from; a config file overrides what it means to.

    Args:
      task: a folder of `skipconv_jax.tasks`, whose `settings.extend`, if there is one, adds what
        the task alone has; empty for what all tasks share, which a task of your own starts from.

    Raises:
      ValueError: no such task.
    """
    config = ConfigDict()
    config.seed = 0
    config.task = task
    config.init_from = ""  # a public PyTorch checkpoint to start the dense phase from
    config.data = ConfigDict(
        {
            "root": "",
            "fetch": "",  # what to fetch and where to put it, shown where `root` is missing
            "split": 1,
            "cache": False,  # keep decoded frames in memory
            "augmentation": None,  # of training; None: the task's own
        },
        type_safe=False,
    )
    config.model = ConfigDict({"name": ""})
    config.input = ConfigDict({"height": 256, "width": 256})
    # `gate`: default gate of all convolutions; `rules`: ((pattern, None or gate settings), ...).
    # `gate_plan`: a file of calibrate.py, which takes the place of gate, rules and policy; `plan`
    # is what it was called in 0.1.0.
    config.skip = ConfigDict(
        {
            "gate": ConfigDict({"name": "gumbel", "block": 8}, type_safe=False),
            "policy": "previous",
            "rules": (),
            "gate_plan": "",
            "plan": "",
            "implementation": None,
        },
        type_safe=False,
    )
    # `equivariance`: weight of the loss of section 3.3 on shifted frames.
    config.dense = ConfigDict(PHASE | {"clip_length": 1, "equivariance": 0.0})
    config.gated = ConfigDict(
        PHASE
        | {
            "clip_length": 8,
            "beta": 1e-5,
            # 'train': statistics of the batch, as in the dense phase; 'frozen': the dense phase's.
            "batch_norm": "frozen",
            "remat": False,
        }
    )
    # `reset_every`: frames between reference frames at test time, 0 for one per clip.
    config.eval = ConfigDict({"batch": 8, "reset_every": 8, "max_clips": 0})
    config.log_every = 20
    config.checkpoint_every = 200
    config.keep_checkpoints = 2
    config.tensorboard = False
    folder = f"skipconv_jax.tasks.{task}"
    if task and importlib.util.find_spec(folder) is None:
        raise ValueError(f"`task` (={task!r}) must be a folder of skipconv_jax/tasks, or empty.")
    if task and importlib.util.find_spec(f"{folder}.settings") is not None:
        find(f"{folder}.settings:extend", "task")(config)
    return config


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name; in a checkout those of `configs/`."""
    package = Path(__file__).parent
    folder = package / "configs"
    if not folder.is_dir():
        folder = package.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def locate(spec: str) -> str:
    """`FILE[:ARG]` of `FILE[:ARG]` or `NAME[:ARG]`, a name being one of `shipped()`.

    `configs/NAME.py`, which run cards and the documentation write, is found anywhere; a file that
    is there is taken first. What names nothing is returned as it is.
    """
    name, colon, arg = spec.partition(":")
    path = Path(name)
    if path.is_file():
        return spec
    known = shipped()
    for given in (path.stem if path.parent == Path("configs") else "", name):
        if given in known:
            return f"{known[given]}{colon}{arg}"
    return spec


def locate_flag(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments in which `--config` names a file, as absl's flag takes it."""
    located, after = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if after:
            located.append(locate(argument))
        elif equals and name in ("--config", "-config"):
            located.append(f"{name}={locate(value)}")
        else:
            located.append(argument)
        after = not after and argument in ("--config", "-config")
    return located


def load(spec: str) -> ConfigDict:
    """The configuration of `path/to/file.py[:arg]` or `name[:arg]`, unchanged.

    Raises:
      ValueError: no such file, or it has no `get_config`.
    """
    name, _, arg = locate(spec).partition(":")
    path = Path(name)
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(
            f"`config` (={name!r}) must be an existing .py file or one of {', '.join(shipped())}."
        )
    found = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if found is None or found.loader is None:
        raise ValueError(f"`config` (={name!r}) must be a Python file; see configs/.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"`config` (={name!r}) must define `get_config(arg='')`; see configs/.")
    return module.get_config(arg) if arg else module.get_config()


def flag() -> Any:
    """Defines absl's `--config FILE[:ARG]` with `--config.key=value` overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "configuration file, e.g. configs/hrnet_synthetic.py", lock_config=True
    )


def filename() -> str:
    """The file `--config` names."""
    return str(config_flags.get_config_filename(flags.FLAGS["config"]))


def gate(settings: Any) -> Any:
    """The gate of `{'name': ..., block, threshold, ...}`; `name` may be `module:class` of your own.

    Raises:
      ValueError: an unknown gate or an argument it does not have.
    """
    options = dict(settings)
    name = options.pop("name", None)
    make = _named(name, GATES, "gate.name")
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(
            f"`gate` (={options}) must hold arguments of {name!r}: {error}."
        ) from error


def _named(name: Any, known: Mapping[str, Any], argument: str) -> Any:
    """What a name stands for: one of `known`, or `module:object`."""
    if name in known:
        return known[name]
    if ":" in str(name):
        return find(str(name), argument)
    raise ValueError(
        f"`{argument}` (={name!r}) must be one of {', '.join(sorted(known))}, or `module:class` of "
        "your own."
    )


def set_gate(
    config: ConfigDict, name: str | None, threshold: float | None, block: int | None
) -> ConfigDict:
    """A copy of the configuration whose convolutions all take this gate; None keeps what it says.

    Rules that leave convolutions dense stay.

    Raises:
      ValueError: a threshold for a gate that has none.
    """
    config = config.copy_and_resolve_references()
    if name is None and threshold is None and block is None:
        return config
    settings = dict(config.skip.gate)
    if name is not None and name != settings["name"]:
        settings = {"name": name, "block": settings["block"]}
        config.skip.rules = tuple(rule for rule in config.skip.rules if rule[1] is None)
    if threshold is not None:
        if "norm" not in settings["name"]:
            raise ValueError(
                f"`threshold` (={threshold}) must come with a norm gate, not {settings['name']!r}; "
                "add --gate=input_norm."
            )
        settings["threshold"] = threshold
    if block is not None:
        settings["block"] = block
    with config.unlocked():
        config.skip.gate = ConfigDict(settings)
    return config


def skip_options(config: ConfigDict) -> dict[str, Any]:
    """Keyword arguments of `skip(fn, ...)` for this configuration.

    Raises:
      ValueError: an unknown gate or policy, or a gate plan that can't be read.
    """
    settings = config.skip
    if saved := settings.gate_plan or settings.get("plan"):
        return {"rules": GatePlan.load(saved), "implementation": settings.implementation}
    policy = _named(settings.policy, POLICIES, "skip.policy")
    rules = [(pattern, None if g is None else Rule(gate=gate(g))) for pattern, g in settings.rules]
    return {
        "rules": rules,
        "gate": gate(settings.gate),
        "policy": policy(),
        "implementation": settings.implementation,
    }


_SHOWN = 12


def check_unchanged(config: ConfigDict, path: Path, ignore: tuple[str, ...]) -> None:
    """Writes the configuration to `path`, or compares it with the one the run was started with.

    Raises:
      ValueError: a value outside `ignore` differs, or the file at `path` is damaged.
    """
    now = _flat(json.loads(config.to_json_best_effort()))
    if path.exists():
        then = json_files.read(path, dict[str, Any])
        brief = reprlib.Repr()
        brief.maxstring = brief.maxother = 100
        changed = [
            f"{key[:100]}: {brief.repr(then.get(key))} -> {brief.repr(now.get(key))}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key) != now.get(key) and not _covers(ignore, key)
        ]
        if changed:
            raise ValueError(
                f"`config` must be the one the run in {path.parent} was started with; changed: "
                + "; ".join(changed[:_SHOWN])
                + ("; ..." if len(changed) > _SHOWN else "")
                + ". Undo the change or use another --workdir."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    whole_files.write_text(path, json.dumps(now, indent=1, sort_keys=True) + "\n")


def _covers(names: Sequence[str], key: str) -> bool:
    """Whether a dotted key is one of the names or lies under one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return flat
