"""Below float32: what a processor computes wrongly is refused, what it computes well is stated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsdkit.backbones.base import PRECISION_TOLERANCE, Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.dataset import inspect_audio, read_dataset
from bsdkit.errors import ImprecisePrecision
from bsdkit.extract import ExtractionSettings, extract
from bsdkit.onednn import keep_grouped_exact
from bsdkit.store import Store
from bsdkit.store.feature import read_info
from bsdkit.text import get_template
from tests.backbones.test_beats import tiny_beats
from tests.backbones.test_clap import tiny_clap
from tests.backbones.test_cp_clap import tiny_cp_clap
from tests.backbones.test_efficientat import tiny_efficientat
from tests.backbones.test_m2d import tiny_m2d
from tests.backbones.test_passt import tiny_passt

HALF = BackboneOptions(precision="bfloat16")
MAKERS = [tiny_beats, tiny_clap, tiny_cp_clap, tiny_efficientat, tiny_m2d, tiny_passt]


def half(make: Callable[[Path], Backbone], folder: Path) -> CheckpointBackbone:
    """A backbone in bfloat16, whose loading is to take the tiny network that is there."""
    backbone = make(folder)
    assert isinstance(backbone, CheckpointBackbone)
    network = backbone.network
    backbone.options = replace(backbone.options, precision="bfloat16")
    backbone.load = lambda device: backbone.attach(network, device)  # type: ignore[method-assign]
    return backbone


@pytest.mark.parametrize("make", MAKERS)
def test_the_registry_is_within_the_tolerance(
    make: Callable[[Path], Backbone], tmp_path: Path
) -> None:
    backbone = half(make, tmp_path)
    backbone.prepare("cpu")
    assert backbone.precision_difference is not None
    assert 0 < backbone.precision_difference < PRECISION_TOLERANCE / 2
    assert backbone.options.precision == "bfloat16"


def wrong_below_float32(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> object:
    """What a grouped convolution in bfloat16 does on some processors: other numbers."""
    return output.flip(-1) if torch.is_autocast_enabled("cpu") else output


def test_wrong_numbers_below_float32_are_refused(tmp_path: Path) -> None:
    backbone = half(tiny_beats, tmp_path)
    for module in backbone.network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(wrong_below_float32)
    with pytest.raises(ImprecisePrecision, match=r"by \d.*--precision float32"):
        backbone.prepare("cpu")
    assert not backbone.device  # else the next extraction would use it as it is


def test_grouped_convolutions_stay_in_float32() -> None:
    torch.manual_seed(0)
    conv = torch.nn.utils.parametrizations.weight_norm(
        torch.nn.Conv1d(64, 64, 128, padding=64, groups=16), dim=2
    )
    network = torch.nn.Sequential(conv, torch.nn.Conv1d(64, 8, 1))
    x = torch.randn(2, 64, 50)
    with torch.inference_mode():
        expected = conv(x)
        keep_grouped_exact(network)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert network(x).dtype is torch.bfloat16
            found = conv(x.bfloat16())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


def test_the_difference_stands_beside_the_spec(sounds: Path, tmp_path: Path) -> None:
    backbone = half(tiny_efficientat, tmp_path)
    backbone.prepare("cpu")
    clips = inspect_audio(read_dataset(sounds)[0])
    (report,) = extract(
        [(backbone, [""])], clips, Store.create(tmp_path / "s", clips), get_template("title"),
        ExtractionSettings(),
    )  # fmt: skip
    facts = read_info(report.path).provenance
    assert facts["precision_difference"] == backbone.precision_difference
    assert "precision_difference" not in read_info(report.path).spec
