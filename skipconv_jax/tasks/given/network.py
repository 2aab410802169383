"""A function with its variables, from a file or anywhere, and the frames it takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from skipconv_jax.entries import find
from skipconv_jax.onnx import OnnxFunction, load
from skipconv_jax.onnx.reader import read


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A function with its variables.

    Attributes:
      fn: `fn(variables, x)`, x as the preset prepares it.
      variables: trained.
      size: height and width of the frames it takes.
      name: of the file or function.
    """

    fn: Callable[..., Any]
    variables: Any
    size: tuple[int, int]
    name: str


def from_onnx(path: str, size: tuple[int, int] | None = None) -> Network:
    """The network of a file with one image input `(1, 3, H, W)`.

    Args:
      path: of the file.
      size: height and width, where the file leaves them free.

    Raises:
      ValueError: several inputs, or one that is no image.
    """
    shapes = None
    if size is not None:
        shapes = {tensor.name: (1, 3, *size) for tensor in read(path).inputs}
    variables, fn = load(path, shapes=shapes)
    return Network(fn, variables, _image_size(fn, path), path)


def _image_size(fn: OnnxFunction, path: str) -> tuple[int, int]:
    shapes = [tensor.shape or () for tensor in fn.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] != 3:
        raise ValueError(
            f"`onnx` (={path!r}) must have one input (1, 3, H, W) to stream frames; it has "
            f"{shapes}. Load it with `skipconv_jax.onnx.load` and feed it yourself."
        )
    _, _, height, width = (int(n) for n in shapes[0])  # type: ignore[arg-type]
    return height, width


def from_function(where: str, size: tuple[int, int] | None) -> Network:
    """The network that `module:function` makes: called with nothing, it returns (variables, fn).

    Args:
      where: its name.
      size: height and width of the frames it takes.

    Raises:
      ValueError: no size, no such function, or one that returns something else.
    """
    if size is None:
        raise ValueError(
            f"`size` (=None) must be height and width of the input of `fn` (={where})."
        )
    made = find(where, "fn")()
    if not (isinstance(made, tuple) and len(made) == 2 and callable(made[1])):
        raise ValueError(
            f"`fn` (={where!r}) must name a function without arguments that returns (variables, "
            f"fn); it returned a {type(made).__name__}."
        )
    variables, fn = made
    return Network(fn, variables, size, where)
