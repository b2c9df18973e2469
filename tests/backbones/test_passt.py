"""PaSST against reference outputs of its own package, and against the package where it runs."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.frontends import passt_filters, passt_log_mel
from bsdkit.backbones.passt import Passt, Sizes, build_network, fill, published_network, sizes_of
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from tests.conftest import shared

TINY = Sizes(dim=128, depth=2, heads=2, hidden=64, rows=12, columns=99, classes=20)


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Position tables and tokens begin as zeros; noise makes them matter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def tiny_passt(folder: Path) -> Backbone:
    """A network of two blocks with random weights."""
    torch.manual_seed(12)
    backbone = get_backbone("passt")
    assert isinstance(backbone, Passt)
    backbone.attach(randomise(build_network(TINY), 12), "cpu")
    return backbone


@pytest.fixture(scope="module")
def backbone() -> Passt:
    from safetensors.torch import load_file

    state = load_file(shared("golden", "passt_tiny_state_dict.safetensors"))
    network = build_network(replace(sizes_of(state), heads=4))
    fill(network, state)
    backbone = Passt()
    backbone.attach(network, "cpu")
    return backbone


def waveform(signal: str) -> np.ndarray:
    with np.load(shared("golden", "waveforms_32000.npz")) as waves:
        name = "am14s" if signal == "am10s" else signal
        return waves[f"{name}_int16"][:320_000].astype(np.float32) / 32768


def golden(name: str) -> np.ndarray:
    with np.load(shared("golden", "passt_tiny.npz")) as arrays:
        return arrays[name]


@pytest.mark.parametrize("signal", ["sweep3s", "click0p4s", "am10s"])
def test_front_end_network_and_both_together(backbone: Passt, signal: str) -> None:
    audio, mel = waveform(signal), golden(f"mel_{signal}")
    filters = torch.tensor(passt_filters(), dtype=torch.float32)
    difference = np.abs(passt_log_mel(torch.from_numpy(audio)[None], filters)[0].numpy() - mel)
    assert difference.max() < 1e-3 and difference.mean() < 2e-5
    expected = {
        "logits": golden(f"scene_all_{signal}")[:527],
        "": golden(f"scene_all_{signal}")[527:],
    }
    with torch.inference_mode():
        features, logits = backbone.network(torch.from_numpy(mel)[None])
    np.testing.assert_allclose(features[0], expected[""], atol=1e-4)
    np.testing.assert_allclose(logits[0], expected["logits"], atol=1e-4)
    found = backbone.embed(audio[None], np.array([len(audio)]))
    for output, vector in expected.items():
        assert found[output].shape == (1, backbone.spec(output).dim)
        np.testing.assert_allclose(found[output][0], vector, atol=1e-3)
        a, b = found[output][0], vector
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999


def test_rows_are_independent_and_the_shortest_are_finite(backbone: Passt) -> None:
    audio = np.zeros((3, 40_000), np.float32)
    audio[0] = waveform("sweep3s")[:40_000]
    audio[1, :12_800] = waveform("click0p4s")
    valid = np.array([40_000, 12_800, 1])
    together = backbone.embed(audio, valid)
    for output in ("", "logits"):
        assert np.isfinite(together[output]).all()
        for row in range(3):
            alone = backbone.embed(audio[row : row + 1], valid[row : row + 1])
            np.testing.assert_allclose(alone[output][0], together[output][row], atol=1e-4)
    assert np.isfinite(backbone.embed(audio[:, :10], np.array([10, 10, 1]))[""]).all()


def test_published_network_has_the_keys_of_the_file() -> None:
    with shared("golden", "passt_full_keys.json").open() as file:
        facts = json.load(file)["passt_s_swa_p16_128_ap476"]
    with torch.device("meta"):
        state = published_network().state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: tensor["shape"] for name, tensor in facts["tensors"].items()
    }
    assert sizes_of(state) == Sizes() and Sizes().stride == 10
    assert Passt.card.file.url == facts["url"]
    assert Passt.card.parameters == pytest.approx(facts["n_params"] / 1e6, abs=0.005)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"

    def refused(changes: dict[str, torch.Tensor], message: str, without: str = "") -> None:
        state = build_network(TINY).state_dict() | changes
        state.pop(without, None)
        torch.save(state, path)
        with pytest.raises(BackboneUnavailable, match=message):
            Passt(BackboneOptions(weights=path)).load("cpu")

    refused({"norm.bias": torch.zeros(7)}, r"tensor norm.bias is \(7,\), expected \(128,\)")
    refused(
        {}, "tensor head_dist.bias .*is missing.*expected passt-s-f128", without="head_dist.bias"
    )
    refused({}, "tensor cls_token is missing", without="cls_token")
    refused({"momentum": torch.zeros(1)}, "tensor momentum has no place")
    long = torch.zeros(1, 128, 1, 200)
    refused({"time_new_pos_embed": long}, "200 columns, a model of 10 s clips .* has 99")


def test_a_file_is_read_with_sizes_of_its_own(tmp_path: Path) -> None:
    sizes = Sizes(dim=64, depth=1, heads=1, hidden=32, rows=8, columns=62, classes=5)
    path = tmp_path / "mine.pt"
    torch.save(build_network(sizes).state_dict(), path)
    backbone = Passt(BackboneOptions(weights=path))
    backbone.load("cpu")
    assert backbone.network.sizes == sizes and sizes.stride == 16
    assert (backbone.spec("").dim, backbone.spec("logits").dim) == (64, 5)
    assert backbone.spec("").weights == "mine.pt"


def test_its_own_package_gives_the_same_from_the_same_weights() -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from hear21passt.models.passt import PaSST
            from hear21passt.models.preprocess import AugmentMelSTFT
            from hear21passt.wrapper import PasstBasicWrapper
    except Exception as error:  # torchaudio and torchvision of another build fail in many ways
        pytest.skip(f"hear21passt cannot be imported here: {type(error).__name__}: {error}")
    torch.manual_seed(13)
    mel = AugmentMelSTFT(
        n_mels=128, sr=32_000, win_length=800, hopsize=320, n_fft=1024, freqm=48, timem=192,
        htk=False, fmin=0.0, fmax=None, norm=1, fmin_aug_range=10, fmax_aug_range=2000,
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        net = PaSST(
            stride=(10, 10), num_classes=20, embed_dim=128, depth=2, num_heads=2, mlp_ratio=0.5,
            distilled=True, img_size=(128, 998), patch_size=16, in_chans=1,
        )  # fmt: skip
        theirs = PasstBasicWrapper(mel=mel, net=randomise(net, 13), mode="all").eval()
        rng = np.random.default_rng(0)
        audio = 0.1 * rng.standard_normal((2, 60_000)).astype(np.float32)
        with torch.inference_mode():
            expected = theirs(torch.from_numpy(audio)).numpy()
    backbone = Passt()
    backbone.attach(backbone.build(net.state_dict()), "cpu")
    found = backbone.embed(audio, np.full(2, 60_000))
    np.testing.assert_allclose(found["logits"], expected[:, :20], atol=1e-4)
    np.testing.assert_allclose(found[""], expected[:, 20:], atol=1e-4)
