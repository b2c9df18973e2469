"""The report of a run: one HTML page that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from bsdkit.report.tables import chain_title, difference, missing_lines, percent
from bsdkit.taxonomy import Taxonomy

__all__ = ["write_page"]

# Colour-blind safe (Okabe and Ito), cycled over the families.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name: bsdkit report</title>
<style>
:root { color-scheme: light; --line: #d8dde3; --dim: #5b6570; }
body { font: 15px/1.5 system-ui, sans-serif; color: #16202a; margin: 0 auto; padding: 1.5rem;
       max-width: 72rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
.headline { font-size: 2.6rem; font-weight: 650; line-height: 1.2 }
.dim { color: var(--dim) } .scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
         white-space: nowrap }
th:first-child, td:first-child, .left { text-align: left }
tr.final { font-weight: 650 } tr.aside { color: var(--dim) }
.bar { display: inline-block; height: .7rem; border-radius: 2px; vertical-align: middle }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .4rem }
.matrix td, .matrix th { padding: 0; width: 1.75rem; height: 1.5rem; text-align: center;
       font-size: .72rem; border: 1px solid #eef1f4 }
.matrix th { font-weight: 500; padding: 0 .2rem; width: auto }
.matrix .edge { border-left: 2px solid #8a949e } .matrix .top td, .matrix .top th
       { border-top: 2px solid #8a949e }
code { font-size: .85em; overflow-wrap: anywhere }
</style></head><body>
<h1>$name</h1>
<p class="dim">$description</p>
$sections
<h2>Made with</h2>
<p class="dim">$facts</p>
</body></html>
""")


def write_page(
    path: Path, name: str, metrics: Mapping[str, Any], facts: Mapping[str, Any], taxonomy: Taxonomy
) -> None:
    """Writes the report of a run.

    Args:
        path: the HTML file.
        name: the run's name.
        metrics: what stands in metrics.json.
        facts: what stands in run.json.
        taxonomy: the classes.
    """
    sections = []
    for protocol, result in metrics["protocols"].items():
        sections.append(_protocol(protocol, result, taxonomy, protocol == metrics["headline"]))
    features = "; ".join(
        f"{html.escape(feature)} <code>{info['spec_hash'][:12]}</code>"
        for feature, info in facts["features"].items()
    )
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    page = _PAGE.substitute(
        name=html.escape(name),
        description=f"{metrics['n_clips']} clips, {metrics['n_classes']} classes. Every score is "
        "out of fold: no model is scored on a clip that it was trained or tuned on."
        + "".join(f" {html.escape(line)}." for line in missing_lines(metrics)),
        sections="\n".join(sections),
        facts=f"bsdkit {facts['bsdkit']}, {html.escape(versions)}, {facts['seconds']} s on "
        f"{facts['cpus']} CPUs ({facts['device']}). Features: {features}. Folds: "
        + ", ".join(f"{k} <code>{v[:12]}</code>" for k, v in facts["splits"].items()),
    )
    path.write_text(page, encoding="utf-8")


