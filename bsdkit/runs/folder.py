"""The run folder: what one `fit` leaves behind, and how it is read again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bsdkit.combine.chain import Chain
from bsdkit.dataset import Clips
from bsdkit.errors import CorruptStore, RecipeError
from bsdkit.members.member import MemberModel
from bsdkit.members.saved import load_models, save_member
from bsdkit.predictions import write_predictions
from bsdkit.recipe.schema import Recipe
from bsdkit.runs.results import OutOfFold, ProtocolResult, ids_digest
from bsdkit.splits import Split
from bsdkit.store.clips import read_clips, write_clips
from bsdkit.store.files import atomic_h5, open_h5, replace_folder, write_strings

__all__ = ["Run", "load_run", "split_place", "write_metrics", "write_run"]


def split_place(split: str) -> str:
    """What a split is called in files and folders: itself, or something that every system takes."""
    plain = re.sub(r"[^\w+-]", "-", split)
    return split if plain == split else f"{plain}-{hashlib.sha256(split.encode()).hexdigest()[:8]}"


def write_run(
    runs: Path,
    recipe: Recipe,
    clips: Clips,
    results: dict[str, ProtocolResult],
    metrics: dict[str, Any],
    facts: dict[str, Any],
    *,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Writes ``runs/<name>/``; it appears whole, and an older run is replaced only then.

    Files: recipe.yaml (resolved), run.json (versions, features, folds), metrics.json,
    ensemble.json (weights), chain.json (all steps after the members, fitted on all clips and for
    each fold on the others), clips.h5, oof.h5 (probabilities), predictions.csv (the headline's
    nested predictions in the official columns), members/<split>/<member>/, and what `finish`,
    called with the folder as far as it is written, adds.
    """
    folder = runs / recipe.name
    temporary = runs / f".{recipe.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        (temporary / "recipe.yaml").write_text(recipe.to_yaml())
        _write_json(temporary / "run.json", facts)
        write_metrics(temporary, metrics)
        headline = results[recipe.split[0]]
        _write_json(
            temporary / "ensemble.json",
            {
                "split": recipe.split[0],
                "members": headline.metrics["ensemble"]["members"],
                "weights": list(headline.chains.chain.ensemble.weights),
                "clips": ids_digest(clips.ids[headline.split.tested]),
            },
        )
        _write_json(
            temporary / "chain.json",
            {
                "members": list(headline.names),
                "decode": recipe.decode,
                "prior": headline.prior.tolist(),
                **headline.chains.chain.to_dict(),
                "folds": [
                    {"prior": prior.tolist(), **chain.to_dict()}
                    for prior, chain in zip(headline.priors, headline.chains.of_folds, strict=True)
                ],
            },
        )
        write_clips(temporary / "clips.h5", clips)
        with atomic_h5(temporary / "oof.h5") as file:
            write_strings(file, "id", clips.ids.tolist())
            for protocol, result in results.items():
                group = file.create_group(split_place(protocol))
                group.create_dataset("fold", data=result.split.fold)
                group.create_dataset("ensemble_nested", data=result.nested)
                group.create_dataset("decided", data=result.decided.classes)
                group.attrs["is_random"] = result.decided.seeds is not None
                if result.decided.seeds is not None:
                    group.create_dataset("decided_of_seeds", data=result.decided.seeds)
                group.create_dataset("is_fallback", data=result.is_empty)
                for name, member in result.members.items():
                    group.create_dataset(f"members/{name}", data=member.mean)
        for protocol, result in results.items():
            for name, member in result.members.items():
                if recipe.members[name].imported:
                    continue
                save_member(temporary / "members" / split_place(protocol) / name, member)
        rows = headline.split.tested
        decided = headline.decided.classes[rows]
        write_predictions(
            temporary / "predictions.csv",
            clips.ids[rows],
            clips.taxonomy.decode(decided),
            headline.nested[rows, decided],
            clips.taxonomy.decode(clips.labels[rows]),
        )
        if finish is not None:
            finish(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Writes a run's metrics.json."""
    _write_json(folder / "metrics.json", metrics)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=False) + "\n")


