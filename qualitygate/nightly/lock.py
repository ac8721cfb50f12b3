"""One nightly job at a time: a lock in the output folder that expires, and a number that tells old holders from new.

The lock is an object that names its holder and the moment until which it is good. Taking, renewing and giving it back
are compare-and-swaps, so of two that try at once one has it. Each taking counts a number up, the fence: what a holder
publishes carries it, and is refused where a newer holder has published already. A holder that stalls past its time
and wakes up again therefore does no harm.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from qualitygate.errors import ConfigurationError, ImageError, Locked, Superseded
from qualitygate.tables import storage

logger = logging.getLogger(__name__)

FILE = "_nightly_lock.json"
# Renewed several times before it would expire: a store may be away for a while.
_RENEWALS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Who has the lock. until: seconds since 1970 after which it is nobody's. released: given back in order."""

    fence: int
    holder: str
    host: str
    process: str
    since: str
    until: float
    night: str
    released: bool = False

    def alive(self, now: float) -> bool:
        """Whether it may still be at work; one on this machine whose process has ended is not."""
        if self.released or now >= self.until:
            return False
        return self.host != _host() or _runs(self.process)


class Lock:
    """The lock while it is held; `check` raises when it was lost."""

    def __init__(self, uri: str, held: Held, etag: str, ttl_s: float) -> None:
        self._uri = uri
        self._etag = etag
        self._ttl_s = ttl_s
        self._held = held
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep, name="nightly-lock", daemon=True)
        self._thread.start()

    @property
    def fence(self) -> int:
        """Higher than any holder's before."""
        return self._held.fence

    def check(self) -> None:
        """Raise Superseded unless the lock is held now."""
        if self._lost or time.time() >= self._held.until:
            raise Superseded(
                f"the lock {storage.redact(self._uri)!r} was lost, another nightly job may have it; this one stopped, "
                "what it had finished is kept"
            )

    def _keep(self) -> None:
        while not self._ended.wait(self._ttl_s / _RENEWALS):
            try:
                self._write(until=time.time() + self._ttl_s, released=False)
            except Exception as error:  # whatever it is, there are more tries before the time is up
                logger.warning("the lock could not be renewed: %s", storage.redact(str(error)))

    def _write(self, *, until: float, released: bool) -> None:
        with self._guard:
            if self._lost:
                return
            renewed = replace(self._held, until=until, released=released)
            etag = storage.put_if(self._uri, _bytes(renewed), self._etag)
            if etag is None:
                self._lost = True
            else:
                self._held, self._etag = renewed, etag

    def release(self) -> None:
        """Give it back; a lost one is left alone."""
        self._ended.set()
        self._thread.join()
        try:
            self._write(until=time.time(), released=True)
        except Exception as error:  # it expires by itself
            logger.warning("the lock could not be given back: %s", storage.redact(str(error)))


@contextmanager
def held(output: str, *, night: str, ttl_s: float, above: int = 0) -> Iterator[Lock]:
    """The lock of an output folder for the time of the block.

    above: the highest fence that anything published carries: should the lock's file be lost, it counts on from there.
    Raises Locked, naming the holder and when its lock expires, while somebody else has it.
    """
    uri = storage.join(output, FILE)
    before, etag = read(output)
    now = time.time()
    if before is not None and before.alive(now):
        raise Locked(_taken(before, now))
    mine = Held(
        fence=max(above, before.fence if before else 0) + 1,
        holder=uuid.uuid4().hex,
        host=_host(),
        process=_process(os.getpid()),
        since=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        until=now + ttl_s,
        night=night,
    )
    taken = storage.put_if(uri, _bytes(mine), etag)
    if taken is None:
        other, _ = read(output)
        raise Locked(_taken(other, now) if other else "another nightly job took the lock at the same moment")
    lock = Lock(uri, mine, taken, ttl_s)
    try:
        yield lock
    finally:
        lock.release()


def read(output: str) -> tuple[Held | None, str | None]:
    """(the lock as it is, its version); None where there never was one."""
    uri = storage.join(output, FILE)
    try:
        found = storage.read_version(uri)
    except (ImageError, OSError) as error:
        reason = error.failure.message if isinstance(error, ImageError) else storage.redact(str(error))
        raise ConfigurationError(f"the lock {storage.redact(uri)!r} can't be read: {reason}") from error
    if found is None:
        return None, None
    try:
        held_ = Held(**json.loads(found.data))
        return replace(held_, until=float(held_.until), fence=int(held_.fence)), found.etag
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the lock {storage.redact(uri)!r} is damaged; make sure that no nightly job runs, then delete it"
        ) from error


def _taken(other: Held, now: float) -> str:
    return (
        f"another nightly job is at work: on {other.host} since {other.since}, night {other.night}; its lock expires "
        f"in {max(0.0, other.until - now):.0f} s unless it renews it, so wait, or run the same command again then"
    )


def _bytes(held_: Held) -> bytes:
    return (json.dumps(asdict(held_), indent=1) + "\n").encode()


def _host() -> str:
    """Where process numbers mean what they mean here: this machine since it was started, in this container."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()[:8]
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}-{boot}-{space}"


def _process(number: int) -> str:
    """A process by its number and when it was started, which no later one of the same number shares."""
    try:
        with open(f"/proc/{number}/stat", encoding="utf-8") as file:
            # The name in parentheses may hold spaces.
            fields = file.read().rpartition(")")[2].split()
        # One that has ended stays listed until its parent asks how: nothing of it runs.
        started = "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        started = ""
    return f"{number}:{started}"


def _runs(process: str) -> bool:
    """Whether a process of this machine is there; one that can't be told counts as there."""
    number, _, started = process.partition(":")
    if not started or not number.isdigit():
        return True
    return _process(int(number)) == process
