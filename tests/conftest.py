"""Fixtures and run-time shape checks shared by all tests."""

import pathlib

import pytest
from jaxtyping import install_import_hook

# Before any import of the package, so that every annotated function is checked.
install_import_hook("lsmfm_jax", "beartype.beartype")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real volumes and golden numbers beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip(f"no real volumes or golden numbers at {folder}")
    return folder
