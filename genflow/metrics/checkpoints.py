"""Reading tensors out of torch's own files without running what is in them.

``torch.save`` writes a pickle, and a pickle is a program. Here it is read as data: its opcodes are interpreted by a
small machine that knows dictionaries, lists, tuples, numbers, strings and the calls which rebuild a tensor, and nothing
else. Whatever else a file asks for is refused by its name, and never imported. Both layouts are read: the zip archive
(torch 1.6 and later) and the stream before it, in which the published Inception of 2015-12-05 may come.
"""

import io
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from genflow.errors import InputError

__all__ = ["read_checkpoint"]

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_STREAM_VERSION = 1001

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class _RefusedError(Exception):
    """The file holds something that is not read; the message names it."""


class _Name:
    """A global that the pickle names and that is known here; a plain token, never the thing itself."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dict(dict):
    """What ``collections.OrderedDict`` becomes; a mark for BUILD, whose state (``_metadata``) is dropped."""


class _Storage:
    """The place of a tensor's numbers: read on first use."""

    def __init__(self, key: str, dtype: torch.dtype, numel: int) -> None:
        self.key, self.dtype, self.numel = key, dtype, numel


class _Pending:
    """A tensor whose storage may not be read yet (in the stream layout the numbers come last)."""

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


_MARK = object()
_KNOWN = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {name}" for name in _STORAGES),
}
_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": _Dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_LITERALS = {"FLOAT", "BINFLOAT"} | _INTEGERS | _STRINGS
_DAMAGE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    OverflowError,
    RuntimeError,
)  # what a bad byte leads to
_IGNORED = frozenset({"PROTO", "FRAME"})


def _integers(value: Any, what: str) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(number) is int and number >= 0 for number in value):
        raise _RefusedError(f"a tensor whose {what} is not made of natural numbers")
    return value


def _call(function: Any, arguments: Any) -> Any:
    """What REDUCE stands for, of the few calls that are known."""
    name = function.name if isinstance(function, _Name) else type(function).__name__
    if not isinstance(arguments, tuple):
        raise _RefusedError(f"a call of {name} without arguments in a tuple")
    if name == "collections OrderedDict":
        pairs = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(pairs, list) or not all(len(pair) == 2 for pair in pairs):
            raise _RefusedError("an OrderedDict of something that is no list of pairs")
        return _pairs([part for pair in pairs for part in pair])
    if name == "torch Size" and len(arguments) == 1:
        return _integers(tuple(arguments[0]), "size")
    if name in ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2") and len(arguments) >= 4:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, _Storage):
            raise _RefusedError("a tensor without a storage")
        return _Pending(
            storage, _integers((offset,), "offset")[0], _integers(size, "size"), _integers(stride, "stride")
        )
    if name == "torch._utils _rebuild_parameter" and arguments and isinstance(arguments[0], _Pending):
        return arguments[0]
    raise _RefusedError(f"a call of {name} with {len(arguments)} arguments")


