from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from rich.console import Console

from bsdkit.combine.chain import Averaging, Chain
from bsdkit.combine.ensemble import Ensemble
from bsdkit.dataset import Clips, read_dataset
from bsdkit.errors import DatasetError, RecipeError
from bsdkit.experiments.label_quality import (
    class_noise,
    confidence_noise,
    confident_joint,
    find_issues,
    label_quality,
    uploader_noise,
    write_label_issues,
)
from bsdkit.experiments.label_table import label_quality_tables
from bsdkit.recipe.schema import Recipe
from bsdkit.runs.folder import Run
from bsdkit.runs.predict import out_of_fold, training_clips
from bsdkit.stats import wilson_interval
from bsdkit.store.clips import write_clips
from bsdkit.taxonomy import Taxonomy, TaxonomyClass

TREE = Taxonomy("four", [TaxonomyClass(c, c[0]) for c in ("a1", "a2", "b1", "b2")])
METHODS = ("off-diagonal", "noise-rate")


def table(labels: np.ndarray, tmp_path: Path, tree: Taxonomy = TREE) -> Clips:
    path = tmp_path / "clips.csv"
    names = tree.decode(labels)
    rows = [f"{i},{c},u{i % 3},{1 + i % 5},t {i}\n" for i, c in enumerate(names)]
    path.write_text("id,class,uploader,confidence,title\n" + "".join(rows))
    return read_dataset(path, tree)[0]


