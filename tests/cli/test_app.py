"""What a command does with errors that nobody foresaw."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from bsdkit.cli.app import command
from bsdkit.errors import StoreError


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (ZeroDivisionError("odd"), 70, "please report it"),
        (StoreError("no store"), 2, "error: no store"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (typer.Exit(1), 1, ""),
    ],
)
def test_exit_codes(error: BaseException, code: int, word: str) -> None:
    app = typer.Typer()

    @command(app, "fail")
    def fail() -> None:
        raise error

    result = CliRunner().invoke(app, [])
    assert result.exit_code == code and word in result.stderr
    assert ("Traceback" in result.stderr) == (code == 70)