@dataclass(frozen=True)
class Run:
    """A finished run on disk.

    Attributes:
        folder: where it lies.
        recipe: its resolved recipe.
        facts: what stands in run.json.
        metrics: what stands in metrics.json.
        clips: the clips it was trained on, with their taxonomy.
        split: the split whose models predict new clips.
        names: the members of the ensemble, in the order of its weights.
        chain: the steps after the members, fitted on all clips.
        prior: class shares [n_classes] of the training clips.
    """

    folder: Path
    recipe: Recipe
    facts: dict[str, Any]
    metrics: dict[str, Any]
    clips: Clips
    split: str
    names: tuple[str, ...]
    chain: Chain
    prior: npt.NDArray[np.float64]

    @property
    def weights(self) -> dict[str, float]:
        """Ensemble weight by member."""
        return dict(zip(self.names, self.chain.ensemble.weights, strict=True))

    @property
    def counting(self) -> list[str]:
        """The members that change a prediction."""
        return [n for n, counts in zip(self.names, self.chain.counts, strict=True) if counts]

    def out_of_fold(self, split: str = "") -> OutOfFold:
        """What the run says of its own clips under a split; empty for the headline's.

        Raises:
            StoreError: the run's oof.h5 is missing or broken, or lacks the split.
        """
        split = split or self.split
        fold, probabilities, decided, is_fallback = self._read_out_of_fold(
            split, ["fold", "ensemble_nested", "decided", "is_fallback"]
        )
        fold, decided = fold.astype(np.int64), decided.astype(np.int64)
        return OutOfFold(
            split=Split(split, fold, int(fold.max()) + 1, 0),
            probabilities=probabilities.astype(np.float64),
            decided=decided,
            seeds=self._decided_of_seeds(split, decided),
            is_fallback=is_fallback.astype(bool),
        )

    def member_out_of_fold(self, name: str) -> npt.NDArray[np.float64]:
        """Probabilities [n_clips, n_classes] of one member under the headline's split.

        Raises:
            StoreError: the run's oof.h5 is missing or broken, or lacks the member.
        """
        (probabilities,) = self._read_out_of_fold(self.split, [f"members/{name}"])
        return probabilities.astype(np.float64)

    def _read_out_of_fold(self, split: str, names: Sequence[str]) -> list[npt.NDArray[Any]]:
        path = self.folder / "oof.h5"
        with open_h5(path) as file:
            try:
                group = file[split_place(split)]
                return [np.asarray(group[name]) for name in names]
            except KeyError:
                raise CorruptStore(
                    f"{path} lacks what {split!r} folds left; run bsdkit fit again"
                ) from None

    def _decided_of_seeds(
        self, split: str, decided: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64] | None:
        """See `OutOfFold.seeds`."""
        with open_h5(self.folder / "oof.h5") as file:
            group = file[split_place(split)]
            if "decided_of_seeds" in group:
                return np.asarray(group["decided_of_seeds"], np.int64)
            # earlier versions did not keep them
            return decided[None] if group.attrs.get("is_random", True) else None

    def models(self, name: str) -> tuple[MemberModel, ...]:
        """The models of one member."""
        return load_models(self.members_folder / name)

    @property
    def members_folder(self) -> Path:
        """Where the models of the headline split's members lie, a folder each."""
        return self.folder / "members" / split_place(self.split)


def load_run(folder: Path | str) -> Run:
    """The run in a folder.

    Raises:
        RecipeError: the folder is not a whole run.
    """
    folder = Path(folder)
    try:
        recipe = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
        facts = json.loads((folder / "run.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        ensemble = json.loads((folder / "ensemble.json").read_text())
        data = json.loads((folder / "chain.json").read_text())
        for part, key in ((metrics["protocols"], ensemble["split"]), (facts, "features")):
            part[key]  # each file must hold what the others rely on
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, KeyError):
            reason = f"its files lack {reason}"
        if isinstance(error, FileNotFoundError):
            reason = f"it has no {Path(error.filename).name}"
        raise RecipeError(
            f"{folder} is not a whole run: {reason}; make one with bsdkit fit RECIPE.yaml"
        ) from None
    clips = read_clips(folder / "clips.h5")
    try:
        chain = Chain.from_dict(data, clips.taxonomy)
    except (KeyError, TypeError, ValueError) as error:
        raise RecipeError(
            f"{folder / 'chain.json'} cannot be read ({error!r}); run bsdkit fit again"
        ) from None
    return Run(
        folder=folder,
        recipe=recipe,
        facts=facts,
        metrics=metrics,
        clips=clips,
        split=ensemble["split"],
        names=tuple(data["members"]),
        chain=chain,
        prior=np.array(data["prior"]),
    )
