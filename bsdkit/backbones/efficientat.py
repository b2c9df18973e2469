"""EfficientAT: MobileNets that learned AudioSet from transformers; small enough for any CPU.

Schmid, Koutini and Widmer, "Efficient Large-Scale Audio Tagging via Transformer-to-CNN
Knowledge Distillation", ICASSP 2023. The layout is that of MobileNetV3-Large (Howard et al.,
"Searching for MobileNetV3", ICCV 2019, table 1) with every width scaled; an ``mnXX`` file of
the authors' release is read whatever its width, which its tensors tell.

The front end is PaSST's (see `bsdkit.backbones.frontends.passt_log_mel`). The embedding is
the mean of the last convolution's map. The published model takes clips of any length without
padding; here windows are padded to lie in one batch, and the padding is then hidden from the
network: convolutions find zeros there, as at the edge of a spectrogram, and the means of the
embedding and of squeeze-and-excitation leave it out. A padded clip so gets the numbers that
the published model gives for the clip alone (but for its last frames, which would be mirrored
at the clip's end and here end in silence).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bsdkit.backbones.base import BackboneSpec, FloatArray, IntArray, Kind
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.frontends import (
    PASST_RATE,
    at_least,
    passt_filters,
    passt_frames,
    passt_log_mel,
)
from bsdkit.backbones.registry import register
from bsdkit.backbones.weights import WeightFile, fill, shape_of

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "BlockSize",
    "Columns",
    "Efficientat",
    "EfficientatMn10",
    "Sizes",
    "build_network",
    "published_network",
    "published_sizes",
]

WINDOW_SECONDS = 10.0
SHORTEST_SECONDS = 1.25
SHORTEST_SAMPLES = 1024  # what reflection by half a Fourier transform needs, and some
RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1"

# Kernel, expanded channels, channels, squeeze-and-excitation: width 1 of the paper's table.
_LARGE = (
    (3, 16, 16, False),
    (3, 64, 24, False), (3, 72, 24, False),
    (5, 72, 40, True), (5, 120, 40, True), (5, 120, 40, True),
    (3, 240, 80, False), (3, 200, 80, False), (3, 184, 80, False), (3, 184, 80, False),
    (3, 480, 112, True), (3, 672, 112, True),
    (5, 672, 160, True), (5, 960, 160, True), (5, 960, 160, True),
)  # fmt: skip
# What no tensor tells: where the map is halved, and from which block Hardswish replaces ReLU.
_HALVING_BLOCKS = frozenset({2, 4, 7, 13})
_FIRST_HARDSWISH_BLOCK = 7


@dataclass(frozen=True)
class BlockSize:
    """Sizes of one inverted residual block.

    Attributes:
        kernel: side of the depthwise kernel.
        expanded: channels of the depthwise convolution.
        out: channels that leave the block.
        squeezed: hidden units of squeeze-and-excitation; 0 without.
    """

    kernel: int
    expanded: int
    out: int
    squeezed: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network.

    Attributes:
        stem: channels of the first convolution.
        blocks: sizes of the blocks in order.
        last: channels of the last convolution, which are the embedding.
        hidden: hidden units of the classifier.
        classes: logits.
    """

    stem: int
    blocks: tuple[BlockSize, ...]
    last: int
    hidden: int
    classes: int


