"""Classifiers by name: any of torchvision's, with as many outputs as there are classes; nothing is ever downloaded.

Parameters come from a seed or from a state dictionary that the caller has read (see `record`), which must fit to
the last name and shape.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qualitygate.errors import ConfigurationError
from qualitygate.metrics.naming import shown

State = Mapping[str, Tensor]

# ImageNet's, of values in [0, 1], per RGB channel: what torchvision's published parameters expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# The two whose defaults return more than logits, or other logits than their published parameters were trained for.
_AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
_SHOWN = 3


def classifiers() -> list[str]:
    """The names that `build` takes."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def check_name(architecture: str) -> str:
    """The name itself if it is a classifier's; ConfigurationError with what comes close otherwise."""
    import torchvision

    known = classifiers()
    if architecture in known:
        return architecture
    if architecture in torchvision.models.list_models():
        raise ConfigurationError(
            f"architecture {architecture!r} is no plain image classifier (it detects, segments, or is for video or "
            f"quantized); give one such as {', '.join(_near(architecture, known) or ['resnet34'])}"
        )
    near = _near(architecture, known)
    hint = f"did you mean {' or '.join(near)}?" if near else "give a classifier of torchvision, such as resnet34"
    raise ConfigurationError(f"unknown architecture {architecture!r}; {hint}")


def _near(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name.lower(), known, n=_SHOWN, cutoff=0.5)


