"""PaSST: an AudioSet transformer over patches of a spectrogram, 768 numbers.

Koutini et al., "Efficient Training of Audio Transformers with Patchout", Interspeech 2022.
Patches of 16 mel bands by 16 frames, every 10 of each, get a position embedding for their
row and one for their column; a class and a distillation token go before them (section 2; the
blocks are those of Touvron et al., "DeiT", ICML 2021). The embedding is the mean of the two
tokens after the last norm; the logits are the head's on that mean. Patchout is a matter of
training: nothing is left out here.

A clip up to 10 s is embedded as its authors do, at its own length. A longer one is cut into
windows of 10 s side by side and averaged, where they overlap windows every 2.5 s. The two
tokens attend to every patch, those of padding too, and no mask keeps them from it (none did
in training): the silence behind a short clip is part of what is embedded, which is why a
window may be as short as 1.25 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.base import BackboneSpec, FloatArray, IntArray, Kind
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.frontends import PASST_RATE, at_least, passt_filters, passt_log_mel
from bsdkit.backbones.registry import register
from bsdkit.backbones.vit import HEAD_DIM, NORM_EPSILON, vit_blocks
from bsdkit.backbones.weights import WeightFile, fill, shape_of

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Passt", "Sizes", "build_network", "published_network", "sizes_of"]

WINDOW_SECONDS = 10.0
WINDOW_FRAMES = 1000
SHORTEST_SECONDS = 1.25
PATCH = 16
N_MELS = 128
SHORTEST_SAMPLES = 15 * 320 + 1  # 16 frames, which make one patch


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network.

    Attributes:
        dim: numbers in a token.
        depth: blocks.
        heads: attention heads of a block.
        hidden: hidden units of a block's perceptron.
        rows: patches over mel bands.
        columns: patches over time that have a position embedding.
        classes: logits.
    """

    dim: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    rows: int = 12
    columns: int = 99
    classes: int = 527

    @property
    def stride(self) -> int:
        """Mel bands, and frames, from one patch to the next."""
        return N_MELS // self.rows


def sizes_of(state: Mapping[str, torch.Tensor]) -> Sizes:
    """Sizes that the tensors of a weight file tell; heads are 64 wide, as in every ViT.

    Raises:
        ValueError: a tensor is missing or the positions are not those of 10 s windows; the
            message names it.
    """
    depth = 0
    while f"blocks.{depth}.norm1.weight" in state:
        depth += 1
    dim = shape_of(state, "cls_token", 3)[2]
    sizes = Sizes(
        dim=dim,
        depth=depth,
        heads=max(1, dim // HEAD_DIM),
        hidden=shape_of(state, "blocks.0.mlp.fc1.weight", 2)[0],
        rows=max(1, shape_of(state, "freq_new_pos_embed", 4)[2]),
        columns=shape_of(state, "time_new_pos_embed", 4)[3],
        classes=shape_of(state, "head.1.weight", 2)[0],
    )
    rows = (N_MELS - PATCH) // max(1, sizes.stride) + 1
    if rows != sizes.rows:
        raise ValueError(f"'freq_new_pos_embed' has {sizes.rows} rows, expected {rows}")
    # a model of longer clips or of another hop has as good a table, and gives other numbers
    columns = (WINDOW_FRAMES - PATCH) // sizes.stride + 1
    if columns != sizes.columns:
        raise ValueError(
            f"'time_new_pos_embed' has {sizes.columns} columns, a model of 10 s clips at 10 ms "
            f"hops has {columns}"
        )
    return sizes


def build_network(sizes: Sizes) -> nn.Module:
    """The network: log-mel [batch, 128, frames] to features [batch, dim] and logits.

    Any number of frames from 16 to what the position table covers. Attribute names are those
    of the checkpoint's keys.
    """
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = sizes
            self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
            self.dist_token = nn.Parameter(torch.zeros(1, 1, sizes.dim))
            self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, sizes.dim))
            self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, sizes.dim, sizes.rows, 1))
            self.time_new_pos_embed = nn.Parameter(torch.zeros(1, sizes.dim, 1, sizes.columns))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(1, sizes.dim, PATCH, sizes.stride)})
            self.blocks = vit_blocks(sizes.depth, sizes.dim, sizes.heads, sizes.hidden)
            self.norm = nn.LayerNorm(sizes.dim, eps=NORM_EPSILON)
            self.head = nn.Sequential(nn.LayerNorm(sizes.dim), nn.Linear(sizes.dim, sizes.classes))
            # of pre-training; in every file, used by none of the outputs
            self.head_dist = nn.Linear(sizes.dim, sizes.classes)

        def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.patch_embed["proj"](mel.unsqueeze(1))  # [batch, dim, rows, columns]
            x = x + self.time_new_pos_embed[..., : x.shape[3]] + self.freq_new_pos_embed
            tokens = torch.cat([self.cls_token, self.dist_token], dim=1) + self.new_pos_embed
            x = torch.cat([tokens.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
            for block in self.blocks[:-1]:
                x = block(x)
            x = self.norm(self.blocks[-1](x, 2))  # nobody reads the other tokens any more
            features = x.mean(dim=1)
            return features, self.head(features)

    return Network()


def published_network() -> nn.Module:
    """The network of the published weights, with random ones."""
    return build_network(Sizes())


@register("passt")
class Passt(CheckpointBackbone):
    """PaSST-S (stride 10, stochastic weight averaging), AudioSet mAP 47.6."""

    outputs: ClassVar[dict[str, Kind]] = {"": "audio", "logits": "audio"}
    card = ModelCard(
        summary="AudioSet transformer",
        licence="Apache-2.0",
        fetches="345 MB of weights from GitHub",
        file=WeightFile(
            "passt-s-f128-p16-s10-ap.476-swa.pt",
            "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/"
            "passt-s-f128-p16-s10-ap.476-swa.pt",
        ),
        parameters=86.15,
        gigaflops=237.86,
        training_data="ImageNet, AudioSet",
        released="2022",
        has_freesound=False,
        url="https://github.com/kkoutini/PaSST",
    )

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`."""
        import torch

        with torch.device("meta"):
            network = build_network(sizes_of(state))
        fill(network, state)
        return network

    def attach(self, network: nn.Module, device: str) -> None:
        """See `CheckpointBackbone.attach`."""
        import torch

        super().attach(network, device)
        self._filters = torch.tensor(passt_filters(), dtype=torch.float32, device=device)

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        is_logits = self.output_named(output) == "logits"
        sizes = self.network.sizes if self.device else Sizes()
        assert isinstance(sizes, Sizes)
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind="audio",
            dim=sizes.classes if is_logits else sizes.dim,
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=2,
            layer="logits before the sigmoid" if is_logits else "last norm",
            pooling="mean of class and distillation token; windows by mean weighted by samples",
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=PASST_RATE,
            gain="none",
            window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS,
            padding="zeros",
            shortest_seconds=SHORTEST_SECONDS,
        )

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`; ``valid`` is not used, for the tokens attend to everything."""
        import torch

        with torch.inference_mode():
            waveform = torch.from_numpy(at_least(audio, SHORTEST_SAMPLES)).to(self.device)
            mel = passt_log_mel(waveform, self._filters)
        with self.forward():
            features, logits = self.network(mel)
        return {"": features.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}