def random_problem(seed: int, n: int = 400, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Labels, a fifth of them wrong, and probabilities of a middling model."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, k, n)
    labels = np.where(rng.random(n) < 0.2, rng.integers(0, k, n), true)
    logits = rng.standard_normal((n, k)) * 1.5 + 2 * np.eye(k)[true] + rng.standard_normal(k)
    p = np.exp(logits)
    return labels, p / p.sum(axis=1, keepdims=True)


def planted(n: int = 20_000, jitter: float = 0.05) -> tuple[np.ndarray, ...]:
    """True and given labels, the noise between them, and a model that learned the noise."""
    noise = np.array(  # p(given | true), rows by true class
        [[0.8, 0.15, 0.05, 0.0], [0.1, 0.9, 0.0, 0.0], [0.0, 0.0, 0.7, 0.3], [0.2, 0, 0, 0.8]]
    )
    rng = np.random.default_rng(3)
    true = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    given = (rng.random(n)[:, None] > noise[true].cumsum(axis=1)).sum(axis=1)
    p = noise[true] + jitter * rng.random((n, 4))
    return true, given, p / p.sum(axis=1, keepdims=True)


def test_a_planted_noise_matrix_is_recovered() -> None:
    true, given, p = planted()
    actual = np.bincount(given * 4 + true, minlength=16).reshape(4, 4) / len(true)
    estimate = confident_joint(given, p)
    np.testing.assert_allclose(estimate.joint, actual, atol=0.005)
    assert estimate.share_wrong == pytest.approx((given != true).mean(), abs=0.005)
    np.testing.assert_allclose(estimate.joint.sum(1), np.bincount(given) / len(given), atol=1e-12)
    for method in METHODS:
        suggested = find_issues(given, p, estimate, method)
        is_issue, is_wrong = suggested != given, given != true
        assert (is_issue & is_wrong).sum() / is_wrong.sum() > 0.98  # recall
        assert (is_issue & is_wrong).sum() / is_issue.sum() > 0.98  # precision
        assert (suggested[is_issue] == true[is_issue]).mean() > 0.98


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_definition(seed: int) -> None:
    labels, p = random_problem(seed)
    k = p.shape[1]
    t = [p[labels == j, j].mean() for j in range(k)]
    counts = np.zeros((k, k), int)
    for i, row in zip(labels, p, strict=True):
        reached = [j for j in range(k) if row[j] >= t[j]]
        if reached:
            counts[i, max(reached, key=lambda j: row[j])] += 1
    joint = counts / counts.sum(1, keepdims=True) * np.bincount(labels)[:, None]
    estimate = confident_joint(labels, p)
    assert (estimate.counts == counts).all()
    np.testing.assert_allclose(estimate.joint, joint / joint.sum(), atol=1e-12)
    # off the diagonal, unless the given label is the most probable class
    best = p.argmax(1)
    off = np.where((estimate.confident >= 0) & (best != labels), estimate.confident, labels)
    assert (find_issues(labels, p, estimate) == off).all()
    assert ((best == labels) & (estimate.confident >= 0) & (estimate.confident != labels)).any()
    # by noise rate: for each pair, the n Q clips of the largest margin, less those agreed with
    wanted = [set() for _ in range(k)]
    suggested = find_issues(labels, p, estimate, "noise-rate")
    for i in range(k):
        rows = np.flatnonzero(labels == i)
        for j in set(range(k)) - {i}:
            best = rows[np.argsort(p[rows, i] - p[rows, j])]
            few, many = np.floor(joint[i, j]), np.ceil(joint[i, j])
            assert set(best[: int(few)]) - set(rows[p[rows].argmax(1) == i]) <= set(
                np.flatnonzero(suggested != labels)
            )
            wanted[i] |= set(best[: int(many)])
        assert set(rows[suggested[rows] != i]) <= wanted[i]


def test_cleanlab_finds_the_same() -> None:
    count = pytest.importorskip("cleanlab.count", reason="cleanlab is not installed")
    from cleanlab.filter import find_label_issues

    for seed in (0, 2, 4, 5):  # 1 and 3 have equal calibrated counts, which may round either way
        labels, p = random_problem(seed, n=600)
        while True:
            # Where several thresholds are reached, but not that of the most probable class,
            # cleanlab counts that class nevertheless; the paper does not, and nor do we.
            reached = p >= confident_joint(labels, p).thresholds
            is_same = (reached.sum(1) < 2) | reached[np.arange(len(p)), p.argmax(1)]
            if is_same.all():
                break
            labels, p = labels[is_same], p[is_same]
        estimate = confident_joint(labels, p)
        assert (estimate.counts == count.compute_confident_joint(labels, p, calibrate=False)).all()
        # cleanlab rounds the calibrated counts to whole numbers
        np.testing.assert_allclose(
            estimate.joint * len(labels), count.estimate_joint(labels, p) * len(labels), atol=1
        )
        for method, theirs in zip(METHODS, ("confident_learning", "prune_by_noise_rate"),
                                  strict=True):  # fmt: skip
            mask = find_label_issues(labels, p, filter_by=theirs, n_jobs=1)
            ours = find_issues(labels, p, estimate, method) != labels
            assert (ours == mask).all() and ours.any()


@pytest.mark.parametrize("method", METHODS)
def test_clean_confident_labels_give_no_issue(method: str, tmp_path: Path) -> None:
    labels = np.arange(45) % 3  # no clip of b2
    p = np.full((45, 4), 0.1 / 3)
    p[np.arange(45), labels] = 0.9  # the mean of fifteen 0.9 is above 0.9 in the last digit
    quality = label_quality(table(labels, tmp_path), p, method=method)  # type: ignore[arg-type]
    assert not len(quality.issues) and quality.agreement == 1
    assert (quality.estimate.confident == labels).all()
    assert quality.estimate.share_wrong == pytest.approx(0, abs=1e-12)
    assert np.isinf(quality.estimate.thresholds[3])
    assert [c.label for c in class_noise(quality)] == ["a1", "a2", "b1"]
    assert all(c.n_wrong == 0 and c.true_label == "" for c in class_noise(quality))


def test_a_class_without_clips_is_never_suggested() -> None:
    labels, p = random_problem(0)
    keep = labels != 2
    for method in METHODS:
        estimate = confident_joint(labels[keep], p[keep])
        assert not estimate.joint[2].any() and not estimate.joint[:, 2].any()
        assert estimate.joint.sum() == pytest.approx(1)
        assert (find_issues(labels[keep], p[keep], estimate, method) != 2).all()


@pytest.mark.parametrize("method", METHODS)
def test_permuting_clips_permutes_the_answer(method: str) -> None:
    labels, p = random_problem(1)
    first = confident_joint(labels, p)
    order = np.random.default_rng(0).permutation(len(labels))
    second = confident_joint(labels[order], p[order])
    assert (first.joint == second.joint).all() and (first.thresholds == second.thresholds).all()
    a = find_issues(labels, p, first, method)  # type: ignore[arg-type]
    b = find_issues(labels[order], p[order], second, method)  # type: ignore[arg-type]
    assert (a[order] == b).all() and (a != labels).any()


def test_who_is_left_out_is_counted_and_does_not_count(tmp_path: Path) -> None:
    _, given, p = planted(n=600)
    clips = table(given, tmp_path)
    alone = label_quality(replace(clips, ids=clips.ids + "x"), p)
    # beside them: an unlabelled clip, one without probabilities, two that were trained on
    extra = np.array([-1, 0, 1, 2])
    both = table(np.concatenate([given, extra]), tmp_path)
    sha256 = np.array(["", *(f"s{i}" for i in range(1, 604))], object)
    both = replace(both, sha256=sha256)
    known = table(np.array([0, 1, 2]), tmp_path)
    known = replace(
        known,
        ids=np.array(["602", "other", "another"], object),
        sha256=np.array(["", "s603", ""], object),  # an unknown digest matches nothing
        uploader=np.array(["u1", "", ""], object),
    )
    rows = np.concatenate([p, p[:4]])
    rows[601, 2] = np.nan
    quality = label_quality(
        both, rows, trained_on=[replace(clips, ids=clips.ids + "y", uploader=clips.sha256), known]
    )
    assert quality.left_out == {
        "unlabelled": 1, "trained on (same id or sha256)": 2, "no probabilities": 1,
    }  # fmt: skip
    assert quality.n_judged == 600 and quality.n_shared_uploaders == 200
    assert (quality.estimate.joint == alone.estimate.joint).all()
    assert (quality.issues == alone.issues).all()
    assert np.isnan(quality.margin[600:]).all() and not quality.is_issue[600:].any()


def test_groups_rank_and_csv_agree(tmp_path: Path) -> None:
    true, given, p = planted(n=900)
    clips = table(given, tmp_path)
    # all of u0's labels are right, so its issues are few
    given = np.where(clips.uploader == "u0", true, given)
    clips = replace(clips, labels=given)
    quality = label_quality(clips, p)
    naive = [row[i] - max(np.delete(row, i)) for row, i in zip(p, given, strict=True)]
    assert quality.margin.tolist() == naive
    assert (np.diff(quality.margin[quality.issues]) >= 0).all()
    by_self = label_quality(clips, p, rank_by="self-confidence")
    assert (np.diff(by_self.self_confidence[by_self.issues]) >= 0).all()
    assert sorted(by_self.issues) == sorted(quality.issues)

    uploaders = uploader_noise(quality)
    assert uploaders[-1].name == "u0" and uploaders[-1].high < min(u.low for u in uploaders[:-1])
    levels = confidence_noise(quality)
    assert [level.name for level in levels] == ["1", "2", "3", "4", "5"]
    for groups in (uploaders, levels):
        assert sum(g.n_clips for g in groups) == 900
        assert sum(g.n_issues for g in groups) == len(quality.issues)
    assert uploader_noise(quality, min_clips=301) == ()
    classes = class_noise(quality)
    assert sum(c.n_wrong for c in classes) == pytest.approx(900 * quality.estimate.share_wrong)
    b1 = classes[2]  # by the planted matrix, only a1 is ever called b1
    assert (b1.label, b1.true_label) == ("b1", "a1") and b1.within_family < 0.1
    assert classes[1].true_label == "a1" and classes[1].within_family > 0.9

    out = tmp_path / "issues.csv"
    write_label_issues(out, quality)
    with out.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["id"] for row in read] == clips.ids.tolist()
    assert [row["is_issue"] == "1" for row in read] == quality.is_issue.tolist()
    assert all((row["suggested"] != row["label"]) == (row["is_issue"] == "1") for row in read)
    console = Console(record=True, width=150, markup=False)
    for shown in label_quality_tables(quality, n_top=3):
        shown.to_rich(console)
    text = console.export_text()
    assert f"issues: {len(quality.issues)} " in text and f"t {quality.issues[0]} " in text


