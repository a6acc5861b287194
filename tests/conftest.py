"""Fixtures and run-time shape checks shared by all tests."""

import os
import pathlib
import signal

import pytest
from jaxtyping import install_import_hook
from quick_compiling import quick_flags

# Before JAX starts: eight devices, so that meshes can be tested on a machine that has none.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {quick_flags()}")

# Before any import of the package, so that every annotated function is checked.
install_import_hook("lsmfm_jax", "runtime_types.check")

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would the commands that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that no worker waits at the end for the other one's longest file."""
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real volumes and golden numbers beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"no real volumes or golden numbers at {folder}")
    return folder
