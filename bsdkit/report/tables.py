"""The tables of runs, stores, datasets, backbones and prediction files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from bsdkit.backbones.base import Backbone
from bsdkit.backbones.diagnosis import diagnose
from bsdkit.dataset import Clips, FilterReport
from bsdkit.dataset.groups import copies
from bsdkit.leakage import NEAR_COSINE, said_of
from bsdkit.metrics import METRICS, Comparison, Interval, Scores
from bsdkit.priors.audit import PriorAudit
from bsdkit.report.table import Column, Table, columns
from bsdkit.store.feature import FeatureInfo
from bsdkit.store.texts import Texts
from bsdkit.store.verify import DurationRow, FeatureReport
from bsdkit.verdicts import RULE

__all__ = [
    "backbones_table",
    "caveats",
    "chain_title",
    "comparison_table",
    "dataset_table",
    "difference",
    "evaluation_tables",
    "fit_tables",
    "percent",
    "prior_audit_tables",
    "protocol_notes",
    "shown_interval",
    "shown_p",
    "store_table",
    "test_table",
    "verification_table",
]

_TITLES = {
    "hF": "hierarchical F (official)",
    "hF_strict": "hierarchical F, strict",
    "hP": "hierarchical precision",
    "hR": "hierarchical recall",
    "hA": "hierarchical accuracy",
    "accuracy": "accuracy",
    "top_accuracy": "family accuracy",
    "macro_accuracy": "macro accuracy",
    "macro_top_accuracy": "macro family accuracy",
    "cross_family_error": "cross-family error",
}


def percent(value: float, digits: int = 2) -> str:
    """A fraction as a percentage without its sign: 0.8125 becomes 81.25."""
    return f"{100 * value:.{digits}f}"


def shown_interval(score: Mapping[str, float], digits: int = 1) -> str:
    """The ends of an interval in percent: ``[79.1, 83.0]``."""
    return f"[{percent(score['low'], digits)}, {percent(score['high'], digits)}]"


def evaluation_tables(
    scores: Scores, intervals: Mapping[str, Interval], *, per_class: bool
) -> list[Table]:
    """All scores with their intervals and, if wanted, one row a class."""
    table = Table(
        columns("score", "value", "95 % interval", left=["score"]),
        f"{scores.n_clips} clips, scores in percent",
    )
    for name in METRICS:
        interval = intervals[name]
        table.add(
            Text.assemble(name, "  ", (_TITLES[name] if _TITLES[name] != name else "", "dim")),
            percent(interval.value),
            shown_interval(vars(interval), 2),
        )
    tables = [table]
    if per_class:
        heading = ("class", "clips", "predicted", "hP", "hR", "hF", "accuracy", "mistaken for")
        tables.append(Table(columns(*heading, left=["class", "mistaken for"]), "classes"))
        for c in scores.per_class:
            tables[-1].add(
                c.label,
                str(c.n_clips),
                str(c.n_predicted),
                *(percent(value, 1) for value in (c.hP, c.hR, c.hF, c.accuracy)),
                c.confused_with,
            )
    if scores.never_predicted:
        tables[-1].notes.append(
            f"never predicted: {', '.join(scores.never_predicted)}. hF leaves such a class out of "
            "its mean, as the organisers' code does; hF_strict counts it as 0."
        )
    return tables


def fit_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """For each split, the members, the ensemble and its optimism, then what each step adds."""
    tables: list[Table] = []
    for protocol, result in metrics["protocols"].items():
        claims = "; ".join(said_of(result))
        headline = ", headline" if protocol == metrics["headline"] else ""
        heading = ("out of fold", "hF", "hF_strict", "95 % interval", "hA", "accuracy", "folds",
                   "seeds")  # fmt: skip
        table = Table(
            columns(*heading, left=["out of fold"]),
            f"{protocol} folds ({result['n_tested']} clips, {claims}{headline})",
        )
        for name, scores in result["members"].items():
            _add_scores(table, name, scores)
        ensemble = result["ensemble"]
        _add_scores(table, "plain mean", result["plain_mean"], rule=True)
        title = chain_title(ensemble)
        _add_scores(table, f"{title}, nested", ensemble["nested"], "bold")
        _add_scores(table, "  tuned on the clips it is scored on", ensemble["in_sample"], "dim")
        tables.append(table)
        if len(result["steps"]) > 1:
            tables.append(_steps_table(result))
        lines = [f"optimism of tuning: {percent(ensemble['optimism'])} points"]
        for other, c in ensemble["against"].items():
            # it looks better for having been chosen by the clips that it is scored on
            best = ", the best member on these clips" if other == result["best_member"] else ""
            lines.append(f"{title} against {other}{best}: {difference(c)}, {c['verdict']}")
        if "at_target" in ensemble["nested"]:
            score = ensemble["nested"]["at_target"]
            lines.append(
                f"hF_strict with the target's class frequencies: {percent(score['value'])} "
                f"{shown_interval(score)}"
            )
        ece = result["reliability"]["nested"]["ece"]
        lines.append(
            f"calibration error (ECE) of its probabilities: {percent(ece['value'], 1)} "
            f"{shown_interval(ece)}"
        )
        if ensemble["against"] or len(result["steps"]) > 1:
            lines.append(RULE)
        tables[-1].notes += [*lines, *protocol_notes(result), ""]
    tables[-1].notes += caveats(metrics)
    if "test" in metrics:
        title = chain_title(metrics["protocols"][metrics["headline"]]["ensemble"])
        tables.append(test_table(metrics["test"], title))
    return tables


def test_table(result: Mapping[str, Any], ensemble: str) -> Table:
    """A run on a store that it never saw: each member, the ensemble, and what they share.

    Args:
        result: what `evaluate_run` found.
        ensemble: what the ensemble is called.
    """
    heading = ("never seen", "hF", "hF_strict", "95 % interval", "hA", "accuracy")
    table = Table(
        columns(*heading, left=["never seen"]),
        f"{result['store']}: {result['n_tested']} clips that the run never saw; nothing was "
        "selected on them",
        notes=_test_notes(result),
    )
    for name, scores in result["scores"].items():
        table.add(
            name or ensemble,
            percent(scores["hF"]["value"]),
            percent(scores["hF_strict"]["value"]),
            shown_interval(scores["hF_strict"]),
            percent(scores["hA"]["value"]),
            percent(scores["accuracy"]["value"]),
            style="" if name else "bold",
            rule=not name,
        )
    return table


test_table.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test


def _test_notes(result: Mapping[str, Any]) -> list[str]:
    audit, n = result["audit"], result["n_tested"]
    notes = [
        f"left out of {audit['n_clips']}: {audit['n_unlabelled']} without a label, "
        f"{audit['n_trained_on']} trained on, {audit['n_equal']} copies of clips trained on",
        f"uploader known for {audit['n_uploader_known']} of {n} clips: "
        f"{audit['n_shared_uploaders']} of {audit['n_uploaders']} uploaders are in training too "
        f"({audit['n_of_shared_uploaders']} clips)",
        f"near-copies of training clips were not looked for: {audit['near_in']}"
        if audit["n_near"] is None
        else f"near-copies of training clips (cosine above {NEAR_COSINE} in {audit['near_in']}): "
        f"{audit['n_near']} clips",
    ]
    if audit["n_unread"]:
        notes.append(f"the sounds of {audit['n_unread']} clips are not known, so not compared")
    if result["n_without_prediction"]:
        notes.append(
            f"{result['n_without_prediction']} of {n} clips have no input of any member and got "
            "the class shares of the training clips"
        )
    never = result["scores"][""]["never_predicted"]
    if never:
        notes.append(f"never predicted: {', '.join(never)}")
    if result["unseen"]:
        notes.append(f"tested but not in the training clips: {', '.join(result['unseen'])}")
    return notes


def protocol_notes(result: Mapping[str, Any]) -> list[str]:
    """What must be known of the figures under one split."""
    lines = []
    never = result["ensemble"]["nested"]["never_predicted"]
    if never:
        lines.append(
            f"never predicted, so hF leaves it out and hF_strict counts 0: {', '.join(never)}"
        )
    for name, faults in result["left_out"].items():
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        lines.append(f"member {name!r} diverged and is left out: {faults[0]}{more}")
    if result["n_without_prediction"]:
        lines.append(
            f"{result['n_without_prediction']} of {result['n_tested']} clips have no input of "
            "any member and got the class shares of their training clips"
        )
    if result["on_their_word"]:
        lines.append(
            "imported without folds, so unverified out-of-fold: "
            + ", ".join(result["on_their_word"])
        )
    near = result.get("near_copies")
    if near:
        lines.append(
            f"near-copies across folds (cosine above {NEAR_COSINE} in {near['feature']}): "
            f"{near['n_clips']} clips"
        )
    if result["weights_are_given"]:
        lines.append("the weights are given: whoever chose them may have seen these clips")
    if result["unseen"]:
        named = ", ".join(f"{label} in fold {k}" for k, label in result["unseen"])
        lines.append(f"tested but not in the training clips: {named}")
    return lines


def caveats(metrics: Mapping[str, Any]) -> list[str]:
    """What must be known of all figures of a run: names that others stand for, missing rows."""
    lines = []
    if metrics["mapped"]:
        listed = ", ".join(f"{here} for {name}" for name, here in metrics["mapped"].items())
        lines.append(f"mapped, so these are not the figures of the recipe itself: {listed}")
    return lines + [
        f"{n} of {metrics['n_clips']} clips have no {feature}: "
        + (
            "zeros to members with other inputs"
            if feature.startswith("prior.")
            else "members with it do without them"
        )
        for feature, n in metrics["missing"].items()
    ]


def chain_title(ensemble: Mapping[str, Any]) -> str:
    """What the steps after the members are called: ``ensemble (greedy) + rerank``."""
    if len(ensemble["steps"]) > 2:
        return "all steps"
    named = {"ensemble": f"ensemble ({ensemble['method']})"}
    return " + ".join(named.get(step, step) for step in ensemble["steps"])


def difference(c: Mapping[str, float]) -> str:
    """A difference in points with its interval: ``+0.54 [-0.54, +1.54]``."""
    return f"{100 * c['difference']:+.2f} [{100 * c['low']:+.2f}, {100 * c['high']:+.2f}]"


def shown_p(comparison: Comparison) -> str:
    """The adjusted p value to three places."""
    p = comparison.p_value if comparison.p_adjusted is None else comparison.p_adjusted
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _steps_table(result: Mapping[str, Any]) -> Table:
    """What each step after the members adds to the one before it."""
    aim = " at the target's class frequencies" if result["target"] else ""
    heading = ("after", "hF_strict", "95 % interval", "added", "verdict", "changed", "in-sample",
               "optimism")  # fmt: skip
    table = Table(
        columns(*heading, left=["after", "verdict"]),
        f"step by step{aim}, nested, each against the one before",
    )
    plain = result["plain_mean"]
    plain = plain["at_target" if result["target"] else "hF_strict"]
    table.add("plain mean", percent(plain["value"]), shown_interval(plain))
    for step in result["steps"]:
        table.add(
            chain_title({**result["ensemble"], "steps": [step["step"]]}),
            percent(step["nested"]["value"]),
            shown_interval(step["nested"]),
            difference(step["added"]),
            step["added"]["verdict"],
            str(step["n_changed"]),
            percent(step["in_sample"]) if step["learns"] else "",
            percent(step["optimism"]) if step["learns"] else "",
        )
    return table


def _add_scores(
    table: Table, name: str, scores: Mapping[str, Any], style: str = "", *, rule: bool = False
) -> None:
    folds, seeds = scores["folds"]["hF_strict"], scores.get("seeds")
    table.add(
        name,
        percent(scores["hF"]["value"]),
        percent(scores["hF_strict"]["value"]),
        shown_interval(scores["hF_strict"]),
        percent(scores["hA"]["value"]),
        percent(scores["accuracy"]["value"]),
        f"{percent(folds['mean'], 1)} ± {percent(folds['standard_deviation'], 1)}",
        f"± {percent(seeds['standard_deviation'], 1)} (n={seeds['n']})"
        if seeds and seeds["n"] > 1
        else "",
        style=style,
        rule=rule,
    )


def dataset_table(clips: Clips, report: FilterReport) -> Table:
    """What reading kept and dropped, and one row a class."""
    lead = [*report.lines(), f"uploaders: {len(set(clips.uploader) - {''})}"]
    if not (clips.labels >= 0).any():
        return Table(lead=[*lead, "no labels"])
    heading = columns("class", "name", "clips", "uploaders", left=["class", "name"])
    table = Table(heading, lead=lead)
    for position, c in enumerate(clips.taxonomy.classes):
        rows = clips.labels == position
        table.add(c.label, c.name, str(int(rows.sum())), str(len(set(clips.uploader[rows]) - {""})))
    return table


def backbones_table(classes: Mapping[str, type[Backbone]]) -> Table:
    """The backbones with their outputs, licence, size, cost and readiness."""
    states = {diagnosis.name: diagnosis.state for diagnosis in diagnose(classes)}
    words = ("outputs", "what it is", "licence")
    table = Table(
        [
            Column("backbone", no_wrap=True),
            *columns(*words, left=words),
            *columns("M par.", "GFLOP", no_wrap=True),
            Column("here", no_wrap=True),
        ],
        notes=[
            "GFLOP: 1e9 operations for ten seconds of audio, or for a text of 77 tokens",
            "bsdkit doctor says what to do about what is not ready",
        ],
    )
    for name, cls in classes.items():
        outputs = ", ".join(o or kind for o, kind in cls.outputs.items())
        shown = f"{name}MODEL" if name.endswith(":") else name
        card = cls.card
        size, cost = _size(card.parameters), _size(card.gigaflops)
        table.add(shown, outputs, card.summary, card.licence, size, cost, states[name])
    return table


def _size(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def store_table(clips: Clips, infos: Sequence[FeatureInfo], texts: Sequence[Texts]) -> Table:
    """The clips table's size, one row a feature and a line for each file of texts."""
    n_labelled = int((clips.labels >= 0).sum())
    heading = ("feature", "spec", "rows", "failed", "dim", "type", "MB", "weights")
    table = Table(
        columns(*heading, left=["feature", "spec", "type", "weights"]),
        lead=[
            f"{len(clips)} clips, {n_labelled} labelled, {len(set(clips.uploader) - {''})} "
            f"uploaders, taxonomy {clips.taxonomy.name}"
        ],
        notes=[f"{t.origin}: texts of {len(t.by_clip)} of {len(t.rows.ids)} clips" for t in texts],
    )
    for info in infos:
        table.add(
            info.feature,
            info.spec_hash[:12],
            str(info.n_rows),
            str(info.n_failed),
            str(info.dim),
            info.dtype,
            f"{info.path.stat().st_size / 1e6:.1f}",
            str(info.spec.get("weights", info.spec.get("origin", ""))),
        )
        if info.n_partial:
            table.notes.append(_in_part(info.feature, info.n_partial))
    return table


