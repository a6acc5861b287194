"""`.npy` files to arrays; their axes are taken as Z, Y, X, with channels first or last."""

import pathlib
import warnings

import numpy as np

from lsmfm_jax.volumes.formats import Decoded, Unreadable, arrange, channels_first, check_size, file_bytes, one_line

ZIP_MAGIC = b"PK\x03\x04"


def read_npy(path: pathlib.Path, *, axes: str | None = None) -> Decoded:
    """Read a file that `numpy.save` wrote; `axes` names its axes where they are not (C), Z, Y, X, (C).

    Raises:
        Unreadable: not .npy, damaged, truncated, several arrays in one file, or not 3D.
        OSError: the file cannot be opened.
    """
    size = file_bytes(path)
    with open(path, "rb") as file:
        if file.read(4) == ZIP_MAGIC:
            raise Unreadable("it is an .npz archive under the name of an .npy file", "save its array with numpy.save")
    try:
        # Mapped, so that numpy compares the promise of the header with the file and nothing is allocated.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        end = mapped.offset + mapped.nbytes
    except Exception as error:
        raise Unreadable(f"it is not a readable .npy file ({one_line(error)})", "save it with numpy.save") from None
    if end < size:
        raise Unreadable(f"it holds {size - end} bytes behind its array {mapped.shape}", "save one array a file")
    check_size(end, file_bytes=size)
    array = np.array(mapped)
    return Decoded(arrange(array, axes) if axes else channels_first(array), None, "unknown")
