"""A camera: linear light in, JPEG bytes out, with every defect applied where a real camera has it.

    scene radiance (linear light, RGB)
      → optics    defocus disk, line of motion, lens       `blur`        still linear light
      → exposure  automatic, off by some EV                `expose`
      → sensor    shot and read noise                      `add_noise`   still linear light
      → tone      sRGB curve and a mild S                  `develop`     8 bit
      → file      JPEG with EXIF                           `encode_jpeg`

Lengths in the optics are pixels of a photograph 1024 pixels wide (`REFERENCE_SIZE`), whatever the size that
is rendered: a blur of 16 covers 1/64 of the frame in a photograph of 64 pixels too. Noise is the opposite:
it belongs to a pixel, and is the same for each pixel at every size.

Shapes: H, W = rows and columns; images are (H, W, 3), colour last, float32 in linear light, uint8 after it.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from scipy import fft, special

Floats = npt.NDArray[np.float32]

REFERENCE_SIZE = 1024  # pixels: the width that lengths of blur refer to, and the paper's photographs have
LENS_SIGMA = 0.5  # reference pixels: what lens and demosaicing take from even a focused photograph
MID_GREY = 0.2140  # linear light that the plain sRGB curve shows as 127.5 of 255; where noise is stated
METER_TARGET = 0.30  # linear light that automatic exposure gives to the mean of a frame
READ_SHARE = 0.25  # of the noise variance at mid-grey: read noise; the rest is shot noise
_TONE_STEPS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A camera model (invented): its EXIF names, the strength of its S-curve and its white balance.

    contrast: 0 (plain sRGB) to 1 (a full smoothstep). gains: linear-light factors of R, G, B.
    """

    make: str
    model: str
    contrast: float
    gains: tuple[float, float, float]