def test_faults_are_one_line(tmp_path: Path) -> None:
    same = table(np.zeros(12, int), tmp_path)
    with pytest.raises(DatasetError, match="all 12 clips to judge are labelled 'a1'.*at least 2"):
        label_quality(same, np.full((12, 4), 0.25))
    clips = table(np.arange(12) % 4, tmp_path)
    p = np.full((12, 4), 0.25)
    with pytest.raises(DatasetError, match=r"no clip of 12.*12 trained on.*leave out --store"):
        label_quality(clips, p, trained_on=[clips])
    with pytest.raises(DatasetError, match=r"probabilities \[12, 3\]; expected \[12, 4\]"):
        label_quality(clips, p[:, :3])
    with pytest.raises(DatasetError, match="expected 0 to 1"):
        label_quality(clips, p * 5)
    others = replace(clips, taxonomy=Taxonomy.flat(["x", "y"]))
    with pytest.raises(DatasetError, match=r"'four' \(4 classes\), the models 'flat'"):
        label_quality(clips, p, trained_on=[clips, others])
    with pytest.raises(DatasetError, match="cannot write"):
        write_label_issues(tmp_path / "none" / "x.csv", label_quality(clips, p))


def test_wilson_interval_holds_the_shares_that_its_test_accepts() -> None:
    # its ends are where the score test of the observed share is just at its limit
    for hits, n in ((3, 10), (1, 400), (10, 10), (0, 7)):
        for end in wilson_interval(hits, n):
            if 0 < end < 1:
                z = abs(hits / n - end) / np.sqrt(end * (1 - end) / n)
                assert z == pytest.approx(1.959964, abs=1e-5)
    assert wilson_interval(0, 7)[0] == 0 and wilson_interval(10, 10)[1] == 1


