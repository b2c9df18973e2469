from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsdkit.backbones.base import BackboneOptions
from bsdkit.dataset import Clips, inspect_audio, read_dataset
from bsdkit.errors import StoreError, StoreLocked
from bsdkit.extract import ExtractionReport, ExtractionSettings, extract
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from bsdkit.store.files import file_lock
from bsdkit.text import get_template
from tests.conftest import ROOT
from tests.extract.fake import RATE, FakeBackbone

TEMPLATE = get_template("title-tags-description")


def write_dataset(folder: Path, n: int = 40) -> Path:
    """Noises of different lengths and levels, in BSD layout."""
    rng = np.random.default_rng(5)
    (folder / "audio").mkdir(parents=True)
    (folder / "metadata").mkdir()
    lines = [
        "sound_id,class,class_idx,class_top,confidence,uploader,license,title,tags,description"
    ]
    for i in range(n):
        samples = rng.standard_normal(int(RATE * rng.uniform(0.05, 3))) * rng.uniform(0.01, 0.2)
        soundfile.write(folder / f"audio/{i}.wav", samples.clip(-1, 1), RATE)
        lines.append(f"{i},fx-a,405,fx,3,u{i % 5},CC0,title {i},abc,bad {'j' * i}")
    (folder / "metadata/noise_metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "noise")


def load(data: Path) -> Clips:
    return inspect_audio(read_dataset(data)[0])


def run(
    data: Path, store: Path, backbone: FakeBackbone | None = None, output: str = "audio",
    shard_clips: int = 7, batch_seconds: float = 2.0, **more: object,
) -> ExtractionReport:  # fmt: skip
    clips = load(data)
    backbone = backbone or FakeBackbone(BackboneOptions(text_template=TEMPLATE.describe()))
    settings = ExtractionSettings(shard_clips=shard_clips, batch_seconds=batch_seconds, **more)  # type: ignore[arg-type]
    (report,) = extract(
        [(backbone, [output])], clips, Store.create(store, clips), TEMPLATE, settings
    )
    return report


@pytest.mark.parametrize("output", ["audio", "text"])
def test_rows_do_not_depend_on_batches_or_shards(data: Path, tmp_path: Path, output: str) -> None:
    a = run(data, tmp_path / "a", output=output, shard_clips=1, batch_seconds=0.5)
    b = run(data, tmp_path / "b", output=output, shard_clips=100, batch_seconds=60)
    first, second = read_feature(a.path), read_feature(b.path)
    assert first.ids.tolist() == second.ids.tolist() == load(data).ids.tolist()
    np.testing.assert_allclose(
        first.embedding.astype(np.float32), second.embedding.astype(np.float32), atol=2e-3
    )
    assert a.n_embedded == b.n_embedded == 40 and not a.failures
    assert not (tmp_path / "a" / ".parts").exists()


@pytest.mark.parametrize("stop", [0, 1, 13, 40])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    data: Path, tmp_path: Path, stop: int
) -> None:
    whole = FakeBackbone()
    expected = read_feature(run(data, tmp_path / "whole", whole).path)
    interrupted = FakeBackbone()
    interrupted.fail_after = stop
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", interrupted)
    resumed = FakeBackbone()
    report = run(data, tmp_path / "cut", resumed)
    assert read_feature(report.path).embedding.tobytes() == expected.embedding.tobytes()
    # finished shards were not embedded again; only the one in flight was
    assert sum(resumed.batches) < sum(whole.batches) or stop < 3
    assert sum(resumed.batches) + sum(interrupted.batches[:-1]) >= sum(whole.batches)
    again = FakeBackbone()
    assert run(data, tmp_path / "cut", again).n_kept == 40 and again.batches == []


def test_only_what_changed_is_embedded_again(data: Path, tmp_path: Path) -> None:
    before = read_feature(run(data, tmp_path / "s").path)
    soundfile.write(data / "audio/17.wav", np.full(RATE, 0.5), RATE)
    (data / "audio/3.wav").unlink()
    metadata = data / "metadata/noise_metadata.csv"
    soundfile.write(data / "audio/new.wav", np.full(RATE, 0.25), RATE)
    lines = metadata.read_text().splitlines()
    lines = [lines[0], "new,fx-v,402,fx,3,u9,CC0,new,abc,x", *lines[:0:-1]]  # other order too
    metadata.write_text("\n".join(lines))
    backbone = FakeBackbone()
    report = run(data, tmp_path / "s", backbone)
    after = read_feature(report.path)
    assert report.n_embedded == 2 and list(report.failures) == ["3"]
    assert after.ids.tolist() == load(data).ids.tolist()
    old = dict(zip(before.ids, before.embedding, strict=True))
    new = dict(zip(after.ids, after.embedding, strict=True))
    same = [clip for clip in old if clip in new and (old[clip] == new[clip]).all()]
    assert sorted(set(old) - set(same)) == ["17", "3"]


def test_a_part_of_the_dataset_costs_nothing_of_the_rest(data: Path, tmp_path: Path) -> None:
    run(data, tmp_path / "s")
    soundfile.write(data / "audio/2.wav", np.full(RATE, 0.5), RATE)
    metadata = data / "metadata/noise_metadata.csv"
    whole = metadata.read_text()
    metadata.write_text("\n".join(whole.splitlines()[:6]))
    backbone = FakeBackbone()
    report = run(data, tmp_path / "s", backbone)
    assert (report.n_clips, report.n_embedded, report.n_kept) == (5, 1, 4)
    features = Store(tmp_path / "s").features(["fake.audio"])
    assert features.arrays["fake.audio"].shape == (5, 6) and not features.is_missing.any()
    metadata.write_text(whole)
    again = FakeBackbone()
    assert run(data, tmp_path / "s", again).n_kept == 40 and again.batches == []


