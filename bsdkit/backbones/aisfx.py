"""aiSFX: a convolutional encoder trained on sound-effects libraries, 512 numbers.

Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound Effects
Libraries", ISMIR 2022. The weights ship in the PyPI wheel of ``aisfx``, whose
pins are stale, so it is installed without its requirements and only the file is read.

The front end is the paper's, in its Essentia form: power spectra of 2048 samples every
1024 at 44.1 kHz under a symmetric Hann window, the first frame centred on sample 0; 96 HTK
mel bands, each filter divided by its sum; log10(1 + 10000 p); scaled by 1 / 9.4578. (The
wheel's own librosa path divides each clip by its peak and hands the network mel where it
expects time; its numbers differ and are not reproduced.)
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bsdkit.backbones.base import Backbone, BackboneSpec, FloatArray, IntArray, Kind
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.registry import register
from bsdkit.backbones.weights import check_sha256, read_state
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Aisfx"]

SAMPLE_RATE = 44_100
FFT = 2048
HOP = 1024
N_MELS = 96
WINDOW_FRAMES = 100
SCALE = 9.457798957824707
INSTALL = "pip install --no-deps aisfx==0.1.2"


def build_network() -> nn.Module:
    """The embedding network: log-mel [batch, frames, 96] to [batch, 512].

    Four blocks of two 3x3 convolutions with batch normalisation and ReLU, max-pooled by 2
    after the first three; then the mean over mel and the maximum over time (paper, section
    3.2). Attribute names are those of the checkpoint's keys.
    """
    from torch import nn
    from torch.nn import functional

    class ConvBlock(nn.Module):
        def __init__(self, n_in: int, n_out: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
            self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(n_out)
            self.bn2 = nn.BatchNorm2d(n_out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = functional.relu(self.bn1(self.conv1(x)))
            return functional.relu(self.bn2(self.conv2(x)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv_block1 = ConvBlock(1, 64)
            self.conv_block2 = ConvBlock(64, 128)
            self.conv_block3 = ConvBlock(128, 256)
            self.conv_block4 = ConvBlock(256, 512)

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            x = mel.unsqueeze(1)  # [batch, 1, frames, mels]
            for block in (self.conv_block1, self.conv_block2, self.conv_block3):
                x = functional.max_pool2d(block(x), 2)
            x = self.conv_block4(x)  # [batch, 512, frames / 8, mels / 8]
            embedding: torch.Tensor = x.mean(dim=3).amax(dim=2)
            return embedding

    return Network()


def log_mel(audio: torch.Tensor, filters: torch.Tensor, n_frames: int) -> torch.Tensor:
    """log10(1 + 10000 p) of mel power [batch, n_frames, 96], before the scaling.

    Args:
        audio: waveforms [batch, samples] at 44.1 kHz.
        filters: mel filters [96, 1025].
        n_frames: frames to return; frame t is centred on sample 1024 t.
    """
    import torch

    window = torch.hann_window(FFT, periodic=False, dtype=audio.dtype, device=audio.device)
    spectrum = torch.stft(
        audio, FFT, HOP, window=window, center=True, pad_mode="constant", return_complex=True
    )
    power = spectrum[..., :n_frames].abs().square()  # [batch, 1025, frames]
    mel: torch.Tensor = torch.log10(1 + 10_000 * (filters @ power))
    return mel.transpose(1, 2)


@register("aisfx")
class Aisfx(Backbone):
    """aiSFX with its published weights."""

    outputs: ClassVar[dict[str, Kind]] = {"": "audio"}
    card = ModelCard(
        summary="sound-effects encoder, runs on a CPU",
        licence="CC BY 4.0",
        sha256="499ea75909c932a2f94c35fa722fa4fabc5bcb7e84917209cc5f7402627b7eb5",
        parameters=4.69,
        gigaflops=30.9,
        training_data="sound-effects libraries",  # section 3 of the paper
        released="2022",
        url="https://arxiv.org/abs/2208.09096",
    )

    def _weights(self) -> Path | None:
        if self.options.weights is not None:
            return self.options.weights
        found = importlib.util.find_spec("aisfx")
        folders = list(found.submodule_search_locations or []) if found else []
        return Path(folders[0]) / "models" / "checkpoint.pth" if folders else None

    def missing(self) -> str:
        """See `Backbone.missing`."""
        path = self._weights()
        if path is None:
            return f"its weights come with a wheel: {INSTALL}"
        return "" if path.is_file() else f"no weights at {path}: {INSTALL}"

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        return BackboneSpec(
            backbone="aisfx",
            output=self.output_named(output),
            kind="audio",
            dim=512,
            weights="aisfx 0.1.2 checkpoint.pth",
            weights_sha256=self.card.sha256,
            version=1,
            layer="embedding network",
            pooling="mel mean, time max; windows by mean weighted by samples",
            dtype=self.options.dtype,
            sample_rate=SAMPLE_RATE,
            gain="none",
            window_seconds=WINDOW_FRAMES * HOP / SAMPLE_RATE,
            hop_seconds=WINDOW_FRAMES // 2 * HOP / SAMPLE_RATE,
            padding="zeros",
        )

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        self.require()
        import torch

        path = self._weights()
        assert path is not None
        check_sha256(path, self.card.sha256, "the aiSFX checkpoint")
        state = read_state(path, "the aiSFX checkpoint")
        prefix = "embedding_net."
        network = build_network()
        kept = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        try:
            network.load_state_dict(kept)
        except RuntimeError as error:
            raise BackboneUnavailable(f"{path} does not fit the aiSFX network: {error}") from None
        self.device = device
        # On a CPU the channels-last convolutions take half the time, with the same result.
        self._network = network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        filters = mel_triangles(
            N_MELS, FFT, SAMPLE_RATE, 0.0, SAMPLE_RATE / 2, is_linear_in_mel=True, norm="sum"
        )
        self._filters = torch.tensor(filters, dtype=torch.float32, device=device)

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`. Padding is silence, which the network sees as such."""
        import torch

        with torch.inference_mode():
            waveform = torch.from_numpy(audio).to(self.device)
            mel = log_mel(waveform, self._filters, WINDOW_FRAMES) / SCALE
            return {"": self._network(mel).float().cpu().numpy()}
