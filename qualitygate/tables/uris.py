"""URIs: what they name, and which of them may be read, written and stored.

A plain path is a local file, whatever characters it holds. `file://` URIs are percent-decoded. Every other
URI is taken by an allow-list of schemes; credentials come from the usual chain and never from a URI.
"""

import os
import re
from urllib.parse import quote, unquote_to_bytes, urlsplit

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError

REMOTE_SCHEMES = frozenset({"s3", "gs", "gcs", "abfs", "abfss", "az", "hdfs", "viewfs"})
# What pyarrow takes after a `?`: only these, since a `?` may belong to a key.
OPTIONS = re.compile(r"\?(?:(?:region|scheme|endpoint_override|retry_limit_seconds|user|replication)=[^&?]*&?)+$")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_OTHER_SCHEME = re.compile(r"^(data|javascript|about|blob):", re.IGNORECASE)
# The secret after the colon may hold slashes, as AWS's do.
_USER = re.compile(r"(?<=://)(?:[^/:@\s]*:[^@\s]*|[^/@\s]*)@")
_SIGNED = re.compile(r"[?&](?:X-Amz-[A-Za-z-]+|AWSAccessKeyId|Signature|sig|token)=", re.IGNORECASE)


def scheme_of(uri: str) -> str | None:
    """Lower-case scheme of a URI, or None for a local path."""
    match = _SCHEME.match(uri) or _OTHER_SCHEME.match(uri)
    return match.group(1).lower() if match else None


def is_local(uri: str) -> bool:
    """Whether the URI names a file of this machine."""
    return scheme_of(uri) in (None, "file")


def without_secrets(uri: str) -> str:
    """The URI as it may be stored: itself, or redacted where it is of a kind that is refused."""
    scheme = scheme_of(uri)
    refused = scheme not in (None, "file") and (scheme not in REMOTE_SCHEMES or has_credentials(uri))
    return redact(uri) if refused else uri


def redact(text: str) -> str:
    """The text without user names, passwords and signatures inside URIs; for messages and echoes."""
    text = _USER.sub("***@", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?***", text)


def local_path(uri: str) -> bytes:
    """The local file system's own bytes for a path or a `file://` URI."""
    if scheme_of(uri) != "file":
        return os.fsencode(uri)
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise ImageError(ErrorCode.DENIED, f"file URI names another host: {redact(uri)!r}")
    return unquote_to_bytes(parts.path)


def uri_of_path(path: str) -> str:
    """A string that Arrow can hold for any local path: itself, or a `file://` URI when it isn't valid UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(os.path.abspath(path)))
    return path


def join(base: str, *parts: str) -> str:
    """The URI of something below a folder or prefix."""
    return "/".join([base.rstrip("/") or "/", *parts]) if base != "/" else "/" + "/".join(parts)


def check_location(uri: str, role: str) -> str:
    """The URI itself when the role (`--input`, `--output`) may use it; ConfigurationError otherwise."""
    scheme = scheme_of(uri)
    if scheme not in (None, "file") and scheme not in REMOTE_SCHEMES:
        allowed = ", ".join(sorted(REMOTE_SCHEMES | {"file"}))
        raise ConfigurationError(f"{role}: scheme {scheme!r} isn't supported; use a local path or one of {allowed}")
    if has_credentials(uri):
        raise ConfigurationError(
            f"{role}: {redact(uri)!r} holds credentials; take them out and use the environment (AWS_ACCESS_KEY_ID, ...)"
        )
    return os.fsdecode(local_path(uri)) if scheme == "file" else uri


def check_readable(uri: str) -> None:
    """ImageError for a URI that images may not have: another scheme, or credentials inside."""
    scheme = scheme_of(uri)
    if scheme in (None, "file"):
        return
    if scheme not in REMOTE_SCHEMES:
        raise ImageError(ErrorCode.DENIED, f"scheme {scheme!r} is not on the list of those that may be read")
    if has_credentials(uri):
        raise ImageError(ErrorCode.DENIED, f"credentials inside a URI are not accepted: {redact(uri)}")


def has_credentials(uri: str) -> bool:
    """Whether a remote URI carries a user name, a password or a signature."""
    scheme = scheme_of(uri)
    if scheme not in REMOTE_SCHEMES:
        return False
    found = _USER.search(uri)
    # abfs://container@account is an address; everywhere else what stands before the @ is a key.
    named = found is not None and (scheme not in ("abfs", "abfss") or ":" in found.group())
    return named or bool(_SIGNED.search(uri))
