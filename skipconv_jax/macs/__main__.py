"""`python -m skipconv_jax.macs --config FILE` is `skipconv macs --config FILE`."""

import sys

from skipconv_jax.commands.entry.macs import main

if __name__ == "__main__":
    sys.exit(main())
