"""MUSIQ (Ke 2021): a transformer over patches of a photograph at three sizes; higher is better.

Written from the paper and google-research/musiq (Apache-2.0). Parameters carry the names of the published
PyTorch checkpoints, so that these load unchanged. A photograph of any size is scored without cropping: its
cost grows with its area and, from some 3 megapixels, mostly with the square of it.

Suffixes of tensors: B photographs, T tokens, N patches of any photographs, C channels, H rows, W columns.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from qualitygate.errors import ErrorCode, Failure, ImageError
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import compiling, half, memory, musiq_tokens
from qualitygate.metrics.crops import check_precision, load_strictly, seeded_uniform
from qualitygate.metrics.memory import is_out_of_memory
from qualitygate.metrics.metric import Device, Score, Scorer
from qualitygate.metrics.precision import Precision
from qualitygate.metrics.reference import full_precision

logger = logging.getLogger(__name__)

STEM = 64  # channels of the patch encoder
SHRINK = 4  # a patch's side in pixels to its side in features
HEAD_WIDTH = 64  # channels of an attention head
QUERIES = 8192  # tokens that look at all others at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published checkpoint: which parameters, what shape, and what its score means.

    name: of the metric.
    weights: name of the parameters in weights.yaml.
    width: channels of a token, in heads of 64.
    hidden: channels between the two layers of each MLP.
    depth: layers of the transformer.
    classes: outputs of the head. 1 is the score itself; 10 are the shares of the ratings 1 to 10, whose
        mean is the score.
    range: of the raw score, where one is defined: exact for shares of ratings; else the scale of the data
        set that it was trained on, which a score may leave slightly.
    """

    name: str
    weights: str
    classes: int = 1
    width: int = 384
    hidden: int = 1152
    depth: int = 14
    higher_is_better: bool = True
    range: tuple[float, float] = (0.0, 100.0)
    trained_on: str


PRESETS: dict[str, Preset] = {
    "musiq": Preset(name="musiq", weights="musiq-koniq", trained_on="KonIQ-10k"),
    "musiq-spaq": Preset(name="musiq-spaq", weights="musiq-spaq", trained_on="SPAQ"),
    "musiq-ava": Preset(name="musiq-ava", weights="musiq-ava", trained_on="AVA", classes=10, range=(1.0, 10.0)),
    "musiq-paq2piq": Preset(name="musiq-paq2piq", weights="musiq-paq2piq", trained_on="PaQ-2-PiQ"),
}


# ---- the network -----------------------------------------------------------------------------------------


class StandardisedConv(nn.Conv2d):
    """Convolution whose kernels are standardised (Qiao 2019), with TensorFlow's "SAME" padding, without bias.

    The deviation is that of a sample (N - 1), as where the PyTorch checkpoints came from; the release in JAX
    divides by N. The normalisation that follows each of these removes the factor but for its epsilon.

    halved: compute in half precision. frozen: `weight` holds the standardised kernels.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.frozen = False
        self.halved = False

    def standardised(self) -> torch.Tensor:
        """The kernels that convolve."""
        if self.frozen:
            return self.weight
        kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return kernel / (kernel.std((1, 2, 3), keepdim=True) + 1e-5)

    def freeze(self, *, halved: bool) -> None:
        """Standardise once instead of at each call."""
        kernel = self.standardised()
        self.weight = nn.Parameter(half.within_reach(kernel) if halved else kernel, requires_grad=False)
        self.frozen, self.halved = True, halved

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.halved:
            return half.rounded(self._convolved(half.rounded(input)))
        return self._convolved(input)

    def _convolved(self, input: torch.Tensor) -> torch.Tensor:
        kernel = self.standardised()
        # What an even side lacks to be covered by strides; the odd pixel goes right and below.
        missing = self.kernel_size[0] - self.stride[0]
        if missing % 2 == 0:
            return functional.conv2d(input, kernel, stride=self.stride, padding=missing // 2)
        sides = (missing // 2, missing - missing // 2)
        return functional.conv2d(functional.pad(input, sides + sides), kernel, stride=self.stride)


def _norm(channels: int, epsilon: float) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=epsilon)


class Bottleneck(nn.Module):
    """The one residual unit of the patch encoder: (N, 64, 8, 8) to (N, 256, 8, 8)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = StandardisedConv(inputs, inputs, 1)
        self.gn1 = _norm(inputs, 1e-4)
        self.conv2 = StandardisedConv(inputs, inputs, 3)
        self.gn2 = _norm(inputs, 1e-4)
        self.conv3 = StandardisedConv(inputs, outputs, 1)
        self.gn3 = _norm(outputs, 1e-4)
        self.conv_proj = StandardisedConv(inputs, outputs, 1)
        self.gn_proj = _norm(outputs, 1e-4)

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.gn1(self.conv1(x_NCHW)))
        x = functional.relu(self.gn2(self.conv2(x)))
        return functional.relu(self.gn3(self.conv3(x)) + self.gn_proj(self.conv_proj(x_NCHW)))


