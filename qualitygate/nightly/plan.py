"""What tonight would take, before it starts: what is new, what scoring it costs, and whether the night would stop."""

from pathlib import Path
from typing import Any

from qualitygate.calibration import gate as gates
from qualitygate.calibration import gate_store
from qualitygate.cluster import score_costs
from qualitygate.config import ManifestBuildConfig, NightlyPlanConfig, ScorePlanConfig
from qualitygate.nightly import canary, listing, settings
from qualitygate.tables import manifest_build, storage
from qualitygate.tables.scratch import scratch_folder


def estimate(config: NightlyPlanConfig) -> dict[str, Any]:
    """Counts and times as of `score_costs.estimate`, and under `night` the listing against the last night's.

    Lists the input; writes nothing. Raises ConfigurationError as the nightly job does for its input and settings.
    """
    score = settings.of_score(config)
    last = storage.join(config.output, listing.FILE)
    store = storage.join(config.output, gates.FOLDER)
    with scratch_folder() as scratch:
        built = manifest_build.build(
            ManifestBuildConfig(
                input=config.input,
                output=str(Path(scratch) / "manifest.parquet"),
                previous=last if storage.exists(last) else None,
                image_column=score.image_column,
                max_requests_per_second=score.max_requests_per_second,
                retry_seconds=score.retry_seconds,
                request_timeout_s=score.request_timeout_s,
            ),
            without=(config.output,),
            accept_manifest=True,
        )
        found = score_costs.estimate(
            ScorePlanConfig(
                input=built.output,
                output=config.output,
                metrics=score.metrics,
                gate=store if gate_store.read(store).current else None,
                longest_side=score.longest_side,
                max_pixels=score.max_pixels,
                photographs=config.photographs,
            )
        )
    known = canary.read(config.output) if config.canary else None
    listed = listing.listed(built)
    return {
        **found,
        "night": {
            **listed,
            "changed_share": listing.changed_share(listed),
            "max_changed_share": config.max_changed_share,
            "canary": known.num_rows if known is not None else 0,
        },
    }
