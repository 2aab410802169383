"""Trains a skipped network: `python train.py --config configs/hrnet_synthetic.py [--resume]`.

The same as `skipconv train`, for a checkout; `--help` says more.
"""

import sys

from skipconv_jax.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], "python train.py"))
