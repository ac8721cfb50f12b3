"""MANIQA: quality by a vision transformer's features, attention across channels and Swin blocks.

Yang et al. 2022, "MANIQA: Multi-dimension Attention Network for No-Reference Image Quality Assessment"
(CVPR Workshops); written after the authors' release, github.com/IIGROUP/MANIQA (Apache-2.0). Higher is
better; [0, inf), about 0 to 1 with the published weights. A photograph's score comes from 20 crops.

Departures from the release, all of them pyiqa's, whose published checkpoints and scores are met:
- crops lie on a uniform grid instead of at random (crops.py);
- the patches of all 20 crops share one weighted mean, sum(w s) / (sum(w) + 1e-8), instead of one mean a crop.

Suffixes: N crops, T = 28 x 28 patches of 8 x 8 px, C channels, M heads, W patches of a window.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import compiling, crops, half
from qualitygate.metrics.metric import Device, Scorer
from qualitygate.metrics.precision import Precision

CROPS = 20
PATCHES = 28  # on a side of a crop
WINDOW = 4
SHIFT = WINDOW // 2
WIDTH = 768
HIDDEN = 768  # of the Swin blocks' perceptrons
HEADS = 4
TAPPED = (6, 7, 8, 9)  # blocks of the vision transformer whose outputs are used
MEAN = STD = (0.5, 0.5, 0.5)
# Crops at once on a GPU: two photographs in float32, four in half precision; what they take is counted, not
# measured: some 150 MB a crop in float32, most of it attention across 3072 channels.
GPU_BATCH: dict[Precision, int] = {"float32": 40, "fast": 80}


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published checkpoint and what its score means.

    name: of the metric.
    weights: name of the parameters in weights.yaml.
    scale: of a Swin layer's output before it is added to its input. The same weights give other scores under
        another scale.
    """

    name: str
    weights: str
    trained_on: str
    scale: float
    higher_is_better: bool = True
    range: tuple[float | None, float | None] = (0.0, None)


PRESETS: dict[str, Preset] = {
    "maniqa": Preset(name="maniqa", weights="maniqa-pipal", trained_on="PIPAL", scale=0.13),
    "maniqa-koniq": Preset(name="maniqa-koniq", weights="maniqa-koniq", trained_on="KonIQ-10k", scale=0.8),
    "maniqa-kadid": Preset(name="maniqa-kadid", weights="maniqa-kadid", trained_on="KADID-10k", scale=0.8),
}


