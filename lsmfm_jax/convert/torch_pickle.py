"""The pickle dialect of torch files, read as plain data: nothing is imported and nothing is called.

Python's own unpickler is not used, because a pickle is a program and sandboxing its interpreter is a losing
game. Here a small interpreter knows the instructions that `torch.save` emits and a closed table of names; any
other instruction or name is an error.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pickletools import genops
from typing import Any

import ml_dtypes
import numpy as np


class TorchFileError(ValueError):
    """A torch file is damaged, of an unknown format, or would need code to be read."""


STORAGE_DTYPES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
STORAGE_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items()}


@dataclass(frozen=True)
class StorageRecord:
    """A storage that the pickle refers to: `elements` values of `dtype` in the archive entry `data/<key>`."""

    key: str
    dtype: np.dtype
    elements: int


@dataclass(frozen=True)
class TensorRecord:
    """A tensor that the pickle describes: where its values lie, not the values themselves."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name out of the closed table; it stands for itself and is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class _NumpyDtype:
    """The dtype of a pickled numpy scalar."""

    code: str


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _counts(value: object, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or not all(_is_count(item) for item in value):
        raise TorchFileError(f"a tensor's {what} is not a tuple of non-negative integers")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    """Check one `_rebuild_tensor_v2` record against its storage's bounds."""
    if not isinstance(storage, StorageRecord) or not _is_count(offset):
        raise TorchFileError("a tensor without a storage or with a bad offset")
    shape, strides = _counts(shape, "shape"), _counts(strides, "strides")
    if len(shape) != len(strides) or len(shape) > 32:
        raise TorchFileError(f"a tensor of shape {shape} has strides {strides}")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.elements:
        raise TorchFileError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} reaches outside its storage "
            f"{storage.key!r} of {storage.elements} elements"
        )
    return TensorRecord(storage, offset, shape, strides)


def _parameter(data: Any, *_: Any) -> TensorRecord:
    if not isinstance(data, TensorRecord):
        raise TorchFileError("a parameter that holds no tensor")
    return data


def _pairs(*items: Any) -> dict:
    """An ordered dictionary: empty, or a list of pairs."""
    found: dict = {}
    if len(items) > 1 or (items and type(items[0]) not in (list, tuple, dict)):
        raise TorchFileError("a dictionary made of something that is not a list of pairs")
    pairs = items[0].items() if items and type(items[0]) is dict else (items[0] if items else ())
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise TorchFileError("a dictionary made of something that is not a list of pairs")
        _set_item(found, pair[0], pair[1])
    return found


def _size(values: Any = ()) -> tuple[int, ...]:
    return _counts(tuple(values) if type(values) in (list, tuple) else values, "size")


def _set(values: Any = ()) -> set:
    if type(values) not in (list, tuple) or not all(_is_key(value) for value in values):
        raise TorchFileError("a set of something else than numbers and strings")
    return set(values)


def _device(kind: Any, index: Any = None) -> str:
    return f"{kind!s}" if index is None else f"{kind!s}:{index!s}"


def _path(*parts: Any) -> str:
    return "/".join(str(part) for part in parts).replace("//", "/")


def _bytes_from_text(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TorchFileError("bytes in an unknown encoding")
    return text.encode("latin1")


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype:
    if type(code) is not str or code.lstrip("<>=|") not in {
        f"{kind}{size}" for kind, sizes in (("b", "1"), ("i", "1248"), ("u", "1248"), ("f", "248")) for size in sizes
    }:
        raise TorchFileError(f"a numpy value of dtype {str(code)[:40]!r}: only booleans, integers and floats are read")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, _NumpyDtype) or type(data) is not bytes:
        raise TorchFileError("a numpy scalar without dtype or bytes")
    wanted = np.dtype(dtype.code)
    if len(data) != wanted.itemsize:
        raise TorchFileError(f"a numpy scalar of {wanted} with {len(data)} bytes")
    return np.frombuffer(data, wanted)[0]


_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("collections", "OrderedDict"): _pairs,
    ("collections", "Counter"): _pairs,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("pathlib", "PosixPath"): _path,
    ("pathlib._local", "PosixPath"): _path,
    ("_codecs", "encode"): _bytes_from_text,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
_DTYPE_NAMES = {str(dtype) for dtype in STORAGE_NAMES}


def _global(module: object, name: object) -> Any:
    """A name of the closed table, or an error that says which name the file asked for."""
    if module == "torch" and name in _DTYPE_NAMES:
        return f"torch.{name}"
    if (module, name) in _CALLS or (module == "torch" and name in STORAGE_DTYPES):
        return _Name(str(module), str(name))
    raise TorchFileError(
        f"it asks for `{str(module)[:80]}.{str(name)[:80]}`, which is code and not data. Only tensors, "
        "numbers, strings and plain containers are read, and nothing of a file is ever run. Where the file "
        "came from, save the state_dict alone: torch.save(model.state_dict(), ...)"
    )


