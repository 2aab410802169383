"""Objects by name: `module:object`, as a config names a task, network, gate or policy of yours."""

import importlib
from typing import Any


def find(where: str, argument: str) -> Any:
    """The object of `module:object`.

    Args:
      where: e.g. `my_package.gates:MotionGate`; the module must be importable here.
      argument: what to blame in the message.

    Raises:
      ValueError: no such module or object.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`{argument}` (={where!r}) must be `module:object` that can be imported here: "
            f"{error}. A file of yours is found if PYTHONPATH names its folder."
        ) from error
