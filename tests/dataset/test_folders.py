"""Folders of sounds as they occur: links, leftovers, other media, parts, odd names."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest

from bsdkit.dataset import audio_suffixes, inspect_audio, read_dataset
from bsdkit.dataset.folders import is_split_name
from bsdkit.errors import DatasetError
from bsdkit.store import Store
from bsdkit.text import TEMPLATES, build_texts
from tests.test_dataset import write, write_sound


def test_links_are_followed_once(tmp_path: Path) -> None:
    for name in ("data/dogs/0.wav", "set/cat/0.wav"):
        write_sound(tmp_path / name)
    (tmp_path / "set" / "dog").symlink_to("../data/dogs")
    (tmp_path / "set" / "cat" / "up").symlink_to("..")
    (tmp_path / "set" / "cat" / "gone.wav").symlink_to("nowhere.wav")
    clips, report = read_dataset(tmp_path / "set", "flat")
    assert list(clips.ids) == ["cat/0.wav", "dog/0.wav"]
    assert report.lines()[1:] == [
        "  passed over: links that lead nowhere 1, links to a folder above them 1"
    ]


def test_what_programs_leave_behind_is_passed_over_and_counted(tmp_path: Path) -> None:
    for name in ("dog/0.wav", "dog/.ipynb_checkpoints/0.wav", ".Trash-0/1.wav", "__MACOSX/2.wav"):
        write_sound(tmp_path / name)
    for name in ("dog/._0.wav", ".DS_Store"):
        write(tmp_path / name, b"\0\5\x16\7")
    clips, report = read_dataset(tmp_path, "flat")
    assert list(clips.ids) == ["dog/0.wav"] and clips.taxonomy.labels == ("dog",)
    assert report.lines()[1:] == ["  passed over: hidden or system files and folders 5"]


def test_a_class_without_audio_that_is_read_is_named(tmp_path: Path) -> None:
    write_sound(tmp_path / "dog" / "0.wav")
    for name in ("cat/0.m4a", "cat/1.M4A", "cat/deep/2.mp4", "dog/notes.txt"):
        write(tmp_path / name, b"x")
    (tmp_path / "cow").mkdir()
    lines = read_dataset(tmp_path, "flat")[1].lines()[1:]
    if ".m4a" not in audio_suffixes():
        assert lines == [
            "  folder 'cat' gives no clip: 3 files, none read (.m4a 2, .mp4 1)",
            "  folder 'cow' gives no clip: empty",
            "  3 sound or film files not read (.m4a 2, .mp4 1): convert each, "
            "e.g. ffmpeg -i in.m4a out.wav",
            "  1 files that are no audio (.txt 1)",
        ]
        shutil.rmtree(tmp_path / "dog")
        with pytest.raises(DatasetError, match="holds no audio .*ffmpeg -i in.m4a out.wav"):
            read_dataset(tmp_path, "flat")


def test_all_that_libsndfile_reads_is_audio(tmp_path: Path) -> None:
    assert {".wav", ".oga", ".w64", ".caf", ".au", ".aifc", ".rf64"} <= set(audio_suffixes())
    assert ".raw" not in audio_suffixes() and ".mat" not in audio_suffixes()
    for name in ("a.w64", "b.caf", "c.au", "d.raw"):
        write(tmp_path / name, b"x")
    clips, report = read_dataset(tmp_path)
    assert list(clips.ids) == ["a.w64", "b.caf", "c.au"] and "(.raw 1)" in report.lines()[1]


def test_names_of_parts() -> None:
    parts = "train Test VALID validation dev eval fold1 Fold_10 test_set training development"
    assert all(map(is_split_name, parts.split()))
    assert not any(map(is_split_name, ("trains", "dog", "fold", "testament", "valley", "1")))


def test_parts_above_class_folders_are_a_column(tmp_path: Path) -> None:
    for name in ("train/dog/0", "train/cat/1", "Test/dog/0", "valid/x/y/0"):
        write_sound(tmp_path / f"{name}.wav")
    (tmp_path / "Test" / "cow").mkdir()
    clips, report = read_dataset(tmp_path, "flat", keep_columns=["split"])
    ids = ["Test/dog/0.wav", "train/cat/1.wav", "train/dog/0.wav", "valid/x/y/0.wav"]
    assert list(clips.ids) == ids
    assert clips.taxonomy.decode(clips.labels) == ["dog", "cat", "dog", "x"]
    assert clips.columns["split"].tolist() == ["Test", "train", "train", "valid"]
    assert report.lines()[1:] == [
        "  Test/ (1 files), train/ (2 files), valid/ (1 files) are read as the column split, the "
        "folders in them as classes",
        "  folder 'Test/cow' gives no clip: empty",
    ]
    # a class of another name beside them, and they are classes too
    write_sound(tmp_path / "bus" / "0.wav")
    clips, _ = read_dataset(tmp_path, "flat")
    assert clips.taxonomy.labels == ("Test", "bus", "train", "valid") and clips.columns == {}
    shutil.rmtree(tmp_path / "bus")
    write_sound(tmp_path / "train" / "loose.wav")
    with pytest.raises(DatasetError, match="train mixes class folders with loose files"):
        read_dataset(tmp_path, "flat")
    with pytest.raises(DatasetError, match="--keep-columns take"):
        read_dataset(write_sound(tmp_path / "b" / "a.wav").parent, keep_columns=["take"])


def test_parts_below_class_folders_are_a_column_too(tmp_path: Path) -> None:
    for name in ("dog/train/0", "dog/test/1", "cat/train/0"):
        write_sound(tmp_path / f"{name}.wav")
    write(tmp_path / "x.csv", "id\n")
    clips, report = read_dataset(tmp_path, "flat")
    assert clips.taxonomy.decode(clips.labels) == ["cat", "dog", "dog"]
    assert clips.columns["split"].tolist() == ["train", "test", "train"]
    assert "1 tables here are not read" in "\n".join(report.lines())


def test_a_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    for name in ("audio/dog/0", "audio/cat/1"):
        write_sound(tmp_path / f"{name}.wav")
    line = read_dataset(tmp_path, "flat")[1].lines()[1]
    assert (
        "one class 'audio'" in line
        and f"(cat, dog); if they are, give {tmp_path / 'audio'}" in line
    )


def test_classes_that_differ_by_case_or_blanks_are_named(tmp_path: Path) -> None:
    for name in ("Dog /0.WAV", "dog/0.wav", "cat/0.wav"):
        write_sound(tmp_path / name)
    line = "  classes that differ by case or blanks alone: 'Dog ', 'dog'"
    assert line in read_dataset(tmp_path, "flat")[1].lines()
    table = write(tmp_path / "d.csv", "id,class\n1,Dog\n2,dog\n3,cat\n")
    assert line.replace("Dog ", "Dog") in read_dataset(table, "flat")[1].lines()


def test_class_folders_in_either_form_of_unicode(tmp_path: Path) -> None:
    tree = write(tmp_path / "tree.csv", "class,family\nKüche,a\nHof,b\n")
    write_sound(tmp_path / "d" / unicodedata.normalize("NFD", "Küche") / "0.wav")
    clips, _ = read_dataset(tmp_path / "d", str(tree))
    assert clips.labels.tolist() == [0] and clips.audio[0] is not None and clips.audio[0].is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="names are UTF-8 there")
def test_names_that_are_no_text_are_escaped_and_their_files_are_read(tmp_path: Path) -> None:
    names = [b"caf\xe9.wav", b"a\nb.wav", b"\x1b[31mred.wav"]
    folder = tmp_path / "dog"
    for i, name in enumerate(names):
        sound = write_sound(tmp_path / "x.wav", 0.1 * (i + 1))
        folder.mkdir(exist_ok=True)
        os.rename(sound, os.fsencode(folder) + b"/" + name)
    clips, report = read_dataset(tmp_path, "flat")
    assert list(clips.ids) == ["dog/\\x1b[31mred.wav", "dog/a\\nb.wav", "dog/caf\\xe9.wav"]
    found = inspect_audio(clips)
    assert found.duration.round(1).tolist() == pytest.approx([0.3, 0.2, 0.1])
    store = Store.create(tmp_path / "store", found)
    assert list(store.clips.ids) == list(clips.ids) and store.clips.title[2] == "caf\\xe9"
    for text in (*report.lines(), *build_texts(clips, TEMPLATES["raw"])):
        text.encode()
    # a table in UTF-8 finds the file that was named in Latin-1
    table = write(folder / "t.csv", "id,path\n1,café.wav\n")
    (path,) = read_dataset(table)[0].audio
    assert path is not None and path.is_file()
