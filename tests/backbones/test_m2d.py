"""M2D against a transcription in float64 numpy that shares no code with the product."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.m2d import PREFIX, M2d, Sizes, build_network, published_network
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from tests.conftest import shared

TINY = Sizes(dim=128, n_layers=2, hidden_dim=96)


def tiny(name: str, sizes: Sizes = TINY, options: BackboneOptions | None = None) -> M2d:
    torch.manual_seed(12)
    network: Any = build_network(sizes)
    for key, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in key), std=0.1)
    network.norm_stats.copy_(torch.tensor([-7.1, 4.2]))
    backbone = get_backbone(name, options)
    assert isinstance(backbone, M2d)
    backbone.attach(network, "cpu")
    return backbone


def tiny_m2d(folder: Path) -> Backbone:
    """M2D for 16 kHz with small random weights."""
    return tiny("m2d")


def tiny_m2d_32k(folder: Path) -> Backbone:
    """M2D for 32 kHz with small random weights."""
    return tiny("m2d-32k")


def hertz_of(mel: float) -> float:
    """Slaney's scale: 200 / 3 Hz a mel up to 1 kHz, then 27 mels for a factor of 6.4."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def mel_of(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000, 6.4)


def plain_log_mel(samples: np.ndarray, rate: int) -> np.ndarray:
    """Log-mel [80, frames], frame by frame and band by band."""
    n, hop = rate // 40, rate // 100
    padded = np.pad(samples.astype(np.float64), n // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    frames = [window * padded[t * hop : t * hop + n] for t in range(1 + len(samples) // hop)]
    power = np.array([np.abs(np.fft.rfft(frame)) ** 2 for frame in frames])
    top, bottom = mel_of(rate / 2), mel_of(50.0)
    edges = [hertz_of(bottom + i * (top - bottom) / 81) for i in range(82)]
    frequencies = np.arange(n // 2 + 1) * rate / n
    bands = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        up, down = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
        triangle = np.clip(np.minimum(up, down), 0, None) * 2 / (high - low)
        bands.append(np.log(power @ triangle + 1.1920929e-07))
    return np.array(bands)


def plain_encode(state: dict[str, np.ndarray], mel: np.ndarray, n_columns: int) -> np.ndarray:
    """Features [columns, rows, dim] of standardised log-mel [80, frames], patch by patch."""
    kernel = state["patch_embed.proj.weight"][:, 0]
    dim, bands, width = kernel.shape
    n_rows = 80 // bands
    mel = np.pad(mel, ((0, 0), (0, -mel.shape[1] % width)))

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    positions = state["pos_embed"][0]
    tokens = [state["cls_token"][0, 0] + positions[0]]
    columns = min(mel.shape[1] // width, n_columns)
    for row in range(n_rows):
        for column in range(columns):
            patch = mel[row * bands : (row + 1) * bands, column * width : (column + 1) * width]
            token = (kernel * patch).sum((1, 2)) + state["patch_embed.proj.bias"]
            tokens.append(token + positions[1 + row * n_columns + column])
    x = np.array(tokens)
    for i in range(sum(name.endswith("norm1.weight") for name in state)):
        query, key, value = np.split(linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"),
                                     3, axis=1)  # fmt: skip
        heads = []
        for head in range(0, dim, 64):
            part = slice(head, head + 64)
            logits = query[:, part] @ key[:, part].T / 8
            weights = np.exp(logits - logits.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ value[:, part])
        x = x + linear(np.concatenate(heads, 1), f"blocks.{i}.attn.proj")
        hidden = linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + linear(gelu, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")[1:]
    return np.array([[x[row * columns + c] for row in range(n_rows)] for c in range(columns)])


def plain_embed(backbone: M2d, audio: np.ndarray, valid: int, n_columns: int) -> np.ndarray:
    """The stacked embedding of one window [samples]."""
    tensors = backbone.network.state_dict().items()
    state = {name: tensor.double().numpy() for name, tensor in tensors}
    mean, deviation = state["norm_stats"]
    mel = (plain_log_mel(audio, backbone.sample_rate) - mean) / deviation
    width = state["patch_embed.proj.weight"].shape[3]
    table = n_columns * width
    parts = [
        plain_encode(state, mel[:, start : start + table], n_columns)
        for start in range(0, mel.shape[1], table)
        if start == 0 or mel.shape[1] - start >= width
    ]
    columns = np.concatenate(parts)
    frames = 1 + valid // (backbone.sample_rate // 100)
    return columns[: math.ceil(frames / width)].mean(0).ravel()


def sweep(rate: int, seconds: float) -> np.ndarray:
    t = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(1).standard_normal(len(t))
    return (0.5 * np.sin(2 * np.pi * (100 + 150 * t) * t) + 0.01 * noise).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_front_end_is_the_papers(rate: int) -> None:
    backbone = tiny({16_000: "m2d", 32_000: "m2d-32k"}[rate])
    audio = sweep(rate, 1.25)
    audio[rate // 2 : rate] = 0
    with torch.inference_mode():
        mel = backbone.front_end(audio[None])[0].numpy()
    expected = (plain_log_mel(audio, rate) + 7.1) / 4.2
    assert mel.shape == expected.shape == (80, 126)
    difference = np.abs(mel - expected)
    assert difference.max() < 1e-3 and difference.mean() < 2e-5


@pytest.mark.parametrize(
    ("sizes", "seconds", "real"),
    [
        (TINY, 10.0, 10.0),  # 1001 frames, of which the table covers 992
        (TINY, 2.5, 0.9),
        (TINY, 1.25, 1 / 16_000),
        # 608 frames, then 393, completed to 400
        (Sizes(dim=64, n_layers=1, hidden_dim=32, n_columns=38), 10.0, 8.0),
        (Sizes(dim=64, n_layers=1, hidden_dim=32, n_columns=50, patch_frames=4), 5.0, 5.0),
    ],
)
def test_embeddings_are_the_papers(sizes: Sizes, seconds: float, real: float) -> None:
    backbone = tiny("m2d", sizes)
    audio = sweep(16_000, seconds)
    valid = round(16_000 * real)
    audio[valid:] = 0
    found = backbone.embed(audio[None], np.array([valid]))
    expected = plain_embed(backbone, audio, valid, sizes.n_columns)
    np.testing.assert_allclose(found[""][0], expected, atol=1e-4)
    flat = expected.reshape(5, -1).mean(0)
    np.testing.assert_allclose(found["flat"][0], flat, atol=1e-4)
    assert backbone.spec("").dim == 5 * sizes.dim and backbone.spec("flat").dim == sizes.dim


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_rows_stand_alone_and_are_finite(precision: Any) -> None:
    exact = tiny("m2d")
    backbone = tiny("m2d", options=BackboneOptions(precision=precision))
    audio = np.zeros((4, 20_000), np.float32)
    audio[1], audio[2, :300] = sweep(16_000, 1.25), 0.9
    valid = np.array([1, 20_000, 300, 20_000])
    together = backbone.embed(audio, valid)
    for output in ("", "flat"):
        assert together[output].dtype == np.float32 and np.isfinite(together[output]).all()
        np.testing.assert_allclose(together[output], exact.embed(audio, valid)[output], atol=0.1)
    if precision == "float32":
        for row in range(4):
            alone = backbone.embed(audio[[row]], valid[[row]])
            np.testing.assert_allclose(alone[""][0], together[""][row], atol=1e-5)
    assert np.isfinite(backbone.embed(audio[:, :1], np.ones(4, np.int64))[""]).all()


def test_published_size_has_the_published_tensors() -> None:
    keys = json.loads(shared("golden", "m2d", "m2d_base_full_keys.json").read_text())
    with torch.device("meta"):
        state = published_network().state_dict()
    found = {name: list(tensor.shape) for name, tensor in state.items()}
    assert found == {name: fact["shape"] for name, fact in keys["tensors"].items()}
    n_numbers = sum(tensor.numel() for tensor in state.values())
    assert n_numbers == keys["n_params"] and M2d.card.parameters == round(n_numbers / 1e6, 1)


def load(state: object, folder: Path) -> Backbone:
    torch.save(state, folder / "weights.pth")
    backbone = get_backbone("m2d", BackboneOptions(weights=folder / "weights.pth"))
    backbone.load("cpu")
    return backbone


def test_files_of_training_runs_are_read_and_others_refused(tmp_path: Path) -> None:
    backbone = tiny("m2d")
    bare = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    others = {"head.weight": torch.ones(527, 3840), "audio_proj.0.weight": torch.ones(4, 4)}
    run = {PREFIX + name: tensor for name, tensor in bare.items()}
    # a text encoder beside the audio encoder may have a norm and blocks of its own
    run |= {"norm.weight": torch.ones(7), "blocks.9.norm1.weight": torch.ones(7)}
    audio, valid = sweep(16_000, 1.25)[None], np.array([20_000])
    expected = backbone.embed(audio, valid)[""]
    for state in (bare, {**bare, **others}, {"model": {**others, **run}, "epoch": 3}):
        assert (load(state, tmp_path).embed(audio, valid)[""] == expected).all()

    def refused(state: dict[str, torch.Tensor], match: str) -> None:
        with pytest.raises(BackboneUnavailable, match=match):
            load(state, tmp_path)

    def without(name: str) -> dict[str, torch.Tensor]:
        return {key: tensor for key, tensor in bare.items() if key != name}

    refused(without("norm_stats"), "tensor norm_stats is missing, .* give an M2D file that holds")
    refused({**bare, "norm_stats": torch.zeros(2)}, "norm_stats is .0.0, 0.0., no mean")
    fc1 = "blocks.1.mlp.fc1.weight"
    refused(without(fc1), rf"tensor {fc1} \(96, 128\) is missing")
    refused({**bare, fc1: torch.ones(95, 128)}, rf"tensor {fc1} is \(95, 128\), expected \(96,")
    extra = "blocks.0.attn.q_norm.weight"
    refused({**bare, extra: torch.ones(64)}, f"tensor {extra} has no place")
    refused({**bare, "pos_embed": torch.ones(1, 313, 128)}, "pos_embed has 313 positions")
    refused(others, "tensor patch_embed.proj.weight is missing")


@pytest.mark.parametrize("name", ["m2d", "m2d-32k"])
def test_weights_are_never_fetched_for_the_user(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BSDKIT_WEIGHTS", str(tmp_path))
    reason = get_backbone(name).missing()
    assert "github.com/nttcslab/m2d/releases" in reason and str(tmp_path) in reason
    assert "NTT's licence: non-commercial evaluation only" in reason
    assert "non-commercial" in get_backbone(name).card.licence
