"""Folds: the organisers' own to the clip, the laws of the others, and what cannot be split."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from bsdkit.dataset import Clips, read_dataset
from bsdkit.dataset.groups import GroupKey, group_clips
from bsdkit.errors import SplitError
from bsdkit.leakage import audit_split
from bsdkit.splits import OFFICIAL_SEED, Split, inner_validation, make_split, shared_groups
from tests.conftest import make_clips, shared

Ints = npt.NDArray[np.int64]

# The machine may be busy: only wrong folds fail these tests, never slow ones.
LAWS = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])


def uploader_groups(clips: Clips) -> Ints:
    return group_clips(clips, GroupKey.parse("uploader")).numbers


@st.composite
def datasets(draw: st.DrawFn) -> tuple[Clips, int]:
    """Labelled clips that can be split, of few and lopsided uploaders, and a number of folds."""
    n_folds = draw(st.integers(2, 5))
    n_classes = draw(st.integers(1, 4))
    more = draw(st.lists(st.integers(0, n_classes - 1), max_size=30))
    labels = draw(st.permutations([*range(n_classes)] * n_folds + more))
    # the first uploaders make sure that there are enough of them; "" is nobody
    names = [f"u{i}" for i in range(n_folds)]
    rest = st.lists(
        st.sampled_from(["u0", "u0", "u1", "", "v", "w"]),
        min_size=len(labels) - n_folds,
        max_size=len(labels) - n_folds,
    )
    uploaders = draw(st.permutations([*names, *draw(rest)][: len(labels)]))
    return make_clips(list(labels), list(uploaders)), n_folds


def assert_is_partition(split: Split, n_clips: int, n_folds: int) -> None:
    assert split.n_folds == n_folds == len(list(split))
    tested = Counter(int(i) for _, test in split for i in test)
    assert tested == Counter(range(n_clips))
    for k, (train, test) in enumerate(split):
        assert len(test) and len(train)
        assert sorted([*train, *test]) == list(range(n_clips))
        np.testing.assert_array_equal(test, split.test(k))
        np.testing.assert_array_equal(train, split.train(k))
    np.testing.assert_array_equal(split.tested, np.arange(n_clips))


def test_official_folds_to_the_clip() -> None:
    path = shared("reference", "bsd10k-oof", "labels.csv")
    clips, _ = read_dataset(path)
    split = make_split("official", clips, n_folds=3, seed=7)
    # its folds and seed are fixed, whatever else a recipe says
    assert (split.n_folds, split.seed, len(clips)) == (5, OFFICIAL_SEED, 10_956)
    published = make_split("file", clips, path=path)
    np.testing.assert_array_equal(split.fold, published.fold)
    assert split.digest(clips) == published.digest(clips)
    assert [len(test) for _, test in split] == [2192, 2191, 2191, 2191, 2191]
    assert split.unseen(clips.labels) == []
    # the inner split of the organisers' first fold, by its published sizes
    fit, validation = inner_validation(split.train(0), clips.labels, None)
    assert (len(fit), len(validation)) == (7011, 1753)


@LAWS
@given(datasets(), st.integers(0, 9))
def test_stratified_folds(dataset: tuple[Clips, int], seed: int) -> None:
    clips, n_folds = dataset
    split = make_split("stratified", clips, n_folds=n_folds, seed=seed)
    assert_is_partition(split, len(clips), n_folds)
    for c in np.unique(clips.labels):
        per_fold = np.bincount(split.fold[clips.labels == c], minlength=n_folds)
        assert per_fold.min() >= 1 and per_fold.max() - per_fold.min() <= 1
    assert split.unseen(clips.labels) == []
    reference = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    for (_, test), (_, expected) in zip(
        split, reference.split(np.zeros(len(clips)), clips.labels), strict=True
    ):
        np.testing.assert_array_equal(test, expected)


@LAWS
@given(datasets(), st.integers(0, 9))
def test_no_uploader_stands_on_two_sides(dataset: tuple[Clips, int], seed: int) -> None:
    clips, n_folds = dataset
    split = make_split("group", clips, n_folds=n_folds, seed=seed)
    assert_is_partition(split, len(clips), n_folds)
    folds_of: dict[str, set[int]] = {}
    for name, k in zip(clips.uploader, split.fold, strict=True):
        if name:
            folds_of.setdefault(name, set()).add(int(k))
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert shared_groups(split, uploader_groups(clips)).tolist() == []


@LAWS
@given(datasets(), st.sampled_from(["stratified", "group"]))
def test_folds_depend_on_labels_groups_and_order_alone(
    dataset: tuple[Clips, int], protocol: str
) -> None:
    clips, n_folds = dataset
    expected = make_split(protocol, clips, n_folds=n_folds)
    other = replace(
        clips,
        # what a re-scan of the files, a renaming or another store might change
        title=clips.ids,
        sha256=clips.ids,
        duration=np.arange(len(clips), dtype=np.float32),
        audio=[Path("x")] * len(clips),
        uploader=np.array([name and f"renamed {name}" for name in clips.uploader], object),
        ids=np.array([f"renamed {clip}" for clip in clips.ids], object),
    )
    found = make_split(protocol, other, n_folds=n_folds)
    np.testing.assert_array_equal(found.fold, expected.fold)
    assert found.seed == OFFICIAL_SEED


@LAWS
@given(datasets())
def test_shared_groups_and_unseen_by_their_definitions(dataset: tuple[Clips, int]) -> None:
    clips, n_folds = dataset
    groups, labels = uploader_groups(clips), clips.labels
    split = make_split("stratified", clips, n_folds=n_folds)
    torn = {g for g in groups if len(set(split.fold[groups == g])) > 1}
    assert shared_groups(split, groups).tolist() == sorted(torn)

    # rare classes of one uploader are what group folds cannot train on
    split = make_split("group", clips, n_folds=n_folds)
    expected = [
        (k, c)
        for k in range(n_folds)
        for c in sorted(set(labels))
        if c in labels[split.fold == k] and c not in labels[split.fold != k]
    ]
    assert split.unseen(labels) == expected


def test_digest_changes_with_order_ids_and_folds() -> None:
    clips = make_clips([0, 1] * 5)
    split = make_split("official", clips)
    digest = split.digest(clips)
    assert digest == make_split("stratified", clips).digest(clips)
    changed = [
        replace(split, fold=(split.fold + 1) % 5).digest(clips),
        split.digest(replace(clips, ids=clips.ids[::-1])),
        split.digest(replace(clips, ids=np.array(["x", *clips.ids[1:]], object))),
        replace(split, fold=split.fold[::-1]).digest(replace(clips, ids=clips.ids[::-1])),
    ]
    assert len({digest, *changed}) == 5


@pytest.mark.parametrize(
    ("protocol", "clips", "n_folds", "message"),
    [
        ("oficial", make_clips([0] * 10), 5, "unknown split 'oficial': did you mean 'official'?"),
        (
            "official",
            make_clips([0] * 9 + [1] * 4 + [2] * 2),
            5,
            "fewer clips than the 5 folds in class c1 (4), c2 (2); use folds: 2 at most",
        ),
        ("group", make_clips([0] * 9 + [1]), 2, "in class c1 (1)"),
        ("stratified", make_clips([0] * 9), 1, "folds: 1 cannot test anything"),
        ("official", make_clips([-1] * 4 + [0] * 6), 5, "4 of 10 clips have no label"),
        ("group", make_clips([-1] * 9), 3, "9 of 9 clips have no label"),
        (
            "group",
            make_clips([0] * 10, ["ann", "ben"] * 5),
            3,
            "2 groups by uploader cannot be spread over 3 folds",
        ),
        ("file", make_clips([0] * 10), 5, "needs the path of a CSV"),
    ],
)
def test_what_cannot_be_split(protocol: str, clips: Clips, n_folds: int, message: str) -> None:
    with pytest.raises(SplitError) as caught:
        make_split(protocol, clips, n_folds=n_folds)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_folds_from_a_file(tmp_path: Path) -> None:
    clips = make_clips([0, 0, 1, 1, 0])
    path = tmp_path / "by studio.csv"
    # another order, another column, and a clip that is only trained on
    path.write_text("\ufefffold,id,why\n1,i4,x\n-1,i2,\n0,i0,\n0,i3,\n1,i1,\n", encoding="utf-8")
    split = make_split("file", clips, path=path)
    assert split.seed == 0
    assert split.fold.tolist() == [0, 1, -1, 0, 1]
    assert (split.name, split.n_folds) == ("by studio", 2)
    assert split.train(0).tolist() == [1, 2, 4] and split.test(0).tolist() == [0, 3]
    assert split.tested.tolist() == [0, 1, 3, 4]

    # one fold is a plain hold-out
    path.write_text("id,fold\ni0,0\ni1,-1\ni2,0\ni3,-1\ni4,-1\n")
    split = make_split("file", clips, path=path)
    assert [(train.tolist(), test.tolist()) for train, test in split] == [([1, 3, 4], [0, 2])]


def fold_table(folds: list[object], first: int = 0) -> str:
    return "id,fold\n" + "".join(f"i{i},{fold}\n" for i, fold in enumerate(folds, start=first))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (fold_table([0, 1]), "2 ids are missing, 0 are unknown, e.g. 'i2'"),
        (fold_table([0, 1, 0, 1, 0]), "0 ids are missing, 1 are unknown, e.g. 'i4'"),
        (fold_table([0, 1, 0, 1], first=1), "1 ids are missing, 1 are unknown, e.g. 'i0'"),
        (fold_table([0, 1, 0, 1]) + "i1,0\n", "line 6: id 'i1' stands twice"),
        (fold_table([0, 1, "one", 1]), "line 4: fold 'one' is not a whole number"),
        (fold_table([0, 1, "1.0", 1]), "line 4: fold '1.0' is not a whole number"),
        (fold_table([0, 1, "", 1]), "line 4: fold '' is not a whole number"),
        (fold_table([0, 2, 0, 2]), "without gaps"),
        (fold_table([1, 2, 1, 2]), "without gaps"),
        (fold_table([-1, -1, -1, -1]), "without gaps"),
        ("id,part\ni0,0\n", "has the columns id, part; expected sound_id,fold"),
        ("name,fold\ni0,0\n", "has the columns name, fold; expected sound_id,fold"),
        ("", "has the columns none"),
        (fold_table([0, 1, "--1", 1]), "line 4: fold '--1'"),
        (fold_table([0, 1, "²", 1]), "line 4: fold '²'"),
        (fold_table([0, 1, 10**20, 1]), "without gaps"),
        (fold_table([0, 1, -2, 1]), "-1: train only"),
        (fold_table([0, 0, 0, 0]), "none is left to train on"),
        ("id,fold\ni0,0\n\ni1,1\ni2,x\ni3,1\n", "line 5: fold 'x'"),
        ("id,fold\ni0,0\ni1,1\ni2,0,7\ni3,1\n", "line 4"),
        ("id,fold\né,0\n".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_faults_of_a_file_of_folds(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "folds.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SplitError) as caught:
        make_split("file", make_clips([0, 0, 1, 1]), path=path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_folds_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"cannot read the folds .*nope\.csv: No such file"):
        make_split("file", make_clips([0, 0]), path=tmp_path / "nope.csv")


def test_a_file_of_folds_needs_labels_too(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text(fold_table([0, 1, 0, 1]))
    with pytest.raises(SplitError, match="4 of 4 clips have no label"):
        make_split("file", make_clips([-1] * 4), path=path)


@LAWS
@given(datasets(), st.integers(0, 9))
def test_inner_validation_is_stratified(dataset: tuple[Clips, int], seed: int) -> None:
    clips, n_folds = dataset
    # a class with a single clip besides, and rows in any order
    labels = np.append(clips.labels, clips.labels.max() + 1)
    split = make_split("stratified", clips, n_folds=n_folds, seed=seed)
    rows = np.append(split.train(0), len(clips))[::-1]
    counts = np.bincount(labels[rows])
    n_classes = np.count_nonzero(counts > 1)
    n_candidates = int(counts[counts > 1].sum())
    n_held_out = max(n_classes, int(np.ceil(0.2 * n_candidates)))
    if not n_classes or n_candidates - n_held_out < n_classes:
        with pytest.raises(SplitError, match="too few to put 20% of them aside"):
            inner_validation(rows, labels, None, seed=seed)
        return
    fit, validation = inner_validation(rows, labels, None, seed=seed)
    assert fit.tolist() == sorted(fit) and validation.tolist() == sorted(validation)
    assert sorted([*fit, *validation]) == sorted(rows)
    assert len(validation) == n_held_out
    # nothing is validated that was not fitted; a single clip is only fitted
    assert set(labels[validation]) <= set(labels[fit])
    assert set(np.flatnonzero(counts == 1)) <= set(labels[fit]) - set(labels[validation])
    held_out = np.bincount(labels[validation], minlength=len(counts))
    ideal = counts * n_held_out / n_candidates
    assert (abs(held_out - ideal)[counts > 1] < 1 + 1e-9).all()


def test_inner_validation_is_the_organisers_own() -> None:
    rng = np.random.default_rng(0)
    labels = np.append(np.repeat(np.arange(4), 5), rng.integers(0, 4, 80))
    rows = np.sort(rng.choice(len(labels), 70, replace=False))
    assert np.bincount(labels[rows]).min() > 1
    reference = StratifiedShuffleSplit(1, test_size=0.2, random_state=1821)
    (expected_fit, expected_validation) = next(reference.split(rows, labels[rows]))
    fit, validation = inner_validation(rng.permutation(rows), labels, None)
    np.testing.assert_array_equal(fit, rows[np.sort(expected_fit)])
    np.testing.assert_array_equal(validation, rows[np.sort(expected_validation)])


def test_the_least_that_can_be_put_aside() -> None:
    rows = np.arange(4)
    for labels, n in (([0, 0], 1), ([0, 0, 1, 1], 2)):
        fit, validation = inner_validation(rows[: 2 * n], np.array(labels), None)
        assert np.array(labels)[fit].tolist() == np.array(labels)[validation].tolist()
    with pytest.raises(SplitError, match="too few to put 90%"):
        inner_validation(rows, np.array([0, 0, 1, 1]), None, fraction=0.9)
    for labels in ([], [0], [0, 1]):
        with pytest.raises(SplitError, match="too few"):
            inner_validation(rows[: len(labels)], np.array(labels, np.int64), None)


@LAWS
@given(datasets(), st.integers(0, 9))
def test_inner_validation_tears_no_group(dataset: tuple[Clips, int], seed: int) -> None:
    clips, _ = dataset
    rows, groups = np.arange(len(clips)), uploader_groups(clips)
    # groups with the only clip of a class are fitted whatever comes
    singles = np.flatnonzero(np.bincount(clips.labels) == 1)
    bound = set(groups[np.isin(clips.labels, singles)])
    free = np.array([i for i in rows if groups[i] not in bound], np.int64)
    n_groups = len(set(groups[free]))
    if n_groups < 5 or np.bincount(clips.labels[free]).max() < 5:
        with pytest.raises(SplitError, match=f"{n_groups} groups with at most"):
            inner_validation(rows, clips.labels, groups, seed=seed)
        return
    fit, validation = inner_validation(rows, clips.labels, groups, seed=seed)
    assert len(fit) and len(validation)
    assert sorted([*fit, *validation]) == list(rows)
    assert not set(groups[fit]) & set(groups[validation])


def test_inner_validation_of_groups_puts_a_fifth_aside() -> None:
    # 40 uploaders of 5 clips: nothing stands in the way of even shares
    labels = np.tile(np.repeat([0, 1], 5), 20)
    groups = np.repeat(np.arange(40), 5)
    _, validation = inner_validation(np.arange(200), labels, groups)
    assert np.bincount(labels[validation]).tolist() == [20, 20]
    _, quarter = inner_validation(np.arange(200), labels, groups, fraction=1 / 4)
    assert np.bincount(labels[quarter]).tolist() == [25, 25]
    _, half = inner_validation(np.arange(200), labels, groups, fraction=1 / 2)
    assert np.bincount(labels[half]).tolist() == [50, 50]


def test_inner_validation_of_groups_with_rare_classes_alone() -> None:
    with pytest.raises(SplitError, match="12 groups with at most 4 clips of a class"):
        inner_validation(np.arange(12), np.repeat([0, 1, 2], 4), np.arange(12))


def test_a_single_clip_is_fitted_in_groups_too() -> None:
    labels = np.array([0] * 11 + [1])
    groups = np.array([0, 1, 2, 3, 4, 5, 2, 0, 3, 5, 1, 4])
    fit, _ = inner_validation(np.arange(12), labels, groups)
    assert 11 in fit


def texts(values: list[str]) -> npt.NDArray[np.object_]:
    return np.array(values, object)


def test_groups_by_any_column_by_several_and_by_a_pattern() -> None:
    n = 60
    clips = make_clips(
        [i % 2 for i in range(n)],
        [f"u{i // 2}" for i in range(n)],
        columns={
            "origin": texts([f"o{i // 6}" for i in range(n)]),
            "pack": np.array([float(i // 12) for i in range(n)]),
            "file": texts([f"rec{i // 4}_{i}.wav" for i in range(n)]),
        },
    )
    for protocol, size in (
        ("group:origin", 6),
        ("group:pack", 12),
        ("group:uploader+pack", 12),
        (r"group:file~^(rec\d+)_", 4),
        (r"group:uploader+file~^rec\d+", 4),
    ):
        split = make_split(protocol, clips, n_folds=3)
        together = np.arange(n) // size
        assert not len(shared_groups(split, together)), protocol
        assert split.grouping is not None and split.name == protocol
        assert np.array_equal(split.grouping.numbers, together), protocol
        fit, held_out = inner_validation(
            split.train(0), clips.labels, split.grouping.numbers, fraction=0.5
        )
        assert not set(together[fit]) & set(together[held_out])


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("group:orgin", "no column 'orgin': did you mean 'origin'"),
        ("group:", "expected COLUMN"),
        ("group:origin+origin", "expected COLUMN"),
        ("group:origin~(", "is no pattern"),
        ("groups", "did you mean 'group'"),
        ("time:", "unknown split 'time:'"),
        ("time:origin", "is not known for 12 of 12 clips, e.g. i0 has 'o0'"),
        ("time:year", "is not known for 1 of 12 clips, e.g. i3 has ''"),
    ],
)
def test_columns_that_cannot_make_folds(protocol: str, message: str) -> None:
    clips = make_clips(
        [i % 2 for i in range(12)],
        columns={
            "origin": texts([f"o{i // 3}" for i in range(12)]),
            "year": np.array([np.nan if i == 3 else 2000.0 + i for i in range(12)]),
        },
    )
    with pytest.raises(SplitError, match=re.escape(message)):
        make_split(protocol, clips, n_folds=2)


def test_equal_sounds_stand_on_one_side() -> None:
    n = 80  # every sound under two ids, of two uploaders
    clips = make_clips(
        [i // 2 % 2 for i in range(n)],
        [f"u{i}" for i in range(n)],
        sounds=[f"{i // 2:064x}" for i in range(n)],
    )
    pairs = np.arange(n) // 2
    for protocol in ("group", "stratified"):
        split = make_split(protocol, clips)
        assert not len(shared_groups(split, pairs)), protocol
        audit = audit_split(split, clips)
        assert audit.n_equal == n and audit.n_copies == 0
        assert f"{n} clips with an equal sound stand on one side" in audit.claims
    official = make_split("official", clips)
    expected = StratifiedKFold(5, shuffle=True, random_state=OFFICIAL_SEED)
    for (_, test), (_, theirs) in zip(official, expected.split(pairs, clips.labels), strict=True):
        assert np.array_equal(test, theirs), "the organisers' folds stay theirs"
    crossing = sum(np.isin(pairs[test], pairs[train]).sum() for train, test in official)
    assert audit_split(official, clips).n_copies == crossing > 0
    assert f"{crossing} tested clips have the sound of a training clip" in " ".join(
        audit_split(official, clips).claims
    )


def test_time_trains_before_and_tests_after() -> None:
    moments = [f"20{10 + i // 4:02d}-01-01T00:00:{i % 4 // 2:02d}+00:00" for i in range(40)]
    order = np.random.default_rng(0).permutation(40)
    sounds = [f"{i:064x}" for i in range(40)]
    sounds[39] = sounds[0]  # a copy of an early clip, uploaded late
    clips = make_clips(
        [i % 2 for i in order],
        sounds=[sounds[i] for i in order],
        columns={"created": texts([moments[i] for i in order])},
    )
    split = make_split("time:created", clips, n_folds=5)
    (train, test), *others = split
    assert not others and len(train) + len(test) == 40
    assert sorted(order[test].tolist()) == list(range(32, 39)), "39 has an early clip's sound"
    assert max(order[train[order[train] != 39]]) < min(order[test])
    years = replace(clips, columns={"created": np.array([float(i // 10) for i in order])})
    ties = make_split("time:created", years, n_folds=5)
    assert sorted(order[ties.test(0)].tolist()) == list(range(30, 39)), "no moment is torn"


def test_folds_of_others_keep_apart_what_they_keep_apart(tmp_path: Path) -> None:
    n = 60
    clips = make_clips(
        [i % 2 for i in range(n)],
        [f"u{i % 7}" for i in range(n)],
        columns={"recording": texts([f"r{i // 6}" for i in range(n)])},
    )
    path = tmp_path / "folds.csv"
    path.write_text("id,fold\n" + "".join(f"i{i},{i // 6 % 3}\n" for i in range(n)))
    split = make_split("file", clips, path=path)
    assert split.grouping is not None and split.grouping.name == "recording"
    claims = audit_split(split, clips).claims
    assert claims[:2] == ["no recording on two sides", "7 uploaders on two sides"]


@pytest.mark.parametrize(
    ("uploaders", "claim"),
    [
        ([f"u{i // 2}" for i in range(40)], "no uploader on two sides"),
        (
            [f"u{i // 2}" if i < 12 else "" for i in range(40)],
            "uploader known for 12 of 40 clips; the others are each their own group",
        ),
        ([""] * 40, "uploader not known of any clip"),
    ],
)
def test_disjoint_is_said_only_where_uploaders_are_known(uploaders: list[str], claim: str) -> None:
    clips = make_clips(
        [i % 2 for i in range(40)], uploaders, sounds=[f"{i:064x}" for i in range(40)]
    )
    assert audit_split(make_split("group", clips), clips).claims == [claim]
    unread = replace(clips, sound=texts([""] * 40))
    assert (
        "the sounds of 40 clips are not known"
        in audit_split(make_split("group", unread), unread).claims
    )
