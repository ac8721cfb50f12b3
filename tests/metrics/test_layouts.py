"""What is fetched and verified are the tensors of the network that the name stands for."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import hyperiqa, layouts, maniqa, musiq, weights, weights_manifest
from qualitygate.metrics.weights_manifest import Entry

ENTRIES = weights_manifest.manifest()
CLASSIFIERS = [name for name, entry in ENTRIES.items() if entry.network == layouts.CLASSIFIER]


@pytest.mark.parametrize("name", ENTRIES)
def test_one_tensor_is_no_network(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"not those of {name}: .* missing .*1 unexpected \\(a\\)"):
        layouts.check(ENTRIES[name], {"a": torch.ones(2)})


@pytest.mark.parametrize("name", [name for name in ENTRIES if name not in CLASSIFIERS])
def test_the_parameters_of_each_network_are_its_own(name: str) -> None:
    module = {"musiq": musiq, "maniqa": maniqa, "hyperiqa": hyperiqa}[str(ENTRIES[name].network)]
    (preset,) = (preset for preset in module.PRESETS.values() if preset.weights == name)
    state = module.described(preset).state_dict()
    layouts.check(ENTRIES[name], state)
    key = next(key for key, tensor in state.items() if tensor.ndim == 2)
    with pytest.raises(ConfigurationError, match="1 of another shape"):
        layouts.check(ENTRIES[name], {**state, key: state[key].T[:1]})


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_published_classifier_may_lack_what_no_older_file_has(name: str) -> None:
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
    layouts.check(ENTRIES[name], state)
    layouts.check(ENTRIES[name], {key: state[key] for key in state if not key.endswith("num_batches_tracked")})
    with pytest.raises(ConfigurationError, match=f"not those of {name}"):
        layouts.check(ENTRIES[name], torchvision.models.resnet50(num_classes=3).state_dict())


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A network of which no hash is published."""
    entry = replace(ENTRIES["resnet18"], sha256_prefix=None)
    monkeypatch.setattr(weights_manifest, "manifest", lambda: {entry.name: entry})
    return entry


def test_another_network_s_file_is_neither_fetched_nor_found_in_order(tmp_path: Path, entry: Entry) -> None:
    other, folder = tmp_path / "other.safetensors", tmp_path / "w"
    save_file({"a": torch.ones(2)}, other)
    with pytest.raises(
        ConfigurationError, match=r"other\.safetensors': these weights are not those of resnet18: of its 122"
    ):
        weights.fetch("resnet18", source=str(other), accept_new_hash=True, folder=folder)
    assert not (folder / entry.file).exists()
    assert not (folder / weights.LOCK_FILE).exists()

    # As an earlier version pinned it, or somebody by hand.
    (folder / entry.file).write_bytes(other.read_bytes())
    with pytest.raises(ConfigurationError, match="not those of resnet18"):
        weights.fetch("resnet18", accept_new_hash=True, folder=folder)
    pinned = {"file": entry.file, "sha256": sha256(other.read_bytes()).hexdigest()}
    (folder / weights.LOCK_FILE).write_text(json.dumps({"version": 1, "weights": {"resnet18": pinned}}))
    (found,) = weights.verify(folder=folder)
    assert "these weights are not those of resnet18: of its 122 parameters 102 missing (conv1.weight" in str(
        found.problem
    )
    assert str(found.problem).isprintable()


def test_its_own_file_is_fetched_and_found_in_order(tmp_path: Path, entry: Entry) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "own.pth")
    weights.fetch("resnet18", source=str(tmp_path / "own.pth"), accept_new_hash=True, folder=tmp_path / "w")
    (found,) = weights.verify(folder=tmp_path / "w")
    assert found.problem is None
