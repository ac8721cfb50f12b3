"""Subsets: who is in, who is out, of what size, and that nothing but the seed and the repetition decides it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from study_maker import METHODS, design, photographs, pool_of

from qualitygate.errors import ConfigurationError
from qualitygate.training import subset_files
from qualitygate.training.pool import Pool, prepare, quality_order
from qualitygate.training.sampling import Repetition, Sampling, Subset, check_disjoint, part_of
from qualitygate.training.splits import generator, set_aside
from qualitygate.training.study_plan import gpu_minutes, plan
from qualitygate.training.subsets import draw

quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
tables = st.builds(
    lambda per_group, classes, rejected, seed: photographs(
        60 * classes * per_group // 2, per_group=per_group, classes=classes, rejected=rejected, seed=seed
    ),
    st.sampled_from([1, 2, 5]),
    st.sampled_from([2, 3]),
    st.sampled_from([0.1, 0.3, 0.6]),
    st.integers(0, 1000),
)


def by_name(found: Repetition) -> dict[str, Subset]:
    return {subset.name.rsplit("-", 1)[0]: subset for subset in found.subsets}


# ---- the order of quality ----------------------------------------------------------------------------------


def test_quality_order_goes_by_votes_then_mean_rank_in_each_methods_direction_then_row() -> None:
    # Ranks by sharp (higher is better): 4 1 2 3 5; by distance (lower is better): 3 1.5 1.5 4 5.
    scores = {
        "sharp": np.array([1.0, 9.0, 5.0, 3.0, np.nan]),
        "distance": np.array([3.0, 1.0, 1.0, 7.0, 9.0]),
    }
    votes = np.array([0, 1, 1, 0, 0])
    # Without votes against: rows 0 (mean 3.5), 3 (3.5, later row), 4 (a missing score is the worst rank); then 1, 2.
    assert quality_order(scores, METHODS, votes).tolist() == [0, 3, 4, 1, 2]


def test_a_missing_score_ranks_below_every_present_one() -> None:
    scores = {"sharp": np.array([np.nan, 1.0, 2.0])}
    assert quality_order(scores, {"sharp": "higher"}, np.zeros(3, dtype=np.int64)).tolist() == [2, 1, 0]
    scores = {"sharp": np.array([np.nan, 1.0, 2.0])}
    assert quality_order(scores, {"sharp": "lower"}, np.zeros(3, dtype=np.int64)).tolist() == [2, 0, 1]


@quick
@given(tables)
def test_photographs_that_pass_come_before_all_that_do_not(table: pa.Table) -> None:
    pool = prepare(table, METHODS)
    assert sorted(pool.place.tolist()) == list(range(len(pool.place)))
    if not pool.passed.all():
        assert pool.place[pool.passed].max() < pool.place[~pool.passed].min()


# ---- invariants of every draw ------------------------------------------------------------------------------


@quick
@given(tables, st.integers(0, 3), st.sampled_from([None, 12, 20]))
def test_no_group_is_on_two_sides_and_sizes_are_equal(table: pa.Table, repetition: int, size: int | None) -> None:
    pool = prepare(table, METHODS)
    found = draw(pool, Sampling(removed=(0, 30), train_images=size), repetition)
    tests = found.tests
    assert set(tests["high"].rows) | set(tests["rejected"].rows) == set(tests["all"].rows)
    assert pool.passed[tests["high"].rows].all()
    assert not pool.passed[tests["rejected"].rows].any()
    held = set(pool.unit[tests["all"].rows])
    for subset in found.subsets:
        train, evaluation = (set(pool.unit[part.rows]) for part in (subset.train, subset.evaluation))
        assert not train & evaluation
        assert not (train | evaluation) & held
        for part in (subset.train, subset.evaluation):
            assert len(part.rows) == len(set(part.rows)) > 0
            assert len(set(pool.label[part.rows])) > 1
    named = by_name(found)
    assert pool.passed[named["high-0"].train.rows].all()
    assert pool.passed[named["high-0"].evaluation.rows].all()
    assert len(named["high-0"].train.rows) == len(named["all-0"].train.rows)
    assert len(named["varying-0"].train.rows) == len(named["varying-30"].train.rows) <= len(named["high-0"].train.rows)
    if size is not None:
        assert len(named["high-0"].train.rows) <= size
    taken = {row for part in (named["full-0"].train, named["full-0"].evaluation) for row in part.rows}
    assert taken | set(tests["all"].rows) == set(range(len(pool.label)))
    if not any(text.startswith("balanced") for text in found.messages):
        assert pool.counts(named["balanced-0"].train.rows) == pool.counts(named["high-0"].train.rows)


@quick
@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(table: pa.Table, shuffler: Any) -> None:
    order = list(range(table.num_rows))
    shuffler.shuffle(order)
    sampling = Sampling(removed=(0, 30))
    ours, theirs = (draw(prepare(one, METHODS), sampling, 1) for one in (table, table.take(order)))
    assert [(s.name, s.train.sha256, s.evaluation.sha256) for s in ours.subsets] == [
        (s.name, s.train.sha256, s.evaluation.sha256) for s in theirs.subsets
    ]
    assert {name: part.sha256 for name, part in ours.tests.items()} == {
        name: part.sha256 for name, part in theirs.tests.items()
    }


def test_repetitions_differ_unless_only_the_seed_is_to_change() -> None:
    pool = pool_of()
    first, second = (draw(pool, Sampling(), number) for number in (0, 1))
    assert first.tests["high"].sha256 != second.tests["high"].sha256
    first, second = (draw(pool, Sampling(resample="seed"), number) for number in (0, 1))
    assert [s.train.sha256 for s in first.subsets] == [s.train.sha256 for s in second.subsets]
    assert first.tests["high"].sha256 == second.tests["high"].sha256
    assert draw(pool, Sampling(seed=1), 0).tests["high"].sha256 != first.tests["high"].sha256


def test_controls_and_further_levels_leave_the_other_draws_alone() -> None:
    pool = pool_of(400)
    alone = by_name(draw(pool, Sampling(kinds=("high", "all", "varying"), train_images=100), 0))
    more = by_name(draw(pool, Sampling(train_images=100), 0))
    assert {name: more[name].train.sha256 for name in alone} == {name: alone[name].train.sha256 for name in alone}
    assert "random-0" not in more
    assert "random-10" in more


def test_the_high_quality_set_is_split_10_10_80() -> None:
    pool = pool_of(1000)
    found = draw(pool, Sampling(), 0)
    passed = int(pool.passed.sum())
    high = by_name(found)["high-0"]
    assert len(found.tests["high"].rows) == pytest.approx(passed / 10, abs=2)
    assert len(high.evaluation.rows) == pytest.approx(passed / 10, abs=2)
    assert len(high.train.rows) == passed - len(found.tests["high"].rows) - len(high.evaluation.rows)
    assert len(found.tests["rejected"].rows) == pytest.approx((1000 - passed) / 10, abs=2)
    everything = by_name(found)["all-0"]
    drawn = len(everything.train.rows) + len(everything.evaluation.rows)
    assert len(everything.evaluation.rows) == pytest.approx(drawn / 10, abs=2)
    assert abs(pool.counts(high.train.rows)["maker0"] / len(high.train.rows) - 0.5) < 0.1


def test_rejected_photographs_of_a_test_group_are_held_out_with_it() -> None:
    pool = pool_of(400, per_group=4)
    found = draw(pool, Sampling(), 0)
    held = np.isin(pool.unit, pool.unit[found.tests["high"].rows])
    assert set(np.flatnonzero(held)) <= set(found.tests["all"].rows)
    assert (~pool.passed[held]).any()


# ---- removing the lowest -----------------------------------------------------------------------------------


def test_varying_quality_removes_the_lowest_of_a_larger_base() -> None:
    pool = pool_of(1000)
    named = by_name(draw(pool, Sampling(train_images=200), 0))
    for level in (10, 20, 30, 40, 50):
        subset = named[f"varying-{level}"]
        drawn = len(subset.train.rows) + len(subset.evaluation.rows)
        assert len(subset.train.rows) == 200
        # The worst of those kept stands about where the percentage leaves off; random removal keeps the worst too.
        worst = max(pool.place[np.concatenate([subset.train.rows, subset.evaluation.rows])])
        assert worst < 1000 * (1 - level / 100) + 60
        assert pool.place[named[f"random-{level}"].train.rows].max() > 900
        assert drawn == pytest.approx(200 / 0.9, abs=3)
    means = [pool.place[named[f"varying-{level}"].train.rows].mean() for level in (0, 10, 20, 30, 40, 50)]
    assert means == sorted(means, reverse=True)


def test_enough_photographs_need_no_message_and_one_too_few_shrinks_all_levels_alike() -> None:
    pool = pool_of(1000)
    assert draw(pool, Sampling(train_images=400), 0).messages == ()
    found = draw(pool, Sampling(train_images=450), 0)
    (message,) = found.messages
    there = 1000 - len(found.tests["all"].rows)
    sizes = {name: len(subset.train.rows) for name, subset in by_name(found).items()}
    levels = {size for name, size in sizes.items() if name.startswith(("varying", "random"))}
    assert sizes["high-0"] == sizes["all-0"] == sizes["balanced-0"] == 450
    assert len(levels) == 1
    assert levels.pop() == pytest.approx(0.45 * there, abs=2)
    assert f"holds {there:,} photographs; 450 training" in message
    assert "need 900, with an evaluation set about 1,000: every level" in message
    with pytest.raises(ConfigurationError, match=r"need 900.*give --train-images 40\d.*leave out --strict-size"):
        draw(pool, Sampling(train_images=450, strict_size=True), 0)


def test_a_high_quality_set_that_is_too_small_shrinks_all_or_is_refused() -> None:
    pool = pool_of(100)
    found = draw(pool, Sampling(train_images=500, removed=(0,)), 0)
    assert "the high-quality set gives" in found.messages[0]
    assert len({len(s.train.rows) for s in found.subsets if s.kind != "full"}) == 1
    with pytest.raises(ConfigurationError, match="not 500; give --train-images") as caught:
        draw(pool, Sampling(train_images=500, strict_size=True), 0)
    assert "\n" not in str(caught.value)


# ---- setting groups aside ----------------------------------------------------------------------------------


def test_groups_are_set_aside_whole_near_the_target_and_never_all_of_a_class() -> None:
    pool = pool_of(300, per_group=3)
    rows = np.arange(300)
    aside = set_aside(pool, rows, 30, generator(0, 0))
    assert len(aside) == pytest.approx(30, abs=3)
    assert len(aside) == np.isin(pool.unit, pool.unit[aside]).sum()
    few = rows[np.isin(pool.unit, [0, 1, 2, 3])]
    taken = set_aside(pool, few, 11.9, generator(0, 0))
    left = np.setdiff1d(few, taken)
    assert set(pool.label[taken]) == set(pool.label[left]) == {0, 1}


def test_a_giant_group_is_passed_over_while_there_are_smaller_ones() -> None:
    table = photographs(100)
    groups = ["giant" if number < 60 else f"g{number}" for number in range(100)]
    table = table.set_column(2, "group", pa.array(groups)).set_column(1, "label", pa.array(["a"] * 80 + ["b"] * 20))
    pool = prepare(table, METHODS)
    for seed in range(5):
        assert "giant" not in set(pool.group[set_aside(pool, np.arange(100), 10, generator(seed, 0))])


def test_files_with_the_same_bytes_stay_together() -> None:
    table = photographs(60).append_column("sha256", pa.array([f"h{number // 2}" for number in range(60)]))
    pool = prepare(table, METHODS)
    assert len(set(pool.unit)) == 30
    assert "repeat the bytes" in pool.notes[0]
    draw(pool, Sampling(removed=(0,)), 0)


def test_photographs_without_a_group_are_groups_of_their_own() -> None:
    pool = pool_of(80, groups=False)
    assert len(set(pool.unit)) == 80
    assert pool.group.tolist() == pool.image_id.tolist()
    assert pool.notes[0].startswith("80 photographs have no group")


# ---- what is refused ---------------------------------------------------------------------------------------


def _column(name: str, values: Callable[[int], Any]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        place = table.column_names.index(name)
        kind = table.schema.field(name).type
        return table.set_column(place, name, pa.array([values(row) for row in range(table.num_rows)], kind))

    return changed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_column("label", lambda row: None if row < 7 else "a"), r"7 of 120 photographs have no label .*label them"),
        (_column("label", lambda row: " " if row == 3 else "a"), r"1 of 120 photographs have no label \('p00003'\)"),
        (_column("label", lambda row: "a"), r"all 120 photographs have the label 'a'"),
        (_column("passed", lambda row: None if row < 2 else True), r"2 of 120 photographs have no decision"),
        (_column("passed", lambda row: False), r"none of 120 photographs passes the gate"),
        (_column("passed", lambda row: row % 2 == 0), r"votes_low and passed contradict"),
        (_column("image_id", lambda row: f"p{row // 2}"), r"60 image_ids occur more than once"),
        (lambda table: table.drop_columns(["sharp"]), r"lack sharp \(they have"),
        (lambda table: table.slice(0, 0), r"no photographs"),
    ],
)
def test_unusable_photographs_are_refused_in_one_line(change: Callable[[pa.Table], pa.Table], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        prepare(change(photographs()), METHODS)
    assert "\n" not in str(caught.value)


def test_a_gate_without_voting_methods_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no method that votes"):
        prepare(photographs(), {})


def test_a_class_of_too_few_groups_is_refused_with_its_counts() -> None:
    table = _column("label", lambda row: "rare" if row >= 118 else "a" if row % 2 else "b")(photographs())
    table = _column("passed", lambda row: True)(_column("votes_low", lambda row: 0)(table))
    with pytest.raises(ConfigurationError, match=r"label 'rare': 2 of 2 photographs pass the gate, in 2 groups"):
        draw(prepare(table, METHODS), Sampling(), 0)


def test_a_subset_of_one_class_is_refused() -> None:
    # All low quality is of one class: what is left of a base at 90 % has no other.
    table = photographs(400, rejected=0.2)
    quality = np.asarray(table["sharp"])
    label = np.where(quality > np.quantile(quality, 0.8), "sharp", "blurred")
    label[:6] = "blurred"
    pool = prepare(table.set_column(1, "label", pa.array(label)), METHODS)
    with pytest.raises(ConfigurationError, match=r"subset varying-95-0: its \w+ set (is empty|has a single class)"):
        draw(pool, Sampling(kinds=("varying",), removed=(95,), train_images=12), 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kinds": ("hihg",)}, r"kinds: unknown 'hihg'; choose from high"),
        ({"kinds": ()}, r"kinds: none"),
        ({"removed": (0, 100)}, r"removed: 0, 100; give different percentages"),
        ({"removed": (10, 10)}, r"removed: 10, 10"),
        ({"removed": ()}, r"removed is empty"),
        ({"test_fraction": 0.7}, r"test_fraction: 0.7"),
        ({"eval_fraction": 0.0}, r"eval_fraction: 0"),
        ({"train_images": 1}, r"train_images: 1"),
        ({"resample": "all"}, r"resample: 'all'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        draw(pool_of(), replace(Sampling(), **change), 0)


def test_a_group_on_two_sides_is_refused() -> None:
    pool = pool_of(120, per_group=2)
    found = draw(pool, Sampling(removed=(0,)), 0)
    subset = found.subsets[0]
    leaked = np.sort(np.append(subset.train.rows, found.tests["high"].rows[:1]))
    with pytest.raises(
        ConfigurationError, match=r"subset high-0-0: 1 groups with 1 photographs of training are in the te"
    ):
        check_disjoint(pool, replace(subset, train=part_of(pool, leaked)), found.tests)
    partner = subset.train.rows[:1]
    with pytest.raises(ConfigurationError, match=r"of training are in evaluation too"):
        check_disjoint(pool, replace(subset, evaluation=part_of(pool, partner)), found.tests)


# ---- files -------------------------------------------------------------------------------------------------


def _written(folder: Path, pool: Pool, repetitions: int = 2, **more: Any) -> list[Repetition]:
    sampling = Sampling(removed=(0, 30), **more)
    found = [draw(pool, sampling, number) for number in range(repetitions)]
    subset_files.write(str(folder), pool, found, sampling, METHODS)
    return found


def test_what_is_written_is_what_was_drawn(tmp_path: Path) -> None:
    pool = pool_of()
    found = _written(tmp_path, pool)
    table = pq.read_table(tmp_path / "varying-30-1-train.parquet")
    drawn = by_name(found[1])["varying-30"]
    assert table.column_names == ["image_id", "group"]
    assert table["image_id"].to_pylist() == pool.image_id[drawn.train.rows].tolist()
    again, tests = subset_files.read(str(tmp_path), pool, "varying", 30, 1)
    assert (again.train.sha256, again.evaluation.sha256) == (drawn.train.sha256, drawn.evaluation.sha256)
    assert {name: part.sha256 for name, part in tests.items()} == {n: p.sha256 for n, p in found[1].tests.items()}
    paper_test = pq.read_table(tmp_path / "high-0-0-test.parquet")["image_id"].to_pylist()
    assert paper_test == pool.image_id[found[0].tests["high"].rows].tolist()
    index = json.loads((tmp_path / "subsets.json").read_text())
    entry = next(file for file in index["files"] if file["file"] == "high-0-0-train.parquet")
    assert entry["rows"] == entry["passed"] == sum(entry["classes"].values())
    assert "mean rank" in index["quality_order"]["rule"]
    assert {file["file"] for file in index["files"]} | {"subsets.json"} == {path.name for path in tmp_path.iterdir()}


def test_more_repetitions_are_added_and_other_subsets_refused(tmp_path: Path) -> None:
    pool = pool_of()
    _written(tmp_path, pool, repetitions=1)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    _written(tmp_path, pool, repetitions=3)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.parquet")}
    assert len(after) == 3 * len(before)
    assert before.items() <= after.items()
    with pytest.raises(ConfigurationError, match=r"other subsets of the same name .*choose another --output"):
        _written(tmp_path, pool, seed=7)


def test_a_file_that_is_gone_is_written_again_and_a_changed_one_refused(tmp_path: Path) -> None:
    pool = pool_of()
    _written(tmp_path, pool, repetitions=1)
    train, tests = tmp_path / "high-0-0-train.parquet", tmp_path / "tests-0-all.parquet"
    before = train.read_bytes()
    train.unlink()
    _written(tmp_path, pool, repetitions=1)
    assert train.read_bytes() == before
    train.write_bytes(tests.read_bytes())
    with pytest.raises(ConfigurationError, match="is not what was drawn"):
        _written(tmp_path, pool, repetitions=1)


def test_changed_files_and_changed_labels_are_noticed(tmp_path: Path) -> None:
    table = photographs()
    pool = prepare(table, METHODS)
    _written(tmp_path, pool)
    path = tmp_path / "high-0-0-train.parquet"
    whole = pq.read_table(path)
    labels = [{"maker0": "maker1", "maker1": "maker0"}[name] for name in table["label"].to_pylist()]
    with pytest.raises(ConfigurationError, match="groups, labels or contents have changed"):
        subset_files.read(str(tmp_path), prepare(table.set_column(1, "label", pa.array(labels)), METHODS), "high", 0, 0)
    pq.write_table(whole.slice(1), path)
    with pytest.raises(ConfigurationError, match="is not what was drawn"):
        subset_files.read(str(tmp_path), pool, "high", 0, 0)
    path.write_bytes(b"no parquet")
    with pytest.raises(ConfigurationError, match="can't be read"):
        subset_files.read(str(tmp_path), pool, "high", 0, 0)
    path.unlink()
    with pytest.raises(ConfigurationError, match="is not there; draw the subsets again"):
        subset_files.read(str(tmp_path), pool, "high", 0, 0)
    fewer = prepare(table.slice(20), METHODS)
    with pytest.raises(ConfigurationError, match="photographs are not in the manifest"):
        subset_files.read(str(tmp_path), fewer, "all", 0, 0)
    (tmp_path / "subsets.json").unlink()
    with pytest.raises(ConfigurationError, match="aren't complete"):
        subset_files.read(str(tmp_path), pool, "all", 0, 0)


# ---- the plan ----------------------------------------------------------------------------------------------


def test_the_papers_study_has_seventy_runs_of_equal_size() -> None:
    pool = pool_of(200)
    names = ("alexnet", "vgg19", "resnet18", "resnet34")
    study = plan(pool, design(names, sampling=Sampling(kinds=("high", "all", "varying"))))
    assert len(study.runs) == len({run.run_id for run in study.runs}) == 70
    assert {run.architecture for run in study.runs if run.kind == "varying"} == {"resnet34"}
    assert [run.repetition for run in study.runs] == sorted(run.repetition for run in study.runs)
    assert {run.seed for run in study.runs} == set(range(5))
    assert {len(r.subset.train.rows) for r in study.runs if r.kind in ("high", "all") and r.repetition == 0} == {
        len(study.runs[0].subset.train.rows)
    }
    done = [run.run_id for run in study.runs[:60]]
    assert study.missing(done) == list(study.runs[60:])
    assert plan(pool, study.design).runs[-1].run_id == study.runs[-1].run_id


def test_a_run_id_changes_with_whatever_can_change_its_result() -> None:
    pool, base = pool_of(), design(repetitions=1, sampling=Sampling(kinds=("high", "all")))
    ids = {plan(pool, base).runs[0].run_id}
    sharper = photographs().append_column("sha256", pa.array([f"h{number}" for number in range(120)]))
    others = [
        (pool, replace(base, training={**base.training, "epochs": 3})),
        (pool, replace(base, weights={"resnet18": "f" * 64})),
        (pool, replace(base, code_version="2")),
        (pool, replace(base, sampling=replace(base.sampling, seed=1))),
        (prepare(sharper, METHODS), base),
    ]
    ids |= {plan(pool, changed).runs[0].run_id for pool, changed in others}
    assert len(ids) == 6
    more = plan(pool, replace(base, repetitions=2, sampling=replace(base.sampling, kinds=("high", "all", "full"))))
    assert {run.run_id for run in plan(pool, base).runs} <= {run.run_id for run in more.runs}


def test_the_full_set_may_get_equal_steps_and_needs_are_counted() -> None:
    pool = pool_of(400)
    base = design(repetitions=1, sampling=Sampling(kinds=("high", "full"), train_images=50))
    base = replace(base, training={"epochs": 40, "batch_size": 10})
    high, full = plan(pool, base).runs
    assert (high.epochs, full.epochs, high.steps) == (40, 40, 200)
    assert full.steps > 5 * high.steps
    high, full = plan(pool, replace(base, equal_steps=True)).runs
    assert full.steps == pytest.approx(high.steps, rel=0.2)
    minutes, unknown = gpu_minutes(plan(pool, base), {"resnet18": 60.0})
    expected = 40 * (50 + len(full.subset.train.rows)) / 60 / 60
    assert minutes == pytest.approx(expected, rel=0.1)
    assert unknown == []
    assert gpu_minutes(plan(pool, base), {}) == (0.0, ["resnet18"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architectures": ()}, "architectures: none"),
        ({"architectures": ("resnet18", "resnet18")}, "each once"),
        ({"repetitions": 0}, r"repetitions \(--seeds\): 0"),
        ({"weights": {}}, "no pretrained parameters are known for resnet18"),
        ({"varying_architectures": ("vgg19",)}, "varying_architectures: vgg19 not among"),
    ],
)
def test_designs_that_cannot_be_meant_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        plan(pool_of(), replace(design(), **change))
