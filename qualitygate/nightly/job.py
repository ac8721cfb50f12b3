"""The nightly job, step by step. Each step is entered in the night's record when it is done, so that a job that was
killed goes on where it was, and a night that has ended isn't done a second time.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate import logs
from qualitygate.calibration import calibrate, drift, gate_store, outputs, sources
from qualitygate.calibration import gate as gates
from qualitygate.calibration.calibrate import Progress
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import History
from qualitygate.cluster import score_costs, scoring
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
    ConfigurationError,
    DeadlineReached,
    Interrupted,
    Locked,
    NightRefused,
    QualityGateError,
)
from qualitygate.nightly import audit, canary, guardrails, lock, notify, record, settings, trend, windows
from qualitygate.nightly.lock import Lock
from qualitygate.nightly.record import Check, Night
from qualitygate.report import costs, page
from qualitygate.tables import manifest_build, scores, storage, upkeep
from qualitygate.tables.sql import connect, literal

logger = logging.getLogger(__name__)

MANIFEST = "manifest.parquet"
REPORT = "report.html"
LABELLED = "labelled.parquet"
_LONGEST_REASON = 240
# Checks of a night's photographs; where they hold, its rows are a reference for later nights.
_SOUND = ("canary", "manifest", "errors", "drift")
_BEFORE_SCORING = ("canary", "manifest")
# What no second start does again.
_ENDED = ("promoted", "kept", "refused", "deadline")


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
        return _run(config, name, progress)
    except (Interrupted, Locked):
        raise
    except Exception as error:
        # Whatever it is, also before the first step: nobody watches, and somebody must be told.
        why = str(error) if isinstance(error, QualityGateError) else f"{type(error).__name__}: {error}"
        _tell(config, Night(night=name, started=record.now()), config.output, state="failed", reasons=(why,))
        raise


def _run(config: NightlyConfig, name: str, progress: Callable[[str], Progress]) -> Outcome:
    output = outputs.check_output(config.output)
    score, fitting = settings.of_score(config), settings.of_calibration(config)
    deadline = settings.deadline(config.deadline, time.time())
    store = storage.join(output, gates.FOLDER)
    newest = max((change.fence or 0 for change in gate_store.read(store).changes), default=0)
    with lock.held(output, night=name, ttl_s=config.lock_ttl_s, above=newest) as held:
        before = record.read(output, name)
        accepting = config.accept_drift or config.allow_changes
        anew = before is None or config.again or (before.state == "refused" and accepting) or before.state == "deadline"
        if before is not None and not anew and before.state in _ENDED and "notify" in before.steps:
            return Outcome(night=before, output=output, already=True)
        night = before if before is not None and not anew else _begun(output, name, before, again=config.again)
        if "score" not in night.steps and night.state not in _ENDED:
            # What was mended in between, a library or a machine, may be another stick: each start measures it anew.
            night = replace(night, steps={step: found for step, found in night.steps.items() if step != "canary"})
        job = _Job(config=config, score=score, fitting=fitting, held=held, progress=progress, output=output)
        job.night = night
        job.deadline = deadline
        job.run()
        return Outcome(night=job.night, output=output, already=False)


def raise_for(outcome: Outcome) -> None:
    """Raise NightRefused or DeadlineReached when the night ended so: exit codes 4 and 3."""
    night = outcome.night
    if night.state == "refused":
        kept = f"gate {night.gate_after} stays in force" if night.gate_after else "no gate is in force"
        raise NightRefused(f"night {night.night} is refused, {kept}: {'; '.join(map(_short, night.reasons))}")
    if night.state == "deadline":
        raise DeadlineReached(
            f"night {night.night}: the deadline came before all photographs were scored; those that were are "
            "committed, the gate is as it was, and the next night goes on"
        )


def _short(reason: str) -> str:
    """A reason for one line; whole it stands in the night's record."""
    return reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON].rpartition(" ")[0] + " ..."


def _begun(output: str, name: str, before: Night | None, *, again: bool) -> Night:
    """A new record. Done again, a night keeps its beginning and the gate that it found.

    One that met its deadline goes on with the photographs that it had listed.
    """
    current = gate_store.read(storage.join(output, gates.FOLDER)).current
    in_force = current.gate_id if current else None
    if before is not None and current is not None and current.night == name:
        # What this very night has promoted is no gate before it.
        in_force = before.gate_before
    night = Night(night=name, started=before.started if before else record.now(), gate_before=in_force)
    if before is not None and before.state == "deadline" and not again:
        night = replace(night, steps={step: before.steps[step] for step in _BEFORE_SCORING})
    record.write(output, night)
    return night