def _storage(reference: Any) -> StorageRecord:
    if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
        raise TorchFileError("a persistent reference that is not a tensor storage")
    _, kind, key, _, elements = reference
    if not isinstance(kind, _Name) or kind.name not in STORAGE_DTYPES:
        raise TorchFileError(f"a storage of unknown type {str(kind)[:80]}")
    if type(key) is not str or not key.isalnum() or not _is_count(elements):
        raise TorchFileError("a storage with a bad name or size")
    return StorageRecord(key, STORAGE_DTYPES[kind.name], elements)


def _is_key(value: object, depth: int = 0) -> bool:
    # Deeply nested tuples overflow the C stack when hashed, so only shallow keys are accepted.
    if type(value) is tuple:
        return depth < 4 and all(_is_key(item, depth + 1) for item in value)
    return value is None or type(value) in (str, int, float, bool, bytes)


def _set_item(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict or not _is_key(key):
        raise TorchFileError("an item is set on something that is not a dictionary, or under an unusable key")
    target[key] = value


def _reduce(callee: Any, arguments: Any) -> Any:
    if not isinstance(callee, _Name) or type(arguments) is not tuple:
        raise TorchFileError("a call of something that is not a known name")
    build = _CALLS.get((callee.module, callee.name))
    if build is None:
        raise TorchFileError(f"a call of {callee.module}.{callee.name}")
    try:
        return build(*arguments)
    except TypeError as error:
        raise TorchFileError(f"{callee.module}.{callee.name} with wrong arguments") from error


def _build(target: Any, state: Any) -> Any:
    """Object state: module versions of a state_dict or attributes of a parameter, left out."""
    if isinstance(target, _NumpyDtype) and type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|"):
        return replace(target, code=state[1] + target.code.lstrip("<>=|"))
    if type(target) is dict or isinstance(target, TensorRecord):  # no values are lost with these
        return target
    raise TorchFileError("state is set on something that has none")


_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
    "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MARK = object()


class _Machine:
    """The stack and memo of one reading."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise TorchFileError("the instructions do not fit together")
        return value

    def pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def step(self, code: str, argument: Any) -> None:
        """Carry out one instruction that makes or moves a value."""
        stack = self.stack
        if code in _LITERALS:
            stack.append(argument)
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _EMPTY:
            stack.append(_EMPTY[code]())
        elif code in _TUPLES:
            stack.append(tuple([self.pop() for _ in range(_TUPLES[code])][::-1]))
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code == "MARK":
            stack.append(_MARK)
        elif code == "TUPLE":
            stack.append(tuple(self.pop_to_mark()))
        elif code in ("GLOBAL", "STACK_GLOBAL"):
            module, name = argument.split(" ", 1) if code == "GLOBAL" else [self.pop(), self.pop()][::-1]
            stack.append(_global(module, name))
        elif code == "BINPERSID":
            stack.append(_storage(self.pop()))
        elif code == "REDUCE":
            arguments = self.pop()
            stack.append(_reduce(self.pop(), arguments))
        else:
            self.change(code)

    def change(self, code: str) -> None:
        """Carry out one instruction that fills the container below it on the stack."""
        if code in ("SETITEM", "SETITEMS"):
            items = self.pop_to_mark() if code == "SETITEMS" else [self.pop(), self.pop()][::-1]
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set_item(self.stack[-1], key, value)
        elif code in ("APPEND", "APPENDS"):
            items = self.pop_to_mark() if code == "APPENDS" else [self.pop()]
            if type(self.stack[-1]) is not list:
                raise TorchFileError("something is appended to what is not a list")
            self.stack[-1].extend(items)
        elif code == "ADDITEMS":
            items = self.pop_to_mark()
            if type(self.stack[-1]) is not set:
                raise TorchFileError("something is added to what is not a set")
            self.stack[-1].update(_set(items))
        elif code == "BUILD":
            state = self.pop()
            self.stack.append(_build(self.pop(), state))
        else:
            raise TorchFileError(f"the pickle instruction {code} is not one that plain tensors and data need")


def read_pickle(data: bytes) -> Any:
    """Read a torch file's pickle as plain data, tensors as `TensorRecord`.

    Raises:
        TorchFileError: it asks for a name outside the closed table, or is damaged.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            if opcode.name not in ("PROTO", "FRAME"):
                machine.step(opcode.name, argument)
    except TorchFileError:
        raise
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise TorchFileError(f"its pickle is damaged ({type(error).__name__}: {str(error)[:120]})") from error
    raise TorchFileError("its pickle ends early")
