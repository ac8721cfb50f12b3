"""HyperIQA: the stock implementation's numbers on the same seeded parameters, and the scorer's promises."""

import numpy as np
import pytest
import torch
from metric_helpers import load as pixels_of

from qualitygate.errors import ConfigurationError
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import crops, hyperiqa

SEED = 11
PRESET = hyperiqa.PRESETS["hyperiqa"]

pytestmark = pytest.mark.usefixtures("one_thread")


def diverse() -> dict[str, Photograph]:
    """Six photographs of six sizes: one under 224 px, three not square, one over 512."""
    pixels = {
        "astronaut": pixels_of("astronaut"),  # 512 x 512
        "coffee": pixels_of("coffee"),  # 400 x 600
        "chelsea": pixels_of("chelsea")[60:220, 100:327],  # 160 x 227, enlarged
        "rocket": pixels_of("rocket"),  # 427 x 640
        "brick": pixels_of("brick")[:224, :224],  # enlarged too, to 225 x 225
        "clock": np.tile(pixels_of("clock"), (2, 2, 1)),  # 600 x 800
    }
    return {name: Photograph(np.ascontiguousarray(value)) for name, value in pixels.items()}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return hyperiqa.seeded_state_dict(SEED)


@pytest.fixture(scope="module")
def scorer(state):
    return hyperiqa.load(state, PRESET, "cpu")


@pytest.fixture(scope="module")
def scores(scorer) -> list[float]:
    found = scorer(list(diverse().values()))
    assert all(isinstance(score, float) for score in found)
    return found


@pytest.fixture(scope="module")
def stock(state):
    """pyiqa's network with our seeded parameters, strictly loaded; its backbone isn't downloaded."""
    architecture = pytest.importorskip("pyiqa.archs.hypernet_arch")
    create = architecture.timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(architecture.timm, "create_model", lambda name, pretrained, **more: create(name, **more))
        network = architecture.HyperNet(pretrained=False)
    network.load_state_dict(state, strict=True)
    return network.eval()


def test_whole_photographs_score_as_in_pyiqa(stock, scores):
    """All 25 crops of six photographs, both sides in full, from uint8 pixels to the score."""
    with torch.inference_mode():
        theirs = np.array(
            [
                float(stock(torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255).reshape(()))
                for photograph in diverse().values()
            ]
        )
    assert theirs.std() > 0.05
    assert np.ptp(theirs) > 0.2 * abs(theirs).max()
    np.testing.assert_allclose(scores, theirs, rtol=2e-5)
    assert abs(np.array(scores) - theirs).max() < 1e-3 * theirs.std()


def test_each_crop_scores_as_in_pyiqa(stock, state):
    """One crop of each photograph in one batch, both networks alone, crops' pixels given."""
    photographs = diverse().values()
    pixels = crops.stack([crops.cut(p, crops.grid(p.height, p.width, 25)[-1]) for p in photographs])
    network = hyperiqa.HyperIqa().eval()
    network.load_state_dict(state, strict=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (hyperiqa.MEAN, hyperiqa.STD))
    with torch.inference_mode():
        ours, theirs = network((pixels - mean) / std), stock.forward_patch(pixels)[:, 0]
    assert ours.shape == (6,)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3 * float(theirs.std()))


def test_a_score_depends_on_its_photograph_alone(scorer, scores):
    """Alone, and in another order: equal to the bit."""
    photographs = list(diverse().values())
    assert scorer([photographs[2]]) == [scores[2]]
    assert scorer([photographs[4], photographs[0], photographs[2]]) == [scores[4], scores[0], scores[2]]


def test_the_number_of_threads_hardly_matters(scorer, scores):
    torch.set_num_threads(2)
    try:
        (again,) = scorer([diverse()["brick"]])
    finally:
        torch.set_num_threads(1)
    assert again == pytest.approx(scores[4], rel=1e-6)


def test_batches_hardly_matter(state, scores):
    """What a GPU does: crops of two photographs share batches of 8, the last one shorter."""
    batched = hyperiqa.load(state, PRESET, "cpu")
    batched.batch = 8
    photographs = list(diverse().values())
    assert batched([photographs[0], photographs[2]]) == pytest.approx([scores[0], scores[2]], rel=2e-6)


def test_photographs_at_the_edges_have_scores(scorer, edges):
    names = ["1x1", "3000x1", "1x3000", "zero", "white"]
    assert all(isinstance(score, float) for score in scorer([edges[name] for name in names]))


def test_one_pixel_scores_as_in_pyiqa(stock, scorer, edges):
    with torch.inference_mode():
        theirs = stock(torch.from_numpy(edges["1x1"].rgb).permute(2, 0, 1)[None].float() / 255)
    assert scorer([edges["1x1"]])[0] == pytest.approx(float(theirs.reshape(())), rel=2e-5)


def test_seeded_parameters_are_those_of_their_seed(state):
    again, other = hyperiqa.seeded_state_dict(SEED), hyperiqa.seeded_state_dict(SEED + 1)
    assert again.keys() == state.keys() == other.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
    assert not torch.equal(other["conv1.0.weight"], state["conv1.0.weight"])


def test_loading_changes_neither_the_dictionary_nor_the_scores_of_half_precision_files(state):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    rounded = {key: value.float() if value.is_floating_point() else value for key, value in half.items()}
    photograph = diverse()["brick"]
    assert hyperiqa.load(half, PRESET, "cpu")([photograph]) == hyperiqa.load(rounded, PRESET, "cpu")([photograph])
    assert half["conv1.0.weight"].dtype == torch.float16


def test_other_parameters_are_refused(state):
    with pytest.raises(ConfigurationError, match=r"not those of hyperiqa.*1 missing \(conv1\.0\.weight\)"):
        hyperiqa.load({key: state[key] for key in state if key != "conv1.0.weight"}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=r"1 unexpected \(fc\.weight\)"):
        hyperiqa.load(state | {"fc.weight": torch.zeros(1)}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match=r"conv1\.0\.bias \(3,\) instead of \(1024,\)"):
        hyperiqa.load(state | {"conv1.0.bias": torch.zeros(3)}, PRESET, "cpu")
    with pytest.raises(ConfigurationError, match="no precision 'half'"):
        hyperiqa.load(state, PRESET, "cpu", precision="half")


def test_the_preset_is_the_papers():
    assert (PRESET.weights, PRESET.higher_is_better, PRESET.range) == ("hyperiqa-koniq", True, (None, None))
