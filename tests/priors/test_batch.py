"""Batches: each clip is paid for once, whatever is killed, lost or left half done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask
from bsdkit.priors.engines import batch as batches
from bsdkit.priors.engines.batch import prepare, resume, status, submit
from bsdkit.priors.engines.batch_answers import Downloaded
from bsdkit.priors.engines.chat import ask_all
from bsdkit.priors.engines.request import Connection
from bsdkit.priors.journal import Journal
from tests.priors.llm_server import Server
from tests.priors.test_chat import PROMPT, SETTINGS, asks

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def to(server: Server) -> Connection:
    return Connection(server.url, backoff=0.01, timeout=2.0)


def facts_of(journal: Journal) -> Any:
    return lambda schema, revision: journal.set_facts({"schema": schema, "revision": revision})


def go_on(journal: Journal, clips: list[Ask], server: Server, **options: Any) -> Any:
    return resume(
        journal, clips, PROMPT, SETTINGS, to(server), on_found=facts_of(journal), **options
    )


def test_a_whole_cycle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_REQUESTS", 10)
    clips, journal = asks(25), Journal(tmp_path / "journal")
    assert [path.name for path in prepare(journal, clips, PROMPT, SETTINGS)] == [
        f"batch-00{i}.jsonl" for i in range(3)
    ]
    assert prepare(journal, clips, PROMPT, SETTINGS) == []
    first = json.loads((journal.folder / "batch-000.jsonl").read_text().splitlines()[0])
    assert first["custom_id"] == clips[0].key and clips[0].clip not in first
    assert (first["method"], first["url"]) == ("POST", "/v1/chat/completions")
    assert first["body"]["response_format"]["type"] == "json_schema"
    with Server(tmp_path / "server") as server:
        states = submit(journal, to(server))
        assert [(s.batch, s.state, s.n) for s in states] == [
            ("batch-000", "in_progress", 10),
            ("batch-001", "in_progress", 10),
            ("batch-002", "in_progress", 5),
        ]
        # nothing has ended: nothing comes, and nothing is submitted again, by a restarted server
        server.stop()
        server.start()
        brought, states = go_on(journal, clips, server)
        assert brought == Downloaded() and len(states) == 3
        for state in states:
            server.end_batch(state.batch)
        assert {s.state for s in status(journal, to(server))} == {"completed"}
        assert go_on(journal, clips, server)[0] == Downloaded(n_replies=25)
        brought, states = go_on(journal, clips, server)
        assert brought == Downloaded() and all(s.is_downloaded for s in states)
        assert len(states) == 3
        assert server.counts("answer") == {ask.sha256: 1 for ask in clips}
        replies = journal.replies()
        assert journal.facts() == {"schema": "json_schema", "revision": "scripted-1"}
        # one by one, the same is answered
        one_by_one = Journal(tmp_path / "another")
        ask_all(
            clips, PROMPT, SETTINGS, to(server),
            on_reply=one_by_one.append, on_found=facts_of(one_by_one),
        )  # fmt: skip
    assert replies == one_by_one.replies() and len(replies) == 25


def test_the_size_of_a_file_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MOST_BYTES", 2000)
    clips = [*asks(12), Ask("long", "x" * 5000)]
    paths = prepare(Journal(tmp_path), clips, PROMPT, SETTINGS)
    sizes = [path.stat().st_size for path in paths]
    assert max(sizes[:-1]) <= 2000 < sizes[-1]
    lines = [line for path in paths for line in path.read_text().splitlines()]
    assert [json.loads(line)["custom_id"] for line in lines] == [ask.key for ask in clips]


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is written after it."""


