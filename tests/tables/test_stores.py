"""How the environment becomes clients' settings, and clients' errors become codes."""

import json
from pathlib import Path

import pytest

from qualitygate.errors import ErrorCode
from qualitygate.tables import access, listing, stores
from qualitygate.tables.access import Throttled

KEY, SECRET = "KEYID", "sup3r/secret"


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No AWS settings but those that a test makes; no request for a bucket's region."""
    import os

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(stores, "_region_of", lambda _bucket: "found-region")
    (tmp_path / ".aws").mkdir()
    return tmp_path / ".aws"


def test_addresses_keep_keys_as_they_stand() -> None:
    where = stores.address("s3://b/a#b?c=d%20.jpg?endpoint_override=h:1&scheme=http")
    assert (where.key, where.options) == ("a#b?c=d%20.jpg", "?endpoint_override=h:1&scheme=http")
    assert where.root == "s3://b?endpoint_override=h:1&scheme=http"


@pytest.mark.parametrize(
    ("environment", "options", "endpoint", "region", "http"),
    [
        ({}, "", None, "found-region", False),
        ({"AWS_REGION": "r"}, "", None, "r", False),
        ({"AWS_ENDPOINT_URL": "http://h:1"}, "", "http://h:1", None, True),
        ({"AWS_ENDPOINT_URL": "http://h:1", "AWS_ENDPOINT_URL_S3": "https://s:2"}, "", "https://s:2", None, False),
        ({"AWS_ENDPOINT_URL": "http://h:1"}, "?endpoint_override=o:3&region=q", "https://o:3", "q", False),
        ({}, "?endpoint_override=o:3&scheme=http", "http://o:3", None, True),
    ],
)
def test_s3_is_found_by_the_usual_variables(
    environment: dict[str, str],
    options: str,
    endpoint: str | None,
    region: str | None,
    http: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = stores._s3("bucket", options)
    assert (found.endpoint, found.region, found.allows_http) == (endpoint, region, http)
    delta = stores.delta_options(f"s3://bucket/table{options}")
    assert delta is not None
    assert delta["aws_conditional_put"] == "etag"
    assert delta.get("aws_endpoint") == endpoint
    assert delta.get("aws_allow_http", "false") == str(http).lower()


def test_a_profile_counts_where_the_environment_has_no_keys(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "credentials").write_text(f"[team]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    (bare / "config").write_text("[profile team]\nregion = team-region\n")
    assert stores._s3("b", "").keys == ()
    monkeypatch.setenv("AWS_PROFILE", "team")
    found = stores._s3("b", "")
    assert dict(found.keys) == {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET}
    assert found.region == "team-region"
    assert SECRET not in repr(found)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert stores._s3("b", "").keys == ()
    assert stores._s3("b", "").region == "team-region"


def test_damaged_aws_files_count_as_none(bare: Path) -> None:
    (bare / "credentials").write_bytes(b"\xff\xfe[default")
    (bare / "config").write_text("no section\n")
    assert stores._s3("b", "").keys == ()


def test_options_stay_at_the_end_of_what_is_listed() -> None:
    assert listing.split_options("s3://b/in/?endpoint_override=h:1") == ("s3://b/in", "?endpoint_override=h:1")
    assert listing.split_options("s3://b/in?x=1/") == ("s3://b/in?x=1", "")


@pytest.mark.parametrize("uri", ["/local/path", "file:///local/path", "hdfs://h/x"])
def test_what_is_no_object_store_needs_no_options_for_delta(uri: str) -> None:
    assert stores.delta_options(uri) is None


@pytest.mark.parametrize("uri", ["s3://b/x", "gs://b/x", "abfs://c@a/x", "az://c/x"])
def test_the_table_waits_for_its_store_as_long_as_everything_else(uri: str) -> None:
    options = stores.delta_options(uri)
    assert options is not None
    assert options["retry_timeout"] == f"{access.DEFAULT.retry_seconds:.0f}s"
    # So many that the time decides: pauses are ten seconds at most.
    assert int(options["max_retries"]) > access.DEFAULT.retry_seconds


def test_an_emulator_of_googles_storage_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "google_service_account_key" not in (stores.delta_options("gs://b/x") or {})
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    options = stores.delta_options("gs://b/x") or {}
    assert json.loads(options["google_service_account_key"])["gcs_base_url"] == "http://127.0.0.1:4443"
    assert options["allow_http"] == "true"


_AWAY = """Kernel error -> Generic S3 error
          \x1b[31m↳\x1b[0m Error performing GET http://u:pw@127.0.0.1:9/b/t in 60s, after 158 retries, max_retries 1000
           \x1b[31m↳\x1b[0m error sending request"""


def test_a_store_that_is_away_is_told_from_a_broken_table() -> None:
    found = stores.out_of_reach(OSError(_AWAY))
    assert found is not None
    assert found.failure.code is ErrorCode.TRANSIENT
    assert "after 158 retries" in found.failure.message
    assert "pw" not in found.failure.message
    assert "\x1b" not in found.failure.message
    assert stores.out_of_reach(ValueError("Invalid JSON in log record")) is None


class GenericError(Exception):
    """As obstore's, which can't be made here."""


GenericError.__module__ = "obstore.exceptions"


def _answer(status: int, code: str = "X") -> str:
    return (
        f"Generic S3 error: Error performing GET http://h/b/403-not-found-timeout.jpg?sig=SECRET in 1ms - "
        f'Server returned non-2xx status code: {status} Some: <?xml version="1.0"?>\n'
        f"<Error><Code>{code}</Code><Message>m</Message>"
        f"<Key>k</Key></Error>\n\nDebug source:\nGeneric {{ status: 500 }}"
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (_answer(500), ErrorCode.TRANSIENT),
        (_answer(502), ErrorCode.TRANSIENT),
        (_answer(504), ErrorCode.TIMEOUT),
        (_answer(400, "RequestTimeout"), ErrorCode.TIMEOUT),
        (_answer(400, "ExpiredToken"), ErrorCode.DENIED),
        (_answer(301, "PermanentRedirect"), ErrorCode.DENIED),
        (_answer(404, "NoSuchBucket"), ErrorCode.MISSING),
        (_answer(416, "InvalidRange"), ErrorCode.TRUNCATED),
        ("HTTP error: error sending request\nDebug source:\nkind: Connect", ErrorCode.TRANSIENT),
        ("HTTP error: error decoding response body\nDebug source:\nReqwest(TimedOut)", ErrorCode.TIMEOUT),
    ],
)
def test_answers_are_classified_by_their_status_not_by_their_words(text: str, code: ErrorCode) -> None:
    found = stores.failure(GenericError(text))
    assert found.failure.code is code
    assert "SECRET" not in found.failure.message
    assert "\n" not in found.failure.message
    assert "Debug" not in found.failure.message


@pytest.mark.parametrize("status", [429, 503])
def test_a_store_that_asks_for_less_is_told_from_one_that_fails(status: int) -> None:
    assert isinstance(stores.failure(GenericError(_answer(status, "SlowDown"))), Throttled)
    assert not isinstance(stores.failure(GenericError(_answer(500))), Throttled)
