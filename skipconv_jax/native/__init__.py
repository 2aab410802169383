"""The native CPU engine: whole networks of skipped convolutions as one custom call.

`status()` says in one line whether it is in use; `build` compiles it; `ProgramBuilder` writes
programs.
"""

from skipconv_jax.native.builder import Program, ProgramBuilder, Ref
from skipconv_jax.native.library import available, isa, load, num_threads, profile, status

__all__ = [
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
