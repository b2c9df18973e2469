"""From members to a submission: imported members, the whole chain, check, predict, submit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bsdkit.dataset import Clips
from bsdkit.runs.folder import load_run
from bsdkit.runs.predict import out_of_fold
from bsdkit.runs.verify import copy_for_fold
from bsdkit.store import Store
from bsdkit.store.clips import read_clips
from bsdkit.store.feature import read_feature, write_feature
from tests.conftest import ROOT, bsdkit_here

FIRST = """
name: first
store: {store}
split: group
folds: 3
members:
  near: {{head: knn, features: [aisfx, minilm]}}
  text: {{head: linear, features: minilm}}
ensemble: {{method: mean}}
"""

WHOLE = """
include: first.yaml
seeds: [0]
validation: 0
members:
  audio: {{head: mlp, features: aisfx, hidden: 16, epochs: 4}}
  foreign: {{imported: theirs.near}}
  prior: {{head: prior, features: prior.minilm}}
calibrate: temperature
ensemble: {{method: greedy, rounds: 8}}
rerank: {{rounds: 8, leaves: 7, min_rows: 10, tau: 0, cross_tau: 0.05, similarity: theirs.near}}
adjust: {{tau: tune}}
decode: expected_hF
target: balanced
"""

ABOUT = """
authors:
  - lastname: Doe
    firstname: Jo
    email: jo@example.org
    affiliation: {institute: University, abbreviation: Uni, location: "Graz, Austria"}
"""


def part_of(clips: Clips, rows: np.ndarray) -> Clips:
    """Some of a table's clips."""
    return clips.rows(rows)


def part_of_store(
    source: Path, target: Path, rows: np.ndarray, features: Sequence[str] = ("aisfx", "minilm")
) -> Path:
    """A store of some of another one's clips, with some of its features."""
    store = Store(source)
    Store.create(target, part_of(store.clips, rows))
    for feature in features:
        info = store.info(feature)
        kept = read_feature(info.path).take(rows)
        write_feature(target / info.path.name, feature, info.spec, kept, {})
    return target


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small stores of starter clips, and a run of the whole chain on the first."""
    folder = tmp_path_factory.mktemp("chain")
    every = np.arange(len(Store(ROOT / "cache/starter").clips))
    for name, rows in (("dev", every[every % 3 == 0]), ("eval", every[every % 12 == 1])):
        features = ("aisfx", "minilm", "prior.minilm")
        part_of_store(ROOT / "cache/starter", folder / name, rows, features)
    for name, text in (("first", FIRST), ("whole", WHOLE)):
        (folder / f"{name}.yaml").write_text(text.format(store=folder / "dev"))
    (folder / "about.yaml").write_text(ABOUT)
    runs = ("--runs", folder / "runs")
    for words in (
        ("fit", folder / "first.yaml", *runs),
        ("export", folder / "runs/first", "--out", folder / "near.csv.gz", "--member", "near"),
        ("import", folder / "near.csv.gz", "--store", folder / "dev", "--prefix", "theirs.",
         "--origin", "a test", "--parameters", 2),
        ("predict", folder / "runs/first", "--store", folder / "eval", "--member", "near",
         "--out", folder / "e.csv", "--probabilities", folder / "e.npz"),
        ("import", folder / "e.npz", "--store", folder / "eval", "--name", "theirs.near",
         "--origin", "a test", "--parameters", 2),
    ):  # fmt: skip
        result = bsdkit_here(*words)
        assert result.returncode == 0, (words, result.stderr)
    result = bsdkit_here("fit", folder / "whole.yaml", *runs)
    assert result.returncode == 0, result.stderr
    assert "step by step at the target's class frequencies" in result.stdout
    return folder


@pytest.fixture
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line of a started process runs in this one, for what needs no fresh one."""

    def run(command: list[str], cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "bsdkit"]
        paths = {"run", "store", "output.csv"}
        return bsdkit_here(*(cwd / word if word in paths else word for word in command[3:]))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one fold after the other


