"""The worker of the robustness job: a Ray actor that decodes a sample's photographs and scores all their variants."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import ray

from qualitygate import logs
from qualitygate.calibration.correlation import BLUR, CROP_CENTRE, CROP_CORNER, ROTATION, ROTATION_SECOND, WINDOW
from qualitygate.calibration.samples import Sample, Shot, photograph
from qualitygate.cluster.losses import Losses
from qualitygate.cluster.workers import (
    WorkerSettings,
    end_if_lost,
    ending_with_its_gpu,
    gpu_name,
    on_this_machine,
    use_threads,
)
from qualitygate.errors import DeviceLost, ErrorCode, Failure, ImageError
from qualitygate.images import augment
from qualitygate.images.augment import Interpolation
from qualitygate.images.photograph import Photograph
from qualitygate.metrics.rows import Plan, Prepared, Request, Row, RowScorer
from qualitygate.tables import scores

VALUES = pa.schema(
    [
        pa.field("sample", pa.string(), nullable=False),
        pa.field("nuisance", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        # Remaining share of the sides, degrees, place in the blur series, or sigma in pixels.
        pa.field("parameter", pa.float64(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("state", pa.string(), nullable=False),
    ]
)
# What a task takes: a sample a row.
_SHOT = pa.struct(
    [
        ("image_id", pa.string()),
        ("uri", pa.string()),
        ("box", pa.list_(pa.int64())),
        ("etag", pa.string()),
        ("step", pa.int64()),
    ]
)
SAMPLES = pa.schema([("position", pa.int64()), ("sample", pa.string()), ("shots", pa.list_(_SHOT))])
_ERROR = pa.struct([("image_id", pa.string()), ("code", pa.string()), ("message", pa.string())])
# What a task returns: a row for each sample.
RESULTS = pa.schema(
    [
        pa.field("position", pa.int64()),
        pa.field("usable", pa.bool_()),
        pa.field("values", pa.list_(pa.struct(list(VALUES)))),
        pa.field("errors", pa.list_(_ERROR)),
    ]
)
# Begun this often without an end, a sample is taken to kill its worker. Once may be a lost machine.
_STARTS_THAT_CONVICT = 2


@ray.remote(num_cpus=0)
class Attempts:
    """How often each sample was begun without an end, remembered outside the processes that may die."""

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}
        self._losses = Losses()

    def begin(self, position: int) -> int:
        """Times begun before without an end."""
        before = self._begun.get(position, 0)
        self._begun[position] = before + 1
        return before

    def end(self, position: int) -> None:
        """The sample has its result."""
        self._begun.pop(position, None)

    def lost(self, gpu: str, *, starting: bool = False) -> int:
        """A worker has lost this GPU; how often that has happened since it last scored anything, or at starts."""
        return self._losses.lost(gpu, starting=starting)

    def worked(self, gpu: str) -> None:
        """This GPU has scored something."""
        self._losses.worked(gpu)

    def known(self, gpu: str) -> bool:
        """Whether a worker has had this GPU before."""
        return self._losses.known(gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSettings:
    """What to make of each sample. blur: "manifest" or "rendered"."""

    blur: str
    interpolation: Interpolation
    second_interpolation: Interpolation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a value stands in its series."""

    nuisance: str
    step: int
    parameter: float


