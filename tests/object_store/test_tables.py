"""The score table and manifests in a bucket: fenced, compared, and read back."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faulty_proxy import LOSE, REFUSE, FaultyProxy

from qualitygate.config import ManifestBuildConfig
from qualitygate.errors import Superseded
from qualitygate.tables import manifest, manifest_build, purge, scores, storage, upkeep

Put = Callable[[str, dict[str, bytes]], None]


def _rows(writer: scores.Writer, ids: list[str], value: float = 1.0) -> pa.Table:
    row = {
        "status": "ok",
        "attempts": 1,
        "run_id": "r",
        "scored_at": datetime(2026, 1, 1, tzinfo=UTC),
        "lapv": value,
        "lapv_state": "ok",
        "lapv_fingerprint": "f1",
    }
    return pa.Table.from_pylist([row | {"image_id": image_id} for image_id in ids], schema=writer.schema)


def _stored(output: str) -> dict[str, float]:
    table = scores.dataset(scores.existing_table(output)).to_table()
    return dict(zip(table["image_id"].to_pylist(), table["lapv"].to_pylist(), strict=True))


def test_rows_are_appended_and_replaced_in_a_bucket(bucket: str) -> None:
    output = f"s3://{bucket}/out"
    assert scores.open_table(output) is None
    writer = scores.Writer(output, ["lapv"], "run-1")
    writer.commit(_rows(writer, ["a", "b"]), _rows(writer, []))
    writer.commit(_rows(writer, ["c"]), _rows(writer, ["a"], value=7.0))
    assert _stored(output) == {"a": 7.0, "b": 1.0, "c": 1.0}
    scores.record_fingerprints(output, {"f1": {"metric": "lapv"}})
    assert scores.read_fingerprints(output) == {"f1": {"metric": "lapv"}}


def test_of_two_writers_at_once_one_is_refused(bucket: str) -> None:
    for number in range(5):
        _race(f"s3://{bucket}/out-{number}")


def _race(output: str) -> None:
    scores.Writer(output, ["lapv"], "run-0")
    both_start, both_have_claimed = threading.Barrier(2, timeout=60), threading.Barrier(2, timeout=60)

    def run(name: str) -> str:
        both_start.wait()
        writer = scores.Writer(output, ["lapv"], name)
        both_have_claimed.wait()
        try:
            writer.commit(_rows(writer, [name]), _rows(writer, []))
        except Superseded:
            return f"{name} refused"
        return name

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, ["run-1", "run-2"]))
    assert sum(one.endswith("refused") for one in ended) == 1
    (winner,) = [one for one in ended if not one.endswith("refused")]
    assert set(_stored(output)) == {winner}


def test_a_commit_whose_answer_is_lost_is_not_taken_for_another_runs(bucket: str, proxy: FaultyProxy) -> None:
    output = f"s3://{bucket}/out"
    writer = scores.Writer(output, ["lapv"], "run-1")
    proxy.fail(LOSE, method="PUT", containing="_delta_log", times=1)
    writer.commit(_rows(writer, ["a"]), _rows(writer, []))
    assert LOSE in [fault for *_, fault in proxy.requests()]
    writer.commit(_rows(writer, ["b"]), _rows(writer, []))
    assert set(_stored(output)) == {"a", "b"}
    # Another run's claim is still told from that.
    scores.Writer(output, ["lapv"], "run-2")
    with pytest.raises(Superseded):
        writer.commit(_rows(writer, ["c"]), _rows(writer, []))


def test_a_store_that_refuses_now_and_then_costs_no_row(bucket: str, proxy: FaultyProxy) -> None:
    output = f"s3://{bucket}/out"
    proxy.fail(REFUSE, every=4)
    writer = scores.Writer(output, ["lapv"], "run-1")
    for number in range(4):
        writer.commit(_rows(writer, [f"{number}"]), _rows(writer, []))
    assert set(_stored(output)) == {"0", "1", "2", "3"}


def test_a_run_in_a_bucket_goes_on_after_compaction_and_vacuum(bucket: str, proxy: FaultyProxy) -> None:
    output = f"s3://{bucket}/out"
    writer = scores.Writer(output, ["lapv"], "run-1")
    for name in "abcdefghijkl":
        writer.commit(_rows(writer, [name]), _rows(writer, []))
    proxy.fail(LOSE, method="PUT", containing="_delta_log", times=1)
    done = upkeep.compact(output)
    assert LOSE in [fault for *_, fault in proxy.requests()]
    assert (done.files_before, done.files_after, done.rows, done.checkpoint) == (12, 1, 12, True)
    storage.write_bytes(f"{output}/_runs/0/0.parquet", b"waste paper")
    assert upkeep.vacuum(output).runs == 1
    assert not storage.exists(f"{output}/_runs/0/0.parquet")
    writer.commit(_rows(writer, ["m"]), _rows(writer, ["a"], value=7.0))
    assert _stored(output) == {**dict.fromkeys("bcdefghijklm", 1.0), "a": 7.0}
    scores.Writer(output, ["lapv"], "run-2")
    upkeep.compact(output)
    with pytest.raises(Superseded):
        writer.commit(_rows(writer, ["n"]), _rows(writer, []))


def test_a_manifest_of_a_bucket_tells_what_changed(bucket: str, put: Put, tmp_path: Path) -> None:
    put(bucket, {f"in/{number % 3}/{number:04}.jpg": b"x" for number in range(1200)})
    config = ManifestBuildConfig(input=f"s3://{bucket}/in", output=f"s3://{bucket}/in/m.parquet")
    built = manifest_build.build(config)
    assert (built.images, built.new) == (1200, None)
    put(bucket, {"in/0/0000.jpg": b"y", "in/new.jpg": b"z"})
    storage.delete(f"s3://{bucket}/in/1/0001.jpg")
    built = manifest_build.build(config)
    assert (built.images, built.new, built.changed, built.gone) == (1200, 1, 1, 1)
    storage.download(config.output, str(tmp_path / "m.parquet"))
    table = pq.read_table(tmp_path / "m.parquet")
    ids = table["image_id"].to_pylist()
    assert ids == sorted(ids)
    assert table["modified"].null_count == table["etag"].null_count == 0
    # The same as a listing by the way, and as a listing that stops early.
    loaded = manifest.load(config.input, tmp_path / "spool.parquet")
    extra = {"m.parquet", "m.changes.parquet"}
    assert [i for i in pq.read_table(loaded.path)["image_id"].to_pylist() if i not in extra] == ids
    first = manifest.load(config.input, tmp_path / "spool.parquet", limit=5)
    assert pq.read_table(first.path)["image_id"].to_pylist() == [f"0/{number:04}.jpg" for number in range(0, 15, 3)]


def test_photographs_are_erased_from_everything_in_a_bucket(bucket: str, put: Put, tmp_path: Path) -> None:
    output = f"s3://{bucket}/project"
    writer = scores.Writer(output, ["lapv"], "run-1")
    gone = "shoot/p01.jpg"
    for name in (gone, "shoot/p02.jpg"):
        writer.commit(_rows(writer, [name]), _rows(writer, []))
    upkeep.compact(output)
    pq.write_table(pa.table({"image_id": [gone, "shoot/p02.jpg"]}), tmp_path / "m.parquet")
    put(
        bucket,
        {
            "project/m.parquet": (tmp_path / "m.parquet").read_bytes(),
            "project/_stats.json": b'{"state": "done", "examples": [{"image_id": "shoot/p01.jpg"}]}',
            "project/report.html": b'<meta name="generator" content="qualitygate 0.1.0">',
            "project/shard.bin": b"\0shoot/p01.jpg\0",
            "elsewhere/ids.txt": gone.encode(),
        },
    )
    looked = purge.purge(output, f"s3://{bucket}/elsewhere/ids.txt", apply=False)
    assert {one.name for one in looked.found} >= {"m.parquet", "_stats.json", "report.html", "shard.bin"}
    assert set(_stored(output)) == {gone, "shoot/p02.jpg"}
    done = purge.purge(output, f"s3://{bucket}/elsewhere/ids.txt", apply=True)
    assert [one.name for one in done.remaining] == ["shard.bin"]
    assert set(_stored(output)) == {"shoot/p02.jpg"}
    for item in storage.everything(output):
        if item.name != "shard.bin" and not item.name.endswith(".parquet"):
            assert gone.encode() not in (storage.read_bytes(item.uri) or b"")
    assert not storage.exists(f"{output}/report.html")
    storage.download(f"{output}/m.parquet", str(tmp_path / "left.parquet"))
    assert pq.read_table(tmp_path / "left.parquet")["image_id"].to_pylist() == ["shoot/p02.jpg"]
    with pytest.raises(Superseded):
        writer.commit(_rows(writer, [gone]), _rows(writer, []))
