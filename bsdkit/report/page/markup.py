"""Pieces of HTML that both pages are made of. Every text that comes in is escaped here."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.report.page.charts import SHAPES, family_colours, marker
from bsdkit.report.page.data import ClipColumns, Predictions
from bsdkit.report.tables import percent
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "bar",
    "cell",
    "clip_data",
    "css",
    "esc",
    "family_tag",
    "has_names",
    "is_flat",
    "matrix",
    "name_cell",
    "pairs_list",
    "points",
    "render",
    "section",
    "table",
]

esc = html.escape


def css(classes: str) -> str:
    """The attribute that gives an element classes, or nothing."""
    return f' class="{classes}"' if classes else ""


def cell(text: str, *, value: float | str | None = None, style: str = "") -> str:
    """A table cell of plain text; `value` is what it sorts by, where that is not the text."""
    data = "" if value is None else f' data-v="{esc(_sortable(value))}"'
    return f"<td{data}{css(style)}>{esc(text)}</td>"


def _sortable(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def bar(value: float, text: str, scale: float = 1.0, family: int | None = None) -> str:
    """A cell with a figure and a bar behind it, `value` of `scale` wide."""
    share = max(0.0, min(1.0, value / scale)) if scale else 0.0
    colour = "" if family is None else f";--c:var(--f{family})"
    return (
        f'<td class="bar" data-v="{_sortable(value)}" style="--v:{share:.3f}{colour}">'
        f"<span>{esc(text)}</span></td>"
    )


def table(
    head: Sequence[str],
    rows: Iterable[str],
    *,
    caption: str = "",
    style: str = "",
    left: Sequence[int] = (0,),
) -> str:
    """A table in a box that scrolls by itself.

    Args:
        head: titles of the columns.
        rows: HTML of each ``<tr>``.
        caption: what the table holds.
        style: classes; ``sortable`` lets the reader sort it.
        left: columns of words.
    """
    cells = "".join(
        f'<th scope="col"{css("left" if i in left else "")}>{esc(name)}</th>'
        for i, name in enumerate(head)
    )
    titled = f"<caption>{esc(caption)}</caption>" if caption else ""
    named = esc(caption or head[0] or "table")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{named}">'
        f'<table class="{style}">{titled}<thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def name_cell(taxonomy: Taxonomy, position: int) -> str:
    """A class's name for people; nothing where no class has one beside its label."""
    named = has_names(taxonomy)
    return cell(taxonomy.classes[position].name, style="left") if named else ""


def has_names(taxonomy: Taxonomy) -> bool:
    """Whether classes have names beside their labels."""
    return any(c.name and c.name != c.label for c in taxonomy.classes)


def is_flat(taxonomy: Taxonomy) -> bool:
    """Whether every class is a family of its own."""
    return len(taxonomy.families) == len(taxonomy)


def section(name: str, title: str, *parts: str) -> str:
    """A section that the contents link to."""
    return f'<section id="{name}"><h2>{esc(title)}</h2>{"".join(parts)}</section>'


def family_tag(taxonomy: Taxonomy, position: int) -> str:
    """A class's marker and label."""
    family = int(taxonomy.family_of[position])
    return (
        f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{marker(family)}</svg>'
        f"{esc(taxonomy.labels[position])}"
    )


def pairs_list(facts: Iterable[tuple[str, str]]) -> str:
    """A list of names and what they stand for."""
    items = "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in facts)
    return f'<dl class="facts">{items}</dl>'


def matrix(
    counts: npt.NDArray[np.integer], taxonomy: Taxonomy, *, name: str, is_difference: bool = False
) -> str:
    """A confusion matrix, classes side by side by family, blocks of a family framed.

    Args:
        counts: [n_classes, n_classes] by true (row) and predicted class.
        taxonomy: the classes.
        name: what it is called.
        is_difference: whether counts are those of one run minus those of another.
    """
    order = np.argsort(taxonomy.family_of, kind="stable")
    families = taxonomy.family_of[order]
    n = len(order)
    starts = [i == 0 or families[i] != families[i - 1] for i in range(n)]
    lines = [False] * n if is_flat(taxonomy) else starts
    ends = [i == n - 1 or families[i] != families[i + 1] for i in range(n)]
    labels = [taxonomy.labels[i] for i in order]
    total = counts.sum(axis=1)
    biggest = max(1, int(np.abs(counts).max()))
    upright = "" if max(map(len, labels)) <= 5 else " upright"
    head = "".join(
        f'<th scope="col"{css("fl" if lines[j] else "")}><span>{esc(label)}</span></th>'
        for j, label in enumerate(labels)
    )
    rows = []
    for i in range(n):
        cells = []
        for j in range(n):
            value = int(counts[order[i], order[j]])
            part = value / biggest if is_difference else value / max(1, int(total[order[i]]))
            marks = []
            if families[i] == families[j]:
                marks = ["k"]
                sides = ((starts[i], "kt"), (ends[i], "kb"), (starts[j], "kl"), (ends[j], "kr"))
                marks += [mark for is_edge, mark in sides if is_edge]
            elif lines[j]:
                marks = ["fl"]
            if part > 0.68:  # where the other ink reads better, on light pages and dark
                marks.append("h")
            if part < 0:
                marks.append("less")
            style = ([f"--s:{abs(part):.2f}"] if value else []) + (
                [f"--c:var(--f{families[i]})"] if len(marks) > 1 and marks[0] == "k" else []
            )
            inline = ";".join(style)
            text = f"{value:+d}" if is_difference and value else str(value or "")
            cells.append(
                f"<td{css(' '.join(marks))}"
                + (f' style="{inline}"' if inline else "")
                + f">{text}</td>"
            )
        rows.append(
            f'<tr{css("ft" if lines[i] else "")}><th scope="row">{esc(labels[i])}</th>'
            f"{''.join(cells)}</tr>"
        )
    switch = (
        ""
        if is_difference
        else '<fieldset class="switch"><legend>cells show</legend>'
        f'<label><input type="radio" name="{name}" value="count" checked> clips</label>'
        f'<label><input type="radio" name="{name}" value="share"> % of the row</label></fieldset>'
    )
    return (
        f'<div class="matrixbox" data-order="{" ".join(map(str, order.tolist()))}"'
        f"{' data-difference' if is_difference else ''}>{switch}"
        f'<div class="scroll"><table class="matrix{upright}" role="grid" aria-label="{esc(name)}">'
        f'<thead><tr><td class="corner">true \\ predicted</td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="status" role="status">Point at a cell, or move through the matrix with the '
        "arrow keys.</p></div>"
    )


