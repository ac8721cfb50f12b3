"""Azurite, Microsoft's own emulator of its blob storage (`npm install azurite`), as a process for tests."""

import base64
import hashlib
import hmac
import http.client
import os
import shutil
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

# The emulator's one account: the same for everybody, and in Microsoft's documentation.
ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
PROGRAM = "QUALITYGATE_AZURITE"
_START_S = 60
_VERSION = "2021-08-06"


def binary() -> str | None:
    """Path of `azurite-blob`: what the variable names, or on the path."""
    return os.environ.get(PROGRAM) or shutil.which("azurite-blob")


class Server:
    """The store on a free local port; what it holds ends with it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self._port = one.getsockname()[1]
        program = binary()
        assert program is not None
        command = [program, "--silent", "--inMemoryPersistence", "--disableTelemetry", "--loose"]
        command += ["--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(self._port)]
        self._process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not self._answers():
            assert self._process.poll() is None, "azurite-blob ended at once"
            assert time.monotonic() < deadline, "azurite-blob does not answer"
            time.sleep(0.2)

    @property
    def environment(self) -> dict[str, str]:
        """What clients find the store by, in the variables that Rust's `object_store` has for emulators."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self._port}",
        }

    def make_container(self, name: str) -> None:
        """By its REST interface, as no client of this project makes any."""
        date = f"{datetime.now(UTC):%a, %d %b %Y %H:%M:%S} GMT"
        # The form that Azure's "Shared Key" signs: the verb, eleven empty headers, its own headers, the resource.
        path = f"/{ACCOUNT}/{name}"
        lines = ["PUT", *[""] * 11, f"x-ms-date:{date}", f"x-ms-version:{_VERSION}"]
        lines += [f"/{ACCOUNT}{path}", "restype:container"]
        digest = hmac.new(base64.b64decode(_KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
        signed = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        headers = {"x-ms-date": date, "x-ms-version": _VERSION, "Authorization": signed, "Content-Length": "0"}
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        connection.request("PUT", f"{path}?restype=container", headers=headers)
        answer = connection.getresponse()
        assert answer.status == 201, answer.read()
        connection.close()

    def close(self) -> None:
        """End it, with the node process that its starter began."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False
