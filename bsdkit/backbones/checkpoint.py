"""Backbones whose weights are one file, read into a network of their own."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.base import Backbone, BackboneOptions, state_digest
from bsdkit.backbones.weights import WeightFile, check_sha256, fetch, file_sha256, read_state
from bsdkit.errors import BackboneError, BackboneUnavailable
from bsdkit.onednn import keep_grouped_exact, speed_up

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CheckpointBackbone"]


class CheckpointBackbone(Backbone):
    """A backbone that reads one weight file into a network of its own.

    A subclass names the file on its card, builds the network from what the file holds, and
    embeds with ``self.network``. Tests give it a small network by `attach`.
    """

    packages: ClassVar[Mapping[str, str]] = {}
    """Modules that it needs and the command that installs each."""

    network: nn.Module

    def __init__(self, options: BackboneOptions | None = None) -> None:
        super().__init__(options)
        # another file may have other sizes, which only reading it tells
        self.needs_load_for_spec = self.options.weights is not None

    @property
    def weight_file(self) -> WeightFile:
        """The published file; `BackboneOptions.weights` stands in for it."""
        assert self.card.file is not None
        return self.card.file

    def weights_path(self) -> Path | None:
        """The weight file on this machine, or None."""
        if self.options.weights is not None:
            return self.options.weights if self.options.weights.is_file() else None
        path = self.weight_file.path
        return path if path.is_file() else None

    def missing(self) -> str:
        """See `Backbone.missing`; a file that can be fetched is not missing."""
        import importlib.util

        for module, command in self.packages.items():
            if importlib.util.find_spec(module) is None:
                return f"it needs {module}: {command}"
        if self.weights_path() is not None:
            return ""
        if self.options.weights is not None:
            if self.options.weights.is_dir():
                return f"{self.options.weights} is a folder: give the weight file in it"
            return f"no weight file at {self.options.weights}"
        return "" if self.weight_file.url else self.weight_file.instructions()

    def weight_state(self) -> str:
        """See `Backbone.weight_state`."""
        path = self.weights_path()
        if path is not None:
            return f"weights at {path}"
        digest = f"sha256 {self.weight_file.sha256}" if self.weight_file.sha256 else "no sha256"
        return (
            f"fetches {self.weight_file.url} at first use to {self.weight_file.path} ({digest}); "
            "without a network put it there yourself"
        )

    @cached_property
    def weights_sha256(self) -> str:
        """The digest that goes into the spec: of the file, or of a network given by `attach`.

        Raises:
            BackboneUnavailable: the file is neither here nor can it be fetched.
        """
        if self.device and not hasattr(self, "_path"):
            return state_digest(self.network)
        return file_sha256(self.obtain())

    @property
    def weights_name(self) -> str:
        """The name of the weights for the spec: never a path of one machine."""
        weights = self.options.weights
        return Path(os.path.abspath(weights)).name if weights else self.weight_file.name

    def obtain(self) -> Path:
        """The weight file, fetched if need be, and the one that was expected.

        Raises:
            BackboneUnavailable: it is neither here nor can it be fetched, or is another file.
        """
        self.require()
        path = self.weights_path() or fetch(self.weight_file)
        if self.options.weights is None and self.weight_file.sha256:
            check_sha256(path, self.weight_file.sha256, self.weight_file.name)
        self._path = path
        return path

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        path = self.obtain()
        state = read_state(path, f"the weights of {self.identity}")
        try:
            network = self.build(state)
        except BackboneError:
            raise
        except Exception as error:  # whatever the file holds, it is not what was expected
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise BackboneUnavailable(
                f"{path} does not fit {self.identity}: {first_line}; expected "
                f"{self.weight_file.name}: {self.weight_file.instructions()}"
            ) from None
        self.attach(network, device)

    @abstractmethod
    def build(self, state: dict[str, Any]) -> nn.Module:
        """The network with the weights that a file holds.

        Its sizes are read from the tensors (or a config beside them), never from a name.
        Any error means: not such a file.
        """

    def attach(self, network: nn.Module, device: str) -> None:
        """Takes a network as it is: in eval mode, without gradients, on that device."""
        self.network = network.eval().requires_grad_(False).to(device)
        if device == "cpu":
            speed_up(self.network)
            if self.options.precision != "float32":
                keep_grouped_exact(self.network)
        self.device = device