_TOP = 3


def clip_data(
    taxonomy: Taxonomy, clips: ClipColumns, runs: Sequence[Predictions], **more: Any
) -> dict[str, Any]:
    """What the page's script needs of the clips, in columns; probabilities in per mille."""
    names = list(dict.fromkeys(clips.uploaders.tolist()))
    number = {name: i for i, name in enumerate(names)}
    said = []
    for run in runs:
        n_top = min(_TOP, run.probabilities.shape[1])
        top = np.argsort(-run.probabilities, axis=1, kind="stable")[:, :n_top]
        best = np.take_along_axis(run.probabilities, top, axis=1)
        own = run.probabilities[np.arange(len(top)), run.decided]
        said.append(
            {
                "name": run.name,
                "decided": run.decided.tolist(),
                "p": _per_mille(own),
                "top": top.ravel().tolist(),
                "topP": _per_mille(best.ravel()),
                "nTop": n_top,
            }
        )
    return {
        "classes": [[c.label, c.name] for c in taxonomy.classes],
        "familyOf": taxonomy.family_of.tolist(),
        "families": [[f, _family_name(taxonomy, f)] for f in taxonomy.families],
        "shapes": list(SHAPES),
        "ids": clips.ids.tolist(),
        "titles": clips.titles.tolist(),
        "tags": [tags if len(tags) <= 300 else tags[:299] + "…" for tags in clips.tags.tolist()],
        "uploaders": names,
        "uploader": [number[name] for name in clips.uploaders.tolist()],
        "labels": clips.labels.tolist(),
        "folds": clips.folds.tolist(),
        "audio": list(clips.audio) if any(clips.audio) else None,
        "runs": said,
        **more,
    }


def _per_mille(values: npt.NDArray[np.float64]) -> list[int]:
    return [int(v) for v in np.rint(1000 * np.nan_to_num(values))]


def _family_name(taxonomy: Taxonomy, family: str) -> str:
    return next((c.family_name or family for c in taxonomy.classes if c.family == family), family)


def _json(data: Any) -> str:
    """JSON that may stand in a script element: no text of a user can end it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def render(
    path: Path,
    title: str,
    lead: str,
    sections: Sequence[tuple[str, str, str]],
    taxonomy: Taxonomy,
    data: dict[str, Any],
) -> None:
    """Writes a page.

    Args:
        path: the HTML file.
        title: its name, as text.
        lead: HTML below the title.
        sections: (id, name in the contents, HTML) of each; those without HTML are left out.
        taxonomy: the classes.
        data: what the script needs, see `clip_data`.
    """
    folder = resources.files("bsdkit.report.page")
    style, script, page = (
        (folder / name).read_text(encoding="utf-8")
        for name in ("style.css", "script.js", "page.html")
    )
    colours = family_colours(len(taxonomy.families))
    light, dark = (
        "".join(f"--f{i}:{pair[side]};" for i, pair in enumerate(colours)) for side in (0, 1)
    )
    style += f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    script = f"\n{script}\n"
    # the browser runs this script and no other, whatever a title or a tag may hold
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = [one for one in sections if one[2]]
    contents = "".join(f'<li><a href="#{id_}">{esc(name)}</a></li>' for id_, name, _ in shown)
    text = Template(page).substitute(
        title=esc(title),
        lead=lead,
        contents=contents,
        sections="\n".join(body for _, _, body in shown),
        style=style,
        script=script,
        digest=digest,
        data=_json(data),
    )
    path.write_text(text, encoding="utf-8")


def points(value: float, digits: int = 1) -> str:
    """A fraction in percent, or a dash where there is none."""
    return "-" if math.isnan(value) else percent(value, digits)
