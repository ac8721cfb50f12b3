"""MUSIQ against the stock implementation on one seeded state dictionary, and what its scorer promises."""

import dataclasses
import importlib.util
import math

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import musiq, musiq_tokens

installed = pytest.mark.skipif(importlib.util.find_spec("pyiqa") is None, reason="pyiqa isn't installed")

# The same network with two layers of one head: what doesn't need the published size is tested on it.
SMALL = dataclasses.replace(musiq.PRESETS["musiq"], width=64, hidden=96, depth=2)
SMALL_AVA = dataclasses.replace(SMALL, name="musiq-ava", classes=10, range=(1.0, 10.0))


def noise(height: int, width: int, seed: int = 1) -> Photograph:
    return Photograph(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def mixed(clean, with_flat_parts) -> dict[str, Photograph]:
    """Six diverse photographs: one under 224 px, one over 512, most not square."""
    pixels = {
        "astronaut": clean["astronaut"][:300, :260],
        "coffee": clean["coffee"][::4, ::4],
        "chelsea": clean["chelsea"],
        "camera": with_flat_parts["camera"][:225, :224],
        "rocket": with_flat_parts["rocket"][40:160],
        "brick and moon": np.concatenate([clean["brick"][:97, :500], clean["moon"][:97, :400]], axis=1),
    }
    return {name: Photograph(np.ascontiguousarray(value)) for name, value in pixels.items()}


@pytest.fixture(scope="module")
def small():
    return musiq.load(musiq.seeded_state_dict(3, SMALL), SMALL, "cpu")


def stock_input(photograph: Photograph) -> torch.Tensor:
    return torch.from_numpy(photograph.rgb).permute(2, 0, 1)[None].float() / 255


def stock_tokens(photograph: Photograph) -> torch.Tensor:
    """(T, 3075): patches, position, scale, mask, padding included."""
    from pyiqa.data.multiscale_trans_util import get_multiscale_patches

    return get_multiscale_patches((stock_input(photograph) - 0.5) * 2, max_seq_len_from_original_res=-1)[0]


# ---- tokens ----------------------------------------------------------------------------------------------


def test_positions_are_those_of_nearest_interpolation_in_float32():
    cells = torch.arange(10.0)[None, None]
    for length in [*range(1, 600), 2047, 2048]:
        expected = torch.nn.functional.interpolate(cells, length, mode="nearest")[0, 0].long()
        assert musiq_tokens._hashed(length).tolist() == expected.tolist(), length


@installed
@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 300), (33, 224), (97, 160), (224, 224), (300, 451), (384, 97), (700, 1001)]
)
def test_tokens_are_the_stock_extractors(height, width):
    photograph = noise(height, width)
    ours, theirs = musiq_tokens.tokens(photograph), stock_tokens(photograph)
    theirs = theirs[theirs[:, -1] > 0]
    assert ours.patches.shape == theirs[:, :-3].shape
    assert ours.positions.tolist() == theirs[:, -3].long().tolist()
    assert ours.scales.tolist() == theirs[:, -2].long().tolist()
    torch.testing.assert_close(ours.patches, theirs[:, :-3], rtol=0, atol=1e-6)


@pytest.mark.parametrize("most", [1, 7, 40, 10_000])
def test_patches_do_not_depend_on_how_many_are_cut_at_a_time(most):
    photographs = [noise(211, 330, seed) for seed in (1, 2)]
    layout = musiq_tokens.scales(211, 330)
    pixels = torch.from_numpy(np.stack([photograph.rgb for photograph in photographs]))
    cut = torch.cat(list(musiq_tokens.patches(pixels, layout, most)), dim=1)
    for row, photograph in enumerate(photographs):
        assert torch.equal(cut[row].flatten(1), musiq_tokens.tokens(photograph).patches)


def test_a_photograph_has_three_scales_with_its_aspect():
    layout = musiq_tokens.scales(3000, 4000)
    assert [(scale.height, scale.width) for scale in layout] == [(168, 224), (288, 384), (3000, 4000)]
    assert [scale.count for scale in layout] == [6 * 7, 9 * 12, 94 * 125]
    positions, scales = musiq_tokens.places(layout)
    assert len(positions) == len(scales) == musiq_tokens.count(layout)
    assert (int(positions.min()), int(positions.max())) == (0, 99)


@pytest.mark.parametrize(("height", "width"), [(3000, 1), (1, 448), (2, 896), (0, 5), (0, 0)])
def test_strips_whose_breadth_vanishes_are_too_small(small, height, width):
    strip = Photograph(np.zeros((height, width, 3), np.uint8))
    whole = noise(40, 50)
    failure, score = small([strip, whole])
    assert isinstance(failure, Failure)
    assert failure.code is ErrorCode.TOO_SMALL
    assert f"{width} x {height}" in failure.message
    assert "less than 448 times" in failure.message
    assert score == small([whole])[0]