def _protocol(name: str, result: Mapping[str, Any], taxonomy: Taxonomy, is_headline: bool) -> str:
    ensemble = result["ensemble"]
    nested = ensemble["nested"]
    score = nested["hF_strict"]
    uploaders = result["n_shared_uploaders"]
    disjoint = (
        "no uploader on two sides" if not uploaders else f"{uploaders} uploaders on two sides"
    )
    parts = [
        f"<h2>{html.escape(name)} folds{' (headline)' if is_headline else ''}</h2>",
        f'<div class="headline">{percent(score["value"])}</div>',
        f"<p>hF_strict of {html.escape(chain_title(ensemble))}, nested; 95 % interval "
        f"{percent(score['low'], 1)} to {percent(score['high'], 1)}; official hF "
        f"{percent(nested['hF']['value'])}; {disjoint}.{_at_target(nested)} "
        f"Tuning it on the clips it is scored on would show {percent(ensemble['optimism'])} points "
        "more (optimism).</p>",
        _score_table(result),
        _steps(result) if len(result["steps"]) > 1 else "",
        _comparisons(ensemble["against"]),
    ]
    if nested["never_predicted"]:
        parts.append(
            f"<p>Never predicted: {', '.join(nested['never_predicted'])}. The official hF "
            "leaves such a class out of its mean; hF_strict counts it as 0.</p>"
        )
    if result["on_their_word"]:
        named = html.escape(", ".join(result["on_their_word"]))
        parts.append(f"<p>Imported without folds, so out of fold on their word: {named}.</p>")
    if result["weights_are_given"]:
        parts.append("<p>The weights are given: who chose them may have seen these clips.</p>")
    for member, faults in result["left_out"].items():
        reason = f"{member} diverged and is left out: {faults[0]} ({len(faults)} models in all)."
        parts.append(f"<p>{html.escape(reason)}</p>")
    if result["unseen"]:
        named = ", ".join(f"{label} in fold {k}" for k, label in result["unseen"])
        parts.append(f"<p>Tested without a training clip: {named}.</p>")
    parts += [_classes(nested["per_class"], taxonomy), _confusion(nested["confusion"], taxonomy)]
    return "\n".join(parts)


def _score_table(result: Mapping[str, Any]) -> str:
    ensemble = result["ensemble"]
    rows = [(name, scores, "") for name, scores in result["members"].items()]
    rows += [
        ("plain mean", result["plain_mean"], ""),
        (f"{chain_title(ensemble)}, nested", ensemble["nested"], "final"),
        ("tuned on the clips it is scored on", ensemble["in_sample"], "aside"),
    ]
    body = []
    for name, scores, style in rows:
        score, folds = scores["hF_strict"], scores["folds"]["hF_strict"]
        body.append(
            f'<tr class="{style}"><td>{html.escape(name)}</td>'
            f"<td>{percent(scores['hF']['value'])}</td>"
            f"<td>{percent(score['value'])}</td>"
            f"<td>{percent(score['low'], 1)} to {percent(score['high'], 1)}</td>"
            f"<td>{percent(scores['hA']['value'])}</td><td>{percent(scores['accuracy']['value'])}</td>"
            f"<td>{percent(scores['top_accuracy']['value'])}</td>"
            f"<td>{percent(folds['mean'], 1)} ± {percent(folds['standard_deviation'], 1)}</td></tr>"
        )
    weights = ", ".join(
        f"{html.escape(member)} {weight:.2f}"
        for member, weight in zip(ensemble["members"], ensemble["weights"], strict=True)
    )
    return (
        '<div class="scroll"><table><tr><th>out of fold</th><th>hF</th><th>hF_strict</th>'
        "<th>95 % interval</th><th>hA</th><th>accuracy</th><th>family accuracy</th>"
        f"<th>over folds (sd)</th></tr>{''.join(body)}</table></div>"
        f'<p class="dim">Weights on all clips: {weights}.</p>'
    )


def _at_target(scores: Mapping[str, Any]) -> str:
    if "at_target" not in scores:
        return ""
    score = scores["at_target"]
    return (
        f" With the target's class frequencies it is {percent(score['value'])}, "
        f"{percent(score['low'], 1)} to {percent(score['high'], 1)}; comparisons and "
        "optimism are of that."
    )


