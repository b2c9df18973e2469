"""What `import bsdkit` offers that brings several rooms together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bsdkit.recipe.schema import Recipe
from bsdkit.report.page.collect import write_report
from bsdkit.runs.fit import FitResult, fit_recipe

__all__ = ["fit"]


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
