"""A real Ray cluster on this machine: several workers, one of them killed in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from bsdkit.backbones.base import BackboneOptions
from bsdkit.extract import ExtractionSettings, extract
from bsdkit.extract.ray import RayEngine
from bsdkit.progress import Progress
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from tests.extract.fake import FakeBackbone
from tests.extract.test_extract import TEMPLATE, load, write_dataset

pytest.importorskip("ray", reason="Ray is not installed: pip install 'bsdkit[ray]'")

N_WORKERS = 3
OUTPUTS = ["audio", "level", "text", "prompt"]


def test_a_killed_worker_costs_only_its_shard(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "noise", 60)
    (data / "audio/11.wav").write_bytes(b"")
    clips = load(data)
    settings = ExtractionSettings(shard_clips=5, batch_seconds=2.0)
    options = BackboneOptions(text_template=TEMPLATE.describe())

    def embed(store: str, engine: RayEngine | None, progress: Progress | None = None):  # type: ignore[no-untyped-def]
        return extract(
            [(FakeBackbone(options), OUTPUTS)], clips, Store.create(tmp_path / store, clips),
            TEMPLATE, settings, engine=engine, progress=progress,
        )  # fmt: skip

    engine = RayEngine(n_workers=N_WORKERS)
    killed: list[int] = []

    class Kill(Progress):
        def advance(self, name: str, n: int) -> None:
            if not killed:
                killed.append(engine.pids[-1])
                os.kill(engine.pids[-1], signal.SIGKILL)

    single = embed("single", None)
    cluster = embed("cluster", engine, Kill())
    assert len(set(engine.pids)) == N_WORKERS and killed and os.getpid() not in engine.pids
    assert [report.feature for report in cluster] == [f"fake.{output}" for output in OUTPUTS]
    for ours, theirs in zip(cluster, single, strict=True):
        assert read_feature(ours.path).checksum() == read_feature(theirs.path).checksum()
        assert (ours.n_embedded, ours.failures) == (theirs.n_embedded, theirs.failures)
    assert not (tmp_path / "cluster/.parts").exists()
