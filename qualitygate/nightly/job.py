"""The nightly job, step by step. Each step is entered in the night's record when it is done, so that a job that was
killed goes on where it was, and a night that has ended isn't done a second time.
"""

import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qualitygate import logs
from qualitygate.calibration import drift, gate_store, outputs
from qualitygate.calibration import gate as gates
from qualitygate.calibration.calibrate import Progress
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import History
from qualitygate.cluster import score_costs, scoring
from qualitygate.cluster.telemetry import Telemetry
from qualitygate.config import (
    CalibrateConfig,
    ManifestBuildConfig,
    NightlyConfig,
    ReportConfig,
    ScoreConfig,
    ScorePlanConfig,
    echo,
)
from qualitygate.errors import (
    DeadlineReached,
    Interrupted,
    Locked,
    NightRefused,
    QualityGateError,
)
from qualitygate.nightly import (
    audit,
    canary,
    candidate,
    gauges,
    guardrails,
    housekeeping,
    listing,
    lock,
    notify,
    record,
    settings,
    trend,
    trust,
    windows,
)
from qualitygate.nightly.lock import Lock
from qualitygate.nightly.record import Check, Night, Records
from qualitygate.report import costs, page, wording
from qualitygate.tables import manifest_build, scores, storage
from qualitygate.tables.scratch import scratch_folder, sweep

logger = logging.getLogger(__name__)

