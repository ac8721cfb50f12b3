"""Erasure: what is asked for is gone from every file, by a search that is none of the purge's own; the rest stays."""

import hashlib
import json
import tarfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qualitygate import cli
from qualitygate.errors import ConfigurationError, Superseded
from qualitygate.report import status
from qualitygate.tables import mentions, purge, scores, storage, upkeep

GONE = ("shoot/p01.jpg", "p 07, odd.jpg")
KEPT = ("shoot/p02.jpg", "other/shoot/p01.jpg.bak", "xshoot/p01.jpg", "p07")


def _rows(writer: scores.Writer, ids: Iterable[str], value: float = 1.0) -> pa.Table:
    row = {"status": "ok", "attempts": 1, "run_id": "r", "scored_at": datetime(2026, 1, 1, tzinfo=UTC), "lapv": value}
    named = [row | {"image_id": one, "uri": f"s3://b/{one}", "error_message": f"read {one}"} for one in ids]
    return pa.Table.from_pylist(named, schema=writer.schema)


def _stored(output: str) -> dict[str, float]:
    table = pa.table(scores.dataset(scores.existing_table(output)).to_table())
    return dict(zip(table["image_id"].to_pylist(), table["lapv"].to_pylist(), strict=True))


def holders(root: Path, ids: Iterable[str]) -> set[str]:
    """Files that hold an id anywhere: cells, metadata and statistics of Parquet spelled out, bytes of all others."""
    found = set()
    for path in root.rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode("utf-8", "replace")
            if path.suffix == ".parquet" and not text.startswith("PAR1 "):
                file = pq.ParquetFile(path)
                about = file.metadata
                columns = [
                    about.row_group(group).column(place).statistics
                    for group in range(about.num_row_groups)
                    for place in range(about.num_columns)
                ]
                ends = [(one.min, one.max) for one in columns if one is not None and one.has_min_max]
                # Those of a checkpoint are of its rows, which are read, cut anywhere: a decoy's begin looks like an id.
                ends = [] if "_delta_log" in path.parts else ends
                text = json.dumps([file.read().to_pylist(), str(file.schema_arrow.metadata), ends], default=str)
            for decoy in KEPT:
                text = text.replace(decoy, "")
            if any(one in text for one in ids):
                found.add(path.relative_to(root).as_posix())
    return found


