"""JPEGs for a GPU to decode: which, what becomes of them, and what happens where it can't; torchvision's CPU stands in.

nvJPEG repeats subsampled chroma, where torchvision's CPU decoder smooths it as ours does: libjpeg without smoothing
stands in where that matters.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import malformed
import numpy as np
import pytest
import simplejpeg
import skimage.data
import torch
from malformed import encode, exif, jpeg_markers, stored_for
from PIL import Image, ImageCms

import qualitygate
from qualitygate.cluster import planning, session, workers
from qualitygate.config import ScoreConfig
from qualitygate.errors import ConfigurationError, DeviceLost, ImageError
from qualitygate.images.decode import Box, DecodePolicy, Encoded, decode, for_a_gpu
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import Execution, focus_tensors, memory, nvjpeg, scene_tensors
from qualitygate.metrics.rows import Plan, Request, Row, RowScorer
from qualitygate.tables import storage

ASTRONAUT = skimage.data.astronaut()
SMALL = np.ascontiguousarray(ASTRONAUT[:93, :117])  # sides that no block size divides
CORPUS = {name: found for name, found in malformed.build(ASTRONAUT).items() if name.startswith("jpeg")}
POLICY = DecodePolicy(decoder="nvjpeg")
Decoder = Callable[[list[torch.Tensor]], list[torch.Tensor]]

# Of the corpus, what another decoder is trusted with: the rest is odd, progressive, CMYK, RGB or visibly cut.
PLAIN = {
    "jpeg.jpg",
    "jpeg_restart_markers.jpg",
    "jpeg_grey.jpg",
    "jpeg_trailing_junk.jpg",
    "jpeg_second_picture_after_the_end.jpg",
    "jpeg_unknown_jfif_revision.jpg",
    *(f"jpeg_exif_{orientation}.jpg" for orientation in range(1, 9)),
}
# What it may be given although the strict decoder refuses it: missing and damaged within the coded data.
UNNOTICED = {
    "jpeg_cut_and_end_marker_appended.jpg",
    "jpeg_restart_markers_cut.jpg",
    "jpeg_more_rows_than_data.jpg",
    "jpeg_fewer_rows_than_data.jpg",
    "jpeg_hole_of_noise.jpg",
    "jpeg_noise_left_over.jpg",
}


def by_torchvisions_cpu(files: list[torch.Tensor]) -> list[torch.Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return [decode_jpeg(file, mode=ImageReadMode.RGB) for file in files]


def without_smoothing(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """libjpeg with chroma repeated, as nvJPEG has it."""
    found = [simplejpeg.decode_jpeg(file.numpy().tobytes(), "RGB", fastupsample=True) for file in files]
    return [torch.from_numpy(rgb).permute(2, 0, 1) for rgb in found]


def found_for(data: bytes, box: Box | None = None) -> Encoded:
    found = for_a_gpu(data, POLICY, box)
    assert found is not None
    return found


def refusal(read: Callable[[], object]) -> tuple[object, ...] | None:
    """Code, message and sizes of the error; None without one."""
    try:
        read()
    except ImageError as error:
        return error.failure.code, error.failure.message, error.width, error.height
    return None


# ---- which -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPUS)
def test_only_plain_files_are_another_decoders(name: str) -> None:
    data, expected = CORPUS[name]
    by_markers, strictly = refusal(lambda: for_a_gpu(data, POLICY)), refusal(lambda: decode(data))
    if by_markers is not None:
        # What the markers tell is refused as ever.
        assert by_markers == strictly
        assert by_markers[0] == expected
        return
    found = for_a_gpu(data, POLICY)
    assert (found is not None) == (name in PLAIN | UNNOTICED)
    if found is not None and name in PLAIN:
        strict = decode(data)
        for what in ("width", "height", "make", "model", "captured_at"):
            assert getattr(found, what) == getattr(strict, what)


def test_what_it_would_not_notice_is_what_the_docs_say() -> None:
    assert all(CORPUS[name][1] in ("truncated", "undecodable") for name in UNNOTICED)
    assert all(CORPUS[name][1] == "ok" for name in PLAIN)


def test_other_formats_profiles_and_samplings() -> None:
    assert for_a_gpu(encode(SMALL, "PNG"), POLICY) is None
    assert for_a_gpu(encode(SMALL, "JPEG"), DecodePolicy()) is None
    # An ICC profile isn't applied by ours either, so it is no reason.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert found_for(encode(SMALL, "JPEG", icc_profile=profile)).width == 117
    for sampling in (0, 1, 2):
        assert found_for(encode(SMALL, "JPEG", subsampling=sampling)).height == 93
    unusual = simplejpeg.encode_jpeg(SMALL, colorsubsampling="411")
    assert decode(unusual).width == 117
    assert for_a_gpu(unusual, POLICY) is None


def test_colours_are_ycbcr_only_where_nothing_contradicts() -> None:
    base = encode(SMALL, "JPEG", quality=90)
    app0 = next(at for at, marker in jpeg_markers(base) if marker == 0xE0)
    length = 2 + int.from_bytes(base[app0 + 2 : app0 + 4], "big")
    bare = base[:app0] + base[app0 + length :]
    assert for_a_gpu(bare, POLICY) is not None  # components 1, 2, 3

    def with_adobe(transform: int, rest: bytes = base[2:]) -> bytes:
        return base[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) + rest

    assert for_a_gpu(with_adobe(1), POLICY) is not None
    assert for_a_gpu(with_adobe(0), POLICY) is None
    assert for_a_gpu(with_adobe(0, bare[2:]), POLICY) is None


def test_bounds_and_boxes_are_checked_by_the_header() -> None:
    data = encode(stored_for(SMALL, 6), "JPEG", exif=exif(6))
    with pytest.raises(ImageError) as caught:
        for_a_gpu(data, DecodePolicy(decoder="nvjpeg", max_pixels=93 * 117 - 1))
    assert (caught.value.failure.code, caught.value.width, caught.value.height) == ("too_large", 93, 117)
    assert found_for(data, (100, 80, 17, 13)).box == (100, 80, 17, 13)
    with pytest.raises(ImageError, match="doesn't lie inside the photograph of 117x93"):
        for_a_gpu(data, POLICY, (100, 80, 18, 13))


# ---- what becomes of them --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("box", [None, (10, 20, 80, 60)])
def test_photographs_are_turned_and_cut_as_ours(orientation: int, box: Box | None) -> None:
    data = encode(stored_for(SMALL, orientation), "JPEG", quality=90, exif=exif(orientation), subsampling=0)
    (found,) = nvjpeg.GpuDecoder(by_torchvisions_cpu)([found_for(data, box)])
    assert found is not None
    expected = decode(data, box=box).photograph
    assert (found.height, found.width) == (expected.height, expected.width)
    assert np.array_equal(found.rgb, expected.rgb)
    assert found.rgb.flags.c_contiguous
    assert found.rgb.flags.writeable


def test_pixels_are_on_the_gpu_from_the_beginning_and_fetched_once_if_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = nvjpeg.GpuDecoder(by_torchvisions_cpu)([found_for(encode(SMALL, "JPEG"))])
    assert found is not None
    monkeypatch.setattr(memory, "upload", lambda *_: pytest.fail("they are there already"))
    there = memory.pixels(found, "cuda")
    assert tuple(there.shape) == (93, 117, 3)
    assert found._rgb is None, "nobody asked for them here"
    assert found.rgb is found.rgb


def test_what_it_refuses_is_found_by_halves_and_left_to_the_strict_decoder() -> None:
    files = [found_for(encode(np.ascontiguousarray(SMALL[:, : 60 + n]), "JPEG")) for n in range(7)]
    calls: list[int] = []

    def refusing(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(tensors))
        stored = by_torchvisions_cpu(tensors)
        if any(one.shape[2] == 64 for one in stored):
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 6")
        return [one[:, 1:] if one.shape[2] == 62 else one for one in stored]

    found = nvjpeg.GpuDecoder(refusing)(files)
    # The fifth raised, the third came back in another size.
    assert [one is None for one in found] == [False, False, True, False, True, False, False]
    assert calls == [1, 7, 3, 4, 2, 1, 1, 2]

    def lost(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(tensors) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return by_torchvisions_cpu(tensors)

    with pytest.raises(RuntimeError, match="illegal memory"):
        nvjpeg.GpuDecoder(lost)(files)


def test_a_torchvision_without_nvjpeg_is_told_at_the_start() -> None:
    def absent(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    with pytest.raises(ConfigurationError, match=r"^--decoder nvjpeg: .*not compiled.*leave --decoder nvjpeg out$"):
        nvjpeg.GpuDecoder(absent)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), r"^no memory for nvJPEG's start"),
        (RuntimeError("CUDA error: initialization error"), r"its GPU, as noticed by nvJPEG's start"),
    ],
)
def test_a_gpu_that_fails_at_the_start_is_no_torchvision_without_nvjpeg(error: Exception, told: str) -> None:
    def failing(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        raise error

    with pytest.raises(DeviceLost, match=told):
        nvjpeg.GpuDecoder(failing)


# ---- rows ------------------------------------------------------------------------------------------------

FORMULAS = ("lapv", "lapm", "wavs", "brisque", "niqe")


@pytest.fixture
def scorer_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RowScorer]:
    """Believes in a GPU: its formulas on tensors and its nvJPEG run on the CPU."""
    for module in (focus_tensors, scene_tensors):
        load = module.load
        monkeypatch.setattr(module, "load", lambda name, device, load=load, **more: load(name, "cpu", **more))

    def build(decoder: Decoder | None, metrics: tuple[str, ...] = FORMULAS, **options: Any) -> RowScorer:
        if decoder is not None:
            monkeypatch.setattr(nvjpeg, "by_torchvision", decoder)
        policy = POLICY if decoder is not None else DecodePolicy()
        return RowScorer(Plan(metrics=metrics, device="cuda", policy=policy, at_once=4, **options), run_id="r")

    return build


def rows_of(scorer: RowScorer, files: Sequence[bytes]) -> list[Row]:
    requests = [Request(image_id=str(number), uri=None) for number in range(len(files))]
    fetched = [storage.Fetched(data=data, etag=None) for data in files]
    return list(scorer.finished(map(scorer.prepare, requests, fetched)))


def test_rows_are_the_strict_decoders_but_for_the_fingerprint_and_the_last_digits(scorer_of: Any) -> None:
    """Photographs of a set, without smoothing of chroma as nvJPEG has it; scores differ, and not by much."""
    pictures = [skimage.data.coffee()[:300, :320], skimage.data.chelsea()[:300, :300], ASTRONAUT[:, 100:400]]
    files = [encode(np.ascontiguousarray(picture), "JPEG", quality=92) for picture in pictures]
    files += [encode(SMALL, "PNG"), encode(SMALL, "JPEG", progressive=True), CORPUS["jpeg_cmyk.jpg"][0]]
    files += [CORPUS["jpeg_cut_at_two_thirds.jpg"][0], CORPUS["jpeg_filled_up_and_end_marker.jpg"][0]]
    strict = rows_of(scorer_of(None), files)
    scorer = scorer_of(without_smoothing)
    found = rows_of(scorer, files)
    assert [row["image_id"] for row in found] == [row["image_id"] for row in strict]
    assert "decode_on_gpu" in scorer.take_seconds()
    for number, (ours, theirs) in enumerate(zip(strict, found, strict=True)):
        for name in FORMULAS:
            assert ours[f"{name}_fingerprint"] != theirs[f"{name}_fingerprint"]
            assert ours[f"{name}_state"] == theirs[f"{name}_state"]
            if ours[name] is not None:
                # In points of BRISQUE and NIQE, in shares of the others.
                assert theirs[name] == pytest.approx(ours[name], rel=0.02, abs=1.0 if name == "brisque" else 0.1)
        assert (theirs["lapm"] == ours["lapm"]) is (number > 2), "plain ones by the other decoder, the rest by ours"
        same = ("status", "width", "height", "sha256", "bytes", "error_code", "error_message", "make")
        assert {key: theirs.get(key) for key in same} == {key: ours.get(key) for key in same}


def test_the_same_pixels_give_the_same_scores(scorer_of: Any) -> None:
    """Without subsampled chroma torchvision's CPU decoder is ours to the bit; metrics of the CPU get pixels, too."""
    metrics = (*FORMULAS, "wavs-coef")
    files = [encode(ASTRONAUT[: 200 + 8 * n, :240], "JPEG", subsampling=0) for n in range(6)]
    strict, found = rows_of(scorer_of(None, metrics), files), rows_of(scorer_of(by_torchvisions_cpu, metrics), files)
    assert [[row[name] for name in metrics] for row in found] == [[row[name] for name in metrics] for row in strict]
    assert all(row["status"] == "ok" for row in found)


