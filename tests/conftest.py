"""What several test files share: a small dataset of real sounds, and the reference folder."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bsdkit.dataset import Clips
from bsdkit.errors import StarterError
from bsdkit.taxonomy import Taxonomy

ROOT = Path(__file__).resolve().parents[1]
# As the command line does, and for the same reason; torch is not imported yet.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    # Tests that run side by side share the processors as they are.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = ROOT.parent / "shared"
SMALL_PACKAGES = {"minetest-data", "minetest-mod-mesecons", "sound-theme-freedesktop"}


def shared(*parts: str) -> Path:
    """A path of the reference folder beside the checkout; the test skips where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no reference data at {path}")
    return path


def bsdkit(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bsdkit", *map(str, arguments)],
        cwd=cwd or ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "140"},
        timeout=280,
    )


def heed_interrupts() -> None:
    """For ``preexec_fn``: SIGINT as at a terminal.

    A shell starts what it puts into the background with SIGINT ignored, tests included, and
    their child processes would inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def bsdkit_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process: for what is refused, which needs no fresh one."""
    from typer.testing import CliRunner

    from bsdkit.cli import app

    words = list(map(str, arguments))
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the short ones (up to 3 s) of the real sounds of three small Debian packages."""
    from recipes.starter.builder import build_starter

    folder = tmp_path_factory.mktemp("sounds")
    with (ROOT / "recipes/starter/demo.csv").open(newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["package"] in SMALL_PACKAGES and float(row["duration_s"]) <= 3
        ][::2]
    manifest = folder / "small.csv"
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    try:
        report = build_starter(manifest, folder / "small")
    except StarterError as error:
        pytest.skip(f"the real sounds cannot be fetched here: {error}")
    if report.failures:
        pytest.skip(
            f"the real sounds cannot be fetched here: {next(iter(report.failures.values()))}"
        )
    return folder / "small"


def make_clips(
    labels: Sequence[int],
    uploaders: Sequence[str] | None = None,
    *,
    sounds: Sequence[str] | None = None,
    columns: dict[str, npt.NDArray[Any]] | None = None,
) -> Clips:
    """A clips table of these labels and nothing else that is not given."""
    n = len(labels)
    blank = np.array([""] * n, object)
    unknown = np.full(n, np.nan, np.float32)
    return Clips(
        ids=np.array([f"i{i}" for i in range(n)], object),
        labels=np.array(labels, np.int64),
        taxonomy=Taxonomy.flat([f"c{i}" for i in range(max([*labels, 0]) + 1)]),
        confidence=unknown,
        uploader=np.array(uploaders, object) if uploaders is not None else blank,
        licence=blank,
        title=blank,
        tags=blank,
        description=blank,
        duration=unknown,
        sha256=blank,
        sound=np.array(sounds, object) if sounds is not None else blank,
        audio=[None] * n,
        columns=columns or {},
    )
