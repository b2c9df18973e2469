"""Sound files whose header and contents disagree are decoded to their real end, or known."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from bsdkit.audio import Findings, audio_seconds, read_audio, read_audio_at, stream_audio_at
from bsdkit.errors import AudioError, PartialAudio
from bsdkit.sounds.reader import opened

Wave = npt.NDArray[np.float32]
RATE = 44_100
TIME = np.arange(2 * RATE) / RATE
RISING = (0.4 * np.sin(2 * np.pi * (300 + 200 * TIME) * TIME)).astype(np.float32)
FALLING = RISING[::-1].copy()
LOSSY = 0.06
"""What a codec may change a sample by."""


def encoded(samples: Wave, kind: str, subtype: str = "", rate: int = RATE, **more: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype or None, **more)  # type: ignore[arg-type]
    return file.getvalue()


def without_xing(mp3: bytes) -> bytes:
    """The frames alone: the first one, which holds the header with their number, cut off."""
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    return mp3[mp3.index(mp3[:2], 4) :]


def with_sizes(wav: bytes, riff: int, data: int) -> bytes:
    at = wav.index(b"data")
    return (
        wav[:4] + struct.pack("<I", riff) + wav[8 : at + 4] + struct.pack("<I", data)
        + wav[at + 8 :]
    )  # fmt: skip


def with_total(flac: bytes, total: int) -> bytes:
    """A FLAC file whose header claims another number of samples."""
    changed = bytearray(flac)
    (packed,) = struct.unpack(">Q", flac[18:26])
    changed[18:26] = struct.pack(">Q", packed >> 36 << 36 | total)
    return bytes(changed)


def with_chunk(wav: bytes, name: bytes, content: bytes) -> bytes:
    """A WAV file with another chunk before the first, filled to an even length."""
    chunk = name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return wav[:12] + chunk + wav[12:]


WAV = encoded(RISING, "WAV", "PCM_16")
FLAC = encoded(RISING, "FLAC", "PCM_16")
OGG = encoded(RISING, "OGG", "VORBIS")
MP3 = encoded(RISING, "MP3")
FALLING_WAV, FALLING_FLAC, FALLING_OGG, FALLING_MP3 = (
    encoded(FALLING, kind) for kind in ("WAV", "FLAC", "OGG", "MP3")
)
BOTH = np.concatenate([RISING, FALLING])
NOISY_OGG = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), "OGG")
LOUD = encoded(RISING, "MP3", bitrate_mode="CONSTANT", compression_level=0.0)
SMALL = encoded(FALLING, "MP3", bitrate_mode="CONSTANT", compression_level=0.9)
ID3 = b"ID3\x03\0\0\0\0\x02\x01" + bytes(257)

WHOLE = {
    "WAV from a pipe": (with_sizes(WAV, 2**32 - 1, 2**32 - 1), RISING),
    "WAV from sox's pipe": (with_sizes(WAV, 0x7FFFF024, 0x7FFFF000), RISING),
    "WAV whose recorder lost power": (with_sizes(WAV, 0, 0), RISING),
    "joined WAV": (WAV + FALLING_WAV, BOTH),
    "joined AIFF": (encoded(RISING, "AIFF") + encoded(FALLING, "AIFF"), BOTH),
    "WAV behind a tag": (ID3 + WAV, RISING),
    "WAV with an odd chunk": (with_chunk(WAV, b"bext", b"A" * 603), RISING),
    "WAV before a tag": (WAV + b"TAG" + bytes(125), RISING),
    "FLAC of unknown length": (with_total(FLAC, 0), RISING),
    "FLAC that claims 18 days": (with_total(FLAC, 2**36 - 1), RISING),
    "FLAC that claims half of it": (with_total(FLAC, RATE), RISING),
    "joined FLAC": (FLAC + FALLING_FLAC, BOTH),
    "chained Ogg": (OGG + FALLING_OGG, BOTH),
    "chained Ogg of two rates": (OGG + encoded(FALLING[::2].copy(), "OGG", rate=22_050), BOTH),
    "joined MP3": (MP3 + FALLING_MP3, BOTH),
    "joined MP3 with tags": (ID3 + MP3 + b"TAG" + bytes(125) + ID3 + FALLING_MP3, BOTH),
    "MP3 behind junk": (bytes(5000) + MP3, RISING),
}


def near(found: Wave, expected: Wave) -> bool:
    """Whether the middle of each second is the same; resampled pieces ring at their ends."""
    if len(found) != len(expected):
        return False
    middle = (np.arange(len(expected)) % RATE > 5000) & (np.arange(len(expected)) % RATE < 39_000)
    return bool(np.abs(found - expected)[middle].max() < LOSSY)


@pytest.mark.parametrize("kind", WHOLE)
def test_decoded_to_the_real_end(tmp_path: Path, kind: str) -> None:
    content, expected = WHOLE[kind]
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    findings = Findings()
    found = read_audio_at(path, [RATE], findings)[RATE]
    assert findings == Findings() and near(found, expected)
    blocks = [block[RATE] for block in stream_audio_at(path, [RATE])]
    np.testing.assert_allclose(np.concatenate(blocks), found, atol=1e-6)
    assert audio_seconds(path) == pytest.approx(len(expected) / RATE, abs=0.1)


@pytest.mark.parametrize("loud_first", [True, False])
def test_mp3_without_xing_header(tmp_path: Path, loud_first: bool) -> None:
    # the length guessed from the first bit rate is a fraction of it, or several times it
    loud, small = without_xing(LOUD), without_xing(SMALL)
    assert len(loud) > 3 * len(small)
    path = tmp_path / "a.mp3"
    path.write_bytes(loud + small if loud_first else small + loud)
    found = read_audio(path, RATE)
    # the encoder's delay and padding are only known to the header that is not there
    assert 4 * RATE <= len(found) <= 4 * RATE + 6000
    first, second = (RISING, FALLING) if loud_first else (FALLING, RISING)

    def similarity(part: Wave, at: int) -> float:
        window = part[10_000:60_000]
        return max(
            float(np.corrcoef(window, found[at + shift : at + shift + len(window)])[0, 1])
            for shift in range(10_000, 14_000)
        )

    assert similarity(first, 0) > 0.99 and similarity(second, 2 * RATE + 1000) > 0.99
    assert audio_seconds(path) == pytest.approx(len(found) / RATE, abs=0.1)


def damaged(content: bytes, share: float = 0.5) -> bytes:
    at, n = int(len(content) * share), len(content) // 10
    return content[:at] + b"\x55" * n + content[at + n :]


PARTIAL = {
    "half a WAV": (WAV[: len(WAV) // 2], "1.0 s of 2.0 s decoded"),
    "half an AIFF": (encoded(RISING, "AIFF")[: len(WAV) // 2], "1.0 s of 2.0 s decoded"),
    "half a CAF": (encoded(RISING, "CAF")[: len(WAV) // 2 + 4096], "1.0 s of 2.0 s decoded"),
    "half a FLAC": (FLAC[: len(FLAC) // 2], "s of 2.0 s decoded"),
    "half an MP3": (MP3[: len(MP3) // 2], "s of 2.0 s decoded"),
    "an MP3 cut in a frame": (without_xing(MP3)[:-50], "of unknown length decoded: its last frame"),
    "half an Ogg": (
        NOISY_OGG[: len(NOISY_OGG) * 3 // 4],
        "of unknown length decoded: the end of its Ogg stream",
    ),
    "a damaged FLAC": (damaged(FLAC), "s of 2.0 s decoded"),
    "a damaged MP3": (damaged(MP3), "s of 2.0 s decoded"),
    "a damaged Ogg": (damaged(NOISY_OGG), "s of 2.0 s decoded"),
    "a WAV of which a half is announced": (with_sizes(WAV, RATE + 36, RATE), "0.5 s of 2.0 s"),
}


@pytest.mark.parametrize("kind", PARTIAL)
def test_decoded_in_part(tmp_path: Path, kind: str) -> None:
    content, message = PARTIAL[kind]
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(PartialAudio, match=message):
        read_audio(path, RATE)
    findings = Findings()
    found = read_audio_at(path, [RATE], findings)[RATE]
    assert message in findings.partial and 0 < len(found) <= len(RISING) + 1200
    if "of 2.0 s" in message:
        assert 0.3 * RATE < len(found) < 1.98 * RATE
        assert findings.partial.startswith(f"{len(found) / RATE:.1f} s")
    with pytest.raises(PartialAudio):
        list(stream_audio_at(path, [RATE]))


def test_healthy_files_are_what_soundfile_reads(tmp_path: Path) -> None:
    for content in (WAV, FLAC, OGG, MP3, encoded(RISING, "WAV", "FLOAT")):
        path = tmp_path / "a.mp3"
        path.write_bytes(content)
        expected = soundfile.read(io.BytesIO(content), dtype="float32")[0]
        np.testing.assert_array_equal(read_audio(path, RATE), expected)
        assert audio_seconds(path) == 2.0


def test_every_format_that_libsndfile_writes() -> None:
    samples = np.stack([RISING[:1601], FALLING[:1601]], axis=1)
    n_formats = 0
    # SD2 writes a second file, "._" and the name, which breaks what is read in memory after it
    for kind in set(soundfile.available_formats()) - {"RAW", "SD2"}:
        for subtype in soundfile.available_subtypes(kind):
            for content in (samples, samples[:, :1]):
                try:
                    data = encoded(content, kind, subtype, 8000)
                    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
                except (soundfile.SoundFileError, ValueError):
                    continue  # not every pair exists, nor reads back
                with opened(io.BytesIO(data)) as sound:
                    (found,) = sound.blocks()
                    np.testing.assert_array_equal(found, expected, err_msg=f"{kind} {subtype}")
                    assert sound.shortfall == "" and sound.seconds == len(expected) / sound.rate
                n_formats += 1
    assert n_formats > 100


@pytest.mark.parametrize(
    ("at", "value", "reason"),
    [
        (24, struct.pack("<I", 0), "cannot be decoded"),
        (24, struct.pack("<I", 1), "its header says 1 Hz; expected 100 to"),
        (22, struct.pack("<H", 0), "Channel count is zero"),
        (22, struct.pack("<H", 1000), "its header says 1000 channels; expected 1 to 256"),
        (0, b"<html>", "Format not recognised"),
    ],
)
def test_headers_of_no_sound(tmp_path: Path, at: int, value: bytes, reason: str) -> None:
    content = bytearray(WAV)
    content[at : at + len(value)] = value
    if at == 22 and value == struct.pack("<H", 1000):
        content[32:34] = struct.pack("<H", 2000)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=reason) as caught:
        read_audio(path, RATE)
    assert str(path) in str(caught.value)
    assert math.isnan(audio_seconds(path))


def test_names_are_no_matter(tmp_path: Path) -> None:
    for name in (b"b\xe9.wav", b"sound.raw", b"mp3 named.wav", b"no suffix"):
        path = Path(str(tmp_path)) / name.decode(errors="surrogateescape")
        path.write_bytes(MP3 if b"mp3" in name else WAV)
        assert near(read_audio(path, RATE), RISING)


def test_levels_beyond_full_scale(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for factor in (4.0, 32767.0):
        path.write_bytes(encoded(RISING * factor, "WAV", "FLOAT"))
        peak = np.abs(RISING).max() * factor
        findings = Findings()
        found = read_audio_at(path, [RATE], findings)[RATE]
        np.testing.assert_allclose(found, RISING * factor / peak, atol=1e-6)
        assert findings.scaled == f"peak {peak:.4g} exceeds full scale: scaled by its peak"
        streamed = np.concatenate([block[RATE] for block in stream_audio_at(path, [RATE])])
        np.testing.assert_array_equal(streamed, found)


def test_channels_that_cancel(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    for other, is_odd in ((-RISING, True), (-0.7 * RISING, True), (0 * RISING, False)):
        path.write_bytes(encoded(np.stack([RISING, other], axis=1), "WAV", "FLOAT"))
        findings = Findings()
        read_audio_at(path, [RATE], findings)
        assert ("its channels cancel" in findings.cancelled) == is_odd


def test_other_containers(tmp_path: Path) -> None:
    path = tmp_path / "a.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(500))
    try:
        import av
    except ImportError:
        with pytest.raises(AudioError, match=r"pip install 'bsdkit\[media\]', or ffmpeg -i a.m4a"):
            read_audio(path, RATE)
        return
    with pytest.raises(AudioError, match="cannot be decoded"):
        read_audio(path, RATE)
    for name, codec in (("a.mka", "pcm_s16le"), ("a.m4a", "aac")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=RATE, layout="mono")
            frame = av.AudioFrame.from_ndarray(RISING[None], format="fltp", layout="mono")
            frame.sample_rate = RATE
            resampler = av.AudioResampler(
                format=stream.format.name, layout="mono", rate=RATE, frame_size=1024
            )
            for part in [*resampler.resample(frame), *resampler.resample(None), None]:
                container.mux(stream.encode(part))
        found = read_audio(tmp_path / name, RATE)
        assert 0 <= len(found) - len(RISING) < 4096
        shifted = (found[at : at + len(RISING) - 2048] for at in (0, 1024, 2048))
        assert max(np.corrcoef(part, RISING[:-2048])[0, 1] for part in shifted) > 0.99
