"""Command lines: the flags of one command each, and `main(argv) -> exit code`.

A process imports one of them, because commands share names of flags.
"""
