"""A pretraining run with captions that was set up and not trained: for tests of what is done with such a run."""

import pathlib

import jax
from labelled_toy import write_patches
from tiny_runs import SETTINGS

from lsmfm_jax.cli import main
from lsmfm_jax.config import load_config
from lsmfm_jax.config.load import as_json
from lsmfm_jax.files import replace_json
from lsmfm_jax.tasks.pretrain_setup import pretraining_setup
from lsmfm_jax.train.weights import write_weights

CAPTIONS = '{"dense": "Many round nuclei.", "sparse": ["One nucleus.", "A lone cell."]}'


def make_run(folder: pathlib.Path, *, patches: int = 6) -> tuple[pathlib.Path, pathlib.Path]:
    """A run folder as training begins it, with its first weights as the best; and the folder of its patches."""
    images = write_patches(folder / "patches", count=patches, size=16)
    (folder / "captions.json").write_text(CAPTIONS)
    ingest = ["data", "ingest", "--layout", "flat", "--root", images, "--captions", folder / "captions.json"]
    assert main([str(part) for part in (*ingest, "--out", folder / "store")]) == 0
    values = {
        **SETTINGS,
        "data.stores": (str(folder / "store"),),
        "data.input_size": (8, 8, 8),
        "data.background_sigma_voxels": 4.0,
        "train.epochs": 1,
    }
    config = load_config("pretrain_unet:tiny", [f"--config.{name}={value}" for name, value in values.items()])
    run = folder / "run"
    setup = pretraining_setup(config, run, print_line=lambda line: None)
    params, batch_stats = jax.device_get(jax.jit(setup.task.init)(jax.random.key(0)))
    params |= {name: part for _, parts, _ in setup.initial for name, part in parts.items()}
    replace_json(run / "config.json", as_json(config))
    write_weights(
        run,
        record=setup.record,
        params=params,
        batch_stats=batch_stats,
        teacher={"params": params["backbone"], "batch_stats": batch_stats["backbone"]},
    )
    return run, images
