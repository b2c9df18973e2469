"""A store knows its dataset by content: what may take its place, and what that takes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.cli.app import default_store
from bsdkit.dataset import Clips, read_dataset
from bsdkit.dataset.clips import strings
from bsdkit.errors import StoreError
from bsdkit.progress import Progress
from bsdkit.store import Store
from bsdkit.store.changes import compare_tables
from bsdkit.store.fill import fill_store, fill_table
from tests.test_dataset import write, write_sound

N = 20


class Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def table(folder: Path, word: str = "", n: int = N, start: int = 0, sounds: str = "") -> Clips:
    rows = "".join(f"{i},fx-a,{word and f'{word} {i}'},{i % 3}\n" for i in range(start, start + n))
    clips, _ = read_dataset(
        write(folder / "x.csv", "id,class,title,fold\n" + rows), keep_columns=["fold"]
    )
    return replace(clips, sha256=strings(f"{sounds}{i}" if sounds else "" for i in clips.ids))


def test_whose_clips_they_are(tmp_path: Path) -> None:
    def is_other(old: Clips, new: Clips) -> bool:
        return compare_tables(old, new).is_other

    a = table(tmp_path, "a", sounds="s")
    assert not is_other(a, a)
    # sounds are what they were, whatever is written about them; other sounds are not
    assert not is_other(a, table(tmp_path, "b", sounds="s"))
    assert is_other(a, table(tmp_path, "a", sounds="t"))
    # without sounds, texts tell; without texts too, ids alone
    assert is_other(table(tmp_path, "a"), table(tmp_path, "b"))
    assert not is_other(table(tmp_path), table(tmp_path, "b"))
    # up to a fifth may go or be other
    assert not is_other(a, table(tmp_path, "a", start=4, sounds="s"))
    assert is_other(a, table(tmp_path, "a", start=5, sounds="s"))
    some = a.sha256.copy()
    some[:4] = "other"
    assert not is_other(a, replace(a, sha256=some))
    some[4] = "other"
    assert is_other(a, replace(a, sha256=some))
    # a dataset may grow, and a part of it is known by its sounds
    assert not is_other(a, table(tmp_path, "a", n=100, sounds="s"))
    assert not is_other(a, table(tmp_path, "a", n=3, sounds="s"))
    assert is_other(table(tmp_path), table(tmp_path, n=3))


def test_another_dataset_is_refused_with_the_counts_and_the_choices(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store.create(store, table(tmp_path, "a", sounds="s"))
    write(store / "aisfx-1.h5", b"x")
    other = table(tmp_path, "b", n=10, start=5, sounds="t")
    with pytest.raises(StoreError) as caught:
        Store.create(store, other)
    assert str(caught.value) == (
        f"{store} holds 20 clips of another dataset: 10 of their ids are not among these 10, and "
        "10 of the 10 in common have other sounds or texts (more than 20%); give --store OTHER, "
        "or --replace to put these in its place"
    )
    assert len(Store(store).clips) == N and (store / "aisfx-1.h5").is_file()
    # features are found by id, so those of other sounds must not stay
    Store.create(store, other, is_replacing=True)
    assert len(Store(store).clips) == 10 and not (store / "aisfx-1.h5").exists()
    # of clips that merely went, they stay
    write(store / "aisfx-1.h5", b"x")
    few = table(tmp_path, "c", n=1, start=5)
    few = replace(few, sha256=strings(["t5"]))
    Store.create(store, few, is_replacing=True)
    assert (store / "aisfx-1.h5").is_file()


def test_what_is_taken_out_is_said(tmp_path: Path) -> None:
    store, progress = tmp_path / "store", Lines()
    old = table(tmp_path, "a")
    fill_table(old, store, progress)
    assert progress.lines == []
    labels, title = old.labels.copy(), old.title.copy()
    labels[:7], title[:2] = -1, ""
    new = replace(table(tmp_path, "a"), labels=labels, title=title, columns={})
    with pytest.raises(StoreError, match="holds labels of 7 clips that have none in this dataset"):
        fill_table(new, store, progress)
    fill_table(new, store, progress, is_replacing=True)
    assert progress.lines == [
        f"taken out of {store}: {what}"
        for what in ("the title of 2 clips", "the label of 7 clips", "the column fold")
    ]


def test_kept_columns_stay_and_unread_ones_are_remembered(tmp_path: Path) -> None:
    data = write(tmp_path / "x.csv", "id,class,fold,take,usrname\n1,fx-a,0,A,u\n2,fx-v,,,v\n")
    store, progress = tmp_path / "store", Lines()
    fill_store(data, store, "bst", progress, keep_columns=["fold", "take"])
    columns = Store(store).clips.columns
    assert columns["fold"].dtype == np.float64 and columns["take"].tolist() == ["A", ""]
    np.testing.assert_array_equal(columns["fold"], [0, np.nan])
    assert Store(store).clips.unread == ("usrname (did you mean username?)",)
    # without the option, what the store has stays
    opened, clips = fill_store(data, store, "bst", progress)
    assert list(clips.columns) == list(opened.clips.columns) == ["fold", "take"]
    write(data, "id,class,take,username\n1,fx-a,A,u\n2,fx-v,,v\n")
    progress.lines.clear()
    opened, _ = fill_store(data, store, "bst", progress)
    assert list(opened.clips.columns) == ["take"] and opened.clips.unread == ()
    assert progress.lines[-1] == f"taken out of {store}: the column fold"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("BSD10k", "BSD10k"),
        ("e/audio", "e"),
        ("dev/metadata.csv", "dev"),
        ("esc/meta/esc50.csv", "esc50"),
        ("esc/metadata/meta.csv", "esc"),
        ("e/data/Sounds", "e"),
        ("e/BSD10k_metadata.csv", "BSD10k_metadata"),
    ],
)
def test_a_name_that_any_dataset_may_have_names_no_store(
    tmp_path: Path, place: str, name: str
) -> None:
    path = tmp_path / place
    if path.suffix:
        write(path, "id\n1\n")
    else:
        write_sound(path / "a.wav")
    assert default_store(path) == Path("cache") / name
