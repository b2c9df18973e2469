"""Audio towers of Qwen's audio language models, and the language model's state for a prompt.

Chu et al., "Qwen2-Audio Technical Report", 2024; Xu et al., "Qwen2.5-Omni Technical Report",
2025; Xu et al., "Qwen3-Omni Technical Report", 2025.

``encoder`` and ``projector`` need the audio tower alone, so only its tensors are read.
``prompt`` reads the whole model: the language model's last hidden state at the last token of a
prompt that holds the clip and the text of its metadata. ``prior``, which is there when the
options hold a question, reads the language head too: the log-likelihood of each answer after a
prompt that holds the question, the clip and its text.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.cards import HUB, ModelCard
from bsdkit.backbones.qwen_base import WINDOW_FRAMES, WINDOW_SAMPLES, QwenBackbone, halved
from bsdkit.backbones.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Qwen2Audio", "Qwen3Omni", "Qwen25Omni", "published_network"]

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_TEXT = "The uploader's text about this sound: {text}"
_WORDS = _TEXT + "\nIn one word, this sound is:"


def published_network(name: str) -> nn.Module:
    """The audio tower of a published model, with the projector where that stands apart.

    Args:
        name: ``qwen2-audio``, ``qwen2.5-omni`` or ``qwen3-omni``.
    """
    cls = next(cls for cls in (Qwen2Audio, Qwen25Omni, Qwen3Omni) if cls.name == name)
    import transformers

    config = getattr(transformers, cls.config_class).from_dict(cls.published)
    return cls.build_parts(config)


def _card(
    hub: str, gigabytes: int, parameters: float, gigaflops: float, released: str
) -> ModelCard:
    """The card of a model; size and operations are the audio tower's."""
    return ModelCard(
        summary="audio tower of a language model",
        licence="Apache-2.0",
        fetches=f"the shards of {hub} that hold its audio tower, for `prompt` all "
        f"({gigabytes} GB), from the Hugging Face hub",
        hub=hub,
        parameters=parameters,
        gigaflops=gigaflops,
        training_data="speech, sound and music; sources not published",
        released=released,
        url=f"{HUB}/{hub}",
    )