def _steps(result: Mapping[str, Any]) -> str:
    """What each step after the members adds to the one before it."""
    plain = result["plain_mean"]["at_target" if result["target"] else "hF_strict"]
    body = [
        f"<tr><td>plain mean</td><td>{percent(plain['value'])}</td>"
        f"<td>{percent(plain['low'], 1)} to {percent(plain['high'], 1)}</td></tr>"
    ]
    for step in result["steps"]:
        score, added = step["nested"], step["added"]
        name = chain_title({**result["ensemble"], "steps": [step["step"]]})
        optimism = percent(step["optimism"]) if step["learns"] else ""
        body.append(
            f"<tr><td>{html.escape(name)}</td><td>{percent(score['value'])}</td>"
            f"<td>{percent(score['low'], 1)} to {percent(score['high'], 1)}</td>"
            f"<td>{difference(added)}</td><td class='left'>{added['verdict']}</td>"
            f"<td>{step['n_changed']}</td><td>{optimism}</td></tr>"
        )
    aim = " at the target's class frequencies" if result["target"] else ""
    return (
        f"<h2>Step by step{aim}</h2>"
        '<div class="scroll"><table><tr><th>after</th><th>hF_strict</th>'
        '<th>95 % interval</th><th>added to the step before</th><th class="left">verdict</th>'
        f"<th>clips changed</th><th>optimism</th></tr>{''.join(body)}</table></div>"
    )


def _comparisons(against: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>against {html.escape(other)}: {difference(c)} points, paired: "
        f"<b>{c['verdict']}</b></li>"
        for other, c in against.items()
    )
    return f"<ul>{items}</ul>"


def _colour(taxonomy: Taxonomy, position: int) -> str:
    return _COLOURS[int(taxonomy.family_of[position]) % len(_COLOURS)]


def _classes(per_class: Mapping[str, Any], taxonomy: Taxonomy) -> str:
    rows = []
    for label, c in per_class.items():
        position = taxonomy.index(label)
        colour = _colour(taxonomy, position)
        rows.append(
            f'<tr><td><span class="dot" style="background:{colour}"></span>{html.escape(label)} '
            f'<span class="dim">{html.escape(taxonomy.classes[position].name)}</span></td>'
            f"<td>{c['n_clips']}</td><td>{c['n_predicted']}</td><td>{percent(c['hP'], 1)}</td>"
            f"<td>{percent(c['hR'], 1)}</td><td>{percent(c['hF'], 1)}</td>"
            f'<td class="left"><span class="bar" style="width:{120 * c["hF"]:.0f}px;'
            f'background:{colour}"></span></td><td>{percent(c["accuracy"], 1)}</td>'
            f'<td class="left">{html.escape(c["confused_with"])}</td></tr>'
        )
    return (
        '<h2>Classes</h2><div class="scroll"><table><tr><th>class</th><th>clips</th>'
        "<th>predicted</th>"
        "<th>hP</th><th>hR</th><th>hF</th><th></th><th>accuracy</th>"
        f'<th class="left">mistaken for</th></tr>{"".join(rows)}</table></div>'
    )


def _edges(taxonomy: Taxonomy) -> set[int]:
    families = taxonomy.family_of
    return {i for i in range(1, len(taxonomy)) if families[i] != families[i - 1]}


def _confusion(counts: Iterable[list[int]], taxonomy: Taxonomy) -> str:
    edges = _edges(taxonomy)
    head = "".join(
        f'<th class="{"edge" if j in edges else ""}">{html.escape(label)}</th>'
        for j, label in enumerate(taxonomy.labels)
    )
    rows = []
    for i, row in enumerate(counts):
        total = max(1, sum(row))
        cells = []
        for j, n in enumerate(row):
            share = n / total
            ink = "#fff" if share > 0.55 else "#16202a"
            title = f"{taxonomy.labels[i]} taken for {taxonomy.labels[j]}: {n} of {sum(row)}"
            cells.append(
                f'<td class="{"edge" if j in edges else ""}" title="{html.escape(title)}" '
                f'style="background:rgba(0,92,150,{share:.2f});color:{ink}">{n or ""}</td>'
            )
        top = "top" if i in edges else ""
        rows.append(
            f'<tr class="{top}"><th>{html.escape(taxonomy.labels[i])}</th>{"".join(cells)}</tr>'
        )
    return (
        "<h2>Confusion: clips by true class (row) and predicted class</h2>"
        f'<div class="scroll"><table class="matrix"><tr><th></th>{head}</tr>'
        f"{''.join(rows)}</table></div>"
    )
