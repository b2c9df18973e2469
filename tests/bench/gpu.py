"""`make gpu`: what only a GPU shows, in five minutes, from a checkout without a network.

    python tests/bench/gpu.py --device cuda --out FOLDER

Runs the tests marked ``gpu``, extraction of every backbone that runs here (random weights of the
full size where there are no others) in float32 and in bfloat16, and the head trainer on the
device beside the CPU. Writes gpu.json and gpu.md into the folder after each part. Tests and
extraction are processes of their own with a limit, so that one that hangs costs only itself.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import made_up_features, made_up_labels
from sklearn.model_selection import StratifiedKFold

from bsdkit.members import Inputs, MemberPlan, Task, train_members
from bsdkit.splits import Split
from bsdkit.taxonomy import BST

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ["tests/backbones/test_gpu.py", "tests/heads/test_heads.py"]


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


def read_rows(path: Path) -> dict[str, Any]:
    """What the extraction bench wrote, as far as it came."""
    return json.loads(path.read_text()) if path.is_file() else {"lines": [], "skipped": {}}


def table_of(name: str, rows: dict[str, Any]) -> list[str]:
    """A Markdown table of one extraction bench."""
    lines = [f"## Extraction, {name}", ""]
    columns = ("backbone", "clips", "model alone, clips/s", "end to end, clips/s",
               "plain loop, clips/s", "share of matrix peak")  # fmt: skip
    lines += ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row in rows["lines"]:
        alone, whole = row["overhead"]["other_seconds"], row["overhead"]["seconds"]
        loop = row["speedup"]["other_seconds"]
        lines.append(
            f"| {row['backbone']} | {row['n_clips']} | {1 / alone:.1f} | {1 / whole:.1f} | "
            f"{1 / loop:.1f} | {100 * row['share']:.0f} % |"
        )
    lines += ["", *(f"{n}: {reason}" for n, reason in rows.get("skipped", {}).items())]
    return [*lines, ""]


def main() -> None:
    """Runs all parts; the exit code is that of the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("."))
    parser.add_argument("--tiny", action="store_true", help="sizes that show only that it runs")
    chosen = parser.parse_args()
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
                lines += table_of(name, facts[name])
        if "heads" in facts:
            lines += ["## Head trainer, 5 folds x 3 seeds", ""]
            lines += [f"- {k}: {v}" for k, v in facts["heads"].items()]
        (out / "gpu.md").write_text("\n".join(lines) + "\n")

    python = sys.executable
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    facts["parts"]["tests"] = run(tests, 120)
    keep()
    for precision, budget in (("float32", 75.0), ("bfloat16", 45.0)):
        rows = out / f"extract-{precision}.json"
        command = [python, str(HERE / "extract.py"), "--device", device, "--precision", precision,
                   "--json", str(rows), "--budget", str(budget), "--rounds", "1",
                   "--clips", "2" if chosen.tiny else "192"]  # fmt: skip
        if chosen.tiny:
            command += ["--backbones", "efficientat", "--seconds", "1"]
        facts["parts"][f"extraction in {precision}"] = run(command, budget + 45)
        facts[precision] = read_rows(rows)
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
