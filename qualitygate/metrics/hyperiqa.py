"""HyperIQA: a network that reads a photograph's content and writes the network that judges its quality.

Su et al. 2020, "Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network" (CVPR);
written after the authors' release, github.com/SSL92/hyperIQA (MIT). Higher is better; unbounded, about 0 to 1
with the published weights. A photograph's score is the mean over 25 crops.

Departures from the release, all of them pyiqa's, whose published checkpoint and scores are met: crops of the
photograph at its own size on a uniform grid (crops.py) instead of at random from 512 x 384, the names of the
parameters, and scores of 0 to 1 instead of 0 to 100.

Suffixes: N crops, C channels, H and W pixels or cells of a feature map.
"""

import importlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from qualitygate.metrics import compiling, crops, half
from qualitygate.metrics.metric import Device, Scorer
from qualitygate.metrics.precision import Precision

CROPS = 25
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
CELLS = 7  # on a side of the last feature map; local features are pooled over as many
CONTENT = 112  # channels that the hyper network reads
LOCAL = 16  # local features of each of the first three stages
TARGET = (224, 112, 56, 28, 14, 1)  # widths of the written network, its input first
GPU_BATCH = 200  # crops: eight photographs


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published checkpoint and what its score means.

    name: of the metric.
    weights: name of the parameters in weights.yaml.
    """

    name: str
    weights: str
    trained_on: str
    higher_is_better: bool = True
    range: tuple[float | None, float | None] = (None, None)


PRESETS: dict[str, Preset] = {
    "hyperiqa": Preset(name="hyperiqa", weights="hyperiqa-koniq", trained_on="KonIQ-10k"),
}


class HyperIqa(nn.Module):
    """The network with the state dictionary of the published checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        import timm  # seconds to import

        self.base_model: nn.Module = timm.create_model(
            "resnet50", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)
        )
        # Distortions: what each stage of the backbone has, pooled over a grid (8 x 8, 4 x 4, 2 x 2, 1).
        self.lda_modules = nn.ModuleList(
            [
                _local(256, 16, 8),
                _local(512, 32, 4),
                _local(1024, 64, 2),
                nn.Sequential(nn.AvgPool2d(CELLS), nn.Flatten(), nn.Linear(2048, TARGET[0] - 3 * LOCAL)),
            ]
        )
        # Content, from the last stage.
        self.conv1 = nn.Sequential(
            nn.Conv2d(2048, 1024, 1),
            nn.ReLU(),
            nn.Conv2d(1024, 512, 1),
            nn.ReLU(),
            nn.Conv2d(512, CONTENT, 1),
            nn.ReLU(),
        )
        # What is written: a feature map of 7 x 7 cells holds the weights of a layer, except of the last one.
        layers = list(itertools.pairwise(TARGET))
        self.fc_w_modules = nn.ModuleList(
            [nn.Conv2d(CONTENT, inputs * outputs // CELLS**2, 3, padding=1) for inputs, outputs in layers[:-1]]
            + [_pooled(TARGET[-2])]
        )
        self.fc_b_modules = nn.ModuleList([_pooled(outputs) for _, outputs in layers])

    def halve(self) -> None:
        """Compute the backbone and what reads it in half precision; the written network stays float32."""
        fold_norms(self.base_model)
        half.convert(self, keep=lambda name: name.startswith(("fc_w_modules", "fc_b_modules")))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The score of each crop: (N, 3, 224, 224), ImageNet-normalised -> (N,)."""
        stages = self.base_model(x_NCHW)
        x = torch.cat([local(stage) for local, stage in zip(self.lda_modules, stages, strict=True)], dim=1)[:, :, None]
        x, content = x.to(torch.float32), self.conv1(stages[-1]).to(torch.float32)
        last = len(self.fc_w_modules) - 1
        for index, (write_weight, write_bias) in enumerate(zip(self.fc_w_modules, self.fc_b_modules, strict=True)):
            # Weights are read from the map in the order channel, row, column, whatever its order in memory.
            weight = write_weight(content).reshape(len(x), TARGET[index + 1], TARGET[index])
            x = torch.baddbmm(write_bias(content)[:, :, None], weight, x)
            if index < last:
                x = x.sigmoid()
        return x[:, 0, 0]


def fold_norms(backbone: nn.Module) -> None:
    """Put each batch norm of a ResNet into the convolution before it: its numbers are constants here.

    In float32, before anything is rounded.
    """
    names = dict(backbone.named_modules())
    for name, norm in names.items():
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        # timm's names: conv1 and bn1 and so on, and 0 and 1 of a shortcut.
        stem, _, last = name.rpartition(".")
        before = last.replace("bn", "conv") if last.startswith("bn") else str(int(last) - 1)
        before = f"{stem}.{before}" if stem else before
        conv = names[before]
        assert isinstance(conv, nn.Conv2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        backbone.set_submodule(name, nn.Identity())


def _local(channels: int, reduced: int, cells: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, reduced, 1, bias=False),
        nn.AvgPool2d(CELLS),
        nn.Flatten(),
        nn.Linear(reduced * cells**2, LOCAL),
    )


def _pooled(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CONTENT, outputs))


def seeded_state_dict(seed: int) -> dict[str, torch.Tensor]:
    """A state dictionary of the published layout with random values: for tests, its scores mean nothing.

    Deterministic; activations stay within a few units, and scores differ between photographs.
    """
    layout = _empty().state_dict()
    return {key: _seeded(key, tuple(tensor.shape), seed) for key, tensor in layout.items()}


def _empty() -> HyperIqa:
    """The network without memory for its parameters."""
    importlib.import_module("timm")  # before the context: what it creates when imported is to be real
    with torch.device("meta"):
        return HyperIqa()


def described(_preset: Preset) -> HyperIqa:
    """The network of a preset without memory for its parameters: their names, shapes and types."""
    return _empty()


def _seeded(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if key.endswith("running_var"):
        return crops.seeded_uniform(key, shape, seed, 0.5, 1.5)
    if key.endswith("bn3.weight"):
        return crops.seeded_uniform(key, shape, seed, 0.2, 0.6)  # sixteen residual sums stay small
    if key.startswith("base_model") and key.endswith("weight") and len(shape) == 1:
        return crops.seeded_uniform(key, shape, seed, 0.8, 1.2)
    if len(shape) == 1:
        return crops.seeded_uniform(key, shape, seed, -0.2, 0.2)
    gain = 1.4 if key.startswith("base_model") else 0.7  # written weights are products of two random ones
    return crops.seeded_weight(key, shape, seed, gain)


def load(
    state_dict: Mapping[str, torch.Tensor],
    preset: Preset,
    device: Device,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
) -> Scorer:
    """The scorer of a preset with these parameters; ConfigurationError unless keys and shapes match exactly."""
    crops.check_precision(precision, preset.name)
    network = _empty()
    crops.load_strictly(network, state_dict, preset.name)
    network.requires_grad_(False).eval().to(device=device, dtype=torch.float32)
    if precision == "fast":
        network.halve()
    network.to(memory_format=torch.channels_last)

    def evaluate(x_NCHW: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = network(x_NCHW)
        return values[:, None]

    return crops.CropScorer(
        compiling.Compiled(evaluate, preset.name, dynamic=False) if compiled else evaluate,
        _photograph_score,
        name=preset.name,
        count=CROPS,
        mean=MEAN,
        std=STD,
        device=device,
        batch=GPU_BATCH if device == "cuda" else crops.CPU_BATCH,
        padded=compiled,
    )


def _photograph_score(total: npt.NDArray[np.float64]) -> float:
    return float(total[0]) / CROPS