def _multiple_of_8(value: float) -> int:
    """The nearest multiple of 8, at least 8, that does not lose more than a tenth."""
    nearest = max(8, int(value + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * value else nearest + 8


def published_sizes(width: float) -> Sizes:
    """Sizes of the published network whose channels are ``width`` times MobileNetV3-Large's."""

    def scaled(channels: int) -> int:
        return _multiple_of_8(channels * width)

    blocks = tuple(
        BlockSize(
            kernel,
            scaled(expanded),
            scaled(out),
            is_squeezed * _multiple_of_8(scaled(expanded) // 4),
        )
        for kernel, expanded, out, is_squeezed in _LARGE
    )
    return Sizes(scaled(16), tuple(blocks), 6 * scaled(160), scaled(1280), 527)


def sizes_of(state: Mapping[str, torch.Tensor]) -> Sizes:
    """Sizes that the tensors of a weight file tell.

    Raises:
        ValueError: a tensor is missing; the message names it.
    """
    blocks = []
    for index in range(1, len(_LARGE) + 1):
        stem = f"features.{index}.block"
        # a block whose depthwise convolution is as wide as its input has no expansion
        depthwise = 1 if shape_of(state, f"{stem}.0.0.weight", 4)[3] == 1 else 0
        expanded, _, kernel, _ = shape_of(state, f"{stem}.{depthwise}.0.weight", 4)
        excitation = f"{stem}.{depthwise + 1}.conc_se_layers.0.fc1.weight"
        squeezed = shape_of(state, excitation, 2)[0] if excitation in state else 0
        projection = depthwise + (2 if squeezed else 1)
        out = shape_of(state, f"{stem}.{projection}.0.weight", 4)[0]
        blocks.append(BlockSize(kernel, expanded, out, squeezed))
    return Sizes(
        stem=shape_of(state, "features.0.0.weight", 4)[0],
        blocks=tuple(blocks),
        last=shape_of(state, f"features.{len(_LARGE) + 1}.0.weight", 4)[0],
        hidden=shape_of(state, "classifier.2.weight", 2)[0],
        classes=shape_of(state, "classifier.5.weight", 2)[0],
    )


class Columns:
    """How many columns (over time) of each map in a batch hold real samples.

    Args:
        counts: columns [batch], each at least 1; None where all columns of all maps do.
    """

    def __init__(self, counts: torch.Tensor | None) -> None:
        self.counts = counts

    def strided(self, stride: int) -> Columns:
        """The same behind a convolution of that stride."""
        if self.counts is None or stride == 1:
            return self
        return Columns((self.counts + stride - 1) // stride)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [batch, channels, rows, columns] with zeros where no samples are."""
        return x if self.counts is None else x * self._mask(x)[:, None, None].to(x.dtype)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """Means [batch, channels] of maps over rows and real columns, in float32."""
        import torch

        if self.counts is None:
            return x.mean(dim=(2, 3), dtype=torch.float32)
        weight = self._mask(x) / self.counts[:, None]
        return (x.mean(dim=2, dtype=torch.float32) * weight[:, None]).sum(dim=2)

    def _mask(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        assert self.counts is not None
        return (torch.arange(x.shape[3], device=x.device) < self.counts[:, None]).float()


def build_network(sizes: Sizes) -> nn.Module:
    """The network: log-mel [batch, 128, frames] to embedding [batch, last] and logits.

    Its forward pass takes `Columns` beside the spectrogram; every convolution that sees
    neighbours finds zeros outside the real columns, as at the edge of a spectrogram that
    ends there. Attribute names are those of the checkpoint's keys.
    """
    import torch
    from torch import nn

    class Convolution(nn.Sequential):
        """A convolution without bias, batch normalisation, and an activation or none."""

        def __init__(
            self, n_in: int, n_out: int, kernel: int, stride: int = 1, groups: int = 1,
            activation: type[nn.ReLU] | type[nn.Hardswish] | None = None,
        ) -> None:  # fmt: skip
            super().__init__(
                nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, groups=groups, bias=False),
                nn.BatchNorm2d(n_out, eps=1e-3),
                *([activation(inplace=True)] if activation else []),
            )
            self.stride = stride
            self.is_spatial = kernel > 1

        def forward(self, x: torch.Tensor, columns: Columns) -> torch.Tensor:  # type: ignore[override]
            x = columns.cut(x) if self.is_spatial else x
            for layer in self:
                x = layer(x)
            return x

    class Excitation(nn.Module):
        """A factor for each channel, from the means of all channels."""

        def __init__(self, channels: int, squeezed: int) -> None:
            super().__init__()
            self.fc1 = nn.Linear(channels, squeezed)
            self.fc2 = nn.Linear(squeezed, channels)

        def forward(self, mean: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.fc2(torch.relu(self.fc1(mean))))

    class Excitations(nn.Module):
        """A list of excitations in the checkpoint's keys, which holds the channels' alone."""

        stride = 1

        def __init__(self, channels: int, squeezed: int) -> None:
            super().__init__()
            self.conc_se_layers = nn.ModuleList([Excitation(channels, squeezed)])

        def forward(self, x: torch.Tensor, columns: Columns) -> torch.Tensor:
            factor: torch.Tensor = self.conc_se_layers[0](columns.mean(x))
            return x * factor[:, :, None, None].to(x.dtype)

    class Block(nn.Module):
        """Expand, filter each channel, weigh the channels, project (MobileNetV3, figure 4)."""

        def __init__(
            self, n_in: int, size: BlockSize, stride: int,
            activation: type[nn.ReLU] | type[nn.Hardswish],
        ) -> None:  # fmt: skip
            super().__init__()
            wide = size.expanded
            self.stride = stride
            self.is_residual = stride == 1 and n_in == size.out
            self.block = nn.ModuleList()
            if wide != n_in:
                self.block.append(Convolution(n_in, wide, 1, activation=activation))
            self.block.append(Convolution(wide, wide, size.kernel, stride, wide, activation))
            if size.squeezed:
                self.block.append(Excitations(wide, size.squeezed))
            self.block.append(Convolution(wide, size.out, 1))

        def forward(self, x: torch.Tensor, columns: Columns) -> torch.Tensor:
            out = _in_turn(self.block, x, columns)[0]
            return x + out if self.is_residual else out

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = sizes
            self.features = nn.ModuleList([Convolution(1, sizes.stem, 3, 2, 1, nn.Hardswish)])
            n_in = sizes.stem
            for number, size in enumerate(sizes.blocks, start=1):
                activation = nn.Hardswish if number >= _FIRST_HARDSWISH_BLOCK else nn.ReLU
                stride = 2 if number in _HALVING_BLOCKS else 1
                self.features.append(Block(n_in, size, stride, activation))
                n_in = size.out
            self.features.append(Convolution(n_in, sizes.last, 1, activation=nn.Hardswish))
            self.classifier = nn.Sequential(
                nn.Identity(), nn.Identity(),  # the checkpoint counts pooling and flattening
                nn.Linear(sizes.last, sizes.hidden), nn.Hardswish(), nn.Dropout(0.2),
                nn.Linear(sizes.hidden, sizes.classes),
            )  # fmt: skip

        def forward(self, mel: torch.Tensor, columns: Columns) -> tuple[torch.Tensor, torch.Tensor]:
            x, columns = _in_turn(self.features, mel.unsqueeze(1), columns)
            embedding = columns.mean(x)
            return embedding, self.classifier(embedding)

    return Network()


def _in_turn(
    layers: nn.ModuleList, x: torch.Tensor, columns: Columns
) -> tuple[torch.Tensor, Columns]:
    """Maps behind all the layers, and their real columns."""
    layer: Any
    for layer in layers:
        x = layer(x, columns)
        columns = columns.strided(layer.stride)
    return x, columns


def published_network(width: float = 0.4) -> nn.Module:
    """The published network of a width (0.4 for mn04, 1 for mn10), with random weights."""
    return build_network(published_sizes(width))


def _fold(network: nn.Module) -> None:
    """Moves each batch normalisation of a network in eval mode into its convolution."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for module in network.modules():
        if isinstance(module, nn.Sequential) and len(module) > 1:
            convolution, norm = module[0], module[1]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()
    network.eval()  # the new modules too


@register("efficientat")
class Efficientat(CheckpointBackbone):
    """EfficientAT mn04, AudioSet mAP 43.2; any ``mnXX`` file of its authors by ``--weights``."""

    outputs: ClassVar[dict[str, Kind]] = {"": "audio", "logits": "audio"}
    card = ModelCard(
        summary="AudioSet MobileNet, the fastest on a CPU",
        licence="MIT",
        fetches="4 MB of weights from GitHub",
        file=WeightFile(
            "mn04_as_mAP_432.pt",
            f"{RELEASE}/mn04_as_mAP_432.pt",
            sha256="899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
        ),
        parameters=0.98,
        gigaflops=0.22,
        training_data="ImageNet, AudioSet",
        released="2023",
        has_freesound=False,
        url="https://github.com/fschmid56/EfficientAT",
    )
    width: ClassVar[float] = 0.4

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`."""
        sizes = sizes_of(state)
        self._check_sizes(sizes)
        network = build_network(sizes)
        fill(network, state)
        return network

    def _check_sizes(self, sizes: Sizes) -> None:
        """Raises ValueError where the name stands for one width alone; here for any."""

    def attach(self, network: nn.Module, device: str) -> None:
        """See `CheckpointBackbone.attach`; batch normalisation is folded into convolutions."""
        import torch

        super().attach(network, device)
        # Together these halve the time on a CPU, and change the embedding by some 1e-6.
        _fold(self.network)
        self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._filters = torch.tensor(passt_filters(), dtype=torch.float32, device=device)

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        is_logits = self.output_named(output) == "logits"
        sizes = self.network.sizes if self.device else published_sizes(self.width)
        assert isinstance(sizes, Sizes)
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind="audio",
            dim=sizes.classes if is_logits else sizes.last,
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=1,
            layer="logits before the sigmoid" if is_logits else "last convolution",
            pooling="mean of the map over real samples; windows by mean weighted by samples",
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
        """See `Backbone.embed`."""
        import torch

        frames = np.array([passt_frames(int(samples)) for samples in valid])
        with torch.inference_mode():
            waveform = torch.from_numpy(at_least(audio, SHORTEST_SAMPLES)).to(self.device)
            mel = passt_log_mel(waveform, self._filters)
        is_whole = bool((frames >= mel.shape[2]).all())
        columns = Columns(None if is_whole else torch.from_numpy(frames).to(self.device))
        with self.forward():
            embedding, logits = self.network(mel, columns)
        return {"": embedding.float().cpu().numpy(), "logits": logits.float().cpu().numpy()}


@register("efficientat-mn10")
class EfficientatMn10(Efficientat):
    """EfficientAT mn10, AudioSet mAP 47.1."""

    card = replace(
        Efficientat.card,
        summary="AudioSet MobileNet, runs on a CPU",
        fetches="20 MB of weights from GitHub",
        file=WeightFile("mn10_as_mAP_471.pt", f"{RELEASE}/mn10_as_mAP_471.pt"),
        parameters=4.88,
        gigaflops=1.08,
    )
    width = 1.0

    def _check_sizes(self, sizes: Sizes) -> None:
        expected = published_sizes(self.width).last
        if sizes.last != expected:
            raise ValueError(
                f"its last convolution has {sizes.last} channels, expected {expected}; "
                "--backbone efficientat takes files of any width"
            )
