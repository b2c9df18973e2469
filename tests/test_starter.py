"""The starter sounds: archives, manifests, and whole builds from packages made here."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from bsdkit.errors import StarterError
from recipes.starter.builder import build_starter
from recipes.starter.builder.containers import ContainerError, read_member
from recipes.starter.builder.manifest import (
    METADATA_COLUMNS,
    Note,
    PackageFile,
    Speech,
    read_manifest,
)

Wave = npt.NDArray[np.int16]

RATE = 44_100
PACKAGE = "bsdkit-test-sounds"
DEB = f"{PACKAGE}_1%3a2.0_all.deb"
FOLDER = "usr/share/sounds"
DEMO = Path(__file__).parents[1] / "recipes" / "starter" / "demo.csv"
COLUMNS = (
    "sound_id",
    "package",
    "version",
    "path_in_package",
    "render",
    "start_s",
    "duration_s",
    *METADATA_COLUMNS[1:],
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb not found")


def row(sound_id: str, path: str = "", **changes: object) -> dict[str, str]:
    defaults = {
        "sound_id": sound_id,
        "package": PACKAGE,
        "version": "1:2.0",
        "path_in_package": path,
        "start_s": 0.0,
        "duration_s": 1.0,
        "class": "fx-o",
        "title": f'a "{sound_id}", or so',
    }
    return {c: str((defaults | changes).get(c, "")) for c in COLUMNS}


def write_manifest(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as sink:
        writer = csv.DictWriter(sink, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def noise(seconds: float, seed: int) -> Wave:
    """int16 noise, [n]."""
    n = round(seconds * RATE)
    return np.random.default_rng(seed).integers(-9000, 9000, n).astype(np.int16)


def read_wav(path: Path) -> Wave:
    rate: int
    samples: Wave
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == RATE
    assert samples.ndim == 1
    return samples


# ------------------------------------------------------------------------------- archives


def qt_resources(version: int) -> bytes:
    """/plain.bin and /sounds/packed.bin, the latter compressed."""
    names, name_at = b"", {}
    for name in ("plain.bin", "sounds", "packed.bin"):
        name_at[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    plain = struct.pack(">I", 5) + b"plain"
    packed = struct.pack(">I", 6) + zlib.compress(b"packed")
    payload = plain + struct.pack(">I", len(packed)) + packed
    changed = b"\0" * 8 if version >= 2 else b""
    tree = b"".join(
        node + changed
        for node in (
            struct.pack(">IHII", 0, 2, 2, 1),
            struct.pack(">IHHHI", name_at["plain.bin"], 0, 0, 1, 0),
            struct.pack(">IHII", name_at["sounds"], 2, 1, 3),
            struct.pack(">IHHHI", name_at["packed.bin"], 1, 0, 1, len(plain)),
        )
    )
    at = 20 if version < 3 else 24
    head = b"qres" + struct.pack(">IIII", version, at, at + len(tree) + len(names), at + len(tree))
    return head + b"\0" * (at - 20) + tree + names + payload


def sound_set(sounds: dict[str, bytes]) -> bytes:
    """An OpenTTD sound set with the newer format's bit in the first offset."""
    index, body = b"", b""
    for number, (name, contents) in enumerate(sounds.items()):
        offset = 8 * len(sounds) + len(body)
        index += struct.pack("<II", offset | (0x80000000 if number == 0 else 0), len(contents))
        body += bytes([len(name) + 1]) + name.encode() + b"\0" + contents
    return index + body


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_members_of_every_kind_of_archive(tmp_path: Path) -> None:
    for ending in (".pk3", ".wz"):
        with zipfile.ZipFile(tmp_path / f"a{ending}", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("sound/a.wav", b"zipped" * 100)
        assert read_member(tmp_path / f"a{ending}", "sound/a.wav") == b"zipped" * 100
    for version in (1, 2, 3):
        path = tmp_path / f"v{version}.rcc"
        path.write_bytes(qt_resources(version))
        assert read_member(path, "plain.bin") == b"plain"
        assert read_member(path, "sounds/packed.bin") == b"packed"
    path = tmp_path / "a.cat"
    path.write_bytes(sound_set({"horn": riff(b"WAVE-one"), "a/b": riff(b"WAVE-second")}))
    assert read_member(path, "00_horn") == riff(b"WAVE-one")
    assert read_member(path, "01_a_b") == riff(b"WAVE-second")


def test_archives_say_what_is_wrong(tmp_path: Path) -> None:
    whole = qt_resources(2)
    (tmp_path / "a.rcc").write_bytes(whole)
    with pytest.raises(ContainerError, match=r"did you mean 'sounds/packed\.bin'"):
        read_member(tmp_path / "a.rcc", "sound/packed.bin")
    (tmp_path / "cut.rcc").write_bytes(whole[:60])
    (tmp_path / "cut.cat").write_bytes(sound_set({"horn": riff(b"x")})[:10])
    (tmp_path / "cut.pk3").write_bytes(b"PK\3\4 and no more")
    for ending in ("rcc", "cat", "pk3"):
        with pytest.raises(ContainerError, match="damaged"):
            read_member(tmp_path / f"cut.{ending}", "any")
    with pytest.raises(ContainerError, match="no known archive"):
        read_member(tmp_path / "a.rar", "any")


# ------------------------------------------------------------------------------- manifests


def test_recipes_are_read(tmp_path: Path) -> None:
    note = "fluidsynth:font-pkg:usr/a.sf2:bank=drum:program=3:key=59:vel=60:dur=1.5"
    speech = "espeak-ng:voice=en-us+croak:speed=170:text=Listen: a=b, it says"
    rows = [row("1", render=note), row("2", render=speech)]
    clips = read_manifest(write_manifest(tmp_path / "m.csv", rows))
    assert clips[0].recipe == Note(PackageFile("font-pkg", "usr/a.sf2"), True, 3, 59, 60, 1.5)
    spoken = (("speed", "170"), ("pitch", "50"))
    assert clips[1].recipe == Speech("espeak-ng", "en-us+croak", spoken, "Listen: a=b, it says")


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        (row("1", "a.ogg"), "line 3: sound_id 1 is on line 2 already"),
        (row("../x", "a.ogg"), "line 3: sound_id is"),
        (row("2", "/etc/passwd"), "line 3: path '/etc/passwd'"),
        (row("2", "a/../../b.ogg"), "line 3: path"),
        (row("2", "a.ogg", package="--option"), "line 3: package is '--option'"),
        (row("2", "a.ogg", duration_s="nan"), "line 3: duration_s is 'nan'"),
        (row("2", "a.ogg", render="espeak:voice=en:text=a"), "did you mean 'espeak-ng'"),
        (row("2", render="festival:voice=a) (exit:text=b"), "line 3: render: voice is"),
        (row("2", "a.mid", render="midi:font:a.sf2:channels=16"), "from 0 to 15"),
        (row("2", render="fluidsynth:font:a.sf2:bank=mel"), "line 3: render: no program="),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, second: dict[str, str], complaint: str) -> None:
    manifest = write_manifest(tmp_path / "m.csv", [row("1", "a.ogg"), second])
    with pytest.raises(StarterError) as error:
        build_starter(manifest, tmp_path / "out", cache=tmp_path / "cache")
    assert complaint in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StarterError, match=r"no manifest .*nothing\.csv"):
        read_manifest(tmp_path / "nothing.csv")
    (tmp_path / "m.csv").write_text("sound_id,package\n1,a\n")
    with pytest.raises(StarterError, match="line 1: no column 'class'"):
        read_manifest(tmp_path / "m.csv")


