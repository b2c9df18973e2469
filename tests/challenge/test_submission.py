"""Submissions: meta files that count everything once, and folders that are refused with a line."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bsdkit.backbones.registry import backbone_classes
from bsdkit.backbones.uses import resource_of
from bsdkit.challenge import (
    Affiliation,
    Author,
    ExternalDataset,
    Member,
    Resource,
    System,
    backbone_uses,
    check_submission,
    system_files,
    write_metadata,
    write_output,
)
from bsdkit.challenge.metadata import macs, total_parameters
from bsdkit.errors import DatasetError
from bsdkit.metrics import evaluate
from bsdkit.taxonomy import BST

LABEL = "Kucukoglu_NYU_task1_1"
IDS = [f"clip{i}" for i in range(46)]
SPECS: dict[str, dict[str, object]] = {
    "clap.audio": {
        "backbone": "clap",
        "output": "audio",
        "kind": "audio",
        "weights": "630k-audioset-best.pt",
        "sample_rate": 48000,
    },
    "clap.text": {
        "backbone": "clap",
        "output": "text",
        "kind": "text",
        "weights": "630k-audioset-best.pt",
        "text_template": "title. tags",
    },
    "passt": {
        "backbone": "passt",
        "kind": "audio",
        "weights": "passt-s-f128-p16-s10-ap.476-swa.pt",
        "sample_rate": 32000,
    },
}
CLAP, PASST = 153_500_000, 86_150_000


def scores() -> dict[str, object]:
    y_true = np.arange(2300) % 23
    y_pred = np.where(np.arange(2300) % 7, y_true, (y_true + 1) % 23)
    return evaluate(y_true, y_pred, BST).to_dict()


def a_system(label: str = LABEL) -> System:
    return System(
        label=label,
        name="Frozen: no tuning",
        abbreviation="frozen",
        authors=(
            Author("Küçükoğlu", "A.", "a@nyu.edu", Affiliation("NYU", "NYU", "New York"), True),
            Author("No", "B.", "b@nyu.edu", Affiliation("NYU", "NYU", "Norway", "Music")),
        ),
        members=(
            Member("both", "gmu", ("clap.audio", "clap.text"), 700_000, 0.75),
            Member("passt", "mlp", ("passt",), 400_000, 0.25),
        ),
        backbones=backbone_uses(SPECS),
        scores=scores(),
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A good submission of two systems; the folder task1 is in it."""
    folder = tmp_path / "task1"
    for shift, label in enumerate([LABEL, LABEL[:-1] + "2"]):
        files = system_files(folder, label)
        labels = [BST.labels[(i + shift) % 23] for i in range(len(IDS))]
        write_output(files.output, IDS, labels, np.linspace(0, 1, len(IDS)))
        write_metadata(files.meta, a_system(label))
    (folder / "Kucukoglu_NYU_task1.technical_report.pdf").write_bytes(b"%PDF")
    return tmp_path


def lines(package: Path) -> tuple[list[str], list[str]]:
    found = check_submission(package, IDS, BST)
    cut = f"{package}/task1"
    return [p.removeprefix(cut) for p in found.problems], [
        w.removeprefix(cut) for w in found.warnings
    ]


def test_a_good_submission_passes(package: Path) -> None:
    assert lines(package) == ([], [])
    files = sorted(str(p.relative_to(package)) for p in package.rglob("*.*"))
    assert files[1:3] == [f"task1/{LABEL}/{LABEL}.meta.yaml", f"task1/{LABEL}/{LABEL}.output.csv"]
    # the folder itself may be given instead of the one around it
    assert check_submission(package / "task1", IDS, BST).is_ready


def meta(package: Path) -> Path:
    return package / "task1" / LABEL / f"{LABEL}.meta.yaml"


