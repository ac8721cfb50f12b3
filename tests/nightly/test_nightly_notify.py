"""Telling how a night ended: a program or an allowed https address, no other; a failure is said and no more."""

import datetime
import http.server
import json
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from qualitygate.config import NightlyConfig, echo
from qualitygate.errors import ConfigurationError
from qualitygate.nightly import notify

MESSAGE = {"night": "n1", "state": "refused", "reasons": ["lapm hat sich verändert"]}
TOKEN = "token-that-must-not-show"


def _config(**given: Any) -> NightlyConfig:
    return NightlyConfig(**({"input": "in", "output": "out"} | given))


# ---- programs --------------------------------------------------------------------------------------------


def _program(text: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import sys, os, time; {text}", *arguments)


def test_a_program_gets_the_outcome_on_its_input(tmp_path: Path) -> None:
    program = _program("open(sys.argv[1], 'wb').write(sys.stdin.buffer.read())", str(tmp_path / "told"))
    assert notify.send(_config(notify_command=program), MESSAGE) == []
    assert json.loads((tmp_path / "told").read_bytes()) == MESSAGE


def test_nobody_is_told_unless_it_is_asked_for() -> None:
    assert notify.send(_config(), MESSAGE) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (
            _program("print('s3://me:secret@b is away', file=sys.stderr); sys.exit(7)"),
            "ended with 7: s3://***@b is away",
        ),
        (_program("sys.exit(1)"), "ended with 1"),
        (("/no/such/program", TOKEN), "'/no/such/program' failed"),
        (("null\0byte",), "failed"),
        # It hasn't read what it was given.
        (_program("os.close(0); sys.exit(3)"), "ended with 3"),
    ],
)
def test_a_program_that_fails_is_said(command: tuple[str, ...], said: str) -> None:
    (problem,) = notify.send(_config(notify_command=command), MESSAGE | {"padding": "x" * 500_000})
    assert said in problem
    assert TOKEN not in problem


def test_a_program_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "_PATIENCE_S", 0.2)
    (problem,) = notify.send(_config(notify_command=_program("time.sleep(600)")), MESSAGE)
    assert "took longer than 0.2 s" in problem


# ---- webhooks --------------------------------------------------------------------------------------------


class _Answers(http.server.BaseHTTPRequestHandler):
    """Says what `status` is, and keeps what it was told."""

    status: ClassVar[int] = 204
    told: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append((self.path, dict(self.headers), body))
        self.send_response(self.status)
        if 300 <= self.status < 400:
            self.send_header("Location", f"https://{self.headers['Host']}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


def _certificate(folder: Path) -> Path:
    """A certificate of this machine that vouches for itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server on localhost that speaks TLS and that this process trusts."""
    certificate = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setattr(_Answers, "status", 204)
    monkeypatch.setattr(_Answers, "told", [])
    server = http.server.ThreadingHTTPServer(("localhost", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def _hook(port: int, path: str = "/services/T0/B0?x=1", host: str = "localhost", **given: Any) -> NightlyConfig:
    return _config(notify_webhook=f"https://{host}:{port}{path}", notify_hosts=("LocalHost",), **given)


def test_a_webhook_gets_the_outcome(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.TOKEN, TOKEN)
    config = _hook(port)
    notify.check(config)
    assert notify.send(config, MESSAGE) == []
    ((path, headers, body),) = _Answers.told
    assert (path, headers["Authorization"], json.loads(body)) == ("/services/T0/B0?x=1", f"Bearer {TOKEN}", MESSAGE)


def test_a_redirect_is_not_followed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for status in (301, 302, 307, 308):
        monkeypatch.setattr(_Answers, "status", status)
        assert notify.send(_hook(port), MESSAGE) == [f"--notify-webhook at localhost answered {status}"]
    assert {path for path, _, _ in _Answers.told} == {"/services/T0/B0?x=1"}


def test_an_answer_that_says_no_is_said(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Answers, "status", 403)
    program = _program("sys.exit(0)")
    (problem,) = notify.send(_hook(port, notify_command=program), MESSAGE)
    assert problem == "--notify-webhook at localhost answered 403"


def test_a_server_that_nobody_vouches_for_is_told_nothing(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    (problem,) = notify.send(_hook(port), MESSAGE)
    assert "certificate" in problem.lower()
    assert _Answers.told == []


def test_no_server_is_said(port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (problem,) = notify.send(_hook(1), MESSAGE)
    assert problem.startswith("--notify-webhook at localhost failed: ")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "absent.pem"))
    (problem,) = notify.send(_hook(port), MESSAGE)
    assert "failed" in problem


@pytest.mark.parametrize("path", ["/päth-secret", "/secret path"])
def test_what_cannot_be_sent_is_said_without_showing_it(port: int, path: str) -> None:
    (problem,) = notify.send(_hook(port, path), MESSAGE)
    assert "failed" in problem
    assert "secret" not in problem


def test_a_token_that_cannot_be_sent_is_not_shown(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.TOKEN, f"{TOKEN}\nsecond line")
    (problem,) = notify.send(_hook(port), MESSAGE)
    assert TOKEN not in problem
    assert _Answers.told == []


# ---- before a night begins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://example.org/x", "must be an https address"),
        ("ftp://example.org/x", "must be an https address"),
        ("https:///x", "must be an https address"),
        ("example.org/x", "must be an https address"),
        ("https://example.org:port/x", "must be an https address"),
        ("https://[::1/x", "must be an https address"),
        ("https://me:secret@example.org/x", "holds credentials"),
        ("https://example.com/x", "names example.com, which isn't among --notify-hosts"),
        ("https://example.org.evil.com/x", "isn't among --notify-hosts"),
        ("https://example.com\\@example.org/x", "credentials|isn't among"),
    ],
)
def test_a_webhook_that_may_not_be_is_refused(address: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        notify.check(_config(notify_webhook=address, notify_hosts=("example.org",)))
    assert "secret" not in str(refused.value)


def test_one_that_may_is_let_through() -> None:
    notify.check(_config())
    for address in ("https://example.org/x", "https://EXAMPLE.org:8443/x"):
        notify.check(_config(notify_webhook=address, notify_hosts=("other.org", "example.org")))


def test_what_is_written_down_holds_no_secrets() -> None:
    config = _config(
        notify_webhook=f"https://example.org/services/{TOKEN}?key={TOKEN}",
        notify_hosts=("example.org",),
        notify_command=("curl", "-H", f"Authorization: {TOKEN}"),
    )
    written = echo(notify.without_secrets(config))
    assert TOKEN not in written
    assert "example.org" in written
    assert "curl" in written
    assert notify.without_secrets(_config()) == _config()
