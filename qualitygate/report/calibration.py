"""What `qualitygate calibrate` and `qualitygate gate` say in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from qualitygate.calibration import apply, calibrate
from qualitygate.report import wording
from qualitygate.report.terminal import number, rendered
from qualitygate.tables import storage

_CONTESTANTS = {
    "gate": "the gate",
    "random": "rejecting at random",
    "top1": "the classifier's top-1 probability",
    "best_single": "the best single method",
    "logistic": "a logistic combination",
}


def of_run(result: calibrate.Result) -> str:
    """The end of a calibration: each method's line, what the gate buys on unseen groups, what to know."""
    record, content = result.record, result.gate.content
    lines = [
        f"calibrated on {record['rows']:,} photographs in {record['groups']:,} groups, "
        f"{record['wrong']:,} of them classified wrongly (accuracy {record['accuracy']:.1%})"
    ]
    if found := record.get("sampling"):
        classes = {kind: (one["n"], one["effective"]) for kind, one in found["classes"].items()}
        lines.append(wording.weighted(found["column"], found["probability"], found["effective"], classes))
    if record["dropped"]:
        lines.append("left out: " + ", ".join(f"{rows:,} {reason}" for reason, rows in record["dropped"].items()))
    parts: list[Any] = ["\n".join(lines), _methods(content["methods"], content["untrained"])]
    parts += [f"{name}: {one['reason']}" for name, one in content["methods"].items() if one["status"] != "ok"]
    held_out = record["held_out"]
    if content["coverage"] is not None:
        parts.append(
            f"{content['votes_needed']} low votes reject: {content['coverage']:.1%} of these photographs pass the gate"
        )
    if held_out:
        parts += [_bought(held_out), _comparison(held_out["comparison"])]
    parts += [f"note: {warning}" for warning in record["warnings"]]
    if errors := record["confident_errors"]:
        parts.append(
            f"{len(errors)} sure but wrong predictions on good photographs: look at their labels ({calibrate.RECORD})"
        )
    if result.refusal:
        parts.append(f"THE GATE CAN'T DECIDE: {result.refusal}")
    where = storage.join(result.output, "gate.json")
    applied = "" if result.refusal else f"; 'qualitygate gate --scores ... --gate {where}' applies it"
    parts.append(f"gate {result.gate.id}: {where}{applied}")
    return rendered(*parts)


def of_gate(result: apply.Result) -> str:
    """The end of applying a gate: who passes, by how many votes, what each method said."""
    stats = result.stats
    lines = [
        f"gate {stats['gate_id']}: {stats['passed']:,} of {stats['rows']:,} photographs pass, "
        f"{stats['rejected']:,} are rejected",
        f"low votes: of {', '.join(stats['voters'])}, {stats['votes_needed']} reject: "
        + ", ".join(f"{rows:,} with {votes}" for votes, rows in stats["by_votes"].items()),
        "decisive:  " + ", ".join(f"{name} {share:.1%}" for name, share in stats["pivotal"].items()),
    ]
    if failed := {name: rows for name, rows in stats["nulls"].items() if rows}:
        counted = {"reject": "counted as low", "pass": "counted as not low", "abstain": "not counted"}
        lines.append(
            "failed scores: "
            + ", ".join(f"{rows:,} of {name}" for name, rows in failed.items())
            + f", {counted[stats['policy']['on_null']]} (--on-null {stats['policy']['on_null']})"
        )
    if stats["unjudged"]:
        lines.append(f"{stats['unjudged']:,} photographs without a single score are rejected: nobody judged them")
    if skipped := sum(stats["skipped"].values()):
        lines.append(f"{skipped:,} scores were left out by a lazy run; no decision needs them")
    if stats["external"]:
        lines.append(
            f"EXTERNAL: {', '.join(stats['external'])} carry no fingerprint, so nothing tells whether the gate was "
            "made for such scores"
        )
    if stats["untrained"]:
        lines.append(f"UNTRAINED: {', '.join(stats['untrained'])}: these decisions mean nothing")
    lines.append(f"accepted:  {storage.join(result.output, apply.ACCEPTED)}")
    lines.append(f"decisions: {storage.join(result.output, apply.DECISIONS)}")
    return rendered("\n".join(lines))


def _methods(methods: Mapping[str, Any], untrained: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("method", "better", "line", "cut-off", "95 % interval", "AUROC", "p (Holm)", "one crossing"):
        table.add_column(title, justify="left" if title in ("method", "better", "line") else "right")
    for name, one in methods.items():
        interval = one["interval"]
        table.add_row(
            f"{name} (UNTRAINED)" if name in untrained else name,
            one["direction"],
            one["status"] if one["status"] != "ok" or one["rule"] == "crossing" else f"ok, {one['rule']}",
            number(one["cutoff"]),
            f"{number(interval[0])} to {number(interval[1])}" if interval else "-",
            "-" if one["auroc"] is None else f"{one['auroc']:.3f}",
            "-" if one["p_value_holm"] is None else f"{one['p_value_holm']:.2g}",
            "-" if one["share_single_crossing"] is None else f"{one['share_single_crossing']:.0%}",
        )
    return table


def _bought(held_out: Mapping[str, Any]) -> str:
    return (
        f"on groups it wasn't made from ({held_out['repeats']} times {held_out['folds']} folds), the gate\n"
        f"  passes {_share(held_out['coverage'])}, of which {_share(held_out['accuracy_passed'])} are classified "
        f"rightly; without a gate {held_out['accuracy_all']:.1%}\n"
        f"  rejects {_share(held_out['recall'])} of the wrong predictions; "
        f"of what it rejects {_share(held_out['precision'])} are wrong"
    )


def _comparison(compared: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("rejecting as many by", "accuracy of the rest", "the gate is better by", "area under risk"):
        table.add_column(title, justify="left" if title.startswith("rejecting") else "right")
    for one in compared:
        difference = one["difference"]
        table.add_row(
            _CONTESTANTS.get(one["name"], one["name"]),
            _share(one["accuracy_at_coverage"]),
            "" if difference is None else _points(difference),
            f"{one['aurc']:.4f}",
        )
    return table


def _share(estimate: Mapping[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    interval = estimate["interval"]
    return f"{estimate['mean']:.1%}" + (f" [{interval[0]:.1%}, {interval[1]:.1%}]" if interval else "")


def _points(estimate: Mapping[str, Any]) -> str:
    if estimate["mean"] is None:
        return "-"
    interval = estimate["interval"]
    shown = f" [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else ""
    return f"{100 * estimate['mean']:+.1f}{shown} points"
