"""Priors and summaries from the command to the score, with a real server that misbehaves."""

from __future__ import annotations

import collections
import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.backbones.registry import get_backbone
from bsdkit.priors.ask import Reply
from bsdkit.store import Store
from bsdkit.store.clips import write_clips
from bsdkit.store.feature import OK, read_feature, read_info, write_feature
from bsdkit.store.texts import find_texts
from tests.conftest import ROOT, bsdkit_here
from tests.priors.llm_server import Server, sha
from tests.runs.test_whole_chain import part_of, part_of_store

STARTER = ROOT / "cache/starter"
RECIPE = """
name: {name}
store: {store}
split: group
folds: 3
seeds: [0]
validation: 0
members:
  prior: {{head: prior, features: {prior}}}
  mix: {{head: prior_mix, features: [aisfx, {prior}], hidden: 16, epochs: 6}}
ensemble: {{method: mean}}
rerank: {{rounds: 5, leaves: 5, min_rows: 10, tau: 0, cross_tau: 0, similarity: {prior}}}
"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some starter clips, no two of the same text."""
    clips = Store(STARTER).clips
    first: dict[str, int] = {}
    for i, title in enumerate(clips.title):
        first.setdefault(f"{title} {clips.description[i]}", i)
    rows = np.array(sorted(first.values()))
    classes = [rows[clips.labels[rows] == label] for label in np.unique(clips.labels[rows])]
    # a fraction of each class, and enough for the folds
    rows = np.sort(np.concatenate([of[:: max(1, min(12, len(of) // 3))] for of in classes]))
    return part_of_store(STARTER, tmp_path_factory.mktemp("priors") / "small", rows)


@pytest.fixture
def store(small: Path, tmp_path: Path) -> Path:
    shutil.copytree(small, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    pytest.importorskip("openai")
    with Server(tmp_path / "server") as started:
        yield started


def ask(store: Path, url: str, *more: object) -> subprocess.CompletedProcess[str]:
    return bsdkit_here("priors", "--store", store, "--model", "scripted", "--endpoint", url, *more)


def priors_of(store: Path, name: str = "prior.scripted") -> Path:
    return Store(store).info(name).path


def fit(store: Path, prior: str, folder: Path, name: str = "run") -> subprocess.CompletedProcess:  # type: ignore[type-arg]
    (folder / f"{name}.yaml").write_text(RECIPE.format(store=store, prior=prior, name=name))
    return bsdkit_here("fit", folder / f"{name}.yaml", "--runs", folder / "runs")


@pytest.fixture(scope="module")
def minilm() -> None:
    if reason := get_backbone("minilm").missing():
        pytest.skip(reason)


@pytest.mark.usefixtures("minilm")
def test_a_prior_without_a_language_model_from_the_command_to_new_sounds(
    store: Path, tmp_path: Path
) -> None:
    made = bsdkit_here("priors", "--store", store)
    assert made.returncode == 0 and "prior.minilm:" in made.stderr, made.stderr
    rows, committed = (read_feature(priors_of(s, "prior.minilm")) for s in (store, STARTER))
    place = {clip: i for i, clip in enumerate(committed.ids)}
    same = committed.embedding[[place[clip] for clip in rows.ids]]
    np.testing.assert_allclose(rows.embedding, same, atol=1e-5)
    np.testing.assert_allclose(rows.embedding.sum(axis=1), 1, atol=1e-6)

    result = fit(store, "prior.minilm", tmp_path)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "runs/run"
    # a new dataset gets its embeddings and its prior on the spot, as the commands would make them
    data, out = tmp_path / "sounds.csv", tmp_path / "out.csv"
    data.write_text("sound_id,title,tags\n1,Big dog,barking\n2,Rain on a roof,rain\n3,,\n")
    new = bsdkit_here(
        "predict", run, "--data", data, "--store", tmp_path / "new", "--out", out,
        "--member", "prior",
    )  # fmt: skip
    assert "prior.minilm: made from minilm" in new.stderr, new.stderr
    assert len(out.read_text().splitlines()) == len(Store(tmp_path / "new").clips) + 1
    before = read_info(priors_of(tmp_path / "new", "prior.minilm"))
    again = bsdkit_here("priors", "--store", tmp_path / "new")
    after = read_info(priors_of(tmp_path / "new", "prior.minilm"))
    assert again.returncode == 0 and (before.spec_hash, before.checksum) == (
        after.spec_hash, after.checksum
    )  # fmt: skip


@pytest.mark.usefixtures("minilm")
def test_class_words_can_be_masked_and_their_worth_be_told(store: Path) -> None:
    assert bsdkit_here("priors", "--store", store).returncode == 0
    alone = bsdkit_here("prior-audit", store)
    assert "--mask-class-words" in alone.stdout, alone.stderr
    assert bsdkit_here("priors", "--store", store, "--mask-class-words").returncode == 0
    opened = Store(store)
    plain, masked = opened.features(["prior.minilm"]), opened.features(["prior.minilm@masked"])
    assert plain.infos["prior.minilm"].path != masked.infos["prior.minilm@masked"].path
    # the plain names stay what they were, for recipes that use them
    assert "masks" not in str(opened.info("minilm").spec["text_template"])
    audited = bsdkit_here("prior-audit", store).stdout
    assert "name their own class" in audited and "is gone when class words are masked" in audited


def test_no_clip_is_lost_or_asked_twice_whatever_the_server_does(
    store: Path, server: Server, tmp_path: Path
) -> None:
    """Faults of every kind, a kill in the middle, a resume: the store of a faultless run."""
    faultless, faulty = tmp_path / "faultless", tmp_path / "faulty"
    part_of_store(store, faultless, np.arange(0, len(Store(store).clips), 3))
    shutil.copytree(faultless, faulty)
    plain = ask(faultless, server.url)
    assert plain.returncode == 0, plain.stderr
    n = len(Store(faultless).clips)
    assert set(server.counts("answer").values()) == {1} and len(server.counts("answer")) == n

    with Server(tmp_path / "second", "--faults 7 --hang 1.2") as second:
        words = ("--store", faulty, "--model", "scripted", "--endpoint", second.url,
                 "--timeout", 1.0, "--backoff", 0.02, "--concurrency", 8)  # fmt: skip
        command = [sys.executable, "-m", "bsdkit", "priors", *map(str, words)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=os.environ)
        while len(second.events("answer")) < n // 4:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (journal,) = faulty.glob("*.replies/replies.jsonl")
        kept = {json.loads(line)["key"] for line in journal.read_text().splitlines()[:-1]}
        assert len(kept) >= n // 4 - 9
        resumed = bsdkit_here("priors", *words)
        assert resumed.returncode == 0 and "tried again:" in resumed.stderr, resumed.stderr
        answers = second.counts("answer")
        # what was on its way when the process was killed, and no more
        assert len(answers) == n and sum(answers.values()) <= n + 8
    assert read_info(priors_of(faulty)).checksum == read_info(priors_of(faultless)).checksum
    assert not list(faulty.glob("*.replies"))

    n_before = len(server.events("request"))
    again = ask(faultless, server.url)
    assert again.returncode == 0 and len(server.events("request")) == n_before


def test_changed_metadata_and_another_prompt_are_asked_again_and_nothing_else(
    store: Path, server: Server
) -> None:
    assert ask(store, server.url).returncode == 0
    clips = Store(store).clips
    n = len(clips)
    title = clips.title.copy()
    title[3] = "Something else"
    order = np.arange(n)[::-1]
    fields = {f: getattr(clips, f)[order] for f in ("ids", "labels", "confidence", "uploader",
              "licence", "tags", "description", "duration", "sha256")}  # fmt: skip
    write_clips(store / "clips.h5", replace(clips, **fields, title=title[order]))
    said = read_feature(priors_of(store))
    assert ask(store, server.url).returncode == 0
    assert len(server.events("answer")) == n + 1
    now = read_feature(priors_of(store))
    assert now.ids.tolist() == said.ids.tolist()[::-1]
    same = now.embedding[::-1] == said.embedding
    assert same.all(axis=1).sum() == n - 1 and not same[3].all()
    masked = ask(store, server.url, "--mask-class-words")
    assert masked.returncode == 0 and len(list(store.glob("prior.scripted-*.h5"))) == 2


def test_what_cannot_be_read_is_a_missing_row_and_is_counted(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    with Server(tmp_path / "s", "--refuse hedgewars") as server:
        result = ask(store, server.url)
        assert result.returncode == 1 and "without: refused" in result.stderr, result.stderr
        rows = read_feature(priors_of(store))
        is_missing = rows.state != OK
        assert 0 < is_missing.sum() < len(rows)
        assert not rows.embedding[is_missing].any() and rows.replies is not None
        assert rows.other is not None and np.isnan(rows.other[is_missing]).all()
        first = Reply(**json.loads(rows.replies[np.flatnonzero(is_missing)[0]]))
        assert first.finish == "refusal" and first.content in rows.reasons[is_missing][0]
        # a refusal is an answer: it is asked again only where the user says so
        n = len(server.events("request"))
        assert ask(store, server.url).returncode == 1 and len(server.events("request")) == n
        assert ask(store, server.url, "--retry-failed").returncode == 1
        assert len(server.events("request")) == n + is_missing.sum()
    result = fit(store, "prior.scripted", tmp_path)
    assert result.returncode == 0, result.stderr
    told = f"{is_missing.sum()} of {len(rows)} clips have no prior.scripted: zeros to members"
    assert told in " ".join(result.stdout.split())
    metrics = json.loads((tmp_path / "runs/run/metrics.json").read_text())
    assert metrics["missing"] == {"prior.scripted": int(is_missing.sum())}
    # no clip is left without a prediction: the mixture of no classes is zero
    assert metrics["protocols"]["group"]["n_without_prediction"] == 0
    # of new clips the server is not asked unasked, but the line that asks it is whole
    data, new = tmp_path / "new.csv", tmp_path / "new"
    data.write_text("sound_id,title\n1,Big dog\n2,Rain\n")
    words = ("predict", tmp_path / "runs/run", "--member", "prior", "--out", tmp_path / "out.csv")
    told = bsdkit_here(*words, "--data", data, "--store", new)
    assert told.returncode == 2
    line = re.search(r"not asked unasked: bsdkit (priors .*), then give", told.stderr)
    assert line is not None, told.stderr
    with Server(tmp_path / "t") as server:
        made = bsdkit_here(*shlex.split(line[1]), "--endpoint", server.url)
    assert made.returncode == 0, made.stderr
    predicted = bsdkit_here(*words, "--store", new)
    assert predicted.returncode == 0, predicted.stderr


def test_a_budget_ends_a_run_cleanly_and_a_dry_one_asks_nothing(
    store: Path, server: Server
) -> None:
    n = len(Store(store).clips)
    prices = ("--price-in", 1, "--price-out", 5)
    dry = ask(store, server.url, "--dry-run", *prices)
    assert dry.returncode == 0 and f"requests    {n}" in dry.stderr and "cost" in dry.stderr
    assert not server.events("request") and not list(store.glob("*.replies"))
    first = ask(store, server.url, "--budget", 0.01, "--concurrency", 2, *prices)
    assert first.returncode == 1 and "stopped: " in first.stderr, first.stderr
    n_first = len(server.events("answer"))
    assert 0 < n_first < n and len(read_feature(priors_of(store))) == n_first
    tokens = [(r["tokens_in"], r["tokens_out"]) for r in map(json.loads, _replies(store))]
    assert sum(i + 5 * o for i, o in tokens) / 1e6 <= 0.01
    rest = ask(store, server.url)
    assert rest.returncode == 0 and set(server.counts("answer").values()) == {1}
    assert len(read_feature(priors_of(store))) == n


def _replies(store: Path) -> list[str]:
    rows = read_feature(priors_of(store))
    assert rows.replies is not None
    return rows.replies.tolist()


@pytest.mark.usefixtures("minilm")
def test_summaries_are_texts_that_extract_embeds(
    store: Path, server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    nothing = bsdkit_here("extract", "--data", tmp_path, "--store", store, "--text", "summary")
    assert nothing.returncode == 2
    result = ask(store, server.url, "--summaries")
    assert result.returncode == 0 and "summary.scripted" in result.stderr, result.stderr
    texts = find_texts(store, "summary")
    clips = Store(store).clips
    assert set(texts.by_clip) == set(clips.ids) and all(texts.by_clip.values())
    # nor does a text encoder's prior take summaries of other words than a clip has now
    changed = tmp_path / "changed"
    shutil.copytree(store, changed)
    title = clips.title.copy()
    title[:3] = "another"
    write_clips(changed / "clips.h5", replace(clips, title=title))
    told = bsdkit_here("priors", "--store", changed, "--text", "summary", "--name", "prior.said")
    assert told.returncode == 0, told.stderr
    assert f"3 of {len(clips)} clips have no current summary.scripted" in told.stderr
    # extract reads metadata from a dataset; this one has no sounds, as texts need none
    data = tmp_path / "clips.csv"
    with data.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sound_id", "class", "title", "tags", "description", "duration"])
        for i, clip in enumerate(clips.ids):
            title = "another" if i < 2 else clips.title[i]
            rows.writerow([clip, clips.taxonomy.labels[clips.labels[i]], title, clips.tags[i],
                           clips.description[i], clips.duration[i]])  # fmt: skip
    new = tmp_path / "new"
    shutil.copytree(store / "texts", new / "texts")
    embedded = bsdkit_here(
        "extract", "--data", data, "--store", new, "--text", "summary", "--backbone", "minilm"
    )
    assert embedded.returncode == 0, embedded.stderr
    features = Store(new).features(["minilm@summary"])
    assert texts.origin in str(features.infos["minilm@summary"].spec["text_template"])
    assert len(np.unique(features.arrays["minilm@summary"], axis=0)) > 10
    # a summary of other words than a clip has now is none of it
    assert f"2 of {len(clips)} clips have no current summary.scripted" in embedded.stderr


def test_a_local_model_scores_the_labels(store: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    from tests.priors.test_likelihood import MODELS, random_model, tokenizer_with
    from tests.priors.test_likelihood import words as words_fixture

    words = words_fixture.__wrapped__()  # the tokenizer as that file's tests have it
    config = MODELS["llama"]()
    config.max_position_embeddings = 4096
    random_model(config).save_pretrained(tmp_path / "tiny")
    tokenizer_with(words, "").save_pretrained(tmp_path / "tiny")
    assert transformers is not None
    few = part_of_store(store, tmp_path / "few", np.arange(12))
    line = ("priors", "--store", few, "--engine", "transformers", "--model", tmp_path / "tiny")
    first = bsdkit_here(*line)
    assert first.returncode == 0 and "prior.tiny: 12 of 12" in first.stderr, first.stderr
    path = priors_of(few, "prior.tiny")
    rows, written = read_feature(path), path.stat().st_mtime_ns
    np.testing.assert_allclose(rows.embedding.sum(axis=1), 1, atol=1e-6)
    assert rows.embedding.std(axis=0).max() > 1e-3  # the clip's metadata count
    assert bsdkit_here(*line).returncode == 0 and path.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "openia"), "unknown engine 'openia': did you mean 'openai'?"),
        (("--summaries",), "minilm writes no summaries; give a chat model: --engine openai"),
        (("--model", "aisfx"), "aisfx answers no questions; give an audio language model"),
        (("--engine", "text-encoder", "--model", "passt"), "passt embeds no text; give a text"),
        (("--temperature", "warm"), "--temperature warm: expected a number from 0, or none"),
        (("--model", "m", "--body", "[1]"), "--body [1]: expected a JSON object"),
        (("--class-text", "{label}{sound}"), "expected words with one or more of {label}"),
        (("--class-text", "{family_name}"), "gives 'm-sp' and 'm-si' the same words, 'Music'"),
        (("--model", "minilmm"), "minilmm is no backbone (did you mean 'minilm'?), so a server"),
        (
            ("--model", "m", "--budget", "1", "--endpoint", "http://x/v1"),
            "needs both prices: give --price-in and --price-out",
        ),
        (("--engine", "transformers", "--model", "./gone"), "no folder ./gone"),
        (("--dry-run",), "--dry-run is for a model on a server, and minilm runs here"),
        (("--endpoint", "http://x/v1"), "--endpoint is for a model on a server, and minilm"),
        (("--name", "../prior.x"), "--name ../prior.x: expected prior. and letters, digits"),
        (("--class-text", "{name:d}"), "class text '{name:d}': Unknown format code 'd'"),
    ],
)
def test_what_cannot_be_made_says_so_in_one_line(
    words: tuple[str, ...], message: str, store: Path
) -> None:
    if "m" in words:
        pytest.importorskip("openai")
    result = bsdkit_here("priors", "--store", store, *words)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]


def test_a_server_that_is_not_there_and_a_key_that_is(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai")
    gone = ask(store, "http://127.0.0.1:9/v1", "--attempts", 2, "--backoff", 0.02)
    assert gone.returncode == 2 and "http://127.0.0.1:9" in gone.stderr
    monkeypatch.setenv("MY_KEY", "sk-sentinel-42")
    with Server(tmp_path / "s", "--key sk-sentinel-42") as server:
        refused = ask(store, server.url)
        assert refused.returncode == 2 and "OPENAI_API_KEY" in refused.stderr
        let_in = ask(store, server.url, "--key-variable", "MY_KEY")
        assert let_in.returncode == 0, let_in.stderr
    for path in (p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".log"):
        assert b"sk-sentinel-42" not in path.read_bytes(), path


def test_a_head_on_what_is_no_prior_and_a_prior_of_other_classes(
    store: Path, server: Server, tmp_path: Path
) -> None:
    wrong = fit(store, "minilm", tmp_path, "wrong")
    assert wrong.returncode == 2
    assert "has 384 columns" in wrong.stderr, wrong.stderr
    assert ask(store, server.url).returncode == 0
    own = tmp_path / "own"
    clips = Store(store).clips
    (tmp_path / "own.csv").write_text(
        "sound_id,class\n"
        + "".join(f"{clip},dog\n" for clip in clips.ids[:-2])
        + "".join(f"{clip},cat\n" for clip in clips.ids[-2:])
    )
    line = ("priors", "--data", tmp_path / "own.csv", "--store", own, "--taxonomy", "flat",
            "--model", "scripted", "--endpoint", server.url)  # fmt: skip
    made = bsdkit_here(*line)
    assert made.returncode == 0, made.stderr
    assert Store(own).info("prior.scripted").spec["classes"] == ["cat", "dog"]
    shutil.copy(priors_of(own), store)
    for path in store.glob("prior.scripted-*.h5"):
        if read_info(path).dim == 23:
            path.unlink()
    other = fit(store, "prior.scripted", tmp_path, "other")
    assert other.returncode == 2
    assert "has the classes cat, dog, ... (2)" in other.stderr, other.stderr
    assert "run bsdkit priors again" in other.stderr


def test_the_batch_interface_step_by_step(store: Path, server: Server) -> None:
    few = ("--batch",)
    n = len(Store(store).clips)
    prepared = ask(store, server.url, *few, "prepare")
    assert prepared.returncode == 0 and "prepared" in prepared.stderr, prepared.stderr
    (folder,) = store.glob("*.replies")
    lines = [json.loads(line) for line in (folder / "batch-000.jsonl").read_text().splitlines()]
    assert len(lines) == n
    sent = json.dumps(lines)
    clips = Store(store).clips
    # neither labels nor names travel with a question
    uploaders = {name for name in clips.uploader if len(name) > 8}
    assert not any(json.dumps(name)[1:-1] in sent and name not in " ".join(
        [*clips.title, *clips.tags, *clips.description]) for name in uploaders)  # fmt: skip
    assert collections.Counter(sha(x["body"]["messages"][0]["content"]) for x in lines) == {
        sha(lines[0]["body"]["messages"][0]["content"]): n
    }
    assert ask(store, server.url, *few, "submit").returncode == 0
    assert ask(store, server.url, *few, "status").returncode == 0
    (batch,) = json.loads((folder / "batches.json").read_text())["batches"]
    server.end_batch(batch["batch"])
    done = ask(store, server.url, *few, "download")
    assert done.returncode == 0 and f"{n} of {n} clips" in done.stderr, done.stderr
    assert not list(store.glob("*.replies"))
    plain = read_feature(priors_of(store)).embedding
    assert ask(store, server.url, *few, "resume").returncode == 0
    assert (read_feature(priors_of(store)).embedding == plain).all()


def test_replies_that_are_not_asked_for_now_are_kept(store: Path, server: Server) -> None:
    """A smaller table, changed words and back again: nothing is paid for twice."""
    clips = Store(store).clips
    n = len(clips)
    assert ask(store, server.url).returncode == 0
    write_clips(store / "clips.h5", part_of(clips, np.arange(n // 2)))
    assert ask(store, server.url).returncode == 0
    assert len(read_feature(priors_of(store))) == n // 2
    write_clips(store / "clips.h5", clips)
    assert ask(store, server.url).returncode == 0
    assert len(server.events("answer")) == n and len(read_feature(priors_of(store))) == n
    assert not list(store.glob("*.replies"))
    # what does not match its checksum is not paid for again either
    path = priors_of(store)
    data = bytearray(path.read_bytes())
    place = data.find(read_feature(path).embedding[5].tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    broken = ask(store, server.url)
    assert broken.returncode == 2 and "does not match its checksum" in broken.stderr
    assert len(server.events("answer")) == n


def test_batches_and_chats_do_not_ask_the_same(store: Path, server: Server) -> None:
    assert ask(store, server.url, "--batch", "resume").returncode == 1
    both = ask(store, server.url)
    assert (
        both.returncode == 2 and "are in a batch: bsdkit priors ... --batch resume" in both.stderr
    )
    priced = ask(store, server.url, "--batch", "resume", "--budget-tokens", 1)
    assert priced.returncode == 2 and "--batch has no budget" in priced.stderr
    assert not server.events("answer")


@pytest.mark.usefixtures("minilm")
def test_a_prior_that_was_never_made_is_not_one_that_could_not_be_read(
    store: Path, tmp_path: Path
) -> None:
    assert bsdkit_here("priors", "--store", store).returncode == 0
    info = Store(store).info("prior.minilm")
    rows = read_feature(info.path)
    write_feature(info.path, info.feature, info.spec, rows.take(np.arange(40)), {})
    result = fit(store, "prior.minilm", tmp_path)
    assert result.returncode == 2
    assert "clips have no prior.minilm row" in result.stderr and "bsdkit priors" in result.stderr
    # and one that is older than what it was made from is named
    write_feature(info.path, info.feature, info.spec, rows, {})
    source = Store(store).info("minilm")
    changed = read_feature(source.path)
    changed.source_sha256[:3] = "0" * 64
    write_feature(source.path, source.feature, source.spec, changed, {})
    told = bsdkit_here("store", "verify", store)
    assert "3 rows are older than minilm: run bsdkit priors again" in " ".join(told.stdout.split())