def build(architecture: str, classes: int, *, image_size: int, seed: int = 0, state: State | None = None) -> nn.Module:
    """A classifier of (N, 3, image_size, image_size) float32 to (N, classes) logits, on the CPU, in training mode.

    seed: of the random parameters; the same seed gives the same bits, and the caller's generators are left alone.
    state: all parameters instead, strictly.

    Raises ConfigurationError: an unknown name, an image too small for the network, a state that doesn't fit.
    """
    check_name(architecture)
    if classes < 2:
        raise ConfigurationError(f"a classifier needs 2 classes at least, not {classes}")
    check_size(architecture, image_size)
    if state is not None:
        _check_fit(architecture, classes, image_size, state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _new(architecture, classes, image_size)
    if state is not None:
        model.load_state_dict(dict(state), strict=True)
    _replace_pools(model, architecture, classes, image_size)
    return model


def transfer(architecture: str, classes: int, state: State, *, image_size: int, seed: int = 0) -> nn.Module:
    """A classifier whose parameters are those of `state` but for the final layer's, which are new, by the seed.

    state: of the same architecture, for any number of classes, such as ImageNet's 1000.
    """
    check_name(architecture)
    body = {name: value for name, value in state.items() if not name.startswith(_AUXILIARY.get(architecture, ()))}
    _check_fit(architecture, outputs(architecture, body), image_size, body)
    model = build(architecture, classes, image_size=image_size, seed=seed)
    head = _head(architecture)
    model.load_state_dict(
        {**model.state_dict(), **{name: body[name] for name in body if name not in head}}, strict=True
    )
    return model


def outputs(architecture: str, state: State) -> int:
    """How many classes a state of this architecture tells apart, by its final layer."""
    check_name(architecture)
    for name in _head(architecture):
        if name in state and state[name].ndim:
            return int(state[name].shape[0])
    absent = ", ".join(_head(architecture))
    raise ConfigurationError(
        f"the weights are not those of a {architecture}: they lack its final layer ({absent}); name the --architecture "
        "they were trained with"
    )


def _new(architecture: str, classes: int, image_size: int) -> nn.Module:
    """torchvision's network with its own random initialisation, weights=None always."""
    import torchvision

    more: dict[str, Any] = {}
    if architecture in _AUXILIARY:
        # transform_input undoes our normalisation in favour of the one that they were trained with.
        more = {"aux_logits": False, "init_weights": True, "transform_input": True}
    elif architecture.startswith("vit_"):
        more = {"image_size": image_size}
    elif architecture.startswith("maxvit"):
        more = {"input_size": (image_size, image_size)}
    return torchvision.models.get_model(architecture, weights=None, num_classes=classes, **more)


def _described(architecture: str, classes: int, image_size: int) -> nn.Module:
    """The network without memory: names and shapes alone."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _new(architecture, classes, image_size)
        except NotImplementedError:  # RegNets compute their widths with tensors
            return _new(architecture, classes, image_size).to("meta")


def _head(architecture: str) -> list[str]:
    """Names of the parameters whose shape goes with the number of classes, which is the final layer."""
    size = 224
    few, more = (_described(architecture, classes, size).state_dict() for classes in (2, 3))
    return [name for name in few if few[name].shape != more[name].shape]


def check_size(architecture: str, image_size: int) -> None:
    """Run shapes through the network: cheap, and says at once what would fail after all has been decoded."""
    try:
        model = _described(architecture, 2, image_size).eval()
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigurationError(
            f"{architecture} can't take photographs of {image_size} x {image_size} pixels ({reason}); "
            "give another --image-size, such as 224"
        ) from error


def _check_fit(architecture: str, classes: int, image_size: int, state: State) -> None:
    wanted = {
        name: tuple(value.shape) for name, value in _described(architecture, classes, image_size).state_dict().items()
    }
    given = {name: tuple(value.shape) for name, value in state.items()}
    # Older files lack the counters of batches, which torch's strict loading then makes.
    absent = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    extra = [shown(name, quoted=False) for name in given if name not in wanted]
    other = [
        f"{name} {given[name]} instead of {wanted[name]}"
        for name in wanted
        if given.get(name, wanted[name]) != wanted[name]
    ]
    found = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for names, what in ((absent, "absent"), (extra, "unknown"), (other, "of another shape"))
        if names
    ]
    if found:
        raise ConfigurationError(
            f"the weights don't fit a {architecture} of {classes} classes at {image_size} px: tensors "
            f"{'; '.join(found)}; name the --architecture and --image-size that they were trained with"
        )


# ---- pooling that is the same in every run -----------------------------------------------------------------


class _MatrixPool(nn.Module):
    """AdaptiveAvgPool2d as two matrix products: its own backward pass on a GPU adds up in no fixed order."""

    def __init__(self, into: tuple[int, ...], out_of: tuple[int, ...]) -> None:
        super().__init__()
        for name, given, wanted in (("rows", out_of[0], into[0]), ("columns", out_of[1], into[1])):
            self.register_buffer(name, _means(given, wanted), persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        rows, columns = self.get_buffer("rows").to(x_NCHW.dtype), self.get_buffer("columns").to(x_NCHW.dtype)
        return rows @ x_NCHW @ columns.T


def _means(given: int, wanted: int) -> Tensor:
    """(wanted, given): each row averages the stretch that adaptive pooling gives to one output."""
    weights = torch.zeros(wanted, given)
    for row in range(wanted):
        start, stop = row * given // wanted, -((-(row + 1) * given) // wanted)
        weights[row, start:stop] = 1 / (stop - start)
    return weights


def _replace_pools(model: nn.Module, architecture: str, classes: int, image_size: int) -> None:
    """Leave no adaptive pooling that lacks a deterministic backward pass on GPUs (pytorch#50198).

    AlexNet's and VGG's is the identity at 224 px. Pooling to one value has a deterministic pass.
    """
    described = _described(architecture, classes, image_size).eval()
    sides: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def noting(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, given, made: sides.update({name: (tuple(made.shape[-2:]), tuple(given[0].shape[-2:]))})

    for name, pool in described.named_modules():
        if isinstance(pool, nn.AdaptiveAvgPool2d) and _pair(pool.output_size) != (1, 1):
            pool.register_forward_hook(noting(name))
    described(torch.empty(1, 3, image_size, image_size, device="meta"))
    for name, (into, out_of) in sides.items():
        parent, _, child = name.rpartition(".")
        replacement = nn.Identity() if into == out_of else _MatrixPool(into, out_of)
        setattr(model.get_submodule(parent), child, replacement)


def _pair(size: Any) -> tuple[int | None, int | None]:
    return (size, size) if isinstance(size, int) or size is None else (size[0], size[1])