def test_metadata_is_read_back(package: Path) -> None:
    system = a_system()
    first = meta(package).read_bytes()
    write_metadata(meta(package), system)
    assert meta(package).read_bytes() == first
    assert "Küçükoğlu" in first.decode()
    read = yaml.safe_load(first)
    assert read["submission"]["label"] == LABEL
    # YAML would take a bare No for false
    assert [a["lastname"] for a in read["submission"]["authors"]] == ["Küçükoğlu", "No"]
    assert read["submission"]["authors"][1]["affiliation"]["department"] == "Music"
    description = read["system"]["description"]
    assert description["input_sampling_rate"] == "48 kHz (clap), 32 kHz (passt)"
    assert description["text_representation"] == "clap (630k-audioset-best.pt) of title. tags"
    assert description["ensemble_method_subsystem_count"] == 2
    assert [r["name"] for r in read["system"]["external_resources"]] == ["clap", "passt"]
    given: Any = system.scores
    development = read["results"]["development_datasets"]
    assert development["bsd10k-v1.2"]["overall"] == {
        name: round(given[name], 6) for name in ("hP", "hR", "hF")
    }
    by_class = development["bsd10k-v1.2"]["class_wise"]
    assert tuple(by_class) == BST.labels
    assert by_class["fx-a"]["hR"] == round(given["per_class"]["fx-a"]["hR"], 6)
    assert development["bsd35k-cs"]["overall"] == {"hP": None, "hR": None, "hF": None}


def test_every_backbone_is_counted_once() -> None:
    system = a_system()
    assert [(b.name, b.kinds) for b in system.backbones] == [
        ("clap", ("audio", "text")),
        ("passt", ("audio",)),
    ]
    assert total_parameters(system).total == 1_100_000 + CLAP + PASST
    assert macs(system) == round((11.8 + 237.86) / 2 * 1e9)
    # the same backbone from two specs, or listed twice, is run once
    twice = replace(system, backbones=system.backbones + backbone_uses({"x": SPECS["passt"]}))
    assert total_parameters(twice) == total_parameters(system)
    # other weights are another model, of which nothing is known
    other = backbone_uses({**SPECS, "clap-2.audio": {**SPECS["clap.audio"], "weights": "own.pt"}})
    count = total_parameters(replace(system, backbones=other))
    assert count.total == 1_100_000 + CLAP + PASST and count.unknown == ("clap with own.pt",)
    assert other[-1].resource.is_allowed is None
    assert macs(replace(system, backbones=other)) is None


def test_what_is_not_known_makes_a_lower_bound(package: Path) -> None:
    imported = {
        "clap-fusion.audio": {"backbone": "imported", "origin": "task 1"},
        "theirs.logits": {"backbone": "imported-probabilities", "origin": "a paper"},
        "stated.logits": {"backbone": "imported-probabilities", "parameters": 5},
        "qwen2-audio.prompt": {
            "backbone": "qwen2-audio",
            "kind": "prompt",
            "weights": "Qwen/Qwen2-Audio-7B",
        },
    }
    system = replace(
        a_system(),
        backbones=backbone_uses(imported),
        members=(Member("a", "mlp", (), 7), Member("b", "foreign")),
    )
    count = total_parameters(system)
    assert count.unknown == ("member b", "theirs.logits", "qwen2-audio")
    assert count.total == 7 + CLAP + 5 + 642_200_000
    assert macs(system) is None
    write_metadata(meta(package), system)
    assert "# total_parameters is a lower bound; not counted: member b, theirs.logits" in (
        meta(package).read_text()
    )
    problems, warnings = lines(package)
    assert not problems
    assert warnings[0].endswith("state the parameters of member b, theirs.logits, qwen2-audio")
    # only what may hold Freesound sounds from after the cut-off is asked about
    assert [re.sub(r".*: (\S+) is not known.*", r"\1", w) for w in warnings[1:]] == [
        "theirs.logits",
        "stated.logits",
    ]


def test_resources_of_all_backbones() -> None:
    allowed = {name: resource_of(name).is_allowed for name in backbone_classes()}
    unknown = {name for name, is_allowed in allowed.items() if is_allowed is None}
    assert unknown == {"cp-clap", "hear:", "hf:", "m2d-32k", "qwen3-omni"}
    assert resource_of("hf:laion/clap-htsat-fused").url.endswith(".co/laion/clap-htsat-fused")
    # public too late to be sure, but without any sound
    assert Resource("x", released="2026", has_freesound=False).is_allowed
    assert Resource("x", released="2026", has_freesound=True).is_allowed is None


Change = Callable[[dict[str, Any]], None]


def put(*place: Any) -> Change:
    """Sets the field at a place to the last argument."""

    def change(data: dict[str, Any]) -> None:
        *way, last, value = place
        for key in way:
            data = data[key]
        data[last] = value

    return change


def drop(*place: Any) -> Change:
    def change(data: dict[str, Any]) -> None:
        *way, last = place
        for key in way:
            data = data[key]
        del data[last]

    return change


