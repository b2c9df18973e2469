"""LAION-CLAP's checkpoints for transformers' ClapModel: names, sizes, and one safetensors file.

The checkpoints are pickles of two gigabytes in names of their own. Their tensors are renamed
once, the query, key and value that LAION keeps in one tensor are cut apart, what only training
uses is left out, and the rest is saved beside the checkpoint. Nothing is guessed: a tensor
that is neither renamed nor on the list of what is left out is refused by name.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsdkit.backbones.weights import read_state

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "LEFT_OUT",
    "check_fit",
    "config_of",
    "convert",
    "converted_path",
    "provenance",
    "read_converted",
    "transformers_names",
]

_log = logging.getLogger(__name__)

FORMAT = "bsdkit-clap-1"

LEFT_OUT = (
    # the waveform's spectrum, which our front end computes
    r"audio_branch\.(spectrogram_extractor|logmel_extractor)\..+",
    # the classifier that HTSAT was first trained with
    r"audio_branch\.(tscam_conv|head)\..+",
    # constants that transformers computes
    r"audio_branch\.layers\.\d+\.blocks\.\d+\.attn_mask",
    r"text_branch\.embeddings\.(position_ids|token_type_ids)",
    # what only the training loss uses
    r"logit_scale(_a|_t)?",
    r"(audio|text)_transform\..+",
)
"""Patterns of the tensors that no embedding depends on."""

_BLOCK = r"audio_branch\.layers\.(\d+)\.blocks\.(\d+)\."
_OUR_BLOCK = r"audio_model.audio_encoder.layers.\1.blocks.\2."
_RULES = (
    (r"audio_branch\.bn0\.(\w+)", (r"audio_model.audio_encoder.batch_norm.\1",)),
    (r"audio_branch\.(norm\.\w+)", (r"audio_model.audio_encoder.\1",)),
    (
        r"audio_branch\.(patch_embed\.(?:proj|norm|mel_conv2d|fusion_model)\..+)",
        (r"audio_model.audio_encoder.\1",),
    ),
    (
        r"audio_branch\.(layers\.\d+\.downsample\.(?:reduction|norm)\.\w+)",
        (r"audio_model.audio_encoder.\1",),
    ),
    (_BLOCK + r"norm1\.(\w+)", (_OUR_BLOCK + r"layernorm_before.\3",)),
    (_BLOCK + r"norm2\.(\w+)", (_OUR_BLOCK + r"layernorm_after.\3",)),
    (_BLOCK + r"attn\.(relative_\w+)", (_OUR_BLOCK + r"attention.self.\3",)),
    (
        _BLOCK + r"attn\.qkv\.(\w+)",
        tuple(_OUR_BLOCK + rf"attention.self.{part}.\3" for part in ("query", "key", "value")),
    ),
    (_BLOCK + r"attn\.proj\.(\w+)", (_OUR_BLOCK + r"attention.output.dense.\3",)),
    (_BLOCK + r"mlp\.fc1\.(\w+)", (_OUR_BLOCK + r"intermediate.dense.\3",)),
    (_BLOCK + r"mlp\.fc2\.(\w+)", (_OUR_BLOCK + r"output.dense.\3",)),
    (r"(audio|text)_projection\.0\.(\w+)", (r"\1_projection.linear1.\2",)),
    (r"(audio|text)_projection\.2\.(\w+)", (r"\1_projection.linear2.\2",)),
    (r"text_branch\.(.+)", (r"text_model.\1",)),
)

_CONSTANT = re.compile(
    r"logit_scale_[at]|text_model\.embeddings\.(position_ids|token_type_ids)"
    r"|.+\.num_batches_tracked|.+\.relative_position_index"
)
"""What a ClapModel computes itself, or no embedding depends on."""

_ROBERTA_HEAD = 64
"""Numbers in an attention head of RoBERTa at every size; the tensors do not tell."""


def transformers_names(name: str) -> tuple[str, ...]:
    """The names that a tensor of LAION-CLAP has in transformers' ClapModel.

    None for what is left out; three for query, key and value in one tensor, in this order.

    Args:
        name: a name in LAION-CLAP's checkpoint, without ``module.`` before it.

    Raises:
        ValueError: it is no tensor of LAION-CLAP.

    Examples:
        >>> transformers_names("audio_projection.2.bias")
        ('audio_projection.linear2.bias',)
        >>> transformers_names("logit_scale_a")
        ()
    """
    if any(re.fullmatch(pattern, name) for pattern in LEFT_OUT):
        return ()
    for pattern, templates in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return tuple(match.expand(template) for template in templates)
    raise ValueError(f"its tensor {name!r} is none of LAION-CLAP")


def convert(checkpoint: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a LAION-CLAP checkpoint by transformers' names.

    Args:
        checkpoint: the state dict, or what its trainer saved around it.

    Raises:
        ValueError: a tensor is none of LAION-CLAP.
    """
    state = checkpoint.get("state_dict", checkpoint)
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        names = transformers_names(name.removeprefix("module."))
        if not names:
            continue
        parts = [tensor] if len(names) == 1 else tensor.chunk(len(names))
        if len(parts) != len(names):
            raise ValueError(
                f"its tensor {name!r} of shape {tuple(tensor.shape)} cannot be cut in three"
            )
        # copies, because safetensors saves no two tensors that share memory
        converted.update((ours, part.clone()) for ours, part in zip(names, parts, strict=True))
    return converted


