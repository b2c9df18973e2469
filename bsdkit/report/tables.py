"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsdkit.backbones.base import Backbone
from bsdkit.backbones.diagnosis import diagnose
from bsdkit.dataset import Clips, FilterReport
from bsdkit.metrics import METRICS, Interval, Scores
from bsdkit.store.feature import FeatureInfo
from bsdkit.store.texts import Texts
from bsdkit.store.verify import DurationRow, FeatureReport

__all__ = [
    "caveats",
    "chain_title",
    "difference",
    "percent",
    "print_backbones",
    "print_comparison",
    "print_dataset",
    "print_evaluation",
    "print_fit",
    "print_store",
    "print_verification",
    "protocol_notes",
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


def _interval(score: Mapping[str, float]) -> str:
    return f"[{percent(score['low'], 1)}, {percent(score['high'], 1)}]"


def print_evaluation(
    console: Console, scores: Scores, intervals: Mapping[str, Interval], *, per_class: bool
) -> None:
    """Prints all scores with their intervals and, if wanted, one row a class."""
    table = Table(title=f"{scores.n_clips} clips, scores in percent", title_justify="left")
    table.add_column("score")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for name in METRICS:
        interval = intervals[name]
        table.add_row(
            Text.assemble(name, "  ", (_TITLES[name] if _TITLES[name] != name else "", "dim")),
            percent(interval.value),
            f"[{percent(interval.low)}, {percent(interval.high)}]",
        )
    console.print(table)
    if per_class:
        table = Table(title="classes", title_justify="left")
        for column in ("class", "clips", "predicted", "hP", "hR", "hF", "accuracy", "mistaken for"):
            table.add_column(
                column, justify="left" if column in ("class", "mistaken for") else "right"
            )
        for c in scores.per_class:
            table.add_row(
                c.label,
                str(c.n_clips),
                str(c.n_predicted),
                percent(c.hP, 1),
                percent(c.hR, 1),
                percent(c.hF, 1),
                percent(c.accuracy, 1),
                c.confused_with,
            )
        console.print(table)
    if scores.never_predicted:
        console.print(
            f"never predicted: {', '.join(scores.never_predicted)}. hF leaves such a class out of "
            "its mean, as the organisers' code does; hF_strict counts it as 0.",
            highlight=False,
        )


def print_fit(console: Console, metrics: Mapping[str, Any]) -> None:
    """Prints, for each split, the members, the ensemble and its optimism."""
    for protocol, result in metrics["protocols"].items():
        uploaders = result["n_shared_uploaders"]
        disjoint = (
            "no uploader on two sides" if not uploaders else f"{uploaders} uploaders on two sides"
        )
        headline = ", headline" if protocol == metrics["headline"] else ""
        table = Table(
            title=f"{protocol} folds ({result['n_tested']} clips, {disjoint}{headline})",
            title_justify="left",
        )
        for column in (
            "out of fold",
            "hF",
            "hF_strict",
            "95 % interval",
            "hA",
            "accuracy",
            "folds",
            "seeds",
        ):
            table.add_column(column, justify="left" if column == "out of fold" else "right")
        for name, scores in result["members"].items():
            _add_scores(table, name, scores)
        ensemble = result["ensemble"]
        table.add_section()
        _add_scores(table, "plain mean", result["plain_mean"])
        title = chain_title(ensemble)
        _add_scores(table, f"{title}, nested", ensemble["nested"], "bold")
        _add_scores(table, "  tuned on the clips it is scored on", ensemble["in_sample"], "dim")
        console.print(table)
        if len(result["steps"]) > 1:
            _print_steps(console, result)
        lines = [f"optimism of tuning: {percent(ensemble['optimism'])} points"]
        for other, c in ensemble["against"].items():
            lines.append(f"{title} against {other}: {difference(c)}, {c['verdict']}")
        if "at_target" in ensemble["nested"]:
            score = ensemble["nested"]["at_target"]
            lines.append(
                f"hF_strict with the target's class frequencies: {percent(score['value'])} "
                f"{_interval(score)}"
            )
        ece = result["reliability"]["nested"]["ece"]
        lines.append(
            f"calibration error (ECE) of its probabilities: {percent(ece['value'], 1)} "
            f"{_interval(ece)}"
        )
        lines += protocol_notes(result)
        console.print("\n".join(lines) + "\n", highlight=False)
    for line in caveats(metrics):
        console.print(line)


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
            "imported without folds, so out of fold on their word: "
            + ", ".join(result["on_their_word"])
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


def _print_steps(console: Console, result: Mapping[str, Any]) -> None:
    """Prints what each step after the members adds to the one before it."""
    aim = " at the target's class frequencies" if result["target"] else ""
    title = f"step by step{aim}, nested, each against the one before"
    table = Table(title=title, title_justify="left")
    columns = ("after", "hF_strict", "95 % interval", "added", "verdict", "changed", "in-sample",
               "optimism")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("after", "verdict") else "right")
    plain = result["plain_mean"]
    plain = plain["at_target" if result["target"] else "hF_strict"]
    table.add_row("plain mean", percent(plain["value"]), _interval(plain))
    for step in result["steps"]:
        table.add_row(
            chain_title({**result["ensemble"], "steps": [step["step"]]}),
            percent(step["nested"]["value"]),
            _interval(step["nested"]),
            difference(step["added"]),
            step["added"]["verdict"],
            str(step["n_changed"]),
            percent(step["in_sample"]) if step["learns"] else "",
            percent(step["optimism"]) if step["learns"] else "",
        )
    console.print(table)


