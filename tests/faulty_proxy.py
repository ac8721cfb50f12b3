"""A proxy before a store that fails on purpose: it refuses, cuts answers short, stalls or hangs up.

It runs as a process of its own: deltalake keeps Python's lock during some requests, and a proxy among the test's
threads could then never answer.
"""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback_server import serve

# What the proxy does with one request. `lose`: passes it on and hangs up without an answer.
REFUSE, CUT, STALL, HANG_UP, LOSE, FORBID = "refuse", "cut", "stall", "hang up", "lose", "forbid"
_CONTROL = "/__proxy"


class FaultyProxy:
    """Passes requests on to a local port, but for those that a rule names."""

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, str(port)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def fail(
        self, fault: str, *, method: str = "", containing: str = "", skip: int = 0, times: int = 1 << 30, every: int = 1
    ) -> None:
        """From now on: of the requests that match, skip some, then let every nth one fail, so many times."""
        rule = {"fault": fault, "method": method, "containing": containing, "skip": skip, "times": times}
        self._control("PUT", json.dumps(rule | {"every": every}).encode())

    def requests(self) -> list[tuple[str, str, float, str | None]]:
        """(method, path, moment in seconds, what was done to it) of each since the last rule."""
        return [tuple(one) for one in json.loads(self._control("GET"))]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _control(self, method: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"{self.endpoint}{_CONTROL}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content: bytes = answer.read()
            return content


# --- in the process -------------------------------------------------------------------------------------------


class _Rules:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rule: dict[str, Any] = {}
        self._matched = 0
        self._failed = 0
        self.requests: list[tuple[str, str, float, str | None]] = []

    def set(self, rule: dict[str, Any]) -> None:
        with self._lock:
            self._rule, self._matched, self._failed, self.requests = rule, 0, 0, []

    def of(self, method: str, path: str) -> str | None:
        with self._lock:
            fault = self._fault(method, path)
            self.requests.append((method, path, time.monotonic(), fault))
            return fault

    def _fault(self, method: str, path: str) -> str | None:
        rule = self._rule
        if not rule or rule["method"] not in ("", method) or rule["containing"] not in path:
            return None
        self._matched += 1
        past = self._matched - 1 - rule["skip"]
        if past < 0 or past % rule["every"] or self._failed >= rule["times"]:
            return None
        self._failed += 1
        return str(rule["fault"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rules: _Rules
    target: int

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == _CONTROL:
            if self.command == "PUT":
                self.rules.set(json.loads(body))
            self._answer(200, {}, json.dumps(self.rules.requests).encode())
            return
        fault = self.rules.of(self.command, self.path)
        if fault in (REFUSE, FORBID):
            self._answer(503 if fault == REFUSE else 403, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if fault == HANG_UP:
            self._hang_up()
            return
        status, headers, data = self._passed_on(body)
        if fault == LOSE:
            self._hang_up()
        elif fault in (CUT, STALL):
            self._answer(status, headers, data, sent=len(data) // 2)
            if fault == STALL:
                time.sleep(60)
            self._hang_up()
        else:
            self._answer(status, headers, data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def _passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        # The signature covers the Host header: it goes on as it came.
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            kept = {name: value for name, value in answer.getheaders() if name.lower() != "transfer-encoding"}
            return answer.status, kept, answer.read()
        except OSError:
            return 503, {}, b"<Error><Code>Away</Code></Error>"
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, sent: int | None = None) -> None:
        with contextlib.suppress(OSError):
            self.send_response_only(status)
            lengths = {"Content-Length": str(len(data))} if self.command != "HEAD" else {}
            for name, value in {**headers, **lengths}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:sent])
            self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    _Handler.rules, _Handler.target = _Rules(), int(sys.argv[1])
    serve(_Handler)
