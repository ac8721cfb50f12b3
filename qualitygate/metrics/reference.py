"""`--backend pyiqa`: the stock implementations under the same names, for comparison with ours.

pyiqa is an extra: heavy, licensed for non-commercial use only, and not needed for anything else. It gets
our shipped parameters as temporary files, so that nothing is downloaded, and one photograph at a time. It
computes in float32 (NIQE's statistics in float64), which is why its BRISQUE moves with the machine where
luma is flat. LAPV, LAPM and WAVS don't exist in pyiqa: they are absent from this catalogue, and `select`
says so.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qualitygate.errors import ErrorCode, Failure
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import networks, scene_statistics
from qualitygate.metrics.metric import Device, Metric, Score, Scorer
from qualitygate.tables.scratch import scratch_folder

_LICENSE = "PolyForm-Noncommercial-1.0.0 and S-Lab-1.0 (pyiqa)"
REMEDY = "pip install 'qualitygate[reference]'"


def unavailable() -> str | None:
    """Why pyiqa can't be used, with the remedy; None when it is installed."""
    if importlib.util.find_spec("pyiqa") is None:
        return f"pyiqa is not installed: {REMEDY} (licensed for non-commercial use)"
    return None


def _implementation() -> str:
    try:
        return f"pyiqa {importlib.metadata.version('pyiqa')}"
    except importlib.metadata.PackageNotFoundError:
        return "pyiqa"


def _write_brisque(folder: Path) -> Path:
    import torch

    machine = scene_statistics.arrays("live_brisque.json")
    path = folder / "brisque.pth"
    torch.save(
        (
            torch.from_numpy(machine["coefficients"].copy()),
            torch.from_numpy(machine["support_vectors"].copy()),
        ),
        path,
    )
    return path


def _write_niqe(folder: Path) -> Path:
    import scipy.io

    model = scene_statistics.arrays("live_niqe.json")
    path = folder / "niqe.mat"
    scipy.io.savemat(path, {"mu_prisparam": model["mean"][None], "cov_prisparam": model["covariance"]})
    return path


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32: emulated in convolutions it moved BRISQUE by up to 9 points. Sums of float16 in float32."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_tf32 = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        matmul.allow_tf32, matmul.allow_fp16_reduced_precision_reduction = before


def _loader(name: str, smallest: int, write: Callable[[Path], Path]) -> Callable[[Device], Scorer]:
    def load(device: Device) -> Scorer:
        import pyiqa

        with scratch_folder() as folder:
            path = write(Path(folder))
            metric = pyiqa.create_metric(name, device=device, pretrained_model_path=str(path))
        # The network itself: InferenceModel.forward would switch TF32 on again.
        network = metric.net

        def scorer(photographs: Sequence[Photograph]) -> list[Score]:
            return [_score(network, photograph, device, smallest) for photograph in photographs]

        return scorer

    return load


def _score(network: Any, photograph: Photograph, device: Device, smallest: int) -> Score:
    import torch

    shorter = min(photograph.height, photograph.width)
    if shorter < smallest:
        return Failure(ErrorCode.TOO_SMALL, f"{shorter} px on a side; {smallest} or more are needed")
    if scene_statistics.is_constant(photograph):
        return Failure(ErrorCode.FLAT, "the luma is constant")
    pixels = torch.from_numpy(np.ascontiguousarray(photograph.rgb)).permute(2, 0, 1)[None]
    try:
        with torch.inference_mode(), full_precision():
            # One value in any of the shapes pyiqa uses: (), (1,), (1, 1).
            value = float(network(pixels.to(device).float() / 255).reshape(()))
    except AssertionError as error:  # "Expected image with non zero variance of pixel values"
        return Failure(ErrorCode.FLAT, f"pyiqa: {error}")
    except (MemoryError, RuntimeError, IndexError, ValueError) as error:  # LinAlgError is a RuntimeError
        return _raised(error)
    return value if math.isfinite(value) else Failure(ErrorCode.NON_FINITE, f"pyiqa returned {value}")


