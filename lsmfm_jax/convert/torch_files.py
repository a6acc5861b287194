"""Read and write PyTorch checkpoints (.ckpt, .pt, .pth) and safetensors files, without PyTorch."""

import io
import math
import os
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_safetensors
from safetensors.numpy import save as dump_safetensors

from lsmfm_jax import files
from lsmfm_jax.convert.torch_pickle import read_pickle
from lsmfm_jax.convert.torch_pickle_write import write_pickle
from lsmfm_jax.convert.torch_records import STORAGE_NAMES, StorageRecord, TensorRecord, TorchFileError

__all__ = ["TorchFile", "TorchFileError", "TorchFileMissing", "read_torch_file", "torch_file_bytes", "write_torch_file"]

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
_ALIGNMENT = 64
# Tensors may share values (tied weights, views): together they are at most so many times the file, and 64 MiB.
_MOST_TIMES_THE_FILE = 4
_EXPANDED_ALLOWANCE_BYTES = 64 << 20
_METADATA_DEPTH = 64
_LONGEST_NAME = 500


class TorchFileMissing(TorchFileError, FileNotFoundError):
    """There is no such file."""


@dataclass(frozen=True)
class TorchFile:
    """The tensors of a checkpoint by name, and everything else in it as plain data.

    Large tensors outside the state (an optimizer's moments) are left as `TensorRecord`, a description without
    values; tensors of one element (a best score) are read.
    """

    state: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)


class _Archive:
    """An open torch zip archive: finds entries under its one root folder and reads each storage once."""

    def __init__(self, archive: zipfile.ZipFile, size_bytes: int) -> None:
        self.archive = archive
        entries = sum(info.file_size for info in archive.infolist())
        if entries > size_bytes:
            raise TorchFileError(f"its entries announce {entries:,} bytes, more than the {size_bytes:,} of the file")
        self.expandable_bytes = _MOST_TIMES_THE_FILE * size_bytes + _EXPANDED_ALLOWANCE_BYTES
        names = archive.namelist()
        if len(set(names)) != len(names):
            raise TorchFileError("two entries of the archive have the same name")
        roots = [name.removesuffix("data.pkl") for name in names if name.split("/")[1:] == ["data.pkl"]]
        if len(roots) != 1:
            raise TorchFileError("it is a zip archive, but not one written by torch.save (no <name>/data.pkl)")
        self.root = roots[0]
        self.names = set(names)
        if self.root + "constants.pkl" in self.names:
            raise TorchFileError("it is a TorchScript program, not a checkpoint; save the module's state_dict instead")
        order = self.read("byteorder") if self.root + "byteorder" in self.names else b"little"
        if order not in (b"little", b"big"):
            raise TorchFileError(f"its byte order is {order[:20]!r}; little and big are known")
        self.swap = order == b"big"
        self.storages: dict[str, np.ndarray] = {}

    def read(self, name: str) -> bytes:
        info = self.archive.getinfo(self.root + name)
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            raise TorchFileError(f"its entry {name!r} is compressed or encrypted, which torch.save never does")
        return self.archive.read(info)

    def storage(self, record: StorageRecord) -> np.ndarray:
        if record.key not in self.storages:
            name = f"data/{record.key}"
            if self.root + name not in self.names:
                raise TorchFileError(f"its entry {name!r} is missing")
            self.storages[record.key] = np.frombuffer(self.read(name), np.uint8)
        data = self.storages[record.key]
        wanted = record.elements * record.dtype.itemsize
        if len(data) < wanted:
            raise TorchFileError(f"its entry data/{record.key} has {len(data)} bytes where {wanted} are announced")
        return data[:wanted]

    def tensor(self, record: TensorRecord) -> np.ndarray:
        """A writable, contiguous copy of one tensor in its own dtype and native byte order."""
        dtype = record.storage.dtype
        self.expandable_bytes -= math.prod(record.shape) * dtype.itemsize
        if self.expandable_bytes < 0:
            raise TorchFileError(
                f"its tensors, up to one of shape {record.shape}, are expanded to more than {_MOST_TIMES_THE_FILE} "
                "times the bytes that the file holds; save them contiguous, without expand()"
            )
        words = self.storage(record.storage).view(np.dtype(f"u{dtype.itemsize}"))
        values = np.zeros(record.shape, words.dtype)
        if values.size:
            steps = tuple(stride * dtype.itemsize for stride in record.strides)
            values[...] = np.lib.stride_tricks.as_strided(words[record.offset :], record.shape, steps, writeable=False)
        values = values.byteswap() if self.swap else values
        return values.view(dtype) if dtype != np.bool_ else values != 0

    def plain(self, value: Any) -> Any:
        """Metadata with its one-element tensors read; what is shared in it stays shared."""
        return self._plain(value, 0, {})[0]

    def _plain(self, value: Any, depth: int, done: dict[int, tuple[Any, int]]) -> tuple[Any, int]:
        """A value and the depth of its nesting. Each container is walked once, however often it is shared."""
        if isinstance(value, TensorRecord):
            return (self.tensor(value) if math.prod(value.shape) == 1 else value), 0
        if type(value) not in (dict, list, tuple):
            return value, 0
        if id(value) not in done:
            if depth > _METADATA_DEPTH:
                raise TorchFileError(f"its metadata is nested more than {_METADATA_DEPTH} deep, or holds itself")
            items = value.values() if type(value) is dict else value
            parts = [self._plain(item, depth + 1, done) for item in items]
            plain = [part for part, _ in parts]
            plain = dict(zip(value, plain, strict=True)) if type(value) is dict else type(value)(plain)
            done[id(value)] = plain, 1 + max((height for _, height in parts), default=0)
        found = done[id(value)]
        if depth + found[1] > _METADATA_DEPTH + 1:
            raise TorchFileError(f"its metadata is nested more than {_METADATA_DEPTH} deep, or holds itself")
        return found


