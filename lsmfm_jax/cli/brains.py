"""Whole volumes: patches cut from them, what they are, and generated ones; parts of `lsmfm data ...`."""

import argparse
import pathlib
import sys

from lsmfm_jax.cli.arguments import finite, from_zero, three


def add_volume_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses a part of a volume: --channel, --level, --time, --box."""
    parser.add_argument("--channel", type=from_zero, help="channel of the volume, from 0")
    parser.add_argument("--level", type=from_zero, default=0, help="level of its pyramid, 0 the finest (default 0)")
    parser.add_argument("--time", type=from_zero, help="time point, from 0")
    parser.add_argument("--box", type=box, metavar="Z0:Z1,Y0:Y1,X0:X1", help="part of it, in voxels of the level")


def box(text: str):
    """Parses a box as an argument."""
    from lsmfm_jax.volumes.lazy import parse_box

    try:
        return parse_box(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add(data: argparse._SubParsersAction) -> None:
    """Adds the actions of this file to `lsmfm data`."""
    cut = data.add_parser("cut", help="cut random patches with foreground from whole volumes into a patch store")
    cut.add_argument("volumes", nargs="+", metavar="VOLUME", help="file, folder or URL")
    cut.add_argument("--out", required=True, type=pathlib.Path, help="store to make or to add to")
    add_volume_arguments(cut)
    cut.add_argument("--count", type=int, default=10, help="most patches of a channel (default 10)")
    cut.add_argument("--size", type=three(int), default=(96, 96, 96), metavar="Z,Y,X", help="voxels (default 96,96,96)")
    cut.add_argument(
        "--min-foreground", type=float, default=0.05, metavar="SHARE", help="least share of foreground (default 0.05)"
    )
    cut.add_argument("--threshold", type=finite, help="counts above which a voxel is foreground (default: measured)")
    cut.add_argument("--seed", type=from_zero, default=0)
    cut.add_argument("--captions", nargs="+", type=pathlib.Path, help="JSON files; none: an image-only store")
    cut.add_argument("--caption-key", help="key of these patches in the caption files (default: the volume's name)")
    cut.add_argument("--source", default="brain", help="name of the data set in the store (default brain)")
    cut.add_argument("--png", type=pathlib.Path, help="projections with the boxes (default: beside the store)")
    cut.set_defaults(run=_cut)
    pairs = data.add_parser("pairs", help="write cut patches as NIfTI, beside their part of a labelled volume")
    pairs.add_argument("store", type=pathlib.Path, help="store made by `lsmfm data cut`")
    pairs.add_argument("--out", required=True, type=pathlib.Path, help="folder for the files")
    pairs.add_argument("--labels", help="labels of the whole volume: file, folder or URL (default: images alone)")
    pairs.add_argument("--volume", help="the only volume of the store to write")
    pairs.set_defaults(run=_pairs)
    brain = data.add_parser("phantom-brain", help="generate a whole brain of cells, block by block, as OME-Zarr")
    brain.add_argument("--out", required=True, type=pathlib.Path, help="folder to make, such as brain.ome.zarr")
    brain.add_argument("--shape", type=three(int), default=(512, 1024, 1024), metavar="Z,Y,X", help="voxels")
    brain.add_argument("--seed", type=from_zero, default=0)
    brain.set_defaults(run=_phantom_brain)


def volume_info(options: argparse.Namespace) -> int:
    """Prints what a volume is, and draws it small."""
    from lsmfm_jax.volumes.inspect import inspect, write_page
    from lsmfm_jax.volumes.names import volume_name

    report = inspect(options.store, channel=options.channel, level=options.level, time=options.time, box=options.box)
    print(report.text)
    # Not beside the volume: it may lie on a server, or where nothing can be written.
    png = options.png or pathlib.Path(f"{volume_name(options.store)}_info.png")
    write_page(report, png)
    print(f"projections and histogram: {png}")
    return 0


def _cut(options: argparse.Namespace) -> int:
    from lsmfm_jax.store.cut import cut, picture

    cuts = cut(
        options.volumes,
        out=options.out,
        channel=options.channel,
        level=options.level,
        time=options.time,
        box=options.box,
        count=options.count,
        size=options.size,
        min_foreground_frac=options.min_foreground,
        threshold=options.threshold,
        seed=options.seed,
        captions=options.captions,
        caption_key=options.caption_key,
        source=options.source,
        report=lambda one: print(one.text(), flush=True),
    )
    png = options.png or options.out.parent / f"{options.out.name}_boxes.png"
    picture(cuts, png)
    print(f"{options.out}: {sum(one.added for one in cuts)} patches added; where they lie: {png}")
    return 0


def _pairs(options: argparse.Namespace) -> int:
    from lsmfm_jax.store.pairs import write_pairs

    written = write_pairs(options.store, options.out, volume=options.volume, labels=options.labels)
    print(f"{options.out}: {len(written)} patches{' with labels' if options.labels else ''}")
    return 0


def _phantom_brain(options: argparse.Namespace) -> int:
    from lsmfm_jax.phantom.brain import cells_table, write_brain

    def progress(done: int, total: int) -> None:
        if done == total or done % max(1, total // 20) == 0:
            print(f"{done}/{total} blocks", file=sys.stderr, flush=True)

    count = write_brain(options.out, shape=options.shape, seed=options.seed, progress=progress)
    print(
        f"{options.out}: {count} cells, listed in {cells_table(options.out)}; their mask is {options.out}/labels/cells"
    )
    return 0
