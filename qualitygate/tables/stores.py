"""Object stores: from a URI and the environment to the three clients that ask them, all set up alike.

    obstore      objects: read, listed, written, compared and swapped
    pyarrow.fs   Parquet data sets, large copies: its own client for S3 and hdfs, through obstore for the others
    deltalake    the score table

Credentials come from each client's usual chain: environment, profile, web identity, container or instance role.
They are given to clients and to nothing else.
"""

import configparser
import json
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.tables.access import DEFAULT, Access, Throttled
from qualitygate.tables.uris import OPTIONS, redact

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# Schemes that obstore reads; the others go through pyarrow.
OBJECT_SCHEMES = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "az"})
AZURE_SCHEMES = frozenset({"abfs", "abfss", "az"})
GOOGLE_SCHEMES = frozenset({"gs", "gcs"})
_CONNECT_SECONDS = 10.0
# Its own are ten attempts, which against a server that is away are over in three seconds. The time decides instead.
_DELTA_RETRIES = {
    "max_retries": "1000",
    "retry_timeout": f"{DEFAULT.retry_seconds:.0f}s",
    "backoff_config.max_backoff": "10s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A remote URI taken apart. root: scheme, bucket and options, which make the client; key: the rest."""

    scheme: str
    netloc: str
    key: str
    options: str

    @property
    def root(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.options}"


def address(uri: str) -> Address:
    """Where a remote URI leads. Keys are taken as they stand, as the stores' own tools do: `%`, `#` and `?` belong
    to the key, unless what follows the `?` are pyarrow's options (`?endpoint_override=...`).
    """
    options = OPTIONS.search(uri)
    bare = uri[: options.start()] if options else uri
    scheme, _, rest = bare.partition("://")
    netloc, _, key = rest.partition("/")
    return Address(scheme=scheme.lower(), netloc=netloc, key=key.strip("/"), options=options.group() if options else "")


# --- S3 by the usual environment ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _S3:
    """endpoint: of an S3-compatible store, with its scheme; None: Amazon's. keys: only what a profile spells out."""

    endpoint: str | None
    region: str | None
    keys: tuple[tuple[str, str], ...]

    @property
    def allows_http(self) -> bool:
        return self.endpoint is not None and self.endpoint.startswith("http://")


def _s3(bucket: str, options: str) -> _S3:
    given = dict(parse_qsl(options.lstrip("?")))
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
    profile = _profile()
    region = (
        given.get("region")
        or os.environ.get("AWS_REGION")
        or os.environ.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or (None if endpoint else _region_of(bucket))
    )
    names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    keys = tuple((name, profile[name]) for name in names if name in profile)
    return _S3(endpoint=endpoint, region=region, keys=keys)


def _profile() -> dict[str, str]:
    """The settings of the chosen profile (AWS_PROFILE) that are spelled out in the AWS files.

    Its keys only where nothing that comes earlier in AWS's chain is set.
    """
    name = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(os.environ.get(variable) or Path.home() / ".aws" / file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, RuntimeError):
            continue  # as AWS's own tools do, a damaged file counts as none
        if parser.has_section(section):
            found |= dict(parser.items(section))
    if any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE")):
        return {key: value for key, value in found.items() if key == "region"}
    return found


@lru_cache(maxsize=64)
def _region_of(bucket: str) -> str | None:
    import pyarrow.fs

    try:
        return str(pyarrow.fs.resolve_s3_region(bucket))
    except OSError:
        return None  # the request itself will say what is wrong


def by_generation(uri: str) -> bool:
    """Whether the store compares and swaps by an object's generation: Google's, which takes no etag for it."""
    return address(uri).scheme in GOOGLE_SCHEMES


# --- Google's by the usual environment ------------------------------------------------------------------------


def _emulator() -> str | None:
    """Address of the emulator of Google's storage that STORAGE_EMULATOR_HOST names, as for Google's own clients."""
    host = os.environ.get("STORAGE_EMULATOR_HOST")
    return (host if "://" in host else f"http://{host}") if host else None


def _account_of(emulator: str) -> str:
    """A service account that asks nobody for a token, in the form of Google's key files."""
    nothing = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    return json.dumps({"gcs_base_url": emulator, "disable_oauth": True, **nothing})


# --- clients --------------------------------------------------------------------------------------------------


def object_store(uri: str, access: Access = DEFAULT) -> "tuple[ObjectStore, str]":
    """(obstore's client for the bucket, key in it); the client is shared by its bucket."""
    where = address(uri)
    return open_store(where.root, access.timeout_seconds), where.key


@lru_cache(maxsize=64)
def open_store(root: str, timeout_seconds: float, retry_seconds: float = 0.0) -> "ObjectStore":
    """obstore's client for a root.

    retry_seconds: how long it tries again by itself. Where `access.retrying` stands around it, not at all: that would
    pass by the rate and the backoff.
    """
    from obstore.store import AzureStore, GCSStore, S3Store

    where = address(root)
    timeouts: Any = {
        # Not of the whole request, which for a large object on a slow line may well take long.
        "timeout": timedelta(hours=1),
        "read_timeout": timedelta(seconds=timeout_seconds),
        "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, timeout_seconds)),
    }
    retries: Any = {"max_retries": 0}
    if retry_seconds:
        # The time decides.
        retries = {"max_retries": 1000, "retry_timeout": timedelta(seconds=retry_seconds)}
    try:
        if where.scheme == "s3":
            s3 = _s3(where.netloc, where.options)
            # By this name: obstore would prefer AWS_ENDPOINT_URL_S3 of the environment to its `endpoint`.
            settings: Any = {"aws_endpoint_url_s3": s3.endpoint, "region": s3.region, **dict(s3.keys)}
            settings = {key: value for key, value in settings.items() if value is not None}
            return S3Store(
                where.netloc,
                config=settings,
                client_options={**timeouts, "allow_http": s3.allows_http},
                retry_config=retries,
            )
        if where.scheme in GOOGLE_SCHEMES:
            emulator = _emulator()
            if emulator:
                account: Any = {"service_account_key": _account_of(emulator)}
                timeouts["allow_http"] = emulator.startswith("http://")
                return GCSStore(where.netloc, config=account, client_options=timeouts, retry_config=retries)
            return GCSStore(where.netloc, client_options=timeouts, retry_config=retries)
        container, _, account = where.netloc.partition("@")
        named: Any = {"account_name": account.partition(".")[0]} if account else {}
        return AzureStore(container, config=named, client_options=timeouts, retry_config=retries)
    except Exception as error:
        reason = redact(str(error)).splitlines()[0][:200]
        raise ConfigurationError(f"{redact(root)!r} can't be reached as configured: {reason}") from error


def arrow_file_system(root: str) -> Any:
    """pyarrow's file system for a root; it tries again by itself."""
    import pyarrow.fs

    where = address(root)
    if where.scheme in OBJECT_SCHEMES - {"s3"}:
        # pyarrow's own clients of these stores take other variables, and each their own.
        from qualitygate.tables.arrow_store import file_system

        return file_system(root)
    if where.scheme != "s3":
        other, _ = pyarrow.fs.FileSystem.from_uri(root)
        return other
    s3 = _s3(where.netloc, where.options)
    keys = dict(s3.keys)
    return pyarrow.fs.S3FileSystem(
        access_key=keys.get("aws_access_key_id"),
        secret_key=keys.get("aws_secret_access_key"),
        session_token=keys.get("aws_session_token"),
        region=s3.region,
        endpoint_override=s3.endpoint,
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=DEFAULT.timeout_seconds,
        # Its pauses double from 25 ms up to 20 s: ten attempts last about half a minute.
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=10),
    )


