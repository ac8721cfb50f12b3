"""MANIQA: the stock implementation's numbers on the same seeded parameters, and the scorer's promises.

A crop costs seconds on a CPU, so few are computed. Compared with pyiqa are: the attention and Swin parts
alone on random features; whole photographs of six sizes with a grid of one crop (decoded pixels, enlarging,
normalisation, network); one photograph with all 20 crops (the weighted mean over crops). That the other grids
are pyiqa's is for test_crops.py, as are batches and memory.
"""

import dataclasses

import numpy as np
import pytest
import torch
from metric_helpers import load as pixels_of

from qualitygate.errors import ConfigurationError
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import crops, maniqa

SEED = 11
PRESET = maniqa.PRESETS["maniqa"]


def diverse() -> dict[str, Photograph]:
    """Six photographs of six sizes: two under 224 px, three not square, one over 512."""
    pixels = {
        "astronaut": pixels_of("astronaut"),  # 512 x 512
        "coffee": pixels_of("coffee")[:, :, ::-1],  # 400 x 600, red and blue exchanged
        "chelsea": pixels_of("chelsea")[60:220, 100:327],  # 160 x 227, enlarged to 225 x 319
        "rocket": pixels_of("rocket")[200:],  # 227 x 640
        "brick": pixels_of("brick")[:180, :180],  # enlarged
        "clock": np.tile(pixels_of("clock"), (2, 2, 1)),  # 600 x 800
    }
    return {name: Photograph(np.ascontiguousarray(value)) for name, value in pixels.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return maniqa.seeded_state_dict(SEED)


@pytest.fixture(scope="module")
def scorer(state):
    return maniqa.load(state, PRESET, "cpu")


@pytest.fixture(scope="module")
def stock(state):
    """pyiqa's network with our seeded parameters, strictly loaded; its backbone isn't downloaded."""
    architecture = pytest.importorskip("pyiqa.archs.maniqa_arch")
    create = architecture.timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture.timm, "create_model", lambda name, pretrained, **more: create(name, **more))
        network = architecture.MANIQA(pretrained=False, scale=PRESET.scale)
    network.load_state_dict(state, strict=True)
    return network.eval()


def by_stock(network, photograph: Photograph, count: int) -> float:
    network.test_sample = count
    network.save_output.clear()  # what an exception left behind would be taken for this photograph's features
    with torch.inference_mode():
        return float(network(torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255).reshape(()))


def with_grid(scorer: crops.CropScorer, count: int) -> crops.CropScorer:
    """The same network and formula on another grid."""
    return crops.CropScorer(
        scorer._evaluate,
        maniqa._photograph_score,
        name="maniqa",
        count=count,
        mean=maniqa.MEAN,
        std=maniqa.STD,
        device="cpu",
        batch=1,
    )


@pytest.fixture(scope="module")
def first_crops(scorer) -> list[float]:
    found = with_grid(scorer, 1)(list(diverse().values()))
    assert all(isinstance(score, float) for score in found)
    return found


def test_photographs_score_as_in_pyiqa(stock, first_crops):
    """Six photographs from uint8 pixels to the score, with a grid of one crop on both sides."""
    theirs = np.array([by_stock(stock, photograph, 1) for photograph in diverse().values()])
    assert theirs.std() > 0.02
    np.testing.assert_allclose(first_crops, theirs, rtol=1e-5)
    assert abs(np.array(first_crops) - theirs).max() < 1e-3 * theirs.std()


def test_a_whole_photograph_scores_as_in_pyiqa(stock, scorer):
    """All 20 crops, of which 5 are distinct: pyiqa computes each one four times, we do once."""
    photograph = diverse()["chelsea"]
    (ours,) = scorer([photograph])
    assert ours == pytest.approx(by_stock(stock, photograph, 20), rel=1e-5)


def random_features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def test_transposed_attention_is_pyiqas(stock, scorer):
    network = scorer._evaluate.__self__
    x_NCT = random_features(2, 96, 784)
    with torch.inference_mode():
        for ours, theirs in zip(network.tablock1, stock.tablock1, strict=True):
            torch.testing.assert_close(ours(x_NCT), theirs(x_NCT), rtol=0, atol=1e-5)


def test_swin_parts_are_pyiqas(stock, scorer):
    """Windows, shifts, masks, position biases and scales, on features strong enough to tell."""
    network = scorer._evaluate.__self__
    x_NTC = 3 * random_features(2, 784, 384)
    with torch.inference_mode():
        ours = network.swintransformer2(x_NTC)
        theirs = stock.swintransformer2(x_NTC.transpose(1, 2).unflatten(2, (28, 28))).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_constants_are_those_of_the_checkpoints(stock):
    block = stock.swintransformer1.layers[0].blocks[1]
    assert torch.equal(maniqa.shifted_mask(), block.attn_mask)
    assert torch.equal(maniqa.relative_positions(), block.attn.relative_position_index)


