"""The convolutions of a network as compression sees them: which variable, which geometry."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.ops.geometry import Conv
from skipconv_jax.program.walk import Site, Visitor, evaluate, leaf_name

Tree = Any
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A convolution kernel and every use of it.

    Attributes:
      name: of the convolution.
      path: of the kernel in the variables.
      shape: `(*window, Ci / groups, Co)`.
      uses: geometry of each use and how often it runs per frame and stream.
      fixed_because: why it can't be compressed; empty where it can.
    """

    name: str
    path: Path
    shape: tuple[int, ...]
    uses: tuple[tuple[Conv, int], ...]
    fixed_because: str = ""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all uses, per frame and stream."""
        return sum(conv.macs * calls for conv, calls in self.uses)

    @property
    def conv(self) -> Conv:
        """Geometry of the first use."""
        return self.uses[0][0]


class _Collect(Visitor):
    """Keeps the kernel of every convolution; the sites come from the walk."""

    def __call__(self, site: Site, x: jax.Array, kernel: jax.Array) -> None:
        del x
        self.made[site.name] = kernel


def plain(name: str) -> str:
    """Name of the kernel: that of the convolution without its call number."""
    return name.rpartition("@")[0] or name


def find_kernels(
    fn: Callable[..., Any], variables: Tree, x: Any, *args: Any
) -> tuple[dict[str, Kernel], int]:
    """Kernels of the convolutions `fn(variables, x, *args)` runs on the frame.

    Args:
      fn: the network.
      variables: nested dictionaries of arrays, as Flax makes them.
      x: a frame of B streams, or its shape.
      *args: further arguments of `fn`.

    Returns:
      `{name: Kernel}` in the order of the trace, and the multiply-accumulates per frame and stream
      of the whole network, convolutions on no kernel of their own included.
    """
    sites: list[Site] = []

    def run(variables: Tree, x: Any) -> Any:
        visitor = _Collect()
        _, found = evaluate(fn, variables, x, args, visitor)
        sites.extend(found)
        return visitor.made

    x = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
    # Only the kernels leave: the compiler drops the network, what is left is casts.
    effective = jax.jit(run)(variables, x)
    leaves = {leaf_name(path): (path, leaf) for path, leaf in _leaves(variables)}
    kernels: dict[str, Kernel] = {}
    for site in sites:
        name = plain(site.name)
        if site.conv is None or name not in leaves:
            continue
        if name in kernels:
            uses = (*kernels[name].uses, (site.conv, site.calls))
            kernels[name] = dataclasses.replace(kernels[name], uses=uses)
            continue
        path, leaf = leaves[name]
        computed = not _same(leaf, effective[site.name])
        why = "its kernel is computed from its variable" if computed else ""
        kernels[name] = Kernel(name, path, site.kernel_shape, ((site.conv, site.calls),), why)
    return kernels, sum(site.macs for site in sites)


def _leaves(variables: Tree) -> list[tuple[Path, Any]]:
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not all(isinstance(entry, jax.tree_util.DictKey) for entry in path):
            raise ValueError(
                f"`variables` (leaf {jax.tree_util.keystr(path)}) must be nested dictionaries, as "
                "`model.init` of Flax Linen makes them."
            )
        found.append((tuple(entry.key for entry in path), leaf))
    return found


def _same(leaf: Any, kernel: jax.Array) -> bool:
    if leaf.shape != kernel.shape:
        return False
    return bool(np.array_equal(np.asarray(leaf.astype(kernel.dtype)), np.asarray(kernel)))


def get(tree: Mapping[str, Any], path: Path) -> Any:
    """The leaf or branch at `path`."""
    for key in path:
        tree = tree[key]
    return tree


def replaced(tree: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy of nested dictionaries with `value` at `path`; None removes the entry."""
    head, *rest = path
    copy = dict(tree)
    if rest:
        copy[head] = replaced(copy.get(head, {}), tuple(rest), value)
    elif value is None:
        del copy[head]
    else:
        copy[head] = value
    return copy
