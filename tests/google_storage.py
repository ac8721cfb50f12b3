"""Google's storage as its XML API is documented, as far as this project asks for it: objects with generations, ranges,
conditional writes, listings. It stands in where no emulator does: those at hand speak the JSON API only.

A process of its own, as deltalake keeps Python's lock during some requests.
"""

import contextlib
import hashlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from loopback_server import serve

_GUARD = threading.Lock()
# By bucket and key: the bytes and their generation.
_OBJECTS: dict[str, tuple[bytes, int]] = {}
_CREATED = "2026-01-01T00:00:00.000Z"


class Server:
    """The store on a port of this machine's loopback; what it holds ends with it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.endpoint = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body are two writes; the second would wait for the first one's receipt.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self._key().endswith("/") or "/" not in self._key():
            self._list()
            return
        found = _OBJECTS.get(self._key())
        if found is None:
            self._answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
            return
        data, generation = found
        headers = self._marks(data, generation)
        asked = self.headers.get("Range")
        if asked is None:
            self._answer(200, headers, data)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        start = int(first) if first else len(data) - int(last)
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        if start >= len(data):
            self._answer(416, {}, b"")
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(206, headers, data[start : end + 1])

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        with _GUARD:
            now = _OBJECTS.get(self._key(), (b"", 0))[1]
            if wanted is None or int(wanted) == now:
                _OBJECTS[self._key()] = data, time.time_ns()
                now = -1
        if now >= 0:
            self._answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        self._answer(200, self._marks(*_OBJECTS[self._key()]), b"")

    def do_DELETE(self) -> None:
        with _GUARD:
            gone = _OBJECTS.pop(self._key(), None)
        self._answer(204 if gone else 404, {}, b"")

    def _list(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        bucket = self._key().rstrip("/") + "/"
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        after = max(asked.get("continuation-token", ""), asked.get("start-after", ""))
        most = int(asked.get("max-keys", 1000))
        with _GUARD:
            names = sorted(name.removeprefix(bucket) for name in _OBJECTS if name.startswith(bucket + prefix))
            held = dict(_OBJECTS)
        shown: list[str] = []
        folders: list[str] = []
        last = ""
        for name in (name for name in names if name > after):
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            folder = name[: cut + 1]
            if folder and folder in folders:
                last = name
                continue
            if len(shown) + len(folders) == most:
                break
            last = name
            if folder:
                folders.append(folder)
            else:
                shown.append(name)
        more = bool(last) and any(name > last for name in names)
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{_CREATED}</LastModified>"
            f"<ETag>&quot;{hashlib.md5(held[bucket + name][0]).hexdigest()}&quot;</ETag>"
            f"<Size>{len(held[bucket + name][0])}</Size></Contents>"
            for name in shown
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in folders)
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if more else ""
        text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        self._answer(200, {}, text.encode())

    def _key(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _marks(self, data: bytes, generation: int) -> dict[str, str]:
        return {
            "ETag": f'"{hashlib.md5(data).hexdigest()}"',
            "x-goog-generation": str(generation),
            "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
        }

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    serve(_Handler)
