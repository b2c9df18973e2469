"""What only a CUDA device shows: the same numbers as on the CPU, half precision, pinned batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.dataset import inspect_audio, read_dataset
from bsdkit.extract import ExtractionSettings, extract
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from bsdkit.text import get_template
from tests.backbones.test_beats import tiny_beats
from tests.backbones.test_clap import tiny_clap, tiny_clap_fusion
from tests.backbones.test_cp_clap import tiny_cp_clap
from tests.backbones.test_efficientat import tiny_efficientat
from tests.backbones.test_m2d import tiny_m2d
from tests.backbones.test_passt import tiny_passt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
MAKERS = [
    tiny_beats, tiny_clap, tiny_clap_fusion, tiny_cp_clap, tiny_efficientat, tiny_m2d, tiny_passt,
]  # fmt: skip


def sounds(backbone: Backbone, output: str) -> tuple[np.ndarray, np.ndarray]:
    """Noise, a shorter noise and silence, as windows with their real lengths."""
    n = min(backbone.spec(output).window_samples, 10 * (backbone.spec(output).sample_rate or 1))
    audio = 0.1 * np.random.default_rng(0).standard_normal((3, n)).astype(np.float32)
    audio[1, n // 3 :] = 0
    audio[2] = 0
    return audio, np.array([n, n // 3, n])


@pytest.mark.parametrize("make", MAKERS)
def test_the_device_gives_the_cpus_numbers(
    make: Callable[[Path], Backbone], tmp_path: Path
) -> None:
    backbone = make(tmp_path)
    assert isinstance(backbone, CheckpointBackbone)
    outputs = [o for o, kind in backbone.outputs.items() if kind == "audio"]
    audio, valid = sounds(backbone, outputs[0])
    here = backbone.embed(audio, valid)
    backbone.attach(backbone.network, "cuda")
    there = backbone.embed(audio, valid)
    backbone.options = BackboneOptions(precision="bfloat16")
    half = backbone.embed(audio, valid)
    for output in outputs:
        scale = max(1.0, float(np.abs(here[output]).max()))
        np.testing.assert_allclose(there[output], here[output], atol=5e-3 * scale)
        assert np.isfinite(half[output]).all() and half[output].dtype == np.float32


def test_extraction_on_the_device(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(1)
    for i in range(9):
        samples = 0.1 * rng.standard_normal(int(rng.uniform(0.1, 12) * 32_000))
        soundfile.write(tmp_path / f"data/{i}.wav", samples, 32_000)
    clips = inspect_audio(read_dataset(tmp_path / "data")[0])
    rows = {}
    for device in ("cpu", "cuda"):
        backbone = tiny_efficientat(tmp_path)
        assert isinstance(backbone, CheckpointBackbone)
        backbone.attach(backbone.network, device)
        (report,) = extract(
            [(backbone, [""])], clips, Store.create(tmp_path / device, clips),
            get_template("title"), ExtractionSettings(device=device, batch_seconds=30),
        )  # fmt: skip
        rows[device] = read_feature(report.path).embedding.astype(np.float32)
    np.testing.assert_allclose(rows["cuda"], rows["cpu"], atol=1e-2, rtol=1e-2)
