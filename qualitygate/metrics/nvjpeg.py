"""JPEGs decoded on the GPU that scores them, by nvJPEG through torchvision: an option where CPUs can't keep up.

Only plain files come here (images/formats/jpeg.py says which), their headers checked on the CPU; what nvJPEG refuses
goes back to the strict decoder. Pixels stay on the GPU. They are not the strict decoder's: the inverse transform
rounds elsewhere, and subsampled chroma is repeated where libjpeg smooths it (torchvision asks for nvJPEG's defaults).
And nvJPEG fills in what is damaged or missing inside the coded data, where the strict decoder refuses the file: see
docs/metrics.md. Everything here needs torch.
"""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch

from qualitygate.errors import ConfigurationError, ErrorCode, Failure
from qualitygate.images.decode import Encoded
from qualitygate.images.photograph import Photograph
from qualitygate.metrics import memory
from qualitygate.metrics.starting import starting_on_a_gpu

# Files as (bytes,) uint8 in the CPU's memory -> (3, H, W) uint8 RGB each, on the GPU.
Decode = Callable[[list[torch.Tensor]], list[torch.Tensor]]


def by_torchvision(files: list[torch.Tensor]) -> list[torch.Tensor]:
    """nvJPEG's pixels. Raises RuntimeError where one of the files is more than it can do."""
    from torchvision.io import ImageReadMode, decode_jpeg

    # It writes from a stream of its own into memory that work still queued on this one may be reading.
    torch.cuda.current_stream().synchronize()
    with warnings.catch_warnings():
        # It is to move to another package.
        warnings.simplefilter("ignore", DeprecationWarning)
        found: list[torch.Tensor] = decode_jpeg(files, mode=ImageReadMode.RGB, device="cuda")
    return found


class GpuDecoder:
    """Decodes several files at once.

    At its start it raises ConfigurationError where torchvision has no nvJPEG, and DeviceLost where the GPU itself, or
    its memory, is the reason.
    decode: the tests name others than nvJPEG.
    """

    def __init__(self, decode: Decode | None = None) -> None:
        self._decode = decode or by_torchvision
        try:
            with starting_on_a_gpu("nvJPEG's start"):
                self._decode([_as_tensor(_sample())])
        except (RuntimeError, ImportError, AttributeError) as error:
            said = f"{error}".partition("\n")[0][:200]
            raise ConfigurationError(
                f"--decoder nvjpeg: torchvision can't decode JPEGs on this GPU ({said}); install one built with "
                "nvJPEG, as pip's for CUDA are, or leave --decoder nvjpeg out"
            ) from error

    def __call__(self, files: Sequence[Encoded]) -> list[Photograph | Failure | None]:
        """A photograph with its pixels on the GPU for each; None for those that are left to the strict decoder.

        Of several of which one can't be decoded, by halves. A Failure where memory doesn't suffice for one alone: the
        strict decoder's pixels are others, and which photograph meets a full GPU depends on its neighbours.
        """
        if not files:
            return []
        try:
            stored = self._decode([_as_tensor(file.data[: file.end]) for file in files])
            return [_fitting(file, pixels) for file, pixels in zip(files, stored, strict=True)]
        except (RuntimeError, MemoryError) as error:
            if memory.is_device_lost(error):
                raise
            lacks_memory = memory.is_out_of_memory(error)
        if len(files) == 1:
            (file,) = files
            said = f"no memory on the GPU to decode {file.width} x {file.height} pixels"
            return [Failure(ErrorCode.OUT_OF_MEMORY, said) if lacks_memory else None]
        torch.cuda.empty_cache()
        half = len(files) // 2
        return [*self(files[:half]), *self(files[half:])]


def _fitting(file: Encoded, stored_CHW: torch.Tensor) -> Photograph | None:
    """The photograph, unless it has another size than its header says."""
    turned = file.orientation >= 5
    expected = (3, file.width, file.height) if turned else (3, file.height, file.width)
    return _photograph(upright(stored_CHW, file)) if tuple(stored_CHW.shape) == expected else None


def upright(stored_CHW: torch.Tensor, file: Encoded) -> torch.Tensor:
    """The photograph or its box as it is to be seen: (H, W, 3), contiguous; as images/pixels.py does on a CPU."""
    rgb = stored_CHW.permute(1, 2, 0)
    if file.orientation >= 5:
        rgb = rgb.transpose(0, 1)
    axes = [0] * (file.orientation in (3, 4, 7, 8)) + [1] * (file.orientation in (2, 3, 6, 7))
    if axes:
        rgb = rgb.flip(axes)
    if file.box is not None:
        x, y, w, h = file.box
        rgb = rgb[y : y + h, x : x + w]
    return rgb.contiguous()


def _photograph(pixels_HWC: torch.Tensor) -> Photograph:
    height, width = pixels_HWC.shape[:2]
    return Photograph.elsewhere(height, width, lambda: pixels_HWC.cpu().numpy(), **{memory.ON_GPU: pixels_HWC})


def _as_tensor(data: bytes) -> torch.Tensor:
    # A copy of its own: torch wants memory that could be written to.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _sample() -> bytes:
    import cv2

    return cv2.imencode(".jpg", np.full((16, 16, 3), 128, np.uint8))[1].tobytes()