class Attention(nn.Module):
    """Softmax attention in heads of 64 channels.

    PyTorch's fused kernels hold no T x T matrix (measured on a CPU: 22 MB for 12,000 tokens, where the matrix
    has 3.5 GB). Where none of them takes the device, blocks of queries bound what its plain one needs.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, asking: torch.Tensor, asked: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """asking (B, Q, C), asked (B, T, C), mask (B, 1, 1, T) bool, True where a token is one -> (B, Q, C)."""
        query, key, value = (
            linear(x).unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)
            for linear, x in ((self.query, asking), (self.key, asked), (self.value, asked))
        )
        if query.is_cuda:
            # Its kernels are fused whatever the mask.
            mixed = [functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)]
        else:
            mixed = [
                functional.scaled_dot_product_attention(block, key, value, attn_mask=mask)
                for block in query.split(QUERIES, dim=2)
            ]
        return self.out(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two layers with a GELU by the error function: the release's own is the tanh approximation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """One layer of the transformer, normalised before each part."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, wanted: int) -> torch.Tensor:
        """x (B, T, C) -> (B, wanted, C): the first `wanted` tokens after this layer."""
        normed = self.norm1(x)
        x = x[:, :wanted] + self.attention(normed[:, :wanted], normed, mask)
        return x + self.mlp(self.norm2(x))


class PositionEmbedding(nn.Module):
    """A vector for each cell of the hashed grid."""

    def __init__(self, cells: int, width: int) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.zeros(1, cells, width))


class ScaleEmbedding(nn.Module):
    """A vector for each scale."""

    def __init__(self, scales: int, width: int) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.zeros(scales, width))


class Encoder(nn.Module):
    """Class token, embeddings and layers: embedded patches to the class token's features."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.posembed_input = PositionEmbedding(musiq_tokens.GRID**2, preset.width)
        self.scaleembed_input = ScaleEmbedding(len(musiq_tokens.LONGER_SIDES) + 1, preset.width)
        self.cls = nn.Parameter(torch.zeros(1, 1, preset.width))
        self.encoder_norm = nn.LayerNorm(preset.width, eps=1e-6)
        self.transformer = nn.ModuleDict(
            {f"encoderblock_{i}": EncoderBlock(preset.width, preset.hidden) for i in range(preset.depth)}
        )

    def forward(
        self, x_BTC: torch.Tensor, positions: torch.Tensor, scales: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, T, C), (B, T) int64 twice, (B, T) bool or None -> (B, C)."""
        x = x_BTC + self.posembed_input.position_emb[0][positions] + self.scaleembed_input.scale_emb[scales]
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        if mask is not None:
            mask = functional.pad(mask, (1, 0), value=True)[:, None, None]
        layers = list(self.transformer.values())
        for layer in layers[:-1]:
            x = layer(x, mask, x.shape[1])
        # Only the class token is read, so the last layer leaves out the others: the same score, 5 % cheaper.
        return self.encoder_norm(layers[-1](x, mask, 1)[:, 0])