def delta_options(uri: str) -> dict[str, str] | None:
    """deltalake's storage options for a table, None for a local one. They hold credentials: never write them down.

    Commits are fenced by a conditional PUT, which every S3-compatible store has to honour.
    """
    if "://" not in uri or address(uri).scheme not in OBJECT_SCHEMES:
        return None
    where = address(uri)
    options = dict(_DELTA_RETRIES)
    if where.scheme in GOOGLE_SCHEMES and (emulator := _emulator()):
        allows_http = str(emulator.startswith("http://")).lower()
        options |= {"google_service_account_key": _account_of(emulator), "allow_http": allows_http}
    if where.scheme != "s3":
        return options
    s3 = _s3(where.netloc, where.options)
    options |= {"aws_conditional_put": "etag", **dict(s3.keys)}
    if s3.region:
        options["aws_region"] = s3.region
    if s3.endpoint:
        options |= {"aws_endpoint": s3.endpoint, "aws_allow_http": str(s3.allows_http).lower()}
    return options


# --- failures -------------------------------------------------------------------------------------------------

# What Rust's clients say when they have tried for as long as they may.
_GAVE_UP = re.compile(r"error sending request|after \d+ retries|HTTP error|operation timed out")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|↳")

_SHOWN = 300
# What pyarrow's clients say, who raise the same error for everything.
_SIGNS = (
    (
        ErrorCode.DENIED,
        re.compile(r"access.?denied|forbidden|\b403\b|invalid.?access.?key|signature|credential", re.IGNORECASE),
    ),
    (ErrorCode.MISSING, re.compile(r"no.?such.?(key|bucket)|not.?found|\b404\b|does not exist", re.IGNORECASE)),
    (ErrorCode.TIMEOUT, re.compile(r"time.?out|timed out|curlCode: 28", re.IGNORECASE)),
)
_THROTTLING = re.compile(r"slow.?down|throttl|too many requests|\b(429|503)\b", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")


def failure(error: Exception) -> ImageError:
    """A client's error as one with a code. Its message is one line, without secrets."""
    if isinstance(error, ImageError):
        return error
    whole = str(error) or type(error).__name__
    said = _in_short(whole)
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return ImageError(ErrorCode.MISSING, said)
    if isinstance(error, PermissionError) or kind in ("PermissionDeniedError", "UnauthenticatedError"):
        return ImageError(ErrorCode.DENIED, said)
    if kind == "InvalidPathError" or (isinstance(error, ValueError) and "parse path" in whole):
        return ImageError(ErrorCode.UNSUPPORTED, f"a key with which stores' clients can't work: {said}")
    if type(error).__module__.startswith("obstore"):
        return _by_status(whole, said)
    if _THROTTLING.search(said):
        return Throttled(said)
    for code, sign in _SIGNS:
        if sign.search(said):
            return ImageError(code, said)
    return ImageError(ErrorCode.TRANSIENT, said)


def out_of_reach(error: BaseException) -> ImageError | None:
    """deltalake's error as one that may pass, where no store answered for as long as it was asked; else None."""
    whole = _COLOURS.sub(" ", str(error))
    return ImageError(ErrorCode.TRANSIENT, _in_short(whole)) if _GAVE_UP.search(whole) else None


def _in_short(whole: str) -> str:
    """One line: without obstore's debug output, which repeats the request, and of an answer only what it says."""
    said = " ".join(whole.partition("Debug source:")[0].split())
    body = re.search(r": <\?xml.*|: <Error>.*", said)
    if body:
        told = re.findall(r"<(?:Code|Message)>([^<]*)<", body.group())
        said = ": ".join([said[: body.start()], *told])
    return redact(said)[:_SHOWN]


def _by_status(whole: str, said: str) -> ImageError:
    """By the answer's status: the text around it holds the key, which may say anything."""
    found = _STATUS.search(said)
    if found is None:
        # No answer. Only the debug output tells a timeout from another failure on the way.
        late = re.search(r"\bTimedOut\b|kind: Timeout", whole.partition("Debug source:")[2])
        return ImageError(ErrorCode.TIMEOUT if late else ErrorCode.TRANSIENT, said)
    status = int(found.group(1))
    if status in (429, 503):
        return Throttled(said)
    # S3 says 400 when the client's bytes were too slow to arrive.
    if status in (408, 504) or "<Code>RequestTimeout</Code>" in whole:
        return ImageError(ErrorCode.TIMEOUT, said)
    if status == 404:
        return ImageError(ErrorCode.MISSING, said)
    if status == 416:
        return ImageError(ErrorCode.TRUNCATED, "shorter than when it was listed: the range isn't there")
    # Another refusal, such as an expired token or a bucket of another region.
    return ImageError(ErrorCode.DENIED if status < 500 else ErrorCode.TRANSIENT, said)
