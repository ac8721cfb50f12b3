"""What `qualitygate verify` says on the terminal."""

from qualitygate.metrics.verification import Verdict, Verification


def of_run(found: Verification, place: str) -> str:
    """A line a metric, and where it is written."""
    unread = f", {found.unreadable} could not be read" if found.unreadable else ""
    lines = [
        f"half precision against float32 on {found.photographs} photographs{unread}; {found.device}",
        *(_line(verdict) for verdict in found.metrics),
        f"largest errors as shares of the spread, the scores' 5th to 95th percentile; {place}",
    ]
    return "\n".join(lines) + "\n"


def _line(verdict: Verdict) -> str:
    numbers = ""
    if verdict.error_share is not None and verdict.srcc is not None:
        numbers = f"  error {verdict.error_share:.2%}  SRCC {verdict.srcc:.5f}"
    return f"  {verdict.name:<14}{'passed' if verdict.passed else 'refused'}{numbers}" + (
        f"  {verdict.reason}" if verdict.reason else ""
    )