def _hashes(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def ids_file(tmp_path: Path) -> str:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"{one}\n" for one in (*GONE, "never-seen.jpg")))
    return str(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder as several verbs leave it, with tables, records, pages and pictures of their kinds."""
    root = tmp_path / "out"
    writer = scores.Writer(str(root), ["lapv"], "run-1")
    writer.commit(_rows(writer, GONE), _rows(writer, []))
    for one in KEPT:
        writer.commit(_rows(writer, [one]), _rows(writer, []))
    upkeep.compact(str(root))
    writer.commit(_rows(writer, ["late.jpg"]), _rows(writer, [GONE[0]], 2.0))
    scores.existing_table(str(root)).create_checkpoint()
    every = [*GONE, *KEPT]
    (root / "scores" / "orphan.parquet").write_bytes((root / "scores").glob("*.parquet").__next__().read_bytes())
    tables = {
        "manifest.parquet": pa.table({"image_id": every, "uri": [f"s3://b/{one}" for one in every]}),
        "predictions/predictions.parquet": pa.table({"image_id": pa.array(every).dictionary_encode()}),
        "model/training_ids.parquet": pa.table({"image_id": pa.array(every, pa.large_string()), "n": range(6)}),
        "study/subsets/all-0-0-train.parquet": pa.table({"image_id": every, "group": every}),
        "audit/rejects.parquet": pa.table(
            {
                "image_id": KEPT,
                "near": pa.array([[one, "x"] for one in [*GONE, "a", "b"]]),
                "previous": pa.array([{"image_id": one, "score": 1.0} for one in [*GONE, "c", "d"]]),
                "note": [f"twin of {GONE[0]}.", None, "of xshoot/p01.jpg", "none"],
                "twin": [GONE[1], None, "xshoot/p01.jpg", "none"],
            }
        ).replace_schema_metadata({"about": json.dumps({"of": [GONE[0], KEPT[0]]}), "kept": "as it is"}),
        "_runs/1/0.parquet": pa.table({"image_id": every, "previous": pa.array([{"image_id": one} for one in every])}),
    }
    for name, table in tables.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name, row_group_size=4)
    stats = {
        "run_id": "run-1",
        "state": "done",
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "input": f"s3://b/{KEPT[2]}",
        "manifest": {"rows": 6, "examples": [{"image_id": one, "message": f"no {one}"} for one in every]},
        "messages": [f"{GONE[0]}: unreadable; {KEPT[0]} too", "nothing"],
        "seen": {GONE[0]: 1, KEPT[0]: 2},
        "listed": every,
    }
    gate = {"format": "qualitygate-gate", "version": 1, "id": "0" * 16, "methods": {}, "votes_needed": 1}
    texts = {
        "_stats.json": json.dumps(stats),
        "gate/gate.json": json.dumps(gate),
        "robustness/robustness.json": json.dumps({"metrics": {}, "single_sample": GONE[0]}),
        "canary/scores.jsonl": "".join(json.dumps({"image_id": one, "lapv": 1}) + "\n" for one in every),
        "canary/list.csv": "image_id,uri\n" + "".join(f'"{one}","s3://b/{one}"\n' for one in every),
        "about-one.json": json.dumps({"image_id": GONE[1], "why": "asked"}),
        "notes.md": f"# Seen\n\n| {GONE[0]} | sharp |\n| {KEPT[0]} | sharp |\n(s3://b/{GONE[1]})\n",
        "wanted.txt": "".join(f"{one}\n" for one in every),
        "report.html": '<html><meta name="generator" content="qualitygate 0.1.0"><img src="data:,x">',
        "other.html": f"<p>{GONE[0]}</p><p>{KEPT[1]}</p>",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "robustness" / "series.png").write_bytes(b"a picture of one of them")
    (root / "study" / "curve.png").write_bytes(b"a picture of none")
    return root


def test_nothing_is_changed_before_it_is_asked_for(root: Path, ids_file: str) -> None:
    before = _hashes(root)
    found = purge.purge(str(root), ids_file, apply=False)
    assert _hashes(root) == before
    assert not found.done
    assert found.absent == ("never-seen.jpg",)
    named = {one.name for one in found.found if one.action != "keep"}
    log = {name for name in before if "_delta_log/" in name}
    assert holders(root, GONE) - log <= named
    assert named - holders(root, GONE) - log == {"report.html", "robustness/series.png"}


def test_no_file_names_them_any_more_and_all_else_stays(root: Path, ids_file: str) -> None:
    before, gate = _stored(str(root)), (root / "gate" / "gate.json").read_bytes()
    done = purge.purge(str(root), ids_file, apply=True)
    assert done.remaining == ()
    assert holders(root, GONE) == set()
    assert _stored(str(root)) == {key: value for key, value in before.items() if key not in GONE}
    assert (root / "gate" / "gate.json").read_bytes() == gate
    for gone in ("report.html", "robustness/series.png", "about-one.json"):
        assert not (root / gone).exists()
    assert (root / "study" / "curve.png").exists()
    for name in (
        "manifest.parquet",
        "predictions/predictions.parquet",
        "model/training_ids.parquet",
        "_runs/1/0.parquet",
    ):
        assert pq.read_table(root / name)["image_id"].to_pylist() == list(KEPT)
    audit = pq.read_table(root / "audit" / "rejects.parquet")
    assert audit["image_id"].to_pylist() == list(KEPT)
    assert audit["near"].to_pylist() == [["x"], ["x"], ["a", "x"], ["b", "x"]]
    assert [row and row["image_id"] for row in audit["previous"].to_pylist()] == [None, None, "c", "d"]
    assert audit["note"].to_pylist() == ["twin of (purged).", None, "of xshoot/p01.jpg", "none"]
    assert audit["twin"].to_pylist() == ["(purged)", None, "xshoot/p01.jpg", "none"]
    assert audit.schema.metadata[b"kept"] == b"as it is"
    assert json.loads(audit.schema.metadata[b"about"]) == {"of": [KEPT[0]]}
    stats = json.loads((root / "_stats.json").read_text())
    assert [one["image_id"] for one in stats["manifest"]["examples"]] == list(KEPT)
    assert stats["messages"] == [f"(purged): unreadable; {KEPT[0]} too", "nothing"]
    assert (stats["seen"], stats["listed"], stats["input"]) == ({KEPT[0]: 2}, list(KEPT), f"s3://b/{KEPT[2]}")
    assert json.loads((root / "robustness" / "robustness.json").read_text()) == {"metrics": {}, "single_sample": None}
    lines = (root / "canary" / "scores.jsonl").read_text().splitlines()
    assert [json.loads(line)["image_id"] for line in lines] == list(KEPT)
    assert len((root / "canary" / "list.csv").read_text().splitlines()) == 1 + len(KEPT)
    assert (root / "wanted.txt").read_text().splitlines() == list(KEPT)
    assert (root / "notes.md").read_text().count("(purged)") == 2
    assert (root / "other.html").read_text() == f"<p>(purged)</p><p>{KEPT[1]}</p>"
    assert any("classifier was trained on them" in note for note in done.notes)
    assert any("can't be resumed" in note for note in done.notes)
    again = purge.purge(str(root), ids_file, apply=True)
    assert (again.found, again.remaining) == ((), ())
    assert set(again.absent) == {*GONE, "never-seen.jpg"}


def test_a_run_at_work_is_stopped_and_stays_fenced(root: Path, ids_file: str) -> None:
    zombie = scores.Writer(str(root), ["lapv"], "run-2")
    purge.purge(str(root), ids_file, apply=True)
    # Each version it could take is there, so neither kind of write lands.
    for new, replaced in (([GONE[0]], []), ([], [KEPT[0]])):
        with pytest.raises(Superseded):
            zombie.commit(_rows(zombie, new), _rows(zombie, replaced, 9.0))
    assert GONE[0] not in _stored(str(root))
    after = scores.Writer(str(root), ["lapv"], "run-3")
    assert after.epoch == zombie.epoch + 2
    after.commit(_rows(after, ["new.jpg"]), _rows(after, [KEPT[0]], 3.0))
    assert _stored(str(root))["new.jpg"] == 1.0
    assert _stored(str(root))[KEPT[0]] == 3.0
    upkeep.compact(str(root))
    upkeep.vacuum(str(root))
    assert len(_stored(str(root))) == len(KEPT) + 2


def test_a_purge_is_no_run_that_hasnt_ended(root: Path, ids_file: str) -> None:
    purge.purge(str(root), ids_file, apply=True)
    part = next(part for part in status.read(str(root)).parts if part.verb == "score")
    assert "unfinished" not in part.facts


def test_files_of_a_run_that_starts_meanwhile_are_left_and_named(
    root: Path, ids_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = scores.Writer.remove
    fresh = root / "scores" / "just-written.parquet"

    def and_another_writes(self: scores.Writer, image_ids: Any) -> None:
        removed(self, image_ids)
        pq.write_table(pa.table({"image_id": [GONE[0]]}), fresh)

    monkeypatch.setattr(scores.Writer, "remove", and_another_writes)
    done = purge.purge(str(root), ids_file, apply=True)
    assert [one.name for one in done.remaining] == ["scores/just-written.parquet"]
    assert fresh.exists()


def test_what_cant_be_rewritten_is_named_and_the_exit_code_says_so(
    root: Path, ids_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "photographs" / "shoot").mkdir(parents=True)
    photograph = root / "photographs" / "shoot" / "p01.jpg"
    photograph.write_bytes(b"the photograph itself")
    with tarfile.open(root / "shard.tar", "w") as shard:
        shard.add(photograph, arcname=GONE[0])
    (root / "broken.parquet").write_bytes(b"PAR1 " + GONE[0].encode())
    gate = root / "gate" / "gate.json"
    gate.write_text(json.dumps({"id": "0" * 16, "note": f"without {GONE[0]}"}))
    given = ["purge", "--output", str(root), "--ids", ids_file]
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    assert ended.value.code == 0
    assert "nothing was changed: add --yes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main([*given, "--yes", "--json"])
    assert ended.value.code == 1
    told = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["action"] for one in told["remaining"]} == {
        "photographs/shoot/p01.jpg": "keep",
        "shard.tar": "keep",
        "broken.parquet": "keep",
        "gate/gate.json": "keep",
    }
    assert photograph.exists()
    assert holders(root, GONE) == {"shard.tar", "broken.parquet", "gate/gate.json"}
    with pytest.raises(SystemExit):
        cli.main([*given, "--yes"])
    assert "STILL HOLDS AN ID: shard.tar (1 place; a kind of file that isn't rewritten" in capsys.readouterr().out


def test_the_list_itself_is_left_where_it_lies(root: Path) -> None:
    listed = root / "ids.csv"
    listed.write_text(f"image_id,why\n{GONE[0]},asked\n")
    done = purge.purge(str(root), str(listed), apply=True)
    assert done.remaining == ()
    assert GONE[0] in listed.read_text()
    assert any("ids.csv is the list of ids itself" in note for note in done.notes)


def test_an_id_like_any_word_is_taken_from_tables_and_harms_no_record(tmp_path: Path) -> None:
    root = tmp_path / "out"
    writer = scores.Writer(str(root), ["lapv"], "run-1")
    writer.commit(_rows(writer, ["ok", "12", "p1"]), _rows(writer, []))
    record = {"state": "ok", "examples": [{"image_id": "ok"}, {"image_id": "p1"}], "rows": "12 of 12"}
    (root / "_stats.json").write_text(json.dumps(record))
    (root / "ids.parquet").parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image_id": ["ok", "12"]}), tmp_path / "ids.parquet")
    done = purge.purge(str(root), str(tmp_path / "ids.parquet"), apply=True)
    assert done.remaining == ()
    assert done.indistinct == ("12", "ok")
    assert _stored(str(root)) == {"p1": 1.0}
    assert json.loads((root / "_stats.json").read_text()) == {**record, "examples": [{"image_id": "p1"}]}


def test_other_delta_tables_lose_them_too(tmp_path: Path, ids_file: str) -> None:
    from deltalake import DeltaTable, write_deltalake

    table = tmp_path / "out" / "nights" / "history"
    write_deltalake(str(table), pa.table({"image_id": [GONE[0], KEPT[0]], "night": [1, 1]}))
    write_deltalake(str(table), pa.table({"image_id": [KEPT[1]], "night": [2]}), mode="append")
    done = purge.purge(str(tmp_path / "out"), ids_file, apply=True)
    assert done.remaining == ()
    assert holders(tmp_path / "out", GONE) == set()
    assert sorted(pa.table(DeltaTable(str(table)).to_pyarrow_table())["image_id"].to_pylist()) == sorted(KEPT[:2])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ids.txt", "\n \n", "names no image_id"),
        ("ids.csv", "id\na\n", "has no column image_id"),
        ("ids.parquet", "x", "can't be read"),
        (None, "", "can't be read"),
    ],
)
def test_a_list_that_cant_be_used_is_refused(tmp_path: Path, name: str | None, content: str, message: str) -> None:
    path = tmp_path / (name or "absent.txt")
    if name:
        path.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        purge.purge(str(tmp_path), str(path), apply=True)


def test_a_folder_that_isnt_there_is_refused(tmp_path: Path, ids_file: str) -> None:
    with pytest.raises(ConfigurationError, match="is no folder or prefix"):
        purge.purge(str(tmp_path / "nowhere"), ids_file, apply=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://b/shoot/p01.jpg", True),
        ("read 'shoot/p01.jpg': no", True),
        ("shoot/p01.jpg: no", True),
        ("id=shoot/p01.jpg.", True),
        ('{"a":"shoot/p01.jpg"}', True),
        ("xshoot/p01.jpg", False),
        ("shoot/p01.jpg.bak", False),
        ("shoot/p01.jpgs", False),
        ("data:" + "A/b9" * 100_000, False),
        ("about p 07, odd.jpg here", True),
    ],
)
def test_an_id_in_text_stands_by_itself(text: str, found: bool) -> None:
    ids = mentions.Ids(GONE)
    assert bool(ids.inside(text)) is found
    assert (mentions.PURGED in ids.replaced(text)) is found


def test_bytes_are_found_across_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mentions, "_CHUNK", 7)
    path = tmp_path / "x.bin"
    path.write_bytes(b"\0" * 12 + GONE[0].encode() + b"\0" * 9)
    ids = mentions.Ids([*GONE, "absent.jpg"])
    with path.open("rb") as stream:
        assert ids.in_bytes(stream) == {GONE[0]}
    assert storage.exists(str(path))


def test_more_ids_than_are_removed_at_once_leave_no_file_between(tmp_path: Path) -> None:
    """What the first commits of a removal wrote and later ones replaced holds ids as well, as views of texts."""
    root = tmp_path / "out"
    gone = [f"g{number:03}" for number in range(250)]
    writer = scores.Writer(str(root), ["lapv"], "run-1")
    writer.commit(_rows(writer, [*gone, "kept/a.jpg", "kept/b.jpg"]), _rows(writer, []))
    listed = tmp_path / "ids.txt"
    listed.write_text("".join(f"{one}\n" for one in gone))
    done = purge.purge(str(root), str(listed), apply=True)
    assert done.remaining == ()
    assert holders(root, gone) == set()
    assert set(_stored(str(root))) == {"kept/a.jpg", "kept/b.jpg"}
