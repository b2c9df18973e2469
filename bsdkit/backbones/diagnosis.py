"""What is ready on this machine and, for each backbone that is not, what to do."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bsdkit.backbones.base import Backbone
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.errors import BackboneError

__all__ = ["Diagnosis", "diagnose", "free_bytes", "gpus", "package_versions"]

_PACKAGES = (
    "torch", "numpy", "h5py", "soundfile", "soxr", "scikit-learn", "lightgbm", "optuna",
    "transformers", "safetensors", "ray", "universal-pathlib", "hear21passt", "laion-clap",
)  # fmt: skip
_BYTES_A_PARAMETER = 4
_ROOM = 1.5
"""How much of its weights a model needs in all: the weights, and what a batch makes."""


@dataclass(frozen=True)
class Diagnosis:
    """The state of one backbone.

    Attributes:
        name: the backbone.
        state: ``ready``, ``to fetch``, ``missing package``, ``missing weights`` or ``too
            little memory``; ``takes a name`` for the open ones.
        advice: what there is, or what to do.
    """

    name: str
    state: str
    advice: str


def free_bytes(device: str) -> int:
    """Memory that a model could have: of the GPU, or of the machine."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpus() -> dict[str, tuple[str, int]]:
    """Name and free bytes of each CUDA device that torch can use, by its own name."""
    import torch

    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [f"cuda:{i}" for i in range(n)]
    return {name: (torch.cuda.get_device_name(name), free_bytes(name)) for name in names}


def package_versions() -> dict[str, str]:
    """Versions of the packages that backbones and heads use; a dash for what is not there."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "-"
    return versions


def diagnose(classes: Mapping[str, type[Backbone]], device: str = "cpu") -> list[Diagnosis]:
    """The state of every backbone, in the order of the names."""
    free = free_bytes(device)
    return [_diagnose(name, cls, free, device) for name, cls in classes.items()]


def _diagnose(name: str, cls: type[Backbone], free: int, device: str) -> Diagnosis:
    if name.endswith(":"):
        return Diagnosis(name, "takes a name", f"say {name}NAME; {cls.card.summary}")
    try:
        backbone = cls()
        missing = backbone.missing()
    except BackboneError as error:
        return Diagnosis(name, "missing package", str(error))
    if missing:
        is_package = "pip install" in missing
        return Diagnosis(name, "missing package" if is_package else "missing weights", missing)
    if isinstance(backbone, CheckpointBackbone) and (path := backbone.weights_path()):
        size, least = path.stat().st_size, int((cls.card.parameters or 0) * 1e6)
        if path.is_file() and size < least:
            return Diagnosis(
                name,
                "missing weights",
                f"{path} has {size} bytes, expected at least {least}: it is cut short; delete it",
            )
    needed = int((cls.card.parameters or 0) * 1e6 * _BYTES_A_PARAMETER * _ROOM)
    if needed > free:
        return Diagnosis(
            name,
            "too little memory",
            f"it needs about {needed / 1e9:.1f} GB on {device}, {free / 1e9:.1f} GB are free; "
            "close other programs, or use a larger machine",
        )
    state = backbone.weight_state()
    is_here = not state.startswith("fetches")
    return Diagnosis(name, "ready" if is_here else "to fetch", state)