def _storage(reference: Any) -> _Storage:
    """What a persistent id names: ("storage", type, key, device, length[, view])."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise _RefusedError("a reference to something that is no storage")
    kind, key, numel = reference[1], reference[2], reference[4]
    name = kind.name.removeprefix("torch ") if isinstance(kind, _Name) else ""
    if name not in _STORAGES or not isinstance(key, (str, int)):
        raise _RefusedError(f"a storage of an unknown kind {name}")
    if len(reference) > 5 and reference[5] is not None:
        raise _RefusedError("a view of a storage (a layout of torch before 0.4)")
    return _Storage(str(key), _STORAGES[name], _integers((numel,), "length")[0])


def _pairs(flat: list[Any]) -> _Dict:
    if not all(isinstance(key, (str, int)) for key in flat[::2]):
        raise _RefusedError("a dictionary whose keys are neither strings nor integers")
    return _Dict(zip(flat[::2], flat[1::2], strict=True))


class _Machine:
    """The pickle machine's stack and memory for the opcodes that tensors need."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}
        self.actions: dict[str, Callable[[Any], None]] = {
            "GLOBAL": lambda name: self.push(self.find(name)),
            "STACK_GLOBAL": lambda _: self.push(self.find(" ".join(self.pop(2)))),
            "BINPERSID": self.refer,
            "REDUCE": lambda _: self.push(_call(*self.pop(2))),
            "BUILD": self.build,
            "MARK": lambda _: self.push(_MARK),
            "POP": lambda _: self.stack.pop(),
            "TUPLE": lambda _: self.push(tuple(self.pop_mark())),
            "TUPLE1": lambda _: self.push(tuple(self.pop(1))),
            "TUPLE2": lambda _: self.push(tuple(self.pop(2))),
            "TUPLE3": lambda _: self.push(tuple(self.pop(3))),
            "LIST": lambda _: self.push(self.pop_mark()),
            "DICT": lambda _: self.push(_pairs(self.pop_mark())),
            "APPEND": lambda _: self.extend(self.pop(1)),
            "APPENDS": lambda _: self.extend(self.pop_mark()),
            "SETITEM": lambda _: self.set_items(self.pop(2)),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "MEMOIZE": lambda _: self.memory.update({len(self.memory): self.stack[-1]}),
        }
        for opcode in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.actions[opcode] = lambda place: self.memory.update({place: self.stack[-1]})
        for opcode in ("GET", "BINGET", "LONG_BINGET"):
            self.actions[opcode] = lambda place: self.push(self.memory[place])

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_mark(self) -> list[Any]:
        taken = []
        while (value := self.stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def find(self, name: str) -> _Name:
        if name not in _KNOWN:
            raise _RefusedError("".join(c if c.isprintable() else "?" for c in name[:100]).replace(" ", "."))
        return _Name(name)

    def refer(self, _: Any) -> None:
        storage = _storage(self.stack.pop())
        if vars(self.storages.setdefault(storage.key, storage)) != vars(storage):
            raise ValueError(f"storage {storage.key} has two lengths or number formats")
        self.push(storage)

    def set_items(self, flat: list[Any]) -> None:
        if not isinstance(self.stack[-1], _Dict):
            raise _RefusedError(f"items of a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(_pairs(flat))

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise _RefusedError(f"elements of a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def build(self, _: Any) -> None:
        target, _state = self.stack[-2], self.stack.pop()
        if not isinstance(target, _Dict):
            raise _RefusedError(f"the state of a {type(target).__name__}")

    def run(self, file: "BinaryIO | _Bounded") -> Any:
        """What one pickle describes; ``file`` stands behind its STOP afterwards."""
        for opcode, argument, position in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in self.actions:
                self.actions[name](argument)
            elif name in _LITERALS:
                self.push(argument)
            elif name in _CONSTANTS:
                self.push(_CONSTANTS[name]())
            elif name not in _IGNORED:
                raise _RefusedError(f"the pickle opcode {name} at byte {position}")
        raise ValueError("the pickle has no end")


def _numbers(data: bytearray, storage: _Storage) -> Tensor:
    if len(data) != storage.numel * storage.dtype.itemsize:
        raise ValueError(f"storage {storage.key} has {len(data)} bytes for {storage.numel} x {storage.dtype}")
    return torch.frombuffer(data, dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)


def _tensor(pending: _Pending, numbers: Tensor) -> Tensor:
    last = pending.offset + sum((n - 1) * step for n, step in zip(pending.size, pending.stride, strict=True))
    if 0 not in pending.size and last >= len(numbers):
        raise ValueError(f"a tensor of {pending.size} reaches beyond storage {pending.storage.key}")
    return numbers.as_strided(pending.size, pending.stride, pending.offset)


def _collect(found: Any, read: Callable[[_Storage], Tensor]) -> dict[str, Tensor]:
    """Tensors by name, of a state dict or of one that stands under ``state_dict``; storages are read once."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(value, _Pending) for value in found.values()):
        raise _RefusedError("no dictionary of tensors at its top")
    if not all(isinstance(name, str) for name in found):
        raise _RefusedError("tensors whose names are no strings")
    numbers = {key: read(storage) for key, storage in {p.storage.key: p.storage for p in found.values()}.items()}
    return {name: _tensor(pending, numbers[pending.storage.key]) for name, pending in found.items()}


def _read_zip(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        members = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in members if name.split("/", 1)[-1] == "data.pkl"]
        if not roots:
            raise _RefusedError("a zip archive without data.pkl")
        root = roots[0]
        if any(name.startswith(f"{root}code/") for name in members):
            raise _RefusedError("TorchScript: give its path as the feature network, not as weights")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
            raise _RefusedError("numbers of big-endian byte order")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise _RefusedError("compressed parts, which torch does not write")
        found = _Machine().run(io.BytesIO(archive.read(f"{root}data.pkl")))
        return _collect(found, lambda storage: _numbers(bytearray(archive.read(f"{root}data/{storage.key}")), storage))


class _Bounded:
    """A file of which no more is asked for than it has: a damaged length would otherwise be allocated first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.tell, self.readline = file, size, file.tell, file.readline

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.tell()))


def _read_stream(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as opened:
        file = _Bounded(opened, path.stat().st_size)
        if _Machine().run(file) != _STREAM_MAGIC or _Machine().run(file) != _STREAM_VERSION:
            raise _RefusedError("a pickle that is no file of torch")
        system = _Machine().run(file)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise _RefusedError("numbers of big-endian byte order")
        machine = _Machine()
        found, keys = machine.run(file), _Machine().run(file)
        strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
        if not strings or not set(keys) >= machine.storages.keys():
            raise _RefusedError("no list of its storages")
        numbers: dict[str, Tensor] = {}
        for key in keys:  # in this order the numbers follow, each storage with its count before it
            storage = machine.storages.get(key)
            if storage is None or int.from_bytes(file.read(8), "little") != storage.numel:
                raise ValueError(f"storage {key!r} has another length than its tensors, or none")
            numbers[key] = _numbers(bytearray(file.read(storage.numel * storage.dtype.itemsize)), storage)
        return _collect(found, lambda storage: numbers[storage.key])


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that ``torch.save`` wrote, by name, on the CPU.

    Nothing in the file is executed or imported.

    Raises:
        InputError: missing, damaged, or holding anything but tensors in a dictionary: what, is named.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(b"PK"):
            return _read_zip(path)
        if start.startswith(b"\x80"):
            return _read_stream(path)
        if start[8:] == b"{":
            return load_file(path)
    except _RefusedError as refused:
        raise InputError(
            f"weights: {path} holds {refused}; only tensors by name are read, and nothing is run"
        ) from None
    except OSError as error:
        raise InputError(f"weights: {path} cannot be read: {error.strerror or error}") from error
    except (*_DAMAGE, SafetensorError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"weights: {path} is damaged or cut short: {reason}") from error
    raise InputError(f"weights: {path} is neither a safetensors file nor one of torch.save's")
