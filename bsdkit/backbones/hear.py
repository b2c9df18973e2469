"""Any package with the HEAR API: ``hear:<module>``.

The contract of the HEAR benchmark (Turian et al., "HEAR: Holistic Evaluation of Audio
Representations", PMLR 176, 2022): a module with ``load_model(path)``, whose model has
``sample_rate``, ``scene_embedding_size`` and ``timestamp_embedding_size``;
``get_scene_embeddings(audio, model)`` from [n_sounds, n_samples] to [n_sounds, dim]; and
``get_timestamp_embeddings(audio, model)`` to [n_sounds, n_timestamps, dim] and the timestamps
[n_sounds, n_timestamps] in milliseconds.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.base import (
    Backbone,
    BackboneOptions,
    BackboneSpec,
    FloatArray,
    IntArray,
    Kind,
    state_digest,
)
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.registry import register
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch

__all__ = ["Hear"]

WINDOW_SECONDS = 10.0
_FUNCTIONS = ("load_model", "get_scene_embeddings")
_TIMESTAMPS = "get_timestamp_embeddings"


@register("hear:")
class Hear(Backbone):
    """Embeddings of a HEAR module; windows of ten seconds, zero-padded, averaged.

    Scene embeddings are the module's; ``timestamps``, where the module has them, is the mean
    of its timestamp embeddings within real samples.
    """

    outputs: ClassVar[dict[str, Kind]] = {"": "audio"}
    card = ModelCard(
        summary="any package with the HEAR API",
        licence="the module's own",
        fetches="what the module fetches",
    )
    needs_load_for_spec = True

    def __init__(self, options: BackboneOptions | None = None) -> None:
        super().__init__(options)
        if self.options.argument and _has_timestamps(self.options.argument):
            self.outputs = {"": "audio", "timestamps": "audio"}  # type: ignore[misc]

    def missing(self) -> str:
        """See `Backbone.missing`."""
        module = self.options.argument
        return "" if _find(module) else f"no module {module!r}: install the package that has it"

    def _import(self) -> ModuleType:
        module = self.options.argument
        try:
            # HEAR packages like to print; standard output belongs to the user's results.
            with contextlib.redirect_stdout(io.StringIO()):
                imported = importlib.import_module(module)
        except Exception as error:  # whatever the package does on import, it is not usable
            raise BackboneUnavailable(
                f"{self.identity}: importing {module} failed: {error}"
            ) from None
        lacking = [name for name in _FUNCTIONS if not hasattr(imported, name)]
        if lacking:
            raise BackboneUnavailable(
                f"{self.identity}: {module} has no {lacking[0]}, so it does not follow the HEAR API"
            )
        return imported

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        self.require()
        self._module = self._import()
        path = self.options.weights
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self._model: Any = (
                    self._module.load_model(str(path)) if path else self._module.load_model()
                )
            self._model = self._model.eval().to(device)
            self._sample_rate = int(self._model.sample_rate)
        except Exception as error:  # whatever the package does, it is not usable
            raise BackboneUnavailable(
                f"{self.identity}: load_model failed: {type(error).__name__}: {error}"
            ) from None
        self._sha256 = state_digest(self._model)
        self.device = device
        self._dims = self._probe()

    def _probe(self) -> dict[str, int]:
        """Length of the embeddings by output, as one window of silence shows it.

        Some models announce the length of another mode than the one that they are in.

        Raises:
            BackboneUnavailable: what comes out is not what the HEAR API says.
        """
        import torch

        if "timestamps" in self.outputs and not hasattr(self._module, _TIMESTAMPS):
            raise BackboneUnavailable(
                f"{self.identity}: {self.options.argument} names {_TIMESTAMPS} in its source but "
                "has none once it is imported"
            )
        silence = torch.zeros(1, round(WINDOW_SECONDS * self._sample_rate), device=self.device)
        try:
            with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
                shapes = {"": tuple(self._module.get_scene_embeddings(silence, self._model).shape)}
                if "timestamps" in self.outputs:
                    vectors, times = self._module.get_timestamp_embeddings(silence, self._model)
                    shapes["timestamps"] = tuple(vectors.shape)
                    if tuple(times.shape) != shapes["timestamps"][:2]:
                        raise ValueError(f"{tuple(times.shape)} timestamps of {vectors.shape}")
        except Exception as error:
            raise BackboneUnavailable(
                f"{self.identity}: embedding {WINDOW_SECONDS:.0f} s of silence failed: "
                f"{type(error).__name__}: {error}"
            ) from None
        for output, shape in shapes.items():
            expected = "[1, timestamps, dim]" if output else "[1, dim]"
            if len(shape) != expected.count(",") + 1 or shape[0] != 1 or 0 in shape:
                raise BackboneUnavailable(
                    f"{self.identity}: embeddings of one window have shape {list(shape)}, "
                    f"expected {expected}, so it does not follow the HEAR API"
                )
        return {output: int(shape[-1]) for output, shape in shapes.items()}

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        own = "mean of timestamps within real samples" if output else "the module's"
        return BackboneSpec(
            backbone=self.identity,
            output=self.output_named(output),
            kind="audio",
            dim=self._dims[output],
            weights=Path(os.path.abspath(self.options.weights)).name
            if self.options.weights
            else "the module's default",
            weights_sha256=self._sha256,
            version=1,
            layer="timestamp embeddings" if output else "scene embedding",
            pooling=f"{own}; windows by mean weighted by samples",
            dtype=self.options.dtype,
            # the module's front end is inside it, and half precision would break that
            compute_dtype="float32",
            sample_rate=self._sample_rate,
            gain="none",
            window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS,
            padding="zeros",
        )

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`; makes only the outputs that are wanted."""
        import torch

        wanted = self.wanted or frozenset(self.outputs)
        result: dict[str, FloatArray] = {}
        with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()):
            waveform = torch.from_numpy(audio).to(self.device)
            if "" in wanted:
                vectors = self._module.get_scene_embeddings(waveform, self._model)
                result[""] = vectors.float().cpu().numpy()
            if "timestamps" in wanted:
                vectors, times = self._module.get_timestamp_embeddings(waveform, self._model)
                result["timestamps"] = self._mean(vectors, times, valid)
        return result

    def _mean(self, vectors: torch.Tensor, times: torch.Tensor, valid: IntArray) -> FloatArray:
        """The mean [batch, dim] of embeddings [batch, timestamps, dim] within real samples.

        Args:
            vectors: timestamp embeddings.
            times: timestamps [batch, timestamps] in milliseconds.
            valid: real samples [batch].
        """
        import torch

        times = torch.as_tensor(times, device=vectors.device).float()
        ends = torch.as_tensor(valid, device=vectors.device).float() * (1000 / self._sample_rate)
        is_real = times < ends[:, None]
        # a clip that ends before the first timestamp has that one
        is_real |= times == times.amin(dim=1, keepdim=True)
        weight = is_real.unsqueeze(-1).float()
        mean: FloatArray = ((vectors.float() * weight).sum(1) / weight.sum(1)).cpu().numpy()
        return mean


def _find(module: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _has_timestamps(module: str) -> bool:
    """Whether a module defines or imports the timestamp function, by its source alone.

    Importing it would bring in torch and whatever else only to list its outputs.
    """
    if module in sys.modules:
        return hasattr(sys.modules[module], _TIMESTAMPS)
    found = _find(module)
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return False
    try:
        tree = ast.parse(Path(found.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False  # `load` says what is wrong with it
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == _TIMESTAMPS:
            return True
        if isinstance(node, ast.ImportFrom | ast.Import) and any(
            (alias.asname or alias.name) == _TIMESTAMPS for alias in node.names
        ):
            return True
    return False
