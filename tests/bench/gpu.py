"""`make gpu`: what only a GPU shows, in five minutes, from a checkout without a network.

    python tests/bench/gpu.py --device cuda --out FOLDER

Runs the tests marked ``gpu``, extraction of every backbone that runs here (random weights of the
full size where there are no others) in float32 and in bfloat16, and the head trainer on the
device beside the CPU. Writes gpu.json and gpu.md into the folder after each part. Tests and
extraction are processes of their own with a limit, so that one that hangs costs only itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extract import cheapest_first
from measure import made_up_features, made_up_labels
from sklearn.model_selection import StratifiedKFold

from bsdkit.backbones.registry import backbone_classes
from bsdkit.device import check_device
from bsdkit.errors import BsdkitError
from bsdkit.members import Inputs, MemberPlan, Task, train_members
from bsdkit.splits import Split
from bsdkit.taxonomy import BST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LEAST_SECONDS, MOST_SECONDS = 15.0, 40.0
"""A backbone is begun only with so much time left, and stopped after so much."""

TESTS = ["tests/backbones/test_gpu.py", "tests/heads/test_heads.py"]


@dataclasses.dataclass
class Rows:
    """Lines of the extraction bench as it writes them, and why a backbone has none."""

    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def card_of(device: str) -> dict[str, str]:
    """The device, its driver and the versions."""
    facts = {
        "device": device,
        "card": "none",
        "driver": "none",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": sys.version.split()[0],
        "date": datetime.date.today().isoformat(),
    }
    if device.startswith("cuda"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        facts["card"], _, facts["driver"] = said.partition(", ")
    return facts


def run(command: list[str], limit: float) -> str:
    """Runs a part, its output shown; what it came to, in a word or two."""
    print("$", " ".join(command), flush=True)
    started = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    return f"exit code {code} after {time.perf_counter() - started:.0f} s"


def train_heads(device: str, n_clips: int, n_dims: int, epochs: int) -> float:
    """Seconds of a perceptron over 5 folds and 3 seeds, the first of two runs not counted."""
    rng = np.random.default_rng(0)
    labels = made_up_labels(n_clips, rng)
    X = made_up_features(labels, n_dims, rng)
    fold = np.zeros(n_clips, np.int64)
    for k, (_, test) in enumerate(StratifiedKFold(5).split(X, labels)):
        fold[test] = k
    settings = {"hidden": 512, "batch_size": 64, "epochs": epochs}
    plan = MemberPlan("mlp", "mlp", settings, ("clap.audio",), (0, 1, 2), 0.2)
    inputs = {plan.features: Inputs(X, (n_dims,), np.ones(n_clips, bool))}
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        task = Task(labels, BST, Split("made up", fold, 5, 0), device=device)
        result = train_members([plan], inputs, task)["mlp"]
        seconds = time.perf_counter() - started
        assert not result.faults
    return seconds


def measure_extraction(device: str, precision: str, seconds: float, *, is_tiny: bool) -> Rows:
    """What the extraction bench measures of each backbone, cheapest first, until time is up.

    Each is a process of its own: one that is slow or fails leaves the others their rows.
    """
    audio = [n for n, cls in backbone_classes().items() if "audio" in cls.outputs.values()]
    names = [name for name in cheapest_first(audio) if not name.endswith(":")]
    started, found = time.perf_counter(), Rows()
    with tempfile.TemporaryDirectory(prefix="bsdkit-gpu-") as folder:
        for name in names[:1] if is_tiny else names:
            left = seconds - (time.perf_counter() - started)
            if left < LEAST_SECONDS:
                found.skipped[name] = f"not begun within {seconds:.0f} s"
                continue
            rows = Path(folder) / f"{name}.json"
            command = [sys.executable, str(HERE / "extract.py"), "--device", device,
                       "--precision", precision, "--backbones", name, "--json", str(rows),
                       "--rounds", "1", "--clips", "2" if is_tiny else "48"]  # fmt: skip
            what = run(command + ["--seconds", "1"] * is_tiny, min(left, MOST_SECONDS))
            written = json.loads(rows.read_text()) if rows.is_file() else {}
            found.lines += written.get("lines", [])
            if not written.get("lines"):
                found.skipped[name] = written.get("skipped", {}).get(name) or what
    return found


def table_of(name: str, rows: Rows) -> list[str]:
    """A Markdown table of one extraction bench."""
    lines = [f"## Extraction, {name}", ""]
    columns = ("backbone", "clips", "model alone, clips/s", "end to end, clips/s",
               "plain loop, clips/s", "share of matrix peak")  # fmt: skip
    lines += ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in rows.lines:
        alone, whole = row["overhead"]["other_seconds"], row["overhead"]["seconds"]
        loop = row["speedup"]["other_seconds"]
        lines.append(
            f"| {row['backbone']} | {row['n_clips']} | {1 / alone:.1f} | {1 / whole:.1f} | "
            f"{1 / loop:.1f} | {100 * row['share']:.0f} % |"
        )
    lines += ["", *(f"{n}: {reason}" for n, reason in rows.skipped.items())]
    return [*lines, ""]


def main() -> None:
    """Runs all parts; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
    chosen = parser.parse_args()
    try:
        check_device(chosen.device)
    except BsdkitError as error:
        parser.error(str(error))
    chosen.out.mkdir(parents=True, exist_ok=True)
    out, device = chosen.out.resolve(), chosen.device
    facts: dict[str, Any] = {"machine": card_of(device), "parts": {}}

    def keep() -> None:
        (out / "gpu.json").write_text(json.dumps(facts, indent=2) + "\n")
        machine = facts["machine"]
        lines = [f"# {machine['card']}, driver {machine['driver']}, torch {machine['torch']}, "
                 f"{machine['date']}", ""]  # fmt: skip
        lines += [f"- {name}: {what}" for name, what in facts["parts"].items()] + [""]
        for name in ("float32", "bfloat16"):
            if name in facts:
                lines += table_of(name, Rows(**facts[name]))
        if "heads" in facts:
            lines += ["## Head trainer, 5 folds x 3 seeds", ""]
            lines += [f"- {k}: {v}" for k, v in facts["heads"].items()]
        (out / "gpu.md").write_text("\n".join(lines) + "\n")

    tests = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    facts["parts"]["tests"] = run(tests, 90)
    keep()
    for precision in ("float32", "bfloat16"):
        found = measure_extraction(device, precision, 75, is_tiny=chosen.tiny)
        facts[precision] = dataclasses.asdict(found)
        keep()
    n, dims, epochs = (600, 64, 1) if chosen.tiny else (10_956, 1024, 2)
    seconds = {side: train_heads(side, n, dims, epochs) for side in dict.fromkeys((device, "cpu"))}
    facts["heads"] = {
        "clips, dimensions, epochs": [n, dims, epochs],
        **{f"{side}, s": round(value, 2) for side, value in seconds.items()},
        "cpu over device": round(seconds["cpu"] / seconds[device], 2),
    }
    print(facts["heads"], flush=True)
    keep()
    print((out / "gpu.md").read_text())
    if not facts["parts"]["tests"].startswith("exit code 0"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