class Musiq(nn.Module):
    """MUSIQ's network: the hyperparameters of a preset, no parameters of its own choosing."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.conv_root = StandardisedConv(3, STEM, 7, stride=2)
        self.gn_root = _norm(STEM, 1e-6)
        self.block1 = Bottleneck(STEM, 4 * STEM)
        self.embedding = nn.Linear(4 * STEM * (musiq_tokens.PATCH // SHRINK) ** 2, preset.width)
        self.transformer_encoder = Encoder(preset)
        self.head: nn.Module = nn.Linear(preset.width, preset.classes)
        if preset.classes > 1:
            self.head = nn.Sequential(self.head, nn.Softmax(dim=-1))

    def freeze(self, *, halved: bool) -> None:
        """Make of the parameters once what scoring needs: standardised kernels, and rounded ones where `halved`.

        In half precision the residual sums, the norms of the transformer and the head stay float32.
        """
        for module in self.modules():
            if isinstance(module, StandardisedConv):
                module.freeze(halved=halved)
        if halved:
            half.convert(self, keep=lambda name: name.startswith("head"))

    def embed(self, patches_NCHW: torch.Tensor) -> torch.Tensor:
        """Patches (N, 3, 32, 32) in [-1, 1], each on its own, to vectors (N, width)."""
        x = functional.relu(self.gn_root(self.conv_root(patches_NCHW)))
        # "SAME" for an even side; after the ReLU a border of zeros never wins.
        x = functional.pad(x, (0, 1, 0, 1))
        if x.is_cuda:
            x = functional.max_pool2d(x, 3, 2)
        else:
            # A CPU pools many times as fast with the channels last; convolutions keep the order that fixes their bits.
            x = functional.max_pool2d(x.contiguous(memory_format=torch.channels_last), 3, 2).contiguous()
        x = self.block1(x)
        # Pixel by pixel, as the parameters were learnt in TensorFlow.
        return self.embedding(x.permute(0, 2, 3, 1).flatten(1))

    def score(
        self, embedded: torch.Tensor, positions: torch.Tensor, scales: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, T, width), (B, T) int64 twice, (B, T) bool or None -> (B,) float32 scores."""
        output = self.head(self.transformer_encoder(embedded, positions, scales, mask))
        # One output is its own mean: 1 times the score.
        ratings = torch.arange(1, output.shape[1] + 1, device=output.device)
        return (output * ratings).sum(dim=1)

    def forward(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        scales: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores of photographs, (B,) float32; the range is the preset's, higher is better.

        tokens: (B, T, 3 * 32 * 32) in [-1, 1], channel by channel.
        positions, scales: (B, T) int64, as in `musiq_tokens.Tokens`.
        mask: (B, T) bool, True where there is a token; None where all are. Places where no photograph of
            the batch has one are left out.
        """
        if mask is not None:
            used = mask.any(dim=0)
            tokens, positions, scales, mask = tokens[:, used], positions[:, used], scales[:, used], mask[:, used]
            mask = None if mask.all() else mask
        patches = tokens.flatten(0, 1).unflatten(1, (3, musiq_tokens.PATCH, musiq_tokens.PATCH))
        return self.score(self.embed(patches).unflatten(0, tokens.shape[:2]), positions, scales, mask)


# ---- parameters ------------------------------------------------------------------------------------------


def _empty(preset: Preset) -> Musiq:
    with torch.device("meta"):
        return Musiq(preset)


def described(preset: Preset) -> Musiq:
    """The network of a preset without memory for its parameters: their names, shapes and types."""
    return _empty(preset)


def seeded_state_dict(seed: int, preset: Preset) -> dict[str, torch.Tensor]:
    """The full published layout with random numbers, equal for equal seeds: for tests and plumbing.

    Activations stay about 1 and scores of different photographs differ by a twentieth of the preset's range
    and more. They say nothing about quality.
    """
    state = {}
    for name, empty in _empty(preset).state_dict().items():
        # Mean 0, variance 1.
        values = seeded_uniform(name, empty.shape, seed, -math.sqrt(3), math.sqrt(3))
        offset, factor = _typical(name, empty, preset)
        state[name] = offset + factor * values
    return state


def _typical(name: str, empty: torch.Tensor, preset: Preset) -> tuple[float, float]:
    """Mean and deviation that a parameter of that name gets."""
    kind = name.rsplit(".", 2)[-2]
    if name.startswith("head"):
        if name.endswith("weight"):
            return 0, 1 if preset.classes == 1 else 0.3
        return (sum(preset.range) / 2, 1) if preset.classes == 1 else (0, 1)
    if name.endswith("bias"):
        return 0, 0.1
    if "norm" in kind or kind.startswith("gn"):
        return 1, 0.1
    if name.endswith("weight"):
        # Queries and keys are larger, so that attention looks at some patches more than at others.
        return 0, (2 if kind in ("query", "key") else 1) / math.sqrt(math.prod(empty.shape[1:]))
    return 0, 0.5


def network(state_dict: Mapping[str, torch.Tensor], preset: Preset) -> Musiq:
    """The network in float32 with these parameters, not copied; ConfigurationError unless all fit exactly."""
    loaded = _empty(preset)
    load_strictly(loaded, state_dict, preset.name)
    return loaded.eval().requires_grad_(False).float()


# ---- scoring ---------------------------------------------------------------------------------------------

# Tokens in work at once. On a CPU a photograph is scored by itself: batches gain nothing there, and the
# shapes of all products, thus their rounding, depend on that photograph alone. On a GPU as many as fit.
BATCH_TOKENS = {"cpu": 0, "cuda": 32768}
# Patches in the encoder at once, 64 KB each after the first convolution: a CPU's cache, a GPU's cores.
ENCODER_PATCHES = {"cpu": 128, "cuda": 4096}
FEWEST_PATCHES = 64  # to which memory that ends halves them: 4 MB each way, below which it isn't the encoder's
PADDED = 0.75  # shortest to longest sequence of a batch: below, padding costs more than a batch gains


@dataclass(frozen=True, slots=True)
class _Job:
    """A photograph to score, its place among the photographs asked for, and how it is cut."""

    place: int
    photograph: Photograph
    layout: tuple[musiq_tokens.Scale, ...]

    @property
    def tokens(self) -> int:
        return musiq_tokens.count(self.layout) + 1


class _Scorer:
    """A loaded network and how many tokens its device takes at once."""

    def __init__(self, network: Musiq, device: Device, name: str, *, compiled: bool = False) -> None:
        self._network = network
        self._device = device
        self._name = name
        self._budget = BATCH_TOKENS[device]
        self._patches = ENCODER_PATCHES[device]
        self._padded = compiled
        self._embed: Callable[..., torch.Tensor] = network.embed
        self._score: Callable[..., torch.Tensor] = network.score
        if compiled:
            self._embed = compiling.Compiled(network.embed, name, dynamic=False)
            self._score = compiling.Compiled(network.score, name, dynamic=True)

    def __call__(self, photographs: Sequence[Photograph]) -> list[Score]:
        scores: dict[int, Score] = {}
        jobs = []
        for place, photograph in enumerate(photographs):
            try:
                layout = musiq_tokens.scales(photograph.height, photograph.width)
            except ImageError as error:
                scores[place] = error.failure
            else:
                jobs.append(_Job(place, photograph, layout))
        with torch.inference_mode(), full_precision():
            done = [found for batch in self._batches(jobs) for found in self._scores(batch)]
            # Scores are read here, at the end: until now a GPU computed while the CPU prepared the next batch.
            for batch, values in done:
                found = [values] * len(batch) if isinstance(values, Failure) else map(self._checked, values.tolist())
                scores |= zip((job.place for job in batch), found, strict=True)
        return [scores[place] for place in range(len(photographs))]

    def warm_up(self) -> None:
        """Score made-up photographs: a full batch of the encoder and an eighth, tokens without and with a mask."""
        side = musiq_tokens.PATCH * math.isqrt(self._patches // 4)
        self(memory.made_up(4, side))
        self(memory.made_up(1, side) + memory.made_up(1, side - musiq_tokens.PATCH))

    def _batches(self, jobs: list[_Job]) -> Iterator[list[_Job]]:
        """Photographs of like length together, the longest first, one size in a row, within the budget as it is."""
        waiting = sorted(jobs, key=lambda job: (-job.tokens, job.photograph.height, job.photograph.width))
        while waiting:
            longest = waiting[0].tokens
            most = max(self._budget // longest, 1)
            fitting = [job.tokens >= PADDED * longest for job in waiting[:most]]
            taken = fitting.index(False) if False in fitting else len(fitting)
            yield waiting[:taken]
            waiting = waiting[taken:]

    def _scores(self, batch: list[_Job]) -> list[tuple[list[_Job], torch.Tensor | Failure]]:
        """Scores of a batch; out of memory, of its halves, down to one photograph, which then fails."""
        values = self._values(batch)
        if values is not None:
            return [(batch, values)]
        if self._device == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            photograph = batch[0].photograph
            size = f"{photograph.width} x {photograph.height} pixels, {batch[0].tokens} tokens"
            return [(batch, Failure(ErrorCode.OUT_OF_MEMORY, f"{self._name}: no memory for {size}"))]
        half = (len(batch) + 1) // 2
        self._budget = min(self._budget, half * batch[0].tokens)
        logger.warning("%s: no memory for %d photographs; going on with %d", self._name, len(batch), half)
        return self._scores(batch[:half]) + self._scores(batch[half:])

    def _values(self, batch: list[_Job]) -> torch.Tensor | None:
        """The network's outputs, or None where memory was short; by then its tensors are gone."""
        try:
            return self._run(batch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _checked(self, value: float) -> Score:
        if math.isfinite(value):
            return value
        return Failure(ErrorCode.NON_FINITE, f"{self._name} gave {value}")

    def _run(self, batch: list[_Job]) -> torch.Tensor:
        """The network's outputs, (B,) float64 on the device."""
        longest = batch[0].tokens - 1
        mixed = batch[-1].tokens != batch[0].tokens
        if mixed:
            # Masks need a length, that of the class token included, of whole eights for the fused kernels.
            longest = -(-(longest + 1) // 8) * 8 - 1
        # Positions, scales and which of them there are go to the device in one piece.
        table = torch.zeros(3, len(batch), longest, dtype=torch.int64)
        for row, job in enumerate(batch):
            length = job.tokens - 1
            table[0, row, :length], table[1, row, :length] = musiq_tokens.places(job.layout)
            table[2, row, :length] = 1
        # Each in memory of its own: compiled networks want their inputs aligned.
        positions, scales, present = (part.clone() for part in memory.upload(table, self._device))
        x = torch.zeros(*table.shape[1:], self._network.embedding.out_features, device=self._device)
        first = 0
        for layout, same in itertools.groupby(batch, lambda job: job.layout):
            pixels = torch.stack([memory.pixels(job.photograph, self._device) for job in same])
            last, start = first + len(pixels), 0
            for embedded in self._embedded(pixels, layout):
                # A slice of rows: a list of them would be sent to the device, which this would wait for.
                x[first:last, start : start + embedded.shape[1]] = embedded.to(x.dtype)
                start += embedded.shape[1]
            first = last
        values = self._score(x, positions, scales, present.bool() if mixed else None)
        return values.double()

    def _embedded(self, pixels_BHWC: torch.Tensor, layout: tuple[musiq_tokens.Scale, ...]) -> Iterator[torch.Tensor]:
        """Embedded patches of photographs of one size, in order: (B, n, width) at a time."""
        for patches in musiq_tokens.patches(pixels_BHWC, layout, self._patches):
            yield self._encoded(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])

    def _encoded(self, patches_NCHW: torch.Tensor) -> torch.Tensor:
        """The patch encoder's vectors, (N, width); fewer patches at once, for good, where its memory ends."""
        parts, start = [], 0
        while start < len(patches_NCHW):
            part = patches_NCHW[start : start + self._size(len(patches_NCHW) - start)]
            vectors = self._encoded_part(part)
            if vectors is None:
                if self._device == "cuda":
                    torch.cuda.empty_cache()
                self._patches //= 2
                logger.warning("%s: no memory for its encoder; going on with %d patches", self._name, self._patches)
                continue
            parts.append(vectors)
            start += len(part)
        return torch.cat(parts)

    def _size(self, left: int) -> int:
        """Patches of the next call; a compiled encoder sees so many as fit or an eighth, and nothing else."""
        eighth = self._patches // 8
        return eighth if self._padded and left <= self._patches - eighth else self._patches

    def _encoded_part(self, part_NCHW: torch.Tensor) -> torch.Tensor | None:
        """(N, width), or None where memory was short and fewer patches are worth a try."""
        count = len(part_NCHW)
        try:
            if self._padded:
                part_NCHW = functional.pad(part_NCHW, (0, 0, 0, 0, 0, 0, 0, self._size(count) - count))
            return self._embed(part_NCHW)[:count]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or self._patches < 2 * FEWEST_PATCHES:
                raise
            return None


def load(
    state_dict: Mapping[str, torch.Tensor],
    preset: Preset,
    device: Device,
    precision: Precision = "float32",
    *,
    compiled: bool = False,
) -> Scorer:
    """A scorer of photographs of any sizes with these parameters.

    On a CPU a score is bit-equal for any batch, order and neighbours; on a GPU it moves in the last digits of its
    precision with the shapes of the batch.
    """
    check_precision(precision, preset.name)
    loaded = network(state_dict, preset).to(device)
    loaded.freeze(halved=precision == "fast")
    return _Scorer(loaded, device, preset.name, compiled=compiled)
