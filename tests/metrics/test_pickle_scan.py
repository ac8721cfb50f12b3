"""Pickles that torch would take for years, or for gigabytes, are refused by a look; those of tensors are understood."""

import collections
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qualitygate.errors import ConfigurationError
from qualitygate.metrics import pickle_scan, state_dicts


def _archive(pickled: bytes, **more: bytes) -> bytes:
    """A torch archive around a pickle written by hand."""
    buffer = io.BytesIO()
    members = {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | more
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"x/{name}", content)
    return buffer.getvalue()


def _legacy(pickled: bytes, names: bytes = b"\x80\x02].", after: bytes = b"") -> bytes:
    """The same as a file of the older format."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue().split(b"\x80\x02}q\x00.")[0]
    assert head.startswith(state_dicts.LEGACY)
    return head + pickled + names + after


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(number: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", number)


def _nested(depth: int) -> bytes:
    """A tuple of twice the same tuple, and so on: one opcode more doubles the time that hashing takes."""
    return _text("a") + b"q\x00" + b"".join(b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(depth))


def _storage(elements: int, name: str = "0", *, legacy: bool = False) -> bytes:
    identity = _text("storage") + b"ctorch\nFloatStorage\n" + _text(name) + _text("cpu") + _number(elements)
    return b"(" + identity + (b"N" if legacy else b"") + b"tQ"


def _tensor(storage: bytes, size: int, stride: int = 1, offset: int = 0) -> bytes:
    numbers = _number(offset) + _number(size) + b"\x85" + _number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89ccollections\nOrderedDict\n)RtR"


def _sized(storage: bytes, size: int) -> bytes:
    """The same with torch.Size around its sizes."""
    numbers = _number(0) + b"ctorch\nSize\n" + _number(size) + b"\x85\x85R" + _number(1) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"\x89ccollections\nOrderedDict\n)RtR"


def _dictionary(name: bytes, value: bytes = b"K\x01") -> bytes:
    return b"\x80\x02}" + name + value + b"s."


def _named(tensor: bytes) -> bytes:
    return _dictionary(_text("a"), tensor)


LAST = 256 << 20  # elements of 1 GB
PARAMETERS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.tensor(3)}

REFUSED: dict[str, tuple[bytes, str]] = {
    "nested deep": (_dictionary(_nested(60)), "nests more than 32 deep"),
    "nested less": (_dictionary(_nested(30)), "has a tuple for a name"),
    "nested name of a storage": (
        _named(_tensor(_storage(4).replace(_text("0"), _nested(30)), 4)),
        "names a storage otherwise",
    ),
    "nested name in a pair": (
        b"\x80\x02ccollections\nOrderedDict\n]" + _nested(20) + b"K\x01\x86a\x85R.",
        "has a tuple for a name",
    ),
    "bytearray": (b"\x80\x02cbuiltins\nbytearray\n" + _number(3 << 30) + b"\x85R.", r"asks for builtins\.bytearray"),
    "long and odd": (
        b"\x80\x02c" + b"\x1b[31m" + b"m" * 5000 + b"\n" + b"n" * 5000 + b"\n.",
        r"asks for \\x1b\[31mmm+\.\.\.",
    ),
    "codec": (b"\x80\x02c_codecs\nencode\n" + _text("x") + b"\x85R.", r"asks for _codecs\.encode"),
    "larger than its storage": (_named(_tensor(_storage(4), LAST)), "larger than its storage"),
    "far apart": (_named(_tensor(_storage(4), 2, stride=LAST)), "larger than its storage"),
    "of many dimensions": (
        _named(_tensor(_storage(4), 4).replace(_number(4) + b"\x85", b"(" + b"K\x01" * 65 + b"t")),
        "other things than a storage and numbers",
    ),
    "behind its storage": (_named(_tensor(_storage(4), 1, offset=LAST)), "larger than its storage"),
    "below its storage": (_named(_tensor(_storage(4), 1, offset=-1)), "don't fit each other"),
    "called with more": (_dictionary(_text("a"), b"ctorch\nSize\n" + _text("x") + b"\x85R"), r"calls torch\.Size"),
    "state of a list": (b"\x80\x02]}b.", "sets the state"),
    "entries of a list": (b"\x80\x02]K\x01K\x02s.", "sets entries"),
    "a new object": (b"\x80\x02ctorch\nSize\n)\x81.", "has the operation NEWOBJ"),
    "called twice": (b"\x80\x02ccollections\nOrderedDict\n)R)R.", "calls what is no function"),
}


@pytest.mark.parametrize("form", [_archive, _legacy])
@pytest.mark.parametrize("case", REFUSED)
def test_what_torch_would_make_of_it_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, form: Callable[[bytes], bytes]
) -> None:
    # It would hash for years, or take gigabytes: that it isn't asked is what counts.
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked to open it"))
    pickled, message = REFUSED[case]
    if form is _legacy:
        pickled = pickled.replace(b"tQ", b"NtQ")
    (tmp_path / "x.pth").write_bytes(form(pickled))
    with pytest.raises(ConfigurationError, match=rf"x\.pth' is refused: its pickle .*{message}") as refused:
        state_dicts.read(tmp_path / "x.pth")
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 400 + len(str(tmp_path))


def test_sizes_may_be_torchs_own_and_are_bounded_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fits.pth").write_bytes(_archive(_named(_sized(_storage(2), 2)), **{"data/0": bytes(8)}))
    assert {name: list(value) for name, value in state_dicts.read(tmp_path / "fits.pth").items()} == {"a": [0.0, 0.0]}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked to open it"))
    (tmp_path / "x.pth").write_bytes(_archive(_named(_sized(_storage(2), 1 << 40)), **{"data/0": bytes(8)}))
    with pytest.raises(ConfigurationError, match="larger than its storage"):
        state_dicts.read(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content",
    [
        _archive(_named(_tensor(_storage(LAST), LAST)), **{"data/0": b"1234"}),
        _archive(_named(_tensor(_storage(1, "1"), 1)), **{"data/0": b"1234"}),
        _legacy(_named(_tensor(_storage(LAST, legacy=True), LAST)), b"\x80\x02]" + _text("0") + b"a."),
        _legacy(_named(_tensor(_storage(1, legacy=True), 1)), after=b"12345678"),
    ],
    ids=["larger than its member", "no member", "larger than the file", "not read from the file"],
)
def test_storages_that_are_not_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked to open it"))
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"truncated or damaged \(.* there whole\): fetch it again"):
        state_dicts.read(tmp_path / "x.pth")


_ENTRIES = b"(" + b"".join(_text(str(number)) + b"K\x01" for number in range(100)) + b"u"
_PAIRS = b"]" + b"".join(_text(str(number)) + b"K\x01\x86a" for number in range(100))


@pytest.mark.parametrize(
    "pickled",
    [
        b"".join(b"K\x01" for _ in range(1000)),
        b"}" + _ENTRIES + b"q\x00" + b"ccollections\nCounter\nh\x00\x85R" * 10,
        b"}" + _ENTRIES + b"q\x00ccollections\nOrderedDict\n)R" + b"h\x00b" * 10,
        _PAIRS + b"q\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 10,
    ],
    ids=["operations", "counters", "states", "pairs"],
)
def test_the_work_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: bytes) -> None:
    monkeypatch.setattr(pickle_scan, "MOST_OPERATIONS", 1000)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked to open it"))
    (tmp_path / "x.pth").write_bytes(_archive(b"\x80\x02" + pickled + b"."))
    with pytest.raises(ConfigurationError, match="has more than 1,000 operations"):
        state_dicts.read(tmp_path / "x.pth")


def test_a_member_that_torch_might_take_for_another_is_refused(tmp_path: Path) -> None:
    harmless = _named(b"K\x01")
    (tmp_path / "x.pth").write_bytes(_archive(harmless, **{"DATA.PKL": harmless}))
    with pytest.raises(ConfigurationError, match="two members of one name"):
        state_dicts.read(tmp_path / "x.pth")


def test_the_pickles_of_these_tests_are_such_that_torch_opens(tmp_path: Path) -> None:
    """Otherwise the tests above would show that they are malformed, and nothing else."""
    number = struct.pack("<f", 2.5)
    contents = {
        "archive.pth": _archive(_named(_tensor(_storage(1), 1)), **{"data/0": number}),
        "legacy.pth": _legacy(
            _named(_tensor(_storage(1, legacy=True), 1)),
            b"\x80\x02]" + _text("0") + b"a.",
            struct.pack("<q", 1) + number,
        ),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert state_dicts.read(tmp_path / name)["a"].tolist() == [2.5]
    for form in (_archive, _legacy):
        (tmp_path / "x.pth").write_bytes(form(_dictionary(_nested(5))))
        assert len(torch.load(tmp_path / "x.pth", weights_only=True)) == 1


class _Python2:
    """Pickled as Python 2 does an ordered dictionary: from a list of pairs."""

    def __reduce__(self) -> tuple[object, ...]:
        return collections.OrderedDict, ([[name, value] for name, value in PARAMETERS.items()],)


def _with_versions() -> object:
    state = collections.OrderedDict(PARAMETERS)
    state._metadata = collections.OrderedDict({"": {"version": 2}})  # type: ignore[attr-defined]
    return state


SAVED: dict[str, Callable[[], object]] = {
    "plain": lambda: PARAMETERS,
    "with the versions of its modules": _with_versions,
    "by Python 2": _Python2,
    "parameters": lambda: {name: torch.nn.Parameter(t, requires_grad=False) for name, t in PARAMETERS.items()},
    "a checkpoint": lambda: {
        "params": PARAMETERS,
        "epoch": 3,
        "loss": 0.5,
        "shape": torch.Size([2, 3]),
        "type": torch.float32,
        "milestones": collections.Counter([10, 20]),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "done": None}}, "groups": [{"betas": (0.9, 0.99)}]},
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("saved", SAVED)
def test_files_of_tensors_are_understood(tmp_path: Path, saved: str, legacy: bool) -> None:
    torch.save(SAVED[saved](), tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    read = state_dicts.read(tmp_path / "x.pth")
    assert {name: tensor.tolist() for name, tensor in read.items()} == {n: t.tolist() for n, t in PARAMETERS.items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_every_type_and_lie_are_understood(tmp_path: Path, legacy: bool) -> None:
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    kinds += [torch.uint8, torch.bool, *([] if legacy else [torch.uint16, torch.float8_e4m3fn])]
    whole = torch.arange(12.0)
    tensors = {str(kind): torch.ones(2).to(kind) for kind in kinds}
    tensors |= {"part": whole[3:7], "turned": whole.reshape(3, 4).T, "repeated": whole[:1].expand(5)}
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    read = state_dicts.read(tmp_path / "x.pth")
    assert all(torch.equal(read[name].double(), tensor.double()) for name, tensor in tensors.items())
    assert [tensor.dtype for tensor in read.values()] == [tensor.dtype for tensor in tensors.values()]
