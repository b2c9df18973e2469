"""M2D: Masked Modeling Duo, a ViT whose features keep frequency apart, 3840 or 768 numbers.

Niizumi et al., "Masked Modeling Duo", ICASSP 2023 and IEEE/ACM TASLP 2024; M2D-CLAP,
Interspeech 2024. Written from the papers: the authors' code and weights are under NTT's
licence for evaluation, so neither is part of this package, and a user fetches weights under
those terms.

Log-mel of 80 bands every 10 ms, standardised with the two numbers that training left in the
checkpoint (``norm_stats``), is cut into patches of 16 bands by 16 frames. For each column of
patches (160 ms) the features of the five bands are stacked, lowest first, as the papers do for
downstream tasks; the embedding is the mean of the columns that hold real samples. The network
knows no mask: padding is attended to, and only left out of the mean. ``flat`` is the mean over
the bands too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from bsdkit.backbones.base import BackboneSpec, FloatArray, IntArray, Kind
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.registry import register
from bsdkit.backbones.vit import HEAD_DIM, NORM_EPSILON, vit_blocks
from bsdkit.backbones.weights import WeightFile, fill, shape_of

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["M2d", "M2d32k", "Sizes", "build_network", "log_mel", "published_network"]

WINDOW_SECONDS, SHORTEST_SECONDS = 10.0, 1.25
FRAME_SECONDS, HOP_SECONDS = 0.025, 0.010
LOW_HERTZ = 50.0
PREFIX = "module.ar.runtime.backbone."

_ENCODER_PARTS = ("cls_token", "pos_embed", "norm_stats", "patch_embed.", "blocks.", "norm.")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network; the defaults are those that were published.

    Attributes:
        patch_bands: mel bands of a patch.
        patch_frames: frames of a patch.
        dim: features of a token.
        n_layers: transformer layers.
        hidden_dim: hidden features of the feed-forward part.
        n_rows: patches in a column.
        n_columns: columns that the position table knows.
    """

    patch_bands: int = 16
    patch_frames: int = 16
    dim: int = 768
    n_layers: int = 12
    hidden_dim: int = 3072
    n_rows: int = 5
    n_columns: int = 62


def build_network(sizes: Sizes) -> nn.Module:
    """The encoder: log-mel [batch, bands, frames] to features [batch, columns, rows, dim].

    A plain ViT (Dosovitskiy et al., ICLR 2021): pre-norm layers, a class token that is dropped
    after the last norm. Attribute names are those of the checkpoint's keys.
    """
    import torch
    from torch import nn

    patch = (sizes.patch_bands, sizes.patch_frames)

    class Network(nn.Module):
        norm_stats: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.sizes = sizes
            n_tokens = 1 + sizes.n_rows * sizes.n_columns
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
            self.pos_embed = nn.Parameter(torch.zeros(1, n_tokens, sizes.dim))
            self.register_buffer("norm_stats", torch.tensor([0.0, 1.0]))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, sizes.dim, patch, patch)})
            self.blocks = vit_blocks(
                sizes.n_layers, sizes.dim, sizes.dim // HEAD_DIM, sizes.hidden_dim
            )
            self.norm = nn.LayerNorm(sizes.dim, eps=NORM_EPSILON)

        def forward(self, mel: torch.Tensor) -> torch.Tensor:
            """Features [batch, columns, rows, dim], the lowest row first.

            Args:
                mel: standardised log-mel [batch, bands, frames] of whole patches, no more
                    columns than the position table knows.
            """
            patches = self.patch_embed["proj"](mel.unsqueeze(1))  # [batch, dim, rows, columns]
            positions = self.pos_embed[:, 1:].reshape(1, sizes.n_rows, sizes.n_columns, -1)
            # the table is cut to the clip's columns, never interpolated
            patches = patches.permute(0, 2, 3, 1) + positions[:, :, : patches.shape[3]]
            first = (self.cls_token + self.pos_embed[:, :1]).expand(len(mel), -1, -1)
            x = torch.cat([first, patches.flatten(1, 2)], dim=1)
            for block in self.blocks:
                x = block(x)
            tokens: torch.Tensor = self.norm(x)[:, 1:]  # [batch, rows * columns, dim]
            return tokens.reshape(len(x), sizes.n_rows, -1, sizes.dim).transpose(1, 2)

    return Network()


