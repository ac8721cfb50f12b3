"""MUSIQ, MANIQA and HyperIQA as metrics: what each is, and which parameters it is loaded with.

The network modules import torch, so the catalogue describes them here without importing them; a test holds the
two descriptions against each other.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import precision as precisions
from qualitygate.metrics import weights
from qualitygate.metrics.metric import Device, Metric, Scorer
from qualitygate.metrics.precision import REFERENCE, Execution, Precision
from qualitygate.metrics.weights import Located
from qualitygate.tables import storage

# Bytes differ between seeds and nothing else does: one seed is enough to try the plumbing.
UNTRAINED_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Where networks take their parameters from. Travels to the workers.

    weights: what `--weights` says: a file or a folder; None for the default folder.
    untrained: seeded random parameters instead, to try the plumbing; such scores mean nothing and say so.
    located: what was found by the driver, so that every worker loads the same bytes.
    """

    weights: str | None = None
    untrained: bool = False
    located: tuple[Located, ...] = ()


PUBLISHED = Parameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A preset of a network: which module, which entry of weights.yaml, what its score means."""

    name: str
    module: str
    weights: str
    unit: str
    range: tuple[float | None, float | None]
    reference: str


_MUSIQ = "Ke, Wang, Wang, Milanfar, Yang 2021, ICCV; google-research/musiq"
_MANIQA = "Yang, Wu, Shi, Lao, Gong, Cao, Wang, Yang 2022, CVPR Workshops; IIGROUP/MANIQA"
_HYPERIQA = "Su, Yan, Zhu, Zhang, Ge, Sun, Zhang 2020, CVPR; SSL92/hyperIQA"


def _network(name: str, module: str, entry: str, trained_on: str, reference: str, **more: Any) -> Network:
    return Network(
        name=name, module=module, weights=entry, unit=f"opinion score as in {trained_on}", reference=reference, **more
    )


NETWORKS: dict[str, Network] = {
    network.name: network
    for network in (
        _network("musiq", "musiq", "musiq-koniq", "KonIQ-10k", _MUSIQ, range=(0.0, 100.0)),
        _network("maniqa", "maniqa", "maniqa-pipal", "PIPAL", _MANIQA, range=(0.0, None)),
        _network("hyperiqa", "hyperiqa", "hyperiqa-koniq", "KonIQ-10k", _HYPERIQA, range=(None, None)),
        _network("musiq-spaq", "musiq", "musiq-spaq", "SPAQ", _MUSIQ, range=(0.0, 100.0)),
        _network("musiq-ava", "musiq", "musiq-ava", "AVA", _MUSIQ, range=(1.0, 10.0)),
        _network("musiq-paq2piq", "musiq", "musiq-paq2piq", "PaQ-2-PiQ", _MUSIQ, range=(0.0, 100.0)),
        _network("maniqa-koniq", "maniqa", "maniqa-koniq", "KonIQ-10k", _MANIQA, range=(0.0, None)),
        _network("maniqa-kadid", "maniqa", "maniqa-kadid", "KADID-10k", _MANIQA, range=(0.0, None)),
    )
}


def catalogue(parameters: Parameters = PUBLISHED, execution: Execution = REFERENCE) -> dict[str, Metric]:
    """The networks as metrics, bound to where their parameters come from and to how they are run."""
    return {name: metric(network, parameters, execution) for name, network in NETWORKS.items()}


def metric(network: Network, parameters: Parameters, execution: Execution = REFERENCE) -> Metric:
    """One network as a metric. Nothing is read before it is asked for.

    Its precision is what `load` computes in, on whatever device: half precision where `execution` says so.
    """
    precision: Precision = "fast" if network.name in execution.fast else "float32"

    def load(device: Device) -> Scorer:
        module = importlib.import_module(f"qualitygate.metrics.{network.module}")
        with naming_the_file(network, parameters):
            scorer: Scorer = module.load(
                state_dict(network, parameters),
                module.PRESETS[network.name],
                device,
                precision,
                compiled=execution.compiled and device == "cuda",
            )
        return scorer

    return Metric(
        name=network.name,
        version=1,
        higher_is_better=True,
        range=network.range,
        unit=network.unit,
        reference=network.reference,
        code_license="Apache-2.0",
        weights_license=weights.license_of(network.weights),
        device="gpu",
        parameters_sha256=lambda: _sha256(network, parameters),
        unavailable=lambda: _unavailable(network, parameters),
        load=load,
        precision=precisions.stored(precision),
        trained=not parameters.untrained,
    )


def state_dict(network: Network, parameters: Parameters) -> Mapping[str, Any]:
    """The parameters themselves; ConfigurationError with the remedy where there are none."""
    if parameters.untrained:
        module = importlib.import_module(f"qualitygate.metrics.{network.module}")
        return untrained_state_dict(module, network.name)
    found = located(network, parameters)
    if isinstance(found, str):
        raise ConfigurationError(f"{network.name} can't be computed: {found}")
    return weights.load_state_dict(found)


@contextmanager
def naming_the_file(network: Network, parameters: Parameters) -> Iterator[None]:
    """Errors about parameters inside say which file holds them."""
    try:
        yield
    except ConfigurationError as error:
        found = None if parameters.untrained else located(network, parameters)
        if not isinstance(found, Located) or found.place in str(error):
            raise
        raise ConfigurationError(f"{found.place!r}: {error}") from error


def untrained_state_dict(module: Any, name: str) -> Mapping[str, Any]:
    """The seeded random parameters of a preset, the same for both backends."""
    seeded: Callable[..., Mapping[str, Any]] = module.seeded_state_dict
    if module.__name__.endswith(".musiq"):
        return seeded(UNTRAINED_SEED, module.PRESETS[name])
    return seeded(UNTRAINED_SEED)


def located(network: Network, parameters: Parameters) -> Located | str:
    """The file that serves a network, or why there is none."""
    for found in parameters.located:
        if found.name == network.weights:
            return found
    return _locate(network.weights, parameters.weights)


def _locate(entry: str, place: str | None) -> Located | str:
    # Hashing half a gigabyte is remembered by weights.hash_of while the file is the same. What a user names is the
    # user's own, whatever the published hash.
    return weights.locate(entry, place, accept_new_hash=place is not None)


def _unavailable(network: Network, parameters: Parameters) -> str | None:
    if parameters.untrained:
        return None
    found = located(network, parameters)
    return found if isinstance(found, str) else None


def _sha256(network: Network, parameters: Parameters) -> str | None:
    if parameters.untrained:
        return f"untrained, seed {UNTRAINED_SEED}"
    found = located(network, parameters)
    return None if isinstance(found, str) else found.sha256


def check_named(parameters: Parameters) -> None:
    """ConfigurationError for a single file of weights that doesn't say by its name which network it belongs to."""
    place = parameters.weights
    if place is None or parameters.untrained or not weights.is_file_of_ones_own(place):
        return
    raise ConfigurationError(
        f"--weights {storage.redact(place)!r} is one file, whose name isn't that of published weights: say with "
        "--metrics which network it belongs to"
    )


def published(name: str, parameters: Parameters) -> bool:
    """Whether a network's parameters are the published ones or pinned by the user, not merely some file of theirs."""
    found = located(NETWORKS[name], parameters) if name in NETWORKS else None
    return not (isinstance(found, Located) and found.trust == "own")


def pinned(names: tuple[str, ...], parameters: Parameters) -> Parameters:
    """The same with everything found that these metrics need, to be sent to other machines."""
    if parameters.untrained:
        return parameters
    found = [located(NETWORKS[name], parameters) for name in names if name in NETWORKS]
    return Parameters(weights=parameters.weights, located=tuple(one for one in found if isinstance(one, Located)))