class TransposedAttention(nn.Module):
    """Attention whose tokens are channels, each described by its 784 patches (the paper's TAB)."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.c_q = nn.Linear(patches, patches)
        self.c_k = nn.Linear(patches, patches)
        self.c_v = nn.Linear(patches, patches)

    def forward(self, x_NCT: torch.Tensor) -> torch.Tensor:
        """(N, C, T) -> (N, C, T)."""
        # One head as a fourth dimension; the scale, T ** -.5, goes into the product's factors.
        q, k, v = (project(x_NCT)[:, None] for project in (self.c_q, self.c_k, self.c_v))
        attended_NCT = F.scaled_dot_product_attention(q, k, v)[:, 0]
        # The release transposes and then reads the values as if it had not; the weights were trained so.
        return attended_NCT.transpose(1, 2).reshape(x_NCT.shape) + x_NCT


class HalfTransposedAttention(nn.Module):
    """The same in half precision, from a module with its parameters.

    Fused kernels end at heads of 256 numbers and a head has 784 here, so these are two products around a softmax
    with float32 statistics. Queries are scaled before the product, which would leave float16's reach without.
    """

    def __init__(self, exact: TransposedAttention) -> None:
        super().__init__()
        scale = exact.c_q.in_features**-0.5
        with torch.device("meta"):
            self.qkv = half.HalfLinear(exact.c_q.in_features, 3 * exact.c_q.out_features)
        weights = [exact.c_q.weight * scale, exact.c_k.weight, exact.c_v.weight]
        biases = [exact.c_q.bias * scale, exact.c_k.bias, exact.c_v.bias]
        self.qkv.weight = nn.Parameter(half.within_reach(torch.cat(weights)), requires_grad=False)
        self.qkv.bias = nn.Parameter(half.within_reach(torch.cat(biases)), requires_grad=False)

    def forward(self, x_NCT: torch.Tensor) -> torch.Tensor:
        """(N, C, T) -> (N, C, T)."""
        q, k, v = self.qkv(x_NCT).chunk(3, dim=-1)
        shares_NCC = half.rounded(half.rounded(torch.bmm(q, k.transpose(1, 2))).softmax(dim=-1))
        attended_NCT = half.rounded(torch.bmm(shares_NCC, v))
        return attended_NCT.transpose(1, 2).reshape(x_NCT.shape) + x_NCT


def relative_positions() -> torch.Tensor:
    """Row of the bias table for each pair of patches in a window: (W, W) int64."""
    row, column = torch.arange(WINDOW * WINDOW) // WINDOW, torch.arange(WINDOW * WINDOW) % WINDOW
    down, across = row[:, None] - row, column[:, None] - column
    return (down + WINDOW - 1) * (2 * WINDOW - 1) + across + WINDOW - 1


def shifted_mask() -> torch.Tensor:
    """-100 for the pairs of a window that are neighbours only because the shift wraps around, else 0.

    (49, W, W) float32, by window.
    """
    # Along one axis after the shift: what never moved, what shares the last window, what came around.
    place = torch.arange(PATCHES)
    part = (place >= PATCHES - WINDOW).long() + (place >= PATCHES - SHIFT).long()
    region = windows((3 * part[:, None] + part)[None, :, :, None])[..., 0]
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)


def windows(x_NHWC: torch.Tensor) -> torch.Tensor:
    """(N, 28, 28, C) -> (N * 49, W, C)."""
    n, height, width, channels = x_NHWC.shape
    split = x_NHWC.view(n, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    return split.transpose(2, 3).reshape(-1, WINDOW * WINDOW, channels)


def unwindowed(x: torch.Tensor) -> torch.Tensor:
    """(N * 49, W, C) -> (N, 28, 28, C)."""
    across = PATCHES // WINDOW
    split = x.view(-1, across, across, WINDOW, WINDOW, x.shape[-1])
    return split.transpose(2, 3).reshape(-1, PATCHES, PATCHES, x.shape[-1])


class WindowAttention(nn.Module):
    """Self-attention within windows of 4 x 4 patches, with a learnt bias by relative position (Liu 2021)."""

    relative_position_index: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, HEADS))
        self.register_buffer("relative_position_index", relative_positions())
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (N * 49, W, C), mask (49, W, W) or None -> (N * 49, W, C)."""
        count, length, width = x.shape
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)  # (M, W, W)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        q, k, v = self.qkv(x).view(count, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(count, -1, -1, -1))
        projected: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(count, length, width))
        return projected