def test_the_layout_is_that_of_the_checkpoints(stock, state):
    theirs = stock.state_dict()
    assert state.keys() == theirs.keys()
    assert all(state[key].shape == theirs[key].shape for key in state)
    assert all(state[key].dtype == theirs[key].dtype for key in state)


def test_what_is_dropped_changes_nothing(state, scorer, first_crops):
    """Blocks 10 and 11, the last norm, the classifier and the unused convolutions may hold anything."""
    unused = ("vit.blocks.10.", "vit.blocks.11.", "vit.norm.", "vit.head.")
    spoilt = {
        key: torch.full_like(value, torch.nan) if key.startswith(unused) or ".downsample." in key else value
        for key, value in state.items()
    }
    assert sum(bool(value.isnan().any()) for value in spoilt.values()) == 2 * 12 + 2 + 2 + 4
    other = maniqa.load(spoilt, PRESET, "cpu")
    assert with_grid(other, 1)([diverse()["brick"]]) == [first_crops[4]]
    kept = dict(scorer._evaluate.__self__.state_dict())
    assert not any(key.startswith(unused) or ".downsample." in key for key in kept)
    assert sum(value.numel() for value in kept.values()) < 0.87 * sum(value.numel() for value in state.values())


def test_a_score_depends_on_its_photograph_alone(scorer, first_crops):
    """Alone and after another: equal to the bit."""
    photographs = list(diverse().values())
    assert with_grid(scorer, 1)([photographs[4], photographs[0]]) == [first_crops[4], first_crops[0]]


def test_a_batch_hardly_matters(state, first_crops):
    """What a GPU does: crops of two photographs in one batch."""
    batched = with_grid(maniqa.load(state, PRESET, "cpu"), 1)
    batched.batch = 2
    photographs = list(diverse().values())
    assert batched([photographs[0], photographs[4]]) == pytest.approx([first_crops[0], first_crops[4]], rel=1e-6)


def test_one_pixel_and_another_scale(state, scorer, edges):
    """One pixel has a score; the same parameters give another one under KonIQ's scale."""
    (score,) = scorer([edges["1x1"]])
    (other,) = maniqa.load(state, maniqa.PRESETS["maniqa-koniq"], "cpu")([edges["1x1"]])
    assert isinstance(score, float)
    assert isinstance(other, float)
    assert abs(score - other) > 1e-3


def test_the_network_itself_gives_one_value_a_crop(state, first_crops):
    """Without anything dropped, and the paper's mean over the patches of each crop."""
    network = maniqa.Maniqa(PRESET.scale).eval()
    network.load_state_dict(state, strict=True)
    photograph = diverse()["brick"]
    pixels = crops.stack([crops.cut(photograph, crops.Crop(top=0, left=0, times=1))])
    with torch.inference_mode():
        values = network((pixels - 0.5) / 0.5)
    assert values.shape == (1,)
    assert float(values) == pytest.approx(first_crops[4], rel=1e-6)


def test_seeded_parameters_are_those_of_their_seed(state):
    again = maniqa.seeded_state_dict(SEED)
    assert all(torch.equal(again[key], state[key]) for key in state)
    key = "tablock1.0.c_q.weight"
    shape = tuple(state[key].shape)
    assert not torch.equal(maniqa._seeded(key, shape, SEED + 1), state[key])


def test_other_parameters_are_refused(state):
    without = {key: state[key] for key in state if not key.startswith("vit.head")}
    with pytest.raises(
        ConfigurationError, match=r"not those of maniqa.*2 missing \(vit\.head\.weight, vit\.head\.bias\)"
    ):
        maniqa.load(without, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=r"1 unexpected \(more\)"):
        maniqa.load(state | {"more": torch.zeros(1)}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=r"conv1\.bias \(3,\) instead of \(768,\)"):
        maniqa.load(state | {"conv1.bias": torch.zeros(3)}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=r"1 no real numbers \(conv1\.bias int32\)"):
        maniqa.load(state | {"conv1.bias": state["conv1.bias"].int()}, PRESET, "cpu")
    index = next(key for key in state if key.endswith("relative_position_index"))
    with pytest.raises(ConfigurationError, match=rf"1 of another type \({index} float16\)"):
        maniqa.load(state | {index: state[index].half()}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=rf"not those of maniqa: {index} isn't the index"):
        maniqa.load(state | {index: state[index] + 1}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match="no precision 'half'"):
        maniqa.load(state, PRESET, "cpu", precision="half")


def test_the_bare_name_is_the_papers_preset():
    assert PRESET.weights == "maniqa-pipal"
    assert {name: preset.scale for name, preset in maniqa.PRESETS.items()} == {
        "maniqa": 0.13,
        "maniqa-koniq": 0.8,
        "maniqa-kadid": 0.8,
    }
    assert all(preset.higher_is_better and preset.range == (0.0, None) for preset in maniqa.PRESETS.values())
    assert all(preset.name == name for name, preset in maniqa.PRESETS.items())
    assert dataclasses.replace(PRESET, scale=0.5).scale == 0.5
