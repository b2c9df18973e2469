"""Embedding in memory gives the rows of a store, for files, for samples and for texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsdkit.backbones.base import BackboneOptions
from bsdkit.backbones.registry import get_backbone
from bsdkit.dataset import inspect_audio, read_dataset
from bsdkit.errors import AudioError, BackboneError
from bsdkit.extract import embed, extract
from bsdkit.store import Store
from bsdkit.text import build_texts
from tests.extract.fake import FakeBackbone
from tests.extract.test_extract import TEMPLATE, write_dataset


def sounds(folder: Path) -> Path:
    """A dataset with a file that is streamed, a short one, a stereo one and other rates."""
    data = write_dataset(folder, 4)
    rng = np.random.default_rng(1)
    for i, (rate, shape) in enumerate(
        [(8000, (8000 * 13,)), (44_100, (900,)), (48_000, (70_000, 2))]
    ):
        soundfile.write(data / f"audio/{i}.wav", 0.1 * rng.standard_normal(shape), rate, "FLOAT")
    return data


def test_sounds_are_embedded_as_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the longest file is streamed, in three blocks
    monkeypatch.setattr("bsdkit.extract.decode.LONG_SECONDS", 8.0)
    monkeypatch.setattr("bsdkit.audio.BLOCK_SECONDS", 5)
    backbone = get_backbone("aisfx")
    if backbone.missing():
        pytest.skip(backbone.missing())
    clips = inspect_audio(read_dataset(sounds(tmp_path / "data"))[0])
    store = Store.create(tmp_path / "store", clips)
    extract([(backbone, [""])], clips, store, TEMPLATE)
    stored = store.features(["aisfx"]).arrays["aisfx"]
    files = [path for path in clips.audio if path is not None]
    rows = embed(backbone, files)
    assert rows.dtype == np.float32 and np.array_equal(rows, stored)
    for file, row in zip(files, rows, strict=True):
        samples, rate = soundfile.read(file, dtype="float32")
        found = embed(backbone, [samples], sample_rate=rate)
        # a batch of its own sums in another order
        np.testing.assert_allclose(found[0], row, rtol=2e-3, atol=2e-3)
        assert np.array_equal(found, embed(backbone, [str(file)]))


def test_texts_are_embedded_as_in_a_store(tmp_path: Path) -> None:
    options = BackboneOptions(text_template=TEMPLATE.describe())
    clips = inspect_audio(read_dataset(write_dataset(tmp_path / "data"))[0])
    store = Store.create(tmp_path / "store", clips)
    extract([(FakeBackbone(options), ["text"])], clips, store, TEMPLATE)
    rows = embed(FakeBackbone(options), build_texts(clips, TEMPLATE), output="text")
    assert np.array_equal(rows, store.features(["fake.text"]).arrays["fake.text"])


def test_what_cannot_be_embedded_is_said(tmp_path: Path) -> None:
    backbone = FakeBackbone()
    assert embed(backbone, [], output="audio").shape == (0, 6)
    with pytest.raises(AudioError, match="gone.wav has no embedding: missing file"):
        embed(backbone, [tmp_path / "gone.wav"], output="audio")
    with pytest.raises(AudioError, match="array 1 has no embedding: empty file"):
        embed(backbone, [np.ones(9), np.zeros(0)], output="audio", sample_rate=8000)
    with pytest.raises(BackboneError, match=r"sample_rate=None; expected samples"):
        embed(backbone, [np.ones(9)], output="audio")
    with pytest.raises(BackboneError, match="give a list of str"):
        embed(backbone, [tmp_path], output="text")
    with pytest.raises(BackboneError, match="together with their metadata"):
        embed(backbone, [tmp_path], output="prompt")
