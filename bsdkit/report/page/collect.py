"""What the pages of a run, and of two runs side by side, need to know of them."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from bsdkit.combine.reliability import reliability
from bsdkit.dataset import read_dataset
from bsdkit.dataset.groups import numbered
from bsdkit.errors import (
    BsdkitError,
    CorruptStore,
    DatasetError,
    RecipeError,
    TaxonomyError,
    nearest,
)
from bsdkit.leakage import NearDuplicates
from bsdkit.location import as_location, is_remote
from bsdkit.metrics import confusion_matrix
from bsdkit.report.page import (
    ClipColumns,
    ComparisonData,
    Curves,
    FeatureCoverage,
    PageData,
    Predictions,
    Projection,
    UploaderAudit,
    ambiguity,
    lost_credit,
    write_comparison,
    write_page,
)
from bsdkit.runs.folder import Run, load_run
from bsdkit.runs.near import audio_feature, near_copies
from bsdkit.splits import Split, shared_groups
from bsdkit.stats import principal_axes
from bsdkit.store.feature import FAILED, read_feature
from bsdkit.store.kinds import kind_of
from bsdkit.store.store import Store
from bsdkit.verdicts import compare_systems, judge

__all__ = ["comparison_of", "make_comparison", "make_report", "report_of", "write_report"]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_COMPARED = ("hF_strict", "hF", "hA", "accuracy", "top_accuracy")


def make_report(
    run: Path | str,
    *,
    store: Path | str | None = None,
    data: Path | str | None = None,
    out: Path | None = None,
) -> Path:
    """Writes the page of a run, and says where.

    Args:
        run: the run's folder.
        store: the store that it was fitted on; None for the one that its recipe names, where
            that is there.
        data: the dataset, for its sounds.
        out: the page; None for report.html in the run's folder.

    Raises:
        RecipeError: the folder is not a whole run.
        StoreError: the store given lacks what the run was fitted on.
        DatasetError: the dataset cannot be read.
    """
    loaded = load_run(run)
    opened: Store | None = None
    if store is not None:
        given = opened = Store(store)
        _check_store(loaded, given)
    else:
        with contextlib.suppress(BsdkitError, OSError):  # a page without a map is better than none
            opened = Store(loaded.recipe.store)
    page = out or loaded.folder / "report.html"
    _check_page(page)
    write_report(loaded, page, opened, data)
    return page


def _check_page(page: Path) -> None:
    """Refuses a page that cannot be written, before the work."""
    if page.is_dir():
        raise RecipeError(
            f"{page} is a folder; give the page's own name, e.g. {page / 'page.html'}"
        )


def write_report(
    run: Run,
    page: Path,
    store: Store | None = None,
    data: Path | str | None = None,
    *,
    umap: bool = True,
) -> None:
    """Writes the page of a run; arguments as those of `report_of`."""
    page.parent.mkdir(parents=True, exist_ok=True)
    write_page(page, report_of(run, store, data, page=page, umap=umap))


def report_of(
    run: Run,
    store: Store | None = None,
    data: Path | str | None = None,
    *,
    page: Path | None = None,
    umap: bool = True,
) -> PageData:
    """What the page of a run shows.

    Args:
        run: the run.
        store: the store that it was fitted on; without it there are no maps, no near-duplicates
            and no reasons why rows failed.
        data: the dataset, for its sounds; without it, none can be played.
        page: where the page will lie, which the sounds' URLs start from; None for the run's
            folder.
        umap: whether to add a map by UMAP where the package umap is installed.

    Raises:
        StoreError: a file of the run or of the store is broken.
        DatasetError: the dataset cannot be read.
    """
    clips, metrics = run.clips, run.metrics
    said, split, is_fallback = _out_of_fold(run, run.split)
    rows = split.tested
    labels, decided = clips.labels[rows], said.decided
    confidence = clips.confidence[rows]
    columns, notes = _columns(run, split, data, page or run.folder / "report.html")
    features, more = _coverage(run, store)
    notes += more
    duplicates, duplicates_in = None, ""
    mapped: tuple[str, ...] = ()
    maps: tuple[Projection, ...] = ()
    if store is not None:
        try:
            duplicates, duplicates_in = _duplicates(run, store, split)
            mapped, maps = _maps(run, store, rows, umap=umap)
        except BsdkitError as error:  # the run's own figures do not need the store
            notes.append(f"no map, since the store is not as it was: {error}")
    else:
        notes.append(
            f"the store {run.recipe.store} is not available: there is no map and near-duplicates "
            "were not looked for; bsdkit report --store STORE adds them"
        )
    return PageData(
        name=run.recipe.name,
        description=run.recipe.description,
        taxonomy=clips.taxonomy,
        metrics=metrics,
        facts=run.facts,
        clips=columns,
        predictions=said,
        reliability=reliability(said.probabilities, labels),
        lost=lost_credit(labels, decided, confidence, clips.taxonomy),
        ambiguity=ambiguity(labels, decided, confidence, len(clips.taxonomy)),
        features=features,
        fallback=tuple(str(clip) for clip in clips.ids[rows][is_fallback[rows]]),
        n_untested=len(clips) - len(rows),
        uploaders=tuple(_uploaders(run, name) for name in metrics["protocols"]),
        duplicates=duplicates,
        duplicates_in=duplicates_in,
        curves=_curves(run),
        mapped=mapped,
        projections=maps,
        notes=tuple(notes),
    )


def _out_of_fold(run: Run, split: str) -> tuple[Predictions, Split, npt.NDArray[np.bool_]]:
    """What a run says of the clips that a split tests, the folds, and who has the fallback."""
    found = run.out_of_fold(split)
    rows = found.split.tested
    said = Predictions(run.recipe.name, found.decided[rows], found.probabilities[rows])
    return said, found.split, found.is_fallback


def _columns(
    run: Run, split: Split, data: Path | str | None, page: Path
) -> tuple[ClipColumns, list[str]]:
    clips, rows, notes = run.clips, split.tested, []
    audio: list[str | None] = [None] * len(rows)
    if data is not None and is_remote(as_location(data)):
        notes.append("sounds of a dataset behind a URL cannot be played from a page")
    elif data is not None:
        try:
            there, _ = read_dataset(data, clips.taxonomy)
        except (DatasetError, TaxonomyError):  # labels do not matter here
            there, _ = read_dataset(data, "flat")
        paths = dict(zip(there.ids.tolist(), there.audio, strict=True))
        start = page.resolve().parent
        audio = [_url(paths.get(clip), start) for clip in clips.ids[rows].tolist()]
        n_lacking = audio.count(None)
        if n_lacking:
            notes.append(f"{n_lacking} of {len(rows)} clips have no sound in {data}")
    return (
        ClipColumns(
            ids=clips.ids[rows],
            titles=clips.title[rows],
            tags=clips.tags[rows],
            uploaders=clips.uploader[rows],
            labels=clips.labels[rows],
            folds=split.fold[rows],
            audio=tuple(audio),
        ),
        notes,
    )


def _url(path: Path | None, start: Path) -> str | None:
    """The path of a sound as a URL relative to a folder; None where there is no such file."""
    if path is None or not path.is_file():
        return None
    try:
        return quote(Path(os.path.relpath(path.resolve(), start)).as_posix())
    except ValueError:  # another drive
        return path.resolve().as_uri()


def _check_store(run: Run, store: Store) -> None:
    """Refuses a store that is not the one that a run was fitted on.

    Raises:
        StoreError: a feature is missing or of another spec, or a clip is not there.
    """
    for name, fact in run.facts["features"].items():
        store.info(name, fact["spec"])
    _places(run, store)


def _places(run: Run, store: Store) -> IntArray:
    """The row [n_clips] of each of the run's clips in a store.

    Raises:
        CorruptStore: a clip is not there.
    """
    index = {clip: i for i, clip in enumerate(store.clips.ids.tolist())}
    lacking = [clip for clip in run.clips.ids.tolist() if clip not in index]
    if lacking:
        raise CorruptStore(
            f"{store.path} lacks {len(lacking)} of the {len(run.clips)} clips of run {run.folder}, "
            f"e.g. {lacking[0]}; give the store that it was fitted on"
        )
    return np.array([index[clip] for clip in run.clips.ids.tolist()], np.int64)


def _coverage(run: Run, store: Store | None) -> tuple[tuple[FeatureCoverage, ...], list[str]]:
    found, notes = [], []
    for name, fact in run.facts["features"].items():
        n_failed, failures = None, {}
        if store is not None:
            try:
                info = store.info(name, fact["spec"])
                n_failed = info.n_failed
                if n_failed:
                    table = read_feature(info.path)
                    failures = dict(Counter(table.reasons[table.state == FAILED].tolist()))
                if info.checksum != fact["checksum"]:
                    notes.append(f"{name} in {store.path} is not what the run was fitted on")
            except BsdkitError as error:
                notes.append(f"{name}: {error}")
        found.append(
            FeatureCoverage(
                name=name,
                spec=fact["spec"],
                spec_hash=fact["spec_hash"],
                checksum=fact["checksum"],
                n_missing=fact["n_missing"],
                n_failed=n_failed,
                failures=failures,
            )
        )
    return tuple(found), notes


def _embedding(
    run: Run, store: Store, names: tuple[str, ...]
) -> tuple[list[Float32Array], npt.NDArray[np.bool_]]:
    """Features in the order of the run's clips, and [n_clips] whether a clip has all of them."""
    places = _places(run, store)
    specs = {name: run.facts["features"][name]["spec"] for name in names}
    features = store.features(list(names), specs)
    is_there = ~features.is_missing.any(axis=1)
    is_there &= np.all([np.isfinite(a).all(axis=1) for a in features.arrays.values()], axis=0)
    if not np.array_equal(places, np.arange(len(is_there))):
        return [a[places] for a in features.arrays.values()], is_there[places]
    return list(features.arrays.values()), is_there