def _in_part(feature: str, n: int) -> str:
    return f"{feature}: {n} clips embedded in part, see failures-{feature.partition('@')[0]}.csv"


def verification_table(reports: Sequence[FeatureReport], clips: Clips) -> Table:
    """One row a feature and a line for whatever is wrong, and what the clips have in common."""
    heading = ("feature", "rows", "missing", "failed", "copies", "near-copies", "verdict")
    table = Table(columns(*heading, left=["feature", "verdict"]))
    for report in reports:
        n_failed = sum(report.failures.values())
        verdict = (
            "BROKEN" if report.faults else "incomplete" if report.n_missing or n_failed else "ok"
        )
        counts = (report.n_rows, report.n_missing, n_failed, report.n_duplicates, report.n_near)
        table.add(report.feature, *map(str, counts), verdict)
        lines = [*report.faults, *(f"{n} failed: {why}" for why, n in report.failures.items())]
        if report.first_missing:
            lines.append(f"missing, e.g. {', '.join(report.first_missing)}")
        table.notes += [f"{report.feature}: {line}" for line in lines]
        if report.n_partial:
            table.notes.append(_in_part(report.feature, report.n_partial))
    n_equal, n_unread = int(copies(clips).sum()), int((clips.sound == "").sum())
    if n_equal:
        table.notes.append(f"{n_equal} clips have an equal sound under another id")
    if n_unread:
        table.notes.append(f"the sounds of {n_unread} of {len(clips)} clips are not known")
    return table


