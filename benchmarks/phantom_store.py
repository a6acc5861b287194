"""A patch store of generated volumes, and the real loader over it: data for benchmarks, the same on every machine."""

import argparse
import contextlib
import pathlib
import tempfile
from collections.abc import Callable, Iterator

from ml_collections import ConfigDict

from lsmfm_jax.data.loader import BatchStream, make_loader
from lsmfm_jax.data.tokens import TokenTable, build_token_table
from lsmfm_jax.models.text_directory import load_text_tower
from lsmfm_jax.models.tiny_bert import build_tiny_bert
from lsmfm_jax.phantom import write_phantoms
from lsmfm_jax.store.ingest import ingest
from lsmfm_jax.store.reader import PatchStore
from lsmfm_jax.tasks.inputs import configured_scale
from lsmfm_jax.tasks.pretrain_setup import merge_captions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that select the data."""
    parser.add_argument("--store", type=pathlib.Path, help="patch store to read (default: one of generated volumes)")
    parser.add_argument("--patches", type=int, default=32, help="patches of the generated store (default 32)")
    parser.add_argument("--workers", type=int, default=0, help="reader processes; 0: threads (default)")


def make_store(folder: pathlib.Path, *, patches: int, size: tuple[int, int, int]) -> PatchStore:
    """Generate volumes and ingest them."""
    write_phantoms(folder / "phantoms", count=patches, size=size, seed=1, layout="selma")
    captions = [folder / "phantoms" / "captions.json"]
    ingest(layout="selma", root=folder / "phantoms", out=folder / "store", captions=captions)
    return PatchStore.open(folder / "store")


@contextlib.contextmanager
def data(config: ConfigDict, options: argparse.Namespace) -> Iterator[tuple[PatchStore, Callable[[], BatchStream]]]:
    """A store, and streams of its batches from the beginning, as training reads them."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        if options.store:
            store = PatchStore.open(options.store)
        else:
            store = make_store(folder, patches=options.patches, size=tuple(config.data.patch_size))
        table = tokens(config, store, folder) if config.text.enabled else None

        def stream() -> BatchStream:
            return make_loader(
                [store],
                range(len(store.rows)),
                batch_size=config.train.batch_size,
                patch_size=tuple(config.data.patch_size),
                seed=config.seed,
                token_table=table,
                scale=configured_scale(config),
                workers=options.workers,
                prefetch=config.data.prefetch,
            )

        yield store, stream


def tokens(config: ConfigDict, store: PatchStore, folder: pathlib.Path) -> TokenTable:
    """The store's captions in the words of a small tokenizer: as many numbers as a large one's."""
    captions = merge_captions([store])
    texts = [text for key in sorted(captions) for text in captions[key]]
    build_tiny_bert(folder / "text", texts, max_positions=config.text.max_tokens, seed=0)
    return build_token_table(captions, load_text_tower(folder / "text").tokenizer, config.text.max_tokens)


def facts(store: PatchStore, options: argparse.Namespace) -> dict[str, object]:
    """What was read."""
    row = store.rows[0]
    kind = "given" if options.store else "generated"
    return {"store": kind, "patches": len(store.rows), "shape": list(row.shape), "workers": options.workers}
