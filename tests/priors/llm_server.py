"""A scripted server that speaks OpenAI's chat completions, files and batches, as its own process.

    python tests/priors/llm_server.py --port 0 --log FILE [--faults SEED] ...

It prints its port. Answers follow from the sha256 of the user message alone. Faults follow from
(seed, sha256, how often the message came), so that every message gets through in the end. The
log has a line a request and a line a complete answer. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FAULTS = ("429", "500", "503", "hang", "half body", "drip", "html", "no json", "no choices")
FAULTY_TRIES = 3  # of a message; then it gets through
FAULT_SHARE = 0.5


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def enums(node: Any) -> Iterator[list[str]]:
    if isinstance(node, dict):
        if isinstance(node.get("enum"), list):
            yield node["enum"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from enums(item)


class State:
    """What all handlers share, and what a folder keeps over a restart."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.lock = threading.Lock()
        self.n_tries: Counter[str] = Counter()
        self.n_answers = 0
        self.n_requests = 0
        self.folder = Path(options.folder) if options.folder else None
        self.store: dict[str, Any] = {"files": {}, "batches": {}}
        if self.folder and (self.folder / "state.json").exists():
            self.store = json.loads((self.folder / "state.json").read_text())

    def log(self, **event: Any) -> None:
        if self.options.log:
            event["time"] = time.monotonic()
            with self.lock, Path(self.options.log).open("a") as file:
                file.write(json.dumps(event) + "\n")

    def save(self) -> None:
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / "state.tmp"
            temporary.write_text(json.dumps(self.store))
            temporary.replace(self.folder / "state.json")

    def add_file(self, data: str, name: str, purpose: str) -> dict[str, Any]:
        with self.lock:
            number = len(self.store["files"])
            meta = {
                "id": f"file-{number:03d}",
                "object": "file",
                "bytes": len(data.encode()),
                "created_at": int(time.time()),
                "filename": name,
                "purpose": purpose,
                "status": "processed",
            }
            self.store["files"][meta["id"]] = {"meta": meta, "data": data}
            self.save()
        return meta

    # --- chat ---------------------------------------------------------------------------

    def complaint(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """What is wrong with a request, as (status, error)."""
        options = self.options
        user = body["messages"][-1]["content"]

        def error(status: int, message: str, **rest: Any) -> tuple[int, dict[str, Any]]:
            return status, {"message": message, "type": "invalid_request_error", **rest}

        kind = body.get("response_format", {}).get("type")
        if options.no_schema and kind == "json_schema":
            return error(400, "response_format json_schema is not supported", param=None)
        if options.no_json and kind == "json_object":
            return error(422, "grammar backend missing for json_object")
        if options.no_completion_tokens and "max_completion_tokens" in body:
            return error(400, "Unrecognized request argument supplied: max_completion_tokens")
        if options.no_temperature and "temperature" in body:
            return error(400, "Unsupported value: 'temperature'", param="temperature")
        if options.bad_request:
            return error(400, "this request makes no sense")
        if options.only_model and body["model"] != options.only_model:
            return error(404, f"The model {body['model']} does not exist", code="model_not_found")
        if options.reject and options.reject in user:
            return error(400, "the content filter was triggered", code="content_filter")
        return None

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        options = self.options
        user = body["messages"][-1]["content"]
        digest = sha(user)
        chance = random.Random(digest)
        schema = body.get("response_format", {}).get("json_schema", {})
        labels = next(enums(schema), options.labels.split(","))
        if schema.get("name") == "summary" or "classes" not in json.dumps(schema or "classes"):
            text = json.dumps({"summary": f"Sound {digest[:8]}."})
        else:
            chosen = chance.sample(labels, min(3, len(labels)))
            weights = [round(chance.uniform(0.1, 1), 3) for _ in chosen]
            rows = [{"label": a, "probability": b} for a, b in zip(chosen, weights, strict=True)]
            text = json.dumps({"classes": rows})
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if options.refuse and options.refuse in user:
            message = {"role": "assistant", "content": None, "refusal": "I cannot say."}
        with self.lock:
            self.n_answers += 1
            after = options.switch_model_after
            is_switched = after is not None and self.n_answers > after
        return {
            "id": f"chatcmpl-{digest[:8]}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": "another-model" if is_switched else options.model_name,
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {
                "prompt_tokens": 100,
                "completion_tokens": 20 + int(digest[:2], 16) % 20,
                "total_tokens": 0,
            },
        }

    def fault(self, digest: str) -> str:
        with self.lock:
            n = self.n_tries[digest]
            self.n_tries[digest] += 1
        if self.options.faults is None or n >= FAULTY_TRIES:
            return ""
        chance = random.Random(f"{self.options.faults}:{digest}:{n}")
        kinds = [self.options.only_fault] if self.options.only_fault else FAULTS
        return chance.choice(kinds) if chance.random() < FAULT_SHARE else ""

    # --- batches ------------------------------------------------------------------------

    def create_batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        lines = self.store["files"][wanted["input_file_id"]]["data"].splitlines()
        with self.lock:
            batch = {
                "id": f"batch-{len(self.store['batches']):03d}",
                "object": "batch",
                "endpoint": wanted["endpoint"],
                "completion_window": wanted["completion_window"],
                "input_file_id": wanted["input_file_id"],
                "metadata": wanted.get("metadata"),
                "status": "in_progress",
                "created_at": int(time.time()),
                "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            }
            self.store["batches"][batch["id"]] = batch
            self.save()
        return batch

    def end_batch(self, batch: dict[str, Any], plan: dict[str, Any]) -> None:
        """Answers a batch.

        Args:
            batch: as created.
            plan: ``status``; ``n``, how many lines are answered; ``lines``, put before the
                output as they are; ``errors``, how many of the answers are a 500 instead.
        """
        source = self.store["files"][batch["input_file_id"]]["data"].splitlines()
        n = plan.get("n", len(source))
        output = list(plan.get("lines", []))
        errors = []
        for i, line in enumerate(source):
            request = json.loads(line)
            entry: dict[str, Any] = {"id": f"r{i}", "custom_id": request["custom_id"]}
            if i >= n:
                reason = {"code": "batch_expired", "message": "not executed in time"}
                errors.append({**entry, "response": None, "error": reason})
                continue
            complaint = self.complaint(request["body"])
            if i < plan.get("errors", 0):
                complaint = (500, {"message": "the server had an error"})
            if complaint:
                answer = {"status_code": complaint[0], "body": {"error": complaint[1]}}
                errors.append({**entry, "response": answer, "error": None})
                continue
            body = self.completion(request["body"])
            self.log(event="answer", sha=sha(request["body"]["messages"][-1]["content"]))
            answer = {"status_code": 200, "request_id": f"q{i}", "body": body}
            output.append(json.dumps({**entry, "response": answer, "error": None}))
        if output:
            meta = self.add_file("\n".join(output) + "\n", "output.jsonl", "batch_output")
            batch["output_file_id"] = meta["id"]
        if errors:
            text = "".join(json.dumps(error) + "\n" for error in errors)
            batch["error_file_id"] = self.add_file(text, "errors.jsonl", "batch_output")["id"]
        batch["status"] = plan.get("status", "completed")
        if batch["status"] == "failed":
            batch["errors"] = {"object": "list", "data": [{"message": "token limit reached"}]}
        with self.lock:
            self.save()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, status: int, data: bytes, kind: str = "application/json", **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", more.pop("length", str(len(data))))
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def json(self, status: int, value: Any, **more: str) -> None:
        self.send(status, json.dumps(value).encode(), **more)

    def is_let_in(self) -> bool:
        key = self.state.options.key
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not key or given == key:
            return True
        # some servers say the key back
        self.json(401, {"error": {"message": f"Incorrect API key provided: {given}"}})
        return False

    def do_GET(self) -> None:
        store = self.state.store
        path, _, query = self.path.partition("?")
        if not self.is_let_in():
            return
        if path == "/v1/models":
            name = self.state.options.model_name
            self.json(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
        elif path == "/v1/batches":
            batches = list(store["batches"].values())[::-1]
            after = re.search(r"after=([\w-]+)", query)
            if after:
                ids = [batch["id"] for batch in batches]
                batches = batches[ids.index(after[1]) + 1 :]
            page = batches[:2]  # small pages, so that a client must turn them
            self.json(200, {"object": "list", "data": page, "has_more": len(batches) > len(page)})
        elif match := re.fullmatch(r"/v1/batches/([\w-]+)", path):
            self.json(200, store["batches"][match[1]])
        elif match := re.fullmatch(r"/v1/files/([\w-]+)/content", path):
            data = store["files"][match[1]]["data"].encode()
            self.send(200, data, "application/octet-stream")
        else:
            self.json(404, {"error": {"message": f"no such path: {path}"}})

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        if len(data) < length:  # the client was killed
            self.close_connection = True
            return
        if not self.is_let_in():
            return
        if self.path == "/v1/chat/completions":
            self.chat(json.loads(data))
        elif self.path == "/v1/files":
            self.upload(data)
        elif self.path == "/v1/batches":
            batch = self.state.create_batch(json.loads(data))
            if self.state.options.drop_batch_answers:
                self.close_connection = True
                return
            self.json(200, batch)
        elif match := re.fullmatch(r"/test/end/([\w-]+)", self.path):
            self.state.end_batch(self.state.store["batches"][match[1]], json.loads(data))
            self.json(200, {})
        else:
            self.json(404, {"error": {"message": f"no such path: {self.path}"}})

    def upload(self, data: bytes) -> None:
        mark = b"--" + self.headers["Content-Type"].partition("boundary=")[2].encode()
        content, name = "", ""
        for part in data.split(mark):
            head, _, body = part.partition(b"\r\n\r\n")
            if b'name="file"' in head:
                content = body.removesuffix(b"\r\n").decode()
                name = re.search(rb'filename="([^"]*)"', head)[1].decode()  # type: ignore[index]
        self.json(200, self.state.add_file(content, name, "batch"))

    def chat(self, body: dict[str, Any]) -> None:
        state, options = self.state, self.state.options
        digest = sha(body["messages"][-1]["content"])
        with state.lock:
            state.n_requests += 1
            is_spent = options.quota_after is not None and state.n_requests > options.quota_after
        fault = state.fault(digest)
        state.log(event="request", sha=digest, fault=fault, limit="max_tokens" in body)
        if options.delay:
            time.sleep(options.delay)
        if is_spent:
            error = {"message": "You exceeded your quota", "code": "insufficient_quota"}
            self.json(429, {"error": error})
            return
        complaint = state.complaint(body)
        if complaint:
            self.json(complaint[0], {"error": complaint[1]})
            return
        try:
            self.faulty(fault) if fault in FAULTS[:4] else self.answer(body, digest, fault)
        except OSError:
            self.close_connection = True

    def faulty(self, fault: str) -> None:
        if fault == "429":
            wait = self.state.options.retry_after
            self.json(429, {"error": {"message": "slow down"}}, Retry_After=wait)
        elif fault == "hang":
            time.sleep(self.state.options.hang)
            self.close_connection = True
        else:
            self.json(int(fault), {"error": {"message": "try later"}})

    def answer(self, body: dict[str, Any], digest: str, fault: str) -> None:
        data = json.dumps(self.state.completion(body)).encode()
        if fault == "half body":
            self.send(200, data[: len(data) // 2], length=str(len(data)))
            self.close_connection = True
            return
        if fault == "html":
            self.send(200, b"<html>busy</html>", "text/html")
            return
        if fault == "no json":
            self.send(200, data[:-10])
            return
        if fault == "no choices":
            self.json(200, {"error": {"message": "the model is busy"}})
            return
        if fault == "drip":
            self.send(200, b"", length=str(len(data)))
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.02)
        else:
            self.send(200, data)
        self.state.log(event="answer", sha=digest)


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--log")
    arguments.add_argument("--folder", help="keeps files and batches over a restart")
    arguments.add_argument("--faults", type=int, help="seed; none without it")
    arguments.add_argument("--only-fault", choices=FAULTS)
    arguments.add_argument("--hang", type=float, default=1.0, help="seconds of a hang")
    arguments.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    arguments.add_argument("--retry-after", default="0.05")
    arguments.add_argument("--key", default="")
    arguments.add_argument("--labels", default="a,b,c,other")
    arguments.add_argument("--model-name", default="scripted-1")
    arguments.add_argument("--only-model", default="", help="404 for any other")
    arguments.add_argument("--switch-model-after", type=int)
    arguments.add_argument("--quota-after", type=int)
    arguments.add_argument("--reject", default="")
    arguments.add_argument("--refuse", default="")
    for flag in (
        "no-schema", "no-json", "no-completion-tokens", "no-temperature", "bad-request",
        "drop-batch-answers",
    ):  # fmt: skip
        arguments.add_argument(f"--{flag}", action="store_true")
    return arguments


def main() -> None:
    options = parser().parse_args()
    Handler.state = State(options)
    server = QuietServer(("127.0.0.1", options.port), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print(server.server_address[1], flush=True)
    server.serve_forever(poll_interval=0.05)


class Server(contextlib.AbstractContextManager["Server"]):
    """A server process; `url` is its base URL, `log` its log.

    Args:
        folder: where its log lies, and what it keeps over a restart.
        flags: of the command line, such as ``--faults 1``.
    """

    def __init__(self, folder: Path, flags: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = 0
        self.start(flags)

    def start(self, flags: str = "") -> None:
        """Starts it, the second time on the port of the first."""
        log, kept = self.folder / "server.log", self.folder / "kept"
        command = [sys.executable, "-S", __file__, "--port", str(self.port), "--log", str(log)]
        self.process = subprocess.Popen(
            [*command, "--folder", str(kept), *flags.split()], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.folder / "server.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def counts(self, kind: str) -> Counter[str]:
        """How often each message was in a ``request`` or got an ``answer``, by its sha256."""
        return Counter(event["sha"] for event in self.events(kind))

    def end_batch(self, batch: str, **plan: Any) -> None:
        """Ends a batch as planned; see `State.end_batch`."""
        import urllib.request

        url = f"{self.url.removesuffix('/v1')}/test/end/{batch}"
        with urllib.request.urlopen(url, json.dumps(plan).encode(), timeout=10) as answer:
            answer.read()


if __name__ == "__main__":
    main()
