"""The model and its record: whole, fingerprinted, strict, and nothing that runs."""

import json
import pickle
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import weights, weights_manifest
from qualitygate.training import models, record

FACTS = {"architecture": "resnet18", "classes": ["above", "below"], "image_size": 32, "epochs": 2, "plan": {}}


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(weights_manifest.FOLDER_VARIABLE, str(tmp_path / "weights"))


@pytest.fixture(scope="module")
def state() -> models.State:
    return models.build("resnet18", 2, image_size=32, seed=1).state_dict()


def _ids() -> pa.Table:
    return pa.table(
        {
            "image_id": ["a", "b", "c"],
            "group": ["g", None, "h"],
            "sha256": ["1", "2", "3"],
            "subset": ["train", "train", "eval"],
        }
    )


@pytest.fixture
def folder(tmp_path: Path, state: models.State) -> Path:
    record.write(str(tmp_path / "model"), state, _ids(), [{"epoch": 1, "train_loss": 0.5}], FACTS)
    return tmp_path / "model"


def test_what_is_written_is_complete_and_comes_back(folder: Path, state: models.State) -> None:
    written = json.loads((folder / record.RECORD).read_text())
    assert written["sha256"] == sha256((folder / record.MODEL).read_bytes()).hexdigest()
    assert written["normalisation"] == {"mean": list(models.MEAN), "std": list(models.STD)}
    assert json.loads((folder / record.HISTORY).read_text()) == [{"epoch": 1, "train_loss": 0.5}]
    assert pq.read_table(folder / record.IDS).schema.names == record.IDS_SCHEMA.names
    held = load_file(folder / record.MODEL)
    assert all(torch.equal(held[name], value) for name, value in state.items())
    for place in (folder, folder / record.MODEL):
        found = record.load(str(place), ["below"])
        assert (found.architecture, found.classes, found.image_size) == ("resnet18", ("above", "below"), 32)
        assert (found.fingerprint, found.trained) == (written["model_fingerprint"], True)
        assert all(torch.equal(found.state[name], value) for name, value in state.items())


