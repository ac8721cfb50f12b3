"""A night's record: what was written is what is read, whole or not at all, and damage is said."""

import json
from pathlib import Path

import pytest

from qualitygate.errors import ConfigurationError, ErrorCode, ImageError
from qualitygate.nightly import record, trend
from qualitygate.nightly.record import Check, Night
from qualitygate.tables import storage

pytestmark = pytest.mark.filterwarnings("error")


def _night(name: str = "2026-11-23", **given: object) -> Night:
    return Night(**({"night": name, "started": f"{name[:10]}T02:00:00+00:00"} | given))  # type: ignore[arg-type]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert record.read(output, "2026-11-23") is None
    assert record.read_all(output) == record.Records()
    check = Check(name="drift", passed=False, said="unlike", value=float("nan"), limit=0.0)
    night = _night(checks=(check,), reasons=("unlike",), state="refused", gate_before="a").with_step(
        "score", {"rows": 3}
    )
    record.write(output, night)
    found = record.read(output, "2026-11-23")
    assert found is not None
    assert found.checks[0].value is None
    assert (found.steps, found.reasons, found.state, found.run_id) == (
        {"score": {"rows": 3}},
        ("unlike",),
        "refused",
        "night-2026-11-23",
    )


def test_nights_come_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    for name, started in (("b", "2026-01-02"), ("a", "2026-01-03"), ("c", "2026-01-01")):
        record.write(str(tmp_path), _night(name, started=started))
    (tmp_path / record.NIGHTS / "empty").mkdir()
    assert [night.night for night in record.read_all(str(tmp_path)).nights] == ["c", "b", "a"]
    assert [night.night for night in record.read_all(str(tmp_path), without="b").nights] == ["c", "a"]


_BEGIN = '{"format": "qualitygate-night", "version": 1, "checks": [], "reasons": [], '


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "qualitygate-night", "version": 2}',
        '{"format": "qualitygate-night"',
        _BEGIN + '"night": "another", "started": "2026-11-23"}',
        _BEGIN + '"night": "n1", "started": "2026-11-23", "state": "asleep"}',
        _BEGIN + '"night": "n1", "started": "2026-11-23", "steps": {"drift": []}}',
        _BEGIN + '"night": "n1", "started": null}',
    ],
)
def test_a_damaged_record_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / record.NIGHTS / "n1" / record.FILE
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"night\.json' is damaged .* delete it, and the night begins anew"):
        record.read(str(tmp_path), "n1")
    # It harms no other night.
    record.write(str(tmp_path), _night("n2"))
    found = record.read_all(str(tmp_path))
    assert [night.night for night in found.nights] == ["n2"]
    assert list(found.damaged) == ["n1"]
    assert "night.json' is damaged" in found.damaged["n1"]


def test_a_record_that_nobody_may_read_harms_no_other_night_and_a_store_that_is_away_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n1", "n2"):
        record.write(str(tmp_path), _night(name))
    real, code = storage.read_bytes, ErrorCode.DENIED

    def read_bytes(uri: str) -> bytes | None:
        if "/n1/" in uri:
            raise ImageError(code, "not for you")
        return real(uri)

    monkeypatch.setattr(storage, "read_bytes", read_bytes)
    found = record.read_all(str(tmp_path))
    assert [night.night for night in found.nights] == ["n2"]
    assert "n1/night.json' can't be read: not for you" in found.damaged["n1"]
    code = ErrorCode.TRANSIENT
    with pytest.raises(ImageError):
        record.read_all(str(tmp_path))


def test_the_record_is_json_for_everybody(tmp_path: Path) -> None:
    record.write(str(tmp_path), _night())
    content = json.loads((tmp_path / record.NIGHTS / "2026-11-23" / record.FILE).read_bytes())
    assert (content["format"], content["version"], content["state"]) == (record.FORMAT, 1, "running")


def test_the_table_of_nights_takes_unfinished_ones_too() -> None:
    row = trend._row(_night())
    assert set(row) == set(trend.SCHEMA.names)
    assert (row["state"], row["finished"], row["scored"], row["methods"]) == ("running", None, None, [])
