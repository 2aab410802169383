"""What the GPU kernel needs of jax 0.10 and 0.11 that only later versions offer publicly.

This is the one place that reaches into private modules; it goes with support for those versions.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

_public_interpreter = getattr(plgpu, "InterpretGPUParams", None)
_PUBLIC = _public_interpreter is not None

# Whether the interpreter reads a transposed tile as an operand of the tensor cores.
INTERPRETS_TRANSPOSED_TILES = _PUBLIC


def _interpreter() -> Any:
    if _public_interpreter is not None:
        return _public_interpreter()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


INTERPRET = _interpreter()


_exporting = contextvars.ContextVar("exporting", default=False)


@contextlib.contextmanager
def exporting() -> Iterator[None]:
    """Kernels traced inside are compiled for a GPU, whatever the machine: for `jax.export`.

    The interpreter orders its steps by side effects, so that the choice, unlike the TPU kernel's,
    can't wait until the platform is known.
    """
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def compiled() -> bool:
    """Whether a kernel traced now is compiled rather than interpreted."""
    return _exporting.get() or jax.default_backend() == "gpu"


def unsuitable_device() -> str:
    """Why a kernel traced now can't be compiled for the default device; empty where it can.

    The tensor-core instructions are Hopper's own: newer generations have others.
    """
    if _exporting.get() or jax.default_backend() != "gpu":
        return ""
    device = jax.devices()[0]
    capability = str(getattr(device, "compute_capability", "unknown"))
    if capability.split(".")[0] == "9":
        return ""
    return f"{device.device_kind} (compute capability {capability}), which is no Hopper GPU"


def in_place(update: Callable[[Any], None], array: jax.Array) -> jax.Array:
    """The array after `update` has written to it in global memory; `update` takes a mutable buffer.

    Where the buffer of `array` may be reused, nothing is copied.
    """

    def run(array: jax.Array) -> jax.Array:
        buffer = jax.new_ref(array, memory_space=plgpu.GMEM)
        update(buffer)
        return jax.freeze(buffer)

    if _PUBLIC:
        return jax.jit(run)(array)
    # A mutable buffer inside a function with a batching rule of its own is refused when compiled,
    # so the buffer is traced away here instead of later.
    from jax._src.state.discharge import discharge_state

    traced = discharge_state(jax.make_jaxpr(run)(array))
    (result,) = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, array)
    return result
