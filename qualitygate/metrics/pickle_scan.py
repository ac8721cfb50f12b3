"""What the pickles of a torch file would make, found out without making it: understood whole, or refused.

torch's `weights_only` unpickler calls nothing that a file brings along, but it builds what the file says: a name that
is a tuple nested sixty times takes years to hash, and a bytearray of any size is made. So each pickle is
played through here first, with stand-ins for what it makes. Names are text or numbers, tensors lie within their
storages, storages within the file, and of torch only what state dictionaries need is there.
"""

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn

from qualitygate.errors import ConfigurationError
from qualitygate.metrics.naming import shown

if TYPE_CHECKING:
    import torch

# Some 40 for a tensor: the 460 of the largest network here take 13,000, fifteen hundred with an optimizer's 200,000.
MOST_OPERATIONS = 1_000_000
# Tensors lie two deep in a file, an optimizer's settings five.
DEEPEST = 32
# What torch's tensors have at most.
MOST_DIMENSIONS = 64
# The magic number, torch's protocol, the machine, what was saved, the names of the storages that follow.
LEGACY_PICKLES = 5

# Bytes of an element of each storage. Complex and quantized ones are no parameters of these networks.
_STORAGES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch.storage UntypedStorage": 1,
}
# How many arguments each takes; those of tensors begin with storage, offset, sizes and strides.
_TENSORS = {
    "torch._utils _rebuild_tensor": 4,
    "torch._utils _rebuild_tensor_v2": 6,
    "torch._utils _rebuild_tensor_v3": 7,
}
_ORDERED, _COUNTER = "collections OrderedDict", "collections Counter"
_PARAMETER, _SIZE = "torch._utils _rebuild_parameter", "torch Size"
_CALLED = frozenset({*_TENSORS, _ORDERED, _COUNTER, _PARAMETER, _SIZE})

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"})
_EMPTY: dict[str, Literal["tuple", "list", "dict"]] = {
    "EMPTY_TUPLE": "tuple",
    "EMPTY_LIST": "list",
    "EMPTY_DICT": "dict",
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(slots=True, eq=False, kw_only=True)
class _Thing:
    """Stands for what a pickle makes and is no number, text, truth value or None.

    items: of tuples and lists. entries: of a dictionary, at most. name: of a global, and of the class of a dictionary.
    bytes, element: of a storage. depth: of what is inside when it is made or added to.
    """

    kind: Literal["tuple", "list", "dict", "global", "storage", "tensor"]
    items: list[Any] = field(default_factory=list)
    entries: int = 0
    name: str = ""
    bytes: int = 0
    element: int = 1
    depth: int = 1


def check_archive(pickled: IO[bytes], stored: Mapping[str, int]) -> None:
    """Refuse the pickle of an archive, by ConfigurationError, unless tensors and plain values are all that it makes.

    stored: bytes of the archive's storages by name.
    """
    playing = _Playing()
    playing.play(pickled)
    for name, size in playing.roots.items():
        if size > stored.get(name, -1):
            raise ConfigurationError(
                f"is truncated or damaged (storage {shown(name)} isn't there whole): fetch it again"
            )


def check_legacy(file: IO[bytes], size: int) -> None:
    """The same for the pickles at the start of a file of torch's older format, of so many bytes."""
    playing = _Playing()
    *_, names = [playing.play(file) for _ in range(LEGACY_PICKLES)]
    if not _is(names, "list") or not all(type(name) is str for name in names.items):
        refuse("ends without a list of its storages")
    # What isn't read from the file would hold whatever was in memory.
    if set(playing.roots) - set(names.items) or sum(playing.roots.values()) > size:
        raise ConfigurationError("is truncated or damaged (its storages aren't there whole): fetch it again")


def refuse(what: str) -> NoReturn:
    """Raise ConfigurationError: the pickle does this."""
    raise ConfigurationError(refusal(what))


def refusal(what: str) -> str:
    """The message for a pickle that does this, without the file's name."""
    return (
        f"is refused: its pickle {what}; nothing of it was run. Take the file from its publisher, or convert it to "
        "safetensors where it can be trusted"
    )


def _is(thing: object, kind: str) -> bool:
    return isinstance(thing, _Thing) and thing.kind == kind


def _are_counts(thing: object) -> bool:
    """Whether it stands for a tuple of whole numbers, none below zero, no more of them than a tensor has dimensions."""
    if not isinstance(thing, _Thing) or thing.kind != "tuple" or len(thing.items) > MOST_DIMENSIONS:
        return False
    return all(type(number) is int and number >= 0 for number in thing.items)


class _Playing:
    """The unpickler's stack, marks and memo, as torch's has them, over all pickles of one file.

    roots: bytes of each storage that the file is to bring, by name.
    """

    def __init__(self) -> None:
        self.roots: dict[str, int] = {}
        self._storages: dict[str, _Thing] = {}
        self._operations = 0

    def play(self, file: IO[bytes]) -> Any:
        """What the pickle that begins here makes; leaves the file behind its end."""
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for operation, argument, _ in pickletools.genops(file):
            self._count(1)
            self._do(operation.name, argument)
        return self._stack.pop()

    def _count(self, operations: int) -> None:
        self._operations += operations
        if self._operations > MOST_OPERATIONS:
            refuse(f"has more than {MOST_OPERATIONS:,} operations, several times those of a large network")

    def _do(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_Thing(kind=_EMPTY[name]))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif name == "TUPLE":
            items = self._since_mark()
            self._stack.append(self._filled(_Thing(kind="tuple"), items))
        elif name in _TUPLES:
            stack.append(self._filled(_Thing(kind="tuple"), self._taken(_TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self._since_mark() if name == "APPENDS" else self._taken(1)
            if not _is(self._stack[-1], "list"):
                refuse("adds to what is no list")
            self._filled(self._stack[-1], items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._since_mark() if name == "SETITEMS" else self._taken(2)
            self._entered(self._stack[-1], items)
        elif name == "GLOBAL":
            stack.append(_Thing(kind="global", name=self._allowed(argument)))
        elif name == "REDUCE":
            function, arguments = self._taken(2)
            stack.append(self._called(function, arguments))
        elif name == "BUILD":
            (state,) = self._taken(1)
            # The versions of its modules, which torch puts beside a state dictionary.
            if not (_is(stack[-1], "dict") and stack[-1].name == _ORDERED and _is(state, "dict")):
                refuse("sets the state of what is no state dictionary")
            self._count(state.entries)
        elif name == "BINPERSID":
            (identity,) = self._taken(1)
            stack.append(self._storage(identity))
        elif name not in ("PROTO", "STOP"):
            refuse(f"has the operation {name}, which torch.save doesn't write for tensors")

    def _taken(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("the pickle takes more than it made")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marked.pop()
        return items

    def _filled(self, thing: _Thing, items: list[Any]) -> _Thing:
        """The thing with these inside, too."""
        if thing.kind != "dict":
            thing.items += items
        inside = max((item.depth for item in items if isinstance(item, _Thing)), default=0)
        thing.depth = max(thing.depth, 1 + inside)
        if thing.depth > DEEPEST:
            refuse(f"nests more than {DEEPEST} deep")
        return thing

    def _entered(self, thing: Any, items: list[Any]) -> None:
        """Names and values into a dictionary. A name is hashed: what isn't flat could take any time."""
        if not _is(thing, "dict"):
            refuse("sets entries of what is no dictionary")
        if len(items) % 2:
            raise ValueError("a dictionary's entry has no value")
        for name in items[::2]:
            if isinstance(name, _Thing):
                refuse(f"has a {name.kind} for a name, where tensors have text")
        thing.entries += len(items) // 2
        self._filled(thing, items)

    def _allowed(self, name: str) -> str:
        module, _, last = name.partition(" ")
        if name not in _CALLED and name not in _STORAGES and _type_of_numbers(name) is None:
            asked = shown(f"{module}.{last}", quoted=False)
            refuse(f"asks for {asked}, which a file of tensors doesn't need; torch.save its state dictionary anew")
        return name

    def _called(self, function: Any, arguments: Any) -> _Thing:
        if not (_is(function, "global") and function.name in _CALLED and _is(arguments, "tuple")):
            refuse("calls what is no function of a file of tensors")
        name, given = function.name, arguments.items
        if name in _TENSORS and len(given) == _TENSORS[name]:
            return self._tensor(*given)
        if name == _PARAMETER and len(given) == 3 and _is(given[0], "tensor") and _is(given[2], "dict"):
            return _Thing(kind="tensor")
        if name == _SIZE and len(given) == 1 and _are_counts(given[0]):
            return _Thing(kind="tuple", items=given[0].items)
        if name in (_ORDERED, _COUNTER) and not given:
            return _Thing(kind="dict", name=name)
        if name == _COUNTER and len(given) == 1 and _is(given[0], "dict"):
            # A pickle of few operations may copy a large one many times.
            self._count(given[0].entries)
            return self._filled(_Thing(kind="dict", name=name, entries=given[0].entries), given)
        if name == _ORDERED and len(given) == 1 and _is(given[0], "list"):
            # As Python 2 wrote them: a list of pairs.
            made = _Thing(kind="dict", name=name)
            self._count(len(given[0].items))
            for pair in given[0].items:
                if not (isinstance(pair, _Thing) and pair.kind in ("list", "tuple") and len(pair.items) == 2):
                    refuse("makes a dictionary of what are no pairs")
                self._entered(made, pair.items)
            return made
        refuse(f"calls {name.replace(' ', '.')} otherwise than torch.save does")

    def _tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, *more: Any) -> _Thing:
        if not (_is(storage, "storage") and type(offset) is int and _are_counts(sizes) and _are_counts(strides)):
            refuse("makes a tensor of other things than a storage and numbers")
        if len(sizes.items) != len(strides.items) or offset < 0:
            refuse("makes a tensor whose numbers don't fit each other")
        padded: list[Any] = [*more, *[False, None, None][len(more) :]]
        requires_grad, hooks, kind = padded
        if type(requires_grad) is not bool or not (hooks is None or _is(hooks, "dict")):
            refuse("makes a tensor with more than numbers")
        numbers = _type_of_numbers(kind.name) if _is(kind, "global") else None
        if kind is not None and numbers is None:
            refuse("makes a tensor of no known type")
        element = storage.element if numbers is None else numbers.itemsize
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes.items, strides.items, strict=True))
        # torch would make the storage larger, to any size.
        if all(sizes.items) and (last + 1) * element > storage.bytes:
            refuse("makes a tensor that is larger than its storage")
        return _Thing(kind="tensor")

    def _storage(self, identity: Any) -> _Thing:
        """The storage of ("storage", its type, name, device, elements) and, in older files, of which it is a part."""
        given = identity.items if _is(identity, "tuple") else []
        if len(given) not in (5, 6) or given[0] != "storage" or not _is(given[1], "global"):
            refuse("asks for something else than a storage")
        element = _STORAGES.get(given[1].name)
        name, device, elements, part = (*given[2:], None)[:4]
        if element is None or type(name) is not str or type(device) is not str or not _are_counts(_tuple(elements)):
            refuse("names a storage otherwise than torch.save does")
        whole = self._storages.get(name)
        if whole is None:
            whole = _Thing(kind="storage", bytes=elements * element, element=element)
            self._storages[name] = whole
            self.roots[name] = whole.bytes
        return whole if part is None else self._part(whole, part, element)

    def _part(self, whole: _Thing, part: Any, element: int) -> _Thing:
        given = part.items if _is(part, "tuple") else []
        if len(given) != 3 or type(given[0]) is not str or not _are_counts(_tuple(*given[1:])):
            refuse("names a part of a storage otherwise than torch.save does")
        name, start, elements = given
        if (start + elements) * element > whole.bytes:
            refuse("names a part that is larger than its storage")
        made = _Thing(kind="storage", bytes=elements * element, element=element)
        return self._storages.setdefault(name, made)


def _tuple(*items: Any) -> _Thing:
    return _Thing(kind="tuple", items=list(items))


def _type_of_numbers(name: str) -> "torch.dtype | None":
    """What a global such as `torch float32` names; None where that is no type of numbers."""
    import torch

    module, _, last = name.partition(" ")
    # Not by getattr, for which torch may import parts of itself.
    found = vars(torch).get(last) if module == "torch" else None
    return found if isinstance(found, torch.dtype) else None
