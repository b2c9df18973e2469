"""The real command, on real sounds, killed at random moments."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsdkit.backbones.registry import get_backbone
from bsdkit.store.feature import read_feature
from tests.conftest import ROOT, bsdkit_here


def n_shards(store: Path) -> int:
    return len(list(store.glob(".parts/*/part-*.h5")))


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_sigkill_at_random_moments_costs_nothing(
    sounds: Path, tmp_path: Path, n_kills: int
) -> None:
    reason = get_backbone("aisfx").missing()
    if reason:
        pytest.skip(reason)
    arguments = ["extract", "--backbone", "aisfx", "--data", sounds, "--shard-clips", 2]
    whole = bsdkit_here(*arguments, "--store", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    (path,) = (tmp_path / "whole").glob("aisfx-*.h5")
    expected = read_feature(path)

    store = tmp_path / "killed"
    command = [sys.executable, "-m", "bsdkit", *map(str, arguments), "--store", str(store)]
    rng = random.Random(20261121)
    n_done, n_finished, most_shards = 0, 0, 0
    while n_done < n_kills:
        before = n_shards(store)
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # Half of the kills come at any time at all, the other half while shards are written.
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0.1, 3.5))
        else:
            deadline = time.monotonic() + 20
            while n_shards(store) <= before and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            n_done += 1
        else:
            n_finished += 1
            assert process.returncode == 0
            (path,) = store.glob("aisfx-*.h5")
            assert read_feature(path).embedding.tobytes() == expected.embedding.tobytes()
            shutil.rmtree(store)
        process.wait()
        most_shards = max(most_shards, n_shards(store))
    assert most_shards > 0, "no kill left a shard behind, so resuming was never tried"
    final = bsdkit_here(*arguments, "--store", store)
    assert final.returncode == 0, final.stderr
    (path,) = store.glob("aisfx-*.h5")
    resumed = read_feature(path)
    assert resumed.embedding.tobytes() == expected.embedding.tobytes()
    assert resumed.ids.tolist() == expected.ids.tolist()
    assert not (store / ".parts").exists()
    assert not list(store.glob(".*.tmp")), "temporary files were left behind"
