"""The native CPU engine: whole networks of skipped convolutions as one custom call.

`status()` says in one line whether it is in use; `build` compiles it; `ProgramBuilder` writes
programs.
"""

from skipconv_jax.native.builder import ProgramBuilder
from skipconv_jax.native.layout import Ref
from skipconv_jax.native.library import available, isa, load, num_threads, profile, status
from skipconv_jax.native.program import Program
from skipconv_jax.native.specs import Activation, ConvSpec, GateSpec

__all__ = [
    "Activation",
    "ConvSpec",
    "GateSpec",
    "Program",
    "ProgramBuilder",
    "Ref",
    "available",
    "isa",
    "load",
    "num_threads",
    "profile",
    "status",
]
