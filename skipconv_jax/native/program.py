"""A finished program of the native engine: plain arrays, and `apply`, a pure function of them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from skipconv_jax.native import library
from skipconv_jax.native.specs import GateSpec


@dataclasses.dataclass(frozen=True)
class MaskSlot:
    """Where one convolution's mask lies in the masks of a stream, and its gate's parameters.

    Attributes:
      offset: of its first block.
      grid: rows and columns of blocks.
      gate: its gate when the program was written.
      gate_offset: of the gate's parameters.
      channels: of the input.
      stride: channels of one stored pixel of the input.
    """

    offset: int
    grid: tuple[int, int]
    gate: GateSpec
    gate_offset: int
    channels: int
    stride: int

    def words(self, params: np.ndarray) -> np.ndarray:
        """The gate's parameters in the program with other `GateSpec.params`."""
        gate = dataclasses.replace(self.gate, params=params)
        return gate.words(self.channels, self.stride)


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A finished program.

    Attributes:
      words: the program, int32 (see `schema`).
      weights: packed weights, float32.
      gates: packed gate parameters, float32; thresholds are data, changing one compiles nothing.
      state_size: floats of state per stream.
      mask_size: blocks of all convolutions per stream.
      masks: per convolution, where its blocks lie in the masks.
      inputs, outputs: `(h, w, c)` of each frame in and each result; `(n,)` of several maps.
      names: of the operations, in order, for profiles.
      kept: floats of state by what they are kept for (`layout.PURPOSES`).
    """

    words: np.ndarray
    weights: np.ndarray
    gates: np.ndarray
    state_size: int
    mask_size: int
    masks: dict[str, MaskSlot]
    inputs: tuple[tuple[int, int, int], ...]
    outputs: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    kept: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def init_state(self, batch: int) -> jax.Array:
        """State of `batch` fresh streams, `(batch, state_size)`; donate it."""
        return jnp.zeros((batch, self.state_size), jnp.float32)

    def reset(self, state: jax.Array, streams: jax.Array | None = None) -> jax.Array:
        """Makes the streams where `streams` (B,) is true (default all) compute everything next."""
        warm = state[:, 0] if streams is None else jnp.where(streams, 0.0, state[:, 0])
        return state.at[:, 0].set(jnp.zeros_like(warm) if streams is None else warm)

    def fresh(self, state: jax.Array) -> jax.Array:
        """Streams `(B,)` bool that compute everything at the next frame."""
        return state[:, 0] == 0

    @functools.cached_property
    def constants(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Words, weights and gate parameters on the device: pass them to `apply` as arguments."""
        # Concrete even when first asked for inside a trace, since the property is kept.
        with jax.ensure_compile_time_eval():
            return jnp.asarray(self.words), jnp.asarray(self.weights), jnp.asarray(self.gates)

    def _blank(self, batch: int) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in self.outputs]

    def apply(
        self,
        constants: tuple[jax.Array, jax.Array, jax.Array],
        state: jax.Array,
        *frames: jax.Array,
        kept: Sequence[jax.Array] = (),
        threads: int = 0,
    ) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
        """One frame of every stream: (outputs, state, masks `(B, mask_size)`).

        `kept` are the outputs of the last frame (zeros before the first), in any shape of as many
        floats: they become those of this one, written where they changed. Donate them.
        """
        library.load()
        batch = state.shape[0]
        f32 = jnp.float32
        results: list[Any] = [
            jax.ShapeDtypeStruct(state.shape, f32),
            jax.ShapeDtypeStruct((batch, self.mask_size), f32),
            *(jax.ShapeDtypeStruct(a.shape, f32) for a in kept or self._blank(batch)),
        ]
        aliases = {3: 0} | {4 + len(frames) + i: 2 + i for i in range(len(kept))}
        call = jax.ffi.ffi_call(library.TARGET, results, input_output_aliases=aliases)
        new, masks, *outputs = call(*constants, state, *frames, *kept, threads=np.int64(threads))
        return tuple(outputs), new, masks

    def fired(self, masks: jax.Array) -> Mapping[str, jax.Array]:
        """Masks by convolution, each `(B, nh, nw)`."""
        return {
            name: masks[:, s.offset : s.offset + s.grid[0] * s.grid[1]].reshape(-1, *s.grid)
            for name, s in self.masks.items()
        }
