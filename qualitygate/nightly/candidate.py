"""The gate that a night makes of tonight's labels, and what it is held against before it comes into force."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from qualitygate.calibration import calibrate, drift, gate_store, outputs, sources
from qualitygate.calibration import gate as gates
from qualitygate.calibration.calibrate import Progress
from qualitygate.calibration.gate import Gate
from qualitygate.calibration.gate_store import History
from qualitygate.config import CalibrateConfig, NightlyConfig
from qualitygate.errors import ConfigurationError, Superseded
from qualitygate.nightly import audit, guardrails, record, settings, windows
from qualitygate.nightly.housekeeping import CANDIDATE, LABELLED, LABELS
from qualitygate.nightly.record import Check, Night
from qualitygate.tables import scores, storage
from qualitygate.tables.scratch import scratch_folder
from qualitygate.tables.sql import connect, literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Which photographs of the output count: not those of some runs, nor those in a file of ids that are gone."""

    output: str
    aside: Sequence[str]
    gone: Path | None

    def coverage(self, gate: Gate) -> float | None:
        """Share of them that a gate passes."""
        return windows.coverage(self.output, gate, untrusted=self.aside, gone=self.gone)


def make(
    fitting: CalibrateConfig, night: Night, counted: Counted, old: Gate | None, told: Callable[[str], Progress]
) -> dict[str, Any]:
    """Make a gate from a copy of tonight's labels, with the probability of each to have been labelled."""
    column = fitting.sampling_column or settings.SAMPLING
    labels = record.place(counted.output, night.night, LABELS)
    store = storage.join(counted.output, gates.FOLDER)
    try:
        kinds, left_out = _snapshot(fitting.predictions, labels, column, night, counted, old)
        made = calibrate.run(
            fitting.model_copy(
                update={
                    "predictions": labels,
                    "output": record.place(counted.output, night.night, CANDIDATE),
                    "parent": storage.join(store, night.gate_before) if night.gate_before else None,
                }
            ),
            told("steps"),
        )
    except ConfigurationError as error:
        # Of the data or of the settings: in either case there is no gate to promote, and somebody must look.
        check = Check(name="calibrate", passed=False, said=f"no gate could be made: {error}")
        return {"gate": None, "checks": [asdict(check)]}
    return {
        "gate": made.gate.id,
        "refusal": made.refusal,
        "labelled": made.record["rows"],
        "kinds": {kind: list(getattr(kinds, kind)) for kind in ("passed", "rejected")} if kinds else None,
        "labelled_gone": kinds.gone if kinds else 0,
        "left_out": left_out,
        "checks": [],
    }


def _snapshot(
    predictions: str, target: str, column: str, night: Night, counted: Counted, old: Gate | None
) -> tuple[audit.Labelled | None, dict[str, int]]:
    """Copy the predictions, and what 'predict' recorded beside them.

    Returns labelled and all photographs by kind, and how many predictions were left out: of photographs without a
    row (labels may be ahead of scores), and of nights that nobody trusts.
    """
    with scratch_folder() as scratch, connect() as database:
        source = sources.open_predictions(database, predictions, Path(scratch))
        scores.register(database, scores.existing_table(counted.output))
        table = database.sql(
            f"""SELECT predictions.*, _run IS NOT NULL AS _there,
            coalesce(_run IN {_texts(counted.aside)}, false) AS _aside
            FROM predictions LEFT JOIN (SELECT image_id AS _id, run_id AS _run FROM scores)
            ON {source.text("image_id")} = _id"""
        ).to_arrow_table()
        folder = source.folder
    # Also of what is left out: it needn't be labelled again.
    outputs.write_table(record.place(counted.output, night.night, LABELLED), table.select(["image_id"]))
    there = table["_there"].to_numpy(zero_copy_only=False) | pc.is_null(table["image_id"]).to_numpy()
    trusted = ~table["_aside"].to_numpy(zero_copy_only=False)
    left_out = {"without_row": int((~there).sum()), "untrusted": int((~trusted).sum())}
    table = table.filter(pa.array(there & trusted)).drop_columns(["_there", "_aside"])
    if not table.num_rows:
        raise ConfigurationError(
            f"{source.name}: of {len(there)} labelled photographs {left_out['without_row']} have no row among the "
            f"scores, and {left_out['untrusted']} are of nights that were refused; label others"
        )
    table, kinds = audit.with_probabilities(table, counted.output, old, column, counted.aside, counted.gone)
    outputs.write_table(storage.join(target, "predictions.parquet"), table)
    for name in settings.BESIDE_PREDICTIONS:
        data = storage.read_bytes(storage.join(folder, name)) if folder else None
        if data is not None:
            storage.write_bytes(storage.join(target, name), data)
    return kinds, left_out