@installed
def test_the_stock_extractor_raises_for_the_same_strips():
    stock_tokens(noise(1, 447))
    with pytest.raises(RuntimeError):
        stock_tokens(noise(1, 448))


# ---- parity ----------------------------------------------------------------------------------------------


@installed
@pytest.mark.parametrize("name", ["musiq", "musiq-ava"])
def test_scores_are_the_stock_implementations(mixed, name):
    from pyiqa.archs.musiq_arch import MUSIQ

    preset = musiq.PRESETS[name]
    state = musiq.seeded_state_dict(0, preset)
    stock = MUSIQ(num_class=preset.classes, pretrained=False).eval()
    stock.load_state_dict(state, strict=True)
    with torch.inference_mode():
        theirs = np.array([stock(stock_input(photograph)).item() for photograph in mixed.values()])
    ours = np.array(musiq.load(state, preset, "cpu")(list(mixed.values())))
    error = np.abs(ours - theirs)
    assert (error / np.abs(theirs)).max() < 1e-5  # asked for: 1e-4
    assert error.max() < 1e-3 * theirs.std()  # asked for: 1e-2
    assert theirs.std() > 0.02 * (preset.range[1] - preset.range[0]), "seeded scores hardly differ"
    if name == "musiq-ava":
        assert ((theirs > 1) & (theirs < 10)).all()


@installed
@pytest.mark.parametrize("name", musiq.PRESETS)
def test_the_layout_is_the_published_one(name):
    from pyiqa.archs.musiq_arch import MUSIQ

    preset = musiq.PRESETS[name]
    published = MUSIQ(num_class=preset.classes, pretrained=False).state_dict()
    state = musiq.seeded_state_dict(0, preset)
    assert {key: tensor.shape for key, tensor in state.items()} == {k: t.shape for k, t in published.items()}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_the_paper_has_twenty_seven_million_parameters():
    state = musiq.seeded_state_dict(0, musiq.PRESETS["musiq"])
    assert round(sum(tensor.numel() for tensor in state.values()) / 1e6, 1) == 27.1


# ---- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", [SMALL, SMALL_AVA], ids=["one output", "ten outputs"])
def test_padding_does_not_count_wherever_it_is(preset):
    network = musiq.network(musiq.seeded_state_dict(1, preset), preset)
    all_tokens = [musiq_tokens.tokens(noise(height, width)) for height, width in ((30, 70), (200, 150))]
    length = max(len(tokens.positions) for tokens in all_tokens) + 5
    patches = torch.full((2, length, 3072), 9.0)
    positions, scales = torch.zeros(2, 2, length, dtype=torch.int64).unbind()
    mask = torch.zeros(2, length, dtype=torch.bool)
    expected = []
    with torch.inference_mode():
        for row, tokens in enumerate(all_tokens):
            # Two tokens, three places of padding, the other tokens.
            places = [i if i < 2 else i + 3 for i in range(len(tokens.positions))]
            patches[row, places] = tokens.patches
            positions[row, places], scales[row, places], mask[row, places] = tokens.positions, tokens.scales, True
            expected.append(network(tokens.patches[None], tokens.positions[None], tokens.scales[None]).item())
        scores = network(patches, positions, scales, mask)
    assert scores.shape == (2,)
    assert scores.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_holds_no_matrix_of_all_pairs(masked):
    attention = musiq.Attention(128)
    x = torch.randn(2, 300, 128)
    mask = torch.arange(300).expand(2, 1, 1, 300) < 290 if masked else None
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        attention(x, x, mask)
    operations = {event.key for event in profiled.key_averages()}
    assert any("flash" in key for key in operations)
    assert not any("attention_math" in key for key in operations)


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_queries_change_nothing(monkeypatch, masked):
    attention = musiq.Attention(128)
    x = torch.randn(2, 300, 128)
    mask = torch.arange(300).expand(2, 1, 1, 300) < 290 if masked else None
    with torch.inference_mode():
        whole = attention(x, x, mask)
        monkeypatch.setattr(musiq, "QUERIES", 64)
        torch.testing.assert_close(attention(x, x, mask), whole, rtol=1e-5, atol=1e-6)


# ---- the scorer ------------------------------------------------------------------------------------------


def test_a_score_depends_on_its_photograph_alone(mixed):
    preset = musiq.PRESETS["musiq"]
    scorer = musiq.load(musiq.seeded_state_dict(0, preset), preset, "cpu")
    photographs = [mixed["coffee"], noise(31, 65), noise(200, 90), noise(64, 64)]
    together = scorer(photographs)
    assert [scorer([photograph])[0] for photograph in photographs] == together
    assert scorer(photographs[::-1]) == together[::-1]
    assert scorer([photographs[1]] * 3) == [together[1]] * 3
    assert scorer([]) == []