@pytest.mark.parametrize(("at", "n_files"), [(1, 2), (2, 1)])  # after the upload, the submission
def test_a_kill_does_not_submit_twice(
    at: int, n_files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, journal = asks(5), Journal(tmp_path / "journal")
    prepare(journal, clips, PROMPT, SETTINGS)
    keep, n = batches._keep, 0

    def killed(*state: Any) -> None:
        nonlocal n
        n += 1
        if n == at:
            raise Killed
        keep(*state)

    with Server(tmp_path / "server") as server:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(batches, "_keep", killed)
            submit(journal, to(server))
        assert journal.read_json("batches.json")["batches"][0]["batch"] == ""
        states = submit(journal, to(server))
        kept = json.loads((tmp_path / "server/kept/state.json").read_text())
        assert (len(kept["batches"]), len(kept["files"]), len(states)) == (1, n_files, 1)
        server.end_batch(states[0].batch)
        assert go_on(journal, clips, server)[0].n_replies == 5


def test_an_answer_that_is_lost_does_not_submit_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    prepare(journal, asks(5), PROMPT, SETTINGS)
    with Server(tmp_path / "server", "--drop-batch-answers") as server:
        assert submit(journal, to(server))[0].batch == "batch-000"
        assert len(json.loads((tmp_path / "server/kept/state.json").read_text())["batches"]) == 1


@pytest.mark.parametrize("state", ["expired", "cancelled", "failed"])
def test_what_ends_halfway_is_asked_again(state: str, tmp_path: Path) -> None:
    clips, journal = asks(10), Journal(tmp_path / "journal")
    n = 0 if state == "failed" else 6
    with Server(tmp_path / "server") as server:
        go_on(journal, clips, server)
        server.end_batch("batch-000", status=state, n=n)
        brought, states = go_on(journal, clips, server)
        assert (brought.n_replies, brought.n_left) == (n, 10 - n)
        assert [s.state for s in states] == [state, "in_progress"]
        assert [s.n for s in states] == [10, 10 - n]
        assert states[0].problem == ("token limit reached" if state == "failed" else "")
        journal.clear()  # what is not downloaded outlives it
        server.end_batch(states[1].batch)
        todo = clips[n:]
        assert go_on(journal, todo, server)[0].n_replies == 10 - n
        assert server.counts("answer") == {ask.sha256: 1 for ask in clips}
    assert list(journal.replies()) == [ask.key for ask in todo]
    journal.clear()
    assert list(journal.folder.iterdir()) == []


def test_every_line_is_looked_at(tmp_path: Path) -> None:
    clips, journal = asks(8), Journal(tmp_path / "journal")
    bad = Ask("bad", "BADWORD")
    stranger = json.dumps({"custom_id": "0" * 32, "response": {"status_code": 200}})
    body = {"choices": [{"message": {"content": "mine"}}], "model": "scripted-1"}
    own = json.dumps({"custom_id": clips[3].key, "response": {"status_code": 200, "body": body}})
    empty = json.dumps({"custom_id": clips[4].key, "response": {"status_code": 200, "body": {}}})
    with Server(tmp_path / "server", "--reject BADWORD") as server:
        go_on(journal, [*clips, bad], server)
        lines = [stranger, own, own, empty, '{"custom_id": "to', "[]"]
        server.end_batch("batch-000", errors=2, lines=lines)
        brought, states = go_on(journal, [*clips, bad], server)
        # clips 0 and 1 had a 500, the line of clip 4 without an answer is followed by a good one
        assert brought == Downloaded(7, n_left=2, n_unknown=1, n_repeated=2, n_unreadable=2)
        assert [s.n for s in states] == [9, 2]
    replies = journal.replies()
    assert replies[clips[3].key].content == "mine"
    assert replies[bad.key].finish == "rejected"
    assert replies[bad.key].content == "the content filter was triggered"
    assert set(replies) == {ask.key for ask in [*clips[2:], bad]}


def test_what_is_wrong_for_all_or_another_model_is_said(tmp_path: Path) -> None:
    clips = asks(6)
    journal = Journal(tmp_path / "first")
    with Server(tmp_path / "a", "--no-temperature") as server:
        go_on(journal, clips, server)
        server.end_batch("batch-000")
        with pytest.raises(PriorError, match="give --temperature none"):
            go_on(journal, clips, server)
    assert journal.replies() == {} == journal.facts()
    journal = Journal(tmp_path / "second")
    with Server(tmp_path / "b", "--switch-model-after 4") as server:
        go_on(journal, clips, server)
        server.end_batch("batch-000")
        with pytest.raises(PriorError, match="was 'scripted-1' and now is 'another-model'"):
            go_on(journal, clips, server)
        assert len(journal.replies()) == 4
        # what came before is kept, and the rest is asked anew under the name that is given
        assert go_on(journal, clips, server, revision="x")[0].n_replies == 0
        server.end_batch("batch-001")
        assert go_on(journal, clips, server, revision="x")[0].n_replies == 2
    with Server(tmp_path / "c", "--key another") as server:
        prepare(journal, asks(8), PROMPT, SETTINGS)
        with pytest.raises(PriorError, match="401: the key in the environment variable OPENAI"):
            submit(journal, to(server))
    (journal.folder / "batch-002.jsonl").write_text("changed")
    with pytest.raises(PriorError, match="is not as it was prepared"):
        submit(journal, Connection("http://127.0.0.1:9/v1"))
    journal = Journal(tmp_path / "third")
    prepare(journal, clips, PROMPT, SETTINGS)
    with pytest.raises(PriorError, match="no answer from http://127.0.0.1:9/v1: broken connection"):
        submit(journal, Connection("http://127.0.0.1:9/v1", backoff=0.01, attempts=3))
