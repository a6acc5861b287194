"""A segmentation run as a package for bioimage.io: its network for PyTorch, described by the model format 0.5.

The package holds the network alone, from scaled volume to probability. Where the run scales by percentiles the format
can say so, and the package takes raw counts; what else prediction does is told in its documentation.
"""

import io
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from lsmfm_jax.convert.exporting import beside_the_network
from lsmfm_jax.files import replace_file, replacing_folder, sha256
from lsmfm_jax.publish.bioimageio_network import NETWORK_FILE, TorchNetwork, example_volumes, least_side, torch_network
from lsmfm_jax.publish.bioimageio_readme import documentation
from lsmfm_jax.publish.card import PAPER, PAPER_URL
from lsmfm_jax.publish.hub import read_license, refuse_filled
from lsmfm_jax.publish.stated import NOTHING_STATED, Stated
from lsmfm_jax.scale import Scale, scale_of
from lsmfm_jax.train.weights import Weights, read_weights

# The oldest version of the format that has all fields used here: newer programs read it too.
FORMAT = "0.5.4"
# With which the packages of the tests were run (Makefile, .venv-parity).
PYTORCH = "2.13.0"
DESCRIPTION, WEIGHTS, ENVIRONMENT, DOCUMENTATION = "rdf.yaml", "weights.pt", "environment.yaml", "README.md"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
_TAGS = ("3d", "light-sheet", "fluorescence-light-microscopy", "semantic-segmentation", "pytorch", "monai", "lsmfm-jax")


def package_for_bioimageio(
    run: pathlib.Path,
    out: pathlib.Path,
    *,
    stated: Stated = NOTHING_STATED,
    license_file: pathlib.Path | None = None,
) -> list[str]:
    """Writes the package as a folder.

    Its test output is computed by our own network in JAX, so that a test of the package by bioimage.io's programs,
    which run the weights in PyTorch, compares the two.

    Args:
        run: folder of a segmentation run with a UNet or SwinUNETR.
        out: folder to make; nothing, or an empty folder, may be there. Its name is that of the model.
        stated: licence and authors.
        license_file: text of the licence, which goes to `LICENSE`.

    Returns:
        Lines that say what was written; the last one is the command that tests it.

    Raises:
        CheckpointError: there is no run, or its weights are damaged.
        PackageError: the run's network cannot be packaged, or the licence's file not be read.
        ForeignOutput: something is in `out`.
    """
    refuse_filled(out)
    weights = read_weights(run)
    network = torch_network(run, weights)
    terms = read_license(license_file)
    scale, name = scale_of(weights.record["scaling"]), _name(out.resolve().name)
    given, expected = example_volumes(weights, scale)
    contents = {
        WEIGHTS: network.weights,
        ENVIRONMENT: _environment(network).encode(),
        DOCUMENTATION: documentation(run, weights, scale, name=name, stated=stated).encode(),
        TEST_INPUT: _npy(given),
        TEST_OUTPUT: _npy(expected),
        **({NETWORK_FILE: network.source.encode()} if network.source else {}),
        **({"LICENSE": terms} if terms is not None else {}),
    }
    described = _description(weights, network, scale, contents, name=name, stated=stated)
    contents[DESCRIPTION] = yaml.safe_dump(described, sort_keys=False, allow_unicode=True).encode()
    with replacing_folder(out) as folder:
        for file, content in contents.items():
            replace_file(folder / file, content)
    lines = [f"{out}: {', '.join(sorted(contents))}; {DOCUMENTATION} says what it takes: read it before you upload"]
    if beside_the_network(weights.record):
        lines.append(f"NOT in the package: the run's regression of voxels, which {DOCUMENTATION} writes out")
    missing = [f"--{key}" for key, value in (("license", stated.license), ("author", stated.authors)) if not value]
    if missing:
        lines.append(f"bioimage.io asks for {' and '.join(missing)}: package it again with them before you upload")
    return [*lines, f"bioimageio test {shlex.quote(str(out / DESCRIPTION))}"]


def _description(
    weights: Weights,
    network: TorchNetwork,
    scale: Scale,
    contents: Mapping[str, bytes],
    *,
    name: str,
    stated: Stated,
) -> dict[str, Any]:
    """What `rdf.yaml` says."""

    def file(source: str) -> dict[str, str]:
        return {"source": source, "sha256": sha256(contents[source])}

    least, architecture = least_side(weights), weights.architecture["name"].replace("_", "")
    built = {"callable": network.callable_name, "kwargs": network.arguments}
    sides = [{"type": "space", "id": axis, "size": {"min": least, "step": least // 2}} for axis in "zyx"]
    alike = [{**side, "size": {"tensor_id": "volume", "axis_id": side["id"]}} for side in sides]
    raw = scale.name == "percentile"
    return {
        "format_version": FORMAT,
        "type": "model",
        "name": name,
        "description": "Segmentation of 3D light-sheet microscopy: for each voxel the probability that it is "
        f"foreground. A {weights.architecture['name'].replace('_', ' ')} trained with lsmfm_jax.",
        "authors": [{"name": author} for author in stated.authors],
        "cite": [{"text": PAPER, "url": PAPER_URL}],
        **({"license": stated.license} if stated.license else {}),
        "tags": [*_TAGS, architecture],
        "documentation": file(DOCUMENTATION),
        **({"attachments": [file("LICENSE")]} if "LICENSE" in contents else {}),
        "inputs": [
            {
                "id": "volume",
                "description": "raw counts" if raw else "counts scaled as the documentation says",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["intensity"]}, *sides],
                "data": {"type": "float32"},
                **({"preprocessing": _percentiles(scale)} if raw else {}),
                "test_tensor": file(TEST_INPUT),
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "description": "probability of foreground, of the network alone",
                "axes": [{"type": "batch"}, {"type": "channel", "channel_names": ["foreground"]}, *alike],
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "postprocessing": [{"id": "sigmoid"}],
                "test_tensor": file(TEST_OUTPUT),
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **file(WEIGHTS),
                "architecture": built
                | (file(NETWORK_FILE) if network.source else {"import_from": "monai.networks.nets"}),
                "pytorch_version": PYTORCH,
                "dependencies": file(ENVIRONMENT),
            }
        },
    }


def _percentiles(scale: Scale) -> list[dict[str, Any]]:
    lower, upper = scale.percentiles
    axes = ["channel", "z", "y", "x"]
    return [
        {"id": "scale_range", "kwargs": {"axes": axes, "min_percentile": lower, "max_percentile": upper}},
        {"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}},
    ]


def _environment(network: TorchNetwork) -> str:
    """Of conda: what runs the network."""
    needed = ["python >=3.10", "pytorch >=2.4", f"monai {network.versions}", "einops"]
    return yaml.safe_dump({"channels": ["conda-forge", "nodefaults"], "dependencies": needed}, sort_keys=False)


def _name(folder: str) -> str:
    """The folder's name in the letters that the format allows, of 5 to 64."""
    name = re.sub(r"[^A-Za-z0-9_+() -]+", "-", folder).strip("- ")[:64]
    return name if len(name) >= 5 else f"{name} segmentation".strip()


def _npy(array: np.ndarray) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    return written.getvalue()