MANIFEST = listing.FILE
REPORT = housekeeping.REPORT
# So many nights are named in a check.
_SHOWN = 3
# Points of a report's figures, each with its photograph: one is kept for each night.
_SAMPLE = 400
_BEFORE_SCORING = ("canary", "manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a night ended. already: it had ended before, and nothing was done."""

    night: Night
    output: str
    already: bool


def as_record(outcome: Outcome) -> dict[str, Any]:
    """The outcome for people and programs: the night's record, where it lies, and whether anything was done."""
    return {**asdict(outcome.night), "output": outcome.output, "already": outcome.already}


class _Stop(Exception):
    """The night ends here, refused: the checks that were made say why."""


def run(config: NightlyConfig, progress: Callable[[str], Progress]) -> Outcome:
    """Do what is left of a night. progress: where to tell how far it is, for a unit such as photographs.

    Raises Locked while another job has the output, ConfigurationError for what must be mended first, Interrupted on
    Ctrl-C or SIGTERM, Superseded when the lock was lost; what is done stays done. A refusal and a deadline are no
    errors here: the outcome's state says so (see `raise_for`).
    """
    notify.check(config)
    name = config.night or f"{datetime.now(UTC):%Y-%m-%d}"
    logs.bind(run_id=f"night-{name}")
    try:
        with gauges.of_night(config, name) as telemetry:
            return _run(config, name, progress, telemetry)
    except (Interrupted, Locked):
        raise
    except Exception as error:
        # Whatever it is, also before the first step: nobody watches, and somebody must be told.
        why = str(error) if isinstance(error, QualityGateError) else f"{type(error).__name__}: {error}"
        _tell(config, Night(night=name, started=record.now()), config.output, state="failed", reasons=(why,))
        raise


def _run(config: NightlyConfig, name: str, progress: Callable[[str], Progress], telemetry: Telemetry) -> Outcome:
    output = outputs.check_output(config.output)
    sweep()
    score, fitting = settings.of_score(config), settings.of_calibration(config)
    deadline = settings.deadline(config.deadline, time.time())
    store = storage.join(output, gates.FOLDER)
    newest = max((change.fence or 0 for change in gate_store.read(store).changes), default=0)
    with (
        scratch_folder() as scratch,
        lock.held(output, night=name, ttl_s=config.lock_ttl_s, above=newest) as held,
    ):
        before = record.read(output, name)
        accepting = config.accept_drift or config.allow_changes
        anew = before is None or config.again or (before.state == "refused" and accepting) or before.state == "deadline"
        if before is not None and not anew and before.ended and "notify" in before.steps:
            return Outcome(night=before, output=output, already=True)
        if fitting is not None and (anew or before is None or not (before.ended or "calibrate" in before.steps)):
            # Hours of scoring later is late to hear of it.
            settings.check_predictions(fitting)
        records = record.read_all(output, without=name)
        night = (
            before
            if before is not None and not anew
            else _begun(output, name, before, records.nights, again=config.again)
        )
        if "score" not in night.steps and not night.ended:
            # What was mended in between, a library or a machine, may be another stick: each start measures it anew.
            # A listing that a later night's has replaced is an old one.
            again = {"canary", *(("manifest",) if _overtaken(night, records.nights) else ())}
            night = replace(night, steps={step: found for step, found in night.steps.items() if step not in again})
        job = _Job(
            config=config,
            score=score,
            fitting=fitting,
            held=held,
            progress=progress,
            output=output,
            records=records,
            scratch=Path(scratch),
            telemetry=telemetry,
        )
        job.night = night
        job.deadline = deadline
        job.run()
        return Outcome(night=job.night, output=output, already=False)


def raise_for(outcome: Outcome) -> None:
    """Raise NightRefused or DeadlineReached when the night ended so: exit codes 4 and 3."""
    night = outcome.night
    if night.state == "refused":
        kept = f"gate {night.gate_after} stays in force" if night.gate_after else "no gate is in force"
        if night.gate_after and night.gate_after != night.gate_before:
            # Of an earlier try of this night, or put there by hand.
            kept += (
                f" (before this night it was {night.gate_before}: 'qualitygate gate rollback --store "
                f"{shlex.quote(storage.redact(outcome.output))} --reason ...' goes back)"
                if night.gate_before
                else " (before this night there was none)"
            )
        raise NightRefused(f"night {night.night} is refused, {kept}: {wording.clauses(night.reasons)}")
    if night.state == "deadline":
        done, left = _done_and_left(night)
        raise DeadlineReached(
            f"night {night.night}: the deadline came before all photographs were scored: {_scored_until(night)}; those "
            "that were are committed, the gate is as it was, and the next night goes on",
            done=done,
            left=left,
        )


def _done_and_left(night: Night) -> tuple[int | None, int | None]:
    found = night.steps.get("score", {})
    return found.get("done"), found.get("left")


def _scored_until(night: Night) -> str:
    """How far a night came until its deadline, in words."""
    done, left = _done_and_left(night)
    return f"{done:,} were scored, {left:,} are left" if done is not None and left is not None else "some are left"


def _begun(output: str, name: str, before: Night | None, others: Sequence[Night], *, again: bool) -> Night:
    """A new record. Done again, a night keeps its beginning, the gate that it found, and what was found before.

    One that met its deadline goes on with the photographs that it had listed.
    """
    current = gate_store.read(storage.join(output, gates.FOLDER)).current
    in_force = current.gate_id if current else None
    if before is not None and current is not None and current.night == name:
        # What this very night has promoted is no gate before it.
        in_force = before.gate_before
    night = Night(night=name, started=before.started if before else record.now(), gate_before=in_force)
    if before is not None:
        # Upkeep of later nights may have removed what an old one had listed.
        has_listing = storage.exists(record.place(output, name, listing.FILE))
        goes_on = before.state == "deadline" and not again and has_listing and not _overtaken(before, others)
        if goes_on:
            night = replace(night, steps={step: before.steps[step] for step in _BEFORE_SCORING})
        night = replace(night, earlier=listing.set_aside(output, before, goes_on=goes_on))
    record.write(output, night)
    return night


def _overtaken(night: Night, others: Sequence[Night]) -> bool:
    """Whether a night that was started later has listed the input since."""
    return any(record.order(other) > record.order(night) and "manifest" in other.steps for other in others)


class _Job:
    """One start of one night."""

    night: Night
    deadline: float | None

    def __init__(
        self,
        *,
        config: NightlyConfig,
        score: ScoreConfig,
        fitting: CalibrateConfig | None,
        held: Lock,
        progress: Callable[[str], Progress],
        output: str,
        records: Records,
        scratch: Path,
        telemetry: Telemetry,
    ) -> None:
        self._config = config
        self._score = score
        self._fitting = fitting
        self._lock = held
        self._told = progress
        self._progress = progress("photographs")
        self._output = output
        self._telemetry = telemetry
        self._store = storage.join(output, gates.FOLDER)
        # Under the lock nobody changes other nights.
        self._others = records.nights
        self._damaged = records.damaged
        self._scratch = scratch
        for night, why in records.damaged.items():
            self._warn(f"night {night} counts as one that nobody trusts: {why}")

    def _warn(self, said: str) -> None:
        logger.warning("%s", said)
        self._progress.note(said)

    def run(self) -> None:
        """All steps that are left."""
        if not self.night.ended:
            storage.write_bytes(self._at("_config.yaml"), echo(notify.without_secrets(self._config)).encode())
            try:
                self._measure()
                state = self._step("decide", self._decide)["state"]
            except _Stop:
                state = "refused"
            self._end(state)
        # The others' nights stay as they are: the table of all is made of their records.
        self._step("upkeep", self._upkeep)
        trend.write(self._output, record.in_order([*self._others, self.night]), keep=self._damaged)
        self._step("report", self._report)
        self._step("notify", lambda: {"problems": _tell(self._config, self.night, self._output)})

    def _measure(self) -> None:
        self._step("canary", self._canary)
        self._check("canary")
        self._step("manifest", self._list)
        self._check("manifest")
        self._step("score", self._score_new)
        self._step("drift", self._drift)
        if self._fitting is not None and not self.night.steps["score"]["deadline"]:
            self._step("calibrate", self._calibrate)

    # ---- steps and their record ------------------------------------------------------------------------------

    def _at(self, *names: str) -> str:
        return record.place(self._output, self.night.night, *names)

    def _step(self, name: str, do: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """Do a step unless it is done, and enter what it found."""
        if name in self.night.steps:
            found: Mapping[str, Any] = self.night.steps[name]
            return found
        self._lock.check()
        self._progress.note(f"night {self.night.night}: {name}")
        started = time.monotonic()
        found = {**do(), "seconds": round(time.monotonic() - started, 3)}
        self._lock.check()
        self.night = self.night.with_step(name, outputs.plain(found))
        record.write(self._output, self.night)
        return found

    def _check(self, step: str) -> None:
        """Stop the night where a step's own check failed."""
        if not all(one.passed for one in _checks(self.night.steps[step])):
            raise _Stop

    def _end(self, state: Any) -> None:
        """The night has ended: enter how, with every check and reason."""
        self._lock.check()
        checks = tuple(check for step in self.night.steps.values() for check in _checks(step))
        reasons = tuple(check.said for check in checks if not check.passed)
        decided = self.night.steps.get("decide")
        if decided is not None and "gate_after" in decided:
            gate_after = decided["gate_after"]
        else:
            change = gate_store.read(self._store).current
            gate_after = change.gate_id if change else None
        self.night = replace(
            self.night,
            state=state,
            finished=record.now(),
            gate_after=gate_after,
            trusted=trust.is_sound(checks),
            reasons=reasons if state == "refused" else self._late() if state == "deadline" else (),
            checks=checks,
        )
        record.write(self._output, self.night)

    def _late(self) -> tuple[str, ...]:
        return (f"the deadline came before all photographs were scored: {_scored_until(self.night)}",)

    # ---- the steps ---------------------------------------------------------------------------------------------

    def _canary(self) -> dict[str, Any]:
        known = canary.read(self._output) if self._config.canary else None
        if known is None:
            return {"photographs": 0, "said": "there is none yet"}
        if canary.redefined(known, self._output):
            self._progress.note("the table was scored by other definitions since: the canary is drawn anew")
            return {"photographs": 0, "said": "the table has other definitions now, scored on purpose"}
        moved = canary.check(
            known, self._score, self._at(), tolerance=self._config.canary_tolerance, progress=self._progress
        )
        storage.delete_folder(self._at("canary"))
        # Scoring the canary was a run of its own.
        logs.bind(run_id=self.night.run_id)
        same = max((one.compared for one in moved), default=0)
        passed = all(one.passed for one in moved)
        said = (
            f"{same} of {known.num_rows} photographs scored as before"
            + ("" if same == known.num_rows else ", the others are gone or changed")
            + ("; most of it is: a new one is drawn" if 2 * same < known.num_rows else "")
            if passed
            else f"scores of the same photographs moved: {canary.said(moved)}; {canary.remedy(moved)}"
        )
        check = Check(
            name="canary",
            passed=passed,
            said=said,
            value=max((one.largest for one in moved), default=0.0),
            limit=max((one.bound for one in moved), default=None),
        )
        return {
            "photographs": known.num_rows,
            "compared": same,
            "moved": [asdict(one) for one in moved],
            "checks": [asdict(check)],
        }

    def _list(self) -> dict[str, Any]:
        last = storage.join(self._output, MANIFEST)
        built = manifest_build.build(
            ManifestBuildConfig(
                input=self._config.input,
                output=self._at(MANIFEST),
                previous=last if storage.exists(last) else None,
                image_column=self._score.image_column,
                max_requests_per_second=self._score.max_requests_per_second,
                retry_seconds=self._score.retry_seconds,
                request_timeout_s=self._score.request_timeout_s,
            ),
            without=(self._output,),
            accept_manifest=True,
        )
        for note in built.notes:
            self._progress.note(note)
        found = listing.listed(built)
        known, share = found["known"], listing.changed_share(found)
        few = share <= self._config.max_changed_share
        said = f"{found['changed']:,} of {known:,} known photographs are changed and {found['gone']:,} are gone"
        if not few and not self._config.allow_changes:
            said += (
                f": {share:.0%}, more than the {self._config.max_changed_share:.0%} of --max-changed-share; "
                f"{self._price()}; if that is meant, run the night again with --allow-changes"
            )
        check = Check(
            name="manifest",
            passed=few or self._config.allow_changes,
            said=said,
            value=share,
            limit=self._config.max_changed_share,
        )
        return {**listing.over_all_tries(self._output, self.night, found), "checks": [asdict(check)]}

    def _price(self) -> str:
        """What scoring them would take, in words."""
        config = ScorePlanConfig(
            input=self._at(MANIFEST),
            output=self._output,
            metrics=self._score.metrics,
            longest_side=self._score.longest_side,
            max_pixels=self._score.max_pixels,
        )
        try:
            return costs.in_a_line(score_costs.estimate(config))
        except QualityGateError as error:
            return f"what scoring them would take is not known ({error})"

    def _score_new(self) -> dict[str, Any]:
        # Only now: what changed is told by the one before, which a job that was killed until here finds again.
        listing.take_over(self._output, self.night.night)
        self._keep_failing()
        try:
            stats = scoring.run(
                self._score,
                self._progress,
                run_id=self.night.run_id,
                deadline=self.deadline,
                telemetry=self._telemetry,
            ).stats
        except DeadlineReached as error:
            self._progress.note(str(error))
            return {"deadline": True, "done": error.done, "left": error.left}
        return {"deadline": False, "left": 0, "by_status": stats["manifest"]["by_status"]}

    def _keep_failing(self) -> None:
        """Enter which photographs had failed for nights on end before this night tries them once more."""
        place = self._at(housekeeping.FAILING)
        if storage.exists(place):
            # Of an earlier start, which has tried some of them since.
            return
        changes = storage.read_bytes(self._at(listing.CHANGES))
        changed = pq.read_table(BytesIO(changes), columns=["image_id"]) if changes is not None else None
        found = windows.failing_before(self._output, trust.judged(self._others), changed)
        if found is not None and found.num_rows:
            # A file a night is one too many where there is nothing to say; a second start finds no more than the first.
            outputs.write_table(place, found)

    def _failing(self, nights: Sequence[str]) -> pa.Table | None:
        """Which photographs of these nights had failed for nights on end before them."""
        places = [record.place(self._output, night, housekeeping.FAILING) for night in nights]
        found = [pq.read_table(BytesIO(data)) for place in places if (data := storage.read_bytes(place)) is not None]
        return pa.concat_tables(found) if found else None

    @cached_property
    def _runs(self) -> list[str]:
        """Every run that the table's rows name, after scoring: each look passes over the whole table."""
        return windows.runs(self._output)

    @cached_property
    def _gone(self) -> Path | None:
        """A file of the photographs that have a row and aren't in the input any more."""
        return listing.gone(self._output, self._scratch)

    @cached_property
    def _partly(self) -> list[str]:
        """Runs by a lazy vote that the deadline kept this night from completing: what they have is no fair sample."""
        return windows.left_out_by(self._output, self._score.metrics, self._gone)

    def _counted(self) -> candidate.Counted:
        """Which photographs count, as far as this night has come."""
        aside = [*trust.set_aside(self.night, self._others, self._runs), *self._partly]
        return candidate.Counted(output=self._output, aside=aside, gone=self._gone)

    def _drift(self) -> dict[str, Any]:
        beside = trust.beside(self.night, self._others, [run for run in self._runs if run not in self._partly])
        doubts = trust.doubts(self.night, self._others, self._runs)
        found = windows.read(
            self._output,
            runs=[self.night.run_id, *map(trust.run_of, beside.unfinished), *beside.by_hand],
            pooled=[trust.run_of(night) for night in beside.pooled],
            untrusted=[*doubts.untested, *doubts.untrusted, *self._partly],
            days=self._config.reference_days,
            gate=self._old(),
            fewest=self._config.min_drift,
            metrics=self._score.metrics,
            failing=self._failing([self.night.night, *beside.unfinished, *beside.pooled]),
        )
        limits = guardrails.limits(self._config)
        changes = drift.compare(found.reference, found.tonight, limits) if found.reference is not None else []
        # Who accepts a drift vouches for these photographs, however few they are.
        settled = found.readable >= self._config.min_drift or self._config.accept_drift
        checks = list(guardrails.of_tonight(self._config, found.rows, found.failed, changes))
        promoted = [one.night for one in self._others if one.night in beside.pooled and one.state == "promoted"]
        checks = [_pooled(check, beside, promoted, settled=settled) for check in checks]
        if self._damaged:
            said = "; ".join(f"night {night}: {why}" for night, why in self._damaged.items())
            said = f"not trusted, as its record can't be read: {said}"
            checks.append(Check(name=record.RECORDS, passed=True, said=said))
        return {
            "rows": found.rows,
            "failed": found.failed,
            **asdict(beside),
            "settled": settled,
            "runs": self._runs,
            "reference": len(found.reference) if found.reference is not None else 0,
            "changes": [asdict(one) for one in changes],
            "drifted": sum(one.word == drift.DRIFTED for one in changes),
            "coverage": found.passed,
            "new_strata": found.new_strata,
            "new_cameras": found.new_cameras,
            "examples": [{"image_id": image_id} for image_id in found.examples],
            "checks": [asdict(one) for one in checks],
        }

    def _old(self) -> Gate | None:
        """The gate in force before this night."""
        return gate_store.load(self._store, self.night.gate_before) if self.night.gate_before else None

    def _calibrate(self) -> dict[str, Any]:
        assert self._fitting is not None
        return candidate.make(self._fitting, self.night, self._counted(), self._old(), self._told)

    def _decide(self) -> dict[str, Any]:
        """Promote the candidate, or say why not."""
        old = self._old()
        sound = all(check.passed for step in self.night.steps.values() for check in _checks(step))
        step = self.night.steps.get("calibrate", {})
        history = gate_store.read(self._store)
        deadline = bool(self.night.steps["score"]["deadline"])
        checks: list[Check] = []
        state = "refused" if not sound else "deadline" if deadline else "kept"
        if step.get("gate") and not deadline:
            new = gates.load(self._at(housekeeping.CANDIDATE))
            if old is None or not gate_store.same(new, old):
                checks = self._candidate(new, old, step["refusal"], history)
                sound = sound and all(check.passed for check in checks)
                state = "promoted" if sound else "refused"
            if state == "promoted" and (refused := self._promote(history)) is not None:
                checks.append(refused)
                state = "refused"
        in_force = gate_store.current(self._store)
        # Without a gate there is still drift to tell of.
        changes = self.night.steps.get("drift", {}).get("changes", [])
        found: dict[str, Any] = {
            "state": state,
            "checks": [asdict(one) for one in checks],
            "methods": candidate.methods(self._config, in_force, changes),
            # As the night left it: somebody may change it before the night is entered as ended.
            "gate_after": in_force.id if in_force is not None else None,
        }
        if in_force is not None and scores.open_table(self._output) is not None:
            # Of the photographs that the guardrail counts: no share of what nobody trusts.
            found["coverage"] = self._counted().coverage(in_force)
            found["coverage_tonight"] = self.night.steps.get("drift", {}).get("coverage")
            if self._labels_known():
                found["audit"] = asdict(self._draw(in_force))
        return found

    def _labels_known(self) -> bool:
        """Whether it is known which photographs have labels: else these would be drawn too, so the next night draws."""
        return self._fitting is None or storage.exists(self._at(housekeeping.LABELLED))

    def _candidate(self, new: Gate, old: Gate | None, refusal: str | None, history: History) -> list[Check]:
        return candidate.checks(self._config, self.night, self._counted(), (new, old), refusal, history)

    def _promote(self, history: History) -> Check | None:
        return candidate.promote(
            self.night,
            self._output,
            history,
            fence=self._lock.fence,
            allow_untrained=self._fitting.allow_untrained if self._fitting else False,
            check_lock=self._lock.check,
        )

    def _draw(self, in_force: Gate) -> audit.Drawn:
        """The audit sample. Labels of photographs that nobody trusts would be left out."""
        counted = self._counted()
        return audit.draw(
            self._output,
            self.night.night,
            in_force,
            self._config.audit_share,
            candidate.labelled(self._output, self.night.night),
            counted.aside,
            gone=counted.gone,
            note=self._warn,
        )

    def _upkeep(self) -> dict[str, Any]:
        return housekeeping.keep_house(self._config, self._output, self.night, self._others)

    def _report(self) -> dict[str, Any]:
        """The page; one that can't be made is said, and no reason to fail a night whose gate is decided."""
        inputs = [self._output]
        if made := self.night.steps.get("calibrate", {}).get("gate"):
            promoted = self.night.state == "promoted"
            inputs.append(storage.join(self._store, made) if promoted else self._at(housekeeping.CANDIDATE))
        config = ReportConfig(
            input=tuple(inputs),
            output=self._at(REPORT),
            thumbnails=self._config.thumbnails,
            sample=_SAMPLE,
            aim_megabytes=self._config.report_megabytes,
            title=f"Night {self.night.night}",
            # One that is done again is not the last.
            night=self.night.night,
        )
        try:
            return {"page": storage.redact(str(page.write(config))), "problem": None}
        except Exception as error:
            problem = str(error) if isinstance(error, QualityGateError) else f"{type(error).__name__}: {error}"
            logger.warning("no report", exc_info=not isinstance(error, QualityGateError))
            self._progress.note(f"no report: {storage.redact(problem)}")
            return {"page": None, "problem": storage.redact(problem)}


def _checks(step: Mapping[str, Any]) -> list[Check]:
    return [Check(**one) for one in step.get("checks", ())]


def _pooled(check: Check, beside: trust.Beside, promoted: Sequence[str], *, settled: bool) -> Check:
    """The check of drift, with the nights that were tested together with this one, and what becomes of too few."""
    if check.name != "drift":
        return check
    said = check.said
    if count := len(beside.pooled):
        some = ", ".join(beside.pooled[-_SHOWN:]) + (f" and {count - _SHOWN} before them" if count > _SHOWN else "")
        said += f"; with those of {count} night{'s' * (count > 1)} before that had too few to be tested: {some}"
    if check.passed:
        return replace(check, said=said if settled else f"{said}; they are tested together with the next nights'")
    if promoted:
        said += (
            f"; labels of these nights are in the gates that {', '.join(promoted)} promoted: 'qualitygate gate "
            "rollback' goes back"
        )
    return replace(check, said=said)


def _tell(
    config: NightlyConfig, night: Night, output: str, *, state: str | None = None, reasons: Sequence[str] = ()
) -> list[str]:
    message = {
        "night": night.night,
        "state": state or night.state,
        # In short, as nobody reads more of it on a telephone; of a job that failed nothing else has it whole.
        "reasons": [storage.redact(reason) for reason in reasons] or [*map(wording.clause, night.reasons)],
        "gate": night.gate_after or night.gate_before,
        "output": storage.redact(output),
        "report": storage.redact(record.place(output, night.night, REPORT)),
    }
    problems = notify.send(config, message)
    for problem in problems:
        logger.warning("%s", problem)
    return problems
