"""BEATs: an audio transformer taught by its own tokenizer, 768 features.

Chen et al., "BEATs: Audio Pre-Training with Acoustic Tokenizers", ICML 2023. Pretrained and
fine-tuned checkpoints are both read, and both give the features of the last layer: the 527
AudioSet scores of a fine-tuned one are never the embedding, its ``predictor`` is left out.

A window is cut into patches of 16 frames by 16 mel bands (section 3.1), time-major: eight
tokens, low bands first, for each time step of 16 frames (160 ms). A time step counts if any of
its frames holds real samples. The tokens of the others are zeroed before the convolution that
encodes position, never attended to and left out of the mean, so how far a window was padded
does not change its embedding. The reference code pads otherwise: it divides the frames evenly
among the tokens as if each token came after the one before, two frames each in ten seconds, so
its border may cut a time step and keep only the lower bands of it.
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
from bsdkit.backbones.weights import WeightFile, fill, shape_of

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Beats", "Sizes", "build_network", "kaldi_fbank", "published_network"]

SAMPLE_RATE = 16_000
FRAME, HOP, FFT, N_MELS = 400, 160, 512, 128
LOW_HERTZ, HIGH_HERTZ = 20.0, 8000.0
PRE_EMPHASIS = 0.97
FBANK_MEAN, FBANK_SPREAD = 15.41663, 2 * 6.55582
WINDOW_SECONDS, SHORTEST_SECONDS = 10.0, 1.25

# what the network below is; a checkpoint whose cfg says otherwise is another network
_ARCHITECTURE = {
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a network; the defaults are those that were published.

    Attributes:
        patch: frames, and mel bands, of a patch.
        patch_dim: features of a patch before the projection to `dim`.
        dim: features of a token.
        n_layers: transformer layers.
        n_heads: attention heads.
        ffn_dim: hidden features of the feed-forward part.
        n_buckets: buckets of the relative position.
        max_distance: tokens from which on all distances share a bucket.
        kernel: tokens that the position convolution spans.
        n_groups: groups of the position convolution.
    """

    patch: int = 16
    patch_dim: int = 512
    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    ffn_dim: int = 3072
    n_buckets: int = 320
    max_distance: int = 800
    kernel: int = 128
    n_groups: int = 16


def position_buckets(n_tokens: int, n_buckets: int, max_distance: int) -> IntArray:
    """The bucket of each distance from a query to a key, -(n - 1) to n - 1 [2 n - 1].

    Half of the buckets are for keys after the query. In each half the first half holds one
    distance each, and the rest grow logarithmically up to `max_distance` (Raffel et al., T5,
    JMLR 2020, section 2.1).
    """
    distance = np.arange(1 - n_tokens, n_tokens)
    half = n_buckets // 2
    n_exact = half // 2
    far = np.log(np.maximum(np.abs(distance), 1) / n_exact) / np.log(max_distance / n_exact)
    logarithmic = np.minimum(n_exact + (far * (half - n_exact)).astype(np.int64), half - 1)
    bucket = np.where(np.abs(distance) < n_exact, np.abs(distance), logarithmic)
    return np.asarray(bucket + half * (distance > 0), np.int64)


