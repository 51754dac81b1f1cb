# Copyright 2026 The trl-focus authors. Licensed under the Apache License, Version 2.0.

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from .api import ROUTES, Answer, Refused, Request
from .faults import Fault
from .repos import Repo


class LoopbackHub:
    """
    The server. Start it with `with`; it runs in threads, and processes find it by `environment`.

    Args:
        users (`dict[str, str]`):
            Names by token.
    """

    def __init__(self, users: dict[str, str]):
        self.users = users
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fail(self, method: str, path: str, **kwargs) -> Fault:
        """Lets requests go wrong: see [`Fault`]."""
        fault = Fault(method, path, **kwargs)
        with self.lock:
            self.faults.append(fault)
        return fault

    def model(self, repo_id: str) -> Repo:
        return self.repos["models", repo_id]

    def count(self, method: str, path: str) -> int:
        """How many such requests came."""
        with self.lock:
            return sum(method == m and re.search(path, p) is not None for m, p in self.requests)

    def environment(self, home, token: str | None) -> dict[str, str]:
        """What a process needs in its environment, when it starts, to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_XET": "1",  # the transfer that this server has none of
            "HF_HUB_OFFLINE": "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1",
            **({} if token is None else {"HF_TOKEN": token}),
        }


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def serve(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            fault = next((fault for fault in self.hub.faults if fault.strikes(self.command, path)), None)
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.cut and length:
            self.rfile.read(length // 2)
            return self.hang_up()
        body = self.read_body(length)
        if body is None:
            return self.hang_up()
        if fault is not None and fault.hang:
            self.hub.closing.wait(fault.hang)
            return self.hang_up()
        if fault is not None and fault.status is not None:
            return self.send(Answer(fault.status, json.dumps({"error": "fault"}).encode(), fault.headers))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        request = Request(self.command, parse_qs(url.query), self.headers, body, self.hub.users.get(token))
        answer = self.answer(url.path, request)
        if fault is not None and fault.lost:
            return self.hang_up()
        self.send(answer, cut=fault is not None and fault.cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def read_body(self, length: int) -> bytes | None:
        """What came in, or `None` if the other side hung up before its end."""
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            body = self.rfile.read(length)
            return body if len(body) == length else None
        chunks = []
        while line := self.rfile.readline().split(b";")[0].strip():
            size = int(line, 16)
            chunk = self.rfile.read(size)
            self.rfile.readline()
            if len(chunk) < size:
                return None
            if size == 0:
                return b"".join(chunks)
            chunks.append(chunk)
        return None

    def answer(self, path: str, request: Request) -> Answer:
        try:
            with self.hub.lock:
                for methods, pattern, route in ROUTES:
                    if request.method in methods and (match := re.fullmatch(pattern, path)):
                        groups = {name: value and unquote(value) for name, value in match.groupdict().items()}
                        return route(self.hub, request, **groups)
            raise Refused(404, f"no route {request.method} {path}")
        except Refused as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            return Answer(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def send(self, answer: Answer, cut: bool = False):
        self.send_response(answer.status)
        for name, value in {"Content-Length": len(answer.body), **answer.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.hang_up()

    def hang_up(self):
        self.wfile.flush()
        self.close_connection = True