def comparison_table(rows: Sequence[DurationRow]) -> Table:
    """How near two feature files are, one row a range of durations."""
    heading = ("seconds", "clips", "mean", "5th percentile", "lowest", "above 0.99",
               "missing here", "missing there")  # fmt: skip
    table = Table(columns(*heading), "cosine between the two vectors of a clip")
    for row in rows:
        if not row.n + row.n_missing + row.n_missing_against:
            continue
        edges = "unknown" if math.isnan(row.low) else f"{row.low:g} to {row.high:g}"
        cosines = [f"{value:.4f}" for value in (row.mean, row.percentile_5, row.minimum)]
        table.add(
            edges,
            str(row.n),
            *(cosines if row.n else ["", "", ""]),
            f"{percent(row.share_above, 1)} %" if row.n else "",
            str(row.n_missing),
            str(row.n_missing_against),
        )
    return table


def prior_audit_tables(audits: Sequence[PriorAudit], place: str) -> list[Table]:
    """For each prior, its accuracy with and without class words in the metadata.

    Args:
        audits: what `audit_priors` found.
        place: the store, for the command that makes the masked kind.
    """
    heading = ("clips whose metadata", "n", "as it is", "class words masked", "difference")
    tables = []
    for audit in audits:
        table = Table(
            columns(*heading, left=heading[:1]),
            f"{audit.feature}: accuracy of its most probable class, nothing fitted",
        )
        for group in audit.groups:
            table.add(
                group.name,
                str(group.n_clips),
                _scored(group.accuracy),
                _scored(group.masked),
                difference(vars(group.difference)) if group.difference else "",
            )
        table.add(
            "hF_strict of all",
            "",
            _scored(audit.hF_strict),
            _scored(audit.masked),
            difference(vars(audit.difference)) if audit.difference else "",
            rule=True,
        )
        if audit.owed is not None and audit.owed <= 0:
            table.notes.append("nothing of its accuracy is gone when class words are masked")
        elif audit.owed is not None:
            table.notes.append(
                f"of its accuracy, {percent(audit.owed, 1)} % is gone when class words are masked"
            )
        else:
            table.notes.append(
                "nothing to compare with: run the line that made it again with --mask-class-words "
                f"(bsdkit priors --store {place} ... --mask-class-words)"
            )
        if audit.n_missing or audit.n_masked_missing:
            table.notes.append(
                f"without it: {audit.n_missing} clips, of the masked kind {audit.n_masked_missing}"
            )
        tables.append(table)
    return tables


def _scored(interval: Interval | None) -> str:
    return f"{percent(interval.value, 1)} {shown_interval(vars(interval))}" if interval else ""