def _split(content: Any) -> tuple[dict[str, TensorRecord], dict[str, Any]]:
    """The state and the rest, for the layouts {name: tensor}, {"state_dict": ...} and {"model": ...}."""
    if type(content) is not dict:
        raise TorchFileError(f"it holds a {type(content).__name__}, not a dictionary of tensors")
    for key in ("state_dict", "model"):
        if type(content.get(key)) is dict:
            state, rest = content[key], {name: value for name, value in content.items() if name != key}
            break
    else:
        state, rest = content, {}
    wrong = [
        str(key)[:80] for key, value in state.items() if type(key) is not str or not isinstance(value, TensorRecord)
    ]
    if wrong or not state:
        raise TorchFileError(
            f"its state holds no tensors, or other things too ({', '.join(wrong[:8])}); known layouts are "
            "{name: tensor}, {'state_dict': {name: tensor}, ...} and {'model': {name: tensor}, ...}"
        )
    return state, rest


def _read_zip(path: Path) -> TorchFile:
    with zipfile.ZipFile(path) as archive:
        opened = _Archive(archive, path.stat().st_size)
        state, rest = _split(read_pickle(opened.read("data.pkl")))
        return TorchFile({name: opened.tensor(record) for name, record in state.items()}, opened.plain(rest))


def _read_safetensors(path: Path) -> TorchFile:
    with safe_open(path, framework="numpy") as opened:
        metadata = dict(opened.metadata() or {})
    return TorchFile(load_safetensors(path), metadata)


def _not_a_zip(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_LEGACY_MAGIC) or start[257:262] == b"ustar":
        return "it is in the format of PyTorch before 1.6; load it with PyTorch and torch.save it again"
    if start.startswith(b"PK\x03\x04"):
        return "its end is missing: the file was cut short, copy or download it again"
    if start.startswith(b"\x80"):
        return "it is a bare pickle, not a torch checkpoint"
    return "it is not a torch checkpoint (a zip archive written by torch.save)"


def _check_names(content: TorchFile) -> TorchFile:
    """Names of tensors end up in messages and paths: short, and without line ends."""
    for name in content.state:
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise TorchFileError(f"a tensor's name is {name[:40]!r}...: longer than {_LONGEST_NAME} or not printable")
    return content