def test_it_hardly_depends_on_the_number_of_threads(small, mixed):
    before = torch.get_num_threads()
    photographs = list(mixed.values())
    scores = small(photographs)
    try:
        torch.set_num_threads(1)
        assert small(photographs) == pytest.approx(scores, rel=1e-6)
    finally:
        torch.set_num_threads(before)


def test_batches_as_on_a_gpu_give_the_same_scores(monkeypatch, mixed):
    state = musiq.seeded_state_dict(3, SMALL)
    photographs = [*mixed.values(), noise(60, 61), *mixed.values(), noise(61, 60)]
    alone = musiq.load(state, SMALL, "cpu")(photographs)
    monkeypatch.setitem(musiq.BATCH_TOKENS, "cpu", 1500)
    scorer = musiq.load(state, SMALL, "cpu")
    sizes = []
    run = scorer._run
    monkeypatch.setattr(scorer, "_run", lambda batch: sizes.append([job.tokens for job in batch]) or run(batch))
    assert scorer(photographs) == pytest.approx(alone, rel=1e-6)
    assert max(map(len, sizes)) > 2
    assert any(len(set(tokens)) > 1 for tokens in sizes), "no batch of mixed lengths"
    assert all(len(tokens) == 1 or max(tokens) * len(tokens) <= 1500 for tokens in sizes)


def test_every_odd_photograph_has_a_score_or_a_reason(small, edges):
    for (name, _), score in zip(edges.items(), small(list(edges.values())), strict=True):
        if name in ("3000x1", "1x3000"):
            assert score.code is ErrorCode.TOO_SMALL, name
        else:
            assert isinstance(score, float), name
            assert math.isfinite(score), name


def test_short_memory_halves_the_batch_and_keeps_the_order(monkeypatch):
    state = musiq.seeded_state_dict(3, SMALL)
    photographs = [noise(50, 60, seed) for seed in range(7)] + [noise(300, 320)]
    expected = musiq.load(state, SMALL, "cpu")(photographs)
    monkeypatch.setitem(musiq.BATCH_TOKENS, "cpu", 100_000)
    monkeypatch.setattr(musiq, "PADDED", 0)
    scorer = musiq.load(state, SMALL, "cpu")
    run, sizes = scorer._run, []

    def short_of_memory(batch):
        sizes.append(len(batch))
        if len(batch) > 2 or any(job.photograph.height == 300 for job in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch)

    monkeypatch.setattr(scorer, "_run", short_of_memory)
    scores = scorer(photographs)
    assert scores[:-1] == pytest.approx(expected[:-1], rel=1e-6)
    assert scores[-1].code is ErrorCode.OUT_OF_MEMORY
    assert "320 x 300" in scores[-1].message
    assert sizes[:3] == [8, 4, 2]
    sizes.clear()
    scorer(photographs[:-1])
    assert max(sizes) <= 4, "it forgot what didn't fit"


def test_short_memory_of_the_encoder_halves_its_patches_and_no_batch(monkeypatch):
    """It sees as many patches whatever the number of photographs, so a smaller batch would not help."""
    state = musiq.seeded_state_dict(3, SMALL)
    photographs = [noise(500, 600)] + [noise(300, 320, seed) for seed in range(3)]
    expected = musiq.load(state, SMALL, "cpu")(photographs)
    monkeypatch.setitem(musiq.ENCODER_PATCHES, "cpu", 256)
    monkeypatch.setitem(musiq.BATCH_TOKENS, "cpu", 100_000)
    for padded in (False, True):
        scorer = musiq.load(state, SMALL, "cpu")
        scorer._padded = padded
        embed, sizes = scorer._embed, []

        def short_of_memory(patches, embed=embed, sizes=sizes):
            sizes.append(len(patches))
            if len(patches) > 150:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return embed(patches)

        monkeypatch.setattr(scorer, "_embed", short_of_memory)
        budget = scorer._budget
        assert scorer(photographs) == pytest.approx(expected, rel=1e-5)
        assert scorer._patches == 128
        assert scorer._budget == budget
        sizes.clear()
        scorer(photographs)
        assert max(sizes) <= 128, "it forgot what didn't fit"
        assert not padded or set(sizes) <= {128, 16}


def test_an_encoder_that_has_no_memory_for_a_few_patches_fails_its_photograph_alone(monkeypatch):
    scorer = musiq.load(musiq.seeded_state_dict(3, SMALL), SMALL, "cpu")

    def short_of_memory(patches):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scorer, "_embed", short_of_memory)
    (failure,) = scorer([noise(300, 320)])
    assert failure.code is ErrorCode.OUT_OF_MEMORY
    assert scorer._patches == musiq.FEWEST_PATCHES