@register("qwen2-audio")
class Qwen2Audio(QwenBackbone):
    """Qwen2-Audio 7B, the model that is not tuned for chat.

    Its tower takes 3000 mel frames whatever the clip's length; padding is kept from
    attention and from the mean.
    """

    card = _card("Qwen/Qwen2-Audio-7B", 17, 642.2, 2281.6, "2024")
    model_types = ("qwen2_audio",)
    config_class = "Qwen2AudioConfig"
    model_class = "Qwen2AudioForConditionalGeneration"
    tower_class = ("transformers.models.qwen2_audio.modeling_qwen2_audio", "Qwen2AudioEncoder")
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280,
                         "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120},
        "text_config": {"model_type": "qwen2", "hidden_size": 4096},
    }  # fmt: skip
    encoder_point = "audio tower, after average pooling by 2 and the final layer norm"
    projector_point = "multi-modal projector (width of the language model)"
    prompt = "<|audio_bos|>{audio}<|audio_eos|>" + _WORDS
    question_prompt = "{question}\n\n<|audio_bos|>{audio}<|audio_eos|>" + _TEXT + "\nLabel:"
    answer_form = (" ", "\n")
    markers = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    least_frames = 3

    @classmethod
    def build_parts(cls, config: Any) -> nn.Module:
        """The audio tower and the projector; see `QwenBackbone.build_parts`."""
        from torch import nn

        parts = super().build_parts(config)
        width = config.audio_config.d_model
        parts.multi_modal_projector = nn.Module()
        parts.multi_modal_projector.linear = nn.Linear(width, config.text_config.hidden_size)
        return parts

    def _projector_width(self) -> int:
        if self.device:
            return int(self._projector.linear.out_features)
        return int(self._config.text_config.hidden_size)

    def _shortest_seconds(self) -> float | None:
        return None

    def _least_samples(self) -> int:
        return WINDOW_SAMPLES

    def _run_tower(
        self, mel: torch.Tensor, n_frames: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        lengths = torch.tensor([halved(n) for n in n_frames], device=mel.device)
        positions = torch.arange(halved(WINDOW_FRAMES), device=mel.device)
        mask = (positions < lengths[:, None])[:, None, None, :]  # [batch, 1, 1, 1500]
        states = self._tower(mel, attention_mask=mask).last_hidden_state
        projected = self._projector.linear(states)
        n_states = [halved(n) // 2 for n in n_frames]
        return [(states[i, :n], projected[i, :n]) for i, n in enumerate(n_states)]


class _Omni(QwenBackbone):
    """What the two Omni models share: windows of any length, side by side in one sequence."""

    answer_form = ("", "<|im_end|>")
    question_prompt = (
        "<|im_start|>system\n{question}<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>" + _TEXT + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = (
        _SYSTEM + "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>" + _WORDS + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    markers = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")

    def _n_states(self, n_frames: int) -> int:
        """States of a window with that many mel frames."""
        raise NotImplementedError

    def _run_tower(
        self, mel: torch.Tensor, n_frames: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        # A window is cut into chunks that are padded to the longest one of the call, and the
        # convolutions see that padding. Windows with a whole chunk have the same longest one
        # alone or together; shorter ones only beside others of their own length.
        chunk = 2 * int(self._tower.config.n_window)
        groups: dict[int, list[int]] = defaultdict(list)
        for row, n in enumerate(n_frames):
            groups[min(n, chunk)].append(row)
        result: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for rows in groups.values():
            packed = torch.cat([mel[row, :, : n_frames[row]] for row in rows], dim=1)
            lengths = torch.tensor([n_frames[row] for row in rows], device=mel.device)
            before, after = self._run_packed(packed, lengths)
            sizes = [self._n_states(n_frames[row]) for row in rows]
            pairs = zip(torch.split(before, sizes), torch.split(after, sizes), strict=True)
            result.update(zip(rows, pairs, strict=True))
        return [result[row] for row in range(len(n_frames))]

    def _run_packed(
        self, packed: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States [n, d_model] after ``ln_post`` and [n, output_dim] at the end of the tower.

        Args:
            packed: log-mel [mels, frames] of all windows, one after the other.
            lengths: frames of each.
        """
        normed: list[torch.Tensor] = []
        hook = self._tower.ln_post.register_forward_hook(
            lambda module, inputs, output: normed.append(output)
        )
        try:
            states = self._tower(packed, feature_lens=lengths).last_hidden_state
        finally:
            hook.remove()
        return normed[0], states


@register("qwen2.5-omni")
class Qwen25Omni(_Omni):
    """The thinker of Qwen2.5-Omni 7B; attention within chunks of two seconds."""

    card = _card("Qwen/Qwen2.5-Omni-7B", 22, 639.6, 645.5, "2025-03")
    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    config_class = "Qwen2_5OmniThinkerConfig"
    model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    tower_class = (
        "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni",
        "Qwen2_5OmniAudioEncoder",
    )
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120, "output_dim": 3584, "n_window": 100},
    }  # fmt: skip
    encoder_point = "audio tower, after average pooling by 2 and ln_post, before proj"
    projector_point = "audio tower, after proj (width of the language model)"
    least_frames = 3

    def _n_states(self, n_frames: int) -> int:
        return halved(n_frames) // 2


@register("qwen3-omni")
class Qwen3Omni(_Omni):
    """The thinker of Qwen3-Omni 30B-A3B; convolutions within chunks of one second."""

    card = _card("Qwen/Qwen3-Omni-30B-A3B-Instruct", 70, 647.9, 211.2, "2025-09")
    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    config_class = "Qwen3OmniMoeThinkerConfig"
    model_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    tower_class = (
        "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe",
        "Qwen3OmniMoeAudioEncoder",
    )
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120, "output_dim": 2048, "n_window": 50,
                         "n_window_infer": 800, "downsample_hidden_size": 480},
    }  # fmt: skip
    encoder_point = "audio tower, after ln_post, before proj1"
    projector_point = "audio tower, after proj2 (width of the language model)"
    prompt = (
        "<|im_start|>user\n<|audio_start|>{audio}<|audio_end|>" + _WORDS + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    question_prompt = (
        "<|im_start|>system\n{question}<|im_end|>\n"
        "<|im_start|>user\n<|audio_start|>{audio}<|audio_end|>" + _TEXT + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    markers = ("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>")
    least_frames = 1

    def _n_states(self, n_frames: int) -> int:
        chunk = 2 * int(self._tower.config.n_window)
        return n_frames // chunk * halved(chunk, 3) + halved(n_frames % chunk, 3)