def _raised(error: Exception) -> Failure:
    """Why there is no score; raises the error itself where the GPU is lost, which is no photograph's fault."""
    from qualitygate.metrics.memory import is_device_lost, is_out_of_memory

    if is_device_lost(error):
        raise error
    code = ErrorCode.OUT_OF_MEMORY if is_out_of_memory(error) else ErrorCode.NON_FINITE
    return Failure(code, f"pyiqa: {type(error).__name__}: {error}")


def _stock(metric: Metric, smallest: int, write: Callable[[Path], Path]) -> Metric:
    return dataclasses.replace(
        metric,
        code_license=_LICENSE,
        unavailable=unavailable,
        load=_loader(metric.name, smallest, write),
        precision="float32",
        batched=False,
        backend="pyiqa",
        implementation=_implementation(),
    )


_CLASSICAL: dict[str, Metric] = {
    "brisque": _stock(scene_statistics.BRISQUE, scene_statistics.BRISQUE_SMALLEST, _write_brisque),
    "niqe": _stock(scene_statistics.NIQE, scene_statistics.NIQE_BLOCK, _write_niqe),
}
NAMES = (*_CLASSICAL, *networks.NETWORKS)


def catalogue(parameters: networks.Parameters = networks.PUBLISHED) -> dict[str, Metric]:
    """What pyiqa has of our metrics, with the same parameters as ours."""
    stock = {
        name: dataclasses.replace(
            metric,
            code_license=_LICENSE,
            unavailable=_either(unavailable, metric.unavailable),
            load=_network_loader(networks.NETWORKS[name], parameters),
            backend="pyiqa",
            implementation=_implementation(),
        )
        for name, metric in networks.catalogue(parameters).items()
    }
    return _CLASSICAL | stock


def _either(*reasons: Callable[[], str | None]) -> Callable[[], str | None]:
    return lambda: next((found for reason in reasons if (found := reason())), None)


def _network_loader(network: networks.Network, parameters: networks.Parameters) -> Callable[[Device], Scorer]:
    def load(device: Device) -> Scorer:
        from qualitygate.metrics import crops

        stock = _build(network)
        with networks.naming_the_file(network, parameters):
            state = networks.state_dict(network, parameters)
            crops.check_state(stock, state, network.name)
            stock.load_state_dict(state, strict=True)
        stock = stock.to(device).eval()

        def scorer(photographs: Sequence[Photograph]) -> list[Score]:
            return [_network_score(stock, photograph, device) for photograph in photographs]

        return scorer

    return load


def _build(network: networks.Network) -> Any:
    """pyiqa's module of a preset, without any download.

    Its names differ from ours: its "maniqa" is KonIQ's checkpoint with the Swin scale .8, the paper's PIPAL one
    has .13. Its constructors fetch a backbone that the strict load would overwrite anyway.
    """
    import timm

    create = timm.create_model
    timm.create_model = lambda name, pretrained=False, **more: create(name, pretrained=False, **more)
    try:
        if network.module == "musiq":
            from pyiqa.archs.musiq_arch import MUSIQ

            return MUSIQ(pretrained=False, num_class=10 if network.name == "musiq-ava" else 1)
        if network.module == "maniqa":
            from pyiqa.archs.maniqa_arch import MANIQA

            return MANIQA(pretrained=False, scale=0.13 if network.name == "maniqa" else 0.8)
        from pyiqa.archs.hypernet_arch import HyperNet

        return HyperNet(pretrained=False)
    finally:
        timm.create_model = create


def _network_score(stock: Any, photograph: Photograph, device: Device) -> Score:
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(photograph.rgb)).permute(2, 0, 1)[None]
    try:
        with torch.inference_mode(), full_precision():
            value = float(stock(pixels.to(device).float() / 255).reshape(()))
    except (MemoryError, RuntimeError, IndexError, ValueError, AssertionError) as error:
        return _raised(error)
    finally:
        # MANIQA keeps what its hooks saw: after an exception the next photograph would get this one's features.
        if hasattr(stock, "save_output"):
            stock.save_output.outputs.clear()
    return value if math.isfinite(value) else Failure(ErrorCode.NON_FINITE, f"pyiqa returned {value}")
