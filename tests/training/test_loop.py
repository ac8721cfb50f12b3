"""Training: the same bits however it is stopped, order and changes from (seed, epoch), probabilities that hold."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qualitygate.training import augment, loop, models
from qualitygate.training.loop import Photographs, Recipe, Share

SIDE = 32


def _photographs(count: int = 24) -> Photographs:
    """Two classes that differ in where they are bright."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 120, (count, 3, SIDE, SIDE), dtype=np.uint8)
    labels = np.arange(count) % 2
    pixels[labels == 1, :, : SIDE // 2] += 100
    return Photographs(pixels=torch.from_numpy(pixels), labels=torch.from_numpy(labels))


def _recipe(**values: object) -> Recipe:
    return Recipe(**{"epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "seed": 7, **values})  # type: ignore[arg-type]


def _network(dropout: float = 0.3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(4 * 7 * 7, 2),
        )


def _same(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _trained(recipe: Recipe, *, stop_after: int | None = None) -> nn.Module:
    photographs, subset = _photographs(), np.arange(24)
    model = _network()
    optimizer = loop.optimizer_of(model, recipe)
    for epoch in range(recipe.epochs):
        if epoch == stop_after:
            saved = copy.deepcopy(loop.snapshot(model, optimizer, epoch))
            torch.rand(100)  # another process, another state of torch's generator
            model = _network()
            optimizer = loop.optimizer_of(model, recipe)
            assert loop.restore(model, optimizer, saved) == epoch
        loop.train_epoch(model, optimizer, photographs, subset, recipe, epoch)
    return model


@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_training_that_was_stopped_ends_with_the_same_bits(stop_after: int) -> None:
    assert _same(_trained(_recipe()), _trained(_recipe(), stop_after=stop_after))


def test_a_real_network_too() -> None:
    photographs, subset, recipe = _photographs(12), np.arange(12), _recipe(epochs=2, batch_size=6)
    straight = models.build("resnet18", 2, image_size=SIDE, seed=1)
    optimizer = loop.optimizer_of(straight, recipe)
    loop.train_epoch(straight, optimizer, photographs, subset, recipe, 0)
    saved = copy.deepcopy(loop.snapshot(straight, optimizer, 1))
    loop.train_epoch(straight, optimizer, photographs, subset, recipe, 1)
    resumed = models.build("resnet18", 2, image_size=SIDE, seed=99)
    optimizer = loop.optimizer_of(resumed, recipe)
    loop.train_epoch(resumed, optimizer, photographs, subset, recipe, loop.restore(resumed, optimizer, saved))
    assert _same(straight, resumed)


def test_another_seed_trains_another_model_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = _trained(_recipe())
    assert torch.equal(torch.rand(2), expected)
    assert not _same(first, _trained(_recipe(seed=8)))


def test_it_learns_what_can_be_seen_and_reports_its_loss() -> None:
    photographs, subset, recipe = _photographs(), np.arange(24), _recipe(epochs=12, learning_rate=1e-2)
    model = _network(dropout=0.0)
    optimizer = loop.optimizer_of(model, recipe)
    sums = [loop.train_epoch(model, optimizer, photographs, subset, recipe, epoch) for epoch in range(recipe.epochs)]
    assert all(totals[2] == 24 for totals in sums)
    assert sums[-1][0] < sums[0][0] / 4
    found = loop.evaluate(model, photographs, subset, batch_size=5)
    assert found.accuracy == 1.0
    assert found.loss == pytest.approx(-np.log(found.probabilities[subset, subset % 2]).mean(), rel=1e-9)
    assert np.allclose(found.probabilities.sum(axis=1), 1, atol=1e-12)


def test_a_loss_without_end_is_an_error_that_says_what_to_do() -> None:
    model = _network()
    nn.init.constant_(model[0].weight, float("nan"))
    recipe = _recipe()
    with pytest.raises(loop.Diverged, match=r"epoch 1; train with a lower --learning-rate"):
        loop.train_epoch(model, loop.optimizer_of(model, recipe), _photographs(), np.arange(24), recipe, 0)


@given(count=st.integers(2, 300), size=st.integers(1, 64), epoch=st.integers(0, 50))
def test_each_epoch_takes_every_photograph_once_in_batches_of_one_size(count: int, size: int, epoch: int) -> None:
    found = loop.batches(count, _recipe(batch_size=size), epoch)
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
    sizes = [len(batch) for batch in found]
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_the_shares_of_all_processes_add_up_to_the_gradient_of_one(world: int, epoch: int) -> None:
    # The gradients of the processes are averaged, as DistributedDataParallel does; no batch statistics here.
    photographs, subset, recipe = _photographs(10), np.arange(10), _recipe(batch_size=10, augment=False)
    gradients = []
    for share in [Share(), *(Share(rank=rank, world=world) for rank in range(world))]:
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 2))
        nn.init.constant_(model[1].weight, 0.01)
        nn.init.zeros_(model[1].bias)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        loop.train_epoch(model, still, photographs, subset, recipe, epoch, share=share)
        gradients.append(model[1].weight.grad)
    torch.testing.assert_close(torch.stack(gradients[1:]).mean(0), gradients[0])


def test_a_photographs_logits_do_not_depend_on_its_batch() -> None:
    model = models.build("resnet18", 2, image_size=SIDE, seed=1)
    pixels = _photographs(9).pixels
    together = loop.logits_of(model, pixels, 4)
    alone = torch.cat([loop.logits_of(model, one[None], 4) for one in pixels])
    assert torch.equal(together, alone)
    other = loop.logits_of(model, pixels, 9)
    assert np.abs(loop.probabilities(together) - loop.probabilities(other)).max() < 1e-6
    assert model.training


# ---- augmentation ------------------------------------------------------------------------------------------


def test_changes_follow_from_seed_epoch_and_position_alone() -> None:
    assert torch.equal(augment.changes(8, 1, 2), augment.changes(8, 1, 2))
    assert not torch.equal(augment.changes(8, 1, 2), augment.changes(8, 1, 3))
    assert not torch.equal(augment.changes(8, 1, 2), augment.changes(8, 2, 2))
    assert not np.array_equal(augment.order(50, 1, 2), augment.order(50, 1, 3))


def test_changes_are_small_and_never_a_mirror_image_or_a_turn() -> None:
    changed = augment.changes(2000, 0, 0)
    assert float(changed[:, 2].min()) > 1 - 1.01 * augment.MAX_SCALE
    assert float(changed[:, :2].abs().max()) < 2.01 * augment.MAX_SHIFT
    # A bright corner stays in its corner.
    x_NCHW = torch.zeros(2000, 1, SIDE, SIDE)
    x_NCHW[:, :, : SIDE // 2, : SIDE // 2] = 0.8
    moved = augment.altered(x_NCHW, changed)
    quarters = moved.reshape(-1, 2, SIDE // 2, 2, SIDE // 2).mean((2, 4))
    assert bool((quarters[:, 0, 0] > 5 * quarters[:, 0, 1]).all())
    assert bool((quarters[:, 0, 0] > 5 * quarters[:, 1, 0]).all())


def test_no_change_changes_nothing_and_a_shift_moves_right_and_down() -> None:
    x_NCHW = torch.rand(1, 3, SIDE, SIDE)
    still = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(augment.altered(x_NCHW, still), x_NCHW, rtol=0, atol=1e-5)
    two_pixels = torch.tensor([[2 * 2 / SIDE, 0.0, 1.0, 1.0]])
    moved = augment.altered(x_NCHW, two_pixels)
    torch.testing.assert_close(moved[..., 2:], x_NCHW[..., :-2], rtol=0, atol=1e-5)
    darker = torch.tensor([[0.0, 0.0, 1.0, 0.5]])
    torch.testing.assert_close(augment.altered(x_NCHW, darker), x_NCHW / 2, rtol=0, atol=1e-5)
