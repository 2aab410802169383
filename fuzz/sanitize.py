"""The engine on random programs under sanitizers: address and undefined behaviour, then threads."""

import argparse
import os
import subprocess
import sys

_KINDS = ("address,undefined", "thread")


def main(arguments: list[str]) -> int:
    """Runs `tests/native/test_sanitizers.py` once per kind; 1 where one of them fails."""
    parser = argparse.ArgumentParser("python -m fuzz sanitize", description=__doc__)
    parser.add_argument("--programs", type=int, default=300)
    programs = parser.parse_args(arguments).programs
    failed = 0
    for kind in _KINDS:
        print(f"{programs} random programs under -fsanitize={kind}", flush=True)
        environment = {"SANITIZE": kind, "SANITIZED_PROGRAMS": str(programs)}
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "tests/native/test_sanitizers.py"]
        failed |= subprocess.run(command, env=os.environ | environment, check=False).returncode
    return 1 if failed else 0