def finished_run(folder: Path, clips: Clips, members: dict[str, object]) -> Run:
    """A run of two members, of which the second has no weight, as `fit` leaves it behind."""
    recipe = Recipe.model_validate({"name": "r", "store": "s", "members": members})
    chain = Chain(("ensemble",), (Averaging(Ensemble("weights", (1.0, 0.0))),))
    prior = np.full(4, 0.25)
    metrics = {"protocols": {"official": {"left_out": {}}}}
    return Run(folder, recipe, {}, metrics, clips, "official", ("one", "two"), chain, prior)


def test_out_of_fold_has_no_fallback(tmp_path: Path) -> None:
    clips = table(np.arange(4), tmp_path)
    members = {name: {"head": "linear", "features": "x"} for name in ("one", "two")}
    one, two = np.full((4, 4), 0.25), np.full((4, 4), 0.25)
    one[[1, 2]], two[[1, 3]] = np.nan, np.nan
    with h5py.File(tmp_path / "oof.h5", "w") as file:
        file["official/ensemble_nested"] = np.full((4, 4), 0.25)
        file["official/fold"], file["official/decided"] = [0, 1, 0, 1], [0, 0, 0, 0]
        file["official/is_fallback"] = [False, True, False, False]
        file["official/members/one"], file["official/members/two"] = one, two
    run = finished_run(tmp_path, clips, members)
    assert np.isnan(out_of_fold(run)[:, 0]).tolist() == [False, True, False, False]
    assert np.isnan(out_of_fold(run, "two")[:, 0]).tolist() == [False, True, False, True]
    with pytest.raises(RecipeError, match="no member 'too': did you mean 'two'"):
        out_of_fold(run, "too")


def test_what_a_teacher_was_trained_on_counts(tmp_path: Path) -> None:
    clips = table(np.arange(4), tmp_path)
    extra = replace(clips, ids=clips.ids + "x")
    write_clips(tmp_path / "extra" / "clips.h5", extra)
    mlp = {"head": "mlp", "features": "x"}
    taught = {**mlp, "extra": {"store": str(tmp_path / "extra")}}
    members = {"one": {**mlp, "distill": {"teachers": ["two"]}}, "two": taught, "three": mlp}
    run = finished_run(tmp_path, clips, members)
    for member in ("", "one", "two"):
        assert [t.ids.tolist() for t in training_clips(run, member)] == [
            clips.ids.tolist(),
            extra.ids.tolist(),
        ]
    assert training_clips(run, "three") == [clips]