MODELS = (
    Model(make="Halden", model="Halden H5", contrast=0.20, gains=(1.00, 1.00, 1.00)),
    Model(make="Halden", model="Halden H7 Pro", contrast=0.30, gains=(1.03, 1.00, 0.98)),
    Model(make="Orbella", model="Orbella One", contrast=0.10, gains=(0.97, 1.00, 1.04)),
    Model(make="Tindra", model="Tindra Lumo 2", contrast=0.25, gains=(1.05, 1.00, 0.94)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraState:
    """How one photograph was taken.

    defocus: radius of the disk of confusion, reference pixels, [0, inf).
    motion: length of the line that a point draws, reference pixels, [0, inf); motion_angle: radians.
    exposure: EV away from automatic exposure. noise: standard deviation of one channel of one pixel at
    mid-grey, in 8-bit levels before JPEG, [0, inf). jpeg_quality: libjpeg's, 1 to 95.
    """

    model: Model
    captured_at: datetime
    defocus: float
    motion: float
    motion_angle: float
    exposure: float
    noise: float
    jpeg_quality: int

    @property
    def rms_blur(self) -> float:
        """RMS radius of the point spread, in reference pixels, [0.7, inf); lower is sharper.

        The square root of E[x² + y²] over the point spread. Variances of a convolution add: a disk of
        radius R has R²/2, a line of length L has L²/12, the lens (a Gaussian) has 2 sigma². The pixel's
        own square aperture, which depends on the size that is rendered, is not counted.
        """
        return math.sqrt(self.defocus**2 / 2 + self.motion**2 / 12 + 2 * LENS_SIGMA**2)

    @property
    def reach(self) -> float:
        """How far from its centre the point spread is not yet nil, in reference pixels."""
        return self.defocus + self.motion / 2 + 4 * LENS_SIGMA


def optical_transfer(side: int, scale: float, state: CameraState) -> Floats:
    """Fourier transform of the point spread, for a square canvas: (side, side // 2 + 1), in [-0.14, 1].

    scale: canvas pixels for one reference pixel. Written down in closed form (a disk is 2 J1(x) / x, a line
    is a sinc), so that radii of a fraction of a pixel are exact and nothing is stepped.
    """
    rows = fft.fftfreq(side)[:, None]
    columns = fft.rfftfreq(side)[None, :]
    # Disk and lens depend on the distance from the origin only: one dense table, looked up.
    radius = np.hypot(rows, columns)
    distance = np.linspace(0.0, math.sqrt(0.5) + 1e-3, 8192)
    argument = 2 * math.pi * state.defocus * scale * distance
    disk = np.ones_like(distance)
    np.divide(2 * special.j1(argument), argument, out=disk, where=argument > 1e-9)
    lens = np.exp(-2 * (math.pi * LENS_SIGMA * scale * distance) ** 2)
    transfer = np.interp(radius, distance, disk * lens).astype(np.float32)
    if state.motion > 0:
        along = columns * math.cos(state.motion_angle) + rows * math.sin(state.motion_angle)
        transfer *= np.sinc(state.motion * scale * along).astype(np.float32)
    return transfer


def blur(radiance: Floats, scale: float, state: CameraState) -> Floats:
    """The image that the lens casts: a square canvas (H, H, 3) of linear light, convolved circularly.

    The mean is conserved, for light is only moved. A margin of `state.reach * scale` pixels at each edge
    sees light from the opposite edge and is for the caller to cut off.
    """
    side = radiance.shape[0]
    transfer = optical_transfer(side, scale, state)
    planes = np.ascontiguousarray(radiance.transpose(2, 0, 1))
    spectrum = fft.rfft2(planes)
    spectrum *= transfer
    cast: Floats = fft.irfft2(spectrum, s=(side, side), overwrite_x=True)
    return np.ascontiguousarray(cast.transpose(1, 2, 0))


def expose(light: Floats, state: CameraState) -> Floats:
    """Light as a share of the sensor's full well: the mean is `METER_TARGET * 2**exposure`, then the tint."""
    gain = METER_TARGET * 2.0**state.exposure / max(float(light.mean()), 1e-6)
    exposed: Floats = light * (gain * np.asarray(state.model.gains, np.float32)).astype(np.float32)
    return exposed


def add_noise(exposed: Floats, state: CameraState, rng: np.random.Generator) -> Floats:
    """Shot noise (variance grows with light) and read noise (constant), both in linear light."""
    if state.noise <= 0:
        return exposed
    slope = _tone_slope_at_mid_grey(state.model.contrast)
    variance = (state.noise / 255 / slope) ** 2  # in linear light, at mid-grey
    spread = np.maximum(exposed, 0) * np.float32((1 - READ_SHARE) * variance / MID_GREY)
    spread += np.float32(READ_SHARE * variance)
    np.sqrt(spread, out=spread)
    spread *= rng.standard_normal(exposed.shape, dtype=np.float32)
    spread += exposed
    return spread


def tone(linear: npt.NDArray[np.floating], contrast: float) -> npt.NDArray[np.float64]:
    """Display values in [0, 1] of linear light in [0, 1]: the sRGB curve, then a mild S.

    IEC 61966-2-1 with a share `contrast` of a smoothstep mixed in; increasing, 0 and 1 stay fixed.
    """
    light = np.clip(np.asarray(linear, np.float64), 0, 1)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)
    mixed: npt.NDArray[np.float64] = srgb + contrast * (srgb * srgb * (3 - 2 * srgb) - srgb)
    return mixed


def linearise(pixels: npt.NDArray[np.uint8], contrast: float) -> npt.NDArray[np.float64]:
    """Linear light in [0, 1] that `develop` turns into these 8-bit values: the inverse of `tone`."""
    light = np.linspace(0, 1, _TONE_STEPS)
    levels = np.interp(np.arange(256) / 255, tone(light, contrast), light)
    recovered: npt.NDArray[np.float64] = levels[pixels]
    return recovered


def develop(exposed: Floats, state: CameraState) -> npt.NDArray[np.uint8]:
    """8-bit RGB of linear light: clipped at the full well, tone curve, rounded."""
    steps = np.clip(exposed * np.float32(_TONE_STEPS - 1) + np.float32(0.5), 0, _TONE_STEPS - 1)
    return np.take(_tone_table(state.model.contrast), steps.astype(np.uint16))


def encode_jpeg(pixels: npt.NDArray[np.uint8], state: CameraState) -> bytes:
    """JPEG (4:2:0) of RGB pixels, with EXIF Make, Model, DateTimeOriginal."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = state.model.make
    exif[ExifTags.Base.Model] = state.model.model
    moment = state.captured_at.strftime("%Y:%m:%d %H:%M:%S")
    exif[ExifTags.Base.DateTime] = moment
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = moment
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=state.jpeg_quality, subsampling="4:2:0", exif=exif.tobytes())
    return stream.getvalue()


@lru_cache(maxsize=16)
def _tone_table(contrast: float) -> npt.NDArray[np.uint8]:
    values = tone(np.arange(_TONE_STEPS) / (_TONE_STEPS - 1), contrast)
    return np.floor(values * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _tone_slope_at_mid_grey(contrast: float) -> float:
    below, above = tone(np.array([MID_GREY - 1e-4, MID_GREY + 1e-4]), contrast)
    return float((above - below) / 2e-4)
