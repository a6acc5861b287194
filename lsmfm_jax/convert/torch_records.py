"""What a torch file's pickle may describe: tensors, storages and plain values, built from a closed table of names."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from lsmfm_jax.errors import LsmfmError


class TorchFileError(LsmfmError, ValueError):
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
_MOST_AXES = 32  # of a numpy array
_MOST_KEY_ITEMS = 4


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
class Name:
    """A name out of the closed table; it stands for itself and is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class _NumpyDtype:
    """The dtype of a pickled numpy scalar."""

    code: str


def shown(value: Any) -> str:
    """A value of the file for a message: short, and never the whole of something nested."""
    return repr(value)[:80] if type(value) in (str, int, float, bool) else f"a {type(value).__name__}"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _counts(value: object, what: str) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MOST_AXES or not all(_is_count(item) for item in value):
        raise TorchFileError(f"a tensor's {what} is not a tuple of at most {_MOST_AXES} non-negative integers")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    """Check one `_rebuild_tensor_v2` record against its storage's bounds."""
    if not isinstance(storage, StorageRecord) or not _is_count(offset):
        raise TorchFileError("a tensor without a storage or with a bad offset")
    shape, strides = _counts(shape, "shape"), _counts(strides, "strides")
    if len(shape) != len(strides):
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
        set_item(found, pair[0], pair[1])
    return found


def _size(values: Any = ()) -> tuple[int, ...]:
    return _counts(tuple(values) if type(values) in (list, tuple) else values, "size")


def as_set(values: Any = ()) -> set:
    """A set of keys out of a list or tuple.

    Raises:
        TorchFileError: it is neither, or holds what cannot be a key.
    """
    if type(values) not in (list, tuple) or not all(_is_key(value) for value in values):
        raise TorchFileError("a set of something else than numbers and strings")
    return set(values)


def _device(kind: Any, index: Any = None) -> str:
    if type(kind) is not str or not (index is None or _is_count(index)):
        raise TorchFileError("a device that is not a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _path(*parts: Any) -> str:
    if not all(type(part) is str for part in parts):
        raise TorchFileError("a path made of something else than text")
    return "/".join(parts).replace("//", "/")


def _bytes_from_text(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TorchFileError("bytes in an unknown encoding")
    return text.encode("latin1")


def _numpy_dtype(code: Any, *_: Any) -> _NumpyDtype:
    if type(code) is not str or code.lstrip("<>=|") not in {
        f"{kind}{size}" for kind, sizes in (("b", "1"), ("i", "1248"), ("u", "1248"), ("f", "248")) for size in sizes
    }:
        raise TorchFileError(f"a numpy value of dtype {shown(code)}: only booleans, integers and floats are read")
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
    ("builtins", "set"): as_set,
    ("__builtin__", "set"): as_set,
    ("pathlib", "PosixPath"): _path,
    ("pathlib._local", "PosixPath"): _path,
    ("_codecs", "encode"): _bytes_from_text,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
}
_DTYPE_NAMES = {str(dtype) for dtype in STORAGE_NAMES}


def find_name(module: Any, name: Any) -> Any:
    """A name of the closed table.

    Raises:
        TorchFileError: it is not in the table; the message has the name that the file asked for.
    """
    if type(module) is not str or type(name) is not str:
        raise TorchFileError("it asks for a name that is not text")
    if module == "torch" and name in _DTYPE_NAMES:
        return f"torch.{name}"
    if (module, name) in _CALLS or (module == "torch" and name in STORAGE_DTYPES):
        return Name(module, name)
    raise TorchFileError(
        f"it asks for `{module[:80]}.{name[:80]}`, which is code and not data. Only tensors, "
        "numbers, strings and plain containers are read, and nothing of a file is ever run. Where the file "
        "came from, save the state_dict alone: torch.save(model.state_dict(), ...)"
    )


def find_storage(reference: Any) -> StorageRecord:
    """The storage that a persistent reference describes.

    Raises:
        TorchFileError: it describes something else.
    """
    if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
        raise TorchFileError("a persistent reference that is not a tensor storage")
    _, kind, key, _, elements = reference
    if not isinstance(kind, Name) or kind.name not in STORAGE_DTYPES:
        raise TorchFileError(f"a storage of unknown type: {kind.name if isinstance(kind, Name) else shown(kind)}")
    if type(key) is not str or not key.isalnum() or not _is_count(elements):
        raise TorchFileError("a storage with a bad name or size")
    return StorageRecord(key, STORAGE_DTYPES[kind.name], elements)


def _is_key(value: object, *, inside: bool = False) -> bool:
    # Nested tuples take time without bound to hash, or overflow the C stack; integers of more than 64 bits
    # can be chosen so that all of them have one hash, which makes a dictionary quadratic.
    if type(value) is tuple:
        return not inside and len(value) <= _MOST_KEY_ITEMS and all(_is_key(item, inside=True) for item in value)
    if type(value) is int:
        return -(2**63) <= value < 2**64
    return value is None or type(value) in (str, float, bool, bytes)


def set_item(target: Any, key: Any, value: Any) -> None:
    """Set an item of a dictionary.

    Raises:
        TorchFileError: the target is none, or the key is not a number, a text or a short tuple of them.
    """
    if type(target) is not dict or not _is_key(key):
        raise TorchFileError("an item is set on something that is not a dictionary, or under an unusable key")
    target[key] = value


def call(callee: Any, arguments: Any) -> Any:
    """Build what a call of a known name stands for.

    Raises:
        TorchFileError: the callee is no name that can be called, or the arguments are not its own.
    """
    if not isinstance(callee, Name) or type(arguments) is not tuple:
        raise TorchFileError("a call of something that is not a known name")
    build = _CALLS.get((callee.module, callee.name))
    if build is None:
        raise TorchFileError(f"a call of {callee.module}.{callee.name}")
    try:
        return build(*arguments)
    except TypeError as error:
        raise TorchFileError(f"{callee.module}.{callee.name} with wrong arguments") from error


def with_state(target: Any, state: Any) -> Any:
    """Object state: module versions of a state_dict or attributes of a parameter, left out.

    Raises:
        TorchFileError: the target has no state.
    """
    if isinstance(target, _NumpyDtype) and type(state) is tuple and len(state) > 1 and state[1] in ("<", ">", "|"):
        return replace(target, code=state[1] + target.code.lstrip("<>=|"))
    if type(target) is dict or isinstance(target, TensorRecord):  # no values are lost with these
        return target
    raise TorchFileError("state is set on something that has none")
