"""The pages as files: what they say, what they must not let in, how large they get."""

from __future__ import annotations

import csv
import dataclasses
import fnmatch
import html.parser
import json
import re
import shutil
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest

from bsdkit.api import fit
from bsdkit.errors import RecipeError, StoreError
from bsdkit.leakage import near_duplicates
from bsdkit.metrics import compare
from bsdkit.recipe.schema import Recipe
from bsdkit.report.page import (
    ClipColumns,
    PageData,
    Predictions,
    Projection,
    ambiguity,
    lost_credit,
    write_page,
)
from bsdkit.report.page.charts import SHAPES, family_colours
from bsdkit.report.page.collect import comparison_of, make_comparison, make_report, report_of
from bsdkit.runs.folder import Run, load_run
from bsdkit.runs.predict import export_run
from bsdkit.stats import principal_axes
from bsdkit.store.clips import write_clips
from bsdkit.store.imports import import_probabilities
from bsdkit.store.store import Store
from bsdkit.taxonomy import BST, Taxonomy
from tests.conftest import ROOT
from tests.report.conftest import EVIL, N_CLIPS, Made

VOID = {"meta", "link", "input", "img", "br"}


class Outline(html.parser.HTMLParser):
    """Reads a page as a browser does, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.headers_without_scope = 0
        self.data = ""
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [named["href"] or ""] if "href" in named and tag == "a" else []
        self.headers_without_scope += tag == "th" and "scope" not in named
        assert not [name for name in named if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script" and not self.data:
            self.data = data


def read(path: Path) -> tuple[str, Outline, dict]:  # type: ignore[type-arg]
    text = path.read_text(encoding="utf-8")
    outline = Outline(text)
    return text, outline, json.loads(outline.data)


def test_fit_leaves_a_whole_page_that_needs_nothing_else(made: Made) -> None:
    text, outline, data = read(made.run / "report.html")
    assert "http://" not in text and "https://" not in text
    assert not {"img", "iframe", "object", "audio", "source"} & set(outline.tags)
    assert outline.tags.count("link") == 1 and 'href="data:,"' in text
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link[1:] for link in outline.links} <= set(outline.ids)
    assert not outline.headers_without_scope
    assert {"header", "nav", "main", "h1"} <= set(outline.tags)
    sections = (
        "summary members classes confusion calibration errors clips map coverage training made"
    )
    assert set(sections.split()) <= set(outline.ids)
    assert "hF_strict of ensemble (weights), nested" in text and "Near-duplicates" in text
    assert data["maps"][0]["method"] == "PCA" and data["audio"] is None


def test_what_strangers_wrote_stays_text(made: Made) -> None:
    text, outline, data = read(made.run / "report.html")
    assert outline.tags.count("script") == 2  # the data and the code
    assert data["titles"][3] == EVIL and "\u2028" not in text.partition("<script>")[0]
    assert "<i>described" not in text and "&lt;i&gt;described" in text
    policy = re.search(r"script-src '(sha256-[^']+)'", text)
    assert policy and "unsafe-inline" not in text.partition("script-src")[2].partition(";")[0]


def test_the_clips_are_those_of_predictions_csv(made: Made) -> None:
    _, _, data = read(made.run / "report.html")
    run = data["runs"][0]
    labels = [label for label, _ in data["classes"]]
    with (made.run / "predictions.csv").open(newline="") as file:
        rows = {row["sound_id"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(data["ids"]) and len(data["ids"]) == N_CLIPS
    for i, clip in enumerate(data["ids"]):
        assert rows[clip]["prediction"] == labels[run["decided"][i]]
        assert rows[clip]["ground_truth"] == labels[data["labels"][i]]
        assert abs(float(rows[clip]["prediction_score"]) - run["p"][i] / 1000) <= 0.00051
        assert run["top"][3 * i] == run["decided"][i] and run["topP"][3 * i] == run["p"][i]


def test_sounds_are_named_from_the_page_and_lacking_ones_are_said(
    made: Made, tmp_path: Path
) -> None:
    page = make_report(made.run, data=made.data, out=tmp_path / "deep" / "page.html")
    text, _, data = read(page)
    assert data["audio"][9] is None and "1 of 160 clips have no sound" in text
    assert "%20" in data["audio"][0]
    there = page.parent / data["audio"][0].replace("%20", " ")
    assert there.resolve() == (made.data.parent / "audio/c000.wav").resolve()


def test_sounds_are_found_whatever_the_dataset_calls_its_classes(
    made: Made, tmp_path: Path
) -> None:
    text = made.data.read_text()
    other = made.data.with_name("renamed.csv")
    other.write_text(re.sub(r"tone-a|hiss-b", "renamed", text))
    _, _, data = read(make_report(made.run, data=other, out=tmp_path / "page.html"))
    assert sum(url is not None for url in data["audio"]) == N_CLIPS - 1


def test_a_page_without_its_store_says_what_is_lacking(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(made.run)
    data = report_of(run, None)
    assert not data.projections and data.duplicates is None
    assert any("--store" in note for note in data.notes)
    write_page(tmp_path / "page.html", data)
    text, outline, _ = read(tmp_path / "page.html")
    assert "map" not in outline.ids and "is not available" in text
    with pytest.raises(StoreError, match=r"no feature 'made.audio'"):
        make_report(made.run, store=ROOT / "cache/starter", out=tmp_path / "no.html")
    assert not (tmp_path / "no.html").exists()


def test_the_store_may_have_its_clips_in_another_order(made: Made, tmp_path: Path) -> None:
    run, store = load_run(made.run), Store(made.store)
    shutil.copytree(made.store, tmp_path / "turned")
    order = np.random.default_rng(1).permutation(N_CLIPS)
    write_clips(tmp_path / "turned/clips.h5", permuted(run, order).clips)
    straight, turned = report_of(run, store), report_of(run, Store(tmp_path / "turned"))
    np.testing.assert_allclose(turned.projections[0].points, straight.projections[0].points)
    assert turned.duplicates == straight.duplicates


def permuted(run: Run, order: np.ndarray) -> Run:  # type: ignore[type-arg]
    return dataclasses.replace(run, clips=run.clips.rows(order))


def test_lost_credit_is_what_the_metric_takes_away() -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 23, 900)
    said = np.where(rng.random(900) < 0.6, y, rng.integers(0, 23, 900))
    lost = lost_credit(y, said, np.full(900, np.nan), BST)
    taken = (1 - BST.credit(0.375)[y, said]).sum()
    assert lost.across + lost.within == pytest.approx(taken)
    assert lost.n_across + lost.n_within == (y != said).sum()
    first = lost.pairs[0]
    assert first.n_first == ((y == first.first) & (said == first.second)).sum()
    assert [p.n_first + p.n_second for p in lost.pairs] == sorted(
        (p.n_first + p.n_second for p in lost.pairs), reverse=True
    )
    assert np.isnan(lost_credit(y, y, np.full(900, np.nan), BST).share_across)


def test_ambiguity_is_the_correlation_over_classes() -> None:
    y = np.repeat(np.arange(6), 50)
    rng = np.random.default_rng(4)
    said = np.where(rng.random(300) < 0.3 + 0.1 * y, y, (y + 1) % 6)
    confidence = np.clip(1 + 0.5 * y + rng.normal(size=300), 1, 5).astype(np.float32)
    confidence[::7] = np.nan
    found = ambiguity(y, said, confidence, 8)
    assert found is not None
    known = np.isfinite(confidence)
    means = [confidence[known & (y == c)].mean() for c in range(6)]
    shares = [(said == y)[known & (y == c)].mean() for c in range(6)]
    assert found.r == pytest.approx(np.corrcoef(means, shares)[0, 1], rel=1e-5)
    assert found.r_low < found.r < found.r_high
    assert found.right == pytest.approx(confidence[known & (said == y)].mean(), rel=1e-5)
    assert ambiguity(y, said, np.full(300, np.nan), 8) is None
    same = ambiguity(y, said, np.full(300, 3.0), 8)
    assert same is not None and np.isnan(same.r) and same.right == same.wrong == 3


def test_the_screen_finds_every_near_duplicate() -> None:
    rng = np.random.default_rng(5)
    X = rng.standard_normal((2500, 60)).astype(np.float32) + 2
    for i in range(40):  # some just above the limit, some just below
        X[1200 + 31 * i] = 3 * X[i] + (0.12 + 0.004 * i) * rng.standard_normal(60)
    X[5] = X[6] = 0
    folds, labels = rng.integers(0, 4, 2500), rng.integers(0, 3, 2500)
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-9)
    near = np.triu((unit @ unit.T > 0.999) & (folds[:, None] != folds[None, :]), 1)
    found = near_duplicates(X, folds, labels, n_examples=1000)
    pairs = {(a, b) for a, b, _ in found.examples}
    assert pairs == {(int(a), int(b)) for a, b in zip(*np.nonzero(near), strict=True)}
    assert 5 < found.n_pairs == len(pairs) < 40 and found.n_clips == 2 * found.n_pairs
    cosines = [cosine for _, _, cosine in found.examples]
    assert cosines == sorted(cosines, reverse=True)


def test_principal_axes_are_those_of_the_svd() -> None:
    rng = np.random.default_rng(6)
    X = (rng.standard_normal((400, 30)) * np.geomspace(5, 0.1, 30)).astype(np.float32)
    axes, shares = principal_axes(X, 3)
    _, values, right = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(axes.T * right[:3], axis=1)), 1, atol=1e-4)
    np.testing.assert_allclose(shares, (values**2 / (values**2).sum())[:3], rtol=1e-3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    assert principal_axes(X[:2], 3)[0].shape[1] <= 3


def test_probabilities_are_no_embeddings(made: Made, tmp_path: Path) -> None:
    exported = tmp_path / "net.npz"
    export_run(load_run(made.run), exported, "net")
    store = Store.create(tmp_path / "store", Store(made.store).clips)
    import_probabilities(store, exported, "their.net")
    recipe = {
        "name": "theirs",
        "store": str(store.path),
        "split": "group",
        "folds": 3,
        "members": {"their": {"imported": "their.net"}},
        "ensemble": {"method": "mean"},
    }
    run = load_run(fit(Recipe.model_validate(recipe), tmp_path / "runs").folder)
    data = report_of(run, store)
    assert data.duplicates is None and not data.projections and not data.curves
    _, outline, _ = read(run.folder / "report.html")
    assert not {"map", "training"} & set(outline.ids)


def test_umap_is_used_where_it_is_installed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "umap.py").write_text(
        "class UMAP:\n"
        "    def __init__(self, random_state): assert random_state == 0\n"
        "    def fit_transform(self, X): return X[:, :2] + 1\n"
    )
    run, store = load_run(made.run), Store(made.store)
    monkeypatch.syspath_prepend(tmp_path)
    assert [one.method for one in report_of(run, store).projections] == ["PCA", "UMAP"]
    assert [one.method for one in report_of(run, store, umap=False).projections] == ["PCA"]


def test_two_runs_side_by_side(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "two.html"
    found = make_comparison(made.run, made.other, page, data=made.data)
    y, a, b = found.clips.labels, found.a.decided, found.b.decided
    expected = compare(y, a, b, found.taxonomy)
    shown = found.compared[0]
    assert shown.difference == expected.difference and shown.low <= expected.low
    text, _, data = read(page)
    assert data["subsets"]["onlyA"] == np.flatnonzero((a == y) & (b != y)).tolist()
    assert data["subsets"]["onlyB"] == np.flatnonzero((b == y) & (a != y)).tolist()
    assert f"{100 * expected.difference:+.2f}" in text and shown.verdict in text
    other = comparison_of(load_run(made.run), load_run(made.other), split="stratified")
    assert found.splits == ("group", "group") and other.splits == ("stratified", "stratified")
    assert other.clips.folds.tolist() != found.clips.folds.tolist()
    with pytest.raises(RecipeError, match="did you mean 'group'"):
        comparison_of(load_run(made.run), load_run(made.other), split="grup")
    back = comparison_of(load_run(made.other), load_run(made.run))
    assert back.compared[0].difference == -expected.difference


def test_runs_are_compared_by_clip_not_by_row(made: Made, tmp_path: Path) -> None:
    run, other = load_run(made.run), load_run(made.other)
    order = np.random.default_rng(2).permutation(N_CLIPS)
    turned = dataclasses.replace(permuted(other, order), folder=tmp_path)
    with h5py.File(made.other / "oof.h5") as old, h5py.File(tmp_path / "oof.h5", "w") as new:
        for split in ("group", "stratified"):
            for name in ("fold", "ensemble_nested", "decided", "is_fallback"):
                new[f"{split}/{name}"] = old[split][name][()][order]
            new[f"{split}/decided_of_seeds"] = old[split]["decided_of_seeds"][()][:, order]
    straight, found = comparison_of(run, other), comparison_of(run, turned)
    assert found.compared == straight.compared
    np.testing.assert_array_equal(found.b.probabilities, straight.b.probabilities)


def test_runs_that_cannot_be_compared_are_refused_in_a_line(made: Made, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no folds in common") as folds:
        make_comparison(made.run, made.elsewhere, tmp_path / "no.html")
    run = load_run(made.run)
    fewer = permuted(run, np.arange(N_CLIPS - 1))
    with pytest.raises(RecipeError, match="other clips \\(160 and 159, 159 in both\\)") as clips:
        comparison_of(run, fewer)
    labels = run.clips.labels.copy()
    labels[0] = 1
    relabelled = dataclasses.replace(run, clips=dataclasses.replace(run.clips, labels=labels))
    with pytest.raises(RecipeError, match="other labels for 1 clips"):
        comparison_of(run, relabelled)
    assert "\n" not in str(folds.value) + str(clips.value)
    assert not (tmp_path / "no.html").exists()


def large(data: PageData, n: int) -> PageData:
    """The page of a run on n clips with long titles and tags."""
    rng = np.random.default_rng(7)
    words = np.array([f"word{i}" for i in range(3000)], object)
    n_classes = len(data.taxonomy)
    take = np.arange(n) % len(data.clips.ids)
    p = rng.dirichlet(np.full(n_classes, 0.3), n)
    clips = ClipColumns(
        ids=np.array([str(100_000 + 7 * i) for i in range(n)], object),
        titles=np.array([" ".join(words[rng.integers(0, 3000, 6)]) for _ in range(n)], object),
        tags=np.array([",".join(words[rng.integers(0, 3000, 14)]) for _ in range(n)], object),
        uploaders=np.array([f"user{i}" for i in rng.integers(0, 2000, n)], object),
        labels=data.clips.labels[take],
        folds=data.clips.folds[take],
        audio=tuple(f"../../data/audio/{i}.wav" for i in range(n)),
    )
    return dataclasses.replace(
        data,
        clips=clips,
        predictions=Predictions("large", p.argmax(axis=1), p),
        projections=(
            Projection("PCA", rng.standard_normal((n, 2)), (0.2, 0.1)),
            Projection("UMAP", rng.uniform(size=(n, 2))),
        ),
        duplicates=None,
    )


def test_a_page_of_all_of_bsd10k_is_under_8_mb(made: Made, tmp_path: Path) -> None:
    data = large(report_of(load_run(made.run), Store(made.store)), 10_956)
    write_page(tmp_path / "large.html", data)
    assert (tmp_path / "large.html").stat().st_size < 8e6


@pytest.mark.parametrize("n", [1, 5, 8, 9, 60])
def test_every_number_of_families_has_markers_that_differ(n: int) -> None:
    colours = family_colours(n)
    looks = {(colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(colours)}
    assert len(colours) == len(looks) == n
    for pair, page in ((0, 0xFC), (1, 0x15)):  # against the light and the dark page
        for colour in colours:
            assert contrast(colour[pair], page) >= 3, colour


def contrast(colour: str, grey: int) -> float:
    """The contrast of WCAG 2.2 between a colour and a grey."""

    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    one, two = 0.2126 * red + 0.7152 * green + 0.0722 * blue, linear(grey)
    return (max(one, two) + 0.05) / (min(one, two) + 0.05)


def test_a_flat_taxonomy_has_no_talk_of_families(made: Made, tmp_path: Path) -> None:
    data = report_of(load_run(made.run), Store(made.store))
    flat = dataclasses.replace(data, taxonomy=Taxonomy.flat(data.taxonomy.labels))
    write_page(tmp_path / "flat.html", flat)
    text, _, _ = read(tmp_path / "flat.html")
    assert "of these, in a wrong family" not in text
    write_page(tmp_path / "deep.html", data)
    assert "of these, in a wrong family" in (tmp_path / "deep.html").read_text()


def test_what_the_page_is_made_of_is_installed_with_it() -> None:
    folder = ROOT / "bsdkit/report/page"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["bsdkit"]
    files = [f for f in folder.iterdir() if f.is_file() and f.suffix != ".py"]
    assert len(files) == 3
    for file in files:
        name = str(file.relative_to(ROOT / "bsdkit"))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name
