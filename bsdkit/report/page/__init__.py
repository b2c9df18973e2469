"""The pages of a run and of two runs: one HTML file each that needs nothing else."""

from bsdkit.report.page.analysis import ambiguity, lost_credit
from bsdkit.report.page.compare import write_comparison
from bsdkit.report.page.data import (
    ClipColumns,
    ComparisonData,
    Curves,
    FeatureCoverage,
    PageData,
    Predictions,
    Projection,
    UploaderAudit,
)
from bsdkit.report.page.sections import write_page

__all__ = [
    "ClipColumns",
    "ComparisonData",
    "Curves",
    "FeatureCoverage",
    "PageData",
    "Predictions",
    "Projection",
    "UploaderAudit",
    "ambiguity",
    "lost_credit",
    "write_comparison",
    "write_page",
]
