"""Class scores of clips written as a prior."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from bsdkit.store.feature import (
    FAILED,
    OK,
    FeatureRows,
    feature_path,
    write_changed_feature,
)
from bsdkit.store.kinds import PRIOR, Spec
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy

__all__ = ["prior_facts", "prior_of_scores"]


def prior_of_scores(
    store: Store,
    name: str,
    spec: Spec,
    rows: FeatureRows,
    scores: npt.NDArray[np.float64],
    provenance: Mapping[str, object],
) -> Path:
    """Writes the softmax of scores [n, n_classes] as a prior; returns its file.

    Nothing is written where the file is there with the same rows already.

    Args:
        store: where.
        name: the feature's name.
        spec: its spec.
        rows: whose ids, sources, states and reasons the prior has; failed ones fail again.
        scores: logits of the classes.
        provenance: see `write_feature`.
    """
    is_ok = rows.state == OK
    probabilities = np.where(is_ok[:, None], softmax(np.nan_to_num(scores), axis=1), 0.0)
    made = FeatureRows(
        ids=rows.ids,
        source_sha256=rows.source_sha256,
        state=np.where(is_ok, OK, FAILED).astype(np.uint8),
        reasons=rows.reasons,
        embedding=probabilities.astype(np.float32),
    )
    path = feature_path(store.path, name, spec)
    write_changed_feature(path, name, spec, made, provenance)
    return path


def prior_facts(taxonomy: Taxonomy) -> dict[str, object]:
    """What the specs of all priors over these classes have in common."""
    return {
        "kind": PRIOR,
        "dim": len(taxonomy),
        "dtype": "float32",
        "classes": list(taxonomy.labels),
    }
