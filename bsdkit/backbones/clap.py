"""LAION-CLAP: audio 512 and text 512, through transformers' ClapModel.

Wu et al., "Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and
Keyword-to-Caption Augmentation", ICASSP 2023. Three of its checkpoints: ``clap`` without
fusion, ``clap-fusion``, whose vectors the challenge's store holds, and ``clap-music``, a
larger tower. Which tower a checkpoint has belongs to the name; a file of another is refused.

The front end is LAION's, computed here on the device: the waveform quantised to 16 bit as
their numpy path does (their tensor path does not), then log-mel of 64 bands, 1001 frames for
ten seconds. Models without fusion were trained on Slaney's scale and norm, those with fusion
on HTK's scale without norm; mixed up, the numbers are off by 4 to 23 dB.

LAION's own code crops clips over ten seconds at random, so no two of its embeddings agree.
Here `Clap` cuts them into windows of ten seconds and averages the projections, and
`ClapFusion` fixes the crops. Either way a clip that is shorter is repeated as often as it
fits, and the clip's vector is scaled to length 1. ``audio_raw`` and ``text_raw``, which are made
when they are asked for by name, are the same vectors before that, as the CP-JKU submission to
DCASE 2026 Task 1 takes them (report, section 3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.audio import Padding
from bsdkit.backbones.base import BackboneSpec, FloatArray, IntArray, Kind, state_digest
from bsdkit.backbones.cards import HUB, ModelCard
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.laion import (
    check_fit,
    config_of,
    converted_path,
    provenance,
    read_converted,
)
from bsdkit.backbones.registry import register
from bsdkit.backbones.weights import WeightFile, fetch, file_sha256, weights_folder
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Architecture",
    "Clap",
    "ClapFusion",
    "ClapMusic",
    "fusion_channels",
    "log_mel",
    "middle_starts",
    "published_network",
    "quantise",
]

PAGE = f"{HUB}/lukewys/laion_clap"
SAMPLE_RATE = 48_000
MODEL_SAMPLES = 10 * SAMPLE_RATE
FFT, HOP, N_MELS, LOW_HERTZ, HIGH_HERTZ = 1024, 480, 64, 50.0, 14_000.0
MODEL_FRAMES = MODEL_SAMPLES // HOP + 1
MAX_TOKENS = 77
TOKENIZER = "roberta-base"
VOCABULARY = 50_265
TOKENIZER_FILES = tuple(
    WeightFile(f"{TOKENIZER}/{name}", f"{HUB}/FacebookAI/{TOKENIZER}/resolve/main/{name}")
    for name in ("vocab.json", "merges.txt")
)


@dataclass(frozen=True)
class Architecture:
    """The audio tower that a checkpoint has; sizes that do not vary are not here.

    Attributes:
        is_fusion: whether it fuses a clip's whole with crops of it.
        patch_width: width of a patch's embedding; the last stage's is eight times that.
        depths: blocks in each stage.
    """

    is_fusion: bool
    patch_width: int
    depths: tuple[int, ...]

    def __str__(self) -> str:
        """In words, for messages."""
        depths = ", ".join(map(str, self.depths))
        kind = "with fusion" if self.is_fusion else "without fusion"
        return f"a tower {kind}, {self.patch_width} wide at first, of {depths} blocks"


def _published(name: str) -> WeightFile:
    return WeightFile(name, f"{PAGE}/resolve/main/{name}")


def published_network(architecture: Architecture) -> nn.Module:
    """A ClapModel of full size with random weights (on the meta device: with none)."""
    from transformers import ClapConfig, ClapModel

    audio = {
        "patch_embeds_hidden_size": architecture.patch_width,
        "hidden_size": architecture.patch_width * 2 ** (len(architecture.depths) - 1),
        "depths": list(architecture.depths),
        "enable_fusion": architecture.is_fusion,
        "fusion_type": "aff_2d" if architecture.is_fusion else None,
    }
    network: nn.Module = ClapModel(ClapConfig(audio_config=audio))
    return network


def quantise(audio: torch.Tensor) -> torch.Tensor:
    """Waveforms as LAION-CLAP sees them: to 16 bit by truncation towards zero, and back."""
    return (audio.clamp(-1, 1) * 32767).trunc() / 32767


def log_mel(audio: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Log-mel power in dB [batch, frames, 64] of waveforms [batch, samples] at 48 kHz.

    Args:
        audio: waveforms.
        filters: mel filters [64, 513].
    """
    import torch

    window = torch.hann_window(FFT, device=audio.device, dtype=audio.dtype)
    spectrum = torch.stft(
        audio, FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    mel = filters @ spectrum.abs().square()
    decibels: torch.Tensor = 10 * torch.log10(mel.clamp_min(1e-10))
    return decibels.transpose(1, 2)


def middle_starts(n_frames: int) -> list[int]:
    """The first frames of three crops of 1001: front, middle and back of a clip.

    The paper (section 2.3) draws each at random from its third of all possible starts; here
    it is the middle of that third. Where there are fewer than three starts a third may be
    empty, and its crop starts at 0 as LAION's does.

    Args:
        n_frames: frames in the clip's mel, more than 1001.

    Examples:
        >>> middle_starts(1401)
        [66, 200, 334]
    """
    import numpy as np

    thirds = np.array_split(np.arange(n_frames - MODEL_FRAMES + 1), 3)
    return [int(third[0] + third[-1]) // 2 if len(third) else 0 for third in thirds]


def fusion_channels(mel: torch.Tensor, starts: Sequence[int]) -> torch.Tensor:
    """What a fusion model takes of a long clip [4, 1001, 64]: its whole, and three crops.

    The whole is resized to 1001 frames, bilinear with antialiasing, as LAION-CLAP does with
    torchvision 0.17 and later. Older torchvision, and transformers' own extractor, do it
    without: some 0.35 dB of difference on average. Which of them made a store that others
    have published cannot be told from the store.

    Args:
        mel: log-mel [frames, 64] of the whole clip, more than 1001 frames.
        starts: the first frames of the three crops.
    """
    import torch

    whole = torch.nn.functional.interpolate(
        mel[None, None], (MODEL_FRAMES, mel.shape[1]), mode="bilinear", antialias=True
    )
    crops = [mel[start : start + MODEL_FRAMES] for start in starts]
    return torch.stack([whole[0, 0], *crops])


def _repeated(audio: torch.Tensor) -> torch.Tensor:
    """A waveform [samples] repeated as often as it fits into ten seconds, then zeros."""
    import torch

    audio = audio.repeat(MODEL_SAMPLES // len(audio))
    return torch.nn.functional.pad(audio, (0, MODEL_SAMPLES - len(audio)))


@register("clap")
class Clap(CheckpointBackbone):
    """LAION-CLAP (HTSAT-tiny, RoBERTa-base) without fusion.

    `BackboneOptions.weights` may be a checkpoint of LAION-CLAP, the safetensors file that was
    made of one, or a folder saved by transformers.
    """

    outputs: ClassVar[dict[str, Kind]] = {
        "audio": "audio",
        "text": "text",
        "audio_raw": "audio",
        "text_raw": "text",
    }
    extra_outputs = frozenset({"audio_raw", "text_raw"})
    card = ModelCard(
        summary="language-audio model",
        licence="CC0 code; weights without a statement",
        fetches="its checkpoint and, for text, roberta-base's tokenizer, from the Hugging Face hub",
        file=_published("630k-audioset-best.pt"),
        parameters=153.5,
        gigaflops=11.8,
        training_data="LAION-Audio-630K (with Freesound), AudioSet",
        released="2023-02-28",  # the day on which the file was uploaded
        has_freesound=True,
        url=PAGE,
    )
    packages: ClassVar[dict[str, str]] = {"transformers": "pip install transformers"}
    architecture: ClassVar[Architecture] = Architecture(False, 96, (2, 2, 6, 2))

    window_seconds: ClassVar[float] = 10.0
    padding: ClassVar[Padding] = "tile"
    shortest_seconds: ClassVar[float | None] = None
    long_audio: ClassVar[str | None] = None

    def weights_path(self) -> Path | None:
        """See `CheckpointBackbone.weights_path`; the renamed tensors do without their source."""
        given = self.options.weights
        if given is not None and given.is_dir():
            if not (given / "config.json").is_file():
                return None
            names = ("model.safetensors", "pytorch_model.bin")
            return next((given / name for name in names if (given / name).is_file()), None)
        path = given or self.weight_file.path
        if path.is_file():
            return path
        kept = converted_path(path)
        return kept if provenance(kept).get("source") == path.name else None

    def missing(self) -> str:
        """See `Backbone.missing`."""
        given = self.options.weights
        if given is not None and given.is_dir() and self.weights_path() is None:
            return (
                f"{given} holds no config.json with model.safetensors: give a folder saved by "
                f"transformers, or the file {self.weight_file.name}, with --weights"
            )
        return super().missing()

    @property
    def weights_name(self) -> str:
        """See `CheckpointBackbone.weights_name`; renamed tensors go by their source's name."""
        path = self.weights_path()
        source = provenance(path).get("source") if path is not None else None
        return source or super().weights_name

    @cached_property
    def weights_sha256(self) -> str:
        """See `CheckpointBackbone.weights_sha256`; of the source, where tensors were renamed."""
        if self.device and not hasattr(self, "_path"):
            return state_digest(self.network)
        path = self.obtain()
        return provenance(path).get("source_sha256") or file_sha256(path)

    def load(self, device: str) -> None:
        """See `Backbone.load`; a tokenizer is needed only where text is wanted."""
        self.require()
        needs_text = not self.wanted or not self.wanted.isdisjoint(("text", "text_raw"))
        tokenizer = self._find_tokenizer() if needs_text else None
        sha256 = self.weights_sha256
        path = self._path
        try:
            state = read_converted(path, sha256, f"the weights of {self.name}")
            network = self.build(state)
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
            lines = str(error).strip().splitlines() or [repr(error)]
            raise BackboneUnavailable(
                f"{path} does not fit {self.name}: {lines[0]}; expected {self.weight_file.name}, "
                f"{self.architecture}; leave out --weights to have it fetched"
            ) from None
        self.attach(network, device, tokenizer)

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`; `state` is in transformers' names."""
        from transformers import ClapConfig, ClapModel

        given = self.options.weights
        if given is not None and given.is_dir():
            config = ClapConfig.from_dict(json.loads((given / "config.json").read_text()))
        else:
            config = ClapConfig(**config_of(state))
        audio = config.audio_config
        found = Architecture(
            bool(audio.enable_fusion), audio.patch_embeds_hidden_size, tuple(audio.depths)
        )
        if found != self.architecture:
            others = [c.name for c in (Clap, ClapFusion, ClapMusic) if c.architecture == found]
            hint = f" (it fits --backbone {others[0]})" if others else ""
            raise ValueError(f"it holds {found}{hint}")
        network = ClapModel(config)
        check_fit(state, network)
        network.load_state_dict(state, strict=False)
        return network  # type: ignore[no-any-return]

    def attach(self, network: nn.Module, device: str, tokenizer: Any = None) -> None:
        """Takes a ClapModel as it is, and its tokenizer if there is one."""
        import torch

        super().attach(network, device)
        self._tokenizer = tokenizer
        scale, norm = ("htk", "none") if self.architecture.is_fusion else ("slaney", "slaney")
        filters = mel_triangles(
            N_MELS, FFT, SAMPLE_RATE, LOW_HERTZ, HIGH_HERTZ, scale=scale, norm=norm
        )
        self._filters = torch.tensor(filters, dtype=torch.float32, device=device)

    def _find_tokenizer(self) -> Any:
        """RoBERTa's tokenizer: beside the weights, in the hub's cache here, or fetched.

        Raises:
            BackboneUnavailable: it is nowhere, or its files are not all there.
        """
        given = self.options.weights
        beside = (given or self.weight_file.path).parent / TOKENIZER
        folders = [beside, weights_folder() / TOKENIZER]
        if given is not None and given.is_dir():
            folders = [given, given / TOKENIZER, *folders]
        for folder in folders:
            if _holds_tokenizer(folder):
                return self._read_tokenizer(str(folder), beside)
        for name in (TOKENIZER, f"FacebookAI/{TOKENIZER}"):
            try:
                return self._read_tokenizer(name, beside)
            except BackboneUnavailable:
                continue
        # Not by transformers, which without a network tries for minutes before it gives up.
        try:
            paths = [fetch(file) for file in TOKENIZER_FILES]
        except BackboneUnavailable as error:
            raise BackboneUnavailable(
                f"{self.name} needs {TOKENIZER}'s tokenizer for text: {error}"
            ) from None
        return self._read_tokenizer(str(paths[0].parent), beside)

    def _read_tokenizer(self, source: str, beside: Path) -> Any:
        """The tokenizer in a folder, or of that name in the hub's cache on this machine."""
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            tokenizer = transformers.RobertaTokenizer.from_pretrained(source, local_files_only=True)
            problem = f"{source} has {len(tokenizer)} tokens, expected {VOCABULARY}"
        except Exception as error:  # of the hub, of tokenizers, of the disk
            tokenizer = ()
            problem = (str(error).strip().splitlines() or [repr(error)])[0]
        # Where its files are missing, transformers makes a tokenizer of five tokens, silently.
        if len(tokenizer) != VOCABULARY:
            raise BackboneUnavailable(
                f"{self.name} finds no tokenizer for text: {problem}; put vocab.json and "
                f"merges.txt of {TOKENIZER} into {beside}"
            )
        return tokenizer

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        kind = self.outputs[self.output_named(output)]
        is_audio = kind == "audio"
        model: Any = self.network if self.device else None
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind=kind,
            dim=int(model.config.projection_dim) if model is not None else 512,
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=1,
            layer="projection",
            pooling="mean of windows weighted by samples" if is_audio else "first token",
            normalize="none" if output in self.extra_outputs else "l2",
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=SAMPLE_RATE if is_audio else None,
            gain="16-bit quantised" if is_audio else None,
            window_seconds=self.window_seconds if is_audio else None,
            hop_seconds=self.window_seconds if is_audio else None,
            padding=self.padding if is_audio else None,
            shortest_seconds=self.shortest_seconds if is_audio else None,
            long_audio=self.long_audio if is_audio else None,
            text_template=None if is_audio else self.options.text_template,
            max_tokens=None if is_audio else MAX_TOKENS,
        )

    def front_end(
        self, audio: torch.Tensor, valid: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-mels [batch, channels, 1001, 64] and whether [batch, 1] each is of a long clip.

        Args:
            audio: quantised waveforms [batch, samples].
            valid: real samples in each.
        """
        import torch

        padded = torch.nn.functional.pad(audio, (0, MODEL_SAMPLES - audio.shape[1]))
        mel = log_mel(padded, self._filters).unsqueeze(1)
        return mel, torch.zeros(len(audio), 1, dtype=torch.bool, device=audio.device)

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`. The projections are not scaled to length 1; the clip's mean is.

        So both outputs are the same array here, and their specs tell them apart.
        """
        import torch

        with torch.inference_mode():
            waveform = quantise(torch.from_numpy(audio).to(self.device))
            mel, is_longer = self.front_end(waveform, [int(n) for n in valid])
        projected = self.project(mel, is_longer)
        return {"audio": projected, "audio_raw": projected}

    def project(self, mel: torch.Tensor, is_longer: torch.Tensor) -> FloatArray:
        """Projections [batch, dim] of log-mels, see `front_end`."""
        model: Any = self.network
        with self.forward():
            # Left to itself, transformers' extractor marks a clip as long at random when none is.
            pooled = model.audio_model(input_features=mel, is_longer=is_longer).pooler_output
            projected: FloatArray = model.audio_projection(pooled).float().cpu().numpy()
        return projected

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """See `Backbone.embed_texts`."""
        if self._tokenizer is None:
            self._tokenizer = self._find_tokenizer()
        inputs = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        model: Any = self.network
        with self.forward():
            pooled = model.text_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).pooler_output
            projected: FloatArray = model.text_projection(pooled).float().cpu().numpy()
        return {"text": projected, "text_raw": projected}


def _holds_tokenizer(folder: Path) -> bool:
    names = [("tokenizer.json",), ("vocab.json", "merges.txt")]
    return any(all((folder / name).is_file() for name in group) for group in names)


@register("clap-fusion")
class ClapFusion(Clap):
    """LAION-CLAP (HTSAT-tiny, RoBERTa-base) with fusion, the checkpoint of the challenge's store.

    A window of up to ten seconds is repeated to ten and seen four times alike, which the
    model takes as it is; a longer one is seen as its whole and three crops, which it fuses
    (paper, section 2.3). The crops' places are fixed, so the same clip always gives the same
    numbers, which LAION's own code does not; a clip over forty seconds is cut into windows.
    """

    card = replace(
        Clap.card,
        summary="language-audio model, fusion for long clips",
        file=_published("630k-audioset-fusion-best.pt"),
    )
    architecture = Architecture(True, 96, (2, 2, 6, 2))
    window_seconds = 40.0
    padding = "zeros"
    shortest_seconds = 10.0
    long_audio = (
        "up to 10 s repeated whole, then zeros; longer fused from the whole mel resized to 1001 "
        "frames (bilinear, antialiased) and three crops of 1001 frames that start in the middle "
        "of each third of the possible starts"
    )

    def front_end(
        self, audio: torch.Tensor, valid: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Clap.front_end`; four channels."""
        import torch

        mels, is_longer = [], []
        for row, n in zip(audio, valid, strict=True):
            real = row[: max(n, 1)]
            whole = real if len(real) > MODEL_SAMPLES else _repeated(real)
            mel = log_mel(whole[None], self._filters)[0]
            # up to 479 samples over ten seconds make no frame more, and are not long
            is_longer.append(len(mel) > MODEL_FRAMES)
            mels.append(
                fusion_channels(mel, middle_starts(len(mel)))
                if is_longer[-1]
                else mel.expand(4, -1, -1)
            )
        return torch.stack(mels), torch.tensor(is_longer, device=audio.device)[:, None]


@register("clap-music")
class ClapMusic(Clap):
    """LAION-CLAP (HTSAT-base, RoBERTa-base) without fusion, trained on music and AudioSet."""

    card = replace(
        Clap.card,
        summary="language-audio model for music",
        file=_published("music_audioset_epoch_15_esc_90.14.pt"),
        parameters=193.9,
        gigaflops=30.7,
        training_data=f"{Clap.card.training_data}, music",
        released="2023-04-08",
    )
    architecture = Architecture(False, 128, (2, 2, 12, 2))