SYSTEM_, DEV = ("system",), ("results", "development_datasets", "bsd10k-v1.2")
AUTHOR = ("submission", "authors", 0)
BROKEN_META: list[tuple[Change, str]] = [
    (
        put("submission", "label", LABEL[:-1] + "3"),
        "line 2: submission.label is '.*_3', the file is named after '.*_1'",
    ),
    (drop("submission", "name"), "line 1: no field submission.name"),
    (
        put("submission", "abbreviation", "eleven char"),
        "line 4: submission.abbreviation has 11 characters, at most 10 are allowed",
    ),
    (
        put(*AUTHOR, "firstname", "TO FILL"),
        r"line 7: submission.authors\[0\].firstname is 'TO FILL'; write what belongs there",
    ),
    (
        put(*AUTHOR, "lastname", False),
        r"line 6: submission.authors\[0\].lastname is False, expected text; put it in quotes",
    ),
    (put(*AUTHOR, "email", "nyu.edu"), r"line 8: submission.authors\[0\].email is .*, no address"),
    (
        drop(*AUTHOR, "affiliation", "location"),
        r"line 10: no field submission.authors\[0\].affiliation.location",
    ),
    (
        drop(*AUTHOR, "corresponding"),
        "line 5: 0 corresponding authors; write corresponding: true for one",
    ),
    (put("submission", "authors", "me"), "line 5: submission.authors is no list; expected .*"),
    (
        drop(*SYSTEM_, "description", "hierarchical_setting"),
        r"line \d+: no field system.description.hierarchical_setting; write null for none",
    ),
    (
        put(*SYSTEM_, "description", "audio_representation", None),
        r"line \d+: system.description.audio_representation is empty",
    ),
    (
        put(*SYSTEM_, "complexity", "total_parameters", "543 M"),
        r"line \d+: system.complexity.total_parameters is '543 M', expected a whole number .*",
    ),
    (drop(*DEV), r"line \d+: no field results.development_datasets.bsd10k-v1.2; its .* required"),
    (put(*DEV, "overall", "hF", None), r"line \d+: results.*.overall.hF is empty"),
    (
        put(*DEV, "overall", "hP", 81.2),
        r"line \d+: .*overall.hP is 81.2, expected 0 to 1; divide percentages by 100",
    ),
    (drop(*DEV, "class_wise"), r"line \d+: no scores by class in results.*.class_wise"),
    (drop(*DEV, "class_wise", "ss-u", "hR"), r"line \d+: no field .*class_wise.ss-u.hR"),
    (
        put(*DEV, "class_wise", "fx", {"hF": 0.5}),
        r"line \d+: class_wise has the class 'fx'; did you mean 'fx-.*'\?",
    ),
]


@pytest.mark.parametrize(
    ("change", "line"), BROKEN_META, ids=[line[:60] for _, line in BROKEN_META]
)
def test_each_fault_of_a_meta_file_is_one_line(package: Path, change: Change, line: str) -> None:
    data = yaml.safe_load(meta(package).read_text())
    change(data)
    meta(package).write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    problems, _ = lines(package)
    assert len(problems) == 1, problems
    assert re.fullmatch(f"/{LABEL}/{LABEL}.meta.yaml {line}", problems[0]), problems


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("submission: [a\n", r" line 2: not YAML: .*"),
        ("- 1\n", " line 1: not a meta file; expected submission, system and results"),
        ("", " line 1: not a meta file; .*"),
        ("a: &x\n  b: *x\n", r".*: not YAML: .*"),
    ],
)
def test_a_meta_file_that_cannot_be_read(package: Path, text: str, line: str) -> None:
    meta(package).write_text(text)
    (problem,) = lines(package)[0]
    assert re.fullmatch(f"/{LABEL}/{LABEL}.meta.yaml{line}", problem), problem