def test_another_spec_is_another_file(data: Path, tmp_path: Path) -> None:
    first = run(data, tmp_path / "s", FakeBackbone(version=1)).path
    before = first.read_bytes()
    second = run(data, tmp_path / "s", FakeBackbone(version=2)).path
    assert first != second and first.read_bytes() == before


def test_bad_files_fail_alone_each_with_its_reason(data: Path, tmp_path: Path) -> None:
    audio = data / "audio"
    (audio / "0.wav").unlink()
    (audio / "1.wav").write_bytes(b"")
    (audio / "2.wav").write_bytes(b"<html>404</html>")
    soundfile.write(audio / "3.wav", np.zeros(0), RATE)
    soundfile.write(audio / "4.wav", np.zeros(RATE), RATE)  # digital silence
    soundfile.write(audio / "5.wav", np.full(int(0.01 * RATE), 0.3), RATE)  # 10 ms
    soundfile.write(audio / "6.wav", np.full((RATE, 2), 0.3), RATE, subtype="PCM_U8")
    soundfile.write(audio / "7.wav", np.random.default_rng(0).uniform(-1, 1, 600 * RATE), RATE)
    soundfile.write(audio / "8.wav", np.array([0.1, np.nan, 0.2]), RATE, subtype="FLOAT")
    report = run(data, tmp_path / "s")
    kinds = {clip: reason.split(":")[0] for clip, reason in report.failures.items()}
    assert kinds == {
        "0": "missing file",
        "1": "empty file",
        "2": "undecodable file",
        "3": "empty file",
        "8": "undecodable file",
    }
    assert all(f"{clip}.wav" in reason for clip, reason in report.failures.items())
    assert report.silent == ["4"] and report.n_embedded == 35
    features = Store(tmp_path / "s").features(["fake.audio"])
    assert np.flatnonzero(features.is_missing[:, 0]).tolist() == [0, 1, 2, 3, 8]
    assert np.isfinite(features.arrays["fake.audio"]).all()


def test_a_model_that_gives_nan_is_caught_by_clip(data: Path, tmp_path: Path) -> None:
    soundfile.write(data / "audio/9.wav", np.full(RATE, 0.75), RATE)
    backbone = FakeBackbone()
    backbone.poison = 0.75
    report = run(data, tmp_path / "s", backbone)
    assert list(report.failures) == ["9"] and "NaN" in report.failures["9"]


def test_nothing_embedded_is_an_error(data: Path, tmp_path: Path) -> None:
    for file in (data / "audio").iterdir():
        file.write_bytes(b"")
    with pytest.raises(StoreError, match=r"not one of 40 clips.*40 empty file"):
        run(data, tmp_path / "s")
    assert Store(tmp_path / "s").infos() == []


def test_two_at_once_are_refused(data: Path, tmp_path: Path) -> None:
    backbone = FakeBackbone()
    path = run(data, tmp_path / "s", backbone).path
    with file_lock(path.parent / ".parts" / path.stem / "lock", "someone"):
        with pytest.raises(StoreLocked, match="is being extracted: locked by process"):
            run(data, tmp_path / "s")


def test_damaged_shards_are_made_again(data: Path, tmp_path: Path) -> None:
    expected = read_feature(run(data, tmp_path / "whole").path).embedding
    cut = FakeBackbone()
    cut.fail_after = 30
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", cut)
    shards = sorted((tmp_path / "cut/.parts").rglob("part-*.h5"))
    assert len(shards) >= 2
    shards[0].write_bytes(shards[0].read_bytes()[:900])
    shards[1].write_bytes(b"\x89HDF nonsense")
    assert read_feature(run(data, tmp_path / "cut").path).embedding.tobytes() == expected.tobytes()


FULL_DISK = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests.extract.test_extract import run
from bsdkit.errors import StoreError
from bsdkit.store.feature import read_feature
data, disk = Path({data!r}), Path({disk!r})
filler = disk / "filler"
try:
    filler.write_bytes(bytes(10_000_000))
except OSError:
    pass
data_size = filler.stat().st_size
with filler.open("r+b") as file:
    file.truncate(data_size - 60_000)
try:
    run(data, disk / "s")
except StoreError as error:
    print(error)
filler.unlink()
print(run(data, disk / "s").n_embedded, read_feature(run(data, disk / "s").path).checksum())
"""


def test_a_full_disk_costs_nothing_but_time(data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    code = FULL_DISK.format(root=str(ROOT), data=str(data), disk=str(disk))
    mount = f'mount -t tmpfs -o size=600k tmpfs {disk} && exec {sys.executable} -c "$CODE"'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount],
        env={"CODE": code, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
    )
    if "mount" in result.stderr or "unshare" in result.stderr:
        pytest.skip(f"no small disk can be mounted here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    message, outcome = result.stdout.strip().splitlines()
    assert "the disk is full" in message and "run the same line again" in message
    expected = read_feature(run(data, tmp_path / "whole").path).checksum()
    assert outcome.split()[1] == expected and int(outcome.split()[0]) > 0
