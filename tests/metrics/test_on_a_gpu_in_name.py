"""What runs on a GPU, traced with tensors that say they are on one and hold nothing: types and devices fit.

No GPU is needed, and no number is computed: an operation that refuses its arguments' types or devices raises here as it
would there. What travels between the CPU and the GPU is counted, because a GPU stands still while the CPU waits.
"""

import numpy as np
import pytest
import torch
from metric_helpers import crop_scorer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qualitygate.images.decode import Encoded
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import (
    crops,
    focus,
    focus_tensors,
    hyperiqa,
    maniqa,
    memory,
    musiq,
    musiq_tokens,
    nvjpeg,
    scene_tensors,
    tensors,
)


@pytest.fixture
def empties():
    """Made before the mode, in which timm can't compute what it needs."""
    return {"maniqa": maniqa._empty(0.13), "hyperiqa": hyperiqa._empty()}


@pytest.fixture
def mode(monkeypatch):
    def marked(host):
        """Page-locking needs a driver: here it is a word."""
        host.page_locked = True
        return host

    monkeypatch.setattr(memory, "page_locked", marked)
    with FakeTensorMode() as mode, torch.no_grad():
        yield mode


class Journeys(TorchDispatchMode):
    """Tensors that go from device to device: shapes of those that nothing waits for, and the others.

    Nothing waits for those that are sent as such from page-locked memory. What reads a number of a GPU's tensor raises
    in the mode.
    """

    def __init__(self):
        super().__init__()
        self.sent: list[tuple[int, ...]] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        made = [one for one in tree_leaves(result) if isinstance(one, torch.Tensor)]
        # A tensor without dimensions, such as a factor, is taken along as a number.
        kinds = {one.device.type for one in given + made if one.dim()}
        if function is torch.ops.aten._to_copy.default and kinds == {"cpu", "cuda"} and kwargs.get("non_blocking"):
            (host,) = given
            (self.sent if getattr(host, "page_locked", False) else self.waits).append(tuple(host.shape))
        elif len(kinds) > 1:
            self.waits.append(str(function))
        return result


