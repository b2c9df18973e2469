"""One pass over many backbones, long files, parts of the work, and what may go wrong in it."""

from __future__ import annotations

import math
import os
import signal
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

import bsdkit.extract.decode
from bsdkit.audio import read_audio_at
from bsdkit.backbones.base import BackboneOptions
from bsdkit.errors import (
    BackboneError,
    CorruptStore,
    IncompleteStore,
    RecipeError,
    StoreError,
    StoreLocked,
)
from bsdkit.extract import ExtractionReport, ExtractionSettings, WorkSlice, extract
from bsdkit.extract.decode import Decoder, Request
from bsdkit.progress import Progress
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from bsdkit.store.merge import merge_stores
from bsdkit.store.shards import ShardFolder, locked
from tests.extract.fake import RATE, WINDOW, FakeBackbone
from tests.extract.test_extract import TEMPLATE, load, run, write_dataset

OPTIONS = BackboneOptions(text_template=TEMPLATE.describe(), dtype="float32")
ALL = ["audio", "level", "text", "prompt"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "noise")


def embed(
    data: Path, store: Path, backbones: list[FakeBackbone], outputs: list[str] = ALL,
    progress: Progress | None = None, **settings: object,
) -> dict[str, ExtractionReport]:  # fmt: skip
    clips = load(data)
    settings = {"shard_clips": 7, "batch_seconds": 2.0, **settings}
    reports = extract(
        [(backbone, outputs) for backbone in backbones],
        clips,
        Store.create(store, clips),
        TEMPLATE,
        ExtractionSettings(**settings),  # type: ignore[arg-type]
        progress=progress,
    )
    return {report.feature: report for report in reports}


def checksum(report: ExtractionReport) -> str:
    return read_feature(report.path, with_segments=True).checksum()


def test_one_pass_decodes_each_file_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()

    def counting(path, rates, findings):  # type: ignore[no-untyped-def]
        reads[Path(path).name] += 1
        return read_audio_at(path, rates, findings)

    monkeypatch.setattr(bsdkit.extract.decode, "read_audio_at", counting)

    class Other(FakeBackbone):
        name = "other"

    pair = [FakeBackbone(OPTIONS), Other(OPTIONS, rate=16_000)]
    together = embed(data, tmp_path / "together", pair)
    assert set(reads.values()) == {1} and len(reads) == 40
    assert sorted(together) == sorted(f"{n}.{o}" for n in ("fake", "other") for o in ALL)
    # the outputs of one backbone share its forward passes
    n_audio = sum(pair[0].batches)
    alone = FakeBackbone(OPTIONS)
    for output in ("audio", "level"):
        report = embed(data, tmp_path / "alone", [alone], [output])[f"fake.{output}"]
        assert checksum(report) == checksum(together[f"fake.{output}"])
    n_windows = sum(alone.batches) // 2
    # audio and level together, then prompts (windows and texts), then texts
    assert n_audio == n_windows + 2 * n_windows + 40
    prompt = read_feature(together["fake.prompt"].path)
    parts = [read_feature(together[f"fake.{name}"].path).embedding for name in ("audio", "text")]
    np.testing.assert_allclose(prompt.embedding, parts[0] + parts[1], atol=1e-4)
    stages = together["fake.audio"].stages
    assert stages.n_clips == 40 and set(stages.model_by_backbone) == {"fake", "other"}
    assert stages.bottleneck in ("model", "decode", "write") and stages.seconds > 0


