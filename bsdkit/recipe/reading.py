"""The YAML of a recipe: no key twice, and what it includes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from bsdkit.errors import RecipeError

__all__ = ["read_including"]


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a key may stand once: of two members with one name none may vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_including(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file and those that it includes say; their names stay theirs.

    Args:
        path: the file.
        above: the files that include it.

    Raises:
        RecipeError: a file cannot be read, is no mapping, or includes itself.
    """
    if path.resolve() in above:
        raise RecipeError(f"{above[-1]} includes {path}, which includes it")
    data = _read_mapping(path)
    others = data.pop("include", [])
    merged: dict[str, Any] = {}
    for other in [others] if isinstance(others, str) else others:
        found = read_including(path.parent / str(other), (*above, path.resolve()))
        merged = _joined(merged, {k: v for k, v in found.items() if k != "name"})
    return _joined(merged, data)


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = {**below, **above}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            joined[key] = _joined(below[key], value)
    return joined


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise RecipeError(f"no recipe {path}; see the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{path}{where}: {problem}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must hold key: value lines, found {type(data).__name__}")
    return data
