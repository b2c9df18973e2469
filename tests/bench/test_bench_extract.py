"""The sides that `make bench-extract` compares agree, and its table works. Nothing is timed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from extract import MATRIX, clip_seconds, main, make_clips

needs_aisfx = pytest.mark.skipif(
    importlib.util.find_spec("aisfx") is None, reason="aisfx is not installed"
)


def test_clips_are_like_a_sound_library_and_always_the_same(tmp_path: Path) -> None:
    for n in (16, 2000):
        seconds = np.array([clip_seconds(i) for i in range(n)])
        assert seconds.min() >= 0.3 and seconds.max() <= 30
        assert np.median(seconds) == pytest.approx(4, rel=0.2)
    first, again = (make_clips(tmp_path / name, 3, None) for name in "ab")
    assert list(first.sha256) == list(again.sha256)
    assert first.duration == pytest.approx([clip_seconds(i) for i in range(3)], abs=1e-3)
    formats = [soundfile.info(path) for path in first.audio]
    assert {info.subtype for info in formats} == {"PCM_16"}
    assert {info.samplerate for info in formats} == {44_100}
    assert {info.channels for info in formats} == {1, 2}


@needs_aisfx
def test_table_of_a_tiny_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MATRIX, "cpu", 256)
    file = tmp_path / "bench.json"
    tiny = ["--clips", "3", "--seconds", "1.5", "--rounds", "1", "--json", str(file)]
    main(["--backbones", "aisfx,qwen2-audio", *tiny])
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for heading in ("model alone", "end to end", "time ratio", "plain loop", "matrix peak"):
        assert heading in out
    assert "qwen2-audio left out: its weights are not given" in out

    figures = json.loads(file.read_text(encoding="utf-8"))
    (line,) = figures["lines"]
    assert (line["backbone"], line["weights"], line["n_clips"]) == ("aisfx", "real", 3)
    assert line["audio_seconds"] == pytest.approx(4.5)
    assert line["n_windows"] == 3
    assert line["gigaflops"] == pytest.approx(3 * 3.9, rel=0.05)
    assert line["difference"] < 1e-3 and line["padding_difference"] < 1e-3
    for name in ("share", "peak", "rate"):
        assert 0 < line[name] < np.inf
    for name in ("overhead", "speedup"):
        row = line[name]
        assert min(row["ratio"], row["seconds"], row["other_seconds"]) > 0
    assert 0 < line["stages"]["model"] <= 1


@needs_aisfx
def test_extraction_that_gives_other_numbers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import extract

    def nudged(*arguments: object, **named: object) -> object:
        return honest(*arguments, **named) * 1.01  # type: ignore[arg-type]

    honest = extract.run_loop
    monkeypatch.setattr(extract, "run_loop", nudged)
    with pytest.raises(SystemExit, match="one file at a time: vectors differ by 0.0"):
        main(["--backbones", "aisfx", "--clips", "2", "--seconds", "1", "--rounds", "1"])


def test_unknown_backbone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--backbones", "aisfxx"])
    assert "aisfx" in capsys.readouterr().err
