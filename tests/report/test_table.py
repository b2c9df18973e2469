"""One table, four forms."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from rich.text import Text

from bsdkit.report.table import Column, Table, columns


def test_all_forms_hold_the_same_text() -> None:
    table = Table(
        columns("run", "hF", left=["run"]), "scores", ["one [b]clip[/b]"], notes=["<end>"]
    )
    table.add("a|b :smile: [red]", "81.25")
    table.add(Text("<b>", "bold"), rule=True, style="dim")
    assert table.columns == [Column("run"), Column("hF", is_right=True)]
    with pytest.raises(ValueError, match="3 cells, expected at most 2"):
        table.add("1", "2", "3")

    console = Console(record=True, width=60)  # markup and emoji on: cells are taken as they are
    table.to_rich(console)
    lines = console.export_text().splitlines()
    assert lines[0] == "one [b]clip[/b]" and lines[1].strip() == "scores" and lines[-1] == "<end>"
    assert lines[5].split("│")[1:3] == [" a|b :smile: [red] ", " 81.25 "] and "┼" not in lines[5]
    assert lines[6].startswith("├") and lines[7].split("│")[1].strip() == "<b>"

    bare = "| run | hF |\n| --- | ---: |\n| a\\|b :smile: [red] | 81.25 |\n| <b> |  |"
    assert table.to_markdown(is_bare=True) == bare
    assert table.to_markdown() == f"one [b]clip[/b]\n\nscores:\n\n{bare}\n\n<end>"
    page = table.to_html()
    assert page.startswith("<p>one [b]clip[/b]</p><table><caption>scores</caption>")
    assert '<td class="left">&lt;b&gt;</td><td></td>' in page and page.endswith("&lt;end&gt;</p>")
    data = json.loads(json.dumps(table.to_dict()))
    assert data["rows"][1] == {"run": "<b>", "hF": ""} and data["notes"] == ["<end>"]
    assert Table(lead=["no labels"]).to_html() == "<p>no labels</p>"