def read_torch_file(path: str | os.PathLike[str]) -> TorchFile:
    """Read a checkpoint written by `torch.save` (zip format), or a `.safetensors` file, as numpy arrays.

    Tensors keep their dtype (bfloat16 as `ml_dtypes.bfloat16`), shape and values bitwise. Nothing in the file
    is ever run: names of code are refused, wherever in the file they are.

    Raises:
        TorchFileError: damaged, truncated, unknown layout, or in need of code; names the file and the reason.
        TorchFileMissing: no such file; it is a FileNotFoundError too.
    """
    path = Path(path)
    if not path.is_file():
        raise TorchFileMissing(f"no checkpoint file at {path}")
    try:
        if path.suffix == ".safetensors":
            return _check_names(_read_safetensors(path))
        if not zipfile.is_zipfile(path):
            raise TorchFileError(_not_a_zip(path))
        return _check_names(_read_zip(path))
    except TorchFileError as error:
        raise TorchFileError(f"{path}: cannot be read: {error}") from error
    except MemoryError as error:
        raise TorchFileError(f"{path}: there is not enough memory to read it") from error
    # What a damaged archive makes the libraries raise, found by changing bytes of good ones.
    except (
        zipfile.BadZipFile,
        struct.error,
        SafetensorError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        LookupError,
        ArithmeticError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        raise TorchFileError(f"{path}: damaged ({_one_line(error)}); copy or download it again") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _records(state: dict[str, np.ndarray]) -> tuple[dict[str, TensorRecord], list[np.ndarray]]:
    """Describe each array; the same array object under two names is one shared (tied) storage."""
    records, arrays, keys = {}, [], {}
    for name, given in state.items():
        array = np.asarray(given)
        if array.dtype not in STORAGE_NAMES:
            known = ", ".join(sorted(str(dtype) for dtype in STORAGE_NAMES))
            raise TypeError(f"the tensor {name!r} is {array.dtype}; a torch file takes {known}")
        if id(given) not in keys:
            keys[id(given)] = str(len(arrays))
            arrays.append(array)
        strides = tuple(math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim))
        storage = StorageRecord(keys[id(given)], array.dtype, array.size)
        records[name] = TensorRecord(storage, 0, array.shape, strides)
    return records, arrays


def _little_endian(array: np.ndarray) -> bytes:
    words = np.ascontiguousarray(array).view(np.dtype(f"u{array.dtype.itemsize}"))
    return words.astype(words.dtype.newbyteorder("<"), copy=False).tobytes()


def _zip_bytes(pickled: bytes, arrays: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            info = zipfile.ZipInfo(f"archive/{name}", date_time=(1980, 1, 1, 0, 0, 0))
            # Values start on a 64-byte boundary, as torch writes them, so that they can be memory-mapped.
            start = file.tell() + 30 + len(info.filename) + 4
            padding = -start % _ALIGNMENT
            info.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
            archive.writestr(info, data)

        add("data.pkl", pickled)
        add("byteorder", b"little")
        for key, array in enumerate(arrays):
            add(f"data/{key}", _little_endian(array))
        add("version", b"3\n")
    return file.getvalue()


def torch_file_bytes(suffix: str, state: dict[str, np.ndarray], *, metadata: dict[str, Any] | None = None) -> bytes:
    """Arrays as the bytes of a checkpoint that `torch.load(weights_only=True)` reads, or of a `.safetensors` file.

    Without `metadata` the file is a plain state_dict; with it, `{**metadata, "state_dict": state}` as
    Lightning has it (in safetensors the metadata must be strings).

    Raises:
        TypeError: a dtype or a metadata value that the format cannot hold; names it.
    """
    if suffix == ".safetensors":
        # Tied names would lose their tie on the way back anyway; the format wants separate contiguous arrays.
        return dump_safetensors({name: np.array(array, order="C") for name, array in state.items()}, metadata)
    records, arrays = _records(state)
    return _zip_bytes(write_pickle(records if metadata is None else {**metadata, "state_dict": records}), arrays)


def write_torch_file(
    path: str | os.PathLike[str], state: dict[str, np.ndarray], *, metadata: dict[str, Any] | None = None
) -> None:
    """Write arrays as `torch_file_bytes` has them; the file appears whole or not at all, in place of an old one.

    Raises:
        TypeError: a dtype or a metadata value that the format cannot hold; names it.
    """
    path = Path(path)
    content = torch_file_bytes(path.suffix, state, metadata=metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_file(path, content)
