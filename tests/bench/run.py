"""The numbers to hold, as ratios measured in one run: `make bench`.

    .venv/bin/python tests/bench/run.py [--rows 1,3] [--json FILE]

A row that misses its target is shown as it is. Nothing is asserted of a time; what is asserted,
before anything is timed, is that both sides of a row compute the same.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

# As the command line does, and before torch is imported: idle threads sleep. It serves both
# sides of a row alike.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from measure import Row, Sizes, machine
from reading import reading_rows
from rich.console import Console
from rich.table import Table
from scoring import score_rows
from training import training_rows
from weights import weight_rows

ROWS: dict[int, Callable[[Sizes], list[Row]]] = {
    1: score_rows,
    2: training_rows,
    3: reading_rows,
    4: weight_rows,
}
"""What measures each row of the table in the design; a row may have several lines."""


def row_numbers(text: str) -> list[int]:
    """The rows that `--rows` names, e.g. ``1,3``."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if any(number not in ROWS for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected numbers of {', '.join(map(str, ROWS))} with commas between"
        )
    return numbers


def in_words(ratio: float) -> str:
    """A ratio as the table shows it: ``9.3x``, ``1.08x``, ``12,000x``."""
    if ratio >= 100:
        return f"{float(f'{ratio:.3g}'):,.0f}x"
    return f"{ratio:.1f}x" if ratio >= 10 else f"{ratio:.2f}x"


def time_in_words(seconds: float) -> str:
    """A time with three digits and its unit."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def make_table(measured: dict[int, list[Row]]) -> Table:
    """The table of all lines, in the order of the rows."""
    table = Table(show_lines=True)
    table.add_column("row", justify="right")
    table.add_column("what", ratio=3)
    for heading in ("bsdkit", "other", "target", "measured"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("how", ratio=4)
    for number, rows in measured.items():
        for row in rows:
            bound = "at least" if row.is_speedup else "at most"
            verdict = {None: "", True: "\n[green]met[/]", False: "\n[yellow]missed[/]"}[row.is_met]
            low, high = map(in_words, row.spread)
            table.add_row(
                str(number),
                row.what,
                time_in_words(row.seconds),
                time_in_words(row.other_seconds),
                f"{bound}\n{row.target:g}x" if row.target else "",
                f"[bold]{in_words(row.ratio)}[/]\n{low} to {high}{verdict}",
                row.details,
            )
    return table


def main(arguments: Sequence[str] | None = None, sizes: Sizes | None = None) -> None:
    """Measures the rows asked for, prints the table, and writes the figures where wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=row_numbers, default=list(ROWS), help="e.g. 1,3")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(arguments)

    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log has no width; the default of 80 breaks every line
    facts = machine()
    console.print(
        "{cpu}, {cores} cores, {torch_threads} torch threads, load {load_average}, {system}; "
        "bsdkit {bsdkit}, Python {python}, torch {torch}, numpy {numpy}, h5py {h5py}, "
        "scikit-learn {scikit-learn}".format(**facts),
        highlight=False,
    )
    start = time.perf_counter()
    measured = {}
    for number in chosen.rows:
        with console.status(f"measuring row {number}"):
            gc.collect()  # once a row: before each call it would empty the processor's caches
            measured[number] = ROWS[number](sizes or Sizes())
    seconds = time.perf_counter() - start
    console.print(make_table(measured))
    console.print(
        "Ratios are medians over the rounds, in which the sides alternate; beside them the lowest "
        f"and the highest round. {seconds:.0f} s in all, load at the end {os.getloadavg()[0]:.2f}.",
        highlight=False,
    )
    if chosen.json:
        rows = [
            {"row": number, **asdict(row), "is_met": row.is_met}
            for number, rows in measured.items()
            for row in rows
        ]
        content = {"machine": facts, "seconds": seconds, "rows": rows}
        chosen.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
