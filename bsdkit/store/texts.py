"""Texts about clips that a model wrote, such as summaries: files of a store beside its features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.errors import CorruptStore, IncompleteStore, StaleStore, nearest
from bsdkit.store.feature import OK
from bsdkit.store.files import (
    atomic_h5,
    open_h5,
    read_strings,
    read_texts,
    write_strings,
    write_texts,
)
from bsdkit.store.kinds import Spec, spec_hash
from bsdkit.version import __version__

__all__ = ["TextRows", "Texts", "find_texts", "list_texts", "read_texts_file", "write_texts_file"]

FORMAT = "bsdkit-texts-1"
_FOLDER = "texts"


@dataclass(frozen=True)
class TextRows:
    """Texts of some clips, in any order.

    Attributes:
        ids: clip ids [n].
        source_sha256: hex digests [n] of what each text was made from.
        state: OK or FAILED [n].
        reasons: why a clip has no text [n]; empty where it has one.
        texts: [n], empty where a clip failed.
        replies: [n] what the model answered, unchanged.
    """

    ids: npt.NDArray[np.object_]
    source_sha256: npt.NDArray[np.object_]
    state: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.object_]
    texts: npt.NDArray[np.object_]
    replies: npt.NDArray[np.object_]

    def checksum(self) -> str:
        """The sha256 of all columns but the reasons."""
        digest = hashlib.sha256()
        for strings in (self.ids, self.source_sha256, self.texts, self.replies):
            for value in strings:
                digest.update(hashlib.sha256(str(value).encode()).digest())
        digest.update(np.ascontiguousarray(self.state).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Texts:
    """A file of texts.

    Attributes:
        path: the file.
        name: e.g. ``summary.gpt-5.4-mini``.
        spec: every fact that changes the texts.
        spec_hash: the sha256 of the spec.
        rows: the texts.
        provenance: seconds, tokens, versions.
    """

    path: Path
    name: str
    spec: Spec
    spec_hash: str
    rows: TextRows
    provenance: Mapping[str, object]

    @property
    def by_clip(self) -> dict[str, str]:
        """The text of each clip that has one."""
        is_ok = self.rows.state == OK
        return dict(zip(self.rows.ids[is_ok], self.rows.texts[is_ok], strict=True))

    @property
    def origin(self) -> str:
        """The name with the first 12 hex digits of the spec's hash."""
        return f"{self.name}@{self.spec_hash[:12]}"


def texts_path(store: Path, name: str, spec: Spec) -> Path:
    """Where a store keeps texts of that spec."""
    return store / _FOLDER / f"{name}-{spec_hash(spec)[:12]}.h5"


def write_texts_file(
    store: Path, name: str, spec: Spec, rows: TextRows, provenance: Mapping[str, object]
) -> Path:
    """Writes texts into a store and returns the file; it appears whole or not at all.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    path = texts_path(store, name, spec)
    with atomic_h5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["name"] = name
        file.attrs["spec"] = json.dumps(dict(spec), sort_keys=True, ensure_ascii=False)
        file.attrs["spec_hash"] = spec_hash(spec)
        file.attrs["bsdkit_version"] = __version__
        file.attrs["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        file.attrs["checksum"] = rows.checksum()
        write_strings(file, "row", rows.ids.tolist())
        write_strings(file, "source_sha256", rows.source_sha256.tolist())
        file.create_dataset("state", data=rows.state)
        write_texts(file, "reason", rows.reasons.tolist())
        write_texts(file, "text", rows.texts.tolist())
        write_texts(file, "reply", rows.replies.tolist())
    return path


def read_texts_file(path: Path) -> Texts:
    """Texts that `write_texts_file` wrote.

    Raises:
        CorruptStore: it is no such file, or does not match its checksum.
    """
    with open_h5(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise CorruptStore(f"{path} is an HDF5 file but holds no texts of bsdkit")
        rows = TextRows(
            ids=read_strings(file, "row"),
            source_sha256=read_strings(file, "source_sha256"),
            state=file["state"][()],
            reasons=read_texts(file, "reason"),
            texts=read_texts(file, "text"),
            replies=read_texts(file, "reply"),
        )
        if rows.checksum() != file.attrs["checksum"]:
            raise CorruptStore(
                f"{path} does not match its checksum; delete it and run bsdkit priors --summaries "
                "again"
            )
        return Texts(
            path=path,
            name=str(file.attrs["name"]),
            spec=json.loads(file.attrs["spec"]),
            spec_hash=str(file.attrs["spec_hash"]),
            rows=rows,
            provenance=json.loads(file.attrs["provenance"]),
        )


def list_texts(store: Path) -> list[Texts]:
    """Every file of texts in a store, by name.

    Raises:
        CorruptStore: see `read_texts_file`.
    """
    return [read_texts_file(path) for path in sorted((store / _FOLDER).glob("*.h5"))]


def find_texts(store: Path, name: str) -> Texts:
    """The texts of that name in a store.

    Args:
        store: the store's folder.
        name: e.g. ``summary.gpt-5.4-mini``, or its first part where that names one file only;
            after an @, the first digits of the spec's hash.

    Raises:
        IncompleteStore: there are none.
        StaleStore: several match.
    """
    found = list_texts(store)
    stem, _, digits = name.partition("@")
    named = [t for t in found if t.name == stem] or [
        t for t in found if t.name.partition(".")[0] == stem
    ]
    matching = [t for t in named if t.spec_hash.startswith(digits)]
    if not matching:
        known = nearest(name, [t.origin if digits else t.name for t in found])
        raise IncompleteStore(
            f"{store} has no texts {name!r}: {known}; write summaries with bsdkit priors "
            f"--summaries --model MODEL --store {store}"
        )
    if len(matching) > 1:
        raise StaleStore(
            f"{store} holds {len(matching)} texts {name!r}; name one: "
            + " or ".join(t.origin for t in matching)
        )
    return matching[0]
