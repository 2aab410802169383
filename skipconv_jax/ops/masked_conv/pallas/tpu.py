"""Masked convolution as a Pallas TPU kernel over the compacted list of fired blocks.

The list is prefetched to scalar memory and drives the pipeline: step i fetches the halo tile of
block `active[i]` while step i - 1 computes (the pipeline double-buffers every window), lays its
patches out in VMEM, multiplies them by the kernel on the matrix unit as one
(b b) x (kh kw Ci) x Co product, and writes the block into the output, which shares its buffer with
`base`. The grid ends at the number of fired blocks: the others cost no step and move no data.
A depthwise convolution runs on the vector unit instead.

Elsewhere than on a TPU the kernel is interpreted: the same result, slowly.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from skipconv_jax.ops.masked_conv import sparse
from skipconv_jax.ops.masked_conv.epilogue import finish
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem, negative_padding

_SUBLANES, _LANES = 8, 128
# Of the 16 MiB a kernel may use by default on every generation, less what the compiler spills.
_VMEM_BUDGET = 12 * 2**20
_PRECISIONS = (None, lax.Precision.DEFAULT, lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Static shapes of the kernel: how the input is cut into chunks of columns, and Co into slices.

    A window may start at any multiple of b s columns, which the tiled minor axes of a TPU array
    can't; so columns are split into (chunks, columns of a chunk) and windows start at chunks.
    """

    problem: Problem
    chunk: int
    chunks: int
    channels: int  # of one slice of Co

    @property
    def rows(self) -> int:
        """Input rows of a tile."""
        return self.problem.conv.tile(self.problem.block)[0]

    @property
    def taps(self) -> int:
        """Positions of the window."""
        return math.prod(self.problem.conv.window)

    @property
    def depth(self) -> int:
        """Length of the matrix product, kh kw Ci; the window alone where it is depthwise."""
        return self.taps * (1 if self.depthwise else self.problem.conv.in_channels)

    @property
    def depthwise(self) -> bool:
        """One input and one output channel a group."""
        return self.problem.conv.groups > 1

    def vmem(self) -> int:
        """Bytes of all windows (two buffers each) and scratch, padded to the hardware's tiles."""
        b, ci = self.problem.block, self.problem.conv.in_channels
        sizes = self.problem.operand_dtype.itemsize, self.problem.kernel_dtype.itemsize
        windows = _bytes((self.rows * self.chunks, self.chunk, ci), sizes[0])
        windows += _bytes((self.depth, self.channels), sizes[1])
        windows += 3 * _bytes((b, b, self.channels), 4)
        scratch = _bytes((self.rows, self.chunks * self.chunk, ci), 4)
        scratch += _bytes((b, b, ci if self.depthwise else self.depth), 4)
        return 2 * windows + 2 * scratch


def _bytes(shape: Sequence[int], itemsize: int) -> int:
    *major, rows, lanes = shape
    return math.prod(major) * _up(rows, _SUBLANES) * _up(lanes, _LANES) * itemsize


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def plan(problem: Problem) -> _Plan:
    """Shapes of the kernel, with the widest slice of Co that fits, where `supports` takes it."""
    return next(p for p in _plans(problem) if _fits(p))


