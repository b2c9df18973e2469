"""Texts in a store: whole or not at all, found by name, checked when read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bsdkit.errors import CorruptStore, IncompleteStore, StaleStore
from bsdkit.store.feature import FAILED, OK
from bsdkit.store.texts import TextRows, find_texts, list_texts, read_texts_file, write_texts_file


def rows(*texts: str) -> TextRows:
    def column(values: list[str]) -> np.ndarray:
        return np.array(values, object)

    return TextRows(
        ids=column([f"clip {i}" for i in range(len(texts))]),
        source_sha256=column(["0" * 64] * len(texts)),
        state=np.array([OK if text else FAILED for text in texts], np.uint8),
        reasons=column(["" if text else "refused" for text in texts]),
        texts=column(list(texts)),
        replies=column([f'{{"content": "{text}"}}' for text in texts]),
    )


def test_texts_travel_and_damage_is_noticed(tmp_path: Path) -> None:
    path = write_texts_file(
        tmp_path, "summary.m-1.5", {"weights": "m"}, rows("Rain.", "", "雨"), {}
    )
    texts = read_texts_file(path)
    assert texts.by_clip == {"clip 0": "Rain.", "clip 2": "雨"}
    assert texts.origin == f"summary.m-1.5@{path.stem[-12:]}"
    data = bytearray(path.read_bytes())
    place = data.find(b"clip 1")
    data[place : place + 6] = b"clip 9"
    path.write_bytes(data)
    with pytest.raises(CorruptStore, match="does not match its checksum; delete it"):
        list_texts(tmp_path)


def test_texts_are_found_by_their_first_name_where_it_is_enough(tmp_path: Path) -> None:
    with pytest.raises(IncompleteStore, match="no texts 'summary'.*bsdkit priors --summaries"):
        find_texts(tmp_path, "summary")
    write_texts_file(tmp_path, "summary.a", {"weights": "a"}, rows("x"), {})
    assert find_texts(tmp_path, "summary").name == "summary.a"
    second = write_texts_file(tmp_path, "summary.b", {"weights": "b"}, rows("y"), {})
    with pytest.raises(StaleStore, match="holds 2 texts 'summary'; name one: summary.a@"):
        find_texts(tmp_path, "summary")
    assert find_texts(tmp_path, "summary.b").path == second
    assert find_texts(tmp_path, f"summary@{second.stem[-12:]}").name == "summary.b"
    with pytest.raises(IncompleteStore, match=r"did you mean 'summary\."):
        find_texts(tmp_path, "summary.c")
