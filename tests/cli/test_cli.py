"""The command line as a user runs it, in a process of its own where that can matter."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsdkit.backbones.registry import get_backbone
from bsdkit.runs.folder import load_run
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from tests.conftest import ROOT, bsdkit, bsdkit_here, heed_interrupts
from tests.runs.test_whole_chain import part_of_store

QUICK_RECIPE = """
name: quick
store: {store}
split: [{split}]
folds: {folds}
seeds: [0, 1]
validation: 0
members:
  audio: {{head: mlp, features: aisfx, hidden: 32, epochs: 4}}
  text: {{head: linear, features: minilm}}
ensemble: {{method: weights, trials: 8}}
"""


def one_line(result: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one line that a mistake prints, with nothing on standard output."""
    assert result.returncode == code, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def recipe(
    folder: Path, store: Path | str = ROOT / "cache/starter", split: str = "group", folds: int = 5
) -> Path:
    path = folder / "quick.yaml"
    path.write_text(QUICK_RECIPE.format(store=store, split=split, folds=folds))
    return path


@pytest.fixture(scope="module")
def extracted(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real sounds embedded by the default backbones, by the command."""
    for name in ("aisfx", "minilm"):
        if reason := get_backbone(name).missing():
            pytest.skip(reason)
    store = tmp_path_factory.mktemp("store") / "small"
    result = bsdkit_here("extract", "--data", sounds, "--store", store)
    assert result.returncode == 0, result.stderr
    assert "aisfx:" in result.stderr and "0 failed" in result.stderr
    return store


@pytest.fixture(scope="module")
def starter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's recipe on the committed store."""
    runs = tmp_path_factory.mktemp("runs")
    result = bsdkit("fit", "recipes/starter.yaml", "--runs", runs)
    assert result.returncode == 0, result.stderr
    assert "optimism of tuning" in result.stdout and "headline" in result.stdout
    return runs / "starter"


@pytest.fixture(scope="module")
def quick_run(extracted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small recipe on some of the starter's clips, the extracted ones among them."""
    folder = tmp_path_factory.mktemp("quick")
    starter = Store(ROOT / "cache/starter").clips.ids
    rows = np.isin(starter, Store(extracted).clips.ids) | (np.arange(len(starter)) % 3 == 0)
    store = part_of_store(ROOT / "cache/starter", folder / "store", np.flatnonzero(rows))
    result = bsdkit_here("fit", recipe(folder, store, folds=3), "--runs", folder / "runs")
    assert result.returncode == 0, result.stderr
    assert "2 members trained in" in result.stdout
    assert "optimism of tuning" in result.stdout and "headline" in result.stdout
    return folder / "runs/quick"


def test_help_and_version() -> None:
    assert "extract" in bsdkit("--help").stdout
    assert bsdkit_here("--version").stdout.startswith("bsdkit ")
    assert bsdkit_here("extract", "--help").returncode == 0


RESULTS = ("metrics.json", "predictions.csv", "ensemble.json", "recipe.yaml")


@pytest.mark.slow
def test_the_starter_fits_to_the_same_bits_twice(starter_run: Path, tmp_path: Path) -> None:
    result = bsdkit("fit", "recipes/starter.yaml", "--runs", tmp_path)
    assert result.returncode == 0, result.stderr
    for name in RESULTS:
        assert (tmp_path / "starter" / name).read_bytes() == (starter_run / name).read_bytes()


@pytest.mark.slow
def test_the_starters_scores_are_what_they_should_be(starter_run: Path) -> None:
    metrics = json.loads((starter_run / "metrics.json").read_text())
    assert metrics["headline"] == "group"
    group, stratified = (metrics["protocols"][name] for name in ("group", "stratified"))
    assert group["leakage"]["claims"] == ["no uploader on two sides"]
    assert stratified["leakage"]["groups"][0]["n_shared"] > 100

    def score(of: dict) -> float:  # type: ignore[type-arg]
        return float(of["hF_strict"]["value"])

    members = group["members"]
    # far above what a plain logistic regression reaches on other features (0.56 and 0.63)
    assert score(members["audio"]) > 0.56 and score(members["fused"]) > 0.70
    assert score(members["fused"]) > score(members["text"]) > score(members["audio"])
    assert score(group["ensemble"]["in_sample"]) >= score(group["ensemble"]["nested"])
    assert score(stratified["ensemble"]["nested"]) > score(group["ensemble"]["nested"]) + 0.05


def test_the_run_is_scored_by_evaluate_as_by_fit(quick_run: Path, tmp_path: Path) -> None:
    predictions = quick_run / "predictions.csv"
    result = bsdkit_here("evaluate", predictions, "--json")
    scores = json.loads(result.stdout)
    nested = json.loads((quick_run / "metrics.json").read_text())["protocols"]["group"]["ensemble"][
        "nested"
    ]
    keys = ["hF", "hF_strict", "hP", "hR", "hA", "accuracy", "top_accuracy", "macro_accuracy"]
    for key in [*keys, "macro_top_accuracy"]:
        assert scores[key] == pytest.approx(nested[key]["value"], abs=1e-12)
    assert scores["n_clips"] == len(load_run(quick_run).clips) and set(scores) >= {
        "per_class",
        "never_predicted",
    }
    shown = bsdkit_here("evaluate", predictions)
    assert f"{100 * scores['hF']:.2f}" in shown.stdout and "95 % interval" in shown.stdout
    with predictions.open(newline="") as file:
        rows = list(csv.DictReader(file))
    bare, labels = tmp_path / "bare.csv", tmp_path / "labels.csv"
    with bare.open("w", newline="") as b, labels.open("w", newline="") as t:
        b.write("sound_id,prediction,prediction_score\n")
        t.write("sound_id,class\n")
        for row in rows:
            b.write(f"{row['sound_id']},{row['prediction']},0.5\n")
            t.write(f"{row['sound_id']},{row['ground_truth']}\n")
    assert json.loads(bsdkit_here("evaluate", bare, "--labels", labels, "--json").stdout) == scores
    assert "--labels" in one_line(bsdkit_here("evaluate", bare))
    assert "cannot read" in one_line(bsdkit_here("evaluate", tmp_path / "no.csv"))


def test_the_report_is_one_page(quick_run: Path) -> None:
    page = (quick_run / "report.html").read_text()
    assert page.count("<h2>") >= 6 and "optimism" in page and "sp-c" in page
    assert "http://" not in page and "https://" not in page and "<script src" not in page


def test_trained_members_are_reused_and_trained_again_are_the_same(
    quick_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(quick_run.parent, tmp_path / "runs")
    path = Path(shutil.copy(quick_run.parents[1] / "quick.yaml", tmp_path))
    path.write_text(path.read_text().replace("method: weights, trials: 8", "method: mean"))
    second = bsdkit_here("fit", path, "--runs", tmp_path / "runs")
    assert "0 members trained, 2 reused" in second.stdout
    assert "ensemble (mean)" in second.stdout
    before = {name: (tmp_path / "runs/quick" / name).read_bytes() for name in RESULTS}
    fresh = bsdkit("fit", path, "--runs", tmp_path / "runs", "--fresh")
    assert "2 members trained in" in fresh.stdout
    # trained again in another process: the same bits
    assert before == {name: (tmp_path / "runs/quick" / name).read_bytes() for name in RESULTS}


def test_predicting_sounds_that_nobody_labelled(
    quick_run: Path,
    sounds: Path,
    extracted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "output.csv"
    result = bsdkit_here("predict", quick_run, "--store", extracted, "--out", out)
    assert result.returncode == 0, result.stderr
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sound_id"] for row in rows] == Store(extracted).clips.ids.tolist()
    assert list(rows[0]) == ["sound_id", "ground_truth", "prediction", "prediction_score"]
    # the run was trained on these very sounds, so it must know most of them
    assert np.mean([row["ground_truth"] == row["prediction"] for row in rows]) > 0.8

    # the same from the sounds themselves, without labels, one of them broken
    data = tmp_path / "eval"
    shutil.copytree(sounds / "audio", data / "audio")
    (data / "metadata").mkdir()
    with next((sounds / "metadata").glob("*_metadata.csv")).open(newline="") as file:
        metadata = list(csv.DictReader(file))
    with (data / "metadata/eval_metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["anonymous_id", "title", "tags", "description"])
        writer.writerows(
            [row["sound_id"], row["title"], row["tags"], row["description"]] for row in metadata
        )
    broken = metadata[3]["sound_id"]
    (data / f"audio/{broken}.wav").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    result = bsdkit_here("predict", quick_run, "--data", data, "--out", tmp_path / "eval.csv")
    assert result.returncode == 1 and broken in result.stderr, result.stderr
    with (tmp_path / "eval.csv").open(newline="") as file:
        unlabelled = {row["sound_id"]: row for row in csv.DictReader(file)}
    assert list(unlabelled[broken]) == ["sound_id", "prediction", "prediction_score"]
    for row in rows:
        if row["sound_id"] != broken:
            assert unlabelled[row["sound_id"]]["prediction"] == row["prediction"]
    assert "give --store DIR" in one_line(bsdkit_here("predict", quick_run))


def test_store_commands(extracted: Path, tmp_path: Path) -> None:
    listed = bsdkit_here("store", "ls", extracted).stdout
    assert "aisfx" in listed and "minilm" in listed and "384" in listed
    verified = bsdkit_here("store", "verify", extracted)
    assert verified.returncode == 0 and verified.stdout.count("ok") == 2
    copy = tmp_path / "copy"
    shutil.copytree(extracted, copy)
    (damaged,) = copy.glob("aisfx-*.h5")
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    result = bsdkit_here("store", "verify", copy)
    assert result.returncode == 2 and "checksum" in result.stdout
    assert "no store at" in one_line(bsdkit_here("store", "ls", tmp_path / "nothing"))
    folder = tmp_path / "npy"
    folder.mkdir()
    for clip in Store(extracted).clips.ids:
        np.save(folder / f"{clip}.npy", np.random.default_rng(int(clip)).random(4, np.float32))
    arguments = ["--store", copy, "--feature", "clap-fusion.audio", "--origin", "the organisers"]
    assert bsdkit_here("store", "import", folder, *arguments).returncode == 0
    assert Store(copy).features(["clap-fusion.audio"]).is_missing.sum() == 0


def test_two_machines_and_a_merge(extracted: Path, sounds: Path, tmp_path: Path) -> None:
    options = ["--backbone", "minilm", "--data", sounds, "--shard-clips", 20]
    stores = [tmp_path / "one", tmp_path / "two"]
    for i, store in enumerate(stores, start=1):
        done = bsdkit_here("extract", *options, "--store", store, "--shard", f"{i}/2")
        assert done.returncode == 0, done.stderr
        assert "left to other shards" in done.stderr
    assert "clips are in no shard" in one_line(bsdkit_here("store", "merge", stores[0]))
    merged = bsdkit_here("store", "merge", tmp_path / "whole", *stores)
    assert merged.returncode == 0 and "clips, each once" in merged.stdout, merged.stderr
    compare = bsdkit_here(
        "store", "verify", tmp_path / "whole", "--against", extracted, "--feature", "minilm"
    )
    assert compare.returncode == 0 and "100.0 %" in compare.stdout, compare.stderr
    (ours,) = (tmp_path / "whole").glob("minilm-*.h5")
    (theirs,) = extracted.glob("minilm-*.h5")
    assert ours.name == theirs.name
    assert read_feature(ours).ids.tolist() == read_feature(theirs).ids.tolist()


def test_backbones_and_doctor_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    listed = bsdkit_here("backbones")
    assert listed.returncode == 0
    for name in ("beats", "clap-fusion", "m2d", "qwen2.5-omni", "NTT"):
        assert name in listed.stdout
    said = bsdkit_here("doctor")
    assert said.returncode == 0
    assert "missing weights" in said.stdout and "beats_iter3plus_as2m.pt" in said.stdout
    assert "899a8c62" in said.stdout or "mn04_as_mAP_432.pt" in said.stdout
    wrong = bsdkit_here("extract", "--backbone", "passt.nothing", "--data", ROOT)
    assert "passt has no output 'nothing'" in one_line(wrong)


def test_a_recipe_that_cannot_run_says_why(extracted: Path, tmp_path: Path) -> None:
    runs = ("--runs", tmp_path / "runs")
    path = recipe(tmp_path, extracted)
    # the small set has classes with fewer clips than folds
    assert "fewer clips than the 5 folds in class" in one_line(
        bsdkit_here("fit", recipe(tmp_path, extracted, "stratified"), *runs)
    )
    text = path.read_text()
    path.write_text(text.replace("features: aisfx", "features: aisfxx"))
    assert "no feature 'aisfxx': did you mean 'aisfx'" in one_line(bsdkit_here("fit", path, *runs))
    path.write_text(text + "expect: {aisfx: {window_seconds: 10.0}}\n")
    line = one_line(bsdkit_here("fit", path, *runs))
    assert "window_seconds = 2.32" in line and "expected 10.0" in line and "bsdkit extract" in line
    path.write_text(text.replace("store:", "stroe:"))
    assert "did you mean 'store'" in one_line(bsdkit_here("fit", path, *runs))
    path.write_text(text.replace(str(extracted), "cache/nothing"))
    assert "no store at cache/nothing" in one_line(bsdkit_here("fit", path, *runs))
    assert not (tmp_path / "runs" / "quick").exists()
    assert "is not a whole run: it has no recipe.yaml" in one_line(
        bsdkit_here("predict", tmp_path, "--store", extracted)
    )


def test_missing_rows_are_refused_or_skipped(sounds: Path, tmp_path: Path) -> None:
    if reason := get_backbone("aisfx").missing() or get_backbone("minilm").missing():
        pytest.skip(reason)
    data = tmp_path / "data"
    shutil.copytree(sounds, data)
    broken = sorted((data / "audio").glob("*.wav"))[5]
    broken.unlink()
    store = tmp_path / "store"
    result = bsdkit_here("extract", "--data", data, "--store", store)
    assert result.returncode == 1 and "failed, missing file: 1" in result.stderr
    path = recipe(tmp_path, store, "stratified", folds=2)
    counts = np.bincount(Store(store).clips.labels)
    if counts[counts > 0].min() < 2:
        path.write_text(
            path.read_text().replace("stratified", "file")
            + f"split_file: {folds_file(store, tmp_path)}\n"
        )
    line = one_line(bsdkit_here("fit", path, "--runs", tmp_path / "runs"))
    assert (
        f"1 of {len(Store(store).clips)} clips have no aisfx embedding" in line
        and broken.stem in line
    )
    path.write_text(path.read_text() + "missing: skip\n")
    result = bsdkit_here("fit", path, "--runs", tmp_path / "runs")
    assert result.returncode == 0, result.stderr
    facts = json.loads((tmp_path / "runs/quick/run.json").read_text())
    assert facts["features"]["aisfx"]["n_missing"] == 1


def test_what_cannot_run_is_refused_before_training(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    text = path.read_text()
    runs = tmp_path / "runs"
    assert "device 'bogus' cannot be used" in one_line(
        bsdkit_here("fit", path, "--runs", runs, "--device", "bogus")
    )
    (tmp_path / "a file").write_text("")
    assert "a file" in one_line(bsdkit_here("fit", path, "--runs", tmp_path / "a file"))
    path.write_text(text.replace("epochs: 4", "epochs: -1"))
    assert "epochs is -1, expected 1 or more" in one_line(bsdkit_here("fit", path, "--runs", runs))
    path.write_text(text.replace("epochs: 4", "epochs: 4, dropout: 3"))
    line = one_line(bsdkit_here("fit", path, "--runs", runs))
    assert "members.audio: dropout is 3, expected 0 to below 1" in line
    # one tested fold leaves no other to learn the weights on
    ids = Store(ROOT / "cache/starter").clips.ids
    rows = "".join(f"{clip},{-1 if i % 5 else 0}\n" for i, clip in enumerate(ids))
    (tmp_path / "one.csv").write_text("sound_id,fold\n" + rows)
    one = text.replace("[group]", "[file]") + f"split_file: {tmp_path / 'one.csv'}\n"
    path.write_text(one)
    assert "ensemble: {method: mean}" in one_line(bsdkit_here("fit", path, "--runs", runs))
    path.write_text(one.replace("method: weights, trials: 8", "method: mean"))
    assert bsdkit_here("fit", path, "--runs", runs).returncode == 0


def test_labels_of_a_store_are_not_lost(extracted: Path, sounds: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(extracted, store)
    before = (store / "clips.h5").read_bytes()
    flat = tmp_path / "unlabelled.csv"
    rows = [f"{clip},{sounds}/audio/{clip}.wav" for clip in Store(store).clips.ids]
    flat.write_text("\n".join(["sound_id,path", *rows]))
    line = one_line(bsdkit_here("extract", "--data", flat, "--store", store, "--backbone", "aisfx"))
    assert "they would be lost" in line
    assert (store / "clips.h5").read_bytes() == before


def folds_file(store: Path, folder: Path) -> Path:
    path = folder / "folds.csv"
    ids = Store(store).clips.ids
    path.write_text("sound_id,fold\n" + "".join(f"{clip},{i % 2}\n" for i, clip in enumerate(ids)))
    return path


def test_bad_datasets_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    header = "sound_id,class,class_idx,title,tags,description\n"
    cases = {
        "1,fx-q,405,a,b,c\n": "line 2: 'fx-q' is not a class",
        "1,fx-a,405,a,b,c\n1,fx-a,405,a,b,c\n": "line 3: id '1' stands already on line 2",
        '1,fx-a,405,"a,b,c\n': "line 2: broken quoting",
        "1,fx-a,405,a,b\n": "line 2: 5 fields, the header has 6",
        "1,fx-a,403,a,b,c\n": "class 'fx-a' with class_idx 403; its code is 405",
    }
    for i, (rows, message) in enumerate(cases.items()):
        data = tmp_path / f"data{i}"
        (data / "metadata").mkdir(parents=True)
        (data / "audio").mkdir()
        (data / "metadata/x_metadata.csv").write_text(header + rows)
        line = one_line(bsdkit_here("extract", "--data", data, "--store", tmp_path / "store"))
        assert message in line
        assert message in one_line(bsdkit_here("dataset", data))
    assert not (tmp_path / "store").exists()
    assert "no dataset at" in one_line(bsdkit_here("extract", "--data", tmp_path / "none"))
    line = one_line(bsdkit_here("extract", "--backbone", "aisfy", "--data", tmp_path))
    assert "did you mean 'aisfx'" in line


def test_sounds_without_metadata_and_labels_of_ones_own(tmp_path: Path) -> None:
    if reason := get_backbone("aisfx").missing():
        pytest.skip(reason)
    rng = np.random.default_rng(0)
    for label in ("door", "window"):
        for i in range(4):
            (tmp_path / "mine" / label).mkdir(parents=True, exist_ok=True)
            samples = 0.1 * rng.standard_normal(22_050)
            soundfile.write(tmp_path / f"mine/{label}/{i}.flac", samples, 22_050)
    assert "--taxonomy flat" in one_line(
        bsdkit_here("extract", "--data", tmp_path / "mine", "--backbone", "aisfx")
    )
    result = bsdkit_here(
        "extract", "--data", tmp_path / "mine", "--backbone", "aisfx", "--taxonomy", "flat",
        "--store", tmp_path / "store", "--dtype", "float32",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    clips = Store(tmp_path / "store").clips
    assert clips.taxonomy.labels == ("door", "window") and clips.ids[0] == "door/0.flac"


# The command line, which stands still once a shard is written until the test closes its input.
HELD = """
import sys
from pathlib import Path
from bsdkit.cli import main
from bsdkit.cli.progress import ConsoleProgress
stage, store = ConsoleProgress.stage, Path(sys.argv[-1])
def held(self, *arguments):
    stage(self, *arguments)
    if list(store.glob(".parts/*/part-*.h5")) and not sys.stdin.closed:
        print("holding", flush=True)
        sys.stdin.readline()
ConsoleProgress.stage = held
main()
"""


def test_ctrl_c_resumes(sounds: Path, tmp_path: Path) -> None:
    if reason := get_backbone("aisfx").missing():
        pytest.skip(reason)
    arguments = ["extract", "--backbone", "aisfx", "--data", sounds, "--shard-clips", "4"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *map(str, arguments), "--store", str(tmp_path / "s")],
        cwd=ROOT,
        preexec_fn=heed_interrupts,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    process.send_signal(signal.SIGINT)
    process.stdin.close()
    process.stdin = None
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same line again" in stderr
    assert "Traceback" not in stderr
    kept = len(list((tmp_path / "s").glob(".parts/*/part-*.h5")))
    assert kept >= 1
    result = bsdkit_here(*arguments, "--store", tmp_path / "s")
    assert result.returncode == 0, result.stderr
    (path,) = (tmp_path / "s").glob("aisfx-*.h5")
    assert len(read_feature(path)) == len(list((sounds / "audio").glob("*.wav")))