def test_a_key_that_stands_twice(package: Path) -> None:
    text = meta(package).read_text()
    meta(package).write_text(text.replace("  abbreviation:", "  name: x\n  abbreviation:", 1))
    (problem,) = lines(package)[0]
    assert re.fullmatch(r".*\.meta\.yaml line \d+: submission\.name stands twice", problem)


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda task: (task / old).rename(task / new)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda task: (task / LABEL / f"{LABEL}.output.csv").unlink(),
            [f"/{LABEL}: no {LABEL}.output.csv"],
        ),
        (
            rename(f"{LABEL}/{LABEL}.meta.yaml", f"{LABEL}/Doe_NYU_task1_1.meta.yaml"),
            [f"/{LABEL}: no {LABEL}.meta.yaml; rename Doe_NYU_task1_1.meta.yaml"],
        ),
        (
            rename(f"{LABEL}/{LABEL}.output.csv", f"{LABEL}.output.csv"),
            [
                f"/{LABEL}.output.csv: beside the systems; expected in the folder {LABEL}",
                f"/{LABEL}: no {LABEL}.output.csv",
            ],
        ),
        (shutil.rmtree, [": no such folder; expected one folder a system in it"]),
        (
            lambda task: [shutil.rmtree(path) for path in task.glob("Kuc*_?")],
            [": no system; expected a folder <LastName>_.*_task1_<1 to 4> with its two files"],
        ),
    ],
)
def test_files_out_of_place(
    package: Path, change: Callable[[Path], object], expected: list[str]
) -> None:
    change(package / "task1")
    found = check_submission(package / "task1", IDS, BST)
    problems = [p.removeprefix(f"{package}/task1") for p in found.problems]
    assert len(problems) == len(expected)
    assert all(map(re.fullmatch, expected, problems)), problems


@pytest.mark.parametrize(
    ("label", "line"),
    [
        ("Doe_NYU_task1_5", "label 'Doe_NYU_task1_5' ends in 5; expected a number from 1 to 4"),
        ("Doe_NYU_task2_1", "label 'Doe_NYU_task2_1' is not well formed; expected <LastName>_.*"),
        ("Doe_task1_1", "label 'Doe_task1_1' is not well formed; expected <LastName>_.*"),
    ],
)
def test_labels(package: Path, label: str, line: str) -> None:
    with pytest.raises(DatasetError, match=line):
        system_files(package, label)
    folder = package / "task1" / label
    shutil.copytree(package / "task1" / LABEL, folder)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace(LABEL, label))
    write_metadata(folder / f"{label}.meta.yaml", a_system(label))
    problems, warnings = lines(package)
    assert len(problems) == 1 and re.fullmatch(f"/{label}: {line}", problems[0]), problems
    assert f": {LABEL} predicts the same classes as {label}" in warnings


def test_teams_and_their_number_of_systems(package: Path) -> None:
    for team in ("Doe_NYU", "Doe_TAU"):
        for i in (1, 2):
            files = system_files(package / "task1", f"{team}_task1_{i}")
            write_output(files.output, IDS, [BST.labels[i]] * len(IDS), [0.5] * len(IDS))
            write_metadata(files.meta, a_system(f"{team}_task1_{i}"))
    problems, warnings = lines(package)
    assert problems == [
        ": 6 systems, at most 4 are allowed",
        ": labels of several teams: Doe_NYU_task1, Doe_TAU_task1, Kucukoglu_NYU_task1; "
        "expected the same before _1",
    ]
    assert sum("the corresponding author is 'Küçükoğlu'" in w for w in warnings) == 4


def test_strange_but_allowed(package: Path) -> None:
    (package / "task1" / LABEL / ".DS_Store").touch()
    (package / "task1" / LABEL / "old.output.csv").touch()
    (package / "task1" / "Kucukoglu_NYU_task1.technical_report.pdf").unlink()
    assert lines(package) == (
        [],
        [
            ": no technical report (a .pdf beside the systems)",
            f"/{LABEL}/.DS_Store: not part of a submission; delete it before packing",
            f"/{LABEL}/old.output.csv: not part of a submission; delete it before packing",
        ],
    )


def test_notes_and_data_sets_of_a_system(package: Path) -> None:
    never = {**scores(), "never_predicted": ["fx-a"], "hF": {"value": 0.8}, "hF_strict": 0.77}
    esc50 = ExternalDataset("ESC-50", "https://github.com/karolpiczak/ESC-50", 167)
    write_metadata(meta(package), replace(a_system(), scores=never, datasets=(esc50,)))
    text = meta(package).read_text()
    assert "# never predicted, so not in the mean of hF: fx-a; with them as 0 it is 0.77" in text
    read = yaml.safe_load(text)
    assert read["results"]["development_datasets"]["bsd10k-v1.2"]["overall"]["hF"] == 0.8
    assert read["system"]["external_datasets"] == [
        {"name": "ESC-50", "url": esc50.url, "total_audio_length": 167}
    ]
    assert "ESC-50 in training" in read["system"]["description"]["external_data_usage"]
    write_metadata(meta(package), replace(a_system(), authors=(Author(corresponding=True),)))
    problems, _ = lines(package)
    assert len(problems) == 6 and all("is 'TO FILL'; write what belongs" in p for p in problems)