def _duplicates(run: Run, store: Store, split: Split) -> tuple[NearDuplicates | None, str]:
    """Near-duplicates in the first audio feature, or in the first embedding at all."""
    name = audio_feature({name: fact["spec"] for name, fact in run.facts["features"].items()})
    if not name:
        return None, ""
    (array,), is_there = _embedding(run, store, (name,))
    rows = split.tested
    return near_copies(array[rows], is_there[rows], split.fold[rows], run.clips.labels[rows]), name


def _maps(
    run: Run, store: Store, rows: IntArray, *, umap: bool
) -> tuple[tuple[str, ...], tuple[Projection, ...]]:
    """Maps of the embeddings of the member that has most of them, the first of such."""
    specs = {name: fact["spec"] for name, fact in run.facts["features"].items()}
    choices = [
        tuple(
            f
            for f in run.recipe.members[name].features
            if f in specs and kind_of(specs[f]).is_embedding
        )
        for name in run.names
    ]
    names = max(choices, key=len)
    if not names:
        return (), ()
    arrays, is_there = _embedding(run, store, names)
    shown = rows[is_there[rows]]
    if len(shown) < 3:
        return (), ()
    parts = []
    for array in arrays:  # features of other lengths and scales count the same
        part = array[shown]
        size = float(np.sqrt(np.square(part - part.mean(axis=0)).sum(axis=1).mean()))
        parts.append(part / max(size, 1e-12))
    X = np.concatenate(parts, axis=1)
    axes, shares = principal_axes(X, 2)
    if axes.shape[1] < 2:
        return (), ()

    def placed(points: npt.NDArray[np.floating]) -> FloatArray:
        found = np.full((len(rows), 2), np.nan)
        found[is_there[rows]] = points
        return found

    maps = [Projection("PCA", placed(X @ axes), tuple(shares.tolist()))]
    if umap and importlib.util.find_spec("umap") is not None:
        module: Any = importlib.import_module("umap")
        maps.append(Projection("UMAP", placed(module.UMAP(random_state=0).fit_transform(X))))
    return names, tuple(maps)


