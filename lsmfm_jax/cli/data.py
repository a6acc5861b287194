"""Makes, checks and shows patch stores, and generates volumes: `lsmfm data ...`."""

import argparse
import pathlib
import sys

from lsmfm_jax.cli import brains
from lsmfm_jax.cli.arguments import axes, finite, from_zero, three

LAYOUTS = ("wu", "selma", "connection", "dev_mouse", "human2", "flat")


def add(commands: argparse._SubParsersAction) -> None:
    """Adds the commands of this file."""
    data = commands.add_parser("data", help="make and look at patch stores").add_subparsers(
        required=True, metavar="ACTION"
    )
    ingest = data.add_parser("ingest", help="read image files into a patch store")
    ingest.add_argument("--layout", required=True, choices=LAYOUTS, help="how the source's files are arranged")
    ingest.add_argument("--root", required=True, type=pathlib.Path, help="folder of image files")
    ingest.add_argument("--captions", nargs="+", type=pathlib.Path, help="JSON files; none: an image-only store")
    ingest.add_argument("--out", required=True, type=pathlib.Path, help="store to make or to add to")
    ingest.add_argument("--source", help="name of the data set in the store (default: the layout's)")
    ingest.add_argument("--volume-pattern", help="regular expression whose first group is the volume's name")
    ingest.add_argument(
        "--voxel-size-um",
        type=three(float),
        metavar="Z,Y,X",
        help="voxel size, where headers do not tell the truth",
    )
    ingest.add_argument("--channel", type=from_zero, metavar="N", help="channel to take, from 0 (default: all)")
    ingest.add_argument(
        "--axes", type=axes, metavar="CZYX", help="what the axes are, where files do not say it (NIfTI: usually XYZ)"
    )
    ingest.add_argument("--series", type=from_zero, metavar="N", help="which image of TIFF files with several, from 0")
    ingest.add_argument(
        "--nan-fill",
        type=finite,
        metavar="VALUE",
        help="what stands for NaN, such as 0 for borders of a registration (default: refuse such files)",
    )
    ingest.add_argument("--strict", action="store_true", help="exit with 1 where any file failed")
    ingest.set_defaults(run=_ingest)
    info = data.add_parser("info", help="what a store holds, or what a volume is, with a picture")
    info.add_argument("store", metavar="PATH", help="a patch store, or a volume: file, folder or URL")
    info.add_argument("--png", type=pathlib.Path, help="the picture (default: beside the store; of a volume, here)")
    brains.add_volume_arguments(info)
    info.set_defaults(run=_info)
    brains.add(data)
    phantom = data.add_parser("phantom", help="generate light-sheet-like volumes with masks and captions")
    phantom.add_argument("--out", required=True, type=pathlib.Path)
    phantom.add_argument("--count", type=int, default=20, help="patches (default 20)")
    phantom.add_argument("--size", type=three(int), default=(96, 96, 96), metavar="Z,Y,X", help="voxels")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--layout", choices=("flat", "selma", "wu"), default="selma")
    phantom.add_argument("--blurred", action="store_true", help="write blurred companions too")
    phantom.add_argument("--overwrite", action="store_true", help="write into a folder that holds other files")
    phantom.set_defaults(run=_phantom)


def _ingest(options: argparse.Namespace) -> int:
    from lsmfm_jax.store.ingest import ingest
    from lsmfm_jax.store.ingest_summary import IngestFailed

    def progress(done: int, total: int, path: pathlib.Path) -> None:
        if done == total or done % 50 == 0:
            print(f"{done}/{total} files", file=sys.stderr, flush=True)

    try:
        summary = ingest(
            layout=options.layout,
            root=options.root,
            out=options.out,
            captions=options.captions,
            source=options.source,
            volume_pattern=options.volume_pattern,
            voxel_size_um=options.voxel_size_um,
            channel=options.channel,
            axes=options.axes,
            series=options.series,
            nan_fill=options.nan_fill,
            strict=options.strict,
            progress=progress,
        )
    except IngestFailed as error:
        print(error)
        return 1
    print(summary.text())
    return 0


def _info(options: argparse.Namespace) -> int:
    from lsmfm_jax.files import refuse_foreign
    from lsmfm_jax.store.inspect import SHEET_MARK, contact_sheet, info
    from lsmfm_jax.store.reader import PatchStore
    from lsmfm_jax.volumes.open import is_volume

    if is_volume(options.store):
        return brains.volume_info(options)
    store = PatchStore.open(options.store)
    if options.png is not None:
        refuse_foreign(options.png, made_by="data info", mark=SHEET_MARK.encode(), flag=False)
    png = options.png or store.path.parent / f"{store.path.name}_contact_sheet.png"
    print(info(store))
    contact_sheet(store, png)
    print(f"contact sheet: {png}")
    return 0


def _phantom(options: argparse.Namespace) -> int:
    from lsmfm_jax.files import mark_folder, refuse_foreign
    from lsmfm_jax.phantom import check_phantoms, write_phantoms

    check_phantoms(count=options.count, size=options.size)
    refuse_foreign(options.out, made_by="data phantom", overwrite=options.overwrite)
    mark_folder(options.out, made_by="data phantom")
    files = write_phantoms(
        options.out,
        count=options.count,
        size=options.size,
        seed=options.seed,
        layout=options.layout,
        blurred=options.blurred,
    )
    print(f"{len(files)} files in {options.out}, captions in {options.out / 'captions.json'}")
    return 0
