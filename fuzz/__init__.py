"""Mutated files against every reader: `python -m fuzz`; kills and sanitizers: see `--help`."""
