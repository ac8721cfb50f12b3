"""The networks in the catalogue: described as they are, skipped when absent, marked when untrained, never trusted."""

import importlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import save_file

import qualitygate
from qualitygate.errors import ConfigurationError
from qualitygate.metrics import (
    PUBLISHED,
    Parameters,
    catalogue,
    default_names,
    networks,
    select,
    weights,
    weights_manifest,
)
from qualitygate.metrics.rows import Plan

SMALL = np.ascontiguousarray(skimage.data.astronaut()[100:240, 100:260])


@pytest.fixture(autouse=True)
def _no_weights_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QUALITYGATE_WEIGHTS", str(tmp_path / "none"))


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_the_description_is_that_of_the_module(name: str) -> None:
    network = networks.NETWORKS[name]
    preset = importlib.import_module(f"qualitygate.metrics.{network.module}").PRESETS[name]
    assert (network.name, network.weights, network.range) == (preset.name, preset.weights, preset.range)
    assert preset.higher_is_better
    assert preset.trained_on in network.unit


def test_absent_parameters_skip_the_network_and_no_other() -> None:
    names, skipped = default_names()
    assert names == ["lapv", "lapm", "wavs", "brisque", "niqe"]
    assert set(skipped) == {"musiq", "maniqa", "hyperiqa"}
    assert all("qualitygate weights fetch" in reason for reason in skipped.values())
    with pytest.raises(ConfigurationError, match=r"musiq can't be computed.*weights fetch"):
        qualitygate.score(SMALL, "musiq")


def test_untrained_scores_say_so_wherever_they_go() -> None:
    (row,) = qualitygate.score(SMALL, "musiq,lapm", untrained=True).to_pylist()
    assert row["musiq_state"] == "ok"
    assert row["musiq_fingerprint"].startswith("untrained-")
    assert not row["lapm_fingerprint"].startswith("untrained-")
    definition = Plan(metrics=("musiq",), parameters=Parameters(untrained=True)).definitions()["musiq"]["whole"]
    assert definition["trained"] is False
    assert "untrained" in definition["parameters_sha256"]


@pytest.mark.parametrize("name", ["musiq", "musiq-ava", "hyperiqa"])
def test_both_backends_give_one_score_for_one_set_of_parameters(name: str) -> None:
    pytest.importorskip("pyiqa")
    native, stock = (
        qualitygate.score(SMALL, name, backend=backend, untrained=True).to_pylist()[0]
        for backend in ("native", "pyiqa")
    )
    assert native["status"] == stock["status"] == "ok"
    assert native[name] == pytest.approx(stock[name], rel=1e-4)
    assert native[f"{name}_fingerprint"] != stock[f"{name}_fingerprint"]


def test_pyiqas_names_are_mapped_and_nothing_is_downloaded() -> None:
    pytest.importorskip("pyiqa")
    from qualitygate.metrics import reference

    built = reference._build(networks.NETWORKS["maniqa"])
    assert built.swintransformer1.scale == 0.13
    assert reference._build(networks.NETWORKS["maniqa-koniq"]).swintransformer1.scale == 0.8


def test_a_users_own_file_is_loaded_by_its_hash(tmp_path: Path) -> None:
    import safetensors.torch

    musiq = importlib.import_module("qualitygate.metrics.musiq")
    state = dict(musiq.seeded_state_dict(networks.UNTRAINED_SEED, musiq.PRESETS["musiq"]))
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(state, path)
    (own,) = qualitygate.score(SMALL, "musiq", weights=str(path)).to_pylist()
    (seeded,) = qualitygate.score(SMALL, "musiq", untrained=True).to_pylist()
    assert own["musiq"] == pytest.approx(seeded["musiq"], rel=1e-6)
    assert not own["musiq_fingerprint"].startswith("untrained-")


class _Runs:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (self._marker,))  # type: ignore[return-value]


def test_a_malicious_checkpoint_runs_nothing_and_is_named(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"params": _Runs(marker)}))
    with pytest.raises(ConfigurationError, match=r"evil\.pth"):
        qualitygate.score(SMALL, "musiq", weights=str(path))
    assert not marker.exists()


