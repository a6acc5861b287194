"""Chunked stores on a disk or behind http(s), s3 and gs addresses, by tensorstore's key-value stores."""

import json
import os
import pathlib
import urllib.parse
from typing import Any

import numpy as np
import tensorstore

from lsmfm_jax.volumes.axes import Stored
from lsmfm_jax.volumes.formats import Unreadable

SCHEMES = ("http", "https", "s3", "gs", "file")
# As neuroglancer writes addresses: the format, then where it lies.
FORMAT_PREFIXES = ("precomputed://", "zarr2://", "zarr3://", "zarr://", "n5://")
# A server that is gone is reported after seconds and not after half an hour.
RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "3s"}
AWS_SIGNS = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")

_context: tensorstore.Context | None = None


def is_address(path: str) -> bool:
    """Whether a text is a URL and not a path."""
    scheme, separator, _ = without_format(path).partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def without_format(path: str) -> str:
    """Drop the name of the format that neuroglancer puts before an address."""
    return next((path[len(prefix) :] for prefix in FORMAT_PREFIXES if path.startswith(prefix)), path)


def key_values(path: str) -> tensorstore.KvStore:
    """Open the folder or address of a chunked store; nothing of it is read yet.

    For s3, the usual AWS variables and files count, AWS_ENDPOINT_URL and AWS_REGION too; without any, the
    bucket is asked anonymously, as public ones may be.

    Raises:
        Unreadable: an address that is not understood.
    """
    path = without_format(path)
    if not is_address(path):
        spec: Any = {"driver": "file", "path": f"{pathlib.Path(path).resolve()}/"}
    elif path.startswith("s3://"):
        spec = _s3(path)
    else:
        parts = urllib.parse.urlsplit(path)
        spec = urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/", fragment=""))
    try:
        return tensorstore.KvStore.open(spec, context=_shared_context()).result()
    except (ValueError, OSError) as error:
        raise Unreadable(f"the address is not understood ({one_line(error)})", "check it") from None


def read_json(store: tensorstore.KvStore, key: str) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such key.

    Raises:
        Unreadable: the server does not answer, or the text is no JSON object.
    """
    try:
        found = store.read(key).result()
    except (ValueError, OSError) as error:
        raise Unreadable(f"{key} cannot be read ({one_line(error)})", "check the address and the connection") from None
    if found.state != "value":
        return None
    try:
        content = json.loads(found.value)
    except ValueError as error:
        raise Unreadable(f"its {key} is not valid JSON ({error})", "copy it again") from None
    if not isinstance(content, dict):
        raise Unreadable(f"its {key} is not a JSON object", "copy it again")
    return content


def open_array(store: tensorstore.KvStore, driver: str, axes: tuple[str, ...] | None = None, **spec: Any) -> Stored:
    """Open an array below a key-value store; its coordinates begin at 0. `axes` can be named later.

    Raises:
        Unreadable: tensorstore cannot read it: damaged metadata, an unknown compression or type.
    """
    try:
        array = tensorstore.open(
            {"driver": driver, "kvstore": store.spec().to_json(), **spec},
            open=True,
            read=True,
            context=_shared_context(),
        ).result()
    except (ValueError, OSError, NotImplementedError) as error:
        raise Unreadable(
            f"it cannot be opened as {driver} ({one_line(error)})", "check that it is whole, or convert it to OME-Zarr"
        ) from None
    if array.rank:
        array = array[tensorstore.d[:].translate_to[0]]
    # 0 stands for an axis along which tensorstore names no chunk.
    chunk = tuple(
        min(n or size, size) for n, size in zip(array.chunk_layout.read_chunk.shape, array.shape, strict=True)
    )
    return Stored(
        shape=tuple(array.shape),
        dtype=np.dtype(array.dtype.numpy_dtype),
        axes=axes or ("?",) * array.rank,
        chunk=chunk,
        fetch=lambda index: array[index].read().result(),
    )


def one_line(error: Exception) -> str:
    """Give an error's text without line breaks and tensorstore's list of where it came from."""
    return " ".join(str(error).split()).split(" [source locations=")[0][:300]


def _shared_context() -> tensorstore.Context:
    global _context
    if _context is None:
        names = ("http_request_retries", "s3_request_retries", "gcs_request_retries")
        _context = tensorstore.Context(dict.fromkeys(names, RETRIES))
    return _context


def _s3(path: str) -> dict[str, Any]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if not bucket:
        raise Unreadable("the address names no bucket", "write s3://BUCKET/PATH")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{key.rstrip('/')}/" if key.strip("/") else ""}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        spec["endpoint"] = endpoint.rstrip("/")
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        spec["aws_region"] = region
    home = pathlib.Path.home() / ".aws"
    if not any(os.environ.get(name) for name in AWS_SIGNS) and not (home / "credentials").exists():
        spec["aws_credentials"] = {"type": "anonymous"}
    return spec