def labelled(output: str, night: str) -> pa.Table | None:
    """Which photographs have labels, by a night's copy of them."""
    data = storage.read_bytes(record.place(output, night, LABELLED))
    return pq.read_table(BytesIO(data)) if data is not None else None


def checks(
    config: NightlyConfig,
    night: Night,
    counted: Counted,
    gate_pair: tuple[Gate, Gate | None],
    refusal: str | None,
    history: History,
) -> list[Check]:
    """Every guardrail of the new gate. gate_pair: the new one, and that in force before the night."""
    new, old = gate_pair
    data = storage.read_bytes(record.place(counted.output, night.night, CANDIDATE, calibrate.TABLE))
    able = refusal is None
    comparable = old is None or all(
        new.fingerprints.get(name, print_) == print_ for name, print_ in old.fingerprints.items()
    )
    old = old if comparable else None
    candidate = guardrails.Candidate(
        gate=new,
        photographs=pq.read_table(BytesIO(data or b"")),
        seen=_seen(counted.output, night),
        refusal=refusal,
        coverage=counted.coverage(new) if able else None,
        coverage_before=counted.coverage(old) if old is not None and able else None,
    )
    drifted = config.accept_drift and night.steps["drift"]["drifted"] > 0
    found = list(guardrails.of_candidate(config, candidate, old, history, drifted))
    if not comparable:
        said = "the gate in force was made from scores of other definitions: the two aren't compared"
        found.append(Check(name="definitions", passed=True, said=said))
    now = history.current
    if now is not None and now.night != night.night and now.gate_id not in (night.gate_before, new.id):
        found.append(meanwhile(history))
    return found


def meanwhile(history: History) -> Check:
    """That somebody else changed which gate is in force, which stands."""
    now = history.current
    if now is None:
        said = "the history of gates was emptied"
    elif now.held:
        said = f"{now.by} has held promotions, with gate {now.gate_id} in force,"
    else:
        said = f"{now.by} put gate {now.gate_id} in force"
    said += " while the night was at work; run it again with --again"
    return Check(name="gate in force", passed=False, said=said)


def _seen(output: str, night: Night) -> pa.Table | None:
    """The photographs that the gate in force was made from, and how gates of other groups decided on them."""
    if night.gate_before is None:
        return None
    data = storage.read_bytes(storage.join(output, gates.FOLDER, night.gate_before, calibrate.TABLE))
    return pq.read_table(BytesIO(data), columns=["image_id", "held_out_passed"]) if data is not None else None


def promote(
    night: Night, output: str, history: History, *, fence: int, allow_untrained: bool, check_lock: Callable[[], None]
) -> Check | None:
    """Put tonight's gate in force by one change of the history that its checks were made against.

    Returns None when it is; a check that failed where somebody has changed the history since: that stands. Raises
    Superseded when the lock was lost.
    """
    # Checked again at the last moment: what comes now is seen by everybody.
    check_lock()
    accepted = any(one["word"] == drift.DRIFTED for one in night.steps.get("drift", {}).get("changes", ()))
    try:
        gate_store.promote(
            history.store,
            record.place(output, night.night, CANDIDATE),
            reason="every guardrail held, with a drift that was accepted" if accepted else "every guardrail held",
            night=night.night,
            fence=fence,
            seen=history,
            allow_untrained=allow_untrained,
        )
    except Superseded:
        check_lock()
        now = gate_store.read(history.store)
        if now == history or any((change.fence or 0) > fence for change in now.changes):
            raise
        return meanwhile(now)
    return None


def methods(config: NightlyConfig, gate: Gate | None, changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For the trend: each method's line and tonight's drift over all photographs. changes: of the drift step."""
    overall = {one["what"]: one for one in changes if one["stratum"] == drift.OVERALL}
    found = []
    known = gate.content["methods"] if gate is not None else {}
    for name in dict.fromkeys([*known, *(key for key, one in overall.items() if one["psi"] is not None)]):
        method = known.get(name, {})
        interval = method.get("interval") or (None, None)
        change = overall.get(name, {})
        found.append(
            {
                "method": name,
                "cutoff": method.get("cutoff"),
                "low": interval[0],
                "high": interval[1],
                "psi": change.get("psi"),
                "psi_limit": max(config.max_psi, change.get("psi_chance") or 0.0),
                "word": change.get("word"),
            }
        )
    return found


def _texts(values: Sequence[str]) -> str:
    """SQL for a list of texts, also of none."""
    return f"({', '.join(map(literal, values)) or 'NULL'})"
