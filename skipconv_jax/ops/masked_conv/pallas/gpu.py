"""Masked convolution as a Pallas kernel for Hopper GPUs (Mosaic GPU): TMA, and wgmma tensor cores.

A fixed number of programs share the list of fired blocks. Of each 8 x 8 block a program multiplies
64 output positions x (kh kw Ci) by a slice of the output channels: step by step the copy engine
fetches the inputs under one tap of the window and the matching slice of the kernel into a ring of
shared-memory stages, several steps ahead of the tensor cores. The finished block is written into
the output, which is `base`'s own buffer. Unfired blocks are neither read nor written.

float32 products are TF32, the default of XLA's convolutions there. Elsewhere than on a GPU the
kernel is interpreted: the same result up to TF32, slowly.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from skipconv_jax.ops.geometry import block_upsample
from skipconv_jax.ops.masked_conv import sparse
from skipconv_jax.ops.masked_conv.epilogue import Epilogue, activate
from skipconv_jax.ops.masked_conv.packed import halves
from skipconv_jax.ops.masked_conv.pallas import gpu_compat as compat
from skipconv_jax.ops.masked_conv.problem import Arrays, Problem, negative_padding

_SIDE = 8  # of the blocks the kernel works on: 64 positions are what one warpgroup multiplies
_PIXELS = _SIDE * _SIDE
_STAGES = 4
# One program per multiprocessor of an H100 or H200; another number is as correct.
_PROGRAMS = 132
_SWIZZLES = (128, 64, 32)  # bytes of channels one step multiplies
_SLICES = (128, 64, 32, 16, 8)  # output channels of one product


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Static shapes of the kernel."""

    problem: Problem  # in blocks of 8
    swizzle: int
    depth: int  # input channels of one step
    channels: int  # output channels of one product
    steps_per_tap: int

    @property
    def steps(self) -> int:
        """Steps of one product."""
        return math.prod(self.problem.conv.window) * self.steps_per_tap


