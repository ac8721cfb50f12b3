"""Predictions on a real Ray: a row for each photograph, the network's own probabilities, nothing half-written."""

import json
import os
from pathlib import Path
from typing import Any

import labelled_photographs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from job_helpers import Silent
from PIL import Image

from qualitygate.cluster import prediction
from qualitygate.config import PredictConfig
from qualitygate.errors import ConfigurationError, Interrupted
from qualitygate.report import classifier as said
from qualitygate.training import models, record
from qualitygate.training.loop import normalised

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]

COUNT, SIDE = 50, 32


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exact squares, so that no resizing stands between the files and the network."""
    folder = tmp_path_factory.mktemp("photographs")
    path = labelled_photographs.write(folder, COUNT)
    for file in folder.glob("*.png"):
        Image.open(file).resize((SIDE, SIDE)).save(file)
    (folder / "p007.png").write_bytes((folder / "p007.png").read_bytes()[:200])
    (folder / "p011.png").unlink()
    return path


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return models.build("resnet18", 2, image_size=SIDE, seed=4).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, network: torch.nn.Module) -> Path:
    folder = tmp_path_factory.mktemp("model")
    ids = pa.table(
        {
            "image_id": ["p000.png", "x", "y", "p020.png"],
            "group": [None, "g1-0", None, None],
            "sha256": ["-", "-", "-", "-"],
            "subset": ["train", "train", "train", "eval"],
        }
    )
    facts = {"architecture": "resnet18", "classes": ["above", "below"], "image_size": SIDE, "epochs": 1}
    record.write(str(folder), network.state_dict(), ids, [], facts)
    return folder


def _run(manifest: Path, output: Path, weights: Path, silent: Silent, **options: Any) -> prediction.Result:
    return prediction.run(
        PredictConfig(input=str(manifest), output=str(output), weights=str(weights), **options), silent
    )


def _expected(network: torch.nn.Module, folder: Path, name: str) -> np.ndarray[Any, Any]:
    pixels = torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return torch.softmax(network(normalised(pixels.float() / 255)).double(), 1)[0].numpy()


@pytest.fixture(scope="module")
def predicted(
    manifest: Path, model: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: Any
) -> tuple[prediction.Result, Silent]:
    progress = Silent()
    return _run(manifest, tmp_path_factory.mktemp("predicted"), model, progress, batch_size=8), progress


def test_every_row_of_the_manifest_has_its_row_with_the_networks_own_probabilities(
    manifest: Path, model: Path, network: torch.nn.Module, predicted: tuple[prediction.Result, Silent]
) -> None:
    result, progress = predicted
    table = pq.read_table(Path(result.output) / "predictions.parquet")
    assert table.schema == prediction.SCHEMA
    assert table.equals(result.table)
    rows = table.to_pylist()
    assert [row["image_id"] for row in rows] == [f"p{number:03}.png" for number in range(COUNT)]
    assert (progress.total, progress.rows, progress.errors) == (COUNT, COUNT, 2)
    for number, row in enumerate(rows):
        assert row["label"] == labelled_photographs.LABELS[number % 2]
        if number in (7, 11):
            assert (row["status"], row["error_code"]) == ("error", "truncated" if number == 7 else "missing")
            assert [row[name] for name in ("predicted", "confidence", "top1", "correct")] == [None] * 4
            continue
        expected = _expected(network, manifest.parent, row["image_id"])
        assert row["confidence"] == pytest.approx(expected[number % 2], abs=1e-6)
        assert row["top1"] == pytest.approx(expected.max(), abs=1e-6)
        assert row["predicted"] == ("above", "below")[int(expected.argmax())]
        assert row["correct"] == (row["predicted"] == row["label"])
        # p000 by its id, the first pairs of bottle 1 by their group; p020 was only kept out of the training.
        assert row["trained_on"] == (number == 0 or row["group"] == "g1-0")
    made = json.loads((Path(result.output) / "prediction.json").read_text())
    assert made == result.record
    right = [row["correct"] for row in rows if row["correct"] is not None]
    assert (made["rows"], made["errors"], made["accuracy"]) == (COUNT, 2, pytest.approx(np.mean(right)))
    assert made["errors_by_code"] == {"truncated": 1, "missing": 1}
    assert made["trained_on_rows"] == 3
    assert made["trained"] is True
    assert {row["model_fingerprint"] for row in rows} == {made["model_fingerprint"]}
    assert made["model_fingerprint"] == json.loads((model / "model.json").read_text())["model_fingerprint"]
    text = said.of_prediction(result)
    assert "predicted 48 of 50" in text
    assert "--drop-trained" in text


def test_a_plain_state_dictionary_in_other_batches_and_workers_gives_the_same_confidence(
    manifest: Path,
    network: torch.nn.Module,
    predicted: tuple[prediction.Result, Silent],
    tmp_path: Path,
    silent: Silent,
) -> None:
    torch.save(network.state_dict(), tmp_path / "own.pth")
    options = {"architecture": "resnet18", "image_size": SIDE}
    one = _run(manifest, tmp_path / "a", tmp_path / "own.pth", silent, batch_size=5, workers=1, **options)
    other, _ = predicted
    assert "alphabetical order" in silent.notes[0]
    assert one.record["trained_on_rows"] is None
    assert one.table["trained_on"].null_count == COUNT
    apart = np.abs(one.table["confidence"].to_numpy() - other.table["confidence"].to_numpy())
    assert np.nanmax(apart) < 1e-6
    # Other bytes of the same parameters: a file's hash is part of the fingerprint.
    assert one.record["model_fingerprint"] != other.record["model_fingerprint"]


def test_what_cannot_be_predicted_is_said_and_leaves_the_folder_as_it_was(
    manifest: Path, model: Path, tmp_path: Path, silent: Silent
) -> None:
    strange = labelled_photographs.write(tmp_path / "in", 4, label=["above", "aside", "below", "above"])
    gone = labelled_photographs.write(tmp_path / "gone", 4)
    for file in (tmp_path / "gone").glob("*.png"):
        file.unlink()
    for source, weights, options, message in (
        (strange, model, {}, r"labels that the model doesn't know: aside; its classes are above, below"),
        (gone, model, {"workers": 1}, r"none of 4 photographs can be read; the first: No such file"),
        (manifest, tmp_path / "none.pth", {"architecture": "resnet18"}, r"none\.pth"),
        (manifest, model, {"architecture": "vgg19"}, r"--architecture 'vgg19' isn't what the model"),
        (manifest, model, {"device": "cuda", "workers": 3}, r"--device cuda wants a GPU for each of 3 workers"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            _run(source, tmp_path / "out", weights, silent, **options)
        assert not (tmp_path / "out").exists() or os.listdir(tmp_path / "out") == []


class _Stops(Silent):
    def advance(self, *, rows: int, errors: int) -> None:
        raise KeyboardInterrupt


def test_a_stopped_prediction_leaves_the_one_before(
    manifest: Path, model: Path, tmp_path: Path, silent: Silent
) -> None:
    before = tmp_path / "out"
    before.mkdir()
    (before / "prediction.json").write_text("earlier")
    with pytest.raises(Interrupted, match="nothing was written"):
        _run(manifest, before, model, _Stops(), batch_size=8, workers=1)
    assert os.listdir(before) == ["prediction.json"]
    assert (before / "prediction.json").read_text() == "earlier"


def test_a_photograph_that_kills_its_worker_gets_the_row_that_says_so(
    manifest: Path, model: Path, tmp_path: Path, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qualitygate.cluster import predicting_worker

    class Deadly(predicting_worker.PredictingWorker):
        def _straight(self, rows: Any) -> Any:
            if any(row["image_id"] == "p003.png" for row in rows):
                os._exit(1)
            return super()._straight(rows)

        def _with_care(self, rows: Any) -> Any:
            dying = [row for row in rows if row["image_id"] == "p003.png"]
            if dying and ray.get(self._journal.begin_image.remote("p003.png")).times < 1:
                os._exit(1)
            return super()._with_care(rows)

    import ray

    monkeypatch.setattr(predicting_worker, "PredictingWorker", Deadly)
    result = _run(manifest, tmp_path / "out", model, silent, batch_size=4, limit=8, workers=1)
    by_id = {row["image_id"]: row for row in result.table.to_pylist()}
    assert len(by_id) == 8
    assert by_id["p003.png"]["error_code"] == "worker_crash"
    assert [name for name, row in by_id.items() if row["status"] == "error"] == ["p003.png", "p007.png"]