def test_short_windows_are_padded_to_fractions_of_a_window(data: Path, tmp_path: Path) -> None:
    backbone = FakeBackbone(OPTIONS, shortest_seconds=0.1)
    few = embed(data, tmp_path / "a", [backbone], ["level"], shard_clips=40)
    assert set(backbone.lengths) == {WINDOW, WINDOW // 2, WINDOW // 4}
    again = FakeBackbone(OPTIONS, shortest_seconds=0.1)
    many = embed(data, tmp_path / "b", [again], ["level"], shard_clips=1, batch_seconds=0.01)
    assert set(again.batches) == {1}
    np.testing.assert_allclose(
        read_feature(few["fake.level"].path).embedding,
        read_feature(many["fake.level"].path).embedding,
        rtol=1e-6,
    )


def test_a_long_file_streams_in_constant_memory(tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    hours = 2
    with soundfile.SoundFile(tmp_path / "long/a.wav", "w", RATE, 1, "PCM_16") as file:
        noise = np.random.default_rng(0).uniform(-0.5, 0.5, 60 * RATE).astype(np.float32)
        for minute in range(60 * hours):
            file.write(noise * (1 + minute) / (60 * hours))
    tracemalloc.start()
    try:
        report = embed(
            tmp_path / "long", tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio", "level"]
        )["fake.level"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    whole = 4 * hours * 3600 * RATE
    assert whole > 200e6 and peak < 0.1 * whole
    # the last minute is in it: windows weigh the same, and the loudest of each grows
    (level,) = read_feature(report.path).embedding[0]
    assert level == pytest.approx(0.25, abs=0.005)
    assert report.stages.audio_seconds == hours * 3600


def test_blocks_of_a_stream_are_the_whole_file(tmp_path: Path) -> None:
    from bsdkit.audio import stream_audio_at

    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100 * 70 + 11, 2))
    soundfile.write(tmp_path / "a.flac", samples, 44_100)
    blocks = list(stream_audio_at(tmp_path / "a.flac", [44_100, 16_000]))
    assert len(blocks) == 3
    whole = read_audio_at(tmp_path / "a.flac", [44_100, 16_000])
    for rate in (44_100, 16_000):
        streamed = np.concatenate([block[rate] for block in blocks])
        assert abs(len(streamed) - len(whole[rate])) <= 1
        np.testing.assert_allclose(streamed, whole[rate][: len(streamed)], atol=2e-6)


def test_segments_stand_beside_their_mean(data: Path, tmp_path: Path) -> None:
    report = embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["level"], keep_segments=True)[
        "fake.level"
    ]
    rows = read_feature(report.path, with_segments=True)
    assert rows.segments is not None and rows.offsets is not None
    durations = load(data).duration
    for i, seconds in enumerate(durations):
        n_samples = round(seconds * RATE)
        n = 1 + max(0, math.ceil((n_samples - WINDOW) / (WINDOW // 2)))
        segments = rows.segments[rows.offsets[i] : rows.offsets[i + 1]]
        assert len(segments) == n
        valid = [min(WINDOW, n_samples - k * WINDOW // 2) for k in range(n)]
        mean = np.average(segments, axis=0, weights=valid)
        np.testing.assert_allclose(rows.embedding[i], mean, rtol=1e-5)
    # they stay when a clip is added without the flag, and come when asked for afterwards
    soundfile.write(data / "audio/1.wav", np.full(RATE, 0.5), RATE)
    backbone = FakeBackbone(OPTIONS)
    again = embed(data, tmp_path / "s", [backbone], ["level"])["fake.level"]
    assert again.n_embedded == 1 and sum(backbone.batches) == 3
    updated = read_feature(again.path, with_segments=True)
    assert updated.segments is not None and len(updated) == 40
    plain = embed(data, tmp_path / "t", [FakeBackbone(OPTIONS)], ["level"])["fake.level"]
    assert read_feature(plain.path, with_segments=True).segments is None
    asked = embed(data, tmp_path / "t", [FakeBackbone(OPTIONS)], ["level"], keep_segments=True)
    assert asked["fake.level"].n_embedded == 40
    assert checksum(asked["fake.level"]) == checksum(again)


@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_the_batch(data: Path, tmp_path: Path, most: int) -> None:
    expected = embed(data, tmp_path / "a", [FakeBackbone(OPTIONS)], ["audio"])
    backbone = FakeBackbone(OPTIONS)
    backbone.most_windows = most
    found = embed(data, tmp_path / "b", [backbone], ["audio"], batch_seconds=8.0)
    np.testing.assert_allclose(
        read_feature(found["fake.audio"].path).embedding,
        read_feature(expected["fake.audio"].path).embedding,
        atol=1e-5,
    )
    # what did not fit is not tried again and again
    assert sum(n > most for n in backbone.batches) <= 6
    backbone.most_windows = 0
    with pytest.raises(BackboneError, match=r"out of memory with one window of 0\.5 s"):
        embed(data, tmp_path / "c", [backbone], ["audio"])


@pytest.mark.parametrize("n_good", [8, 18])
def test_what_follows_a_failed_batch_is_not_written(
    data: Path, tmp_path: Path, n_good: int
) -> None:
    """Tasks that wait behind a failed one would seal a shard that lacks its windows."""
    broken = FakeBackbone(OPTIONS)
    broken.fail_after, broken.fail_slowly = n_good, 0.3  # time for the rest to queue up
    with pytest.raises(KeyboardInterrupt):
        embed(data, tmp_path / "s", [broken], ["audio"])
    resumed = embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio"])["fake.audio"]
    whole = embed(data, tmp_path / "whole", [FakeBackbone(OPTIONS)], ["audio"])["fake.audio"]
    assert checksum(resumed) == checksum(whole)


def test_a_damaged_finished_file_is_embedded_again(data: Path, tmp_path: Path) -> None:
    report = embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio"])["fake.audio"]
    expected = checksum(report)
    content = bytearray(report.path.read_bytes())
    place = content.index(read_feature(report.path).embedding[3].tobytes())
    content[place] ^= 255
    report.path.write_bytes(content)
    with pytest.raises(CorruptStore, match="does not match its checksum"):
        merge_stores(tmp_path / "t", [tmp_path / "s"])
    again = embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio"])["fake.audio"]
    assert again.n_embedded == 40 and checksum(again) == expected


def test_a_file_that_vanishes_fails_alone_and_comes_back(data: Path, tmp_path: Path) -> None:
    last = str(load(data).ids[-1])  # more clips ahead of it than are decoded ahead
    place = data / f"audio/{last}.wav"
    content = place.read_bytes()

    class Vanish(Progress):
        def advance(self, name: str, n: int) -> None:
            place.unlink(missing_ok=True)

    backbone = FakeBackbone(OPTIONS)
    report = embed(data, tmp_path / "s", [backbone], ["audio"], Vanish(), n_decoders=1)[
        "fake.audio"
    ]
    place.write_bytes(content)
    assert list(report.failures) == [last] and "missing file" in report.failures[last]
    backbone = FakeBackbone(OPTIONS)
    again = embed(data, tmp_path / "s", [backbone], ["audio"])["fake.audio"]
    assert again.n_embedded == 1 and again.n_kept == 39
    whole = embed(data, tmp_path / "whole", [FakeBackbone(OPTIONS)], ["audio"])["fake.audio"]
    np.testing.assert_allclose(
        read_feature(again.path).embedding, read_feature(whole.path).embedding, rtol=1e-5
    )


def test_decoding_processes_give_the_same_and_may_die(data: Path, tmp_path: Path) -> None:
    (data / "audio/5.wav").write_bytes(b"")
    (data / "audio/6.wav").write_bytes(b"<html>")
    clips = load(data)
    requests = [Request(i, path, (RATE, 16_000), 1.0) for i, path in enumerate(clips.audio)]
    with Decoder(2) as threads:
        expected = list(threads.decode(requests))
    with Decoder(2, use_processes=True) as decoder:
        found = []
        for sound in decoder.decode(requests * 3):
            if len(found) in (10, 50):
                for process in decoder._processes:
                    assert process.pid is not None
                    os.kill(process.pid, signal.SIGKILL)
            found.append(sound)
    assert [s.request.position for s in found] == list(range(40)) * 3
    for a, b in zip(expected * 3, found, strict=True):
        assert str(a.error) == str(b.error)
        if a.samples is not None and b.samples is not None:
            for rate in (RATE, 16_000):
                assert a.samples[rate].tobytes() == b.samples[rate].tobytes()
    assert [s.request.position for s in expected if s.error] == [5, 6]


def parts(data: Path, store: Path, which: list[str], n: int = 3) -> None:
    for part in which:
        report = embed(
            data, store, [FakeBackbone(OPTIONS)], ["audio", "text"],
            work=WorkSlice.parse(f"{part}/{n}"),
        )["fake.audio"]  # fmt: skip
        assert report.n_left > 0 or part == which[-1]


def test_parts_of_the_work_merge_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    (data / "audio/7.wav").write_bytes(b"")
    whole = embed(data, tmp_path / "whole", [FakeBackbone(OPTIONS)], ["audio", "text"])
    parts(data, tmp_path / "one", ["2", "1", "3"])  # in one store, in any order
    parts(data, tmp_path / "a", ["1", "3"])  # or on two machines
    parts(data, tmp_path / "b", ["2"])
    with pytest.raises(IncompleteStore, match=r"fake\.audio: 14 of 40 clips are in no shard"):
        merge_stores(tmp_path / "a")
    assert not list((tmp_path / "a").glob("fake*.h5"))
    for merged in (
        merge_stores(tmp_path / "one"),
        merge_stores(tmp_path / "a", [tmp_path / "b"]),
        merge_stores(tmp_path / "new", [tmp_path / "a", tmp_path / "b"]),
    ):
        by_name = {report.feature: report for report in merged}
        # the first target is merged already when the third one takes it as a source
        assert {r.n_rows for r in merged} == {40} and by_name["fake.audio"].n_failed == 1
        for name, report in by_name.items():
            assert read_feature(report.path).checksum() == checksum(whole[name])
            assert not (report.path.parent / ".parts").exists()
    features = Store(tmp_path / "new").features(["fake.audio", "fake.text"])
    assert features.is_missing.sum() == 1


def test_a_merge_refuses_what_is_twice_damaged_or_of_other_clips(
    data: Path, tmp_path: Path
) -> None:
    parts(data, tmp_path / "a", ["1", "2"])
    parts(data, tmp_path / "b", ["3"])
    shards = sorted((tmp_path / "a/.parts").glob("fake-audio-*/part-*.h5")) or sorted(
        (tmp_path / "a/.parts").rglob("part-*.h5")
    )
    # a copy of a shard is no harm; the same clips embedded otherwise are
    copied = tmp_path / "b" / shards[0].relative_to(tmp_path / "a")
    copied.parent.mkdir(parents=True, exist_ok=True)
    copied.write_bytes(shards[0].read_bytes())
    merge_stores(tmp_path / "fine", [tmp_path / "a", tmp_path / "b"])
    other = FakeBackbone(OPTIONS)
    soundfile.write(data / "audio/0.wav", np.full(RATE, 0.5), RATE)
    copied.unlink()
    clips = load(data)
    Store.create(tmp_path / "c", clips)
    extract(
        [(other, ["audio"])], clips, Store(tmp_path / "c"), TEMPLATE,
        ExtractionSettings(shard_clips=7, batch_seconds=2.0, work=WorkSlice(1, 3)),
    )  # fmt: skip
    with pytest.raises(StoreError, match=r"clips stand twice, e\.g\. 0 in .*part-00000.*and"):
        merge_stores(tmp_path / "twice", [tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert not (tmp_path / "twice").exists() or not list((tmp_path / "twice").glob("*.h5"))
    with pytest.raises(StoreError, match="only stores of one dataset"):
        small = write_dataset(tmp_path / "small", 3)
        embed(small, tmp_path / "d", [FakeBackbone(OPTIONS)], ["audio"], work=WorkSlice(1, 1))
        merge_stores(tmp_path / "a", [tmp_path / "d"])
    with pytest.raises(StoreError, match=r"no shards to merge.*--shard 1/2"):
        merge_stores(tmp_path / "fine")


def test_parts_with_segments_replace_a_file_without(data: Path, tmp_path: Path) -> None:
    embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["level"])
    for part in ("1/2", "2/2"):
        embed(
            data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["level"],
            keep_segments=True, work=WorkSlice.parse(part),
        )  # fmt: skip
    (report,) = merge_stores(tmp_path / "s")
    assert read_feature(report.path, with_segments=True).segments is not None


def test_two_parts_at_once_but_not_the_same_part(data: Path, tmp_path: Path) -> None:
    clips = load(data)
    store = Store.create(tmp_path / "s", clips)
    features = [("fake.audio", FakeBackbone(OPTIONS).spec("audio").to_dict())]
    with locked(store.path, features, "1/3"):
        with pytest.raises(
            StoreLocked, match=r"part 1/3 of .* is being extracted: locked by process"
        ):
            parts(data, tmp_path / "s", ["1"])
        with pytest.raises(StoreLocked):  # nor may a whole run merge under their hands
            embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio"])
        parts(data, tmp_path / "s", ["2"])
    assert len(list(ShardFolder(store.path, *features[0]).folder.glob("part-*.h5"))) == 2
    for wrong in ("0/3", "4/3", "1", "a/b", "1/"):
        with pytest.raises(RecipeError, match="expected i/n"):
            WorkSlice.parse(wrong)


def test_a_dataset_and_a_store_behind_a_url(data: Path, tmp_path: Path) -> None:
    upath = pytest.importorskip("upath")
    remote = upath.UPath("memory://bsdkit-test/noise")
    for file in sorted(f for f in data.rglob("*") if f.is_file()):
        target = remote / file.relative_to(data).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    here = embed(data, tmp_path / "s", [FakeBackbone(OPTIONS)], ["audio"])
    place = "memory://bsdkit-test/store"
    interrupted = FakeBackbone(OPTIONS)
    interrupted.fail_after = 30
    with pytest.raises(KeyboardInterrupt):
        embed(remote, place, [interrupted], ["audio"])  # type: ignore[arg-type]
    resumed = FakeBackbone(OPTIONS)
    there = embed(remote, place, [resumed], ["audio"])  # type: ignore[arg-type]
    assert checksum(there["fake.audio"]) == checksum(here["fake.audio"])
    assert sum(resumed.batches) < sum(interrupted.batches) + sum(resumed.batches) - 5
    features = Store(place).features(["fake.audio"])
    assert np.array_equal(
        features.arrays["fake.audio"],
        Store(tmp_path / "s").features(["fake.audio"]).arrays["fake.audio"],
    )
    assert [str(f) for f in Store(place).feature_files()] == [str(there["fake.audio"].path)]


def test_a_missing_row_of_a_run_is_the_same_in_every_split(data: Path, tmp_path: Path) -> None:
    """The report of a part counts what is embedded, kept and left, and they add up."""
    store = tmp_path / "s"
    first = embed(data, store, [FakeBackbone(OPTIONS)], ["audio"], work=WorkSlice(1, 2))
    report = first["fake.audio"]
    assert (report.n_embedded, report.n_left, report.n_kept) == (21, 19, 0)
    second = embed(data, store, [FakeBackbone(OPTIONS)], ["audio"], work=WorkSlice(2, 2))
    report = second["fake.audio"]
    assert (report.n_embedded, report.n_left, report.n_kept) == (19, 0, 21)
    # a whole run over finished parts has nothing to embed, only to merge
    backbone = FakeBackbone(OPTIONS)
    whole = embed(data, store, [backbone], ["audio"])["fake.audio"]
    assert backbone.batches == [] and whole.n_kept == 40 and whole.path.is_file()
    reference = run(data, tmp_path / "t", FakeBackbone(OPTIONS))
    assert checksum(whole) == checksum(reference)
