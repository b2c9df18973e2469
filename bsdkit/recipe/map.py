"""A recipe on other features and stores than those that it names, and said so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bsdkit.errors import RecipeError, nearest

__all__ = ["NameMap", "apply_map", "read_map"]

_PARTS = ("features", "stores", "heads")


@dataclass(frozen=True)
class NameMap:
    """Names of what is available here, by the names that recipes use.

    Attributes:
        features: by feature (``clap.audio``), or by backbone (``clap``) for all of its outputs;
            the longer name wins. A view (``clap.text@masked``) is kept, unless it is named.
        stores: by place.
        heads: settings of heads, by head, where the data here are of another size.
    """

    features: Mapping[str, str] = field(default_factory=dict)
    stores: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def feature(self, name: str) -> str:
        """What stands for a feature here; itself where nothing does."""
        plain, at, view = name.partition("@")
        for known in (name, plain, plain.partition(".")[0]):
            if known in self.features:
                here = self.features[known]
                return here if known == name or "@" in here else here + at + view
        return name

    def store(self, place: str) -> str:
        """What stands for a store here; itself where nothing does."""
        return self.stores.get(place.rstrip("/"), place)


def read_map(text: str) -> NameMap:
    """The map in a YAML file, or in ``NAME=NAME`` pairs with commas between them.

    A file has the parts ``features``, ``stores`` and ``heads``; in pairs, a name with a slash is a
    store.

    Args:
        text: the file's path, which ends in ``.yaml``, or the pairs.

    Raises:
        RecipeError: it is neither.
    """
    if text.endswith((".yaml", ".yml")):
        return _read_file(Path(text))
    features: dict[str, str] = {}
    stores: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        name, equals, here = (part.strip() for part in pair.partition("="))
        if not (name and equals and here):
            raise RecipeError(
                f"--map {pair}: expected NAME=NAME, e.g. clap.audio=aisfx,clap.text=minilm, or a "
                ".yaml file"
            )
        part = stores if "/" in name else features
        if name.rstrip("/") in part:
            raise RecipeError(f"--map names {name!r} twice")
        part[name.rstrip("/")] = here
    if not features and not stores:
        raise RecipeError(f"--map {text}: expected NAME=NAME, e.g. clap.audio=aisfx")
    return NameMap(features, stores)


def _read_file(path: Path) -> NameMap:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(f"cannot read the map {path}: {reason}") from None
    parts = data if isinstance(data, dict) else {}
    unknown = [key for key in parts if key not in _PARTS]
    if unknown or not parts:
        found = "none"
        if unknown:
            found = f"{unknown[0]!r}: {nearest(str(unknown[0]), _PARTS)}"
        raise RecipeError(f"{path}: a map has parts of {', '.join(_PARTS)}; found {found}")
    heads = parts.pop("heads", {})
    if not isinstance(heads, dict) or not all(isinstance(kept, dict) for kept in heads.values()):
        raise RecipeError(f"{path}: heads must hold HEAD: {{SETTING: VALUE}} lines")
    for part, pairs in parts.items():
        if not isinstance(pairs, dict) or not all(
            isinstance(name, str) and isinstance(here, str) for name, here in pairs.items()
        ):
            raise RecipeError(f"{path}: {part} must hold NAME: NAME lines")
    stores = {name.rstrip("/"): here for name, here in parts.get("stores", {}).items()}
    return NameMap(parts.get("features", {}), stores, heads)


def apply_map(data: Mapping[str, Any], names: NameMap) -> dict[str, Any]:
    """What a recipe says, with the names of a map.

    Inputs of a member that become the same are one input. What was expected of a feature that
    another one stands for is expected no more. The names that were changed are kept as `mapped`,
    and the recipe's own name says that it is: its figures are not those of the recipe as it was.

    Args:
        data: as `load_recipe` reads it; left as it is.
        names: the map.
    """
    changed: dict[str, str] = {}

    def new(change: Callable[[str], str], name: Any) -> Any:
        if not isinstance(name, str):  # the schema will say so
            return name
        here = change(name)
        if here != name:
            changed[name] = here
        return here

    mapped = dict(data)
    for place in {"store", "test"} & mapped.keys():
        mapped[place] = new(names.store, mapped[place])
    if isinstance(mapped.get("members"), dict):
        mapped["members"] = {
            name: _member(member, names, new) if isinstance(member, dict) else member
            for name, member in mapped["members"].items()
        }
    rerank = mapped.get("rerank")
    if isinstance(rerank, dict) and rerank.get("similarity"):
        mapped["rerank"] = {**rerank, "similarity": new(names.feature, rerank["similarity"])}
    if isinstance(mapped.get("expect"), dict):
        mapped["expect"] = {k: v for k, v in mapped["expect"].items() if names.feature(k) == k}
    members = mapped["members"] if isinstance(mapped.get("members"), dict) else {}
    for member in members.values():
        if not isinstance(member, dict):  # the schema will say so
            continue
        for key, value in names.heads.get(str(member.get("head")), {}).items():
            if member.get(key) == value:
                continue
            member[key] = value
            changed[f"{member['head']}.{key}"] = str(value)
    if changed:
        mapped["mapped"] = changed
        mapped["name"] = f"{mapped.get('name', 'recipe')}-mapped"
    return mapped


def _member(
    member: Mapping[str, Any],
    names: NameMap,
    new: Callable[[Callable[[str], str], Any], Any],
) -> dict[str, Any]:
    mapped = dict(member)
    features = mapped.get("features")
    if isinstance(features, list):
        mapped["features"] = list(dict.fromkeys(new(names.feature, name) for name in features))
    elif features is not None:
        mapped["features"] = new(names.feature, features)
    if "imported" in mapped:
        mapped["imported"] = new(names.feature, mapped["imported"])
    extra = mapped.get("extra")
    several = [
        {**one, "store": new(names.store, one["store"])}
        if isinstance(one, dict) and "store" in one
        else one
        for one in (extra if isinstance(extra, list) else [extra])
    ]
    if "extra" in mapped:
        mapped["extra"] = several if isinstance(extra, list) else several[0]
    return mapped