def _uploaders(run: Run, name: str) -> UploaderAudit:
    _, split, _ = _out_of_fold(run, name)
    groups = numbered(run.clips.uploader)
    is_shared = np.isin(groups[split.tested], shared_groups(split, groups))
    counts = Counter(str(u) for u in run.clips.uploader[split.tested][is_shared])
    return UploaderAudit(
        split=name,
        n_uploaders=len(set(run.clips.uploader.tolist()) - {""}),
        n_shared=len(counts),
        n_clips=int(is_shared.sum()),
        largest=tuple(counts.most_common(5)),
    )


def _curves(run: Run) -> tuple[Curves, ...]:
    """Of the members of the headline split that were trained in epochs."""
    found = []
    for name in run.recipe.members:
        path = run.members_folder / name / "models.json"
        try:
            models = json.loads(path.read_text())["models"]
        except (OSError, ValueError, KeyError):  # an imported member has none
            continue
        losses = _padded([model.get("losses", []) for model in models])
        if not losses.shape[1]:
            continue
        key = next((k for k in models[0] if k.startswith("validation_")), "")
        found.append(
            Curves(
                member=name,
                losses=losses,
                scores=_padded([model.get(key, []) for model in models]),
                metric=key.removeprefix("validation_"),
                best_epochs=np.array([model.get("best_epoch", 0) for model in models], np.int64),
            )
        )
    return tuple(found)


