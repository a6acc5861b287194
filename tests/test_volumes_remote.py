"""Chunked volumes behind http and s3 addresses, served from this machine; only what a box needs is fetched."""

import contextlib
import functools
import http.server
import socket
import threading
import urllib.parse

import numpy as np
import pytest
from volume_files import n5, ome_zarr, precomputed, voxels

from lsmfm_jax.volumes.open import VolumeError, is_volume, open_volume

SHAPE = (32, 64, 64)
BOX = (slice(3, 11), slice(5, 30), slice(17, 31))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_):
        self.server.asked.append(self.path)  # type: ignore[attr-defined]

    def end_headers(self):
        # An S3 client wants to know which version of an object it has got.
        self.send_header("ETag", '"1"')
        super().end_headers()


@contextlib.contextmanager
def served(folder, handler=_Quiet):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    server.asked = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_every_chunked_format_over_http_reads_only_its_box(tmp_path):
    whole = voxels(SHAPE)
    ome_zarr(tmp_path / "v2.zarr", [whole, whole[::2, ::2, ::2]], version="0.4", chunk=16)
    ome_zarr(tmp_path / "my brain.zarr", [whole], version="0.5", chunk=16)
    precomputed(tmp_path / "p", [whole[None]])
    n5(tmp_path / "n5" / "s0", whole.transpose(2, 1, 0))
    with served(tmp_path) as (address, asked):
        for name, prefix in (("v2.zarr", ""), ("my%20brain.zarr/", "zarr://"), ("p", "precomputed://"), ("n5", "")):
            where = f"{prefix}{address}/{name}"
            assert is_volume(where)
            volume = open_volume(where)
            assert volume.shape == SHAPE
            asked.clear()
            np.testing.assert_array_equal(volume.read(BOX), whole[BOX])
            # The box lies in 1 x 2 x 2 blocks of 16 (or 2 x 2 x 2 of 8 along Z) of the 32 or 64 in the store.
            chunks = {path for path in asked if not path.endswith((".json", ".zarray", ".zattrs", "info"))}
            assert 2 <= len(chunks) <= 8, (name, chunks)
        np.testing.assert_array_equal(open_volume(f"{address}/v2.zarr", level=1).read(BOX), whole[::2, ::2, ::2][BOX])
        with pytest.raises(VolumeError, match="no zarr, N5 or precomputed volume at the address"):
            open_volume(f"{address}/absent.zarr")


def test_s3_with_an_endpoint(tmp_path, monkeypatch):
    whole = voxels(SHAPE)
    ome_zarr(tmp_path / "bucket" / "a" / "b.zarr", [whole], version="0.5", chunk=16)
    with served(tmp_path) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.delenv(name, raising=False)
        np.testing.assert_array_equal(open_volume("s3://bucket/a/b.zarr").read(BOX), whole[BOX])


class _Bucket(_Quiet):
    """Google's JSON interface, as far as reading goes: /storage/v1/b/BUCKET/o/KEY."""

    def translate_path(self, path):
        return super().translate_path(urllib.parse.unquote(path.partition("/o/")[2].partition("?")[0]) or "none")

    def end_headers(self):
        self.send_header("x-goog-generation", "1")
        super().end_headers()


def test_gs(tmp_path, monkeypatch):
    whole = voxels(SHAPE)
    ome_zarr(tmp_path / "a" / "b.zarr", [whole], version="0.5", chunk=16)
    with served(tmp_path, _Bucket) as (address, asked):
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        # Where a machine of Google's would find its account; here it finds none, and asks anonymously.
        monkeypatch.setenv("GCE_METADATA_ROOT", address.removeprefix("http://"))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
        np.testing.assert_array_equal(open_volume("gs://bucket/a/b.zarr").read(BOX), whole[BOX])
        assert any(path.startswith("/storage/v1/b/bucket/o/") for path in asked)


def test_a_server_that_is_gone_is_one_line_after_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(VolumeError, match="cannot be read") as caught:
        open_volume(f"http://127.0.0.1:{port}/brain.zarr")
    assert "\n" not in str(caught.value) and "check the address" in str(caught.value)
    with pytest.raises(VolumeError, match="names no bucket"):
        open_volume("s3://")
