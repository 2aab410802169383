"""Evaluates on the test clips: `python eval.py --config configs/hrnet_synthetic.py`.

The same as `skipconv eval`, for a checkout; `--help` says more.
"""

import sys

from skipconv_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]], "python eval.py"))
