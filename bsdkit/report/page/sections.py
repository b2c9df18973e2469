"""The sections of the page of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bsdkit.leakage import NEAR_COSINE, said_of
from bsdkit.metrics import FAMILY_CREDIT_PRF
from bsdkit.report.page.analysis import Ambiguity, LostCredit
from bsdkit.report.page.charts import (
    ambiguity_chart,
    curves_charts,
    reliability_chart,
)
from bsdkit.report.page.data import PageData
from bsdkit.report.page.markup import (
    bar,
    cell,
    clip_data,
    css,
    esc,
    family_tag,
    has_names,
    is_flat,
    matrix,
    name_cell,
    pairs_list,
    points,
    render,
    section,
    table,
)
from bsdkit.report.tables import (
    caveats,
    chain_title,
    difference,
    percent,
    protocol_notes,
    test_table,
)
from bsdkit.stats import Z_95
from bsdkit.taxonomy import Taxonomy
from bsdkit.verdicts import RULE

__all__ = ["write_page"]


def write_page(path: Path, data: PageData) -> None:
    """Writes the page of a run: one file that needs nothing else."""
    metrics = data.metrics
    lead = (
        (f"<p>{esc(data.description)}</p>" if data.description else "")
        + f'<p class="dim">{metrics["n_clips"]} clips, {metrics["n_classes"]} classes in '
        f"{len(data.taxonomy.families)} families. Every score is out of fold: no model is scored "
        "on a clip that it was trained or tuned on.</p>"
    )
    sections = [
        ("summary", "Summary", _summary(data)),
        ("members", "Members and steps", _members(data)),
        ("classes", "Classes", _classes(data)),
        ("confusion", "Confusion", _confusion(data)),
        ("calibration", "Calibration", _calibration(data)),
        ("errors", "Where credit is lost", _errors(data)),
        ("clips", "Clips", _clips()),
        ("map", "Map", _map(data)),
        ("coverage", "Coverage and leaks", _coverage(data)),
        ("training", "Training", _training(data)),
        ("made", "Made with", _made(data)),
    ]
    projections = []
    for one in data.projections:
        projections.append({"method": one.method, **_grid(one.points)})
    script = clip_data(
        data.taxonomy, data.clips, [data.predictions], maps=projections, errorsOnly=True
    )
    render(path, data.name, lead, sections, data.taxonomy, script)


def _grid(xy: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, list[int]]:
    """Coordinates as whole numbers from 0 to 4000, both axes by one scale; -1 where missing."""
    there = np.isfinite(xy).all(axis=1)
    if not there.any():
        return {"x": [-1] * len(xy), "y": [-1] * len(xy)}
    low, high = xy[there].min(axis=0), xy[there].max(axis=0)
    scale = 4000 / max(float((high - low).max()), 1e-12)
    placed = np.full(xy.shape, -1, np.int64)
    placed[there] = np.rint((xy[there] - low) * scale)
    return {"x": placed[:, 0].tolist(), "y": placed[:, 1].tolist()}


def _interval(score: Mapping[str, float], digits: int = 1) -> str:
    return f"{percent(score['low'], digits)} to {percent(score['high'], digits)}"


def _summary(data: PageData) -> str:
    metrics = data.metrics
    result = metrics["protocols"][metrics["headline"]]
    ensemble = result["ensemble"]
    nested = ensemble["nested"]
    score = nested["hF_strict"]
    tiles = [
        ("official hF", percent(nested["hF"]["value"]), _interval(nested["hF"])),
        ("optimism", percent(ensemble["optimism"]), "more, if tuned on the clips it is scored on"),
        ("accuracy", percent(nested["accuracy"]["value"]), _interval(nested["accuracy"])),
        ("right family", percent(nested["top_accuracy"]["value"]),
         _interval(nested["top_accuracy"])),
    ]  # fmt: skip
    if data.reliability is not None:
        ece = vars(data.reliability.ece)
        tiles.append(("calibration error", percent(ece["value"], 1), _interval(ece)))
    boxes = "".join(
        f'<div class="tile"><dt>{esc(name)}</dt><dd>{value}</dd><dd class="dim">{esc(note)}</dd>'
        "</div>"
        for name, value, note in tiles
    )
    head = (
        '<div class="headline"><div class="big"><p class="dim">hF_strict of '
        f"{esc(chain_title(ensemble))}, nested, {esc(metrics['headline'])} folds</p>"
        f'<p class="figure">{percent(score["value"])}</p>'
        f'<p class="dim">95 % interval {_interval(score)}{esc(_at_target(nested))}</p></div>'
        f'<dl class="tiles">{boxes}</dl></div>'
    )
    rows = []
    for name, one in metrics["protocols"].items():
        own = one["ensemble"]["nested"]
        folds = own["folds"]["hF_strict"]
        is_headline = name == metrics["headline"]
        rows.append(
            f'<tr{css("final" if is_headline else "")}><th scope="row">{esc(name)}'
            f"{' (headline)' if is_headline else ''}</th>"
            + cell(str(one["n_tested"]))
            + cell(percent(own["hF_strict"]["value"]))
            + cell(_interval(own["hF_strict"]))
            + cell(percent(own["hF"]["value"]))
            + cell(percent(one["ensemble"]["optimism"]))
            + cell(percent(own["hA"]["value"]))
            + cell(percent(own["accuracy"]["value"]))
            + cell(f"{percent(folds['mean'], 1)} ± {percent(folds['standard_deviation'], 1)}")
            + cell("; ".join(said_of(one)), style="left wrap")
            + "</tr>"
        )
    splits = table(
        ("folds", "clips", "hF_strict", "95 % interval", "hF", "optimism", "hA", "accuracy",
         "over folds (sd)", "what crosses the folds"),
        rows,
        caption="Every split, nested",
    )  # fmt: skip
    tested = ""
    if "test" in metrics:
        tested = test_table(metrics["test"], chain_title(ensemble)).to_html()
    return section("summary", "Summary", head, splits, tested, _warnings(data))


def _at_target(scores: Mapping[str, Any]) -> str:
    if "at_target" not in scores:
        return ""
    score = scores["at_target"]
    return (
        f". With the target's class frequencies it is {percent(score['value'])}, "
        f"{_interval(score)}; comparisons and optimism are of that"
    )


def _warnings(data: PageData) -> str:
    lines = caveats({"mapped": {}, "missing": {}, **data.metrics})
    several = len(data.metrics["protocols"]) > 1
    for name, result in data.metrics["protocols"].items():
        notes = protocol_notes(result)
        lines += [f"folds {name}: {line}" if several else line for line in notes]
    lines += data.notes
    if not lines:
        return ""
    items = "".join(f"<li>{esc(line[:1].upper() + line[1:])}.</li>" for line in lines)
    return f'<div class="note" role="note"><h3>To be known</h3><ul>{items}</ul></div>'


def _members(data: PageData) -> str:
    parts = []
    for name, result in data.metrics["protocols"].items():
        is_headline = name == data.metrics["headline"]
        parts.append(
            f"<details{' open' if is_headline else ''}><summary>{esc(name)} folds"
            f"{' (headline)' if is_headline else ''}</summary>"
            f"{_score_table(result)}{_steps(result) if result['steps'] else ''}"
            f"{_against(result['ensemble'])}</details>"
        )
    return section("members", "Members and steps", *parts)


def _score_table(result: Mapping[str, Any]) -> str:
    ensemble = result["ensemble"]
    weights = dict(zip(ensemble["members"], ensemble["weights"], strict=True))
    scored = [(name, scores, "") for name, scores in result["members"].items()]
    scored += [
        ("plain mean", result["plain_mean"], ""),
        (f"{chain_title(ensemble)}, nested", ensemble["nested"], "final"),
        ("tuned on the clips it is scored on", ensemble["in_sample"], "aside"),
    ]
    rows = []
    for name, scores, style in scored:
        score, folds = scores["hF_strict"], scores["folds"]["hF_strict"]
        seeds = scores.get("seeds") or {"n": 0}
        spread = f"± {percent(seeds['standard_deviation'], 1)}" if seeds["n"] > 1 else ""
        rows.append(
            f'<tr class="{style}"><th scope="row">{esc(name)}</th>'
            + cell(percent(scores["hF"]["value"]))
            + cell(percent(score["value"]))
            + cell(_interval(score))
            + cell(percent(scores["hA"]["value"]))
            + cell(percent(scores["accuracy"]["value"]))
            + cell(percent(scores["top_accuracy"]["value"]))
            + cell(f"{percent(folds['mean'], 1)} ± {percent(folds['standard_deviation'], 1)}")
            + cell(spread)
            + cell(f"{weights[name]:.2f}" if name in weights else "")
            + "</tr>"
        )
    return table(
        ("out of fold", "hF", "hF_strict", "95 % interval", "hA", "accuracy", "right family",
         "over folds (sd)", "seeds (sd)", "weight"),
        rows,
        caption="Members and what they give together; weights as fitted on all clips",
    )  # fmt: skip


def _steps(result: Mapping[str, Any]) -> str:
    """What each step after the members adds to the one before it."""
    plain = result["plain_mean"]["at_target" if result["target"] else "hF_strict"]
    rows = [
        '<tr><th scope="row">plain mean</th>'
        + cell(percent(plain["value"]))
        + cell(_interval(plain))
        + "<td></td>" * 4
        + "</tr>"
    ]
    for step in result["steps"]:
        name = chain_title({**result["ensemble"], "steps": [step["step"]]})
        rows.append(
            f'<tr><th scope="row">{esc(name)}</th>'
            + cell(percent(step["nested"]["value"]))
            + cell(_interval(step["nested"]))
            + cell(difference(step["added"]))
            + cell(step["added"]["verdict"], style="left")
            + cell(str(step["n_changed"]))
            + cell(percent(step["optimism"]) if step["learns"] else "")
            + "</tr>"
        )
    aim = " at the target's class frequencies" if result["target"] else ""
    return table(
        ("after", "hF_strict", "95 % interval", "added to the step before", "verdict",
         "clips changed", "optimism"),
        rows,
        caption=f"Step by step{aim}, nested, paired",
        left=(0, 4),
    )  # fmt: skip


def _against(ensemble: Mapping[str, Any]) -> str:
    items = "".join(
        f"<li>against {esc(other)}: {difference(c)} points, paired: <b>{c['verdict']}</b></li>"
        for other, c in ensemble["against"].items()
    )
    if not items:
        return ""
    title = esc(chain_title(ensemble))
    return f'<p>{title}, nested:</p><ul>{items}</ul><p class="dim">{esc(RULE)}</p>'


def _headline(data: PageData) -> Mapping[str, Any]:
    nested: Mapping[str, Any] = data.metrics["protocols"][data.metrics["headline"]]["ensemble"][
        "nested"
    ]
    return nested


def _classes(data: PageData) -> str:
    taxonomy, per_class = data.taxonomy, _headline(data)["per_class"]
    most = max(c["n_clips"] for c in per_class.values())
    said = data.ambiguity
    rows = []
    for label, c in per_class.items():
        position = taxonomy.index(label)
        family = int(taxonomy.family_of[position])
        rows.append(
            f'<tr><th scope="row" data-v="{position}">{family_tag(taxonomy, position)}</th>'
            + name_cell(taxonomy, position)
            + bar(c["n_clips"], str(c["n_clips"]), most, family)
            + cell(str(c["n_predicted"]))
            + "".join(bar(c[key], percent(c[key], 1), 1.0, family) for key in ("hF", "hP", "hR"))
            + cell(percent(c["accuracy"], 1))
            + (
                ""
                if said is None
                else cell(_plain(said.confidence[position]), value=said.confidence[position])
            )
            + cell(c["confused_with"], style="left")
            + "</tr>"
        )
    named = has_names(taxonomy)
    head = [
        "class",
        *(["name"] if named else []),
        "clips",
        "predicted",
        "hF",
        "hP",
        "hR",
        "accuracy",
    ]
    head += ([] if said is None else ["confidence"]) + ["mistaken for"]
    return section(
        "classes",
        "Classes",
        '<p class="dim">Figures in percent, bars from 0 to 100, those of clips to the largest '
        "class. A column's title sorts by it.</p>",
        table(
            head,
            rows,
            caption="Classes",
            style="sortable named" if named else "sortable",
            left=(0, 1, len(head) - 1) if named else (0, len(head) - 1),
        ),
    )


def _plain(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _confusion(data: PageData) -> str:
    counts = np.array(_headline(data)["confusion"])
    others = []
    for name, result in data.metrics["protocols"].items():
        if name != data.metrics["headline"]:
            other = np.array(result["ensemble"]["nested"]["confusion"])
            others.append(
                f"<details><summary>{esc(name)} folds</summary>"
                f"{matrix(other, data.taxonomy, name=f'confusion-{name}')}</details>"
            )
    return section(
        "confusion",
        "Confusion",
        '<p class="dim">Rows are true classes, columns predicted ones; frames hold a family; the '
        "shade is the share of the row. A click, or Enter, lists the clips of a cell.</p>",
        matrix(counts, data.taxonomy, name="confusion"),
        *others,
    )


def _calibration(data: PageData) -> str:
    found = data.reliability
    if found is None:
        return ""
    rows = [
        f'<tr><th scope="row">{percent(b.low, 0)} to {percent(b.high, 0)}</th>'
        + cell(str(b.n_clips))
        + cell(percent(b.confidence, 1))
        + cell(percent(b.accuracy, 1))
        + cell(f"{percent(b.accuracy_low, 1)} to {percent(b.accuracy_high, 1)}")
        + "</tr>"
        for b in found.bins
    ]
    ece = vars(found.ece)
    return section(
        "calibration",
        "Calibration",
        f"<p>Expected calibration error <b>{percent(ece['value'], 1)}</b> points, 95 % interval "
        f"{_interval(ece)}; log loss {found.nll:.3f} nats, Brier score {found.brier:.3f}; nested "
        f"probabilities of {found.n_clips} clips.</p>"
        f'<div class="pair"><figure>{reliability_chart(found)}<figcaption>Bars: accuracy of the '
        "clips of a bin, with 95 % intervals; dots: at their mean confidence; below: clips. On "
        "the diagonal, probabilities could be taken at their word.</figcaption></figure>",
        table(
            ("confidence, %", "clips", "mean confidence", "accuracy", "95 % interval"),
            rows,
            caption="The same in figures",
        ),
        "</div>",
    )


def _errors(data: PageData) -> str:
    lost = data.lost
    n_wrong = lost.n_across + lost.n_within
    wrong_family = lost.n_across / n_wrong if n_wrong else math.nan
    facts = [("clips predicted wrong", f"{n_wrong} of {len(data.clips.ids)}")]
    if not is_flat(data.taxonomy):
        facts += [
            ("of these, in a wrong family", f"{lost.n_across} ({points(wrong_family)} %)"),
            (
                "share of the lost credit",
                f"{points(lost.share_across)} % across families; a clip loses 1 there, "
                f"{1 - FAMILY_CREDIT_PRF:g} within its family",
            ),
        ]
    parts = [pairs_list(facts)]
    said = data.ambiguity
    if said is not None:
        parts.append(_ambiguity(said, data.taxonomy))
    parts.append(_pairs(lost, data.taxonomy, said is not None))
    return section("errors", "Where credit is lost", *parts)


def _ambiguity(said: Ambiguity, taxonomy: Taxonomy) -> str:
    gap = said.right - said.wrong
    facts = [("clips with a confidence", str(said.n_clips))]
    if not math.isnan(said.r):
        interval = f" (95 % interval {said.r_low:.2f} to {said.r_high:.2f})"
        interval = "" if math.isnan(said.r_low) else interval
        facts.append(("correlation over classes, Pearson's r", f"{said.r:.2f}{interval}"))
    else:
        facts.append(("correlation over classes", "none: one of the two does not vary"))
    facts.append(
        (
            "mean confidence of right and wrong clips",
            f"{_plain(said.right)} and {_plain(said.wrong)}"
            + (
                ""
                if math.isnan(gap) or math.isnan(said.gap_error)
                else f"; {gap:+.2f} ± {Z_95 * said.gap_error:.2f}"
            ),
        )
    )
    return (
        "<h3>Ambiguity: errors beside the annotators' confidence</h3>"
        f'{pairs_list(facts)}<figure><div class="scroll wide">{ambiguity_chart(said, taxonomy)}'
        "</div><figcaption>Each mark is a "
        "class; its shape and colour are its family's.</figcaption></figure>"
    )


def _pairs(lost: LostCredit, taxonomy: Taxonomy, has_confidence: bool) -> str:
    rows = []
    for pair in lost.pairs:
        is_across = taxonomy.family_of[pair.first] != taxonomy.family_of[pair.second]
        total = pair.n_first + pair.n_second
        rows.append(
            f'<tr><th scope="row">{family_tag(taxonomy, pair.first)} ↔ '
            f"{family_tag(taxonomy, pair.second)}</th>"
            + cell(str(total))
            + cell(str(pair.n_first))
            + cell(str(pair.n_second))
            + cell("across" if is_across else "within", style="left")
            + (cell(_plain(pair.confidence), value=pair.confidence) if has_confidence else "")
            + "</tr>"
        )
    if not rows:
        return "<p>No clip is predicted wrong.</p>"
    head = ["pair", "clips", "first taken for second", "second for first", "families"]
    head += ["confidence"] if has_confidence else []
    return table(head, rows, caption="Most confused pairs", style="sortable", left=(0, 4))


def _clips() -> str:
    return section(
        "clips",
        "Clips",
        '<p class="dim">Each clip as predicted out of fold, with its three most probable '
        "classes.</p>",
        '<div class="cliptable" data-run="0"></div>',
    )


def _map(data: PageData) -> str:
    if not data.projections:
        return ""
    first = data.projections[0]
    shares = ", ".join(f"{percent(s, 0)} %" for s in first.explained)
    groups = "classes" if is_flat(data.taxonomy) else "families"
    has_umap = any(one.method == "UMAP" for one in data.projections)
    umap = (
        "UMAP keeps neighbours together; distances between its groups mean little."
        if has_umap
        else "With the package umap-learn installed, bsdkit report adds a map by UMAP."
    )
    return section(
        "map",
        "Map",
        f'<p class="dim">Embeddings of {esc(", ".join(data.mapped))} in two dimensions: their '
        f"principal components ({shares} of the variance). {umap} Colours and shapes are true "
        f"{groups}; a ring marks a wrong prediction. Arrow keys move from clip to clip, Enter "
        "opens it in the table, which lists the same clips.</p>",
        '<div class="mapbox"></div>',
    )


def _coverage(data: PageData) -> str:
    rows = []
    for one in data.features:
        failures = "; ".join(f"{n}: {reason or 'no reason'}" for reason, n in one.failures.items())
        rows.append(
            f'<tr><th scope="row">{esc(one.name)}</th>'
            + cell(str(one.spec.get("kind", one.spec.get("backbone", ""))), style="left")
            + cell(str(one.spec.get("dim", "")))
            + cell(str(one.n_missing))
            + cell("not known" if one.n_failed is None else str(one.n_failed))
            + cell(failures, style="left wrap")
            + "</tr>"
        )
    parts = [
        table(
            ("feature", "kind", "dim", "clips without a row", "failed", "why"),
            rows,
            caption="Features",
            left=(0, 1, 5),
        )
    ]
    facts = [("clips that no fold tests", str(data.n_untested))] if data.n_untested else []
    n = len(data.fallback)
    facts.append(("clips with the fallback", f"{n}: {_some(data.fallback)}" if n else "none"))
    parts.append(pairs_list(facts))
    parts.append(_uploaders(data))
    parts.append(_duplicates(data))
    return section("coverage", "Coverage and leaks", *parts)


def _uploaders(data: PageData) -> str:
    if not any(one.n_uploaders for one in data.uploaders):
        return "<p>No clip has an uploader, so nobody knows who stands on two sides of a fold.</p>"
    rows = [
        f'<tr><th scope="row">{esc(one.split)}</th>'
        + cell(str(one.n_uploaders))
        + cell(str(one.n_shared))
        + cell(str(one.n_clips))
        + cell(", ".join(f"{name} ({k})" for name, k in one.largest), style="left wrap")
        + "</tr>"
        for one in data.uploaders
    ]
    return table(
        ("folds", "uploaders", "on two sides", "tested clips of these", "largest (clips)"),
        rows,
        caption="Uploaders on two sides of a fold: a model may know them, not the sound",
        left=(0, 4),
    )


def _some(ids: tuple[str, ...], n: int = 12) -> str:
    more = f" and {len(ids) - n} more" if len(ids) > n else ""
    return ", ".join(ids[:n]) + more


def _duplicates(data: PageData) -> str:
    found = data.duplicates
    if found is None:
        return ""
    where = f"{NEAR_COSINE} in {esc(data.duplicates_in)}"
    title = "<h3>Near-duplicates across folds</h3>"
    if not found.n_pairs:
        return f"{title}<p>No two clips of different folds have a cosine above {where}.</p>"
    text = (
        f"{title}<p>{found.n_pairs} pairs of {found.n_clips} clips that different "
        f"{esc(data.metrics['headline'])} folds test have a cosine above {where}; "
        f"{found.n_same_label} of the pairs are of one class.</p>"
    )
    rows = []
    clips, names = data.clips, data.taxonomy.labels
    for a, b, cosine in found.examples:
        rows.append(
            "<tr>"
            + "".join(
                f'<th scope="row"><a href="#clips" data-clip="{i}">{esc(clips.ids[i])}</a></th>'
                + cell(_short(str(clips.titles[i])), style="left")
                + cell(f"{names[clips.labels[i]]}, fold {clips.folds[i]}", style="left")
                for i in (a, b)
            )
            + cell(f"{cosine:.5f}")
            + "</tr>"
        )
    head = ("clip", "title", "class", "clip", "title", "class", "cosine")
    listed = table(head, rows, caption=f"The nearest {len(rows)}", left=range(6))
    return f"{text}<details><summary>Examples</summary>{listed}</details>"


def _short(text: str, n: int = 40) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


def _training(data: PageData) -> str:
    if not data.curves:
        return ""
    parts = []
    for one in data.curves:
        best = one.best_epochs[one.best_epochs > 0]
        kept = ""
        if len(best):
            low, high = int(best.min()), int(best.max())
            kept = f"; kept after epoch {low}" + (f" to {high}" if high > low else "")
        parts.append(
            f"<figure><h3>{esc(one.member)}</h3>{curves_charts(one)}"
            f"<figcaption>{len(one.losses)} models{kept}.</figcaption></figure>"
        )
    return section(
        "training",
        "Training",
        f'<p class="dim">{esc(data.metrics["headline"])} folds: the mean over folds and seeds, and '
        "the range from the lowest to the highest.</p>",
        f'<div class="figures">{"".join(parts)}</div>',
    )


def _made(data: PageData) -> str:
    facts = data.facts
    known = [
        ("bsdkit", str(facts["bsdkit"])),
        ("Python", str(facts.get("python", ""))),
        *((name, str(version)) for name, version in facts["versions"].items()),
        (
            "machine",
            f"{facts.get('machine', '')}, {facts['cpus']} CPUs, trained on {facts['device']}",
        ),
        ("seconds", str(facts["seconds"])),
        ("fallback", str(facts.get("fallback", ""))),
    ]
    rows = [
        f'<tr><th scope="row">{esc(one.name)}</th>'
        + cell(str(one.spec.get("weights", one.spec.get("origin", ""))), style="left wrap")
        + f"<td class='left'><code>{esc(one.spec_hash[:12])}</code></td>"
        f"<td class='left'><code>{esc(one.checksum[:12])}</code></td></tr>"
        for one in data.features
    ]
    rows += [
        f'<tr><th scope="row">{esc(name)} folds</th><td></td><td></td>'
        f"<td class='left'><code>{esc(digest[:12])}</code></td></tr>"
        for name, digest in facts["splits"].items()
    ]
    return section(
        "made",
        "Made with",
        pairs_list(known),
        table(("input", "weights", "spec", "contents"), rows, caption="Hashes", left=(0, 1, 2, 3)),
    )