def build_network(sizes: Sizes) -> nn.Module:
    """The encoder: fbank [batch, frames, 128] to tokens [batch, 8 * (frames // 16), dim].

    Attribute names are those of the checkpoint's keys. Layers are post-norm with the residual
    scaled by (2 n_layers)^(1/4) (Wang et al., DeepNet, 2022); their attention adds a bucketed
    relative position bias that a gate on the query scales (Chi et al., XLM-E, 2022).
    """
    import torch
    from torch import nn
    from torch.nn import functional

    class PositionConvolution(nn.Module):
        """A grouped convolution over tokens, with weight normalisation per kernel tap."""

        def __init__(self) -> None:
            super().__init__()
            shape = (sizes.dim, sizes.dim // sizes.n_groups, sizes.kernel)
            self.bias = nn.Parameter(torch.zeros(sizes.dim))
            self.weight_g = nn.Parameter(torch.ones(1, 1, sizes.kernel))
            self.weight_v = nn.Parameter(torch.randn(shape))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            norm = self.weight_v.square().sum(dim=(0, 1), keepdim=True).sqrt()
            y = functional.conv1d(
                x.transpose(1, 2),
                self.weight_v * (self.weight_g / norm),
                self.bias,
                padding=sizes.kernel // 2,
                groups=sizes.n_groups,
            )
            # an even kernel gives a token too many
            return functional.gelu(y[..., : x.shape[1]]).transpose(1, 2)

    class Attention(nn.Module):
        def __init__(self, relative_attention_bias: nn.Embedding) -> None:
            super().__init__()
            self.grep_a = nn.Parameter(torch.ones(1, sizes.n_heads, 1, 1))
            self.relative_attention_bias = relative_attention_bias
            self.k_proj = nn.Linear(sizes.dim, sizes.dim)
            self.v_proj = nn.Linear(sizes.dim, sizes.dim)
            self.q_proj = nn.Linear(sizes.dim, sizes.dim)
            self.out_proj = nn.Linear(sizes.dim, sizes.dim)
            self.grep_linear = nn.Linear(sizes.dim // sizes.n_heads, 8)

        def forward(
            self, x: torch.Tensor, position_bias: torch.Tensor, padded: torch.Tensor | None
        ) -> torch.Tensor:
            query, key, value = (
                projection(x).unflatten(2, (sizes.n_heads, -1)).transpose(1, 2)
                for projection in (self.q_proj, self.k_proj, self.v_proj)
            )  # [batch, heads, tokens, dim / heads]
            gates = self.grep_linear(query).unflatten(3, (2, 4)).sum(4).float().sigmoid()
            update, reset = gates.split(1, dim=3)
            bias = (update * (reset * self.grep_a - 1) + 2) * position_bias
            if padded is not None:
                bias = bias.masked_fill(padded[:, None, None, :], -torch.inf)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bias.to(query.dtype)
            )
            out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
            return out

    class Layer(nn.Module):
        def __init__(self, relative_attention_bias: nn.Embedding) -> None:
            super().__init__()
            self.self_attn = Attention(relative_attention_bias)
            self.self_attn_layer_norm = nn.LayerNorm(sizes.dim)
            self.fc1 = nn.Linear(sizes.dim, sizes.ffn_dim)
            self.fc2 = nn.Linear(sizes.ffn_dim, sizes.dim)
            self.final_layer_norm = nn.LayerNorm(sizes.dim)
            self.residual_scale = (2 * sizes.n_layers) ** 0.25

        def forward(
            self, x: torch.Tensor, position_bias: torch.Tensor, padded: torch.Tensor | None
        ) -> torch.Tensor:
            attended = self.self_attn(x, position_bias, padded)
            x = self.self_attn_layer_norm(x * self.residual_scale + attended)
            changed = self.fc2(functional.gelu(self.fc1(x)))
            out: torch.Tensor = self.final_layer_norm(x * self.residual_scale + changed)
            return out

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_conv = nn.ModuleList([PositionConvolution()])
            # one table, which the checkpoints name once a layer
            table = nn.Embedding(sizes.n_buckets, sizes.n_heads)
            self.layers = nn.ModuleList([Layer(table) for _ in range(sizes.n_layers)])
            self.layer_norm = nn.LayerNorm(sizes.dim)

        def position_bias(self, n_tokens: int) -> torch.Tensor:
            """What the distance from a query to a key adds [heads, queries, keys]."""
            attention = cast(Attention, self.layers[0].self_attn)
            table = attention.relative_attention_bias
            buckets = position_buckets(n_tokens, sizes.n_buckets, sizes.max_distance)
            # row q of the [n, n] view is the run of distances from -q to n - 1 - q
            runs = np.lib.stride_tricks.sliding_window_view(buckets, n_tokens)[::-1].copy()
            index = torch.from_numpy(runs).to(table.weight.device)
            bias: torch.Tensor = table(index).permute(2, 0, 1).contiguous()
            return bias

        def forward(self, x: torch.Tensor, padded: torch.Tensor | None) -> torch.Tensor:
            if padded is not None:
                x = x.masked_fill(padded.unsqueeze(2), 0.0)
            x = self.layer_norm(x + self.pos_conv[0](x))
            position_bias = self.position_bias(x.shape[1])
            for layer in self.layers:
                x = layer(x, position_bias, padded)
            return x

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dim, self.patch = sizes.dim, sizes.patch
            self.patch_embedding = nn.Conv2d(
                1, sizes.patch_dim, sizes.patch, stride=sizes.patch, bias=False
            )
            self.layer_norm = nn.LayerNorm(sizes.patch_dim)
            if sizes.patch_dim != sizes.dim:
                self.post_extract_proj = nn.Linear(sizes.patch_dim, sizes.dim)
            self.encoder = Encoder()

        def tokens(self, fbank: torch.Tensor) -> torch.Tensor:
            """Tokens [batch, tokens, dim] as they enter the encoder; frames over are dropped."""
            patches = self.patch_embedding(fbank.unsqueeze(1))  # [batch, patch_dim, steps, bands]
            x: torch.Tensor = self.layer_norm(patches.flatten(2).transpose(1, 2))
            return self.post_extract_proj(x) if sizes.patch_dim != sizes.dim else x

        def forward(self, fbank: torch.Tensor, padded: torch.Tensor | None = None) -> torch.Tensor:
            """Tokens [batch, tokens, dim] after the last layer.

            Args:
                fbank: normalised filter bank [batch, frames, 128].
                padded: [batch, tokens], true where a token is to be ignored; None for nowhere.
            """
            out: torch.Tensor = self.encoder(self.tokens(fbank), padded)
            return out

    return Network()


def published_network() -> nn.Module:
    """The network at its published size, not trained."""
    return build_network(Sizes())


def kaldi_fbank(audio: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Log-mel energies [batch, 1 + (samples - 400) // 160, 128] as Kaldi computes them.

    Of each frame the mean is removed, then it is pre-emphasised and Povey-windowed; no dither,
    no frame reaches beyond the samples (Kaldi's snip-edges).

    Args:
        audio: waveforms [batch, samples] at 16 kHz and 16-bit scale.
        filters: mel filters [128, 257].
    """
    import torch

    frames = audio.unfold(1, FRAME, HOP)
    frames = frames - frames.mean(dim=2, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
    hann = torch.hann_window(FRAME, periodic=False, dtype=audio.dtype, device=audio.device)
    frames = (frames - PRE_EMPHASIS * previous) * hann**0.85
    power = torch.fft.rfft(frames, FFT).abs().square()
    energy: torch.Tensor = power @ filters.T
    return energy.clamp_min(torch.finfo(torch.float32).eps).log()


@register("beats")
class Beats(CheckpointBackbone):
    """BEATs, iteration 3+, pretrained on AudioSet-2M; fine-tuned files are accepted too."""

    outputs: ClassVar[dict[str, Kind]] = {"": "audio"}
    card = ModelCard(
        summary="self-supervised AudioSet transformer",
        licence="MIT code; weights offered by the same project",
        file=WeightFile(
            "beats_iter3plus_as2m.pt",
            page="https://1drv.ms/u/s!AqeByhGUtINrgcpke6_lRSZEKD5j2Q?e=A3FpOf",
        ),
        parameters=90.3,
        gigaflops=98.6,
        training_data="AudioSet",
        released="2023",
        has_freesound=False,
        url="https://github.com/microsoft/unilm/tree/master/beats",
    )

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`.

        Args:
            state: {'cfg': what the network is, 'model': its tensors}.
        """
        import torch

        config, model = state.get("cfg"), state.get("model")
        if not isinstance(config, Mapping) or not isinstance(model, Mapping):
            raise ValueError(f"a BEATs checkpoint holds 'cfg' and 'model', this one {list(state)}")
        for name, expected in _ARCHITECTURE.items():
            if config.get(name, expected) != expected:
                raise ValueError(f"its cfg has {name} = {config[name]!r}, expected {expected!r}")
        if not isinstance(config.get("max_distance"), int):
            raise ValueError("its cfg has no max_distance")
        tensors = {
            name: tensor.float()
            for name, tensor in model.items()
            if isinstance(tensor, torch.Tensor) and not name.startswith("predictor.")
        }
        sizes = _sizes(tensors, config["max_distance"])
        table = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
        for layer in range(1, sizes.n_layers):
            # where shared tensors are stored once, the first layer has the table
            tensors.setdefault(table.format(layer), tensors[table.format(0)])
        with torch.device("meta"):
            network = build_network(sizes)
        fill(network, tensors)
        return network

    def attach(self, network: nn.Module, device: str) -> None:
        """See `CheckpointBackbone.attach`."""
        import torch

        super().attach(network, device)
        filters = mel_triangles(
            N_MELS, FFT, SAMPLE_RATE, LOW_HERTZ, HIGH_HERTZ, is_linear_in_mel=True
        )
        self._filters = torch.tensor(filters, dtype=torch.float32, device=device)

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        return BackboneSpec(
            backbone=self.name,
            output=self.output_named(output),
            kind="audio",
            dim=int(self.network.dim) if self.device else Sizes().dim,  # type: ignore[arg-type]
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=1,
            layer="last transformer layer",
            pooling="mean of tokens with real samples, padding masked in attention; windows by "
            "mean weighted by samples",
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=SAMPLE_RATE,
            gain="none",
            window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS,
            padding="zeros",
            shortest_seconds=SHORTEST_SECONDS,
        )

    def front_end(self, audio: FloatArray) -> torch.Tensor:
        """Normalised filter bank [batch, frames, 128] of windows [batch, samples], on the device.

        Windows too short for a patch are completed with zeros.
        """
        import torch
        from torch.nn import functional

        shortest = FRAME + (int(self.network.patch) - 1) * HOP  # type: ignore[arg-type]
        waveform = torch.from_numpy(audio).to(self.device)
        waveform = functional.pad(waveform, (0, max(0, shortest - audio.shape[1])))
        return (kaldi_fbank(waveform * 2**15, self._filters) - FBANK_MEAN) / FBANK_SPREAD

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`."""
        import torch

        with torch.inference_mode():
            fbank = self.front_end(audio)
        patch = int(self.network.patch)  # type: ignore[arg-type]
        n_bands, n_steps = N_MELS // patch, fbank.shape[1] // patch
        # a frame holds real samples if it starts before their end
        n_valid = np.clip(-(-np.asarray(valid) // (HOP * patch)), 1, n_steps)
        is_padded = np.arange(n_steps * n_bands) // n_bands >= n_valid[:, None]
        padded = torch.from_numpy(is_padded).to(self.device) if is_padded.any() else None
        with self.forward():
            tokens = self.network(fbank, padded).float()
        with torch.inference_mode():
            if padded is not None:
                tokens = tokens.masked_fill(padded.unsqueeze(2), 0.0)
            n_tokens = torch.from_numpy(n_valid * n_bands).to(self.device).unsqueeze(1)
            return {"": (tokens.sum(dim=1) / n_tokens).cpu().numpy()}


def _sizes(tensors: Mapping[str, torch.Tensor], max_distance: int) -> Sizes:
    """The sizes of the network that these tensors belong to.

    Raises:
        ValueError: a tensor that tells them is missing or has other axes.
    """
    shape = partial(shape_of, tensors)
    first = "encoder.layers.0."
    patch_dim, _, _, patch = shape("patch_embedding.weight", 4)
    dim, group, kernel = shape("encoder.pos_conv.0.weight_v", 3)
    n_buckets, n_heads = shape(first + "self_attn.relative_attention_bias.weight", 2)
    prefix = "encoder.layers."
    numbers = {name.split(".")[2] for name in tensors if name.startswith(prefix)}
    return Sizes(
        patch=patch,
        patch_dim=patch_dim,
        dim=dim,
        n_layers=len(numbers),
        n_heads=n_heads,
        ffn_dim=shape(first + "fc1.weight", 2)[0],
        n_buckets=n_buckets,
        max_distance=max_distance,
        kernel=kernel,
        n_groups=dim // group,
    )
