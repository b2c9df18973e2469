"""Tables as other programs write them: names of columns, unknown words, encodings, ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bsdkit.dataset import Clips, FilterReport, read_dataset
from bsdkit.errors import DatasetError
from bsdkit.taxonomy import BST
from bsdkit.text import split_tags
from tests.test_dataset import write, write_sound


def read(path: Path, text: str | bytes, taxonomy: str = "flat") -> tuple[Clips, FilterReport]:
    return read_dataset(write(path, text), taxonomy)


def test_freesounds_names_are_read_and_what_is_not_is_named(tmp_path: Path) -> None:
    header = "Unnamed: 0,id,Name,User-Name,tags,License,usrname,author,type,class_top,\n"
    row = "0,7,a dog,ann,\"['dog', 'bark']\",CC0,x,y,wav,fx,\n"
    clips, report = read(tmp_path / "fs.csv", header + row)
    assert list(clips.uploader) == ["ann"] and list(clips.title) == ["a dog"]
    assert split_tags(clips.tags[0]) == ["dog", "bark"] and list(clips.licence) == ["CC0"]
    assert clips.unread == report.unread
    assert report.lines()[1:] == [
        "  read User-Name as uploader, Name as title",
        "  5 columns not read: Unnamed: 0 (row numbers as pandas writes them), usrname (did you "
        "mean username?), author (another column is preferred), type, class_top",
    ]


def test_words_for_nothing_are_unknown_in_every_column(tmp_path: Path) -> None:
    words = ["nan", "None", "NULL", "N/A", "<NA>", "-", "", "na", " NaN "]
    rows = "".join(f"{i},{w},{w},{w},{w},{w},{w},{w}\n" for i, w in enumerate(words))
    header = "id,class,class_idx,confidence,uploader,title,tags,path\n"
    clips, report = read(tmp_path / "d.csv", header + rows + "x,dog,4,5,ann,t,u,\n")
    n = len(words)
    assert clips.labels.tolist() == [-1] * n + [0] and clips.taxonomy.labels == ("dog",)
    for values in (clips.uploader, clips.title, clips.tags):
        assert values.tolist()[:n] == [""] * n
    assert np.isnan(clips.confidence[:n]).all() and list(clips.audio) == [None] * (n + 1)
    lines = report.lines()
    assert f"  uploader unknown of {n} of {n + 1} clips (column uploader)" in lines
    assert f"  label unknown of {n} of {n + 1} clips (column class)" in lines
    # a class of a taxonomy may be called so
    tree = write(tmp_path / "tree.csv", "class,family\nnone,a\ndog,b\n")
    clips, _ = read(tmp_path / "d.csv", "id,class\n1,none\n2,nan\n", str(tree))
    assert clips.labels.tolist() == [0, -1]


@pytest.mark.parametrize(
    ("header", "row", "taxonomy", "label"),
    [
        ("class_idx", "405", "bst", "fx-a"),
        ("class_idx", "405.0", "flat", "405"),
        ("category", "fx-a", "bst", "fx-a"),
        ("Category", "dog", "flat", "dog"),
        ("target", "405", "bst", "fx-a"),
        ("target", "3", "flat", "3"),
        ("category,class", "x,dog", "flat", "dog"),
    ],
)
def test_columns_that_may_be_the_labels(
    tmp_path: Path, header: str, row: str, taxonomy: str, label: str
) -> None:
    clips, _ = read(tmp_path / "d.csv", f"id,{header}\n1,{row}\n", taxonomy)
    assert clips.taxonomy.decode(clips.labels) == [label]


def test_labels_that_cannot_be_taken_are_named(tmp_path: Path) -> None:
    clips, report = read(tmp_path / "d.csv", "id,category\n1,dog\n", "bst")
    assert clips.labels.tolist() == [-1] and clips.unread == ("category",)
    assert "'dog' is no class of taxonomy 'bst'; for labels of your own give" in report.lines()[1]
    clips, report = read(tmp_path / "d.csv", 'id,labels\n1,"Bark,Dog"\n')
    assert clips.unread == ("labels",) and "several labels a clip" in report.lines()[1]
    with pytest.raises(DatasetError, match="line 3: '1234' is not a class of taxonomy"):
        read(tmp_path / "d.csv", "id,class_idx\n1,405\n2,1234\n", "bst")
    tree = str(write(tmp_path / "tree.csv", "class,family\na,b\n"))
    clips, report = read(tmp_path / "d.csv", "id,class_idx,take\n1,405,1_2\n", tree)
    assert clips.labels.tolist() == [-1] and "class_idx is not read" in report.lines()[1]
    kept = read_dataset(tmp_path / "d.csv", tree, keep_columns=["take"])[0].columns["take"]
    assert kept.tolist() == ["1_2"]
    # a family's code is dropped as it is beside its name
    clips, report = read(tmp_path / "d.csv", "id,class_idx\n1,405\n2,400\n", "bst")
    assert clips.taxonomy is BST and list(clips.ids) == ["1"] and report.dropped[0][0] == "2"


def test_esc50(tmp_path: Path) -> None:
    table = "filename,fold,target,category,esc10,src_file,take\n1-a-0.wav,1,0,dog,True,1,A\n"
    table += "2-b-1.wav,2,1,rooster,False,2,B\n"
    path = write(tmp_path / "meta" / "esc50.csv", table)
    sounds = [write_sound(tmp_path / "audio" / name) for name in ("1-a-0.wav", "2-b-1.wav")]
    for place in (path, tmp_path):
        clips, report = read_dataset(place, "flat", keep_columns=["Fold", "esc10"])
        assert list(clips.ids) == ["1-a-0.wav", "2-b-1.wav"] and list(clips.audio) == sounds
        assert clips.taxonomy.decode(clips.labels) == ["dog", "rooster"]
        # numbers are numbers, and the name is the one that was asked for
        assert clips.columns["Fold"].dtype == np.float64
        assert clips.columns["Fold"].tolist() == [1, 2]
        assert clips.columns["esc10"].tolist() == ["True", "False"]
        assert clips.unread == ("target", "src_file", "take")
        assert "  audio files of 2 of 2 clips" in report.lines()
    assert "fold (--keep-columns fold keeps it" in read_dataset(path, "flat")[1].lines()[-1]
    with pytest.raises(DatasetError, match="--keep-columns folt: .* did you mean 'fold'"):
        read_dataset(path, "flat", keep_columns=["folt"])
    clips, _ = read_dataset(path, "flat", keep_if_there=["folt"])
    assert clips.columns == {}


def test_urbansound8k_and_fsd50k(tmp_path: Path) -> None:
    table = "slice_file_name,fsID,start,end,salience,fold,classID,class\n7-1.wav,7,0,1,1,5,1,horn\n"
    path = write(tmp_path / "u" / "metadata" / "UrbanSound8K.csv", table)
    sound = write_sound(tmp_path / "u" / "audio" / "fold5" / "7-1.wav")
    for place in (path, tmp_path / "u"):
        clips, _ = read_dataset(place, "flat")
        assert list(clips.audio) == [sound] and list(clips.ids) == ["7-1.wav"]
    path = write(tmp_path / "f" / "FSD50K.ground_truth" / "dev.csv", "fname,labels,mids\n64,a,m\n")
    sound = write_sound(tmp_path / "f" / "FSD50K.dev_audio" / "64.wav")
    clips, _ = read_dataset(path, "flat")
    assert list(clips.audio) == [sound] and clips.taxonomy.labels == ("a",)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        ("id,title,class\n1,Straße “in”,dog\n".encode("cp1252"), "read as cp1252"),
        ("id,title,class\n1,Straße “in”,dog\n".encode("utf-16"), "read as UTF-16"),
        ("id;title;class\n1;Straße “in”;dog\n", "read with semicolons"),
        ("id\ttitle\tclass\n1\tStraße “in”\tdog\n", "read with tabs"),
        ("sep=;\r\nid;title;class\r\n1;Straße “in”;dog\r\n", "read with semicolons"),
        ("id,title,class\r1,Straße “in”,dog\r", ""),
        ("id,title,class\n,,\n1,Straße “in”,dog\n,\n", "2 rows without any value"),
    ],
)
def test_encodings_separators_and_blank_rows(tmp_path: Path, data: str | bytes, note: str) -> None:
    clips, report = read(tmp_path / "d.csv", data)
    assert list(clips.title) == ["Straße “in”"] and clips.taxonomy.labels == ("dog",)
    assert report.n_rows == 1 and note in "\n".join(report.lines())


def test_lines_are_counted_behind_a_separator_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="line 4: confidence 'x'"):
        read(tmp_path / "d.csv", "sep=,\nid,confidence\n1,2\n2,x\n")
    with pytest.raises(DatasetError, match="line 3: a NUL byte"):
        read(tmp_path / "d.csv", "sep=,\nid,title\n1,a\0b\n")


def test_files_by_ids_that_are_nearly_their_names(tmp_path: Path) -> None:
    names = ["100.wav", "007.wav", "a/b/deep.flac", "twin.mp3", "twin.wav", "5.wav", "05.wav"]
    for name in (*names, "Ku\u0308che.wav", "unused.wav"):
        write_sound(tmp_path / "audio" / name)
    ids = ["100.0", "7", "deep", "twin", "5", "Küche", "005", "deep.wav", "gone"]
    table = "sound_id,filename\n" + "".join(f"{i},Original {i}.WAV\n" for i in ids[:-1]) + "gone,\n"
    clips, report = read(tmp_path / "metadata" / "x_metadata.csv", table)
    assert list(clips.ids) == ids
    expected = [*names[:3], "twin.wav", "5.wav", "Ku\u0308che.wav", "", "a/b/deep.flac", "gone.wav"]
    audio = [tmp_path / "audio" / name for name in expected]
    audio[6] = tmp_path / "metadata" / "Original 005.WAV"  # may be 5.wav or 05.wav
    assert list(clips.audio) == audio
    text = "\n".join(report.lines())
    assert "1 audio files found by number, e.g. '7'" in text
    assert "1 ids have several audio files" in text
    assert "audio files of 7 of 9 clips; 2 have none, e.g. 005" in text
    assert "3 audio files that no row names" in text  # twin.mp3, 05.wav, unused.wav


def test_paths_with_the_separators_of_windows(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "clips" / "0.wav")
    clips, report = read(tmp_path / "x.csv", "id,path\n1,clips\\0.wav\n2,clips\\9.wav\n")
    assert list(clips.audio) == [sound, tmp_path / "clips\\9.wav"]
    assert "1 audio files found with / for \\" in report.lines()[1]


def test_paths_from_elsewhere(tmp_path: Path) -> None:
    names = ["clips/a.wav", "audio/x/B.WAV", "audio/c.wav"]
    sounds = [write_sound(tmp_path / name) for name in names]
    rows = "1,/home/ann/set/clips/a.wav\n2,old/b.wav\n3,audio/c.m4a\n"
    clips, report = read(tmp_path / "x.csv", "id,path\n" + rows)
    assert list(clips.audio) == sounds
    ways = ("below another folder", "whatever the case", "with another ending")
    for way in ways:
        assert f"  1 audio files found {way}, e.g. " in "\n".join(report.lines())
