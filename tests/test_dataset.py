"""The clips table: every layout that is read, and every fault with its one clear line."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsdkit.csvfile import read_csv_rows
from bsdkit.dataset import AUDIO_SUFFIXES, FilterReport, inspect_audio, read_dataset
from bsdkit.dataset.groups import numbered
from bsdkit.errors import DatasetError
from bsdkit.taxonomy import BST, Taxonomy

# The columns of the real BSD10k_metadata.csv and BSD35k-CS_metadata.csv.
COLUMNS = (
    "sound_id,class,class_idx,class_top,confidence,uploader,license,title,tags,description"
).split(",")
RATE = 8000


def bsd_row(sound_id: str, label: str = "fx-a", code: int = 405, **changes: str) -> dict[str, str]:
    row = {
        "sound_id": sound_id,
        "class": label,
        "class_idx": str(code),
        "class_top": label.split("-")[0],
        "confidence": "4",
        "uploader": f"user of {sound_id}",
        "license": "http://creativecommons.org/publicdomain/zero/1.0/",
        "title": f"{sound_id}.wav",
        "tags": "one,two",
        "description": 'two lines\nwith "quotes", and a comma',
    }
    return row | changes


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_sound(path: Path, seconds: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * RATE)), RATE)
    return path


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_bsd_layout(tmp_path: Path) -> None:
    rows = [
        bsd_row("30", "ss-n", 501, confidence="", uploader=" Åsa "),
        bsd_row("7", "fx-a", 405),
        bsd_row("100", "m-sp", 101, title="", tags="", description=""),
    ]
    write_table(tmp_path / "metadata" / "BSD10k_metadata.csv", rows)
    # the real folder holds other tables too
    write(tmp_path / "metadata" / "BSD10k_classes.csv", "x\n")
    for name in ("30.wav", "7.mp3", "7.wav", "999.wav", "readme.txt"):
        write(tmp_path / "audio" / name, b"x")

    clips, report = read_dataset(tmp_path)
    # row order is that of the file, not of the ids
    assert list(clips.ids) == ["30", "7", "100"]
    assert clips.taxonomy is BST
    assert BST.decode(clips.labels) == ["ss-n", "fx-a", "m-sp"]
    assert clips.is_labelled and len(clips) == 3
    np.testing.assert_array_equal(clips.confidence, np.array([np.nan, 4, 4], np.float32))
    assert list(clips.uploader) == ["Åsa", "user of 7", "user of 100"]
    assert clips.licence[0] == "http://creativecommons.org/publicdomain/zero/1.0/"
    assert list(clips.title) == ["30.wav", "7.wav", ""]
    assert clips.tags[0] == "one,two"
    assert clips.description[0] == 'two lines\nwith "quotes", and a comma'
    assert np.isnan(clips.duration).all() and list(clips.sha256) == [""] * 3
    # WAV goes before MP3; a missing file keeps the name it should have, so that extraction
    # can say what is missing; files that no row names are no clips
    audio = tmp_path / "audio"
    assert list(clips.audio) == [audio / "30.wav", audio / "7.wav", audio / "100.wav"]
    assert report.lines() == [
        f"{tmp_path / 'metadata' / 'BSD10k_metadata.csv'}: 3 rows, 3 kept, 0 dropped",
        "  1 ids have several audio files: the first of .wav, .flac, .ogg, .mp3, .opus, .aiff, "
        ".aif is taken, and the one in the fewest folders",
        "  1 files that are no audio (.txt 1)",
        "  audio files of 2 of 3 clips; 1 have none, e.g. 100",
        "  2 audio files that no row names, e.g. 7.mp3",
    ]


def test_labels_without_a_class_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        bsd_row("1", "fx", 400),
        bsd_row("2", "fx-a", 405),
        bsd_row("3", "fx-other", 499),
        bsd_row("4", "ss", 500),
        bsd_row("5", "fx", 400),
        bsd_row("6", "m-m", 103),
    ]
    path = write_table(tmp_path / "metadata" / "BSD35k-CS_metadata.csv", rows)
    clips, report = read_dataset(tmp_path)
    assert list(clips.ids) == ["2", "6"]
    assert report.dropped[0] == ("1", "fx", "labelled with a family only")
    assert report.lines() == [
        f"{path}: 6 rows, 2 kept, 4 dropped",
        "  dropped 2 of 'fx': labelled with a family only",
        "  dropped 1 of 'fx-other': labelled as the rest of a family",
        "  dropped 1 of 'ss': labelled with a family only",
    ]
    # no folder audio/: only embeddings are at hand
    assert list(clips.audio) == [None, None]

    # other labels know no such rule, and flat takes them all as they stand
    flat, report = read_dataset(tmp_path, "flat")
    assert flat.taxonomy == Taxonomy.flat(["fx", "fx-a", "fx-other", "m-m", "ss"])
    assert flat.taxonomy.decode(flat.labels) == ["fx", "fx-a", "fx-other", "ss", "fx", "m-m"]
    assert report.dropped == ()


def test_evaluation_set_has_no_labels(tmp_path: Path) -> None:
    table = "anonymous_id,title,tags,description\nb7,t,,\na1,,,\n"
    write(tmp_path / "metadata" / "BSD2k_metadata.csv", table)
    write_sound(tmp_path / "audio" / "b7.flac")
    clips, report = read_dataset(tmp_path)
    assert list(clips.ids) == ["b7", "a1"]
    assert clips.labels.tolist() == [-1, -1] and not clips.is_labelled
    assert clips.taxonomy is BST
    assert list(clips.audio) == [tmp_path / "audio" / name for name in ("b7.flac", "a1.wav")]
    assert (report.n_rows, report.dropped) == (2, ())


def test_csv_with_paths_and_labels_of_ones_own(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "c.wav"
    path = write(
        tmp_path / "mine.csv",
        # a byte order mark, spaces around names, Windows line ends, a blank line
        "\ufeffid, path ,label,licence,duration\r\n"
        "b,sub/b.ogg,rain,CC0,1.5\r\n\r\n"
        f"a,,dog,,\r\nc,{elsewhere},,,\r\n",
    )
    clips, report = read_dataset(path, "flat")
    assert list(clips.ids) == ["b", "a", "c"]
    # relative to the file; absolute where it is
    assert list(clips.audio) == [tmp_path / "sub/b.ogg", None, elsewhere]
    assert clips.taxonomy.labels == ("dog", "rain")
    assert clips.labels.tolist() == [1, 0, -1] and not clips.is_labelled
    assert clips.licence[0] == "CC0"
    np.testing.assert_array_equal(clips.duration, np.array([1.5, np.nan, np.nan], np.float32))
    assert report.n_rows == 3

    write(tmp_path / "tree.csv", "class,family\nrain,weather\nwind,weather\ndog,pet\n")
    clips, _ = read_dataset(path, str(tmp_path / "tree.csv"))
    assert clips.taxonomy.families == ("weather", "pet")
    assert clips.labels.tolist() == [0, 2, -1]


def test_codes_of_ones_own_start_at_nought(tmp_path: Path) -> None:
    tree = str(write(tmp_path / "tree.csv", "class,family,code\nrain,a,0\nwind,a,1\nfog,a,\n"))
    # a class without a code contradicts none
    path = write(tmp_path / "d.csv", "id,class,class_idx\n1,rain,0\n2,wind,\n3,fog,7\n")
    assert read_dataset(path, tree)[0].labels.tolist() == [0, 1, 2]
    for row, code in (("1,rain,1", 0), ("1,wind,0", 1)):
        path = write(tmp_path / "d.csv", f"id,class,class_idx\n{row}\n")
        with pytest.raises(DatasetError, match=f"line 2: class .* its code is {code}"):
            read_dataset(path, tree)


def test_class_folders(tmp_path: Path) -> None:
    for name in (
        "fx-a/z.WAV",
        "fx-a/deep/er.flac",
        "m-m/a.ogg",
        "fx-other/b.wav",
        "fx-a/notes.txt",
    ):
        write(tmp_path / name, b"x")
    clips, report = read_dataset(tmp_path)
    assert list(clips.ids) == ["fx-a/deep/er.flac", "fx-a/z.WAV", "m-m/a.ogg"]
    assert BST.decode(clips.labels) == ["fx-a", "fx-a", "m-m"]
    assert list(clips.title) == ["er", "z", "a"]
    assert list(clips.audio) == [tmp_path / clip for clip in clips.ids]
    assert report.lines()[0] == f"{tmp_path}: 4 rows, 3 kept, 1 dropped"
    flat, _ = read_dataset(tmp_path, "flat")
    assert flat.taxonomy.labels == ("fx-a", "fx-other", "m-m")


def test_loose_files_are_unlabelled(tmp_path: Path) -> None:
    for name in ("b.wav", "a.wav", "a.mp3"):
        write(tmp_path / name, b"x")
    clips, _ = read_dataset(tmp_path)
    assert list(clips.ids) == ["a.mp3", "a.wav", "b.wav"]
    assert not clips.is_labelled
    assert read_dataset(tmp_path, "flat")[0].labels.tolist() == [-1, -1, -1]


def test_endings_that_are_taken_for_audio(tmp_path: Path) -> None:
    assert AUDIO_SUFFIXES == (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
    write(tmp_path / "d.csv", "id\na\n")
    # of several files of one name the first of these endings is taken
    for suffix in reversed(AUDIO_SUFFIXES):
        path = write(tmp_path / "audio" / f"a{suffix}", b"x")
        assert list(read_dataset(tmp_path / "d.csv")[0].audio) == [path]


def test_uploaders_are_groups_and_nobody_is_a_group_of_his_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "d.csv",
        # the last uploader is named after a clip, and must not be mixed up with it
        "id,uploader\n1,ann\n2,\n3,ben\n4, \n5,ann\n6,2\n7,clip:2\n",
    )
    clips, _ = read_dataset(path)
    assert numbered(clips.uploader).tolist() == [0, 1, 2, 3, 0, 4, 5]


def test_positions_of_ids(tmp_path: Path) -> None:
    clips, _ = read_dataset(write(tmp_path / "d.csv", "id\nx\ny\nz\n"))
    assert clips.positions(["z", "x", "z"]).tolist() == [2, 0, 2]
    assert clips.positions([]).tolist() == []
    with pytest.raises(DatasetError, match="2 ids are not in the clips table, the first is 'q'"):
        clips.positions(["x", "q", "r"])


HEADER = "sound_id,class,class_idx,confidence,title\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # the row before ends two lines further down: lines are counted as an editor does
        (
            HEADER + '1,fx-a,405,4,"a\nb\nc"\n\n2,fx-al,405,4,\n',
            "line 6: 'fx-al' is not a class of taxonomy 'bst': did you mean 'fx-a'?",
        ),
        (
            HEADER + '1,fx-a,405,4,"a\nb"\n2,fx-a,405,4,\n1,fx-v,402,4,\n',
            "line 5: id '1' stands already on line 2",
        ),
        (
            HEADER + '1,fx-a,405,4,"a\nb"\n2,fx-a,405,4,"open\n3,fx-a,405,4,\n',
            "line 4: broken quoting",
        ),
        (HEADER + '1,fx-a,405,4,a\n2,fx-a,405,4,"a" b\n', "line 3: broken quoting"),
        (HEADER + '1,fx-a,405,4,"one\n2,fx-a,405,4,"two"\n', "line 2: broken quoting"),
        (HEADER + "1,fx-a,405,4\n", "line 2: 4 fields, the header has 5"),
        (HEADER + "1,fx-a,405,4,a, b\n", "line 2: 6 fields, the header has 5"),
        (
            HEADER + "1,fx-a,405,4,\n2,fx-a,402,4,\n",
            "line 3: class 'fx-a' with class_idx 402; its code is 405",
        ),
        # an "other" code on a real class is a contradiction too, not a row to drop
        (HEADER + "1,fx-a,499,4,\n", "line 2: class 'fx-a' with class_idx 499; its code is 405"),
        (HEADER + "1,fx-a,4o5,4,\n", "line 2: class_idx '4o5' is not a whole number"),
        (HEADER + "1,fx-a,405,high,\n", "line 2: confidence 'high' is not a number"),
        (HEADER + "1,fx-a,405,4,\n ,fx-a,405,4,\n", "line 3: empty sound_id"),
        (HEADER, "has no clip to keep: 0 rows read, 0 dropped"),
        (HEADER + "1,fx,400,4,\n", "has no clip to keep: 1 rows read, 1 dropped"),
        ("", "has the columns none; one of sound_id, anonymous_id, id, clip_id is needed"),
        ("name,class\n1,fx-a\n", "has the columns name, class; one of sound_id"),
        # cp1252 has no character 0x81
        (b"sound_id,title\n1,\x81\n", "is not UTF-8 text: byte 17"),
        ("sound_id,title\n1,a\n".encode("utf-16")[:-1], "begins as UTF-16 and is not: byte"),
        (HEADER + '1,fx-a,405,4,"a\nb"\n2,fx-a,405,4,\0\n', "line 4: a NUL byte"),
        (HEADER + "1,fx-a,405,4,\nNaN,fx-a,405,4,\n", "line 3: sound_id 'NaN' says unknown"),
        (HEADER + "1,fx-a,inf,4,\n", "line 2: class_idx 'inf'"),
        ("sound_id,class,class\n1,fx-a,fx-v\n", "twice"),
    ],
)
def test_faults_of_a_table(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path / "d.csv", text)
    with pytest.raises(DatasetError) as caught:
        read_dataset(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_faults_of_a_folder(tmp_path: Path) -> None:
    def fault(folder: Path) -> str:
        with pytest.raises(DatasetError) as caught:
            read_dataset(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert (
        fault(tmp_path / "nope")
        == f"no dataset at {tmp_path / 'nope'}: give a folder or a CSV file"
    )

    empty = tmp_path / "empty"
    empty.mkdir()
    assert fault(empty).startswith(f"{empty} holds no audio (.wav, ")

    (empty / "metadata").mkdir()
    assert "must hold one *_metadata.csv, found: none" in fault(empty)
    write(empty / "metadata" / "a_metadata.csv", HEADER)
    write(empty / "metadata" / "b_metadata.csv", HEADER)
    assert "found: a_metadata.csv, b_metadata.csv" in fault(empty)

    mixed = tmp_path / "mixed"
    write(mixed / "fx-a" / "1.wav", b"x")
    write(mixed / "2.wav", b"x")
    assert "mixes class folders with loose files such as 2.wav" in fault(mixed)

    unknown = tmp_path / "unknown"
    write(unknown / "fx-aa" / "1.wav", b"x")
    message = fault(unknown)
    assert message.startswith(f"folder {unknown / 'fx-aa'}: 'fx-aa' is not a class")
    assert "did you mean 'fx-a'?" in message and "--taxonomy flat" in message

    coarse = tmp_path / "coarse"
    write(coarse / "fx" / "1.wav", b"x")
    assert "has no clip to keep: 1 dropped" in fault(coarse)


def test_read_csv_rows_says_where_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"cannot read .*nope\.csv: No such file"):
        read_csv_rows(tmp_path / "nope.csv")
    with pytest.raises(DatasetError, match=r"cannot read .*: Is a directory"):
        read_csv_rows(tmp_path)
    path = write(tmp_path / "d.csv", 'a , b\n"x\ny",1\n\n3,4\n')
    assert read_csv_rows(path) == (["a", "b"], [(2, ["x\ny", "1"]), (5, ["3", "4"])])


def test_inspect_audio(tmp_path: Path) -> None:
    write_sound(tmp_path / "good.wav", 0.25)
    write_sound(tmp_path / "also.flac", 1.5)
    write(tmp_path / "zero.wav", b"")
    write(tmp_path / "text.wav", "not a sound")
    write_sound(tmp_path / "header.wav", 0)
    (tmp_path / "folder.wav").mkdir()
    names = ["good.wav", "also.flac", "zero.wav", "text.wav", "header.wav", "gone.wav"]
    table = [{"id": name, "path": name} for name in [*names, "folder.wav"]]
    path = write_table(tmp_path / "d.csv", [*table, {"id": "nothing", "path": ""}])
    clips, _ = read_dataset(path)

    n_done: list[int] = []
    found = inspect_audio(clips, n_threads=3, progress=n_done.append)
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names[:-1]]
    # what cannot be read has no digest; what cannot be decoded has one, and no length
    assert list(found.sha256) == [*digests, "", "", ""]
    np.testing.assert_array_equal(
        found.duration, np.array([0.25, 1.5, np.nan, np.nan, 0] + [np.nan] * 3, np.float32)
    )
    assert n_done == list(range(1, 9))
    assert list(found.ids) == list(clips.ids) and list(clips.sha256) == [""] * 8


def test_report_without_drops_is_one_line() -> None:
    assert FilterReport("x", 2).lines() == ["x: 2 rows, 2 kept, 0 dropped"]