class SampleScorer:
    """Callable class of the actor pool: samples in, their values out."""

    def __init__(self, plan: Plan, machine: WorkerSettings, settings: VariantSettings, attempts: Any) -> None:
        logs.set_up(machine.log_format, verb="robustness")
        use_threads(machine.threads)
        self._lost: DeviceLost | None = None
        try:
            plan = on_this_machine(plan, machine, attempts)
            self._scorer = RowScorer(plan, run_id=machine.run_id)
        except DeviceLost as error:
            # For the first task to end over.
            self._lost = error
        self._plan = plan
        self._settings = settings
        self._blur = BLUR[settings.blur]
        self._attempts = attempts

    def __call__(self, batch: pa.Table) -> pa.Table:
        end_if_lost(self._lost, self._attempts)
        results = []
        for row in batch.to_pylist():
            position, shots = row["position"], tuple(Shot(**shot) for shot in row["shots"])
            sample = Sample(name=row["sample"], shots=shots)
            begun = ray.get(self._attempts.begin.remote(position))
            if begun >= _STARTS_THAT_CONVICT:
                reason = f"its worker process died {begun} times while scoring it"
                result = self._failed(sample, Failure(ErrorCode.WORKER_CRASH, reason))
            else:
                with ending_with_its_gpu(self._attempts):
                    result = self.score(sample)
                if self._plan.device == "cuda":
                    ray.get(self._attempts.worked.remote(gpu_name()))
            results.append({"position": position, **result})
            ray.get(self._attempts.end.remote(position))
        return pa.Table.from_pylist(results, schema=RESULTS)

    def score(self, sample: Sample) -> dict[str, Any]:
        """A row of RESULTS, but for its position. Not usable: its sharp photograph can't be read."""
        sharp = sample.shots[0]
        try:
            pixels = self._photograph(sharp)
        except ImageError as error:
            return self._failed(sample, error.failure)
        places: list[tuple[_Place, ...]] = []

        def prepared() -> Iterator[Prepared]:
            for where, part in self._parts(sample, pixels):
                places.append(where)
                yield part

        # Networks are given several variants at once; rows come in the order of the parts.
        rows = list(self._scorer.finished(prepared()))
        shots = sample.shots[1:] if self._settings.blur == "manifest" else ()
        errors = [
            _error(shot, row)
            for shot, row in zip(shots, rows[len(rows) - len(shots) :], strict=True)
            if row["status"] == "error"
        ]
        values = [
            value
            for several, row in zip(places, rows, strict=True)
            for place in several
            for value in self._values(sample, place, row)
        ]
        return {"usable": True, "values": values, "errors": errors}

    def _failed(self, sample: Sample, failure: Failure) -> dict[str, Any]:
        sharp = sample.shots[0]
        row = self._scorer.failed_row(_request(sharp), failure)
        place = _Place(nuisance=self._blur, step=sharp.step, parameter=0.0)
        return {"usable": False, "values": list(self._values(sample, place, row)), "errors": [_error(sharp, row)]}

    def _photograph(self, shot: Shot) -> Photograph:
        fetched = self._scorer.fetch(_request(shot))
        if isinstance(fetched, Failure):
            raise ImageError(fetched.code, fetched.message)
        return photograph(fetched.data, shot, self._plan)

    def _parts(self, sample: Sample, pixels: Photograph) -> Iterator[tuple[tuple[_Place, ...], Prepared]]:
        """Everything to score, each with its places: the sharp photograph starts three series, and is scored once.

        The other photographs of a manifest's series come last, one a part.
        """
        rgb, settings, sharp = pixels.rgb, self._settings, sample.shots[0]
        starts = [_Place(nuisance=nuisance, step=0, parameter=1.0) for nuisance in (CROP_CORNER, CROP_CENTRE)]
        starts.append(_Place(nuisance=self._blur, step=sharp.step, parameter=0.0))
        yield tuple(starts), self._scorer.prepare_photograph(sharp.image_id, pixels)
        series = [(CROP_CORNER, augment.crops_from_corner(rgb)), (CROP_CENTRE, augment.crops_centred(rgb))]
        if settings.blur == "rendered":
            series.append((self._blur, augment.rendered_blur(rgb)))
        for nuisance, variants in series:
            # The first is the photograph itself.
            yield from self._variants(sample, nuisance, islice(variants, 1, None))
        yield from self._rotations(sample, pixels)
        if settings.blur == "manifest":
            for rank, shot in enumerate(sample.shots[1:], start=1):
                request = _request(shot)
                place = _Place(nuisance=self._blur, step=shot.step, parameter=float(rank))
                yield (place,), self._scorer.prepare(request, self._scorer.fetch(request))

    def _rotations(self, sample: Sample, pixels: Photograph) -> Iterator[tuple[tuple[_Place, ...], Prepared]]:
        rgb, second = pixels.rgb, self._settings.second_interpolation
        window = augment.window(rgb)
        plain = _Place(nuisance=WINDOW, step=0, parameter=0.0)
        if window is not None:
            yield (plain,), self._scorer.prepare_photograph(sample.name, Photograph(rgb=window))
            yield from self._variants(sample, ROTATION, augment.rotations(rgb, self._settings.interpolation))
            if second:
                yield from self._variants(sample, ROTATION_SECOND, augment.rotations(rgb, second))
            return
        size = f"{pixels.width}x{pixels.height}"
        failure = Failure(ErrorCode.TOO_SMALL, f"{size} has no window of {augment.MIN_WINDOW} pixels to rotate in")
        turned = [
            _Place(nuisance=nuisance, step=step, parameter=float(angle))
            for nuisance in (ROTATION, *([ROTATION_SECOND] if second else []))
            for step, angle in enumerate(augment.ANGLES)
        ]
        yield (plain, *turned), Prepared(row=self._scorer.failed_row(_request(sample.shots[0]), failure))

    def _variants(
        self, sample: Sample, nuisance: str, variants: Iterable[augment.Variant]
    ) -> Iterator[tuple[tuple[_Place, ...], Prepared]]:
        for variant in variants:
            place = _Place(nuisance=nuisance, step=variant.step, parameter=variant.parameter)
            yield (place,), self._scorer.prepare_photograph(sample.name, Photograph(rgb=variant.rgb))

    def _values(self, sample: Sample, place: _Place, row: Row) -> Iterator[dict[str, Any]]:
        for metric in self._plan.metrics:
            yield {
                "sample": sample.name,
                **asdict(place),
                "metric": metric,
                "value": row[metric],
                "state": row[scores.state_column(metric)],
            }


def as_rows(samples: tuple[Sample, ...]) -> list[dict[str, Any]]:
    """The samples as the pool takes them."""
    return [
        {"position": position, "sample": sample.name, "shots": [asdict(shot) for shot in sample.shots]}
        for position, sample in enumerate(samples)
    ]


def _request(shot: Shot) -> Request:
    return Request(image_id=shot.image_id, uri=shot.uri, box=shot.box, etag=shot.etag)


def _error(shot: Shot, row: Row) -> dict[str, Any]:
    return {"image_id": shot.image_id, "code": str(row["error_code"]), "message": row["error_message"]}