def _plans(problem: Problem) -> list[_Plan]:
    """What VMEM may hold, widest slice of the output channels first."""
    conv, b = problem.conv, problem.block
    step = b * conv.strides[1]
    chunk = _SUBLANES if step % _SUBLANES == 0 else step
    chunks = -(-conv.tile(b)[1] // chunk)
    slices = [conv.out_channels]
    if conv.groups == 1:
        smaller = range(_up(conv.out_channels, _LANES) - _LANES, 0, -_LANES)
        slices += [n for n in smaller if conv.out_channels % n == 0 and n < conv.out_channels]
    return [_Plan(problem, chunk, chunks, channels) for channels in slices]


def _fits(found: _Plan) -> bool:
    return found.vmem() <= _VMEM_BUDGET


def supports(problem: Problem) -> str | None:
    """float32 or bfloat16, accumulated in float32, in 2D, dense or plain depthwise.

    Not taken: other groups, a precision Mosaic lacks, negative padding, tiles that do not fit VMEM.
    float32 products have `conv.precision`, whose default on a TPU is one bfloat16 pass, as in XLA's
    own convolution there. A float32 residual with a bfloat16 kernel takes two passes.
    """
    conv = problem.conv
    if conv.rank != 2:
        return f"{conv.rank} spatial axes"
    if conv.groups > 1 and not conv.groups == conv.in_channels == conv.out_channels:
        return (
            f"{conv.groups} groups for {conv.in_channels} -> {conv.out_channels} channels; dense "
            "and plain depthwise only"
        )
    if reason := negative_padding(problem):
        return reason
    for dtype in (problem.operand_dtype, problem.kernel_dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            return dtype.name
    if problem.dtype != jnp.float32:
        return f"an output of {problem.dtype}"
    if conv.precision not in _PRECISIONS:
        return f"precision {conv.precision}"
    plans = _plans(problem)
    if not any(_fits(p) for p in plans):
        needed = plans[-1].vmem() / 2**20
        return f"{needed:.1f} MiB of VMEM for {conv} in blocks of {problem.block}"
    return None


def _body(spec: _Plan, names: tuple[str, ...], activation: str | None, *refs: Any) -> None:
    """One grid step: one fired block, one slice of the output channels."""
    ref = dict(zip(names, refs, strict=True))
    b = spec.problem.block

    @pl.when(pl.program_id(1) < ref["count"][0])
    def _fired() -> None:
        # Chunks become whole rows, in float32, whose columns may be read at any offset and stride.
        for m in range(spec.chunks):
            columns = ref["tile"][0, :, m].astype(jnp.float32)
            ref["columns"][:, m * spec.chunk : (m + 1) * spec.chunk] = columns
        z = _depthwise(spec, ref) if spec.depthwise else _matrix_product(spec, ref)
        base = ref["base"][0, :, 0].reshape(b * b, -1)
        if not spec.problem.recompute:
            z = base + z
        elif "bias" in ref:
            z = z + ref["bias"][...]
        if "scale" in ref:
            residual = ref["residual"][0, :, 0].reshape(b * b, -1) if "residual" in ref else None
            z = finish(z, ref["scale"][0], ref["shift"][0], residual, activation)
        ref["out"][0, :, 0] = z.reshape(b, b, -1)

    @pl.when(pl.program_id(1) >= ref["count"][0])
    def _nothing_fired() -> None:
        ref["out"][...] = ref["base"][...]


def _tap(spec: _Plan, columns: Any, tap: int) -> jax.Array:
    """Input `(b, b, Ci)` that one tap of the window multiplies."""
    conv, b = spec.problem.conv, spec.problem.block
    window = []
    for p, d, s in zip(divmod(tap, conv.window[1]), conv.dilation, conv.strides, strict=True):
        window.append(pl.ds(p * d, b, stride=s if s > 1 else None))
    return columns[window[0], window[1], :]


def _matrix_product(spec: _Plan, ref: dict[str, Any]) -> jax.Array:
    ci, b, kernel = spec.problem.conv.in_channels, spec.problem.block, ref["kernel"]
    for tap in range(spec.taps):
        ref["patches"][:, :, tap * ci : (tap + 1) * ci] = _tap(spec, ref["columns"], tap)
    patches = ref["patches"][...].reshape(b * b, spec.depth)
    dot = functools.partial(
        jnp.dot, preferred_element_type=jnp.float32, precision=spec.problem.conv.precision
    )
    if kernel.dtype != jnp.bfloat16:
        return dot(patches, kernel[...])
    if ref["tile"].dtype == jnp.bfloat16:
        return jnp.dot(
            patches.astype(jnp.bfloat16), kernel[...], preferred_element_type=jnp.float32
        )
    # A float32 residual of bfloat16 frames: two bfloat16 halves, r = hi + lo up to 2^-16 |r|.
    high = patches.astype(jnp.bfloat16)
    low = (patches - high.astype(jnp.float32)).astype(jnp.bfloat16)
    product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    return product(high, kernel[...]) + product(low, kernel[...])


def _depthwise(spec: _Plan, ref: dict[str, Any]) -> jax.Array:
    b, weights = spec.problem.block, ref["kernel"][...].astype(jnp.float32)
    total = jnp.zeros((b, b, spec.channels), jnp.float32)
    for tap in range(spec.taps):
        total += _tap(spec, ref["columns"], tap) * weights[tap : tap + 1][None]
    return total.reshape(b * b, spec.channels)


def _cut_input(spec: _Plan, operand: jax.Array) -> jax.Array:
    """`(B, rows, chunks, columns of a chunk, Ci)`, zeros around the frame, every tile whole."""
    conv, b = spec.problem.conv, spec.problem.block
    (top, _), (left, _) = conv.padding
    grid, step = conv.grid(b), [b * s for s in conv.strides]
    height = (grid[0] - 1) * step[0] + spec.rows
    width = (grid[1] - 1) * step[1] + spec.chunks * spec.chunk
    pads = [
        (top, height - top - conv.in_spatial[0], 0),
        (left, width - left - conv.in_spatial[1], 0),
    ]
    operand = lax.pad(operand, jnp.zeros((), operand.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    return operand.reshape(*operand.shape[:2], -1, spec.chunk, operand.shape[-1])


def _cut_output(problem: Problem, array: jax.Array) -> jax.Array:
    """`(B, rows, block columns, b, Co)`, with rows and columns up to whole blocks."""
    conv, b = problem.conv, problem.block
    pads = [(0, n * b - size, 0) for n, size in zip(conv.grid(b), conv.out_spatial, strict=True)]
    array = lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    return array.reshape(*array.shape[:2], -1, b, array.shape[-1])


def _specs(spec: _Plan, array: jax.Array) -> dict[str, pl.BlockSpec]:
    """Windows of each kind of array; `active` decides which block a step looks at."""
    conv, b = spec.problem.conv, spec.problem.block
    rows, columns = conv.grid(b)
    step = (b * conv.strides[0], b * conv.strides[1] // spec.chunk)

    def block(i: jax.Array, active: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        at = active[i]
        # Never negative, so the machine's own division will do.
        return (
            lax.div(at, rows * columns),
            lax.rem(lax.div(at, columns), rows),
            lax.rem(at, columns),
        )

    def tile_at(n: jax.Array, i: jax.Array, active: Any, _: Any) -> tuple[Any, ...]:
        stream, row, column = block(i, active)
        return stream, row * step[0], column * step[1], 0, 0

    def block_at(n: jax.Array, i: jax.Array, active: Any, _: Any) -> tuple[Any, ...]:
        stream, row, column = block(i, active)
        return stream, row, column, 0, n

    def channels_at(n: jax.Array, i: jax.Array, active: Any, _: Any) -> tuple[Any, ...]:
        return 0, n

    tile_shape = (1, spec.rows, spec.chunks, spec.chunk, conv.in_channels)
    return {
        "tile": pl.BlockSpec(tuple(pl.Element(n) for n in tile_shape), tile_at),
        "kernel": pl.BlockSpec((spec.depth, spec.channels), channels_at),
        "row": pl.BlockSpec((1, spec.channels), channels_at),
        "block": pl.BlockSpec((1, b, 1, b, spec.channels), block_at),
    }


def _forward(problem: Problem, arrays: Arrays) -> jax.Array:
    operand, kernel, bias, base, mask, epilogue = arrays
    spec = plan(problem)
    specs = _specs(spec, operand)
    active = jnp.flatnonzero(mask > 0, size=mask.size, fill_value=0).astype(jnp.int32)
    count = jnp.count_nonzero(mask > 0).astype(jnp.int32)

    inputs: dict[str, tuple[jax.Array, Any]] = {
        "active": (active, None),
        "count": (count[None], None),
    }
    inputs["tile"] = _cut_input(spec, operand), specs["tile"]
    inputs["kernel"] = kernel.reshape(spec.depth, -1), specs["kernel"]
    if problem.recompute and bias is not None:
        inputs["bias"] = bias.astype(jnp.float32)[None], specs["row"]
    if epilogue is not None:
        inputs["scale"] = epilogue.scale.astype(jnp.float32)[None], specs["row"]
        inputs["shift"] = epilogue.shift.astype(jnp.float32)[None], specs["row"]
        if epilogue.residual is not None:
            inputs["residual"] = _cut_output(problem, epilogue.residual), specs["block"]
    inputs["base"] = _cut_output(problem, base), specs["block"]
    activation = None if epilogue is None else epilogue.activation
    out = _launch(spec, activation, specs["block"], count, inputs)
    out = out.reshape(*out.shape[:2], -1, out.shape[-1])
    return lax.slice(out, (0,) * 4, base.shape)


def _launch(
    spec: _Plan,
    activation: str | None,
    out_spec: pl.BlockSpec,
    count: jax.Array,
    inputs: dict[str, tuple[jax.Array, Any]],
) -> jax.Array:
    """Compiled where the computation goes to a TPU, interpreted elsewhere."""
    problem, arrays = spec.problem, [array for array, _ in inputs.values()]
    tile = (spec.rows, spec.chunks * spec.chunk, problem.conv.in_channels)
    scratch = {"columns": pltpu.VMEM(tile, jnp.float32)}
    if not spec.depthwise:
        scratch["patches"] = pltpu.VMEM((problem.block, problem.block, spec.depth), jnp.float32)
    names = (*inputs, "out", *scratch)

    def run(interpret: bool, count: jax.Array, *arrays: jax.Array) -> jax.Array:
        slices = problem.conv.out_channels // spec.channels
        grid_spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            # One step remains where nothing fired: it copies a block onto itself.
            grid=(slices, jnp.maximum(count, 1)),
            in_specs=[window for _, window in inputs.values() if window is not None],
            out_specs=out_spec,
            scratch_shapes=list(scratch.values()),
        )
        return pl.pallas_call(
            functools.partial(_body, spec, names, activation),
            grid_spec=grid_spec,
            out_shape=jax.ShapeDtypeStruct(arrays[-1].shape, arrays[-1].dtype),
            input_output_aliases={len(arrays) - 1: 0},
            compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
            interpret=interpret,
            name=f"skip_conv_{'x'.join(map(str, problem.conv.window))}",
        )(*arrays)

    return lax.platform_dependent(
        count,
        *arrays,
        tpu=functools.partial(run, False),
        default=functools.partial(run, True),
    )


masked_conv = sparse.differentiable(_forward)
