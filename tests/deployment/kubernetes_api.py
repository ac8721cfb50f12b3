"""A Kubernetes API as small as it can be: RayJobs are created and read, and answers may be told beforehand."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Api:
    """What it holds and was asked. `states`: the statuses that reads of a RayJob give, one after another.

    `refusals`: HTTP codes that the next requests get instead of an answer.
    """

    def __init__(self, states: list[dict[str, Any]]) -> None:
        self.states = states
        self.refusals: list[int] = []
        self.rayjobs: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.url = ""


@contextmanager
def serving(api: Api) -> Iterator[Api]:
    """The API on a port of this machine's loopback, for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self._refused():
                return
            path = f"{self.path}/{body['metadata']['name']}"
            known = path in api.rayjobs
            if not known:
                api.rayjobs[path] = body
            self._answer(409 if known else 201, body)

        def do_GET(self) -> None:
            if self._refused():
                return
            if self.path not in api.rayjobs:
                self._answer(404, {"message": "not found"})
                return
            status = api.states.pop(0) if len(api.states) > 1 else api.states[0]
            self._answer(200, {**api.rayjobs[self.path], "status": status})

        def _refused(self) -> bool:
            api.asked.append((self.command, self.path, self.headers["Authorization"]))
            if not api.refusals:
                return False
            self._answer(api.refusals.pop(0), {"message": "not now"})
            return True

        def _answer(self, code: int, body: dict[str, Any]) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
