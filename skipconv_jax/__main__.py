"""`python -m skipconv_jax COMMAND ...` is `skipconv COMMAND ...`."""

import sys

from skipconv_jax.commands.cli import main

sys.exit(main())
