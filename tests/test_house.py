"""The house: which file may import which, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "bsdkit"

# From the ground up; a file imports from its own floor or below.
FLOORS = [
    {"errors", "version"},
    {"csvfile", "device", "location", "onednn", "progress", "registry"},
    {"sounds", "taxonomy"},
    {
        "dataset",
        "splits",
        "leakage",
        "audio",
        "metrics",
        "stats",
        "text",
        "predictions",
        "verdicts",
    },
    {"heads", "backbones", "store"},
    {"combine", "priors", "extract"},
    {"recipe", "members"},
    {"runs"},
    {"report", "challenge"},
    {"experiments"},
    {"api"},
    {"__init__"},
    {"cli", "__main__"},
]


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of bsdkit that a file imports, also inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in whole}
    return {name for name in found if name in known}


def floor(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    return next(i for i, names in enumerate(FLOORS) if part in names)


def test_floors_hold() -> None:
    known = modules()
    wrong = [
        f"{module} imports {other}"
        for module, path in known.items()
        for other in imports(path, known)
        if floor(other) > floor(module)
    ]
    assert not wrong


def test_no_circle_of_imports() -> None:
    known = modules()
    # A package's __init__ re-exports its files; only files can make a circle among themselves.
    graph = {m: imports(p, known) for m, p in known.items() if p.name != "__init__.py"}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            walk(other, (*path, module))
        done.add(module)

    for module in graph:
        walk(module, ())


def in_fresh_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("module", ["bsdkit", "bsdkit.cli"])
def test_importing_is_light(module: str) -> None:
    heavy = (
        "torch h5py numpy sklearn pandas scipy optuna lightgbm soundfile transformers rich.table"
    )
    code = f"import sys, {module}; print([m for m in {heavy.split()} if m in sys.modules])"
    assert in_fresh_python(code).strip() == "[]"


def test_a_laptop_needs_no_audio_stack() -> None:
    blocked = ["torchaudio", "torchvision", "transformers", "timm", "librosa", "laion_clap"]
    wanted = ["heads.registry", "members", "combine", "metrics", "store", "api", "report.page"]
    code = (
        f"import sys\nfor m in {blocked}: sys.modules[m] = None\n"
        + "\n".join(f"import bsdkit.{name}" for name in wanted)
        + "\nfrom bsdkit.heads.registry import head_classes\n"
        "from bsdkit.backbones.registry import backbone_classes\n"
        "print(len(head_classes()), len(backbone_classes()))"
    )
    n_heads, n_backbones = map(int, in_fresh_python(code).split())
    assert n_heads >= 3 and n_backbones >= 6


def test_top_level_is_as_designed() -> None:
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in result.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    fixed = {"pyproject.toml", "bsdkit", "cache", "recipes", "tests", "Makefile", "README.md"}
    beside = {"LICENSE", "constraints.txt", "CHANGELOG.md"}
    assert fixed <= visible <= fixed | beside


def test_the_product_stands_alone() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for folder in (PACKAGE, ROOT / "recipes")
        for path in folder.rglob("*")
        if path.suffix in (".py", ".yaml", ".md") and "../shared" in path.read_text()
    ]
    assert not wrong


def test_documented_names_are_there() -> None:
    import bsdkit

    assert set(bsdkit.__all__) <= set(dir(bsdkit))
    for name in bsdkit.__all__:
        assert getattr(bsdkit, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        bsdkit.fitt  # noqa: B018


def test_a_recipe_is_refused_before_any_head_is_imported(tmp_path: Path) -> None:
    good = "store: s\nmembers: {a: {head: mlp, features: x}}\n"
    mistakes = {
        "stor": good.replace("store", "stor"),
        "metod": good + "ensemble: {metod: mean}\n",
        "vote": good + "ensemble: {method: vote}\n",
        "mpl": good.replace("mlp", "mpl"),
    }
    for name, text in mistakes.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    out = in_fresh_python(
        "import sys\nsys.modules['torch'] = None\nimport bsdkit.recipe\n"
        "print([m for m in ('torch', 'lightgbm', 'sklearn') if sys.modules.get(m)])\n"
        "from bsdkit.errors import RecipeError\n"
        f"for name in {list(mistakes)}:\n"
        f"    try: bsdkit.recipe.load_recipe({str(tmp_path)!r} + f'/{{name}}.yaml')\n"
        "    except RecipeError as error: print(error)\n"
    )
    (tmp_path / "plain.yaml").write_text(good.replace("head: mlp", "head: linear, CC: 1"))
    plain = in_fresh_python(
        "import sys, bsdkit.recipe\n"
        f"try: bsdkit.recipe.load_recipe({str(tmp_path / 'plain.yaml')!r})\n"
        "except Exception as error: print(error, 'torch' in sys.modules)"
    )
    assert "takes no 'CC'" in plain and plain.endswith("False\n")
    heavy, *refusals = out.splitlines()
    assert heavy == "[]" and len(refusals) == len(mistakes)
    expected = (
        "'stor': did you",
        "'ensemble.metod': did you",
        "method is 'vote'",
        "'mpl': did you",
    )
    for words, said in zip(expected, refusals, strict=True):
        assert words in said