def test_the_fingerprint_changes_with_all_that_changes_a_prediction() -> None:
    known = ("resnet18", ("a", "b"), 64, "0" * 64)
    others = [
        ("resnet34", *known[1:]),
        (known[0], ("b", "a"), *known[2:]),
        (*known[:2], 96, known[3]),
        (*known[:3], "1" * 64),
    ]
    found = {record.fingerprint(*one) for one in [known, *others]}
    assert len(found) == 5
    assert all(len(digits) == 16 and set(digits) <= set("0123456789abcdef") for digits in found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["above", "aside"]}, r"labels that the model doesn't know: aside; its classes are above, below"),
        ({"architecture": "resnet34"}, r"--architecture 'resnet34' isn't what the model .*'resnet18'; leave it out"),
        ({"classes": ("below", "above")}, r"--classes \['below', 'above'\] isn't what the model"),
    ],
)
def test_what_contradicts_the_record_is_refused(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        record.load(str(folder), given.pop("labels", ["above"]), **given)


def test_another_image_size_is_noted_and_is_another_fingerprint(folder: Path) -> None:
    found = record.load(str(folder), ["above"], image_size=48)
    assert found.notes == ("predicting at 48 px with a classifier trained at 32 px",)
    assert found.fingerprint != record.load(str(folder), ["above"]).fingerprint


def test_a_model_that_is_not_its_records_is_refused(folder: Path, tmp_path: Path) -> None:
    other = models.build("resnet18", 2, image_size=32, seed=2).state_dict()
    record.write(str(tmp_path / "other"), other, _ids(), [], FACTS)
    shutil.copy(tmp_path / "other" / record.MODEL, folder / record.MODEL)
    with pytest.raises(ConfigurationError, match=r"isn't the one that its model\.json describes"):
        record.load(str(folder), ["above"])
    (folder / record.RECORD).write_text("{}")
    with pytest.raises(ConfigurationError, match=r"no record of 'qualitygate train-baseline'"):
        record.load(str(folder), ["above"])
    (folder / record.RECORD).unlink()
    with pytest.raises(ConfigurationError, match=r"holds no model\.json"):
        record.load(str(folder), ["above"])


def test_a_plain_state_dictionary_takes_the_labels_for_its_classes(tmp_path: Path, state: models.State) -> None:
    path = tmp_path / "own.pth"
    torch.save(state, path)
    found = record.load(str(path), ["below", "above"], architecture="resnet18", image_size=32)
    assert (found.classes, found.ids, found.trained) == (("above", "below"), None, True)
    assert found.notes == ("taking the labels in alphabetical order for the model's classes: above, below",)
    named = record.load(str(path), ["below"], architecture="resnet18", classes=("below", "above"), image_size=32)
    assert named.fingerprint != found.fingerprint
    for labels, given, message in (
        (["a"], {}, "doesn't say which network it is for; name it with --architecture"),
        (
            ["a", "b", "c"],
            {"architecture": "resnet18"},
            r"tells 2 classes apart, the manifest has 3 labels \(a, b, c\)",
        ),
        (
            ["a"],
            {"architecture": "resnet18", "classes": ("a", "b", "c")},
            "--classes names 3 classes, .* tells 2 apart",
        ),
        (["a"], {"architecture": "resnet34", "classes": ("a", "b")}, "don't fit a resnet34"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            record.load(str(path), labels, **given)  # type: ignore[arg-type]


class _Runs:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("bare", [True, False])
def test_weights_that_would_run_something_run_nothing(tmp_path: Path, bare: bool) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    if bare:
        path.write_bytes(pickle.dumps({"fc.weight": _Runs(marker)}))
    else:
        torch.save({"fc.weight": _Runs(marker)}, path)
    with pytest.raises(ConfigurationError, match=r"evil\.pth.*refused.*nothing of it was run"):
        record.load(str(path), ["a", "b"], architecture="resnet18")
    assert not marker.exists()


# ---- what a training starts from ---------------------------------------------------------------------------


def test_without_weights_the_remedy_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"qualitygate weights fetch resnet34.*--from-scratch"):
        record.pretrained("resnet34", None)
    with pytest.raises(ConfigurationError, match=r"no published weights of resnet50.*--weights.*--from-scratch"):
        record.pretrained("resnet50", None)
    with pytest.raises(ConfigurationError, match=r"'resnet99' is neither a file or folder nor a name of"):
        record.pretrained("resnet34", "resnet99")


def test_published_weights_are_verified_and_a_users_own_taken_by_name(tmp_path: Path, state: models.State) -> None:
    entry = weights_manifest.lookup("resnet18")
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(dict(state), folder / entry.file)
    # Not what torchvision published: its name says so.
    with pytest.raises(ConfigurationError, match=r"f37072fd is published"):
        record.pretrained("resnet18", None)
    own = tmp_path / "own.pth"
    torch.save(dict(state), own)
    tensors, origin = record.pretrained("resnet18", str(own))
    assert origin == {"name": str(own), "sha256": sha256(own.read_bytes()).hexdigest()}
    assert torch.equal(tensors["fc.weight"], state["fc.weight"])


def test_a_published_file_is_found_by_default_by_name_and_in_a_folder(
    tmp_path: Path, state: models.State, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    torch.save(dict(state), folder / "published.pth")
    digest = sha256((folder / "published.pth").read_bytes()).hexdigest()
    entry = weights_manifest.Entry(
        name="resnet18", file="published.pth", uris=("https://x.invalid/published.pth",), license="none", sha256=digest
    )
    monkeypatch.setattr(weights_manifest, "manifest", lambda: {"resnet18": entry})
    for place in (None, "resnet18", str(folder)):
        tensors, origin = record.pretrained("resnet18", place)
        assert origin == {"name": "resnet18", "sha256": digest}
        assert torch.equal(tensors["fc.weight"], state["fc.weight"])


def test_a_training_goes_on_from_the_folder_of_an_earlier_one(folder: Path, state: models.State) -> None:
    digest = sha256((folder / record.MODEL).read_bytes()).hexdigest()
    for place in (folder, folder / record.MODEL):
        tensors, origin = record.pretrained("resnet18", str(place))
        assert origin == {"name": str(folder / record.MODEL), "sha256": digest}
        assert torch.equal(tensors["fc.weight"], state["fc.weight"])
        assert record.ids_beside(str(place)) == str(folder / record.IDS)
    assert record.ids_beside(None) is record.ids_beside("resnet18") is record.ids_beside(str(folder.parent)) is None
    (folder / record.IDS).unlink()
    assert record.ids_beside(str(folder)) is None


def test_the_classifiers_in_the_list_of_weights_are_those_of_torchvision() -> None:
    import torchvision

    listed = {one.name: one for one in weights.listing(".")}
    for name in ("alexnet", "vgg19", "resnet18", "resnet34"):
        published = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        assert weights_manifest.lookup(name).uris == (published.url,)
        assert listed[name].license.startswith("not stated")
        from qualitygate.metrics.networks import NETWORKS

        assert name not in {network.weights for network in NETWORKS.values()}


# ---- who was trained on ------------------------------------------------------------------------------------


def test_a_photograph_was_trained_on_by_id_bytes_or_group(folder: Path) -> None:
    rows = pa.table(
        {
            "image_id": ["a", "x", "x", "c", "x", "x"],
            "sha256": ["9", "2", "9", "3", None, "9"],
            "group": [None, None, "g", "h", None, "i"],
        }
    )
    found = record.trained_on(str(folder / record.IDS), rows)
    # Those kept out of the training (c) were not trained on, nor were photographs without a group or bytes.
    assert found.to_pylist() == [True, True, True, False, False, False]
    assert record.trained_on(None, rows).to_pylist() == [None] * 6
    (folder / record.IDS).write_bytes(b"damaged")
    with pytest.raises(ConfigurationError, match=r"nobody knows what the classifier was trained on"):
        record.trained_on(str(folder / record.IDS), rows)