def published_network() -> nn.Module:
    """The network at its published size (ViT-base, 80 x 1001 input), not trained."""
    return build_network(Sizes())


def log_mel(audio: torch.Tensor, filters: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Natural log of mel power [batch, bands, 1 + samples // hop].

    Frames of 25 ms every 10 ms under a periodic Hann window, centred, the ends reflected.

    Args:
        audio: waveforms [batch, samples].
        filters: mel filters [bands, FFT / 2 + 1].
        sample_rate: Hz.
    """
    import torch

    length, hop = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    window = torch.hann_window(length, dtype=audio.dtype, device=audio.device)
    spectrum = torch.stft(
        audio, length, hop, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power: torch.Tensor = filters @ spectrum.abs().square()
    return (power + torch.finfo(torch.float32).eps).log()


@register("m2d")
class M2d(CheckpointBackbone):
    """M2D for 16 kHz, by default M2D-CLAP fine-tuned on AudioSet; other M2D files fit too."""

    outputs: ClassVar[dict[str, Kind]] = {"": "audio", "flat": "audio"}
    card = ModelCard(
        summary="masked-modelling AudioSet transformer",
        licence="NTT: evaluation only, non-commercial",
        file=WeightFile(
            "weights_ep67it3124-0.48558.pth",
            page="https://github.com/nttcslab/m2d/releases/download/v0.3.0/"
            "m2d_clap_vit_base-80x1001p16x16-240128_AS-FT_enconly.zip (under NTT's licence: "
            "non-commercial evaluation only), unpack weights_ep67it3124-0.48558.pth",
        ),
        parameters=85.5,
        gigaflops=56.5,
        training_data="AudioSet, captions of its clips",
        released="2024",  # the name of the weights has the day 240128
        url="https://github.com/nttcslab/m2d",
    )

    sample_rate: ClassVar[int] = 16_000
    """Hz; nothing in a checkpoint tells it."""

    n_mels: ClassVar[int] = 80
    """Mel bands."""

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`.

        Args:
            state: tensors, or {'model': tensors}, with or without the prefix of a training run.
                Those of other parts (decoder, CLAP heads, classifier) are left out.
        """
        import torch

        model = state.get("model", state)
        if not isinstance(model, Mapping):
            raise ValueError(f"'model' is a {type(model).__name__}, expected tensors by name")
        # where the encoder is one part of a training run, other parts may use its names bare
        prefix = PREFIX if any(name.startswith(PREFIX) for name in model) else ""
        named = {n.removeprefix(prefix): t for n, t in model.items() if n.startswith(prefix)}
        tensors = {
            name: tensor.float()
            for name, tensor in named.items()
            if isinstance(tensor, torch.Tensor) and name.startswith(_ENCODER_PARTS)
        }
        sizes = self._sizes(tensors)
        with torch.device("meta"):
            network = build_network(sizes)
        fill(network, tensors)
        mean, deviation = tensors["norm_stats"].tolist()
        if not (np.isfinite(mean) and np.isfinite(deviation) and deviation > 0):
            raise ValueError(f"tensor norm_stats is [{mean}, {deviation}], no mean and deviation")
        return network

    def _sizes(self, tensors: Mapping[str, torch.Tensor]) -> Sizes:
        """The sizes of the network that these tensors belong to.

        Raises:
            ValueError: a tensor that tells them is missing or does not go with the others.
        """
        if tensors and "norm_stats" not in tensors:
            raise ValueError(
                "tensor norm_stats is missing, so these weights do not say how their input was "
                "standardised; give an M2D file that holds it, or add it as [mean, deviation]"
            )

        shape = partial(shape_of, tensors)
        projection = shape("patch_embed.proj.weight", 4)
        dim, _, patch_bands, patch_frames = projection
        n_positions = shape("pos_embed", 3)[1]
        n_rows, bands_over = divmod(self.n_mels, patch_bands)
        if bands_over or dim % HEAD_DIM:
            raise ValueError(
                f"tensor patch_embed.proj.weight is {projection}, expected a multiple of "
                f"{HEAD_DIM} features, and patches that divide {self.n_mels} bands"
            )
        n_columns, positions_over = divmod(n_positions - 1, n_rows)
        if positions_over or not n_columns:
            raise ValueError(
                f"tensor pos_embed has {n_positions} positions, expected 1 and a multiple of "
                f"{n_rows} rows"
            )
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        return Sizes(
            patch_bands=patch_bands,
            patch_frames=patch_frames,
            dim=dim,
            n_layers=len(blocks),
            hidden_dim=shape("blocks.0.mlp.fc1.weight", 2)[0],
            n_rows=n_rows,
            n_columns=n_columns,
        )

    def attach(self, network: nn.Module, device: str) -> None:
        """See `CheckpointBackbone.attach`."""
        import torch

        super().attach(network, device)
        filters = mel_triangles(
            self.n_mels,
            round(FRAME_SECONDS * self.sample_rate),
            self.sample_rate,
            LOW_HERTZ,
            self.sample_rate / 2,
            scale="slaney",
            norm="slaney",
        )
        self._filters = torch.tensor(filters, dtype=torch.float32, device=device)

    @property
    def _network_sizes(self) -> Sizes:
        sizes = self.network.sizes if self.device else Sizes()
        assert isinstance(sizes, Sizes)
        return sizes

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        is_flat = self.output_named(output) == "flat"
        sizes = self._network_sizes
        bands = ", averaged over frequency bands" if is_flat else ", frequency bands stacked"
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind="audio",
            dim=sizes.dim * (1 if is_flat else sizes.n_rows),
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=1,
            layer="last transformer layer after the final norm" + bands,
            pooling="mean of columns with real samples; windows by mean weighted by samples",
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=self.sample_rate,
            gain="none",
            window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS,
            padding="zeros",
            shortest_seconds=SHORTEST_SECONDS,
        )

    def front_end(self, audio: FloatArray) -> torch.Tensor:
        """Standardised log-mel [batch, bands, frames] of windows [batch, samples], on the device.

        Windows too short for a frame are completed with zeros.
        """
        import torch
        from torch.nn import functional

        shortest = round(FRAME_SECONDS * self.sample_rate)
        waveform = torch.from_numpy(audio).to(self.device)
        waveform = functional.pad(waveform, (0, max(0, shortest - audio.shape[1])))
        mean, deviation = cast("torch.Tensor", self.network.norm_stats)
        mel = log_mel(waveform, self._filters, self.sample_rate)
        return mel.sub(mean).div(deviation)

    def chunks(self, mel: torch.Tensor) -> list[torch.Tensor]:
        """Log-mel [batch, bands, frames] in pieces that the position table covers.

        The last one is completed to whole patches with zeros, the mean after standardising;
        less than a patch after a whole table is dropped (ten seconds have 1001 frames, the
        published table 992).
        """
        import torch
        from torch.nn import functional

        sizes = self._network_sizes
        pieces = list(torch.split(mel, sizes.n_columns * sizes.patch_frames, dim=2))
        if len(pieces) > 1 and pieces[-1].shape[2] < sizes.patch_frames:
            pieces.pop()
        lacking = -pieces[-1].shape[2] % sizes.patch_frames
        pieces[-1] = functional.pad(pieces[-1], (0, lacking))
        return pieces

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`."""
        import torch

        with torch.inference_mode():
            pieces = self.chunks(self.front_end(audio))
        with self.forward():
            features = torch.cat([self.network(piece).float() for piece in pieces], dim=1)
        # as many frames as the clip would have had without the padding
        n_frames = 1 + np.asarray(valid) // round(HOP_SECONDS * self.sample_rate)
        n_valid = -(-n_frames // self._network_sizes.patch_frames)
        n_valid = np.clip(n_valid, 1, features.shape[1])
        share = (np.arange(features.shape[1]) < n_valid[:, None]) / n_valid[:, None]
        with torch.inference_mode():
            weight = torch.tensor(share, dtype=torch.float32, device=self.device)
            bands = torch.einsum("bc,bcrd->brd", weight, features)
            return {
                "": bands.flatten(1).cpu().numpy(),
                "flat": bands.mean(dim=1).cpu().numpy(),
            }


@register("m2d-32k")
class M2d32k(M2d):
    """M2D for 32 kHz: the files whose name ends in p32k."""

    card = ModelCard(
        summary="the same for 32 kHz",
        licence=M2d.card.licence,
        file=WeightFile(
            "m2d_32k.pth",
            page="a p32k archive of https://github.com/nttcslab/m2d/releases (under NTT's "
            "licence: non-commercial evaluation only), unpack its weights_*.pth",
        ),
        parameters=M2d.card.parameters,
        gigaflops=M2d.card.gigaflops,
    )
    sample_rate: ClassVar[int] = 32_000
