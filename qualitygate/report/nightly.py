"""What `qualitygate nightly` says in the terminal."""

from collections.abc import Mapping
from typing import Any

from qualitygate.report import wording
from qualitygate.report.terminal import rendered
from qualitygate.tables import storage

_ENDS = {
    "promoted": "a new gate is in force",
    "kept": "the gate stays as it was, and nothing speaks against it",
    "refused": "REFUSED: the gate stays as it was",
    "deadline": "THE DEADLINE CAME: some photographs are not scored yet",
}
_LEFT_OUT = {"without_row": "that have no scores", "untrusted": "of nights that were refused for their photographs"}
_VERBS = {"passed": "passes", "rejected": "rejects"}


def of_night(night: Mapping[str, Any]) -> str:
    """The end of a night: what was done, every check, and which gate is in force."""
    steps = night["steps"]
    name, output = night["night"], night["output"]
    lines = [f"night {name}: {_ENDS.get(night['state'], night['state'])}"]
    if night["already"]:
        lines = [f"night {name} had ended before, nothing was done: {_ENDS[night['state']]}; --again does it anew"]
    if "manifest" in steps:
        one = steps["manifest"]
        lines.append(
            f"photographs: {one['images']:,}, of them {one['new']:,} new and {one['changed']:,} changed; "
            f"{one['gone']:,} are gone"
        )
    if "drift" in steps:
        one = steps["drift"]
        lines.append(f"scored:      {one['rows']:,}, {one['failed']:,} of them without any score")
        if one["unfinished"]:
            lines.append(f"with those of unfinished nights: {', '.join(one['unfinished'])}")
        if not one["reference"]:
            lines.append("drift:       nothing was scored before, so there is nothing to compare with")
        new = wording.unseen(one["new_strata"], one.get("new_cameras", ()), one["rows"])
        lines += [f"new:         {said}" for said in new]
        if night["state"] == "refused" and one["drifted"] and (some := one.get("examples")):
            lines.append(f"look at:     {', '.join(storage.redact(example['image_id']) for example in some)}")
    if steps.get("calibrate", {}).get("gate"):
        one = steps["calibrate"]
        lines.append(f"labelled:    {one['labelled']:,} photographs")
        for why, count in one["left_out"].items():
            if count:
                lines.append(f"left out:    {count:,} labelled photographs {_LEFT_OUT[why]}")
        if kinds := one["kinds"]:
            parts = (f"{part[0]:,} of {part[1]:,} that the gate {_VERBS[kind]}" for kind, part in kinds.items())
            lines.append(f"weighted:    labelled are {' and '.join(parts)}")
    for check in night["checks"]:
        lines.append(f"{'ok' if check['passed'] else 'NO':<3} {check['name']}: {check['said']}")
    if problem := steps.get("report", {}).get("problem"):
        lines.append(f"no report:   {problem}")
    lines += [f"not told:    {problem}" for problem in steps.get("notify", {}).get("problems", ())]
    if by_hand := steps.get("drift", {}).get("by_hand"):
        lines.append(f"by hand:     photographs of {len(by_hand)} runs of 'score' were judged with tonight's")
    if (drawn := steps.get("decide", {}).get("audit")) and drawn["new"]:
        lines.append(
            f"to label:    {drawn['new']:,} rejected photographs, drawn at random: "
            + storage.redact(storage.join(output, "nights", name, "audit_sample.parquet"))
        )
    if night["state"] == "refused" and (candidate := steps.get("calibrate", {}).get("gate")):
        place = storage.redact(storage.join(output, "nights", name, "gate"))
        command = f"qualitygate gate promote {place} --store {storage.redact(output)}"
        lines.append(f"candidate:   {candidate}; by hand: {command}")
    in_force = night["gate_after"]
    lines.append(f"gate:        {in_force or 'none is in force'}")
    if page := steps.get("report", {}).get("page"):
        lines.append(f"report:      {page}")
    return rendered("\n".join(lines))
