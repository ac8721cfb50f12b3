"""Half precision, with a GPU's roundings on a CPU: near float32, within float16's reach, converted once."""

import numpy as np
import pytest
import torch
from metric_helpers import CLEAN
from torch import nn

from qualitygate.images.photograph import Photograph
from qualitygate.metrics import crops, half, hyperiqa, maniqa, musiq

PRESETS = {
    name: module.PRESETS[name] for name, module in (("musiq", musiq), ("hyperiqa", hyperiqa), ("maniqa", maniqa))
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photographs(clean) -> list[Photograph]:
    return [Photograph(np.ascontiguousarray(clean[name][20:250, 30:260])) for name in CLEAN]


def hyperiqa_crops(precision) -> crops.CropScorer:
    scorer = hyperiqa.load(hyperiqa.seeded_state_dict(0), PRESETS["hyperiqa"], "cpu", precision)
    scorer._count = 1
    return scorer


def test_converted_layers_give_float16s_numbers_and_hold_them():
    network = nn.Sequential(nn.Linear(40, 30), nn.Sequential(nn.Linear(30, 20)), nn.LayerNorm(20))
    exact = [parameter.clone() for parameter in network.parameters()]
    half.convert(network, keep=lambda name: name == "1.0")
    assert isinstance(network[0], half.HalfLinear)
    assert type(network[1][0]) is nn.Linear
    assert torch.equal(network[0].weight, exact[0].half().float())
    assert not torch.equal(network[0].weight, exact[0])
    assert torch.equal(network[1][0].weight, exact[2])
    y = network[0](torch.randn(7, 40))
    assert torch.equal(y, y.half().float())


def test_a_parameter_beyond_reach_is_the_largest_number():
    assert half.within_reach(torch.tensor([1e6, -1e6, 1.0])).tolist() == [65504.0, -65504.0, 1.0]


def test_a_residual_stream_stays_float32():
    block = nn.Sequential(nn.Linear(8, 8))
    half.convert(block)
    x = torch.randn(3, 8)
    y = x + block(x)
    assert y.dtype == torch.float32
    assert not torch.equal(y, y.half().float())


def spread(scores: list[float]) -> float:
    return float(np.ptp(scores))


@pytest.mark.parametrize("name", ["musiq", "hyperiqa"])
def test_scores_are_near_those_of_float32(photographs, name):
    if name == "musiq":
        state = musiq.seeded_state_dict(0, PRESETS[name])
        exact, fast = (musiq.load(state, PRESETS[name], "cpu", p)(photographs) for p in ("float32", "fast"))
    else:
        exact, fast = (hyperiqa_crops(p)(photographs) for p in ("float32", "fast"))
    error = np.abs(np.array(exact) - np.array(fast)).max()
    assert 0 < error < 0.01 * spread(exact)
    order = np.argsort(exact)
    gaps = np.diff(np.array(exact)[order])
    clear = gaps > 0.02 * spread(exact)
    assert (np.diff(np.array(fast)[order])[clear] > 0).all(), "photographs that differ clearly have changed places"


@pytest.fixture(scope="module")
def maniqas() -> tuple[maniqa.Maniqa, maniqa.Maniqa]:
    networks = []
    for halved in (False, True):
        network = maniqa._empty(PRESETS["maniqa"].scale)
        network.load_state_dict(maniqa.seeded_state_dict(0), assign=True)
        network.drop_unused()
        network.requires_grad_(False).eval()
        if halved:
            network.halve()
        networks.append(network)
    return networks[0], networks[1]


def test_a_crop_of_maniqa_is_near_float32(maniqas, photographs):
    exact, fast = maniqas
    cut = [crops.cut(photograph, crops.Crop(top=0, left=0, times=1)) for photograph in photographs[:2]]
    x = (crops.stack(cut) - 0.5) / 0.5
    with torch.inference_mode():
        expected, found = exact.sums(x), fast.sums(x)
    assert found.dtype == torch.float32
    assert not torch.equal(expected, found)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)


def test_what_stays_float32_and_what_does_not(maniqas):
    _, network = maniqas
    kinds = {name: type(module) for name, module in network.named_modules()}
    assert kinds["vit.blocks.3.attn.qkv"] is kinds["swintransformer1.layers.0.blocks.0.mlp.fc1"] is half.HalfLinear
    assert kinds["swintransformer2.layers.1.conv"] is half.HalfConv2d
    assert kinds["fc_score.0"] is half.HalfLinear
    assert kinds["fc_score.3"] is kinds["fc_weight.3"] is nn.Linear
    assert kinds["tablock1.1"] is maniqa.HalfTransposedAttention
    assert not any(name.endswith("c_q") for name in kinds)


def test_channel_attention_scales_before_the_product():
    """Products of 784 x 12 x 12 = 112,896 leave float16; scaled by 1/28 they are 4,032."""
    exact = maniqa.TransposedAttention(784)
    with torch.no_grad():
        for linear in (exact.c_q, exact.c_k, exact.c_v):
            linear.weight.copy_(torch.eye(784))
            linear.bias.zero_()
    fast = maniqa.HalfTransposedAttention(exact)
    signs = torch.where(torch.arange(784) % torch.arange(2, 34)[:, None] == 0, -1.0, 1.0)
    x = 12 * signs[None]
    q, k = (linear(x) for linear in (exact.c_q, exact.c_k))
    assert float((q @ k.transpose(1, 2)).detach().max()) > half.LARGEST
    with torch.inference_mode():
        found = fast(x)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found, exact(x), rtol=1e-2, atol=1e-2)


def test_white_and_black_have_scores():
    plain = [Photograph(np.full((225, 225, 3), level, np.uint8)) for level in (0, 255)]
    assert all(isinstance(score, float) for score in hyperiqa_crops("fast")(plain))
    preset = PRESETS["musiq"]
    scorer = musiq.load(musiq.seeded_state_dict(0, preset), preset, "cpu", "fast")
    assert all(isinstance(score, float) for score in scorer(plain))


def test_batch_norms_fold_into_their_convolutions():
    network = hyperiqa.HyperIqa().eval()
    network.load_state_dict(hyperiqa.seeded_state_dict(1), strict=True)
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = network(x)
        hyperiqa.fold_norms(network.base_model)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)
