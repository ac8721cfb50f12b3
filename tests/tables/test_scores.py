"""The score table: fencing, what is pending, refusal to mix, audit, export."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate.errors import AuditFailed, ConfigurationError, ErrorCode, Superseded
from qualitygate.tables import manifest, scores

FINGERPRINTS = {"lapv": {"whole": "f1", "box": "b1"}}


def _rows(writer: scores.Writer, ids: list[str], **values: Any) -> pa.Table:
    row = {
        "uri": "/u",
        "status": "ok",
        "attempts": 1,
        "run_id": "r",
        "scored_at": datetime(2026, 1, 1, tzinfo=UTC),
        "lapv": 1.0,
        "lapv_state": "ok",
        "lapv_fingerprint": "f1",
        **values,
    }
    return pa.Table.from_pylist([row | {"image_id": image_id} for image_id in ids], schema=writer.schema)


def _all(metric: str, fingerprint: str) -> dict[str, dict[str, str]]:
    return {metric: {"whole": fingerprint, "box": fingerprint}}


def _manifest(tmp_path: Path, ids: list[str], **columns: list[Any]) -> manifest.Manifest:
    source = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image_id": ids, "uri": ["/u"] * len(ids), **columns}), source)
    return manifest.load(str(source), tmp_path / "spool.parquet")


def _pending(tmp_path: Path, writer: scores.Writer, wanted: manifest.Manifest, **options: Any) -> dict[str, Any]:
    import shutil

    folder = tmp_path / "pending"
    shutil.rmtree(folder, ignore_errors=True)
    count = scores.write_pending(
        wanted,
        writer.table,
        options.pop("fingerprints", FINGERPRINTS),
        retry=options.pop("retry", []),
        folder=folder,
    )
    table = pq.read_table(folder)
    assert table.num_rows == count
    return {row["image_id"]: row["previous"] for row in table.to_pylist()}


@pytest.fixture
def writer(tmp_path: Path) -> scores.Writer:
    return scores.Writer(str(tmp_path / "out"), ["lapv"], "run-1")


def _stored(tmp_path: Path) -> dict[str, Any]:
    table = scores.existing_table(str(tmp_path / "out"))
    return {row["image_id"]: row for row in pa.table(scores.dataset(table).to_table()).to_pylist()}


def test_rows_are_appended_and_replaced(tmp_path: Path, writer: scores.Writer) -> None:
    none = _rows(writer, [])
    writer.commit(_rows(writer, ["a", "b"]), none)
    writer.commit(_rows(writer, ["c"]), _rows(writer, ["a"], lapv=7.0))
    stored = _stored(tmp_path)
    assert {image_id: row["lapv"] for image_id, row in stored.items()} == {"a": 7.0, "b": 1.0, "c": 1.0}


def test_rows_are_replaced_by_their_ids_however_long_and_odd_these_are(tmp_path: Path, writer: scores.Writer) -> None:
    """Merges look only into files whose least and greatest id let them: no row may be passed over and doubled."""
    rng = random.Random(5)
    letters = ["a", "b", "\u00ff", "\u4e2d", "\U0001f600", "\uffff", "\x7f", "'", "%", "Z"]
    ids = list({"".join(rng.choices(letters, k=rng.choice((1, 5, 31, 32, 33, 64, 65, 200)))) for _ in range(120)})
    expected = {}
    for start in range(0, len(ids), 10):
        some = ids[start : start + 10]
        writer.commit(_rows(writer, some), _rows(writer, []))
        expected |= dict.fromkeys(some, 1.0)
    for turn in range(8):
        some = rng.sample(ids, rng.choice((1, 3, 40)))
        writer.commit(_rows(writer, []), _rows(writer, some, lapv=2.0 + turn))
        expected |= dict.fromkeys(some, 2.0 + turn)
    gone = rng.sample(ids, 25)
    writer.remove(gone)
    stored = pa.table(scores.dataset(scores.existing_table(str(tmp_path / "out"))).to_table())
    assert stored.num_rows == len(ids) - 25
    found = dict(zip(stored["image_id"].to_pylist(), stored["lapv"].to_pylist(), strict=True))
    assert found == {key: value for key, value in expected.items() if key not in gone}


def test_text_can_be_compared_in_files_of_appends_and_of_merges(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["a", "b"]), _rows(writer, []))
    later = scores.Writer(str(tmp_path / "out"), ["lapv", "niqe"], "run-2")
    later.commit(_rows(later, ["c"]), _rows(later, ["a"], status="error", error_code="missing"))
    audit = scores.audit(_manifest(tmp_path, ["a", "b", "c"]), str(tmp_path / "out"), ["lapv"], complete=True)
    assert audit.errors_by_code == {"missing": 1}
    assert [row["image_id"] for row in audit.examples] == ["a"]
    scores.check_compatible(str(tmp_path / "out"), FINGERPRINTS, backfill=False)
    assert _pending(tmp_path, later, _manifest(tmp_path, ["a", "b", "c"]), retry=[ErrorCode.MISSING]).keys() == {"a"}


def test_an_older_run_can_publish_nothing_once_a_newer_one_has_claimed(tmp_path: Path, writer: scores.Writer) -> None:
    none = _rows(writer, [])
    writer.commit(_rows(writer, ["a"]), none)
    newer = scores.Writer(str(tmp_path / "out"), ["lapv"], "run-2")
    assert newer.epoch == writer.epoch + 1
    with pytest.raises(Superseded):
        writer.commit(_rows(writer, ["b"]), none)
    with pytest.raises(Superseded):
        writer.commit(none, _rows(writer, ["a"], lapv=9.0))
    newer.commit(_rows(newer, ["b"]), none)
    assert {key: row["lapv"] for key, row in _stored(tmp_path).items()} == {"a": 1.0, "b": 1.0}


def test_a_metric_added_later_is_null_before(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["a"]), _rows(writer, []))
    later = scores.Writer(str(tmp_path / "out"), ["lapv", "wavs-coef"], "run-2")
    later.commit(_rows(later, ["b"], **{"wavs-coef": 2.0, "wavs-coef_state": "ok"}), _rows(later, []))
    table = scores.existing_table(str(tmp_path / "out"))
    assert scores.metrics_of(table) == ["lapv", "wavs-coef"]
    assert {key: row["wavs-coef"] for key, row in _stored(tmp_path).items()} == {"a": None, "b": 2.0}
    # The very filter that deltalake's own pyarrow data set answers wrongly.
    with scores.connect() as database:
        scores.register(database, table)
        found = database.sql('SELECT image_id FROM scores WHERE "wavs-coef" IS NOT NULL').fetchall()
    assert found == [("b",)]


def test_pending_is_manifest_minus_committed(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["a", "b"]), _rows(writer, []))
    pending = _pending(tmp_path, writer, _manifest(tmp_path, ["a", "b", "c"]))
    assert pending == {"c": None}


def test_changed_content_address_or_box_is_pending_again(tmp_path: Path, writer: scores.Writer) -> None:
    ids = ["same", "etag", "box", "noetag"]
    writer.commit(_rows(writer, ids, etag="e", box=[0, 0, 5, 5], lapv_fingerprint="b1"), _rows(writer, []))
    columns = {"etag": ["e", "f", "e", None], "box": [[0, 0, 5, 5], [0, 0, 5, 5], [1, 0, 5, 5], [0, 0, 5, 5]]}
    pending = _pending(tmp_path, writer, _manifest(tmp_path, ids, **columns))
    assert sorted(pending) == ["box", "etag"]
    assert pending["etag"]["etag"] == "e"
    assert pending["etag"]["lapv"] == 1.0


@pytest.mark.parametrize(
    ("code", "attempts", "retry", "again"),
    [
        ("transient", 5, [], True),
        ("timeout", 5, [], True),
        ("out_of_memory", 1, [], True),
        ("worker_crash", 1, [], True),
        ("worker_crash", 2, [], False),
        ("worker_crash", 2, [ErrorCode.WORKER_CRASH], True),
        ("truncated", 1, [], False),
        ("truncated", 1, [ErrorCode.TRUNCATED], True),
        ("missing", 1, [], False),
        ("missing", 1, [ErrorCode.MISSING, ErrorCode.DENIED], True),
    ],
)
def test_which_failures_are_tried_again(
    tmp_path: Path, writer: scores.Writer, code: str, attempts: int, retry: list[ErrorCode], again: bool
) -> None:
    failed = {
        "status": "error",
        "error_code": code,
        "attempts": attempts,
        "lapv": None,
        "lapv_state": f"failed:{code}",
    }
    writer.commit(_rows(writer, ["a"], **failed), _rows(writer, []))
    assert bool(_pending(tmp_path, writer, _manifest(tmp_path, ["a"]), retry=retry)) is again


def test_scores_of_another_fingerprint_are_not_mixed_silently(tmp_path: Path, writer: scores.Writer) -> None:
    output = str(tmp_path / "out")
    writer.commit(_rows(writer, ["a"]), _rows(writer, []))
    scores.check_compatible(output, FINGERPRINTS, backfill=False)
    with pytest.raises(ConfigurationError, match=r"lapv as f1.*as f2.*--backfill"):
        scores.check_compatible(output, _all("lapv", "f2"), backfill=False)
    with pytest.raises(ConfigurationError, match=r"1 rows.*have no niqe.*--backfill"):
        scores.check_compatible(output, FINGERPRINTS | _all("niqe", "n1"), backfill=False)
    scores.check_compatible(output, _all("lapv", "f2") | _all("niqe", "n1"), backfill=True)
    pending = _pending(tmp_path, writer, _manifest(tmp_path, ["a"]), fingerprints=_all("lapv", "f2"))
    assert list(pending) == ["a"]


def test_the_sidecar_spells_fingerprints_out(tmp_path: Path) -> None:
    output = str(tmp_path)
    scores.record_fingerprints(output, {"f1": {"metric": "lapv", "version": 1}})
    scores.record_fingerprints(output, {"f2": {"metric": "lapv", "version": 2}})
    assert sorted(scores.read_fingerprints(output)) == ["f1", "f2"]


def test_the_audit_counts_and_refuses_holes(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["a", "b"]), _rows(writer, []))
    failed = {"status": "error", "error_code": "missing", "lapv": None, "lapv_state": "failed:missing"}
    writer.commit(_rows(writer, ["c", "elsewhere"], **failed), _rows(writer, []))
    output = str(tmp_path / "out")
    audit = scores.audit(_manifest(tmp_path, ["a", "b", "c"]), output, ["lapv"], complete=True)
    assert (audit.expected, audit.present, audit.duplicates) == (3, 3, 0)
    assert audit.by_status == {"error": 1, "ok": 2}
    assert audit.by_code == {"missing": 1}
    assert audit.error_rate == pytest.approx(1 / 3)
    assert audit.metrics["lapv"]["states"] == {"failed:missing": 1, "ok": 2}
    with pytest.raises(AuditFailed, match="1 of 4 images have no row"):
        scores.audit(_manifest(tmp_path, ["a", "b", "c", "d"]), output, ["lapv"], complete=True)


def test_the_audit_sees_a_row_that_stands_twice(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["a", "a"]), _rows(writer, []))
    with pytest.raises(AuditFailed, match="twice"):
        scores.audit(_manifest(tmp_path, ["a"]), str(tmp_path / "out"), ["lapv"], complete=True)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_export_writes_one_plain_file(tmp_path: Path, writer: scores.Writer, suffix: str) -> None:
    writer.commit(_rows(writer, ["b", "a"]), _rows(writer, []))
    target = tmp_path / f"scores.{suffix}"
    assert scores.export(str(tmp_path / "out"), str(target)) == 2
    if suffix == "parquet":
        assert pq.read_table(target)["image_id"].to_pylist() == ["a", "b"]
    else:
        assert target.read_text().splitlines()[1].startswith("a,/u,")


def test_export_says_what_is_wrong(tmp_path: Path, writer: scores.Writer) -> None:
    with pytest.raises(ConfigurationError, match=r"\.parquet or \.csv"):
        scores.export(str(tmp_path / "out"), str(tmp_path / "x.xlsx"))
    with pytest.raises(ConfigurationError, match="holds no scores"):
        scores.export(str(tmp_path / "elsewhere"), str(tmp_path / "x.csv"))


def test_a_region_has_a_fingerprint_of_its_own(tmp_path: Path, writer: scores.Writer) -> None:
    writer.commit(_rows(writer, ["whole"]), _rows(writer, []))
    writer.commit(_rows(writer, ["box"], box=[0, 0, 5, 5], lapv_fingerprint="b1"), _rows(writer, []))
    scores.check_compatible(str(tmp_path / "out"), FINGERPRINTS, backfill=False)
    wanted = _manifest(tmp_path, ["whole", "box"], box=[None, [0, 0, 5, 5]])
    assert _pending(tmp_path, writer, wanted) == {}


def test_a_code_that_only_one_metric_failed_with_can_be_retried(tmp_path: Path, writer: scores.Writer) -> None:
    partial = {"status": "partial", "error_code": "flat", "lapv": None, "lapv_state": "failed:too_small"}
    writer.commit(_rows(writer, ["a"], **partial), _rows(writer, []))
    assert not _pending(tmp_path, writer, _manifest(tmp_path, ["a"]))
    assert _pending(tmp_path, writer, _manifest(tmp_path, ["a"]), retry=[ErrorCode.TOO_SMALL])


def test_a_superseded_run_can_tell(tmp_path: Path, writer: scores.Writer) -> None:
    writer.check_current()
    scores.Writer(str(tmp_path / "out"), ["lapv"], "run-2")
    with pytest.raises(Superseded):
        writer.check_current()


def test_what_is_no_table_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "scores").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="is no score table"):
        scores.open_table(str(tmp_path))
    log = tmp_path / "damaged" / "scores" / "_delta_log"
    log.mkdir(parents=True)
    (log / "00000000000000000000.json").write_text("{ no json")
    with pytest.raises(ConfigurationError, match="is no score table"):
        scores.open_table(str(tmp_path / "damaged"))
    (tmp_path / "_fingerprints.json").write_text("[1")
    with pytest.raises(ConfigurationError, match="restore or remove"):
        scores.read_fingerprints(str(tmp_path))


def test_paths_that_the_table_format_mangles_are_refused(tmp_path: Path) -> None:
    for name in ("50%20off", "a[1]"):
        with pytest.raises(ConfigurationError, match="choose another folder"):
            scores.table_uri(str(tmp_path / name))


def test_a_claim_is_found_in_the_log_whatever_came_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = str(tmp_path / "out")
    scores.Writer(output, ["lapv"], "run-0")
    look = scores._is_commit
    others: list[scores.Writer] = []

    def another_run_claims_first(uri: str, version: int, commit_id: str) -> bool:
        if not others:
            monkeypatch.setattr(scores, "_is_commit", look)
            others.append(scores.Writer(output, ["lapv"], "run-2"))
        return look(uri, version, commit_id)

    monkeypatch.setattr(scores, "_is_commit", another_run_claims_first)
    # Its claim is made, and overtaken before it has looked where it stands in the log.
    first = scores.Writer(output, ["lapv"], "run-1")
    assert first.epoch < others[0].epoch
    with pytest.raises(Superseded):
        first.commit(_rows(first, ["a"]), _rows(first, []))
    others[0].commit(_rows(others[0], ["b"]), _rows(others[0], []))
    assert set(_stored(tmp_path)) == {"b"}


def test_a_store_that_knows_no_conditions_holds_no_table() -> None:
    with pytest.raises(ConfigurationError, match="one of s3, gs, abfs, az"):
        scores.open_table("hdfs://name:8020/out")