def test_short_memory_of_a_cpu_is_a_failure_and_other_errors_are_errors(monkeypatch):
    scorer = musiq.load(musiq.seeded_state_dict(3, SMALL), SMALL, "cpu")
    photographs = [noise(50, 60)]

    def raising(error):
        def run(batch):
            raise error

        return run

    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")):
        monkeypatch.setattr(scorer, "_run", raising(error))
        assert scorer(photographs)[0].code is ErrorCode.OUT_OF_MEMORY
    monkeypatch.setattr(scorer, "_run", raising(RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes"):
        scorer(photographs)


def test_what_is_not_finite_is_a_failure():
    state = musiq.seeded_state_dict(3, SMALL)
    state["head.bias"] = torch.tensor([math.inf])
    (score,) = musiq.load(state, SMALL, "cpu")([noise(50, 60)])
    assert score == Failure(ErrorCode.NON_FINITE, "musiq gave inf")


# ---- parameters ------------------------------------------------------------------------------------------


def test_seeded_parameters_are_equal_for_equal_seeds():
    one, again, other = (musiq.seeded_state_dict(seed, SMALL) for seed in (5, 5, 6))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not any(torch.equal(one[key], other[key]) for key in one)
    photograph = noise(50, 60)
    assert musiq.load(one, SMALL, "cpu")([photograph]) == musiq.load(again, SMALL, "cpu")([photograph])


def test_other_parameters_are_refused():
    state = musiq.seeded_state_dict(3, SMALL)
    with pytest.raises(ConfigurationError, match=r"musiq.*encoder_norm"):
        musiq.load({k: v for k, v in state.items() if "encoder_norm" not in k}, SMALL, "cpu")
    with pytest.raises(ConfigurationError, match=r"musiq.*fc\.weight"):
        musiq.load(state | {"fc.weight": torch.zeros(3)}, SMALL, "cpu")
    with pytest.raises(ConfigurationError, match=r"musiq.*head\.bias.*2"):
        musiq.load(state | {"head.bias": torch.zeros(2)}, SMALL, "cpu")
    with pytest.raises(ConfigurationError, match=r"1 no real numbers \(head\.bias int64\)"):
        musiq.load(state | {"head.bias": torch.zeros(1, dtype=torch.int64)}, SMALL, "cpu")
    with pytest.raises(ConfigurationError, match=r"musiq.*head"):
        musiq.load(musiq.seeded_state_dict(3, SMALL_AVA), SMALL, "cpu")


def test_loading_leaves_the_given_parameters_alone():
    state = {key: tensor.half() for key, tensor in musiq.seeded_state_dict(3, SMALL).items()}
    (score,) = musiq.load(state, SMALL, "cpu")([noise(50, 60)])
    assert isinstance(score, float)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_standardising_kernels_once_changes_no_bit(mixed):
    state = musiq.seeded_state_dict(3, SMALL)
    network = musiq.network(state, SMALL)
    patches = musiq_tokens.tokens(mixed["coffee"]).patches.unflatten(1, (3, 32, 32))
    with torch.inference_mode():
        before = network.embed(patches)
        network.freeze(halved=False)
        assert torch.equal(network.embed(patches), before)


def test_half_precision_in_batches_of_mixed_lengths(monkeypatch, mixed):
    """What a GPU does with `fast`: tokens of several photographs with a mask, near the scores of each alone."""
    state = musiq.seeded_state_dict(3, SMALL)
    photographs = [*mixed.values(), noise(60, 61)]
    exact = musiq.load(state, SMALL, "cpu")(photographs)
    monkeypatch.setitem(musiq.BATCH_TOKENS, "cpu", 3000)
    fast = musiq.load(state, SMALL, "cpu", "fast")(photographs)
    assert fast != exact
    assert fast == pytest.approx(exact, abs=0.01 * np.ptp(exact))


def test_a_compiled_encoder_sees_two_shapes(monkeypatch, mixed):
    shapes, graphs = [], []

    def compiled(function, name, *, dynamic):
        graphs.append(dynamic)

        def watched(*arguments):
            if not dynamic:
                shapes.append(len(arguments[0]))
            return function(*arguments)

        return watched

    state = musiq.seeded_state_dict(3, SMALL)
    expected = musiq.load(state, SMALL, "cpu")(list(mixed.values()))
    monkeypatch.setattr(musiq.compiling, "Compiled", compiled)
    monkeypatch.setitem(musiq.ENCODER_PATCHES, "cpu", 64)
    found = musiq.load(state, SMALL, "cpu", compiled=True)(list(mixed.values()))
    assert found == pytest.approx(expected, rel=1e-6)
    assert graphs == [False, True]
    assert set(shapes) == {64, 8}


def test_another_precision_is_refused():
    with pytest.raises(ConfigurationError, match="float32"):
        musiq.load(musiq.seeded_state_dict(3, SMALL), SMALL, "cpu", precision="half")
