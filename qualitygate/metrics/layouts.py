"""Whether tensors are those of the network that an entry of weights.yaml is for: by names, shapes and types."""

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from qualitygate.metrics import crops
from qualitygate.metrics.weights_manifest import Entry

CLASSIFIER = "torchvision"


def check(entry: Entry, state: Mapping[str, torch.Tensor]) -> None:
    """ConfigurationError, in one line, unless strict loading would take these tensors; no numbers are made or read.

    Networks of one layout, such as MUSIQ's for KonIQ and SPAQ, can't be told apart.
    """
    crops.check_state(_described(entry), state, entry.name)


def _described(entry: Entry) -> torch.nn.Module:
    """The network of an entry without memory for its parameters."""
    if entry.network == CLASSIFIER:
        import torchvision

        with torch.device("meta"):
            classifier: torch.nn.Module = torchvision.models.get_model(entry.name, weights=None)
        return classifier
    module: Any = importlib.import_module(f"qualitygate.metrics.{entry.network}")
    (preset,) = (preset for preset in module.PRESETS.values() if preset.weights == entry.name)
    network: torch.nn.Module = module.described(preset)
    return network
