"""What a scoring run reads: a manifest, or a listing whose first photographs are scored while it goes on."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from qualitygate.cluster.planning import Progress
from qualitygate.config import ScoreConfig
from qualitygate.tables import growing, scores
from qualitygate.tables import manifest as manifests
from qualitygate.tables.manifest import Manifest
from qualitygate.tables.storage import Access

# A listing that is over by then is one portion, in the order of the ids; with Ray's start, the workers' and a longer
# wait the first photograph would come later than a minute.
PATIENCE_S = 20.0


class Input:
    """The input of one run. Use as a context: a listing ends with it."""

    def __init__(self, config: ScoreConfig, access: Access, scratch: Path, progress: Progress) -> None:
        self._config = config
        self._access = access
        self._scratch = scratch
        self._progress = progress
        self._stack = ExitStack()
        self._growing: growing.Growing | None = None
        self._manifest: Manifest | None = None

    def __enter__(self) -> "Input":
        self._manifest = self._known()
        if self._manifest is not None:
            self._tell(self._manifest)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _known(self) -> Manifest | None:
        """The whole, where it can be had at once or has to be known before anything starts."""
        config, results = self._config, scores.table_uri(self._config.output)
        budget = config.max_gpu_hours is not None or config.max_cpu_hours is not None
        if config.limit is None and not budget:
            wanted = manifests.Wanted(without=(results,), image_column=config.image_column, access=self._access)
            listing = growing.begin(config.input, self._scratch / "listing", wanted)
            if listing is not None:
                self._growing = self._stack.enter_context(listing)
                return listing.whole() if listing.wait(PATIENCE_S) else None
        return manifests.load(
            config.input,
            self._scratch / "manifest.parquet",
            limit=config.limit,
            results=results,
            image_column=config.image_column,
            access=self._access,
        )

    def portions(self) -> Iterator[Manifest]:
        """The whole, or what has been listed since the last portion, until there is no more."""
        if self._manifest is not None:
            yield self._manifest
            return
        assert self._growing is not None
        while (portion := self._growing.portion()) is not None:
            self._progress.note(
                f"{self._growing.rows:,} photographs are listed so far; {portion.rows:,} of them are looked at now, "
                "while the listing goes on"
            )
            yield portion
        self._manifest = self._growing.all()
        self._tell(self._manifest)

    def all(self) -> Manifest:
        """The whole, or after a stop what was listed until then."""
        if self._manifest is not None:
            return self._manifest
        assert self._growing is not None
        return self._growing.all()

    def beyond(self) -> int:
        """Photographs that are listed and in no portion yet."""
        return self._growing.waiting if self._manifest is None and self._growing is not None else 0

    def _tell(self, manifest: Manifest) -> None:
        for note in manifest.notes:
            self._progress.note(note)
