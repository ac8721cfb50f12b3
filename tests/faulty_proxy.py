"""A proxy before a store that fails on purpose: it refuses, cuts answers short, stalls or hangs up."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What the proxy does with one request. `lose`: passes it on and hangs up without an answer.
REFUSE, CUT, STALL, HANG_UP, LOSE, FORBID = "refuse", "cut", "stall", "hang up", "lose", "forbid"
Fault = Callable[[str, str, int], str | None]


class FaultyProxy:
    """Passes requests on to `port` unless `fault(method, path, how many before it)` names what to do instead."""

    def __init__(self, port: int) -> None:
        self.fault: Fault = lambda _method, _path, _count: None
        self.requests: list[tuple[str, str, float]] = []
        self._target = port
        self._stopping = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        count = len(self.requests)
        self.requests.append((request.command, request.path, time.monotonic()))
        fault = self.fault(request.command, request.path, count)
        if fault in (REFUSE, FORBID):
            self._answer(request, 503 if fault == REFUSE else 403, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == HANG_UP:
            self._hang_up(request)
            return
        status, headers, data = self._passed_on(request, body)
        if fault == LOSE:
            self._hang_up(request)
        elif fault == CUT:
            self._answer(request, status, headers, data, sent=len(data) // 2)
            self._hang_up(request)
        elif fault == STALL:
            self._answer(request, status, headers, data, sent=len(data) // 2)
            self._stopping.wait(30)
            self._hang_up(request)
        else:
            self._answer(request, status, headers, data)

    def _passed_on(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        # The signature covers the Host header: it goes on as it came.
        connection = http.client.HTTPConnection("127.0.0.1", self._target, timeout=30)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
            return answer.status, kept, answer.read()
        finally:
            connection.close()

    @staticmethod
    def _answer(
        request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes, sent: int | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            request.send_response_only(status)
            lengths = {"Content-Length": str(len(data))} if request.command != "HEAD" else {}
            for name, value in {**headers, **lengths}.items():
                request.send_header(name, value)
            request.end_headers()
            if request.command != "HEAD":
                request.wfile.write(data[:sent])
            request.wfile.flush()

    @staticmethod
    def _hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)