def config_of(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Arguments of a ClapConfig with the sizes of these tensors.

    What tensors do not tell is as LAION trained: images of 256 x 256, RoBERTa's 64 numbers a
    head and its layer norm's epsilon of 1e-5 (the default of ClapConfig is BERT's, 1e-12).

    Args:
        state: tensors by transformers' names.

    Raises:
        ValueError: a tensor that tells a size is not there.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in state:
            raise ValueError(f"it lacks the tensor {name!r}")
        return tuple(state[name].shape)

    encoder, text = "audio_model.audio_encoder.", "text_model."
    bias = "attention.self.relative_position_bias_table"
    n_layers = _count(state, encoder + r"layers\.(\d+)\.")
    depths = [_count(state, encoder + rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(n_layers)]
    tables = [shape(f"{encoder}layers.{i}.blocks.0.{bias}") for i in range(n_layers)]
    if not tables:
        raise ValueError(f"it lacks the tensor '{encoder}layers.0.blocks.0.{bias}'")
    patch_width, _, patch, _ = shape(encoder + "patch_embed.proj.weight")
    n_hidden, n_inputs = shape(encoder + "layers.0.blocks.0.intermediate.dense.weight")
    squeeze = encoder + "patch_embed.fusion_model.local_att.0.weight"
    is_fusion = squeeze in state
    width = shape(text + "embeddings.word_embeddings.weight")[1]
    projection = shape("audio_projection.linear2.weight")[0]
    audio_config = {
        # a table has a row for every offset in a window, from 1 - size to size - 1 both ways
        "window_size": (round(tables[0][0] ** 0.5) + 1) // 2,
        "num_mel_bins": shape(encoder + "batch_norm.weight")[0],
        "spec_size": 256,
        "patch_size": patch,
        "patch_stride": [patch, patch],
        "patch_embeds_hidden_size": patch_width,
        "hidden_size": shape(encoder + "norm.weight")[0],
        "depths": depths,
        "num_hidden_layers": n_layers,
        "num_attention_heads": [table[1] for table in tables],
        "mlp_ratio": n_hidden / n_inputs,
        "enable_fusion": is_fusion,
        "fusion_type": "aff_2d" if is_fusion else None,
        "aff_block_r": patch_width // shape(squeeze)[0] if is_fusion else 4,
        "projection_dim": projection,
    }
    text_config = {
        "vocab_size": shape(text + "embeddings.word_embeddings.weight")[0],
        "hidden_size": width,
        "num_hidden_layers": _count(state, text + r"encoder\.layer\.(\d+)\."),
        "num_attention_heads": max(1, width // _ROBERTA_HEAD),
        "intermediate_size": shape(text + "encoder.layer.0.intermediate.dense.weight")[0],
        "max_position_embeddings": shape(text + "embeddings.position_embeddings.weight")[0],
        "type_vocab_size": shape(text + "embeddings.token_type_embeddings.weight")[0],
        "layer_norm_eps": 1e-5,
        "projection_dim": projection,
    }
    return {
        "audio_config": audio_config,
        "text_config": text_config,
        "projection_dim": projection,
    }


def _count(names: Iterable[str], pattern: str) -> int:
    """How many numbers, counted from 0, a pattern's group takes in the names."""
    found = (re.match(pattern, name) for name in names)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def check_fit(state: Mapping[str, torch.Tensor], model: nn.Module) -> None:
    """Compares tensors with those of a ClapModel, apart from constants.

    Raises:
        ValueError: they differ; the first tensor that does is named.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(
                f"its tensor {name!r} has shape {tuple(state[name].shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
        if name not in state and not _CONSTANT.fullmatch(name):
            raise ValueError(f"it lacks the tensor {name!r}")
    for name in state:
        if name not in expected and not _CONSTANT.fullmatch(name):
            raise ValueError(f"its tensor {name!r} has no place in the model")


def converted_path(checkpoint: Path) -> Path:
    """Where the renamed tensors of a checkpoint are kept: beside it, as ``.safetensors``."""
    return checkpoint.with_suffix(".safetensors")


def provenance(path: Path) -> dict[str, str]:
    """``source`` and ``source_sha256`` of a file of renamed tensors; empty for any other file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
    except Exception:  # safetensors has an error class of its own; reading will name the fault
        return {}
    return metadata if metadata.get("format") == FORMAT else {}


def read_converted(path: Path, sha256: str, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a weight file by transformers' names, renamed and saved the first time.

    Args:
        path: a checkpoint of LAION-CLAP, a file of renamed tensors, or one by transformers.
        sha256: the digest of a checkpoint of LAION-CLAP.
        what: what it should be, for messages.

    Raises:
        BackboneUnavailable: the file cannot be read.
        ValueError: a tensor is none of LAION-CLAP.
    """
    if path.suffix == ".safetensors":
        state = read_state(path, what)
        is_renamed = any(name.startswith(("audio_model.", "text_model.")) for name in state)
        return state if is_renamed else convert(state)
    kept = converted_path(path)
    if provenance(kept).get("source_sha256") == sha256:
        return read_state(kept, what)
    state = read_state(path, what)
    if any(name.startswith("audio_model.") for name in state):
        return state
    converted = convert(state)
    if kept.exists() and not provenance(kept):
        _log.warning("%s is not ours, so the renamed tensors of %s are not kept", kept, path.name)
        return converted
    _save(converted, kept, {"format": FORMAT, "source": path.name, "source_sha256": sha256})
    return converted


def _save(state: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file in one piece; a folder that cannot be written to is no fault."""
    from safetensors.torch import save_file

    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(state, part, metadata)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except Exception as error:  # safetensors wraps errors of the disk in a class of its own
        _log.warning("the renamed tensors cannot be kept at %s: %s", path, error)
    finally:
        part.unlink(missing_ok=True)