def listed(built: manifest_build.Built) -> dict[str, Any]:
    """Counts of a listing against the last night's; known: photographs that the last one had."""
    new = built.images if built.new is None else built.new
    gone = built.gone or 0
    return {
        "images": built.images,
        "known": built.images - new + gone,
        "new": new,
        "changed": built.changed or 0,
        "gone": gone,
    }


def changed_share(found: Mapping[str, Any]) -> float:
    """Share of the known photographs that are changed or gone."""
    return float((found["changed"] + found["gone"]) / found["known"]) if found["known"] else 0.0


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
    ) -> None:
        self._config = config
        self._score = score
        self._fitting = fitting
        self._lock = held
        self._told = progress
        self._progress = progress("photographs")
        self._output = output
        self._store = storage.join(output, gates.FOLDER)

    def run(self) -> None:
        """All steps that are left."""
        if self.night.state not in _ENDED:
            storage.write_bytes(self._at("_config.yaml"), echo(notify.without_secrets(self._config)).encode())
            try:
                self._measure()
                state = self._step("decide", self._decide)["state"]
            except _Stop:
                state = "refused"
            self._end(state)
        # The others' nights stay as they are: the table of all is made of their records.
        self._step("upkeep", self._upkeep)
        trend.write(self._output, record.in_order([*self._others, self.night]))
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
        change = gate_store.read(self._store).current
        self.night = replace(
            self.night,
            state=state,
            finished=record.now(),
            gate_after=change.gate_id if change else None,
            trusted=_is_sound(checks),
            reasons=reasons if state == "refused" else (),
            checks=checks,
        )
        record.write(self._output, self.night)

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
        found = listed(built)
        known, share = found["known"], changed_share(found)
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
        return {**found, "checks": [asdict(check)]}

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
        except ConfigurationError as error:
            return f"what scoring them would take is not known ({error})"

    def _score_new(self) -> dict[str, Any]:
        # Only now: what changed is told by the one before, which a job that was killed until here finds again.
        _copy(self._at(MANIFEST), storage.join(self._output, MANIFEST))
        try:
            stats = scoring.run(self._score, self._progress, run_id=self.night.run_id, deadline=self.deadline).stats
        except DeadlineReached as error:
            self._progress.note(str(error))
            return {"deadline": True}
        return {"deadline": False, "by_status": stats["manifest"]["by_status"]}

    @cached_property
    def _runs(self) -> list[str]:
        """Every run that the table's rows name, after scoring: each look passes over the whole table."""
        return windows.runs(self._output)

    @cached_property
    def _others(self) -> list[Night]:
        """All other nights; under the lock nobody changes them, and each is a request to the store."""
        return [night for night in record.all_of(self._output) if night.night != self.night.night]

    def _unfinished(self) -> list[Night]:
        """Nights that never ended and whose photographs no later one has judged: tonight does.

        A killed job whose night nobody started again; its photographs are scored, and nobody has looked at them.
        """
        others = self._others
        judged = {name for night in others if night.state in _ENDED for name in _judged(night)}
        return [night for night in others if night.state not in _ENDED and night.night not in judged]

    def _untrusted(self) -> list[str]:
        """Runs of other nights whose photographs are no reference, and of what they judged beside their own."""
        others = self._others
        unended = {night.night for night in others if night.state not in _ENDED}
        judged = {name for night in others if night.trusted for name in _judged(night)} & unended
        trusted = {night.night for night in others if night.trusted} | judged
        untrusted = [night for night in others if night.night not in trusted]
        # Nobody vouches for a night whose record is gone.
        recorded = {self.night.run_id, *(night.run_id for night in others)}
        lost = [run for run in self._runs if run.startswith(record.RUN) and run not in recorded]
        return [*(run for night in untrusted for run in (night.run_id, *_by_hand(night))), *lost]

    def _by_hand_since(self) -> list[str]:
        """Runs of 'score' by hand that no night has judged: they get past no guardrail, tonight's hold for them too.

        What was there before the first night is what nights are compared with.
        """
        ended = [night for night in self._others if night.state in _ENDED and "drift" in night.steps]
        if not ended:
            return []
        known = {run for night in ended for run in night.steps["drift"]["runs"]}
        return [run for run in self._runs if not run.startswith(record.RUN) and run not in known]

    def _set_aside(self) -> list[str]:
        """Runs whose photographs count for nothing: a gate made of them is one for what nobody wanted."""
        judged = (Night(night=name, started="").run_id for name in _judged(self.night))
        tonight = (self.night.run_id, *judged, *_by_hand(self.night))
        untrusted = [run for run in self._untrusted() if run not in tonight]
        checks = [check for step in self.night.steps.values() for check in _checks(step)]
        return untrusted if _is_sound(checks) else [*untrusted, *tonight]

    def _drift(self) -> dict[str, Any]:
        limits = drift.Limits(
            psi=self._config.max_psi,
            coverage=self._config.max_coverage_drift,
            errors=self._config.max_error_drift,
            significance=self._config.significance,
            fewest=self._config.min_drift,
        )
        unfinished, by_hand = self._unfinished(), self._by_hand_since()
        found = windows.read(
            self._output,
            runs=[self.night.run_id, *(night.run_id for night in unfinished), *by_hand],
            untrusted=self._untrusted(),
            days=self._config.reference_days,
            gate=self._old(),
            fewest=self._config.min_drift,
            metrics=self._score.metrics,
        )
        changes = drift.compare(found.reference, found.tonight, limits) if found.reference is not None else []
        checks = list(guardrails.of_tonight(self._config, found.rows, found.failed, changes, found.examples))
        tonight = found.tonight.passed
        return {
            "rows": found.rows,
            "failed": found.failed,
            "unfinished": [night.night for night in unfinished],
            "by_hand": by_hand,
            "runs": self._runs,
            "reference": len(found.reference) if found.reference is not None else 0,
            "changes": [asdict(one) for one in changes],
            "drifted": sum(one.word == drift.DRIFTED for one in changes),
            "coverage": float(tonight.mean()) if tonight is not None and len(tonight) else None,
            "new_strata": found.new_strata,
            "checks": [asdict(one) for one in checks],
        }

    def _old(self) -> Gate | None:
        """The gate in force before this night."""
        return gate_store.load(self._store, self.night.gate_before) if self.night.gate_before else None

    def _calibrate(self) -> dict[str, Any]:
        """A candidate, from a copy of tonight's labels, with the probability of each to have been labelled."""
        assert self._fitting is not None
        assert self._config.predictions is not None
        column = self._fitting.sampling_column or settings.SAMPLING
        labels = self._at("labelled")
        try:
            kinds, left_out = self._snapshot(self._config.predictions, labels, column)
            fitting = self._fitting.model_copy(
                update={
                    "predictions": labels,
                    "output": self._at("gate"),
                    "parent": storage.join(self._store, self.night.gate_before) if self.night.gate_before else None,
                }
            )
            made = calibrate.run(fitting, self._told("steps"))
        except ConfigurationError as error:
            # Of the data or of the settings: in either case there is no gate to promote, and somebody must look.
            check = Check(name="calibrate", passed=False, said=f"no gate could be made: {error}")
            return {"gate": None, "checks": [asdict(check)]}
        return {
            "gate": made.gate.id,
            "refusal": made.refusal,
            "labelled": made.record["rows"],
            "kinds": kinds,
            "left_out": left_out,
            "checks": [],
        }

    def _snapshot(self, predictions: str, target: str, column: str) -> tuple[dict[str, Any] | None, dict[str, int]]:
        """Copy the predictions, and what 'predict' recorded beside them.

        Returns labelled and all photographs by kind, and how many predictions were left out: of photographs without a
        row (labels may be ahead of scores), and of nights that nobody trusts.
        """
        aside = self._set_aside()
        with TemporaryDirectory(prefix="qualitygate-") as scratch, connect() as database:
            source = sources.open_predictions(database, predictions, Path(scratch))
            scores.register(database, scores.existing_table(self._output))
            table = database.sql(
                f"""SELECT predictions.*, _run IS NOT NULL AS _there, coalesce(_run IN {_texts(aside)}, false) AS _aside
                FROM predictions LEFT JOIN (SELECT image_id AS _id, run_id AS _run FROM scores)
                ON {source.text("image_id")} = _id"""
            ).to_arrow_table()
            folder = source.folder
        # Also of what is left out: it needn't be labelled again.
        outputs.write_table(self._at(LABELLED), table.select(["image_id"]))
        there = table["_there"].to_numpy(zero_copy_only=False) | pc.is_null(table["image_id"]).to_numpy()
        trusted = ~table["_aside"].to_numpy(zero_copy_only=False)
        left_out = {"without_row": int((~there).sum()), "untrusted": int((~trusted).sum())}
        table = table.filter(pa.array(there & trusted)).drop_columns(["_there", "_aside"])
        if not table.num_rows:
            raise ConfigurationError(
                f"{source.name}: of {len(there)} labelled photographs {left_out['without_row']} have no row among the "
                f"scores, and {left_out['untrusted']} are of nights that were refused; label others"
            )
        table, kinds = audit.with_probabilities(table, self._output, self._old(), column, aside)
        outputs.write_table(storage.join(target, "predictions.parquet"), table)
        for name in settings.BESIDE_PREDICTIONS:
            data = storage.read_bytes(storage.join(folder, name)) if folder else None
            if data is not None:
                storage.write_bytes(storage.join(target, name), data)
        return (asdict(kinds) if kinds is not None else None), left_out

    def _labelled(self) -> pa.Table | None:
        """Which photographs have labels, by tonight's copy."""
        data = storage.read_bytes(self._at(LABELLED))
        return pq.read_table(BytesIO(data)) if data is not None else None

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
            new = gates.load(self._at("gate"))
            if old is None or not gate_store.same(new, old):
                checks = list(self._candidate(new, old, step["refusal"], history))
                sound = sound and all(check.passed for check in checks)
                state = "promoted" if sound else "refused"
            if state == "promoted":
                # Checked again at the last moment: what comes now is seen by everybody.
                self._lock.check()
                gate_store.promote(
                    self._store,
                    self._at("gate"),
                    reason="every guardrail held",
                    night=self.night.night,
                    fence=self._lock.fence,
                    # What somebody puts in force from now on isn't what the checks were made against.
                    before=history.current.gate_id if history.current else None,
                    allow_untrained=self._fitting.allow_untrained if self._fitting else False,
                )
        in_force = gate_store.current(self._store)
        # Without a gate there is still drift to tell of.
        found: dict[str, Any] = {
            "state": state,
            "checks": [asdict(one) for one in checks],
            "methods": self._methods(in_force),
        }
        if in_force is not None and scores.open_table(self._output) is not None:
            found["coverage"] = windows.coverage(self._output, in_force)
            found["coverage_tonight"] = self.night.steps.get("drift", {}).get("coverage")
            drawn = audit.draw(
                self._output,
                self.night.night,
                in_force,
                self._config.audit_share,
                self._labelled(),
                # Labels of photographs that nobody trusts would be left out.
                self._set_aside(),
            )
            found["audit"] = asdict(drawn)
        return found

    def _candidate(self, new: Gate, old: Gate | None, refusal: str | None, history: History) -> list[Check]:
        table = pq.read_table(BytesIO(storage.read_bytes(self._at("gate", calibrate.TABLE)) or b""))
        able, aside = refusal is None, self._set_aside()
        comparable = old is None or all(
            new.fingerprints.get(name, print_) == print_ for name, print_ in old.fingerprints.items()
        )
        old = old if comparable else None
        candidate = guardrails.Candidate(
            gate=new,
            photographs=table,
            seen=self._seen(),
            refusal=refusal,
            coverage=windows.coverage(self._output, new, untrusted=aside) if able else None,
            coverage_before=windows.coverage(self._output, old, untrusted=aside) if old is not None and able else None,
        )
        drifted = self._config.accept_drift and self.night.steps["drift"]["drifted"] > 0
        checks = list(guardrails.of_candidate(self._config, candidate, old, history, drifted))
        if not comparable:
            said = "the gate in force was made from scores of other definitions: the two aren't compared"
            checks.append(Check(name="definitions", passed=True, said=said))
        now = history.current
        if now is not None and now.night != self.night.night and now.gate_id not in (self.night.gate_before, new.id):
            said = f"{now.by} put gate {now.gate_id} in force while the night was at work; run it again with --again"
            checks.append(Check(name="gate in force", passed=False, said=said))
        return checks

    def _seen(self) -> pa.Table | None:
        """The photographs that the gate in force was made from, and how gates of other groups decided on them."""
        if self.night.gate_before is None:
            return None
        data = storage.read_bytes(storage.join(self._store, self.night.gate_before, calibrate.TABLE))
        return pq.read_table(BytesIO(data), columns=["image_id", "held_out_passed"]) if data is not None else None

    def _methods(self, gate: Gate | None) -> list[dict[str, Any]]:
        """For the trend: each method's line and tonight's drift over all photographs."""
        changes: Sequence[Mapping[str, Any]] = self.night.steps.get("drift", {}).get("changes", [])
        overall = {one["what"]: one for one in changes if one["stratum"] == drift.OVERALL}
        found = []
        methods = gate.content["methods"] if gate is not None else {}
        for name in dict.fromkeys([*methods, *(key for key, one in overall.items() if one["psi"] is not None)]):
            method = methods.get(name, {})
            interval = method.get("interval") or (None, None)
            change = overall.get(name, {})
            found.append(
                {
                    "method": name,
                    "cutoff": method.get("cutoff"),
                    "low": interval[0],
                    "high": interval[1],
                    "psi": change.get("psi"),
                    "psi_limit": max(self._config.max_psi, change.get("psi_chance") or 0.0),
                    "word": change.get("word"),
                }
            )
        return found

    def _upkeep(self) -> dict[str, Any]:
        """Few large files of many small ones, and a canary where there is none or the table has other definitions."""
        if scores.open_table(self._output) is None:
            return {}
        compacted = upkeep.compact(self._output, self._config.compact_mb << 20)
        vacuumed = upkeep.vacuum(self._output, timedelta(days=self._config.keep_days))
        known = canary.read(self._output)
        drawn = 0
        # Not where scores have moved: the known ones are what the next night is to be compared with.
        sound = all(check.passed for check in _checks(self.night.steps["canary"]))
        if self._config.canary and sound and (known is None or self._worn(known)):
            chosen = canary.choose(self._output, self._config.canary)
            if chosen is not None:
                canary.write(self._output, chosen)
                drawn = chosen.num_rows
        if self.night.state in ("promoted", "kept"):
            # As the output's own manifest has it; what changed stays. Other nights are looked at, or done again.
            storage.delete(self._at(MANIFEST))
        # Drawn by, and nothing reads it any more.
        storage.delete(self._at(LABELLED))
        if self.night.state == "promoted":
            # In force it lies among the gates, under its id.
            storage.delete_folder(self._at("gate"))
        return {
            "files": [compacted.files_before, compacted.files_after],
            "removed_files": vacuumed.files,
            "canary": drawn,
        }

    def _worn(self, known: pa.Table) -> bool:
        """Whether a canary can't tell any more: other definitions, or most of its photographs are gone or changed."""
        compared = self.night.steps["canary"].get("compared")
        return canary.redefined(known, self._output) or (compared is not None and 2 * compared < known.num_rows)

    def _report(self) -> dict[str, Any]:
        """The page; one that can't be made is said, and no reason to fail a night whose gate is decided."""
        inputs = [self._output]
        if self.night.steps.get("calibrate", {}).get("gate"):
            promoted = self.night.state == "promoted" and self.night.gate_after
            inputs.append(storage.join(self._store, promoted) if promoted else self._at("gate"))
        config = ReportConfig(
            input=tuple(inputs),
            output=self._at(REPORT),
            thumbnails=self._config.thumbnails,
            title=f"Night {self.night.night}",
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


def _is_sound(checks: Sequence[Check]) -> bool:
    return all(check.passed for check in checks if check.name in _SOUND)


def _judged(night: Night) -> Sequence[str]:
    """Unfinished nights whose photographs a night has judged with its own."""
    return _beside_its_own(night, "unfinished")


def _beside_its_own(night: Night, kind: str) -> Sequence[str]:
    found: Sequence[str] = night.steps.get("drift", {}).get(kind, ())
    return found


def _by_hand(night: Night) -> Sequence[str]:
    """Runs of 'score' by hand whose photographs a night has judged with its own."""
    return _beside_its_own(night, "by_hand")


def _copy(source: str, target: str) -> None:
    """Copy one object in bounded memory: a list of millions of photographs is larger than one wants to hold."""
    if storage.is_local(source):
        storage.publish(Path(os.fsdecode(storage.local_path(source))), target)
        return
    with TemporaryDirectory(prefix="qualitygate-") as scratch:
        local = Path(scratch) / "copy"
        storage.download(source, str(local))
        storage.publish(local, target)


def _texts(values: Sequence[str]) -> str:
    """SQL for a list of texts, also of none."""
    return f"({', '.join(map(literal, values)) or 'NULL'})"


def _tell(
    config: NightlyConfig, night: Night, output: str, *, state: str | None = None, reasons: Sequence[str] = ()
) -> list[str]:
    message = {
        "night": night.night,
        "state": state or night.state,
        "reasons": [storage.redact(reason) for reason in reasons or night.reasons],
        "gate": night.gate_after or night.gate_before,
        "output": storage.redact(output),
        "report": storage.redact(record.place(output, night.night, REPORT)),
    }
    problems = notify.send(config, message)
    for problem in problems:
        logger.warning("%s", problem)
    return problems