def test_the_catalogue_keeps_its_networks_bound() -> None:
    assert catalogue()["musiq"].unavailable() is not None
    assert catalogue("native", Parameters(untrained=True))["musiq"].unavailable() is None
    assert select(["musiq"], "native", PUBLISHED)[0].trained
    assert networks.pinned(("musiq", "lapv"), PUBLISHED).located == ()


@pytest.fixture
def hyperiqa_state() -> dict[str, torch.Tensor]:
    return dict(importlib.import_module("qualitygate.metrics.hyperiqa").seeded_state_dict(3))


@pytest.mark.parametrize("backend", ["native", "pyiqa"])
@pytest.mark.parametrize("wrong", ["missing", "unexpected", "of another shape", "no real numbers"])
def test_parameters_that_do_not_fit_are_refused_by_the_name_of_their_file(
    tmp_path: Path, hyperiqa_state: dict[str, torch.Tensor], backend: Any, wrong: str
) -> None:
    if backend == "pyiqa":
        pytest.importorskip("pyiqa")
    key = next(key for key, tensor in hyperiqa_state.items() if tensor.ndim == 4)
    if wrong == "missing":
        del hyperiqa_state[key]
    elif wrong == "unexpected":
        hyperiqa_state["more"] = torch.zeros(1)
    elif wrong == "of another shape":
        hyperiqa_state[key] = hyperiqa_state[key][:1]
    else:
        hyperiqa_state[key] = hyperiqa_state[key].to(torch.int32)
    file = tmp_path / "mine.pth"
    torch.save(hyperiqa_state, file)
    with pytest.raises(ConfigurationError, match=rf"mine\.pth.*not those of hyperiqa.*1 {wrong}"):
        qualitygate.score(SMALL, "hyperiqa", weights=str(file), backend=backend)


def test_one_file_of_ones_own_needs_the_metric_s_name(tmp_path: Path, hyperiqa_state: dict[str, torch.Tensor]) -> None:
    file = tmp_path / "My_Weights.PTH"
    torch.save(hyperiqa_state, file)
    with pytest.raises(ConfigurationError, match=r"My_Weights\.PTH.*say with --metrics which network"):
        qualitygate.score(SMALL, weights=str(file))
    (row,) = qualitygate.score(SMALL, "hyperiqa", weights=str(file)).to_pylist()
    assert row["hyperiqa_state"] == "ok"


def test_a_folder_may_hold_safetensors_and_a_file_put_there_later_is_seen(
    tmp_path: Path, hyperiqa_state: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="hyperiqa can't be computed"):
        qualitygate.score(SMALL, "hyperiqa", weights=str(folder))
    file = weights_manifest.lookup("hyperiqa-koniq").file
    save_file(hyperiqa_state, folder / f"{Path(file).stem}.safetensors")
    (first,) = qualitygate.score(SMALL, "hyperiqa", weights=str(folder)).to_pylist()
    torch.save(hyperiqa_state, tmp_path / "same.pth")
    (second,) = qualitygate.score(SMALL, "hyperiqa", weights=str(tmp_path / "same.pth")).to_pylist()
    assert first["hyperiqa"] == second["hyperiqa"]
    names, _ = default_names("native", Parameters(weights=str(folder)))
    assert names[-1] == "hyperiqa"


def test_a_pin_holds_also_in_a_folder_that_is_named(
    tmp_path: Path, hyperiqa_state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As MANIQA's, of which no hash is published; a quarter of the size.
    entry = replace(weights_manifest.lookup("hyperiqa-koniq"), sha256_prefix=None)
    monkeypatch.setattr(weights_manifest, "manifest", lambda: {entry.name: entry})
    source, folder = tmp_path / "source.pth", tmp_path / "w"
    torch.save(hyperiqa_state, source)
    fetched = weights.fetch(entry.name, source=str(source), accept_new_hash=True, folder=folder)
    changed = bytearray(fetched.path.read_bytes())
    changed[-1000] ^= 1
    fetched.path.write_bytes(changed)
    assert "is refused" in str(weights.locate(entry.name, str(folder), accept_new_hash=True))
