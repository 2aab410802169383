"""Finds gates for a trained network: `python calibrate.py --config FILE --budget macs=30%`.

The same as `skipconv calibrate`, for a checkout; `--help` says more.
"""

import sys

from skipconv_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["calibrate", *sys.argv[1:]], "python calibrate.py"))