def metrics_of(place: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((place / "runs/whole/metrics.json").read_text())["protocols"]["group"]


def test_the_run_says_what_each_step_added(place: Path) -> None:
    metrics = metrics_of(place)
    steps = metrics["steps"]
    names = ["calibrate", "ensemble", "rerank", "adjust", "decode expected_hF"]
    assert [step["step"] for step in steps] == metrics["ensemble"]["steps"] == names
    nested = metrics["ensemble"]["nested"]
    assert steps[-1]["nested"] == nested["at_target"]
    before = metrics["plain_mean"]["at_target"]["value"]
    for step in steps:
        assert step["added"]["difference"] == pytest.approx(step["nested"]["value"] - before)
        assert step["optimism"] == pytest.approx(step["in_sample"] - step["nested"]["value"])
        before = step["nested"]["value"]
    assert any(step["n_changed"] for step in steps)
    # an imported member is what was exported
    assert metrics["members"]["foreign"]["hF"] == metrics["members"]["near"]["hF"]
    assert "seeds" in metrics["members"]["foreign"]
    page = (place / "runs/whole/report.html").read_text()
    assert "Step by step" in page and "all steps, nested" in page


def test_what_the_fresh_process_gets_has_no_labels(place: Path, tmp_path: Path) -> None:
    run, store = load_run(place / "runs/whole"), Store(place / "dev")
    rows = np.flatnonzero(run.out_of_fold().split.fold == 1)
    copy_for_fold(run, store, 1, rows, tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.is_symlink()]
    names = {str(path.relative_to(tmp_path)) for path in files}
    assert not [name for name in names if "oof" in name or "predictions" in name]
    for table in ("run/clips.h5", "store/clips.h5"):
        clips = read_clips(tmp_path / table)
        assert clips.ids.tolist() == run.clips.ids[rows].tolist()
        assert set(clips.labels.tolist()) == {-1} and np.isnan(clips.confidence).all()
        told = (clips.uploader, clips.title, clips.tags, clips.description, clips.licence)
        assert set(np.concatenate(told)) == {""}
    # nor has any model or step met the fold's clips: they are those of this fold alone
    copied = load_run(tmp_path / "run")
    for name in run.counting:
        if name != "foreign":
            assert {model.fold for model in copied.models(name)} == {1}
    chain = json.loads((place / "runs/whole/chain.json").read_text())
    assert copied.chain.to_dict()["steps"] == chain["folds"][1]["steps"]
    assert json.loads((tmp_path / "run/chain.json").read_text())["folds"] == []
    assert "666" not in (tmp_path / "run/metrics.json").read_text()


def test_check_equals_the_run_whatever_the_labels_of_the_store(place: Path, tmp_path: Path) -> None:
    # labels of the store are nobody's business: with others it predicts the same
    clips = Store(place / "dev").clips
    lied = tmp_path / "lied"
    shutil.copytree(place / "dev", lied)
    (lied / "clips.h5").unlink()
    Store.create(lied, replace(clips, labels=np.roll(clips.labels, 5)))
    result = bsdkit_here("check", place / "runs/whole", "--store", lied)
    assert result.returncode == 0, result.stderr
    score = metrics_of(place)["ensemble"]["nested"]["hF_strict"]["value"]
    assert "666 clips of the group folds predicted without labels" in result.stdout
    assert f"hF_strict {100 * score:.2f}" in result.stdout and "equal to" in result.stdout


@pytest.mark.usefixtures("no_fresh_process")
def test_check_notices_a_changed_store(place: Path, tmp_path: Path) -> None:
    # one clip's embedding changes behind the run's back
    changed = tmp_path / "dev"
    shutil.copytree(place / "dev", changed)
    info = Store(changed).info("minilm")
    rows = read_feature(info.path)
    rows.embedding[7] = -rows.embedding[7]
    write_feature(info.path, "minilm", info.spec, rows, {})
    result = bsdkit_here("check", place / "runs/whole", "--store", changed)
    assert result.returncode == 1
    assert "1 predictions differ" in result.stderr
    assert str(Store(changed).clips.ids[7]) in result.stderr
    result = bsdkit_here("check", place / "runs/whole", "--store", place / "eval")
    assert result.returncode == 2 and "the run was fitted on 666" in result.stderr


def test_a_frozen_run_predicts_the_same_bytes_on_another_processor(
    place: Path, tmp_path: Path
) -> None:
    """Another machine is played by switching off what this processor can do."""
    older = {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
        "OMP_NUM_THREADS": "1" if torch.get_num_threads() > 1 else "2",
    }
    here, there = tmp_path / "here.csv", tmp_path / "there.csv"
    words = ["predict", str(place / "runs/whole"), "--store", str(place / "eval"), "--out"]
    assert bsdkit_here(*words, here).returncode == 0
    command = [sys.executable, "-m", "bsdkit", *words, str(there)]
    result = subprocess.run(
        command, env={**os.environ, **older}, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr
    assert here.read_bytes() == there.read_bytes() and len(here.read_text().splitlines()) == 168


def test_a_submission_is_accepted_and_a_broken_one_is_not(place: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.csv"
    clips = Store(place / "eval").clips
    ids.write_text("anonymous_id\n" + "\n".join(clips.ids.astype(str)[::-1]) + "\n")
    common = ("--store", place / "eval", "--out", tmp_path, "--ids", ids)
    runs = (place / "runs/whole", place / "runs/first")
    label = ("--label", "Doe_Uni_task1")
    result = bsdkit_here("submit", *runs, *common, *label, "--about", place / "about.yaml")
    assert result.returncode == 0, result.stderr
    assert "passes every check" in result.stdout
    assert bsdkit_here("validate", tmp_path, "--ids", ids).returncode == 0
    system = tmp_path / "task1/Doe_Uni_task1_1"
    meta = yaml.safe_load((system / "Doe_Uni_task1_1.meta.yaml").read_text())
    counted = {m["name"]: m["parameters"] for m in meta["system"]["members"]}
    run = load_run(place / "runs/whole")
    assert set(counted) == set(run.counting) and counted["foreign"] == 2_000_000
    backbones = 4_300_000  # at least: aiSFX and MiniLM together have far more
    scores = meta["results"]["development_datasets"]["bsd10k-v1.2"]["overall"]
    assert scores["hF"] == pytest.approx(
        metrics_of(place)["ensemble"]["nested"]["hF"]["value"], abs=1e-6
    )
    described = meta["system"]["description"]
    assert "forward selection" in described["ensemble_method"]
    assert "expected credit" in described["hierarchical_setting"]
    assert described["data_augmentation"] is None
    assert "666 clips of" in result.stderr and "which has 10956" in result.stderr
    trees = sum(3 * int(n) - 2 for n in re.findall(r"num_leaves=(\d+)", run.chain.steps[2].model))  # type: ignore[attr-defined]
    total = meta["system"]["complexity"]["total_parameters"]
    assert trees > 100 and total > sum(counted.values()) + trees + backbones
    # without authors it is written, and not ready
    result = bsdkit_here("submit", *runs, *common, *label)
    assert result.returncode == 2 and "TO FILL" in result.stderr
    output = tmp_path / "task1/Doe_Uni_task1_1/Doe_Uni_task1_1.output.csv"
    lines = output.read_text().splitlines()
    assert lines[0] == "id,predicted_bst_second_level_class,prediction_score"
    assert [line.split(",")[0] for line in lines[1:]] == clips.ids.astype(str)[::-1].tolist()
    output.write_text("\n".join(lines[:-1]) + "\n")
    result = bsdkit_here("validate", tmp_path, "--ids", ids)
    assert result.returncode == 2 and str(clips.ids[0]) in result.stderr
    assert "1 to 4 systems" in bsdkit_here("submit", *[runs[0]] * 5, *common, *label).stderr
    ids.write_text("anonymous_id\n1\n")
    assert "lacks 1 of them (1)" in bsdkit_here("submit", runs[0], *common, *label).stderr


def test_what_cannot_be_embedded_gets_the_fallback_by_name(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "eval"
    shutil.copytree(place / "eval", store)
    for feature in ("aisfx", "minilm", "prior.minilm", "theirs.near"):
        info = Store(store).info(feature)
        rows = read_feature(info.path)
        rows.state[3] = 1
        rows.reasons[3] = "gone"
        if feature == "minilm":  # of this one the others still know
            rows.state[5], rows.reasons[5] = 1, "no text"
        write_feature(info.path, feature, info.spec, rows, {})
    clip, partly = Store(store).clips.ids[[3, 5]]
    out = tmp_path / "out.csv"
    result = bsdkit_here("predict", place / "runs/whole", "--store", store, "--out", out)
    assert result.returncode == 1
    assert f"fallback to the class shares, no embedding: {clip}" in result.stderr
    assert f"without some member, an embedding is missing: {partly}" in result.stderr
    run = load_run(place / "runs/whole")
    row = next(line for line in out.read_text().splitlines() if line.startswith(f"{clip},"))
    assert row.endswith(f"{run.prior[np.argmax(run.prior)]:.6f}") or "expected" in run.recipe.decode


def test_probabilities_that_cheat_are_refused_or_named(place: Path, tmp_path: Path) -> None:
    """As inputs of a head and as similarity they are looked at as closely as members are."""
    store = tmp_path / "dev"
    shutil.copytree(place / "dev", store)
    runs = ("--runs", tmp_path)
    assert bsdkit_here("export", place / "runs/first", "--out", tmp_path / "o.npz").returncode == 0
    whole = np.load(tmp_path / "o.npz")
    for name, fold in (("seen", np.full(666, -1)), ("silent", None), ("other", np.arange(666) % 3)):
        arrays = {key: whole[key] for key in ("ids", "probabilities", "classes")}
        np.savez(tmp_path / f"{name}.npz", **arrays, **({} if fold is None else {"fold": fold}))
        words = ("import", tmp_path / f"{name}.npz", "--store", store)
        assert bsdkit_here(*words).returncode == 0
    text = (place / "first.yaml").read_text().replace(str(place / "dev"), str(store))
    head = text.replace("features: minilm", "features: FEATURE")
    similarity = (
        text + "rerank: {rounds: 2, min_rows: 5, tau: 1, cross_tau: 1, similarity: FEATURE}\n"
    )
    for recipe in (head, similarity):
        for feature, message in (("other", "made on other folds than"), ("seen", "has fold -1")):
            (tmp_path / "r.yaml").write_text(recipe.replace("FEATURE", feature))
            result = bsdkit_here("fit", tmp_path / "r.yaml", *runs)
            assert result.returncode == 2 and message in result.stderr, result.stderr
    (tmp_path / "r.yaml").write_text(similarity.replace("FEATURE", "silent"))
    result = bsdkit_here("fit", tmp_path / "r.yaml", *runs)
    assert result.returncode == 0, result.stderr
    assert "unverified out-of-fold: silent" in result.stdout
    result = bsdkit_here("import", tmp_path / "other.npz", "--store", store, "--name", "aisfx")
    assert result.returncode == 2 and "has a feature 'aisfx' of aisfx" in result.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("imported: theirs.near", "imported: theirs.nere"), "no feature 'theirs.nere': did you"),
        (("imported: theirs.near", "imported: aisfx"), "aisfx holds embeddings, not class"),
        (("target: balanced", "target: {fx-o: 1, fx-q: 2}"), "target names 'fx-q'"),
        (("method: greedy", "caps: {'x*': 0.5}, method: greedy"), "'x\\*', which no member"),
        (("method: greedy, rounds: 8", "method: frozen, weights: {tekst: 1}"), "name 'tekst'"),
        (("method: greedy, rounds: 8", "method: frozen, file: nothing.json"), "nothing.json: No"),
        (("similarity: theirs.near", "similarity: minilm"), "minilm has 384 columns"),
        (("method: greedy, rounds: 8", "method: frozen, file: {runs}/first/ensemble.json"),
         "fitted on 666 of these clips"),
        (("rerank: {", "rerank:\nadjst: {"), "rerank has nothing after it|unknown key 'adjst'"),
        (("include: first.yaml", "include: whole2.yaml"), "includes .*whole2.yaml, which"),
    ],
)  # fmt: skip
def test_a_chain_that_cannot_run_says_why(
    place: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    shutil.copy(place / "first.yaml", tmp_path)
    path = tmp_path / "whole2.yaml"
    text = (place / "whole.yaml").read_text().replace(*change)
    path.write_text(text.replace("{runs}", str(place / "runs")))
    result = bsdkit_here("fit", path, "--runs", place / "runs")
    assert result.returncode == 2 and re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()[-1]) < 400


def test_folds_of_imported_probabilities_must_not_cross(place: Path, tmp_path: Path) -> None:
    shutil.copy(place / "first.yaml", tmp_path)
    path = tmp_path / "whole.yaml"
    text = (place / "whole.yaml").read_text()
    path.write_text(text + "split: stratified\n")
    result = bsdkit_here("fit", path, "--runs", place / "runs")
    assert result.returncode == 2
    assert "theirs.near was made on other folds than the stratified ones" in result.stderr


def test_ablations_judge_the_steps_of_a_single_member_too(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    text = (place / "first.yaml").read_text()
    path.write_text(text.replace("name: first", "name: one") + "target: {fx-o: 2, m-si: 1}\n")
    alone = ("--vary", "ensemble.members=[near]", "--vary", "calibrate=none,isotonic")
    result = bsdkit_here("ablate", path, *alone, "--runs", place / "runs", "--markdown")
    assert result.returncode == 0, result.stderr
    rows = {line.split("|")[1].strip(): line.split("|") for line in result.stdout.splitlines()}
    plain = next(row for name, row in rows.items() if "calibrate=none" in name)
    calibrated = next(row for name, row in rows.items() if "calibrate=isotonic" in name)
    assert plain[2] != calibrated[2], result.stdout
    other = tmp_path / "other.yaml"
    other.write_text(text.replace("name: first", "name: other"))
    result = bsdkit_here("ablate", path, other, "--runs", place / "runs")
    assert result.returncode == 2 and "has target: None" in result.stderr


@pytest.mark.usefixtures("no_fresh_process")
def test_out_of_fold_leaves_out_what_the_chain_could_not_see(place: Path, tmp_path: Path) -> None:
    store = tmp_path / "dev"
    shutil.copytree(place / "dev", store)
    info = Store(store).info("minilm")
    rows = read_feature(info.path)
    rows.state[[2, 9]], rows.reasons[2] = 1, "gone"
    write_feature(info.path, "minilm", info.spec, rows, {})
    path = tmp_path / "partial.yaml"
    path.write_text(
        f"store: {store}\nsplit: group\nfolds: 3\nmissing: skip\nmembers:\n"
        "  text: {head: linear, features: minilm, logit_adjustment: 0.5}\n"
        "  near: {head: knn, features: aisfx}\nensemble: {method: frozen, weights: {text: 1}}\n"
    )
    result = bsdkit_here("fit", path, "--runs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the weights are given" in result.stdout
    run = load_run(tmp_path / "partial")
    lacking = np.flatnonzero(np.isnan(out_of_fold(run)[:, 0]))
    assert lacking.tolist() == [2, 9]
    assert bsdkit_here("check", tmp_path / "partial").returncode == 0
