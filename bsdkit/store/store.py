"""A store: a folder with a clips table and one immutable file a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import Clips
from bsdkit.errors import IncompleteStore, StaleStore, StoreError, nearest
from bsdkit.location import as_location
from bsdkit.store.changes import compare_tables
from bsdkit.store.clips import read_clips, same_table, write_clips
from bsdkit.store.feature import FAILED, FeatureInfo, read_embedding, read_info
from bsdkit.store.files import remove_tree
from bsdkit.store.kinds import PRIOR, Spec, first_difference
from bsdkit.text import TEMPLATES, template_name

__all__ = ["Features", "Store"]

_USUAL_TEMPLATE = next(iter(TEMPLATES))


@dataclass(frozen=True)
class Features:
    """Features of all clips in clips-table order.

    Attributes:
        arrays: float32 [n_clips, dim] by feature name; zeros where a row is missing.
        is_missing: [n_clips, n_features] whether a clip has no embedding of a feature.
        is_failed: [n_clips, n_features] whether it has none because it was tried and failed.
        infos: what each feature file says of itself, by feature name.
    """

    arrays: dict[str, npt.NDArray[np.float32]]
    is_missing: npt.NDArray[np.bool_]
    is_failed: npt.NDArray[np.bool_]
    infos: dict[str, FeatureInfo]


def _template_of(spec: Spec) -> str:
    return template_name(str(spec.get("text_template", "")))


def _remove_features(store: Path) -> None:
    for file in store.glob("*.h5"):
        if file.name != "clips.h5":
            file.unlink()
    for folder in (".parts", "texts"):
        remove_tree(store / folder)


class Store:
    """A store on disk, opened for reading.

    Args:
        path: the folder, which holds ``clips.h5``.

    Raises:
        StoreError: the folder is not a store.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = as_location(path)
        if not (self.path / "clips.h5").is_file():
            raise StoreError(
                f"no store at {self.path} (no clips.h5 in it); make one with "
                f"bsdkit extract --data DIR --store {self.path}"
            )

    @classmethod
    def create(cls, path: Path | str, clips: Clips, *, is_replacing: bool = False) -> Store:
        """The store at `path` with this clips table, which replaces an older one.

        Rows of features are found by clip id, so a table that gained clips, lost some or
        changed their order keeps what was embedded.

        Args:
            path: the folder.
            clips: the table.
            is_replacing: whether it may take the place of a table of another dataset, see
                `TableChange`. Where sounds or texts of the same ids differ then, the features
                and texts in the store are removed: they are not of these clips.

        Raises:
            StoreError: the store there holds clips of another dataset, or cannot be written.
        """
        path = as_location(path)
        table = path / "clips.h5"
        if table.is_file():
            old = read_clips(table)
            change = compare_tables(old, clips)
            reason = change.refusal(path)
            if reason and not is_replacing:
                raise StoreError(reason)
            if same_table(old, clips):
                return cls(path)
            if change.is_other and change.others:
                _remove_features(path)
        write_clips(table, clips)
        return cls(path)

    @cached_property
    def clips(self) -> Clips:
        """The clips table; the paths of the audio are not in a store."""
        return read_clips(self.path / "clips.h5")

    def infos(self) -> list[FeatureInfo]:
        """Every feature file of the store, by name."""
        return [read_info(file) for file in self.feature_files()]

    def feature_files(self) -> list[Path]:
        """Paths of the feature files, by name."""
        return [file for file in sorted(self.path.glob("*.h5")) if file.name != "clips.h5"]

    def info(self, feature: str, expect: Spec | None = None) -> FeatureInfo:
        """The feature file of that name.

        Args:
            feature: a name such as ``clap.audio``. Where a store holds several specs of it, with
                the first digits of the spec's hash, ``clap.audio@1f3a``, or with the name of the
                text template, ``minilm@summary``; without either, the usual template's is meant
                where there are several.
            expect: fields of the spec that must hold; may be partial.

        Raises:
            IncompleteStore: the store lacks the feature; the message names the nearest.
            StaleStore: no file has the expected spec, or several match what was asked.
        """
        name, _, prefix = feature.partition("@")
        found = [read_info(f) for f in sorted(self.path.glob(f"{name}-*.h5"))]
        found = [info for info in found if info.feature == name]
        if not found:
            known = nearest(name, {info.feature for info in self.infos()})
            command = (
                f"; embed it with bsdkit extract --backbone {name.split('.')[0]} --data DIR "
                f"--store {self.path}, or bring others' probabilities in with bsdkit import"
            )
            if name.startswith(PRIOR + "."):
                command = f"; make it with bsdkit priors --store {self.path} (see its --help)"
            raise IncompleteStore(
                f"{self.path} has no feature {name!r}: {known}"
                + ("" if known.startswith("did you") else command)
            )
        matching = [info for info in found if info.spec_hash.startswith(prefix)]
        matching = matching or [info for info in found if _template_of(info.spec) == prefix]
        if not matching:
            hashes = ", ".join(f"{name}@{info.spec_hash[:12]}" for info in found)
            make = {
                "masked": "; make it with --mask-class-words",
                "summary": "; embed summaries with bsdkit extract --text summary",
            }
            raise StaleStore(f"{self.path} has no {feature!r}, only {hashes}{make.get(prefix, '')}")
        if expect is not None:
            differences = [(info, first_difference(info.spec, expect)) for info in matching]
            matching = [info for info, difference in differences if difference is None]
            if not matching:
                info, difference = differences[0]
                assert difference is not None
                field, value, expected = difference
                raise StaleStore(
                    f"{info.path} was embedded with {field} = {value!r}, expected {expected!r}; "
                    f"embed it again with bsdkit extract --backbone {name.split('.')[0]} "
                    f"--data DIR --store {self.path}"
                )
        if len(matching) > 1 and not prefix:
            # other templates are variants; the plain name stays what it was before they came
            usual = [info for info in matching if _template_of(info.spec) in ("", _USUAL_TEMPLATE)]
            matching = usual if len(usual) == 1 else matching
        if len(matching) > 1:
            first, second = matching[:2]
            difference = first_difference(second.spec, first.spec)
            where = (
                f"{difference[0]} = {difference[2]!r} and {difference[1]!r}" if difference else ""
            )
            raise StaleStore(
                f"{self.path} holds {len(matching)} specs of {name!r} ({where}); name one: "
                + " or ".join(f"{name}@{info.spec_hash[:12]}" for info in matching)
            )
        return matching[0]

    @cached_property
    def _encoded_ids(self) -> npt.NDArray[np.bytes_]:
        return np.array([clip.encode(errors="surrogateescape") for clip in self.clips.ids])

    def _places(
        self, ids: npt.NDArray[np.bytes_], state: npt.NDArray[np.uint8]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """For each clip of the table, its row in a feature file or -1, and whether it failed."""
        if np.array_equal(ids, self._encoded_ids):
            places = np.arange(len(ids), dtype=np.int64)
        else:
            index = {clip: i for i, clip in enumerate(ids.tolist())}
            places = np.array(
                [index.get(clip, -1) for clip in self._encoded_ids.tolist()], np.int64
            )
        has_row = places >= 0
        present = has_row.copy()
        present[has_row] = state[places[has_row]] != FAILED
        return np.where(present, places, -1), has_row & ~present

    def features(self, names: Sequence[str], expect: Mapping[str, Spec] | None = None) -> Features:
        """Features of all clips, float32, in clips-table order, with a mask of missing rows.

        Args:
            names: feature names, see `info`.
            expect: specs that must hold, by feature name; each may be partial.

        Raises:
            IncompleteStore: a feature is not in the store.
            StaleStore: a feature has another spec than expected.
        """
        arrays: dict[str, npt.NDArray[np.float32]] = {}
        infos: dict[str, FeatureInfo] = {}
        is_missing = np.zeros((len(self.clips), len(names)), bool)
        is_failed = np.zeros_like(is_missing)
        for column, name in enumerate(names):
            infos[name] = self.info(name, (expect or {}).get(name))
            ids, state, embedding = read_embedding(infos[name].path)
            places, is_failed[:, column] = self._places(ids, state)
            is_missing[:, column] = places < 0
            if len(ids) == len(places) and (places == np.arange(len(places))).all():
                matrix = embedding
            else:
                matrix = embedding[places]
                matrix[is_missing[:, column]] = 0
            arrays[name] = matrix.astype(np.float32, copy=False)
        return Features(arrays, is_missing, is_failed, infos)
