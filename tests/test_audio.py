"""Sound files as people have them, whole and broken, and the windows cut from them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsdkit.audio import (
    Findings,
    Padding,
    WindowCutter,
    n_windows,
    read_audio,
    read_audio_at,
    resample,
)
from bsdkit.errors import AudioError, EmptyAudio, MissingAudio, PartialAudio

Wave = npt.NDArray[np.float32]

RATE = 16_000
LAWS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def sine(hertz: float, seconds: float = 1.0, rate: int = RATE, peak: float = 0.5) -> Wave:
    time = np.arange(round(seconds * rate)) / rate
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def write(path: Path, samples: Wave, rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("name", "subtype", "step"),
    [
        ("a.wav", "PCM_U8", 2**-7),
        ("a.wav", "PCM_16", 2**-15),
        ("a.wav", "PCM_24", 2**-23),
        ("a.wav", "PCM_32", 2**-24),  # float32 has 24 bits
        ("a.wav", "FLOAT", 0.0),
        ("a.wav", "DOUBLE", 0.0),
        ("a.aiff", "PCM_16", 2**-15),
        ("a.flac", "PCM_16", 2**-15),
        ("a.flac", "PCM_24", 2**-23),
    ],
)
def test_lossless_formats(tmp_path: Path, name: str, subtype: str, step: float) -> None:
    samples = sine(440) + sine(3000, peak=0.3)
    found = read_audio(str(write(tmp_path / name, samples, subtype=subtype)), RATE)
    assert found.dtype == np.float32 and found.shape == samples.shape
    np.testing.assert_allclose(found, samples, atol=step, rtol=0)


@pytest.mark.parametrize(
    ("name", "subtype", "rate"),
    [
        ("a.ogg", "VORBIS", 44_100),
        ("a.opus", "OPUS", 48_000),
        ("a.mp3", "MPEG_LAYER_III", 44_100),
        ("a.MP3", "MPEG_LAYER_III", 16_000),
    ],
)
def test_lossy_formats(tmp_path: Path, name: str, subtype: str, rate: int) -> None:
    samples = sine(440, rate=rate)
    if name.endswith(".opus"):
        soundfile.write(tmp_path / name, samples, rate, format="OGG", subtype=subtype)
    else:
        write(tmp_path / name, samples, rate, subtype)
    found = read_audio(tmp_path / name, rate)
    # neither the codec's padding at the ends nor a shift may be left
    assert found.shape == samples.shape
    middle = slice(rate // 10, -rate // 10)
    assert np.abs(found[middle] - samples[middle]).max() < 0.05


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = sine(440), sine(1000, peak=0.25)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE), (left + right) / 2, atol=1e-7)
    path = write(tmp_path / "b.wav", np.stack([left, -left, left], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path, RATE), left / 3, atol=1e-7)


@pytest.mark.parametrize("native_rate", [8_000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_resampling_keeps_pitch_level_and_length(
    tmp_path: Path, native_rate: int, rate: int
) -> None:
    path = write(tmp_path / "a.wav", sine(440, 1.5, native_rate), native_rate, "FLOAT")
    found = read_audio(path, rate)
    assert found.dtype == np.float32
    assert abs(len(found) - 1.5 * rate) <= 1
    # the ends ring; between them it is the same sine, phase and all
    middle = slice(rate // 10, len(found) - rate // 10)
    assert np.abs(found - sine(440, 2, rate)[: len(found)])[middle].max() < 1e-3


def test_resampling_leaves_no_alias(tmp_path: Path) -> None:
    # 15 kHz does not exist at 16 kHz: decimating by hand would fold it to 1 kHz
    path = write(tmp_path / "a.wav", sine(15_000, rate=48_000), 48_000, "FLOAT")
    found = read_audio(path, 16_000)
    assert np.abs(found[1600:-1600]).max() < 1e-4


def test_overshoot_is_clipped(tmp_path: Path) -> None:
    loud = sine(440, peak=1.04)
    path = write(tmp_path / "a.wav", loud, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(path, RATE), np.clip(loud, -1, 1))
    # a full-scale square wave overshoots in any good resampler
    square = np.where(sine(440) >= 0, 1.0, -1.0).astype(np.float32)
    assert np.abs(resample(square, RATE, 44_100)).max() > 1
    path = write(tmp_path / "b.wav", square, subtype="FLOAT")
    assert np.abs(read_audio(path, 44_100)).max() == 1


def test_very_short_clips(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sine(440, 0.01, 48_000), 48_000)
    assert [len(read_audio(path, rate)) for rate in (48_000, 16_000, 32_000)] == [480, 160, 320]
    # a sample or three at 48 kHz are less than one at 8 kHz: one is left, not none
    for n_samples in (1, 2, 3):
        path = write(tmp_path / "b.wav", np.full(n_samples, 0.5, np.float32), 48_000)
        (sample,) = read_audio(path, 8_000)
        assert 0 < sample <= 0.5


def test_same_file_same_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, 44_100).astype(np.float32)
    path = write(tmp_path / "a.wav", noise, 44_100)
    np.testing.assert_array_equal(read_audio(path, RATE), read_audio(path, RATE))


def broken(folder: Path, fault: str) -> Path:
    """A file of one kind of fault."""
    path = folder / f"{fault}.wav"
    whole = write(folder / "whole.wav", sine(440)).read_bytes()
    compressed = write(folder / "whole.flac", sine(440)).read_bytes()
    if fault == "folder":
        path.mkdir()
    elif fault == "nan":
        write(path, np.where(np.arange(RATE) == 7, np.nan, sine(440)), subtype="FLOAT")
    elif fault == "infinity":
        write(path, np.where(np.arange(RATE) == 7, np.inf, sine(440)), subtype="FLOAT")
    elif fault == "dangling link":
        path.symlink_to(folder / "nowhere.wav")
    elif fault != "missing":
        path.write_bytes(
            {
                "zero bytes": b"",
                "header only": whole[:44],
                "cut header": whole[:30],
                "text": b"<html>404 Not Found</html>" * 9,
                "cut flac": compressed[: len(compressed) // 2],
            }[fault]
        )
    return path


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("missing", MissingAudio, "no audio file {path}: No such file"),
        ("dangling link", MissingAudio, "no audio file {path}: No such file"),
        ("zero bytes", EmptyAudio, "{path} is empty (0 bytes)"),
        ("header only", EmptyAudio, "{path} has no samples (44 bytes)"),
        ("cut header", AudioError, "{path} cannot be decoded (30 bytes): "),
        ("text", AudioError, "{path} cannot be decoded (234 bytes): Format not recognised"),
        ("cut flac", PartialAudio, "{path}: 0.3 s of 1.0 s decoded"),
        ("folder", AudioError, "{path} cannot be decoded ("),
        ("nan", AudioError, "{path} holds samples that are not finite"),
        ("infinity", AudioError, "{path} holds samples that are not finite"),
    ],
)
def test_broken_files(tmp_path: Path, fault: str, error: type[AudioError], message: str) -> None:
    path = broken(tmp_path, fault)
    with pytest.raises(AudioError) as caught:
        read_audio(path, RATE)
    # a missing file and an empty one are told apart from one that cannot be decoded
    assert type(caught.value) is error
    assert str(caught.value).startswith(message.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_cut_download_gives_what_is_there(tmp_path: Path) -> None:
    samples = sine(440)
    whole = write(tmp_path / "a.wav", samples, subtype="PCM_16").read_bytes()
    path = tmp_path / "cut.wav"
    path.write_bytes(whole[: 44 + 2 * 5000 + 1])
    with pytest.raises(PartialAudio, match=re.escape(f"{path}: 0.3 s of 1.0 s decoded")):
        read_audio(path, RATE)
    findings = Findings()
    found = read_audio_at(path, [RATE], findings)[RATE]
    np.testing.assert_allclose(found, samples[:5000], atol=2**-15)
    assert findings.partial == "0.3 s of 1.0 s decoded"


def test_a_name_that_soundfile_takes_for_headerless(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(1000))
    with pytest.raises(AudioError):
        read_audio(path, RATE)


def test_absurd_levels_are_clipped(tmp_path: Path) -> None:
    absurd = np.where(np.arange(4000) % 2, 3e38, -3e38).astype(np.float32)
    path = write(tmp_path / "a.wav", absurd, 44_100, "FLOAT")
    # finite, but the filter of the resampler would add them up to infinity less infinity
    assert np.abs(read_audio(path, RATE)).max() <= 1


def cut_windows(
    samples: Wave, window: int, hop: int, padding: Padding = "zeros"
) -> tuple[Wave, npt.NDArray[np.int64]]:
    """Windows [n_windows, window] and their real samples [n_windows], as extraction cuts them."""
    cutter = WindowCutter(window, hop, padding)
    cut = [(w.copy(), n) for step in (cutter.push(samples), cutter.finish()) for w, n in step]
    return np.stack([w for w, _ in cut]), np.array([n for _, n in cut], np.int64)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[Wave, int, int]:
    """Samples that are all different and not zero, a window and a hop no longer than it."""
    window = draw(st.integers(1, 60))
    hop = draw(st.integers(1, window))
    n_samples = draw(st.one_of(st.integers(0, 300), st.sampled_from([window, window + hop])))
    return np.arange(1, n_samples + 1, dtype=np.float32), window, hop


@LAWS
@given(cuts(), st.sampled_from(["zeros", "tile", "reflect"]))
def test_windows_start_at_hops_and_cover_every_sample(
    cut: tuple[Wave, int, int], padding: Padding
) -> None:
    samples, window, hop = cut
    before = samples.copy()
    windows, valid = cut_windows(samples, window, hop, padding)
    assert windows.dtype == np.float32 and windows.shape == (len(valid), window)
    assert len(windows) == n_windows(len(samples), window, hop)
    for i, (content, n) in enumerate(zip(windows, valid, strict=True)):
        assert n == min(window, len(samples) - i * hop)
        np.testing.assert_array_equal(content[:n], samples[i * hop : i * hop + n])
        if len(windows) > 1 or padding == "zeros":
            assert not content[n:].any()
    covered = {i * hop + j for i, n in enumerate(valid) for j in range(n)}
    assert covered == set(range(len(samples)))
    # no more windows than are needed: all but the last are full, and the last brings news
    assert (valid[:-1] == window).all()
    if len(windows) > 1:
        assert (len(windows) - 2) * hop + window < len(samples)

    again, _ = cut_windows(samples, window, hop, padding)
    np.testing.assert_array_equal(again, windows)
    # the caller's samples are neither changed nor handed out
    windows[:] = -1
    np.testing.assert_array_equal(samples, before)


@LAWS
@given(st.integers(1, 40), st.integers(1, 60))
def test_tile_repeats_whole_times(n_samples: int, window: int) -> None:
    samples = np.arange(1, n_samples + 1, dtype=np.float32)
    windows, valid = cut_windows(samples, window, window, "tile")
    if n_samples < window:
        n_times = math.floor(window / n_samples)
        expected = [*list(samples) * n_times, *[0.0] * (window - n_times * n_samples)]
        assert windows.tolist() == [expected]
        # repeats are no new samples: statistics weight the window by what is real
        assert valid.tolist() == [n_samples]
    else:
        zeros, _ = cut_windows(samples, window, window, "zeros")
        np.testing.assert_array_equal(windows, zeros)


def test_windows_of_a_known_clip() -> None:
    windows, valid = cut_windows(np.arange(1, 8, dtype=np.float32), 4, 2)
    assert windows.tolist() == [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 0]]
    assert valid.tolist() == [4, 4, 3]
    assert [n_windows(n, 4, 2) for n in (0, 1, 4, 5, 6, 7, 8)] == [1, 1, 1, 2, 2, 3, 3]
    windows, valid = cut_windows(np.zeros(0, np.float32), 3, 3, "tile")
    assert (windows.tolist(), valid.tolist()) == ([[0, 0, 0]], [0])
