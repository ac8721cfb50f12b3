"""What `train-baseline` and `predict` say in the terminal."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.table import Table

from qualitygate.report.terminal import rendered

# Of a long training, the first and the last few epochs tell the story.
_FIRST, _LAST = 2, 5


def of_training(result: Any) -> str:
    """The end of a training: its epochs, its accuracy on those kept out, where the model is.

    result: a `cluster.baseline.Result`.
    """
    made, rows = result.record, result.record["rows"]
    accuracy = made["accuracy"]
    lines = [
        f"{made['architecture']} for {', '.join(made['classes'][:6])}{', ...' if len(made['classes']) > 6 else ''}: "
        f"trained on {rows['train']:,} photographs ({accuracy['train']:.1%} right), {rows['eval']:,} kept out "
        f"({accuracy['eval']:.1%} right)",
        f"model: {result.output}/model.safetensors, fingerprint {made['model_fingerprint']}, "
        + ("from scratch" if made["from_scratch"] else f"from {made['pretrained']['name']}"),
    ]
    if rows["unreadable"]:
        lines.insert(1, f"left out: {_counted(rows['unreadable'])}")
    lines.append(f"next:  qualitygate predict --weights {result.output} --input LABELLED-MANIFEST --output DIR")
    return rendered(_epochs(result.history), *lines)


def _epochs(history: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("epoch", "loss", "right", "loss, kept out", "right, kept out", "seconds"):
        table.add_column(title, justify="right")
    left_out = len(history) - _FIRST - _LAST
    for number, epoch in enumerate(history):
        if left_out > 1 and _FIRST <= number < _FIRST + left_out:
            if number == _FIRST:
                table.add_row(*["..."] * 6)
            continue
        table.add_row(
            str(epoch["epoch"]),
            f"{epoch['train_loss']:.4f}",
            f"{epoch['train_accuracy']:.1%}",
            f"{epoch['eval_loss']:.4f}",
            f"{epoch['eval_accuracy']:.1%}",
            f"{epoch['seconds']:.1f}",
        )
    return table


def of_prediction(result: Any) -> str:
    """The end of a prediction: how many are right, by label, what failed, who was trained on.

    result: a `cluster.prediction.Result`.
    """
    made, rows = result.record, result.table
    done = made["rows"] - made["errors"]
    wrong = pc.sum(pc.invert(rows["correct"])).as_py() or 0
    lines = [
        f"predicted {done:,} of {made['rows']:,} photographs in {result.seconds:.1f} s: {made['accuracy']:.1%} right, "
        f"{wrong:,} wrong"
    ]
    if made["errors"]:
        lines.append(f"errors: {_counted(made['errors_by_code'])}")
    if not wrong:
        lines.append("Without wrong predictions nothing can be calibrated: predict photographs of worse quality, too.")
    if made["trained_on_rows"] is None:
        lines.append("Which photographs the classifier was trained on isn't known: keep those out yourself.")
    elif made["trained_on_rows"]:
        lines.append(
            f"{made['trained_on_rows']:,} show photographs or groups that the classifier was trained on: 'calibrate' "
            "refuses them, or leaves them out with --drop-trained"
        )
    lines.append(f"table:  {result.output}/predictions.parquet, model fingerprint {made['model_fingerprint']}")
    return rendered(_by_label(rows), *lines)


def _by_label(rows: pa.Table) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("label")
    for title in ("photographs", "right", "confidence, median", "errors"):
        table.add_column(title, justify="right")
    for label in sorted(pc.unique(rows["label"]).to_pylist()):
        some = rows.filter(pc.equal(rows["label"], label))
        right, median = pc.mean(some["correct"]).as_py(), pc.approximate_median(some["confidence"]).as_py()
        table.add_row(
            label,
            f"{some.num_rows:,}",
            "-" if right is None else f"{right:.1%}",
            "-" if median is None else f"{median:.4f}",
            f"{pc.sum(pc.equal(some['status'], 'error')).as_py() or 0:,}",
        )
    return table


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in counts.items())
