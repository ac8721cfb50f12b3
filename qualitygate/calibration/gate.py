"""The gate: each method's cut-off and how many low votes reject. Known by the hash of its content, so that decisions
can name the gate that made them, and a gate that was edited is noticed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from qualitygate.errors import ConfigurationError, GateRefused, ImageError
from qualitygate.tables import storage

FORMAT = "qualitygate-gate"
VERSION = 1
FILE = "gate.json"
# Of a store of gates (gate_store): the folder in a nightly job's output, and the file that names the one in force.
FOLDER = "gates"
HISTORY = "history.json"

Policy = Literal["reject", "pass", "abstain"]
Votes = npt.NDArray[np.int8]

# One method's vote on one photograph. OPEN: its score was left out, so the vote isn't known.
HIGH, LOW, ABSTAINED, OPEN = 0, 1, 2, 3
# What no hash covers: the id itself, and when the gate was made.
_UNHASHED = ("id", "created")


@dataclass(frozen=True, slots=True, kw_only=True)
class Voter:
    """One method as it votes. A score below the cut-off is low where higher is better, above it where lower is."""

    name: str
    direction: Literal["higher", "lower"]
    status: Literal["ok", "undefined", "fallback"]
    cutoff: float | None
    reason: str | None

    def votes(self, scores: npt.NDArray[np.float64], skipped: npt.NDArray[np.bool_], on_null: Policy) -> Votes:
        """(N,) votes on raw scores, NaN where one failed; skipped: it was never asked for."""
        cutoff = np.nan if self.cutoff is None else self.cutoff
        # The very comparison that each score was calibrated with: equal to the cut-off is not low.
        low = scores < cutoff if self.direction == "higher" else scores > cutoff
        failed = {"reject": LOW, "pass": HIGH, "abstain": ABSTAINED}[on_null]
        votes = np.where(np.isnan(scores), failed, np.where(low, LOW, HIGH))
        return np.where(skipped, OPEN, votes).astype(np.int8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """(N,) low votes, whether each photograph passes, and whether that stands whatever open votes would say."""

    votes_low: npt.NDArray[np.int64]
    passed: npt.NDArray[np.bool_]
    settled: npt.NDArray[np.bool_]


def decide(votes: Votes, votes_needed: int, on_null: Policy = "reject") -> Decisions:
    """Count votes (N, methods): as many low ones as are needed reject.

    A photograph on which all methods abstained is rejected: nobody has judged it. Open votes are settled when the
    others have decided, either way.
    """
    low = np.count_nonzero(votes == LOW, axis=1)
    unknown = np.count_nonzero(votes == OPEN, axis=1)
    judged = low + np.count_nonzero(votes == HIGH, axis=1)
    vouched = (judged > 0) if on_null == "abstain" else np.ones(len(votes), dtype=np.bool_)
    rejected = (low >= votes_needed) | ((judged == 0) & (unknown == 0) & ~vouched)
    passed = (low + unknown < votes_needed) & vouched
    return Decisions(votes_low=low.astype(np.int64), passed=passed, settled=rejected | passed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate as gate.json has it; `content` is all of that."""

    id: str
    votes_needed: int
    methods: Mapping[str, Voter]
    fingerprints: Mapping[str, str]
    untrained: tuple[str, ...]
    content: Mapping[str, Any]

    def voters(self, *, allow_fallback: bool = False) -> tuple[Voter, ...]:
        """Methods that may vote: those with a cut-off, fallbacks only where they are allowed."""
        allowed = ("ok", "fallback") if allow_fallback else ("ok",)
        return tuple(one for one in self.methods.values() if one.status in allowed)

    def require(self, *, allow_fallback: bool = False, allow_untrained: bool = False) -> tuple[Voter, ...]:
        """The voters. Raises GateRefused when they are fewer than the votes that reject, ConfigurationError when they
        stem from untrained networks and that isn't allowed."""
        voters = self.voters(allow_fallback=allow_fallback)
        if len(voters) < self.votes_needed:
            raise GateRefused(self._refusal(len(voters), allow_fallback))
        untrained = [one.name for one in voters if one.name in self.untrained]
        if untrained and not allow_untrained:
            raise ConfigurationError(
                f"gate {self.id} was made from scores of untrained networks ({', '.join(untrained)}), which mean "
                "nothing; calibrate on real scores, or try the plumbing with --allow-untrained"
            )
        return voters

    def _refusal(self, voters: int, allow_fallback: bool) -> str:
        without = [
            f"{one.name} is {one.status} ({one.reason})"
            for one in self.methods.values()
            if one.status == "undefined" or (one.status == "fallback" and not allow_fallback)
        ]
        fallbacks = sum(one.status == "fallback" for one in self.methods.values())
        remedy = "calibrate on more photographs, or with other --methods"
        if fallbacks and not allow_fallback and voters + fallbacks >= self.votes_needed:
            remedy = "let the fallbacks vote with --allow-fallback, or " + remedy
        return (
            f"gate {self.id} can't decide: {voters} of its methods can vote, {self.votes_needed} low votes are needed "
            f"to reject; {'; '.join(without)}; {remedy}"
        )


