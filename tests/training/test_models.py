"""Classifiers by name: seeded, strict, of the right size, never downloaded."""

import pytest
import torch
import torchvision
from torch import nn

from qualitygate.errors import ConfigurationError
from qualitygate.training import models


def _same(left: models.State, right: models.State) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_seed_gives_the_same_bits_and_leaves_the_callers_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = models.build("resnet18", 3, image_size=64, seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert _same(first, models.build("resnet18", 3, image_size=64, seed=1).state_dict())
    assert not _same(first, models.build("resnet18", 3, image_size=64, seed=2).state_dict())


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("resnet18", 32), ("alexnet", 64), ("squeezenet1_0", 64), ("mobilenet_v3_small", 64), ("vit_b_32", 64)],
)
def test_any_classifier_has_an_output_a_class_and_is_itself_again_from_its_state(architecture: str, size: int) -> None:
    model = models.build(architecture, 5, image_size=size).eval()
    again = models.build(architecture, 5, image_size=size, seed=9, state=model.state_dict()).eval()
    assert models.outputs(architecture, model.state_dict()) == 5
    x_NCHW = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        assert model(x_NCHW).shape == (2, 5)
        assert torch.equal(model(x_NCHW), again(x_NCHW))


def test_the_final_layer_alone_is_new_when_a_training_starts_from_other_parameters() -> None:
    published = models.build("resnet18", 1000, image_size=224, seed=3).state_dict()
    model = models.transfer("resnet18", 2, published, image_size=64, seed=4)
    state = model.state_dict()
    assert all(torch.equal(state[name], published[name]) for name in state if not name.startswith("fc."))
    fresh = models.build("resnet18", 2, image_size=64, seed=4).state_dict()
    assert torch.equal(state["fc.weight"], fresh["fc.weight"])


def test_a_network_with_auxiliary_outputs_gives_logits() -> None:
    published = torchvision.models.googlenet(num_classes=10, init_weights=False).state_dict()
    assert any(name.startswith("aux1.") for name in published)
    model = models.transfer("googlenet", 2, published, image_size=64)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet43", r"unknown architecture 'resnet43'; did you mean resnet34"),
        ("fcn_resnet50", r"no plain image classifier.*such as .*resnet"),
        ("raft_small", r"no plain image classifier"),
        ("zzz", r"give a classifier of torchvision, such as resnet34"),
    ],
)
def test_other_names_are_refused_with_what_comes_close(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        models.build(name, 2, image_size=64)


@pytest.mark.parametrize(("architecture", "size"), [("alexnet", 62), ("vit_b_16", 100), ("inception_v3", 64)])
def test_a_size_that_the_network_cannot_take_is_said_at_once(architecture: str, size: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"{architecture} can't take .*{size} x {size}.*--image-size"):
        models.build(architecture, 2, image_size=size)


def test_parameters_of_another_network_are_named() -> None:
    state = models.build("resnet18", 2, image_size=64).state_dict()
    with pytest.raises(
        ConfigurationError, match=r"don't fit a resnet34 of 2 classes.*absent \(layer1\.2\.conv1\.weight"
    ):
        models.build("resnet34", 2, image_size=64, state=state)
    with pytest.raises(ConfigurationError, match=r"fc\.weight \(2, 512\) instead of \(3, 512\)"):
        models.build("resnet18", 3, image_size=64, state=state)
    with pytest.raises(ConfigurationError, match=r"not those of a vgg19: they lack its final layer \(classifier\.6"):
        models.outputs("vgg19", state)
    with pytest.raises(ConfigurationError, match="2 classes at least"):
        models.build("resnet18", 1, image_size=64)


def test_names_of_a_file_are_shown_in_one_line() -> None:
    state = models.build("resnet18", 2, image_size=64).state_dict()
    with pytest.raises(ConfigurationError, match=r"1 unknown \(a\\nb\\x1b\[31m\)") as refused:
        models.build("resnet18", 2, image_size=64, state={**state, "a\nb\x1b[31m": torch.zeros(1)})
    assert str(refused.value).isprintable()


def test_a_file_from_before_batches_were_counted_is_loaded() -> None:
    state = models.build("resnet18", 2, image_size=64).state_dict()
    older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(older) < len(state)
    models.build("resnet18", 2, image_size=64, state=older)


@pytest.mark.parametrize(("size", "kind"), [(224, nn.Identity), (96, models._MatrixPool)])
def test_no_pooling_is_left_that_varies_on_a_gpu_and_the_outputs_are_torchvisions(size: int, kind: type) -> None:
    model = models.build("alexnet", 2, image_size=size).eval()
    assert isinstance(model.avgpool, kind)
    stock = torchvision.models.alexnet(num_classes=2).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    x_NCHW = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        torch.testing.assert_close(model(x_NCHW), stock(x_NCHW), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "wanted"), [((5, 8), (3, 3)), ((2, 3), (7, 7)), ((7, 7), (7, 7)), ((13, 6), (6, 1))])
def test_the_matrix_pool_is_adaptive_pooling(given: tuple[int, int], wanted: tuple[int, int]) -> None:
    x_NCHW = torch.rand(2, 3, *given, dtype=torch.float64)
    pool = models._MatrixPool(wanted, given).double()
    torch.testing.assert_close(pool(x_NCHW), nn.AdaptiveAvgPool2d(wanted)(x_NCHW), rtol=1e-6, atol=1e-7)