# ---------------------------------------------------------------------------------- builds


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with sounds, as apt-get would name it."""
    root = tmp_path_factory.mktemp("deb")
    sounds = root / "tree" / FOLDER
    sounds.mkdir(parents=True)
    (root / "tree" / "DEBIAN").mkdir()
    (root / "tree" / "DEBIAN" / "control").write_text(
        f"Package: {PACKAGE}\nVersion: 1:2.0\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: sounds for tests\n"
    )
    soundfile.write(sounds / "long.wav", noise(3, 1), RATE, subtype="PCM_16")
    soundfile.write(sounds / "short.flac", noise(0.4, 2), RATE, subtype="PCM_16")
    stereo = np.stack([noise(2, 3), noise(2, 4)], axis=1)[: 2 * 22_050]
    soundfile.write(sounds / "stereo.wav", stereo, 22_050, subtype="PCM_16")
    soundfile.write(sounds / "silent.wav", np.zeros(2 * RATE), RATE, subtype="PCM_16")
    (sounds / "broken.ogg").write_bytes(b"no sound at all")
    with zipfile.ZipFile(sounds / "pak.pk3", "w") as archive:
        archive.write(sounds / "long.wav", "inner/long.wav")
    (sounds / "unwanted.txt").write_text("must stay packed")
    command = ["dpkg-deb", "--root-owner-group", "-b", str(root / "tree"), str(root / DEB)]
    subprocess.run(command, check=True, capture_output=True)
    return root / DEB


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for the package archive: apt-get downloads what lies in it."""
    archive, programs = tmp_path / "archive", tmp_path / "bin"
    archive.mkdir()
    programs.mkdir()
    script = programs / "apt-get"
    script.write_text(
        '#!/bin/sh\nfor spec; do :; done\nname="${spec%%=*}"\n'
        f'echo "$spec" >> "{archive}/log"\n'
        f'cp "{archive}/$name"_*.deb . 2>/dev/null && exit 0\n'
        'echo "E: Unable to locate package $name" >&2\nexit 100\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    return archive


@needs_dpkg
def test_a_build_from_a_package(tmp_path: Path, deb: Path, apt: Path) -> None:
    shutil.copy(deb, apt)
    rows = [
        row("1", f"{FOLDER}/long.wav"),
        row("2", f"{FOLDER}/long.wav", start_s=1.25, duration_s=1.5),
        row("3", f"{FOLDER}/pak.pk3!inner/long.wav", start_s=0.5),
        row("4", f"{FOLDER}/stereo.wav", duration_s=2),
        row("5", render=f"concat:{FOLDER}/short.flac|{FOLDER}/long.wav", duration_s=2.0),
        row("6", f"{FOLDER}/silent.wav"),
        row("7", f"{FOLDER}/pak.pk3!inner/lang.wav"),
        row("8", f"{FOLDER}/nothing.wav"),
        row("9", f"{FOLDER}/short.flac"),
        row("10", f"{FOLDER}/broken.ogg"),
        row("11", "a.ogg", package="no-such-package"),
    ]
    manifest = write_manifest(tmp_path / "tiny.csv", rows)
    out, cache = tmp_path / "out", tmp_path / "cache"
    stages: list[tuple[str, int, int]] = []

    report = build_starter(
        manifest,
        out,
        cache=cache,
        n_jobs=2,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )

    assert (report.n_rows, report.n_kept, report.n_built) == (11, 0, 5)
    long = noise(3, 1)
    np.testing.assert_array_equal(read_wav(out / "audio/1.wav"), long[:RATE])
    start = round(1.25 * RATE)
    np.testing.assert_array_equal(read_wav(out / "audio/2.wav"), long[start:][: RATE * 3 // 2])
    np.testing.assert_array_equal(read_wav(out / "audio/3.wav"), long[RATE // 2 :][:RATE])
    assert len(read_wav(out / "audio/4.wav")) == 2 * RATE
    joined = np.concatenate([noise(0.4, 2), np.zeros(RATE // 4, np.int16), long])
    np.testing.assert_array_equal(read_wav(out / "audio/5.wav"), joined[: 2 * RATE])

    expected = {
        "6": "silent: -180 dBFS",
        "7": "did you mean 'inner/long.wav'",
        "8": f"{DEB} has no file {FOLDER}/nothing.wav",
        "9": "0.400 s long, the manifest says 1 s",
        "10": "LibsndfileError",
        "11": "cannot fetch package no-such-package",
    }
    assert list(report.failures) == list(expected)
    for sound_id, part in expected.items():
        assert part in report.failures[sound_id]
        assert "\n" not in report.failures[sound_id]
    metadata = read_table(out / "metadata/tiny_metadata.csv")
    assert tuple(metadata[0]) == (*METADATA_COLUMNS, "origin")
    assert [(r["sound_id"], r["title"]) for r in metadata] == [
        (i, f'a "{i}", or so') for i in "12345"
    ]
    failed = read_table(out / "metadata/tiny_failed.csv")
    assert {r["sound_id"]: r["reason"] for r in failed} == report.failures
    for stage, total in (("fetch", 2), ("unpack", 1), ("decode", 9)):
        seen = [done for name, done, of in stages if name == stage and of == total]
        assert seen[0] == 0
        assert seen[-1] == total
    assert not list(tmp_path.rglob("unwanted.txt"))
    assert not list(tmp_path.rglob("*.part"))
    assert not list((cache / "debs").glob(".fetch-*"))


@needs_dpkg
def test_a_build_goes_on_where_it_stopped(
    tmp_path: Path, deb: Path, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(deb, apt)
    rows = [row(str(i), f"{FOLDER}/long.wav", start_s=i / 10) for i in range(1, 5)]
    manifest = write_manifest(tmp_path / "tiny.csv", rows)
    out, cache = tmp_path / "out", tmp_path / "cache"
    (out / "audio").mkdir(parents=True)
    # What an interrupted build can leave: half a clip, half a file, a name without contents.
    half = out / "audio" / ".1.wav.12345.part"
    half.write_bytes(b"RIFF half a clip")
    (out / "audio/2.wav").touch()
    unpacked = cache / "unpacked" / PACKAGE / FOLDER
    unpacked.mkdir(parents=True)
    (unpacked / ".long.wav.12345.part").write_bytes(b"RIFF")
    (cache / "debs/.fetch-old").mkdir(parents=True)
    (cache / "debs/.fetch-old" / DEB).write_bytes(b"half a package")

    first = build_starter(manifest, out, cache=cache, name="other")
    assert (first.n_kept, first.n_built, first.failures) == (0, 4, {})
    long = noise(3, 1)
    for i in range(1, 5):
        begin = round(i / 10 * RATE)
        wav = read_wav(out / f"audio/{i}.wav")
        np.testing.assert_array_equal(wav, long[begin : begin + RATE])
    assert (apt / "log").read_text().splitlines() == [f"{PACKAGE}=1:2.0"]

    # With the files unpacked, neither the package nor the tools of Debian are needed.
    (cache / "debs" / DEB).unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    (out / "audio/3.wav").unlink()
    before = {p: p.stat().st_mtime_ns for p in (out / "audio").glob("*.wav")}
    second = build_starter(manifest, out, cache=cache, name="other", n_jobs=1)
    assert (second.n_kept, second.n_built) == (3, 1)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    table = out / "metadata/other_metadata.csv"
    assert [r["sound_id"] for r in read_table(table)] == ["1", "2", "3", "4"]
    assert not (out / "metadata/other_failed.csv").exists()


def test_without_apt_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    manifest = write_manifest(tmp_path / "m.csv", [row("1", "a.ogg")])
    with pytest.raises(StarterError) as error:
        build_starter(manifest, tmp_path / "out", cache=tmp_path / "cache")
    message = str(error.value)
    assert message.startswith("apt-get and dpkg-deb not found")
    assert "debian:12" in message
    assert "cache/starter" in message
    assert not (tmp_path / "out").exists()


@needs_dpkg
def test_without_package_lists_the_hint_comes_once(
    tmp_path: Path, apt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.starter.builder.packages._APT_LISTS", tmp_path / "lists")
    rows = [row("1", "a.ogg"), row("2", "a.ogg", package="other")]
    with pytest.raises(StarterError, match="sudo apt-get update"):
        build_starter(
            write_manifest(tmp_path / "m.csv", rows), tmp_path / "out", cache=tmp_path / "cache"
        )
    # The pinned version first, then any; the second package is not tried.
    assert (apt / "log").read_text().splitlines() == [f"{PACKAGE}=1:2.0", PACKAGE]


def test_missing_programs_are_named_and_cost_no_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    note = "fluidsynth:font:a.sf2:bank=mel:program=3:key=59:vel=60:dur=1"
    rows = [row("1", render=note), row("2", render="festival:voice=kal_diphone:text=Hello")]
    report = build_starter(write_manifest(tmp_path / "m.csv", rows), tmp_path / "out")
    assert report.n_built == 0
    assert report.failures["1"] == "fluidsynth is not installed: apt-get install fluidsynth"
    assert report.missing_programs["fluidsynth"] == "apt-get install fluidsynth"
    assert "festvox" in report.missing_programs["text2wave"]


def test_real_sounds_of_a_small_package(tmp_path: Path) -> None:
    """Eleven rows of the demo, from a package of 0.4 MB that apt-get fetches."""
    package = "sound-theme-freedesktop"
    with DEMO.open(newline="", encoding="utf-8") as source:
        rows = [r for r in csv.DictReader(source) if r["package"] == package]
    assert len(rows) == 11
    manifest = write_manifest(tmp_path / "small.csv", rows)
    try:
        report = build_starter(manifest, tmp_path / "out")
    except StarterError as error:
        pytest.skip(str(error))
    if all("cannot fetch" in report.failures.get(r["sound_id"], "") for r in rows):
        pytest.skip(next(iter(report.failures.values())))
    assert report.failures == {}
    for r in rows:
        wav = read_wav(tmp_path / "out/audio" / f"{r['sound_id']}.wav")
        assert abs(len(wav) / RATE - float(r["duration_s"])) < 0.03
    began = time.perf_counter()
    assert build_starter(manifest, tmp_path / "out").n_kept == 11
    assert time.perf_counter() - began < 1