# ---- as a file -------------------------------------------------------------------------------------------


def identity(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the content as canonical JSON, without id and time."""
    hashed = {key: value for key, value in content.items() if key not in _UNHASHED}
    text = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse(content: Mapping[str, Any], name: str) -> Gate:
    """The gate of a gate.json's content. Raises ConfigurationError, naming the remedy, unless it is one of this
    version whose id is the hash of its content."""
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        raise ConfigurationError(f"{name} is no gate; give the gate.json that 'qualitygate calibrate' wrote")
    if content.get("version") != VERSION:
        raise ConfigurationError(
            f"{name} is a gate of version {content.get('version')}, this program reads version {VERSION}; "
            "run 'qualitygate calibrate' again, or use the program that made it"
        )
    if content.get("id") != identity(content):
        raise ConfigurationError(
            f"{name} was changed after it was made: its id is {content.get('id')}, its content's is "
            f"{identity(content)}; restore it, or run 'qualitygate calibrate' again"
        )
    try:
        methods = {
            method: Voter(
                name=method,
                direction=found["direction"],
                status=found["status"],
                cutoff=None if found["cutoff"] is None else float(found["cutoff"]),
                reason=found["reason"],
            )
            for method, found in content["methods"].items()
        }
        return Gate(
            id=str(content["id"]),
            votes_needed=int(content["votes_needed"]),
            methods=methods,
            fingerprints=dict(content["fingerprints"]),
            untrained=tuple(content["untrained"]),
            content=content,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"{name} lacks what a gate holds ({error}); run 'qualitygate calibrate' again"
        ) from error


def load(location: str, role: str = "--gate") -> Gate:
    """The gate of a file, of the folder that holds it, or the one in force of a store or of a nightly job's output.

    Raises ConfigurationError with the remedy when it is none.
    """
    location = storage.check_location(location, role)
    name = f"{role} {storage.redact(location)!r}"
    try:
        data = storage.read_bytes(_file_of(location) if storage.is_folder(location) else location)
    except (ImageError, OSError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else storage.redact(str(error))
        raise ConfigurationError(f"{name} can't be read: {reason}") from error
    if data is None:
        raise ConfigurationError(f"{name}: there is no gate.json; run 'qualitygate calibrate' first, or check the path")
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ConfigurationError(
            f"{name} is no JSON ({error}); restore it, or run 'qualitygate calibrate' again"
        ) from error
    return parse(content, name)


def _file_of(folder: str) -> str:
    """Where in a folder the gate lies: itself, or by the history of a store, under the id in force."""
    for store in (folder, storage.join(folder, FOLDER)):
        data = storage.read_bytes(storage.join(store, HISTORY))
        if data is not None:
            try:
                return storage.join(store, str(json.loads(data)["current"]), FILE)
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"{storage.redact(storage.join(store, HISTORY))!r} is damaged ({error}); restore it from a backup"
                ) from error
    return storage.join(folder, FILE)


def dump(content: Mapping[str, Any]) -> bytes:
    """A gate's content as the bytes of its file."""
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def agreed(methods: Sequence[str], asked: int | None) -> int:
    """Low votes that reject: a majority, or what was asked for. Raises ConfigurationError for more than there are."""
    if asked is not None and asked > len(methods):
        raise ConfigurationError(
            f"--votes-needed {asked} is more than the {len(methods)} methods {', '.join(methods)}; ask for fewer"
        )
    return asked if asked is not None else len(methods) // 2 + 1