def _add_scores(table: Table, name: str, scores: Mapping[str, Any], style: str = "") -> None:
    folds, seeds = scores["folds"]["hF_strict"], scores.get("seeds")
    table.add_row(
        name,
        percent(scores["hF"]["value"]),
        percent(scores["hF_strict"]["value"]),
        _interval(scores["hF_strict"]),
        percent(scores["hA"]["value"]),
        percent(scores["accuracy"]["value"]),
        f"{percent(folds['mean'], 1)} ± {percent(folds['standard_deviation'], 1)}",
        f"± {percent(seeds['standard_deviation'], 1)} (n={seeds['n']})"
        if seeds and seeds["n"] > 1
        else "",
        style=style,
    )


def print_dataset(console: Console, clips: Clips, report: FilterReport) -> None:
    """Prints what reading kept and dropped, and one row a class."""
    console.print("\n".join(report.lines()))
    n_audio = sum(path is not None and path.is_file() for path in clips.audio)
    n_uploaders = len(set(clips.uploader) - {""})
    console.print(f"audio files: {n_audio} of {len(clips)}; uploaders: {n_uploaders}")
    if not (clips.labels >= 0).any():
        console.print("no labels")
        return
    table = Table()
    for column in ("class", "name", "clips", "uploaders"):
        table.add_column(column, justify="right" if column in ("clips", "uploaders") else "left")
    for position, c in enumerate(clips.taxonomy.classes):
        rows = clips.labels == position
        table.add_row(
            c.label, c.name, str(int(rows.sum())), str(len(set(clips.uploader[rows]) - {""}))
        )
    console.print(table)


def print_backbones(console: Console, classes: Mapping[str, type[Backbone]]) -> None:
    """Prints the backbones with their outputs, licence, size, cost and readiness."""
    states = {diagnosis.name: diagnosis.state for diagnosis in diagnose(classes)}
    table = Table()
    table.add_column("backbone", no_wrap=True)
    for column in ("outputs", "what it is", "licence"):
        table.add_column(column)
    for column in ("M par.", "GFLOP"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for name, cls in classes.items():
        outputs = ", ".join(o or kind for o, kind in cls.outputs.items())
        shown = f"{name}MODEL" if name.endswith(":") else name
        card = cls.card
        size, cost = _size(card.parameters), _size(card.gigaflops)
        table.add_row(shown, outputs, card.summary, card.licence, size, cost, states[name])
    console.print(table)
    console.print("GFLOP: 1e9 operations for ten seconds of audio, or for a text of 77 tokens")
    console.print("bsdkit doctor says what to do about what is not ready")


def _size(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def print_store(
    console: Console, clips: Clips, infos: Sequence[FeatureInfo], texts: Sequence[Texts]
) -> None:
    """Prints the clips table's size, one row a feature and a line for each file of texts."""
    n_labelled = int((clips.labels >= 0).sum())
    console.print(
        f"{len(clips)} clips, {n_labelled} labelled, {len(set(clips.uploader) - {''})} uploaders, "
        f"taxonomy {clips.taxonomy.name}"
    )
    table = Table()
    for column in ("feature", "spec", "rows", "failed", "dim", "type", "MB", "weights"):
        table.add_column(
            column, justify="right" if column in ("rows", "failed", "dim", "MB") else "left"
        )
    for info in infos:
        table.add_row(
            info.feature,
            info.spec_hash[:12],
            str(info.n_rows),
            str(info.n_failed),
            str(info.dim),
            info.dtype,
            f"{info.path.stat().st_size / 1e6:.1f}",
            str(info.spec.get("weights", info.spec.get("origin", ""))),
        )
    console.print(table)
    for one in texts:
        console.print(f"{one.origin}: texts of {len(one.by_clip)} of {len(one.rows.ids)} clips")


def print_verification(console: Console, reports: Sequence[FeatureReport]) -> None:
    """Prints one row a feature and a line for whatever is wrong."""
    table = Table()
    for column in ("feature", "rows", "missing", "failed", "copies", "verdict"):
        table.add_column(column, justify="left" if column in ("feature", "verdict") else "right")
    for report in reports:
        n_failed = sum(report.failures.values())
        verdict = (
            "BROKEN" if report.faults else "incomplete" if report.n_missing or n_failed else "ok"
        )
        table.add_row(
            report.feature,
            str(report.n_rows),
            str(report.n_missing),
            str(n_failed),
            str(report.n_duplicates),
            verdict,
        )
    console.print(table)
    for report in reports:
        for fault in report.faults:
            console.print(f"{report.feature}: {fault}")
        for reason, n in report.failures.items():
            console.print(f"{report.feature}: {n} failed: {reason}")
        if report.first_missing:
            console.print(f"{report.feature}: missing, e.g. {', '.join(report.first_missing)}")


def print_comparison(console: Console, rows: Sequence[DurationRow]) -> None:
    """Prints how near two feature files are, one row a range of durations."""
    table = Table(title="cosine between the two vectors of a clip")
    headings = ("seconds", "clips", "mean", "5th percentile", "lowest", "above 0.99",
                "missing here", "missing there")  # fmt: skip
    for column in headings:
        table.add_column(column, justify="right")
    for row in rows:
        if not row.n + row.n_missing + row.n_missing_against:
            continue
        edges = "unknown" if math.isnan(row.low) else f"{row.low:g} to {row.high:g}"
        cosines = [f"{value:.4f}" for value in (row.mean, row.percentile_5, row.minimum)]
        table.add_row(
            edges,
            str(row.n),
            *(cosines if row.n else ["", "", ""]),
            f"{percent(row.share_above, 1)} %" if row.n else "",
            str(row.n_missing),
            str(row.n_missing_against),
        )
    console.print(table)
