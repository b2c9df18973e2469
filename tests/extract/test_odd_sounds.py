"""A folder of odd sounds, embedded as a user does it: none ends the run, each has its word."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

import bsdkit.extract.decode
import bsdkit.extract.run
from bsdkit.audio import Findings
from bsdkit.backbones.base import Backbone
from bsdkit.extract.decode import Decoder, Request
from bsdkit.store import FAILED, OK, PARTIAL, Store
from bsdkit.store.feature import read_feature
from bsdkit.store.verify import verify_store
from tests.conftest import bsdkit_here
from tests.extract.fake import RATE, FakeBackbone

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)
FAILING = ("chan0", "html", "latin\\xe9", "nan", "one hertz")
PARTLY = ("half", "half flac", "long half")
NOTED = ("antiphase", "loud")
FINE = ("fine", "joined", "no length")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data/fx"
    folder.mkdir(parents=True)

    def write(name: str, samples: np.ndarray, subtype: str = "PCM_16") -> bytes:  # type: ignore[type-arg]
        soundfile.write(folder / name, samples, RATE, subtype=subtype)
        return (folder / name).read_bytes()

    wav = write("fine.wav", NOISE)
    flac = write("no length.flac", NOISE)
    long = write("long half.wav", np.tile(NOISE, 70))
    write("antiphase.wav", np.stack([NOISE, -NOISE], axis=1))
    write("loud.wav", NOISE * 8, "FLOAT")
    write("nan.wav", np.where(np.arange(len(NOISE)) == 5, np.nan, NOISE), "FLOAT")
    contents = {
        "joined.wav": wav + wav,
        "half.wav": wav[: len(wav) // 2],
        "long half.wav": long[: len(long) * 3 // 4],
        "half flac.flac": flac[: len(flac) // 2],
        "no length.flac": flac[:21] + bytes([flac[21] & 0xF0, 0, 0, 0, 0]) + flac[26:],
        "html.wav": b"<html>404 not found</html>",
        "chan0.wav": wav[:22] + struct.pack("<H", 0) + wav[24:],
        "one hertz.wav": wav[:24] + struct.pack("<I", 1) + wav[28:],
        "latin\udce9.wav": b"no sound",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder.parent


@pytest.fixture(autouse=True)
def only_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(names: Sequence[str], options: object) -> list[tuple[Backbone, list[str]]]:
        return [(FakeBackbone(options), ["audio"])]  # type: ignore[arg-type]

    monkeypatch.setattr(bsdkit.extract.run, "get_outputs", outputs)


def extract(data: Path, *more: object) -> subprocess.CompletedProcess[str]:
    store = data.parent / "store"
    return bsdkit_here(
        "extract", "--data", data, "--store", store, "--backbone", "fake", "--taxonomy", "flat",
        *more,
    )  # fmt: skip


def states(store: Path) -> dict[str, int]:
    """State by file name without its suffix; a Latin-1 byte is escaped."""
    (path,) = store.glob("fake.audio-*.h5")
    rows = read_feature(path)
    names = (Path(clip).stem.replace("\udce9", "\\xe9") for clip in rows.ids)
    return dict(zip(names, rows.state.tolist(), strict=True))


def listed(store: Path) -> dict[str, tuple[str, str]]:
    """State and reason by file name of the failures' file."""
    with (store / "failures-fake.audio.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(Path(row["path"]).stem == Path(row["id"]).stem for row in rows)
    return {Path(row["id"]).stem: (row["state"], row["reason"]) for row in rows}


def test_a_mixed_folder(data: Path) -> None:
    store = data.parent / "store"
    result = extract(data)
    assert result.returncode == 1 and "Traceback" not in result.stderr, result.stderr
    text = " ".join(result.stderr.split())
    assert "5 embedded, 0 already there, 8 failed" in text
    assert "failed, partial file: 3; --partial embed embeds what is there" in text
    assert "1 clips exceed full scale and were scaled by their peak" in text
    assert "1 clips lose more than 12 dB when their channels are mixed" in text
    assert "store/failures-fake.audio.csv" in text.replace(" ", "")
    expected = dict.fromkeys((*FAILING, *PARTLY), FAILED) | dict.fromkeys((*NOTED, *FINE), OK)
    assert states(store) == expected
    found = listed(store)
    assert sorted(found) == sorted([*FAILING, *PARTLY, *NOTED])
    assert found["half"][0] == "failed" and found["half"][1].endswith("1.0 s of 2.0 s decoded")
    assert found["long half"][1].endswith("105.0 s of 140.0 s decoded")
    assert found["loud"] == ("ok", "peak 4 exceeds full scale: scaled by its peak")

    # those that failed as partial are embedded when that is asked for; the others are kept
    result = extract(data, "--partial", "embed")
    assert result.returncode == 1
    assert "3 embedded, 5 already there, 5 failed, 3 in part" in result.stderr
    assert states(store) == expected | dict.fromkeys(PARTLY, PARTIAL)
    assert listed(store)["half"] == ("partial", "1.0 s of 2.0 s decoded")
    features = Store(store).features(["fake.audio"])
    assert int(features.is_missing.sum()) == len(FAILING)
    (report,) = verify_store(Store(store))
    assert report.n_partial == 3 and sum(report.failures.values()) == len(FAILING)
    assert "3 clips embedded in part" in bsdkit_here("store", "ls", store).stdout
    again = extract(data, "--partial", "embed")
    assert "0 embedded, 8 already there, 5 failed, 3 in part" in again.stderr

    # a run that does not want them leaves what a first run leaves
    extract(data)
    assert states(store) == expected and listed(store) == found


def test_what_failed_before_does_not_stay_listed(data: Path) -> None:
    assert extract(data).returncode == 1
    for path in (data / "fx").iterdir():
        if path.stem != "fine":
            shutil.copy(data / "fx/fine.wav", path)
    # more than a fifth of the sounds are others now, which could be another dataset
    assert "give --store OTHER, or --replace" in extract(data).stderr
    result = extract(data, "--replace")
    assert result.returncode == 0 and "0 failed" in result.stderr
    assert not list((data.parent / "store").glob("failures*"))


def test_parts_and_their_merge(data: Path) -> None:
    store = data.parent / "store"
    for part in ("1/2", "2/2"):
        extract(data, "--shard", part, "--shard-clips", "3")
        assert (store / f"failures-fake.audio.{part.replace('/', '-of-')}.csv").is_file()
    assert bsdkit_here("store", "merge", store).returncode == 0
    assert [path.name for path in store.glob("failures*")] == ["failures-fake.audio.csv"]


@pytest.mark.parametrize("use_processes", [False, True])
def test_any_error_is_the_clips_own(
    data: Path, monkeypatch: pytest.MonkeyPatch, use_processes: bool
) -> None:
    class Strange(Exception):
        def __init__(self, a: int, b: int) -> None:  # pickle cannot make it again
            super().__init__("strange")

    def raising(path: Path, rates: tuple[int, ...], findings: Findings) -> object:
        raise MemoryError if path.stem == "fine" else Strange(1, 2)

    if not use_processes:
        monkeypatch.setattr(bsdkit.extract.decode, "read_audio_at", raising)
    names = ("fine.wav", "html.wav", "one hertz.wav")
    requests = [Request(i, data / "fx" / name, (RATE,), 2.0) for i, name in enumerate(names)]
    with Decoder(1, use_processes=use_processes) as decoder:
        sounds = list(decoder.decode(requests))
    n_failed = 2 if use_processes else 3
    for sound, name in list(zip(sounds, names, strict=True))[-n_failed:]:
        assert sound.error is not None and name in str(sound.error)