def _padded(lines: list[list[float]]) -> FloatArray:
    longest = max(map(len, lines), default=0)
    padded = np.full((len(lines), longest), np.nan)
    for row, line in zip(padded, lines, strict=True):
        row[: len(line)] = line
    return np.where(np.isfinite(padded), padded, np.nan)


def make_comparison(
    a: Path | str,
    b: Path | str,
    page: Path,
    *,
    data: Path | str | None = None,
    split: str = "",
) -> ComparisonData:
    """Writes the page of two runs side by side, and gives what it shows.

    Args:
        a: the first run's folder.
        b: the folder of the run that it is compared with.
        page: the HTML file.
        data: the dataset, for its sounds.
        split: see `comparison_of`.

    Raises:
        RecipeError: a folder is not a whole run, or the two are of other clips or folds.
        DatasetError: the dataset cannot be read.
    """
    _check_page(page)
    found = comparison_of(load_run(a), load_run(b), data, page=page, split=split)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_comparison(page, found)
    return found


def comparison_of(
    a: Run,
    b: Run,
    data: Path | str | None = None,
    *,
    page: Path | None = None,
    split: str = "",
) -> ComparisonData:
    """Two runs on the same clips and folds, the first minus the second.

    Args:
        a: the first run.
        b: the second run.
        data: the dataset, for its sounds; without it, none can be played.
        page: where the page will lie; None for the first run's folder.
        split: what the second run calls the folds; empty for its headline's, or else the first
            of its splits that the first run has too, under whatever name.

    Raises:
        RecipeError: the clips, their labels, the classes or all folds differ, or the second run
            has no such split.
    """
    pair = f"{a.folder} and {b.folder}"
    mine, theirs = set(a.clips.ids.tolist()), set(b.clips.ids.tolist())
    if mine != theirs:
        raise RecipeError(
            f"{pair} are of other clips ({len(mine)} and {len(theirs)}, {len(mine & theirs)} in "
            "both); only runs on the same clips can be compared, so fit both on one store"
        )
    order = b.clips.positions(a.clips.ids)
    if a.clips.taxonomy != b.clips.taxonomy:
        raise RecipeError(f"{pair} have other classes; fit both on one store")
    n_other = int((a.clips.labels != b.clips.labels[order]).sum())
    if n_other:
        raise RecipeError(f"{pair} have other labels for {n_other} clips; fit both on one store")
    known = b.metrics["protocols"]
    if split and split not in known:
        raise RecipeError(f"run {b.folder} has no split {split!r}: {nearest(split, known)}")
    for name_a, name_b in _split_pairs(a, b, split):
        said_a, split_a, _ = _out_of_fold(a, name_a)
        said_b, split_b, _ = _out_of_fold(b, name_b)
        if np.array_equal(split_a.fold, split_b.fold[order]):
            break
    else:
        raise RecipeError(
            f"{pair} have no folds in common (splits {', '.join(a.metrics['protocols'])} and "
            f"{', '.join(b.metrics['protocols'])}); fit both with the same split"
        )
    place = np.full(len(order), -1, np.int64)
    place[split_b.tested] = np.arange(len(split_b.tested))
    rows = place[order[split_a.tested]]
    said_b = Predictions(said_b.name, said_b.decided[rows], said_b.probabilities[rows])
    one, two = a.out_of_fold(name_a).tested, b.out_of_fold(name_b).tested.rows(rows)
    if said_a.name == said_b.name:
        said_a = Predictions(f"{said_a.name} (A)", said_a.decided, said_a.probabilities)
        said_b = Predictions(f"{said_b.name} (B)", said_b.decided, said_b.probabilities)
    columns, _ = _columns(a, split_a, data, page or a.folder / "comparison.html")
    taxonomy, n = a.clips.taxonomy, len(a.clips.taxonomy)
    return ComparisonData(
        taxonomy=taxonomy,
        splits=(name_a, name_b),
        clips=columns,
        a=said_a,
        b=said_b,
        compared=tuple(
            judge({"": compare_systems(columns.labels, one, two, taxonomy, metric=metric)})[""]
            for metric in _COMPARED
        ),
        confusions=(
            confusion_matrix(columns.labels, said_a.decided, n),
            confusion_matrix(columns.labels, said_b.decided, n),
        ),
    )


def _split_pairs(a: Run, b: Run, split: str) -> list[tuple[str, str]]:
    """Names of the splits of two runs that may have the same folds, headlines first."""
    own, theirs = (
        [run.split, *(name for name in run.metrics["protocols"] if name != run.split)]
        for run in (a, b)
    )
    return [(x, y) for y in ([split] if split else theirs) for x in own]
