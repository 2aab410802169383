"""Streams of any length: where frames come from, the loop over them, when a stream starts anew."""

from typing import Any

from skipconv_jax.moved import attribute


def __getattr__(name: str) -> Any:
    """Names of 0.1.0."""
    return attribute(__name__, name)