def plan(problem: Problem) -> _Plan:
    """Shapes of the kernel for a problem that `supports` takes."""
    dtype, channels = _product(problem)
    swizzle, width = _swizzles(problem)[0], _slices(problem)[0]
    depth = swizzle // dtype.itemsize
    whole = dataclasses.replace(problem, block=_SIDE)
    return _Plan(whole, swizzle, depth, width, channels // depth)


def _product(problem: Problem) -> tuple[np.dtype, int]:
    """Dtype and input channels of the product that `_operands` makes of a problem's."""
    operand, kernel = problem.operand_dtype, problem.kernel_dtype
    if kernel == jnp.bfloat16 and operand == jnp.float32:
        return np.dtype(jnp.bfloat16), 2 * problem.conv.in_channels
    dtype = operand if operand == kernel else np.dtype(jnp.float32)
    return dtype, problem.conv.in_channels


def _swizzles(problem: Problem) -> list[int]:
    """Bytes of channels that one step may multiply, most first."""
    dtype, channels = _product(problem)
    return [s for s in _SWIZZLES if channels * dtype.itemsize % s == 0]


def _slices(problem: Problem) -> list[int]:
    """Output channels that one product may have, most first."""
    return [n for n in _SLICES if problem.conv.out_channels % n == 0]


def supports(problem: Problem) -> str | None:
    """float32 (TF32 products) or bfloat16, accumulated in float32, in 2D, blocks that 8 divides.

    Not taken: groups, channel counts the tensor cores don't take, a precision above TF32, negative
    padding, a GPU that is no Hopper.
    """
    return (
        compat.unsuitable_device() or _unsupported_geometry(problem) or _unsupported_type(problem)
    )


def _unsupported_geometry(problem: Problem) -> str | None:
    conv = problem.conv
    if conv.rank != 2:
        return f"{conv.rank} spatial axes"
    if problem.block % _SIDE:
        return f"block {problem.block}; a multiple of {_SIDE}"
    if conv.groups != 1:
        return f"{conv.groups} groups"
    return negative_padding(problem)


def _unsupported_type(problem: Problem) -> str | None:
    conv = problem.conv
    for dtype in (problem.operand_dtype, problem.kernel_dtype):
        if dtype not in (jnp.float32, jnp.bfloat16):
            return dtype.name
    if problem.dtype != jnp.float32:
        return f"an output of {problem.dtype}"
    if conv.precision not in (None, lax.Precision.DEFAULT) and problem.kernel_dtype != jnp.bfloat16:
        return f"precision {conv.precision}; TF32 products only"
    if not _swizzles(problem):
        return f"{conv.in_channels} input channels; a multiple of {_least_channels(problem)}"
    if not _slices(problem):
        return f"{conv.out_channels} output channels; a multiple of {_SLICES[-1]}"
    return None


def _least_channels(problem: Problem) -> int:
    dtype, channels = _product(problem)
    return _SWIZZLES[-1] // dtype.itemsize * problem.conv.in_channels // channels


class _Kernel:
    """The kernel's body: references by name, and what one program does with them."""

    def __init__(
        self,
        spec: _Plan,
        programs: int,
        activation: str | None,
        sums_innermost: bool,
        gmem: dict[str, Any],
        smem: dict[str, Any],
    ) -> None:
        self.spec, self.programs, self.activation = spec, programs, activation
        self.sums_innermost, self.gmem, self.smem = sums_innermost, gmem, smem

    def run(self) -> None:
        """Works through every `programs`-th (fired block, slice of Co) pair."""
        slices = self.spec.problem.conv.out_channels // self.spec.channels
        first = lax.axis_index("program")
        total = self.gmem["count"][0] * slices
        turns = lax.div(total - first + (self.programs - 1), jnp.int32(self.programs))

        def turn(t: jax.Array, _: None) -> None:
            item = first + t * self.programs
            self._item(lax.div(item, jnp.int32(slices)), lax.rem(item, jnp.int32(slices)))

        lax.fori_loop(jnp.int32(0), turns, turn, None)
        plgpu.wait_smem_to_gmem(0)

    def _item(self, index: jax.Array, part: jax.Array) -> None:
        grid = self.spec.problem.conv.grid(_SIDE)
        at = self.gmem["active"][index]
        column = lax.rem(at, jnp.int32(grid[1]))
        row = lax.rem(lax.div(at, jnp.int32(grid[1])), jnp.int32(grid[0]))
        stream = lax.div(at, jnp.int32(grid[0] * grid[1]))
        corner = (stream, row * _SIDE, column * _SIDE)
        product = pl.run_scoped(
            functools.partial(self._product, corner, part),
            plgpu.ACC((_PIXELS, self.spec.channels), jnp.float32),
        )
        self._finish(product, corner, part)

    def _fetch(self, corner: tuple[Any, ...], part: jax.Array, step: jax.Array) -> None:
        """Starts the copies of one step into its stage."""
        conv, spec = self.spec.problem.conv, self.spec
        slot = lax.rem(step, jnp.int32(_STAGES))
        tap = lax.div(step, jnp.int32(spec.steps_per_tap))
        depth = lax.rem(step, jnp.int32(spec.steps_per_tap)) * spec.depth
        dy = lax.div(tap, jnp.int32(conv.window[1])) * conv.dilation[0]
        dx = lax.rem(tap, jnp.int32(conv.window[1])) * conv.dilation[1]
        stream, row, column = corner
        stride = conv.strides[1]
        columns = pl.ds(column + lax.div(dx, jnp.int32(stride)), _SIDE)
        phase = lax.rem(dx, jnp.int32(stride))
        barrier = self.smem["fetched"].at[slot]
        for y in range(_SIDE):
            line = (row + y) * conv.strides[0] + dy
            plgpu.copy_gmem_to_smem(
                self.gmem["operand"].at[stream, line, columns, phase, pl.ds(depth, spec.depth)],
                self.smem["patch"].at[slot].at[pl.ds(y * _SIDE, _SIDE)],
                barrier,
            )
        sums, outputs = pl.ds(depth, spec.depth), pl.ds(part * spec.channels, spec.channels)
        weights = (outputs, sums) if self.sums_innermost else (sums, outputs)
        plgpu.copy_gmem_to_smem(
            self.gmem["kernel"].at[tap, *weights], self.smem["weights"].at[slot], barrier
        )

    def _product(self, corner: tuple[Any, ...], part: jax.Array, total: Any) -> jax.Array:
        steps = self.spec.steps
        for ahead in range(min(_STAGES - 1, steps)):
            self._fetch(corner, part, jnp.int32(ahead))

        def step(k: jax.Array, _: None) -> None:
            slot = lax.rem(k, jnp.int32(_STAGES))
            parity = lax.rem(k, jnp.int32(2))
            plgpu.barrier_wait(self.smem["fetched"].at[slot])
            # The copy engine writes swizzled tiles only where windows are aligned, and those under
            # a tap are not: so they arrive as plain rows and are swizzled on their way through
            # registers. Of the two swizzled tiles the other is still being multiplied.
            self.smem["inputs"].at[parity][...] = self.smem["patch"].at[slot][...]
            plgpu.commit_smem()
            weights = self.smem["weights"].at[slot]
            if self.sums_innermost:
                weights = weights.transpose((1, 0))
            plgpu.wgmma(total, self.smem["inputs"].at[parity], weights)
            # The product before this one is done, so the stage it read may be filled again.
            plgpu.wgmma_wait(1)

            @pl.when(k + (_STAGES - 1) < steps)
            def _fetch_ahead() -> None:
                self._fetch(corner, part, k + (_STAGES - 1))

        lax.fori_loop(jnp.int32(0), jnp.int32(steps), step, None)
        plgpu.wgmma_wait(0)
        return total[...]

    def _finish(self, z: jax.Array, corner: tuple[Any, ...], part: jax.Array) -> None:
        """out = f(scale z + shift + rows), as far as each is there."""
        columns = pl.ds(part * self.spec.channels, self.spec.channels)
        if "scale" in self.gmem:
            z = z * self._constant("scale", columns)
        if "shift" in self.gmem:
            z = z + self._constant("shift", columns)
        output = self.gmem["output"]
        rows = self.gmem.get("rows", None if self.spec.problem.recompute else output)
        if rows is not None:
            for y in range(_SIDE):
                self._row(rows, corner, y, columns, self.smem["rows_fetched"])
            plgpu.barrier_wait(self.smem["rows_fetched"])
            z = z + self.smem["side"][...]
        z = activate(z, self.activation)
        # The block written last must have left shared memory.
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        self.smem["block"][...] = z
        plgpu.commit_smem()
        for y in range(_SIDE):
            plgpu.copy_smem_to_gmem(
                self.smem["block"].at[pl.ds(y * _SIDE, _SIDE)],
                self._line(output, corner, y, columns),
            )

    def _constant(self, name: str, columns: Any) -> jax.Array:
        plgpu.copy_gmem_to_smem(
            self.gmem[name].at[:, columns], self.smem["side"], self.smem["side_fetched"]
        )
        plgpu.barrier_wait(self.smem["side_fetched"])
        value = self.smem["side"][...]
        # Every thread has read the tile before it is filled again.
        plgpu.commit_smem()
        return value

    def _row(self, rows: Any, corner: tuple[Any, ...], y: int, columns: Any, barrier: Any) -> None:
        side = self.smem["side"].at[pl.ds(y * _SIDE, _SIDE)]
        plgpu.copy_gmem_to_smem(self._line(rows, corner, y, columns), side, barrier)

    def _line(self, array: Any, corner: tuple[Any, ...], y: int, columns: Any) -> Any:
        stream, row, column = corner
        return array.at[stream, row + y, pl.ds(column, _SIDE), columns]


def _scratch(spec: _Plan, dtype: Any, sums_innermost: bool) -> dict[str, Any]:
    tiled = (plgpu.TilingTransform((8, spec.depth)), plgpu.SwizzleTransform(spec.swizzle))
    tile = (_PIXELS, spec.channels)
    weights = (spec.channels, spec.depth) if sums_innermost else (spec.depth, spec.channels)
    return {
        "patch": plgpu.SMEM((_STAGES, _PIXELS, spec.depth), dtype),
        "inputs": plgpu.SMEM((2, _PIXELS, spec.depth), dtype, transforms=tiled),
        "weights": plgpu.SMEM(
            (_STAGES, *weights), dtype, transforms=tiled if sums_innermost else ()
        ),
        "side": plgpu.SMEM(tile, jnp.float32),
        "block": plgpu.SMEM(tile, jnp.float32),
        # One arrival a copy: the rows of a block and the slice of the kernel.
        "fetched": plgpu.Barrier(num_arrivals=_SIDE + 1, num_barriers=_STAGES),
        "rows_fetched": plgpu.Barrier(num_arrivals=_SIDE),
        "side_fetched": plgpu.Barrier(),
    }


def _launch(
    spec: _Plan,
    activation: str | None,
    blocks: int,
    inputs: dict[str, jax.Array],
    output: jax.Array,
) -> jax.Array:
    """Compiled where the computation goes to a GPU, interpreted elsewhere."""
    slices = spec.problem.conv.out_channels // spec.channels
    programs = min(_PROGRAMS, blocks * slices)

    def run(
        interpret: Any, sums_innermost: bool, output: jax.Array, *arrays: jax.Array
    ) -> jax.Array:
        arrays_ = dict(zip(inputs, arrays, strict=True))
        if sums_innermost:
            arrays_["kernel"] = arrays_["kernel"].transpose(0, 2, 1)
        scratch = _scratch(spec, arrays_["operand"].dtype, sums_innermost)

        def body(*refs: Any) -> None:
            gmem = dict(zip((*inputs, "output"), refs, strict=True))
            make = functools.partial(_Kernel, spec, programs, activation, sums_innermost, gmem)
            pl.run_scoped(lambda **smem: make(smem).run(), **scratch)

        # What `plgpu.kernel` wraps; its batching rule does not let a mutable buffer through.
        kernel = pl.kernel(
            body,
            mesh=plgpu.Mesh(grid=(programs,), grid_names=("program",)),
            compiler_params=plgpu.CompilerParams(
                lowering_semantics=plgpu.LoweringSemantics.Warpgroup
            ),
            interpret=interpret,
            name=f"skip_conv_{'x'.join(map(str, spec.problem.conv.window))}",
        )

        return compat.in_place(lambda buffer: kernel(*arrays_.values(), buffer), output)

    if compat.compiled():
        # Both operands of a TF32 product must have the channels it sums over innermost.
        return run(False, True, output, *inputs.values())
    transposed = compat.INTERPRETS_TRANSPOSED_TILES
    return run(compat.INTERPRET, transposed, output, *inputs.values())


def _whole(problem: Problem, array: jax.Array) -> jax.Array:
    """An array of outputs with zeros up to whole blocks."""
    sizes = zip(problem.conv.grid(_SIDE), problem.conv.out_spatial, strict=True)
    pads = [(0, n * _SIDE - size, 0) for n, size in sizes]
    return lax.pad(array, jnp.zeros((), array.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _cut_input(problem: Problem, operand: jax.Array) -> jax.Array:
    """`(B, rows, columns / stride, stride, Ci)`, zeros around the frame."""
    conv = problem.conv
    pads = []
    for n, s, e, (low, _), size in zip(
        conv.grid(_SIDE), conv.strides, conv.extent, conv.padding, conv.in_spatial, strict=True
    ):
        # The last output's window, up to a whole number of strides.
        needed = -(-((n * _SIDE - 1) * s + e) // s) * s
        pads.append((low, needed - low - size, 0))
    operand = lax.pad(operand, jnp.zeros((), operand.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    stride = conv.strides[1]
    return operand.reshape(*operand.shape[:2], -1, stride, operand.shape[-1])


def _forward(problem: Problem, arrays: Arrays) -> jax.Array:
    _, _, bias, base, mask, epilogue = arrays
    operand, kernel = _operands(arrays.operand, arrays.kernel)
    spec = plan(problem)
    if problem.block != _SIDE:
        mask = block_upsample(mask, problem.block // _SIDE, spec.problem.conv.grid(_SIDE))
    active = jnp.flatnonzero(mask > 0, size=mask.size, fill_value=0).astype(jnp.int32)
    count = jnp.count_nonzero(mask > 0).astype(jnp.int32)

    inputs = {"active": active, "count": count[None]}
    inputs["operand"] = _cut_input(spec.problem, operand)
    inputs["kernel"] = kernel.reshape(-1, *kernel.shape[2:])
    inputs |= _after_product(problem, bias, epilogue)
    if epilogue is not None and epilogue.residual is not None:
        inputs["rows"] = _whole(spec.problem, epilogue.residual.astype(jnp.float32))
    activation = None if epilogue is None else epilogue.activation
    out = _launch(spec, activation, mask.size, inputs, _whole(spec.problem, base))
    return lax.slice(out, (0,) * 4, base.shape)


def _operands(operand: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Operands of one dtype; a float32 residual of bfloat16 frames becomes two bfloat16 halves."""
    if kernel.dtype == jnp.bfloat16 and operand.dtype == jnp.float32:
        return jnp.concatenate(halves(operand), axis=-1), jnp.concatenate([kernel] * 2, axis=-2)
    if operand.dtype != kernel.dtype:
        operand, kernel = operand.astype(jnp.float32), kernel.astype(jnp.float32)
    return operand, kernel


def _after_product(
    problem: Problem, bias: jax.Array | None, epilogue: Epilogue | None
) -> dict[str, jax.Array]:
    """`scale` and `shift` as tiles `(64, Co)`, so that the kernel only ever adds equal shapes."""
    vectors = {}
    if problem.recompute and bias is not None:
        vectors["shift"] = bias.astype(jnp.float32)
    if epilogue is not None:
        scale, shift = (v.astype(jnp.float32) for v in (epilogue.scale, epilogue.shift))
        vectors["shift"] = shift + scale * vectors["shift"] if "shift" in vectors else shift
        vectors["scale"] = scale
    return {name: lax.broadcast(vector, (_PIXELS,)) for name, vector in vectors.items()}


masked_conv = sparse.differentiable(_forward)
