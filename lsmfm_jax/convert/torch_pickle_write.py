"""Write plain data and tensor records as the pickle that `torch.load` expects, instruction by instruction."""

import struct
from typing import Any

import numpy as np

from lsmfm_jax.convert.torch_records import STORAGE_NAMES, TensorRecord


def _emit_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _emit_int(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _emit_tensor(record: TensorRecord) -> bytes:
    storage = record.storage
    reference = b"".join(
        [
            _emit_text("storage"),
            f"ctorch\n{STORAGE_NAMES[storage.dtype]}\n".encode(),
            _emit_text(storage.key),
            _emit_text("cpu"),
            _emit_int(storage.elements),
        ]
    )
    shape, strides = (b"(" + b"".join(map(_emit_int, sizes)) + b"t" for sizes in (record.shape, record.strides))
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"((" + reference + b"tQ" + _emit_int(record.offset) + shape + strides + b"\x89" + hooks + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def _emit(value: Any, where: str) -> bytes:
    if isinstance(value, TensorRecord):
        return _emit_tensor(value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, str):
        return _emit_text(value)
    if isinstance(value, int):
        return _emit_int(value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, list):
        return b"](" + b"".join(_emit(item, f"{where}[{i}]") for i, item in enumerate(value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(_emit(item, f"{where}[{i}]") for i, item in enumerate(value)) + b"t"
    if isinstance(value, dict):
        items = (_emit(key, f"a key of {where}") + _emit(item, f"{where}[{key!r}]") for key, item in value.items())
        return b"ccollections\nOrderedDict\n)R(" + b"".join(items) + b"u"
    raise TypeError(
        f"{where} is a {type(value).__name__}: a torch file takes tensors, numbers, text and plain containers"
    )


def write_pickle(value: Any) -> bytes:
    """Write plain data, with tensors as `TensorRecord`, as the pickle that `torch.load` expects.

    Raises:
        TypeError: something in it is not plain data; the message says where.
    """
    return b"\x80\x02" + _emit(value, "the file") + b"."
