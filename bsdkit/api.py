"""What `import bsdkit` offers that brings several rooms together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsdkit.backbones.base import Backbone, BackboneOptions, Precision
from bsdkit.backbones.registry import get_backbone
from bsdkit.device import check_device
from bsdkit.recipe.schema import Recipe
from bsdkit.report.page.collect import write_report
from bsdkit.runs.fit import FitResult, fit_recipe

__all__ = ["fit", "load_backbone"]


def fit(
    recipe: Recipe,
    runs: Path | str = "runs",
    *,
    device: str = "cpu",
    reuse: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> FitResult:
    """Trains, combines and scores a recipe, and writes ``runs/<name>/`` with its report page.

    Arguments and errors are those of `bsdkit.runs.fit.fit_recipe`.
    """
    return fit_recipe(
        recipe,
        Path(runs),
        device=device,
        reuse=reuse,
        on_step=on_step,
        write_page=lambda run, page, store: write_report(run, page, store, umap=False),
    )


def load_backbone(
    name: str,
    device: str = "cpu",
    *,
    weights: Path | str | None = None,
    precision: Precision = "float32",
) -> Backbone:
    """A backbone that is ready to embed.

    Args:
        name: a registered name (``bsdkit backbones`` lists them), ``hf:MODEL`` or ``hear:MODULE``.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        weights: a file to use instead of the backbone's own weights.
        precision: number type of the model's products.

    Raises:
        UnknownBackbone: there is none of that name.
        BackboneUnavailable: a package or weights are missing; the message says how to get them.
    """
    check_device(device)
    options = BackboneOptions(weights=Path(weights) if weights else None, precision=precision)
    backbone = get_backbone(name, options)
    backbone.prepare(device)
    return backbone
