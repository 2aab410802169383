"""What benchmarks print and write."""

import pathlib

from skipconv_jax import whole_files


def published(text: str, out: pathlib.Path | None) -> None:
    """Prints a page, and writes it where `out` says."""
    print(text)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write_text(out, text)
