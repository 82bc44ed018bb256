"""Run every check of the repository in the current environment; stops at the first that fails."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("basedpyright", "--pythonpath", sys.executable),
    ("lit", "--quiet", "tests/filecheck"),
    ("pytest", "--quiet", "--numprocesses=auto", "-m", "not slow"),
)
"""Commands of the environment, in the order of how fast they fail."""


def main() -> int:
    """Run the checks; the exit status of the first that fails, else 0."""
    for tool, *arguments in CHECKS:
        print("$", tool, *arguments, flush=True)
        status = subprocess.run([BIN / tool, *arguments], cwd=ROOT).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