def test_what_nvjpeg_raises_on_is_decoded_strictly_in_its_place(scorer_of: Any) -> None:
    def refusing(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(len(one) > 2000 for one in tensors):
            raise RuntimeError("Failed to decode batch: 6")
        return by_torchvisions_cpu(tensors)

    cut = CORPUS["jpeg_cut_and_end_marker_appended.jpg"][0]
    files = [encode(SMALL[:16, :16].copy(), "JPEG"), encode(ASTRONAUT, "JPEG"), cut]
    found = rows_of(scorer_of(refusing, ("lapm",)), files)
    assert [row["status"] for row in found] == ["ok", "ok", "error"]
    assert found[1]["lapm"] == rows_of(scorer_of(None, ("lapm",)), files[1:2])[0]["lapm"]
    # The strict decoder has the last word on what nvJPEG refuses.
    assert found[2]["error_code"] == "truncated"
    assert found[2]["lapm_state"] == "failed:truncated"


def test_a_score_from_before_stays_where_the_gpu_is_too_full_to_decode(
    scorer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    data = storage.Fetched(data=encode(ASTRONAUT, "JPEG"), etag=None)
    (before,) = rows_of(scorer_of(by_torchvisions_cpu, ("lapm",)), [data.data])
    scorer = scorer_of(by_torchvisions_cpu, ("lapm", "niqe"))
    monkeypatch.setattr(nvjpeg, "upright", full)
    complete = dict.fromkeys(("make", "model", "captured_at", "error_code", "error_message")) | before
    row = scorer.row(Request(image_id="0", uri=None, previous=complete), data)
    assert (row["status"], row["lapm"], row["niqe_state"]) == ("partial", before["lapm"], "failed:out_of_memory")


def test_a_gpu_too_full_for_a_photograph_leaves_it_for_another_try(
    scorer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to the strict decoder: the same photograph would have another score beside other neighbours."""
    real = nvjpeg.upright

    def full(stored: torch.Tensor, file: Any) -> torch.Tensor:
        if file.width > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(stored, file)

    monkeypatch.setattr(nvjpeg, "upright", full)
    files = [encode(SMALL, "JPEG"), encode(ASTRONAUT, "JPEG"), encode(SMALL, "JPEG")]
    found = rows_of(scorer_of(by_torchvisions_cpu, ("lapm",)), files)
    assert [row["status"] for row in found] == ["ok", "error", "ok"]
    assert (found[1]["error_code"], found[1]["lapm_state"]) == ("out_of_memory", "failed:out_of_memory")
    assert "no memory on the GPU" in found[1]["error_message"]


def test_nvjpeg_without_memory_of_its_own_leaves_the_photograph_for_another_try(scorer_of: Any) -> None:
    """torchvision passes on its ALLOCATOR_FAILURE as a number; the strict pixels' score would be another."""

    def full(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(len(one) > 20_000 for one in tensors):
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 5")
        return by_torchvisions_cpu(tensors)

    found = rows_of(scorer_of(full, ("lapm",)), [encode(SMALL, "JPEG"), encode(ASTRONAUT, "JPEG")])
    assert [row["status"] for row in found] == ["ok", "error"]
    assert (found[1]["lapm"], found[1]["lapm_state"]) == (None, "failed:out_of_memory")


def test_a_gpu_that_nvjpeg_finds_lost_is_lost(scorer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says no more than that its call failed: the GPU says the rest."""

    def failing(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if any(len(one) > 20_000 for one in tensors):
            raise RuntimeError("Error while decoding JPEG images: Failed to decode batch: 6")
        return by_torchvisions_cpu(tensors)

    def gone() -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    scorer = scorer_of(failing, ("lapm",))
    files = [encode(SMALL, "JPEG"), encode(ASTRONAUT, "JPEG")]
    assert [row["status"] for row in rows_of(scorer, files)] == ["ok", "ok"], "the file's own: decoded strictly"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    with pytest.raises(DeviceLost, match="noticed by nvJPEG"):
        rows_of(scorer, files)


def test_whatever_it_raises_loses_no_photograph(scorer_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(by_torchvisions_cpu, ("lapm",))
    monkeypatch.setattr(nvjpeg.GpuDecoder, "__call__", lambda *_: (_ for _ in ()).throw(KeyError("a bug")))
    found = rows_of(scorer, [encode(ASTRONAUT, "JPEG"), encode(SMALL, "JPEG")])
    assert [row["status"] for row in found] == ["ok", "ok"]
    assert found[0]["lapm"] == rows_of(scorer_of(None, ("lapm",)), [encode(ASTRONAUT, "JPEG")])[0]["lapm"]


def test_a_lost_gpu_is_told_as_ever(scorer_of: Any) -> None:
    def lost(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if len(tensors[0]) > 2000:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return by_torchvisions_cpu(tensors)

    scorer = scorer_of(lost, ("lapm",))
    with pytest.raises(DeviceLost, match="noticed by nvJPEG"):
        rows_of(scorer, [encode(ASTRONAUT, "JPEG")])


def test_files_for_the_gpu_share_batches_bounded_by_their_pixels(
    scorer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def counted(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(tensors))
        return by_torchvisions_cpu(tensors)

    scorer = scorer_of(counted, ("lapm",))
    calls.clear()
    small = [encode(SMALL, "JPEG")] * 5
    rows_of(scorer, small)
    assert calls == [4, 1]
    calls.clear()
    monkeypatch.setattr("qualitygate.metrics.rows._PIXELS_AT_ONCE", 2 * 93 * 117)
    rows_of(scorer, small)
    assert calls == [2, 2, 1]


def test_the_watch_covers_the_gpus_decoding(scorer_of: Any) -> None:
    watched: list[list[str]] = []
    inside: list[bool] = []

    @contextmanager
    def watch(ids: Sequence[str]) -> Any:
        watched.append(list(ids))
        inside.append(True)
        yield
        inside.pop()

    def noted(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        assert inside or len(tensors[0]) < 2000
        return by_torchvisions_cpu(tensors)

    scorer = scorer_of(noted, ("lapm",))
    item = scorer.prepare(Request(image_id="a", uri=None), storage.Fetched(data=encode(ASTRONAUT, "JPEG"), etag=None))
    assert item.photograph is None
    assert item.pixels == 512 * 512
    (row,) = scorer.finished([item], watch)
    assert row["status"] == "ok"
    assert watched == [["a"]]


# ---- the option ------------------------------------------------------------------------------------------


def test_it_is_part_of_the_fingerprint_and_of_what_it_stands_for() -> None:
    strict, other = (Plan(metrics=("lapm",), policy=policy) for policy in (DecodePolicy(), POLICY))
    assert strict.fingerprints() != other.fingerprints()
    assert other.definitions()["lapm"]["whole"]["decode"]["decoder"] == "nvjpeg 1, else 1"
    assert strict.definitions()["lapm"]["whole"]["decode"]["decoder"] == 1


def test_it_needs_a_gpu_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScoreConfig(input=str(tmp_path), output=str(tmp_path / "o"), metrics=("lapm",), decoder="nvjpeg")
    with pytest.raises(ConfigurationError, match=r"nvjpeg is for GPUs, and --device is auto: add --device cuda"):
        planning.plan_scores(config)
    plan, _ = planning.plan_scores(config.model_copy(update={"device": "cuda"}))
    assert plan.policy.decoder == "nvjpeg"
    without = session.Cluster(cpus=4, gpus=0, local=True)
    with pytest.raises(ConfigurationError, match="the Ray cluster has no GPU that could decode"):
        planning.on_device(config.model_copy(update={"device": "cuda"}), plan, without)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(workers, "gpu_name", lambda: "0 of node a")
    monkeypatch.setattr(workers, "ray", SimpleNamespace(get=lambda answer: answer))
    journal = SimpleNamespace(known=SimpleNamespace(remote=lambda _: False))
    with pytest.raises(ConfigurationError, match=r"--decoder nvjpeg: a node .* has no CUDA device"):
        workers.on_this_machine(
            dataclasses.replace(plan, device="cuda"), workers.WorkerSettings(run_id="r", image_timeout_s=9), journal
        )
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        qualitygate.score(SMALL, "lapm", decoder="nvjpeg")
    with pytest.raises(ConfigurationError, match="--formulas cpu: the pixels"):
        planning.plan_scores(config.model_copy(update={"device": "cuda", "formulas": "cpu"}))
    with pytest.raises(ConfigurationError, match="longest_side is 500, and what nvjpeg decodes stays on the GPU"):
        planning.plan_scores(config.model_copy(update={"device": "cuda", "longest_side": 500}))


def test_on_a_cpu_the_policy_changes_no_pixel() -> None:
    """As where a photograph's cost is measured before the GPU's workers start."""
    scorer = RowScorer(Plan(metrics=("lapm",), policy=POLICY), run_id="r")
    data = encode(ASTRONAUT, "JPEG")
    (row,) = rows_of(scorer, [data])
    assert row["lapm"] == rows_of(RowScorer(Plan(metrics=("lapm",)), run_id="r"), [data])[0]["lapm"]


def test_half_precision_verified_on_the_strict_decoders_pixels_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from qualitygate.metrics import Parameters, comparison, verification

    plan = Plan(metrics=("hyperiqa",), parameters=Parameters(untrained=True))
    made = verification.fast_fingerprints(plan, plan.metrics)["hyperiqa"]
    verdict = comparison.judged("hyperiqa", made, [(float(i), i + 1e-6) for i in range(100)], min_srcc=0.9, max_error=1)
    found = verification.Verification(
        device="GPU",
        kind="cuda",
        torch="2",
        created="",
        photographs=100,
        unreadable=0,
        min_srcc=0.9,
        max_error=1,
        metrics=(verdict,),
    )
    monkeypatch.setattr(verification, "read", lambda _: found)
    execution, _ = verification.execution(dataclasses.replace(plan, policy=POLICY), "precision.json")
    assert execution == Execution(fast=("hyperiqa",), gpu="GPU")


def test_a_photograph_elsewhere_has_its_size_without_its_pixels() -> None:
    brought: list[int] = []

    def bring() -> Any:
        brought.append(1)
        return np.zeros((4, 5, 3), np.uint8)

    photograph = Photograph.elsewhere(4, 5, bring, key="known")
    assert (photograph.height, photograph.width) == (4, 5)
    assert photograph.once("key", lambda _: "computed") == "known"
    assert not brought
    assert photograph.rgb is photograph.rgb
    assert brought == [1]
    assert Image.fromarray(photograph.rgb).size == (5, 4)
