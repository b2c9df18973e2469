"""The page of two runs on the same clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bsdkit.metrics import Scorer
from bsdkit.report.page.data import ComparisonData
from bsdkit.report.page.markup import (
    cell,
    clip_data,
    css,
    esc,
    family_tag,
    has_names,
    matrix,
    name_cell,
    render,
    section,
    table,
)
from bsdkit.report.tables import difference, percent
from bsdkit.verdicts import RULE

__all__ = ["write_comparison"]

_TITLES = {
    "hF_strict": "hF_strict",
    "hF": "official hF",
    "hA": "hA",
    "accuracy": "accuracy",
    "top_accuracy": "right family",
}


def write_comparison(path: Path, data: ComparisonData) -> None:
    """Writes the page of two runs: one file that needs nothing else."""
    a, b = data.a.name, data.b.name
    right_a, right_b = (said.decided == data.clips.labels for said in (data.a, data.b))
    only_a, only_b = np.flatnonzero(right_a & ~right_b), np.flatnonzero(right_b & ~right_a)
    splits = data.splits[0] if data.splits[0] == data.splits[1] else " / ".join(data.splits)
    lead = (
        f'<p class="dim">{len(data.clips.ids)} clips that the same {esc(splits)} folds test in '
        f"both runs; every prediction is out of fold. Differences are {esc(a)} minus {esc(b)}, "
        "in points; intervals by a paired bootstrap over clips.</p>"
    )
    sections = [
        (
            "summary",
            "Summary",
            _summary(data, int((right_a & right_b).sum()), len(only_a), len(only_b)),
        ),
        ("classes", "Classes", _classes(data)),
        ("confusion", "Confusion", _confusion(data)),
        ("only-a", f"Only {a} is right", _clips("only-a", a, "onlyA", len(only_a))),
        ("only-b", f"Only {b} is right", _clips("only-b", b, "onlyB", len(only_b))),
    ]
    script = clip_data(
        data.taxonomy,
        data.clips,
        [data.a, data.b],
        maps=[],
        subsets={"onlyA": only_a.tolist(), "onlyB": only_b.tolist()},
    )
    render(path, f"{a} against {b}", lead, sections, data.taxonomy, script)


def _summary(data: ComparisonData, n_both: int, n_a: int, n_b: int) -> str:
    first = data.compared[0]
    scorer = Scorer(data.taxonomy)
    scores = [scorer.all(counts) for counts in data.confusions]
    rows = []
    for c in data.compared:
        own, other = (float(s[c.metric]) for s in scores)
        rows.append(
            f'<tr{css("final" if c is first else "")}><th scope="row">{_TITLES[c.metric]}</th>'
            + cell(percent(own))
            + cell(percent(other))
            + cell(difference(vars(c)))
            + cell(f"{c.p_value:.3f}")
            + cell(c.verdict, style="left")
            + "</tr>"
        )
    n = len(data.clips.ids)
    n_same = int((data.a.decided == data.b.decided).sum())
    neither = n - n_both - n_a - n_b
    tiles = (
        ("both right", n_both),
        ("only the first", n_a),
        ("only the second", n_b),
        ("both wrong", neither),
        ("same prediction", n_same),
    )
    boxes = "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{k}</dd><dd class="dim">{percent(k / n, 1)} % of '
        "clips</dd></div>"
        for name, k in tiles
    )
    return section(
        "summary",
        "Summary",
        '<div class="headline"><div class="big"><p class="dim">difference in hF_strict, nested</p>'
        f'<p class="figure">{100 * first.difference:+.2f}</p><p class="dim">95 % interval '
        f"{100 * first.low:+.2f} to {100 * first.high:+.2f}: <b>{first.verdict}</b></p></div>"
        f'<dl class="tiles">{boxes}</dl></div>',
        table(
            ("score", data.a.name, data.b.name, "difference [95 % interval]", "p", "verdict"),
            rows,
            caption="Scores",
            left=(0, 5),
        ),
        f'<p class="dim">{esc(RULE)}</p>',
    )


def _classes(data: ComparisonData) -> str:
    scorer = Scorer(data.taxonomy)
    of = [scorer.precision_recall_f(counts) for counts in data.confusions]
    n_clips = data.confusions[0].sum(axis=1)
    shown = np.flatnonzero(n_clips)
    gaps = [of[0][i] - of[1][i] for i in range(3)]
    widest = max(float(np.abs(gaps[2][shown]).max()), 0.01)
    rows = []
    for c in shown:
        family, gap = int(data.taxonomy.family_of[c]), float(gaps[2][c])
        rows.append(
            f'<tr><th scope="row" data-v="{c}">{family_tag(data.taxonomy, int(c))}</th>'
            + name_cell(data.taxonomy, int(c))
            + cell(str(int(n_clips[c])))
            + cell(percent(float(of[0][2][c]), 1))
            + cell(percent(float(of[1][2][c]), 1))
            + f'<td class="two" data-v="{gap:.6f}" style="--v:{abs(gap) / widest:.3f};'
            f'--c:var(--f{family})"><i{css("less" if gap < 0 else "more")}></i>'
            f"<span>{100 * gap:+.1f}</span></td>"
            + cell(f"{100 * gaps[0][c]:+.1f}")
            + cell(f"{100 * gaps[1][c]:+.1f}")
            + "</tr>"
        )
    a, b = data.a.name, data.b.name
    named = has_names(data.taxonomy)
    head = ["class", *(["name"] if named else []), "clips", f"hF {a}", f"hF {b}"]
    head += ["hF difference", "hP difference", "hR difference"]
    return section(
        "classes",
        "Classes",
        f'<p class="dim">Bars to the right: {esc(a)} is better; to the left: {esc(b)}. The longest '
        f"is {100 * widest:.1f} points.</p>",
        table(
            head,
            rows,
            caption="Classes",
            style="sortable named" if named else "sortable",
            left=(0, 1) if named else (0,),
        ),
    )  # fmt: skip


def _confusion(data: ComparisonData) -> str:
    gap = data.confusions[0] - data.confusions[1]
    return section(
        "confusion",
        "Confusion",
        f'<p class="dim">Clips in each cell: {esc(data.a.name)} minus {esc(data.b.name)}; rows are '
        "true classes, columns predicted ones; frames hold a family. Fewer clips are hatched.</p>",
        matrix(gap, data.taxonomy, name="difference of confusions", is_difference=True),
    )


def _clips(name: str, run: str, subset: str, n: int) -> str:
    return section(
        name,
        f"Only {run} is right",
        f'<p class="dim">{n} clips.</p><div class="cliptable" data-subset="{subset}"></div>',
    )