class Perceptron(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class SwinBlock(nn.Module):
    """A Swin block on 28 x 28 patches; every second one shifts its windows by half of their side."""

    attn_mask: torch.Tensor | None

    def __init__(self, width: int, *, shifted: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width)
        self.register_buffer("attn_mask", shifted_mask() if shifted else None)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        x_NHWC = self.norm1(x_NTC).view(-1, PATCHES, PATCHES, x_NTC.shape[-1])
        if self.attn_mask is not None:
            x_NHWC = x_NHWC.roll((-SHIFT, -SHIFT), (1, 2))
        x_NHWC = unwindowed(self.attn(windows(x_NHWC), self.attn_mask))
        if self.attn_mask is not None:
            x_NHWC = x_NHWC.roll((SHIFT, SHIFT), (1, 2))
        x_NTC = x_NTC + x_NHWC.reshape(x_NTC.shape)
        return x_NTC + self.mlp(self.norm2(x_NTC))


class SwinLayer(nn.Module):
    """Two Swin blocks and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(SwinBlock(width, shifted=False), SwinBlock(width, shifted=True))
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        x_NTC = self.blocks(x_NTC)
        # The tokens are an image whose channels are last in memory: no copy.
        x_NCHW = x_NTC.transpose(1, 2).unflatten(2, (PATCHES, PATCHES))
        return F.relu(self.conv(x_NCHW)).flatten(2).transpose(1, 2)


class ScaledSwin(nn.Module):
    """Two Swin layers, each added to its input after scaling (the paper's SSTB)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        # In the published state dictionaries, though the release never calls it.
        self.downsample: nn.Module = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList([SwinLayer(width), SwinLayer(width)])

    def forward(self, x_NTC: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x_NTC = self.scale * layer(x_NTC) + x_NTC
        return x_NTC


class Maniqa(nn.Module):
    """The network with the state dictionary of the published checkpoints.

    scale: of the Swin layers; .13 for the PIPAL weights, .8 for KonIQ's and KADID's.
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        import timm  # seconds to import

        self.vit: Any = timm.create_model("vit_base_patch8_224", pretrained=False)
        self.tablock1 = nn.Sequential(*(TransposedAttention(PATCHES**2) for _ in range(2)))
        self.conv1 = nn.Conv2d(len(TAPPED) * WIDTH, WIDTH, 1)
        self.swintransformer1 = ScaledSwin(WIDTH, scale)
        self.tablock2 = nn.Sequential(*(TransposedAttention(PATCHES**2) for _ in range(2)))
        self.conv2 = nn.Conv2d(WIDTH, WIDTH // 2, 1)
        self.swintransformer2 = ScaledSwin(WIDTH // 2, scale)
        self.fc_score = _head(nn.ReLU())
        self.fc_weight = _head(nn.Sigmoid())

    def drop_unused(self) -> None:
        """Give up what never contributes to a score: 16 % of the parameters.

        These are blocks 10 and 11 of the vision transformer, its last norm and its classifier, and one
        convolution in each Swin transformer. A state dictionary must hold them, so load it before.
        """
        self.vit.prune_intermediate_layers(list(TAPPED), prune_norm=True, prune_head=True)
        self.swintransformer1.downsample = nn.Identity()
        self.swintransformer2.downsample = nn.Identity()

    def halve(self) -> None:
        """Compute in half precision from now on, but for residual sums, norms and the last layer of both heads."""
        half.convert(self, keep=lambda name: name.startswith("tablock") or name.endswith(("fc_score.3", "fc_weight.3")))
        for blocks in (self.tablock1, self.tablock2):
            for index, block in enumerate(blocks):
                assert isinstance(block, TransposedAttention)
                blocks[index] = HalfTransposedAttention(block)

    def patches(self, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Score in [0, inf) and weight in (0, 1) of each patch, both (N, T); x as for `forward`."""
        tapped = self.vit.forward_intermediates(
            x_NCHW, indices=list(TAPPED), norm=False, stop_early=True, output_fmt="NLC", intermediates_only=True
        )
        x_NCT = self.tablock1(torch.cat([x_NTC.transpose(1, 2) for x_NTC in tapped], dim=1))
        x_NTC = self.swintransformer1(_across_channels(self.conv1, x_NCT))
        x_NCT = self.tablock2(x_NTC.transpose(1, 2))
        x_NTC = self.swintransformer2(_across_channels(self.conv2, x_NCT))
        return _headed(self.fc_score, x_NTC), _headed(self.fc_weight, x_NTC)

    def sums(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Weighted sum of a crop's patch scores, and sum of their weights: (N, 2)."""
        score_NT, weight_NT = self.patches(x_NCHW)
        return torch.stack([(weight_NT * score_NT).sum(1), weight_NT.sum(1)], dim=1)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """The paper's score of each crop, in [0, inf): (N, 3, 224, 224) in [-1, 1] -> (N,)."""
        weighted, weight = self.sums(x_NCHW).unbind(1)
        return weighted / (weight + 1e-8)


def _head(last: nn.Module) -> nn.Sequential:
    # The third place was a dropout's: it keeps the last linear layer's name, "3".
    return nn.Sequential(nn.Linear(WIDTH // 2, WIDTH // 2), nn.ReLU(), nn.Identity(), nn.Linear(WIDTH // 2, 1), last)


def _headed(head: nn.Sequential, x_NTC: torch.Tensor) -> torch.Tensor:
    """One number a patch, (N, T) float32, by a head whose last layer is float32 in any precision."""
    first, rectifier, _, second, last = head
    x_NT1: torch.Tensor = last(second(rectifier(first(x_NTC)).to(torch.float32)))
    return x_NT1[..., 0]


def _across_channels(conv: nn.Conv2d, x_NCT: torch.Tensor) -> torch.Tensor:
    """A 1 x 1 convolution as a product: (N, C, T) -> (N, T, C') float32, where another residual stream begins."""
    x_NTC, weight = x_NCT.transpose(1, 2), conv.weight.flatten(1)
    if isinstance(conv, half.HalfConv2d):
        return half.rounded(F.linear(half.rounded(x_NTC), weight, conv.bias)).to(torch.float32)
    return F.linear(x_NTC, weight, conv.bias)


def seeded_state_dict(seed: int) -> dict[str, torch.Tensor]:
    """A state dictionary of the published layout with random values: for tests, its scores mean nothing.

    Deterministic; activations stay within a few units, and scores differ between photographs.
    """
    layout = _empty(scale=0.8).state_dict()
    return {key: _seeded(key, tuple(tensor.shape), seed) for key, tensor in layout.items()}


def _empty(scale: float) -> Maniqa:
    """The network without memory for its parameters."""
    importlib.import_module("timm")  # before the context: what it creates when imported is to be real
    with torch.device("meta"):
        return Maniqa(scale)


def described(preset: Preset) -> Maniqa:
    """The network of a preset without memory for its parameters: their names, shapes and types."""
    return _empty(preset.scale)


def _seeded(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if key.endswith("relative_position_index"):
        return relative_positions()
    if key.endswith("attn_mask"):
        return shifted_mask()
    if key == "fc_score.3.bias":
        return torch.ones(shape)  # so that the rectifier behind it passes most scores
    if ".norm" in key and key.endswith("weight"):
        return crops.seeded_uniform(key, shape, seed, 0.8, 1.2)
    if key.endswith("bias_table"):
        return crops.seeded_uniform(key, shape, seed, -1.0, 1.0)
    if len(shape) == 1 or key.endswith(("cls_token", "pos_embed")):
        return crops.seeded_uniform(key, shape, seed, -0.2, 0.2)
    # Small where values would grow: rounding errors grow with them, and tests compare implementations.
    gain = 0.3 if ".c_q." in key or ".c_k." in key else 0.5 if key.startswith(("conv", "fc_")) else 1.0
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
    network = _empty(preset.scale)
    crops.load_strictly(network, state_dict, preset.name)
    _check_positions(network, preset.name)
    network.drop_unused()
    network.requires_grad_(False).eval().to(device=device, dtype=torch.float32)
    if precision == "fast":
        network.halve()
    if device == "cuda":
        network.to(memory_format=torch.channels_last)
    return crops.CropScorer(
        compiling.Compiled(network.sums, preset.name, dynamic=False) if compiled else network.sums,
        _photograph_score,
        name=preset.name,
        count=CROPS,
        mean=MEAN,
        std=STD,
        device=device,
        batch=GPU_BATCH[precision] if device == "cuda" else crops.CPU_BATCH,
        padded=compiled,
    )


def _check_positions(network: Maniqa, name: str) -> None:
    """These are no parameters, though files have them: others would point outside of the table of biases."""
    wrong = [
        key
        for key, buffer in network.named_buffers()
        if key.endswith("relative_position_index") and not torch.equal(buffer, relative_positions())
    ]
    if wrong:
        raise ConfigurationError(
            f"these weights are not those of {name}: {wrong[0]} isn't the index of windows of {WINDOW} x {WINDOW}; "
            "check which file belongs to it with 'qualitygate weights list'"
        )


def _photograph_score(sums: npt.NDArray[np.float64]) -> float:
    weighted, weight = sums.tolist()
    return float(weighted / (weight + 1e-8))
