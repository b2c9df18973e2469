"""The command line: each command is a few lines, and heavy imports happen inside it."""

import importlib
import os

from bsdkit.cli.app import app

# a command registers itself where its file is imported, in the order of the help
for _group in "extract fit runs predict challenge exchange listing store".split():
    importlib.import_module(f"bsdkit.cli.{_group}")

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the command ``bsdkit``."""
    # Idle OpenMP threads spin by default. Beside any other busy process the working thread
    # then waits for a core at every step: measured five times slower with one neighbour. It
    # must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()
