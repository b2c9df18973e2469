"""EfficientAT with its real weights, against reference outputs, whole and padded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.efficientat import (
    Columns,
    Efficientat,
    EfficientatMn10,
    build_network,
    published_network,
    published_sizes,
    sizes_of,
)
from bsdkit.backbones.frontends import passt_filters, passt_log_mel
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from tests.conftest import shared

SIGNALS = ["sweep3s", "click0p4s", "am14s"]


def tiny_efficientat(folder: Path, name: str = "efficientat") -> Backbone:
    """The narrowest network of the family with random weights."""
    torch.manual_seed(11)
    network = build_network(published_sizes(0.1))
    for parameter in network.parameters():
        if parameter.ndim == 4:  # torch's own start would fade out over so many layers
            torch.nn.init.kaiming_normal_(parameter)
    backbone = get_backbone(name)
    assert isinstance(backbone, Efficientat)
    backbone.attach(network, "cpu")
    return backbone


@pytest.fixture(scope="module")
def backbone() -> Efficientat:
    backbone = Efficientat(BackboneOptions(weights=shared("weights", "mn04_as_mAP_432.pt")))
    backbone.load("cpu")
    return backbone


def test_mn10_is_mn10(tmp_path: Path) -> None:
    torch.save(build_network(published_sizes(0.4)).state_dict(), tmp_path / "mn04.pt")
    with pytest.raises(BackboneUnavailable, match="384 channels, expected 960; --backbone effi"):
        get_backbone("efficientat-mn10", BackboneOptions(weights=tmp_path / "mn04.pt")).load("cpu")


def waveform(signal: str) -> np.ndarray:
    with np.load(shared("golden", "waveforms_32000.npz")) as waves:
        return waves[f"{signal}_int16"].astype(np.float32) / 32768


def golden(name: str) -> np.ndarray:
    with np.load(shared("golden", "efficientat_mn04.npz")) as arrays:
        return arrays[name]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("high", [15_000, 16_000])
@pytest.mark.parametrize("signal", SIGNALS[:2])
def test_front_end_is_the_reference(signal: str, high: int) -> None:
    filters = torch.tensor(passt_filters(high), dtype=torch.float32)
    mel = passt_log_mel(torch.from_numpy(waveform(signal))[None], filters)[0].numpy()
    difference = np.abs(mel - golden(f"mel_fmax{high}_{signal}"))
    assert difference.max() < 1e-3 and difference.mean() < 2e-5


@pytest.mark.parametrize("signal", [*SIGNALS, "speech_full"])
def test_network_is_the_reference_given_its_front_end(backbone: Efficientat, signal: str) -> None:
    mel = torch.from_numpy(golden(f"mel_fmax15000_{signal}"))[None]
    with torch.inference_mode():
        for columns in (Columns(None), Columns(torch.tensor([mel.shape[2]]))):
            embedding, logits = backbone.network(mel, columns)
            expected = golden(f"embedding_fmax15000_{signal}")
            np.testing.assert_allclose(embedding[0], expected, atol=1e-5)
            expected = golden(f"logits_fmax15000_{signal}")
            np.testing.assert_allclose(logits[0], expected, atol=1e-4)


@pytest.mark.parametrize("signal", ["sweep3s", "click0p4s", "typing_crop"])
def test_end_to_end(backbone: Efficientat, signal: str) -> None:
    crops = {"typing_crop": "wave_typing_crop_int16"}
    audio = (
        golden(crops[signal]).astype(np.float32) / 32768
        if signal in crops
        else waveform(signal)
    )  # fmt: skip
    found = backbone.embed(audio[None], np.array([len(audio)]))
    for output, name in (("", "embedding"), ("logits", "logits")):
        expected = golden(f"{name}_fmax15000_{signal}")
        assert found[output].shape == (1, backbone.spec(output).dim)
        np.testing.assert_allclose(found[output][0], expected, atol=1e-3)
        assert cosine(found[output][0], expected) > 0.99999


def test_a_padded_clip_is_the_clip_alone_whatever_lies_beside_it(backbone: Efficientat) -> None:
    click = waveform("click0p4s")
    audio = np.zeros((3, 160_000), np.float32)
    audio[0, : len(click)] = click
    audio[1] = waveform("am14s")[:160_000]
    valid = np.array([len(click), 160_000, 1])
    together = backbone.embed(audio, valid)
    for output in ("", "logits"):
        name = "embedding" if output == "" else output
        assert cosine(together[output][0], golden(f"{name}_fmax15000_click0p4s")) > 0.99999
        assert np.isfinite(together[output]).all()
        for row in range(3):
            alone = backbone.embed(audio[row : row + 1], valid[row : row + 1])
            np.testing.assert_allclose(alone[output][0], together[output][row], atol=1e-4)
    shorter = backbone.embed(audio[:1, :40_000], valid[:1])
    np.testing.assert_allclose(shorter[""], together[""][:1], atol=1e-4)
    assert np.isfinite(backbone.embed(audio[:1, :300], np.array([300]))[""]).all()


def test_published_networks_have_the_keys_of_the_files() -> None:
    with shared("golden", "efficientat_mn04_state_dict.json").open() as file:
        tensors = json.load(file)["tensors"]
    with torch.device("meta"):
        state = published_network().state_dict()
        wide = published_network(1.0)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: facts["shape"] for name, facts in tensors.items()
    }
    for width in (0.1, 0.5, 1, 4):
        with torch.device("meta"):
            assert sizes_of(published_network(width).state_dict()) == published_sizes(width)
    n_parameters = sum(parameter.numel() for parameter in wide.parameters()) / 1e6
    assert n_parameters == pytest.approx(EfficientatMn10.card.parameters, abs=0.005)
    assert EfficientatMn10().width == 1


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    state = build_network(published_sizes(0.1)).state_dict()
    path = tmp_path / "some.pt"

    def refused(message: str) -> None:
        torch.save(state, path)
        with pytest.raises(BackboneUnavailable, match=message):
            Efficientat(BackboneOptions(weights=path)).load("cpu")

    state["features.9.block.1.1.bias"] = torch.zeros(3)
    refused(r"tensor features.9.block.1.1.bias is \(3,\), expected \(24,\); expected mn04_as_mAP")
    state["features.9.block.1.0.weight"] = torch.zeros(3)
    refused(r"tensor features.9.block.1.0.weight is \(3,\), expected 4 dimensions")
    state["features.9.block.1.0.weight"] = "a word"
    refused("tensor features.9.block.1.0.weight .*is missing")
    torch.save(build_network(published_sizes(0.1)).state_dict() | {"extra": torch.zeros(1)}, path)
    with pytest.raises(BackboneUnavailable, match="tensor extra has no place"):
        Efficientat(BackboneOptions(weights=path)).load("cpu")


def test_any_width_loads_by_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt"
    torch.save(build_network(published_sizes(0.2)).state_dict(), path)
    backbone = Efficientat(BackboneOptions(weights=path))
    backbone.load("cpu")
    assert backbone.spec("").dim == published_sizes(0.2).last
    assert backbone.spec("").weights == "mine.pt"
    tiny = tiny_efficientat(tmp_path)
    vectors = tiny.embed(
        np.random.default_rng(0).normal(0, 0.1, (2, 40_000)).astype("f"), np.full(2, 40_000)
    )
    assert np.abs(vectors[""][0] - vectors[""][1]).max() > 1e-4
