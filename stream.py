"""Streams a video through a skipped network: `python stream.py VIDEO --config configs/...`.

The same as `skipconv stream`, for a checkout; `--help` says more.
"""

import sys

from skipconv_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["stream", *sys.argv[1:]], "python stream.py"))
