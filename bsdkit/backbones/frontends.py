"""Mel filter banks and spectrograms that several backbones share, each as its model was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

__all__ = [
    "PASST_RATE",
    "at_least",
    "htk_mel",
    "mel_triangles",
    "passt_filters",
    "passt_frames",
    "passt_log_mel",
    "slaney_mel",
]

PASST_RATE = 32_000
"""Hz of the waveforms that `passt_log_mel` takes."""

_PASST_FFT, _PASST_WINDOW, _PASST_HOP, _PASST_MELS = 1024, 800, 320, 128

FloatArray = npt.NDArray[np.floating]


def htk_mel(hertz: FloatArray) -> FloatArray:
    """Mels of frequencies in Hz by the formula of HTK, 1127 ln(1 + f / 700)."""
    return np.asarray(1127.01048 * np.log1p(np.asarray(hertz) / 700.0))


def _htk_hertz(mel: FloatArray) -> FloatArray:
    return np.asarray(700.0 * np.expm1(np.asarray(mel) / 1127.01048))


def slaney_mel(hertz: FloatArray) -> FloatArray:
    """Mels of frequencies in Hz by Slaney's Auditory Toolbox: linear below 1 kHz, log above."""
    hertz = np.asarray(hertz, np.float64)
    step = np.log(6.4) / 27.0
    return np.where(hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) / step)


def _slaney_hertz(mel: FloatArray) -> FloatArray:
    mel = np.asarray(mel, np.float64)
    step = np.log(6.4) / 27.0
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(step * (mel - 15)))


def mel_triangles(
    n_mels: int,
    n_fft: int,
    sample_rate: int,
    low_hertz: float,
    high_hertz: float,
    *,
    scale: str = "htk",
    is_linear_in_mel: bool = False,
    norm: str = "none",
) -> FloatArray:
    """Triangular filters [n_mels, n_fft // 2 + 1] on a power spectrum.

    Args:
        n_mels: bands.
        n_fft: length of the Fourier transform.
        sample_rate: Hz.
        low_hertz: lower edge of the first band.
        high_hertz: upper edge of the last band.
        scale: ``htk`` or ``slaney``.
        is_linear_in_mel: whether the slopes are straight on the mel axis (Kaldi, Essentia)
            or in Hz (librosa, torchaudio).
        norm: ``none``; ``slaney``, twice the inverse bandwidth in Hz; ``sum``, each filter
            divided by the sum of its weights.
    """
    to_mel, to_hertz = (htk_mel, _htk_hertz) if scale == "htk" else (slaney_mel, _slaney_hertz)
    bins = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    low, high = (float(to_mel(np.array(hertz))) for hertz in (low_hertz, high_hertz))
    edges_mel = np.linspace(low, high, n_mels + 2)
    edges_hertz = to_hertz(edges_mel)
    axis, edges = (to_mel(bins), edges_mel) if is_linear_in_mel else (bins, edges_hertz)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (axis - left) / (centre - left)
    falling = (right - axis) / (right - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        filters *= 2.0 / (edges_hertz[2:] - edges_hertz[:-2])[:, None]
    elif norm == "sum":
        filters /= np.maximum(filters.sum(axis=1, keepdims=True), 1e-12)
    return filters


def at_least(audio: npt.NDArray[np.float32], samples: int) -> npt.NDArray[np.float32]:
    """Waveforms [batch, samples] with zeros behind them where they are shorter than that."""
    lacking = samples - audio.shape[1]
    return np.pad(audio, ((0, 0), (0, lacking))) if lacking > 0 else audio


def passt_filters(high_hertz: float = 15_000.0) -> FloatArray:
    """Mel filters [128, 513] of PaSST and EfficientAT.

    Both were trained with the upper edge drawn anew for each batch around 15 kHz, and take
    that value at inference.
    """
    return mel_triangles(
        _PASST_MELS, _PASST_FFT, PASST_RATE, 0.0, high_hertz, is_linear_in_mel=True
    )


def passt_frames(samples: int) -> int:
    """Frames of `passt_log_mel` for so many samples, at least one: 10 s give 1000."""
    return 1 + max(samples - 1, 0) // _PASST_HOP


def passt_log_mel(audio: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Log-mel spectrograms [batch, 128, frames] of PaSST, which EfficientAT took over.

    Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech
    2022, section 3: 25 ms every 10 ms, 128 bands. The waveform is pre-emphasised (one sample
    is lost), the Hann window is symmetric, the logarithm natural with 1e-5 added to the
    power, and (v + 4.5) / 5 brings values near to [-1, 1].

    Args:
        audio: waveforms [batch, samples] at 32 kHz, float32, at least 514 samples long
            (both ends are reflected by 512).
        filters: what `passt_filters` returns, as a float32 tensor on the device of `audio`.
    """
    import torch

    emphasised = audio[:, 1:] - 0.97 * audio[:, :-1]
    window = torch.hann_window(
        _PASST_WINDOW, periodic=False, dtype=audio.dtype, device=audio.device
    )
    spectrum = torch.stft(
        emphasised, _PASST_FFT, _PASST_HOP, _PASST_WINDOW, window,
        center=True, pad_mode="reflect", return_complex=True,
    )  # fmt: skip
    power = torch.view_as_real(spectrum).square().sum(dim=-1)  # [batch, 513, frames]
    return (torch.log(filters @ power + 1e-5) + 4.5) / 5