def on_gpu(network: nn.Module) -> nn.Module:
    """A network without memory, in name on a GPU."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cuda")
            setattr(module, name, nn.Parameter(fake, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
    return network.eval()


def stays_there(x: torch.Tensor, *shape: int) -> bool:
    return x.device.type == "cuda" and tuple(x.shape) == shape


@pytest.mark.parametrize("halved", [False, True])
def test_musiq(mode, halved):
    network = on_gpu(musiq._empty(musiq.PRESETS["musiq"]))
    network.freeze(halved=halved)
    embedded = network.embed(torch.empty(40, 3, 32, 32, device="cuda"))
    assert stays_there(embedded, 40, 384)
    assert embedded.dtype == (torch.float16 if halved else torch.float32)
    for mask in (None, torch.empty(4, 39, dtype=torch.bool, device="cuda")):
        x, places = torch.empty(4, 39, 384, device="cuda"), torch.empty(4, 39, dtype=torch.int64, device="cuda")
        scores = network.score(x, places, places, mask)
        assert stays_there(scores, 4)
        assert scores.dtype == torch.float32


def length(batch: list[musiq._Job]) -> int:
    """Tokens of a batch without the class token; where they differ, filled up to whole eights with it."""
    longest = max(job.tokens for job in batch)
    return longest - 1 if len({job.tokens for job in batch}) == 1 else -(-longest // 8) * 8 - 1


def photograph(height: int, width: int) -> Photograph:
    return Photograph(np.zeros((height, width, 3), np.uint8))


@pytest.mark.parametrize("compiled", [False, True])
def test_musiqs_batches_of_mixed_sizes(mode, compiled, monkeypatch):
    monkeypatch.setattr(musiq.compiling, "Compiled", lambda function, *_, **__: function)
    monkeypatch.setattr(musiq_tokens, "places", musiq_tokens.places.__wrapped__)  # nothing of the mode is kept
    network = on_gpu(musiq._empty(musiq.PRESETS["musiq"]))
    network.freeze(halved=True)
    scorer = musiq._Scorer(network, "cuda", "musiq", compiled=compiled)
    for sizes in ([(300, 340), (310, 300), (300, 340)], [(200, 200)] * 2):
        jobs = [musiq._Job(i, photograph(*size), musiq_tokens.scales(*size)) for i, size in enumerate(sizes)]
        (batch,) = scorer._batches(jobs)
        with Journeys() as journeys:
            values = scorer._run(batch)
        assert stays_there(values, len(sizes))
        assert values.dtype == torch.float64
        places = (3, len(sizes), length(batch))
        assert sorted(journeys.sent) == sorted([places, *((*size, 3) for size in sizes)])
        assert journeys.waits == []


def test_crops_and_formulas_are_uploaded_once(mode):
    one = photograph(300, 310)
    scorer = crop_scorer(lambda x: x.mean((2, 3)), device="cuda", padded=True)
    tasks = [crops._Task(0, crop) for crop in crops.grid(300, 310, 20)[:7]]
    with Journeys() as journeys:
        assert stays_there(scorer._attempt(tasks, [one], 8), 7, 3)
    assert journeys.sent == [(300, 310, 3)]
    assert journeys.waits == []
    uploaded = memory.pixels(one, "cuda")
    measured = []
    formula = tensors.BatchScorer(
        lambda rgb: measured.append(rgb) or rgb[:, 0, 0], lambda *_: 0.0, lambda _: None, name="x", device="cuda"
    )
    with Journeys() as journeys:
        assert stays_there(formula._attempt([one, one]), 2, 3)
    assert journeys.sent == journeys.waits == []
    assert stays_there(measured[0], 2, 300, 310, 3)
    assert memory.pixels(one, "cuda") is uploaded


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("name", ["maniqa", "hyperiqa"])
def test_networks_of_crops(empties, mode, name, halved):
    network = on_gpu(empties[name])
    if name == "maniqa":
        network.drop_unused()
    if halved:
        network.halve()
        kinds = {parameter.dtype for parameter in network.parameters()}
        assert kinds == {torch.float16, torch.float32}
    x = torch.empty(2, 3, 224, 224, device="cuda")
    values = network.sums(x) if name == "maniqa" else network(x)
    assert stays_there(values, *((2, 2) if name == "maniqa" else (2,)))
    assert values.dtype == torch.float32


def test_formulas(mode):
    pixels = torch.empty(2, 200, 311, 3, dtype=torch.uint8, device="cuda")
    high, back = (taps.tolist() for taps in focus.wavelet_filters())
    tables = scene_tensors.Tables("cuda")
    with Journeys() as journeys:
        assert stays_there(focus_tensors.laplacian_sums(pixels), 2, 4)
        assert stays_there(focus_tensors.wavelet_sum(pixels, high, back), 2, 1)
        assert stays_there(scene_tensors.brisque(pixels, tables), 2, 2)
        assert stays_there(scene_tensors.niqe(pixels, tables), 2, 2)
    assert journeys.sent == journeys.waits == []


def test_crops_stay_where_they_were_cut(mode):
    cut = [torch.empty(224, 224, 3, dtype=kind, device="cuda") for kind in (torch.uint8, torch.float32)]
    assert stays_there(crops.stack(cut[:1] * 3), 3, 3, 224, 224)
    mixed = crops.stack(cut)
    assert stays_there(mixed, 2, 3, 224, 224)
    assert stays_there(crops.filled_up(mixed, 5), 5, 3, 224, 224)


@pytest.mark.parametrize("orientation", [1, 6])
def test_what_is_decoded_there_stays_there(mode, orientation):
    """Turned, cut, given to networks of crops and to formulas: nothing travels either way."""
    box = (20, 10, 280, 260)
    files = [
        Encoded(
            data=b"JPEG", end=4, orientation=orientation, box=box, width=310, height=290,
            make=None, model=None, captured_at=None,
        )
    ]  # fmt: skip
    stored = (3, 310, 290) if orientation == 6 else (3, 290, 310)
    decoder = nvjpeg.GpuDecoder(lambda given: [torch.empty(stored, dtype=torch.uint8, device="cuda") for _ in given])
    with Journeys() as journeys:
        (found,) = decoder(files)
        assert stays_there(memory.pixels(found, "cuda"), 260, 280, 3)
        assert stays_there(crops.cut(found, crops.Crop(top=30, left=0, times=1), "cuda"), 224, 224, 3)
        assert (found.height, found.width) == (260, 280)
    assert journeys.sent == journeys.waits == []
