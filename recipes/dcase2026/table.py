"""The table of README.md: what of each published system is here, part by part.

Printed from the recipes' provenance; with --write, put into README.md:

    python -m recipes.dcase2026.table --write
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from bsdkit.recipe import load_recipe
from bsdkit.recipe.schema import Provenance

__all__ = ["PARTS", "REPORTED", "readme", "table"]

FOLDER = Path(__file__).parent

PARTS = (
    "backbones", "text", "head", "losses", "optimisation", "augmentation", "noisy", "ensemble",
    "decision", "seeds", "protocol",
)  # fmt: skip
"""What the recipe of a published system must account for."""

REPORTED = {
    "baseline-audio": "hF 76.11",
    "baseline-multimodal": "hF 78.76",
    "gisp-heu-1": "hF 80.83",
    "gisp-heu-2": "hF 81.34",
    "gisp-heu-3": "hF 80.97",
    "gisp-heu-4": "hF 81.80",
    "haf-clap-1": "accuracy 76.56",
    "haf-clap-2": "accuracy 76.63",
    "haf-clap-3": "accuracy 78.92",
    "lin-1": "hF 79.43",
    "lin-2": "hF 77.95",
    "lin-3": "hF 79.02",
    "lin-4": "hF 78.08",
    "cp-jku-1": "hF 83.0",
    "cp-jku-2": "hF 83.2",
    "cp-jku-3": "hF 83.4",
    "cp-jku-4": "hF 82.9",
    "xjtlu-1": "hF 83.5214",
    "xjtlu-2": "hF 83.4090",
    "xjtlu-3": "hF 83.2803",
    "xjtlu-4": "hF 83.1567",
}
"""What the authors say of each; its recipe's comment says how that was measured."""

MARKS = {"exact": "=", "counterpart": "~", "absent": "-"}
BEGIN, END = "<!-- printed by table.py -->\n", "<!-- end -->\n"

Parts = Mapping[str, Provenance]


def table() -> str:
    """The table, and below it the notes of each team, those that several systems share once."""
    recipes = {name: load_recipe(FOLDER / f"{name}.yaml") for name in REPORTED}
    lines = [
        f"| system | what the recipe is | reported | {' | '.join(PARTS)} |",
        f"| --- | --- | --- |{' :-: |' * len(PARTS)}",
    ]
    for name, recipe in recipes.items():
        marks = " | ".join(MARKS[recipe.provenance[part].state] for part in PARTS)
        lines.append(
            f"| [`{name}`]({name}.yaml) | {recipe.description} | {REPORTED[name]} | {marks} |"
        )
    for team, names in itertools.groupby(recipes, key=lambda name: name.rpartition("-")[0]):
        lines += ["", f"### {team}", "", *_notes({n: recipes[n].provenance for n in names})]
    return "\n".join(lines) + "\n"


def _notes(parts_of: Mapping[str, Parts]) -> Iterator[str]:
    for part in PARTS:
        sharing: dict[Provenance, list[str]] = {}
        for name, parts in parts_of.items():
            sharing.setdefault(parts[part], []).append(name.rpartition("-")[2])
        for found, of in sharing.items():
            who = "" if len(of) == len(parts_of) else f" ({', '.join(of)})"
            yield f"- **{part}**{who}, {found.state} (section {found.section}): {found.note}"


def readme() -> str:
    """README.md with the table as the recipes have it now."""
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        (FOLDER / "README.md").write_text(readme(), encoding="utf-8")
    else:
        print(table(), end="")
